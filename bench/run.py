"""One run of the suite: ceilings, the ladder over the cases that fit the time, a controller's steps, cold costs.

Rows are written as they come; a run that goes on with a file measures what is not in it, and what was left out for time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import acting, ceilings, cold, ladder, records, sweep
from .cases import Case
from .records import Writer
from .rows import ActRow, CeilingRow, ColdRow, PlanRow, Row
from .rungs import OURS, RUNGS

# Of a run's time: the steps of controllers; the timed rounds of one rung at one case, within limits in seconds.
ACTING, ROUNDS = 0.05, 0.004
ROUNDS_S = (1.0, 10.0)
# Of the time that is left, the part that one case of a sweep may take, so that the next is measured, too.
MOST = 0.5
ACT_SPECS = (sweep.Spec(256, 1), sweep.Spec(256, 64))
COLD_CASE = "1x256"
Say = Callable[[str], None]
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "float16", "bfloat16")}


@dataclass(frozen=True)
class Settings:
    """What is measured. `cases` or `problem` (with so many start states) come in the place of the sweep."""

    minutes: float
    device: torch.device
    cases: tuple[str, ...] = ()
    problem: Path | None = None
    problems: int = 64
    rungs: tuple[str, ...] = tuple(RUNGS)
    cold_costs: bool = False

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; expected a positive number")
        if self.problems < 1:
            raise ValueError(f"problems is {self.problems}; expected at least 1")
        if self.problem is not None and self.cases:
            raise ValueError("problem and cases are both given; a problem of your own is the only case of its run")
        for name in self.rungs:
            ladder.named(name)
        for text in self.cases:
            sweep.parse(text)

    @property
    def chosen(self) -> bool:
        """The user named the cases: all are measured, however long they take."""
        return bool(self.cases)

    @property
    def share(self) -> float:
        """Seconds of timed rounds for one rung at one case."""
        low, high = ROUNDS_S
        return min(high, max(low, 60 * self.minutes * ROUNDS))

    def specs(self) -> Iterator[tuple[Case, tuple[str, ...]]]:
        """The cases, in order, with their rungs. A problem of the user's is loaded at once, or refused at once."""
        if self.problem is not None:
            from .bring import load_case

            return iter([(load_case(self.problem, problems=self.problems), self.rungs)])
        specs = map(sweep.parse, self.cases) if self.cases else sweep.sweep(self.device.type)
        return ((spec.make(), spec.rungs or self.rungs) for spec in specs)


class Run:
    """A run under way: its rows so far, and the time that is left."""

    def __init__(
        self, command: str, settings: Settings, out: Path | None, *, resume: bool = False, say: Say = lambda text: None
    ) -> None:
        told = {"minutes": settings.minutes, "cases": list(settings.cases), "rungs": list(settings.rungs)}
        if settings.problem is not None:
            told["problem"] = settings.problem.name
        self.settings, self.say = settings, say
        self.dropped = False  # something was left out for time
        self.log = Writer(out, records.header(command, **told), resume=resume)
        self.until = time.monotonic() + 60 * settings.minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.until - time.monotonic())

    def ceilings(self) -> None:
        """Once a file: what everything else is held against."""
        if not self.log.of(CeilingRow):
            self._extend(ceilings.measure(self.settings.device, PRECISIONS[self.settings.device.type]))

    def case(self, case: Case, rungs: Iterable[str], most: float = 1.0) -> None:
        """The rungs that are not measured yet and, unless the user chose the case, fit in the time; a row for the others.

        `most`: of the time that is left, the part that the case may take.
        """
        case, share = case.to(self.settings.device), self.settings.share
        done = {row.key for row in self.log.of(PlanRow) if not row.left_out}
        names = tuple(name for name in rungs if name in self.settings.rungs and (case.name, name) not in done)
        if self.settings.chosen:
            self._extend(ladder.measure(case, names, share=share, say=self.say) if names else ())
            return
        names = sweep.by_worth(names)
        found = sweep.estimates(case, names, self.log.of(PlanRow), share, self.log.of(CeilingRow))
        until = time.monotonic() + most * self.left * (1 - ACTING)
        left: Callable[[], float] = lambda: until - time.monotonic()  # noqa: E731
        if any(0 < seconds <= left() for seconds in found.values()):
            rows = ladder.measure(case, names, share=share, expected=found, left=left, say=self.say)
        else:  # nothing is made, nor asked why it cannot run here
            rows = (ladder.left_out(case, name, f"about {needs:,.0f} s", left()) for name, needs in found.items() if needs)
        for row in rows:
            self.dropped |= row.left_out
            self.log.add(row)

    def acts(self, specs: Sequence[sweep.Spec]) -> None:
        """Steps of a controller at these sizes: of rungs whose plans have a time there, and that fit."""
        done = {(row.case, row.rung) for row in self.log.of(ActRow)}
        plans = {row.key: row.p50 for row in self.log.of(PlanRow) if row.p50}
        budget = max(2.0, 60 * self.settings.minutes * ACTING / len(specs))
        for spec in specs:
            case = spec.make().to(self.settings.device)
            keys = [(case.name, rung.name) for rung in OURS if rung.name in self.settings.rungs]
            names = sweep.by_worth(name for at, name in keys if (at, name) in plans and (at, name) not in done)
            for name in names:
                if self.settings.chosen or acting.FEWEST * plans[case.name, name] <= self.left:
                    self.say(f"{case.name}: act() end to end, {name}")
                    self._extend(acting.measure(case, [name], budget=budget / len(names)))

    def cold_costs(self, text: str, rungs: Iterable[str], *, in_time: bool = False) -> None:
        """Of these rungs at a case as `sweep.parse` reads it, each in a process of its own with empty caches.

        `in_time`: what would end after the run's time is left out.
        """
        done = {row.rung for row in self.log.of(ColdRow)} - {cold.AGAINST}
        if names := [name for name in rungs if name not in done]:
            self.say(f"{text}: cold costs, each rung in a process of its own with empty caches")
            self._extend(cold.measure(text, names, str(self.settings.device), self.until if in_time else math.inf))

    def _extend(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.log.add(row)


def run(settings: Settings, out: Path | None, *, resume: bool = False, say: Say = lambda text: None) -> list[Row]:
    """Everything; rows of before included where the file `out` is gone on with."""
    if resume and out is None:
        raise ValueError("--resume needs --out, the file to go on with")
    specs = settings.specs()
    under_way = Run("run", settings, out, resume=resume, say=say)
    under_way.ceilings()
    for case, rungs in specs:
        under_way.case(case, rungs, most=MOST if settings.problem is None else 1.0)
    if settings.problem is None:
        under_way.acts([sweep.parse(text) for text in settings.cases[:2]] or ACT_SPECS)
        if settings.cold_costs:
            under_way.cold_costs(settings.cases[0] if settings.cases else COLD_CASE, settings.rungs)
    return under_way.log.rows
