"""The grid regime's phases: nothing is read before it was written, every program has work, and what an iteration costs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgp_fast import kernels
from sgp_fast.kernels.grid.phases import (
    Job,
    Phase,
    Slice,
    count,
    items_of,
    jobs_of,
    layout_of,
    phases,
    resident_programs,
    table_of,
    tile_for,
    uncovered_by_grid,
)
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, TimeEmbedding, mlp
from sgp_fast.kernels.packing import Program, lay_out

NX, NU = 17, 6
NZ = NX + NU


def networks(
    width: int = 256, hidden: int = 4, *, cost: bool = True, score: bool = True, terminal: bool = False
) -> dict[str, Program]:
    """SGP's, of HalfCheetah's sizes, as a planner packs them."""
    specs = {"dynamics": (mlp(NZ, NX, width=width, hidden_layers=hidden, norm=True), 32)}
    if score:
        levels = 10 if hidden > 1 else 0
        specs["score"] = (mlp(NZ, NZ, width=width, hidden_layers=hidden, norm=True, levels=levels), 32)
    if cost:
        specs["cost"] = (mlp(NZ, 1, width=width, hidden_layers=hidden, norm=True), 0)
    if terminal:
        specs["terminal"] = (mlp(NX, 1, width=width, hidden_layers=hidden), 0)
    return {name: lay_out(spec, 32, out).program for name, (spec, out) in specs.items()}


def at(plan: tuple[Phase, ...]) -> dict[tuple[Job, int], int]:
    """The phase of each job at each step; every one is there once."""
    found = [((placed.job, placed.t), number) for number, phase in enumerate(plan) for placed in phase]
    assert len(dict(found)) == len(found)
    return dict(found)


def reads(job: Job, t: int, nets: dict[str, Program], T: int, swept: int) -> Iterator[tuple[Job, int]]:
    """What must have been written in an earlier phase, as the kernel reads it."""
    deep = {name: len(net.operations) - 1 for name, net in nets.items()}
    states = [(Job("forward", "dynamics", 0), step) for step in range(T)]
    if job.kind == "forward":
        if job.op > 0:
            yield Job("forward", job.net, job.op - 1), t
        elif job.net == "dynamics":
            yield from ([(Job("forward", "dynamics", deep["dynamics"] - 1), t - 1)] if t else [])
        elif job.net == "terminal":
            yield Job("end"), T
        else:
            yield from states
    elif job.kind == "backward":
        yield Job("forward", job.net, job.op - 1), t
        if job.op < deep[job.net]:
            yield Job("backward", job.net, job.op + 1), t
        elif job.net != "dynamics":
            yield Job("forward", job.net, deep[job.net] - 1), t
        elif t == T - 1:
            yield Job("value", "terminal") if "terminal" in nets else Job("end"), T
        else:
            yield from [(Job("backward", "dynamics", 1), t + 1)] if t + 1 < swept else []
            yield Job("pull"), 0
    elif job.kind == "end":
        yield Job("forward", "dynamics", deep["dynamics"] - 1), T - 1
    elif job.kind == "value":
        yield Job("backward", "terminal", 1), T
    elif job.kind == "pull":
        yield from states
        yield from [(Job("backward", "cost", 1), 0)] if "cost" in nets else []
        yield from [(Job("forward", "score", deep["score"] - 1), 0)] if "score" in nets else []
    else:
        yield from [(Job("backward", "dynamics", 1), 0)] if swept else []
        yield Job("pull"), 0


@given(st.integers(1, 9), st.integers(1, 5), st.booleans(), st.booleans(), st.booleans())
def test_every_job_stands_behind_what_it_reads(T: int, hidden: int, cost: bool, score: bool, terminal: bool) -> None:
    nets = networks(64, hidden, cost=cost, score=score, terminal=terminal)
    for swept in (T,) if terminal else (T - 1, T):  # a terminal cost need not be a network's
        _behind(phases(nets, T, swept), nets, T, swept)


def _behind(plan: tuple[Phase, ...], nets: dict[str, Program], T: int, swept: int) -> None:
    where = at(plan)
    for (job, t), phase in where.items():
        for before in reads(job, t, nets, T, swept):
            assert where[before] < phase, (job, t, before)
    assert all(plan), "a phase without a job"
    assert where[Job("update"), 0] == len(plan) - 1


def test_fewer_barriers_than_layers() -> None:
    """Design §5: 2·T·5 dependent layers an iteration at T = 8 and four hidden layers; score and cost add three barriers."""
    for width in (256, 512, 1024):
        assert len(phases(networks(width), 8, 7)) == 2 * 8 * 4 + 3
    assert len(phases(networks(terminal=True), 8, 8)) == 2 * 8 * 4 + 1 + 4 + 4 + 1 + 1
    assert len(phases(networks(cost=False), 8, 7)) == 2 * 8 * 4 - 1


@pytest.mark.parametrize(
    ("width", "rows", "mflop", "weights", "read", "busiest", "floor"),
    [(256, 1, 20, 10.8, 3.1, 0.9, 74), (256, 64, 1259, 48.4, 119.7, 3.1, 91), (1024, 1, 304, 169.2, 47.9, 3.5, 95),
     (1024, 64, 19432, 753.7, 1850.5, 21.4, 236)],
)  # fmt: skip
def test_what_an_iteration_costs(
    width: int, rows: int, mflop: float, weights: float, read: float, busiest: float, floor: float
) -> None:
    """The table in `kernels/grid/plan.py`."""
    nets = networks(width)
    found = count(nets, 8, rows, tile_for(rows, 8, 2), 132, 2)
    passes = ("dynamics", "dynamics", "score", "cost", "cost")
    assert found.barriers == 67
    assert found.resident == pytest.approx(19.2e6 * (width / 1024) ** 2, rel=0.1)
    assert found.flops > 8 * rows * sum(nets[name].flops_per_row() for name in passes)  # 5·T·F, and what is repeated
    counted = (found.flops / 1e6, found.weights / 1e6, found.rows / 1e6, found.busiest / 1e6, found.seconds() * 1e6)
    assert counted == pytest.approx((mflop, weights, read, busiest, floor), rel=0.05)


def test_a_single_program_reads_everything() -> None:
    nets = networks(64)
    tile = tile_for(1, 3, 2)
    one, many = (count(nets, 3, 1, tile, programs, 2) for programs in (1, 64))
    assert one.busiest == one.weights + one.rows and many.busiest < one.busiest
    assert replace(one, busiest=0) == replace(many, busiest=0)


def test_the_table_holds_every_item_once() -> None:
    nets = networks()
    for rows in (1, 5, 33, 128):
        tile = tile_for(rows, 8, 2)
        plan = phases(nets, 8, 7)
        table, fullest = table_of(plan, nets, tile, rows, 8)
        jobs = jobs_of(plan)
        assert len(table) == len(plan) and len({len(line) for line in table}) == 1
        for line, phase in zip(table, plan, strict=True):
            dealt = [(jobs[number], t, items) for number, t, items in line if items]
            wanted = [(p.job, p.t, items_of(p.job, nets, tile, rows, 8)) for p in phase]
            assert sorted(map(repr, dealt)) == sorted(map(repr, wanted))
            assert sum(items for _, _, items in line) <= fullest


def test_scratch_does_not_overlap() -> None:
    nets = networks(100)
    tile = tile_for(5, 8, 2)
    layout = layout_of(phases(nets, 8, 7), nets, tile, 7)
    for name, slab in (("dynamics", layout.dynamics), ("score", layout.score), ("cost", layout.cost)):
        assert slab is not None
        operations = nets[name].operations[:-1]
        spans = [(first, op.columns) for first, op in zip(slab.h, operations, strict=True)]
        spans += [(first, op.columns) for first, op in zip(slab.g, operations, strict=True)]
        spans += [(first, 4 * tile.of(name).chunks(op.columns))
                  for first, op in zip(slab.moments, operations, strict=True) if first >= 0]  # fmt: skip
        end = 0
        for first, columns in sorted(spans):
            assert first == end
            end = first + columns
        assert end == slab.total
    assert layout.terminal is None


def test_items_cover_whole_layers() -> None:
    for rows in (1, 2, 16, 64, 128):
        for size, precision in ((2, "ieee"), (4, "ieee"), (4, "tf32")):
            tile = tile_for(rows, 8, size, precision)
            for slice_ in (tile.few, tile.many):
                for columns in (16, 32, 64, 256, 1024):
                    assert slice_.chunks(columns) * slice_.columns(columns) == columns
                    depth = slice_.depth(columns, slice_.columns(columns))
                    assert columns % depth == 0 and depth % slice_.parts(depth) == 0


def test_what_is_refused_says_so() -> None:
    def program(spec: NetworkSpec) -> Program:
        return lay_out(spec).program

    fine = program(mlp(NZ, NX, width=64, norm=True))
    assert uncovered_by_grid({"dynamics": fine}, 128) is None
    refused = {
        "129 problems": ({"dynamics": fine}, 129),
        "the dynamics's single layer": ({"dynamics": program(NetworkSpec(NZ, (Layer(NX),)))}, 1),
        "the score's residual layers or blocks": (
            {"dynamics": fine, "score": program(NetworkSpec(NZ, (Layer(8), Block(8), Layer(NZ))))}, 1),
        "the cost's time embedding": (
            {"dynamics": fine, "cost": program(NetworkSpec(NZ, (Layer(8), Layer(1)), time=TimeEmbedding()))}, 1),
        "a norm in the cost's last layer": (
            {"dynamics": fine, "cost": program(NetworkSpec(NZ, (Layer(8), Layer(4, norm=True))))}, 1),
        "256 inputs or outputs of the dynamics": ({"dynamics": program(mlp(200, NX, width=64))}, 1),
    }  # fmt: skip
    for words, (nets, rows) in refused.items():
        why = uncovered_by_grid(nets, rows)
        assert why is not None and why.startswith(words), why


def test_residence() -> None:
    """Registers, shared memory and warps each bound the programs of a multiprocessor: sm_90's numbers."""
    chip = {"multiprocessors": 132, "registers_each": 65536, "shared_each": 228 << 10, "warps_each": 64}
    assert resident_programs(255, 16 << 10, 8, **chip) == 132
    assert resident_programs(128, 16 << 10, 8, **chip) == 2 * 132
    assert resident_programs(32, 120 << 10, 8, **chip) == 132
    assert resident_programs(16, 0, 8, **chip) == 8 * 132
    assert resident_programs(255, 16 << 10, 16, **chip) == 0
    assert Slice(1, 16, 1024, 8).parts(256) == 1


@pytest.mark.parametrize("size", [2, 4])
def test_a_job_of_one_step_has_the_rows_of_one_step(size: int) -> None:
    """Whether or not one cut serves the rows of a step and those of all."""
    tile, nets = tile_for(64, 8, size), networks()
    assert items_of(Job("update"), nets, tile, 64, 8) == -(-64 // tile.few.block_b)
    assert items_of(Job("pull"), nets, tile, 64, 8) == -(-64 * 8 // tile.many.block_b)
    layer = Job("forward", "dynamics", 1)
    assert items_of(layer, nets, tile, 64, 8) == -(-64 // tile.few.block_b) * tile.few.chunks(256)


@pytest.mark.parametrize("file", ["plan.py", "rows.py", "slices.py"])
def test_kernels_name_a_layouts_parts_before_they_give_them_on(file: str) -> None:
    """Triton 3.6 takes an object that is read from a constant for no constant, unless it was given a name as one."""
    tree = ast.parse((Path(kernels.__file__).parent / "grid" / file).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) != "len"]
    given = [argument for call in calls for argument in call.args]
    read = [ast.unparse(argument) for argument in given if isinstance(argument, ast.Attribute | ast.Subscript)]
    assert not [text for text in read if text.startswith("LAYOUT.")]
