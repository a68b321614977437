"""What the template shows: every number as text, every figure as SVG, every absence as a sentence."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import figures, rows
from .numbers import DISTURBED, NONE, alike, number, ratio, seconds, wide_spread
from .pictures import addresses
from .results import METHODS, MethodResult, Results, TaskResults, Telemetry, Throughput, ThroughputRow
from .svg import NARROW, PALETTE, WIDE
from .verdict import RULE, task_verdict, verdict

OUTCOMES = {
    "holds": "This run supports the claim",
    "fails": "This run speaks against the claim",
    "inconclusive": "Inconclusive",
}
OF_SEVERAL = {"holds": " on every data set", "fails": " on some data sets", "inconclusive": ""}
UNSAID = "this run did not make it"
TOO_MANY = "this run has more pictures than fit on one page"


def context(results: Results) -> dict[str, Any]:
    """Everything the template needs, by name."""
    overall = verdict(results)
    pictures = _pictures(results.tasks)
    return {
        "title": _title(results.tasks),
        "outcome": overall.outcome,
        "outcome_name": OUTCOMES[overall.outcome] + (OF_SEVERAL[overall.outcome] if len(results.tasks) > 1 else ""),
        "verdict": overall.sentence,
        "rule": RULE,
        "facts": _facts(results),
        "several": len(results.tasks) > 1,
        "tasks": [_task(task, f"t{i}", pictures) for i, task in enumerate(results.tasks)],
        "throughput": _throughput(results.throughput),
        "circumstances": _circumstances(results),
        "notes": results.notes,
        "palette": {name.replace("_", "-"): shades for name, shades in PALETTE.items()},
        "date": _date(results.circumstances.date),
        "commit": (results.circumstances.commit or "")[:10],
        "device": results.circumstances.device,
        "cores": results.circumstances.cores,
    }


def _title(tasks: Sequence[TaskResults]) -> str:
    return tasks[0].dataset.name if len(tasks) == 1 else f"{len(tasks)} data sets"


def _facts(results: Results) -> list[dict[str, str]]:
    """The few numbers that a passer-by should see: returns of the only task, and the largest speed-up that is ours."""
    facts: list[dict[str, str]] = []
    if len(results.tasks) == 1:
        words = {"behavior": "return of the data’s policy", "sgp": "with the score", "no_score": "without the score"}
        shown = [method for key in words if (method := results.tasks[0].method(key)) is not None]
        values = alike([method.mean for method in shown])
        facts += [
            {"key": method.key, "value": value, "text": words[method.key]}
            for method, value in zip(shown, values, strict=True)
        ]
    if results.throughput is not None:
        table = results.throughput.rows
        ours = [
            (times, row, base)
            for row, times, base in zip(table, ratios(table), _bases(table), strict=True)
            if times is not None and row.key in ("eager", "compiled")
        ]
        if ours:
            times, row, base = max(ours, key=lambda found: found[0])
            ours_at = "" if row.problems == 1 else f"; it plans one at a time, ours {row.problems:,} together"
            text = f"the published loop’s plans per second{ours_at}{_spread_words(base, row)}"
            facts.append({"key": "ink", "value": ratio(times), "text": text})
    return facts


def _spread_words(base: ThroughputRow | None, ours: ThroughputRow) -> str:
    """What a reader must know beside a ratio of times that were disturbed; nothing where both are steady."""
    spreads = [
        f"{whose} times spread {spread}"
        for whose, row in (("its", base), ("our", ours))
        if row is not None and (spread := wide_spread(row.p20_seconds, row.p80_seconds))
    ]
    return f"; {' and '.join(spreads)}: {DISTURBED}" if spreads else ""


def _task(task: TaskResults, name: str, pictures: dict[int, str | None]) -> dict[str, Any]:
    judged = task_verdict(task)
    order = {key: i for i, key in enumerate(METHODS)}
    methods = sorted(task.methods, key=lambda method: order[method.key])
    labels = {method.key: method.label for method in methods}
    crowded = any(pictures[id(frame)] is None for strip in task.frames for frame in strip.frames)
    reasons = task.missing | ({"frames": TOO_MANY} if crowded else {})
    telemetry = sorted(task.telemetry, key=lambda item: order[item.key])
    open_loop = sorted(task.open_loop, key=lambda item: order[item.key])
    return {
        "id": name,
        "env_id": task.env_id,
        "name": task.dataset.name,
        "outcome": judged.outcome,
        "outcome_name": OUTCOMES[judged.outcome],
        "verdict": judged.sentence,
        "episode_steps": f"{task.episode_steps:,}",
        "dataset": {
            "transitions": f"{task.dataset.transitions:,}",
            "episodes": f"{task.dataset.episodes:,}",
            "mean": number(task.dataset.return_mean),
            "std": number(task.dataset.return_std),
        },
        "methods": _methods(methods, task.episode_steps),
        "approximate": any(method.approximate and method.normalized is not None for method in methods),
        "fallen": any((method.lengths < task.episode_steps).any() for method in methods),
        "returns": [rows.returns(task, name, width) for width in (WIDE, NARROW)] if methods else [],
        "strips": [] if crowded else _strips(task, labels, pictures),
        "telemetry": {
            "score": figures.score_norm(telemetry, name),
            "cost": figures.cost_history(telemetry, name),
            "promise": figures.promise(telemetry, name),
            "score_words": _score_words(telemetry),
            "promise_words": _promise_words(telemetry),
            "cost_words": _cost_words(telemetry, task.episode_steps),
            "starts": telemetry[0].cost_history.shape[0],
        }
        if telemetry
        else None,
        "open_loop": {
            "error": figures.model_error(open_loop, name),
            "paths": [figures.trajectories(open_loop, i, name) for i in range(min(len(r.dims) for r in open_loop))],
            "plans": len(open_loop[0].real),
            "shown": min(figures.SHOWN_PLANS, len(open_loop[0].real)),
        }
        if open_loop
        else None,
        "training": [
            {
                "svg": figures.training(curve, name),
                "words": f"{int(curve.steps[-1]) if len(curve.steps) else 0:,} steps in {seconds(curve.seconds)}.",
            }
            for curve in task.training
        ],
        "missing": {
            part: f"Not in this report: {_sentence(reasons.get(part, UNSAID))}"
            for part in ("frames", "telemetry", "open_loop", "training", "methods")
        },
    }


def _methods(methods: Sequence[MethodResult], episode_steps: int) -> list[dict[str, Any]]:
    """The rows of the table; numbers of a column have the same decimals, those of the intervals the means'."""
    returns = iter(alike([value for method in methods for value in (method.mean, *method.interval)]))
    scores = alike([method.normalized for method in methods])
    lengths = alike([float(np.mean(method.lengths)) for method in methods])
    table = []
    for method, score, length in zip(methods, scores, lengths, strict=True):
        mean, low, high = next(returns), next(returns), next(returns)
        fell = int((method.lengths < episode_steps).sum())
        table.append(
            {
                "key": method.key,
                "label": method.label,
                "mean": mean,
                "interval": NONE if NONE in (low, high) else f"{low} to {high}",
                "normalized": f"≈ {score}" if method.approximate and method.normalized is not None else score,
                "length": length,
                "fell": f"{fell} of {len(method.lengths)}",
                "action": NONE if method.milliseconds is None else seconds(method.milliseconds / 1e3),
                "settings": [(key, _setting(key, value)) for key, value in method.settings.items()],
            }
        )
    return table


