"""What a planning iteration does between its networks, where a library multiplies: inputs, costs, costates, the step.

    inputs_kernel     x_{t+1} = x_t + scale ⊙ out, and normalised inputs z̄ = (z − b)·inv_k of z = (x, u)
    cost_kernel       values of a cost and their gradient, `pull = ∂_z c`
    score_kernel      s = net(z̄)·inv_k·gain[level],  pull ← pull − β s
    adjoint_kernel    (λ_t, g_t) = pull_t + (λ_{t+1}, 0) + (∂_z f)ᵀ λ_{t+1}
    update_kernel     judge, Adam, projection: `update.update_rows`

Tiles are `[rows, COLUMNS]`: the state in the first NX columns, the controls in the next NU, zeros after. Rows of several
steps are those of a step, one step after another: row `n` is problem `n mod R` at step `n div R`. What belongs to a plan
(`backends.fused.buffers.Buffers`) has problems first. A program owns BLOCK_B rows; nothing passes from one to another.
"""

# To the type checker, a jit function that is called by another never returns.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from ..update import control_of, update_rows


@triton.jit(do_not_specialize=["t", "rows_total", "R"])
def inputs_kernel(
    x_ptr, v_ptr, low_ptr, high_ptr, out_ptr, scale_ptr, b_ptr, inv_k_ptr, z_ptr, t, rows_total, R, b_stride,
    T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, COLUMNS: tl.constexpr, B_COLUMNS: tl.constexpr,
    BOUNDING: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Inputs `z [rows, COLUMNS]` of a network for the states and controls from step t on.

    With `out [rows, COLUMNS]` the state of step t is first made from the one before it, and written to `x [R, T+1, NX]`;
    without `z` that is all. Without `v` the controls are left out, without `inv_k` the division. `b` has B_COLUMNS columns
    and a row a problem, or one at stride 0.
    """
    n, problem, step, inside = rows_of_steps(t, rows_total, R, BLOCK_B)
    cols = tl.arange(0, COLUMNS)[None, :]
    if out_ptr is None:
        x = states(problem, step, inside, cols, x_ptr, T, NX)
    else:
        out = tl.load(out_ptr + n * COLUMNS + cols, mask=inside & (cols < NX), other=0.0)
        x = next_states(out, problem, step, inside, cols, x_ptr, scale_ptr, T, NX)
        keep_states(x, problem, step, inside, cols, x_ptr, T, NX)
    if z_ptr is not None:
        z = inputs(
            x, problem, step, inside, cols, v_ptr, low_ptr, high_ptr, b_ptr, b_stride, inv_k_ptr, T, NX, NU, B_COLUMNS,
            BOUNDING,
        )  # fmt: skip
        tl.store(z_ptr + n * COLUMNS + cols, z.to(z_ptr.dtype.element_ty), mask=inside)


@triton.jit
def states(problem, step, inside, cols, x_ptr, T: tl.constexpr, NX: tl.constexpr):
    """States of the steps, in the first columns."""
    return tl.load(x_ptr + (problem * (T + 1) + step) * NX + cols, mask=inside & (cols < NX), other=0.0)


@triton.jit
def next_states(out, problem, step, inside, cols, x_ptr, scale_ptr, T: tl.constexpr, NX: tl.constexpr):
    """The same of the steps before, and what the dynamics' network says of these."""
    x = states(problem, step - 1, inside, cols, x_ptr, T, NX) + tl.load(scale_ptr + cols) * out
    return tl.where(cols < NX, x, 0.0)


@triton.jit
def keep_states(x, problem, step, writes, cols, x_ptr, T: tl.constexpr, NX: tl.constexpr):
    """Write them where a row `writes`."""
    tl.store(x_ptr + (problem * (T + 1) + step) * NX + cols, x, mask=writes & (cols < NX))


@triton.jit
def inputs(
    x, problem, step, inside, cols, v_ptr, low_ptr, high_ptr, b_ptr, b_stride, inv_k_ptr, T: tl.constexpr, NX: tl.constexpr,
    NU: tl.constexpr, B_COLUMNS: tl.constexpr, BOUNDING: tl.constexpr,
):  # fmt: skip
    """Inputs of a network for states in the first columns, zeros behind them."""
    z = x
    if v_ptr is not None:
        is_u = inside & (cols >= NX) & (cols < NX + NU)
        v = tl.load(v_ptr + (problem * T + step) * NU + cols - NX, mask=is_u, other=0.0)
        if BOUNDING == "tanh":
            low = tl.load(low_ptr + problem * NU + cols - NX, mask=is_u, other=-1.0)
            high = tl.load(high_ptr + problem * NU + cols - NX, mask=is_u, other=1.0)
            v = control_of(v, low, high, BOUNDING)
        z = tl.where(is_u, v, z)
    z = z - tl.load(b_ptr + problem * b_stride + cols, mask=inside & (cols < B_COLUMNS), other=0.0)
    if inv_k_ptr is not None:
        z = z * tl.load(inv_k_ptr + cols)
    return z


@triton.jit(do_not_specialize=["rows_total", "R"])
def cost_kernel(
    grad_ptr, of_ptr, inv_k_ptr, value_ptr, pull_ptr, rows_total, R,
    STEPS: tl.constexpr, COLUMNS: tl.constexpr, OUT_COLUMNS: tl.constexpr, SIGN: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Values of a cost at `value [R, STEPS]` and its gradient at `pull [rows, COLUMNS]`.

    With `inv_k` the cost is SIGN · network: `of [rows, OUT_COLUMNS]` is its output, whose first column counts, and `grad`
    its input-gradient. Without, it is quadratic, ½ dᵀ S d: `of` holds d = z − goal and `grad`, in `pull` already, S d.
    """
    n, problem, step, inside = rows_of_steps(0, rows_total, R, BLOCK_B)
    cols = tl.arange(0, COLUMNS)[None, :]
    at = n * COLUMNS + cols
    pull = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if inv_k_ptr is None:
        value = tl.sum(tl.load(of_ptr + at, mask=inside, other=0.0) * pull, 1)[:, None] / 2
    else:
        value = SIGN * tl.load(of_ptr + n * OUT_COLUMNS, mask=inside, other=0.0)
        tl.store(pull_ptr + at, pull * tl.load(inv_k_ptr + cols) * SIGN, mask=inside)
    tl.store(value_ptr + problem * STEPS + step, value, mask=inside)


@triton.jit(do_not_specialize=["i", "rows_total", "R"])
def score_kernel(
    out_ptr, inv_k_ptr, gain_ptr, level_ptr, beta_ptr, score_ptr, pull_ptr, i, rows_total, R,
    T: tl.constexpr, NZ: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Scores of iteration i at `score [R, T, NZ]`, from the network's output `[rows, COLUMNS]`; β times them off `pull`."""
    n, problem, step, inside = rows_of_steps(0, rows_total, R, BLOCK_B)
    cols = tl.arange(0, COLUMNS)[None, :]
    mask = inside & (cols < NZ)
    gain = tl.load(gain_ptr + tl.load(level_ptr + i))
    s = tl.load(out_ptr + n * COLUMNS + cols, mask=mask, other=0.0) * tl.load(inv_k_ptr + cols) * gain
    tl.store(score_ptr + (problem * T + step) * NZ + cols, s, mask=mask)
    pull = tl.load(pull_ptr + n * COLUMNS + cols, mask=mask, other=0.0)
    tl.store(pull_ptr + n * COLUMNS + cols, pull - tl.load(beta_ptr + i) * s, mask=mask)


@triton.jit(do_not_specialize=["t", "R"])
def adjoint_kernel(
    pull_ptr, grad_ptr, inv_k_ptr, scale_ptr, costate_ptr, grad_u_ptr, cotangent_ptr, t, R,
    T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Step t of the backward sweep: `costate [R, T+1, NX]`, `grad_u [R, T, NU]`, and the next cotangent λ ⊙ scale.

    `grad [R, COLUMNS]` is the dynamics' input-gradient at step t; None behind which there is no cost: at the end of the
    horizon, where λ is `pull`, the terminal cost's gradient, or at its last step, where there is no such cost.
    """
    n, problem, step, inside = rows_of_steps(t, R, R, BLOCK_B)
    cols = tl.arange(0, COLUMNS)[None, :]
    cotangent = adjoint(
        n, problem, step, inside, inside, cols, pull_ptr, grad_ptr, inv_k_ptr, scale_ptr, costate_ptr, grad_u_ptr, T, NX, NU,
        COLUMNS, BLOCK_B,
    )  # fmt: skip
    tl.store(cotangent_ptr + n * COLUMNS + cols, cotangent, mask=inside)


@triton.jit
def adjoint(
    n, problem, step, inside, writes, cols, pull_ptr, grad_ptr, inv_k_ptr, scale_ptr, costate_ptr, grad_u_ptr,
    T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The cotangent of `adjoint_kernel`; costates and gradients are written where a row `writes`."""
    at = n * COLUMNS + cols
    x_at = (problem * (T + 1) + step) * NX + cols
    # All is asked for before anything is stored, which no load passes.
    scale = tl.load(scale_ptr + cols)
    g = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
    if pull_ptr is not None:
        g += tl.load(pull_ptr + at, mask=inside, other=0.0)
    if grad_ptr is not None:
        behind = tl.load(costate_ptr + x_at + NX, mask=inside & (cols < NX), other=0.0)
        g += tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(inv_k_ptr + cols)
    is_u = writes & (step < T) & (cols >= NX) & (cols < NX + NU)
    tl.store(grad_u_ptr + (problem * T + step) * NU + cols - NX, g, mask=is_u)
    if grad_ptr is not None:
        g += behind
    tl.store(costate_ptr + x_at, g, mask=writes & (cols < NX))
    # A control's gradient that overflowed must not reach the states as 0 · ∞.
    return tl.where(inside & (cols < NX), g * scale, 0.0)


@triton.jit(do_not_specialize=["i", "settled", "moves", "rows_total"])
def update_kernel(
    search, step_size_ptr, i, settled, moves, rows_total,
    OPTIONS: tl.constexpr, T: tl.constexpr, NU: tl.constexpr, CHUNK: tl.constexpr, BOUNDING: tl.constexpr,
    CHANGE: tl.constexpr, HISTORY: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Judge all problems after their evaluation in iteration i, and move them or not; see `update.update_rows`.

    OPTIONS are constants, so that differences such as 1 − β₂ are taken in double precision.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside, step_size = rows < rows_total, tl.load(step_size_ptr + i)
    update_rows(
        search, rows, inside, tl.arange(0, CHUNK)[None, :], i, step_size, settled != 0, moves != 0, OPTIONS, T, NU, BOUNDING,
        CHANGE, HISTORY,
    )  # fmt: skip


@triton.jit
def rows_of_steps(t, rows_total, R, BLOCK_B: tl.constexpr):
    """This program's rows `[BLOCK_B, 1]`: their numbers, problems and steps from t on, and which of them exist."""
    n = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]  # divided in 32 bits: 64 are slow
    return n.to(tl.int64), (n % R).to(tl.int64), t + n // R, n < rows_total
