"""Where an iteration goes: shares of its time by stage of the algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sgp_fast.report.numbers import number, seconds
from sgp_fast.report.svg import MUTED, PANEL, PAPER, WIDE, canvas, color, place

from ..records import Results
from ..rows import StageRow
from . import style
from .section import Section, panels, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {
    "rollout": "sgp", "score": "cem", "cost": "random_shooting", "adjoint": "no_score", "update": "peer", "gaps": "line",
}  # fmt: skip
# Stages that are not the algorithm's, such as those of a kernel that does several at once, take these in turn.
OTHERS = ("sgp_light", "sgp_teal", "peer_light", "behavior")


def stages(results: Results, name: str) -> Section | None:
    """Shares of an iteration by stage, a bar a case and backend."""
    key = "stages"
    rows = results.of(StageRow)
    if not rows:
        return None
    bars = style.grouped(rows, lambda row: (row.case, row.backend))
    return Section(
        key,
        panels(key, name, {"all": partial(_stages, bars)}),
        table(
            "case|backend|stage|>µs an iteration|>share, %|>launches|>at least, µs|>times that",
            [
                (row.case, row.backend, row.stage, number(1e6 * row.seconds),
                 number(100 * row.seconds / max(sum(r.seconds for r in bar), 1e-12)), style.cell(row.launches),
                 style.cell(row.floor, 1e6), style.cell(row.seconds / row.floor if row.floor else None))
                for bar in bars.values() for row in bar
            ],
        ),
    )  # fmt: skip


def stage_inks(stages: Sequence[str]) -> dict[str, str]:
    """A colour a stage: those of the algorithm have theirs, others take what is left in turn."""
    names = list(dict.fromkeys(stages))
    others = [stage for stage in names if stage not in STAGES]
    return {stage: color(STAGES.get(stage) or OTHERS[others.index(stage) % len(OTHERS)]) for stage in names}


def _stages(bars: dict[tuple[str, str], list[StageRow]], width: int) -> Figure:
    phone = width < PANEL
    row_height = 44 if phone else 34
    left, right = (270, 120) if width == WIDE else (8, 84)
    inks = stage_inks([row.stage for bar in bars.values() for row in bar])
    legend_rows = -(-len(inks) // (3 if phone else 6))
    bottom = 40 + 20 * legend_rows
    figure = canvas(width, 22 + bottom + row_height * len(bars))
    axes = place(figure, left, right, top=22, bottom=bottom)
    axes.set_xlim(0, 100)
    axes.set_ylim(-len(bars) + 0.5, 0.5)
    for i, ((case, backend), bar) in enumerate(bars.items()):
        whole, at = sum(row.seconds for row in bar), 0.0
        y = -i - (0.2 if phone else 0)
        for row in bar:
            share = 100 * row.seconds / whole if whole else 0.0
            axes.barh(y, share, left=at, height=0.5, color=inks[row.stage], edgecolor=PAPER, linewidth=0.8)
            at += share
        if phone:
            style.side_note(axes, f"{case}, {backend}", -i + 0.26, 0, MUTED, at=0)
        else:
            style.side_note(axes, f"{case}, {backend}", y, -left, MUTED, at=0)
        style.side_note(axes, seconds(whole), y, right - 4, MUTED, fontweight="bold", ha="right")
    axes.set_yticks([])
    axes.grid(False)
    axes.set_xlabel("% of an iteration", loc="right", labelpad=4)
    style.key(axes, {stage: (ink, "s") for stage, ink in inks.items()}, 3 if phone else 6, 40)
    return figure
