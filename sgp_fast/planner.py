"""Score-guided planning: the planner as a frozen value. `solving.solve` applies it to a batch of problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from . import schedule
from .kernels.packing import InputPrecision

Precision = Literal["float64", "float32", "tf32", "float16", "bfloat16"]


class Numbers:
    """What a planner's `precision` means for the numbers that it is made of."""

    precision: Precision

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def product_dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "tf32" else getattr(torch, self.precision)

    @property
    def input_precision(self) -> InputPrecision:
        """Of products of float32, on a GPU."""
        return "tf32" if self.precision == "tf32" else "ieee"


@dataclass(frozen=True)
class SGP(Numbers):
    """Single shooting with a score (Suh et al. 2023, arXiv 2306.14079): gradient steps on the controls of a rollout.

        g_t = ∂_u c_t − β s_{u,t} + (∂_u f_t)ᵀ λ_{t+1},     u ← project(Adam(u, g))

    Args:
        horizon: T, steps of the model.
        iterations: N, gradient steps.
        step_size: Of Adam: a number, a pair (start, end) joined by half a cosine, or a table of N. 0 throughout moves
            nothing: `solve` then tells what the controls of `init`, which it needs, come to.
        beta: Weight of the score: a number, a pair or a table, likewise. Without effect on a problem that has no score,
            which `Plan.stats["score"]` tells.
        levels: Noise level of each iteration, indices into the score's sigmas: one, or a table of N; by default from the
            first level to the last.
        bounding: How bounds are kept: "project" clips after each step; "tanh" plans in an unbounded variable v, where
            u is `mid + half·tanh(v)`, with its own adjoint (a start at a bound is moved inside by 0.1% of the range).
        starts: Starts per problem; the first is as given, the best by `Plan.ranking` is returned.
        start_spread: Standard deviation of random starts, around zero or around the controls that `init` gives.
        adam: β₁, β₂ and ε of Adam, restarted at every plan unless `keep_moments`.
        clip_gradient: Largest norm of one problem's gradient, over horizon and controls; None: no limit.
        tolerance: A problem has converged, and stops, when the norm of its projected gradient `u − clip(u − g)` is below
            this after all schedules have ended; 0 never stops.
        precision: "float64", "float32", or "tf32", "float16", "bfloat16" for the networks' products only (all else in
            float32); "tf32" is float32 on CPUs.
        record_cost: Keep the task cost of every iteration in `Plan.history`.
        keep_moments: Keep Adam's moments in the plan, and go on from those of `init`.
        memory_limit: Bytes of saved activations above which a batch is planned in chunks.
    """

    horizon: int
    iterations: int = 50
    step_size: schedule.Schedule = 0.1
    beta: schedule.Schedule = (0.2, 0.1)
    levels: int | Sequence[int] | None = None
    bounding: Literal["project", "tanh"] = "project"
    starts: int = 1
    start_spread: float = 0.1
    adam: tuple[float, float, float] = (0.9, 0.999, 1e-8)
    clip_gradient: float | None = None
    tolerance: float = 1e-4
    precision: Precision = "float32"
    record_cost: bool = False
    keep_moments: bool = False
    memory_limit: int = 2 << 30

    def __post_init__(self) -> None:
        for name in ("step_size", "beta", "levels", "adam"):  # tables may come as lists; a frozen value holds tuples
            value = getattr(self, name)
            value = value.item() if isinstance(value, (np.generic, Tensor)) and value.ndim == 0 else value
            object.__setattr__(self, name, value)
            if value is not None and not isinstance(value, (int, float)):
                object.__setattr__(self, name, tuple(value))
        for name in ("horizon", "iterations", "starts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"SGP.{name} is {value!r}; expected a whole number of at least 1")
        levels = self.levels if isinstance(self.levels, tuple) else (self.levels,)
        if self.levels is not None and not all(isinstance(level, (int, np.integer)) and level >= 0 for level in levels):
            raise ValueError(f"SGP.levels is {self.levels!r}; expected indices into the score's sigmas, from 0")
        if self.bounding not in ("project", "tanh"):
            raise ValueError(f"SGP.bounding is {self.bounding!r}; expected 'project' or 'tanh'")
        if self.precision not in get_args(Precision):
            raise ValueError(f"SGP.precision is {self.precision!r}; expected one of {', '.join(get_args(Precision))}")
        if not self.start_spread >= 0 or not self.tolerance >= 0:
            raise ValueError("SGP.start_spread and SGP.tolerance must be at least 0")
        if self.clip_gradient is not None and not self.clip_gradient > 0:
            raise ValueError(f"SGP.clip_gradient is {self.clip_gradient}; expected a positive norm, or None for no limit")
        if len(self.adam) != 3 or not (0 <= self.adam[0] < 1 and 0 <= self.adam[1] < 1 and self.adam[2] > 0):
            raise ValueError(f"SGP.adam is {self.adam}; expected (β₁, β₂, ε) with 0 ≤ β < 1 and ε > 0")
        schedule.table(self.beta, self.iterations, "SGP.beta")
        schedule.table(self.step_size, self.iterations, "SGP.step_size")

    @classmethod
    def published(
        cls, horizon: int, max_iters: int, step_size: float, beta: float, beta_min: float, levels: int, **options: Any
    ) -> SGP:
        """The schedules of the published code: `max_iters − 1` steps, and its own tables of β and of `levels` levels."""
        tables: dict[str, Any] = {
            "beta": schedule.published_beta(beta, beta_min, max_iters),
            "levels": schedule.published_levels(levels, max_iters),
        }
        return cls(horizon, max_iters - 1, step_size, **tables, **options)

    @property
    def moves(self) -> bool:
        """Whether any step has a length."""
        return any(schedule.known_table(self.step_size, self.iterations, "SGP.step_size"))
