"""Ring regime: one program evaluates a block of problems, and weights pass through a ring of shared memory.

    memory     W W W W W W …            tiles of weights, in the order in which they are multiplied (`ring_tiles`)
                 ↓ copies by the tensor memory accelerator, RING.slots − 1 of them ahead of the product, to the plan's last
    ring       │ W │ W │ W │ W │
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
(`widened`). A step of the planner is this kernel and then `sweeps.update_kernel`. Written in Gluon, for sm_90; `gluon.py`
says how it is interpreted.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from __future__ import annotations

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
from .ring_tiles import barriers, depth_of, ends, numbers_of_tile, place_of, products, shared, sums, tiles_of_operation
from .update import control_of


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

    `zero` is 0, of which the compiler does not know: see `gluon.opaque`.
    """

    vectors: Any
    saved: Any
    moments: Any
    zero: Any


class Weights(NamedTuple):
    """All tiles in memory, the slots that they pass through, and the barriers that say that they have arrived."""

    tiles: Any
    slots: Any
    ready: Any


@jit(do_not_specialize=["rows_total", "i", "zero"])
def ring_kernel(
    tiles, dynamics, score, cost, scale_ptr, gain_ptr, at, search, beta_ptr, level_ptr, scratch, rows_total, i, zero,
    DYNAMICS: gl.constexpr, SCORE: gl.constexpr, COST: gl.constexpr, RING: gl.constexpr, T: gl.constexpr,
    NX: gl.constexpr, NU: gl.constexpr, BOUNDING: gl.constexpr,
):  # fmt: skip
    """States, costs, scores and gradients of a block of problems, with the level and β of iteration i."""
    COLUMNS: gl.constexpr = DYNAMICS.columns
    FEW: gl.constexpr = RING.few
    MANY: gl.constexpr = RING.many
    STEPS: gl.constexpr = RING.steps
    PROBLEMS: gl.constexpr = RING.problems
    PLAN: gl.constexpr = (ends(DYNAMICS, SCORE, COST), T, RING)
    FEW_LAYOUT: gl.constexpr = sums(FEW, COLUMNS, gl.num_warps())
    MANY_LAYOUT: gl.constexpr = sums(MANY, COLUMNS, gl.num_warps())
    pid = gl.program_id(0).to(gl.int64)
    first = pid * PROBLEMS
    ring = _begin(tiles, RING)
    for j in gl.static_range(RING.slots - 1):
        _fetch(ring, j, j, PLAN)
    level = gl.load(level_ptr + i)
    dynamics_vectors = _vectors(dynamics.vectors, dynamics.vectors, DYNAMICS)
    cost_vectors = _vectors(cost.vectors, cost.vectors, COST)
    if SCORE is not None:
        row = score.vectors + SCORE.embedding + level * SCORE.condition_columns
        score_vectors = _vectors(score.vectors, row, SCORE)
    y = gl.allocate_shared_memory(tiles.dtype, [1, MANY if MANY > FEW else FEW, 256], shared())

    # Rollout.
    saved = scratch.saved + pid * (T * FEW * DYNAMICS.saved)
    moments = scratch.moments + pid * (T * FEW * DYNAMICS.moments)
    problem, step, inside, cols = _rows(first, 0, rows_total, zero, FEW, 1, RING, T, COLUMNS, FEW_LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    x = gl.load(at.x0 + problem[:, None] * NX + cols[None, :], mask=is_x, other=0.0)
    gl.store(at.x + (problem * (T + 1))[:, None] * NX + cols[None, :], x, mask=is_x)
    n = 0
    for t in range(T):
        problem, step, inside, cols = _rows(first, t, rows_total, zero, FEW, 1, RING, T, COLUMNS, FEW_LAYOUT)
        z = x + _controls(search, problem, step, inside, cols, NX, NU, T, BOUNDING)
        net = Net(dynamics_vectors, saved + t * (FEW * DYNAMICS.saved), moments + t * (FEW * DYNAMICS.moments), zero)
        out, n = _forward(_normalised(z, dynamics, cols, NX + NU), y, ring, n, net, DYNAMICS, FEW, PLAN, True)
        problem, step, inside, cols = _rows(first, t, rows_total, zero, FEW, 1, RING, T, COLUMNS, FEW_LAYOUT)
        is_x = inside[:, None] & (cols < NX)[None, :]
        x = gl.where(is_x, x + _row(scale_ptr, cols, NX) * out, 0.0)
        gl.store(at.x + (problem * (T + 1) + t + 1)[:, None] * NX + cols[None, :], x, mask=is_x)
    thread_barrier()

    # Costs and scores.
    cost_saved = scratch.cost_saved + pid * (MANY * COST.saved)
    cost_moments = scratch.cost_moments + pid * (MANY * COST.moments)
    pull_ptr = scratch.pull + pid * (T * PROBLEMS * COLUMNS)
    cost_net = Net(cost_vectors, cost_saved, cost_moments, zero)
    for t in range(0, T, STEPS):
        many, at_step, there, many_cols = _rows(
            first, t, rows_total, zero, MANY, STEPS, RING, T, COLUMNS, MANY_LAYOUT
        )
        x_mask = there[:, None] & (many_cols < NX)[None, :]
        place = (many * (T + 1) + at_step)[:, None] * NX + many_cols[None, :]
        z = gl.load(at.x + place, mask=x_mask, other=0.0)
        z += _controls(search, many, at_step, there, many_cols, NX, NU, T, BOUNDING)
        value, n = _forward(_normalised(z, cost, many_cols, NX + NU), y, ring, n, cost_net, COST, MANY, PLAN, True)
        value = _first_column(value, MANY, COST.out_columns)
        many, at_step, there, many_cols = _rows(
            first, t, rows_total, zero, MANY, STEPS, RING, T, COLUMNS, MANY_LAYOUT
        )
        value_layout: gl.constexpr = gl.SliceLayout(1, MANY_LAYOUT)
        gl.store(search.running + many * T + at_step, gl.convert_layout(value, value_layout), mask=there)
        pull, n = _backward(_one(MANY, COST.out_columns), y, ring, n, cost_net, COST, MANY, PLAN)
        many, at_step, there, many_cols = _rows(
            first, t, rows_total, zero, MANY, STEPS, RING, T, COLUMNS, MANY_LAYOUT
        )
        pull *= _row(cost.inv_k, many_cols, NX + NU)
        if SCORE is not None:
            score_net = Net(score_vectors, cost_saved, cost_moments, zero)
            s, n = _forward(_normalised(z, score, many_cols, NX + NU), y, ring, n, score_net, SCORE, MANY, PLAN, False)
            many, at_step, there, many_cols = _rows(
                first, t, rows_total, zero, MANY, STEPS, RING, T, COLUMNS, MANY_LAYOUT
            )
            s *= _row(score.inv_k, many_cols, NX + NU) * gl.load(gain_ptr + level)
            is_z = there[:, None] & (many_cols < NX + NU)[None, :]
            gl.store(at.score + (many * T + at_step)[:, None] * (NX + NU) + many_cols[None, :], s, mask=is_z)
            pull -= gl.load(beta_ptr + i) * s
        place = (at_step * PROBLEMS + (many - first).to(gl.int32))[:, None] * COLUMNS + many_cols[None, :]
        gl.store(pull_ptr + place, pull, mask=(at_step < T)[:, None])
    thread_barrier()

    # Adjoint.
    problem, step, inside, cols = _rows(first, T - 1, rows_total, zero, FEW, 1, RING, T, COLUMNS, FEW_LAYOUT)
    costate = gl.zeros([FEW, COLUMNS], gl.float32, layout=FEW_LAYOUT)
    is_x = inside[:, None] & (cols < NX)[None, :]
    gl.store(at.costate + (problem * (T + 1) + T)[:, None] * NX + cols[None, :], costate, mask=is_x)
    for j in range(T):
        t = T - 1 - j
        net = Net(dynamics_vectors, saved + t * (FEW * DYNAMICS.saved), moments + t * (FEW * DYNAMICS.moments), zero)
        problem, step, inside, cols = _rows(first, t, rows_total, zero, FEW, 1, RING, T, COLUMNS, FEW_LAYOUT)
        scaled = _row(scale_ptr, cols, NX) * costate
        pulled, n = _backward(scaled, y, ring, n, net, DYNAMICS, FEW, PLAN)
        problem, step, inside, cols = _rows(first, t, rows_total, zero, FEW, 1, RING, T, COLUMNS, FEW_LAYOUT)
        is_x = inside[:, None] & (cols < NX)[None, :]
        place = (t * PROBLEMS + (problem - first).to(gl.int32))[:, None] * COLUMNS + cols[None, :]
        grad = gl.load(pull_ptr + place, mask=inside[:, None] & (cols < COLUMNS)[None, :], other=0.0)
        grad += _row(dynamics.inv_k, cols, NX + NU) * pulled + costate
        is_u = inside[:, None] & ((cols >= NX) & (cols < NX + NU))[None, :]
        gl.store(search.grad_u + ((problem * T + t)[:, None] * NU + cols[None, :] - NX), grad, mask=is_u)
        costate = gl.where(is_x, grad, 0.0)
        gl.store(at.costate + (problem * (T + 1) + t)[:, None] * NX + cols[None, :], costate, mask=is_x)


# The ring.


@jit
def _begin(tiles, RING: gl.constexpr):
    """Slots in shared memory, each with a barrier that one copy completes."""
    SLOTS: gl.constexpr = RING.slots
    slots = gl.allocate_shared_memory(tiles.dtype, [SLOTS, 256, 64], shared())
    ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], barriers())
    for j in gl.static_range(SLOTS):
        mbarrier.init(ready.index(j), count=1)
    fence_async_shared()
    thread_barrier()
    return Weights(tiles, slots, ready)


