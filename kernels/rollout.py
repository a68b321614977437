"""What candidates cost: draws, rollout and cost of a block of rows in one launch, without an adjoint.

    rows of one program    ┌ t = 0 … T−1   u_t = clip(mean_t + std_t ⊙ ε_t),   ε drawn where it stands
    [BLOCK_B, columns]     │               S += c(x_t, u_t) + w ‖s̄(z̄_t)‖² + w' ‖u_t − u_{t−1}‖²
    then the next block    │                      + λ mean_tᵀ Σ⁻¹ (u_t − mean_t)
                           │               x_{t+1} = x_t + scale ⊙ dynamics(x_t, u_t)
                           └ S += c_T(x_T)

Row r is candidate r mod S of problem r div S. Nothing but the cost leaves the chip: `refit.py` draws the same numbers again.
A plan's own rows have no noise, and their states and terms are stored. Of a cost that is called in PyTorch the candidates'
states and controls are stored, and it is added afterwards. The plain twin is `backends.sampling`.

A tile holds z = (x, u) as in `tile.py`, and waits in the program's scratch while a network has the registers.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .block import normalised, park, parked, vector
from .draws import normal
from .function import function_cost
from .layers import Memory, columns_of, network_forward, product, rows_of, store_rows


class Quadratics(NamedTuple):
    """Quadratic costs `½ dᵀ S d`, `d = z − goal`: matrices `[columns, columns]` or None; a goal a problem, or their own."""

    running: Any
    own_goal: Any
    terminal: Any
    last_own_goal: Any
    goal: Any


class Draws(NamedTuple):
    """The distribution of the candidates: mean and std `[B, T, NU]`, bounds `[B, NU]` or None; seed `[1]`, keys `[B]`."""

    mean: Any
    std: Any
    low: Any
    high: Any
    seed: Any
    keys: Any


class Results(NamedTuple):
    """The cost of each row; and, of those of this launch alone, `[rows, …]`: x, u, running, terminal, change, and `‖s̄‖²` as
    distance. What is None is not stored.
    """

    cost: Any
    x: Any
    u: Any
    running: Any
    terminal: Any
    change: Any
    distance: Any


class Rows(NamedTuple):
    """A block's rows, of a launch that begins with row `origin`; the program's scratch, and `layers.columns_of`'s zero."""

    first: Any
    origin: Any
    total: Any
    samples: Any
    zero: Any
    scratch: Any
    scratch32: Any


