"""What is remembered from one plan to the next: what waits for a device, or takes Python long, while it stays as it is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from .problem import Problem

T = TypeVar("T")

# Things remembered of one problem: batch sizes and planners.
MOST = 256

_numbers = WeakTensorKeyDictionary()
_problems: weakref.WeakKeyDictionary[Problem, tuple[tuple[Any, ...], dict[Hashable, Any]]] = weakref.WeakKeyDictionary()


def numbers(t: Tensor) -> tuple[float, ...]:
    """The numbers of a vector. Those of a device are read again only once something was written to them.

    Autograd's count of writes tells; it does not see those through `.data`.
    """
    if t.device.type == "cpu" or t.is_inference():
        return tuple(t.tolist())
    known = _numbers.get(t)
    if known is None or known[0] != (t._version, t.data_ptr()):
        _numbers[t] = known = ((t._version, t.data_ptr()), tuple(t.tolist()))
    return known[1]


def of_problem(problem: Problem, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` says of a problem's parts and sizes, for as long as its networks and matrices are the same objects.

    It must not depend on what the weights are. `key` is all else that it depends on. What it gives is kept for as long as
    the problem is, and must not hold the problem.
    """
    shape = _shape(problem)
    kept = _problems.get(problem)
    if kept is None or len(kept[0]) != len(shape) or any(a is not b for a, b in zip(kept[0], shape, strict=True)):
        _problems[problem] = kept = (shape, {})
    known = kept[1]
    if key not in known:
        if len(known) >= MOST:
            known.clear()
        known[key] = make()
    return known[key]


def _shape(problem: Problem) -> tuple[Any, ...]:
    """What tells a problem's sizes: networks with their specs, and matrices."""
    found: list[Any] = []
    dynamics = problem.dynamics
    members = getattr(dynamics, "members", None)
    for part in (dynamics, problem.cost, problem.score, problem.terminal, *(members or ())):
        network = getattr(part, "network", None)
        found += (network, getattr(network, "spec", None), getattr(part, "Q", None), getattr(part, "R", None))
    return tuple(found)
