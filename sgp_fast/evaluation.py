"""Closed loop: a controller in a gymnasium environment, over several episodes at once, and what came of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ._episodes import Array, Controller, Trajectory, check_fits, env_name, quiet, run_episodes, vector_of
from ._intervals import t_interval
from ._optional import require
from ._progress import progress_bar

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Controller", "Evaluation", "Trajectory", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Returns of a controller, one entry an episode, and what planning cost.

    env          the environment's id
    steps        the limit that was set on an episode's length; None: the environment's own
    seeds        `[episodes]`
    returns      undiscounted sums of rewards `[episodes]`
    lengths      steps `[episodes]`
    terminated   whether the episode ended by itself rather than by a limit `[episodes]`
    normalized   D4RL's scores in percent `[episodes]`; None where there is no reference
    approximate  whether the scores are so: references of another version of the environment, or episodes cut short
    act_seconds  duration of each call of the controller
    plans        how many plans those calls made, active environments only
    seconds      wall time in all, simulation included
    trajectories of the episodes that were recorded
    """

    env: str
    steps: int | None
    seeds: tuple[int, ...]
    returns: Array
    lengths: Array
    terminated: Array
    normalized: Array | None
    approximate: bool
    act_seconds: Array
    plans: int
    seconds: float
    trajectories: tuple[Trajectory, ...] = field(default=(), repr=False)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean return, Student's t over episodes; infinite for a single episode."""
        return t_interval(self.returns)

    @property
    def seconds_per_plan(self) -> float:
        """Planning time, divided by the plans made."""
        return float(self.act_seconds.sum()) / self.plans

    def to_json(self) -> str:
        """Everything but the trajectories, as JSON; a bound that is infinite is null."""
        out: dict[str, Any] = {"env": self.env, "episodes": len(self.returns), "steps": self.steps}
        out["seeds"] = list(self.seeds)
        for name in ("returns", "lengths", "terminated"):
            out[name] = getattr(self, name).tolist()
        out["return"] = _summary(self.returns)
        out["normalized_score"] = None
        if self.normalized is not None:
            out["normalized_score"] = _summary(self.normalized) | {"approximate": self.approximate}
        p20, p50, p80 = np.quantile(self.act_seconds, (0.2, 0.5, 0.8)).tolist()
        out["planning"] = {
            "calls": len(self.act_seconds),
            "plans": self.plans,
            "seconds": float(self.act_seconds.sum()),
            "seconds_per_step": {"mean": float(self.act_seconds.mean()), "p20": p20, "p50": p50, "p80": p80},
            "seconds_per_plan": self.seconds_per_plan,
        }
        out["seconds"] = self.seconds
        return json.dumps(out, indent=2)

    def table(self) -> str:
        """The same for people, one fact a line."""
        ended = int(self.terminated.sum())
        spread = f"from {self.returns.min():.1f} to {self.returns.max():.1f}"
        lines = [
            ("environment", self.env + (f", at most {self.steps} steps an episode" if self.steps else "")),
            ("episodes", f"{len(self.returns)}, seeds {_seeds(self.seeds)}"),
            ("return", f"{self.mean:.1f}  {_bracket(self.interval)}, {spread}"),
        ]
        if self.normalized is not None:
            note = " (approximate)" if self.approximate else ""
            interval = _bracket(t_interval(self.normalized))
            lines.append(("normalised score", f"{self.normalized.mean():.1f}  {interval}{note}"))
        p20, p50, p80 = (1e3 * np.quantile(self.act_seconds, (0.2, 0.5, 0.8))).tolist()
        lines += [
            ("length", f"{self.lengths.mean():.1f} steps, {ended} of {len(self.returns)} episodes ended by themselves"),
            ("planning", f"{p50:.1f} ms a step of all environments (p20 {p20:.1f}, p80 {p80:.1f})"),
            ("", f"{1e3 * self.seconds_per_plan:.2f} ms a plan, {self.plans:,} plans"),
            ("wall time", f"{self.seconds:.1f} s"),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def evaluate(
    controller: Controller,
    env: str | Callable[[], gymnasium.Env] = "Hopper-v5",
    *,
    episodes: int = 10,
    steps: int | None = None,
    seeds: int | Sequence[int] = 0,
    record: bool | Sequence[int] = False,
    progress: bool | str = False,
) -> Evaluation:
    """Run `episodes` episodes of a controller, as many at once as its `batch_size`, in a gymnasium vector environment.

        evaluation = sgp.evaluate(sgp.MPC(problem, planner, batch_size=10), "Hopper-v5", episodes=10, seeds=100)
        print(evaluation.table())

    env       an environment id, or a function that makes one; observations and actions must be vectors
    steps     a limit on an episode's length, beside the environment's own
    seeds     of the environments, one an episode, or the first of a row
    record    keep trajectories: True for all episodes, or the numbers of some
    progress  show a bar; a text is its title, and such a bar is gone at the end

    An episode ends when the environment terminates or truncates it, or at `steps`; what its environment does afterwards is
    not counted, and the controller is told that it is no longer active. Raises ValueError for an environment of other sizes
    than the controller's problem, before any episode, and for actions outside the environment's bounds or not finite, naming
    the episode; ImportError without gymnasium.
    """
    began = time.perf_counter()
    gym = require("gymnasium", extra="mujoco")
    seeds = check_counts(episodes, steps, seeds)
    wanted = set(range(episodes)) if record is True else set(record or ())
    if not wanted <= set(range(episodes)):
        raise ValueError(f"record names episode {max(wanted)}; there are 0 to {episodes - 1}")

    width = min(controller.batch_size, episodes)
    with quiet(), vector_of(gym, env, width) as vector:
        name = env_name(vector)
        check_fits(name, vector.single_observation_space, vector.single_action_space, controller)
        bar = _bar(episodes, progress) if progress else None
        chunks = [range(first, min(first + width, episodes)) for first in range(0, episodes, width)]
        try:
            parts = [run_episodes(controller, vector, chunk, seeds, steps, wanted, bar) for chunk in chunks]
        finally:
            if bar is not None:
                bar.close()

    def all_of(field: str) -> Array:
        return np.concatenate([getattr(part, field) for part in parts])

    returns = all_of("returns")
    normalized, approximate = _normalized(name, returns)
    return Evaluation(
        env=name,
        steps=steps,
        seeds=seeds,
        returns=returns,
        lengths=all_of("lengths"),
        terminated=all_of("terminated"),
        normalized=normalized,
        approximate=approximate or not bool(all_of("whole").all()),
        act_seconds=all_of("act_seconds"),
        plans=sum(part.plans for part in parts),
        seconds=time.perf_counter() - began,
        trajectories=tuple(trajectory for part in parts for trajectory in part.trajectories),
    )


def check_counts(episodes: int, steps: int | None, seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seed of each episode. Raises ValueError for counts below 1, negative seeds, or not one an episode."""
    for name, count in (("episodes", episodes), ("steps", steps)):
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; expected at least 1")
    found = tuple(map(int, range(seeds, seeds + episodes) if isinstance(seeds, int) else seeds))
    if len(found) != episodes:
        raise ValueError(f"seeds has {len(found)} entries for episodes={episodes}; give one an episode, or the first one")
    if min(found) < 0:
        raise ValueError(f"seed is {min(found)}; expected 0 or more")
    return found


def _bar(episodes: int, progress: bool | str) -> Any:
    """Looks at the clock at every update (`miniters`), for episodes that end together would leave it still until they do."""
    title = progress if isinstance(progress, str) else None
    options = {"desc": title, "unit": "episode", "leave": title is None, "miniters": 0, "dynamic_ncols": True}
    return progress_bar("train", total=episodes, **options)


def _normalized(env: str, returns: Array) -> tuple[Array | None, bool]:
    from .data.scores import normalized_score, reference_score

    if reference_score(env) is None:
        return None, False
    score = normalized_score(env, returns)
    return score.score, score.approximate


def _summary(values: Array) -> dict[str, Any]:
    low, high = t_interval(values)
    finite = math.isfinite(low)
    return {
        "mean": float(values.mean()),
        "interval_95": [low, high] if finite else [None, None],
        "std": float(values.std(ddof=1)) if finite else None,
        "method": "Student's t over episodes",
    }


def _bracket(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"[{low:.1f}, {high:.1f}]" if math.isfinite(low) else "[one episode: no interval]"


def _seeds(seeds: tuple[int, ...]) -> str:
    run = seeds == tuple(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}–{seeds[-1]}" if run and len(seeds) > 1 else ", ".join(map(str, seeds))
