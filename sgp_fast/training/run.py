"""`train`: a data set goes in, frozen models come out; with a folder, a run that can be killed and taken up again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._files import remove_parts
from .._version import __version__
from ..costs import LearnedCost
from ..models import Dynamics, Score
from ..trained import MODELS_FILE, Models, load_models
from .checkpoint import Record, check_identity, write_json
from .config import NETWORKS, TrainConfig
from .loop import fit, make_fabric
from .tasks import Split, Task, fold_output, make_tasks, reward_units, stream_seed
from .threads import worth_threads

if TYPE_CHECKING:
    from ..data import Dataset

HISTORY_FILE = "history.json"
CHECKPOINTS = "checkpoints"


def train(
    data: Dataset,
    config: TrainConfig | None = None,
    folder: str | os.PathLike[str] | None = None,
    *,
    resume: bool = True,
    progress: bool = True,
) -> Models:
    """Train dynamics, score and cost on a data set; return them frozen, on the CPU.

        models = sgp.train(data, sgp.training.TrainConfig(steps=2_000), folder="run/")

    data      transitions; `config.validation_fraction` of the episodes is kept apart for validation
    config    see `TrainConfig`; None is the default
    folder    keeps the run: `models.safetensors` (read by `load_models`), `history.json` (losses over the steps of each
              network), `tensorboard/` where tensorboard is installed, and `checkpoints/` while the run is unfinished
    resume    take up what is in the folder: a finished run is loaded, an unfinished one goes on and ends with the very
              weights of an uninterrupted run (same machine, same number of threads). False deletes it and starts anew
    progress  show a bar for each network, with its rate, the time left and the losses

    Networks that are narrow for their batch train with one thread of PyTorch, which is as fast and does not suffer from
    others on the machine; wide ones with those that are set (`sgp_fast.training.threads`).

    The weights returned are the averaged ones of the best evaluation (of the last without validation). `Models.info`
    says what was trained on and how: `dataset`, `env_id`, `fingerprint` and `transitions` of the data; `config`;
    `networks`, with the last and best losses of each, and their `history`; `action_range`; `seconds`; `device`, `threads`
    and `versions`.

    Raises ValueError where the folder holds a run of another configuration or of other data, where there are too few
    episodes to split or none as long as `rollout_horizon`; FloatingPointError where a loss is not finite.
    """
    if isinstance(data, (str, os.PathLike)):
        raise TypeError(f"data is a {type(data).__name__}; pass sgp.load_dataset({os.fspath(data)!r})")
    check_home(folder)
    config = config or TrainConfig()
    identity = {"dataset": data.name, "fingerprint": fingerprint(data), "config": config.identity()}
    home = None if folder is None else Path(folder)
    if home is not None:
        if not resume:
            _discard(home)
        elif (home / MODELS_FILE).is_file():
            try:
                models = load_models(home)
            except ValueError as error:
                raise ValueError(f"{error}, or pass resume=False (--no-resume) to train anew") from None
            check_identity(home / MODELS_FILE, _identity_of(models.info), identity)
            _mend_history(home, models)
            _clear(home)
            return models

    train_data, validation_data = _split(data, config)
    fabric = make_fabric(config)
    split = Split.of(train_data, config.rollout_horizon, fabric.device)
    held_out = None if validation_data is None else Split.of(validation_data, config.rollout_horizon, fabric.device)
    tasks = make_tasks(config, split, held_out)
    records: dict[str, Record] = {}
    for name in NETWORKS:
        path = None if home is None else home / CHECKPOINTS / f"{name}.safetensors"
        board = None if home is None else home / "tensorboard"
        best, records[name] = fit(
            name, tasks[name], config, fabric, path=path, identity=identity, tensorboard=board, progress=progress
        )
        tasks[name].model.network.load_state_dict(best.state_dict())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]

    info = {**_facts(data, train_data, validation_data), **identity, "config": config.to_dict()}
    info |= {"networks": {name: _summary(record) for name, record in records.items()}}
    info |= {"history": {name: record.history for name, record in records.items()}}
    info |= {"seconds": sum(record.seconds for record in records.values()), "device": str(fabric.device)}
    info |= {"threads": worth_threads(config, fabric.device), "versions": _versions()}
    models = _assemble(tasks, split, info)
    if home is not None:
        # In this order: where models are, the history is, and a run killed in between is taken up from its checkpoints.
        write_json(home / HISTORY_FILE, info["history"])
        models.save(home)
        _clear(home)
    return models


def check_home(folder: str | os.PathLike[str] | None) -> None:
    """Raise NotADirectoryError where the folder of a run is a file."""
    if folder is not None and Path(folder).is_file():
        raise NotADirectoryError(f"{os.fspath(folder)} is a file; give a folder for the run, which need not exist yet")


def fingerprint(data: Dataset) -> str:
    """A digest of the arrays that training reads; it tells data sets apart whatever they are called."""
    digest = hashlib.blake2b(digest_size=12)
    for name in ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts"):
        array = np.ascontiguousarray(getattr(data, name))
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def _split(data: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """Training and validation episodes; raises before any work where either cannot serve."""
    parts: tuple[Dataset, Dataset | None] = (data, None)
    if config.validation_fraction > 0:
        if len(data.episode_starts) < 2:
            raise ValueError(
                f"{data.name} has one episode, and validation needs one of its own; "
                "record more, or pass validation_fraction=0 to train without validation"
            )
        parts = data.split(1 - config.validation_fraction, seed=stream_seed(config.seed, "split"))
    for part, kind in zip(parts, ("training", "validation"), strict=True):
        if part is not None and len(part.windows(config.rollout_horizon)) == 0:
            raise ValueError(
                f"{data.name}: rollout_horizon is {config.rollout_horizon}, but the longest {kind} episode has "
                f"{part.lengths.max()} transitions; pass a smaller rollout_horizon, or another seed for another split"
            )
    return parts


def _assemble(tasks: dict[str, Task], split: Split, info: dict[str, Any]) -> Models:
    """The three models with their best weights, frozen, on the CPU."""
    dynamics, score, cost = (tasks[name].model.requires_grad_(False).eval() for name in NETWORKS)
    assert isinstance(dynamics, Dynamics) and isinstance(score, Score) and isinstance(cost, LearnedCost)
    fold_output(cost.network, *reward_units(split.reward))
    return Models(dynamics.cpu(), score.cpu(), cost.cpu(), info)


def _facts(data: Dataset, train_data: Dataset, validation_data: Dataset | None) -> dict[str, Any]:
    """What the data are, as plain JSON."""
    low, high = data.action_bounds or (data.actions.min(0), data.actions.max(0))
    bounds = "environment" if data.action_bounds else "data"
    return {
        "env_id": data.env_id,
        "transitions": len(data),
        "episodes": len(data.lengths),
        "mean_return": float(data.returns.mean()),
        "training_transitions": len(train_data),
        "validation_transitions": 0 if validation_data is None else len(validation_data),
        "action_range": {"low": low.tolist(), "high": high.tolist(), "source": bounds},
    }


def _summary(record: Record) -> dict[str, Any]:
    """Final and best losses of one network; the validation losses are in units of the data's spread."""
    history = record.history
    summary = {
        "steps": record.step,
        "best_step": record.best_step,
        "train_loss": history["train"][-1],
        "validation_loss": history["validation"][-1],
        "best_validation_loss": record.best_validation,
        "seconds": record.seconds,
    }
    return summary if record.by_level is None else {**summary, "validation_loss_by_level": record.by_level}


