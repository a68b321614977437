"""Grid regime: all programs of one launch plan a few problems together, all iterations, with a barrier behind every layer.

    program        0            1            2       …   P−1
    phase n    │ columns    │ columns    │ columns    │ …          of a layer, for all rows
               ├────────────┴─ barrier ──┴────────────┴────────
    phase n+1  │ columns    │ columns    │ columns    │ …          of the next layer; of score and cost, where some are idle
               ├────────────┴─ barrier ──┴────────────┴────────

What a phase computes is a table, made by `phases.phases` and read on the device: jobs, the step of the horizon that each
belongs to, and its items, which are dealt to the programs in turn. `slices.py` has the layers, `barrier.py` the barrier.
Weights are read from the L2, which holds all of them through all iterations.

Counted before it ran, by `phases.count`: an iteration of SGP's networks (four hidden layers, learned cost, score), bf16,
T = 8, 132 programs. It has 2·T·4 + 3 = 67 barriers, where design §5 counts 2·T·5 = 80 dependent layers: the narrow last
layer of a network is computed again by every program that reads it. The floor takes a microsecond a barrier, and 64 bytes a
cycle for what the busiest program of each phase reads. On an H200 a plan took 27, 57 and 79 ms for the first, third and last
line: a phase takes some 7 µs, most of it one latency behind the other. `relay` is without barriers, for fewer networks.

    width, problems     MFLOP    weights read    rows read    busiest program    floor     × 50 iterations
    256, 1                 20         10.8 MB       3.1 MB             0.9 MB     74 µs             3.7 ms
    256, 64             1,259         48.4 MB     119.7 MB             3.1 MB     91 µs             4.6 ms
    1024, 1               304        169.2 MB      47.9 MB             3.5 MB     95 µs             4.7 ms
    1024, 64           19,432        753.7 MB   1,850.5 MB            21.4 MB    236 µs            11.8 ms

All P programs must be resident at once: `backends.fused.grid` sees to that before the launch, and the launch is cooperative,
so that the driver refuses what could not be. Without a barrier a launch runs a single phase: `SYNCHRONISE` is false for
that, and for one program alone, which needs none.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..block import normalised, vector
from ..layers import columns_of
from ..update import update_rows
from .barrier import grid_barrier
from .rows import (
    chunk_of,
    controls,
    costate_of,
    first_column,
    inputs,
    load_states,
    quadratic,
    rows_at,
    states,
    store_states,
    traced,
)  # fmt: skip
from .slices import Net, backward, backward_last, chunks_of, forward, forward_first, input_gradient, output


class Scratch(NamedTuple):
    """Pointers to what the programs leave for one another, float32: a `phases.Slab` a network, and the `pull` of the costs.

    dynamics, score and cost have a row a step and problem, step by step; terminal one a problem; pull [T·R, columns]. With
    traced costs it has R rows more, for the terminal one, and `form` is as large: each program reads its own rows there.
    """

    dynamics: Any
    score: Any
    cost: Any
    terminal: Any
    pull: Any
    form: Any


@triton.jit(do_not_specialize=["rows_total", "first", "last", "settled", "moves", "only_diverged"])
def grid_kernel(
    dynamics, score, cost, terminal, scale_ptr, gain_ptr, costs, at, search, beta_ptr, level_ptr, step_size_ptr, scratch,
    table_ptr, counter_ptr, zero_ptr, rows_total, first, last, settled, moves, only_diverged,
    DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, TERMINAL: tl.constexpr, LAYOUT: tl.constexpr,
    PROGRAMS: tl.constexpr, SYNCHRONISE: tl.constexpr, TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr,
    NU: tl.constexpr, CHUNK: tl.constexpr, BOUNDING: tl.constexpr, CHANGE: tl.constexpr, HISTORY: tl.constexpr,
    OPTIONS: tl.constexpr, FUNCTION: tl.constexpr, LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Phases `first … last−1`, counted from the first iteration's; `counter` is zero at the start.

    Where nothing `moves` an iteration is evaluated and judged. With `only_diverged` nothing is done unless a problem has
    diverged. The table is `[phases, slots, 3]`: the number of a job in LAYOUT, its step, its items. MOST is a power of two,
    no less than the problems can be.
    """
    PHASES: tl.constexpr = LAYOUT.phases
    SLOTS: tl.constexpr = LAYOUT.slots
    pid = tl.program_id(0)
    if only_diverged != 0:  # every program sees the same flags, which only the last phase writes
        problems = tl.arange(0, MOST)
        marked = tl.load(search.diverged + problems, mask=problems < rows_total, other=0)
        last = tl.where(tl.max(marked.to(tl.int32), 0) == 0, first, last)

    for n in tl.range(first, last, num_stages=1):
        i = n // PHASES
        step = Step(i, beta_ptr, level_ptr, step_size_ptr, i >= settled, moves != 0)
        lane = pid  # of the first item of the next job that is this program's
        for slot in tl.range(0, SLOTS, num_stages=1):
            entry = table_ptr + ((n % PHASES) * SLOTS + slot) * 3
            number, t, items = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
            for item in tl.range(lane, items, PROGRAMS, num_stages=1):
                for job in tl.static_range(len(LAYOUT.jobs)):
                    if number == job:
                        _run(
                            item, t, dynamics, score, cost, terminal, scale_ptr, gain_ptr, costs, at, search, step, scratch,
                            zero_ptr, rows_total, job, DYNAMICS, SCORE, COST, TERMINAL, LAYOUT, TILE, T, NX, NU,
                            CHUNK, BOUNDING, CHANGE, HISTORY, OPTIONS, FUNCTION, LAST_FUNCTION, PARAMS,
                        )  # fmt: skip
            lane = ((lane - items) % PROGRAMS + PROGRAMS) % PROGRAMS
        if SYNCHRONISE:  # noqa: SIM102
            if n + 1 < last:
                grid_barrier(counter_ptr, (n + 1 - first) * PROGRAMS)