def _pictures(tasks: Sequence[TaskResults]) -> dict[int, str | None]:
    """The address of each frame of the run, by identity; None where the page has no room."""
    frames = [frame for task in tasks for strip in task.frames for frame in strip.frames]
    encoded = addresses([frame.png for frame in frames])
    return {id(frame): encoded[i] if encoded else None for i, frame in enumerate(frames)}


def _strips(task: TaskResults, labels: dict[str, str], pictures: dict[int, str | None]) -> list[dict[str, Any]]:
    most = max((len(strip.frames) for strip in task.frames), default=0)
    numbers = [[*(frame.return_so_far for frame in strip.frames), strip.total_return] for strip in task.frames]
    texts = iter(alike([value for values in numbers for value in values]))
    written = [[next(texts) for _ in values] for values in numbers]
    lasted = f"lasted all {task.episode_steps:,} steps"
    strips = []
    for strip, (*so_far, total) in sorted(
        zip(task.frames, written, strict=True), key=lambda pair: METHODS.index(pair[0].key)
    ):
        if strip.frames:
            strips.append(
                {
                    "key": strip.key,
                    "label": labels.get(strip.key, strip.key),
                    "columns": most,
                    "outcome": f"fell at step {strip.fell_at:,}" if strip.fell_at is not None else lasted,
                    "total": total,
                    "frames": [
                        {"src": pictures[id(frame)], "step": f"{frame.step:,}", "so_far": value}
                        for frame, value in zip(strip.frames, so_far, strict=True)
                    ],
                }
            )
    return strips


def _score_words(telemetry: Sequence[Telemetry]) -> str:
    """How far the plans are from the data, from the numbers."""
    norms = {item.key: _median(item.score_norm) for item in telemetry}
    if len(norms) < 2:
        return ""
    guided, free = alike([norms["sgp"], norms["no_score"]])
    return f"The median over plans and steps is {guided} with the score and {free} without."


