"""Which weights a problem's models hold, so that what was made from them can be kept while they stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem

_AS_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@dataclass(frozen=True, eq=False)
class Version:
    """The state of a problem's weights; equal while no tensor was replaced or written to.

    PyTorch counts writes, but not those through `.data` (as target networks are often averaged) or through NumPy: the sum
    of a tensor's bits sees these. Tensors are held, not their addresses, since an address may come to be used again.
    """

    tensors: tuple[Tensor, ...]
    writes: tuple[tuple[int, int], ...]
    bits: tuple[int, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Version) or len(self.tensors) != len(other.tensors):
            return False
        same = all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        return same and self.writes == other.writes and self.bits == other.bits

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def version(problem: Problem) -> Version:
    """The state of the problem's weights now."""
    tensors = tuple(t for part in problem.modules.values() for t in (*part.parameters(), *part.buffers()))
    writes = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
    return Version(tensors, writes, tuple(sum_of_bits(t.detach()) for t in tensors))


def sum_of_bits(t: Tensor) -> int:
    """Of a tensor, whatever it holds; a tensor on a GPU is copied for it.

    Through NumPy, in this thread: PyTorch's own sum would wake its threads, which then spin where a plan is to run.
    """
    bits = t.cpu().contiguous().flatten()
    whole = bits.numel() * bits.element_size() % 8 == 0
    return int(bits.view(torch.int64 if whole else _AS_INTEGERS[bits.element_size()]).numpy().sum(dtype="int64"))
