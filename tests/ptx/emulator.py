"""Runs the PTX of a kernel's programs (CTAs) on the CPU, and reports what goes well by luck alone.

What is modelled:

- All threads in lockstep, an instruction of all of them at a time; branches must be uniform. Hazards between warps within an
  interval between barriers, which lockstep hides, are reported, in shared and in global memory (`memory`).
- `mbarrier`s: their phases, pending arrivals, and counts of transactions. A wait that nothing ends stops the program.
- Copies of boxes by the TMA to shared memory with the 128-byte swizzle. They arrive when they are waited for, and no sooner:
  until then their targets are NaN, and any access to them is reported. Bounds and alignment are held to.
- `wgmma`, which reads its operands through their descriptors when it is waited for, and no sooner: until then its operands
  must stay, and its accumulators may not be used.
- `mma.sync` of 16 × 8 × 16, `ldmatrix`, `stmatrix`, `shfl`, `redux`, `elect`.
- Proxies: what ordinary stores wrote, the TMA and `wgmma` see after a generic-to-async fence and a barrier alone.
- Inline assembly with registers and labels of its own. All threads go through its loops until none asks for more, and a
  branch ahead is a predicate of what it goes over.
- Programs of one launch that run at once, by turns (`schedules`), and give one another words by relaxed stores and loads,
  additions, releases and acquires. Other accesses to what another program accesses are reported (`global_memory`).

What is not: `ptxas` and its machine code, time, caches and stores that are seen late or in another order, divergent branches
elsewhere, two tensors that overlap, and whatever instruction the kernels have none of; an unknown one stops the program.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ptx.formats import NAMES, from_bf16, from_f16
from tests.ptx.global_memory import GlobalMemory
from tests.ptx.memory import SHARED_BASE, UNSIGNED, Array, Fault, SharedMemory, swizzled
from tests.ptx.program import Program

WARP, WARPGROUP = 32, 128
# A program of the ring kernel comes to a few thousand blocks; one that comes to this many has no end.
MOST_BLOCKS = 10**6


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


@dataclass(frozen=True)
class Waiting:
    """A program whose words were not there after so many `stores`, −1 if it did not look: `what` tells of the first."""

    cta: Cta
    stores: int
    what: str


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
        self.interval = program_id  # between barriers; no other program has one of this number
        self.barriers: dict[int, Barrier] = {}
        self.issued: list[Product] = []
        self.committed: list[list[Product]] = []
        self.unfinished: dict[str, int] = {}  # accumulators: of how many products in flight
        self.faults: Faults = {}
        self.looked = -1  # at global memory within this loop, after how many stores
        self.stopped = False
        self.at, self.locations = 0, ["?"]
        self.counts = dict.fromkeys(("copies", "products", "barriers"), 0)
        self.registers: dict[str, Any] = NAMES | {"cta": self}

    def run(self, program: Program) -> Iterator[Waiting | None]:
        """Runs to the end, in parts; after a part that found words not there, what is waited for.

        What was found is in `faults`; one of the kind "stop" ended the program early.
        """
        self.locations = program.locations
        try:
            yield from self._run(program)
        except Fault as fault:
            self.stop(str(fault))
        except NameError as error:
            self.stop(f"register {error.name} is read before it is written")

    def _run(self, program: Program) -> Iterator[Waiting | None]:
        number = 0
        for _ in range(MOST_BLOCKS):
            block, end = program.blocks[number], program.ends[number]
            exec(program.code[number], self.registers)
            if number not in program.looping:
                self.looked = -1
            if block.end is not None and block.end.opcode == "ret":
                break
            wanted = end is not None and eval(end, self.registers)
            if block.repeats:
                taken = bool(np.any(wanted))
                yield self._asked(*eval(program.asked[number], self.registers), wanted)
            else:
                taken = self._uniform(wanted, "a branch that diverges")
                yield None
            number = program.labels[block.branch] if taken and block.branch is not None else number + 1
        else:
            raise Fault(f"no end after {MOST_BLOCKS} blocks")
        if any(barrier.copies for barrier in self.barriers.values()):
            self.report("end with copies in flight")
        if self.issued or self.committed:
            self.report("end with products in flight")

    def stop(self, why: str) -> None:
        self.report("stop", why)
        self.stopped = True

    def trap(self, on: Any) -> None:
        if self.every(on, bool).any():
            raise Fault("a trap: the kernel stops itself")

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
        for i, x in enumerate(values):
            offsets, warps = self._rows(to, i, "stmatrix")
            matrices = self.every(x, np.uint32).copy().view(np.uint16).reshape(self.warps, 8, 8)
            rows = np.ascontiguousarray(matrices.swapaxes(1, 2) if transposed else matrices)
            self._write_shared(offsets, rows.view(np.uint8).reshape(-1, 16), warps)

    def load_matrices(self, to: Any, count: int, transposed: bool) -> list[Array]:
        """`ldmatrix`, the other way."""
        loaded = []
        for i in range(count):
            offsets, warps = self._rows(to, i, "ldmatrix")
            data, faults = self.shared.read(offsets, 16, warps, self.interval)
            self.report_all(faults, "shared memory")
            matrices = data.view(np.uint16).reshape(self.warps, 8, 8)
            rows = np.ascontiguousarray(matrices.swapaxes(1, 2) if transposed else matrices)
            loaded.append(rows.reshape(-1).view(np.uint32))
        return loaded

    def _rows(self, to: Any, matrix: int, what: str) -> tuple[Array, Array]:
        """Where the eight rows of a matrix are, of each warp, and the warps."""
        addresses = self.every(to, np.uint32).reshape(self.warps, WARP)[:, 8 * matrix :][:, :8]
        return self.shared.offsets(addresses.reshape(-1), 16, what), np.repeat(np.arange(self.warps), 8).astype(np.int16)

    # Global memory.

    def load_global(self, on: Any, to: Any, registers: list[str], size: int, width: Any) -> list[Array]:
        mask = self.every(on, bool)
        addresses, total = self.every(to, np.uint64)[mask], len(registers) * size
        return self._loaded(mask, registers, size, width, lambda: self._read_global(addresses, total, mask))

    def _read_global(self, addresses: Array, size: int, mask: Array) -> Array:
        self.looked = self.memory.stores
        data, faults = self.memory.read(addresses, size, self.warp[mask], self.interval)
        self.report_all(faults, "global memory")
        return data

    def store_global(self, on: Any, to: Any, values: list[Any], size: int) -> None:
        mask = self.every(on, bool)
        if mask.any():
            addresses, data = self.every(to, np.uint64)[mask], self._stored(mask, values, size)
            self.report_all(self.memory.write(addresses, data, self.warp[mask], self.interval), "global memory")

    # Words, which programs give one another.

    def load_words(self, on: Any, to: Any, registers: list[str], size: int, width: Any) -> list[Array]:
        mask = self.every(on, bool)
        addresses, total = self.every(to, np.uint64)[mask], len(registers) * size
        return self._loaded(mask, registers, size, width, lambda: self._look(addresses, total, mask))

    def _look(self, addresses: Array, size: int, mask: Array) -> Array:
        self.looked = self.memory.stores
        data, faults = self.memory.look(addresses, size, self.warp[mask], self.interval)
        self.report_all(faults, "global memory")
        return data

    def _asked(self, words: list[Any], stamps: list[Any], late: Any) -> Waiting | None:
        """A loop asked for words with these stamps; it asks again where threads are `late`, and else has taken them."""
        threads = np.flatnonzero(self.every(late, bool))
        for on, to, size, acquire in words:
            mask, addresses = self.every(on, bool), self.every(to, np.uint64)
            if not len(threads) and mask.any():
                self.memory.take(addresses[mask], size, self.warp[mask], self.interval, acquire)
            for thread in threads[mask[threads]][:1]:
                awaited = [str(self.every(stamp, np.uint32)[thread].astype(np.int32)) for stamp in stamps]
                place = self.memory.told(int(addresses[thread]), size)
                return Waiting(self, self.looked, f"{place}, thread {thread} for {', '.join(awaited)}")
        return Waiting(self, self.looked, "no words") if len(threads) else None

    def store_words(self, on: Any, to: Any, values: list[Any], size: int, release: bool) -> None:
        mask = self.every(on, bool)
        if mask.any():
            addresses, data = self.every(to, np.uint64)[mask], self._stored(mask, values, size)
            self.report_all(self.memory.give(addresses, data, self.warp[mask], self.interval, release), "global memory")

    def count(self, on: Any, to: Any, amount: Any, release: bool) -> None:
        """`red.add` of 32 bits."""
        mask = self.every(on, bool)
        if mask.any():
            addresses, amounts = self.every(to, np.uint64)[mask], self.every(amount, np.uint32)[mask]
            self.report_all(self.memory.count(addresses, amounts, self.warp[mask], self.interval, release), "global memory")

    # Barriers and copies.

    def barrier(self) -> None:
        """`bar.sync` of all threads."""
        self.interval += self.memory.programs
        self.memory.barrier(self.program)
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

    def product_of_warps(self, dtype: str, a: list[Any], b: list[Any], c: list[Any]) -> list[Array]:
        """`mma.sync` of 16 × 8 × 16 in each warp.

        Thread 4i + j holds elements 2j and 2j + 1: of the first operand in rows i and i + 8, then 8 further right; of the
        second in column i, then 8 further down; of the sums in row i, then in row i + 8.
        """
        numbers = from_bf16 if dtype == "bf16" else from_f16

        def fragments(registers: list[Any]) -> Array:  # [warp, row, register, column]
            halves = np.stack([self.every(x, np.uint32) for x in registers], 1).view(np.uint16)
            halves = halves.reshape(self.warps, 8, 4, len(registers), 2).swapaxes(2, 3)
            return numbers(halves.reshape(self.warps, 8, len(registers), 8)).astype(np.float64)

        first, second = fragments(a), fragments(b)
        first = first.reshape(self.warps, 8, 2, 2, 8).transpose(0, 3, 1, 2, 4).reshape(self.warps, 16, 16)
        whole = (first @ second.reshape(self.warps, 8, 16).swapaxes(1, 2)).astype(np.float32)
        found = whole.reshape(self.warps, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(self.size, 4)
        self.counts["products"] += 1
        return [(self.every(x, np.uint32).view(np.float32) + found[:, i]).view(np.uint32) for i, x in enumerate(c)]

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
