"""What a backend is given and what it answers: the protocol between `solve` and whatever does the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..plan import Plan
from ..planner import SGP
from ..problem import Problem

# Under a time limit, the iterations from one look to the next: whether there is time left, and whether this is the best plan
# so far. A look costs a score at the last level, so not every iteration has one.
LOOK = 5


@dataclass(frozen=True)
class Tables:
    """The schedules, one entry an iteration; from iteration `settled` on they no longer change."""

    beta: tuple[float, ...]
    levels: tuple[int, ...]
    sigma: tuple[float, ...]
    step_size: tuple[float, ...]
    settled: int

    @property
    def penalty(self) -> float:
        """What `½ ‖s̄(z̄)‖²` is weighted with where plans are ranked: `β_end σ_end²`."""
        return self.beta[-1] * self.sigma[-1] ** 2


@dataclass(frozen=True)
class Iteration:
    """What a callback sees before a step. Tensors are the planner's own: read them, do not keep or change them.

    `first` is the number of the chunk's first problem and rows are starts of problems. `u [R, T, nu]`, `x [R, T+1, nx]`,
    task `cost [R]`, `score [R, T, nx+nu]` (raw; None without a score), `grad_u [R, T, nu]` as Adam receives it: clipped,
    and with tanh bounds the gradient in v.
    """

    index: int
    first: int
    beta: float
    sigma: float
    step_size: float
    u: Tensor
    x: Tensor
    cost: Tensor
    score: Tensor | None
    grad_u: Tensor


@dataclass(frozen=True)
class Job:
    """One chunk of a checked batch, R = problems × starts rows, starts of a problem side by side.

    `problem` is prepared: frozen, on the device, in the planner's dtypes. `x0 [B, nx]`, bounds, goal and params have a row
    a problem (bounds: or one for all); `u [R, T, nu]` are the controls to start from.
    """

    problem: Problem
    planner: SGP
    tables: Tables
    x0: Tensor
    u: Tensor
    low: Tensor | None
    high: Tensor | None
    goal: Tensor | None
    params: Tensor | dict[str, Tensor] | None
    moments: tuple[Tensor, Tensor, Tensor] | None
    first: int
    deadline: float
    callback: Callable[[Iteration], None] | None


class Backend(Protocol):
    """A way to plan. `reason` says why it was chosen."""

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str: ...

    def prepare(self, problem: Problem, planner: SGP, device: torch.device) -> Any:
        """The problem as this backend wants it."""
        ...

    def run(self, job: Job) -> Plan:
        """Plan the job's R rows."""
        ...
