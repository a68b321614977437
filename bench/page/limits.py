"""The roofline: what plans and stages reach, beside what the same machine gave in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sgp_fast.report.numbers import number
from sgp_fast.report.svg import LINE, MUTED, PANEL, PAPER, canvas, color, end_labels, place

from ..records import Results
from ..rows import CeilingRow, PlanRow, StageRow
from . import style
from .section import Draw, Section, panels, table
from .stages import stage_inks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRECISIONS = ("float64", "float32", "tf32", "float16", "bfloat16")
OTHER = "fastest other"


@dataclass(frozen=True)
class Point:
    """A plan or a stage in the plane of the roofline: `x` FLOPs a byte, `y` FLOP/s; `name` is its line or its stage."""

    case: str
    model: str
    precision: str
    name: str
    label: str
    x: float
    y: float


def roofline(results: Results, name: str) -> Section | None:
    """Reached FLOP/s against FLOPs a byte of weights, ours and the fastest other way, a panel a precision; then stages."""
    key = "roofline"
    ceilings = results.of(CeilingRow)
    copy = max((row.value for row in ceilings if row.unit == "B/s"), default=None)
    products = {row.precision: row.value for row in ceilings if row.unit == "FLOP/s" and row.precision}
    plans, stages = list(_plans(results)), _stages(results)
    drawings: dict[str, Draw] = {}
    shown: list[Point] = []
    for precision in PRECISIONS:
        for draw, points, told in ((_draw_plans, plans, ""), (_draw_stages, stages, "stages, ")):
            mine = [point for point in points if point.precision == precision]
            if len(mine) > 1 and copy is not None and precision in products:
                drawings[told + precision] = partial(draw, precision, mine, copy, products[precision])
                shown += mine
    if not drawings:
        return None
    unmeasured = [p for p in PRECISIONS if p not in products and any(point.precision == p for point in plans)]
    return Section(
        key,
        panels(key, name, drawings),
        table(
            "case|rung or stage|>FLOPs a byte|>GFLOP/s|>share of the matrix product, %",
            [(p.case, p.label, number(p.x), number(p.y / 1e9), number(100 * p.y / products[p.precision])) for p in shown],
        ),
        tuple(f"The ceiling in {p} was not measured in this file, so that its rows are not shown." for p in unmeasured),
    )


def _plans(results: Results) -> list[Point]:
    """Ours, and at each case the fastest of the other rungs, in lines of growing batches."""
    rows = [row for row in style.ordered(results.of(PlanRow)) if style.usual(row) and row.p50 and row.flops and row.bytes]
    rows.sort(key=lambda row: row.problems)
    baselines = style.grouped((row for row in rows if row.family == "baseline"), lambda row: row.case)
    best = [min(of, key=lambda row: row.p50 or 0.0) for of in baselines.values()]
    chosen = [(OTHER, row) for row in best] + [(row.rung, row) for row in rows if row.family == "ours"]
    return [
        Point(row.case, row.model, row.precision, name, row.label, row.flops / row.bytes, row.flops / row.p50)
        for name, row in chosen
        if row.p50 and row.flops and row.bytes
    ]


def _stages(results: Results) -> list[Point]:
    """The stages that compute. A case's name tells its precision where it is not float32."""
    return [
        Point(
            row.case, "", next((p for p in PRECISIONS if row.case.endswith(p)), "float32"), row.stage,
            f"{row.backend}: {row.stage}", row.flops / row.bytes, row.flops / row.seconds,
        )
        for row in results.of(StageRow) if row.flops and row.bytes and row.seconds
    ]  # fmt: skip


def _draw_plans(precision: str, points: Sequence[Point], copy: float, product: float, width: int) -> Figure:
    markers = dict(zip(dict.fromkeys(point.model for point in points), "os^Dv" * len(points), strict=False))
    figure = canvas(width, 380 if width == PANEL else 420)
    axes = place(figure, 58, 116, bottom=66)
    _limits(axes, copy / 1e9, product / 1e9, points)
    labels: dict[str, tuple[float, str]] = {}
    for (name, model), line in style.grouped(points, lambda point: (point.name, point.model)).items():
        ours, marker = name != OTHER, markers[model]
        ink = style.look_of(name)[0] if ours else color("behavior")
        y = [point.y / 1e9 for point in line]
        axes.plot([point.x for point in line], y, color=ink, marker=marker, markersize=5.5, linewidth=1.0,
                  linestyle="-" if ours else (0, (2, 2)), markerfacecolor=ink if ours else PAPER,
                  markeredgecolor=PAPER if ours else ink, markeredgewidth=0.7 if ours else 1.4)  # fmt: skip
        labels[name] = (y[-1], ink)
    _finish(axes, f"GFLOP/s, {precision}", labels)
    style.key(axes, {model: (MUTED, marker) for model, marker in markers.items()}, 4, 44)
    return figure


def _draw_stages(precision: str, points: Sequence[Point], copy: float, product: float, width: int) -> Figure:
    figure = canvas(width, 380 if width == PANEL else 420)
    axes = place(figure, 58, 116, bottom=66)
    _limits(axes, copy / 1e9, product / 1e9, points)
    inks = stage_inks([point.name for point in points])
    edge: dict[str, Any] = {"markersize": 7, "markeredgecolor": PAPER, "markeredgewidth": 0.8}
    for point in points:
        axes.plot(point.x, point.y / 1e9, "o", color=inks[point.name], **edge)
    labels = {point.name: (point.y / 1e9, inks[point.name]) for point in points}
    _finish(axes, f"GFLOP/s of the stages, {precision}", labels)
    return figure


def _limits(axes: Axes, copy: float, product: float, points: Sequence[Point]) -> None:
    """The two ceilings, in G units, and axes that hold them and all points."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = style.log_limits([*(point.x for point in points), product / copy], 2)
    heights = [point.y / 1e9 for point in points]
    top = max(2.5 * product, 1.3 * max(heights))
    axes.set_xlim(low, high)
    axes.set_ylim(min(heights) / 2.5, top)
    across = np.geomspace(low, high, 64)
    limit = np.minimum(copy * across, product)
    axes.plot(across, limit, color=MUTED, linewidth=1.6, zorder=1)
    axes.fill_between(across, limit, top, color=LINE, alpha=0.35, linewidth=0, zorder=0)
    small: dict[str, Any] = {"textcoords": "offset points", "color": MUTED, "fontsize": 11, "ha": "right"}
    axes.annotate(f"matrix product, {number(product)}", (high, product), (-4, 6), **small)
    # The corner of much reuse and little speed is empty on every machine.
    axes.annotate(f"slanted: copy, {number(copy)} GB/s", (1, 0), (-4, 8), xycoords="axes fraction", **small)


def _finish(axes: Axes, words: str, labels: dict[str, tuple[float, str]]) -> None:
    style.heading(axes, words, 58)
    axes.set_xlabel("FLOPs a byte of weights", loc="right", labelpad=6)
    style.log_axis(axes.xaxis)
    style.log_axis(axes.yaxis)
    end_labels(axes, [(height, name, ink) for name, (height, ink) in labels.items()])
