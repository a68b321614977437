"""Costs and scores in the ring regime: values, and what they pull at states and controls, p = ∂_z c − β s, of all steps.

What is no network, a quadratic cost or a traced one, is computed of rows that the program writes down for it: `local_costs`.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

import triton.language as tl

from ..gluon import gl, jit, thread_barrier
from ..local_costs import quadratic, traced
from .network import Net, backward, forward
from .rows import inputs_of, normalised, place_of_row, row, rows_of
from .tiles import sums


@jit
def costs_and_scores(
    cost, cost_vectors, score, score_vectors, gain, beta, costs, at, search, scratch, block, y, ring, n, COST: tl.constexpr,
    SCORE: tl.constexpr, FUNCTION: tl.constexpr, PARAMS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr,
    PLAN: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr,
):  # fmt: skip
    """Costs, scores and the pull of all steps, some steps at once; the count of tiles behind them."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].many
    STEPS: tl.constexpr = PLAN[2].steps
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    net = Net(cost_vectors, scratch.cost_saved, scratch.cost_moments, block.room, block.zero)
    score_net = Net(score_vectors, scratch.cost_saved, scratch.cost_moments, block.room, block.zero)
    if COST is None:
        _local_costs(costs, at, search, scratch, block, FUNCTION, PARAMS, COLUMNS, N, PLAN, NX, NU, BOUNDING)
    if COST is not None or SCORE is not None:
        for t in range(0, T, STEPS):
            problem, step, inside, cols = rows_of(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
            z = inputs_of(at, search, problem, step, inside, cols, NX, NU, T, BOUNDING)
            pull = gl.zeros([ROWS, COLUMNS], gl.float32, layout=LAYOUT)
            if COST is not None:
                value, n = forward(normalised(z, cost, cols, NX + NU), y, ring, n, net, COST, ROWS, PLAN, 0, True)
                value = gl.convert_layout(_first_column(value, ROWS, COST.out_columns), gl.SliceLayout(1, LAYOUT))
                problem, step, inside, cols = rows_of(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
                gl.store(search.running + problem * T + step, value, mask=inside)
                pull, n = backward(_in_first_column(1.0, ROWS, COST.out_columns), y, ring, n, net, COST, ROWS, PLAN, 0)
                problem, step, inside, cols = rows_of(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
                pull *= row(cost.inv_k, cols, NX + NU)
            if SCORE is not None:
                s, n = forward(normalised(z, score, cols, NX + NU), y, ring, n, score_net, SCORE, ROWS, PLAN, 0, False)
                problem, step, inside, cols = rows_of(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
                s *= row(score.inv_k, cols, NX + NU) * gain
                is_z = inside[:, None] & (cols < NX + NU)[None, :]
                gl.store(at.score + (problem * T + step)[:, None] * (NX + NU) + cols[None, :], s, mask=is_z)
                pull -= beta * s
            place = place_of_row(problem, step, block, PLAN)[:, None] * COLUMNS + cols[None, :]
            if COST is None:
                pull += gl.load(scratch.pull + place, mask=(step < T)[:, None], other=0.0)
                thread_barrier()  # several threads may read what one of them writes
            gl.store(scratch.pull + place, pull, mask=(step < T)[:, None])
    return n


@jit
def _local_costs(
    costs, at, search, scratch, block, FUNCTION: tl.constexpr, PARAMS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr,
    PLAN: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr,
):  # fmt: skip
    """Costs of all steps that are no network, and what they pull."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].many
    STEPS: tl.constexpr = PLAN[2].steps
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    for t in range(0, T, STEPS):
        problem, step, inside, cols = rows_of(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
        z = inputs_of(at, search, problem, step, inside, cols, NX, NU, T, BOUNDING)
        place = place_of_row(problem, step, block, PLAN)[:, None] * COLUMNS + cols[None, :]
        gl.store(scratch.inputs + place, z, mask=(step < T)[:, None])
    thread_barrier()
    if FUNCTION is not None:
        traced(
            search.running, costs, scratch.inputs, scratch.pull, block.first, block.total, True, FUNCTION, 0, T,
            PLAN[2].problems, COLUMNS, NX, PARAMS,
        )  # fmt: skip
    else:
        for t in range(0, T, STEPS):
            problem, step, inside, cols = rows_of(block, t, ROWS, STEPS, PLAN, COLUMNS, LAYOUT)
            at_row = place_of_row(problem, step, block, PLAN)
            value, grad = _quadratic(
                costs.running, costs.goal, costs.own_goal, scratch, problem, at_row, inside, cols, ROWS, COLUMNS, N, NX
            )
            gl.store(search.running + problem * T + step, value, mask=inside)
            gl.store(scratch.pull + at_row[:, None] * COLUMNS + cols[None, :], grad, mask=(step < T)[:, None])
    thread_barrier()


@jit
def terminal_cost(
    terminal, vectors, costs, at, search, scratch, block, y, ring, n, TERMINAL: tl.constexpr, FUNCTION: tl.constexpr,
    PARAMS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, PLAN: tl.constexpr, NX: tl.constexpr,
):  # fmt: skip
    """The cost of the last states, and its gradient; the count of tiles behind it."""
    T: tl.constexpr = PLAN[1]
    ROWS: tl.constexpr = PLAN[2].few
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    problem, _, inside, cols = rows_of(block, T - 1, ROWS, 1, PLAN, COLUMNS, LAYOUT)  # of the last step's problems
    is_x = inside[:, None] & (cols < NX)[None, :]
    x = gl.load(at.x + (problem * (T + 1) + T)[:, None] * NX + cols[None, :], mask=is_x, other=0.0)
    if TERMINAL is not None:
        net = Net(vectors, scratch.cost_saved, scratch.cost_moments, block.room, block.zero)
        value, n = forward(normalised(x, terminal, cols, NX), y, ring, n, net, TERMINAL, ROWS, PLAN, 0, True)
        value = -gl.convert_layout(_first_column(value, ROWS, TERMINAL.out_columns), gl.SliceLayout(1, LAYOUT))
        problem, _, inside, cols = rows_of(block, T - 1, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        gl.store(search.terminal + problem, value, mask=inside)
        grad, n = backward(_in_first_column(-1.0, ROWS, TERMINAL.out_columns), y, ring, n, net, TERMINAL, ROWS, PLAN, 0)
        problem, _, inside, cols = rows_of(block, T - 1, ROWS, 1, PLAN, COLUMNS, LAYOUT)
        grad *= row(terminal.inv_k, cols, NX)
        at_row = place_of_row(problem, T, block, PLAN)
        gl.store(scratch.pull + at_row[:, None] * COLUMNS + cols[None, :], grad, mask=inside[:, None])
    else:
        at_row = place_of_row(problem, T, block, PLAN)
        gl.store(scratch.inputs + at_row[:, None] * COLUMNS + cols[None, :], x, mask=inside[:, None])
        thread_barrier()
        if FUNCTION is not None:
            traced(
                search.terminal, costs, scratch.inputs, scratch.pull, block.first, block.total, True, FUNCTION, T, 1,
                PLAN[2].problems, COLUMNS, NX, PARAMS,
            )  # fmt: skip
        else:
            value, grad = _quadratic(
                costs.terminal, costs.goal, costs.last_own_goal, scratch, problem, at_row, inside, cols, ROWS, COLUMNS, N, NX
            )
            gl.store(search.terminal + problem, value, mask=inside)
            gl.store(scratch.pull + at_row[:, None] * COLUMNS + cols[None, :], grad, mask=inside[:, None])
    return n


@jit
def _quadratic(
    matrix, goal, own_goal, scratch, problem, at_row, inside, cols, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    N: tl.constexpr, NX: tl.constexpr,
):  # fmt: skip
    """`½ dᵀ S d` of rows, and its gradient `[rows, columns]`."""
    zeros = gl.zeros([ROWS, COLUMNS], gl.float32, layout=sums(ROWS, COLUMNS, gl.num_warps()))
    grad, d = quadratic(
        zeros, matrix, goal, own_goal, scratch.inputs, problem[:, None], at_row[:, None], inside[:, None], cols[None, :],
        COLUMNS, N, NX,
    )  # fmt: skip
    return 0.5 * gl.sum(d * grad, 1), grad


@jit
def _first_column(out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, sums(ROWS, COLUMNS, gl.num_warps())))
    return gl.sum(gl.where((cols == 0)[None, :], out, 0.0), 1)


@jit
def _in_first_column(value, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The cotangent of a value, or of a cost: in the first column."""
    LAYOUT: tl.constexpr = sums(ROWS, COLUMNS, gl.num_warps())
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    return gl.where((cols == 0)[None, :], value, gl.zeros([ROWS, COLUMNS], gl.float32, layout=LAYOUT))
