"""The stages of a planning iteration by name, for whoever wants to know where its time goes; nothing while nobody does.

    with watching() as watch:          # the host's clock
        solve(...)
    watch.seconds["rollout"]

    with watching(ranges=True):        # ranges of torch.profiler, and of NVTX where there is a GPU: "sgp: rollout"
        solve(...)

The switch is one for the process: plans of other threads are watched too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

# As an iteration has them; then what follows the iterations, the pass that evaluates what is returned.
STAGES = ("rollout", "cost", "score", "adjoint", "update", "last pass")
# What the tile regime has in place of the stages, for nothing outside can see into a kernel.
WHOLE = "plan (one launch)"
PREFIX = "sgp: "


@dataclass
class Watch:
    """Seconds of the host's clock by stage; a stage within another counts for the outer one.

    Work that is only enqueued (on a GPU) is not waited for: there, ranges and the profiler's trace tell.
    """

    ranges: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    _inside: bool = False

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with _range(PREFIX + name) if self.ranges else nullcontext():
            if self._inside:
                yield
                return
            self._inside, began = True, time.perf_counter()
            try:
                yield
            finally:
                self.add(name, time.perf_counter() - began)
                self._inside = False


_watch: Watch | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """A stage of the algorithm: nothing unless someone watches, and nothing in code that torch.compile traces."""
    # In this order, so that a compiled function does not depend on the switch.
    if torch.compiler.is_compiling() or _watch is None:
        return nullcontext()
    return _watch.stage(name)


def span(name: str) -> AbstractContextManager[None]:
    """A range for profilers around what tells its stages itself; its time is counted nowhere."""
    return _range(PREFIX + name) if _watch is not None and _watch.ranges else nullcontext()


def watched() -> Watch | None:
    """Who watches, for backends with a clock of their own to tell it."""
    return _watch


@contextmanager
def watching(*, ranges: bool = False) -> Iterator[Watch]:
    """Watch the plans that are made meanwhile; with `ranges`, show the stages to profilers."""
    global _watch
    if _watch is not None:
        raise RuntimeError("plans are already watched; the switch is one for the process, so leave the other block first")
    _watch = watch = Watch(ranges)
    try:
        yield watch
    finally:
        _watch = None


@contextmanager
def _range(name: str) -> Iterator[None]:
    nvtx = torch.cuda.is_available()
    with torch.profiler.record_function(name):
        if nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            if nvtx:
                torch.cuda.nvtx.range_pop()
