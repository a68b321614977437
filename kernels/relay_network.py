"""A network in the relay regime: what a program makes of rows that others left, and leaves for them.

    rows of layer i − 1 (words)  →  norm, activation  →  y (shared memory)  ×  own columns of Wᵢ  →  rows of layer i (words)

A layer is left as its product made it, with bias and condition; who reads the row norms and activates it, all of it, and
keeps what the gradient needs for itself. Backward a program leaves ĝ = w ⊙ act'(·) g of its columns, and who reads the row
subtracts the norm's means. Weights are asked for before the row is waited for.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton.language as tl

from .activations import activate, activate_vjp
from .exchange import gather, peek, publish, settle
from .gluon import gl, jit, mma_v2, product
from .layers import layer_norm_eps
from .relay_tiles import (
    all_parts,
    chains,
    columns_of_rows,
    deep_product,
    operand,
    pairs,
    parts,
    plain,
    rows_of_words,
    shallow_product,
    shared,
    sums_of_warps,
    threads_of,
    together,
    together_in_depth,
    whole_product,
    words_before,
    words_of_columns,
    words_of_pairs,
)
from .relay_tiles import words as word_layout


class Net(NamedTuple):
    """A network in one iteration, for one program.

    weights, turned    matrices and their transposes, at the places that they have when packed: see `relay_tiles.copies_for`
    vectors            and `condition`, the row that conditions it
    words, gradients   of the hidden layers of the group's rows: see `relay_tiles.words_before`
    saved, moments     what this program keeps of them for the gradient: see `packing.Program`
    """

    weights: Any
    turned: Any
    vectors: Any
    condition: Any
    words: Any
    gradients: Any
    saved: Any
    moments: Any


class Program(NamedTuple):
    """A program in one iteration: its number in the group, the iteration's stamp, and shared memory.

    y     room for the operand `[8, deepest]`
    room  two places for sums of warps
    """

    number: Any
    stamp: Any
    y: Any
    room: Any


@jit
def first_weights(net, program, NET: tl.constexpr, RELAY: tl.constexpr):
    """Of the first layer, the own columns, and what is added to their product."""
    OP: tl.constexpr = NET.operations[0]
    OWN: tl.constexpr = OP.columns // RELAY.programs
    cols = program.number * OWN + _columns(OWN, pairs(OWN, gl.num_warps()))
    SHALLOW: tl.constexpr = shallow_product(gl.num_warps())
    w = _shallow_weights(net.weights + OP.weight + program.number * (OWN * OP.inputs), OWN, OP.inputs, SHALLOW)
    return w, _terms(net, cols, 0, NET)


@jit
def begin(w, z, net, block, program, NET: tl.constexpr, ROWS: tl.constexpr, RELAY: tl.constexpr):
    """Leave the own columns of the first layer, for normalised inputs `z [columns, 8]`."""
    OWN: tl.constexpr = NET.operations[0].columns // RELAY.programs
    h = _conditioned(_shallow(w[0], z), w[1], 0, NET)
    _publish(h, net.words, block, program, 0, NET, ROWS, OWN, words_of_pairs(OWN, gl.num_warps()), 32)


@jit
def first_weights_whole(net, NET: tl.constexpr):
    """Of the first layer, all of it, what is added to its product, and its norm's vectors."""
    OP: tl.constexpr = NET.operations[0]
    LAYOUT: tl.constexpr = whole_product(gl.num_warps())
    cols = _columns(OP.columns, LAYOUT)
    w = _shallow_weights(net.weights + OP.weight, OP.columns, OP.inputs, LAYOUT)
    if OP.norm_weight >= 0:
        return w, _terms(net, cols, 0, NET), _norm_vectors(net, cols, OP)
    else:
        return w, _terms(net, cols, 0, NET), (cols, cols)


