"""What speed costs: the cost that plans reach against the time they take, and the error that each dtype makes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sgp_fast.report.numbers import NONE, number
from sgp_fast.report.svg import INK, MUTED, PANEL, PAPER, canvas, place, tick_numbers

from ..gate import checked, comparable
from ..records import Results
from ..rows import PlanRow
from . import style
from .limits import PRECISIONS
from .section import Section, panels, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 4


def cost_against_time(results: Results, name: str) -> Section | None:
    """Mean cost and mean penalty of the controls that each rung found against its time a plan, a panel a published case."""
    key = "cost"
    rows = [row for row in style.ordered(results.of(PlanRow)) if row.samples and row.cost is not None and style.usual(row)]
    rows = [row for row in rows if row.precision == "float32"]
    by_case = style.grouped((row for row in rows if comparable(row)), lambda row: row.case)
    by_case = {case: found for case, found in by_case.items() if len(found) > 1}
    cases = [case for case in style.PUBLISHED if case in by_case] or list(by_case)[:MOST_PANELS]
    if not cases:
        return None
    left_out = list(dict.fromkeys(row.label for row in rows if not comparable(row)))
    return Section(
        key,
        panels(key, name, {case: partial(_cost, case, by_case[case]) for case in cases}),
        table(
            "case|rung|>ms a plan|>cost|>penalty|>problems",
            [
                (row.case, row.label, style.cell(row.p50, 1e3 / row.problems), style.cell(row.cost), style.cell(row.penalty),
                 str(checked(row)))
                for case in cases for row in by_case[case]
            ],
        ),
        (f"Costs of one problem, shown only where the case has one: {'; '.join(left_out)}.",) if left_out else (),
    )  # fmt: skip


def _cost(case: str, rows: Sequence[PlanRow], width: int) -> Figure:
    columns = 6 if width > PANEL else 3
    legend = 17 * -(-len(rows) // columns)
    with_penalty = any(row.penalty is not None for row in rows)
    height = (390 if with_penalty else 250) + legend
    figure = canvas(width, height)
    x = [1e3 * row.p50 / row.problems for row in rows if row.p50]
    panes = [("cost", legend + (214 if with_penalty else 52), 34, f"Mean cost, {case}")]
    if with_penalty:
        panes.append(("penalty", legend + 52, 222, "Mean penalty"))
    for field, bottom, top, words in panes:
        axes = place(figure, 58, 16, top=top, bottom=bottom)
        axes.set_xscale("log")
        axes.set_xlim(*style.log_limits(x))
        values = []
        for row, across in zip(rows, x, strict=True):
            value = getattr(row, field)
            if value is not None:
                ink, marker = style.rung_look(row)
                axes.plot(across, value, marker, color=ink, markersize=8, markeredgecolor=PAPER, markeredgewidth=0.8)
                values.append(value)
        _room(axes, values)
        style.heading(axes, words, 58)
        style.log_axis(axes.xaxis)
        axes.grid(True, axis="x")
        axes.tick_params(labelbottom=field == panes[-1][0])
        tick_numbers(axes.yaxis)
    axes.set_xlabel("ms a plan", loc="right", labelpad=4)
    style.key(axes, {row.rung: style.rung_look(row) for row in rows}, columns, 46)
    return figure


def _room(axes: Axes, values: Sequence[float], least: float = 1e-9) -> None:
    """Limits that do not blow differences of rounding up to the height of the axes."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values, default=0.0), max(values, default=1.0)
    spread = max(high - low, 0.02 * max(abs(low), abs(high)), least)
    middle = (low + high) / 2
    axes.set_ylim(middle - 0.65 * spread, middle + 0.65 * spread)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def by_dtype(results: Results, name: str) -> Section | None:
    """Error against float64 by precision, with the gate's limits, and the difference in cost, a panel a problem."""
    key = "accuracy"
    rows = [row for row in style.ordered(results.of(PlanRow)) if row.error is not None and row.family != "peer"]
    problems = style.grouped(rows, lambda row: (row.model, row.problems, row.horizon, row.iterations))
    # Problems that were planned in most precisions first, then those of the published benchmark.
    ranked = sorted(
        (found for found in problems.values() if len(found) > 1),
        key=lambda found: (-len({row.precision for row in found}), _problem(found[0]) not in style.PUBLISHED),
    )[:MOST_PANELS]
    if not ranked:
        return None
    several = any(len({row.precision for row in found}) > 1 for found in ranked)
    return Section(
        key,
        panels(key, name, {_problem(found[0]): partial(_dtype, found) for found in ranked}),
        table(
            "problem|precision|rung|>error|>limit|>cost|>against float32, %",
            [
                (_problem(row), row.precision, row.label, style.cell(row.error), style.cell(row.limit), style.cell(row.cost),
                 NONE if (change := _change(row, found)) is None else number(change))
                for found in ranked for row in found
            ],
        ),
        () if several else ("Only one precision was measured: `sgp-fast bench run --minutes 10` measures bfloat16 too.",),
    )  # fmt: skip


