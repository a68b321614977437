"""Tile regime: one program plans a block of problems, all iterations in one launch.

    rows of one program    ┌ t = 0 … T−1   x_{t+1} = x_t + scale ⊙ dynamics(x_t, u_t)
    [BLOCK_B, columns]     │ all t         score, cost and its gradient at (x_t, u_t), the pull  p_t = ∂_z c − β s
    times iterations       │ t = T−1 … 0   the dynamics' input-gradient:  (λ, g_t) = p_t + (λ, 0) + (∂_z f)ᵀ λ
                           └ judge, Adam, projection

Weights stream from L2; activations pass through this program's scratch (`layers.py`). A tile holds z = (x, u): the state in
its first columns, the controls behind it, zeros after. With KEEP the dynamics' activations of every step are kept from the
rollout to the adjoint; without, they are computed again, step by step, and the scratch is T times smaller
(`tiling.keep` decides).

Only the dynamics wait for the step before. So TALL, the tile of scores and costs, holds several steps one behind the other
where the block has few problems, and their weights are read once for all of them (`tiling.tall`).
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
    TALL: tl.constexpr, T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, CHUNK: tl.constexpr,
    BOUNDING: tl.constexpr, CHANGE: tl.constexpr, HISTORY: tl.constexpr, KEEP: tl.constexpr, SIZES: tl.constexpr,
    OPTIONS: tl.constexpr, FUNCTION: tl.constexpr, LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Iterations `first … last−1` of a block of problems; where nothing `moves` they are evaluated and judged.

    ENDS says that there is a cost of x_T; without one the last step has no gradient, and its state is a plan's alone.
    FUNCTION and LAST_FUNCTION are traced costs (`traced.triton_code`) in the place of the others, or None.
    `only_diverged`, which is for a single iteration, skips blocks in which no problem has diverged.
    """
    pid = tl.program_id(0).to(tl.int64)
    scratch_ptr += pid * SIZES.scratch
    scratch32_ptr += pid * SIZES.scratch32
    block = Block(pid * TILE.block_b, rows_total, zero_ptr, scratch_ptr, scratch32_ptr)
    if only_diverged != 0:
        marked = tl.load(search.diverged + _rows(block, TILE), mask=_rows(block, TILE) < rows_total, other=0)
        first += (tl.max(marked.to(tl.int32), 0) == 0).to(tl.int32)  # a pass is one iteration: none is left then

    # Inlined, the places in shared memory by which either tile changes layouts are computed before all loops, and held in
    # registers; called, they are not. But across a call, asynchronous products (those of 64 rows) wait for one another.
    APART: tl.constexpr = TALL.steps > 1
    ROLL_OUT: tl.constexpr = _roll_out_called if APART else _roll_out
    COSTS_AND_SCORES: tl.constexpr = _costs_and_scores_called if APART and TALL.block_b < 64 else _costs_and_scores
    PULL_BACK: tl.constexpr = _pull_back_called if APART else _pull_back
    steps = T
    if not ENDS:
        steps = T - (moves != 0).to(tl.int32)
    for i in range(first, last):
        tl.debug_barrier()  # the step before wrote v in another layout
        ROLL_OUT(
            dynamics, terminal, scale_ptr, costs, at, search, block, steps, DYNAMICS, TERMINAL, TILE, T, NX, NU, BOUNDING,
            KEEP, SIZES, LAST_FUNCTION, PARAMS,
        )  # fmt: skip
        COSTS_AND_SCORES(
            score, cost, costs, at, search, gain_ptr, beta_ptr, level_ptr, i, block, DYNAMICS, SCORE, COST, TALL, T, NX, NU,
            BOUNDING, SIZES, FUNCTION, PARAMS,
        )  # fmt: skip
        PULL_BACK(dynamics, scale_ptr, at, search, block, DYNAMICS, TILE, T, NX, NU, BOUNDING, KEEP, SIZES, ENDS)
        tl.debug_barrier()
        rows = _rows(block, TILE)
        step_size = tl.load(step_size_ptr + i)
        update_rows(
            search, rows, rows < block.total, tl.arange(0, CHUNK)[None, :], i, step_size, i >= settled, moves != 0, OPTIONS,
            T, NU, BOUNDING, CHANGE, HISTORY,
        )  # fmt: skip


