"""Tile regime: one program plans a block of problems, all iterations in one launch.

    rows of one program    ┌ t = 0 … T−1   x_{t+1} = x_t + scale ⊙ dynamics(x_t, u_t)
    [BLOCK_B, columns]     │ t = T−1 … 0   score, cost and its gradient at (x_t, u_t); the dynamics' input-gradient;
    times iterations       │               g_t = ∂_u c − β s_u + (∂_u f)ᵀ λ,   λ = ∂_x c − β s_x + (∂_x f)ᵀ λ
                           └ judge, Adam, projection

Weights stream from L2; activations pass through this program's scratch (`layers.py`). A tile holds z = (x, u): the state in
its first columns, the controls behind it, zeros after. With KEEP the dynamics' activations of every step are kept from the
rollout to the adjoint; without, they are computed again, step by step, and the scratch is T times smaller
(`tiling.keep` decides).
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .block import normalised, park, parked, vector
from .function import function_cost
from .layers import Memory, columns_of, network_forward, network_vjp, product, rows_of, store_rows
from .update import control_of, update_rows


class Model(NamedTuple):
    """A packed network with its normaliser: z̄ = (z − b)·inv_k. All None where a problem has no such part."""

    weights: Any
    vectors: Any
    b: Any
    inv_k: Any


class Costs(NamedTuple):
    """Quadratic costs `½ dᵀ S d`, `d = z − goal`: matrices `[columns, columns]`; a goal a row, or each cost's own.

    params  of traced costs, `[rows, PARAMS]`
    """

    running: Any
    own_goal: Any
    terminal: Any
    last_own_goal: Any
    goal: Any
    params: Any


class Evaluation(NamedTuple):
    """Pointers to what an evaluation writes beside `Search`: states, costates, scores; and the start that it reads."""

    x0: Any
    x: Any
    costate: Any
    score: Any


@triton.jit(do_not_specialize=["rows_total", "first", "last", "settled", "moves", "only_diverged"])
def plan_kernel(
    dynamics, score, cost, terminal, scale_ptr, gain_ptr, costs, at, search, beta_ptr, level_ptr, step_size_ptr,
    zero_ptr, scratch_ptr, scratch32_ptr, rows_total, first, last, settled, moves, only_diverged,
    DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, TERMINAL: tl.constexpr, TILE: tl.constexpr,
    T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, NU_COLUMNS: tl.constexpr, BOUNDING: tl.constexpr,
    CHANGE: tl.constexpr, HISTORY: tl.constexpr, KEEP: tl.constexpr, SIZES: tl.constexpr, OPTIONS: tl.constexpr,
    FUNCTION: tl.constexpr, LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr,
):  # fmt: skip
    """Iterations `first … last−1` of a block of problems; where nothing `moves` they are evaluated and judged.

    FUNCTION and LAST_FUNCTION are traced costs (`traced.triton_code`) in the place of the others, or None.
    `only_diverged`, which is for a single iteration, skips blocks in which no problem has diverged.
    """
    pid = tl.program_id(0).to(tl.int64)
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = DYNAMICS.columns
    scratch_ptr += pid * SIZES.scratch
    scratch32_ptr += pid * SIZES.scratch32
    block = Block(pid * BLOCK_B, rows_total, zero_ptr, scratch_ptr, scratch32_ptr)
    if only_diverged != 0:
        marked = tl.load(search.diverged + _rows(block, TILE), mask=_rows(block, TILE) < rows_total, other=0)
        first += (tl.max(marked.to(tl.int32), 0) == 0).to(tl.int32)  # a pass is one iteration: none is left then

    for i in range(first, last):
        tl.debug_barrier()  # the step before wrote v in another layout
        x = _load_states(at.x0, 0, block, COLUMNS, NX, 1, TILE)
        for t in range(T):
            _store_states(at.x, x, t, block, COLUMNS, NX, T + 1, TILE)
            z = x + _load_controls(search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)
            mem = _memory(dynamics, dynamics.vectors, block, t, DYNAMICS, TILE, SIZES, KEEP)
            out = network_forward(normalised(z, dynamics, block), mem, DYNAMICS, TILE, KEEP)
            x = _load_states(at.x, t, block, COLUMNS, NX, T + 1, TILE) + vector(scale_ptr, block, COLUMNS) * out
        _store_states(at.x, x, T, block, COLUMNS, NX, T + 1, TILE)

        costate = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
        value = tl.zeros((BLOCK_B,), tl.float32)
        if TERMINAL is not None:
            value, costate = _learned_cost(x, terminal, block, TERMINAL, TILE, SIZES, -1.0)
        if costs.terminal is not None:
            value, costate = _quadratic_cost(x, costs.terminal, costs.goal, costs.last_own_goal, block, NX, TILE, SIZES)
        if LAST_FUNCTION is not None:
            value, costate = _function_cost(x, costs, T, block, LAST_FUNCTION, NX, PARAMS, TILE, SIZES)
        _store_states(at.costate, costate, T, block, COLUMNS, NX, T + 1, TILE)
        _store_values(search.terminal, value, 0, block, 1, TILE)

        for j in range(T):
            t = T - 1 - j
            z = _load_step(at, search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)
            if COST is not None:
                value, grad = _learned_cost(z, cost, block, COST, TILE, SIZES, 1.0)
            elif FUNCTION is not None:
                value, grad = _function_cost(z, costs, t, block, FUNCTION, NX, PARAMS, TILE, SIZES)
            else:
                value, grad = _quadratic_cost(z, costs.running, costs.goal, costs.own_goal, block, NX, TILE, SIZES)
            _store_values(search.running, value, t, block, T, TILE)
            if SCORE is not None:
                park(grad, block, TILE, SIZES)
                z = _load_step(at, search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)
                level = tl.load(level_ptr + i)
                table = score.vectors + SCORE.embedding + level * SCORE.condition_columns
                mem = _memory(score, table, block, 0, SCORE, TILE, SIZES, False)
                s = network_forward(normalised(z, score, block), mem, SCORE, TILE, False)
                s *= vector(score.inv_k, block, COLUMNS) * tl.load(gain_ptr + level)
                _store_states(at.score, s, t, block, COLUMNS, NX + NU, T, TILE)
                grad = parked(block, COLUMNS, TILE, SIZES) - tl.load(beta_ptr + i) * s
            park(grad, block, TILE, SIZES)
            mem = _memory(dynamics, dynamics.vectors, block, t, DYNAMICS, TILE, SIZES, KEEP)
            if not KEEP:
                z = _load_step(at, search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)
                network_forward(normalised(z, dynamics, block), mem, DYNAMICS, TILE, True)
            costate = _load_states(at.costate, t + 1, block, COLUMNS, NX, T + 1, TILE)
            pulled = network_vjp(vector(scale_ptr, block, COLUMNS) * costate, mem, DYNAMICS, TILE)
            grad = parked(block, COLUMNS, TILE, SIZES) + vector(dynamics.inv_k, block, COLUMNS) * pulled
            grad += _load_states(at.costate, t + 1, block, COLUMNS, NX, T + 1, TILE)
            _store_controls(search.grad_u, grad, t, block, COLUMNS, NX, NU, T, TILE)
            _store_states(at.costate, grad, t, block, COLUMNS, NX, T + 1, TILE)

        tl.debug_barrier()
        rows = _rows(block, TILE)
        step_size = tl.load(step_size_ptr + i)
        update_rows(
            search, rows, rows < block.total, i, step_size, i >= settled, moves != 0, OPTIONS, T, NU, NU_COLUMNS, BOUNDING,
            CHANGE, HISTORY,
        )  # fmt: skip


class Block(NamedTuple):
    """A program's rows and scratch. `zero` points at a zero: see `layers.columns_of`."""

    first: Any
    total: Any
    zero: Any
    scratch: Any
    scratch32: Any


