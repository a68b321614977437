"""Correctness before speed: what a rung must show before its time is printed."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import sgp_fast as sgp

from .cases import Case
from .rows import PlanRow
from .rung import Rung, Runner

# How far the controls may be from float64's, ‖u − u₆₄‖/‖u₆₄‖. Adam divides by its own noise: rounding of float32 grows from
# 1e-7 to some 1e-5 in fifty iterations; products of ten bits (tf32, float16) or eight (bfloat16) are off from the start.
LIMITS = {"float64": 1e-9, "float32": 1e-3, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.3}
# A planner of another kind must foresee the cost of its own controls as the reference does.
FORESEEN = {"float64": 1e-9, "float32": 1e-3, "tf32": 0.03, "float16": 0.03, "bfloat16": 0.1}
# Problems that are held against the reference, the first of a batch; a plan does not depend on the others.
CHECKED = 16


@dataclass(frozen=True)
class Verdict:
    """What the check found; `reason` is None where the rung passed. Cost and penalty are means over the checked problems."""

    error: float | None
    limit: float
    cost: float | None
    penalty: float | None
    reason: str | None


def judge(rung: Rung, case: Case, runner: Runner, u: Tensor) -> Verdict:
    """Hold the controls `u [B or timed, T, nu]` that a rung found against the float64 reference."""
    precision = case.planner.precision
    u = u.detach()
    few = case.first(min(CHECKED, len(u)))
    mine = u[: len(few.x0)].double()
    limit = (LIMITS if rung.exact else FORESEEN)[precision]
    if u.shape[1:] != case.init.shape[1:] or not bool(u.isfinite().all()):
        return Verdict(None, limit, None, None, f"wrong: controls of shape {tuple(u.shape)}, not all of them finite")
    if not _within(case, u):
        return Verdict(None, limit, None, None, "wrong: controls outside their bounds")
    told = evaluated(few, mine)
    cost, penalty = told.cost.mean().item(), told.terms["penalty"].mean().item()
    if rung.exact:
        want = reference(few)
        error = ((mine - want).norm() / want.norm()).item()
        reason = f"wrong: error {error:.1e} above {limit:.0e}"
    else:
        foreseen = getattr(runner, "foreseen")(mine.to(u.dtype)).double()  # noqa: B009
        error = ((foreseen - told.cost).norm() / told.cost.norm()).item()
        reason = f"wrong: foresees costs that are off by {error:.1e}, above {limit:.0e}"
    return Verdict(error, limit, cost, penalty, None if error < limit else reason)


def checked(row: PlanRow) -> int:
    """Problems that the row's cost is the mean of; costs of different numbers do not compare."""
    return min(CHECKED, row.timed)


def comparable(row: PlanRow) -> bool:
    """Whether the row's cost is of as many problems as those of rungs that plan the whole batch."""
    return checked(row) == min(CHECKED, row.problems)


def evaluated(case: Case, u: Tensor) -> sgp.Plan:
    """The plan of given controls in float64: steps of no length leave them where they are."""
    beta, level = case.schedule[-1]
    planner = replace(case.planner, precision="float64", iterations=1, step_size=0.0, beta=beta, levels=level)
    return sgp.solve(case.problem, planner, case.x0.double(), init=u, backend="eager")


def reference(case: Case) -> Tensor:
    """The controls that `eager` finds in float64; the last few are remembered."""
    return _reference(_Same(case))


class _Same:
    """A case by what its reference depends on."""

    def __init__(self, case: Case) -> None:
        self.case = case
        parts = tuple(id(part) for part in case.problem.modules.values())
        planner = replace(case.planner, precision="float64")
        starts = tuple(t.cpu().numpy().tobytes() for t in (case.x0, case.init))
        self.key = parts, planner, starts, repr(case.problem.bounds), case.problem.control_change

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=8)
def _reference(same: _Same) -> Tensor:
    case = same.case
    planner = replace(case.planner, precision="float64")
    return sgp.solve(case.problem, planner, case.x0.double(), init=case.init.double(), backend="eager").u


def _within(case: Case, u: Tensor) -> bool:
    """Inside the problem's bounds, but for rounding."""
    if case.problem.bounds is None:
        return True
    low, high = (torch.as_tensor(bound).to(u) for bound in case.problem.bounds)
    if low.ndim == 2:  # a row a problem
        low, high = low[: len(u), None], high[: len(u), None]
    return bool(((u >= low - 1e-6) & (u <= high + 1e-6)).all())
