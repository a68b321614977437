"""Our own sampling planners over the models of a case, with the peers' settings: what they are to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.sampling import Sampler

from .cases import Case
from .peers.models import COMMAND, SAMPLING, Sampling
from .rung import Rung


@dataclass(frozen=True, eq=False)
class Sampled:
    """A planner from `case.init`, on the backend that "auto" takes."""

    case: Case
    planner: Sampler
    seed: int

    def __call__(self) -> Tensor:
        case = self.case
        return sgp.solve(case.problem, self.planner, case.x0, init=case.init, seed=self.seed).u

    def foreseen(self, u: Tensor) -> Tensor:
        """Task cost `[B]` of controls `u [B, T, nu]` of the first problems: of a plan whose one candidate hardly moves."""
        still = sgp.MPPI(self.planner.horizon, 1, 1, spread=1e-12, perturbation_cost=False, precision=self.planner.precision)
        return sgp.solve(self.case.problem, still, self.case.x0[: len(u)], init=u).cost


def mppi(case: Case, settings: Sampling = SAMPLING) -> Sampled:
    """MPPI, with the temperature and noise that pytorch_mppi is given."""
    planner = case.planner
    made = sgp.MPPI(
        planner.horizon, settings.iterations, settings.candidates, temperature=settings.temperature,
        spread=_spread(case, settings), precision=planner.precision,
    )  # fmt: skip
    return Sampled(case, made, settings.seed)


def cem(case: Case, settings: Sampling = SAMPLING) -> Sampled:
    """CEM, with as many elites as TorchRL's is given."""
    planner = case.planner
    made = sgp.CEM(
        planner.horizon, settings.iterations, settings.candidates, elites=settings.elites, spread=_spread(case, settings),
        precision=planner.precision,
    )  # fmt: skip
    return Sampled(case, made, settings.seed)


def _spread(case: Case, settings: Sampling) -> tuple[float, ...]:
    """The share of the range between the bounds, for each control."""
    low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in case.problem.bounds or (-1.0, 1.0))
    return tuple((settings.spread * (high - low)).expand(case.init.shape[-1]).tolist())


def _rung(name: str, label: str, make: Callable[..., Sampled], settings: Sampling) -> Rung:
    label = f"{label}, {settings.budget}"
    return Rung(name, label, "ours", partial(make, settings=settings), exact=False, candidates=settings.evaluated)


RUNGS = (
    _rung("mppi", "sgp_fast MPPI", mppi, SAMPLING),
    _rung("mppi command", "sgp_fast MPPI", mppi, COMMAND),
    _rung("cem", "sgp_fast CEM", cem, SAMPLING),
)
