"""Products of `linear_columns` at the ends of the dynamics' network, with what stands between one step and the next.

    forward     last product of step t−1 → x_t, written by the programs of the first columns → z̄_t → first product of step t
    backward    input-gradient of step t → λ_t and ∂_u, likewise                              → gradient in the last but one

Of a step with n products n launches are left, in either direction.
"""

# To the type checker, a jit function that is called by another never returns.
# pyright: reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..network_op import is_interpreted
from .linear_columns import ColumnCut, grid_of_columns, multiply, weights_of_columns
from .pointwise import Condition, Kept, Streams, Vectors, backward_rows, forward_rows, rows_and_columns
from .sweeps import adjoint, inputs, keep_states, next_states, rows_of_steps, states


@triton.jit(do_not_specialize=["t", "R"])
def step_forward_kernel(
    h_ptr, w_ptr, vectors, kept, out_ptr, x_ptr, v_ptr, low_ptr, high_ptr, scale_ptr, b_ptr, inv_k_ptr, t, R,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, NOTHING: tl.constexpr, STREAMS: tl.constexpr, T: tl.constexpr,
    NX: tl.constexpr, NU: tl.constexpr, B_COLUMNS: tl.constexpr, BOUNDING: tl.constexpr, INTERPRET: tl.constexpr,
    DEPTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """From the last product of step t − 1, `h [R, DEPTH]`, to the first of step t; without h from the states of step t."""
    w = weights_of_columns(w_ptr, 1, DEPTH, DEPTH, BLOCK_B, BLOCK_N, PARTS)
    rows, cols, at, inside = rows_and_columns(R, DEPTH, BLOCK_B)
    n, problem, step, there = rows_of_steps(t, R, R, BLOCK_B)
    first = tl.program_id(1) == 0
    if h_ptr is None:
        x = states(problem, step, there, cols[None, :], x_ptr, T, NX)
    else:
        h = tl.load(h_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        out = forward_rows(
            h, rows, cols, at, inside, inside & first, vectors, NOTHING, NOTHING, STREAMS, kept, "none", ACTIVATION, "none",
            WIDTH, 0, h_ptr.dtype.element_ty == tl.float32,
        )  # fmt: skip
        x = next_states(out, problem, step, there, cols[None, :], x_ptr, scale_ptr, T, NX)
    z = inputs(
        x, problem, step, there, cols[None, :], v_ptr, low_ptr, high_ptr, b_ptr, 0, inv_k_ptr, T, NX, NU, B_COLUMNS, BOUNDING
    )
    if h_ptr is not None:  # behind the loads, which pass no store
        keep_states(x, problem, step, there & first, cols[None, :], x_ptr, T, NX)
    multiply(z, w, out_ptr, rows, inside, INTERPRET, COLUMNS, BLOCK_B, BLOCK_N, PARTS)


@triton.jit(do_not_specialize=["t", "R"])
def step_backward_kernel(
    grad_ptr, w_ptr, vectors, kept, out_ptr, pull_ptr, inv_k_ptr, scale_ptr, costate_ptr, grad_u_ptr, t, R,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, NOTHING: tl.constexpr, STREAMS: tl.constexpr, T: tl.constexpr,
    NX: tl.constexpr, NU: tl.constexpr, INTERPRET: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """From the input-gradient of step t, `grad [R, DEPTH]`, to that in the last operation's input at step t − 1.

    Behind which there is no cost there is no `grad`: see `sweeps.adjoint_kernel`.
    """
    w = weights_of_columns(w_ptr, COLUMNS, 1, DEPTH, BLOCK_B, BLOCK_N, PARTS)
    rows, cols, at, inside = rows_and_columns(R, DEPTH, BLOCK_B)
    n, problem, step, there = rows_of_steps(t, R, R, BLOCK_B)
    g = adjoint(
        n, problem, step, there, there & (tl.program_id(1) == 0), cols[None, :], pull_ptr, grad_ptr, inv_k_ptr, scale_ptr,
        costate_ptr, grad_u_ptr, T, NX, NU, DEPTH, BLOCK_B,
    )  # fmt: skip
    g = backward_rows(g, rows, cols, at, inside, vectors, NOTHING, STREAMS, kept, "none", ACTIVATION, "none", WIDTH, 0)
    multiply(g, w, out_ptr, rows, inside, INTERPRET, COLUMNS, BLOCK_B, BLOCK_N, PARTS)


def step_forward(
    h: Tensor | None, weight: Tensor, out: Tensor, vectors: Vectors, kept: Kept, cut: ColumnCut, *, x: Tensor, v: Tensor,
    low: Tensor | None, high: Tensor | None, scale: Tensor, b: Tensor, inv_k: Tensor, t: int, T: int, NX: int, NU: int,
    BOUNDING: str, CONDITION: str, ACTIVATION: str, WIDTH: int,
) -> None:  # fmt: skip
    """Write the first product of step t, out `[R, columns]`, and x_t of `x [R, T+1, NX]` where there is an h `[R, inputs]`.

    Of the network's last operation are `vectors`, `kept` and the last three; all else as `sweeps.inputs_kernel` has it.
    """
    assert CONDITION == "none", "dynamics are not conditioned"
    constants = cut.constants(weight.shape[1], len(weight), forward=True)
    kernel: Any = step_forward_kernel  # to the type checker it has no num_warps
    kernel[grid_of_columns(out, constants)](
        h, weight, vectors, kept, out, x, v, low, high, scale, b, inv_k, t, len(out), ACTIVATION=ACTIVATION, WIDTH=WIDTH,
        NOTHING=Condition(), STREAMS=Streams(), T=T, NX=NX, NU=NU, B_COLUMNS=len(b), BOUNDING=BOUNDING,
        INTERPRET=is_interpreted(), **constants,
    )  # fmt: skip


def step_backward(
    grad: Tensor | None, weight: Tensor, out: Tensor, vectors: Vectors, kept: Kept, cut: ColumnCut, *, pull: Tensor | None,
    inv_k: Tensor, scale: Tensor, costate: Tensor, grad_u: Tensor, t: int, T: int, NX: int, NU: int, CONDITION: str,
    ACTIVATION: str, WIDTH: int,
) -> None:  # fmt: skip
    """Write the gradient in the last operation's input at step t − 1, out `[R, inputs]`, and λ_t and ∂_u, likewise.

    All else as `sweeps.adjoint_kernel` has it.
    """
    assert CONDITION == "none", "dynamics are not conditioned"
    constants = cut.constants(len(weight), weight.shape[1], forward=False)
    kernel: Any = step_backward_kernel
    kernel[grid_of_columns(out, constants)](
        grad, weight, vectors, kept, out, pull, inv_k, scale, costate, grad_u, t, len(out), ACTIVATION=ACTIVATION,
        WIDTH=WIDTH, NOTHING=Condition(), STREAMS=Streams(), T=T, NX=NX, NU=NU, INTERPRET=is_interpreted(), **constants,
    )  # fmt: skip