class Step(NamedTuple):
    """The iteration, and its entries of the schedules."""

    i: Any
    beta: Any
    level: Any
    size: Any
    settled: Any
    moves: Any


@triton.jit(noinline=True)
def _run(
    item, t, dynamics, score, cost, terminal, scale_ptr, gain_ptr, costs, at, search, step, scratch, zero_ptr, rows_total,
    NUMBER: tl.constexpr, DYNAMICS: tl.constexpr, SCORE: tl.constexpr, COST: tl.constexpr, TERMINAL: tl.constexpr,
    LAYOUT: tl.constexpr, TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr,
    CHUNK: tl.constexpr, BOUNDING: tl.constexpr, CHANGE: tl.constexpr, HISTORY: tl.constexpr, OPTIONS: tl.constexpr,
    FUNCTION: tl.constexpr, LAST_FUNCTION: tl.constexpr, PARAMS: tl.constexpr,
):  # fmt: skip
    """One item of the job of that number."""
    # Named before they are given on: to triton 3.6, a constant's attribute is no constant unless it is a number.
    JOB: tl.constexpr = LAYOUT.jobs[NUMBER]
    AT_SCORE: tl.constexpr = LAYOUT.score
    AT_COST: tl.constexpr = LAYOUT.cost
    AT_TERMINAL: tl.constexpr = LAYOUT.terminal
    COLUMNS: tl.constexpr = DYNAMICS.columns
    FEW: tl.constexpr = TILE.few
    MANY: tl.constexpr = TILE.many
    FEW_ROWS: tl.constexpr = FEW.block_b
    steps = rows_total * T
    if JOB.kind == "forward" or JOB.kind == "backward":
        if JOB.net == "dynamics":
            _dynamics(
                item, t, dynamics, scale_ptr, at, search, scratch, zero_ptr, rows_total, JOB, DYNAMICS, LAYOUT, FEW, T, NX,
                NU, BOUNDING,
            )  # fmt: skip
        elif JOB.net == "score":
            net = _score_net(score, step, scratch, steps, zero_ptr, SCORE)
            _layer(
                item, 0, score, net, at, search, steps, rows_total, JOB, SCORE, AT_SCORE, MANY, T, NX, NU, BOUNDING, 1.0
            )
        elif JOB.net == "cost":
            net = Net(cost.weights, cost.vectors, cost.vectors, scratch.cost, steps, zero_ptr)
            _layer(
                item, 0, cost, net, at, search, steps, rows_total, JOB, COST, AT_COST, MANY, T, NX, NU, BOUNDING, 1.0
            )
        else:
            net = Net(terminal.weights, terminal.vectors, terminal.vectors, scratch.terminal, rows_total, zero_ptr)
            _layer(
                item, T, terminal, net, at, search, rows_total, rows_total, JOB, TERMINAL, AT_TERMINAL, FEW, T, NX, NU,
                BOUNDING, -1.0,
            )  # fmt: skip
    elif JOB.kind == "end":
        rows = rows_at(item, T, rows_total, rows_total, zero_ptr, True, FEW)
        x = states(T, dynamics, scale_ptr, at, scratch, zero_ptr, rows, rows_total, DYNAMICS, LAYOUT, FEW, T, NX)
        store_states(at.x, x, rows, T, NX, T + 1)
        if TERMINAL is None:
            value = tl.zeros((FEW_ROWS,), tl.float32)
            costate = tl.zeros((FEW_ROWS, COLUMNS), tl.float32)
            if costs.terminal is not None:
                tl.debug_barrier()  # x is read again, in other shapes
                value, costate = quadratic(
                    x, costs.terminal, costs.goal, costs.last_own_goal, at, search, rows, FEW, T, NX, NU, BOUNDING
                )
            if LAST_FUNCTION is not None:
                value, costate = traced(x, costs.goal, costs.params, scratch, rows, LAST_FUNCTION, NX, PARAMS)
            store_states(at.costate, costate, rows, T, NX, T + 1)
            tl.store(search.terminal + rows.problem, value, mask=rows.inside)
    elif JOB.kind == "value":
        rows = rows_at(item, T, rows_total, rows_total, zero_ptr, False, FEW)
        net = Net(terminal.weights, terminal.vectors, terminal.vectors, scratch.terminal, rows_total, zero_ptr)
        value = -first_column(output(net, rows.place, rows.inside, TERMINAL, AT_TERMINAL, FEW))
        costate = input_gradient(net, rows.place, rows.inside, TERMINAL, AT_TERMINAL, FEW)
        costate *= vector(terminal.inv_k, rows, COLUMNS)
        store_states(at.costate, costate, rows, T, NX, T + 1)
        tl.store(search.terminal + rows.problem, value, mask=rows.inside)
    elif JOB.kind == "pull":
        rows = rows_at(item, 0, steps, rows_total, zero_ptr, False, MANY)
        if COST is not None:
            net = Net(cost.weights, cost.vectors, cost.vectors, scratch.cost, steps, zero_ptr)
            value = first_column(output(net, rows.place, rows.inside, COST, AT_COST, MANY))
            grad = input_gradient(net, rows.place, rows.inside, COST, AT_COST, MANY) * vector(cost.inv_k, rows, COLUMNS)
        elif FUNCTION is not None:
            z = inputs(at, search, rows, columns_of(rows, COLUMNS), NX, NU, T, BOUNDING)
            value, grad = traced(z, costs.goal, costs.params, scratch, rows, FUNCTION, NX, PARAMS)
        else:
            z = inputs(at, search, rows, columns_of(rows, COLUMNS), NX, NU, T, BOUNDING)
            value, grad = quadratic(
                z, costs.running, costs.goal, costs.own_goal, at, search, rows, MANY, T, NX, NU, BOUNDING
            )
        tl.store(search.running + rows.problem * T + rows.step, value, mask=rows.inside)
        if SCORE is not None:
            net = _score_net(score, step, scratch, steps, zero_ptr, SCORE)
            s = output(net, rows.place, rows.inside, SCORE, AT_SCORE, MANY)
            s *= vector(score.inv_k, rows, COLUMNS) * tl.load(gain_ptr + tl.load(step.level + step.i))
            cols = columns_of(rows, COLUMNS)[None, :]
            place = at.score + (rows.problem * T + rows.step)[:, None] * (NX + NU) + cols
            tl.store(place, s, mask=rows.inside[:, None] & (cols < NX + NU))
            grad -= tl.load(step.beta + step.i) * s
        place = scratch.pull + rows.place[:, None] * COLUMNS + columns_of(rows, COLUMNS)[None, :]
        tl.store(place, grad, mask=rows.inside[:, None])
    else:
        tl.static_assert(JOB.kind == "update", "unknown job")
        rows = rows_at(item, 0, rows_total, rows_total, zero_ptr, True, FEW)
        costate_of(
            0, True, dynamics, at, search, scratch, zero_ptr, rows, rows_total, DYNAMICS, LAYOUT, FEW, T, NX, NU
        )
        tl.debug_barrier()  # the first step's gradient is read in another layout
        update_rows(
            search, rows.problem, rows.inside, tl.arange(0, CHUNK)[None, :], step.i, tl.load(step.size + step.i),
            step.settled, step.moves, OPTIONS, T, NU, BOUNDING, CHANGE, HISTORY,
        )  # fmt: skip