@triton.jit(do_not_specialize=["first", "last", "samples", "iteration"])
def rollout_kernel(
    dynamics, score, cost, terminal, scale_ptr, gain_ptr, costs, params_ptr, x0_ptr, draws, results, zero_ptr, scratch_ptr,
    scratch32_ptr, first, last, samples, iteration, penalty, change_weight, effort,
    DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, TERMINAL: tl.constexpr, TILE: tl.constexpr,
    T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, LEVEL: tl.constexpr, SIZES: tl.constexpr, NOISE: tl.constexpr,
    CHANGE: tl.constexpr, EFFORT: tl.constexpr, FUNCTION: tl.constexpr, LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr,
):  # fmt: skip
    """The cost of each of the rows `first … last−1`, a block after the other.

    FUNCTION and LAST_FUNCTION are traced costs (`traced.triton_code`) without gradients, in the place of the others, or
    None; `params [B, PARAMS]` are of the problems.
    """
    pid = tl.program_id(0).to(tl.int64)
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = DYNAMICS.columns
    scratch_ptr += pid * SIZES.scratch
    scratch32_ptr += pid * SIZES.scratch32
    programs = tl.num_programs(0)
    for turn in range(tl.cdiv(tl.cdiv(last - first, BLOCK_B) - tl.program_id(0), programs)):
        block = first + (pid + turn * programs) * BLOCK_B
        at = Rows(block, first, last, samples, zero_ptr, scratch_ptr, scratch32_ptr)
        x = _load_problem(x0_ptr, at, COLUMNS, NX, TILE)
        total = tl.zeros((BLOCK_B,), tl.float32)
        changed = tl.zeros((BLOCK_B,), tl.float32)
        for t in range(T):
            if results.x is not None:
                _store(results.x, x, t, at, COLUMNS, 0, NX, T + 1, TILE)
            u, effort_t = _controls(draws, t, iteration, at, COLUMNS, NX, NU, T, NOISE, EFFORT, TILE)
            z = x + u
            if results.u is not None:
                _store(results.u, z, t, at, COLUMNS, NX, NU, T, TILE)
            total += effort * effort_t
            if CHANGE:  # noqa: SIM102, a constant first: what it excludes is not compiled
                if t > 0:
                    changed += _change(z, parked(at.scratch32 + SIZES.parked, at, COLUMNS, TILE), at, COLUMNS, NX)
            park(at.scratch32 + SIZES.parked, z, at, TILE)
            value = tl.zeros((BLOCK_B,), tl.float32)
            if COST is not None:
                value = _learned_value(z, cost, at, COST, TILE)
                z = parked(at.scratch32 + SIZES.parked, at, COLUMNS, TILE)
            if FUNCTION is not None:
                value = _function_value(costs.goal, params_ptr, t, at, COLUMNS, FUNCTION, NX, PARAMS, TILE, SIZES)
                z = parked(at.scratch32 + SIZES.parked, at, COLUMNS, TILE)
            if costs.running is not None:
                value = _quadratic_value(z, costs.running, costs.goal, costs.own_goal, at, NX, TILE, SIZES)
            total += value
            if results.running is not None:
                _store_value(results.running, value, t, at, T, TILE)
            if SCORE is not None:
                vectors = score.vectors + SCORE.embedding + LEVEL * SCORE.condition_columns
                mem = _memory(score, vectors, at)
                s = network_forward(normalised(z, score, at), mem, SCORE, TILE, False)
                s *= tl.load(gain_ptr + LEVEL)
                distance = tl.sum(tl.where((columns_of(at, COLUMNS) < NX + NU)[None, :], s * s, 0.0), 1)
                total += penalty * distance
                if results.distance is not None:
                    _store_value(results.distance, distance, t, at, T, TILE)
                z = parked(at.scratch32 + SIZES.parked, at, COLUMNS, TILE)
            mem = _memory(dynamics, dynamics.vectors, at)
            out = network_forward(normalised(z, dynamics, at), mem, DYNAMICS, TILE, False)
            z = parked(at.scratch32 + SIZES.parked, at, COLUMNS, TILE)
            x = tl.where((columns_of(at, COLUMNS) < NX)[None, :], z, 0.0) + vector(scale_ptr, at, COLUMNS) * out
        if results.x is not None:
            _store(results.x, x, T, at, COLUMNS, 0, NX, T + 1, TILE)
        if results.change is not None:
            _store_value(results.change, change_weight * changed, 0, at, 1, TILE)
        total += change_weight * changed
        value = tl.zeros((BLOCK_B,), tl.float32)
        if TERMINAL is not None:
            value = -_learned_value(x, terminal, at, TERMINAL, TILE)
        if costs.terminal is not None:
            value = _quadratic_value(x, costs.terminal, costs.goal, costs.last_own_goal, at, NX, TILE, SIZES)
        if LAST_FUNCTION is not None:
            park(at.scratch32 + SIZES.parked, x, at, TILE)
            value = _function_value(costs.goal, params_ptr, T, at, COLUMNS, LAST_FUNCTION, NX, PARAMS, TILE, SIZES)
        if results.terminal is not None:
            _store_value(results.terminal, value, 0, at, 1, TILE)
        rows = _row_numbers(at, TILE)
        tl.store(results.cost + rows, total + value, mask=rows < at.total)


@triton.jit
def _row_numbers(at, TILE: tl.constexpr):
    """The rows of the block, as numbers in the launch (int64: they are to be multiplied by strides)."""
    return at.first + rows_of(at, TILE)


