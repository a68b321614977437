"""Ring regime: one program evaluates a block of problems, and weights pass through a ring of shared memory.

    memory     W W W W W W …            tiles of weights, in the order in which they are multiplied (`ring_tiles`)
                 ↓ copies by the tensor memory accelerator, RING.slots − 1 of them ahead of the product, to the plan's last
    ring       │ W │ W │ W │ W │        and RING.pinned more, which stay for all steps of a sweep through the dynamics
                 ↓
    y (shared) × W → registers → norm, activation → y (shared) of the next layer

What a layer hands to the next stays in shared memory, and the ring goes on filling while a layer is normed: a layer takes
the longer of two times, that of reading its weights from the L2 and that of its own arithmetic, in place of their sum.
Products are those of `wgmma`, both of whose operands lie in shared memory, and which are under way while the next tile is
waited for. On its left 64 rows are the least: of fewer rows of y the weights stand there, and the product is the transpose.

    rollout   t = 0 … T−1    x_{t+1} = x_t + scale ⊙ dynamics(x_t, u_t)                          RING.few rows
    costs     all t          cost and its gradient, score, the pull p_t = ∂_z c − β s             RING.many rows, many steps
    adjoint   t = T−1 … 0    (λ, g_t) = p_t + (λ, 0) + (∂_z f)ᵀ λ                                 RING.few rows

Networks are plain: layers with or without a norm, conditioned or not (`uncovered_by_ring`), and widened to 64 columns
(`widened`). All iterations of a plan are one launch: a problem's step of Adam, by `update.update_rows`, is its program's.
Written in Gluon, for sm_90; `gluon_interpreted` says how it is tested without.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton.language as tl

from .gluon import INTERPRETED, fence_async_shared, gl, jit, mbarrier, opaque, thread_barrier
from .ring_network import Net, backward, forward, keep_condition, vectors_of
from .ring_tiles import barriers, controls, ends, shared, sums
from .ring_weights import Weights, copy, pin, tile_at, tiles_of_iteration
from .update import control_of, update_rows


class Scratch(NamedTuple):
    """Pointers to what a program keeps in memory, one program's behind the other's.

    saved, moments            of the dynamics, `[T, …]` as `packing` counts them, in `few` rows
    cost_saved, cost_moments  of the cost, in `many` rows
    pull                      `[T, problems, columns]` float32
    """

    saved: Any
    moments: Any
    cost_saved: Any
    cost_moments: Any
    pull: Any


class Block(NamedTuple):
    """The problems of a program: the first of them, and how many all programs have; `room` and `zero` as in `Net`."""

    first: Any
    total: Any
    room: Any
    zero: Any


@jit(do_not_specialize=["rows_total", "first", "last", "settled", "moves", "only_diverged", "zero"])
def ring_kernel(
    tiles, dynamics, score, cost, scale_ptr, gain_ptr, at, search, beta_ptr, level_ptr, step_size_ptr, scratch,
    rows_total, first, last, settled, moves, only_diverged, zero,
    DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, RING: tl.constexpr, T: tl.constexpr,
    NX: tl.constexpr, NU: tl.constexpr, CHUNK: tl.constexpr, BOUNDING: tl.constexpr, CHANGE: tl.constexpr,
    HISTORY: tl.constexpr, OPTIONS: tl.constexpr,
):  # fmt: skip
    """Iterations `first … last−1` of a block of problems; where nothing `moves` they are evaluated and judged.

    `only_diverged`, which is for a single iteration, skips blocks in which no problem has diverged.
    """
    FEW: tl.constexpr = RING.few
    MANY: tl.constexpr = RING.many
    PROBLEMS: tl.constexpr = RING.problems
    SLOTS: tl.constexpr = RING.slots
    PLAN: tl.constexpr = (ends(DYNAMICS, SCORE, COST), T, RING)
    pid = gl.program_id(0).to(gl.int64)
    SUMS: tl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    room = (
        gl.allocate_shared_memory(gl.float32, [16, gl.num_warps()], SUMS),
        gl.allocate_shared_memory(gl.float32, [16, gl.num_warps()], SUMS),
    )
    block = Block(pid * PROBLEMS, rows_total, room, zero)
    if only_diverged != 0:
        rows = block.first + gl.arange(0, PROBLEMS, layout=gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
        marked = gl.load(search.diverged + rows, mask=rows < rows_total, other=0).to(gl.int32)
        first += (gl.sum(marked, 0) == 0).to(gl.int32)  # a pass is one iteration: none is left then
    slots = gl.allocate_shared_memory(tiles.dtype, [SLOTS, 256, 64], shared())
    ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], barriers())
    y = gl.allocate_shared_memory(tiles.dtype, [1, MANY if MANY > FEW else FEW, 256], shared())
    for j in gl.static_range(SLOTS):
        mbarrier.init(ready.index(j), count=1)
    fence_async_shared()
    thread_barrier()
    steps = T
    if T > 1 and FEW < 64:  # of 64 rows it would be a fortieth of the work, and registers are short there
        steps = T - (moves != 0).to(gl.int32)  # x_T has no cost, and is wanted of a plan alone
    start = Weights(tiles, slots, ready, 0, first + 1 < last, steps)
    pin(start, 0, first < last, PLAN)
    AHEAD: tl.constexpr = RING.in_turn - 1
    for j in gl.static_range(AHEAD):
        tile, there = tile_at(start, j, PLAN)
        copy(start, tile, j, there & (first < last))  # no program may end with copies on their way
    dynamics_vectors = vectors_of(dynamics.vectors, DYNAMICS)
    cost_vectors = vectors_of(cost.vectors, COST)
    score_vectors = cost_vectors  # without a score nothing reads them
    if SCORE is not None:
        score_vectors = vectors_of(score.vectors, SCORE)
    passed = 0
    for i in range(first, last):
        ring = Weights(tiles, slots, ready, passed, i + 1 < last, steps)
        own = _own(scratch, pid, DYNAMICS, COST, PLAN)
        n = _roll_out(
            dynamics, dynamics_vectors, scale_ptr, at, search, own, block, y, ring, DYNAMICS, PLAN, NX, NU, BOUNDING
        )
        thread_barrier()
        pin(ring, PLAN[0][1], True, PLAN)
        level, beta, gain = gl.load(level_ptr + i), gl.load(beta_ptr + i), 0.0
        if SCORE is not None:
            keep_condition(score_vectors, score.vectors, level, SCORE)
            gain = gl.load(gain_ptr + level)
        n = _costs_and_scores(
            cost, cost_vectors, score, score_vectors, gain, beta, at, search, own, block, y, ring, n, COST, SCORE, PLAN, NX,
            NU, BOUNDING,
        )  # fmt: skip
        thread_barrier()
        _pull_back(dynamics, dynamics_vectors, scale_ptr, at, search, own, block, y, ring, n, DYNAMICS, PLAN, NX, NU)
        thread_barrier()
        pin(ring, 0, i + 1 < last, PLAN)
        CONTROLS: tl.constexpr = controls(CHUNK, gl.num_warps())
        rows = block.first + (gl.arange(0, PROBLEMS, layout=gl.SliceLayout(1, CONTROLS)) + opaque(zero))
        chunk = gl.arange(0, CHUNK, layout=gl.SliceLayout(0, CONTROLS))[None, :]
        update_rows(
            search, rows, rows < rows_total, chunk, i, gl.load(step_size_ptr + i), i >= settled, moves != 0, OPTIONS, T, NU,
            BOUNDING, CHANGE, HISTORY,
        )  # fmt: skip
        thread_barrier()
        passed += tiles_of_iteration(steps, PLAN)


@jit
def _own(scratch, pid, DYNAMICS: tl.constexpr, COST: tl.constexpr, PLAN: tl.constexpr):
    """A program's part of the scratch."""
    T: tl.constexpr = PLAN[1]
    FEW: tl.constexpr = PLAN[2].few
    MANY: tl.constexpr = PLAN[2].many
    return Scratch(
        scratch.saved + pid * (T * FEW * DYNAMICS.saved), scratch.moments + pid * (T * FEW * DYNAMICS.moments),
        scratch.cost_saved + pid * (MANY * COST.saved), scratch.cost_moments + pid * (MANY * COST.moments),
        scratch.pull + pid * (T * PLAN[2].problems * DYNAMICS.columns),
    )  # fmt: skip


