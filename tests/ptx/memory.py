"""Memory that knows who touched what since the last barrier; the shared memory of one CTA.

Warps run in any order between two barriers (`bar.sync`), though the emulator runs them in lockstep. So what one warp writes,
no other may read or write within the same interval between barriers, and what one reads no other may write.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SHARED_BASE = 1024  # where shared memory begins, so that an address of zero is none
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NEVER, _SEVERAL = -1, -2


class Fault(Exception):
    """What stops a program: an address outside of everything, a wait without end, an instruction that is not known."""


class Accesses:
    """The interval of the last write and the last read of each granule of a memory, and the warp that did it."""

    def __init__(self, granules: int) -> None:
        self.written = np.full(granules, NEVER, np.int64)
        self.writer = np.full(granules, NEVER, np.int16)
        self.read = np.full(granules, NEVER, np.int64)
        self.reader = np.full(granules, NEVER, np.int16)

    def write(self, granules: Array, warps: Array, interval: int) -> dict[str, Array]:
        """Note a write; the granules at fault, by the kind of hazard."""
        faults = self.before_write(granules, warps, interval)
        self.note_write(granules, warps, interval)
        return faults

    def before_write(self, granules: Array, warps: Array, interval: int) -> dict[str, Array]:
        twice = (self.written[granules] == interval) & (self.writer[granules] != warps)
        early = self.read_by_another(granules, warps, interval)
        return {kind: granules[bad] for kind, bad in (("WAW", twice), ("WAR", early)) if bad.any()}

    def note_write(self, granules: Array, warps: Array, interval: int) -> None:
        self.written[granules] = interval
        self.writer[granules] = warps

    def note_read(self, granules: Array, warps: Array, interval: int) -> dict[str, Array]:
        """Note a read; the granules at fault, by the kind of hazard."""
        faults = self.before_read(granules, warps, interval)
        first = self.read[granules] != interval
        self.read[granules[first]] = interval
        self.reader[granules[first]] = warps[first]
        self.reader[granules[self.reader[granules] != warps]] = _SEVERAL
        return faults

    def before_read(self, granules: Array, warps: Array, interval: int) -> dict[str, Array]:
        early = (self.written[granules] == interval) & (self.writer[granules] != warps)
        return {"RAW": granules[early]} if early.any() else {}

    def read_by_another(self, granules: Array, warps: Array, interval: int) -> Array:
        return (self.read[granules] == interval) & (self.reader[granules] != warps)

    def note_read_by_several(self, granules: Array, interval: int) -> None:
        self.read[granules] = interval
        self.reader[granules] = _SEVERAL


class SharedMemory:
    """Bytes, all ones (NaN in every format) until written, in granules of two bytes.

    arriving   a copy by the TMA is on its way here: nothing may touch it
    operand    how many products that are not waited for may read it: nothing may write it
    generic    written by ordinary stores, which the asynchronous proxy (TMA, wgmma) does not see before a fence
    fenced     the interval in which a fence followed those stores: others' asynchronous reads come after the next barrier
    """

    def __init__(self, size: int) -> None:
        self.data = np.full(size, 0xFF, np.uint8)
        self.accesses = Accesses(size // 2)
        self.arriving = np.zeros(size // 2, bool)
        self.operand = np.zeros(size // 2, np.int16)
        self.generic = np.zeros(size // 2, bool)
        self.fenced = np.full(size // 2, NEVER, np.int64)

    def offsets(self, addresses: Any, size: int, what: str) -> Array:
        """Of accesses of `size` bytes, aligned to that, from the beginning of shared memory."""
        offsets = np.asarray(addresses).astype(np.int64) - SHARED_BASE
        if offsets.size and (offsets.min() < 0 or offsets.max() + size > len(self.data)):
            raise Fault(f"{what} outside of shared memory: {offsets.min()} to {offsets.max() + size} of {len(self.data)}")
        if (offsets % size).any():
            raise Fault(f"{what}: {size} bytes that are not aligned")
        return offsets

    def fence(self, interval: int) -> None:
        """All threads pass a generic-to-async proxy fence."""
        self.fenced[self.generic] = interval
        self.generic[:] = False

    def write(self, offsets: Array, data: Array, warps: Array, interval: int) -> dict[str, Any]:
        """Rows of bytes, `data [n, size]`, to `offsets [n]` by `warps [n]`. Returns faults by kind."""
        size = data.shape[1]
        granules, by = _spread(offsets, warps, size)
        faults: dict[str, Any] = self.accesses.write(granules, by, interval)
        if self.operand[granules].any():
            faults["write to an operand of a product in flight"] = granules[self.operand[granules] > 0]
        if self.arriving[granules].any():
            faults["write to the target of a copy in flight"] = granules[self.arriving[granules]]
        self.generic[granules] = True
        to = offsets[:, None] + np.arange(size)
        self.data[to] = data
        if (self.data[to] != data).any():
            faults["different values to one address by one instruction"] = granules
        return faults

    def read(self, offsets: Array, size: int, warps: Array, interval: int) -> tuple[Array, dict[str, Any]]:
        """Rows of bytes `[n, size]`, and faults by kind."""
        granules, by = _spread(offsets, warps, size)
        faults: dict[str, Any] = self.accesses.note_read(granules, by, interval)
        if self.arriving[granules].any():
            faults["read of the target of a copy in flight"] = granules[self.arriving[granules]]
        if (self.accesses.written[granules] < 0).any():
            faults["read of what nothing wrote"] = granules[self.accesses.written[granules] < 0]
        return self.data[offsets[:, None] + np.arange(size)], faults

    def begin_copy(self, offset: int, size: int, warp: Array, interval: int) -> dict[str, Any]:
        """The TMA begins to write `size` bytes, which are NaN until it has arrived."""
        granules = offset // 2 + np.arange(size // 2)
        faults = {
            "copy over an operand of a product in flight": self.operand[granules] > 0,
            "copy over a copy in flight": self.arriving[granules],
            "copy over what others read since the last barrier": self.accesses.read_by_another(granules, warp, interval),
            "copy over stores without a fence and a barrier": self._unseen(granules, interval),
        }
        self.data[offset : offset + size] = 0xFF
        self.arriving[granules] = True
        self.generic[granules] = False
        self.fenced[granules] = NEVER
        self.accesses.written[granules] = interval
        self.accesses.writer[granules] = warp
        return {kind: granules[bad] for kind, bad in faults.items() if bad.any()}

    def end_copy(self, offset: int, box: Array) -> None:
        """The TMA has written `box`, whose rows have 128 bytes, with the 128-byte swizzle."""
        data = np.ascontiguousarray(box).view(np.uint8).reshape(-1)
        to = swizzled(offset + SHARED_BASE + np.arange(len(data))) - SHARED_BASE
        self.data[to] = data
        self.arriving[offset // 2 : (offset + len(data)) // 2] = False

    def begin_product(self, granules: Array, interval: int) -> dict[str, Any]:
        """A product is issued that reads these granules until it is waited for."""
        flat = granules.reshape(-1)
        faults = {
            "product of the target of a copy in flight": self.arriving[flat],
            "product of what nothing wrote": self.accesses.written[flat] < 0,
            "product of stores without a fence and a barrier": self._unseen(flat, interval),
        }
        self.operand[np.unique(flat)] += 1
        return {kind: flat[bad] for kind, bad in faults.items() if bad.any()}

    def end_product(self, granules: Array, interval: int) -> None:
        """This warp has waited for the product; other warps may have not, before the next barrier."""
        flat = np.unique(granules)
        self.operand[flat] -= 1
        self.accesses.note_read_by_several(flat, interval)

    def _unseen(self, granules: Array, interval: int) -> Array:
        """Where the asynchronous proxy may not see what was stored."""
        return self.generic[granules] | (self.fenced[granules] == interval)


def swizzled(addresses: Array) -> Array:
    """The 128-byte swizzle: bits 4 to 6 of an address are changed by bits 7 to 9."""
    return addresses ^ ((addresses >> 7 & 7) << 4)


def _spread(offsets: Array, warps: Array, size: int) -> tuple[Array, Array]:
    """Granules of two bytes of each access of `size` bytes, and the warp of each."""
    each = max(1, size // 2)
    return (offsets[:, None] // 2 + np.arange(each)).reshape(-1), np.repeat(warps, each)
