"""`python -m bench.static`: what the compiler makes of every kernel, without a GPU; `--check` holds it to its limits.

Each kernel is compiled ahead of time for the published networks with the tiles that `kernels.tiling` picks, and its machine
code is read: registers, stack, shared memory, matrix instructions, asynchronous copies. Beside it stands a roofline for an
H200: how long a launch over 16,384 problems would take (for plans: an iteration, horizon 8),

    max(operations / measured FLOP/s, bytes / measured bandwidth of a copy)

with padding and what is computed again counted, the weights once for each program that reads them, and for pointwise kernels
every tensor that they were given; of the grid regime it is an iteration of its own few problems. The L2, where weights and
scratch mostly are, delivers more than a copy through memory, by how much was not measured: where bytes bound, a launch may
take less.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sgp_fast.backends.fused.buffers import Buffers
from sgp_fast.backends.fused.functions import Functions
from sgp_fast.backends.fused.grid import GridPlan
from sgp_fast.backends.fused.layered import ROW_CUTS, Cuts, Layered, few_rows, whole_rows
from sgp_fast.backends.fused.packed import PackedProblem
from sgp_fast.backends.fused.relay import RelayPlan
from sgp_fast.backends.fused.relay import name as relay_name
from sgp_fast.backends.fused.ring import RingPlan
from sgp_fast.backends.fused.ring import name as ring_name
from sgp_fast.backends.fused.rollout import RolloutWork
from sgp_fast.backends.fused.tile import TilePlan
from sgp_fast.backends.sampling import SamplingJob
from sgp_fast.kernels.grid.phases import count, tile_for
from sgp_fast.kernels.network import NetworkSpec, mlp, qsm_actor, srpo_behavior
from sgp_fast.kernels.network_op import network_kernel
from sgp_fast.kernels.packing import PackedNetwork, Program
from sgp_fast.kernels.relay.tiles import ROWS as EIGHT
from sgp_fast.kernels.relay.tiles import Relay, words_of
from sgp_fast.kernels.ring.tiles import ring_of
from sgp_fast.kernels.tiling import H200, DeviceLimits, Tile, keep, tall, tiles
from sgp_fast.planner import Precision
from sgp_fast.sampling import MPPI
from sgp_fast.solving import job_of

from . import records
from .cases import NU, NX, Case, make_case
from .offline import Compiled, compiling
from .rows import KernelRow

CPU = torch.device("cpu")
ROWS, HORIZON = 16384, 8
DTYPES: dict[str, tuple[torch.dtype, str]] = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
NETWORKS: dict[str, NetworkSpec] = {
    "SGP dynamics 4×256": mlp(NX + NU, NX, norm=True),
    "SGP score 4×256": mlp(NX + NU, NX + NU, norm=True, levels=10),
    "SRPO behaviour": srpo_behavior(NX + NU, NU),
    "SRPO policy": mlp(NX, NU, hidden_layers=2, activation="relu", head="tanh"),
    "SRPO critic": mlp(NX + NU, 1, hidden_layers=2, activation="relu"),
    "QSM actor": qsm_actor(NX + NU, NU),
    "QSM critic": mlp(NX + NU, 1, width=512, hidden_layers=2, activation="relu"),
}


@dataclass(frozen=True)
class Chip:
    """What an architecture gives a program and a multiprocessor: bytes of shared memory, registers, warps, programs."""

    shared: int
    shared_in_all: int
    registers: int = 65536
    warps: int = 64
    programs: int = 32

    def resident(self, made: Compiled) -> int:
        """Programs that a multiprocessor holds at once: registers come in 8 a thread, and each program takes 1 KB more."""
        by_registers = self.registers // (32 * made.warps * -(-made.registers // 8) * 8)
        by_shared = self.shared_in_all // (made.shared + 1024)
        return min(by_registers, by_shared, self.warps // made.warps, self.programs)


# Multiprocessors of an A100 and an H200: the programs of the grid regime, and its cases: width, problems, products.
PROGRAMS = {80: 108, 90: 132}
GRIDS = (
    *((width, problems, "bf16") for width in (256, 512, 1024) for problems in (1, 64)),
    (1024, 8, "bf16"), (1024, 1, "fp16"), (1024, 8, "tf32"), (256, 1, "fp32"),
)  # fmt: skip
# Problems, warps and pinned tiles of a program of the ring regime, and its bytes of stack at most: with 64 rows a product's
# sums and what the adjoint kept of them fill the registers, and a few sums and addresses go to local memory.
RINGS = {
    (1, 8, 0): 0, (1, 16, 0): 64, (1, 8, 2): 0, (4, 8, 2): 16,
    (8, 8, 0): 144, (16, 8, 0): 144, (64, 8, 0): 144, (64, 16, 0): 320,
}  # fmt: skip
# Width, problems, programs of a group, warps and whether a layer is whole in the relay regime, and bytes of stack at most:
# 64 columns a program at width 1024 are 128 registers of weights alone.
RELAYS = {
    (256, 1, 16, 8, True): 0, (256, 1, 16, 8): 0, (256, 1, 16, 4): 0, (256, 8, 16, 8): 0,
    (1024, 1, 64, 8): 0, (1024, 1, 32, 8): 16, (1024, 8, 64, 8): 48, (1024, 8, 16, 8): 400,
}  # fmt: skip
# The same with traced costs in the place of a learned one, at the end of the horizon, too.
TRACED_RINGS = {(1, 8, 2): 0, (64, 8, 0): 64}
TRACED_RELAYS = {(256, 1, 16, 8, True): 0, (1024, 1, 64, 8): 0}
TRACED = " (traced costs)"
RING_STACK = {
    f"ring_kernel, {ring_name(*way)}{costs}": most
    for costs, ways in (("", RINGS), (TRACED, TRACED_RINGS)) for way, most in ways.items()
}  # fmt: skip
RELAY_STACK = {
    (f"relay_kernel, {relay_name(Relay(*way))}{costs}", f"SGP 4×{width}"): most
    for costs, ways in (("", RELAYS), (TRACED, TRACED_RELAYS)) for (width, *way), most in ways.items()
}  # fmt: skip
# Of the layered regime's own products of whole rows with 16 warps, which have 128 registers a thread; eight warps spill 64
# to 80 bytes.
ROWS_STACK = 8
TENSOR_MEMORY = 512  # columns a multiprocessor; with more, the compiler makes a kernel that only stops
CHIPS = {80: Chip(163 << 10, 164 << 10), 90: Chip(227 << 10, 228 << 10), 100: Chip(227 << 10, 228 << 10)}


@dataclass(frozen=True)
class Work:
    """What launches over all problems do: operations of the products, and bytes read and written."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.bytes * times)