@triton.jit
def _rows(block, TILE: tl.constexpr):
    """The problems of the block, as numbers in the batch (int64: they are to be multiplied by strides)."""
    return block.first + rows_of(block, TILE)


@triton.jit
def _load_states(ptr, t, block, COLUMNS: tl.constexpr, N: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr):
    """Step t of `[rows, STEPS, N]` in the first N columns, zeros elsewhere."""
    rows, cols = _rows(block, TILE), columns_of(block, COLUMNS)
    mask = (rows < block.total)[:, None] & (cols < N)[None, :]
    return tl.load(ptr + (rows[:, None] * STEPS + t) * N + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _store_states(
    ptr, values, t, block, COLUMNS: tl.constexpr, N: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr
):
    rows, cols = _rows(block, TILE), columns_of(block, COLUMNS)
    mask = (rows < block.total)[:, None] & (cols < N)[None, :]
    tl.store(ptr + (rows[:, None] * STEPS + t) * N + cols[None, :], values, mask=mask)


@triton.jit
def _load_controls(
    search, t, block, COLUMNS: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The controls of step t in the columns behind the state, zeros elsewhere."""
    rows, cols = _rows(block, TILE), columns_of(block, COLUMNS) - NX
    mask = (rows < block.total)[:, None] & ((cols >= 0) & (cols < NU))[None, :]
    v = tl.load(search.v + (rows[:, None] * T + t) * NU + cols[None, :], mask=mask, other=0.0)
    if BOUNDING == "tanh":
        low = tl.load(search.low + rows[:, None] * NU + cols[None, :], mask=mask, other=-1.0)
        high = tl.load(search.high + rows[:, None] * NU + cols[None, :], mask=mask, other=1.0)
        v = tl.where(mask, control_of(v, low, high, BOUNDING), 0.0)
    return v


@triton.jit
def _load_step(
    at, search, t, block, COLUMNS: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """z = (x, u) of step t."""
    x = _load_states(at.x, t, block, COLUMNS, NX, T + 1, TILE)
    return x + _load_controls(search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)


@triton.jit
def _store_controls(
    ptr, values, t, block, COLUMNS: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr
):
    rows, cols = _rows(block, TILE), columns_of(block, COLUMNS) - NX
    mask = (rows < block.total)[:, None] & ((cols >= 0) & (cols < NU))[None, :]
    tl.store(ptr + (rows[:, None] * T + t) * NU + cols[None, :], values, mask=mask)


@triton.jit
def _store_values(ptr, values, t, block, STEPS: tl.constexpr, TILE: tl.constexpr):
    rows = _rows(block, TILE)
    tl.store(ptr + rows * STEPS + t, values, mask=rows < block.total)


@triton.jit
def _memory(
    model, condition, block, t, NET: tl.constexpr, TILE: tl.constexpr, SIZES: tl.constexpr, STEPS: tl.constexpr
):
    """A network's place in the scratch; with STEPS, what step t keeps has a place of its own."""
    saved, moments = block.scratch + SIZES.saved, block.scratch32 + SIZES.moments
    if STEPS:
        saved += t * (TILE.block_b * NET.saved)
        moments += t * (TILE.block_b * NET.moments)
    return Memory(model.weights, model.vectors, block.scratch, block.scratch32, saved, moments, condition, 0, block.zero)


@triton.jit
def _learned_cost(z, model, block, NET: tl.constexpr, TILE: tl.constexpr, SIZES: tl.constexpr, SIGN: tl.constexpr):
    """SIGN times the output `[BLOCK_B]` of a network of one output, and its gradient in z."""
    BLOCK_B: tl.constexpr = TILE.block_b
    OUT: tl.constexpr = NET.out_columns
    COLUMNS: tl.constexpr = NET.columns
    saved, moments = block.scratch + SIZES.cost_saved, block.scratch32 + SIZES.cost_moments
    y, stream = block.scratch, block.scratch32
    mem = Memory(model.weights, model.vectors, y, stream, saved, moments, model.vectors, 0, block.zero)
    out = network_forward(normalised(z, model, block), mem, NET, TILE, True)
    is_first = (columns_of(block, OUT) == 0)[None, :]
    value = tl.sum(tl.where(is_first, out, 0.0), 1) * SIGN
    seed = tl.where(is_first, SIGN, tl.zeros((BLOCK_B, OUT), tl.float32))
    return value, network_vjp(seed, mem, NET, TILE) * vector(model.inv_k, block, COLUMNS)


@triton.jit
def _function_cost(
    z, costs, t, block, FUNCTION: tl.constexpr, NX: tl.constexpr, PARAMS: tl.constexpr, TILE: tl.constexpr,
    SIZES: tl.constexpr,
):  # fmt: skip
    """The value `[BLOCK_B]` of a traced cost and its gradient in z; a row is read from the scratch, number by number."""
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = z.shape[1]
    cols, form = columns_of(block, COLUMNS), block.scratch32 + SIZES.form
    pull = block.scratch32 + SIZES.parked
    tl.debug_barrier()  # the step before may still read them
    store_rows(block, form, z, cols, COLUMNS, TILE)
    store_rows(block, pull, tl.zeros((BLOCK_B, COLUMNS), tl.float32), cols, COLUMNS, TILE)
    tl.debug_barrier()
    at, rows = rows_of(block, TILE) * COLUMNS, _rows(block, TILE)
    value = function_cost(
        form + at, costs.goal, costs.params, rows, t + at * 0, pull + at, rows < block.total, FUNCTION, NX, PARAMS
    )
    tl.debug_barrier()
    return value, parked(block, COLUMNS, TILE, SIZES)


@triton.jit
def _quadratic_cost(
    z, matrix, goal, own_goal, block, NX: tl.constexpr, TILE: tl.constexpr, SIZES: tl.constexpr
):
    """`½ dᵀ S d` `[BLOCK_B]` and its gradient `S d`, in float32 whatever the networks' products are in."""
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = z.shape[1]
    d = z - vector(own_goal, block, COLUMNS) if goal is None else z - _load_states(goal, 0, block, COLUMNS, NX, 1, TILE)
    form = block.scratch32 + SIZES.form
    tl.debug_barrier()  # the step before may still read it
    store_rows(block, form, d, columns_of(block, COLUMNS), COLUMNS, TILE)
    tl.debug_barrier()
    grad = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
    grad = product(grad, block, form, COLUMNS, matrix, COLUMNS, 1, columns_of(block, COLUMNS), COLUMNS, TILE, "ieee")
    return 0.5 * tl.sum(d * grad, 1), grad