@jit
def begin_whole(w, z, net, block, program, NET: tl.constexpr, ROWS: tl.constexpr):
    """The first layer for normalised inputs `z [columns, 8]`, computed by every program: the operand of the second."""
    OP: tl.constexpr = NET.operations[0]
    WIDTH: tl.constexpr = OP.width
    KIND: tl.constexpr = OP.activation
    LAYOUT: tl.constexpr = whole_product(gl.num_warps())
    cols, rows = _columns(OP.columns, LAYOUT)[:, None], _rows(LAYOUT)
    h = _conditioned(_product(w[0], z, LAYOUT), w[1], 0, NET)
    if OP.norm_weight >= 0:
        total, squares = gl.reduce((h, product(h, h)), 0, _add_pairs)
        mean, rstd = _moments(total, squares, WIDTH)
        hat = (h - mean[None, :]) * rstd[None, :]
        gl.store(_moment(net, block, rows, 0, NET, ROWS), rstd, mask=rows < ROWS)
        place = _saved(net, block, rows[None, :], cols, 0, NET, ROWS)
        gl.store(place, hat.to(net.saved.dtype.element_ty), mask=rows[None, :] < ROWS)
        h = hat * w[2][0][:, None] + w[2][1][:, None]
    elif OP.saved >= 0:
        place = _saved(net, block, rows[None, :], cols, 0, NET, ROWS)
        gl.store(place, h.to(net.saved.dtype.element_ty), mask=rows[None, :] < ROWS)
    _hand_on(activate(h, KIND, False).permute((1, 0)), program)


@jit
def forward(
    net, first, last, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr, RELAY: tl.constexpr,
    SAVE: tl.constexpr, THERE: tl.constexpr,
):  # fmt: skip
    """Leave the own columns of layer i ≥ 1, of some blocks of rows. With SAVE what a gradient needs is kept.

    THERE says that its operand stands in shared memory already.
    """
    OP: tl.constexpr = NET.operations[i]
    OWN: tl.constexpr = OP.columns // RELAY.programs
    w = weights(net.weights + OP.weight + program.number * (OWN * OP.inputs), OWN, OP.inputs)
    terms = _terms(net, program.number * OWN + _columns(OWN, columns_of_rows(OWN, gl.num_warps())), i, NET)
    for block in range(first, last):
        if not THERE:
            read(net, block, program, i - 1, NET, ROWS, SAVE)
        h = _conditioned(deep(w, program, OWN, OP.inputs), terms, i, NET)
        WORDS: tl.constexpr = words_of_columns(OWN, gl.num_warps())
        _publish(h, net.words, block, program, i, NET, ROWS, OWN, WORDS, threads_of(OWN, gl.num_warps()))


@jit
def last_weights(net, NET: tl.constexpr):
    """Of the last layer, all of it, and what is added to its product."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST]
    cols = _columns(OP.columns, columns_of_rows(OP.columns, gl.num_warps()))
    return weights(net.weights + OP.weight, OP.columns, OP.inputs), _terms(net, cols, LAST, NET)


@jit
def output(w, net, block, program, NET: tl.constexpr, ROWS: tl.constexpr, SAVE: tl.constexpr):
    """The last layer before its activation, `[out_columns, 8]`, of a block of rows."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST]
    read(net, block, program, LAST - 1, NET, ROWS, SAVE)
    return _conditioned(deep(w[0], program, OP.columns, OP.inputs), w[1], LAST, NET)


@jit
def last_weights_turned(net, program, NET: tl.constexpr, RELAY: tl.constexpr):
    """Of the last layer, transposed, the own columns of the layer before."""
    OP: tl.constexpr = NET.operations[len(NET.operations) - 1]
    OWN: tl.constexpr = OP.inputs // RELAY.programs
    at = net.turned + OP.weight + program.number * (OWN * OP.columns)
    return _shallow_weights(at, OWN, OP.columns, shallow_product(gl.num_warps()))


@jit
def last_slope(net, block, program, NET: tl.constexpr, ROWS: tl.constexpr, RELAY: tl.constexpr):
    """Of the last hidden layer, in the own columns."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OWN: tl.constexpr = NET.operations[LAST].inputs // RELAY.programs
    return _slope(net, block, program, LAST - 1, NET, ROWS, OWN, pairs(OWN, gl.num_warps()))


@jit
def begin_backward(
    w, seed, slope, net, block, program, NET: tl.constexpr, ROWS: tl.constexpr, RELAY: tl.constexpr
):
    """Leave ĝ of the own columns of the last hidden layer, for a gradient `seed [out_columns, 8]` before the activation."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OWN: tl.constexpr = NET.operations[LAST].inputs // RELAY.programs
    g = _sloped(_shallow(w, seed), slope, LAST - 1, NET)
    _publish(g, net.gradients, block, program, LAST - 1, NET, ROWS, OWN, words_of_pairs(OWN, gl.num_warps()), 32)


