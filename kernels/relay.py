"""Relay regime: few problems, whose layers the programs of a group share, and hand on word by word without a barrier.

    program        0            1            2       …   P−1
    layer i      │ columns    │ columns    │ columns    │ …       each publishes its columns as words (`exchange`)
                   ╲  ╳  ╳  ╱
    layer i + 1  │ columns    │ columns    │ columns    │ …       each gathers the whole row, and goes on when it is there

A plan of few problems is one layer behind the other, some thousands of them, and what a layer takes is the time to hand it
on: here one store and one load of the L2. Weights are asked for while the row is on its way. States, costates and pulls are
computed by every program, for itself, and so may a narrow network's first layer be, and backward its last (`Relay.whole`);
the first program of a group steps and publishes the controls.

    rollout   t = 0 … T−1    x_{t+1} = x_t + scale ⊙ dynamics(x_t, u_t)
    costs     all t          cost and its gradient, score, the pull p_t = ∂_z c − β s             eight rows at once
    adjoint   t = T−1 … 0    (λ, g_t) = p_t + (λ, 0) + (∂_z f)ᵀ λ

Every layer of every step has words of its own, which the next iteration writes over, with another stamp. By then all have
read them: a program goes on to publish only what it made of them, and who writes over them has waited for all of that.

Networks are plain, and 16 columns a warp wide at least (`uncovered_by_relay`); products are of 16 bits. `relay_network` has
their layers, `relay_rows` the rows and products of a layer, `relay_tiles` the cut. Written in Gluon, for sm_90 and later;
`gluon_interpreted` says how it is tested without, with one program a group.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import activate, activate_vjp
from .exchange import gather, publish, shortened
from .gluon import gl, jit, thread_barrier
from .relay_network import (
    backward,
    begin,
    begin_backward,
    begin_backward_whole,
    begin_whole,
    first_weights,
    first_weights_whole,
    forward,
    input_gradient,
    input_weights,
    last_slope,
    last_slope_whole,
    last_weights,
    last_weights_turned,
    last_weights_turned_whole,
    output,
)
from .relay_rows import Net, Program
from .relay_tiles import columns_of_rows, plain, some, split_numbers
from .update import control_of, update_rows


class Matrices(NamedTuple):
    """Pointers to weights as products read them, and to their transposes: see `relay_tiles.copies_for`."""

    dynamics: Any
    dynamics_turned: Any
    cost: Any
    cost_turned: Any
    score: Any


class Scratch(NamedTuple):
    """Pointers to what lies in memory, one group's or one program's behind the other's.

    words                     of groups, int64, by kind: `relay_tiles.words_of`
    saved, moments            of programs, of the dynamics, `[T, …]` as `packing` counts them
    cost_saved, cost_moments  of programs, of the cost, by blocks of eight rows
    controls                  of programs, `[problems, T · NU]` padded, float32
    inputs, pull              of programs, `[T · problems, columns]` float32: (x, u), and the gradient in it
    """

    words: Any
    saved: Any
    moments: Any
    cost_saved: Any
    cost_moments: Any
    controls: Any
    inputs: Any
    pull: Any


class Group(NamedTuple):
    """The problems of a program's group, and which program it is: the first one `leads`."""

    first: Any
    total: Any
    number: Any
    leads: Any


