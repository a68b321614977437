"""The figures that span the page, a row per method or implementation, in two widths; inline SVG (see `svg.render`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .numbers import alike, number, ratio
from .results import TaskResults, Throughput, ThroughputRow
from .svg import INK, MUTED, PAPER, WIDE, canvas, color, place, render, tick_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT_SIZE = 13


def returns(task: TaskResults, name: str, width: int) -> str:
    """Every episode's return, the mean and its 95% interval, a row per method; hollow where the episode ended early."""
    narrow = width < WIDE
    row = 72 if narrow else 58
    means = alike([method.mean for method in task.methods])

    def draw() -> Figure:
        figure = canvas(width, 66 + row * len(task.methods))
        left = 8 if narrow else 210
        axes = place(figure, left, 56 if narrow else 64, top=24, bottom=42)
        for i, method in enumerate(task.methods):
            ink, y = color(method.key), -float(i)
            # Points of one row are spread by the golden ratio: even, and the same in every run.
            offsets = 0.22 * ((np.arange(len(method.returns)) * 0.618034 + 0.5) % 1.0 - 0.5) - 0.19
            fell = method.lengths < task.episode_steps
            for mask, face in ((~fell, ink), (fell, PAPER)):
                axes.scatter(
                    method.returns[mask], y + offsets[mask], s=30, facecolor=face, edgecolor=ink, linewidth=1.1, alpha=0.55
                )
            if np.all(np.isfinite(method.interval)):
                axes.plot(method.interval, (y + 0.1, y + 0.1), color=ink, linewidth=6, alpha=0.45, solid_capstyle="butt")
            axes.plot(method.mean, y + 0.1, "o", color=ink, markersize=12, markeredgecolor=PAPER, markeredgewidth=2)
            axes.annotate(
                means[i], (1, y), (12, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                color=ink, va="center", fontweight="bold", fontsize=15,
            )  # fmt: skip
            axes.annotate(
                method.label, (0, y), (-8, 26) if narrow else (-210, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", color=ink, va="center", fontweight="bold",
            )  # fmt: skip
        data = task.method("behavior")
        axes.set_ylim(-len(task.methods) + 0.5, 0.55 if narrow else 0.45)
        if data is not None:
            axes.axvline(data.mean, color=color("behavior"), linewidth=1.2, linestyle=(0, (4, 4)), zorder=0)
            axes.annotate(
                "behaviour’s mean", (data.mean, 1), (0, 8), xycoords=("data", "axes fraction"), textcoords="offset points",
                color=color("behavior"), ha="center", fontsize=12,
            )  # fmt: skip
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0) if low < 0.4 * high else low, high)
        axes.set_yticks([])
        axes.grid(True, axis="x")
        axes.set_xlabel(f"return of an episode of at most {task.episode_steps} steps", labelpad=6, loc="right")
        tick_numbers(axes.xaxis)
        return figure

    return render(f"{name}-returns-{width}", f"Returns of every episode on {task.env_id}, by method", draw, FONT_SIZE)


def throughput(speeds: Throughput, ratios: Sequence[float | None], name: str, width: int) -> str:
    """Plans per second on a logarithmic axis, grouped by the number of problems."""
    narrow = width < WIDE
    counts = sorted({row.problems for row in speeds.rows})
    lines: list[tuple[int | None, ThroughputRow | None, float | None]] = []
    for count in counts:
        lines.append((count, None, None))
        lines += [(None, row, r) for row, r in zip(speeds.rows, ratios, strict=True) if row.problems == count]
    row_height = 42 if narrow else 30

    def draw() -> Figure:
        figure = canvas(width, 58 + row_height * len(lines))
        left = 8 if narrow else 270
        axes = place(figure, left, 132 if narrow else 176, top=8, bottom=46)
        rates = [row.plans_per_second for row in speeds.rows if row.plans_per_second]
        low, high = (min(rates), max(rates)) if rates else (1.0, 10.0)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        axes.set_ylim(-len(lines) + 0.4, 0.6)
        for i, (count, row, times) in enumerate(lines):
            def note(text: str, x: float, shift: float, ink: str, y: float = -float(i), **style) -> None:
                axes.annotate(text, (x, y), (shift, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                              color=ink, va="center", **style)  # fmt: skip

            if row is None:
                text = "1 problem" if count == 1 else f"{count:,} problems"
                note(text, 0, -left, INK, y=-i - 0.12, fontweight="bold")
                continue
            ink = color("sgp") if row.key in ("eager", "compiled", "bf16") else color("behavior")
            y = -i - (0.22 if narrow else 0.0)
            if narrow:
                note(row.label, 0, -left, ink, y=-i + 0.24)
            else:
                note(row.label, 0, -left, ink)
            if row.plans_per_second:
                axes.plot((low / 1.6, row.plans_per_second), (y, y), color=ink, linewidth=2.4, alpha=0.35)
                axes.plot(row.plans_per_second, y, "o", color=ink, markersize=9)
                note(f"{number(row.plans_per_second)}/s", 1, 12, ink, y=y, fontweight="bold")
                if times is not None:
                    note(ratio(times), 1, 84 if narrow else 112, ink, y=y)
            else:
                note("not measured", 1, 12, MUTED, y=y)
        axes.set_yticks([])
        axes.grid(True, axis="x")
        axes.set_xlabel("plans per second", loc="right", labelpad=6)
        tick_numbers(axes.xaxis)
        return figure

    return render(f"{name}-throughput-{width}", "Plans per second, by implementation", draw, FONT_SIZE)
