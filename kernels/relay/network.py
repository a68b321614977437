"""A network in the relay regime: what a program makes of rows that others left, and leaves for them.

    rows of layer i − 1 (words)  →  norm, activation  →  y (shared memory)  ×  own columns of Wᵢ  →  rows of layer i (words)

A layer is left as its product made it, with bias and condition; who reads the row norms and activates it, all of it, and
keeps what the gradient needs for itself. Backward a program leaves ĝ = w ⊙ act'(·) g of its columns, and who reads the row
subtracts the norm's means. Weights are asked for before the row is waited for.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

import triton.language as tl

from ..activations import activate, activate_vjp
from ..gluon import gl, jit, product
from ..layers import layer_norm_eps
from .rows import (
    Program,
    add_pairs,
    column_numbers,
    deep,
    gathered,
    hand_on,
    leave,
    moment_at,
    row_numbers,
    row_sums,
    saved_at,
    shallow,
    shallow_weights,
    weights,
)
from .tiles import (
    columns_of_rows,
    pairs,
    rows_of_words,
    shallow_product,
    threads_of,
    whole_product,
    words_of_columns,
    words_of_pairs,
)


@jit
def first_weights(net, program, NET: tl.constexpr, RELAY: tl.constexpr):
    """Of the first layer, the own columns, and what is added to their product."""
    OP: tl.constexpr = NET.operations[0]
    OWN: tl.constexpr = OP.columns // RELAY.programs
    cols = program.number * OWN + column_numbers(OWN, pairs(OWN, gl.num_warps()))
    SHALLOW: tl.constexpr = shallow_product(gl.num_warps())
    w = shallow_weights(net.weights + OP.weight + program.number * (OWN * OP.inputs), OWN, OP.inputs, SHALLOW)
    return w, _terms(net, cols, 0, NET)


@jit
def begin(w, z, net, block, program, NET: tl.constexpr, ROWS: tl.constexpr, RELAY: tl.constexpr):
    """Leave the own columns of the first layer, for normalised inputs `z [columns, 8]`."""
    OWN: tl.constexpr = NET.operations[0].columns // RELAY.programs
    h = _conditioned(_own_product(w[0], z), w[1], 0, NET)
    leave(h, net.words, block, program, 0, NET, ROWS, OWN, words_of_pairs(OWN, gl.num_warps()), 32)


@jit
def first_weights_whole(net, NET: tl.constexpr):
    """Of the first layer, all of it, what is added to its product, and its norm's vectors."""
    OP: tl.constexpr = NET.operations[0]
    LAYOUT: tl.constexpr = whole_product(gl.num_warps())
    cols = column_numbers(OP.columns, LAYOUT)
    w = shallow_weights(net.weights + OP.weight, OP.columns, OP.inputs, LAYOUT)
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
    cols, rows = column_numbers(OP.columns, LAYOUT)[:, None], row_numbers(LAYOUT)
    h = _conditioned(shallow(w[0], z, LAYOUT), w[1], 0, NET)
    if OP.norm_weight >= 0:
        total, squares = gl.reduce((h, product(h, h)), 0, add_pairs)
        mean, rstd = _moments(total, squares, WIDTH)
        hat = (h - mean[None, :]) * rstd[None, :]
        gl.store(moment_at(net, block, rows, 0, NET, ROWS), rstd, mask=rows < ROWS)
        place = saved_at(net, block, rows[None, :], cols, 0, NET, ROWS)
        gl.store(place, hat.to(net.saved.dtype.element_ty), mask=rows[None, :] < ROWS)
        h = hat * w[2][0][:, None] + w[2][1][:, None]
    elif OP.saved >= 0:
        place = saved_at(net, block, rows[None, :], cols, 0, NET, ROWS)
        gl.store(place, h.to(net.saved.dtype.element_ty), mask=rows[None, :] < ROWS)
    hand_on(activate(h, KIND, False).permute((1, 0)), program)


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
    terms = _terms(net, program.number * OWN + column_numbers(OWN, columns_of_rows(OWN, gl.num_warps())), i, NET)
    for block in range(first, last):
        if not THERE:
            read(net, block, program, i - 1, NET, ROWS, SAVE)
        h = _conditioned(deep(w, program, OWN, OP.inputs), terms, i, NET)
        WORDS: tl.constexpr = words_of_columns(OWN, gl.num_warps())
        leave(h, net.words, block, program, i, NET, ROWS, OWN, WORDS, threads_of(OWN, gl.num_warps()))


