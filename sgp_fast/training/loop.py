"""The loop: one network, from its first weights or from a checkpoint to its last step."""

from __future__ import annotations

import copy
import importlib.util
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .._interrupts import held_interrupts
from .._optional import require
from .._progress import progress_bar
from ..models import Network
from .checkpoint import Record, Trainee, check_identity, identity_of, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .tasks import Task, stream_seed
from .threads import training_threads

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Objective(nn.Module):
    """Model and loss as one module, `batch → mean loss`: what the loop library wraps for device and precision."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch).mean()


def make_fabric(config: TrainConfig) -> Fabric:
    """The loop library on one device, a CUDA device where there is one, in the precision asked for."""
    fabric = require("lightning_fabric", extra="train")
    environments = require("lightning_fabric.plugins.environments", extra="train")
    # Without its own environment it would read a cluster's variables and ask for more processes.
    plugins = [environments.LightningEnvironment()]
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    return fabric.Fabric(accelerator=accelerator, devices=1, precision=config.precision, plugins=plugins)


def fit(
    name: str,
    task: Task,
    config: TrainConfig,
    fabric: Fabric,
    *,
    path: Path | None = None,
    identity: dict[str, Any] | None = None,
    tensorboard: Path | None = None,
    progress: bool = True,
) -> tuple[Network, Record]:
    """Train `task.model.network`; return the best averaged weights and the record of the run.

        g = clip(∇ mean loss(batch_i)),   w ← AdamW(w, g, α_i),   w̄ ← d_i w̄ + (1 − d_i) w,   d_i = min(d, (1 + i)/(10 + i))

    `path` is the checkpoint: it is read where it exists, and written at most every `config.checkpoint_seconds`, at the end
    and on Ctrl-C. Step i's batch and noise depend on (seed, name, i) alone, so an interrupted run gives the weights of an
    uninterrupted one, bit for bit, on the same machine with as many threads; narrow networks take one (`threads`). Raises
    FloatingPointError where the loss is not finite.
    """
    network: Network = task.model.network  # pyright: ignore[reportAssignmentType]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    objective, wrapped = fabric.setup(Objective(task.model, task.loss), optimizer)
    scheduler = LambdaLR(optimizer, lambda step: _rate(config, step))
    averaged = AveragedModel(task.model, multi_avg_fn=partial(_average, config.ema_decay))
    average: Network = averaged.module.network  # pyright: ignore[reportAssignmentType]
    best = copy.deepcopy(network).requires_grad_(False)
    trainee = Trainee(network, average, best, optimizer, scheduler, averaged.n_averaged)

    record = Record()
    if path is not None and path.is_file():
        check_identity(path, identity_of(path), identity or {})
        record = load_checkpoint(path, trainee)
    earlier, began, saved = record.seconds, time.monotonic(), time.monotonic()
    writer = None if tensorboard is None or record.finished else _writer(tensorboard / name, record.step)
    generator = torch.Generator(fabric.device)
    losses = torch.tensor(record.train_sum, device=fabric.device)

    stop = False
    with (
        training_threads(config, fabric.device),
        held_interrupts() as interrupted,
        _bar(name, config.steps, record, progress) as bar,
    ):
        while not (record.finished or stop):
            generator.manual_seed(stream_seed(config.seed, name, record.step))
            loss = objective(*task.draw(config.batch_size, generator))
            fabric.backward(loss)
            if config.clip_gradient is not None:
                fabric.clip_gradients(objective, wrapped, max_norm=config.clip_gradient, error_if_nonfinite=False)
            wrapped.step()
            wrapped.zero_grad()
            scheduler.step()
            averaged.update_parameters(task.model)
            losses += loss.detach()
            record.step += 1

            if record.step % config.evaluate_every == 0 or record.step == config.steps:
                _evaluate(name, task, averaged.module, trainee, record, float(losses), writer)
                losses.zero_()
                record.finished = record.step == config.steps or _exhausted(record, config)
                bar.show(record)
            bar.update()

            stop = interrupted()
            if path is not None and (record.finished or stop or time.monotonic() - saved >= config.checkpoint_seconds):
                record.train_sum, record.seconds = float(losses), earlier + time.monotonic() - began
                save_checkpoint(path, trainee, record, identity or {})
                saved = time.monotonic()
    record.seconds = earlier + time.monotonic() - began
    if writer is not None:
        writer.close()
    return best, record


@torch.no_grad()
def evaluate(task: Task, model: nn.Module) -> tuple[float, list[float] | None]:
    """Mean loss of `model` on the validation batch, and that of each noise level where there are any."""
    assert task.validation is not None
    rows = torch.cat([task.loss(model, *part) for part in zip(*(t.split(2048) for t in task.validation), strict=True)])
    if task.group is None:
        return rows.mean().item(), None
    levels = int(task.group.max()) + 1
    sums = torch.zeros(levels, device=rows.device).index_add_(0, task.group, rows)
    return rows.mean().item(), (sums / task.group.bincount(minlength=levels)).tolist()


def _evaluate(
    name: str, task: Task, averaged: nn.Module, trainee: Trainee, record: Record, losses: float, writer: Any
) -> None:
    """Add an entry to the history, and keep the averaged weights where they are the best so far."""
    history = record.history
    since = record.step - (history["step"][-1] if history["step"] else 0)
    train, best = losses / since, record.best_validation
    validation = None
    if task.validation is not None:
        validation, record.by_level = evaluate(task, averaged)
    if not math.isfinite(train) or not math.isfinite(validation or 0.0):
        raise FloatingPointError(
            f"{name}: the loss is not finite after step {record.step}; train with a smaller learning_rate or clip_gradient"
        )
    if validation is None or best is None or validation < best:
        record.best_step = record.step
        trainee.best.load_state_dict(trainee.average.state_dict())
    rate = trainee.scheduler.get_last_lr()[0]
    for key, value in (("step", record.step), ("train", train), ("validation", validation), ("learning_rate", rate)):
        history[key].append(value)
        if writer is not None and key != "step" and value is not None:
            writer.add_scalar(key, value, record.step)


def _exhausted(record: Record, config: TrainConfig) -> bool:
    """Whether the last `patience` evaluations were all no better than one before them."""
    if config.patience is None or record.best_validation is None:
        return False
    return sum(step > record.best_step for step in record.history["step"]) >= config.patience


def _rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step as a multiple of the first: half a cosine, in closed form so that it can be resumed."""
    end = config.final_learning_rate / config.learning_rate
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(step / max(config.steps - 1, 1), 1.0)))


def _average(decay: float, averaged: Any, current: Any, count: Any) -> None:
    """Moving average whose decay grows to `decay`, so that a short run too forgets its first weights."""
    seen = int(count)
    get_ema_multi_avg_fn(min(decay, (1 + seen) / (10 + seen)))(averaged, current, count)


def _writer(folder: Path, step: int) -> Any:
    """A TensorBoard writer where tensorboard is installed; entries beyond `step`, of an interrupted run, are purged."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step)


class _bar:
    """A progress bar with the rate, the time left and the losses; nothing where none is wanted."""

    def __init__(self, name: str, steps: int, record: Record, wanted: bool) -> None:
        self.bar: Any = None
        if wanted:
            desc = f"{name:8}"
            self.bar = progress_bar("train", total=steps, initial=record.step, desc=desc, unit="step", dynamic_ncols=True)
            self.show(record)

    def show(self, record: Record) -> None:
        if self.bar is not None and record.history["step"]:
            validation = record.history["validation"][-1]
            losses = {"train": f"{record.history['train'][-1]:.4g}"}
            losses |= {} if validation is None else {"validation": f"{validation:.4g}"}
            self.bar.set_postfix(losses, refresh=False)

    def update(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def __enter__(self) -> _bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
