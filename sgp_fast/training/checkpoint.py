"""The state of one network's training on disk: safetensors with JSON in the header, replaced in one step.

A file holds all that the next step depends on: weights, their moving average, Adam's moments, the schedule's position, the
best validation so far and the step itself. Random numbers need no state, see `tasks.stream_seed`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import atomic_path
from .._identity import differences
from .._tensorfile import load_tensors, save_tensors
from ..models import Network

KIND = "training"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Record:
    """What is known of one network's training so far; everything in it is plain JSON.

    step            steps done
    finished        nothing is left to do: all steps, or stopped early
    best_step       the step of the best validation loss
    train_sum       sum of the batch losses since the last evaluation
    history         step, train (mean since the last evaluation), validation, learning_rate: lists, an entry an evaluation
    by_level        validation loss of each noise level at the last evaluation, for the score
    seconds         time spent, over all parts of an interrupted run
    """

    step: int = 0
    finished: bool = False
    best_step: int = 0
    train_sum: float = 0.0
    history: dict[str, list[Any]] = field(
        default_factory=lambda: {"step": [], "train": [], "validation": [], "learning_rate": []}
    )
    by_level: list[float] | None = None
    seconds: float = 0.0

    @property
    def best_validation(self) -> float | None:
        values = [value for value in self.history["validation"] if value is not None]
        return min(values) if values else None


@dataclass(frozen=True)
class Trainee:
    """The objects of one network's training whose state a checkpoint holds."""

    network: Network
    average: Network
    best: Network
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    count: Tensor  # how many weights the average has seen; the counter of torch's AveragedModel


def save_checkpoint(path: Path, trainee: Trainee, record: Record, identity: dict[str, Any]) -> None:
    """Write the state to `path`. A finished network keeps only its best weights."""
    tensors = _named("best", trainee.best)
    config: dict[str, Any] = {"kind": KIND, "version": 1, "identity": identity, "record": asdict(record)}
    if not record.finished:
        tensors |= _named("weights", trainee.network) | _named("average", trainee.average)
        for name, parameter in trainee.network.named_parameters():
            state = trainee.optimizer.state.get(parameter, {})
            tensors |= {f"adam.{key}.{name}": state[key] for key in MOMENTS if key in state}
        scheduler = {k: v for k, v in trainee.scheduler.state_dict().items() if k != "lr_lambdas"}
        config |= {"scheduler": scheduler, "averaged": int(trainee.count)}
    save_tensors(path, tensors, config)


@torch.no_grad()
def load_checkpoint(path: Path, trainee: Trainee) -> Record:
    """Put the state of `path` into the trainee; the record of what was done is returned."""
    tensors, config = load_tensors(path, KIND)
    record = Record(**config["record"])
    _fill(trainee.best, "best", tensors)
    if record.finished:
        return record
    _fill(trainee.network, "weights", tensors)
    _fill(trainee.average, "average", tensors)
    trainee.count.fill_(config["averaged"])
    trainee.scheduler.load_state_dict({**config["scheduler"], "lr_lambdas": [None]})
    optimizer = trainee.optimizer.state_dict()
    names = [name for name, parameter in trainee.network.named_parameters() if parameter.requires_grad]
    optimizer["state"] = {
        index: {"step": torch.tensor(float(record.step)), **{key: tensors[f"adam.{key}.{name}"] for key in MOMENTS}}
        for index, name in enumerate(names)
        if record.step
    }
    for group, rate in zip(optimizer["param_groups"], trainee.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    trainee.optimizer.load_state_dict(optimizer)
    return record


def check_identity(path: Path, found: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    """Raise where the run in a folder was of another configuration or of other data than the one that is asked for."""
    remedy = "pass resume=False (--no-resume) to discard it and train anew, or another folder"
    if found is None:
        raise ValueError(f"{path} was not written by a training run of this version; {remedy}")
    if found["fingerprint"] != expected["fingerprint"]:
        raise ValueError(
            f"{path} was trained on other data ({found['dataset']!r}, fingerprint {found['fingerprint']}) than those given "
            f"({expected['dataset']!r}, fingerprint {expected['fingerprint']}); {remedy}"
        )
    differing = differences(expected["config"], found["config"])
    if differing:
        raise ValueError(f"{path} was trained with another configuration ({differing}); {remedy}")


def identity_of(path: Path) -> dict[str, Any]:
    """The identity that a checkpoint was written with."""
    return load_tensors(path, KIND)[1]["identity"]


def write_json(path: Path, data: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _named(prefix: str, network: Network) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": weight for name, weight in network.weights.items()}


def _fill(network: Network, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, weight in network.weights.items():
        weight.copy_(tensors[f"{prefix}.{name}"])
