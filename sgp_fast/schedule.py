"""Schedules of a plan: β, the noise level and the step size, each as a table with one entry an iteration.

A schedule is written as a number (constant), as a pair (start, end) joined by half a cosine, or as the table itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

Schedule = float | Sequence[float]


def table(schedule: Schedule, iterations: int, name: str) -> tuple[float, ...]:
    """The schedule's values for `iterations` steps: `v_i = end + (start − end)·½(cos(π·i/(N−1)) + 1)` for a pair.

    A pair ends exactly at its last value; with one iteration that is all there is. Raises ValueError for a table of
    another length and for values that are negative or not finite.
    """
    if isinstance(schedule, (int, float)):
        values = (float(schedule),) * iterations
    elif len(schedule) == 2:
        start, end = map(float, schedule)
        values = tuple(end + (start - end) * _fall(i, iterations) for i in range(iterations))
    elif len(schedule) == iterations:
        values = tuple(map(float, schedule))
    else:
        raise ValueError(
            f"{name} has {len(schedule)} entries for iterations={iterations}; give a number, a pair (start, end) or "
            f"{iterations} entries"
        )
    if not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"{name} is {schedule}; expected finite values of at least 0")
    return values


@functools.lru_cache(maxsize=256)
def known_table(schedule: float | tuple[float, ...], iterations: int, name: str) -> tuple[float, ...]:
    """`table` of what a frozen planner holds, remembered: every plan asks."""
    return table(schedule, iterations, name)


def level_table(levels: int | Sequence[int] | None, iterations: int, count: int) -> tuple[int, ...]:
    """The noise level of each step, an index into `count` sigmas; by default evenly from the first to the last."""
    if levels is None:
        if iterations == 1:
            return (count - 1,)
        return tuple(int(i / (iterations - 1) * (count - 1) + 0.5) for i in range(iterations))
    levels = (levels,) if isinstance(levels, int) else tuple(levels)
    levels = levels * iterations if len(levels) == 1 else levels
    if len(levels) != iterations:
        raise ValueError(f"levels has {len(levels)} entries for iterations={iterations}; give a number, or one an iteration")
    if not all(0 <= level < count for level in levels):
        raise ValueError(f"levels has entries from {min(levels)} to {max(levels)}; the score has levels 0 to {count - 1}")
    return levels


def published_beta(beta: float, beta_min: float, max_iters: int) -> tuple[float, ...]:
    """β of the published code, which steps `max_iters − 1` times: `β_min` itself is never reached."""
    return tuple(beta_min + (beta - beta_min) * _fall(i, max_iters) for i in range(max_iters - 1))


def published_levels(count: int, max_iters: int) -> tuple[int, ...]:
    """Noise levels of the published code, in its order of operations and with Python's round (half to even)."""
    return tuple(round(count * (i / (max_iters + 1)) - 0.5) for i in range(max_iters - 1))


def last_change(*tables: Sequence[float]) -> int:
    """The first iteration from which every table stays as it ends: before it, no problem can have converged."""
    first = 0
    for values in tables:
        start = len(values) - 1
        while start > 0 and values[start - 1] == values[-1]:
            start -= 1
        first = max(first, start)
    return first


def _fall(i: int, count: int) -> float:
    """Half a cosine from 1 at i=0 to 0 at i=count−1."""
    return 0.0 if count == 1 else 0.5 * (math.cos(math.pi * i / (count - 1)) + 1)
