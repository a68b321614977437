"""What `sgp-fast data` does: make, info and convert."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Literal

import numpy as np

from .._optional import require
from .catalog import load_dataset
from .convert import convert as convert_dataset
from .make import cached_path, make_dataset
from .scores import normalized_score, reference_score

# What `load_dataset` makes of a name such as hopper-medium, with seed 0.
NAMED_TRANSITIONS = 100_000


def make(
    task: Literal["hopper", "halfcheetah", "walker2d"],
    quality: Literal["random", "medium", "medium-replay", "medium-expert", "expert"],
    transitions: int = 100_000,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Record data with the carried policies and write them in D4RL's layout.

    Args:
        task: The MuJoCo task, version 5 of gymnasium.
        quality: The policy: uniform noise, one snapshot of training, or several.
        transitions: How many steps to record.
        seed: The same seed gives the same data.
        output: The .hdf5 or .h5 file to write; by default one in the cache, whose path is printed. The name alone, such as
            hopper-medium, means 100,000 transitions with seed 0.
    """
    start = time.perf_counter()
    path = make_dataset(task, quality, transitions, seed, output)
    seconds = time.perf_counter() - start
    print(f"{path}: {transitions:,} transitions in {seconds:.1f} s ({transitions / seconds:,.0f}/s)")
    named = path == cached_path(task, quality, NAMED_TRANSITIONS, 0)
    print(f"next: sgp-fast data info {f'{task}-{quality}' if named else shlex.quote(str(path))}")


def info(source: str) -> None:
    """Show episodes, lengths, returns, normalised score and ranges of a data set as a table.

    Args:
        source: A file, a Minari id, or a name such as hopper-medium.
    """
    console = require("rich.console", extra="cli").Console()
    table = require("rich.table", extra="cli").Table
    data = load_dataset(source)
    facts = data.summary()
    overview = table(title=facts["name"], show_header=False)
    low, q1, median, q3, high = facts["return_quantiles"]
    overview.add_row("environment", facts["env_id"] or "unknown")
    overview.add_row("transitions", f"{facts['transitions']:,}")
    overview.add_row("episodes", f"{facts['episodes']:,}")
    overview.add_row("length", f"mean {facts['length_mean']:.1f}, from {facts['length_min']:,} to {facts['length_max']:,}")
    overview.add_row("return", f"mean {facts['return_mean']:.1f}, standard deviation {facts['return_std']:.1f}")
    overview.add_row("return quantiles", f"0% {low:.1f}, 25% {q1:.1f}, 50% {median:.1f}, 75% {q3:.1f}, 100% {high:.1f}")
    reference = next((n for n in (facts["name"], facts["env_id"]) if n and reference_score(n)), None)
    if reference is not None:
        score = normalized_score(reference, facts["return_mean"])
        note = " (approximate: references are of the v2 environments)" if score.approximate else ""
        overview.add_row("normalised score", f"{float(score.score):.1f}{note}")
    overview.add_row("terminals, timeouts", f"{facts['terminals']:,}, {facts['timeouts']:,}")
    for key, value in data.metadata.items():
        overview.add_row(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    console.print(overview)

    ranges = table("", "min", "mean", "max", "standard deviation", title="ranges")
    for label, values in (("observation", data.observations), ("action", data.actions)):
        for column, x in enumerate(np.asarray(values, np.float64).T):
            ranges.add_row(f"{label} {column}", *(f"{v:.3f}" for v in (x.min(), x.mean(), x.max(), x.std())))
    rewards = data.rewards.astype(np.float64)
    ranges.add_row("reward", *(f"{v:.3f}" for v in (rewards.min(), rewards.mean(), rewards.max(), rewards.std())))
    console.print(ranges)


def convert(source: str, target: str) -> None:
    """Convert a data set to another format.

    Args:
        source: A file, a Minari id, or a name such as hopper-medium.
        target: A path ending in .hdf5 (D4RL's layout) or .npz, or a Minari id such as sgp/hopper/medium-v0.
    """
    print(convert_dataset(source, target))
