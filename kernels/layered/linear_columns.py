"""Some columns of a product with all that stands before it, in one launch: the layered regime for few problems.

    forward     h_{i−1} → bias, conditioning, norm, activation, norm of its operation → some columns of h_i = y_i W_iᵀ
    backward    g_i → norm, activation, norm, conditioning of its operation           → some columns of g_{i−1} = G_i W_i

Few rows leave a device idle where a program holds whole rows of a result: here it holds whole rows of the operand, which
every program of a row makes for itself, and BLOCK_N columns of the result, so that the weights are divided over the device.
They are asked for before anything else, since they wait for nothing. The programs of the first columns write what is kept.

    one row a program         y W on the lanes, exact in float32 but for what is stored; any precision
    BLOCK_B ≥ 16 rows         the matrix unit, the depth in PARTS that are added up: each warp has a part of the weights

Products are stored as a library's are, in the products' dtype.
"""

# To the type checker, a jit function that is called by another never returns.
# pyright: reportGeneralTypeIssues=false

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..network_op import is_interpreted
from .pointwise import Condition, Kept, Streams, Vectors, backward_rows, forward_rows, row_stride, rows_and_columns

NARROW = 256


@dataclass(frozen=True)
class ColumnCut:
    """Rows of a program, columns of its result where weights lie along the depth and across it, parts of a depth, warps.

    To a depth of NARROW half the parts and warps do.
    """

    block_b: int
    along: int
    across: int
    parts: int
    warps: int

    def constants(self, depth: int, columns: int, forward: bool) -> dict[str, Any]:
        """Of a launch; a part is 16 deep at least."""
        share = 2 if depth <= NARROW else 1
        return {
            "DEPTH": depth, "COLUMNS": columns, "BLOCK_B": self.block_b, "num_warps": self.warps // share,
            "BLOCK_N": min(columns, self.along if forward else self.across),
            "PARTS": max(1, min(self.parts // share, depth // 16)),
        }  # fmt: skip


# By what the compiler makes of others (`bench/results/static-tiles.md`). 8 columns of weights across the depth are 16 bytes,
# half of what memory gives at once: there it is 16.
ONE_ROW = ColumnCut(1, 8, 16, 1, 8)
SOME_ROWS = ColumnCut(16, 32, 32, 16, 16)


@triton.jit(do_not_specialize=["rows_total"])
def columns_forward_kernel(
    h_ptr, w_ptr, vectors, condition, kept, out_ptr, rows_total, CONDITION: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr, NOTHING: tl.constexpr, STREAMS: tl.constexpr, INTERPRET: tl.constexpr, DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """From a product `h [rows, DEPTH]` to the next, `out [rows, COLUMNS]`, by weights `[COLUMNS, DEPTH]`."""
    w = weights_of_columns(w_ptr, 1, DEPTH, DEPTH, BLOCK_B, BLOCK_N, PARTS)
    rows, cols, at, inside = rows_and_columns(rows_total, DEPTH, BLOCK_B)
    h = tl.load(h_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    y = forward_rows(
        h, rows, cols, at, inside, inside & (tl.program_id(1) == 0), vectors, NOTHING, condition, STREAMS, kept, CONDITION,
        ACTIVATION, "none", WIDTH, 0, h_ptr.dtype.element_ty == tl.float32,
    )  # fmt: skip
    multiply(y, w, out_ptr, rows, inside, INTERPRET, COLUMNS, BLOCK_B, BLOCK_N, PARTS)


@triton.jit(do_not_specialize=["rows_total"])
def columns_backward_kernel(
    g_ptr, g_stride, w_ptr, vectors, condition, kept, out_ptr, rows_total, CONDITION: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr, STREAMS: tl.constexpr, INTERPRET: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """From a gradient `g [rows, DEPTH]` in an operation's output to that in its input, `out [rows, COLUMNS]`.

    Weights are `[DEPTH, COLUMNS]`.
    """
    w = weights_of_columns(w_ptr, COLUMNS, 1, DEPTH, BLOCK_B, BLOCK_N, PARTS)
    rows, cols, at, inside = rows_and_columns(rows_total, DEPTH, BLOCK_B)
    g = tl.load(g_ptr + rows[:, None] * g_stride + cols[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    y = backward_rows(g, rows, cols, at, inside, vectors, condition, STREAMS, kept, CONDITION, ACTIVATION, "none", WIDTH, 0)
    multiply(y, w, out_ptr, rows, inside, INTERPRET, COLUMNS, BLOCK_B, BLOCK_N, PARTS)


@triton.jit
def weights_of_columns(
    w_ptr, STRIDE_K: tl.constexpr, STRIDE_N: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """This program's columns, `[BLOCK_N, DEPTH]` for one row, `[PARTS, DEPTH / PARTS, BLOCK_N]` for the matrix unit."""
    n = _columns(BLOCK_N)
    if BLOCK_B == 1:
        return tl.load(w_ptr + tl.arange(0, DEPTH)[None, :] * STRIDE_K + n[:, None] * STRIDE_N)
    else:
        k = tl.arange(0, PARTS)[:, None] * (DEPTH // PARTS) + tl.arange(0, DEPTH // PARTS)[None, :]
        return tl.load(w_ptr + k[:, :, None] * STRIDE_K + n[None, None, :] * STRIDE_N)


@triton.jit
def multiply(
    y, w, out_ptr, rows, inside, INTERPRET: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Store the program's columns of a product of whole rows y `[BLOCK_B, DEPTH]`."""
    if BLOCK_B == 1:
        out = tl.sum(y * w.to(tl.float32), 1)[None, :]
    else:
        y = y.to(w.dtype)
        if INTERPRET:  # the interpreter would multiply the bits of bfloat16
            y, w = y.to(tl.float32), w.to(tl.float32)
        parts = tl.permute(tl.reshape(y, (BLOCK_B, PARTS, y.shape[1] // PARTS)), (1, 0, 2))
        out = tl.sum(tl.dot(parts, w, input_precision="ieee"), 0)
    at = rows[:, None] * COLUMNS + _columns(BLOCK_N)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _columns(BLOCK_N: tl.constexpr):
    return tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)


def columns_forward(
    h: Tensor, weight: Tensor, out: Tensor, vectors: Vectors, condition: Condition, kept: Kept, cut: ColumnCut, **kind: Any
) -> None:
    """Write a product out `[rows, columns]` for the one before it, h `[rows, inputs]`, by a weight `[columns, inputs]`.

    What stands between is of the operation that h is the product of: see `pointwise.finish_forward`.
    """
    constants = cut.constants(h.shape[1], len(weight), forward=True)
    kind |= {"NOTHING": Condition(), "STREAMS": Streams(), "INTERPRET": is_interpreted()}
    columns_forward_kernel[grid_of_columns(out, constants)](
        h, weight, vectors, condition, kept, out, len(h), **kind, **constants
    )


def columns_backward(
    g: Tensor, weight: Tensor, out: Tensor, vectors: Vectors, condition: Condition, kept: Kept, cut: ColumnCut, **kind: Any
) -> None:
    """Write out `[rows, inputs]`, the gradient in an operation's input, for g in its output and its `[columns, inputs]`.

    g is `[rows, columns]`, or `[1, columns]` where all rows have one: see `pointwise.finish_backward`.
    """
    constants = cut.constants(len(weight), weight.shape[1], forward=False)
    kind |= {"STREAMS": Streams(), "INTERPRET": is_interpreted()}
    columns_backward_kernel[grid_of_columns(out, constants)](
        g, row_stride(g), weight, vectors, condition, kept, out, len(out), **kind, **constants
    )


def grid_of_columns(out: Tensor, constants: dict[str, Any]) -> tuple[int, int]:
    rows, columns = out.shape
    return -(-rows // constants["BLOCK_B"]), columns // constants["BLOCK_N"]
