"""Some rows and some columns of one layer of a network, as device functions: what an item of the grid regime computes.

A layer leaves its product as it is, `h = c ⊙ (W y + b)`, in scratch that all programs share. Whoever reads it norms and
activates it on the way:

    y [BLOCK_B, K] = act(norm(h))  ×  W [BLOCK_N, K]  →  h of the next layer [BLOCK_B, BLOCK_N], and its moments

A norm wants the mean and the variance of a whole row. Each item leaves those of its own columns, and who reads the row
merges them (Chan, Golub and LeVeque 1983), so that a layer costs one barrier and its row is read once. Backward likewise:
an item leaves ĝ = w ⊙ act'(·) g of its columns with the sums Σĝ and Σĝ·ĥ, and who reads them subtracts the means.

What other programs wrote is read past the L1 (".cg"); what `update` reads plainly, the acquire of the barrier made new.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..activations import activate, activate_vjp
from ..layers import columns_of, layer_norm_eps, nearest_tf32


@triton.constexpr_function
def width_of(columns, tile):
    """Columns of an item of a layer of so many."""
    return tile.columns(columns)


@triton.constexpr_function
def chunks_of(columns, tile):
    """Items that a layer's columns make."""
    return tile.chunks(columns)


@triton.constexpr_function
def depth_of(inputs, columns, tile):
    """Depth of a step of a product."""
    return tile.depth(inputs, columns)


@triton.constexpr_function
def parts_of(depth, tile):
    """Parts of a step that are summed side by side."""
    return tile.parts(depth)


class Net(NamedTuple):
    """A network's packed weights, the row that conditions it, and its scratch, `rows` rows of every column of its `Slab`."""

    weights: Any
    vectors: Any
    condition: Any
    scratch: Any
    rows: Any
    zero: Any


