"""What stands between the matrix products of a network, where a library multiplies: one launch per operation and direction.

    forward     h = y W (library)  →  bias, conditioning, norm, stream, activation, norm  →  y of the next product
    backward    g = G W (library)  →  norm, stream, activation, norm, conditioning        →  G of the product before it

A program owns BLOCK_B rows and all COLUMNS of them, so that a norm is a sum in registers:

    [BLOCK_B, COLUMNS]: BLOCK_B · COLUMNS = PROGRAM numbers, 16 a thread of WARPS warps

Rows are independent. All arithmetic is float32; h, y and what is kept are in the products' dtype, moments and streams in
float32. What an operation lacks is a pointer that is None, for which no code is made.
"""

# To the type checker, a jit function that is called by another never returns.
# pyright: reportGeneralTypeIssues=false

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..activations import activate, activate_vjp
from ..layers import _standardise

# At width 1024: 107 registers at most, none spilled (sm_80 and sm_90, ahead of time). Four warps take 173, which leaves
# eight warps to a multiprocessor; programs of half the size read the vectors twice as often.
PROGRAM = 4096
WARPS = 8


class Vectors(NamedTuple):
    """Pointers to an operation's vectors `[columns]`, each or None: bias, its norm, and the norm behind it."""

    bias: Any = None
    norm_weight: Any = None
    norm_bias: Any = None
    post_weight: Any = None
    post_bias: Any = None


class Kept(NamedTuple):
    """Pointers to what an operation keeps for its gradient: rows `[rows, columns]` and moments `[rows]`, each or None."""

    saved: Any = None
    moment: Any = None
    post_saved: Any = None
    post_moment: Any = None


class Condition(NamedTuple):
    """Conditioning vectors, or the time's part of the first product: a pointer and a row stride, 0 for one row for all."""

    rows: Any = None
    stride: Any = 0


class Streams(NamedTuple):
    """Streams `[rows, stream_columns]` of float32: `into` is what the operation adds, `out` what it leaves; each or None."""

    into: Any = None
    out: Any = None


