"""Costs and scores in the relay regime: values, and what they pull at states and controls, p = ∂_z c − β s, of all steps.

A learned cost is a network like the others, whose layers are handed on beside the score's. What is no network, a quadratic
cost or a traced one, every program computes for itself (`local_costs`), while the score's first layer is on its way.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

import triton.language as tl

from ..activations import activate, activate_vjp
from ..gluon import gl, jit, thread_barrier
from ..local_costs import quadratic, traced
from .network import (
    backward,
    begin,
    begin_backward,
    first_weights,
    forward,
    input_gradient,
    input_weights,
    last_slope,
    last_weights,
    last_weights_turned,
    output,
)
from .tiles import columns_of_rows


@jit
def costs_and_scores(
    cost, net, score, score_net, gain, beta, costs, at, search, scratch, group, program, COST: tl.constexpr,
    SCORE: tl.constexpr, FUNCTION: tl.constexpr, PARAMS: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """Costs, scores and the pull of all steps, eight rows at once; the layers of the two networks side by side."""
    RELAY: tl.constexpr = PLAN[0]
    T: tl.constexpr = PLAN[1]
    NZ: tl.constexpr = PLAN[2] + PLAN[3]
    COLUMNS: tl.constexpr = PLAN[5]
    ROWS: tl.constexpr = T * RELAY.problems
    BLOCKS: tl.constexpr = RELAY.blocks(T)
    LAST: tl.constexpr = 0 if COST is None else len(COST.operations) - 1
    SCORE_LAST: tl.constexpr = 0 if SCORE is None else len(SCORE.operations) - 1
    w, score_w = net, score_net  # of what is not there nothing is read
    if COST is not None:
        w = first_weights(net, program, COST, RELAY)
    if SCORE is not None:
        score_w = first_weights(score_net, program, SCORE, RELAY)
    for block in range(BLOCKS):
        problem, step, inside, row, cols = steps_of(group, block, COLUMNS, PLAN)
        z = gl.load(scratch.inputs + row * COLUMNS + cols, mask=row < ROWS, other=0.0)
        if COST is not None:
            begin(w, normalised(z, cost, cols, NZ), net, block, program, COST, 8, RELAY)
        if SCORE is not None:
            begin(score_w, normalised(z, score, cols, NZ), score_net, block, program, SCORE, 8, RELAY)
    if FUNCTION is not None:
        _traced(search.running, costs, scratch, group, FUNCTION, 0, T, PARAMS, PLAN)
    elif COST is None:
        for block in range(BLOCKS):
            problem, step, inside, row, cols = steps_of(group, block, COLUMNS, PLAN)
            there = inside & (row < ROWS)
            value, grad = _quadratic(costs.running, costs.goal, costs.own_goal, scratch, problem, row, there, cols, PLAN)
            _keep_values(search.running + problem * T + step, value, cols, there & group.leads)
            gl.store(scratch.pull + row * COLUMNS + cols, grad, mask=row < ROWS)
    for i in gl.static_range(1, max(LAST, SCORE_LAST)):
        if i < LAST:
            forward(net, 0, BLOCKS, program, i, COST, 8, RELAY, True, False)
        if i < SCORE_LAST:
            forward(score_net, 0, BLOCKS, program, i, SCORE, 8, RELAY, False, False)
    if COST is not None:
        w, turned = last_weights(net, COST), last_weights_turned(net, program, COST, RELAY)
        for block in range(BLOCKS):
            h = output(w, net, block, program, COST, 8, True)
            problem, step, inside, row, cols = steps_of(group, block, COLUMNS, PLAN)
            _keep_values(search.running + problem * T + step, _value(h, COST, 1.0, PLAN), cols, inside & group.leads)
            _begin_gradient(h, turned, net, block, program, COST, 1.0, RELAY)
    if SCORE is not None:
        SCORE_KIND: tl.constexpr = SCORE.operations[SCORE_LAST].activation
        w = last_weights(score_net, SCORE)
        for block in range(BLOCKS):
            h = output(w, score_net, block, program, SCORE, 8, False)
            problem, step, inside, row, cols = steps_of(group, block, COLUMNS, PLAN)
            s = activate(h, SCORE_KIND, False) * column(score.inv_k, cols, NZ) * gain
            gl.store(at.score + (problem * T + step) * NZ + cols, s, mask=inside & (cols < NZ) & group.leads)
            pull = -beta * s
            if COST is None:
                pull += _pulled(row, scratch, cols, COLUMNS, ROWS)
            gl.store(scratch.pull + row * COLUMNS + cols, pull, mask=row < ROWS)
    if COST is not None:
        for j in gl.static_range(LAST - 1):
            backward(net, 0, BLOCKS, program, LAST - 1 - j, COST, 8, RELAY, False)
        w = input_weights(net, COST)
        for block in range(BLOCKS):
            grad = input_gradient(w, net, block, program, COST, 8)
            problem, step, inside, row, cols = steps_of(group, block, COLUMNS, PLAN)
            pull = grad * column(cost.inv_k, cols, NZ)
            if SCORE is not None:
                pull += _pulled(row, scratch, cols, COLUMNS, ROWS)
            gl.store(scratch.pull + row * COLUMNS + cols, pull, mask=row < ROWS)


@jit
def terminal_cost(
    terminal, net, costs, search, scratch, group, program, TERMINAL: tl.constexpr, FUNCTION: tl.constexpr,
    PARAMS: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """The cost of the last states, and its gradient."""
    RELAY: tl.constexpr = PLAN[0]
    T: tl.constexpr = PLAN[1]
    NX: tl.constexpr = PLAN[2]
    COLUMNS: tl.constexpr = PLAN[5]
    problem, inside, rows, cols = problems_of(group, COLUMNS, RELAY.problems)
    row = T * RELAY.problems + rows
    if FUNCTION is not None:
        _traced(search.terminal, costs, scratch, group, FUNCTION, T, 1, PARAMS, PLAN)
    else:
        if TERMINAL is not None:
            LAST: tl.constexpr = len(TERMINAL.operations) - 1
            z = gl.load(scratch.inputs + row * COLUMNS + cols, mask=rows < RELAY.problems, other=0.0)
            w = first_weights(net, program, TERMINAL, RELAY)
            begin(w, normalised(z, terminal, cols, NX), net, 0, program, TERMINAL, 8, RELAY)
            for i in gl.static_range(1, LAST):
                forward(net, 0, 1, program, i, TERMINAL, 8, RELAY, True, False)
            w, turned = last_weights(net, TERMINAL), last_weights_turned(net, program, TERMINAL, RELAY)
            h = output(w, net, 0, program, TERMINAL, 8, True)
            value = _value(h, TERMINAL, -1.0, PLAN)
            _keep_values(search.terminal + problem, value, cols, inside & group.leads)
            _begin_gradient(h, turned, net, 0, program, TERMINAL, -1.0, RELAY)
            for j in gl.static_range(LAST - 1):
                backward(net, 0, 1, program, LAST - 1 - j, TERMINAL, 8, RELAY, False)
            grad = input_gradient(input_weights(net, TERMINAL), net, 0, program, TERMINAL, 8)
            grad *= column(terminal.inv_k, cols, NX)
        else:
            aim = costs.last_own_goal
            value, grad = _quadratic(costs.terminal, costs.goal, aim, scratch, problem, row, inside, cols, PLAN)
            _keep_values(search.terminal + problem, value, cols, inside & group.leads)
        gl.store(scratch.pull + row * COLUMNS + cols, grad, mask=rows < RELAY.problems)


@jit
def _value(h, NET: tl.constexpr, SIGN: tl.constexpr, PLAN: tl.constexpr):
    """SIGN times a network's value of each of eight rows, of its last layer before the activation."""
    OUT: tl.constexpr = NET.out_columns
    KIND: tl.constexpr = NET.operations[len(NET.operations) - 1].activation
    outputs = gl.arange(0, OUT, layout=gl.SliceLayout(1, columns_of_rows(OUT, gl.num_warps())))[:, None]
    value = gl.sum(gl.where(outputs == 0, SIGN * activate(h, KIND, False), 0.0), 0)  # what is padding may be NaN
    return gl.convert_layout(value, gl.SliceLayout(0, columns_of_rows(PLAN[5], gl.num_warps())))


