"""What regimes have in common whose iterations are launches of one kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from ...kernels.packing import Program
from ..stages import WHOLE, stage


class Launched(ABC):
    """All iterations of a bucket in one launch; `iterate` and `evaluate` only enqueue."""

    iterations: int
    settled: int  # the iteration from which the schedules no longer change

    def iterate(self, first: int, last: int) -> None:
        """Enqueue iterations `first … last−1`."""
        with stage(WHOLE):
            self._launch(first, last, self.settled, moves=True, only_diverged=False)

    def evaluate(self, settled: bool) -> None:
        """Enqueue the evaluation and judgement of the last iterate; what diverges is evaluated where it was good."""
        at = self.iterations - 1
        with stage("last pass"):
            for only_diverged in (False, True):
                self._launch(at, at + 1, at if settled else at + 1, moves=False, only_diverged=only_diverged)

    @abstractmethod
    def _launch(self, first: int, last: int, settled: int, *, moves: bool, only_diverged: bool) -> None:
        """Iterations `first … last−1`, or where nothing `moves` their evaluation, of those that have diverged or of all."""


def kept_of_costs(networks: Mapping[str, Program], **rows: int) -> tuple[int, int]:
    """Numbers and moments that a program keeps of networks, one after another in the same place, in so many rows each."""
    found = [(count, networks[name]) for name, count in rows.items() if name in networks]
    saved, moments = (max((count * getattr(net, kind) for count, net in found), default=0) for kind in ("saved", "moments"))
    return saved, moments
