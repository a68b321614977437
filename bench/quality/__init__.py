"""`sgp-fast bench quality`: what controllers earn in closed loop, by backend and dtype, and by how much they may compute.

Every controller runs the same episodes: environments seeded `seed`, `seed + 1`, …, all at once, for at most `steps` steps.
The default seeds, from 100, are none of those on which the demo's settings were tuned (5000 and on) or on which the demo is
evaluated (0 to 9). The models of a task are trained once, as the demo trains them, and kept.

Milliseconds per action are what one robot would wait for: the median time of `act` for one environment alone, along recorded
observations, from an observation on the host to an action on the host; the first calls, which compile, tune and capture, are
not counted. The returns come from runs of all episodes at once, whose plans are the same but for rounding; a plan there
costs less, and that is not what is reported. Returns are normalised by D4RL's references, which are of whole episodes of
1,000 steps in an older version of the environments: they compare lines of one table, and are no scores for a leaderboard.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sgp_fast as sgp
from sgp_fast._optional import require
from sgp_fast.evaluation import Controller

from ..records import Writer, header
from ..rows import ReturnRow
from .arena import DEFAULT_TASKS, WARM, Arena, Settings
from .contenders import Contender, contenders, told
from .returns import table, verdict

COMMAND = "bench quality"

Key = tuple[str, str, str, str, str, str]


def quality(
    settings: Settings,
    done: Collection[Key] = (),
    minutes: float = math.inf,
    say: Callable[[str], None] = print,
    progress: bool = False,
) -> Iterator[ReturnRow]:
    """A row for each controller of each task, as soon as it is there, but for those in `done` (their `key_of`).

    minutes   no row is begun that is not likely to be finished by then; it is left out, and said to be
    progress  show bars of training, and within a row

    Models that are not there are trained first, all of them, which does not count against the minutes.
    """
    arenas = {task: Arena(settings, task, say, progress) for task in settings.tasks}
    pending = [(row, contender) for row, contender in entries(settings) if key_of(row) not in done]
    for task in dict.fromkeys(row.task for row, _ in pending if row.reason is None):
        arenas[task].train()
    deadline = time.monotonic() + 60 * minutes
    for row, contender in pending:
        played = row if row.reason is not None else play(arenas[row.task], contender, row, deadline)
        if played is not None:
            yield played


def entries(settings: Settings) -> list[tuple[ReturnRow, Contender]]:
    """All that is to be measured, as rows without returns: group by group, and each controller on all tasks in turn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def of(task: str) -> list[tuple[ReturnRow, Contender]]:
        who = list(contenders(task, settings.demo.planner_of(task), settings.budgets, device))
        for text in settings.only:
            if not any(text in contender.name for contender in who):
                raise ValueError(f"only has {text!r}, which is in none of: {'; '.join(c.name for c in who)}")
        chosen = [c for c in who if not settings.only or any(text in c.name for text in settings.only)]
        return [(_blank(settings, task, contender), contender) for contender in chosen]

    return [entry for entries_of_one in zip(*map(of, settings.tasks), strict=True) for entry in entries_of_one]


def play(arena: Arena, contender: Contender, row: ReturnRow, deadline: float) -> ReturnRow | None:
    """The row with returns and price, or with the reason why there are none; None where the time is too short."""
    if time.monotonic() >= deadline:
        return None
    settings, observations = arena.settings, arena.observations
    problem, batch = arena.problem(contender.device), settings.episodes
    title = f"{arena.task}: {told(contender)}" if arena.progress else ""
    try:
        price = _median_act(contender.make(problem, 1, settings.seed), observations, title) if contender.plans else None
        controller = contender.make(problem, batch, settings.seed)
        step = _median_act(controller, observations[: WARM + 1], title)
    except (ImportError, ValueError, RuntimeError) as error:  # a backend that does not cover these models, or has no memory
        return replace(row, reason=" ".join(str(error).split()) or type(error).__name__)
    if time.monotonic() + step * settings.steps > deadline:
        arena.say(f"{arena.task}: {contender.name} is left out, it may take {step * settings.steps:.0f} s")
        return None
    found = sgp.evaluate(
        controller, arena.env_id, episodes=batch, steps=settings.steps, seeds=settings.seeds, progress=title
    )
    return replace(
        row,
        returns=tuple(found.returns.tolist()),
        normalized=() if found.normalized is None else tuple(found.normalized.tolist()),
        milliseconds=None if price is None else 1e3 * price,
    )


def key_of(row: ReturnRow) -> Key:
    """What a row is about; a file holds one of each."""
    return row.task, row.group, row.planner, row.setting, row.backend, row.precision


