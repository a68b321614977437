"""The end of a planning iteration as a device function: judge every problem, then Adam and projection for those that go on.

    g ← clip(∂u/∂v · ∂J/∂u),     v ← project(v − η · m̂/(√ŝ + ε)),     m̂ and ŝ the moments without their bias

A problem whose gradient is not finite stops where it was last finite; one whose projected gradient is small stops there.
Rows are problems, and nothing passes from one to another. `update_rows_ref` is `backends.eager`'s `judge` and `adam`.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import expm1, tanh, tanh_slope


class Search(NamedTuple):
    """Pointers to the state of the search: see `backends.fused.buffers.Buffers` for the shapes."""

    v: Any
    good: Any
    m: Any
    s: Any
    count: Any
    active: Any
    diverged: Any
    converged: Any
    taken: Any
    low: Any
    high: Any
    grad_u: Any
    running: Any
    terminal: Any
    change: Any
    history: Any


@dataclass(frozen=True)
class Options:
    """How to step, a constant of the kernel, so that 1 − β is not the difference of two rounded numbers.

    `clip` is infinite and `tolerance` zero where there is none.
    """

    beta1: float
    beta2: float
    eps: float
    clip: float
    tolerance: float
    control_change: float

    @property
    def log_beta1(self) -> float:
        return log_of(self.beta1)

    @property
    def log_beta2(self) -> float:
        return log_of(self.beta2)


def log_of(beta: float) -> float:
    """log β of Adam; β = 0 forgets at once, which e^{−100} is to float32."""
    return math.log(beta) if beta > 0 else -100.0


@triton.jit
def control_of(v, low, high, BOUNDING: tl.constexpr):
    """The controls of decision variables: v itself, or `mid + half·tanh(v)` with BOUNDING "tanh"."""
    if BOUNDING == "tanh":
        return clamp((high + low) / 2 + (high - low) / 2 * tanh(v), low, high)
    else:
        return v


@triton.jit
def clamp(v, low, high):
    """Within the limits; a NaN stays one, as a diverging problem must be seen to."""
    above = tl.maximum(v, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(above, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def update_rows(
    search, rows, inside, chunk, i, step_size, settled, moves, OPTIONS: tl.constexpr,
    T: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr, CHANGE: tl.constexpr,
    HISTORY: tl.constexpr,
):  # fmt: skip
    """Judge the problems `rows` after their evaluation in iteration i, and where it `moves` take one of Adam's steps.

    A problem's controls, `T · NU` numbers, lie one behind the other, and as many as `chunk`, the row 0, 1, 2, …, counts are
    asked for at once. BOUNDING is "none", "project" or "tanh". With CHANGE the penalty on changes of control is added to
    `grad_u` and its value written; with HISTORY (a number of columns, or 0) the task cost before a step is.

    Whether it moves is known at run time alone: kernels take many seconds to compile, and one serves iterations and the
    evaluation behind them.
    """
    CHUNK: tl.constexpr = chunk.shape[1]
    count = tl.load(search.count + rows, mask=inside, other=0.0)
    zeros = count * 0.0  # in the layout of the rows, of which Gluon's callers say where it is
    if CHANGE:
        value = zeros
        for first in range(0, T * NU, CHUNK):
            cols = first + chunk
            at, mask, low, high = _some(search, rows, inside, cols, T, NU, BOUNDING)
            earlier, later = at - NU * (cols >= NU), at + NU * (cols < (T - 1) * NU)
            u = control_of(tl.load(search.v + at, mask=mask, other=0.0), low, high, BOUNDING)
            before = control_of(tl.load(search.v + earlier, mask=mask, other=0.0), low, high, BOUNDING)
            after = control_of(tl.load(search.v + later, mask=mask, other=0.0), low, high, BOUNDING)
            value += tl.sum(tl.where(mask, (u - before) * (u - before), 0.0), 1)
            g = tl.load(search.grad_u + at, mask=mask, other=0.0)
            g += 2 * OPTIONS.control_change * ((u - before) - (after - u))
            tl.store(search.grad_u + at, g, mask=mask)
        tl.store(search.change + rows, OPTIONS.control_change * value, mask=inside)
        tl.debug_barrier()  # what follows reads it, perhaps in other threads

    active = tl.load(search.active + rows, mask=inside, other=0) != 0
    if HISTORY > 0:
        cost = tl.load(search.terminal + rows, mask=inside, other=0.0)
        cost += tl.load(search.change + rows, mask=inside, other=0.0)
        for first in range(0, T, CHUNK):
            steps = first + chunk
            there = inside[:, None] & (steps < T)
            cost += tl.sum(tl.load(search.running + rows[:, None] * T + steps, mask=there, other=0.0), 1)
        tl.store(search.history + rows * HISTORY + i, tl.where(active, cost, float("nan")), mask=inside & moves)

    size, projected, pulled = zeros, zeros, zeros
    for first in range(0, T * NU, CHUNK):
        at, mask, low, high = _some(search, rows, inside, first + chunk, T, NU, BOUNDING)
        v = tl.load(search.v + at, mask=mask, other=0.0)
        g = tl.load(search.grad_u + at, mask=mask, other=0.0)
        size += tl.sum(g * g, 1)
        p = g
        if BOUNDING != "none":
            u = control_of(v, low, high, BOUNDING)
            p = tl.where(mask, u - clamp(u - g, low, high), 0.0)
        projected += tl.sum(p * p, 1)
        if BOUNDING == "tanh":
            g = _pull(v, g, low, high)
        pulled += tl.sum(tl.where(mask, g * g, 0.0), 1)
    finite = size < float("inf")
    diverged = active & (finite == 0)
    converged = active & finite & settled & (tl.sqrt(projected) < OPTIONS.tolerance)
    go_on = active & (diverged == 0) & (converged == 0)
    shrink = tl.minimum(OPTIONS.clip / (tl.sqrt(pulled) + 1e-6), 1.0)[:, None]

    count += 1
    taken = tl.load(search.taken + rows, mask=inside, other=0)
    bias1 = -expm1(count * OPTIONS.log_beta1)[:, None]
    bias2 = -expm1(count * OPTIONS.log_beta2)[:, None]
    goes = go_on & moves
    tl.debug_barrier()  # several warps may hold a row: all have read v before one writes it
    for first in range(0, T * NU, CHUNK):
        at, mask, low, high = _some(search, rows, inside, first + chunk, T, NU, BOUNDING)
        on = mask & goes[:, None]
        v = tl.load(search.v + at, mask=mask, other=0.0)
        good = tl.load(search.good + at, mask=mask, other=0.0)
        g = tl.load(search.grad_u + at, mask=on, other=0.0)
        m = tl.load(search.m + at, mask=on, other=0.0)
        s = tl.load(search.s + at, mask=on, other=0.0)
        tl.store(search.good + at, v, mask=mask & finite[:, None])
        v = tl.where(diverged[:, None], good, v)
        if BOUNDING == "tanh":
            g = _pull(v, g, low, high)
        g = g * shrink
        m += (1 - OPTIONS.beta1) * (g - m)
        s = OPTIONS.beta2 * s + (1 - OPTIONS.beta2) * g * g
        stepped = v - step_size * (m / bias1) / (tl.sqrt(s / bias2) + OPTIONS.eps)
        v = tl.where(on, stepped, v)
        tl.store(search.m + at, m, mask=on)
        tl.store(search.s + at, s, mask=on)
        if BOUNDING == "project":
            v = tl.where(moves, clamp(v, low, high), v)
        tl.store(search.v + at, v, mask=mask)
    tl.debug_barrier()  # a row's numbers may be read by several warps: all have, before one writes
    tl.store(search.count + rows, count, mask=inside & goes)
    tl.store(search.taken + rows, taken + 1, mask=inside & goes)
    tl.store(search.active + rows, go_on.to(tl.int8), mask=inside)
    tl.store(search.diverged + rows, diverged.to(tl.int8), mask=inside & diverged)
    tl.store(search.converged + rows, converged.to(tl.int8), mask=inside & converged)


@triton.jit
def _some(search, rows, inside, cols, T: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr):
    """Of some columns of a problem's controls: their places, which of them there are, and their limits."""
    mask = inside[:, None] & (cols < T * NU)
    low, high = 0.0, 0.0
    if BOUNDING != "none":
        limit = rows[:, None] * NU + cols % NU
        low = tl.load(search.low + limit, mask=mask, other=-1.0)
        high = tl.load(search.high + limit, mask=mask, other=1.0)
    return rows[:, None] * (T * NU) + cols, mask, low, high


@triton.jit
def _pull(v, g, low, high):
    """The gradient in v of a gradient in u = mid + half·tanh(v)."""
    return g * (high - low) / 2 * tanh_slope(v)


def chunk_of(numbers: int, rows: int, threads: int) -> int:
    """Of so many controls of a problem, how many `update_rows` takes at once: all, or such that a thread has eight."""
    return max(16, min(1 << (numbers - 1).bit_length(), 8 * threads // rows))
