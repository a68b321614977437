"""Closed loop: what a millisecond an action buys, and whether backend and dtype make a difference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sgp_fast._intervals import t_interval
from sgp_fast.report.numbers import NONE, alike, number
from sgp_fast.report.svg import PANEL, PAPER, canvas, color, end_labels, place, tick_numbers

from ..quality.returns import verdict
from ..records import Results
from ..rows import ReturnRow
from . import style
from .section import Section, panels, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = "task|planner|setting|backend|precision|>episodes|>mean return|>95% interval|>normalised, %|>ms an action"


def budget(results: Results, name: str) -> Section | None:
    """Mean return against milliseconds an action, a line a planner over its budgets, a panel a task."""
    key = "budget"
    rows = [row for row in results.of(ReturnRow) if row.group == "budget"]
    shown = [row for row in rows if row.returns and row.milliseconds]
    if not shown:
        return None
    tasks = style.grouped(shown, lambda row: row.task)
    data = _data(results)
    return Section(
        key,
        panels(key, name, {task: partial(_budget, tasks[task], data.get(task)) for task in tasks}),
        table(COLUMNS, [_cells(row) for row in [*data.values(), *shown] if row.task in tasks]),
        _reasons(rows),
    )


def _budget(rows: Sequence[ReturnRow], behavior: ReturnRow | None, width: int) -> Figure:
    figure = canvas(width, 340 if width == PANEL else 380)
    axes = place(figure, 58, 122)
    axes.set_xscale("log")
    labels, heights = [], []
    for planner, line in style.grouped(rows, lambda row: row.planner).items():
        ink, dashes = style.planner_look(planner)
        line = sorted(line, key=lambda row: row.milliseconds or 0.0)
        x = [row.milliseconds or 0.0 for row in line]
        means = [float(np.mean(row.returns)) for row in line]
        low, high = zip(*(_interval(row) for row in line), strict=True)
        axes.plot(x, means, dashes, color=ink, marker="o", markersize=6, markeredgecolor=PAPER, markeredgewidth=0.8)
        axes.vlines(x, low, high, color=ink, linewidth=4, alpha=0.35)
        labels.append((means[-1], planner, ink))
        heights += [*low, *high]
    axes.set_xlim(*style.log_limits([row.milliseconds for row in rows if row.milliseconds]))
    if behavior is not None:
        heights += _behavior(axes, behavior, horizontal=True)
        labels.append((float(np.mean(behavior.returns)), "behaviour", color("behavior")))
    room = 0.06 * (max(heights) - min(heights)) or 1.0
    axes.set_ylim(min(heights) - room, max(heights) + room)
    style.heading(axes, f"Return, {rows[0].task}", 58)
    axes.set_xlabel("ms an action", loc="right", labelpad=6)
    style.log_axis(axes.xaxis)
    tick_numbers(axes.yaxis)
    end_labels(axes, labels)
    return figure


def precision(results: Results, name: str) -> Section | None:
    """Every episode's return, mean and interval by backend and dtype, a panel a task; and the paired comparison in words."""
    key = "precision"
    rows = [row for row in results.of(ReturnRow) if row.group == "precision"]
    shown = [row for row in rows if row.returns]
    if not shown:
        return None
    tasks = style.grouped(shown, lambda row: row.task)
    data = _data(results)
    return Section(
        key,
        panels(key, name, {task: partial(_dots, tasks[task], data.get(task)) for task in tasks}),
        table(COLUMNS, [_cells(row) for row in [*data.values(), *shown] if row.task in tasks]),
        (*verdict(rows), *_reasons(rows)),
    )


def _dots(rows: Sequence[ReturnRow], behavior: ReturnRow | None, width: int) -> Figure:
    left, right = (190, 84) if width > PANEL else (136, 62)
    figure = canvas(width, 80 + 34 * len(rows))
    axes = place(figure, left, right, top=36, bottom=44)
    means = alike([float(np.mean(row.returns)) for row in rows])
    for i, row in enumerate(rows):
        ink, _ = style.look_of(row.backend)
        returns = np.array(row.returns)
        # Points of one row are spread by the golden ratio: even, and the same in every run.
        offsets = 0.24 * ((np.arange(len(returns)) * 0.618034 + 0.5) % 1.0 - 0.5)
        axes.scatter(returns, -i + 0.2 + offsets, s=18, color=ink, alpha=0.4, linewidth=0)
        axes.plot(_interval(row), (-i - 0.14, -i - 0.14), color=ink, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot(returns.mean(), -i - 0.14, "o", color=ink, markersize=9, markeredgecolor=PAPER, markeredgewidth=1.5)
        style.side_note(axes, f"{row.backend} {row.precision}", -i, -left, ink, at=0)
        style.side_note(axes, means[i], -i, 12, ink, fontweight="bold")
    if behavior is not None:
        _behavior(axes, behavior, horizontal=False)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_yticks([])
    axes.grid(True, axis="x")
    style.heading(axes, rows[0].task, left)
    axes.set_xlabel("return of an episode", loc="right", labelpad=6)
    tick_numbers(axes.xaxis)
    return figure


def _behavior(axes: Axes, row: ReturnRow, horizontal: bool) -> list[float]:
    """The behaviour's mean and interval as a band; answers its ends."""
    mean, (low, high) = float(np.mean(row.returns)), _interval(row)
    band, line = (axes.axhspan, axes.axhline) if horizontal else (axes.axvspan, axes.axvline)
    band(low, high, color=color("behavior"), alpha=0.15, linewidth=0, zorder=0)
    line(mean, color=color("behavior"), linewidth=1.2, linestyle=(0, (4, 4)), zorder=0)
    return [low, high]


def _data(results: Results) -> dict[str, ReturnRow]:
    return {row.task: row for row in results.of(ReturnRow) if row.group == "data" and row.returns}


def _interval(row: ReturnRow) -> tuple[float, float]:
    """95% interval of the mean; the mean alone where one episode leaves it without."""
    mean = float(np.mean(row.returns))
    return t_interval(np.array(row.returns)) if len(row.returns) > 1 else (mean, mean)


def _cells(row: ReturnRow) -> tuple[str, ...]:
    mean, low, high = alike([float(np.mean(row.returns)), *_interval(row)])
    score = number(float(np.mean(row.normalized))) if row.normalized else NONE
    told = (row.backend, row.precision) if row.group != "data" else (NONE, NONE)
    interval = f"{low} to {high}" if len(row.returns) > 1 else NONE
    found = (str(len(row.returns)), mean, interval, score, style.cell(row.milliseconds))
    return (row.task, row.planner, row.setting, *told, *found)


def _reasons(rows: Sequence[ReturnRow]) -> tuple[str, ...]:
    found = style.grouped(
        (row for row in rows if row.reason), lambda row: (row.planner, row.setting, row.backend, row.precision, row.reason)
    )
    return tuple(
        f"{planner}, {setting}, {backend} {dtype}, not measured on {'; '.join(row.task for row in of)}: {reason}"
        for (planner, setting, backend, dtype, reason), of in found.items()
    )