def _versions() -> dict[str, str]:
    fabric = metadata.version("lightning-fabric")
    python = platform.python_version()
    return {"sgp_fast": __version__, "torch": str(torch.__version__), "lightning_fabric": fabric, "python": python}


def _identity_of(info: dict[str, Any]) -> dict[str, Any] | None:
    """The identity of a finished run, from what its models say; None for models that were not trained here."""
    if not {"dataset", "fingerprint", "config"} <= info.keys():
        return None
    config = {name: value for name, value in info["config"].items() if name != "checkpoint_seconds"}
    return {"dataset": info["dataset"], "fingerprint": info["fingerprint"], "config": config}


def _mend_history(home: Path, models: Models) -> None:
    """Write the losses again where their file is gone or cannot be read; the models hold them too."""
    try:
        json.loads((home / HISTORY_FILE).read_bytes())
    except (OSError, ValueError):
        if "history" in models.info:
            write_json(home / HISTORY_FILE, models.info["history"])


def _discard(home: Path) -> None:
    """Delete what a run left in its folder, the models first: a run killed in between must not look finished."""
    for name in (MODELS_FILE, HISTORY_FILE):
        (home / name).unlink(missing_ok=True)
    _clear(home)


def _clear(home: Path) -> None:
    """Delete the checkpoints, and what a kill in the middle of writing any file of the run left beside it."""
    folder = home / CHECKPOINTS
    checkpoints = [folder / f"{name}.safetensors" for name in NETWORKS]
    for path in (home / MODELS_FILE, home / HISTORY_FILE, *checkpoints):
        remove_parts(path)
    for path in checkpoints:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
