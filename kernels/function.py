"""A traced cost over many rows: values and gradients of every step of every problem, a row a lane.

    value [R, STEPS],  pull [rows, COLUMNS] = ∂_z c        rows are those of `sweeps.py`: problem n mod R at step n div R

`function_cost` is the same for the rows of a block, inside other kernels. The twin of either is `Expression.evaluate`.
"""

# To the type checker, a jit function that is called by another never returns; and a constant is not what it holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first", "rows_total", "R"])
def function_kernel(
    z_ptr, goal_ptr, params_ptr, value_ptr, pull_ptr, first, rows_total, R, FUNCTION: tl.constexpr, STEPS: tl.constexpr,
    COLUMNS: tl.constexpr, NX: tl.constexpr, PARAMS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Of `z [rows, COLUMNS]`, the rows' states and controls; goal `[R, NX]` and params `[R, PARAMS]`, or None.

    `first` is the step of row 0. `pull` must hold zeros: columns without a gradient are not written.
    """
    n = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = n < rows_total
    problem, step, n = (n % R).to(tl.int64), n // R, n.to(tl.int64)
    z, out = z_ptr + n * COLUMNS, pull_ptr + n * COLUMNS
    value = function_cost(z, goal_ptr, params_ptr, problem, first + step, out, inside, FUNCTION, NX, PARAMS)
    tl.store(value_ptr + problem * STEPS + step, value, mask=inside)


@triton.jit
def function_cost(
    z, goal_ptr, params_ptr, problem, t, out, inside, FUNCTION: tl.constexpr, NX: tl.constexpr, PARAMS: tl.constexpr
):
    """The values `[rows]` of a traced cost; its gradient goes to `out`.

    z and out point at a row each; FUNCTION is a `traced.triton_code.device_function`.
    """
    goal, params = z, z  # what is not there is not read
    if goal_ptr is not None:
        goal = goal_ptr + problem * NX
    if params_ptr is not None:
        params = params_ptr + problem * PARAMS
    return FUNCTION(z, goal, params, t, out, inside)
