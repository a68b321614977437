"""Sampling planners as frozen values: CEM and MPPI. `solving.solve` and `MPC` take them as they take SGP.

Both draw S candidates around a mean, roll each out, and move the mean toward those that cost little:

    u_s = clip(mean + std ⊙ ε_s),   S_s = Σ_t c(x_t, u_t) + c_T(x_T),   mean ← Σ_s w_s u_s

Only values are needed, no gradient: any dynamics and any cost will do, and `Plan.costate` and `Plan.grad_norm` are NaN. ε of
a candidate is a function of (seed, problem, iteration, candidate) alone, the same on every backend (`kernels.draws_ref`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .kernels.draws_ref import MOST_ITERATIONS
from .planner import SGP, Numbers, Precision


@dataclass(frozen=True)
class Sampler(Numbers, ABC):
    """What both sampling planners have.

    A candidate whose cost is not finite has no weight. A problem all of whose candidates were so has `Status.DIVERGED`.

    Args:
        horizon: T, steps of the model.
        iterations: Refits of the distribution.
        samples: S, candidates of one iteration.
        spread: Standard deviation of the first draws, in the units of the controls: a number, or one for each control. None:
            a quarter of the range between the bounds, which must be finite then.
        beta: Weight of the distance to the data in a candidate's cost, `β · ½ σ² Σ_t ‖s̄(z̄_t)‖²` at the score's last level:
            what plans are ranked by (`Plan.ranking`); 0 is the task cost alone.
        risk: κ of `mean + κ·standard deviation` of a candidate's cost over the members of an `Ensemble`, which it needs.
        precision: As in `SGP`: "float64", "float32", or "tf32", "float16", "bfloat16" for the networks' products only.
    """

    horizon: int
    iterations: int = 5
    samples: int = 512
    _: KW_ONLY
    spread: float | Sequence[float] | None = None
    beta: float = 0.0
    risk: float = 0.0
    precision: Precision = "float32"

    # What SGP can have otherwise, for code that reads it of any planner.
    bounding: ClassVar[Literal["project"]] = "project"
    starts: ClassVar[int] = 1
    keep_moments: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("horizon", "iterations", "samples"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}.{field} is {value!r}; expected a whole number of at least 1")
        if self.iterations > MOST_ITERATIONS:
            raise ValueError(f"{name}.iterations is {self.iterations}; random numbers are counted up to {MOST_ITERATIONS}")
        if self.spread is not None:
            spread = np.asarray(self.spread, dtype=np.float64)
            if spread.ndim > 1 or not bool((np.isfinite(spread) & (spread > 0)).all()):
                raise ValueError(f"{name}.spread is {self.spread!r}; expected a positive number, or one for each control")
            object.__setattr__(self, "spread", float(spread) if spread.ndim == 0 else tuple(spread.tolist()))
        for field in ("beta", "risk"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"{name}.{field} is {getattr(self, field)!r}; expected a number of at least 0")
        if self.precision not in get_args(Precision):
            raise ValueError(f"{name}.precision is {self.precision!r}; expected one of {', '.join(get_args(Precision))}")

    @abstractmethod
    def weights(self, costs: Tensor) -> Tensor:
        """Weights `[B, S]` of candidates by their costs `[B, S]`, infinite for those that do not count.

        They sum to one a problem, or are all zero where no candidate counts.
        """

    @property
    @abstractmethod
    def narrows(self) -> bool:
        """Whether the standard deviation is refitted, too."""

    @property
    @abstractmethod
    def kept(self) -> float:
        """Share of the old mean and standard deviation in the new."""

    @property
    @abstractmethod
    def effort(self) -> float:
        """λ of a candidate's own cost `λ Σ_t mean_tᵀ Σ⁻¹ (u_t − mean_t)`; 0: none."""


@dataclass(frozen=True)
class CEM(Sampler):
    """The cross-entropy method: draw, refit mean and standard deviation to the `elites` of least cost, and again.

    The plan is the last mean (Chua et al. 2018, arXiv 1805.12114). With one iteration and one elite this is random shooting
    (Nagabandi et al. 2018, arXiv 1708.02596), with normal draws.

    Args:
        elites: Candidates that are refitted to, equally weighted; fewer where fewer are finite.
        momentum: Share of the old mean and standard deviation that each refit keeps.
    """

    _: KW_ONLY
    elites: int = 64
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.elites, int) or not 1 <= self.elites <= self.samples:
            raise ValueError(f"CEM.elites is {self.elites!r} of samples={self.samples}; expected from 1 to {self.samples}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"CEM.momentum is {self.momentum!r}; expected a share from 0 to below 1")

    def weights(self, costs: Tensor) -> Tensor:
        best = costs.topk(self.elites, largest=False, sorted=False)
        chosen = torch.zeros_like(costs).scatter_(1, best.indices, best.values.isfinite().to(costs.dtype))
        return chosen / chosen.sum(1, keepdim=True).clamp(min=1)

    @property
    def narrows(self) -> bool:
        return True

    @property
    def kept(self) -> float:
        return self.momentum

    @property
    def effort(self) -> float:
        return 0.0


@dataclass(frozen=True)
class MPPI(Sampler):
    """Model predictive path integral control: the mean of candidates weighted by `exp(−(S_s − min S)/λ)`.

    Bounds clip the candidate, and `u_t − mean_t` is what is left of its noise. Williams et al. 2017, "Information theoretic
    MPC for model-based reinforcement learning", algorithm 2. The library pytorch_mppi updates alike under the same noise,
    but its running cost is that of the state after each control.

    Args:
        temperature: λ: how much more a candidate may cost and still count.
        perturbation_cost: Add `λ Σ_t mean_tᵀ Σ⁻¹ (u_t − mean_t)` to a candidate's cost, as the derivation has it.
    """

    iterations: int = 1
    samples: int = 1024
    _: KW_ONLY
    temperature: float = 1.0
    perturbation_cost: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.finfo(torch.float32).tiny <= self.temperature < float("inf"):
            raise ValueError(f"MPPI.temperature is {self.temperature!r}; expected a positive number, at least 2e-38")

    def weights(self, costs: Tensor) -> Tensor:
        above = (costs - costs.amin(1, keepdim=True)) / -self.temperature
        weights = torch.where(costs.isfinite(), above.exp(), 0.0)
        return weights / weights.sum(1, keepdim=True).clamp(min=1)

    @property
    def narrows(self) -> bool:
        return False

    @property
    def kept(self) -> float:
        return 0.0

    @property
    def effort(self) -> float:
        return self.temperature if self.perturbation_cost else 0.0


Planner = SGP | Sampler
