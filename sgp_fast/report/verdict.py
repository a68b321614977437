"""What a run shows, in one sentence, by a rule that a reader can check against the table.

The claim of score-guided planning has two halves: with the score the planner does at least about as well as the policy of
its data, without it the return falls. A run of one training seed supports a half, speaks against it, or leaves it open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .numbers import alike
from .results import MethodResult, Results, TaskResults

Outcome = Literal["holds", "fails", "inconclusive"]

MARGIN = 0.10
"""How much of the data's mean return a planner may lose and still keep up: the usual non-inferiority margin."""

RULE = (
    "The claim is that with the score a planner earns more than the policy of its data, or keeps up with it, and that "
    "without the score the return falls. “More” means that the 95% interval of the mean return lies wholly above the "
    "behaviour policy’s; “less”, wholly below it; “keeps up”, that the whole interval is above the behaviour’s mean less "
    f"{MARGIN:.0%}. “Falls” means that the interval lies wholly below both the behaviour’s and the one with the score. The "
    "run supports the claim where both halves are so, speaks against it where either is contradicted, and anything else is "
    "inconclusive. The intervals are over the episodes of models that were trained once: another seed of training, other "
    "data or other settings may turn out otherwise."
)


@dataclass(frozen=True)
class Verdict:
    """`outcome` of the claim on one task or on all, and the sentence that says so with its numbers."""

    outcome: Outcome
    sentence: str


def verdict(results: Results) -> Verdict:
    """The verdict on a run: of its only task, or a count over its tasks that names those where the claim is not met."""
    verdicts = [(task, task_verdict(task)) for task in results.tasks]
    if not verdicts:
        return Verdict("inconclusive", "Nothing was evaluated, so nothing is shown.")
    if len(verdicts) == 1:
        return verdicts[0][1]
    names = {
        outcome: [task.dataset.name for task, v in verdicts if v.outcome == outcome]
        for outcome in ("holds", "fails", "inconclusive")
    }
    parts = [
        f"On {len(names['holds'])} of {len(verdicts)} data sets the planner with the score earns more than the policy of "
        "its data, or keeps up with it, and the return falls without it"
    ]
    if names["fails"]:
        parts.append(f"it is otherwise on {_list(names['fails'])}")
    if names["inconclusive"]:
        parts.append(f"{_list(names['inconclusive'])} {_are(names['inconclusive'])} inconclusive")
    outcome: Outcome = "fails" if names["fails"] else "inconclusive" if names["inconclusive"] else "holds"
    return Verdict(outcome, "; ".join(parts) + ".")


def task_verdict(task: TaskResults) -> Verdict:
    """The verdict on one task; see RULE."""
    data, guided, free = (task.method(key) for key in ("behavior", "sgp", "no_score"))
    absent = [name for name, method in (("the behaviour policy", data), ("SGP", guided)) if method is None]
    if data is None or guided is None:
        return Verdict("inconclusive", f"Nothing can be concluded: {_list(absent)} {_are(absent)} missing from this run.")
    means = alike([method.mean if method else None for method in (data, guided, free)])
    first, with_score = _with_score(data, guided, f"{means[1]} against {means[0]}")
    second, without = _without_score(data, guided, free, means[2])
    outcome: Outcome = "holds"
    if "fails" in (first, second):
        outcome = "fails"
    elif "inconclusive" in (first, second):
        outcome = "inconclusive"
    opening = {
        "holds": "With the score the planner ",
        "fails": "Against the claim: with the score the planner ",
        "inconclusive": "This run is inconclusive: with the score the planner ",
    }[outcome]
    return Verdict(outcome, f"{opening}{with_score}; {without}.")


def _with_score(data: MethodResult, guided: MethodResult, values: str) -> tuple[Outcome, str]:
    if guided.interval[0] > data.interval[1]:
        return "holds", f"earns more than the policy of its data, {values}"
    if guided.interval[1] < data.interval[0]:
        return "fails", f"earns less than the policy of its data, {values}"
    if guided.interval[0] >= _floor(data):
        return "holds", f"keeps up with the policy of its data, {values}"
    return "inconclusive", f"may keep up with the policy of its data or not, {values}: the intervals are too wide to tell"


def _without_score(
    data: MethodResult, guided: MethodResult, free: MethodResult | None, value: str
) -> tuple[Outcome, str]:
    if free is None:
        return "inconclusive", "planning without the score was not evaluated"
    below_guided, below_data = free.interval[1] < guided.interval[0], free.interval[1] < data.interval[0]
    if below_guided and below_data:
        return "holds", f"without it the return falls to {value}"
    if free.interval[0] > guided.interval[1]:
        return "fails", f"without it the return is higher, {value}"
    if free.interval[0] >= _floor(data):
        return "fails", f"without it the return does not fall below the data’s either, {value}"
    if below_guided:
        return "inconclusive", f"without it the return is lower, {value}, but not clearly below the data’s"
    return "inconclusive", f"whether the return falls without it, {value}, cannot be told from the intervals"


def _floor(data: MethodResult) -> float:
    return data.mean - MARGIN * abs(data.mean)


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