@jit
def _roll_out(
    model, vectors, scale_ptr, at, search, scratch, block, y, ring, NET: tl.constexpr, PLAN: tl.constexpr, NX: tl.constexpr,
    NU: tl.constexpr, BOUNDING: tl.constexpr,
):  # fmt: skip
    """States behind the steps of this iteration; the count of tiles behind them."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].few
    COLUMNS: tl.constexpr = NET.columns
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    problem, step, inside, cols = _rows(block, 0, ROWS, 1, PLAN, COLUMNS, LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    x = gl.load(at.x0 + problem[:, None] * NX + cols[None, :], mask=is_x, other=0.0)
    gl.store(at.x + (problem * (T + 1))[:, None] * NX + cols[None, :], x, mask=is_x)
    n = 0
    for t in range(ring.steps):
        problem, step, inside, cols = _rows(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        z = x + _controls(search, problem, step, inside, cols, NX, NU, T, BOUNDING)
        saved, moments = scratch.saved + t * (ROWS * NET.saved), scratch.moments + t * (ROWS * NET.moments)
        net = Net(vectors, saved, moments, block.room, block.zero)
        out, n = forward(_normalised(z, model, cols, NX + NU), y, ring, n, net, NET, ROWS, PLAN, PLAN[2].pinned, True)
        problem, step, inside, cols = _rows(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        is_x = inside[:, None] & (cols < NX)[None, :]
        x = gl.where(is_x, x + _row(scale_ptr, cols, NX) * out, 0.0)
        gl.store(at.x + (problem * (T + 1) + t + 1)[:, None] * NX + cols[None, :], x, mask=is_x)
    return n


@jit
def _costs_and_scores(
    cost, cost_vectors, score, score_vectors, gain, beta, at, search, scratch, block, y, ring, n, COST: tl.constexpr,
    SCORE: tl.constexpr, PLAN: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr,
):  # fmt: skip
    """Costs, scores and the pull of all steps, some steps at once; the count of tiles behind them."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].many
    STEPS: tl.constexpr = PLAN[2].steps
    PROBLEMS: tl.constexpr = PLAN[2].problems
    COLUMNS: tl.constexpr = COST.columns
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    net = Net(cost_vectors, scratch.cost_saved, scratch.cost_moments, block.room, block.zero)
    score_net = Net(score_vectors, scratch.cost_saved, scratch.cost_moments, block.room, block.zero)
    for t in range(0, T, STEPS):
        problem, step, inside, cols = _rows(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
        is_x = inside[:, None] & (cols < NX)[None, :]
        z = gl.load(at.x + (problem * (T + 1) + step)[:, None] * NX + cols[None, :], mask=is_x, other=0.0)
        z += _controls(search, problem, step, inside, cols, NX, NU, T, BOUNDING)
        value, n = forward(_normalised(z, cost, cols, NX + NU), y, ring, n, net, COST, ROWS, PLAN, 0, True)
        value = _first_column(value, ROWS, COST.out_columns)
        problem, step, inside, cols = _rows(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
        value_layout: tl.constexpr = gl.SliceLayout(1, LAYOUT)
        gl.store(search.running + problem * T + step, gl.convert_layout(value, value_layout), mask=inside)
        pull, n = backward(_one(ROWS, COST.out_columns), y, ring, n, net, COST, ROWS, PLAN, 0)
        problem, step, inside, cols = _rows(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
        pull *= _row(cost.inv_k, cols, NX + NU)
        if SCORE is not None:
            s, n = forward(_normalised(z, score, cols, NX + NU), y, ring, n, score_net, SCORE, ROWS, PLAN, 0, False)
            problem, step, inside, cols = _rows(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
            s *= _row(score.inv_k, cols, NX + NU) * gain
            is_z = inside[:, None] & (cols < NX + NU)[None, :]
            gl.store(at.score + (problem * T + step)[:, None] * (NX + NU) + cols[None, :], s, mask=is_z)
            pull -= beta * s
        place = (step * PROBLEMS + (problem - block.first).to(gl.int32))[:, None] * COLUMNS + cols[None, :]
        gl.store(scratch.pull + place, pull, mask=(step < T)[:, None])
    return n


@jit
def _pull_back(
    model, vectors, scale_ptr, at, search, scratch, block, y, ring, n, NET: tl.constexpr, PLAN: tl.constexpr,
    NX: tl.constexpr, NU: tl.constexpr,
):  # fmt: skip
    """Costates, and the gradient in the controls, of all steps from the last, behind which there is no cost."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].few
    COLUMNS: tl.constexpr = NET.columns
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    problem, step, inside, cols = _rows(block, T - 1, ROWS, 1, PLAN, COLUMNS, LAYOUT)
    costate = gl.zeros([ROWS, COLUMNS], gl.float32, layout=LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    gl.store(at.costate + (problem * (T + 1) + T)[:, None] * NX + cols[None, :], costate, mask=is_x)
    costate = _keep_gradient(costate, T - 1, at, search, scratch, block, COLUMNS, PLAN, NX, NU)
    for j in range(T - 1):
        t = T - 2 - j
        saved, moments = scratch.saved + t * (ROWS * NET.saved), scratch.moments + t * (ROWS * NET.moments)
        net = Net(vectors, saved, moments, block.room, block.zero)
        problem, step, inside, cols = _rows(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        scaled = _row(scale_ptr, cols, NX) * costate
        pulled, n = backward(scaled, y, ring, n, net, NET, ROWS, PLAN, PLAN[2].pinned)
        problem, step, inside, cols = _rows(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        costate += _row(model.inv_k, cols, NX + NU) * pulled
        costate = _keep_gradient(costate, t, at, search, scratch, block, COLUMNS, PLAN, NX, NU)


@jit
def _keep_gradient(
    later, t, at, search, scratch, block, COLUMNS: tl.constexpr, PLAN: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr
):
    """The costate at step t, of the gradient in (x, u) of what comes later and the pull of the step itself."""
    T: tl.constexpr = PLAN[1]
    PROBLEMS: tl.constexpr = PLAN[2].problems
    LAYOUT: tl.constexpr = sums(PLAN[2].few, COLUMNS, gl.num_warps())
    problem, step, inside, cols = _rows(block, t, PLAN[2].few, 1, PLAN, COLUMNS, LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    is_u = inside[:, None] & ((cols >= NX) & (cols < NX + NU))[None, :]
    place = (t * PROBLEMS + (problem - block.first).to(gl.int32))[:, None] * COLUMNS + cols[None, :]
    grad = later + gl.load(scratch.pull + place, mask=inside[:, None] & (cols < COLUMNS)[None, :], other=0.0)
    gl.store(search.grad_u + ((problem * T + t)[:, None] * NU + cols[None, :] - NX), grad, mask=is_u)
    costate = gl.where(is_x, grad, 0.0)
    gl.store(at.costate + (problem * (T + 1) + t)[:, None] * NX + cols[None, :], costate, mask=is_x)
    return costate


@jit
def _rows(
    block, t, ROWS: tl.constexpr, STEPS: tl.constexpr, PLAN: tl.constexpr, COLUMNS: tl.constexpr, LAYOUT: tl.constexpr
):
    """Of each row: its problem, its step, from t on, and whether there is such a row; and the columns.

    Made anew wherever they are wanted: the layers between need the registers that they would be kept in.
    """
    T: tl.constexpr = PLAN[1]
    PROBLEMS: tl.constexpr = PLAN[2].problems
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT)) + opaque(block.zero)
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT)) + opaque(block.zero)
    problem, step = block.first + rows % PROBLEMS, t + rows // PROBLEMS
    return problem, step, (problem < block.total) & (rows < PROBLEMS * STEPS) & (step < T), cols


@jit
def _controls(
    search, problem, step, inside, cols, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr
):
    """The controls of a step in the columns behind the state, zeros elsewhere."""
    mask = inside[:, None] & ((cols >= NX) & (cols < NX + NU))[None, :]
    at = cols[None, :] - NX
    v = gl.load(search.v + (problem * T + step)[:, None] * NU + at, mask=mask, other=0.0)
    if BOUNDING == "tanh":
        low = gl.load(search.low + problem[:, None] * NU + at, mask=mask, other=-1.0)
        high = gl.load(search.high + problem[:, None] * NU + at, mask=mask, other=1.0)
        v = gl.where(mask, control_of(v, low, high, BOUNDING), 0.0)
    return v


@jit
def _normalised(z, model, cols, NZ: tl.constexpr):
    """z̄ = (z − b)·inv_k."""
    return (z - _row(model.b, cols, NZ)) * _row(model.inv_k, cols, NZ)


@jit
def _row(ptr, cols, COLUMNS: tl.constexpr):
    """Numbers of the first columns, a row, and zeros in those behind them."""
    return gl.load(ptr + cols, mask=cols < COLUMNS, other=0.0)[None, :]


@jit
def _first_column(out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, sums(ROWS, COLUMNS, gl.num_warps())))
    return gl.sum(gl.where((cols == 0)[None, :], out, 0.0), 1)


@jit
def _one(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The cotangent of a cost: one in the first column."""
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    return gl.where((cols == 0)[None, :], 1.0, gl.zeros([ROWS, COLUMNS], gl.float32, layout=LAYOUT))


assert INTERPRETED or hasattr(ring_kernel, "is_gluon")
