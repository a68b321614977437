"""The grid regime's work as phases: what is computed between two barriers, by how many programs, and what that costs.

A phase is a set of jobs that do not depend on one another; a job is one layer of one network, forward or backward, cut into
items of some rows and some columns; the items of a phase are dealt to the programs in turn. Every job stands in the first
phase after all that it reads, so that the score and the cost of all steps run beside the last step of the rollout and the
first of the adjoint, on programs that those leave idle.

    rollout     F phases a step, F = layers of the dynamics − 1       the last, narrow layer of a step is computed again by
    costs       1 + F forward, F backward, 1 to sum them up           every program that reads it: it saves a barrier a step
    adjoint     F phases a step                                       and costs each of them a product of few columns
    update      1

No triton here: this is read, tested and printed anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..packing import NONE, Program

Networks = Mapping[str, Program]  # by part of the problem: dynamics, score, cost, terminal

MAX_ROWS = 128
MAX_COLUMNS = 128


@dataclass(frozen=True)
class Slice:
    """How an item is cut: rows, columns and the depth of a step of its products.

    stages           steps whose loads are in flight at once
    split            parts of a product's depth that the warps sum at once: of few rows and columns there is no other work
                     for them
    input_precision  of products of float32: "ieee" or "tf32"
    interpreted      Triton's interpreter runs it
    """

    block_b: int
    block_n: int
    block_k: int
    split: int = 1
    stages: int = 1
    input_precision: str = "ieee"
    interpreted: bool = False

    def columns(self, columns: int) -> int:
        """Columns of an item of a layer of so many."""
        return min(self.block_n, columns)

    def chunks(self, columns: int) -> int:
        return columns // self.columns(columns)

    def depth(self, inputs: int, columns: int) -> int:
        """Depth of a step of a product with so many columns: what the operand's tile may hold, 16 at least."""
        return min(inputs, max(16, self.block_k * self.block_n // max(columns, self.block_n)))

    def parts(self, depth: int) -> int:
        """Parts of a step that are summed side by side, 16 deep at least."""
        return 1 if self.block_b == 1 else max(1, min(self.split, depth // 16))


@dataclass(frozen=True)
class GridTile:
    """A constant of the kernel: `few` cuts the rows of one step of the dynamics, `many` those of all steps at once."""

    few: Slice
    many: Slice
    warps: int = 8

    def of(self, net: str) -> Slice:
        """The slice for a part of the problem; "" for what belongs to none, which is a step's."""
        return self.many if net in ("score", "cost") else self.few


@dataclass(frozen=True)
class Job:
    """What an item does.

    forward   layer `op` of a network, but the last
    backward  from the gradient in layer `op` to that in the one before
    end       x_T, and the terminal cost and its gradient unless a network gives them
    value     a terminal network's value and gradient, once it was swept back
    pull      the running cost and its gradient less β s, of all steps
    update    the first step's costate, and a step of Adam
    """

    kind: str
    net: str = ""
    op: int = 0


@dataclass(frozen=True)
class Placed:
    """A job in a phase, at step t of the horizon where it belongs to one."""

    job: Job
    t: int


Phase = tuple[Placed, ...]


def uncovered_by_grid(networks: Networks, rows: int) -> str | None:
    """None where the regime serves, else what it does not cover."""
    if rows > MAX_ROWS:
        return f"{rows} problems; it plans {MAX_ROWS} at most, and more of them fill the device without barriers"
    for name, net in networks.items():
        if len(net.operations) < 2:
            return f"the {name}'s single layer, which leaves nothing to divide"
        if net.stream_columns or net.entry.post_weight != NONE:
            return f"the {name}'s residual layers or blocks, whose streams would want more barriers"
        if net.joined:
            return f"the {name}'s time embedding"
        if net.operations[-1].norm_weight != NONE:
            return f"a norm in the {name}'s last layer"
        if max(net.columns, net.out_columns) > MAX_COLUMNS:
            return f"{max(net.columns, net.out_columns)} inputs or outputs of the {name}; it goes to {MAX_COLUMNS}"
    return None


def phases(networks: Networks, horizon: int, swept: int) -> tuple[Phase, ...]:
    """The phases of one iteration, in order, with a barrier behind each.

    The costate is swept back through the first `swept` steps: all, or all but the last, if no cost is of x_T.
    """
    placed: list[list[Placed]] = []

    def put(job: Job, t: int, *after: int) -> int:
        """Place a job in the first phase behind all of `after`; returns the phase."""
        at = max(after, default=-1) + 1
        while len(placed) <= at:
            placed.append([])
        placed[at].append(Placed(job, t))
        return at

    def forward(net: str, t: int, after: int) -> int:
        for op in range(len(networks[net].operations) - 1):
            after = put(Job("forward", net, op), t, after)
        return after

    def backward(net: str, t: int, *after: int) -> int:
        at = max(after)
        for op in range(len(networks[net].operations) - 1, 0, -1):
            at = put(Job("backward", net, op), t, at)
        return at

    last, known = -1, -1
    for t in range(horizon):
        known = last + 1  # the phase in which x_t is written
        last = forward("dynamics", t, last)
    ends = [forward(net, 0, known) for net in ("score", "cost") if net in networks]
    if "cost" in networks:
        ends.append(backward("cost", 0, ends[-1]))
    pull = put(Job("pull"), 0, known, *ends)
    costate = put(Job("end"), horizon, last)
    if "terminal" in networks:
        costate = backward("terminal", horizon, forward("terminal", horizon, costate))
        costate = put(Job("value", "terminal"), horizon, costate)
    for t in range(swept - 1, -1, -1):
        costate = backward("dynamics", t, costate) if t == horizon - 1 else backward("dynamics", t, costate, pull)
    put(Job("update"), 0, costate, pull)
    return tuple(tuple(phase) for phase in placed)


def jobs_of(plan: tuple[Phase, ...]) -> tuple[Job, ...]:
    """Every job once, in the order of their numbers in the kernel."""
    return tuple(dict.fromkeys(placed.job for phase in plan for placed in phase))


def items_of(job: Job, networks: Networks, tile: GridTile, rows: int, horizon: int) -> int:
    """Items of a job over a bucket of `rows` problems."""
    spans_steps = job.kind == "pull" or job.net in ("score", "cost")
    slice_ = tile.many if spans_steps else tile.few  # which may be one and the same
    rows = horizon * rows if spans_steps else rows
    blocks = -(-rows // slice_.block_b)
    return blocks * slice_.chunks(written(job, networks)) if job.kind in ("forward", "backward") else blocks


def written(job: Job, networks: Networks) -> int:
    """Columns of what a job of a layer writes: of its outputs, or backward of its inputs."""
    op = networks[job.net].operations[job.op]
    return op.columns if job.kind == "forward" else op.inputs


def table_of(
    plan: tuple[Phase, ...], networks: Networks, tile: GridTile, rows: int, horizon: int
) -> tuple[list[list[tuple[int, int, int]]], int]:
    """What the kernel reads: `[phases][slots]` of a job's number, step and items, and the items of the fullest phase.

    Jobs of many items come first. Slots without a job have no items.
    """
    numbers = {job: number for number, job in enumerate(jobs_of(plan))}
    slots = max(map(len, plan))
    table: list[list[tuple[int, int, int]]] = []
    for phase in plan:
        line = [(numbers[p.job], p.t, items_of(p.job, networks, tile, rows, horizon)) for p in phase]
        line.sort(key=lambda entry: -entry[2])
        table.append(line + [(0, 0, 0)] * (slots - len(line)))
    return table, max(sum(entry[2] for entry in line) for line in table)


@dataclass(frozen=True)
class Slab:
    """Where a network's numbers lie in its scratch, in columns of float32: to be multiplied by the rows of the scratch.

    h        of each layer but the last, as the product left it (bias and conditioning added)
    g        of its gradient, through norm weight and activation: only the mean over the row is missing
    moments  of each item of a normed layer four columns: mean of h, its sum of squared differences, Σg, Σg·ĥ; −1 without
    """

    h: tuple[int, ...]
    g: tuple[int, ...]
    moments: tuple[int, ...]
    total: int


def slab(net: Program, slice_: Slice) -> Slab:
    """The scratch of a network that is cut by `slice_`."""
    h, g, moments, total = [], [], [], 0
    for op in net.operations[:-1]:
        h.append(total)
        g.append(total + op.columns)
        total += 2 * op.columns
    for op in net.operations[:-1]:
        moments.append(total if op.norm_weight != NONE else NONE)
        total += 4 * slice_.chunks(op.columns) if op.norm_weight != NONE else 0
    return Slab(tuple(h), tuple(g), tuple(moments), total)


@dataclass(frozen=True)
class Layout:
    """What the kernel is compiled for beside the networks: jobs by number, phases and slots of the table, and scratch.

    swept  as in `phases`
    """

    jobs: tuple[Job, ...]
    phases: int
    slots: int
    swept: int
    dynamics: Slab
    score: Slab | None
    cost: Slab | None
    terminal: Slab | None


def layout_of(plan: tuple[Phase, ...], networks: Networks, tile: GridTile, swept: int) -> Layout:
    slabs = {name: slab(networks[name], tile.of(name)) if name in networks else None
             for name in ("score", "cost", "terminal")}  # fmt: skip
    dynamics = slab(networks["dynamics"], tile.of("dynamics"))
    return Layout(jobs_of(plan), len(plan), max(map(len, plan)), swept, dynamics, **slabs)


@dataclass(frozen=True)
class Count:
    """An iteration, counted before it is run. Padding is counted, rows that a bucket lacks are not; nor are the moments of
    norms (about an eighth of the rows read), heads with an activation, which every reader computes again, quadratic costs.

    barriers    between its phases and to the next iteration
    flops       operations of the products, those that several programs repeat included
    weights     bytes of weights that the programs read, from the L2 or nearer: each item reads its own
    rows        bytes of activations, gradients and moments that they read
    resident    bytes of the weights themselves, which is what the L2 has to hold
    busiest     bytes that the busiest program of each phase reads, summed over the phases
    """

    barriers: int
    flops: int
    weights: int
    rows: int
    resident: int
    busiest: int

    def seconds(self, barrier: float = 1e-6, bandwidth: float = 64 * 1.98e9) -> float:
        """A floor: a barrier's time for each phase, and the busiest program's bytes at what a multiprocessor can take.

        64 bytes a cycle is what its way to the L2 is built for; neither number was measured here.
        """
        return self.barriers * barrier + self.busiest / bandwidth


def count(networks: Networks, horizon: int, rows: int, tile: GridTile, programs: int, size: int) -> Count:
    """What an iteration of `rows` problems takes on so many programs, with weights of `size` bytes a number.

    A terminal cost is that of a network, or none.
    """
    plan = phases(networks, horizon, _swept(networks, horizon))
    flops = weights = read = busiest = 0
    for phase in plan:
        load = [0] * programs
        turn = 0
        for placed in phase:
            job, items = placed.job, items_of(placed.job, networks, tile, rows, horizon)
            total = rows * (horizon if job.kind == "pull" or job.net in ("score", "cost") else 1)
            for item in range(items):
                f, w, r = _item(job, placed.t, networks, tile, min(total, _rows(job, tile)), horizon)
                flops, weights, read = flops + f, weights + w * size, read + 4 * r
                load[(turn + item) % programs] += w * size + 4 * r
            turn += items
        busiest += max(load)
    resident = sum(size * op.inputs * op.columns for net in networks.values() for op in net.operations)
    return Count(len(plan), flops, weights, read, resident, busiest)


def _swept(networks: Networks, horizon: int) -> int:
    return horizon if "terminal" in networks else horizon - 1


def _rows(job: Job, tile: GridTile) -> int:
    return (tile.many if job.kind == "pull" else tile.of(job.net)).block_b


def _item(job: Job, t: int, networks: Networks, tile: GridTile, rows: int, horizon: int) -> tuple[int, int, int]:
    """Operations, weights read and numbers of rows read by an item."""
    dynamics, swept = networks["dynamics"], _swept(networks, horizon)
    products: list[tuple[int, int]] = []  # (inputs, columns) of each

    def narrow_last(net: Program) -> None:
        products.append((net.operations[-1].inputs, net.operations[-1].columns))

    def narrow_first(net: Program) -> None:
        products.append((net.operations[0].columns, net.operations[0].inputs))

    if job.kind in ("forward", "backward"):
        op = networks[job.net].operations[job.op]
        columns = tile.of(job.net).columns(written(job, networks))
        products.append((op.inputs if job.kind == "forward" else op.columns, columns))
        if job == Job("forward", "dynamics", 0) and t > 0:
            narrow_last(dynamics)
        if job == Job("backward", "dynamics", len(dynamics.operations) - 1) and t < swept - 1:
            narrow_first(dynamics)
    elif job.kind == "end":
        narrow_last(dynamics)
    elif job.kind == "update":
        if swept:
            narrow_first(dynamics)
    else:
        for name in ("terminal",) if job.kind == "value" else ("cost", "score"):
            if name in networks:
                narrow_last(networks[name])
                if name != "score":
                    narrow_first(networks[name])
    numbers = sum(k * n for k, n in products)
    backward = job.kind in ("backward", "value", "update")
    return 2 * rows * numbers, numbers, rows * sum(k * (2 if backward else 1) for k, _ in products)


def tile_for(rows: int, horizon: int, size: int, input_precision: str = "ieee", interpreted: bool = False) -> GridTile:
    """How to cut a bucket of `rows` problems for weights of `size` bytes a number.

    One row is summed without matrix instructions, which would compute fifteen more. Deeper steps run out of registers:
    `bench/results/static-tiles.md` has what was compiled.
    """
    if interpreted:
        few = Slice(1 if rows == 1 else 16, 64, 64, 2, 1, input_precision, True)
        return GridTile(few, Slice(16, 64, 64, 2, 1, input_precision, True))
    ieee = size == 4 and input_precision == "ieee"
    block = Slice(16, 16, 512 if size == 2 else 128, 8, 1, input_precision)
    few = Slice(1, 16, 1024 // size, 1, 1, input_precision) if rows == 1 else block
    many = block if rows * horizon <= 64 else Slice(64, 64, 64, 1, 2, input_precision)
    if ieee:
        many = Slice(16, 16, 32)
        few = few if rows == 1 else many
    return GridTile(few, many)


def resident_programs(
    registers: int, shared: int, warps: int, multiprocessors: int, registers_each: int, shared_each: int, warps_each: int
) -> int:
    """Programs that a device holds at once, of a kernel with so many registers a thread and bytes of shared memory.

    Registers are given out in eights a thread; of shared memory the system takes 1 KB of each program's.
    """
    by_registers = registers_each // (32 * warps * -(-registers // 8) * 8)
    return multiprocessors * min(by_registers, shared_each // (shared + 1024), warps_each // warps)