def _problem(row: PlanRow) -> str:
    """The case without its precision."""
    rest = [f"T={row.horizon}"] if row.horizon != style.HORIZON else []
    rest += [f"{row.iterations} iterations"] if row.iterations != style.ITERATIONS else []
    return ", ".join([f"{row.problems} × {row.model}", *rest])


def _change(row: PlanRow, rows: Sequence[PlanRow]) -> float | None:
    """Percent of the median float32 cost of as many checked problems; None where there is none to compare with."""
    base = [
        other.cost for other in rows
        if other.precision == "float32" and other.cost is not None and not _broke(other)
        and checked(other) == checked(row)
    ]  # fmt: skip
    if row.cost is None or not base or not (middle := statistics.median(base)):
        return None
    return 100 * (row.cost - middle) / abs(middle)


def _broke(row: PlanRow) -> bool:
    return row.error is not None and row.limit is not None and row.error > row.limit


def _dtype(rows: Sequence[PlanRow], width: int) -> Figure:
    names = [p for p in PRECISIONS if any(row.precision == p for row in rows)]
    looks = {row.rung: style.rung_look(row) for row in rows}
    columns = 6 if width > PANEL else 3
    legend = 17 * -(-len(looks) // columns)
    figure = canvas(width, 400 + legend)
    above = place(figure, 58, 16, top=34, bottom=176 + legend)
    below = place(figure, 58, 16, top=258, bottom=48 + legend)
    above.set_yscale("log")
    marks, changes = [], []
    for i, precision in enumerate(names):
        of = [row for row in rows if row.precision == precision]
        for k, row in enumerate(of):
            x = i + 0.7 * ((k + 0.5) / len(of) - 0.5)
            ink, marker = looks[row.rung]
            if row.error:
                above.plot(x, row.error, "X" if _broke(row) else marker, color=ink, markersize=7, markeredgecolor=PAPER,
                           markeredgewidth=0.7)  # fmt: skip
                marks.append(row.error)
            change = _change(row, rows)
            if change is not None:
                below.plot(x, change, marker, color=ink, markersize=7, markeredgecolor=PAPER, markeredgewidth=0.7)
                changes.append(change)
        limit = max((row.limit for row in of if row.limit), default=None)
        if limit is not None:
            above.plot((i - 0.4, i + 0.4), (limit, limit), color=INK, linewidth=1.6)
            above.annotate("limit", (i + 0.4, limit), (0, 4), textcoords="offset points", color=MUTED, ha="right", size=10)
            marks.append(limit)
    for axes in (above, below):
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", length=0)
    above.tick_params(labelbottom=False)
    if marks:
        above.set_ylim(*style.log_limits(marks, 3))
    style.log_axis(above.yaxis)
    below.axhline(0, color=MUTED, linewidth=1.0, zorder=0)
    _room(below, [*changes, 0.0], least=1.0)  # a percent
    tick_numbers(below.yaxis)
    style.heading(above, f"Error, {_problem(rows[0])}", 58)
    style.heading(below, "Cost against float32, %", 58)
    style.key(below, looks, columns, 34)
    return figure
