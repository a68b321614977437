"""Ring regime: one program evaluates a block of problems, and weights pass through a ring of shared memory.

    memory     W W W W W W …            tiles of weights, in the order in which they are multiplied (`tiles`)
                 ↓ copies by the tensor memory accelerator, RING.slots − 1 of them ahead of the product, to the plan's last
    ring       │ W │ W │ W │ W │        and RING.pinned more, which stay for all steps of a sweep through the dynamics
                 ↓
    y (shared) × W → registers → norm, activation → y (shared) of the next layer

What a layer hands to the next stays in shared memory, and the ring goes on filling while a layer is normed: a layer takes
the longer of two times, that of reading its weights from the L2 and that of its own arithmetic, in place of their sum.
Products are those of `wgmma`, both of whose operands lie in shared memory, and which are under way while the next tile is
waited for. On its left 64 rows are the least: of fewer rows of y the weights stand there, and the product is the transpose.

    rollout   t = 0 … T−1    x_{t+1} = x_t + scale ⊙ dynamics(x_t, u_t)                          RING.few rows
    costs     t = T          a terminal cost, and its gradient λ                                  RING.few rows
              all t          cost and its gradient, score, the pull p_t = ∂_z c − β s             RING.many rows, many steps
    adjoint   t = T−1 … 0    (λ, g_t) = p_t + (λ, 0) + (∂_z f)ᵀ λ                                 RING.few rows

Networks are plain: layers with or without a norm, conditioned or not (`uncovered_by_ring`), and widened to 64 columns
(`widened`); costs that are no network a program computes by itself (`local_costs`). All iterations of a plan are one launch:
a problem's step of Adam, by `update.update_rows`, is its program's. Written in Gluon, for sm_90; `gluon_interpreted` says
how it is tested without.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton.language as tl

from ..gluon import INTERPRETED, fence_async_shared, gl, jit, mbarrier, opaque, thread_barrier
from ..update import update_rows
from .costs import costs_and_scores, terminal_cost
from .network import Net, backward, forward, keep_condition, vectors_of
from .rows import controls_of, normalised, place_of_row, row, rows_of
from .tiles import barriers, controls, ends, shared, sums
from .weights import Weights, copy, pin, tile_at, tiles_of_iteration


class Scratch(NamedTuple):
    """Pointers to what a program keeps in memory, one program's behind the other's.

    saved, moments            of the dynamics, `[T, …]` as `packing` counts them, in `few` rows
    cost_saved, cost_moments  of the terminal cost, in `few` rows, and then of the running one, in `many`
    inputs, pull              `[T + 1, problems, columns]` float32: (x, u), for costs that are no network; the gradient in it
    """

    saved: Any
    moments: Any
    cost_saved: Any
    cost_moments: Any
    inputs: Any
    pull: Any


class Block(NamedTuple):
    """The problems of a program: the first of them, and how many all programs have; `room` and `zero` as in `Net`."""

    first: Any
    total: Any
    room: Any
    zero: Any


@jit(do_not_specialize=["rows_total", "first", "last", "settled", "moves", "only_diverged", "zero"])
def ring_kernel(
    tiles, dynamics, score, cost, terminal, scale_ptr, gain_ptr, costs, at, search, beta_ptr, level_ptr, step_size_ptr,
    scratch, rows_total, first, last, settled, moves, only_diverged, zero,
    DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, TERMINAL: tl.constexpr, RING: tl.constexpr,
    T: tl.constexpr, N: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, CHUNK: tl.constexpr, SAVED: tl.constexpr,
    BOUNDING: tl.constexpr, CHANGE: tl.constexpr, HISTORY: tl.constexpr, OPTIONS: tl.constexpr, FUNCTION: tl.constexpr,
    LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Iterations `first … last−1` of a block of problems; where nothing `moves` they are evaluated and judged.

    `only_diverged`, which is for a single iteration, skips blocks in which no problem has diverged. SAVED are the numbers
    and moments of costs that a program keeps. FUNCTION and LAST_FUNCTION are traced costs (`traced.triton_code`) in the
    place of the others, or None; N is the width of quadratic ones; ENDS says that there is a cost of x_T.
    """
    FEW: tl.constexpr = RING.few
    MANY: tl.constexpr = RING.many
    PROBLEMS: tl.constexpr = RING.problems
    SLOTS: tl.constexpr = RING.slots
    PLAN: tl.constexpr = (ends(DYNAMICS, SCORE, COST, TERMINAL), T, RING, T if ENDS else T - 1)
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
    if T > 1 and FEW < 64 and not ENDS:  # of 64 rows it would be a fortieth of the work, and registers are short there
        steps = T - (moves != 0).to(gl.int32)  # x_T has no cost, and is wanted of a plan alone
    start = Weights(tiles, slots, ready, 0, first + 1 < last, steps)
    pin(start, 0, first < last, PLAN)
    AHEAD: tl.constexpr = RING.in_turn - 1
    for j in gl.static_range(AHEAD):
        tile, there = tile_at(start, j, PLAN)
        copy(start, tile, j, there & (first < last))  # no program may end with copies on their way
    dynamics_vectors = vectors_of(dynamics.vectors, DYNAMICS)
    cost_vectors, terminal_vectors, score_vectors = dynamics_vectors, dynamics_vectors, dynamics_vectors
    if COST is not None:
        cost_vectors = vectors_of(cost.vectors, COST)
    if TERMINAL is not None:
        terminal_vectors = vectors_of(terminal.vectors, TERMINAL)
    if SCORE is not None:
        score_vectors = vectors_of(score.vectors, SCORE)
    passed = 0
    for i in range(first, last):
        ring = Weights(tiles, slots, ready, passed, i + 1 < last, steps)
        own = _own(scratch, pid, DYNAMICS, SAVED, PLAN)
        n = _roll_out(
            dynamics, dynamics_vectors, scale_ptr, at, search, own, block, y, ring, DYNAMICS, PLAN, NX, NU, BOUNDING
        )
        thread_barrier()
        pin(ring, PLAN[0][2], True, PLAN)
        if ENDS:
            n = terminal_cost(
                terminal, terminal_vectors, costs, at, search, own, block, y, ring, n, TERMINAL, LAST_FUNCTION, PARAMS,
                DYNAMICS.columns, N, PLAN, NX,
            )  # fmt: skip
            thread_barrier()
        level, beta, gain = gl.load(level_ptr + i), gl.load(beta_ptr + i), 0.0
        if SCORE is not None:
            keep_condition(score_vectors, score.vectors, level, SCORE)
            gain = gl.load(gain_ptr + level)
        n = costs_and_scores(
            cost, cost_vectors, score, score_vectors, gain, beta, costs, at, search, own, block, y, ring, n, COST, SCORE,
            FUNCTION, PARAMS, DYNAMICS.columns, N, PLAN, NX, NU, BOUNDING,
        )  # fmt: skip
        thread_barrier()
        _pull_back(dynamics, dynamics_vectors, scale_ptr, at, search, own, block, y, ring, n, DYNAMICS, ENDS, PLAN, NX, NU)
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
def _own(scratch, pid, DYNAMICS: tl.constexpr, SAVED: tl.constexpr, PLAN: tl.constexpr):
    """A program's part of the scratch."""
    T: tl.constexpr = PLAN[1]
    FEW: tl.constexpr = PLAN[2].few
    INPUTS: tl.constexpr = (T + 1) * PLAN[2].problems * DYNAMICS.columns
    return Scratch(
        scratch.saved + pid * (T * FEW * DYNAMICS.saved), scratch.moments + pid * (T * FEW * DYNAMICS.moments),
        scratch.cost_saved + pid * SAVED[0], scratch.cost_moments + pid * SAVED[1], scratch.inputs + pid * INPUTS,
        scratch.pull + pid * INPUTS,
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
    problem, step, inside, cols = rows_of(block, 0, ROWS, 1, PLAN, COLUMNS, LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    x = gl.load(at.x0 + problem[:, None] * NX + cols[None, :], mask=is_x, other=0.0)
    gl.store(at.x + (problem * (T + 1))[:, None] * NX + cols[None, :], x, mask=is_x)
    n = 0
    for t in range(ring.steps):
        problem, step, inside, cols = rows_of(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        z = x + controls_of(search, problem, step, inside, cols, NX, NU, T, BOUNDING)
        saved, moments = scratch.saved + t * (ROWS * NET.saved), scratch.moments + t * (ROWS * NET.moments)
        net = Net(vectors, saved, moments, block.room, block.zero)
        out, n = forward(normalised(z, model, cols, NX + NU), y, ring, n, net, NET, ROWS, PLAN, PLAN[2].pinned, True)
        problem, step, inside, cols = rows_of(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        is_x = inside[:, None] & (cols < NX)[None, :]
        x = gl.where(is_x, x + row(scale_ptr, cols, NX) * out, 0.0)
        gl.store(at.x + (problem * (T + 1) + t + 1)[:, None] * NX + cols[None, :], x, mask=is_x)
    return n


@jit
def _pull_back(
    model, vectors, scale_ptr, at, search, scratch, block, y, ring, n, NET: tl.constexpr, ENDS: tl.constexpr,
    PLAN: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr,
):  # fmt: skip
    """Costates, and the gradient in the controls, of all steps from the last; through it only where a cost is of x_T."""
    T: tl.constexpr = PLAN[1]
    SWEPT: tl.constexpr = PLAN[3]
    ROWS: tl.constexpr = PLAN[2].few
    COLUMNS: tl.constexpr = NET.columns
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    problem, step, inside, cols = rows_of(block, T - 1, ROWS, 1, PLAN, COLUMNS, LAYOUT)
    costate = gl.zeros([ROWS, COLUMNS], gl.float32, layout=LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    if ENDS:
        place = place_of_row(problem, T, block, PLAN)[:, None] * COLUMNS + cols[None, :]
        costate = gl.load(scratch.pull + place, mask=is_x, other=0.0)
    gl.store(at.costate + (problem * (T + 1) + T)[:, None] * NX + cols[None, :], costate, mask=is_x)
    if not ENDS:
        costate = _keep_gradient(costate, T - 1, at, search, scratch, block, COLUMNS, PLAN, NX, NU)
    for j in range(SWEPT):
        t = SWEPT - 1 - j
        saved, moments = scratch.saved + t * (ROWS * NET.saved), scratch.moments + t * (ROWS * NET.moments)
        net = Net(vectors, saved, moments, block.room, block.zero)
        problem, step, inside, cols = rows_of(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        scaled = row(scale_ptr, cols, NX) * costate
        pulled, n = backward(scaled, y, ring, n, net, NET, ROWS, PLAN, PLAN[2].pinned)
        problem, step, inside, cols = rows_of(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        costate += row(model.inv_k, cols, NX + NU) * pulled
        costate = _keep_gradient(costate, t, at, search, scratch, block, COLUMNS, PLAN, NX, NU)


@jit
def _keep_gradient(
    later, t, at, search, scratch, block, COLUMNS: tl.constexpr, PLAN: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr
):
    """The costate at step t, of the gradient in (x, u) of what comes later and the pull of the step itself."""
    T: tl.constexpr = PLAN[1]
    LAYOUT: tl.constexpr = sums(PLAN[2].few, COLUMNS, gl.num_warps())
    problem, step, inside, cols = rows_of(block, t, PLAN[2].few, 1, PLAN, COLUMNS, LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    is_u = inside[:, None] & ((cols >= NX) & (cols < NX + NU))[None, :]
    place = place_of_row(problem, t, block, PLAN)[:, None] * COLUMNS + cols[None, :]
    grad = later + gl.load(scratch.pull + place, mask=inside[:, None] & (cols < COLUMNS)[None, :], other=0.0)
    gl.store(search.grad_u + ((problem * T + t)[:, None] * NU + cols[None, :] - NX), grad, mask=is_u)
    costate = gl.where(is_x, grad, 0.0)
    gl.store(at.costate + (problem * (T + 1) + t)[:, None] * NX + cols[None, :], costate, mask=is_x)
    return costate


assert INTERPRETED or hasattr(ring_kernel, "is_gluon")