@jit
def _fetch(ring, m, slot, PLAN: gl.constexpr):
    """Begin to copy the m-th tile of the evaluation, if there are so many, into its slot, which nothing reads any more."""
    at, there = _tile_at(m, PLAN)
    ready = ring.ready.index(slot)
    mbarrier.expect(ready, 2 * numbers_of_tile(), pred=there)
    tma.async_copy_global_to_shared(ring.tiles, [at * 256, 0], ready, ring.slots.index(slot), pred=there)


@jit
def _tile_at(m, PLAN: gl.constexpr):
    """Which tile is the m-th of the evaluation, and whether there is one."""
    ENDS: gl.constexpr = PLAN[0]
    T: gl.constexpr = PLAN[1]
    A: gl.constexpr = ENDS[0]
    B: gl.constexpr = ENDS[1] - ENDS[0]
    C: gl.constexpr = ENDS[2] - ENDS[1]
    COSTS_AT: gl.constexpr = T * A
    ADJOINT_AT: gl.constexpr = COSTS_AT + (T + PLAN[2].steps - 1) // PLAN[2].steps * B
    at = m % A
    at = gl.where(m >= COSTS_AT, A + (m - COSTS_AT) % B, at)
    at = gl.where(m >= ADJOINT_AT, A + B + (m - ADJOINT_AT) % C, at)
    return at, m < ADJOINT_AT + T * C