@jit(do_not_specialize=["rows_total", "first", "last", "settled", "moves", "only_diverged"])
def relay_kernel(
    dynamics, score, cost, matrices, scale_ptr, gain_ptr, at, search, beta_ptr, level_ptr, step_size_ptr, scratch,
    rows_total, first, last, settled, moves, only_diverged,
    DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, RELAY: tl.constexpr, T: tl.constexpr,
    NX: tl.constexpr, NU: tl.constexpr, CONTROLS: tl.constexpr, CHUNK: tl.constexpr, WORDS: tl.constexpr,
    BOUNDING: tl.constexpr, CHANGE: tl.constexpr, HISTORY: tl.constexpr, OPTIONS: tl.constexpr,
):  # fmt: skip
    """Iterations `first … last−1` of the groups' problems; where nothing `moves` they are evaluated and judged.

    All words are zero at the start. `only_diverged`, which is for a single iteration, skips groups in which no problem has
    diverged. WORDS are where the words of a group begin, each kind behind the other, and how many there are.
    """
    PROBLEMS: tl.constexpr = RELAY.problems
    PROGRAMS: tl.constexpr = RELAY.programs
    WARPS: tl.constexpr = gl.num_warps()
    PLAN: tl.constexpr = (RELAY, T, NX, NU, CONTROLS)
    pid = gl.program_id(0).to(gl.int64)
    number = (pid % PROGRAMS).to(gl.int32)
    group = Group(pid // PROGRAMS * PROBLEMS, rows_total, number, number == 0)
    words = scratch.words + pid // PROGRAMS * WORDS[6]
    control_words = words + WORDS[4]
    if only_diverged != 0:
        first += 1 - _any_diverged(words + WORDS[5], search, group, PLAN)  # a pass is one iteration: none is left then
    DEEPEST: tl.constexpr = _deepest(DYNAMICS, SCORE, COST)
    y = gl.allocate_shared_memory(dynamics.weights.dtype.element_ty, [8, DEEPEST], plain(2))
    y.store(gl.zeros([8, DEEPEST], y.dtype, layout=some(8, DEEPEST, WARPS)))  # of fewer rows the others stay
    room = (
        gl.allocate_shared_memory(gl.float32, [8, WARPS], plain(2)),
        gl.allocate_shared_memory(gl.float32, [8, WARPS], plain(2)),
    )
    own = _own(scratch, pid, DYNAMICS, COST, PLAN)
    steps = T
    if T > 1:  # words of the dynamics have to stand between those of one iteration's costs and the next one's
        steps = T - (moves != 0).to(gl.int32)  # x_T has no cost, and is wanted of a plan alone
    if group.leads:
        _give_controls(control_words, 1, search, group, PLAN, BOUNDING)
    for i in range(first, last):
        program = Program(number, i - first + 1, y, room)
        _take_controls(control_words, program, group, own, PLAN)
        thread_barrier()
        level, beta, gain = gl.load(level_ptr + i), gl.load(beta_ptr + i), 0.0
        dynamics_net = Net(
            matrices.dynamics, matrices.dynamics_turned, dynamics.vectors, dynamics.vectors, words, words + WORDS[0],
            own.saved, own.moments,
        )  # fmt: skip
        cost_net = Net(
            matrices.cost, matrices.cost_turned, cost.vectors, cost.vectors, words + WORDS[1], words + WORDS[2],
            own.cost_saved, own.cost_moments,
        )  # fmt: skip
        score_net = cost_net  # without a score nothing reads it
        if SCORE is not None:
            condition = score.vectors
            if SCORE.embedding >= 0:
                condition += SCORE.embedding + level * SCORE.condition_columns
            score_net = Net(
                matrices.score, matrices.score, score.vectors, condition, words + WORDS[3], words + WORDS[3],
                own.cost_saved, own.cost_moments,
            )  # fmt: skip
            gain = gl.load(gain_ptr + level)
        _roll_out(dynamics, dynamics_net, steps, scale_ptr, at, own, group, program, DYNAMICS, PLAN)
        thread_barrier()
        _costs_and_scores(
            cost, cost_net, score, score_net, gain, beta, at, search, own, group, program, COST, SCORE, PLAN
        )
        thread_barrier()
        _pull_back(dynamics, dynamics_net, scale_ptr, at, search, own, group, program, DYNAMICS, PLAN)
        thread_barrier()
        if group.leads:
            LAYOUT: tl.constexpr = some(PROBLEMS, CHUNK, WARPS)
            rows = group.first + gl.arange(0, PROBLEMS, layout=gl.SliceLayout(1, LAYOUT))
            chunk = gl.arange(0, CHUNK, layout=gl.SliceLayout(0, LAYOUT))[None, :]
            update_rows(
                search, rows, rows < rows_total, chunk, i, gl.load(step_size_ptr + i), i >= settled, moves != 0, OPTIONS, T,
                NU, BOUNDING, CHANGE, HISTORY,
            )  # fmt: skip
            thread_barrier()
            _give_controls(control_words, program.stamp + 1, search, group, PLAN, BOUNDING)


@triton.constexpr_function
def _deepest(dynamics, score, cost):
    """Of the operands of deep products."""
    return max(op.columns for net in (dynamics, score, cost) if net is not None for op in net.operations[:-1])


@jit
def _own(scratch, pid, DYNAMICS: tl.constexpr, COST: tl.constexpr, PLAN: tl.constexpr):
    """A program's part of the scratch."""
    T: tl.constexpr = PLAN[1]
    STEPS: tl.constexpr = T * PLAN[0].problems
    ROWS: tl.constexpr = PLAN[0].blocks(T) * 8
    return Scratch(
        scratch.words, scratch.saved + pid * (STEPS * DYNAMICS.saved), scratch.moments + pid * (STEPS * DYNAMICS.moments),
        scratch.cost_saved + pid * (ROWS * COST.saved), scratch.cost_moments + pid * (ROWS * COST.moments),
        scratch.controls + pid * (PLAN[0].problems * PLAN[4]), scratch.inputs + pid * (STEPS * DYNAMICS.columns),
        scratch.pull + pid * (STEPS * DYNAMICS.columns),
    )  # fmt: skip


@jit
def _any_diverged(words, search, group, PLAN: tl.constexpr):
    """Whether one of the group's problems has, 0 or 1: what the first program sees, before any of them goes on."""
    PROBLEMS: tl.constexpr = PLAN[0].problems
    WARPS: tl.constexpr = gl.num_warps()
    LAYOUT: tl.constexpr = split_numbers(1, 1, WARPS)
    half = gl.arange(0, 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    if group.leads:
        rows = group.first + gl.arange(0, PROBLEMS, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
        marked = gl.load(search.diverged + rows, mask=rows < group.total, other=0).to(gl.int32)
        flags = gl.where(gl.sum(marked, 0) > 0, 1.0, gl.zeros([1, 1, 2], gl.float32, layout=LAYOUT))
        publish(words + half * 0, half, flags, 1, half >= 0, 1)
    flags = gl.sum(gl.sum(gather(words + half * 0, half, 1, 1), 2), 1)
    return (gl.sum(flags, 0) > 0).to(gl.int32)


@jit
def _give_controls(words, stamp, search, group, PLAN: tl.constexpr, BOUNDING: tl.constexpr):
    """Publish the controls of the group's problems, each in a word of its own, in two parts that are all of it."""
    T: tl.constexpr = PLAN[1]
    NU: tl.constexpr = PLAN[3]
    place, problem, cols, half = _controls(group, PLAN)
    mask = (problem < group.total) & (cols < T * NU)
    u = gl.load(search.v + problem * (T * NU) + cols, mask=mask, other=0.0)
    if BOUNDING == "tanh":
        limit = problem * NU + cols % NU
        low = gl.load(search.low + limit, mask=mask, other=-1.0)
        high = gl.load(search.high + limit, mask=mask, other=1.0)
        u = gl.where(mask, control_of(u, low, high, BOUNDING), 0.0)
    much = shortened(u)
    publish(words + place, half, gl.where(half == 0, much, u - much), stamp, half >= 0, 32 * gl.num_warps())


@jit
def _take_controls(words, program, group, scratch, PLAN: tl.constexpr):
    """The controls of this iteration, for this program."""
    CONTROLS: tl.constexpr = PLAN[4]
    LAYOUT: tl.constexpr = gl.SliceLayout(2, split_numbers(PLAN[0].problems, CONTROLS, gl.num_warps()))
    place, _, _, half = _controls(group, PLAN)
    u = gl.sum(gather(words + place, half, program.stamp, 1), 2)
    rows = gl.arange(0, PLAN[0].problems, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    gl.store(scratch.controls + rows * CONTROLS + gl.arange(0, CONTROLS, layout=gl.SliceLayout(0, LAYOUT))[None, :], u)


@jit
def _controls(group, PLAN: tl.constexpr):
    """Of halves of controls `[problems, CONTROLS, 2]`: where the control's word lies, its problem and column; the half."""
    PROBLEMS: tl.constexpr = PLAN[0].problems
    CONTROLS: tl.constexpr = PLAN[4]
    LAYOUT: tl.constexpr = split_numbers(PROBLEMS, CONTROLS, gl.num_warps())
    rows = gl.arange(0, PROBLEMS, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    cols = gl.arange(0, CONTROLS, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    half = gl.arange(0, 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    return rows * CONTROLS + cols, group.first + rows, cols, half


@jit
def _roll_out(
    model, net, steps, scale_ptr, at, scratch, group, program, NET: tl.constexpr, PLAN: tl.constexpr
):
    """States behind so many steps, and what costs are of."""
    RELAY: tl.constexpr = PLAN[0]
    T: tl.constexpr = PLAN[1]
    NX: tl.constexpr = PLAN[2]
    NU: tl.constexpr = PLAN[3]
    ROWS: tl.constexpr = RELAY.problems
    LAST: tl.constexpr = len(NET.operations) - 1
    KIND: tl.constexpr = NET.operations[LAST].activation
    COLUMNS: tl.constexpr = NET.columns
    problem, inside, rows, cols = _problems(group, COLUMNS, ROWS)
    is_x = inside & (cols < NX)
    is_u = (rows < ROWS) & (cols >= NX) & (cols < NX + NU)
    x = gl.load(at.x0 + problem * NX + cols, mask=is_x, other=0.0)
    gl.store(at.x + problem * (T + 1) * NX + cols, x, mask=is_x & group.leads)
    WHOLE: tl.constexpr = RELAY.whole and LAST > 1
    w = first_weights_whole(net, NET) if WHOLE else first_weights(net, program, NET, RELAY)
    scale = _column(scale_ptr, cols, NX)
    b, inv_k = _column(model.b, cols, NX + NU), _column(model.inv_k, cols, NX + NU)
    u = gl.load(scratch.controls + rows * PLAN[4] + cols - NX, mask=is_u, other=0.0)
    for t in range(steps):
        z = x + u
        gl.store(scratch.inputs + (t * ROWS + rows) * COLUMNS + cols, z, mask=rows < ROWS)
        if WHOLE:
            begin_whole(w, (z - b) * inv_k, net, t, program, NET, ROWS)
        else:
            begin(w, (z - b) * inv_k, net, t, program, NET, ROWS, RELAY)
        for i in gl.static_range(1, LAST):
            forward(net, t, t + 1, program, i, NET, ROWS, RELAY, True, WHOLE and i == 1)
        u = gl.load(scratch.controls + rows * PLAN[4] + (t + 1) * NU + cols - NX, mask=is_u & (t + 1 < T), other=0.0)
        if WHOLE:
            w = first_weights_whole(net, NET)
        h = output(last_weights(net, NET), net, t, program, NET, ROWS, True)
        if NET.operations[LAST].saved >= 0:
            place = net.saved + (t * NET.saved + NET.operations[LAST].saved) * ROWS + rows * COLUMNS + cols
            gl.store(place, h.to(net.saved.dtype.element_ty), mask=rows < ROWS)
        x = gl.where(is_x, x + scale * activate(h, KIND, False), 0.0)
        gl.store(at.x + (problem * (T + 1) + t + 1) * NX + cols, x, mask=is_x & group.leads)
    if T > 1:  # noqa: SIM102
        if steps < T:
            gl.store(scratch.inputs + (steps * ROWS + rows) * COLUMNS + cols, x + u, mask=rows < ROWS)


@jit
def _costs_and_scores(
    cost, net, score, score_net, gain, beta, at, search, scratch, group, program, COST: tl.constexpr, SCORE: tl.constexpr,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Costs, scores and the pull of all steps, eight rows at once; the layers of the two networks side by side."""
    RELAY: tl.constexpr = PLAN[0]
    T: tl.constexpr = PLAN[1]
    NZ: tl.constexpr = PLAN[2] + PLAN[3]
    PROBLEMS: tl.constexpr = RELAY.problems
    COLUMNS: tl.constexpr = COST.columns
    BLOCKS: tl.constexpr = RELAY.blocks(T)
    OUT: tl.constexpr = COST.out_columns
    LAST: tl.constexpr = len(COST.operations) - 1
    KIND: tl.constexpr = COST.operations[LAST].activation
    SCORE_LAST: tl.constexpr = 0 if SCORE is None else len(SCORE.operations) - 1
    w = first_weights(net, program, COST, RELAY)
    score_w = w  # without a score nothing reads it
    if SCORE is not None:
        score_w = first_weights(score_net, program, SCORE, RELAY)
    for block in range(BLOCKS):
        problem, step, inside, row, cols = _steps(group, block, COLUMNS, PLAN)
        z = gl.load(scratch.inputs + row * COLUMNS + cols, mask=row < T * PROBLEMS, other=0.0)
        begin(w, _normalised(z, cost, cols, NZ), net, block, program, COST, 8, RELAY)
        if SCORE is not None:
            begin(score_w, _normalised(z, score, cols, NZ), score_net, block, program, SCORE, 8, RELAY)
    for i in gl.static_range(1, max(LAST, SCORE_LAST)):
        if i < LAST:
            forward(net, 0, BLOCKS, program, i, COST, 8, RELAY, True, False)
        if i < SCORE_LAST:
            forward(score_net, 0, BLOCKS, program, i, SCORE, 8, RELAY, False, False)
    w, turned = last_weights(net, COST), last_weights_turned(net, program, COST, RELAY)
    for block in range(BLOCKS):
        h = output(w, net, block, program, COST, 8, True)
        _, _, _, _, outputs = _steps(group, block, OUT, PLAN)
        problem, step, inside, row, cols = _steps(group, block, COLUMNS, PLAN)
        value = gl.where(outputs == 0, activate(h, KIND, False), 0.0)
        value = gl.convert_layout(gl.sum(value, 0), gl.SliceLayout(0, columns_of_rows(COLUMNS, gl.num_warps())))[None, :]
        gl.store(search.running + problem * T + step + cols * 0, value + cols * 0.0, mask=inside & group.leads & (cols == 0))
        one = gl.zeros([OUT, 8], gl.float32, layout=columns_of_rows(OUT, gl.num_warps())) + 1.0
        seed = gl.where(outputs == 0, activate_vjp(one, h, KIND), 0.0)  # what is padding may be NaN
        slope = last_slope(net, block, program, COST, 8, RELAY)
        begin_backward(turned, seed, slope, net, block, program, COST, 8, RELAY)
    if SCORE is not None:
        SCORE_KIND: tl.constexpr = SCORE.operations[SCORE_LAST].activation
        w = last_weights(score_net, SCORE)
        for block in range(BLOCKS):
            h = output(w, score_net, block, program, SCORE, 8, False)
            problem, step, inside, row, cols = _steps(group, block, COLUMNS, PLAN)
            s = activate(h, SCORE_KIND, False) * _column(score.inv_k, cols, NZ) * gain
            is_z = inside & (cols < NZ)
            gl.store(at.score + (problem * T + step) * NZ + cols, s, mask=is_z & group.leads)
            gl.store(scratch.pull + row * COLUMNS + cols, -beta * s, mask=row < T * PROBLEMS)
    for j in gl.static_range(LAST - 1):
        backward(net, 0, BLOCKS, program, LAST - 1 - j, COST, 8, RELAY, False)
    w = input_weights(net, COST)
    for block in range(BLOCKS):
        grad = input_gradient(w, net, block, program, COST, 8)
        problem, step, inside, row, cols = _steps(group, block, COLUMNS, PLAN)
        pull = grad * _column(cost.inv_k, cols, NZ)
        if SCORE is not None:
            pull += gl.load(scratch.pull + row * COLUMNS + cols, mask=row < T * PROBLEMS, other=0.0)
            thread_barrier()  # several threads may read what one of them writes
        gl.store(scratch.pull + row * COLUMNS + cols, pull, mask=row < T * PROBLEMS)


@jit
def _pull_back(
    model, net, scale_ptr, at, search, scratch, group, program, NET: tl.constexpr, PLAN: tl.constexpr
):
    """Costates, and the gradient in the controls, of all steps from the last, behind which there is no cost."""
    RELAY: tl.constexpr = PLAN[0]
    T: tl.constexpr = PLAN[1]
    NX: tl.constexpr = PLAN[2]
    NU: tl.constexpr = PLAN[3]
    ROWS: tl.constexpr = RELAY.problems
    LAST: tl.constexpr = len(NET.operations) - 1
    KIND: tl.constexpr = NET.operations[LAST].activation
    COLUMNS: tl.constexpr = NET.columns
    problem, inside, rows, cols = _problems(group, COLUMNS, ROWS)
    costate = gl.zeros([COLUMNS, 8], gl.float32, layout=columns_of_rows(COLUMNS, gl.num_warps()))
    gl.store(at.costate + (problem * (T + 1) + T) * NX + cols, costate, mask=inside & (cols < NX) & group.leads)
    costate = _keep_gradient(_pull(T - 1, scratch, rows, cols, PLAN, COLUMNS), T - 1, at, search, group, COLUMNS, PLAN)
    WHOLE: tl.constexpr = RELAY.whole and LAST > 1
    w = last_weights_turned_whole(net, NET) if WHOLE else last_weights_turned(net, program, NET, RELAY)
    scale, inv_k = _column(scale_ptr, cols, NX), _column(model.inv_k, cols, NX + NU)
    slope = last_slope(net, max(T - 2, 0), program, NET, ROWS, RELAY)
    for j in range(T - 1):
        t = T - 2 - j
        seed = scale * costate
        if NET.operations[LAST].saved >= 0:
            place = net.saved + (t * NET.saved + NET.operations[LAST].saved) * ROWS + rows * COLUMNS + cols
            h = gl.load(place, mask=rows < ROWS, other=0.0).to(gl.float32)
            seed = gl.where(cols < NX, activate_vjp(seed, h, KIND), 0.0)
        if WHOLE:
            begin_backward_whole(w, seed, last_slope_whole(net, t, program, NET, ROWS), program, NET)
        else:
            begin_backward(w, seed, slope, net, t, program, NET, ROWS, RELAY)
        for k in gl.static_range(LAST - 1):
            backward(net, t, t + 1, program, LAST - 1 - k, NET, ROWS, RELAY, WHOLE and k == 0)
        costate += _pull(t, scratch, rows, cols, PLAN, COLUMNS)
        slope = last_slope(net, gl.where(t > 0, t - 1, 0), program, NET, ROWS, RELAY)
        if WHOLE:
            w = last_weights_turned_whole(net, NET)
        costate += input_gradient(input_weights(net, NET), net, t, program, NET, ROWS) * inv_k
        costate = _keep_gradient(costate, t, at, search, group, COLUMNS, PLAN)


@jit
def _pull(t, scratch, rows, cols, PLAN: tl.constexpr, COLUMNS: tl.constexpr):
    """What the cost and the score of step t pull at (x, u)."""
    ROWS: tl.constexpr = PLAN[0].problems
    return gl.load(scratch.pull + (t * ROWS + rows) * COLUMNS + cols, mask=rows < ROWS, other=0.0)


@jit
def _keep_gradient(grad, t, at, search, group, COLUMNS: tl.constexpr, PLAN: tl.constexpr):
    """The costate at step t, of the whole gradient in (x, u); the first program writes both down."""
    T: tl.constexpr = PLAN[1]
    NX: tl.constexpr = PLAN[2]
    NU: tl.constexpr = PLAN[3]
    ROWS: tl.constexpr = PLAN[0].problems
    problem, inside, rows, cols = _problems(group, COLUMNS, ROWS)
    is_x, is_u = inside & (cols < NX), inside & (cols >= NX) & (cols < NX + NU)
    gl.store(search.grad_u + (problem * T + t) * NU + cols - NX, grad, mask=is_u & group.leads)
    costate = gl.where(is_x, grad, 0.0)
    gl.store(at.costate + (problem * (T + 1) + t) * NX + cols, costate, mask=is_x & group.leads)
    return costate


@jit
def _problems(group, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Of `[COLUMNS, 8]`: each row's problem, whether there is such a one, the row, and the columns."""
    LAYOUT: tl.constexpr = columns_of_rows(COLUMNS, gl.num_warps())
    rows = gl.arange(0, 8, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    problem = group.first + rows
    return problem, (rows < ROWS) & (problem < group.total), rows, cols


@jit
def _steps(group, block, COLUMNS: tl.constexpr, PLAN: tl.constexpr):
    """Of a block of eight rows: each row's problem, its step, whether there are such, which row it is; and the columns."""
    PROBLEMS: tl.constexpr = PLAN[0].problems
    _, _, rows, cols = _problems(group, COLUMNS, 8)
    row = block * 8 + rows
    problem, step = group.first + row % PROBLEMS, row // PROBLEMS
    return problem, step, (problem < group.total) & (step < PLAN[1]), row, cols


@jit
def _normalised(z, model, cols, NZ: tl.constexpr):
    """z̄ = (z − b)·inv_k."""
    return (z - _column(model.b, cols, NZ)) * _column(model.inv_k, cols, NZ)


@jit
def _column(ptr, cols, COLUMNS: tl.constexpr):
    """Numbers of the first columns, and zeros in those behind them."""
    return gl.load(ptr + cols, mask=cols < COLUMNS, other=0.0)
