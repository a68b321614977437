"""Where `quality` takes place: what is measured, on which tasks, and with which models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import sgp_fast as sgp
from sgp_fast.data import QUALITIES, TASKS
from sgp_fast.data.actors import snapshots
from sgp_fast.demo import planning_problem, read_settings
from sgp_fast.demo import settings as demo_settings
from sgp_fast.policies import BehaviorPolicy
from sgp_fast.problem import Problem
from sgp_fast.trained import MODELS_FILE

from .contenders import Budgets

DEFAULT_TASKS = ("hopper-medium", "halfcheetah-medium", "walker2d-medium")
LONGEST = 1000  # steps, after which the environments themselves end an episode
WARM = 3  # calls that are not timed: the first plan, the second, which may capture a graph, and one more
CALLS = 30  # calls that are
QUICK_EPISODES, QUICK_STEPS = 3, 50
QUICK_BUDGETS = Budgets(iterations=(1, 15), samples=(32, 128))


@dataclass(frozen=True)
class Settings:
    """What is measured, checked when it is made.

    runs   trained runs to use in place of those trained here, by task
    only   texts, of which a contender's name is to contain one; none: all contenders
    """

    folder: Path
    tasks: tuple[str, ...] = DEFAULT_TASKS
    episodes: int = 10
    steps: int = 300
    seed: int = 100
    runs: Mapping[str, Path] = field(default_factory=dict)
    demo: demo_settings.Settings = field(default_factory=lambda: read_settings("demo"))
    budgets: Budgets = Budgets()
    quick: bool = False
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = [f"{task}-{quality}" for task in TASKS for quality in QUALITIES]
        for task in (*self.tasks, *self.runs):
            if task not in known:
                raise ValueError(f"tasks has {task!r}; expected some of {', '.join(known)}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks is {', '.join(self.tasks) or 'empty'}; expected at least one, and each once")
        if idle := [task for task in self.runs if task not in self.tasks]:
            raise ValueError(f"runs has one for {idle[0]}, which is not among tasks {', '.join(self.tasks)}; add it there")
        for task, run in self.runs.items():
            file = run / MODELS_FILE if run.is_dir() else run
            if not file.is_file():
                raise FileNotFoundError(f"runs: {file} of {task} does not exist; train it: sgp-fast train {task} {run}")
            info, env_id = sgp.load_models(run).info, _env_of(task)
            if info.get("env_id") != env_id or "action_range" not in info:
                trained = info.get("env_id") or "an environment that they do not name"
                raise ValueError(f"runs: the models in {run} are of {trained}; {task} is played in {env_id}")
        if self.folder.is_file():
            raise NotADirectoryError(f"folder is {self.folder}, a file; give a folder for the models, there or not")
        if self.episodes < 2:
            raise ValueError(f"episodes is {self.episodes}; an interval needs at least 2, a conclusion at least 10")
        if not 1 <= self.steps <= LONGEST:
            raise ValueError(f"steps is {self.steps}; expected 1 to {LONGEST}, where the environments end an episode")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.episodes))

    def smaller(self) -> Settings:
        """For trying out: small networks, few episodes and budgets. What comes of it says nothing about quality."""
        train = replace(self.demo.train, width=64, hidden_layers=2, steps=500)
        return replace(
            self, quick=True, demo=replace(self.demo, transitions=10_000, train=train), budgets=QUICK_BUDGETS,
            episodes=min(self.episodes, QUICK_EPISODES), steps=min(self.steps, QUICK_STEPS),
        )  # fmt: skip

    def to_header(self) -> dict[str, Any]:
        """What two runs must share for their rows to stand in one file; the tasks need not be the same."""
        train, planner = self.demo.train, self.demo.planner
        return {
            "quick": self.quick, "episodes": self.episodes, "steps": self.steps, "seed": self.seed,
            "transitions": self.demo.transitions, "networks": f"{train.hidden_layers}×{train.width}",
            "training_steps": train.steps, "horizon": planner.horizon, "iterations": planner.iterations,
            "step_size": planner.step_size, "beta": planner.beta,
            "runs": {task: _digest(run) for task, run in sorted(self.runs.items())},
        }  # fmt: skip


@dataclass(eq=False)
class Arena:
    """A task to play in: its environment, the problem on each device, and observations to time an action on.

    `train` comes first. The rest is made when it is first asked for, and kept.
    """

    settings: Settings
    task: str
    say: Callable[[str], None] = print
    progress: bool = False
    _problems: dict[str, Problem] = field(default_factory=dict, repr=False)

    @property
    def env_id(self) -> str:
        return _env_of(self.task)

    @property
    def run(self) -> Path:
        """Where the trained models are."""
        own = self.settings.folder / (self.task + "-quick" * self.settings.quick)
        return self.settings.runs.get(self.task, own)

    def train(self) -> None:
        """Train models where there are none yet; an unfinished run goes on, a finished one is checked to be of this size."""
        if self.task in self.settings.runs:
            return
        demo = self.settings.demo
        data = sgp.load_dataset(self.task, transitions=demo.transitions, seed=demo.seed)
        if not (self.run / MODELS_FILE).is_file():
            self.say(f"{self.task}: training dynamics, score and cost, kept in {self.run}")
        sgp.train(data, demo.train, self.run, progress=self.progress)

    def problem(self, device: str) -> Problem:
        if device not in self._problems:
            self._problems[device] = planning_problem(sgp.load_models(self.run, device))
        return self._problems[device]

    @cached_property
    def observations(self) -> np.ndarray:
        """`[WARM + CALLS, nx]` of an episode of the behaviour policy, from its start again where it is shorter."""
        name, _, quality = self.task.partition("-")
        policy, count = BehaviorPolicy(name, quality, 1, self.settings.seed), WARM + CALLS
        found = sgp.evaluate(policy, self.env_id, episodes=1, steps=count, seeds=self.settings.seed, record=True)
        seen = found.trajectories[0].observations
        return seen[np.arange(count) % len(seen)]


def _env_of(task: str) -> str:
    return snapshots(task.partition("-")[0])["env"]


def _digest(run: Path) -> str:
    """Which models these are, wherever they lie."""
    file = run / MODELS_FILE if run.is_dir() else run
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