@jit
def _multiply(
    y, ring, n, net, NET: gl.constexpr, BACKWARD: gl.constexpr, AT: gl.constexpr, ROWS: gl.constexpr, PLAN: gl.constexpr
):
    """The product of y with operation AT, forward with its weights, backward with their transpose; n tiles came before it.

    A slot is filled again when its tile's product is done in all warps, and the next tile's is under way.
    """
    OP: gl.constexpr = NET.operations[AT]
    COLUMNS: gl.constexpr = OP.inputs if BACKWARD else OP.columns
    DEPTH: gl.constexpr = depth_of(NET, BACKWARD, AT)
    TILES: gl.constexpr = tiles_of_operation(NET, BACKWARD, AT)
    SLOTS: gl.constexpr = PLAN[2].slots
    LAYOUT: gl.constexpr = products(ROWS, COLUMNS, gl.num_warps())
    operand = _operand(y, net.zero, ROWS, DEPTH * TILES)
    here = n + opaque(net.zero)  # else the compiler holds where the slots are, in registers
    acc = gl.zeros([ROWS, COLUMNS] if ROWS == 64 else [COLUMNS, ROWS], gl.float32, layout=LAYOUT)
    for k in gl.static_range(TILES):
        mbarrier.wait(ring.ready.index((here + k) % SLOTS), (here + k) // SLOTS & 1)
        tile = ring.slots.index((here + k) % SLOTS)
        if BACKWARD:
            w = tile._reinterpret(y.dtype, [DEPTH, COLUMNS], shared()).permute((1, 0))
        else:
            w = tile._reinterpret(y.dtype, [COLUMNS, DEPTH], shared())
        a = operand.slice(k * DEPTH, DEPTH, dim=1)
        if ROWS == 64:
            acc = warpgroup_mma(a, w.permute((1, 0)), acc, use_acc=k > 0, is_async=True)
        else:
            acc = warpgroup_mma(w, a.permute((1, 0)), acc, use_acc=k > 0, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        thread_barrier()
        _fetch(ring, n + k - 1 + SLOTS, (here + k - 1 + SLOTS) % SLOTS, PLAN)
    acc = warpgroup_mma_wait(0, deps=[acc])
    if ROWS < 64:
        acc = gl.convert_layout(acc.permute((1, 0)), sums(ROWS, COLUMNS, gl.num_warps()), assert_trivial=True)
    return acc, n + TILES


@jit
def _hand_on(values, y, zero, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Write the operand of the next product, when the one before is done in all warps."""
    thread_barrier()
    _operand(y, zero, ROWS, COLUMNS).store(values.to(y.dtype))
    fence_async_shared()
    thread_barrier()


@jit
def _operand(y, zero, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    return y.index(opaque(zero))._reinterpret(y.dtype, [ROWS, COLUMNS], shared())


# Vectors.


@jit
def _vectors(ptr, condition_ptr, NET: gl.constexpr):
    """A network's vectors in shared memory, with the row that conditions it."""
    LAYOUT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    kept = gl.allocate_shared_memory(gl.float32, [place_of(NET, len(NET.operations), "bias"), 256], LAYOUT)
    for i in gl.static_range(len(NET.operations)):
        _keep_vector(kept, ptr, NET.operations[i].bias, NET, i, "bias")
        if NET.operations[i].norm_weight >= 0:
            _keep_vector(kept, ptr, NET.operations[i].norm_weight, NET, i, "norm_weight")
            _keep_vector(kept, ptr, NET.operations[i].norm_bias, NET, i, "norm_bias")
        if i == 0 and NET.embedding >= 0:
            _keep_vector(kept, condition_ptr, 0, NET, 0, "condition")
    return kept


@jit
def _keep_vector(kept, ptr, OFFSET: gl.constexpr, NET: gl.constexpr, AT: gl.constexpr, NAME: gl.constexpr):
    COLUMNS: gl.constexpr = NET.condition_columns if NAME == "condition" else NET.operations[AT].width
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    cols = gl.arange(0, 256, layout=LAYOUT)
    kept.index(place_of(NET, AT, NAME)).store(gl.load(ptr + OFFSET + cols, mask=cols < COLUMNS, other=0.0))


@jit
def _vector(net, NET: gl.constexpr, AT: gl.constexpr, NAME: gl.constexpr, LAYOUT: gl.constexpr):
    """An operation's vector, a row `[1, COLUMNS]`; every conditioned operation has the same condition."""
    COLUMNS: gl.constexpr = NET.operations[AT].columns
    PLACE: gl.constexpr = place_of(NET, 0 if NAME == "condition" else AT, NAME)
    return net.vectors.index(PLACE).slice(0, COLUMNS).load(gl.SliceLayout(0, LAYOUT))[None, :]


@jit
def _rows(
    first, t, rows_total, zero, ROWS: gl.constexpr, STEPS: gl.constexpr, RING: gl.constexpr, T: gl.constexpr,
    COLUMNS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Of each row: its problem, its step, from t on, and whether there is such a row; and the columns.

    Made anew wherever they are wanted: the layers between need the registers that they would be kept in.
    """
    PROBLEMS: gl.constexpr = RING.problems
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT)) + opaque(zero)
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT)) + opaque(zero)
    problem, step = first + rows % PROBLEMS, t + rows // PROBLEMS
    return problem, step, (problem < rows_total) & (rows < PROBLEMS * STEPS) & (step < T), cols


@jit
def _controls(
    search, problem, step, inside, cols, NX: gl.constexpr, NU: gl.constexpr, T: gl.constexpr, BOUNDING: gl.constexpr
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
def _normalised(z, model, cols, NZ: gl.constexpr):
    """z̄ = (z − b)·inv_k."""
    return (z - _row(model.b, cols, NZ)) * _row(model.inv_k, cols, NZ)


@jit
def _row(ptr, cols, COLUMNS: gl.constexpr):
    """Numbers of the first columns, a row, and zeros in those behind them."""
    return gl.load(ptr + cols, mask=cols < COLUMNS, other=0.0)[None, :]


@jit
def _first_column(out, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, sums(ROWS, COLUMNS, gl.num_warps())))
    return gl.sum(gl.where((cols == 0)[None, :], out, 0.0), 1)


@jit
def _one(ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """The cotangent of a cost: one in the first column."""
    LAYOUT: gl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    return gl.where((cols == 0)[None, :], 1.0, gl.zeros([ROWS, COLUMNS], gl.float32, layout=LAYOUT))


@jit
def _forward(
    z, y, ring, n, net, NET: gl.constexpr, ROWS: gl.constexpr, PLAN: gl.constexpr, SAVE: gl.constexpr
):
    """Output of a network `[ROWS, out_columns]`, and the count of tiles behind it."""
    COLUMNS: gl.constexpr = NET.columns
    _hand_on(z, y, net.zero, ROWS, COLUMNS)
    out = z
    for i in gl.static_range(len(NET.operations)):
        out, n = _multiply(y, ring, n, net, NET, False, i, ROWS, PLAN)
        out = _finish_forward(out, net, i, NET, ROWS, SAVE)
        if i < len(NET.operations) - 1:
            _hand_on(out, y, net.zero, ROWS, NET.operations[i].columns)
    return out, n


@jit
def _backward(grad, y, ring, n, net, NET: gl.constexpr, ROWS: gl.constexpr, PLAN: gl.constexpr):
    """Input-gradient `[ROWS, columns]` for the cotangent of an output, and the count of tiles behind it."""
    LAST: gl.constexpr = len(NET.operations) - 1
    saved, rstd = _saved(net, LAST, NET, ROWS)
    for j in gl.static_range(len(NET.operations)):
        grad = _finish_backward(grad, saved, rstd, net, LAST - j, NET, ROWS)
        _hand_on(grad, y, net.zero, ROWS, NET.operations[LAST - j].columns)
        if j < LAST:
            saved, rstd = _saved(net, LAST - j - 1, NET, ROWS)
        grad, n = _multiply(y, ring, n, net, NET, True, LAST - j, ROWS, PLAN)
    return grad, n


@jit
def _finish_forward(h, net, AT: gl.constexpr, NET: gl.constexpr, ROWS: gl.constexpr, SAVE: gl.constexpr):
    """From a product to the operand of the next."""
    OP: gl.constexpr = NET.operations[AT]
    COLUMNS: gl.constexpr = OP.columns
    WIDTH: gl.constexpr = OP.width
    KIND: gl.constexpr = OP.activation
    LAYOUT: gl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    h += _vector(net, NET, AT, "bias", LAYOUT)
    if OP.condition == "multiply":
        h *= _vector(net, NET, AT, "condition", LAYOUT)
    elif OP.condition == "add":
        h += _vector(net, NET, AT, "condition", LAYOUT)
    if OP.norm_weight >= 0:
        # In one pass: what cancels is less than the rounding of 16-bit products, unless a mean is a hundred deviations.
        total, squares = gl.reduce((h, h * h), 1, _add_pairs)
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
def _finish_backward(g, saved, rstd, net, AT: gl.constexpr, NET: gl.constexpr, ROWS: gl.constexpr):
    """From the gradient in an operation's output to that in its product; `saved` and `rstd` as `_saved` has read them."""
    OP: gl.constexpr = NET.operations[AT]
    COLUMNS: gl.constexpr = OP.columns
    WIDTH: gl.constexpr = OP.width
    KIND: gl.constexpr = OP.activation
    LAYOUT: gl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    if OP.norm_weight >= 0:
        hat, w = saved.to(gl.float32), _vector(net, NET, AT, "norm_weight", LAYOUT)
        g = _activate_vjp(g, hat * w + _vector(net, NET, AT, "norm_bias", LAYOUT), KIND) * w
        total, along = gl.reduce((g, g * hat), 1, _add_pairs)
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
def _saved(net, AT: gl.constexpr, NET: gl.constexpr, ROWS: gl.constexpr):
    """What operation AT kept, as it lies in memory, and the moments: read well before they are wanted."""
    OP: gl.constexpr = NET.operations[AT]
    LAYOUT: gl.constexpr = sums(ROWS, OP.columns, gl.num_warps())
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    if OP.norm_weight >= 0:
        return gl.load(_kept(net, AT, NET, ROWS)), gl.load(net.moments + OP.moment * ROWS + rows)
    elif OP.saved >= 0:
        return gl.load(_kept(net, AT, NET, ROWS)), rows
    else:
        return rows, rows


@jit
def _kept(net, AT: gl.constexpr, NET: gl.constexpr, ROWS: gl.constexpr):
    """Where operation AT keeps what the gradient needs; the thread that writes a number reads it."""
    OP: gl.constexpr = NET.operations[AT]
    COLUMNS: gl.constexpr = OP.columns
    LAYOUT: gl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    if ROWS == 64:
        return net.saved + OP.saved * ROWS + (rows + opaque(net.zero))[:, None] * COLUMNS + cols[None, :]
    else:
        return net.saved + OP.saved * ROWS + rows[:, None] + (cols + opaque(net.zero))[None, :] * ROWS


@jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@jit
def _exp(h):
    return exp2(h * 1.4426950408889634)  # log2 e


@jit
def _activate(h, KIND: gl.constexpr):
    if KIND == "elu":
        return gl.where(h > 0, h, _exp(h) - 1)
    else:
        return activate(h, KIND, False)


@jit
def _activate_vjp(g, h, KIND: gl.constexpr):
    if KIND == "elu":
        return g * gl.where(h > 0, 1.0, _exp(h))
    else:
        return activate_vjp(g, h, KIND)


assert INTERPRETED or hasattr(ring_kernel, "is_gluon")