@jit
def last_weights_turned_whole(net, NET: tl.constexpr):
    """Of the last layer, transposed, all of it."""
    OP: tl.constexpr = NET.operations[len(NET.operations) - 1]
    return _shallow_weights(net.turned + OP.weight, OP.inputs, OP.columns, whole_product(gl.num_warps()))


@jit
def last_slope_whole(net, block, program, NET: tl.constexpr, ROWS: tl.constexpr):
    """Of the last hidden layer, all of it: its slope, and 1/√(variance + ε) of the rows."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST - 1]
    LAYOUT: tl.constexpr = whole_product(gl.num_warps())
    everything = Program(program.number * 0, program.stamp, program.y, program.room)
    rstd = _rows(LAYOUT)
    if OP.norm_weight >= 0:
        rstd = gl.load(_moment(net, block, rstd, LAST - 1, NET, ROWS), mask=rstd < ROWS, other=0.0)
    return _slope(net, block, everything, LAST - 1, NET, ROWS, OP.columns, LAYOUT), rstd


@jit
def begin_backward_whole(w, seed, slope, program, NET: tl.constexpr):
    """From a gradient `seed [out_columns, 8]` to that in the last hidden layer's product, computed by every program."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST - 1]
    WIDTH: tl.constexpr = OP.width
    g = _sloped(_product(w, seed, whole_product(gl.num_warps())), slope[0], LAST - 1, NET)
    if OP.norm_weight >= 0:
        hat = slope[0][0].to(gl.float32)
        total, along = gl.reduce((g, product(g, hat)), 0, _add_pairs)
        g = slope[1][None, :] * (g - (total / WIDTH)[None, :] - hat * (along / WIDTH)[None, :])
    _hand_on(g.permute((1, 0)), program)


@jit
def backward(
    net, first, last, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr, RELAY: tl.constexpr,
    THERE: tl.constexpr,
):  # fmt: skip
    """From the gradient in layer i ≥ 1 to ĝ of the own columns of layer i − 1, of some blocks of rows.

    THERE says that it stands in shared memory already.
    """
    OP: tl.constexpr = NET.operations[i]
    OWN: tl.constexpr = OP.inputs // RELAY.programs
    w = weights(net.turned + OP.weight + program.number * (OWN * OP.columns), OWN, OP.columns)
    for block in range(first, last):
        slope = _slope(net, block, program, i - 1, NET, ROWS, OWN, columns_of_rows(OWN, gl.num_warps()))
        if not THERE:
            read_gradient(net, block, program, i, NET, ROWS)
        g = _sloped(deep(w, program, OWN, OP.columns), slope, i - 1, NET)
        WORDS: tl.constexpr = words_of_columns(OWN, gl.num_warps())
        _publish(g, net.gradients, block, program, i - 1, NET, ROWS, OWN, WORDS, threads_of(OWN, gl.num_warps()))


@jit
def input_weights(net, NET: tl.constexpr):
    """Of the first layer, transposed, all of it."""
    OP: tl.constexpr = NET.operations[0]
    return weights(net.turned + OP.weight, OP.inputs, OP.columns)


@jit
def input_gradient(w, net, block, program, NET: tl.constexpr, ROWS: tl.constexpr):
    """The gradient `[columns, 8]` in the normalised input."""
    OP: tl.constexpr = NET.operations[0]
    read_gradient(net, block, program, 0, NET, ROWS)
    return deep(w, program, OP.inputs, OP.columns)


@jit
def read(net, block, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr, SAVE: tl.constexpr):
    """Wait for a block of rows of layer i, norm and activate it; as an operand it stands in shared memory then."""
    OP: tl.constexpr = NET.operations[i]
    COLUMNS: tl.constexpr = OP.columns
    WIDTH: tl.constexpr = OP.width
    WARPS: tl.constexpr = gl.num_warps()
    KIND: tl.constexpr = OP.activation
    LAYOUT: tl.constexpr = rows_of_words(ROWS, COLUMNS, WARPS)
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    if OP.norm_weight >= 0:
        FEW: tl.constexpr = ROWS * COLUMNS <= 128 * WARPS  # numbers of a thread: of many, there is no room for twice as many
        vectors = _norm_vectors(net, cols, OP) if FEW else (cols, cols)
        h = _gathered(net.words, block, program, i, NET, ROWS)
        # In one pass: what cancels is less than the rounding of 16-bit products, unless a mean is a hundred deviations.
        total, squares = _row_sums(h, product(h, h), program)
        mean, rstd = _moments(total, squares, WIDTH)
        hat = (h - mean[:, None]) * rstd[:, None]  # in padding, too, where all that follows multiplies it by zeros
        vectors = vectors if FEW else _norm_vectors(net, cols, OP)
        h = hat * vectors[0][None, :] + vectors[1][None, :]
        if SAVE:
            gl.store(_moment(net, block, rows, i, NET, ROWS), rstd)
            gl.store(_saved(net, block, rows[:, None], cols[None, :], i, NET, ROWS), hat.to(net.saved.dtype.element_ty))
    else:
        h = _gathered(net.words, block, program, i, NET, ROWS)
        if SAVE and OP.saved >= 0:
            gl.store(_saved(net, block, rows[:, None], cols[None, :], i, NET, ROWS), h.to(net.saved.dtype.element_ty))
    _hand_on(activate(h, KIND, False), program)