@triton.jit
def _load_problem(ptr, at, COLUMNS: tl.constexpr, N: tl.constexpr, TILE: tl.constexpr):
    """The rows' problems in `[B, N]`, in the first N columns, zeros elsewhere."""
    rows, cols = _row_numbers(at, TILE), columns_of(at, COLUMNS)
    mask = (rows < at.total)[:, None] & (cols < N)[None, :]
    return tl.load(ptr + (rows // at.samples)[:, None] * N + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _controls(
    draws, t, iteration, at, COLUMNS: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr,
    NOISE: tl.constexpr, EFFORT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The controls of step t in the columns behind the state, zeros elsewhere; and `mean_tᵀ Σ⁻¹ (u_t − mean_t)`."""
    rows, cols = _row_numbers(at, TILE), columns_of(at, COLUMNS) - NX
    problems = (rows // at.samples)[:, None]
    mask = (rows < at.total)[:, None] & ((cols >= 0) & (cols < NU))[None, :]
    place = (problems * T + t) * NU + cols[None, :]
    mean = tl.load(draws.mean + place, mask=mask, other=0.0)
    u = mean
    BLOCK_B: tl.constexpr = TILE.block_b
    effort = tl.zeros((BLOCK_B,), tl.float32)
    if NOISE:
        std = tl.load(draws.std + place, mask=mask, other=1.0)
        keys = tl.load(draws.keys + problems, mask=problems * at.samples < at.total, other=0)
        numbers = tl.maximum(t * NU + cols, 0)[None, :]
        u += std * normal(tl.load(draws.seed), keys, iteration, (rows % at.samples)[:, None], numbers)
    if draws.low is not None:
        low = tl.load(draws.low + problems * NU + cols[None, :], mask=mask, other=0.0)
        high = tl.load(draws.high + problems * NU + cols[None, :], mask=mask, other=0.0)
        u = tl.minimum(tl.maximum(u, low), high)
    if EFFORT:
        effort = tl.sum(tl.where(mask, (mean / std) * ((u - mean) / std), 0.0), 1)
    return tl.where(mask, u, 0.0), effort


@triton.jit
def _change(z, before, at, COLUMNS: tl.constexpr, NX: tl.constexpr):
    """`‖u_t − u_{t−1}‖²` of two steps' tiles."""
    step = tl.where((columns_of(at, COLUMNS) >= NX)[None, :], z - before, 0.0)
    return tl.sum(step * step, 1)


@triton.jit
def _store(
    ptr, values, t, at, COLUMNS: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr
):
    """Step t of `[rows, STEPS, N]`, from the N columns behind FIRST."""
    rows, cols = _row_numbers(at, TILE), columns_of(at, COLUMNS) - FIRST
    mask = (rows < at.total)[:, None] & ((cols >= 0) & (cols < N))[None, :]
    tl.store(ptr + ((rows - at.origin)[:, None] * STEPS + t) * N + cols[None, :], values, mask=mask)


@triton.jit
def _store_value(ptr, values, t, at, STEPS: tl.constexpr, TILE: tl.constexpr):
    rows = _row_numbers(at, TILE)
    tl.store(ptr + (rows - at.origin) * STEPS + t, values, mask=rows < at.total)


@triton.jit
def _memory(model, condition, at):
    """A network's place in the scratch; nothing is saved for a backward pass."""
    return Memory(
        model.weights, model.vectors, at.scratch, at.scratch32, at.scratch, at.scratch32, condition, 0, at.zero
    )


@triton.jit
def _learned_value(z, model, at, NET: tl.constexpr, TILE: tl.constexpr):
    """The output `[BLOCK_B]` of a network of one output."""
    OUT: tl.constexpr = NET.out_columns
    out = network_forward(normalised(z, model, at), _memory(model, model.vectors, at), NET, TILE, False)
    return tl.sum(tl.where((columns_of(at, OUT) == 0)[None, :], out, 0.0), 1)


@triton.jit
def _function_value(
    goal, params, t, at, COLUMNS: tl.constexpr, FUNCTION: tl.constexpr, NX: tl.constexpr, PARAMS: tl.constexpr,
    TILE: tl.constexpr, SIZES: tl.constexpr,
):  # fmt: skip
    """The value `[BLOCK_B]` of a traced cost at the tile that was parked; a row is read from there, number by number."""
    tl.debug_barrier()
    rows, place = _row_numbers(at, TILE), rows_of(at, TILE) * COLUMNS
    z = at.scratch32 + SIZES.parked + place
    return function_cost(
        z, goal, params, rows // at.samples, t + place * 0, z, rows < at.total, FUNCTION, NX, PARAMS
    )  # fmt: skip


@triton.jit
def _quadratic_value(z, matrix, goal, own_goal, at, NX: tl.constexpr, TILE: tl.constexpr, SIZES: tl.constexpr):
    """`½ dᵀ S d` `[BLOCK_B]`, in float32 whatever the networks' products are in."""
    COLUMNS: tl.constexpr = z.shape[1]
    BLOCK_B: tl.constexpr = TILE.block_b
    d = z - vector(own_goal, at, COLUMNS) if goal is None else z - _load_problem(goal, at, COLUMNS, NX, TILE)
    form = at.scratch32 + SIZES.form
    tl.debug_barrier()  # the step before may still read it
    store_rows(at, form, d, columns_of(at, COLUMNS), COLUMNS, TILE)
    tl.debug_barrier()
    sd = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
    sd = product(sd, at, form, COLUMNS, matrix, COLUMNS, 1, columns_of(at, COLUMNS), COLUMNS, TILE, "ieee")
    return 0.5 * tl.sum(d * sd, 1)
