"""A whole network, and its input-gradient, as device functions: what every kernel is made of.

One program owns BLOCK_B rows. Their activations pass from one product to the next through a scratch in memory that only
this program touches, and that stays in the L2 cache:

    y [BLOCK_B, K] (scratch)  ×  W [N, K] (streamed)  →  h [BLOCK_B, N] (registers)  →  norm, activation, …  →  y (scratch)

A barrier stands between the writing of a row and its reading as an operand. y lies in two slots in turn, so that nothing
is overwritten which another warp still reads. Where a norm wants the whole row, N is the whole row, else a chunk of it.

`NET` is a `packing.Program`, `TILE` a `tiling.Tile`; both are constants, and the loop over operations is unrolled.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import activate, activate_vjp


class Memory(NamedTuple):
    """Where a network's numbers are: its packed weights, and this program's scratch (`scratch_sizes` tells how much).

    y [2, BLOCK_B, widest], stream [2, BLOCK_B, stream_columns], saved [BLOCK_B, …] and moments [BLOCK_B] an operation;
    condition: a row of float32 a row of the input (or of products' dtype where it is joined to the input), at a stride
    that is 0 where one row serves all.
    """

    weights: Any
    vectors: Any
    y: Any
    stream: Any
    saved: Any
    moments: Any
    condition: Any
    condition_stride: Any
    zero: Any


@triton.jit
def network_forward(z, mem, NET: tl.constexpr, TILE: tl.constexpr, SAVE: tl.constexpr):
    """Output `[BLOCK_B, out_columns]` for normalised inputs `z [BLOCK_B, columns]`, both float32, padding zero.

    With SAVE, what `network_vjp` needs is kept in `mem.saved` and `mem.moments`.
    """
    ENTRY: tl.constexpr = NET.entry
    tl.debug_barrier()  # the pass before may still read where this one writes
    _write(z, columns_of(mem, NET.columns), mem, 1, ENTRY, NET, TILE, SAVE)
    out = z
    for i in tl.static_range(len(NET.operations)):
        out = _forward(mem, i, NET, TILE, SAVE)
    return out


@triton.jit
def network_vjp(grad, mem, NET: tl.constexpr, TILE: tl.constexpr):
    """Input-gradient `[BLOCK_B, columns]` for a cotangent `grad [BLOCK_B, out_columns]` of the output, both float32.

    After a `network_forward` of the same rows with SAVE.
    """
    LAST: tl.constexpr = len(NET.operations) - 1
    ENTRY: tl.constexpr = NET.entry
    tl.debug_barrier()  # what the forward pass kept is read, and its last operand written over
    _backward_write(grad, columns_of(mem, NET.out_columns), mem, LAST, NET, TILE)
    for j in tl.static_range(LAST):
        _backward(mem, LAST - j, NET, TILE)
    tl.debug_barrier()
    g = _product_vjp(columns_of(mem, NET.columns), mem, 0, NET, TILE)
    g = _output_vjp(g, columns_of(mem, NET.columns), mem, ENTRY, NET, TILE)
    return g


@triton.jit
def columns_of(mem, N: tl.constexpr):
    """0 … N−1, as a number that is computed where it stands.

    `mem.zero` points at a zero. What depends on a load is not moved out of the loops over steps and iterations; without
    it, the addresses of every product would be, and would hold more registers than there are.
    """
    return tl.arange(0, N) + tl.load(mem.zero) * 16


@triton.jit
def rows_of(mem, TILE: tl.constexpr):
    """0 … BLOCK_B−1, likewise."""
    return tl.arange(0, TILE.block_b) + tl.load(mem.zero)


@triton.constexpr_function
def layer_norm_eps():
    return 1e-5  # `network.LAYER_NORM_EPS`; see `kernels`, on constants


@triton.constexpr_function
def chunk(index, net, tile):
    """Columns of an operation that are computed at once: all where a norm or the caller wants the row."""
    op = net.operations[index]
    whole = op.whole_row or index == len(net.operations) - 1
    return op.columns if whole else min(op.columns, tile.block_n)


@triton.jit
def _forward(mem, i: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr, SAVE: tl.constexpr):
    """Operation i; returns its last columns, which are all of them for the last operation."""
    COLUMNS: tl.constexpr = NET.operations[i].columns
    CHUNK: tl.constexpr = chunk(i, NET, TILE)
    tl.debug_barrier()
    if CHUNK == COLUMNS:
        return _forward_columns(columns_of(mem, CHUNK), mem, i, NET, TILE, SAVE)
    else:
        for first in tl.range(0, COLUMNS - CHUNK, CHUNK, num_stages=1):
            _forward_columns(first + columns_of(mem, CHUNK), mem, i, NET, TILE, SAVE)
        return _forward_columns(COLUMNS - CHUNK + columns_of(mem, CHUNK), mem, i, NET, TILE, SAVE)


@triton.jit
def _backward(mem, i: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr):
    """From the gradient in the product of operation i to that in the product before it."""
    COLUMNS: tl.constexpr = NET.operations[i].inputs
    CHUNK: tl.constexpr = chunk(i - 1, NET, TILE)
    tl.debug_barrier()
    for first in tl.range(0, COLUMNS, CHUNK, num_stages=1):
        cols = first + columns_of(mem, CHUNK)
        _backward_write(_product_vjp(cols, mem, i, NET, TILE), cols, mem, i - 1, NET, TILE)


@triton.jit
def _forward_columns(cols, mem, i: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr, SAVE: tl.constexpr):
    """The columns `cols` of operation i; writes its y, unless it is the last, and returns it."""
    OP: tl.constexpr = NET.operations[i]
    rows = rows_of(mem, TILE)
    BLOCK_B: tl.constexpr = TILE.block_b
    PRECISION: tl.constexpr = TILE.input_precision
    KIND: tl.constexpr = OP.activation
    h = tl.zeros((BLOCK_B, cols.shape[0]), tl.float32)
    y_ptr = mem.y + ((i + 1) % 2) * TILE.block_b * NET.widest
    w_ptr = mem.weights + OP.weight
    h = product(h, mem, y_ptr, OP.inputs, w_ptr, 1, OP.inputs, cols, OP.inputs, TILE, PRECISION)
    if i == 0 and NET.joined > 0:
        w_ptr = mem.weights + NET.joined_weight
        c_ptr, c_stride = mem.condition, mem.condition_stride
        h = product(h, mem, c_ptr, c_stride, w_ptr, 1, NET.joined, cols, NET.joined, TILE, PRECISION)
    h += tl.load(mem.vectors + OP.bias + cols)[None, :]
    if OP.condition != "none":
        c = _condition(mem, rows, cols, NET)
        h = h * c if OP.condition == "multiply" else h + c
    if OP.norm_weight >= 0:
        hat, rstd = _standardise(h, cols, OP.width)
        if SAVE:
            store_rows(mem, mem.saved + OP.saved * TILE.block_b, hat, cols, OP.columns, TILE)
            tl.store(mem.moments + OP.moment * TILE.block_b + rows, rstd)
        w = tl.load(mem.vectors + OP.norm_weight + cols)
        h = hat * w[None, :] + tl.load(mem.vectors + OP.norm_bias + cols)[None, :]
    if OP.residual == "inside":
        h += _load_stream(mem, OP.stream_in, cols, OP.width, NET, TILE)
    if SAVE and OP.norm_weight < 0 and OP.saved >= 0:
        store_rows(mem, mem.saved + OP.saved * TILE.block_b, h, cols, OP.columns, TILE)
    y = activate(h, KIND, mem.weights.dtype.element_ty == tl.float32)
    if OP.residual == "after":
        y += _load_stream(mem, OP.stream_in, cols, OP.width, NET, TILE)
    if i < len(NET.operations) - 1:
        _write(y, cols, mem, i, OP, NET, TILE, SAVE)
    return y


@triton.jit
def _condition(mem, rows, cols, NET: tl.constexpr):
    if NET.shared_condition:
        return tl.load(mem.condition + cols)[None, :]
    else:
        return tl.load(mem.condition + rows[:, None] * mem.condition_stride + cols[None, :])


@triton.jit
def _write(y, cols, mem, i: tl.constexpr, OP: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr, SAVE: tl.constexpr):
    """Write y as operand of the next product, normed where a block follows, and as stream where it is added later."""
    if OP.stream_out >= 0:
        _store_stream(mem, OP.stream_out, y, cols, OP.width, NET, TILE)
    if OP.post_weight >= 0:
        hat, rstd = _standardise(y, cols, OP.width)
        if SAVE:
            store_rows(mem, mem.saved + OP.post_saved * TILE.block_b, hat, cols, OP.columns, TILE)
            tl.store(mem.moments + OP.post_moment * TILE.block_b + rows_of(mem, TILE), rstd)
        w = tl.load(mem.vectors + OP.post_weight + cols)
        y = hat * w[None, :] + tl.load(mem.vectors + OP.post_bias + cols)[None, :]
    _store_operand(mem, y, cols, i, OP, NET, TILE)


@triton.jit
def _backward_write(g, cols, mem, i: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr):
    """From the gradient in the output of operation i to that in its product, written as operand of the next."""
    OP: tl.constexpr = NET.operations[i]
    KIND: tl.constexpr = OP.activation
    rows = rows_of(mem, TILE)
    g = _output_vjp(g, cols, mem, OP, NET, TILE)
    if OP.residual == "after":
        _store_stream(mem, OP.stream_in, g, cols, OP.width, NET, TILE)
    if OP.norm_weight >= 0:
        hat = load_rows(mem, mem.saved + OP.saved * TILE.block_b, cols, OP.columns, TILE)
        w = tl.load(mem.vectors + OP.norm_weight + cols)[None, :]
        b = tl.load(mem.vectors + OP.norm_bias + cols)[None, :]
        g = activate_vjp(g, hat * w + b, KIND)
        tl.debug_barrier()  # as below: w is read again, not held
        g = g * tl.load(mem.vectors + OP.norm_weight + cols)[None, :]
        g = _standardise_vjp(g, mem, OP.saved, OP.moment, cols, OP.columns, OP.width, TILE)
    elif OP.saved >= 0:
        g = activate_vjp(g, load_rows(mem, mem.saved + OP.saved * TILE.block_b, cols, OP.columns, TILE), KIND)
    if OP.residual == "inside":
        _store_stream(mem, OP.stream_in, g, cols, OP.width, NET, TILE)
    if OP.condition == "multiply":
        g = g * _condition(mem, rows, cols, NET)
    _store_operand(mem, g, cols, i, OP, NET, TILE)


@triton.jit
def _output_vjp(g, cols, mem, OP: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr):
    """Through the last norm of an operation, and with what came along the stream."""
    if OP.post_weight >= 0:
        w = tl.load(mem.vectors + OP.post_weight + cols)[None, :]
        g = _standardise_vjp(g * w, mem, OP.post_saved, OP.post_moment, cols, OP.columns, OP.width, TILE)
    if OP.stream_out >= 0:
        g += _load_stream(mem, OP.stream_out, cols, OP.width, NET, TILE)
    return g


@triton.jit
def _product_vjp(cols, mem, i: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr):
    """The columns `cols` of `G W`: the gradient in the input of operation i's product."""
    OP: tl.constexpr = NET.operations[i]
    BLOCK_B: tl.constexpr = TILE.block_b
    PRECISION: tl.constexpr = TILE.input_precision
    g = tl.zeros((BLOCK_B, cols.shape[0]), tl.float32)
    y_ptr = mem.y + (i % 2) * TILE.block_b * NET.widest
    w_ptr = mem.weights + OP.weight
    return product(g, mem, y_ptr, OP.columns, w_ptr, OP.inputs, 1, cols, OP.columns, TILE, PRECISION)


@triton.jit
def product(
    acc, mem, a_ptr, a_stride, w_ptr, W_STRIDE_K: tl.constexpr, W_STRIDE_N: tl.constexpr, cols, K: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc + A B`, A `[BLOCK_B, K]` at a_ptr, B the columns `cols` of a matrix `[K, …]` with the strides given."""
    BLOCK_K: tl.constexpr = min(K, TILE.block_k)
    rows = rows_of(mem, TILE)
    k = columns_of(mem, BLOCK_K)
    # An end that is loaded: the compiler would unroll the loop, and all operands of a product want registers then.
    for k0 in tl.range(0, tl.load(mem.zero) + K, BLOCK_K, num_stages=TILE.stages):
        a = tl.load(a_ptr + rows[:, None] * a_stride + (k0 + k)[None, :])
        w = tl.load(w_ptr + (k0 + k)[:, None] * W_STRIDE_K + cols[None, :] * W_STRIDE_N)
        if TILE.interpreted:  # the interpreter would multiply the bits of bfloat16
            a = a.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _standardise(h, cols, WIDTH: tl.constexpr):
    """`(h − mean)/√(variance + ε)` of whole rows and the reciprocal root; padded columns stay zero."""
    mean = tl.sum(h, 1) / WIDTH
    centred = h - mean[:, None]
    if cols.shape[0] > WIDTH:
        centred = tl.where((cols < WIDTH)[None, :], centred, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + layer_norm_eps())
    return centred * rstd[:, None], rstd


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _standardise_vjp(
    g, mem, SAVED: tl.constexpr, MOMENT: tl.constexpr, cols, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr
):
    """`(g − mean(g) − ĥ mean(g ĥ))/√(variance + ε)`.

    ĥ is read for each of its uses rather than held (a barrier keeps the compiler from joining the reads): with g and ĥ of
    a whole row both in registers, there would be none left.
    """
    hat = load_rows(mem, mem.saved + SAVED * TILE.block_b, cols, COLUMNS, TILE)
    if TILE.interpreted:  # the interpreter would add pair by pair
        mean, along = tl.sum(g, 1) / WIDTH, tl.sum(g * hat, 1) / WIDTH
    else:
        mean, along = tl.reduce((g, g * hat), 1, _add_pairs)
        mean, along = mean / WIDTH, along / WIDTH
    tl.debug_barrier()
    hat = load_rows(mem, mem.saved + SAVED * TILE.block_b, cols, COLUMNS, TILE)
    rstd = tl.load(mem.moments + MOMENT * TILE.block_b + rows_of(mem, TILE))
    g = rstd[:, None] * (g - mean[:, None] - hat * along[:, None])
    if COLUMNS > WIDTH:
        g = tl.where((cols < WIDTH)[None, :], g, 0.0)
    return g


@triton.jit
def nearest_tf32(x):
    """Float32 numbers as a tf32 product reads them, 10 bits of fraction, rounded to the nearest, ties away from zero.

    The hardware would cut the other 13 bits off, and every product would come out a little too small.
    """
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # the bits of a NaN could run over


@triton.jit
def _store_operand(
    mem, y, cols, i: tl.constexpr, OP: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr
):
    """Write the columns `cols` of y where the next product reads them, rounded as it reads them."""
    if TILE.input_precision == "tf32":
        y = nearest_tf32(y)
    store_rows(mem, mem.y + (i % 2) * TILE.block_b * NET.widest, y, cols, OP.columns, TILE)


@triton.jit
def store_rows(mem, ptr, values, cols, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    rows = rows_of(mem, TILE)
    tl.store(ptr + rows[:, None] * COLUMNS + cols[None, :], values.to(ptr.dtype.element_ty))


@triton.jit
def load_rows(mem, ptr, cols, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    rows = rows_of(mem, TILE)
    return tl.load(ptr + rows[:, None] * COLUMNS + cols[None, :]).to(tl.float32)


@triton.jit
def _store_stream(mem, SLOT: tl.constexpr, values, cols, WIDTH: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr):
    rows = rows_of(mem, TILE)
    ptr = mem.stream + SLOT * TILE.block_b * NET.stream_columns
    tl.store(ptr + rows[:, None] * NET.stream_columns + cols[None, :], values, mask=(cols < WIDTH)[None, :])


@triton.jit
def _load_stream(mem, SLOT: tl.constexpr, cols, WIDTH: tl.constexpr, NET: tl.constexpr, TILE: tl.constexpr):
    rows = rows_of(mem, TILE)
    ptr = mem.stream + SLOT * TILE.block_b * NET.stream_columns
    return tl.load(ptr + rows[:, None] * NET.stream_columns + cols[None, :], mask=(cols < WIDTH)[None, :], other=0.0)