def quality_command(
    out: Path,
    tasks: tuple[str, ...] = DEFAULT_TASKS,
    episodes: int = 10,
    steps: int = 300,
    seed: int = 100,
    folder: Path | None = None,
    runs: tuple[str, ...] = (),
    quick: bool = False,
    only: tuple[str, ...] = (),
    minutes: float | None = None,
    resume: bool = True,
) -> None:
    """Closed-loop returns by backend and dtype, and by budget; a run that was killed goes on where it left off.

    Args:
        out: Where the rows are recorded, a file of JSON lines.
        tasks: TASK-QUALITY of the data made here, such as hopper-medium.
        episodes: How many for each controller, at least 2; the same seeds for all.
        steps: Limit of an episode's length, at most 1000.
        seed: Of the first episode's environment, the others following on; also of the planners' random numbers.
        folder: Where models are trained, a folder for each task; by default beside the data sets made here.
        runs: Runs of training to use instead, as TASK=FOLDER.
        quick: A small size for trying out, of which the file says so: small networks, at most 3 episodes of 50 steps.
        only: The contenders with one of these in their names, such as "data" or "budget: SGP, 15 iterations"; else all.
        minutes: Begin no row that is not likely to be finished by then; training, which comes first, is not counted.
        resume: Go on with what is in the file; --no-resume refuses a file that exists.
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes is {minutes}; expected a positive number, or none for no limit")
    settings = Settings(
        folder=folder or _home() / "runs" / "quality", tasks=tuple(tasks), episodes=episodes, steps=steps, seed=seed,
        runs=dict(map(_run, runs)), only=tuple(only),
    )  # fmt: skip
    settings = settings.smaller() if quick else settings
    expected = entries(settings)
    for library in ("gymnasium", "mujoco"):
        require(library, extra="mujoco")
    writer = _writer(out, settings, resume)
    rows = [row for row in writer.done if isinstance(row, ReturnRow) and row.task in settings.tasks]
    done = {key_of(row) for row in rows}
    for row in quality(settings, done, math.inf if minutes is None else minutes, progress=True):
        writer.add(row)
        rows.append(row)
        earned = f"return {np.mean(row.returns):.0f}" if row.returns else row.reason
        print(f"{row.task}: {told(row)}: {earned}", flush=True)
    print("", table(rows), "", *verdict(rows), sep="\n")
    if left := len({key_of(row) for row, _ in expected} - {key_of(row) for row in rows}):
        print(f"\n{left} rows are left for another time: the same command goes on with them.")
    print(f"\nwritten to {out}")


def _writer(out: Path, settings: Settings, resume: bool) -> Writer:
    """The file, new or to be gone on with; ValueError where its rows were measured otherwise."""
    head = header(COMMAND, **settings.to_header())
    before = _settings_in(out) if resume and out.is_file() else {}
    for name, value in json.loads(json.dumps(head["settings"])).items():
        if name in before and before[name] != value:
            was = f"{name} {before[name]}, not {value}"
            raise ValueError(f"{out} was begun with {was}; give another file, or remove it")
    return Writer(out, head, resume=resume)


def _settings_in(out: Path) -> dict[str, Any]:
    """The settings in a file's header; none where it is no file of results, which `Writer` says in its own words."""
    with out.open(encoding="utf-8") as file:
        try:
            return dict(json.loads(file.readline())["settings"])
        except (ValueError, KeyError, TypeError):
            return {}


def _blank(settings: Settings, task: str, contender: Contender) -> ReturnRow:
    return ReturnRow(
        task=task, group=contender.group, planner=contender.planner, setting=contender.setting, backend=contender.backend,
        precision=contender.precision, device=contender.device, seeds=settings.seeds, steps=settings.steps,
        reason=contender.reason,
    )  # fmt: skip


def _median_act(controller: Controller, observations: np.ndarray, title: str = "") -> float:
    """Median seconds of a step of all its environments, each of which sees the same; the first calls are not counted.

    `title`: of a bar, which is drawn outside of what is timed, once a second at most; none without.
    """
    active = np.ones(controller.batch_size, bool)
    seconds = []
    bar = partial(_bar, f"{title}, timed") if title else iter
    for obs in bar(observations):
        rows = np.tile(obs, (controller.batch_size, 1))
        began = time.perf_counter()
        controller.act(rows, active)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[WARM:]))


def _bar(title: str, of: np.ndarray) -> Any:
    tqdm = require("tqdm.auto", extra="train").tqdm
    return tqdm(of, desc=title, unit="action", leave=False, mininterval=1.0, dynamic_ncols=True)


def _run(text: str) -> tuple[str, Path]:
    task, equals, folder = text.partition("=")
    if not (task and equals and folder):
        raise ValueError(f"runs has {text!r}; expected TASK=FOLDER, for example hopper-medium=run/")
    return task, Path(folder)


def _home() -> Path:
    """The folder below which the data sets made here are kept, too."""
    return Path(os.environ.get("SGP_FAST_HOME") or Path.home() / ".cache" / "sgp_fast")
