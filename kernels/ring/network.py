"""A network in the ring regime: its output, and its input-gradient, for the rows of a program.

What a thread computes of a product it also norms, activates and keeps for the gradient; `weights` makes the product.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton.language as tl

from ..activations import activate, activate_vjp
from ..gluon import exp2, gl, jit, opaque
from ..layers import layer_norm_eps
from .tiles import parts, place_of, sums
from .weights import hand_on, multiply


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


@jit
def vectors_of(ptr, NET: tl.constexpr):
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
def keep_condition(kept, ptr, level, NET: tl.constexpr):
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
def forward(
    z, y, ring, n, net, NET: tl.constexpr, ROWS: tl.constexpr, PLAN: tl.constexpr, PINNED: tl.constexpr, SAVE: tl.constexpr
):
    """Output of a network `[ROWS, out_columns]`, and the count of tiles behind it."""
    COLUMNS: tl.constexpr = NET.columns
    hand_on(z, y, net.zero, ROWS, COLUMNS)
    out = z
    for i in gl.static_range(len(NET.operations)):
        out, n = multiply(y, ring, n, net, NET, False, i, ROWS, PLAN, PINNED)
        out = _finish_forward(out, net, i, NET, ROWS, SAVE)
        if i < len(NET.operations) - 1:
            hand_on(out, y, net.zero, ROWS, NET.operations[i].columns)
    return out, n


@jit
def backward(
    grad, y, ring, n, net, NET: tl.constexpr, ROWS: tl.constexpr, PLAN: tl.constexpr, PINNED: tl.constexpr
):
    """Input-gradient `[ROWS, columns]` for the cotangent of an output, and the count of tiles behind it."""
    LAST: tl.constexpr = len(NET.operations) - 1
    saved, rstd = _saved(net, LAST, NET, ROWS)
    for j in gl.static_range(len(NET.operations)):
        grad = _finish_backward(grad, saved, rstd, net, LAST - j, NET, ROWS)
        hand_on(grad, y, net.zero, ROWS, NET.operations[LAST - j].columns)
        if j < LAST:
            saved, rstd = _saved(net, LAST - j - 1, NET, ROWS)
        grad, n = multiply(y, ring, n, net, NET, True, LAST - j, ROWS, PLAN, PINNED)
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
