"""`sgp-fast train | plan | evaluate`: the functions behind the commands, typed so that the command line is made of them."""

from __future__ import annotations

import dataclasses
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from ._episodes import check_spaces, make_env
from ._files import atomic_path
from ._optional import require
from .evaluation import check_counts, evaluate
from .mpc import MPC
from .planner import SGP
from .problem import Problem
from .streaming import plan_file
from .trained import MODELS_FILE, Models, load_models
from .training import TrainConfig
from .training.run import CHECKPOINTS

# Tuned in closed loop on hopper-medium and halfcheetah-medium; other data may want another weight of the score.
DEFAULT = SGP(horizon=8, iterations=15, step_size=0.1, beta=1.0)


def train_command(data: str, out: Path, config: TrainConfig = TrainConfig(), resume: bool = True) -> None:  # noqa: B008
    """Train dynamics, score and cost on a data set; a run that was killed goes on where it left off.

    Args:
        data: A file, a Minari id, or a name such as hopper-medium.
        out: The folder of the run.
        config: What to train, and how.
        resume: Go on with what is in the folder; --no-resume deletes it and starts anew.
    """
    from .training.commands import train_command as train

    train(data, out, config, resume)


def plan_command(
    run: Path,
    starts: Path,
    out: Path,
    planner: SGP = DEFAULT,
    config: Path | None = None,
    chunk: int = 1024,
    seed: int = 0,
    backend: str = "auto",
    states: bool = False,
    resume: bool = True,
) -> None:
    """Plan from every start state of a file; a run that was killed goes on where it left off.

    Args:
        run: The folder of a training run, or its models.safetensors.
        starts: The start states, .npy, .npz (key x0) or .parquet (list column x0, or one column a feature).
        out: Where to write the plans, .npz or .parquet.
        planner: Settings of the planner.
        config: A .toml or .json file with settings of the planner; options --planner.* come before it.
        chunk: Problems planned at once, and so what a kill can lose.
        seed: Of the random starts.
        backend: auto, or one of those that `sgp-fast doctor` names.
        states: Write the states that the plans foresee, too.
        resume: Go on with what is there; --no-resume replaces it.
    """
    models = models_of(run)
    problem = problem_of(models, trained_bounds(models))
    done = plan_file(
        problem, planner, starts, out, chunk=chunk, seed=seed, backend=backend, states=states, resume=resume, progress=True
    )
    before = f", {done.resumed:,} of them before this run" if done.resumed else ""
    ends = f"{done.converged:,} converged, {done.limit:,} at the limit of iterations, {done.diverged:,} diverged"
    print(f"{done.out}: {done.count:,} plans{before}; {ends}")


def evaluate_command(
    run: Path,
    env: str | None = None,
    planner: SGP = DEFAULT,
    config: Path | None = None,
    episodes: int = 10,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    backend: str = "auto",
    out: Path | None = None,
) -> None:
    """Control an environment by planning at every step; print returns with intervals, and write them as JSON.

    Args:
        run: The folder of a training run, or its models.safetensors.
        env: A gymnasium id such as Hopper-v5; by default the environment of the training data.
        planner: Settings of the planner.
        config: A .toml or .json file with settings of the planner; options --planner.* come before it.
        episodes: How many.
        steps: Limit of an episode's length, beside the environment's own.
        seed: Of the first episode's environment, the others following on; also of the planner's random starts.
        batch_size: Episodes at once; by default all of them.
        backend: auto, or one of those that `sgp-fast doctor` names.
        out: The JSON file; by default evaluation-ENV.json in the folder of the run.
    """
    gym = require("gymnasium", extra="mujoco")
    check_counts(episodes, steps, seed)
    batch_size = episodes if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    models = models_of(run)
    env = env or models.info.get("env_id")
    if not env:
        raise ValueError(f"{run} does not say which environment its data are of; give one, for example --env Hopper-v5")
    env, bounds = _suited(models, gym, env)
    controller = MPC(problem_of(models, bounds), planner, batch_size, backend=backend, seed=seed)
    evaluation = evaluate(controller, env, episodes=episodes, steps=steps, seeds=seed, progress=True)
    print(evaluation.table())
    home = run if run.is_dir() else run.parent
    out = out or home / f"evaluation-{env.replace('/', '-')}.json"
    plan = controller.plan
    about: dict[str, Any] = {"run": str(run), "planner": dataclasses.asdict(planner)}
    about["backend"] = None if plan is None else plan.stats["backend"]
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(about | json.loads(evaluation.to_json()), indent=2) + "\n")
    print(f"written to {out}")


