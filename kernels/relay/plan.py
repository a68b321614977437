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
    costs     t = T          a terminal cost, and its gradient λ
              all t          cost and its gradient, score, the pull p_t = ∂_z c − β s             eight rows at once
    adjoint   t = T−1 … 0    (λ, g_t) = p_t + (λ, 0) + (∂_z f)ᵀ λ

Every layer of every step has words of its own, which the next iteration writes over, with another stamp. By then all have
read them: a program goes on to publish only what it made of them, and who writes over them has waited for all of that.

Networks are plain, and 16 columns a warp wide at least (`uncovered_by_relay`); products are of 16 bits. `costs` has all
kinds of costs, `network` a network's layers, `rows` the rows and products of a layer, `tiles` the cut. Written in Gluon, for
sm_90 and later; `gluon_interpreted` says how it is tested without, with one program a group.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..activations import activate, activate_vjp
from ..gluon import gl, jit, thread_barrier
from ..update import control_of, update_rows
from .costs import column, costs_and_scores, problems_of, terminal_cost
from .exchange import gather, publish, shortened
from .network import (
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
from .rows import Net, Program
from .tiles import columns_of_rows, plain, some, split_numbers


class Matrices(NamedTuple):
    """Pointers to weights as products read them, and to their transposes: see `tiles.copies_for`."""

    dynamics: Any
    dynamics_turned: Any
    cost: Any
    cost_turned: Any
    terminal: Any
    terminal_turned: Any
    score: Any


class Scratch(NamedTuple):
    """Pointers to what lies in memory, one group's or one program's behind the other's.

    words                     of groups, int64, by kind: `tiles.words_of`
    saved, moments            of programs, of the dynamics, `[T, …]` as `packing` counts them
    cost_saved, cost_moments  of programs, by blocks of eight rows: of the terminal cost, and then of the running one
    controls                  of programs, `[problems, T · NU]` padded, float32
    inputs, pull              of programs, `[(T + 1) · problems, columns]` float32: (x, u), and the gradient in it
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
    dynamics, score, cost, terminal, scale_ptr, gain_ptr, costs, at, search, beta_ptr, level_ptr, step_size_ptr, matrices,
    scratch, rows_total, first, last, settled, moves, only_diverged,
    DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, TERMINAL: tl.constexpr, RELAY: tl.constexpr,
    T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, CONTROLS: tl.constexpr, CHUNK: tl.constexpr, WORDS: tl.constexpr,
    SAVED: tl.constexpr, BOUNDING: tl.constexpr, CHANGE: tl.constexpr, HISTORY: tl.constexpr, OPTIONS: tl.constexpr,
    FUNCTION: tl.constexpr, LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Iterations `first … last−1` of the groups' problems; where nothing `moves` they are evaluated and judged.

    All words are zero at the start. `only_diverged`, which is for a single iteration, skips groups in which no problem has
    diverged. WORDS are where the words of a group begin, each kind behind the other, and how many there are; SAVED, how many
    numbers and moments of costs a program keeps. FUNCTION and LAST_FUNCTION are traced costs (`traced.triton_code`) in the
    place of the others, or None; ENDS says that there is a cost of x_T.
    """
    PROBLEMS: tl.constexpr = RELAY.problems
    PROGRAMS: tl.constexpr = RELAY.programs
    WARPS: tl.constexpr = gl.num_warps()
    PLAN: tl.constexpr = (RELAY, T, NX, NU, CONTROLS, DYNAMICS.columns)
    pid = gl.program_id(0).to(gl.int64)
    number = (pid % PROGRAMS).to(gl.int32)
    group = Group(pid // PROGRAMS * PROBLEMS, rows_total, number, number == 0)
    words = scratch.words + pid // PROGRAMS * WORDS[8]
    control_words = words + WORDS[6]
    if only_diverged != 0:
        first += 1 - _any_diverged(words + WORDS[7], search, group, PLAN)  # a pass is one iteration: none is left then
    DEEPEST: tl.constexpr = _deepest(DYNAMICS, SCORE, COST, TERMINAL)
    y = gl.allocate_shared_memory(dynamics.weights.dtype.element_ty, [8, DEEPEST], plain(2))
    y.store(gl.zeros([8, DEEPEST], y.dtype, layout=some(8, DEEPEST, WARPS)))  # of fewer rows the others stay
    room = (
        gl.allocate_shared_memory(gl.float32, [8, WARPS], plain(2)),
        gl.allocate_shared_memory(gl.float32, [8, WARPS], plain(2)),
    )
    own = _own(scratch, pid, DYNAMICS, SAVED, PLAN)
    steps = T
    if T > 1 and not ENDS:  # words of the dynamics have to stand between those of one iteration's costs and the next one's
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
        terminal_net, cost_net, score_net = dynamics_net, dynamics_net, dynamics_net  # of what is not there nothing is read
        if COST is not None:
            cost_net = Net(
                matrices.cost, matrices.cost_turned, cost.vectors, cost.vectors, words + WORDS[1], words + WORDS[2],
                own.cost_saved, own.cost_moments,
            )  # fmt: skip
        if SCORE is not None:
            condition = score.vectors
            if SCORE.embedding >= 0:
                condition += SCORE.embedding + level * SCORE.condition_columns
            score_net = Net(
                matrices.score, matrices.score, score.vectors, condition, words + WORDS[3], words + WORDS[3],
                own.cost_saved, own.cost_moments,
            )  # fmt: skip
            gain = gl.load(gain_ptr + level)
        if TERMINAL is not None:
            terminal_net = Net(
                matrices.terminal, matrices.terminal_turned, terminal.vectors, terminal.vectors, words + WORDS[4],
                words + WORDS[5], own.cost_saved, own.cost_moments,
            )  # fmt: skip
        _roll_out(dynamics, dynamics_net, steps, scale_ptr, at, own, group, program, DYNAMICS, ENDS, PLAN)
        thread_barrier()
        if ENDS:
            terminal_cost(
                terminal, terminal_net, costs, search, own, group, program, TERMINAL, LAST_FUNCTION, PARAMS, PLAN
            )
            thread_barrier()
        costs_and_scores(
            cost, cost_net, score, score_net, gain, beta, costs, at, search, own, group, program, COST, SCORE, FUNCTION,
            PARAMS, PLAN,
        )  # fmt: skip
        thread_barrier()
        _pull_back(dynamics, dynamics_net, scale_ptr, at, search, own, group, program, DYNAMICS, ENDS, PLAN)
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
def _deepest(*networks):
    """Of the operands of deep products."""
    return max(op.columns for net in networks if net is not None for op in net.operations[:-1])


@jit
def _own(scratch, pid, DYNAMICS: tl.constexpr, SAVED: tl.constexpr, PLAN: tl.constexpr):
    """A program's part of the scratch."""
    T: tl.constexpr = PLAN[1]
    STEPS: tl.constexpr = T * PLAN[0].problems
    INPUTS: tl.constexpr = (STEPS + PLAN[0].problems) * DYNAMICS.columns
    return Scratch(
        scratch.words, scratch.saved + pid * (STEPS * DYNAMICS.saved), scratch.moments + pid * (STEPS * DYNAMICS.moments),
        scratch.cost_saved + pid * SAVED[0], scratch.cost_moments + pid * SAVED[1],
        scratch.controls + pid * (PLAN[0].problems * PLAN[4]), scratch.inputs + pid * INPUTS, scratch.pull + pid * INPUTS,
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
    return rows * CONTROLS + cols + half * 0, group.first + rows, cols, half


@jit
def _roll_out(
    model, net, steps, scale_ptr, at, scratch, group, program, NET: tl.constexpr, ENDS: tl.constexpr, PLAN: tl.constexpr
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
    problem, inside, rows, cols = problems_of(group, COLUMNS, ROWS)
    is_x = inside & (cols < NX)
    is_u = (rows < ROWS) & (cols >= NX) & (cols < NX + NU)
    x = gl.load(at.x0 + problem * NX + cols, mask=is_x, other=0.0)
    gl.store(at.x + problem * (T + 1) * NX + cols, x, mask=is_x & group.leads)
    WHOLE: tl.constexpr = RELAY.whole and LAST > 1
    w = first_weights_whole(net, NET) if WHOLE else first_weights(net, program, NET, RELAY)
    scale = column(scale_ptr, cols, NX)
    b, inv_k = column(model.b, cols, NX + NU), column(model.inv_k, cols, NX + NU)
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
    if ENDS:
        gl.store(scratch.inputs + (T * ROWS + rows) * COLUMNS + cols, x, mask=rows < ROWS)
    elif T > 1:  # noqa: SIM102
        if steps < T:
            gl.store(scratch.inputs + (steps * ROWS + rows) * COLUMNS + cols, x + u, mask=rows < ROWS)


@jit
def _pull_back(
    model, net, scale_ptr, at, search, scratch, group, program, NET: tl.constexpr, ENDS: tl.constexpr, PLAN: tl.constexpr
):
    """Costates, and the gradient in the controls, of all steps from the last; through it only where a cost is of x_T."""
    RELAY: tl.constexpr = PLAN[0]
    T: tl.constexpr = PLAN[1]
    NX: tl.constexpr = PLAN[2]
    NU: tl.constexpr = PLAN[3]
    ROWS: tl.constexpr = RELAY.problems
    LAST: tl.constexpr = len(NET.operations) - 1
    KIND: tl.constexpr = NET.operations[LAST].activation
    COLUMNS: tl.constexpr = NET.columns
    SWEPT: tl.constexpr = T if ENDS else T - 1
    problem, inside, rows, cols = problems_of(group, COLUMNS, ROWS)
    costate = gl.zeros([COLUMNS, 8], gl.float32, layout=columns_of_rows(COLUMNS, gl.num_warps()))
    if ENDS:
        costate = gl.where(inside & (cols < NX), _pull(T, scratch, rows, cols, PLAN, COLUMNS), 0.0)
    gl.store(at.costate + (problem * (T + 1) + T) * NX + cols, costate, mask=inside & (cols < NX) & group.leads)
    if not ENDS:
        costate = _keep_gradient(_pull(T - 1, scratch, rows, cols, PLAN, COLUMNS), T - 1, at, search, group, COLUMNS, PLAN)
    WHOLE: tl.constexpr = RELAY.whole and LAST > 1
    w = last_weights_turned_whole(net, NET) if WHOLE else last_weights_turned(net, program, NET, RELAY)
    scale, inv_k = column(scale_ptr, cols, NX), column(model.inv_k, cols, NX + NU)
    slope = last_slope(net, max(SWEPT - 1, 0), program, NET, ROWS, RELAY)
    for j in range(SWEPT):
        t = SWEPT - 1 - j
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
    problem, inside, rows, cols = problems_of(group, COLUMNS, ROWS)
    is_x, is_u = inside & (cols < NX), inside & (cols >= NX) & (cols < NX + NU)
    gl.store(search.grad_u + (problem * T + t) * NU + cols - NX, grad, mask=is_u & group.leads)
    costate = gl.where(is_x, grad, 0.0)
    gl.store(at.costate + (problem * (T + 1) + t) * NX + cols, costate, mask=is_x & group.leads)
    return costate