@triton.jit
def _dynamics(
    item, t, dynamics, scale_ptr, at, search, scratch, zero_ptr, rows_total, JOB: tl.constexpr, DYNAMICS: tl.constexpr,
    LAYOUT: tl.constexpr, TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr,
):  # fmt: skip
    """An item of a layer of the dynamics at step t. Every item computes the state or costate that it begins with."""
    OP: tl.constexpr = DYNAMICS.operations[JOB.op]
    AT: tl.constexpr = LAYOUT.dynamics
    COLUMNS: tl.constexpr = DYNAMICS.columns
    WRITTEN: tl.constexpr = OP.columns if JOB.kind == "forward" else OP.inputs
    net = Net(dynamics.weights, dynamics.vectors, dynamics.vectors, scratch.dynamics, rows_total * T, zero_ptr)
    chunk, cols = chunk_of(item, zero_ptr, WRITTEN, TILE)
    rows = rows_at(item // chunks_of(WRITTEN, TILE), t, rows_total, rows_total, zero_ptr, True, TILE)
    if JOB.kind == "forward":
        if JOB.op == 0:
            x = states(t, dynamics, scale_ptr, at, scratch, zero_ptr, rows, rows_total, DYNAMICS, LAYOUT, TILE, T, NX)
            if chunk == 0:
                store_states(at.x, x, rows, t, NX, T + 1)
            z = x + controls(search, rows, columns_of(rows, COLUMNS), NX, NU, T, BOUNDING)
            forward_first(normalised(z, dynamics, rows), cols, net, rows.place, rows.inside, DYNAMICS, AT, TILE)
        else:
            forward(cols, net, rows.place, rows.inside, JOB.op, DYNAMICS, AT, TILE)
    else:
        if JOB.op == len(DYNAMICS.operations) - 1:
            costate = load_states(at.costate, rows, T, NX, T + 1, COLUMNS)
            if t < T - 1:
                costate = costate_of(
                    t + 1, chunk == 0, dynamics, at, search, scratch, zero_ptr, rows, rows_total, DYNAMICS, LAYOUT, TILE, T,
                    NX, NU,
                )  # fmt: skip
            seed = vector(scale_ptr, rows, COLUMNS) * costate
            backward_last(seed, cols, net, rows.place, rows.inside, DYNAMICS, AT, TILE)
        else:
            backward(cols, net, rows.place, rows.inside, JOB.op, DYNAMICS, AT, TILE)


@triton.jit
def _layer(
    item, t, model, net, at, search, total, rows_total, JOB: tl.constexpr, NET: tl.constexpr, AT: tl.constexpr,
    TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr, BOUNDING: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """An item of a layer of a network that is no dynamics: of states and controls that are all there."""
    OP: tl.constexpr = NET.operations[JOB.op]
    BLOCK_B: tl.constexpr = TILE.block_b
    COLUMNS: tl.constexpr = NET.columns
    OUT: tl.constexpr = NET.out_columns
    WRITTEN: tl.constexpr = OP.columns if JOB.kind == "forward" else OP.inputs
    _, cols = chunk_of(item, net.zero, WRITTEN, TILE)
    rows = rows_at(item // chunks_of(WRITTEN, TILE), t, total, rows_total, net.zero, False, TILE)
    if JOB.kind == "forward":
        if JOB.op == 0:
            z = inputs(at, search, rows, columns_of(rows, COLUMNS), NX, NU, T, BOUNDING)
            forward_first(normalised(z, model, rows), cols, net, rows.place, rows.inside, NET, AT, TILE)
        else:
            forward(cols, net, rows.place, rows.inside, JOB.op, NET, AT, TILE)
    else:
        if JOB.op == len(NET.operations) - 1:
            is_first = (tl.arange(0, OUT) == 0)[None, :]
            seed = tl.where(is_first, SIGN, tl.zeros((BLOCK_B, OUT), tl.float32))
            backward_last(seed, cols, net, rows.place, rows.inside, NET, AT, TILE)
        else:
            backward(cols, net, rows.place, rows.inside, JOB.op, NET, AT, TILE)


@triton.jit
def _score_net(score, step, scratch, steps, zero_ptr, SCORE: tl.constexpr):
    """The score's network, conditioned by the row of the iteration's noise level."""
    table = score.vectors + SCORE.embedding + tl.load(step.level + step.i) * SCORE.condition_columns
    return Net(score.weights, score.vectors, table, scratch.score, steps, zero_ptr)