@dataclass(frozen=True)
class Launch:
    """One launch, or a few, to compile. `work` is None where the bytes of the tensors tell it; `scale`: to all problems."""

    kernel: str
    network: str
    dtype: str
    run: Callable[[], None]
    tile: Tile | None = None
    work: Work | None = None
    scale: int = 1

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.network}, {self.dtype}{_rows(self.tile)}"


def name_of(row: KernelRow) -> str:
    return f"sm_{row.arch} {row.kernel}, {row.network}, {row.dtype}{_rows(row.tile)}"


def broken(row: KernelRow) -> list[str]:
    """The limits that a kernel breaks, in words; empty where it keeps them all."""
    found, count = [], row.instructions
    ring = RING_STACK.get(row.kernel)
    relay = RELAY_STACK.get((row.kernel, row.network))
    if relay is not None and row.arch == 100:  # whose addresses want more registers
        relay += 48
    sixteen = row.kernel.startswith("rows_backward_kernel") and row.warps == 16
    allowed = ROWS_STACK if sixteen else ring or relay or 0
    if row.stack > allowed or row.spills and not allowed:
        most = f"{allowed} bytes at most" if allowed else "none"
        found.append(f"{row.stack} bytes of stack and {row.spills} local loads and stores; expected {most}")
    if row.shared > CHIPS[row.arch].shared:
        found.append(f"{row.shared} bytes of shared memory; sm_{row.arch} gives a program {CHIPS[row.arch].shared}")
    if row.tensor_memory > TENSOR_MEMORY:
        found.append(f"{row.tensor_memory} columns of tensor memory; expected at most {TENSOR_MEMORY}")
    if row.tile is not None:
        if not count["LDGSTS"] + count["UTMALDG"]:
            found.append("no asynchronous copies")
        if row.arch == 90 and row.tile.block_b >= 64 and row.dtype in ("bf16", "fp16") and not count["HGMMA"]:
            found.append("no HGMMA in a kernel of 64 rows or more")
        if row.tile.block_k >= 32 and 0 < count["HGMMA"] <= count["WARPGROUP.ARRIVE"]:
            found.append("every HGMMA waits for the one before; expected groups, as outside of functions that are called")
    if ring is not None:
        if not count["UTMALDG"]:
            found.append("no asynchronous copies")
        if count["HGMMA"] <= count["WARPGROUP.ARRIVE"]:
            found.append("every HGMMA waits for the one before; expected groups")
    return found


