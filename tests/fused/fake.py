"""A device that counts instead of computing fast: captures, replays, bytes, and a clock that only bodies move."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Body = Callable[[], None]


@dataclass(eq=False)
class FakeGraph:
    device: FakeDevice
    body: Body
    bytes: int
    replays: int = 0
    released: bool = False

    def replay(self) -> None:
        assert not self.released, "a released graph was replayed"
        self.replays += 1
        self.body()

    def release(self) -> None:
        assert not self.released, "a graph was released twice"
        self.released = True
        self.device.held -= self.bytes


@dataclass(eq=False)
class FakeDevice:
    """`graph_bytes` are what each capture takes; `now` is the clock, which a body moves with `spend`."""

    name: str = "fake"
    captures: bool = True
    graph_bytes: int = 10
    now: float = 0.0
    held: int = 0
    turns: int = 0
    graphs: list[FakeGraph] = field(default_factory=list)

    def capture(self, body: Body) -> FakeGraph:
        body()
        self.graphs.append(FakeGraph(self, body, self.graph_bytes))
        self.held += self.graph_bytes
        return self.graphs[-1]

    def turn(self) -> None:
        self.turns += 1

    def finish(self) -> None:
        pass

    def seconds(self, body: Body, repeats: int) -> float:
        def once() -> float:
            began = self.now
            body()
            return self.now - began

        return statistics.median(once() for _ in range(repeats))

    def memory(self) -> int:
        return self.held

    def spend(self, *seconds: float) -> Body:
        """A body that takes these times in turn, and then the last one."""
        left = list(seconds)

        def body() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return body


class FakeWork:
    """`out = x·w`, with the weight read at every run."""

    def __init__(self, weight: Tensor, rows: int = 4, size: int = 100) -> None:
        self.bytes, self.reads = size, (weight,)
        self.x = torch.zeros(rows, len(weight))
        self.out = torch.full((rows,), torch.nan)

    def body(self) -> None:
        torch.mv(self.x, self.reads[0], out=self.out)
