"""Plans whose random starts belong to keys that the caller chooses, rather than to a row's place in the batch.

`solve` draws the random start of problem i from (seed, i). Where a batch is a selection, the active environments of a
controller or one chunk of a long file, a problem's place says nothing: here its numbers come from (seed, key), so that its
plan does not depend on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .inputs import counted_normal
from .plan import Plan
from .planner import SGP
from .problem import Problem
from .solving import solve

Moments = tuple[Tensor, Tensor, Tensor]


def keyed_normal(seed: int, keys: np.ndarray, numbers: int) -> np.ndarray:
    """Standard normal `[len(keys), numbers]` where row i is a function of (seed, keys[i]) alone; keys are at least 0."""
    out = np.empty((len(keys), numbers))
    # Runs of consecutive keys are one call of the generator: a whole batch, most of the time.
    breaks = np.flatnonzero(np.diff(keys) != 1) + 1
    for rows in np.split(np.arange(len(keys)), breaks) if len(keys) else ():
        out[rows] = counted_normal(seed, int(keys[rows[0]]), len(rows), numbers)
    return out


def random_starts(planner: SGP, nu: int, seed: int, keys: np.ndarray) -> Tensor:
    """`start_spread`·normal, `[len(keys), starts, T, nu]`; the key i draws what `solve` draws for problem i."""
    shape = (len(keys), planner.starts, planner.horizon, nu)
    normal = keyed_normal(seed, keys, int(np.prod(shape[1:]))).reshape(shape)
    return torch.from_numpy(normal).to(planner.state_dtype) * planner.start_spread


def solve_starts(
    problem: Problem,
    planner: SGP,
    x0: Tensor,
    starts: Tensor,
    *,
    moments: Moments | None = None,
    goal: Tensor | None = None,
    params: Any = None,
    backend: str = "auto",
    time_limit_s: float | None = None,
) -> Plan:
    """`solve` from the given starts, `[B, starts, T, nu]`; the best of a problem's starts by `Plan.ranking` is returned.

    `x0 [B, nx]`, `goal [B, nx]` or `[nx]`, `params` with a row a problem; bounds must not be per problem when there are
    several starts. `moments` are Adam's, as `Plan.moments`, for one start a problem.
    """
    count = starts.shape[1]
    if goal is not None and has_rows(goal):
        goal = goal.repeat_interleave(count, 0)
    plan = solve(
        problem,
        planner if count == 1 else replace(planner, starts=1),
        x0.repeat_interleave(count, 0),
        goal=goal,
        params=repeat_rows(params, count),
        init=_as_init(starts.flatten(0, 1), moments),
        backend=backend,
        time_limit_s=time_limit_s,
    )
    if count == 1:
        return plan
    best = plan.ranking.view(-1, count).argmin(1) + torch.arange(len(x0), device=plan.u.device) * count
    return plan.select(best)


def take_rows(value: Any, rows: Tensor) -> Any:
    """The rows of a tensor or of a dictionary of tensors; None stays None."""
    if isinstance(value, dict):
        return {name: take_rows(item, rows) for name, item in value.items()}
    return None if value is None else torch.as_tensor(value)[rows.to(torch.as_tensor(value).device)]


def repeat_rows(value: Any, count: int) -> Any:
    """Each row `count` times over, of a tensor or of a dictionary of tensors; None stays None."""
    if value is None or count == 1:
        return value
    if isinstance(value, dict):
        return {name: repeat_rows(item, count) for name, item in value.items()}
    return value.repeat_interleave(count, 0)


def has_rows(value: Any) -> bool:
    """Whether a bound, or a goal, has a row for each of several problems; None has not."""
    shape = () if value is None else torch.as_tensor(value).shape
    return len(shape) == 2 and shape[0] > 1


def _as_init(u: Tensor, moments: Moments | None) -> Plan | Tensor:
    """What `solve` takes as `init`: moments travel in a Plan, of which only controls and moments are read."""
    if moments is None:
        return u
    none = u.new_empty(0)
    return Plan(u, none, none, none, {}, none, none, none, none, moments=moments)