def launches(arch: int) -> Iterator[Launch]:
    """Every kernel at the published shapes, divided as an architecture wants it."""

    def picked(width: int, dtype: str) -> tuple[Tile, ...]:
        kind, precision = DTYPES[dtype]
        return tiles(width, width, kind, ROWS, input_precision=precision, limits=_limits(arch))

    def plan(width: int, dtype: str, tile: Tile, traced: bool = False) -> Launch:
        taller = tall(tile, picked(width, dtype), HORIZON, DTYPES[dtype][0], _limits(arch))
        return _plan(width, dtype, tile, taller, traced)

    for width in (256, 512):  # wider, plans are not made by this regime: `tile_plans`
        for tile in picked(width, "bf16"):
            yield plan(width, "bf16", tile)
    for dtype in ("fp16", "tf32", "fp32"):
        for tile in picked(256, dtype):
            yield plan(256, dtype, tile)
    for width in (256, 512, 1024):
        for tile in picked(width, "bf16"):
            yield _rollout(width, "bf16", tile, "candidates")
        for tile in picked(width, "bf16")[:1]:
            yield _rollout(width, "bf16", tile, "plan")
    for dtype in ("fp16", "tf32", "fp32"):
        for tile in picked(256, dtype):
            yield _rollout(256, dtype, tile, "candidates")
    yield _refit()
    for name, spec in NETWORKS.items():
        packed = PackedNetwork(spec, torch.bfloat16, CPU)
        program = packed.program
        tile = tiles(
            program.widest_whole_row, program.widest, torch.bfloat16, ROWS, streams=program.stream_columns > 0,
            limits=_limits(arch),
        )[0]  # fmt: skip
        for vjp in (False, True):
            yield _network(name, packed, tile, vjp)
    yield _layered(1024)
    for cut in ROW_CUTS.values():
        yield _layered(256, f"products of {cut.block_b} rows", functools.partial(whole_rows, cut))
    for width in (256, 1024):
        for problems in (1, 64):
            cuts = functools.partial(few_rows, torch.bfloat16)
            yield _layered(width, f"products of some columns, {problems} problems", cuts, problems)
    for tile in (picked(256, "bf16")[0], picked(256, "bf16")[-1]):
        yield plan(256, "bf16", tile, traced=True)
    yield _rollout(256, "bf16", picked(256, "bf16")[0], "candidates", traced=True)
    if arch in PROGRAMS:
        for width, problems, dtype in GRIDS:
            yield _grid(width, problems, dtype, PROGRAMS[arch])
        yield _grid(256, 1, "bf16", PROGRAMS[arch], traced=True)
    if arch >= 90:
        for width, *way in RELAYS:
            yield _relay(width, Relay(*way), "bf16")
        for width, *way in TRACED_RELAYS:
            yield _relay(width, Relay(*way), "bf16", traced=True)
        yield _relay(256, Relay(1, 16), "fp16")
    if arch == 90:
        for way in RINGS:
            yield _ring(*way, "bf16")
        for way in TRACED_RINGS:
            yield _ring(*way, "bf16", traced=True)
        yield _ring(1, 8, 0, "fp16")
        yield _ring(64, 8, 0, "fp16")


