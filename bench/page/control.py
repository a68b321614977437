"""Around the plan: what a rung costs before it is fast, and a controller's whole step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sgp_fast.report.numbers import number, seconds
from sgp_fast.report.svg import INK, PANEL, PAPER, WIDE, canvas, place, tick_numbers

from ..cold import AGAINST
from ..records import Results
from ..rows import ActRow, ColdRow
from . import style
from .section import Section, panels, reasons, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cold(results: Results, name: str) -> Section | None:
    """Import and first plan of each rung in a fresh process with empty caches, a panel a case."""
    key = "cold"
    rows = results.of(ColdRow)
    by_case = style.grouped((row for row in rows if row.first is not None), lambda row: row.case)
    if not by_case:
        return None
    return Section(
        key,
        panels(key, name, {case: partial(_cold, case, of) for case, of in by_case.items()}),
        table(
            "case|rung|>import, s|>first plan, s|>a plan after that, ms|of the first plan|>paid back after",
            [
                (row.case, row.label, style.cell(row.imports), style.cell(row.first), style.cell(row.warm, 1e3),
                 ", ".join(f"{part} {seconds(value)}" for part, value in row.parts.items()), _pays(row))
                for of in by_case.values() for row in of
            ],
        ),
        tuple(reasons(rows, "not measured")),
    )  # fmt: skip


def _pays(row: ColdRow) -> str:
    if row.rung == AGAINST:
        return "the measure"
    return "never" if row.pays is None else f"{row.pays:,} plan{'' if row.pays == 1 else 's'}"


def _cold(case: str, rows: Sequence[ColdRow], width: int) -> Figure:
    left, right = (270, 200) if width == WIDE else (104, 150) if width < PANEL else (162, 150)
    figure = canvas(width, 78 + 26 * len(rows))
    axes = place(figure, left, right, top=36, bottom=42)
    for i, row in enumerate(rows):
        ink, _ = style.look_of(row.rung, "baseline")
        imports, first = row.imports or 0.0, row.first or 0.0
        axes.barh(-i, imports, height=0.58, color=ink, alpha=0.35, linewidth=0)
        axes.barh(-i, first, left=imports, height=0.58, color=ink, alpha=0.9, linewidth=0)
        style.side_note(axes, row.label if width == WIDE else row.rung, -i, -left, ink, at=0)
        style.side_note(axes, f"{number(imports + first)} s", -i, 54, ink, fontweight="bold", ha="right")
        style.side_note(axes, _pays(row), -i, right - 4, ink, ha="right")
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_xlim(0, 1.04 * max((row.imports or 0.0) + (row.first or 0.0) for row in rows))
    style.corner(axes, "paid back", right - 4)
    axes.set_yticks([])
    axes.grid(True, axis="x")
    style.heading(axes, case, left)
    axes.set_xlabel("seconds", loc="right", labelpad=4)
    tick_numbers(axes.xaxis)
    return figure


def act(results: Results, name: str) -> Section | None:
    """A controller's step end to end, median and middle 60%, by case and rung."""
    key = "act"
    rows = results.of(ActRow)
    timed = [row for row in rows if row.samples]
    if not timed:
        return None
    timed = sorted(timed, key=lambda row: row.problems)
    return Section(
        key,
        panels(key, name, {"all": partial(_act, timed)}),
        table(
            "case|rung|>problems|>median, ms|>20th, ms|>80th, ms|>99th, ms|>steps",
            [
                (row.case, row.label, f"{row.problems:,}", *(number(1e3 * q) for q in _quantiles(row)[:3]),
                 number(1e3 * _quantiles(row)[3]), str(len(row.samples)))
                for row in timed
            ],
        ),
        tuple(reasons(rows, "not measured")),
    )  # fmt: skip


def _quantiles(row: ActRow) -> list[float]:
    """Median, 20th, 80th and 99th percentile in seconds; the last is NaN below fifty samples."""
    middle, low, high, worst = np.quantile(row.samples, (0.5, 0.2, 0.8, 0.99)).tolist()
    return [middle, low, high, worst if len(row.samples) >= 50 else float("nan")]


def _act(rows: Sequence[ActRow], width: int) -> Figure:
    lines: list[str | ActRow] = []
    for case, of in style.grouped(rows, lambda row: row.case).items():
        lines += [case, *of]
    left, right = (270, 120) if width == WIDE else (118, 76)
    figure = canvas(width, 54 + 27 * len(lines))
    axes = place(figure, left, right, top=8, bottom=44)
    axes.set_xscale("log")
    axes.set_xlim(*style.log_limits([1e3 * q for row in rows for q in _quantiles(row)[1:3]]))
    axes.set_ylim(-len(lines) + 0.4, 0.6)
    for i, row in enumerate(lines):
        if isinstance(row, str):
            style.side_note(axes, row, -i - 0.12, -left, INK, at=0, fontweight="bold")
            continue
        ink, marker = style.look_of(row.rung)
        middle, low, high, _ = (1e3 * q for q in _quantiles(row))
        axes.plot((low, high), (-i, -i), color=ink, linewidth=6, alpha=0.4, solid_capstyle="butt")
        axes.plot(middle, -i, marker, color=ink, markersize=8, markeredgecolor=PAPER, markeredgewidth=1.2)
        style.side_note(axes, row.label if width == WIDE else row.rung, -i, -left, ink, at=0)
        style.side_note(axes, f"{number(middle)} ms", -i, right - 4, ink, fontweight="bold", ha="right")
    axes.set_yticks([])
    axes.grid(True, axis="x")
    axes.set_xlabel("ms a step", loc="right", labelpad=6)
    style.log_axis(axes.xaxis)
    return figure
