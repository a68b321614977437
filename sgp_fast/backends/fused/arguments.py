"""What every regime passes to `kernels.update`: pointers to the state of the search, and how to step."""

from __future__ import annotations

import math

from ...kernels.update import Options, Search
from ...planner import SGP
from .buffers import Buffers
from .packed import PackedProblem


def search_of(b: Buffers) -> Search:
    """The buffers that the end of an iteration reads and writes."""
    return Search(
        b.v, b.good, b.m, b.s, b.count, b.active, b.diverged, b.converged, b.taken, b.low, b.high, b.grad_u, b.running,
        b.terminal, b.change, b.history,
    )  # fmt: skip


def options_of(packed: PackedProblem, planner: SGP) -> Options:
    """The planner's step, as a constant of the kernels."""
    clip = math.inf if planner.clip_gradient is None else planner.clip_gradient
    return Options(*planner.adam, clip, planner.tolerance, packed.control_change)