@jit
def _moments(total, squares, WIDTH: tl.constexpr):
    """The mean, and 1/√(variance + ε), of the sums of numbers and of their squares."""
    mean = total / WIDTH
    variance = tl.maximum(squares / WIDTH - mean * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return mean, tl.rsqrt(variance + layer_norm_eps())


@jit
def _norm_vectors(net, cols, OP: tl.constexpr):
    return gl.load(net.vectors + OP.norm_weight + cols), gl.load(net.vectors + OP.norm_bias + cols)


@jit
def read_gradient(net, block, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    """Wait for ĝ of a block of rows of layer i; the gradient in its product stands in shared memory then."""
    OP: tl.constexpr = NET.operations[i]
    COLUMNS: tl.constexpr = OP.columns
    WIDTH: tl.constexpr = OP.width
    WARPS: tl.constexpr = gl.num_warps()
    LAYOUT: tl.constexpr = rows_of_words(ROWS, COLUMNS, WARPS)
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    if OP.norm_weight >= 0:
        hat = gl.load(_saved(net, block, rows[:, None], cols[None, :], i, NET, ROWS)).to(gl.float32)
        rstd = gl.load(_moment(net, block, rows, i, NET, ROWS))
        g = _gathered(net.gradients, block, program, i, NET, ROWS)
        total, along = _row_sums(g, product(g, hat), program)
        g = rstd[:, None] * (g - (total / WIDTH)[:, None] - hat * (along / WIDTH)[:, None])
    else:
        g = _gathered(net.gradients, block, program, i, NET, ROWS)
    _hand_on(g, program)


@jit
def _gathered(words, block, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    """A block of rows of a layer `[ROWS, columns]`, when it is there.

    A thread with much to read waits for the first of it, and then for all the rest at once, which is most likely there.
    """
    COLUMNS: tl.constexpr = NET.operations[i].columns
    WARPS: tl.constexpr = gl.num_warps()
    FIRST: tl.constexpr = 64 * together(ROWS, COLUMNS, WARPS) * parts(ROWS, COLUMNS, WARPS)
    at, half = _words(words, block, i, NET, ROWS, COLUMNS)
    if COLUMNS > FIRST:
        first, which = _words(words, block, i, NET, ROWS, FIRST)
        gather(first, which, program.stamp, together(ROWS, COLUMNS, WARPS))
    seen = peek(at, half, together(ROWS, COLUMNS, WARPS))
    numbers = settle(seen, at, half, program.stamp, together(ROWS, COLUMNS, WARPS))
    numbers = numbers.reshape([ROWS, COLUMNS // 16, 8, 2]).permute((0, 1, 3, 2)).reshape([ROWS, COLUMNS])
    return gl.convert_layout(numbers, rows_of_words(ROWS, COLUMNS, WARPS), assert_trivial=True)


@jit
def _words(words, block, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the words of the first columns of a layer lie, `[ROWS, COLUMNS / 2, 2]`, and which half each number is."""
    LAYOUT: tl.constexpr = word_layout(ROWS, COLUMNS, gl.num_warps())
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    word = gl.arange(0, COLUMNS // 2, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    half = gl.arange(0, 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    return _place(words, block, rows, word, i, NET, ROWS) + half * 0, half


@jit
def weights(ptr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Rows of a matrix `[COLUMNS, DEPTH]`, which lies tile by tile, as operands of the warps' products."""
    WARPS: tl.constexpr = gl.num_warps()
    LANE: tl.constexpr = together_in_depth(DEPTH, WARPS)
    CHAINS: tl.constexpr = chains(COLUMNS, DEPTH, WARPS)
    LAYOUT: tl.constexpr = operand(COLUMNS, DEPTH, WARPS)
    rows = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    k = gl.arange(0, DEPTH, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    w = gl.load(ptr + (rows // 8 * (DEPTH // 32) + k // 32) * 256 + rows % 8 * 32 + k % 32)
    w = w.reshape([COLUMNS, WARPS, CHAINS, DEPTH // (4 * LANE * WARPS * CHAINS), 4, LANE // 4, 2, 2])
    w = w.permute((2, 1, 0, 3, 5, 6, 4, 7)).reshape([CHAINS * WARPS, COLUMNS, DEPTH // (WARPS * CHAINS)])
    return gl.convert_layout(w, gl.DotOperandLayout(0, deep_product(WARPS), 2))


@jit
def deep(w, program, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Their product `[COLUMNS, 8]` with the rows in shared memory."""
    WARPS: tl.constexpr = gl.num_warps()
    LANE: tl.constexpr = together_in_depth(DEPTH, WARPS)
    CHAINS: tl.constexpr = chains(COLUMNS, DEPTH, WARPS)
    PRODUCT: tl.constexpr = deep_product(WARPS)
    y = _operand(program, 8, DEPTH).load(operand(8, DEPTH, WARPS))
    y = y.reshape([8, WARPS, CHAINS, DEPTH // (4 * LANE * WARPS * CHAINS), 4, LANE // 4, 2, 2])
    y = y.permute((2, 1, 3, 5, 6, 4, 7, 0)).reshape([CHAINS * WARPS, DEPTH // (WARPS * CHAINS), 8])
    y = gl.convert_layout(y, gl.DotOperandLayout(1, PRODUCT, 2))
    sums = mma_v2(w, y, gl.zeros([CHAINS * WARPS, COLUMNS, 8], gl.float32, layout=PRODUCT))
    sums = gl.sum(sums.reshape([CHAINS, WARPS, COLUMNS, 8]), 0)
    return gl.sum(gl.convert_layout(sums, all_parts(COLUMNS, WARPS)), 0)


@jit
def _shallow_weights(ptr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr):
    """Rows of a matrix with few columns, which lies row by row."""
    LEFT: tl.constexpr = gl.DotOperandLayout(0, PRODUCT, 2)
    rows = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LEFT))
    k = gl.arange(0, DEPTH, layout=gl.SliceLayout(0, LEFT))
    return gl.load(ptr + rows[:, None] * DEPTH + k[None, :])


@jit
def _shallow(w, z):
    """Their product with `z [DEPTH, 8]`, as it is published."""
    return gl.convert_layout(_product(w, z, shallow_product(gl.num_warps())), pairs(w.shape[0], gl.num_warps()))


@jit
def _product(w, z, LAYOUT: tl.constexpr):
    COLUMNS: tl.constexpr = w.shape[0]
    z = gl.convert_layout(z.to(w.dtype), gl.DotOperandLayout(1, LAYOUT, 2))
    return mma_v2(w, z, gl.zeros([COLUMNS, 8], gl.float32, layout=LAYOUT))


@jit
def _terms(net, cols, i: tl.constexpr, NET: tl.constexpr):
    """What comes to the product of layer i in some columns: bias and condition."""
    OP: tl.constexpr = NET.operations[i]
    bias = gl.load(net.vectors + OP.bias + cols)[:, None]
    if OP.condition == "none":
        return bias, bias
    else:
        return bias, gl.load(net.condition + cols)[:, None]


@jit
def _conditioned(h, terms, i: tl.constexpr, NET: tl.constexpr):
    """With bias, and multiplied by the conditioning row or increased by it."""
    OP: tl.constexpr = NET.operations[i]
    h += terms[0]
    if OP.condition == "multiply":
        h *= terms[1]
    elif OP.condition == "add":
        h += terms[1]
    return h


@jit
def _slope(
    net, block, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr, OWN: tl.constexpr, LAYOUT: tl.constexpr
):
    """Of the own columns of layer i: what this program kept, `[OWN, 8]`, and the norm's weight and bias."""
    OP: tl.constexpr = NET.operations[i]
    cols, rows = (program.number * OWN + _columns(OWN, LAYOUT))[:, None], _rows(LAYOUT)[None, :]
    saved = rows  # without a norm and an activation nothing reads it
    if OP.saved >= 0:
        saved = gl.load(_saved(net, block, rows, cols, i, NET, ROWS), mask=rows < ROWS, other=0.0)
    if OP.norm_weight >= 0:
        return saved, gl.load(net.vectors + OP.norm_weight + cols), gl.load(net.vectors + OP.norm_bias + cols)
    else:
        return saved, cols, cols


@jit
def _sloped(g, slope, i: tl.constexpr, NET: tl.constexpr):
    """ĝ for the gradient in the output of layer i."""
    OP: tl.constexpr = NET.operations[i]
    KIND: tl.constexpr = OP.activation
    if OP.norm_weight >= 0:
        return activate_vjp(g, slope[0].to(gl.float32) * slope[1] + slope[2], KIND) * slope[1]
    elif OP.saved >= 0:
        return activate_vjp(g, slope[0].to(gl.float32), KIND)
    else:
        return g


@jit
def _publish(
    values, words, block, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr, OWN: tl.constexpr,
    LAYOUT: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Words of the own columns of layer i, `[OWN, 8]`, of which ROWS are rows.

    LAYOUT is that of their words, all of which the first THREADS have.
    """
    values = values.reshape([OWN // 16, 2, 8, 8]).permute((0, 2, 3, 1)).reshape([OWN // 2, 8, 2])
    values = gl.convert_layout(values, LAYOUT, assert_trivial=True)
    word = gl.arange(0, OWN // 2, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    rows = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    half = gl.arange(0, 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    at = _place(words, block, rows, program.number * (OWN // 2) + word, i, NET, ROWS)
    publish(at + half * 0, half, values, program.stamp, rows < ROWS, THREADS)


@jit
def _hand_on(y, program):
    """Write the operand of the next product."""
    _operand(program, y.shape[0], y.shape[1]).store(y.to(program.y.dtype))


@jit
def _operand(program, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    return program.y._reinterpret(program.y.dtype, [ROWS, DEPTH], shared())


@jit
def _row_sums(a, b, program):
    """Of two matrices; where warps share a row, in each warp first and then once through shared memory."""
    ROWS: tl.constexpr = a.shape[0]
    COLUMNS: tl.constexpr = a.shape[1]
    WARPS: tl.constexpr = gl.num_warps()
    PARTS: tl.constexpr = parts(ROWS, COLUMNS, WARPS)
    LAYOUT: tl.constexpr = gl.SliceLayout(1, rows_of_words(ROWS, COLUMNS, WARPS))
    if PARTS == 1:
        return gl.reduce((a, b), 1, _add_pairs)
    else:
        ONE: tl.constexpr = 64 * together(ROWS, COLUMNS, WARPS)
        a = a.reshape([ROWS, COLUMNS // (ONE * PARTS), PARTS, ONE])
        b = b.reshape([ROWS, COLUMNS // (ONE * PARTS), PARTS, ONE])
        a, b = gl.reduce((a, b), 1, _add_pairs)
        a, b = gl.reduce((a, b), 2, _add_pairs)
        SUMS: tl.constexpr = sums_of_warps(ROWS, COLUMNS, WARPS)
        first = program.room[0]._reinterpret(gl.float32, [ROWS, PARTS], plain(2))
        second = program.room[1]._reinterpret(gl.float32, [ROWS, PARTS], plain(2))
        first.store(a)
        second.store(b)
        a, b = gl.sum(first.load(SUMS), 1), gl.sum(second.load(SUMS), 1)
        return gl.convert_layout(a, LAYOUT), gl.convert_layout(b, LAYOUT)


@jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@jit
def _columns(COLUMNS: tl.constexpr, LAYOUT: tl.constexpr):
    return gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LAYOUT))


@jit
def _rows(LAYOUT: tl.constexpr):
    return gl.arange(0, 8, layout=gl.SliceLayout(0, LAYOUT))


@jit
def _place(words, block, row, word, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    """Of a word of a layer, in a block of rows."""
    ALL: tl.constexpr = words_before(NET, len(NET.operations) - 1)
    BEFORE: tl.constexpr = words_before(NET, i)
    return words + (block * ALL + BEFORE) * ROWS + row * (NET.operations[i].columns // 2) + word


@jit
def _saved(net, block, row, col, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    OP: tl.constexpr = NET.operations[i]
    return net.saved + (block * NET.saved + OP.saved) * ROWS + row * OP.columns + col


@jit
def _moment(net, block, rows, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    return net.moments + (block * NET.moments + NET.operations[i].moment) * ROWS + rows
