"""How kernels divide their work: tile sizes, what is kept and what is computed again, and the scratch that it takes.

No triton here, so that it can be read, tested and printed anywhere. Every size in the tables was compiled and looked at:
`python -m sgp_fast.bench.static` shows what came of it, and `bench/results/static-tiles.md` what else was tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .packing import Program


@dataclass(frozen=True)
class Tile:
    """How a kernel divides its work; a constant of the kernel.

    block_b          rows of a program
    steps            of a plan, that lie one behind the other in these rows: see `tall`
    block_n          columns of a product at once, where no norm wants the whole row
    block_k          depth of a step of a product
    warps, stages    of a program; loads that are in flight ahead of a product
    input_precision  of products of float32: "ieee" or "tf32"
    interpreted      Triton's interpreter runs it
    """

    block_b: int
    block_n: int = 256
    block_k: int = 64
    warps: int = 8
    stages: int = 3
    input_precision: str = "ieee"
    interpreted: bool = False
    steps: int = 1


@dataclass(frozen=True)
class DeviceLimits:
    """What a device has, and what it was measured to do.

    capability    90 for sm_90
    shared        bytes that one program may have
    l2            bytes
    matrix_flops  FLOP/s of products of 16-bit numbers
    bandwidth     bytes/s of a copy through the device's memory; what the L2 delivers is more, and was not measured
    clock         cycles/s of a multiprocessor at full speed
    """

    capability: int
    multiprocessors: int
    shared: int
    l2: int
    matrix_flops: float
    bandwidth: float
    clock: float

    def flops(self, dtype: torch.dtype, input_precision: str = "ieee") -> float:
        """FLOP/s of products: of tf32 half the rate of 16 bits, of IEEE float32 two a cycle in each of 128 lanes."""
        if dtype != torch.float32:
            return self.matrix_flops
        return self.matrix_flops / 2 if input_precision == "tf32" else 2 * 128 * self.clock * self.multiprocessors


H200 = DeviceLimits(
    capability=90, multiprocessors=132, shared=227 << 10, l2=60 << 20, matrix_flops=788e12,
    bandwidth=4.3e12, clock=1.98e9,
)  # fmt: skip


def limits_of(device: torch.device) -> DeviceLimits:
    """What PyTorch can tell of a CUDA device; rates are an H200's, in proportion to the multiprocessors.

    `keep` needs only the rates' ratio, and `tiles` orders candidates that are measured anyway.
    """
    found = torch.cuda.get_device_properties(device)
    share = found.multi_processor_count / H200.multiprocessors
    return DeviceLimits(
        capability=10 * found.major + found.minor, multiprocessors=found.multi_processor_count,
        shared=found.shared_memory_per_block_optin, l2=found.L2_cache_size, matrix_flops=share * H200.matrix_flops,
        bandwidth=share * H200.bandwidth, clock=H200.clock,
    )  # fmt: skip


# By kind of products and columns of the widest accumulator: what compiled without a spill, one size for each number of rows.
# Deeper steps, more stages or fewer warps run out of registers, mostly by a few.
_TILES: dict[str, dict[int, tuple[Tile, ...]]] = {
    "16-bit": {
        256: (Tile(64, 256, 32, 8, 3), Tile(32, 256, 64, 8, 3), Tile(16, 256, 64, 8, 3)),
        512: (Tile(32, 256, 32, 8, 3), Tile(16, 256, 32, 8, 3)),
        1024: (Tile(16, 256, 16, 8, 2),),
    },
    "tf32": {
        256: (Tile(32, 256, 32, 8, 3, "tf32"), Tile(16, 256, 32, 8, 2, "tf32")),
    },
    "ieee": {
        256: (Tile(32, 128, 16, 8, 2), Tile(16, 256, 16, 8, 2)),
    },
}

# By kind, columns and rows: the capabilities of those that spill some bytes on other chips.
_CHIPS = {("16-bit", 512, 32): range(90, 1000), ("16-bit", 1024, 16): (90,)}


def tiles(
    widest_whole_row: int, widest: int, dtype: torch.dtype, rows: int, *, input_precision: str = "ieee",
    streams: bool = False, limits: DeviceLimits = H200, interpreted: bool = False,
) -> tuple[Tile, ...]:  # fmt: skip
    """Sizes to try for a bucket of `rows`, the one expected to be fastest first; empty where none is known not to spill.

        programs of the busiest multiprocessor × max(2 · BLOCK_B / flops, size of a weight / bandwidth)

    for each weight: all programs read all weights, so that larger blocks read them less often and smaller ones occupy more
    multiprocessors. Between equals, the smaller. The two widths are the largest of `Program.widest_whole_row` and
    `Program.widest` of the networks. A kernel of other networks may spill where these do not: it is slower then, not wrong.
    `streams` says that a network has residuals (`Program.stream_columns`), which take registers: then blocks have 16 rows.
    `interpreted` asks for one small size that divides small networks, too.
    """
    kind = "16-bit" if dtype != torch.float32 else input_precision
    if kind not in _TILES:
        raise ValueError(f'input_precision is {input_precision!r}; expected "ieee" or "tf32"')
    if interpreted:
        return (Tile(16, 32, 32, 4, 2, input_precision, True),)
    known = _TILES[kind].items()
    columns, found = next((at for at in known if _accumulated(widest_whole_row, widest, at[1]) <= at[0]), (0, ()))
    anywhere = (limits.capability,)
    found = tuple(tile for tile in found if limits.capability in _CHIPS.get((kind, columns, tile.block_b), anywhere))

    def expected(tile: Tile) -> tuple[float, int]:
        programs = -(-rows // (tile.block_b * limits.multiprocessors))
        return programs * _seconds_a_weight(tile.block_b, dtype, input_precision, limits), tile.block_b

    most = 16 if streams else 32 if limits.capability >= 100 else 64
    found = tuple(tile for tile in found if tile.block_b <= most)
    if limits.capability >= 100:
        # There, products of 64 rows and more take tensor memory, and the compiler asks for more than there is; the others
        # go through registers, of which two stages in steps of 32 leave enough.
        found = tuple(replace(tile, stages=2, block_k=min(tile.block_k, 32)) for tile in found)
    return tuple(sorted(found, key=expected))


def tall(tile: Tile, among: tuple[Tile, ...], horizon: int, dtype: torch.dtype, limits: DeviceLimits = H200) -> Tile:
    """The tile of what does not wait for the step before, costs and scores: several steps of `tile`'s problems at once.

    Of those `among` which have as many warps, the one that takes the least

        passes over the T steps × max(2 · BLOCK_B / flops, size of a weight / bandwidth)

    and between equals the smaller. Interpreted, one of four steps where there are so many.
    """
    if tile.interpreted:
        among = tuple(replace(tile, block_b=steps * tile.block_b) for steps in (2, 4) if steps <= horizon)

    def expected(taller: Tile) -> tuple[float, int]:
        passes = -(-horizon * tile.block_b // taller.block_b)
        return passes * _seconds_a_weight(taller.block_b, dtype, tile.input_precision, limits), taller.block_b

    alike = [other for other in among if other.warps == tile.warps and other.block_b % tile.block_b == 0]
    best = min((tile, *alike), key=expected)
    return replace(best, steps=best.block_b // tile.block_b)


def _seconds_a_weight(rows: int, dtype: torch.dtype, input_precision: str, limits: DeviceLimits) -> float:
    """What a weight takes a multiprocessor: its products with the rows, or its share of the reading, if that is longer."""
    flops, bandwidth = limits.flops(dtype, input_precision), limits.bandwidth
    return limits.multiprocessors * max(2 * rows / flops, dtype.itemsize / bandwidth)


def _accumulated(widest_whole_row: int, widest: int, made: tuple[Tile, ...]) -> int:
    """Columns of the widest product that is summed at once."""
    return max(widest_whole_row, min(widest, max(tile.block_n for tile in made)))


def fits(tile: Tile, programs: tuple[Program, ...], dtype: torch.dtype, shared_limit: int) -> bool:
    """Whether a program's shared memory is within `shared_limit` bytes, for kernels over these networks.

        stages · step · (BLOCK_B + columns) numbers    in the deepest pipeline, of A [BLOCK_B, step] and B [step, columns]
    """
    return max(_pipeline(tile, program, dtype) for program in programs) <= shared_limit


def _pipeline(tile: Tile, program: Program, dtype: torch.dtype) -> int:
    """Bytes of the deepest pipeline of a network's products, forward and backward."""
    columns = max(program.widest_whole_row, min(program.widest, tile.block_n))
    return tile.stages * tile.block_k * (tile.block_b + columns) * dtype.itemsize


