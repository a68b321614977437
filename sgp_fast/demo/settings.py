"""What a demo runs: read from a committed file, so that what was tuned can be seen."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import QUALITIES, TASKS
from ..planner import SGP
from ..sampling import CEM
from ..training import TrainConfig

FOLDER = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Episodes:
    """Closed loop: every method runs the same seeds for at most `steps` steps."""

    episodes: int
    steps: int
    first_seed: int


@dataclass(frozen=True)
class Inside:
    """Plans from `starts` states of the data; `executed_after` those iterations in the simulator too, the last being all."""

    starts: int
    executed_after: tuple[int, ...]
    shown: int


@dataclass(frozen=True)
class Settings:
    """A demo: tasks such as "hopper-medium", all of one size; `planners` holds the settings of tasks that have their own."""

    name: str
    tasks: tuple[str, ...]
    transitions: int
    seed: int
    train: TrainConfig
    planner: SGP
    planners: dict[str, SGP]
    sampling: CEM
    evaluation: Episodes
    inside: Inside

    def planner_of(self, task: str) -> SGP:
        return self.planners.get(task, self.planner)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def read_settings(source: str | Path) -> Settings:
    """The settings "demo" or "full" that the package carries, or those of a .toml file; ValueError names what is wrong."""
    path = FOLDER / f"{source}.toml" if source in ("demo", "full") else Path(source)
    data = tomllib.loads(path.read_text())
    inside = data["inside"]
    try:
        planner = SGP(**data["planner"])
        settings = Settings(
            name=path.name,
            tasks=tuple(data["tasks"]),
            transitions=data["transitions"],
            seed=data["seed"],
            train=TrainConfig(**data["train"], seed=data["seed"]),
            planner=planner,
            planners={name: dataclasses.replace(planner, **own) for name, own in data.get("planners", {}).items()},
            sampling=CEM(**data["sampling"]),
            evaluation=Episodes(**data["evaluation"]),
            inside=Inside(inside["starts"], tuple(inside["executed_after"]), inside["shown"]),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}; compare it with {FOLDER / 'demo.toml'}") from None
    for name in settings.tasks:
        task, _, quality = name.partition("-")
        if task not in TASKS or quality not in QUALITIES:
            known = f"{', '.join(TASKS)} and {', '.join(QUALITIES)}"
            raise ValueError(f"{path}: tasks has {name!r}; expected TASK-QUALITY of {known}")
        if settings.inside.executed_after[-1] != settings.planner_of(name).iterations:
            raise ValueError(f"{path}: inside.executed_after must end with planner.iterations of {name}")
    return settings