@triton.jit
def forward_first(z, cols, net, rows, inside, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """The columns `cols` of layer 0 for normalised inputs `z [BLOCK_B, columns]`, whose padding is zero."""
    OP: tl.constexpr = NET.operations[0]
    K: tl.constexpr = OP.inputs
    w = tl.load(net.weights + OP.weight + columns_of(net, K)[:, None] + cols[None, :] * OP.inputs)
    _leave(_whole_product(z, w, TILE), cols, net, rows, inside, 0, NET, AT, TILE)


@triton.jit
def forward(
    cols, net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr
):
    """The columns `cols` of layer i ≥ 1."""
    _leave(_forward_product(cols, net, rows, inside, i, NET, AT, TILE), cols, net, rows, inside, i, NET, AT, TILE)


@triton.jit
def last_layer(net, rows, inside, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """All columns of the last layer before its activation, `[BLOCK_B, out_columns]`."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OUT: tl.constexpr = NET.out_columns
    cols = columns_of(net, OUT)
    h = _forward_product(cols, net, rows, inside, LAST, NET, AT, TILE)
    return _conditioned(h, cols, net, LAST, NET)


@triton.jit
def output(net, rows, inside, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """The network's output `[BLOCK_B, out_columns]`."""
    KIND: tl.constexpr = NET.operations[len(NET.operations) - 1].activation
    h = last_layer(net, rows, inside, NET, AT, TILE)
    return activate(h, KIND, net.weights.dtype.element_ty == tl.float32)


@triton.jit
def backward_last(
    grad, cols, net, rows, inside, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr
):
    """From a cotangent of the output, `grad [BLOCK_B, out_columns]`, to the columns `cols` of the layer before the last."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST]
    KIND: tl.constexpr = OP.activation
    OUT: tl.constexpr = OP.columns
    k = columns_of(net, OUT)
    if OP.activation != "identity":
        grad = activate_vjp(grad, last_layer(net, rows, inside, NET, AT, TILE), KIND)
    if OP.condition == "multiply":
        grad = grad * tl.load(net.condition + k)[None, :]
    w = tl.load(net.weights + OP.weight + k[:, None] * OP.inputs + cols[None, :])
    _leave_gradient(_whole_product(grad, w, TILE), cols, net, rows, inside, LAST - 1, NET, AT, TILE)


@triton.jit
def backward(
    cols, net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr
):
    """From the gradient in layer i to the columns `cols` of that in layer i − 1."""
    g = _backward_product(cols, net, rows, inside, i, NET, AT, TILE)
    _leave_gradient(g, cols, net, rows, inside, i - 1, NET, AT, TILE)


@triton.jit
def input_gradient(net, rows, inside, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """The gradient `[BLOCK_B, columns]` in the normalised input."""
    COLUMNS: tl.constexpr = NET.columns
    return _backward_product(columns_of(net, COLUMNS), net, rows, inside, 0, NET, AT, TILE)


@triton.jit
def _forward_product(
    cols, net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr
):
    """`act(norm(h_{i−1})) Wᵢᵀ` in the columns `cols`."""
    OP: tl.constexpr = NET.operations[i]
    BEFORE: tl.constexpr = NET.operations[i - 1]
    KIND: tl.constexpr = BEFORE.activation
    N: tl.constexpr = cols.shape[0]
    DEPTH: tl.constexpr = depth_of(OP.inputs, N, TILE)
    PARTS: tl.constexpr = parts_of(DEPTH, TILE)
    STAGES: tl.constexpr = TILE.stages
    NORMED: tl.constexpr = BEFORE.norm_weight >= 0
    EXACT: tl.constexpr = net.weights.dtype.element_ty == tl.float32
    mean, rstd = _moments(net, rows, inside, i - 1, NET, AT, TILE)
    acc = _nothing(N, PARTS, TILE)
    # An end that is loaded: the compiler would unroll the loop, and all operands of a product want registers then.
    for k0 in tl.range(0, tl.load(net.zero) + OP.inputs, DEPTH, num_stages=STAGES):
        k = k0 + columns_of(net, DEPTH)
        w = tl.load(net.weights + OP.weight + k[:, None] + cols[None, :] * OP.inputs)
        y = _load(net, rows, inside, k, AT.h[i - 1], OP.inputs)
        if NORMED:
            y = (y - mean[:, None]) * rstd[:, None]
            if OP.inputs > BEFORE.width:
                y = tl.where((k < BEFORE.width)[None, :], y, 0.0)
            y = y * tl.load(net.vectors + BEFORE.norm_weight + k)[None, :]
            y = y + tl.load(net.vectors + BEFORE.norm_bias + k)[None, :]
        acc = _multiply(acc, activate(y, KIND, EXACT), w, PARTS, TILE)
    return _sum_of_parts(acc, PARTS)


@triton.jit
def _backward_product(
    cols, net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr
):
    """`Gᵢ Wᵢ` in the columns `cols`, Gᵢ the gradient in the product of layer i, which is not the last."""
    OP: tl.constexpr = NET.operations[i]
    N: tl.constexpr = cols.shape[0]
    DEPTH: tl.constexpr = depth_of(OP.columns, N, TILE)
    PARTS: tl.constexpr = parts_of(DEPTH, TILE)
    STAGES: tl.constexpr = TILE.stages
    NORMED: tl.constexpr = OP.norm_weight >= 0
    mean, rstd = _moments(net, rows, inside, i, NET, AT, TILE)
    mean_g, along = _gradient_moments(net, rows, inside, i, NET, AT, TILE)
    acc = _nothing(N, PARTS, TILE)
    for k0 in tl.range(0, tl.load(net.zero) + OP.columns, DEPTH, num_stages=STAGES):
        k = k0 + columns_of(net, DEPTH)
        w = tl.load(net.weights + OP.weight + k[:, None] * OP.inputs + cols[None, :])
        g = _load(net, rows, inside, k, AT.g[i], OP.columns)
        if NORMED:
            hat = (_load(net, rows, inside, k, AT.h[i], OP.columns) - mean[:, None]) * rstd[:, None]
            g = rstd[:, None] * (g - mean_g[:, None] - hat * along[:, None])
            if OP.columns > OP.width:
                g = tl.where((k < OP.width)[None, :], g, 0.0)
        if OP.condition == "multiply":
            g = g * tl.load(net.condition + k)[None, :]
        acc = _multiply(acc, g, w, PARTS, TILE)
    return _sum_of_parts(acc, PARTS)


@triton.jit
def _leave(h, cols, net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """Write the columns `cols` of h, and the moments of these columns where a norm follows."""
    OP: tl.constexpr = NET.operations[i]
    h = _conditioned(h, cols, net, i, NET)
    _store(net, rows, inside, cols, AT.h[i], OP.columns, h)
    if OP.norm_weight >= 0:
        valid = (cols < OP.width)[None, :]
        number = tl.sum((cols < OP.width).to(tl.float32), 0)
        mean = tl.sum(tl.where(valid, h, 0.0), 1) / tl.maximum(number, 1.0)
        apart = tl.where(valid, h - mean[:, None], 0.0)
        _store_moment(net, rows, inside, cols, 0, i, mean, OP, AT, TILE)
        _store_moment(net, rows, inside, cols, 1, i, tl.sum(apart * apart, 1), OP, AT, TILE)


@triton.jit
def _leave_gradient(
    g, cols, net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr
):
    """Write ĝ of the columns `cols` of layer i for the gradient g in its output, and the sums that its norm wants."""
    OP: tl.constexpr = NET.operations[i]
    KIND: tl.constexpr = OP.activation
    h = _load(net, rows, inside, cols, AT.h[i], OP.columns)
    if OP.norm_weight >= 0:
        mean, rstd = _moments(net, rows, inside, i, NET, AT, TILE)
        hat = (h - mean[:, None]) * rstd[:, None]
        if OP.columns > OP.width:
            hat = tl.where((cols < OP.width)[None, :], hat, 0.0)
        w = tl.load(net.vectors + OP.norm_weight + cols)[None, :]
        g = activate_vjp(g, hat * w + tl.load(net.vectors + OP.norm_bias + cols)[None, :], KIND) * w
        _store_moment(net, rows, inside, cols, 2, i, tl.sum(g, 1), OP, AT, TILE)
        _store_moment(net, rows, inside, cols, 3, i, tl.sum(g * hat, 1), OP, AT, TILE)
    else:
        g = activate_vjp(g, h, KIND)
    _store(net, rows, inside, cols, AT.g[i], OP.columns, g)


@triton.jit
def _conditioned(h, cols, net, i: tl.constexpr, NET: tl.constexpr):
    """With bias, and multiplied by the conditioning row or increased by it."""
    OP: tl.constexpr = NET.operations[i]
    h += tl.load(net.vectors + OP.bias + cols)[None, :]
    if OP.condition == "multiply":
        h = h * tl.load(net.condition + cols)[None, :]
    elif OP.condition == "add":
        h = h + tl.load(net.condition + cols)[None, :]
    return h


@triton.jit
def _moments(net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """Mean and 1/√(variance + ε) of whole rows `[BLOCK_B]` of h of layer i, from its items'; 0 and 1 without a norm."""
    OP: tl.constexpr = NET.operations[i]
    BLOCK_B: tl.constexpr = TILE.block_b
    if OP.norm_weight < 0:
        return tl.zeros((BLOCK_B,), tl.float32), tl.full((BLOCK_B,), 1.0, tl.float32)
    else:
        CHUNKS: tl.constexpr = chunks_of(OP.columns, TILE)
        CHUNK: tl.constexpr = width_of(OP.columns, TILE)
        means, apart = (
            _load_moments(net, rows, inside, 0, i, AT, CHUNKS), _load_moments(net, rows, inside, 1, i, AT, CHUNKS)
        )  # fmt: skip
        number = tl.minimum(tl.maximum(OP.width - columns_of(net, CHUNKS) * CHUNK, 0), CHUNK).to(tl.float32)[None, :]
        mean = tl.sum(means * number, 1) / OP.width
        off = means - mean[:, None]
        return mean, 1 / tl.sqrt(tl.sum(apart + number * off * off, 1) / OP.width + layer_norm_eps())


@triton.jit
def _gradient_moments(net, rows, inside, i: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """mean(ĝ) and mean(ĝ ĥ) of whole rows `[BLOCK_B]` of layer i; zeros without a norm."""
    OP: tl.constexpr = NET.operations[i]
    BLOCK_B: tl.constexpr = TILE.block_b
    if OP.norm_weight < 0:
        return tl.zeros((BLOCK_B,), tl.float32), tl.zeros((BLOCK_B,), tl.float32)
    else:
        CHUNKS: tl.constexpr = chunks_of(OP.columns, TILE)
        mean = tl.sum(_load_moments(net, rows, inside, 2, i, AT, CHUNKS), 1) / OP.width
        return mean, tl.sum(_load_moments(net, rows, inside, 3, i, AT, CHUNKS), 1) / OP.width


@triton.jit
def _load_moments(net, rows, inside, WHICH: tl.constexpr, i: tl.constexpr, AT: tl.constexpr, CHUNKS: tl.constexpr):
    """One of the four moments of every item `[BLOCK_B, CHUNKS]`."""
    return _load(net, rows, inside, columns_of(net, CHUNKS), AT.moments[i] + WHICH * CHUNKS, CHUNKS)


@triton.jit
def _store_moment(
    net, rows, inside, cols, WHICH: tl.constexpr, i: tl.constexpr, values, OP: tl.constexpr, AT: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One of the four moments `[BLOCK_B]` of the item with the columns `cols`."""
    CHUNKS: tl.constexpr = chunks_of(OP.columns, TILE)
    chunk = tl.min(cols, 0) // cols.shape[0]
    at = net.scratch + (AT.moments[i] + WHICH * CHUNKS) * net.rows + rows * CHUNKS + chunk
    tl.store(at, values, mask=inside)


@triton.jit
def _load(net, rows, inside, cols, FIRST: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns of the scratch's array that begins at column FIRST; zeros for rows that are not there."""
    at = net.scratch + FIRST * tl.cast(net.rows, tl.int64) + rows[:, None] * COLUMNS + cols[None, :]
    return tl.load(at, mask=inside[:, None], other=0.0, cache_modifier=".cg")


@triton.jit
def _store(net, rows, inside, cols, FIRST: tl.constexpr, COLUMNS: tl.constexpr, values):
    at = net.scratch + FIRST * tl.cast(net.rows, tl.int64) + rows[:, None] * COLUMNS + cols[None, :]
    tl.store(at, values, mask=inside[:, None])


@triton.jit
def _whole_product(a, w, TILE: tl.constexpr):
    """`a w` of an operand in registers."""
    PARTS: tl.constexpr = parts_of(w.shape[0], TILE)
    return _sum_of_parts(_multiply(_nothing(w.shape[1], PARTS, TILE), a, w, PARTS, TILE), PARTS)


@triton.jit
def _nothing(N: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr):
    """An accumulator: [BLOCK_B, N], or [PARTS, BLOCK_B, N]."""
    BLOCK_B: tl.constexpr = TILE.block_b
    if PARTS == 1:
        return tl.zeros((BLOCK_B, N), tl.float32)
    else:
        return tl.zeros((PARTS, BLOCK_B, N), tl.float32)


@triton.jit
def _multiply(acc, a, w, PARTS: tl.constexpr, TILE: tl.constexpr):
    """`acc + a w`, a [BLOCK_B, K] rounded as w [K, N] is; of one row by sums, and else by parts of K side by side."""
    K: tl.constexpr = w.shape[0]
    N: tl.constexpr = w.shape[1]
    BLOCK_B: tl.constexpr = TILE.block_b
    PRECISION: tl.constexpr = TILE.input_precision
    a = a.to(w.dtype)
    if PRECISION == "tf32":
        a = nearest_tf32(a)
    if TILE.interpreted:  # the interpreter would multiply the bits of bfloat16
        a = a.to(tl.float32)
        w = w.to(tl.float32)
    if BLOCK_B == 1:
        return acc + tl.sum(tl.reshape(a, (K, 1)).to(tl.float32) * w.to(tl.float32), 0)[None, :]
    elif PARTS == 1:
        return tl.dot(a, w, acc, input_precision=PRECISION)
    else:
        a = tl.permute(tl.reshape(a, (BLOCK_B, PARTS, K // PARTS)), (1, 0, 2))
        return tl.dot(a, tl.reshape(w, (PARTS, K // PARTS, N)), acc, input_precision=PRECISION)


@triton.jit
def _sum_of_parts(acc, PARTS: tl.constexpr):
    if PARTS == 1:
        return acc
    else:
        return tl.sum(acc, 0)