class Block(NamedTuple):
    """A program's rows and scratch. `zero` points at a zero: see `layers.columns_of`."""

    first: Any
    total: Any
    zero: Any
    scratch: Any
    scratch32: Any


@triton.jit
def _roll_out(
    dynamics, terminal, scale_ptr, costs, at, search, block, steps, DYNAMICS: tl.constexpr, TERMINAL: tl.constexpr,
    TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr, KEEP: tl.constexpr,
    SIZES: tl.constexpr, LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr,
):  # fmt: skip
    """The states behind so many steps, the terminal cost, and its gradient as the last costate."""
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = DYNAMICS.columns
    x = _load_states(at.x0, 0, block, COLUMNS, NX, 1, TILE)
    for t in range(steps):
        _store_states(at.x, x, t, block, COLUMNS, NX, T + 1, TILE)
        z = x + _load_controls(search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)
        mem = _memory(dynamics, dynamics.vectors, block, t, DYNAMICS, TILE, SIZES, KEEP)
        out = network_forward(normalised(z, dynamics, block), mem, DYNAMICS, TILE, KEEP)
        x = _load_states(at.x, t, block, COLUMNS, NX, T + 1, TILE) + vector(scale_ptr, block, COLUMNS) * out
    _store_states(at.x, x, steps, block, COLUMNS, NX, T + 1, TILE)

    costate = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
    value = tl.zeros((BLOCK_B,), tl.float32)
    if TERMINAL is not None:
        value, costate = _learned_cost(x, terminal, block, TERMINAL, TILE, SIZES, -1.0)
    if costs.terminal is not None:
        value, costate = _quadratic_cost(
            x, costs.terminal, costs.goal, costs.last_own_goal, 0, block, NX, 1, TILE, SIZES
        )
    if LAST_FUNCTION is not None:
        pull = _pull_of(0, block, COLUMNS, TILE, SIZES)
        value = _function_cost(x, costs, T, pull, block, LAST_FUNCTION, NX, PARAMS, T + 1, TILE, SIZES)
        costate = parked(pull, block, COLUMNS, TILE)
    _store_states(at.costate, costate, T, block, COLUMNS, NX, T + 1, TILE)
    _store_values(search.terminal, value, 0, block, 1, TILE)
    tl.debug_barrier()


@triton.jit
def _costs_and_scores(
    score, cost, costs, at, search, gain_ptr, beta_ptr, level_ptr, i, block, DYNAMICS: tl.constexpr, SCORE: tl.constexpr,
    COST: tl.constexpr, TALL: tl.constexpr, T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr,
    SIZES: tl.constexpr, FUNCTION: tl.constexpr, PARAMS: tl.constexpr,
):  # fmt: skip
    """Costs and scores of all steps in iteration i, TALL.steps at once, and their gradients, set aside for the adjoint."""
    COLUMNS: tl.constexpr = DYNAMICS.columns
    for t in range(0, T, TALL.steps):
        z = _load_step(at, search, t, block, COLUMNS, NX, NU, T, BOUNDING, TALL)
        pull = _pull_of(t, block, COLUMNS, TALL, SIZES)
        if FUNCTION is not None:
            values = _function_cost(z, costs, t, pull, block, FUNCTION, NX, PARAMS, T, TALL, SIZES)
        elif COST is not None:
            values, grads = _learned_cost(z, cost, block, COST, TALL, SIZES, 1.0)
            park(pull, grads, block, TALL)
        else:
            values, grads = _quadratic_cost(z, costs.running, costs.goal, costs.own_goal, t, block, NX, T, TALL, SIZES)
            park(pull, grads, block, TALL)
        _store_values(search.running, values, t, block, T, TALL)
        if SCORE is not None:
            z = _load_step(at, search, t, block, COLUMNS, NX, NU, T, BOUNDING, TALL)
            level = tl.load(level_ptr + i)
            table = score.vectors + SCORE.embedding + level * SCORE.condition_columns
            mem = _memory(score, table, block, 0, SCORE, TALL, SIZES, False)
            s = network_forward(normalised(z, score, block), mem, SCORE, TALL, False)
            s *= vector(score.inv_k, block, COLUMNS) * tl.load(gain_ptr + level)
            _store_states(at.score, s, t, block, COLUMNS, NX + NU, T, TALL)
            pull = _pull_of(t, block, COLUMNS, TALL, SIZES)
            park(pull, parked(pull, block, COLUMNS, TALL) - tl.load(beta_ptr + i) * s, block, TALL)


