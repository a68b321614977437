"""What a run found, as text for a terminal."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from sgp_fast.report.numbers import DISTURBED

from .cold import AGAINST
from .gate import CHECKED
from .rows import LEFT_OUT, ActRow, CeilingRow, ColdRow, PlanRow, Row
from .rungs import RUNGS

# Cases side by side in one table.
WIDE = 5


def text(rows: Iterable[Row], ours: str = "auto") -> str:
    """The ladder, the steps of a controller, the cold costs, the ceilings."""
    rows = list(rows)
    other = {rung.name for rung in RUNGS.values() if not rung.exact}
    of: Callable[[type[Any]], list[Any]] = lambda kind: [row for row in rows if isinstance(row, kind)]  # noqa: E731
    plans: list[PlanRow] = of(PlanRow)
    timed = {row.case for row in plans if row.samples}  # the others have no column
    parts = [ladder(group, ours, other) for group in _groups([row for row in plans if row.case in timed])]
    for title, lines in (
        ("without a time", _reasons(row for row in plans if not row.left_out)),
        (LEFT_OUT, (f"  {line}" for line in left_out(row for row in plans if row.case in timed))),
        (
            f"{LEFT_OUT}, cases of which nothing was measured",
            _wrapped(row.case for row in plans if row.left_out and row.case not in timed),
        ),
        ("act() end to end, median ms a step", map(_act, of(ActRow))),
        ("cold costs, seconds", map(_cold, of(ColdRow))),
        ("ceilings of this run", map(_ceiling, of(CeilingRow))),
    ):
        if found := list(lines):
            parts.append("\n".join([title, *found]))
    return "\n\n".join(parts)


def ladder(rows: Iterable[PlanRow], ours: str = "auto", other: Collection[str] = ()) -> str:
    """Rungs down, cases across: median milliseconds of the batch; then how many times faster than each rung `ours` is.

    Rungs in `other` plan by another algorithm: they have times, but no ratio. Those without any time have no line.
    """
    cell = {row.key: row for row in rows}
    cases = list(dict.fromkeys(case for case, _ in cell))
    width = max([14, *(len(case) + 2 for case in cases)])

    def p50(case: str, rung: str) -> float | None:
        return cell[case, rung].p50 if (case, rung) in cell else None

    shown = {rung for case, rung in cell if p50(case, rung)}
    rungs = sorted(shown, key=lambda rung: list(RUNGS).index(rung) if rung in RUNGS else -1)

    def line(head: str, words: Iterable[str]) -> str:
        return f"{head:<28}" + "".join(f"{word:>{width}}" for word in words)

    def ratio(case: str, rung: str) -> str:
        theirs, mine = p50(case, rung), p50(case, ours)
        return f"{theirs / mine:,.2f}" if theirs and mine else "—"

    lines = [line("median ms a batch", cases)]
    lines += [line(rung, (_milliseconds(p50(case, rung)) for case in cases)) for rung in rungs]
    if any(p50(case, ours) for case in cases):
        lines.append(f"{ours} is faster")
        alike = [rung for rung in rungs if rung != ours and rung not in other]
        lines += [line(f"  × {rung}", (ratio(case, rung) for case in cases)) for rung in alike]
        lines += textwrap.wrap(disturbed(row for row in cell.values() if row.rung in (ours, *alike)), 120,
                               initial_indent="  ", subsequent_indent="  ")  # fmt: skip
    lines.append(line(f"cost of {ours}", (_cost(cell.get((case, ours))) for case in cases)))
    if len({row.problems for row in cell.values()}) > 1:
        lines.append(f"  a mean over a case's first {CHECKED} problems at most: of other problems in another column")
    return "\n".join(lines)


def disturbed(rows: Iterable[PlanRow]) -> str:
    """A sentence about the rows whose times spread so widely that ratios of them mean little; empty where there are none."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if spread := row.wide_spread:
            found.setdefault(row.case, []).append(f"{row.rung} {spread}")
    told = "; ".join(f"{case}: {', '.join(of)}" for case, of in found.items())
    return f"times spread at {told}: {DISTURBED}" if found else ""


def _cost(row: PlanRow | None) -> str:
    return "—" if row is None or row.cost is None else f"{row.cost:.5g}"


def _milliseconds(seconds: float | None) -> str:
    return "—" if seconds is None else f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.1f}"


def _reasons(rows: Iterable[PlanRow]) -> Iterator[str]:
    """A line for each reason why rungs have no time, with the cases that this is so for where they are not all."""
    rows = list(rows)
    every = {row.case for row in rows}
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            found.setdefault((row.reason, row.rung), []).append(row.case)
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, rung), cases in found.items():
        alike.setdefault((reason, tuple(cases)), []).append(rung)
    for (reason, cases), rungs in alike.items():
        where = "" if set(cases) == every else f" ({'; '.join(cases) if len(cases) < 3 else f'{len(cases)} cases'})"
        yield f"  {', '.join(rungs)}: {reason}{where}"


def left_out(rows: Iterable[PlanRow]) -> Iterator[str]:
    """A line for each case: the rungs that were left out for time, what each needs and what was left for it."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.left_out:
            needs, _, room = (row.reason or "").removeprefix(f"{LEFT_OUT}: ").partition(", and ")
            found.setdefault(row.case, {}).setdefault(room, []).append(f"{row.rung} {needs}")
    for case, by_room in found.items():
        yield f"{case}: " + "; ".join(f"{', '.join(needs)}, and {room}" for room, needs in by_room.items())


def _wrapped(names: Iterable[str]) -> list[str]:
    """Each once, in lines."""
    return textwrap.wrap("; ".join(dict.fromkeys(names)), 120, initial_indent="  ", subsequent_indent="  ")


def _groups(rows: list[PlanRow]) -> Iterator[list[PlanRow]]:
    names = list(dict.fromkeys(row.case for row in rows))
    for first in range(0, len(names), WIDE):
        part = names[first : first + WIDE]
        yield [row for row in rows if row.case in part]


def _act(row: ActRow) -> str:
    middle = f"{1e3 * statistics.median(row.samples):>12,.2f}" if row.samples else f"{'—':>12}  {row.reason}"
    return f"  {row.case:<28}{row.rung:<20}{middle}"


def _cold(row: ColdRow) -> str:
    if row.reason:
        return f"  {row.rung:<24}—  {row.reason}"
    paid = "" if row.rung == AGAINST else f"  paid back after {row.pays:,} plans" if row.pays else "  never paid back"
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.parts.items() if seconds >= 0.005)
    told = f"  ({parts})" if parts else ""
    return f"  {row.rung:<24}import {row.imports:6.2f}  first plan {row.first:8.2f}  then {row.warm:8.4f}{paid}{told}"


def _ceiling(row: CeilingRow) -> str:
    return f"  {row.what + ' ' + (row.precision or ''):<26}{row.value / 1e9:>12,.0f} G{row.unit}"
