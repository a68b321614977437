"""What a rung of the ladder is: one way to plan a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .cases import Case

Runner = Callable[[], Tensor]
"""Plans its case and answers the controls `[B, T, nu]`, on the case's device; called again and again."""


class Unavailable(Exception):
    """Why a rung cannot plan a case here, in a sentence for the table."""


@dataclass(frozen=True)
class Rung:
    """A way to plan.

    family   "baseline": the algorithm in other hands; "ours"; "peer": another library's planner over the same models
    make     the runner for a case; raises Unavailable, ImportError or ValueError with the reason why there is none
    single   plans one problem after the other, so that one is timed and scaled to the batch
    exact    finds the plan of the reference, up to rounding; others are judged by the cost that they foresee
    candidates  control sequences that it rolls out for a problem, where it plans by sampling
    """

    name: str
    label: str
    family: Literal["baseline", "ours", "peer"]
    make: Callable[[Case], Runner]
    single: bool = False
    exact: bool = True
    candidates: int = 0

    @property
    def loop(self) -> bool:
        """The loop as published, or one improved a little: a baseline that plans one problem after the other."""
        return self.family == "baseline" and self.single
