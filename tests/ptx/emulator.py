"""Runs the PTX of a kernel, one CTA after another, on the CPU, and reports what goes well by luck alone.

What is modelled:

- All threads in lockstep, an instruction of all of them at a time; branches must be uniform. Hazards between warps within an
  interval between barriers, which lockstep hides, are reported, in shared and in global memory (`memory`).
- `mbarrier`s: their phases, pending arrivals, and counts of transactions. A wait that nothing ends stops the program.
- Copies of boxes by the TMA to shared memory with the 128-byte swizzle. They arrive when they are waited for, and no sooner:
  until then their targets are NaN, and any access to them is reported. Bounds and alignment are held to.
- `wgmma`, which reads its operands through their descriptors when it is waited for, and no sooner: until then its operands
  must stay, and its accumulators may not be used.
- `stmatrix`, `shfl`, `redux`, `elect`.
- Proxies: what ordinary stores wrote, the TMA and `wgmma` see after a generic-to-async fence and a barrier alone.
- Programs of one launch: none reads or writes global memory that another wrote.

What is not: `ptxas` and its machine code, time, several CTAs at once, caches, divergent branches, two tensors that overlap,
`ldmatrix`, atomics, and whatever other instruction the ring kernel has none of; an unknown one stops the program.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ptx.memory import SHARED_BASE, UNSIGNED, Array, Fault, GlobalMemory, SharedMemory, swizzled
from tests.ptx.parse import Block, blocks_of
from tests.ptx.translate import condition, translated

WARP, WARPGROUP = 32, 128
# A program of the ring kernel comes to a few thousand blocks; one that comes to this many has no end.
MOST_BLOCKS = 10**6


def from_bf16(bits: Any) -> Array:
    return (np.asarray(bits, np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Any) -> Array:
    """To the nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), nearest)


def from_f16(bits: Any) -> Array:
    return np.asarray(bits, np.uint16).view(np.float16).astype(np.float32)


def to_f16(x: Any) -> Array:
    return np.asarray(x, np.float32).astype(np.float16).view(np.uint16)


NAMES = {
    "np": np, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "i8": np.int8, "i16": np.int16,
    "i32": np.int32, "i64": np.int64, "f32": np.float32,
    "from_bf16": from_bf16, "to_bf16": to_bf16, "from_f16": from_f16, "to_f16": to_f16,
}  # fmt: skip


class Program:
    """A kernel's PTX, as compiled Python: for each block its code, and the lines of source of each of its statements."""

    def __init__(self, ptx: str) -> None:
        self.blocks, self.labels = blocks_of(ptx)
        self.code: list[Any] = []
        self.locations: list[str] = []
        for block in self.blocks:
            self.code.append(compile("\n".join(self._statements(block)) or "pass", "<ptx>", "exec"))

    def _statements(self, block: Block) -> Iterator[str]:
        for instruction in block.instructions:
            yield f"cta.at = {len(self.locations)}"
            self.locations.append(instruction.location)
            yield from translated(instruction)


@dataclass(frozen=True)
class Descriptor:
    """A matrix in global memory `[rows, 64]`, 16 bits an element, of which a copy takes `box` rows."""

    data: Array
    box: int


@dataclass
class Barrier:
    """An mbarrier: a phase ends when as many have arrived as it waits for and all bytes it expects have come."""

    count: int
    made: int  # in which interval between barriers
    pending: int
    phase: int = 0
    bytes: int = 0
    waited: int = -1  # in which interval, last
    copies: list[tuple[int, Array]] = field(default_factory=list)  # to which offset, what

    def turn(self) -> None:
        if self.pending < 0:
            raise Fault("more arrivals at an mbarrier than it waits for")
        if not self.pending and not self.bytes:
            self.phase += 1
            self.pending = self.count


@dataclass(frozen=True)
class Product:
    """A `wgmma`: for each warpgroup the granules of its two operands, and whether it adds to its accumulators."""

    columns: int
    dtype: str
    accumulators: list[str]
    groups: list[tuple[Array, Array, bool]]


Faults = dict[tuple[str, str], tuple[int, str]]  # (kind, lines of source): how often, and an example


