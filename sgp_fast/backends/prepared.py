"""A problem made ready for a dtype and a device, and kept for as long as its weights stay as they are."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

from ..problem import Problem

if TYPE_CHECKING:
    from ..planner import SGP

_Version = tuple[tuple[int, int], ...]
_cache: weakref.WeakKeyDictionary[Problem, dict[tuple, tuple[_Version, Problem]]] = weakref.WeakKeyDictionary()


def version(problem: Problem) -> _Version:
    """Which tensors the problem's models hold and how often each was written to: changes when a weight does."""
    tensors = (t for part in problem.modules.values() for t in (*part.parameters(), *part.buffers()))
    return tuple((id(t), 0 if t.is_inference() else t._version) for t in tensors)


def prepare(problem: Problem, planner: SGP, device: torch.device) -> Problem:
    """The problem in the planner's dtypes. Weights that were changed in place, or replaced, are seen at the next call."""
    key = (planner.state_dtype, planner.product_dtype, device)
    kept = _cache.setdefault(problem, {})
    now = version(problem)
    if key not in kept or kept[key][0] != now:
        kept[key] = (now, problem.prepared(planner.state_dtype, planner.product_dtype, device))
    return kept[key][1]