@jit
def _begin_gradient(
    h, turned, net, block, program, NET: tl.constexpr, SIGN: tl.constexpr, RELAY: tl.constexpr
):
    """Leave what goes back from it to the last hidden layer."""
    OUT: tl.constexpr = NET.out_columns
    KIND: tl.constexpr = NET.operations[len(NET.operations) - 1].activation
    LAYOUT: tl.constexpr = columns_of_rows(OUT, gl.num_warps())
    outputs = gl.arange(0, OUT, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    signs = gl.zeros([OUT, 8], gl.float32, layout=LAYOUT) + SIGN
    seed = gl.where(outputs == 0, activate_vjp(signs, h, KIND), 0.0)
    slope = last_slope(net, block, program, NET, 8, RELAY)
    begin_backward(turned, seed, slope, net, block, program, NET, 8, RELAY)


@jit
def _quadratic(
    matrix, goal, own_goal, scratch, problem, row, there, cols, PLAN: tl.constexpr
):
    """`½ dᵀ S d` of eight rows, and its gradient `[columns, 8]`."""
    COLUMNS: tl.constexpr = PLAN[5]
    zeros = gl.zeros([COLUMNS, 8], gl.float32, layout=columns_of_rows(COLUMNS, gl.num_warps()))
    grad, d = quadratic(
        zeros, matrix, goal, own_goal, scratch.inputs, problem, row, there, cols, COLUMNS, COLUMNS, PLAN[2]
    )
    return 0.5 * gl.sum(d * grad, 0), grad


@jit
def _traced(
    values, costs, scratch, group, FUNCTION: tl.constexpr, FIRST: tl.constexpr, STEPS: tl.constexpr, PARAMS: tl.constexpr,
    PLAN: tl.constexpr,
):  # fmt: skip
    traced(
        values, costs, scratch.inputs, scratch.pull, group.first, group.total, group.leads, FUNCTION, FIRST, STEPS,
        PLAN[0].problems, PLAN[5], PLAN[2], PARAMS,
    )  # fmt: skip
    thread_barrier()


@jit
def _keep_values(place, value, cols, mask):
    """Values of rows, `[8]`, for whom they are: one of the threads that have them."""
    gl.store(place + cols * 0, value[None, :] + cols * 0.0, mask=mask & (cols == 0))


@jit
def _pulled(row, scratch, cols, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """What was pulled so far, by all threads that are to write it."""
    pull = gl.load(scratch.pull + row * COLUMNS + cols, mask=row < ROWS, other=0.0)
    thread_barrier()  # several may read what one of them writes
    return pull


@jit
def problems_of(group, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Of `[COLUMNS, 8]`: each row's problem, whether there is such a one, the row, and the columns."""
    LAYOUT: tl.constexpr = columns_of_rows(COLUMNS, gl.num_warps())
    rows = gl.arange(0, 8, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    problem = group.first + rows
    return problem, (rows < ROWS) & (problem < group.total), rows, cols


@jit
def steps_of(group, block, COLUMNS: tl.constexpr, PLAN: tl.constexpr):
    """Of a block of eight rows: each row's problem, its step, whether there are such, which row it is; and the columns."""
    PROBLEMS: tl.constexpr = PLAN[0].problems
    _, _, rows, cols = problems_of(group, COLUMNS, 8)
    row = block * 8 + rows
    problem, step = group.first + row % PROBLEMS, row // PROBLEMS
    return problem, step, (problem < group.total) & (step < PLAN[1]), row, cols


@jit
def normalised(z, model, cols, N: tl.constexpr):
    """z̄ = (z − b)·inv_k, of the first N columns."""
    return (z - column(model.b, cols, N)) * column(model.inv_k, cols, N)


@jit
def column(ptr, cols, N: tl.constexpr):
    """Numbers of the first columns, and zeros in those behind them."""
    return gl.load(ptr + cols, mask=cols < N, other=0.0)
