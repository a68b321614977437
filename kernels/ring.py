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

from .activations import activate, activate_vjp
from .gluon import (
    INTERPRETED,
    exp2,
    fence_async_shared,
    gl,
    jit,
    mbarrier,
    opaque,
    thread_barrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from .layers import layer_norm_eps
from .ring_tiles import (
    barriers,
    controls,
    depth_of,
    ends,
    first_tile,
    numbers_of_tile,
    parts,
    place_of,
    products,
    shared,
    sums,
    tiles_of_iteration,
    tiles_of_operation,
)
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


class Net(NamedTuple):
    """A network's vectors in shared memory, and where its rows keep what the gradient needs.

    `room` is two places in shared memory for the sums of every warp, and `zero` is 0, of which the compiler does not know:
    see `gluon.opaque`.
    """

    vectors: Any
    saved: Any
    moments: Any
    room: Any
    zero: Any


class Weights(NamedTuple):
    """All tiles in memory, the slots that they pass through, and the barriers that say that they have arrived.

    passed  tiles that went through the ring in the iterations before
    more    whether an iteration follows
    """

    tiles: Any
    slots: Any
    ready: Any
    passed: Any
    more: Any


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
    start = Weights(tiles, slots, ready, 0, first < last)
    _pin(start, 0, first < last, PLAN)
    AHEAD: tl.constexpr = RING.in_turn - 1
    for j in gl.static_range(AHEAD):
        tile, there = _tile_at(start, j, PLAN)
        _copy(start, tile, j, there & (first < last))  # no program may end with copies on their way
    dynamics_vectors = _vectors(dynamics.vectors, DYNAMICS)
    cost_vectors = _vectors(cost.vectors, COST)
    if SCORE is not None:
        score_vectors = _vectors(score.vectors, SCORE)
    passed = 0
    for i in range(first, last):
        ring = Weights(tiles, slots, ready, passed, i + 1 < last)
        own = _own(scratch, pid, DYNAMICS, COST, PLAN)
        n = _roll_out(
            dynamics, dynamics_vectors, scale_ptr, at, search, own, block, y, ring, DYNAMICS, PLAN, NX, NU, BOUNDING
        )
        thread_barrier()
        _pin(ring, PLAN[0][1], True, PLAN)
        level, beta = gl.load(level_ptr + i), gl.load(beta_ptr + i)
        if SCORE is not None:
            _keep_condition(score_vectors, score.vectors, level, SCORE)
            gain = gl.load(gain_ptr + level)
            n = _costs_and_scores(
                cost, cost_vectors, score, score_vectors, gain, beta, at, search, own, block, y, ring, n, COST, SCORE, PLAN,
                NX, NU, BOUNDING,
            )  # fmt: skip
        else:
            n = _costs_and_scores(
                cost, cost_vectors, cost, cost_vectors, 0.0, beta, at, search, own, block, y, ring, n, COST, SCORE, PLAN,
                NX, NU, BOUNDING,
            )  # fmt: skip
        thread_barrier()
        _pull_back(dynamics, dynamics_vectors, scale_ptr, at, search, own, block, y, ring, n, DYNAMICS, PLAN, NX, NU)
        thread_barrier()
        _pin(ring, 0, i + 1 < last, PLAN)
        CONTROLS: tl.constexpr = controls(CHUNK, gl.num_warps())
        rows = block.first + (gl.arange(0, PROBLEMS, layout=gl.SliceLayout(1, CONTROLS)) + opaque(zero))
        chunk = gl.arange(0, CHUNK, layout=gl.SliceLayout(0, CONTROLS))[None, :]
        update_rows(
            search, rows, rows < rows_total, chunk, i, gl.load(step_size_ptr + i), i >= settled, moves != 0, OPTIONS, T, NU,
            BOUNDING, CHANGE, HISTORY,
        )  # fmt: skip
        thread_barrier()
        passed += tiles_of_iteration(PLAN[0], T, RING)


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
    """States of all steps; the count of tiles behind them."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].few
    COLUMNS: tl.constexpr = NET.columns
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    problem, step, inside, cols = _rows(block, 0, ROWS, 1, PLAN, COLUMNS, LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    x = gl.load(at.x0 + problem[:, None] * NX + cols[None, :], mask=is_x, other=0.0)
    gl.store(at.x + (problem * (T + 1))[:, None] * NX + cols[None, :], x, mask=is_x)
    n = 0
    for t in range(T):
        problem, step, inside, cols = _rows(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        z = x + _controls(search, problem, step, inside, cols, NX, NU, T, BOUNDING)
        saved, moments = scratch.saved + t * (ROWS * NET.saved), scratch.moments + t * (ROWS * NET.moments)
        net = Net(vectors, saved, moments, block.room, block.zero)
        out, n = _forward(_normalised(z, model, cols, NX + NU), y, ring, n, net, NET, ROWS, PLAN, PLAN[2].pinned, True)
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
        value, n = _forward(_normalised(z, cost, cols, NX + NU), y, ring, n, net, COST, ROWS, PLAN, 0, True)
        value = _first_column(value, ROWS, COST.out_columns)
        problem, step, inside, cols = _rows(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
        value_layout: tl.constexpr = gl.SliceLayout(1, LAYOUT)
        gl.store(search.running + problem * T + step, gl.convert_layout(value, value_layout), mask=inside)
        pull, n = _backward(_one(ROWS, COST.out_columns), y, ring, n, net, COST, ROWS, PLAN, 0)
        problem, step, inside, cols = _rows(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
        pull *= _row(cost.inv_k, cols, NX + NU)
        if SCORE is not None:
            s, n = _forward(_normalised(z, score, cols, NX + NU), y, ring, n, score_net, SCORE, ROWS, PLAN, 0, False)
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
    """Costates, and the gradient in the controls, of all steps from the last."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].few
    PROBLEMS: tl.constexpr = PLAN[2].problems
    COLUMNS: tl.constexpr = NET.columns
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    problem, step, inside, cols = _rows(block, T - 1, ROWS, 1, PLAN, COLUMNS, LAYOUT)
    costate = gl.zeros([ROWS, COLUMNS], gl.float32, layout=LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    gl.store(at.costate + (problem * (T + 1) + T)[:, None] * NX + cols[None, :], costate, mask=is_x)
    for j in range(T):
        t = T - 1 - j
        saved, moments = scratch.saved + t * (ROWS * NET.saved), scratch.moments + t * (ROWS * NET.moments)
        net = Net(vectors, saved, moments, block.room, block.zero)
        problem, step, inside, cols = _rows(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        scaled = _row(scale_ptr, cols, NX) * costate
        pulled, n = _backward(scaled, y, ring, n, net, NET, ROWS, PLAN, PLAN[2].pinned)
        problem, step, inside, cols = _rows(block, t, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        is_x = inside[:, None] & (cols < NX)[None, :]
        place = (t * PROBLEMS + (problem - block.first).to(gl.int32))[:, None] * COLUMNS + cols[None, :]
        grad = gl.load(scratch.pull + place, mask=inside[:, None] & (cols < COLUMNS)[None, :], other=0.0)
        grad += _row(model.inv_k, cols, NX + NU) * pulled + costate
        is_u = inside[:, None] & ((cols >= NX) & (cols < NX + NU))[None, :]
        gl.store(search.grad_u + ((problem * T + t)[:, None] * NU + cols[None, :] - NX), grad, mask=is_u)
        costate = gl.where(is_x, grad, 0.0)
        gl.store(at.costate + (problem * (T + 1) + t)[:, None] * NX + cols[None, :], costate, mask=is_x)


# The ring.


@jit
def _fetch(ring, m, slot, PLAN: tl.constexpr):
    """Begin to copy the m-th tile from this iteration's first on, if there is one, into its slot, which nothing reads."""
    at, there = _tile_at(ring, m, PLAN)
    _copy(ring, at, slot, there)


@jit
def _pin(ring, at, there, PLAN: tl.constexpr):
    """Begin to copy what a sweep through the dynamics keeps, from the tile `at` on; nothing reads what the last one kept."""
    PINNED: tl.constexpr = PLAN[2].pinned
    IN_TURN: tl.constexpr = PLAN[2].in_turn
    for j in gl.static_range(PINNED):
        _copy(ring, at + j, IN_TURN + j, there)


@jit
def _copy(ring, at, slot, there):
    ready = ring.ready.index(slot)
    mbarrier.expect(ready, 2 * numbers_of_tile(), pred=there)
    tma.async_copy_global_to_shared(ring.tiles, [at * 256, 0], ready, ring.slots.index(slot), pred=there)


@jit
def _tile_at(ring, m, PLAN: tl.constexpr):
    """Which tile is the m-th in turn from this iteration's first on, and whether there is one."""
    ENDS: tl.constexpr = PLAN[0]
    T: tl.constexpr = PLAN[1]
    PINNED: tl.constexpr = PLAN[2].pinned
    ALL: tl.constexpr = tiles_of_iteration(ENDS, T, PLAN[2])
    A: tl.constexpr = ENDS[0]
    B: tl.constexpr = ENDS[1]
    FORWARD: tl.constexpr = A - PINNED
    BACKWARD: tl.constexpr = ENDS[2] - B - PINNED
    there = (m < ALL) | ring.more
    m = gl.where(m < ALL, m, m - ALL)
    of_costs, of_adjoint = m - T * FORWARD, m - (ALL - T * BACKWARD)
    at = gl.where(of_costs < 0, PINNED + m % FORWARD, A + of_costs % (B - A))
    return gl.where(of_adjoint < 0, at, B + PINNED + of_adjoint % BACKWARD), there


@jit
def _multiply(
    y, ring, n, net, NET: tl.constexpr, BACKWARD: tl.constexpr, AT: tl.constexpr, ROWS: tl.constexpr, PLAN: tl.constexpr,
    PINNED: tl.constexpr,
):  # fmt: skip
    """The product of y with operation AT, forward with its weights, backward with their transpose; n tiles came before it.

    Of the pass's first tiles some are PINNED, and the others come in turn. A slot is filled again when its tile's product is
    done in all warps, and the next tile's is under way.
    """
    OP: tl.constexpr = NET.operations[AT]
    COLUMNS: tl.constexpr = OP.inputs if BACKWARD else OP.columns
    DEPTH: tl.constexpr = depth_of(NET, BACKWARD, AT)
    TILES: tl.constexpr = tiles_of_operation(NET, BACKWARD, AT)
    FIRST: tl.constexpr = first_tile(NET, BACKWARD, AT)
    SLOTS: tl.constexpr = PLAN[2].in_turn
    LAYOUT: tl.constexpr = products(ROWS, COLUMNS, gl.num_warps())
    operand = _operand(y, net.zero, ROWS, DEPTH * TILES)
    unknown = opaque(net.zero)  # else the compiler holds where the slots are, in registers
    here = ring.passed + n + unknown
    acc = gl.zeros([ROWS, COLUMNS] if ROWS == 64 else [COLUMNS, ROWS], gl.float32, layout=LAYOUT)
    for k in gl.static_range(TILES):
        if FIRST + k < PINNED:
            mbarrier.wait(ring.ready.index(SLOTS + FIRST + k + unknown), 1 if BACKWARD else 0)
            tile = ring.slots.index(SLOTS + FIRST + k + unknown)
        else:
            mbarrier.wait(ring.ready.index(here % SLOTS), here // SLOTS & 1)
            tile = ring.slots.index(here % SLOTS)
        if BACKWARD:
            w = tile._reinterpret(y.dtype, [DEPTH, COLUMNS], shared()).permute((1, 0))
        else:
            w = tile._reinterpret(y.dtype, [COLUMNS, DEPTH], shared())
        a = operand.slice(k * DEPTH, DEPTH, dim=1)
        if ROWS == 64:
            acc = warpgroup_mma(a, w.permute((1, 0)), acc, use_acc=k > 0, is_async=True)
        else:
            acc = warpgroup_mma(w, a.permute((1, 0)), acc, use_acc=k > 0, is_async=True)
        if FIRST + k >= PINNED:
            acc = warpgroup_mma_wait(1, deps=[acc])
            thread_barrier()
            _fetch(ring, n - 1 + SLOTS, (here - 1 + SLOTS) % SLOTS, PLAN)
            n += 1
            here += 1
    acc = warpgroup_mma_wait(0, deps=[acc])
    if ROWS < 64:
        acc = gl.convert_layout(acc.permute((1, 0)), sums(ROWS, COLUMNS, gl.num_warps()), assert_trivial=True)
    return acc, n


@jit
def _hand_on(values, y, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write the operand of the next product, when the one before is done in all warps."""
    thread_barrier()
    _operand(y, zero, ROWS, COLUMNS).store(values.to(y.dtype))
    fence_async_shared()
    thread_barrier()


@jit
def _operand(y, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return y.index(opaque(zero))._reinterpret(y.dtype, [ROWS, COLUMNS], shared())


# Vectors.


@jit
def _vectors(ptr, NET: tl.constexpr):
    """A network's vectors in shared memory, but for what conditions it."""
    LAYOUT: tl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    kept = gl.allocate_shared_memory(gl.float32, [place_of(NET, len(NET.operations), ""), 256], LAYOUT)
    for i in gl.static_range(len(NET.operations)):
        _keep_vector(kept, ptr, NET.operations[i].bias, NET, i, "bias")
        if NET.operations[i].norm_weight >= 0:
            _keep_vector(kept, ptr, NET.operations[i].norm_weight, NET, i, "norm_weight")
            _keep_vector(kept, ptr, NET.operations[i].norm_bias, NET, i, "norm_bias")
    return kept


@jit
def _keep_condition(kept, ptr, level, NET: tl.constexpr):
    """The embedding of a noise level."""
    if NET.embedding >= 0:
        _keep_vector(kept, ptr + NET.embedding + level * NET.condition_columns, 0, NET, 0, "condition")


@jit
def _keep_vector(kept, ptr, OFFSET: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, NAME: tl.constexpr):
    COLUMNS: tl.constexpr = NET.condition_columns if NAME == "condition" else NET.operations[AT].width
    LAYOUT: tl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    cols = gl.arange(0, 256, layout=LAYOUT)
    kept.index(place_of(NET, AT, NAME)).store(gl.load(ptr + OFFSET + cols, mask=cols < COLUMNS, other=0.0))


@jit
def _vector(net, NET: tl.constexpr, AT: tl.constexpr, NAME: tl.constexpr, LAYOUT: tl.constexpr):
    """An operation's vector, a row `[1, COLUMNS]`; every conditioned operation has the same condition."""
    COLUMNS: tl.constexpr = NET.operations[AT].columns
    PLACE: tl.constexpr = place_of(NET, 0 if NAME == "condition" else AT, NAME)
    return net.vectors.index(PLACE).slice(0, COLUMNS).load(gl.SliceLayout(0, LAYOUT))[None, :]


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


@jit
def _forward(
    z, y, ring, n, net, NET: tl.constexpr, ROWS: tl.constexpr, PLAN: tl.constexpr, PINNED: tl.constexpr, SAVE: tl.constexpr
):
    """Output of a network `[ROWS, out_columns]`, and the count of tiles behind it."""
    COLUMNS: tl.constexpr = NET.columns
    _hand_on(z, y, net.zero, ROWS, COLUMNS)
    out = z
    for i in gl.static_range(len(NET.operations)):
        out, n = _multiply(y, ring, n, net, NET, False, i, ROWS, PLAN, PINNED)
        out = _finish_forward(out, net, i, NET, ROWS, SAVE)
        if i < len(NET.operations) - 1:
            _hand_on(out, y, net.zero, ROWS, NET.operations[i].columns)
    return out, n


@jit
def _backward(
    grad, y, ring, n, net, NET: tl.constexpr, ROWS: tl.constexpr, PLAN: tl.constexpr, PINNED: tl.constexpr
):
    """Input-gradient `[ROWS, columns]` for the cotangent of an output, and the count of tiles behind it."""
    LAST: tl.constexpr = len(NET.operations) - 1
    saved, rstd = _saved(net, LAST, NET, ROWS)
    for j in gl.static_range(len(NET.operations)):
        grad = _finish_backward(grad, saved, rstd, net, LAST - j, NET, ROWS)
        _hand_on(grad, y, net.zero, ROWS, NET.operations[LAST - j].columns)
        if j < LAST:
            saved, rstd = _saved(net, LAST - j - 1, NET, ROWS)
        grad, n = _multiply(y, ring, n, net, NET, True, LAST - j, ROWS, PLAN, PINNED)
    return grad, n


@jit
def _finish_forward(h, net, AT: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr, SAVE: tl.constexpr):
    """From a product to the operand of the next."""
    OP: tl.constexpr = NET.operations[AT]
    COLUMNS: tl.constexpr = OP.columns
    WIDTH: tl.constexpr = OP.width
    KIND: tl.constexpr = OP.activation
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    h += _vector(net, NET, AT, "bias", LAYOUT)
    if OP.condition == "multiply":
        h *= _vector(net, NET, AT, "condition", LAYOUT)
    elif OP.condition == "add":
        h += _vector(net, NET, AT, "condition", LAYOUT)
    if OP.norm_weight >= 0:
        # In one pass: what cancels is less than the rounding of 16-bit products, unless a mean is a hundred deviations.
        total, squares = _row_sums(h, h * h, net)
        mean = total / WIDTH
        variance = tl.maximum(squares / WIDTH - mean * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
        rstd = tl.rsqrt(variance + layer_norm_eps())
        hat = (h - mean[:, None]) * rstd[:, None]
        if COLUMNS > WIDTH:
            cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
            hat = gl.where((cols < WIDTH)[None, :], hat, 0.0)
        if SAVE:
            rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
            gl.store(net.moments + OP.moment * ROWS + rows, rstd)
            gl.store(_kept(net, AT, NET, ROWS), hat.to(net.saved.dtype.element_ty))
        h = hat * _vector(net, NET, AT, "norm_weight", LAYOUT) + _vector(net, NET, AT, "norm_bias", LAYOUT)
    elif SAVE and OP.saved >= 0:
        gl.store(_kept(net, AT, NET, ROWS), h.to(net.saved.dtype.element_ty))
    return _activate(h, KIND)


@jit
def _finish_backward(g, saved, rstd, net, AT: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    """From the gradient in an operation's output to that in its product; `saved` and `rstd` as `_saved` has read them."""
    OP: tl.constexpr = NET.operations[AT]
    COLUMNS: tl.constexpr = OP.columns
    WIDTH: tl.constexpr = OP.width
    KIND: tl.constexpr = OP.activation
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    if OP.norm_weight >= 0:
        hat, w = saved.to(gl.float32), _vector(net, NET, AT, "norm_weight", LAYOUT)
        g = _activate_vjp(g, hat * w + _vector(net, NET, AT, "norm_bias", LAYOUT), KIND) * w
        total, along = _row_sums(g, g * hat, net)
        g = rstd[:, None] * (g - (total / WIDTH)[:, None] - hat * (along / WIDTH)[:, None])
        if COLUMNS > WIDTH:
            cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
            g = gl.where((cols < WIDTH)[None, :], g, 0.0)
    elif OP.saved >= 0:
        g = _activate_vjp(g, saved.to(gl.float32), KIND)
    if OP.condition == "multiply":
        g *= _vector(net, NET, AT, "condition", LAYOUT)
    return g


@jit
def _saved(net, AT: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    """What operation AT kept, as it lies in memory, and the moments: read well before they are wanted."""
    OP: tl.constexpr = NET.operations[AT]
    LAYOUT: tl.constexpr = sums(ROWS, OP.columns, gl.num_warps())
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    if OP.norm_weight >= 0:
        return gl.load(_kept(net, AT, NET, ROWS)), gl.load(net.moments + OP.moment * ROWS + rows)
    elif OP.saved >= 0:
        return gl.load(_kept(net, AT, NET, ROWS)), rows
    else:
        return rows, rows


@jit
def _kept(net, AT: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    """Where operation AT keeps what the gradient needs; the thread that writes a number reads it."""
    OP: tl.constexpr = NET.operations[AT]
    COLUMNS: tl.constexpr = OP.columns
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    if ROWS == 64:
        return net.saved + OP.saved * ROWS + (rows + opaque(net.zero))[:, None] * COLUMNS + cols[None, :]
    else:
        return net.saved + OP.saved * ROWS + rows[:, None] + (cols + opaque(net.zero))[None, :] * ROWS


@jit
def _row_sums(a, b, net):
    """Of two matrices; of few rows in each warp first and then once through shared memory, where a reduction goes twice."""
    ROWS: tl.constexpr = a.shape[0]
    COLUMNS: tl.constexpr = a.shape[1]
    WARPS: tl.constexpr = gl.num_warps()
    LAYOUT: tl.constexpr = gl.SliceLayout(1, sums(ROWS, COLUMNS, WARPS))
    if ROWS > 16 or COLUMNS < 16 * WARPS:
        return gl.reduce((a, b), 1, _add_pairs)
    else:
        a = a.reshape([ROWS, COLUMNS // (16 * WARPS), WARPS, 16])
        b = b.reshape([ROWS, COLUMNS // (16 * WARPS), WARPS, 16])
        a, b = gl.reduce((a, b), 1, _add_pairs)
        a, b = gl.reduce((a, b), 2, _add_pairs)
        PARTS: tl.constexpr = parts(ROWS, WARPS)
        first, second = net.room[0].slice(0, ROWS), net.room[1].slice(0, ROWS)
        first.store(a)
        second.store(b)
        a, b = gl.sum(first.load(PARTS), 1), gl.sum(second.load(PARTS), 1)
        return gl.convert_layout(a, LAYOUT), gl.convert_layout(b, LAYOUT)


@jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@jit
def _exp(h):
    return exp2(h * 1.4426950408889634)  # log2 e


@jit
def _activate(h, KIND: tl.constexpr):
    if KIND == "elu":
        return gl.where(h > 0, h, _exp(h) - 1)
    else:
        return activate(h, KIND, False)


@jit
def _activate_vjp(g, h, KIND: tl.constexpr):
    if KIND == "elu":
        return g * gl.where(h > 0, 1.0, _exp(h))
    else:
        return activate_vjp(g, h, KIND)


assert INTERPRETED or hasattr(ring_kernel, "is_gluon")
