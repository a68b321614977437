"""The ladder: latency against the batch, and, at the published cases, every rung beside the loop as published."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sgp_fast.report.numbers import number, ratio
from sgp_fast.report.svg import LINE, MUTED, PANEL, PAPER, WIDE, canvas, end_labels, place, tick_numbers

from ..gate import comparable
from ..records import Results
from ..rows import PlanRow
from ..tables import disturbed, left_out
from . import style
from .section import Section, panels, reasons, table
from .words import WORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_SIZES = 2


def latency(results: Results, name: str) -> Section | None:
    """Median time of a batch against its size, a line a rung, a panel a model."""
    key = "latency"
    rows = [row for row in _float32(results) if row.samples]
    lines = {
        which: sorted(found, key=lambda row: row.problems)
        for which, found in style.grouped(rows, lambda row: (row.model, row.rung)).items()
        if len({row.problems for row in found}) >= LEAST_SIZES
    }
    models = list(dict.fromkeys(model for model, _ in lines))
    if not models:
        return None
    of_model = {model: [line for (of, _), line in lines.items() if of == model] for model in models}
    return Section(
        key,
        panels(key, name, {model: partial(_latency, model, of_model[model]) for model in models}),
        table(
            "model|rung|>problems|>median, ms|>20th, ms|>80th, ms|>plans a second",
            [
                (row.model, row.label, f"{row.problems:,}", style.cell(row.p50, 1e3), style.cell(row.quantile(0.2), 1e3),
                 style.cell(row.quantile(0.8), 1e3), style.cell(row.plans_per_second))
                for found in lines.values() for row in found
            ],
        ),
    )  # fmt: skip


def _latency(model: str, lines: Sequence[Sequence[PlanRow]], width: int) -> Figure:
    figure = canvas(width, 360 if width == PANEL else 400)
    axes = place(figure, 52, 118)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    labels, sizes = [], sorted({row.problems for rows in lines for row in rows})
    for rows in lines:
        ink, marker = style.rung_look(rows[0])
        x = [row.problems for row in rows]
        low, middle, high = ([1e3 * (row.quantile(q) or 0.0) for row in rows] for q in (0.2, 0.5, 0.8))
        axes.fill_between(x, low, high, color=ink, alpha=0.16, linewidth=0)
        dash = (0, (4, 3)) if rows[0].rung == "auto" else "-"
        axes.plot(x, middle, color=ink, marker=marker, markersize=5.5, linewidth=1.6, linestyle=dash,
                  markeredgecolor=PAPER, markeredgewidth=0.7)  # fmt: skip
        labels.append((middle[-1], rows[0].rung, ink))
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    axes.set_ylim(*style.log_limits([1e3 * row.p50 for rows in lines for row in rows if row.p50]))
    style.heading(axes, f"ms a batch, {model}", 52)
    axes.set_xlabel("problems in the batch", loc="right", labelpad=6)
    axes.set_xticks(sizes[:: 1 if len(sizes) < 9 else 2])
    tick_numbers(axes.xaxis)
    style.log_axis(axes.yaxis)
    end_labels(axes, labels)
    return figure


def waterfall(results: Results, name: str) -> Section | None:
    """Every rung at the published cases, one bar each, in the ladder's order, beside the published loop's speed."""
    key = "ladder"
    rows = _float32(results)
    by_case = style.grouped(rows, lambda row: row.case)
    timed = {case for case, found in by_case.items() if any(row.samples for row in found)}
    # A user's own model has other names than the published cases; its ladders are as good.
    cases = [case for case in style.PUBLISHED if case in timed] or [case for case in by_case if case in timed][:4]
    if not cases:
        return None
    shown = {case: [row for row in by_case[case] if row.samples] for case in cases}
    every = [row for case in cases for row in by_case[case]]
    against = any(row.rung == "published" and row.samples for row in every)
    return Section(
        key,
        panels(key, name, {case: partial(_waterfall, case, shown[case]) for case in cases}),
        table(
            f"case|rung|>median, ms|{'>against published|' * against}>error against float64|>cost",
            [
                (row.case, row.label, style.cell(row.p50, 1e3), *[ratio(speedup(row, by_case[row.case]))] * against,
                 style.cell(row.error), style.cell(row.cost if comparable(row) else None))
                for row in every if row.samples or row.error is not None
            ],
        ),
        (
            *reasons((row for row in every if not row.left_out), "not timed"),
            *(f"Left out for time at {line}" for line in left_out(every)),
            *([words[0].upper() + words[1:]] if against and (words := disturbed(every)) else []),
        ),
        _caption([row for row in every if row.samples], against),
    )  # fmt: skip


def _caption(rows: Sequence[PlanRow], against: bool) -> str:
    """How to read the ladder of these rows, of colours those that occur."""
    inks, families = style.ink_names(rows), {row.family for row in rows}
    colours = [f"{', '.join(inks).capitalize()}: the same algorithm by other means."] if inks else []
    if "peer" in families:
        colours.append("Purple: planners of other libraries over the same models, which look for a plan in another way.")
    if "ours" in families:
        colours.append("Blue and black: ours.")
    speed = ", and how many times the speed of the loop as published" if against else ""
    return WORDS["ladder"].caption.format(speed=speed, colours=" ".join(colours))


def _float32(results: Results) -> list[PlanRow]:
    """Rows in float32, horizon and iterations as published."""
    return [row for row in style.ordered(results.of(PlanRow)) if row.precision == "float32" and style.usual(row)]


def speedup(row: PlanRow, others: Sequence[PlanRow], of: str = "published") -> float | None:
    """How many times the speed of the rung `of` at the same case; None where either has no time."""
    first = next((other.p50 for other in others if other.rung == of and other.p50), None)
    return None if first is None or not row.p50 else first / row.p50


def _waterfall(case: str, rows: Sequence[PlanRow], width: int) -> Figure:
    phone = width < PANEL
    left, right = (270, 190) if width == WIDE else (118, 92) if phone else (162, 106)
    against = any(row.rung == "published" for row in rows)
    right -= 0 if against else 58  # without a column of speeds
    times_at = right - (62 if against else 4)
    figure = canvas(width, 76 + 24 * len(rows))
    axes = place(figure, left, right, top=34, bottom=40)
    axes.set_xscale("log")
    values = [1e3 * row.p50 for row in rows if row.p50]
    low, high = style.log_limits(values, 1.7)
    axes.set_xlim(low, high)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    for i, row in enumerate(rows):
        ink, _ = style.rung_look(row)
        middle = 1e3 * (row.p50 or 0.0)
        axes.barh(-i, middle - low, left=low, height=0.6, color=ink, alpha=0.85, linewidth=0)
        ends = [1e3 * (row.quantile(q) or 0.0) for q in (0.2, 0.8)]
        axes.plot(ends, (-i, -i), color=MUTED, linewidth=1.2)
        style.side_note(axes, row.label if width == WIDE else row.rung, -i, -left, ink, at=0)
        style.side_note(axes, f"{number(middle)}", -i, times_at, ink, fontweight="bold", ha="right")
        if against:
            style.side_note(axes, ratio(speedup(row, rows)), -i, right - 4, ink, ha="right")
        if i and row.family != rows[i - 1].family:
            style.rule(axes, -i + 0.5)
    style.heading(axes, case, left)
    style.corner(axes, "ms", times_at)
    if against:
        style.corner(axes, "speed", right - 4)
    axes.set_yticks([])
    axes.grid(True, axis="x", color=LINE)
    axes.set_xlabel("ms a batch", loc="right", labelpad=4)
    style.log_axis(axes.xaxis, 4 if width <= PANEL else 5)
    return figure