def read_settings(path: Path) -> SGP:
    """The planner that a .toml or .json file describes: the fields of `SGP`, at the top or under `planner`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a .toml or .json file with settings of the planner")
    try:
        data: Any = tomllib.loads(path.read_text()) if path.suffix == ".toml" else json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); expected TOML, or JSON, by its suffix") from None
    data = data.get("planner", data) if isinstance(data, dict) else data
    known = {f.name for f in dataclasses.fields(SGP)}
    if not isinstance(data, dict) or not set(data) <= known:
        unknown = ", ".join(sorted(set(data) - known)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path}: {unknown} is no setting of the planner; expected {', '.join(sorted(known))}")
    return dataclasses.replace(DEFAULT, **data)


def models_of(run: Path) -> Models:
    """The models of a run of training; where there are none, what `run` is instead, and what to do about it."""
    remedy = f"train one: sgp-fast train DATA {run}"
    if run.is_dir() and not (run / MODELS_FILE).is_file():
        if (run / CHECKPOINTS).is_dir():
            raise FileNotFoundError(f"{run}: training is unfinished; run train again, with the data that it began with")
        raise FileNotFoundError(f"{run} holds no {MODELS_FILE}, so no run of training; {remedy}")
    if not run.exists():
        raise FileNotFoundError(f"{run} does not exist; {remedy if run.suffix != '.safetensors' else 'train one'}")
    if run.is_file() and run.suffix != ".safetensors":
        raise ValueError(f"{run} is no run of training; expected its folder, or its {MODELS_FILE}")
    return load_models(run)


def _suited(models: Models, gym: Any, env: str) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    """The full name of an environment that the models can be of, and its action bounds; ValueError for any other.

    That it is not the one of the training data is worth a warning, for it may be on purpose: Hopper-v4 for Hopper-v5.
    """
    made = make_env(gym, env)
    try:
        observation, action = made.observation_space, made.action_space
        env = made.spec.id
    finally:
        made.close()
    check_spaces(gym, env, observation, action)
    trained = models.info.get("env_id")
    (nx,), (nu,) = observation.shape, action.shape
    if (nx, nu) != (models.dynamics.nx, models.dynamics.nu):
        raise ValueError(
            f"{env} has {nx} observations and {nu} actions; the models have {models.dynamics.nx} and {models.dynamics.nu}"
            + (f", of {trained}: give --env {trained}" if trained and trained != env else ": give the one of their data")
        )
    if trained and trained != env:
        print(f"sgp-fast: warning: the models were trained on data of {trained}, not of {env}", file=sys.stderr)
    return env, (np.asarray(action.low), np.asarray(action.high))


def problem_of(models: Models, bounds: tuple[np.ndarray, np.ndarray]) -> Problem:
    """What a run's models plan under these limits of the actions."""
    return Problem(dynamics=models.dynamics, cost=models.cost, score=models.score, bounds=bounds)


def trained_bounds(models: Models) -> tuple[np.ndarray, np.ndarray]:
    """The action bounds of the training data's environment; where it was not known, the range of the actions in the data."""
    known = models.info.get("action_range")
    if known is None:
        raise ValueError("the models do not say which actions their data hold (info['action_range']); train with sgp.train")
    return np.asarray(known["low"]), np.asarray(known["high"])