def _cost_words(telemetry: Sequence[Telemetry], episode_steps: int) -> str:
    """What a figure of the horizon alone shows, and what it cannot: a plan without the score pays after its last step."""
    plans = {item.key: item for item in telemetry}
    guided, free = plans.get("sgp"), plans.get("no_score")
    horizon = telemetry[0].score_norm.shape[1]
    sentences = [f"Only the {horizon} steps of a plan count here, of the {episode_steps:,} of an episode."]
    if guided is not None and _median(guided.predicted_cost) > _median(guided.cost_history[:, 0]):
        sentences.append("With the score the line rises: the planner gives cost away for plans nearer to the data.")
    if guided is not None and free is not None and _median(free.real_cost[:, -1]) < _median(guided.real_cost[:, -1]):
        sentences.append(
            "Over so few steps the plans without the score are the better ones in the simulator, too; what they lead to, a "
            "fall for instance, comes after the last step. The returns above are over whole episodes."
        )
    return " ".join(sentences)


def _promise_words(telemetry: Sequence[Telemetry]) -> str:
    """By how much the environment disappointed the model: the distance between two ends of lines in the figure of costs."""
    gaps = [_median(item.real_cost[:, -1]) - _median(item.predicted_cost) for item in telemetry]
    words = {"sgp": "with the score", "no_score": "without it"}
    parts = [
        f"{size} {'above' if gap >= 0 else 'below'} that of the predicted ones {words[item.key]}"
        for item, gap, size in zip(telemetry, gaps, alike([abs(gap) for gap in gaps]), strict=True)
    ]
    return f"The median of the real costs is {' and '.join(parts)}."


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def ratios(table: Sequence[ThroughputRow]) -> list[float | None]:
    """How many times the published loop's plans per second each row makes.

    The loop plans one trajectory at a time, so where it was not timed at a row's number of problems its rate at another
    number is its rate there too; the nearest is taken.
    """
    out: list[float | None] = []
    for row, base in zip(table, _bases(table), strict=True):
        known = base is not None and base.plans_per_second and row.plans_per_second
        out.append(row.plans_per_second / base.plans_per_second if known else None)  # type: ignore[operator, union-attr]
    return out


def _bases(table: Sequence[ThroughputRow]) -> list[ThroughputRow | None]:
    """The row of the published loop that each row is compared with."""
    published = [row for row in table if row.key == "published" and row.plans_per_second]
    return [min(published, key=lambda p: abs(p.problems - row.problems), default=None) for row in table]


def _throughput(speeds: Throughput | None) -> dict[str, Any] | None:
    if speeds is None or not speeds.rows:
        return None
    times = ratios(speeds.rows)
    return {
        "case": speeds.case,
        "svg": [rows.throughput(speeds, times, "all", width) for width in (WIDE, NARROW)],
        "rows": [
            {
                "label": row.label,
                "problems": f"{row.problems:,}",
                "rate": number(row.plans_per_second),
                "ratio": ratio(many),
                "p50": seconds(row.p50_seconds),
                "range": f"{seconds(row.p20_seconds)} to {seconds(row.p80_seconds)}"
                if row.p20_seconds is not None and row.p80_seconds is not None
                else NONE,
                "cost": number(row.final_cost),
                "repeats": str(row.repeats),
                "note": _row_note(row),
                "ours": row.key in ("eager", "compiled", "bf16"),
            }
            for row, many in zip(speeds.rows, times, strict=True)
        ],
    }


def _row_note(row: ThroughputRow) -> str:
    spread = wide_spread(row.p20_seconds, row.p80_seconds)
    return "; ".join(filter(None, (row.note, f"times spread {spread}: {DISTURBED}" if spread else "")))


def _circumstances(results: Results) -> dict[str, Any]:
    run = results.circumstances
    total = sum(run.stage_seconds.values())
    tasks = {name.partition(": ")[0] for name in run.stage_seconds if ": " in name}
    prefix = f"{tasks.pop()}: " if len(tasks) == 1 else ""  # says nothing where there is one task
    stages = {name.removeprefix(prefix): value for name, value in run.stage_seconds.items()}
    return {
        "run": [
            ("commit", run.commit or "unknown: not run from a checkout"),
            ("date", _date(run.date)),
            ("configuration", run.config),
            ("device", run.device),
            ("cores", str(run.cores)),
            ("threads of PyTorch", str(run.torch_threads)),
        ],
        "versions": list(run.versions.items()),
        "stages": [
            {"name": name, "seconds": seconds(value), "share": f"{100 * value / total:.2f}" if total else "0"}
            for name, value in stages.items()
        ],
        "total": seconds(total),
    }


def _date(text: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%d %B %Y, %H:%M}".lstrip("0") + (f" {zone}" if (zone := moment.tzname()) else "")


def _setting(name: str, value: Any) -> str:
    if name == "memory_limit":
        return f"{value / 2**30:.3g} GiB"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}".replace("-", "−")  # as it was set, not rounded to be read
    if isinstance(value, list | tuple):
        return ", ".join(_setting(name, item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if re.search(r"[.!?]$", text) else f"{text}."