class Cta:
    """One program of a launch. The methods are what instructions of PTX become (`translate`)."""

    def __init__(
        self, warps: int, shared: int, memory: GlobalMemory, parameters: dict[str, Any], descriptors: dict[int, Descriptor],
        program_id: int,
    ) -> None:  # fmt: skip
        self.size, self.warps = WARP * warps, warps
        self.threads = np.arange(self.size, dtype=np.uint32)
        self.warp = (self.threads // WARP).astype(np.int16)
        self.shared, self.memory = SharedMemory(shared), memory
        self.parameters, self.descriptors = parameters, descriptors
        self.program, self.program_id = program_id, np.uint32(program_id)
        self.interval = 0  # between barriers
        self.barriers: dict[int, Barrier] = {}
        self.issued: list[Product] = []
        self.committed: list[list[Product]] = []
        self.unfinished: dict[str, int] = {}  # accumulators: of how many products in flight
        self.faults: Faults = {}
        self.at, self.locations = 0, ["?"]
        self.counts = dict.fromkeys(("copies", "products", "barriers"), 0)
        self.registers: dict[str, Any] = NAMES | {"cta": self}

    def run(self, program: Program) -> Faults:
        """What was found; a fault of the kind "stop" ended the program early."""
        self.locations = program.locations
        with np.errstate(all="ignore"):
            try:
                self._run(program)
            except Fault as fault:
                self.report("stop", str(fault))
            except NameError as error:
                self.report("stop", f"register {error.name} is read before it is written")
        return self.faults

    def _run(self, program: Program) -> None:
        block = 0
        for _ in range(MOST_BLOCKS):
            exec(program.code[block], self.registers)
            end, branch = program.blocks[block].end, program.blocks[block].branch
            if end is not None and end.opcode == "ret":
                break
            taken = end is not None and self._uniform(eval(condition(end), self.registers), "a branch that diverges")
            block = program.labels[branch] if taken and branch is not None else block + 1
        else:
            raise Fault(f"no end after {MOST_BLOCKS} blocks")
        if any(barrier.copies for barrier in self.barriers.values()):
            self.report("end with copies in flight")
        if self.issued or self.committed:
            self.report("end with products in flight")

    def report(self, kind: str, example: str = "") -> None:
        """Note a fault at the instruction that runs."""
        key = (kind, self.locations[self.at])
        count, first = self.faults.get(key, (0, example))
        self.faults[key] = (count + 1, first)

    def report_all(self, faults: dict[str, Any], what: str) -> None:
        """Faults by kind, hazards by three letters; of granules of shared memory the first bytes are told."""
        for kind, at in faults.items():
            example = at if isinstance(at, str) else f"bytes {2 * at[:4]}"
            self.report(f"{kind} in {what}" if len(kind) == 3 else kind, example)

    def every(self, x: Any, dtype: Any) -> Array:
        """One element a thread."""
        return np.broadcast_to(np.asarray(x).astype(dtype, copy=False), (self.size,))

    def _uniform(self, x: Any, otherwise: str) -> Any:
        """The value that all threads have."""
        values = np.unique(np.asarray(x))
        if len(values) != 1:
            raise Fault(otherwise)
        return values[0].item()

    # Shared memory.

    def load_shared(self, on: Any, to: Any, registers: list[str], size: int, width: Any) -> list[Array]:
        mask = self.every(on, bool)
        total = len(registers) * size
        offsets = self.shared.offsets(self.every(to, np.uint32)[mask], total, "load")
        return self._loaded(mask, registers, size, width, lambda: self._read_shared(offsets, total, mask))

    def _read_shared(self, offsets: Array, size: int, mask: Array) -> Array:
        data, faults = self.shared.read(offsets, size, self.warp[mask], self.interval)
        self.report_all(faults, "shared memory")
        return data

    def _loaded(self, mask: Array, registers: list[str], size: int, width: Any, read: Any) -> list[Array]:
        """Registers: what is read where `mask` holds; elsewhere what was there, or all ones (NaN) where nothing was."""
        nothing = width(np.iinfo(width).max)
        loaded = [np.array(self.every(self.registers.get(name, nothing), width)) for name in registers]
        if mask.any():
            values = np.ascontiguousarray(read()).view(UNSIGNED[size])
            for i, x in enumerate(loaded):
                x[mask] = values[:, i]
        return loaded

    def _stored(self, mask: Array, values: list[Any], size: int) -> Array:
        """The bytes that each thread stores."""
        return np.stack([self.every(x, UNSIGNED[size])[mask] for x in values], 1).view(np.uint8)

    def store_shared(self, on: Any, to: Any, values: list[Any], size: int) -> None:
        mask = self.every(on, bool)
        if mask.any():
            offsets = self.shared.offsets(self.every(to, np.uint32)[mask], size * len(values), "store")
            self._write_shared(offsets, self._stored(mask, values, size), self.warp[mask])

    def _write_shared(self, offsets: Array, data: Array, warps: Array) -> None:
        self.report_all(self.shared.write(offsets, data, warps, self.interval), "shared memory")

    def store_matrices(self, to: Any, values: list[Any], transposed: bool) -> None:
        """`stmatrix` of 8×8 matrices: thread l of a warp holds elements 2l and 2l + 1, threads 8i to 8i + 7 name rows."""
        warps = np.repeat(np.arange(self.warps), 8).astype(np.int16)
        addresses = self.every(to, np.uint32).reshape(self.warps, WARP)
        for i, x in enumerate(values):
            offsets = self.shared.offsets(addresses[:, 8 * i :][:, :8].reshape(-1), 16, "stmatrix")
            matrices = self.every(x, np.uint32).copy().view(np.uint16).reshape(self.warps, 8, 8)
            rows = np.ascontiguousarray(matrices.swapaxes(1, 2) if transposed else matrices)
            self._write_shared(offsets, rows.view(np.uint8).reshape(-1, 16), warps)

    # Global memory.

    def load_global(self, on: Any, to: Any, registers: list[str], size: int, width: Any) -> list[Array]:
        mask = self.every(on, bool)
        addresses, total = self.every(to, np.uint64)[mask], len(registers) * size
        return self._loaded(mask, registers, size, width, lambda: self._read_global(addresses, total, mask))

    def _read_global(self, addresses: Array, size: int, mask: Array) -> Array:
        data, faults = self.memory.read(addresses, size, self.warp[mask], self.program, self.interval)
        self.report_all(faults, "global memory")
        return data

    def store_global(self, on: Any, to: Any, values: list[Any], size: int) -> None:
        mask = self.every(on, bool)
        if mask.any():
            addresses, data = self.every(to, np.uint64)[mask], self._stored(mask, values, size)
            faults = self.memory.write(addresses, data, self.warp[mask], self.program, self.interval)
            self.report_all(faults, "global memory")

    # Barriers and copies.

    def barrier(self) -> None:
        """`bar.sync` of all threads."""
        self.interval += 1
        self.counts["barriers"] += 1

    def fence(self) -> None:
        self.shared.fence(self.interval)

    def init_barrier(self, on: Any, to: Any, count: int) -> None:
        mask = self.every(on, bool)
        if mask.any():
            address = self._uniform(self.every(to, np.uint32)[mask], "several mbarriers by one instruction")
            offsets = self.shared.offsets([address], 8, "mbarrier")
            self._write_shared(offsets, np.zeros((1, 8), np.uint8), self.warp[mask][:1])
            self.barriers[address] = Barrier(count, self.interval, pending=count)

    def _barrier(self, to: Any) -> Barrier:
        address = self._uniform(to, "an mbarrier's address that differs between threads")
        if address not in self.barriers:
            raise Fault(f"no mbarrier at {address - SHARED_BASE}")
        if self.barriers[address].made == self.interval:
            self.report("mbarrier used before a barrier after it was made")
        return self.barriers[address]

    def expect(self, on: Any, to: Any, size: int) -> None:
        """Arrivals that announce `size` bytes each."""
        arrivals = int(self.every(on, bool).sum())
        if arrivals:
            barrier = self._barrier(to)
            barrier.bytes += size * arrivals
            barrier.pending -= arrivals
            barrier.turn()

    def copy(self, on: Any, to: Any, descriptor: Any, column: Any, row: Any, barrier: Any) -> None:
        """The TMA begins to copy a box of a matrix to shared memory."""
        threads = np.flatnonzero(self.every(on, bool))
        if not len(threads):
            return
        if len(threads) > 1:
            raise Fault("a copy by several threads")
        (thread,), ready = threads, self._barrier(barrier)
        source = self.descriptors[int(self.every(descriptor, np.uint64)[thread])]
        first, left = (int(self.every(x, np.uint32)[thread].astype(np.int32)) for x in (row, column))
        if left or first < 0 or first + source.box > len(source.data):
            raise Fault(f"a copy from row {first} and column {left} of {source.data.shape}")
        box = source.data[first : first + source.box]
        if ready.waited == self.interval:
            self.report("copy for an mbarrier whose last phase others may still wait for")
        (offset,) = self.shared.offsets(self.every(to, np.uint32)[[thread]], 1024, "copy")
        if offset + box.nbytes > len(self.shared.data):
            raise Fault("a copy beyond shared memory")
        faults = self.shared.begin_copy(int(offset), box.nbytes, self.warp[thread], self.interval)
        self.report_all(faults, "shared memory")
        ready.copies.append((int(offset), box))
        self.counts["copies"] += 1

    def wait(self, to: Any, parity: Any) -> None:
        """For the end of the phase of this parity, which lets what was copied for it arrive."""
        barrier, odd = self._barrier(to), self._uniform(parity, "a parity that differs between threads")
        barrier.waited = self.interval
        if barrier.phase & 1 != odd:
            return
        for offset, box in barrier.copies:
            self.shared.end_copy(offset, box)
            barrier.bytes -= box.nbytes
        barrier.copies.clear()
        barrier.turn()
        if barrier.phase & 1 == odd:
            raise Fault(f"a wait without end: {barrier.bytes} bytes and {barrier.pending} arrivals are missing")

    # Products.

    def product(
        self, columns: int, dtype: str, accumulators: list[str], a: Any, b: Any, adds: Any, turn_a: bool, turn_b: bool
    ) -> None:
        """`wgmma` of 64 rows a warpgroup, 16 deep, both operands in shared memory."""
        given = (self.every(a, np.uint64), self.every(b, np.uint64), self.every(adds, bool))
        groups = []
        for start in range(0, self.size, WARPGROUP):
            one, two, add = (self._uniform(x[start : start + WARPGROUP], "operands differ in a warpgroup") for x in given)
            groups.append((self._operand(one, 64, turn_a), self._operand(two, columns, turn_b), add))
        self.issued.append(Product(columns, dtype, accumulators, groups))
        for name in accumulators:
            self.unfinished[name] = self.unfinished.get(name, 0) + 1
            self.registers.setdefault(name, np.uint32(0xFFFFFFFF))
        self.counts["products"] += 1

    def _operand(self, descriptor: int, rows: int, transposed: bool) -> Array:
        """Granules `[rows, 16]` of a matrix in shared memory, in the 128-byte swizzle.

        A descriptor has the start in bits 0 to 13, the leading offset in 16 to 29, the stride in 32 to 45, all in 16 bytes.
        """
        start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
        if descriptor >> 62 != 1 or descriptor >> 49 & 7:
            raise Fault(f"descriptor {descriptor:#x} of another swizzle, or with a base offset")
        row, depth = np.arange(rows)[:, None], np.arange(16)[None, :]
        if transposed:
            addresses = start + row // 64 * leading + depth // 8 * stride + depth % 8 * 128 + row % 64 * 2
        else:
            addresses = start + row // 8 * stride + row % 8 * 128 + depth * 2
        granules = self.shared.offsets(swizzled(addresses), 2, "product") // 2
        self.report_all(self.shared.begin_product(granules, self.interval), "shared memory")
        return granules

    def commit(self) -> None:
        self.committed.append(self.issued)
        self.issued = []

    def wait_for_products(self, left: int) -> None:
        """Until `left` groups are in flight."""
        while len(self.committed) > left:
            for product in self.committed.pop(0):
                self._finish(product)

    def _finish(self, product: Product) -> None:
        numbers = from_bf16 if product.dtype == "bf16" else from_f16
        elements = self.shared.data.view(np.uint16)
        before = [self.registers[name] if any(add for *_, add in product.groups) else 0 for name in product.accumulators]
        sums = np.stack([self.every(x, np.uint32) for x in before], 1).view(np.float32)  # [threads, columns / 2]
        thread = np.arange(WARPGROUP)[:, None]
        row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2 + np.arange(0, product.columns, 8)
        for group, (a, b, add) in enumerate(product.groups):
            whole = numbers(elements[a]).astype(np.float64) @ numbers(elements[b]).astype(np.float64).T
            part = sums[group * WARPGROUP :][:WARPGROUP]
            for i, (down, right) in enumerate(((0, 0), (0, 1), (8, 0), (8, 1))):
                found = whole[row + down, column + right].astype(np.float32)
                part[:, i::4] = part[:, i::4] + found if add else found
            for granules in (a, b):
                self.shared.end_product(granules, self.interval)
        for i, name in enumerate(product.accumulators):
            self.registers[name] = sums[:, i].copy().view(np.uint32)
            self.unfinished[name] -= 1
            if not self.unfinished[name]:
                del self.unfinished[name]

    def use(self, names: list[str]) -> None:
        """An instruction other than a product has these registers."""
        for name in names:
            if name in self.unfinished:
                self.report("use of an accumulator of a product in flight", name)

    # Within a warp.

    def shuffle(self, mode: str, x: Any, by: Any) -> Array:
        lanes, of = np.arange(WARP), self.every(by, np.uint32).reshape(self.warps, WARP).astype(np.int64)
        if mode not in ("bfly", "idx"):
            raise Fault(f"a shuffle of mode {mode}")
        source = lanes ^ of if mode == "bfly" else of & 31
        return np.take_along_axis(self.every(x, np.uint32).reshape(self.warps, WARP), source, 1).reshape(-1)

    def sum_of_warp(self, x: Any) -> Array:
        sums = self.every(x, np.uint32).reshape(self.warps, WARP).astype(np.int64).sum(1)
        return np.repeat(sums, WARP).astype(np.uint32)

    def elected(self) -> Array:
        return self.threads % WARP == 0
