"""Graphs of whole plans: batch sizes in buckets, inputs copied in after a strict check, and a bounded cache."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from .device import Device, Graph

# Rows of a matrix tile: buckets above are whole tiles.
TILE = 64
ENTRIES = 32
BYTES = 4 << 30


def bucket(rows: int) -> int:
    """The size that a batch of `rows` is padded to: the smallest of 1, 2, 4, … 64 and, above, of certain multiples of 64.

    Those are all multiples to 512, and then four for each doubling: 640, 768, 896, 1024, 1280, … So above 64 the padding is
    less than 64 rows or less than a quarter of `rows`, whichever is more, and the number of graphs grows with the logarithm
    of the batch. Raises ValueError for less than one row.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1")
    doubling = 1 << (rows - 1).bit_length()  # the power of two at or above
    if rows <= TILE:
        return doubling
    step = max(TILE, doubling // 8)
    return -(-rows // step) * step


def copy_in(static: Tensor, given: Tensor, name: str) -> None:
    """Copy `given [r, …]` into the first r rows of `static [R, …]`, r ≤ R, and its last row into the others.

    Raises ValueError, which says `name`, unless all axes but the first are the same, and dtype and device too: a copy that
    broadcasts or converts would plan something else than what was asked for, silently.
    """
    copy_all_in([(name, static, given)])


@torch.no_grad()
def copy_all_in(pairs: Sequence[tuple[str, Tensor, Tensor]]) -> None:
    """`copy_in` of several `(name, static, given)`: one launch for those of a dtype that lie row by row."""
    for name, static, given in pairs:
        _check_alike(static, given, name)
    heads = [(static[: len(given)], given) for _, static, given in pairs]
    tails = [
        (static[len(given) :], given[-1:].expand(len(static) - len(given), *given.shape[1:]))
        for _, static, given in pairs
        if len(given) < len(static)
    ]
    _copy_all([*heads, *tails])


@torch.no_grad()
def copy_all_out(tensors: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Copies of the first rows of each tensor: one launch for those of a dtype."""
    cut = {name: t[:rows] for name, t in tensors.items()}
    out = {name: torch.empty_like(t) for name, t in cut.items()}
    _copy_all([(out[name], t) for name, t in cut.items()])
    return out


def _copy_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    together: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for to, of in pairs:
        if to.stride() == of.stride():  # all of a launch must lie alike, else there is one for each
            together.setdefault(to.dtype, []).append((to, of))
        else:
            to.copy_(of)
    for same in together.values():
        torch._foreach_copy_([to for to, _ in same], [of for _, of in same])  # pyright: ignore[reportPrivateImportUsage]


def _check_alike(static: Tensor, given: Tensor, name: str) -> None:
    rows, wanted = len(static), tuple(static.shape[1:])
    if given.ndim != static.ndim or tuple(given.shape[1:]) != wanted or not 1 <= len(given) <= rows:
        expected = ", ".join(("r", *map(str, wanted)))
        raise ValueError(f"{name} has shape {tuple(given.shape)}; expected [{expected}] with r from 1 to {rows}")
    if given.dtype != static.dtype:
        raise ValueError(f"{name} is {given.dtype}; expected {static.dtype}, convert it with .to({static.dtype})")
    if given.device != static.device:
        raise ValueError(f"{name} is on {given.device}; expected {static.device}, move it with .to('{static.device}')")


class Work(Protocol):
    """What a graph is captured of, with the tensors that it uses.

    bytes  of those that it allocated for itself
    reads  the weights that `body` reads anew at every run, so that writes in place take effect; tensors of the model itself
    """

    @property
    def bytes(self) -> int: ...

    @property
    def reads(self) -> tuple[Tensor, ...]: ...

    def body(self) -> None: ...


W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class Entry(Generic[W]):
    """A work and its graph; `addresses` are those of what the work reads, at capture."""

    work: W
    graph: Graph
    addresses: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.work.bytes + self.graph.bytes

    def reads_still(self, tensors: Sequence[Tensor]) -> bool:
        """Whether `tensors` are the very ones that the graph reads, where it reads them."""
        held = self.work.reads
        return len(held) == len(tensors) and all(
            now is then and now.data_ptr() == address
            for now, then, address in zip(tensors, held, self.addresses, strict=True)
        )


@dataclass(frozen=True)
class GraphStats:
    """Counts since the cache was made: of what `get` answered, and what that took; `entries` and `bytes` are those of now.

    `seconds` went into captures, works and kernels that were made for them included.

    hits        found          misses      not found           recaptures   found, but a weight had been replaced
    captures    graphs captured: misses + recaptures           evictions    entries that had to go for another
    """

    hits: int = 0
    misses: int = 0
    captures: int = 0
    recaptures: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0
    seconds: float = field(default=0.0, compare=False)


class GraphCache(Generic[W]):
    """Graphs by key, at most `max_entries` of them and `max_bytes` in all: the least recently used goes first.

    The newest stays whatever its size, since it is about to be replayed, and the others go only once it is there: memory
    peaks at the bound and one entry more. An entry keeps the weights that it reads, replaced ones until the next `get`.

    A thread holds `lock` from `get` until it has copied the results out: until then the entry's buffers are its own, and
    the entry cannot be released by another thread.
    """

    def __init__(self, device: Device, max_entries: int = ENTRIES, max_bytes: int = BYTES) -> None:
        if max_entries < 1 or max_bytes < 1:
            raise ValueError(f"max_entries is {max_entries} and max_bytes {max_bytes}; expected at least 1 of each")
        self.lock = threading.RLock()
        self._device, self._max_entries, self._max_bytes = device, max_entries, max_bytes
        self._entries: OrderedDict[Hashable, Entry[W]] = OrderedDict()
        self._hits = self._misses = self._recaptures = self._evictions = 0
        self.seconds = 0.0  # that went into captures

    def get(self, key: Hashable, reads: Sequence[Tensor], build: Callable[[], W]) -> Entry[W]:
        """The entry of `key`; where there is none, or a tensor of `reads` is not the one that it reads, of a new `build()`.

        reads   the weights as the model holds them now, in the order of the work's `reads`
        build   allocates the work; an exception of it, or of the capture, leaves the cache and its counts as they were

        The current stream is ordered behind that of the last `get`, which may be replaying with the same buffers.
        """
        with self.lock:
            self._device.turn()
            found = self._entries.get(key)
            if found is not None and found.reads_still(reads):
                self._entries.move_to_end(key)
                self._hits += 1
                return found
            began = time.perf_counter()
            entry = self._capture(reads, build)
            self.seconds += time.perf_counter() - began
            self._entries[key] = entry
            self._entries.move_to_end(key)
            if found is None:
                self._misses += 1
            else:
                self._recaptures += 1
                found.graph.release()
            self._evict()
            return entry

    @property
    def stats(self) -> GraphStats:
        with self.lock:
            captures = self._misses + self._recaptures
            counts = (self._hits, self._misses, captures, self._recaptures, self._evictions)
            return GraphStats(*counts, len(self._entries), self._bytes(), self.seconds)

    def _capture(self, reads: Sequence[Tensor], build: Callable[[], W]) -> Entry[W]:
        work = build()
        addresses = tuple(t.data_ptr() for t in work.reads)
        entry = Entry(work, self._device.capture(work.body), addresses)
        if not entry.reads_still(reads):
            entry.graph.release()
            raise ValueError("build() made work that reads other tensors than `reads`; give get() the tensors of work.reads")
        return entry

    def _evict(self) -> None:
        while len(self._entries) > 1 and (len(self._entries) > self._max_entries or self._bytes() > self._max_bytes):
            _, oldest = self._entries.popitem(last=False)
            self._evictions += 1
            oldest.graph.release()

    def _bytes(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())