@jit
def last_weights(net, NET: tl.constexpr):
    """Of the last layer, all of it, and what is added to its product."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST]
    cols = column_numbers(OP.columns, columns_of_rows(OP.columns, gl.num_warps()))
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
    return shallow_weights(at, OWN, OP.columns, shallow_product(gl.num_warps()))


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
    g = _sloped(_own_product(w, seed), slope, LAST - 1, NET)
    leave(g, net.gradients, block, program, LAST - 1, NET, ROWS, OWN, words_of_pairs(OWN, gl.num_warps()), 32)


@jit
def last_weights_turned_whole(net, NET: tl.constexpr):
    """Of the last layer, transposed, all of it."""
    OP: tl.constexpr = NET.operations[len(NET.operations) - 1]
    return shallow_weights(net.turned + OP.weight, OP.inputs, OP.columns, whole_product(gl.num_warps()))


@jit
def last_slope_whole(net, block, program, NET: tl.constexpr, ROWS: tl.constexpr):
    """Of the last hidden layer, all of it: its slope, and 1/√(variance + ε) of the rows."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST - 1]
    LAYOUT: tl.constexpr = whole_product(gl.num_warps())
    everything = Program(program.number * 0, program.stamp, program.y, program.room)
    rstd = row_numbers(LAYOUT)
    if OP.norm_weight >= 0:
        rstd = gl.load(moment_at(net, block, rstd, LAST - 1, NET, ROWS), mask=rstd < ROWS, other=0.0)
    return _slope(net, block, everything, LAST - 1, NET, ROWS, OP.columns, LAYOUT), rstd


@jit
def begin_backward_whole(w, seed, slope, program, NET: tl.constexpr):
    """From a gradient `seed [out_columns, 8]` to that in the last hidden layer's product, computed by every program."""
    LAST: tl.constexpr = len(NET.operations) - 1
    OP: tl.constexpr = NET.operations[LAST - 1]
    WIDTH: tl.constexpr = OP.width
    g = _sloped(shallow(w, seed, whole_product(gl.num_warps())), slope[0], LAST - 1, NET)
    if OP.norm_weight >= 0:
        hat = slope[0][0].to(gl.float32)
        total, along = gl.reduce((g, product(g, hat)), 0, add_pairs)
        g = slope[1][None, :] * (g - (total / WIDTH)[None, :] - hat * (along / WIDTH)[None, :])
    hand_on(g.permute((1, 0)), program)


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
        leave(g, net.gradients, block, program, i - 1, NET, ROWS, OWN, WORDS, threads_of(OWN, gl.num_warps()))


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
        h = gathered(net.words, block, program, i, NET, ROWS)
        # In one pass: what cancels is less than the rounding of 16-bit products, unless a mean is a hundred deviations.
        total, squares = row_sums(h, product(h, h), program)
        mean, rstd = _moments(total, squares, WIDTH)
        hat = (h - mean[:, None]) * rstd[:, None]  # in padding, too, where all that follows multiplies it by zeros
        vectors = vectors if FEW else _norm_vectors(net, cols, OP)
        h = hat * vectors[0][None, :] + vectors[1][None, :]
        if SAVE:
            gl.store(moment_at(net, block, rows, i, NET, ROWS), rstd)
            gl.store(saved_at(net, block, rows[:, None], cols[None, :], i, NET, ROWS), hat.to(net.saved.dtype.element_ty))
    else:
        h = gathered(net.words, block, program, i, NET, ROWS)
        if SAVE and OP.saved >= 0:
            gl.store(saved_at(net, block, rows[:, None], cols[None, :], i, NET, ROWS), h.to(net.saved.dtype.element_ty))
    hand_on(activate(h, KIND, False), program)


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
        hat = gl.load(saved_at(net, block, rows[:, None], cols[None, :], i, NET, ROWS)).to(gl.float32)
        rstd = gl.load(moment_at(net, block, rows, i, NET, ROWS))
        g = gathered(net.gradients, block, program, i, NET, ROWS)
        total, along = row_sums(g, product(g, hat), program)
        g = rstd[:, None] * (g - (total / WIDTH)[:, None] - hat * (along / WIDTH)[:, None])
    else:
        g = gathered(net.gradients, block, program, i, NET, ROWS)
    hand_on(g, program)


@jit
def _own_product(w, z):
    """Their product with `z [DEPTH, 8]`, as it is published."""
    return gl.convert_layout(shallow(w, z, shallow_product(gl.num_warps())), pairs(w.shape[0], gl.num_warps()))


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
    cols, rows = (program.number * OWN + column_numbers(OWN, LAYOUT))[:, None], row_numbers(LAYOUT)[None, :]
    saved = rows  # without a norm and an activation nothing reads it
    if OP.saved >= 0:
        saved = gl.load(saved_at(net, block, rows, cols, i, NET, ROWS), mask=rows < ROWS, other=0.0)
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
