"""How rungs, planners and axes look, the same in every figure: greys for baselines, blues for ours, purples for peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sgp_fast.report.numbers import number
from sgp_fast.report.svg import INK, LINE, MUTED, PAPER, color, tick_numbers

from ..rows import PlanRow
from ..rungs import RUNGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

FAMILIES = ("baseline", "peer", "ours")
PUBLISHED = ("1 × 4×256", "64 × 4×256", "1 × 4×1024", "64 × 4×1024")
"""The cases of the published benchmark, which every device is measured at first."""
ITERATIONS, HORIZON = 50, 8

# Colour and marker of rungs by name, so that they agree between figures and between files.
_RUNGS = {
    "published": ("behavior", "o"),
    "frozen": ("behavior", "s"),
    "one rollout": ("behavior", "^"),
    "autograd": ("behavior", "D"),
    "adjoint": ("behavior", "v"),
    "compile": ("random_shooting", "o"),
    "compile reduce-overhead": ("random_shooting", "s"),
    "compile max-autotune": ("random_shooting", "^"),
    "cuda graph": ("no_score", "D"),
    "jax": ("cem", "o"),
    "eager": ("sgp_light", "o"),
    "compiled": ("sgp", "s"),
    "fused:tile": ("sgp_dark", "^"),
    "fused:layered": ("sgp_teal", "D"),
    "fused:grid": ("sgp_teal", "v"),
    "fused:ring": ("sgp_dark", "v"),
    "fused:relay": ("sgp_dark", "D"),
    "auto": ("ink", "o"),
    "mppi": ("sgp_teal", "o"),
    "mppi command": ("sgp_teal", "s"),
    "cem": ("sgp_teal", "^"),
}
# What the colours of baselines are called in a caption.
INKS = {"behavior": "grey", "random_shooting": "amber", "no_score": "orange", "cem": "green"}
# A rung that is not in the table looks like its family.
_FAMILIES = {"baseline": ("behavior", "P"), "peer": ("peer", "o"), "ours": ("sgp", "P")}
_PEER_MARKERS = "os^Dv"
_PLANNERS = {
    "SGP": "sgp", "SGP, plain PyTorch": "sgp_light", "SGP, β = 0": "no_score", "CEM": "cem",
    "MPPI": "peer", "random shooting": "random_shooting",
}  # fmt: skip


def rung_look(row: PlanRow) -> tuple[str, str]:
    """Colour and marker of a rung. Peers are told apart by markers, which depend on their names only."""
    if row.family == "peer":
        return color("peer" if sum(map(ord, row.rung)) % 2 else "peer_light"), _PEER_MARKERS[len(row.rung) % 5]
    return look_of(row.rung, row.family)


def look_of(rung: str, family: str = "ours") -> tuple[str, str]:
    """Colour and marker of a rung of which only the name is known."""
    name, marker = _RUNGS.get(rung) or _FAMILIES[family]
    return color(name), marker


def ink_names(rows: Iterable[PlanRow]) -> list[str]:
    """The colours of the baselines among the rows, by name."""
    used = {_RUNGS.get(row.rung, _FAMILIES["baseline"])[0] for row in rows if row.family == "baseline"}
    return [word for ink, word in INKS.items() if ink in used]


def planner_look(planner: str) -> tuple[str, str]:
    """Colour and line style of a planner; a sampling planner with score has the colour of its kind, dashed."""
    kind = planner.removesuffix(" with score")
    return color(_PLANNERS.get(kind, "ink")), "-" if kind == planner else "--"


def ordered(rows: Iterable[PlanRow]) -> list[PlanRow]:
    """Baselines, then peers, then ours, in each in the ladder's order; of the same case and rung only the last."""
    last = {row.key: row for row in rows}
    order = {name: i for i, name in enumerate(RUNGS)}
    return sorted(last.values(), key=lambda row: (FAMILIES.index(row.family), order.get(row.rung, len(order))))


def strong(row: PlanRow) -> bool:
    """A baseline that plans the whole batch at once: what a speed can be claimed against."""
    return row.family == "baseline" and not (row.rung in RUNGS and RUNGS[row.rung].loop)


def usual(row: PlanRow) -> bool:
    """Horizon and iterations as published."""
    return row.horizon == HORIZON and row.iterations == ITERATIONS


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Rows by a key, in the order in which keys first appear."""
    found: dict[K, list[T]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def cell(value: float | None, scale: float = 1.0) -> str:
    """A number of a table; a dash where there is none."""
    return number(None if value is None else scale * value)


def heading(axes: Axes, text: str, left: float) -> None:
    """What a panel shows, level, above its left margin of `left` points."""
    axes.annotate(
        text, (0, 1), (-left, 14), xycoords="axes fraction", textcoords="offset points", color=INK, fontweight="bold"
    )


def side_note(axes: Axes, text: str, y: float, shift: float, ink: str, at: float = 1, **style: Any) -> None:
    """Text beside the axes at a height of the data, `shift` points from the left (`at` 0) or the right edge (1)."""
    axes.annotate(
        text, (at, y), (shift, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=ink,
        va="center", **style,
    )  # fmt: skip


def corner(axes: Axes, text: str, shift: float) -> None:
    """The name of a column of numbers that stands to the right of the axes, ending `shift` points from them."""
    axes.annotate(text, (1, 1), (shift, 14), xycoords="axes fraction", textcoords="offset points", color=MUTED, ha="right")


def log_axis(axis: Any, most: int = 5) -> None:
    """A logarithmic axis with few ticks, as powers of ten where it reaches small numbers. Call it when limits are final."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    # The finest division of a decade that has room.
    subs = next((s for s in ((1.0, 2.0, 5.0), (1.0, 3.0)) if decades * len(s) <= most), (1.0,))
    axis.set_major_locator(LogLocator(subs=subs, numticks=most))
    axis.set_minor_locator(NullLocator())
    if low >= 1e-3:
        tick_numbers(axis)
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"10{_exponent(value)}"))


def _exponent(value: float) -> str:
    return f"{round(math.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def log_limits(values: Sequence[float], room: float = 1.5) -> tuple[float, float]:
    """Limits around positive values, at least a decade apart, so that equal values do not look far apart."""
    low, high = min(values) / room, max(values) * room
    if high < 10 * low:
        middle = (low * high) ** 0.5
        low, high = middle / 10**0.5, middle * 10**0.5
    return low, high


def key(axes: Axes, looks: dict[str, tuple[str, str]], columns: int, drop: float) -> None:
    """Names with their markers, in columns, `drop` points below the axes."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], linestyle="", marker=marker, color=ink, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.6)
        for ink, marker in looks.values()
    ]
    height = axes.get_window_extent().height
    legend = axes.legend(
        marks, list(looks), loc="upper left", bbox_to_anchor=(0, -drop / height), ncols=columns, frameon=False,
        borderaxespad=0, borderpad=0, handletextpad=0.3, columnspacing=1.2, labelspacing=0.45, fontsize=11,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_color(MUTED)


def rule(axes: Axes, y: float) -> None:
    """A hair line between rows."""
    axes.axhline(y, color=LINE, linewidth=0.8, zorder=0)