@triton.jit(do_not_specialize=["rows_total"])
def finish_forward_kernel(
    h_ptr, vectors, joined, condition, streams, kept, y_ptr, rows_total,
    CONDITION: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    STREAM_COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """From a product `h [rows, COLUMNS]` to the operand `y [rows, COLUMNS]` of the next."""
    rows, cols, at, inside = rows_and_columns(rows_total, COLUMNS, BLOCK_B)
    h = tl.load(h_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    y = forward_rows(
        h, rows, cols, at, inside, inside, vectors, joined, condition, streams, kept, CONDITION, ACTIVATION, RESIDUAL, WIDTH,
        STREAM_COLUMNS, h_ptr.dtype.element_ty == tl.float32,
    )  # fmt: skip
    store_inside(y_ptr + at, y, inside)


@triton.jit
def forward_rows(
    h, rows, cols, at, inside, writes, vectors, joined, condition, streams, kept, CONDITION: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, WIDTH: tl.constexpr, STREAM_COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """From whole rows of a product, as `rows_and_columns` has them, to those of the operand of the next.

    `writes [BLOCK_B]` are the rows of which the program keeps what the gradient needs; streams have the same program a row.
    """
    if vectors.bias is not None:
        h += tl.load(vectors.bias + cols)[None, :]
    if joined.rows is not None:
        h += _load_condition(joined, rows, cols, inside, WIDTH)
    if CONDITION == "multiply":
        h = h * _load_condition(condition, rows, cols, inside, WIDTH)
    elif CONDITION == "add":
        h = h + _load_condition(condition, rows, cols, inside, WIDTH)
    if vectors.norm_weight is not None:
        # Asked for before the sums, which no load passes.
        weight, bias = tl.load(vectors.norm_weight + cols), tl.load(vectors.norm_bias + cols)
        h, rstd = _standardise(h, cols, WIDTH)
        if kept.saved is not None:
            store_inside(kept.saved + at, h, writes)
            tl.store(kept.moment + rows, rstd, mask=writes)
        h = h * weight[None, :] + bias[None, :]
    stream_at, in_stream = _stream(rows, cols, inside, WIDTH, STREAM_COLUMNS)
    if RESIDUAL == "inside":
        h += tl.load(streams.into + stream_at, mask=in_stream, other=0.0)
    if vectors.norm_weight is None and kept.saved is not None:
        store_inside(kept.saved + at, h, writes)
    y = activate(h, ACTIVATION, EXACT)
    if RESIDUAL == "after":
        y += tl.load(streams.into + stream_at, mask=in_stream, other=0.0)
    if streams.out is not None:
        tl.store(streams.out + stream_at, y, mask=in_stream)
    if vectors.post_weight is not None:
        y, rstd = _standardise(y, cols, WIDTH)
        if kept.post_saved is not None:
            store_inside(kept.post_saved + at, y, writes)
            tl.store(kept.post_moment + rows, rstd, mask=writes)
        y = y * tl.load(vectors.post_weight + cols)[None, :] + tl.load(vectors.post_bias + cols)[None, :]
    return y


@triton.jit(do_not_specialize=["rows_total"])
def finish_backward_kernel(
    g_ptr, g_stride, vectors, condition, streams, kept, y_ptr, rows_total,
    CONDITION: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    STREAM_COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """From a gradient `g [rows, COLUMNS]` in an operation's output to `y [rows, COLUMNS]`, that in its product."""
    rows, cols, at, inside = rows_and_columns(rows_total, COLUMNS, BLOCK_B)
    g = tl.load(g_ptr + rows[:, None] * g_stride + cols[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    g = backward_rows(
        g, rows, cols, at, inside, vectors, condition, streams, kept, CONDITION, ACTIVATION, RESIDUAL, WIDTH, STREAM_COLUMNS
    )
    store_inside(y_ptr + at, g, inside)


@triton.jit
def backward_rows(
    g, rows, cols, at, inside, vectors, condition, streams, kept, CONDITION: tl.constexpr, ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr, WIDTH: tl.constexpr, STREAM_COLUMNS: tl.constexpr,
):  # fmt: skip
    """From whole rows of a gradient in an operation's output to those of the gradient in its product.

    `streams.out` is read here and `streams.into` written: gradients go the other way.
    """
    if vectors.post_weight is not None:
        hat = tl.load(kept.post_saved + at, mask=inside[:, None], other=0.0).to(tl.float32)
        rstd = tl.load(kept.post_moment + rows, mask=inside, other=0.0)
        g = _standardise_vjp(g * tl.load(vectors.post_weight + cols)[None, :], hat, rstd, cols, WIDTH)
    stream_at, in_stream = _stream(rows, cols, inside, WIDTH, STREAM_COLUMNS)
    if streams.out is not None:
        g += tl.load(streams.out + stream_at, mask=in_stream, other=0.0)
    if RESIDUAL == "after":
        tl.store(streams.into + stream_at, g, mask=in_stream)
    if kept.saved is not None:
        h = tl.load(kept.saved + at, mask=inside[:, None], other=0.0).to(tl.float32)
        if vectors.norm_weight is None:
            g = activate_vjp(g, h, ACTIVATION)
        else:
            w = tl.load(vectors.norm_weight + cols)[None, :]
            g = activate_vjp(g, h * w + tl.load(vectors.norm_bias + cols)[None, :], ACTIVATION) * w
            g = _standardise_vjp(g, h, tl.load(kept.moment + rows, mask=inside, other=0.0), cols, WIDTH)
    if RESIDUAL == "inside":
        tl.store(streams.into + stream_at, g, mask=in_stream)
    if CONDITION == "multiply":
        g = g * _load_condition(condition, rows, cols, inside, WIDTH)
    return g


def finish_forward(
    h: Tensor, y: Tensor, vectors: Vectors, joined: Condition, condition: Condition, streams: Streams, kept: Kept,
    CONDITION: str, ACTIVATION: str, RESIDUAL: str, WIDTH: int, STREAM_COLUMNS: int,
) -> None:  # fmt: skip
    """Write y `[rows, columns]` for a product h: what an operation does behind its product. Allocates nothing.

    CONDITION, ACTIVATION, RESIDUAL and WIDTH are those of `packing.Operation`; without the pointers of `kept` nothing is
    kept for the gradient.
    """
    rows, columns = h.shape
    kind: dict[str, Any] = dict(
        CONDITION=CONDITION, ACTIVATION=ACTIVATION, RESIDUAL=RESIDUAL, WIDTH=WIDTH, STREAM_COLUMNS=STREAM_COLUMNS
    )
    finish_forward_kernel[grid(rows, columns)](
        h, vectors, joined, condition, streams, kept, y, rows, **kind, **division(columns)
    )


def finish_backward(
    g: Tensor, y: Tensor, vectors: Vectors, condition: Condition, streams: Streams, kept: Kept,
    CONDITION: str, ACTIVATION: str, RESIDUAL: str, WIDTH: int, STREAM_COLUMNS: int,
) -> None:  # fmt: skip
    """Write y `[rows, columns]`, the gradient in an operation's product, for g in its output; allocates nothing.

    `g [rows, columns]`, or `[1, columns]` where all rows have one, after `finish_forward` of the same rows.
    """
    rows, columns = y.shape
    kind: dict[str, Any] = dict(
        CONDITION=CONDITION, ACTIVATION=ACTIVATION, RESIDUAL=RESIDUAL, WIDTH=WIDTH, STREAM_COLUMNS=STREAM_COLUMNS
    )
    finish_backward_kernel[grid(rows, columns)](
        g, row_stride(g), vectors, condition, streams, kept, y, rows, **kind, **division(columns)
    )


def division(columns: int) -> dict[str, Any]:
    """How a kernel of whole rows divides its work: its last constants."""
    return {"COLUMNS": columns, "BLOCK_B": max(1, PROGRAM // columns), "num_warps": WARPS}


def grid(rows: int, columns: int) -> tuple[int]:
    """Programs of a kernel of whole rows."""
    return (-(-rows // division(columns)["BLOCK_B"]),)


def row_stride(rows: Tensor) -> int:
    """The stride of rows of which one may stand for all."""
    return rows.stride(0) if len(rows) > 1 else 0


@triton.jit
def rows_and_columns(rows_total, COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr):
    """This program's rows and columns, their places in a row-major array, and which rows there are."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    cols = tl.arange(0, COLUMNS)
    return rows, cols, rows[:, None] * COLUMNS + cols[None, :], rows < rows_total


@triton.jit
def _stream(rows, cols, inside, WIDTH: tl.constexpr, STREAM_COLUMNS: tl.constexpr):
    """Places in a stream, and which of them exist: the last operation may have more columns than the stream."""
    return rows[:, None] * STREAM_COLUMNS + cols[None, :], inside[:, None] & (cols < WIDTH)[None, :]


@triton.jit
def _standardise_vjp(g, hat, rstd, cols, WIDTH: tl.constexpr):
    """`(g − mean(g) − ĥ mean(g ĥ))/√(variance + ε)`; padded columns stay zero."""
    mean = tl.sum(g, 1) / WIDTH
    along = tl.sum(g * hat, 1) / WIDTH
    g = rstd[:, None] * (g - mean[:, None] - hat * along[:, None])
    if cols.shape[0] > WIDTH:
        g = tl.where((cols < WIDTH)[None, :], g, 0.0)
    return g


@triton.jit
def _load_condition(condition, rows, cols, inside, WIDTH: tl.constexpr):
    """Masked by the true width: the last operation may have more columns than the vector."""
    at = rows[:, None] * condition.stride + cols[None, :]
    return tl.load(condition.rows + at, mask=inside[:, None] & (cols < WIDTH)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_inside(ptr, values, inside):
    tl.store(ptr, values.to(ptr.dtype.element_ty), mask=inside[:, None])
