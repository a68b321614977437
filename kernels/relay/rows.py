"""Rows of a layer in the relay regime: from words and into words, what is kept of them, and their products with weights.

Of a row that was gathered a thread has a few numbers (`tiles.rows_of_words`), of a product columns of eight rows.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton.language as tl

from ..gluon import gl, jit, mma_v2
from .exchange import gather, peek, publish, settle
from .tiles import (
    all_parts,
    chains,
    deep_product,
    operand,
    parts,
    plain,
    rows_of_words,
    shared,
    sums_of_warps,
    together,
    together_in_depth,
    words_before,
)
from .tiles import words as word_layout


class Net(NamedTuple):
    """A network in one iteration, for one program.

    weights, turned    matrices and their transposes, at the places that they have when packed: see `tiles.copies_for`
    vectors            and `condition`, the row that conditions it
    words, gradients   of the hidden layers of the group's rows: see `tiles.words_before`
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
def gathered(words, block, program, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
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
def leave(
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
def _place(words, block, row, word, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    """Of a word of a layer, in a block of rows."""
    ALL: tl.constexpr = words_before(NET, len(NET.operations) - 1)
    BEFORE: tl.constexpr = words_before(NET, i)
    return words + (block * ALL + BEFORE) * ROWS + row * (NET.operations[i].columns // 2) + word


@jit
def saved_at(net, block, row, col, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    OP: tl.constexpr = NET.operations[i]
    return net.saved + (block * NET.saved + OP.saved) * ROWS + row * OP.columns + col


@jit
def moment_at(net, block, rows, i: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr):
    return net.moments + (block * NET.moments + NET.operations[i].moment) * ROWS + rows


@jit
def hand_on(y, program):
    """Write the operand of the next product."""
    _operand(program, y.shape[0], y.shape[1]).store(y.to(program.y.dtype))


@jit
def _operand(program, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    return program.y._reinterpret(program.y.dtype, [ROWS, DEPTH], shared())


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
def shallow_weights(ptr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr):
    """Rows of a matrix with few columns, which lies row by row."""
    LEFT: tl.constexpr = gl.DotOperandLayout(0, PRODUCT, 2)
    rows = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LEFT))
    k = gl.arange(0, DEPTH, layout=gl.SliceLayout(0, LEFT))
    return gl.load(ptr + rows[:, None] * DEPTH + k[None, :])


@jit
def shallow(w, z, LAYOUT: tl.constexpr):
    COLUMNS: tl.constexpr = w.shape[0]
    z = gl.convert_layout(z.to(w.dtype), gl.DotOperandLayout(1, LAYOUT, 2))
    return mma_v2(w, z, gl.zeros([COLUMNS, 8], gl.float32, layout=LAYOUT))


@jit
def row_sums(a, b, program):
    """Of two matrices; where warps share a row, in each warp first and then once through shared memory."""
    ROWS: tl.constexpr = a.shape[0]
    COLUMNS: tl.constexpr = a.shape[1]
    WARPS: tl.constexpr = gl.num_warps()
    PARTS: tl.constexpr = parts(ROWS, COLUMNS, WARPS)
    LAYOUT: tl.constexpr = gl.SliceLayout(1, rows_of_words(ROWS, COLUMNS, WARPS))
    if PARTS == 1:
        return gl.reduce((a, b), 1, add_pairs)
    else:
        ONE: tl.constexpr = 64 * together(ROWS, COLUMNS, WARPS)
        a = a.reshape([ROWS, COLUMNS // (ONE * PARTS), PARTS, ONE])
        b = b.reshape([ROWS, COLUMNS // (ONE * PARTS), PARTS, ONE])
        a, b = gl.reduce((a, b), 1, add_pairs)
        a, b = gl.reduce((a, b), 2, add_pairs)
        SUMS: tl.constexpr = sums_of_warps(ROWS, COLUMNS, WARPS)
        first = program.room[0]._reinterpret(gl.float32, [ROWS, PARTS], plain(2))
        second = program.room[1]._reinterpret(gl.float32, [ROWS, PARTS], plain(2))
        first.store(a)
        second.store(b)
        a, b = gl.sum(first.load(SUMS), 1), gl.sum(second.load(SUMS), 1)
        return gl.convert_layout(a, LAYOUT), gl.convert_layout(b, LAYOUT)


@jit
def add_pairs(a, b, c, d):
    return a + c, b + d


@jit
def column_numbers(COLUMNS: tl.constexpr, LAYOUT: tl.constexpr):
    return gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LAYOUT))


@jit
def row_numbers(LAYOUT: tl.constexpr):
    return gl.arange(0, 8, layout=gl.SliceLayout(0, LAYOUT))
