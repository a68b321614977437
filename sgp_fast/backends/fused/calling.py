"""Plans whose cost is called in PyTorch: in a graph where one can hold the calls, else without, and it is told why.

    watched   what the cost reads, by `backends.held`, when it is first met
    tried     captured alone, and the replay held against a call on other rows: before a plan is captured, and again where
              something that it sees was written to
    captured  with the plan; where that fails, the plan is made without a graph, now and from then on
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ...problem import Problem
from ..custom import CHECKED_TO, CustomCosts, Probe, check_seen
from ..job import Job
from ..sampling import SamplingJob
from .device import Device
from .graphs import GraphCache

T = TypeVar("T")
# A device, and the cache of what is captured there.
Way = tuple[Device, GraphCache[Any]]


def in_graph_or_not(
    job: Job | SamplingJob, costs: CustomCosts, graphs: Way, plain: Way, use: Callable[[Device, GraphCache[Any]], T]
) -> T:
    """`use(*graphs)`, or `use(*plain)`, which captures nothing, where graphs cannot hold the calls of the job's costs.

    `use` plans, and may be made twice.
    """
    device, called = graphs[0], costs.called_of(job.problem)
    if device.captures:
        try_calls(device, costs, job.problem)
    if costs.unheld is not None:
        return use(*plain)
    try:
        out = use(*graphs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not called or not device.captures:
            raise
        out = use(*plain)  # raises the cost's own errors
        for made, _ in called:
            made.held.refuse(f"a plan that calls it cannot be captured: {_first_of(error)}")
        return out
    for made, cost in called:
        check_seen(made, cost, job.x0.device)
    return out if costs.unheld is None else use(*plain)


def try_calls(device: Device, costs: CustomCosts, problem: Problem) -> None:
    """Hold replays of the called costs against calls, where that was not done since what they see was written to."""
    for made, cost in costs.called_of(problem):
        held = made.held
        if held.why_not is not None or (held.trial is not None and not held.written):
            continue
        try:
            held.trial, held.written = held.trial or Trial(device, made.probe, cost), False
            if not held.trial.gives_what_it_should(cost):
                held.refuse("a replay gives other values than a call")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            held.refuse(f"it cannot be captured: {_first_of(error)}")


class Trial:
    """A graph of one call of a cost, for some rows."""

    def __init__(self, device: Device, probe: Probe, cost: Any) -> None:
        self._probe = probe
        self._arguments = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, probe.arguments)
        self._out = torch.empty_like(probe.calls(cost, self._arguments))
        costs = [cost]  # for the capture alone: who remembers the trial must not keep the cost

        def body() -> None:
            self._out.copy_(probe.calls(costs[0], self._arguments))

        self._graph = device.capture(body)
        costs.clear()

    def gives_what_it_should(self, cost: Any) -> bool:
        """Whether the replay, for other rows than were captured, gives what a call gives."""
        for static, other in zip(tree_leaves(self._arguments), tree_leaves(self._probe.others), strict=True):
            if isinstance(static, Tensor):
                static.copy_(other)
        self._out.fill_(torch.nan)
        self._graph.replay()
        out, wanted = self._out, self._probe.calls(cost, self._arguments)
        size = wanted.nan_to_num().abs().flatten(0, -2).amax(0).clamp(min=1e-6)
        same = (out == wanted) | (out.isnan() & wanted.isnan()) | ((out - wanted).abs() <= CHECKED_TO * size)
        return bool(same.all())


def _first_of(error: BaseException) -> str:
    """What went wrong first: ending a capture that failed raises again."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0]
