"""The panels of the report: what plans look like inside, and how the models were trained; inline SVG (see `svg.render`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .results import OpenLoop, Telemetry, TrainingCurve
from .svg import (
    INK,
    LINE,
    MUTED,
    PANEL,
    PAPER,
    THIRD,
    canvas,
    color,
    end_labels,
    place,
    render,
    tick_numbers,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = {"sgp": "with score", "no_score": "without"}
HEIGHT = 290
SHOWN_PLANS = 4
CURVE_POINTS = 160


def cost_history(telemetry: Sequence[Telemetry], name: str) -> str:
    """Task cost over the planner's iterations: what the model predicts (line), what the environment pays (dashed)."""

    def draw() -> Figure:
        figure = canvas(PANEL, HEIGHT)
        axes = place(figure, 46, 134)
        labels = []
        for item in telemetry:
            ink = color(item.key)
            predicted = _carry(np.column_stack([item.cost_history, item.predicted_cost]))
            middle = _median_band(axes, np.arange(predicted.shape[1]), predicted, ink)
            labels.append((middle[-1], f"{SHORT[item.key]}, predicted", ink))
            real = np.nanmedian(_finite(item.real_cost), axis=0)
            axes.plot(item.real_iterations, real, "o", linestyle=(0, (3, 2)), color=ink, markersize=5.5,
                      markerfacecolor=PAPER, markeredgewidth=1.6)  # fmt: skip
            labels.append((real[-1], f"{SHORT[item.key]}, real", ink))
        title(axes, "Cost of the plan (minus reward)", "planner iteration")
        _numbered(axes)
        end_labels(axes, labels)
        return figure

    return render(f"{name}-cost", "Task cost over iterations, predicted and real", draw)


def promise(telemetry: Sequence[Telemetry], name: str) -> str:
    """Predicted against real cost of each returned plan; on the diagonal the model told the truth."""

    def draw() -> Figure:
        figure = canvas(PANEL, HEIGHT)
        axes = place(figure, 46, 24)
        pairs = [(item, _finite(item.predicted_cost), _finite(item.real_cost[:, -1])) for item in telemetry]
        values = np.concatenate([np.concatenate([x, y]) for _, x, y in pairs])
        low, high = np.nanmin(values), np.nanmax(values)
        margin = 0.06 * (high - low) or 1.0
        low, high = low - margin, high + margin
        axes.plot((low, high), (low, high), color=MUTED, linewidth=1.2, linestyle=(0, (4, 4)), zorder=0)
        axes.fill_between((low, high), (low, high), (high, high), color=LINE, alpha=0.35, linewidth=0, zorder=-1)
        for item, x, y in pairs:
            axes.scatter(x, y, s=26, color=color(item.key), alpha=0.6, linewidth=0)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.grid(True, axis="both")
        title(axes, "Real cost of the same controls", "cost that the model predicts")
        tick_numbers(axes.xaxis)
        tick_numbers(axes.yaxis)
        _key(axes, [item.key for item in telemetry])
        return figure

    return render(f"{name}-promise", "Predicted against real cost of each plan", draw)


def score_norm(telemetry: Sequence[Telemetry], name: str) -> str:
    """Norm of the score along the horizon of the returned plans: how far each step is from the data."""

    def draw() -> Figure:
        figure = canvas(PANEL, HEIGHT)
        axes = place(figure, 46, 90)
        labels = []
        for item in telemetry:
            norms = _finite(item.score_norm)
            middle = _median_band(axes, np.arange(norms.shape[1]), norms, color(item.key), marker="o")
            labels.append((middle[-1], SHORT[item.key], color(item.key)))
        title(axes, "Norm of the score", "step along the horizon")
        _log_if_wide(axes, [item.score_norm for item in telemetry])
        _numbered(axes)
        end_labels(axes, labels)
        return figure

    return render(f"{name}-score", "Norm of the score along the horizon", draw)


def model_error(runs: Sequence[OpenLoop], name: str) -> str:
    """Root mean square over the dimensions of (predicted − real)/scale along the horizon, over plans."""

    def draw() -> Figure:
        figure = canvas(PANEL, HEIGHT)
        axes = place(figure, 46, 90)
        labels, shown = [], []
        for run in runs:
            error = np.sqrt(np.mean(_finite((run.predicted - run.real) / run.scale) ** 2, axis=-1))[:, 1:]
            shown.append(error)
            middle = _median_band(axes, np.arange(1, error.shape[1] + 1), error, color(run.key), marker="o")
            last = middle[np.isfinite(middle)]
            labels.append((last[-1] if len(last) else np.nan, SHORT[run.key], color(run.key)))
        title(axes, "Prediction error, in spreads of the data", "step")
        _log_if_wide(axes, shown)
        _numbered(axes)
        end_labels(axes, labels)
        return figure

    return render(f"{name}-error", "Prediction error along the horizon", draw)


