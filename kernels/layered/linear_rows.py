"""Whole rows of a product with all that follows it, in one launch: the layered regime to width 256.

    forward     y_i → W_i → bias, conditioning, norm, stream, activation, norm → y_{i+1}
    backward    G_i → W_iᵀ → norm, stream, activation, norm, conditioning of the operation before → G_{i−1}

What stands behind the product is `pointwise.forward_rows` and `backward_rows`, on the sums while they are in registers: a
layer's rows are read once and written once, and of two launches one is left. Rows of a program are read by no other, but
operand and result must not be one buffer: their rows lie apart.
"""

# To the type checker, a jit function that is called by another never returns.
# pyright: reportGeneralTypeIssues=false

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .pointwise import Condition, Kept, Streams, Vectors, backward_rows, forward_rows, rows_and_columns, store_inside

WIDEST = 256


@dataclass(frozen=True)
class RowCut:
    """Rows of a program, depth of a step of its product, warps, steps whose loads are in flight."""

    block_b: int
    block_k: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, Any]:
        return {"BLOCK_B": self.block_b, "BLOCK_K": self.block_k, "num_warps": self.warps, "num_stages": self.stages}


INTERPRETED = RowCut(16, 32, 4, 1)


@triton.jit(do_not_specialize=["rows_total"])
def rows_forward_kernel(
    a_ptr, w_ptr, vectors, condition, streams, kept, y_ptr, rows_total, DEPTH: tl.constexpr, CONDITION: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    STREAM_COLUMNS: tl.constexpr, NOTHING: tl.constexpr, INTERPRET: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From operands `a [rows, DEPTH]` and weights `[COLUMNS, DEPTH]` to the operands `y [rows, COLUMNS]` of the next."""
    rows, cols, at, inside = rows_and_columns(rows_total, COLUMNS, BLOCK_B)
    h = _product(a_ptr, w_ptr, rows, cols, inside, DEPTH, 1, DEPTH, INTERPRET, BLOCK_K)
    y = forward_rows(
        h, rows, cols, at, inside, inside, vectors, NOTHING, condition, streams, kept, CONDITION, ACTIVATION, RESIDUAL,
        WIDTH, STREAM_COLUMNS, False,
    )  # fmt: skip
    store_inside(y_ptr + at, y, inside)


@triton.jit(do_not_specialize=["rows_total"])
def rows_backward_kernel(
    a_ptr, w_ptr, vectors, condition, streams, kept, y_ptr, rows_total, DEPTH: tl.constexpr, CONDITION: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    STREAM_COLUMNS: tl.constexpr, INTERPRET: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From gradients `a [rows, DEPTH]` in a product with weights `[DEPTH, COLUMNS]` to those in the product before it."""
    rows, cols, at, inside = rows_and_columns(rows_total, COLUMNS, BLOCK_B)
    g = _product(a_ptr, w_ptr, rows, cols, inside, DEPTH, COLUMNS, 1, INTERPRET, BLOCK_K)
    g = backward_rows(
        g, rows, cols, at, inside, vectors, condition, streams, kept, CONDITION, ACTIVATION, RESIDUAL, WIDTH, STREAM_COLUMNS
    )
    store_inside(y_ptr + at, g, inside)


@triton.jit
def _product(
    a_ptr, w_ptr, rows, cols, inside, DEPTH: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_N: tl.constexpr,
    INTERPRET: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Whole rows of `A B`, A `[rows, DEPTH]`, B `[DEPTH, …]` with the strides given."""
    EACH: tl.constexpr = min(DEPTH, BLOCK_K)
    k = tl.arange(0, EACH)
    acc = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for first in range(0, DEPTH, EACH):
        a = tl.load(a_ptr + rows[:, None] * DEPTH + (first + k)[None, :], mask=inside[:, None], other=0.0)
        w = tl.load(w_ptr + (first + k)[:, None] * STRIDE_K + cols[None, :] * STRIDE_N)
        if INTERPRET:  # the interpreter would multiply the bits of bfloat16
            a, w = a.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(a, w, acc, input_precision="ieee")
    return acc


def rows_forward(
    a: Tensor, weight: Tensor, y: Tensor, vectors: Vectors, condition: Condition, streams: Streams, kept: Kept, cut: RowCut,
    **kind: Any,
) -> None:
    """Write y `[rows, columns]` for operands a `[rows, inputs]` and a weight `[columns, inputs]`; see `finish_forward`."""
    kind |= {"DEPTH": a.shape[1], "COLUMNS": len(weight), "NOTHING": Condition(), "INTERPRET": cut is INTERPRETED}
    rows_forward_kernel[_grid(a, cut)](
        a, weight, vectors, condition, streams, kept, y, len(a), **kind, **cut.constants
    )


def rows_backward(
    a: Tensor, weight: Tensor, y: Tensor, vectors: Vectors, condition: Condition, streams: Streams, kept: Kept, cut: RowCut,
    **kind: Any,
) -> None:
    """Write y `[rows, inputs]` for gradients a `[rows, columns]` in a product with a weight `[columns, inputs]`.

    All but `a` and `weight` is of the operation before, as `finish_backward` has it.
    """
    kind |= {"DEPTH": len(weight), "COLUMNS": weight.shape[1], "INTERPRET": cut is INTERPRETED}
    rows_backward_kernel[_grid(a, cut)](
        a, weight, vectors, condition, streams, kept, y, len(a), **kind, **cut.constants
    )


def _grid(rows: Tensor, cut: RowCut) -> tuple[int]:
    return (-(-len(rows) // cut.block_b),)
