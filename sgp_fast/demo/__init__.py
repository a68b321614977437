"""The whole job in one command: make data, train, plan, evaluate in closed loop, and write a report."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .._files import atomic_path
from ..data import snapshots
from ..data.make import read_or_make
from ..doctor import cpu_model, usable_cores
from ..problem import Problem
from ..report import Circumstances, DatasetSummary, Results, TaskResults, Throughput, TrainingCurve, write_report
from ..report.numbers import DISTURBED, wide_spread
from ..trained import Models
from ..training import train
from .closed_loop import run_methods
from .inside import look_inside
from .settings import Settings, read_settings

__all__ = ["Settings", "read_settings", "run_demo"]

Measure = Callable[[], Throughput]
T = TypeVar("T")


def run_demo(
    settings: Settings, out: Path, *, measure: Measure | None = None, say: Callable[[str], None] = print
) -> Path:
    """Run the demo into the folder `out` and return the report's path.

    `measure` gives the throughput figures; without it the report leaves them out. A demo that was stopped goes on where it
    was: data, trained models and finished tasks are kept in `out`, and done again only where the settings have changed.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, float] = {}
    tasks = tuple(_task(settings, name, out, stages, say) for name in settings.tasks)
    throughput = None
    if measure is not None:
        say("throughput against a loop as published, and against plain PyTorch")
        throughput = _timed(stages, "throughput", measure)
    circumstances = Circumstances(
        commit=_commit(),
        device=_device(),
        cores=usable_cores(),
        torch_threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), **_versions("sgp-fast", "torch", "gymnasium", "mujoco")},
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        config=settings.name,
        stage_seconds=stages,
    )
    results = Results(circumstances, tasks, throughput)
    results.save(out / "results")
    report = write_report(results, out / "report.html")
    say(table(results, report, time.perf_counter() - began))
    return report


def table(results: Results, report: Path, seconds: float) -> str:
    """What to remember: a line a method, and where the report is."""
    lines = [""]
    for task in results.tasks:
        title = f"{task.env_id}, {task.dataset.name}"
        lines.append(f"{title:<44}{'return':>8}   {'95% interval':<18}{'score':>6}{'steps':>7}{'ms/action':>11}")
        for method in task.methods:
            low, high = method.interval
            score = "" if method.normalized is None else f"{method.normalized:.1f}"
            cost = "" if method.milliseconds is None else f"{method.milliseconds:.2f}"
            lines.append(
                f"  {method.label:<42}{method.mean:>8.0f}   {f'[{low:.0f}, {high:.0f}]':<18}{score:>6}"
                f"{float(np.mean(method.lengths)):>7.0f}{cost:>11}"
            )
    for row in results.throughput.rows if results.throughput else ():
        speed = row.note if row.plans_per_second is None else f"{row.plans_per_second:,.1f} plans/s"
        lines.append(f"  {f'{row.label}, {row.problems} problem' + 's' * (row.problems > 1):<48}{speed:>18}")
        if spread := wide_spread(row.p20_seconds, row.p80_seconds):
            lines.append(f"    times spread {spread}: {DISTURBED}")
    lines.append(f"\n{seconds:.0f} s in all. The report: {report}")
    return "\n".join(lines)


def _task(settings: Settings, name: str, out: Path, stages: dict[str, float], say: Callable[[str], None]) -> TaskResults:
    """Everything about one task; taken from the folder where it was finished with the same settings."""
    task, _, quality = name.partition("-")
    kept, mark = out / "tasks" / name, out / "tasks" / name / "settings.json"
    wanted = json.dumps(settings.to_dict(), sort_keys=True)
    if mark.is_file() and mark.read_bytes() == wanted.encode():
        try:
            before = Results.load(kept)
        except (OSError, ValueError):
            say(f"{name}: finished before, but {kept} cannot be read; its episodes are run again")
        else:
            say(f"{name}: finished before, kept in {kept}")
            stages.update(before.circumstances.stage_seconds)
            return before.tasks[0]

    own: dict[str, float] = {}
    path = out / "data" / f"{name}-{settings.transitions}-seed{settings.seed}.hdf5"
    get_data = partial(read_or_make, task, quality, settings.transitions, settings.seed, path, say=say)
    data = _timed(own, f"{name}: data", get_data)
    say(f"{name}: training dynamics, score and cost")
    models = _timed(own, f"{name}: training", lambda: train(data, settings.train, out / "runs" / name))
    problem = planning_problem(models)

    env_id = snapshots(task)["env"]
    planner = settings.planner_of(name)
    run_all = partial(run_methods, settings, name, env_id, problem, say)
    methods, frames, missing = _timed(own, f"{name}: episodes", run_all)
    look = partial(look_inside, settings.inside, env_id, data, problem, planner, settings.seed)
    telemetry, open_loop = _timed(own, f"{name}: plans from inside", look)
    result = TaskResults(
        env_id=env_id,
        dataset=DatasetSummary(
            data.name, len(data), len(data.lengths), float(data.returns.mean()), float(data.returns.std())
        ),
        episode_steps=settings.evaluation.steps,
        methods=tuple(methods),
        training=_curves(models.info),
        telemetry=tuple(telemetry),
        open_loop=tuple(open_loop),
        frames=tuple(frames),
        missing={} if missing is None else {"frames": missing},
    )
    about = Circumstances(_commit(), _device(), usable_cores(), torch.get_num_threads(), {}, "", settings.name, own)
    Results(about, (result,)).save(kept)
    with atomic_path(mark) as temporary:
        temporary.write_text(wanted)
    stages.update(own)
    return result


def planning_problem(models: Models) -> Problem:
    """The trained models as a problem, controls bounded as in the data's environment."""
    bounds = models.info["action_range"]
    limits = (np.array(bounds["low"]), np.array(bounds["high"]))
    return Problem(dynamics=models.dynamics, cost=models.cost, score=models.score, bounds=limits)


def _curves(info: dict[str, Any]) -> tuple[TrainingCurve, ...]:
    """The losses of each network; none where the models were trained before these were kept with them."""
    curves = []
    for network, h in info.get("history", {}).items():
        validation = [np.nan if v is None else v for v in h["validation"]]
        seconds = info["networks"][network]["seconds"]
        curves.append(TrainingCurve(network, h["step"], h["train"], np.array(validation, float), seconds))
    return tuple(curves)


def _timed(stages: dict[str, float], name: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    out = work()
    stages[name] = time.perf_counter() - began
    return out


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The checkout's commit; None where the package is installed without one."""
    here = Path(__file__).parent
    try:
        out = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip()


def _device() -> str:
    return cpu_model()