def trajectories(runs: Sequence[OpenLoop], which: int, name: str) -> str:
    """One dimension of a few plans, a panel per method at one scale: predicted dashed, real solid."""

    def draw() -> Figure:
        figure = canvas(THIRD, HEIGHT - 20)
        gap = 16
        width = (THIRD - 40 - 8 - gap * (len(runs) - 1)) / len(runs)
        everyone = []
        for i, run in enumerate(runs):
            left = 40 + i * (width + gap)
            axes = place(figure, left, THIRD - left - width, top=48)
            everyone.append(axes)
            ink, dim = color(run.key), run.dims[which]
            for k in range(min(SHOWN_PLANS, len(run.real))):
                axes.plot(_finite(run.real[k, :, dim]), color=ink, linewidth=2.2, alpha=0.75)
                axes.plot(_finite(run.predicted[k, :, dim]), color=ink, linewidth=1.4, linestyle=(0, (3, 2)))
                axes.plot(0, run.real[k, 0, dim], "o", color=ink, markersize=4)
            axes.set_xlabel("step", loc="right", labelpad=6)
            _numbered(axes)
            axes.annotate(SHORT[run.key], (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", color=ink)
            if i:
                axes.tick_params(labelleft=False)
        limits = np.array([axes.get_ylim() for axes in everyone])
        for axes in everyone:
            axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        figure.text(0, 1 - 14 / (HEIGHT - 20), runs[0].names[which], color=INK, fontweight="bold")
        return figure

    return render(f"{name}-path-{which}", f"{runs[0].names[which]}: predicted and real", draw, 12)


def training(curve: TrainingCurve, name: str) -> str:
    """Training and validation loss over optimiser steps, thinned by averaging to what a line can show."""

    def draw() -> Figure:
        figure = canvas(THIRD, HEIGHT - 20)
        axes = place(figure, 48, 74)
        labels = []
        for loss, text, ink, line in (
            (curve.train_loss, "training", color("behavior"), 1.4),
            (curve.validation_loss, "validation", color("sgp"), 2.2),
        ):
            keep = np.isfinite(loss)
            if not keep.any():
                continue
            steps, values = (_thin(a[keep]) for a in (curve.steps, loss))
            axes.plot(steps, values, color=ink, linewidth=line)
            labels.append((values[-1], text, ink))
        title(axes, f"Loss of the {curve.network}", "optimiser step")
        _log_if_wide(axes, [curve.train_loss, curve.validation_loss])
        _numbered(axes)
        end_labels(axes, labels)
        return figure

    return render(f"{name}-training-{curve.network.replace(' ', '-')}", f"Training of the {curve.network}", draw, 12)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _carry(values: np.ndarray) -> np.ndarray:
    """Rows with each NaN replaced by the last number before it, so that problems which stopped early still count."""
    values = _finite(values).astype(float)
    for i in range(1, values.shape[1]):
        values[:, i] = np.where(np.isnan(values[:, i]), values[:, i - 1], values[:, i])
    return values


def _median_band(axes: Axes, x: np.ndarray, rows: np.ndarray, ink: str, marker: str = "") -> np.ndarray:
    """Draw the median over rows and the band from the 20th to the 80th percentile; returns the median."""
    empty = np.isnan(rows).all(axis=0)
    rows = np.where(empty, 0.0, rows)
    low, middle, high = (np.where(empty, np.nan, q) for q in np.nanpercentile(rows, (20, 50, 80), axis=0))
    axes.fill_between(x, low, high, color=ink, alpha=0.16, linewidth=0)
    axes.plot(x, middle, color=ink, marker=marker, markersize=4.5)
    return middle


def _log_if_wide(axes: Axes, series: Sequence[np.ndarray]) -> None:
    """A logarithmic axis where all is positive and spans more than a factor of 8."""
    values = np.concatenate([np.ravel(_finite(item)) for item in series])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 8 * values.min():
        axes.set_yscale("log")


def _numbered(axes: Axes) -> None:
    """Few ticks, whole on the horizontal axis, written as the page writes numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    tick_numbers(axes.xaxis)
    tick_numbers(axes.yaxis)
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
        axes.yaxis.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _key(axes: Axes, keys: Sequence[str]) -> None:
    """The methods' names in their colours, in a row above the axes on the right."""
    for i, key in enumerate(reversed(keys)):
        axes.annotate(SHORT[key], (1, 1), (-78 * i, 12), xycoords="axes fraction", textcoords="offset points",
                      color=color(key), ha="right")  # fmt: skip


def _thin(values: np.ndarray) -> np.ndarray:
    if len(values) <= CURVE_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, CURVE_POINTS)])
