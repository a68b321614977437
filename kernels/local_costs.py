"""Costs that are no network, in kernels written in Gluon: a program computes them by itself, of rows that it wrote down.

    row       t · problems + problem     T · problems + problem
    inputs    (x_t, u_t)                 (x_T, 0)
    pull      ∂_z c_t                    the terminal cost's gradient
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

import triton.language as tl

from .function import function_cost
from .gluon import gl, jit, thread_barrier


@jit
def quadratic(
    grad, matrix, goal, own_goal, inputs, problem, row, there, cols, COLUMNS: tl.constexpr, N: tl.constexpr, NX: tl.constexpr
):
    """The gradient `S d` of quadratic costs `½ dᵀ S d`, d = z − goal, and d, of the rows `row`, of which some are `there`.

    `grad` is zeros, in rows and columns or in columns and rows: rows, problems and `cols` lie as they do in it. S is
    `[N, N]`, the rows of `inputs` are COLUMNS wide.
    """
    for first in range(0, N, 8):
        for j in gl.static_range(8):
            d = _from_goal(goal, own_goal, inputs, problem, row, there, first + j, COLUMNS, N, NX)
            grad += d * gl.load(matrix + (first + j) * N + cols, mask=cols < N, other=0.0)
    return grad, _from_goal(goal, own_goal, inputs, problem, row, there, cols, COLUMNS, N, NX)


@jit
def _from_goal(
    goal, own_goal, inputs, problem, row, there, k, COLUMNS: tl.constexpr, N: tl.constexpr, NX: tl.constexpr
):
    """Columns k of z − goal: each problem's goal, or the cost's own."""
    there = there & (k < N)
    z = gl.load(inputs + row * COLUMNS + k, mask=there, other=0.0)
    if goal is None:
        return z - gl.load(own_goal + row * 0 + k, mask=there, other=0.0)
    else:
        return z - gl.load(goal + problem * NX + k, mask=there & (k < NX), other=0.0)


@jit
def traced(
    values, costs, inputs, pull, first_problem, problems_total, keeps, FUNCTION: tl.constexpr, FIRST: tl.constexpr,
    STEPS: tl.constexpr, PROBLEMS: tl.constexpr, COLUMNS: tl.constexpr, NX: tl.constexpr, PARAMS: tl.constexpr,
):  # fmt: skip
    """Values and gradients of a traced cost at STEPS steps from FIRST on; a thread has a row at a time.

    Who `keeps` the values writes them down. No thread may read what it gives before a barrier.
    """
    WARPS: tl.constexpr = gl.num_warps()
    ROWS: tl.constexpr = STEPS * PROBLEMS
    inputs += FIRST * PROBLEMS * COLUMNS
    pull += FIRST * PROBLEMS * COLUMNS
    zeros = gl.zeros([32 * WARPS], gl.float32, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
    number = gl.arange(0, 32 * WARPS, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
    for first in range(0, ROWS * COLUMNS, 32 * WARPS):
        gl.store(pull + first + number, zeros, mask=first + number < ROWS * COLUMNS)  # not all columns need have a gradient
    thread_barrier()
    for first in range(0, ROWS, 32 * WARPS):
        row = first + number
        problem, step = first_problem + row % PROBLEMS, row // PROBLEMS
        there = (row < ROWS) & (problem < problems_total)
        value = function_cost(
            inputs + row * COLUMNS, costs.goal, costs.params, problem, FIRST + step, pull + row * COLUMNS, there, FUNCTION,
            NX, PARAMS,
        )  # fmt: skip
        gl.store(values + problem * STEPS + step, value, mask=there & keeps)