def keep(
    tile: Tile, horizon: int, dynamics: Program, rows: int, dtype: torch.dtype, *, limits: DeviceLimits = H200,
    resident: int = 1,
) -> bool:  # fmt: skip
    """Whether to keep the dynamics' activations of all T steps from the rollout to the adjoint, or to compute them again.

        kept       = T · BLOCK_B · (size · saved + 4 · moments)      bytes of a program
        programs   = min(⌈rows/BLOCK_B⌉, multiprocessors · resident) at a time
        again      = programs · T · max(BLOCK_B · F / flops, weights / bandwidth)
        keeping    = 2 · max(0, programs · kept − L2) / bandwidth

    and what takes less time is done. Kept activations are read in the opposite order to that in which they were written, so
    that what the L2 holds is read from there, and only what exceeds it goes to memory and back. Computing them again costs
    T·F more operations a row (F of `Program.flops_per_row`), and reading the weights T times more. `resident` is the number
    of programs that a multiprocessor runs at once.
    """
    size = dtype.itemsize
    programs = min(-(-rows // tile.block_b), limits.multiprocessors * resident)
    kept = horizon * tile.block_b * (size * dynamics.saved + 4 * dynamics.moments)
    keeping = 2 * max(0, programs * kept - limits.l2) / limits.bandwidth
    flops, weights = dynamics.flops_per_row(), dynamics.flops_per_row() // 2 * size
    work = tile.block_b * flops / limits.flops(dtype, tile.input_precision)
    again = programs * horizon * max(work, weights / limits.bandwidth)
    return keeping <= again


@dataclass(frozen=True)
class Sizes:
    """One program's scratch: numbers in all, and where each part begins, in the products' dtype and in float32.

    scratch    y, two slots of the widest row │ `saved` by the dynamics, of T steps or one │ `cost_saved`
    scratch32  streams, two slots │ `moments` of the dynamics │ `cost_moments` │ `form`, a tile of z │ `pull`, of all steps
    """

    scratch: int
    saved: int
    cost_saved: int
    scratch32: int
    moments: int
    cost_moments: int
    form: int
    pull: int


def sizes(
    tile: Tile, tall: Tile, horizon: int, keep: bool, dynamics: Program, score: Program | None,
    costs: tuple[Program | None, ...],
) -> Sizes:  # fmt: skip
    """The scratch of one program of the tile regime; `costs` are the running and the terminal cost's networks."""
    present = [net for net in (dynamics, score, *costs) if net is not None]
    learned = [net for net in costs if net is not None]
    kept, most = (horizon if keep else 1) * tile.block_b, tall.block_b
    saved = 2 * most * max(net.widest for net in present)
    cost_saved = saved + kept * dynamics.saved
    scratch = cost_saved + most * max((net.saved for net in learned), default=0)
    moments = 2 * most * max(net.stream_columns for net in present)
    cost_moments = moments + kept * dynamics.moments
    form = _aligned(cost_moments + most * max((net.moments for net in learned), default=0))
    pull = form + most * dynamics.columns
    passes = -(-horizon // tall.steps)
    scratch32 = _aligned(pull + passes * most * dynamics.columns)
    return Sizes(_aligned(scratch), saved, cost_saved, scratch32, moments, cost_moments, form, pull)


@dataclass(frozen=True)
class ValueSizes:
    """One program's scratch where only values are computed: as `Sizes`, and nothing is saved."""

    scratch: int
    scratch32: int
    form: int
    parked: int


def value_sizes(tile: Tile, programs: tuple[Program, ...]) -> ValueSizes:
    """The scratch of one program of the rollout kernel; the first network is the dynamics'."""
    rows, columns = tile.block_b, programs[0].columns
    form = _aligned(2 * rows * max(program.stream_columns for program in programs))
    parked = form + rows * columns
    scratch = _aligned(2 * rows * max(program.widest for program in programs))
    return ValueSizes(scratch, _aligned(parked + rows * columns), form, parked)


def _aligned(numbers: int) -> int:
    """A multiple of 16, which keeps every program's scratch on vector loads."""
    return -(-numbers // 16) * 16
