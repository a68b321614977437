"""Everything that a first call would have to wait for, done before: kernels compiled, ways measured, graphs captured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._starts import repeat_rows
from .inputs import check_kinds
from .problem import Problem, device_of
from .sampling import Planner
from .solving import solve


def warmup(
    problem: Problem,
    planner: Planner,
    batch_sizes: Sequence[int],
    *,
    goal: Any = None,
    params: Any = None,
    backend: str = "auto",
    time_limit_s: float | None = None,
) -> dict[int, dict[str, Any]]:
    """Make ready for batches of these sizes, so that the first `solve` of one runs at full speed; what was chosen for each.

    A plan is made for each size, from random states of the problem's own scale. With `goal [nx]`, plans with a goal are made
    ready: these are other graphs than those without, and so are those of plans with a `time_limit_s`. `params` are those of
    one problem for costs that read them, with a first axis of 1. Returns each size's `Plan.stats`. Raises as `solve` does.
    """
    check_kinds(problem, planner)
    if not batch_sizes or not all(isinstance(size, int) and size >= 1 for size in batch_sizes):
        raise ValueError(f"batch_sizes is {batch_sizes!r}; expected whole numbers of at least 1")
    normalizer = getattr(problem.dynamics, "normalizer", None)
    if normalizer is None:
        raise ValueError("warmup draws states by the dynamics' normalizer, and these have none; solve once instead")
    device, nx = device_of(problem), problem.dynamics.nx
    b, k = normalizer.b[:nx].cpu(), normalizer.k[:nx].cpu()
    stats = {}
    for size in batch_sizes:
        x0 = b + k * torch.randn(size, nx, generator=torch.Generator().manual_seed(size), dtype=b.dtype)
        given = {
            "goal": None if goal is None else torch.as_tensor(goal).to(device),
            "params": repeat_rows(params, size),
            "backend": backend,
        }
        for limit in (None,) if time_limit_s is None else (None, time_limit_s):
            stats[size] = solve(problem, planner, x0.to(device), **given, time_limit_s=limit).stats
    return stats
