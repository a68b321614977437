"""What returns tell: a table of them, and sentences on whether backend and dtype made a difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

from sgp_fast._intervals import t_interval

from ..rows import ReturnRow
from .contenders import GROUPS, REFERENCE

TITLES = {
    "data": "the policy that made the data",
    "precision": "the same planner by backend and dtype",
    "budget": "planners by their budget",
}


def table(rows: Iterable[ReturnRow]) -> str:
    """A line a controller, by task and group: mean return, its 95% interval, normalised return, milliseconds an action."""
    ordered = sorted(rows, key=lambda row: (row.task, GROUPS.index(row.group)))  # stable: else as measured
    lines = []
    for task, of_task in groupby(ordered, key=lambda row: row.task):
        found = list(of_task)
        seeds, steps = next(((row.seeds, row.steps) for row in found if row.returns), (found[0].seeds, found[0].steps))
        title = f"{task}, {len(seeds)} episodes of at most {steps} steps"
        lines += ["", f"{title:<66}{'return':>8}  {'95% interval':<18}{'normalised':>12}{'ms/action':>11}"]
        for group, of_group in groupby(found, key=lambda row: row.group):
            lines += [f"  {TITLES[group]}", *map(_line, of_group)]
    return "\n".join(lines[1:])


def _line(row: ReturnRow) -> str:
    how = f"{row.backend} {row.precision}" if row.group != "data" else ""
    name = f"    {f'{row.planner}, {row.setting}':<38}{how:<24}"
    if not row.returns:
        return f"{name}  {row.reason}"
    returns = np.array(row.returns)
    score = f"{np.mean(row.normalized):.1f}" if row.normalized else ""
    cost = "" if row.milliseconds is None else f"{row.milliseconds:.2f}"
    return f"{name}{_number(returns.mean(), 0):>8}  {_bracket(t_interval(returns), 0):<18}{score:>12}{cost:>11}"


def verdict(rows: Sequence[ReturnRow]) -> list[str]:
    """Each backend and dtype against eager float32, seed by seed: a sentence for each task, and one over all tasks.

    The interval is Student's t, 95%, of the mean difference over episodes of the same seed. Pairs leave out that some
    starts are easier than others. Over tasks, differences of normalised return are taken together, each episode once. "No
    difference seen" is no proof that there is none: the sentence says how much lower the return may be all the same.
    """
    found = [row for row in rows if row.group == "precision" and row.returns]
    references = {row.task: row for row in found if (row.backend, row.precision) == REFERENCE}
    others = [row for row in found if row.task in references and row is not references[row.task]]
    lines = []
    for row in others:
        reference = references[row.task]
        difference = _paired(row, reference, "returns")
        if len(difference) < 2:
            continue
        mean = float(np.mean(reference.returns))
        told = f"{row.task}, {row.backend} {row.precision}: {_told(difference)} against {_number(mean, 0)}"
        low, high = t_interval(difference)
        room = f", at most {-100 * low / mean:.2g}% lower" if mean > 0 and low < 0 <= high else ""
        lines.append(f"{told} with {' '.join(REFERENCE)}: {judgement(difference)}{room}")
    comparisons = len(lines)
    ways = dict.fromkeys((row.backend, row.precision) for row in others)
    for backend, precision in ways if len(references) > 1 else ():
        rows_of = [row for row in others if (row.backend, row.precision) == (backend, precision)]
        if len(rows_of) < len(references):
            continue
        parts = [_paired(row, references[row.task], "normalized") for row in rows_of]
        difference = np.concatenate(parts)
        if len(difference) >= 2:
            lines.append(
                f"{len(parts)} tasks, {backend} {precision}: {_told(difference)} points of normalised return against "
                f"{' '.join(REFERENCE)} over {len(difference)} episodes: {judgement(difference)}"
            )
    if comparisons > 1:
        lines.append(f"Of {comparisons} such comparisons, one in twenty would show a difference by chance.")
    return lines


def judgement(difference: np.ndarray) -> str:
    """In words, what differences of pairs say of their mean."""
    low, high = t_interval(difference)
    if not difference.any():
        return "the same in every episode"
    if low <= 0 <= high:
        return "no difference seen"
    return "lower" if high < 0 else "higher"


def _paired(row: ReturnRow, reference: ReturnRow, field: str) -> np.ndarray:
    """Differences `[n]` over the seeds that both ran."""
    ours = dict(zip(row.seeds, getattr(row, field), strict=False))
    theirs = dict(zip(reference.seeds, getattr(reference, field), strict=False))
    return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def _told(difference: np.ndarray) -> str:
    """Mean and interval, to two figures or so of the larger bound."""
    interval = t_interval(difference)
    size = max(map(abs, interval))
    digits = 0 if size == 0 or size >= 10 else 1 if size >= 1 else 2
    return f"{_number(float(difference.mean()), digits)} {_bracket(interval, digits)}"


def _bracket(interval: tuple[float, float], digits: int) -> str:
    low, high = interval
    return f"[{_number(low, digits)}, {_number(high, digits)}]" if math.isfinite(low) else "[one episode]"


def _number(value: float, digits: int) -> str:
    """With a true minus sign, and never a minus zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