@triton.jit
def _pull_back(
    dynamics, scale_ptr, at, search, block, DYNAMICS: tl.constexpr, TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr,
    NU: tl.constexpr, BOUNDING: tl.constexpr, KEEP: tl.constexpr, SIZES: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """The costates of all steps, from the last to the first, and the gradients in the controls."""
    COLUMNS: tl.constexpr = DYNAMICS.columns
    LAST: tl.constexpr = T if ENDS else T - 1
    if not ENDS:
        tl.debug_barrier()  # costs and scores were set aside by other threads
        grad = parked(_pull_of(T - 1, block, COLUMNS, TILE, SIZES), block, COLUMNS, TILE)
        _store_controls(search.grad_u, grad, T - 1, block, COLUMNS, NX, NU, T, TILE)
        _store_states(at.costate, grad, T - 1, block, COLUMNS, NX, T + 1, TILE)
    for j in range(LAST):
        t = LAST - 1 - j
        mem = _memory(dynamics, dynamics.vectors, block, t, DYNAMICS, TILE, SIZES, KEEP)
        if not KEEP:
            z = _load_step(at, search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)
            network_forward(normalised(z, dynamics, block), mem, DYNAMICS, TILE, True)
        tl.debug_barrier()  # the step before wrote the costate, perhaps by other threads
        costate = _load_states(at.costate, t + 1, block, COLUMNS, NX, T + 1, TILE)
        pulled = network_vjp(vector(scale_ptr, block, COLUMNS) * costate, mem, DYNAMICS, TILE)
        grad = parked(_pull_of(t, block, COLUMNS, TILE, SIZES), block, COLUMNS, TILE)
        grad += vector(dynamics.inv_k, block, COLUMNS) * pulled
        grad += _load_states(at.costate, t + 1, block, COLUMNS, NX, T + 1, TILE)
        _store_controls(search.grad_u, grad, t, block, COLUMNS, NX, NU, T, TILE)
        _store_states(at.costate, grad, t, block, COLUMNS, NX, T + 1, TILE)


_roll_out_called = triton.jit(noinline=True)(_roll_out.fn)
_costs_and_scores_called = triton.jit(noinline=True)(_costs_and_scores.fn)
_pull_back_called = triton.jit(noinline=True)(_pull_back.fn)


@triton.jit
def _rows(block, TILE: tl.constexpr):
    """The problems of the block, as numbers in the batch (int64: they are to be multiplied by strides)."""
    return block.first + rows_of(block, TILE)


@triton.jit
def _place(t, block, STEPS: tl.constexpr, TILE: tl.constexpr):
    """Of each row of a tile: its problem, as `_rows`; its step, t or one of those behind it; whether it is there.

    The step is one number where the tile holds one. STEPS are those of the tensor at hand: T + 1 of states.
    """
    if TILE.steps == 1:
        problem = _rows(block, TILE)
        return problem, t, problem < block.total
    else:
        PROBLEMS: tl.constexpr = TILE.block_b // TILE.steps
        rows = rows_of(block, TILE)
        problem, step = block.first + rows % PROBLEMS, t + rows // PROBLEMS
        return problem, step, (problem < block.total) & (step < STEPS)


@triton.jit
def _load_states(ptr, t, block, COLUMNS: tl.constexpr, N: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr):
    """Step t of `[rows, STEPS, N]` in the first N columns, zeros elsewhere."""
    problem, step, inside = _place(t, block, STEPS, TILE)
    cols = columns_of(block, COLUMNS)
    mask = inside[:, None] & (cols < N)[None, :]
    return tl.load(ptr + (problem * STEPS + step)[:, None] * N + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _store_states(
    ptr, values, t, block, COLUMNS: tl.constexpr, N: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr
):
    problem, step, inside = _place(t, block, STEPS, TILE)
    cols = columns_of(block, COLUMNS)
    mask = inside[:, None] & (cols < N)[None, :]
    tl.store(ptr + (problem * STEPS + step)[:, None] * N + cols[None, :], values, mask=mask)


@triton.jit
def _load_goals(ptr, t, block, COLUMNS: tl.constexpr, NX: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr):
    """The goals `[rows, NX]` of the problems of a tile's rows, which are there as in `_place`; zeros behind them."""
    problem, _, inside = _place(t, block, STEPS, TILE)
    cols = columns_of(block, COLUMNS)
    mask = inside[:, None] & (cols < NX)[None, :]
    return tl.load(ptr + problem[:, None] * NX + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _load_controls(
    search, t, block, COLUMNS: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The controls of step t in the columns behind the state, zeros elsewhere."""
    problem, step, inside = _place(t, block, T, TILE)
    cols = columns_of(block, COLUMNS) - NX
    mask = inside[:, None] & ((cols >= 0) & (cols < NU))[None, :]
    v = tl.load(search.v + (problem * T + step)[:, None] * NU + cols[None, :], mask=mask, other=0.0)
    if BOUNDING == "tanh":
        low = tl.load(search.low + problem[:, None] * NU + cols[None, :], mask=mask, other=-1.0)
        high = tl.load(search.high + problem[:, None] * NU + cols[None, :], mask=mask, other=1.0)
        v = tl.where(mask, control_of(v, low, high, BOUNDING), 0.0)
    return v


@triton.jit
def _load_step(
    at, search, t, block, COLUMNS: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """z = (x, u) of step t, or of the steps of a tile from t on."""
    x = _load_states(at.x, t, block, COLUMNS, NX, T + 1, TILE)
    return x + _load_controls(search, t, block, COLUMNS, NX, NU, T, BOUNDING, TILE)


@triton.jit
def _store_controls(
    ptr, values, t, block, COLUMNS: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr
):
    problem, step, inside = _place(t, block, T, TILE)
    cols = columns_of(block, COLUMNS) - NX
    mask = inside[:, None] & ((cols >= 0) & (cols < NU))[None, :]
    tl.store(ptr + (problem * T + step)[:, None] * NU + cols[None, :], values, mask=mask)


@triton.jit
def _store_values(ptr, values, t, block, STEPS: tl.constexpr, TILE: tl.constexpr):
    problem, step, inside = _place(t, block, STEPS, TILE)
    tl.store(ptr + problem * STEPS + step, values, mask=inside)


@triton.jit
def _pull_of(t, block, COLUMNS: tl.constexpr, TILE: tl.constexpr, SIZES: tl.constexpr):
    """Where the gradients of costs and scores at step t are set aside, a row of z a problem, until the adjoint adds them."""
    return block.scratch32 + SIZES.pull + t * (TILE.block_b // TILE.steps * COLUMNS)


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
    z, costs, t, pull, block, FUNCTION: tl.constexpr, NX: tl.constexpr, PARAMS: tl.constexpr, STEPS: tl.constexpr,
    TILE: tl.constexpr, SIZES: tl.constexpr,
):  # fmt: skip
    """The value `[BLOCK_B]` of a traced cost; its gradient in z is set aside at `pull`.

    A row is read from the scratch, number by number.
    """
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = z.shape[1]
    cols, form = columns_of(block, COLUMNS), block.scratch32 + SIZES.form
    tl.debug_barrier()  # the step before may still read them
    store_rows(block, form, z, cols, COLUMNS, TILE)
    store_rows(block, pull, tl.zeros((BLOCK_B, COLUMNS), tl.float32), cols, COLUMNS, TILE)
    tl.debug_barrier()
    problem, step, inside = _place(t, block, STEPS, TILE)
    at = rows_of(block, TILE) * COLUMNS
    value = function_cost(
        form + at, costs.goal, costs.params, problem, step + at * 0, pull + at, inside, FUNCTION, NX, PARAMS
    )
    tl.debug_barrier()
    return value


@triton.jit
def _quadratic_cost(
    z, matrix, goal, own_goal, t, block, NX: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr, SIZES: tl.constexpr
):
    """`½ dᵀ S d` `[BLOCK_B]` and its gradient `S d`, in float32 whatever the networks' products are in."""
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = z.shape[1]
    aim = vector(own_goal, block, COLUMNS) if goal is None else _load_goals(goal, t, block, COLUMNS, NX, STEPS, TILE)
    d = z - aim
    form = block.scratch32 + SIZES.form
    tl.debug_barrier()  # the step before may still read it
    store_rows(block, form, d, columns_of(block, COLUMNS), COLUMNS, TILE)
    tl.debug_barrier()
    grad = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
    grad = product(grad, block, form, COLUMNS, matrix, COLUMNS, 1, columns_of(block, COLUMNS), COLUMNS, TILE, "ieee")
    return 0.5 * tl.sum(d * grad, 1), grad
