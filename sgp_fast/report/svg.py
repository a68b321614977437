"""The ground that every figure stands on: one style, one palette, and inline SVG whose colours are the page's.

Matplotlib draws with the light palette; in the SVG each colour becomes a CSS variable of the page with that colour as its
fallback, so a figure follows the page into dark mode and keeps its colours when it is cut out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .._optional import require
from .numbers import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; the second is used where the page is dark.
PALETTE: dict[str, tuple[str, str]] = {
    "behavior": ("#6b7480", "#9aa4b0"),
    "sgp": ("#0072b2", "#5ab4e8"),
    "no_score": ("#d55e00", "#ff8a3d"),
    "cem": ("#00855f", "#2cc296"),
    "random_shooting": ("#a87b00", "#e3b53b"),
    # More of the same for the rungs of the benchmark: ours in blues, other planners in purples.
    "sgp_light": ("#3d9ad1", "#8fd0f5"),
    "sgp_dark": ("#00487a", "#3d8fd1"),
    "sgp_teal": ("#007d8a", "#35c3d0"),
    "peer": ("#8a4a9e", "#c78fdc"),
    "peer_light": ("#b07cc0", "#9c68b4"),
    "ink": ("#1a2027", "#e8ebee"),
    "muted": ("#5b6570", "#a3acb6"),
    "line": ("#d9dee3", "#343c45"),
    "paper": ("#fefefe", "#14181d"),
}
INK, MUTED, LINE, PAPER = (PALETTE[name][0] for name in ("ink", "muted", "line", "paper"))

PANEL, THIRD, WIDE, NARROW = 440, 340, 1080, 380
"""Widths in points: half the page, a third, the page, a phone."""

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 1.0,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 4,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


def color(name: str) -> str:
    """The light colour of a method or a part of the page."""
    return PALETTE[name][0]


@contextmanager
def drawing(name: str, font_size: float) -> Iterator[None]:
    """Our style and nobody else's, and ids that are the same in every run and unlike those of other figures."""
    matplotlib = require("matplotlib", extra="report")
    # rc_context alone would keep what a user's matplotlibrc says about the rest.
    with matplotlib.rc_context(), np.errstate(invalid="ignore"):
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name, "svg.id": None, "font.size": font_size})
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty transparent figure of so many points, which become the units of the SVG's view box."""
    figure = require("matplotlib.figure", extra="report").Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_alpha(0.0)
    return figure


def place(figure: Figure, left: float, right: float, top: float = 34, bottom: float = 42) -> Axes:
    """Axes with so many points left free on each side of the figure."""
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height))
    axes.patch.set_alpha(0.0)
    return axes


def title(axes: Axes, text: str, x_label: str = "") -> None:
    """What the vertical axis shows, level above it where it can be read, and the horizontal one's name below."""
    axes.annotate(
        text, (0, 1), (-axes.get_window_extent().x0, 14), xycoords="axes fraction", textcoords="offset points", color=INK,
        fontweight="bold",
    )  # fmt: skip
    if x_label:
        axes.set_xlabel(x_label, loc="right", labelpad=6)


def tick_numbers(axis) -> None:  # noqa: ANN001
    """Ticks as the rest of the page writes numbers."""
    ticker = require("matplotlib.ticker", extra="report")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    text = number(float(f"{value:.6g}"))
    return re.sub(r"(\.\d*?)0+$", r"\1", text).removesuffix(".") if "." in text and "×" not in text else text


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]], gap: float = 15) -> None:
    """Names of lines to the right of the axes, each at its line's last height (data), pushed apart by `gap` points.

    `labels` are (height, text, colour). Call it when the axes' limits are final.
    """
    if not labels:
        return
    box = axes.get_window_extent()
    axes.autoscale_view()  # settles limits that are still to be computed, which the transform does not
    heights = axes.transData.transform([(0.0 if axes.get_xscale() == "linear" else 1.0, y) for y, _, _ in labels])[:, 1]
    heights = np.clip(np.nan_to_num(heights, nan=box.y0), box.y0, box.y1)
    order = np.argsort(heights)
    for below, i in zip(order, order[1:], strict=False):
        heights[i] = max(heights[i], heights[below] + gap)
    # What was pushed out at the top goes down again, and takes along what it meets.
    ceiling = box.y1
    for i in order[::-1]:
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for height, (_, text, ink) in zip(heights, labels, strict=True):
        axes.annotate(
            text, (1, 0), (7, height - box.y0), xycoords="axes fraction", textcoords="offset points", color=ink, va="center"
        )


def render(name: str, description: str, draw: Callable[[], Figure], font_size: float = 12) -> str:
    """The inline SVG of what `draw` draws: no size of its own, no reference to anything outside, text as text."""
    with drawing(name, font_size):
        figure = draw()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    text = re.sub(r"<svg[^>]*>", f'<svg {view_box[0]} role="img" aria-label="{_escape(description)}">', text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own font
    for variable, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{variable.replace('_', '-')}, {light})")
    return re.sub(r"\n\s*", "\n", text).strip()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
