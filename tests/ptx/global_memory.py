"""The tensors of a launch, in global memory, and what its programs, which all run at once, do to one another there.

Intervals between barriers are numbered such that no two programs share one: those of program p of P are p, p + P, p + 2P, …

Ordinary accesses of different programs to the same bytes, one of them a write, must be ordered by a release and an acquire.
*Words* are what programs hand to one another by relaxed accesses, which need no order; but ordinary accesses to them do, and
so does a word that is written over one that another program read: the writer must have heard, by a word of the reader's that
came after it, that the reader has done so. What a program hears, all of its warps know from its next barrier on; what it
says, by a word or a release, covers what it did before its last barrier.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.ptx.memory import NEVER, Accesses, Array, Fault

_PAGE = 4096


class Order:
    """Of each program, the last interval of every other program that is known to come before what it does now."""

    def __init__(self, programs: int) -> None:
        self.known = np.full((programs, programs), NEVER, np.int64)
        np.fill_diagonal(self.known, np.iinfo(np.int64).max)
        self._told = self.known.copy()

    def tell(self, program: int, intervals: Array) -> None:
        self._told[program] = np.maximum(self._told[program], intervals)

    def barrier(self, program: int) -> None:
        self.known[program] = self._told[program]

    def said(self, interval: int) -> Array:
        """What a program tells to others within this interval of its."""
        programs = len(self.known)
        intervals = self.known[interval % programs].copy()
        intervals[interval % programs] = interval - programs
        return intervals


class Across:
    """Accesses of one kind to the granules of a tensor, by all programs."""

    def __init__(self, size: int, programs: int) -> None:
        self.accesses = Accesses(size)
        # One more than the interval of each program's last read; of memory of zeros only what is written to takes room.
        self.read = np.zeros((programs, size), np.int32)

    def note_read(self, granules: Array, warps: Array, interval: int) -> None:
        self.accesses.note_read(granules, warps, interval)
        self.read[interval % len(self.read), granules] = interval + 1

    def written_by_others(self, granules: Array, known: Array) -> Array:
        written = self.accesses.written[granules]
        return written > known[written % len(known)]

    def read_by_others(self, granules: Array, known: Array) -> Array:
        read = self.read[:, granules]
        return np.any((read > 0) & (read - 1 > known[:, None]), axis=0)


class Words(Across):
    """Relaxed accesses, and what was said by the last write of each word: `heard` by all, `released` to an acquire."""

    def __init__(self, size: int, programs: int) -> None:
        super().__init__(size, programs)
        self.heard = np.full((size, programs), NEVER, np.int64)
        self.released = self.heard.copy()
        self.given = np.zeros(size, np.int32)  # how often


class GlobalTensor:
    """One tensor's bytes at a made-up address, in granules of an element's size, 4 at most."""

    def __init__(self, name: str, base: int, data: Array, granule: int, programs: int) -> None:
        self.name, self.base, self.data, self.granule = name, base, data, granule
        self._size, self._programs = len(data) // granule, programs
        self.ordinary = Across(self._size, programs)
        self.words: Words | None = None

    def have_words(self) -> Words:
        if self.words is None:
            self.words = Words(self._size, self._programs)
        return self.words


@dataclass(frozen=True)
class Access:
    """Bytes `[n, size]` of a tensor, their granules one after the other, the warp of each, and the program."""

    tensor: GlobalTensor
    bytes: Array
    granules: Array
    warps: Array
    interval: int
    program: int

    def told(self, faults: dict[str, Array], others: dict[str, Array]) -> dict[str, str]:
        """Faults by kind, with the first bytes of each; of `others`, by kind, which of the granules are at fault."""
        faults = faults | {kind: self.granules[bad] for kind, bad in others.items() if bad.any()}
        return {kind: f"{self.tensor.name} {self.tensor.granule * at[:4]}" for kind, at in faults.items()}


class GlobalMemory:
    """The tensors of one launch of so many programs; `stores` counts what was stored to them."""

    def __init__(self, programs: int = 1) -> None:
        self.programs, self.stores = programs, 0
        self.tensors: list[GlobalTensor] = []
        self.ordered, self.heard = Order(programs), Order(programs)
        self._next = 1 << 32

    def add(self, name: str, data: Array, element: int) -> int:
        """The address of a tensor, given as bytes `[n]` that are written in place."""
        base = self._next
        self._next += (len(data) // _PAGE + 2) * _PAGE
        self.tensors.append(GlobalTensor(name, base, data, min(element, 4), self.programs))
        return base

    def barrier(self, program: int) -> None:
        """Of the threads of a program."""
        self.ordered.barrier(program)
        self.heard.barrier(program)

    def read(self, addresses: Array, size: int, warps: Array, interval: int) -> tuple[Array, dict[str, str]]:
        """Rows of bytes `[n, size]`, and faults by kind."""
        access = self._access(addresses, size, warps, interval)
        ordinary, words, at = access.tensor.ordinary, access.tensor.words, access.granules
        faults = ordinary.accesses.before_read(at, access.warps, interval)
        known = self.ordered.known[access.program]
        others = ordinary.written_by_others(at, known)
        if words is not None:
            faults |= words.accesses.before_read(at, access.warps, interval)
            others |= words.written_by_others(at, known)
        ordinary.note_read(at, access.warps, interval)
        return access.tensor.data[access.bytes], access.told(faults, {"read of what another program wrote": others})

    def write(self, addresses: Array, data: Array, warps: Array, interval: int) -> dict[str, str]:
        """Rows of bytes, `data [n, size]`. Returns faults by kind."""
        access = self._access(addresses, data.shape[1], warps, interval)
        ordinary, words, at = access.tensor.ordinary, access.tensor.words, access.granules
        faults = ordinary.accesses.before_write(at, access.warps, interval)
        known = self.ordered.known[access.program]
        written, read = ordinary.written_by_others(at, known), ordinary.read_by_others(at, known)
        if words is not None:
            faults |= words.accesses.before_write(at, access.warps, interval)
            written |= words.written_by_others(at, known)
            read |= words.read_by_others(at, known)
        if len(np.unique(at)) != len(at):
            faults["one address stored by several threads of one instruction"] = at
        ordinary.accesses.note_write(at, access.warps, interval)
        access.tensor.data[access.bytes] = data
        self.stores += 1
        others = {"write to what another program wrote": written, "write to what another program read": read}
        return access.told(faults, others)

    # Words.

    def look(self, addresses: Array, size: int, warps: Array, interval: int) -> tuple[Array, dict[str, str]]:
        """Rows of bytes `[n, size]` of words, and faults by kind. They may be too old: `take` tells that they are not."""
        access = self._access(addresses, size, warps, interval)
        ordinary = access.tensor.ordinary
        faults = ordinary.accesses.before_read(access.granules, access.warps, interval)
        others = ordinary.written_by_others(access.granules, self.ordered.known[access.program])
        told = access.told(faults, {"word read of what another program wrote otherwise": others})
        return access.tensor.data[access.bytes], told

    def take(self, addresses: Array, size: int, warps: Array, interval: int, acquire: bool) -> None:
        """The words that were looked at are those that were waited for."""
        access = self._access(addresses, size, warps, interval)
        words, at = access.tensor.have_words(), access.granules
        words.note_read(at, access.warps, interval)
        self.heard.tell(access.program, words.heard[at].max(0))
        if acquire:
            self.ordered.tell(access.program, words.released[at].max(0))

    def give(self, addresses: Array, data: Array, warps: Array, interval: int, release: bool) -> dict[str, str]:
        """Words, `data [n, size]`, stored. Returns faults by kind."""
        access = self._access(addresses, data.shape[1], warps, interval)
        words, at = access.tensor.have_words(), access.granules
        faults, others = self._before_words(access)
        if words.accesses.read_by_another(at, access.warps, interval).any():
            faults["WAR"] = at
        heard = self.heard.known[access.program]
        others["word over another program's"] = words.written_by_others(at, heard)
        others["word over one that another program may still read"] = words.read_by_others(at, heard)
        words.accesses.note_write(at, access.warps, interval)
        words.given[at] += 1
        words.heard[at] = self.heard.said(interval)
        words.released[at] = self.ordered.said(interval) if release else NEVER
        access.tensor.data[access.bytes] = data
        if (access.tensor.data[access.bytes] != data).any():
            faults["different words to one address by one instruction"] = at
        self.stores += 1
        return access.told(faults, others)

    def count(self, addresses: Array, amounts: Array, warps: Array, interval: int, release: bool) -> dict[str, str]:
        """Words of 32 bits, to which `amounts [n]` are added. Returns faults by kind."""
        access = self._access(addresses, 4, warps, interval)
        words, at = access.tensor.have_words(), access.granules
        faults, others = self._before_words(access)
        words.accesses.note_write(at, access.warps, interval)
        words.given[at] += 1
        words.heard[at] = np.maximum(words.heard[at], self.heard.said(interval))
        if release:
            words.released[at] = np.maximum(words.released[at], self.ordered.said(interval))
        for place, amount in zip(access.bytes, amounts, strict=True):
            access.tensor.data[place] = (access.tensor.data[place].view(np.uint32) + amount).view(np.uint8)
        self.stores += 1
        return access.told(faults, others)

    def _before_words(self, access: Access) -> tuple[dict[str, Array], dict[str, Array]]:
        ordinary, at, known = access.tensor.ordinary, access.granules, self.ordered.known[access.program]
        return ordinary.accesses.before_write(at, access.warps, access.interval), {
            "word over what another program wrote otherwise": ordinary.written_by_others(at, known),
            "word over what another program read otherwise": ordinary.read_by_others(at, known),
        }

    def told(self, address: int, size: int) -> str:
        """Of words: where they are, what they hold, and how often they were given."""
        tensor, (offset,) = self._find(np.array([address], np.uint64), size)
        held = " ".join(f"{word:#x}" for word in tensor.data[offset : offset + size].view(np.uint32))
        return f"{tensor.name} {offset} (given {tensor.have_words().given[offset // tensor.granule]} times, {held})"

    def _access(self, addresses: Array, size: int, warps: Array, interval: int) -> Access:
        tensor, offsets = self._find(addresses, size)
        count, rest = divmod(size, tensor.granule)
        if rest:
            raise Fault(f"an access of {size} bytes to {tensor.name}, whose elements have {tensor.granule}")
        granules = (offsets[:, None] // tensor.granule + np.arange(count)).reshape(-1)
        by, program = np.repeat(warps, count), interval % self.programs
        return Access(tensor, offsets[:, None] + np.arange(size), granules, by, interval, program)

    def _find(self, addresses: Array, size: int) -> tuple[GlobalTensor, Array]:
        first, end = int(addresses.min()), int(addresses.max()) + size
        for tensor in self.tensors:
            if tensor.base <= first and end <= tensor.base + len(tensor.data):
                offsets = (addresses - np.uint64(tensor.base)).astype(np.int64)
                if (offsets % size).any():
                    raise Fault(f"an access of {size} bytes to {tensor.name} is not aligned")
                return tensor, offsets
        near = [f"{t.name} {first - t.base} to {end - t.base} of {len(t.data)}" for t in self.tensors if t.base <= first]
        raise Fault(f"an access outside of every tensor: {near[-1] if near else hex(first)}")