def compiled(chosen: Iterable[Launch], arch: int) -> Iterator[KernelRow]:
    """Compile launches for an architecture, one at a time."""
    for launch in chosen:
        with compiling(arch) as made:
            launch.run()
        for kernel in made:
            yield _row(launch, kernel)


def table(rows: list[KernelRow]) -> str:
    """A line a kernel."""
    counted = {"HGMMA": "HGMMA", "groups": "WARPGROUP.ARRIVE"}
    counted |= {name: name for name in ("HMMA", "UTCMMA", "LDGSTS", "UTMALDG", "FFMA")}
    head = ("sm", "kernel", "network", "dtype", "tile", "regs", "stack", "spills", "shared", *counted, "a SM", "roofline")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        counts = [row.instructions[word] for word in counted.values()]
        numbers = (row.registers, row.stack, row.spills, row.shared, *counts, row.resident)
        lines.append((str(row.arch), row.kernel, row.network, row.dtype, row.division, *map(str, numbers), row.bound))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<"] * 5 + [">"] * (len(head) - 5)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)) for line in lines
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.static", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="*", choices=sorted(CHIPS), default=sorted(CHIPS), metavar="SM",
                        help="architectures: 80, 90, 100")  # fmt: skip
    parser.add_argument("--only", default="", help="kernels whose name has this in it; --names shows the names")
    parser.add_argument("--names", "--list", action="store_true", help="print the names of all kernels and compile none")
    parser.add_argument("--json", type=Path, help="record the rows here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is broken")
    options = parser.parse_args(arguments)
    chosen = {arch: [launch for launch in launches(arch) if options.only in launch.name] for arch in options.arch}
    names = dict.fromkeys(launch.name for found in chosen.values() for launch in found)
    if options.names:
        print("\n".join(names))
        return 0
    if not names:
        elsewhere = [arch for arch in sorted(CHIPS) if any(options.only in launch.name for launch in launches(arch))]
        why = f"--only {options.only!r} is in no name of a kernel; --names shows them"
        if elsewhere:
            asked, other = (", ".join(map(str, archs)) for archs in (options.arch, elsewhere))
            why = f"--only {options.only!r} is in no name of a kernel for --arch {asked}; it is in some for --arch {other}"
        if arguments is None:
            parser.error(why)
        raise ValueError(why)  # of whoever called, who has a command line of their own
    head, rows = records.header("static"), []
    for arch, found in chosen.items():
        for row in compiled(found, arch):
            rows.append(row)
            if options.json:  # a whole file at every moment: the list takes long
                records.write(options.json, head, rows)
            print(f"{name_of(row)}: {row.registers} registers, {row.compile_s:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    wrong = [f"{name_of(row)}: {why}" for row in rows for why in broken(row)]
    print("\n".join(wrong) if wrong else "all limits are kept")
    return int(bool(wrong) and options.check)


def _row(launch: Launch, made: Compiled) -> KernelRow:
    work = launch.work or Work(0, made.bytes * launch.scale)
    flops_us = bytes_us = None
    if made.arch == 90:
        flops_us = 1e6 * work.flops / H200.flops(*DTYPES[launch.dtype])
        bytes_us = 1e6 * work.bytes / H200.bandwidth
    kind = [str(made.constants[key]) for key in ("CONDITION", "ACTIVATION", "RESIDUAL") if key in made.constants]
    kernel = launch.kernel if launch.work else " ".join((made.name, *kind))
    return KernelRow(
        kernel=kernel, network=launch.network, dtype=launch.dtype, arch=made.arch,
        tile=launch.tile, warps=made.warps, registers=made.registers, stack=made.stack, spills=made.spills,
        shared=made.shared, tensor_memory=made.tensor_memory, instructions=made.instructions,
        resident=CHIPS[made.arch].resident(made), flops_us=flops_us, bytes_us=bytes_us, compile_s=made.seconds,
    )  # fmt: skip


def _rows(tile: Tile | None) -> str:
    return "" if tile is None else f", {tile.block_b} rows"


def _limits(arch: int) -> DeviceLimits:
    """An H200 of another architecture."""
    return replace(H200, capability=arch, shared=CHIPS[arch].shared)


@functools.cache
def _packed(width: int, dtype: torch.dtype, traced: bool = False) -> tuple[Case, PackedProblem]:
    case = make_case(width, 1)
    goal, params = _given(traced)
    if traced:
        case = replace(case, problem=replace(case.problem, cost=_around_obstacles, terminal=_apart))
    functions = Functions(job_of(case.problem, case.planner, case.x0, goal=goal, params=params), ROWS, CPU)
    return case, PackedProblem(case.problem, dtype, CPU, functions)


def _given(traced: bool) -> tuple[torch.Tensor | None, dict[str, torch.Tensor] | None]:
    """Goal and params of one problem, where its cost is one to be traced."""
    if not traced:
        return None, None
    return torch.zeros(1, NX), {"centre": torch.zeros(1, 3, 2), "radius": torch.ones(1, 3)}


def _around_obstacles(x: torch.Tensor, u: torch.Tensor, goal: torch.Tensor, t: Any, params: Any) -> torch.Tensor:
    """A cost as a user writes it, to be traced: to a goal, around round obstacles."""
    depth = params["radius"] - (x[..., None, :2] - params["centre"]).norm(dim=-1)
    return (x - goal).square().sum(-1) + 100 * depth.clamp(min=0).square().sum(-1) + 0.01 * u.square().sum(-1)


def _apart(x: torch.Tensor, goal: torch.Tensor, params: Any) -> torch.Tensor:
    """A terminal cost, likewise."""
    return (x - goal).norm(dim=-1) + (x[..., None, :2] - params["centre"]).square().sum(-1).reciprocal().amax(-1)


def _plan(width: int, dtype: str, tile: Tile, taller: Tile, traced: bool) -> Launch:
    """All iterations of a block, by the kernel that makes its evaluations, too."""
    kind = DTYPES[dtype][0]
    case, packed = _packed(width, kind, traced)
    networks = {name: model.network.program for name, model in packed.models.items()}
    kept = keep(tile, HORIZON, networks["dynamics"], ROWS, kind)

    def run() -> None:
        planner = case.planner
        buffers = Buffers.allocate(
            tile.block_b, HORIZON, NX, NU, planner.iterations, CPU, bounded=True, with_goal=traced, with_history=False
        )
        TilePlan(packed, planner, buffers, planner.iterations, tile, taller, kept).iterate(0, planner.iterations)

    dynamics, passes = networks["dynamics"], -(-HORIZON // taller.steps)
    step = _forward(dynamics, tile, kind) * (1 if kept else 2) + _vjp(dynamics, tile, kind)
    aside = _forward(networks["score"], taller, kind)
    if not traced:
        aside += _forward(networks["cost"], taller, kind) + _vjp(networks["cost"], taller, kind)
    how = ["kept" if kept else "again", *(["traced cost"] if traced else [])]
    how += [f"costs of {taller.steps} steps at once"] if taller.steps > 1 else []
    name = f"plan_kernel iterate ({', '.join(how)})"
    return Launch(name, f"SGP 4×{width}", dtype, run, tile, (step * HORIZON + aside * passes) * _blocks(tile))


def _rollout(width: int, dtype: str, tile: Tile, what: str, traced: bool = False) -> Launch:
    """The costs of a block of candidates; or the values of a block of plans, with the score."""
    kind = DTYPES[dtype][0]
    case, packed = _packed(width, kind, traced)
    networks = {name: model.network.program for name, model in packed.models.items()}

    def run() -> None:
        work = _sampling(width, dtype, tile, traced)
        if what == "candidates":
            work.roll_out(0)
        else:
            work.evaluate()

    used = [name for name in networks if name != "score" or what == "plan"]
    step = Work(0, 0)
    for name in used:
        step += _forward(networks[name], tile, kind)
    name = f"rollout_kernel {what}{' (traced cost)' if traced else ''}"
    return Launch(name, f"SGP 4×{width}", dtype, run, tile, step * (HORIZON * _blocks(tile)))


def _refit() -> Launch:
    """The weighted sums over a problem's candidates."""
    return Launch("refit", "none", "bf16", lambda: _sampling(256, "bf16", Tile(64)).refit(0), scale=ROWS // 64)


def _sampling(width: int, dtype: str, tile: Tile, traced: bool = False) -> RolloutWork:
    """MPPI with a block of candidates for one problem."""
    case, _ = _packed(width, DTYPES[dtype][0], traced)
    precision: Any = {"bf16": "bfloat16", "fp16": "float16", "tf32": "tf32", "fp32": "float32"}[dtype]
    planner = MPPI(HORIZON, 1, tile.block_b, precision=precision)
    controls, bound = torch.ones(1, HORIZON, NU), torch.ones(1, NU)
    job = SamplingJob(
        case.problem, planner, torch.zeros(1, NX), 0 * controls, controls, -bound, bound, *_given(traced), 0, 0.0, 0,
        torch.zeros(1, dtype=torch.int64), float("inf"),
    )  # fmt: skip
    return RolloutWork(job, 1, tile)


def _network(name: str, packed: PackedNetwork, tile: Tile, vjp: bool) -> Launch:
    """A network alone; the conditioning vector is one for all rows."""
    spec, program = packed.spec, packed.program
    scratch = tile.block_b * (2 * program.widest + program.saved)
    scratch32 = -(-tile.block_b * (2 * program.stream_columns + program.moments + 1) // 16) * 16
    kernel: Any = network_kernel  # to the type checker it has no num_warps

    def run() -> None:
        z, out = torch.zeros(tile.block_b, spec.inputs), torch.zeros(tile.block_b, spec.outputs)
        kernel[(1,)](
            z, out, z if vjp else out, packed.weights, packed.vectors, packed.weights if spec.time else packed.vectors,
            torch.zeros(1, dtype=torch.int32), packed.weights.new_zeros(scratch), torch.zeros(scratch32), tile.block_b, 0,
            NET=program, TILE=tile, VJP=vjp, NZ=spec.inputs, NOUT=spec.outputs, SCRATCH=scratch, SCRATCH32=scratch32,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    work = _forward(program, tile, torch.bfloat16)
    if vjp:
        work += _vjp(program, tile, torch.bfloat16)
    return Launch(f"network_kernel {'vjp' if vjp else 'forward'}", name, "bf16", run, tile, work * _blocks(tile))


def _layered(
    width: int, products: str = "pointwise", cuts: Cuts = lambda program, rows: None, rows: int = 64
) -> Launch:
    """All kernels of an iteration and of the last evaluation; without cuts the products are the library's."""
    case, packed = _packed(width, torch.bfloat16)
    planner = replace(case.planner, iterations=1)

    def run() -> None:
        buffers = Buffers.allocate(rows, HORIZON, NX, NU, 1, CPU, bounded=True, with_goal=False, with_history=False)
        plan = Layered(packed, planner, buffers, 0, cuts)
        plan.iterate(0, 1)
        plan.evaluate(settled=True)

    return Launch(products, f"layered SGP 4×{width}", "bf16", run, scale=ROWS // rows)


def _grid(width: int, problems: int, dtype: str, programs: int, traced: bool = False) -> Launch:
    """All iterations of a few problems on all multiprocessors, by the kernel that makes their evaluation, too."""
    kind, precision = DTYPES[dtype]
    case, packed = _packed(width, kind, traced)
    names: dict[str, Precision] = {"bf16": "bfloat16", "fp16": "float16", "tf32": "tf32", "fp32": "float32"}
    planner = replace(case.planner, precision=names[dtype])

    def run() -> None:
        buffers = Buffers.allocate(
            problems, HORIZON, NX, NU, planner.iterations, CPU, bounded=True, with_goal=traced, with_history=False
        )
        GridPlan(packed, planner, buffers, planner.iterations, programs=programs).iterate(0, planner.iterations)

    networks = {name: model.network.program for name, model in packed.models.items()}
    tile = tile_for(problems, HORIZON, kind.itemsize, precision)
    found = count(networks, HORIZON, problems, tile, programs, kind.itemsize)
    work = Work(found.flops, found.weights + found.rows)
    name = f"grid_kernel iterate, {problems} problems{' (traced cost)' if traced else ''}"
    return Launch(name, f"SGP 4×{width}", dtype, run, work=work)


def _ring(problems: int, warps: int, pinned: int, dtype: str, traced: bool = False) -> Launch:
    """All iterations of a program's problems."""
    kind = DTYPES[dtype][0]
    case, packed = _packed(256, kind, traced)
    networks = {name: model.network.program for name, model in packed.models.items()}
    ring = ring_of(problems, HORIZON, networks, HORIZON if traced else HORIZON - 1)

    def run() -> None:
        buffers = Buffers.allocate(
            problems, HORIZON, NX, NU, 1, CPU, bounded=True, with_goal=traced, with_history=False
        )
        RingPlan(packed, replace(case.planner, iterations=1), buffers, 1, problems, warps, pinned).iterate(0, 1)

    few, many = Tile(ring.few), Tile(ring.many)
    step = _forward(networks["dynamics"], few, kind) + _vjp(networks["dynamics"], few, kind)
    aside = _forward(networks["score"], many, kind)
    if not traced:
        aside += _forward(networks["cost"], many, kind) + _vjp(networks["cost"], many, kind)
    work = (step * HORIZON + aside * -(-HORIZON // ring.steps)) * -(-ROWS // problems)
    name = f"ring_kernel, {ring_name(problems, warps, pinned)}{TRACED * traced}"
    return Launch(name, "SGP 4×256", dtype, run, work=work)


def _relay(width: int, relay: Relay, dtype: str, traced: bool = False) -> Launch:
    """All iterations of a group's problems."""
    kind = DTYPES[dtype][0]
    case, packed = _packed(width, kind, traced)
    networks = {name: model.network.program for name, model in packed.models.items()}

    def run() -> None:
        rows = relay.problems
        buffers = Buffers.allocate(rows, HORIZON, NX, NU, 1, CPU, bounded=True, with_goal=traced, with_history=False)
        RelayPlan(packed, replace(case.planner, iterations=1), buffers, 1, relay).iterate(0, 1)

    rows = relay.blocks(HORIZON) * EIGHT
    flops = HORIZON * relay.problems * 2 * networks["dynamics"].flops_per_row()
    flops += rows * networks["score"].flops_per_row()
    if not traced:
        flops += rows * 2 * networks["cost"].flops_per_row()
    numbers = sum(op.inputs * op.columns for net in networks.values() for op in net.operations)
    words = 8 * sum(words_of(networks, HORIZON, relay, 0).values()) * (relay.programs + 1)
    work = Work(flops, 2 * numbers * 2 * HORIZON + words)
    return Launch(f"relay_kernel, {relay_name(relay)}{TRACED * traced}", f"SGP 4×{width}", dtype, run, work=work)


def _blocks(tile: Tile) -> int:
    return -(-ROWS // tile.block_b)


def _forward(program: Program, tile: Tile, dtype: torch.dtype) -> Work:
    """Of one program: the weights, and every operand written once and read once."""
    numbers = sum(op.inputs * op.columns + tile.block_b * (op.inputs + op.columns) for op in program.operations)
    return Work(tile.block_b * program.flops_per_row(), numbers * dtype.itemsize)


def _vjp(program: Program, tile: Tile, dtype: torch.dtype) -> Work:
    """As forward, and what was kept is written there and read here."""
    kept = tile.block_b * (program.saved * dtype.itemsize + program.moments * 4)
    return _forward(program, tile, dtype) + Work(0, 2 * kept)


if __name__ == "__main__":
    sys.exit(main())
