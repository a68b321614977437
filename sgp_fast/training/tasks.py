"""What each of the three networks learns: its model, its loss, and the batches of it, as functions of a random generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..costs import LearnedCost
from ..models import Dynamics, Network, Normalizer, Score
from .config import TrainConfig
from .losses import reward_loss, score_matching_loss, simulation_loss

if TYPE_CHECKING:
    from ..data import Dataset

Batch = tuple[Tensor, ...]
Draw = Callable[[int, torch.Generator], Batch]
# Drawn with replacement, so that small data sets too see every noise level often; more rows would only cost time.
VALIDATION_ROWS = 8192


@dataclass(frozen=True)
class Task:
    """One network to train.

    model        Dynamics, Score or LearnedCost with its first weights; its `network` is what training moves
    loss         `loss(model, *batch) → [B]`
    draw         `draw(rows, generator) → batch` of training data
    validation   a fixed batch of validation data, or None without validation
    group        the noise level of each row of `validation`, whose losses are reported apart; None without levels
    """

    model: nn.Module
    loss: Callable[..., Tensor]
    draw: Draw
    validation: Batch | None
    group: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """A part of the data as tensors on one device: x, u, next_x, reward, and where windows of a horizon start."""

    x: Tensor
    u: Tensor
    next_x: Tensor
    reward: Tensor
    starts: Tensor

    @classmethod
    def of(cls, data: Dataset, horizon: int, device: torch.device) -> Split:
        arrays = (data.observations, data.actions, data.next_observations, data.rewards, data.windows(horizon))
        return cls(*(torch.from_numpy(a).to(device) for a in arrays))


def stream_seed(seed: int, *path: str | int) -> int:
    """A seed for one use, from the run's seed and the name of the use.

    Every batch comes from a generator seeded by (seed, network, step). So the random numbers of a step are the same however
    often the run was interrupted before it, and there is no generator state to save.
    """
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def spread(values: Tensor) -> Tensor:
    """Standard deviation of each column, and 1 for a column that is constant up to rounding."""
    wide = values.double()
    std, size = wide.std(0, unbiased=False), wide.abs().amax(0).clamp(min=1e-6)
    return torch.where(std > 1e-5 * size, std, 1.0).float()


def normalizer_of(z: Tensor) -> Normalizer:
    """`b` and `k` from the mean and the spread of the rows of z."""
    return Normalizer(z.double().mean(0).float(), spread(z))


def step_scale(x: Tensor, next_x: Tensor, k: Tensor) -> Tensor:
    """Root mean square of x' − x per feature: what a network that predicts no change would get wrong.

    A feature that never changes gets a millionth of its k, so that the network's rounding cannot move it.
    """
    change = (next_x.double() - x.double()).square().mean(0).sqrt().float()
    return torch.maximum(change, 1e-6 * k)


def make_tasks(config: TrainConfig, train: Split, validation: Split | None) -> dict[str, Task]:
    """The three tasks. Every statistic is of the training part alone."""
    nx, nu, device = train.x.shape[1], train.u.shape[1], train.x.device
    normalizer = normalizer_of(torch.cat((train.x, train.u), -1))
    b, k = normalizer.b, normalizer.k

    def network(name: str) -> Network:
        return Network(config.network(name, nx, nu), stream_seed(config.seed, name, "weights")).to(device)

    def task(name: str, model: nn.Module, loss: Callable[..., Tensor], gather: Callable[..., Batch]) -> Task:
        fixed = None
        if validation is not None:
            generator = torch.Generator(device).manual_seed(stream_seed(config.seed, name, "validation"))
            fixed = gather(validation, VALIDATION_ROWS, generator)
        return Task(model, loss, partial(gather, train), fixed, fixed[1] if fixed and name == "score" else None)

    def windows(split: Split, rows: int, generator: torch.Generator) -> Batch:
        first = split.starts.index_select(0, _indices(len(split.starts), rows, generator))
        window = first[:, None] + torch.arange(config.rollout_horizon, device=device)
        flat, shape = window.flatten(), window.shape
        u, targets = split.u.index_select(0, flat), split.next_x.index_select(0, flat)
        return split.x.index_select(0, first), u.view(*shape, nu), targets.view(*shape, nx)

    def noisy(split: Split, rows: int, generator: torch.Generator) -> Batch:
        row = _indices(len(split.x), rows, generator)
        z = torch.cat((split.x.index_select(0, row), split.u.index_select(0, row)), -1)
        level = _indices(config.levels, rows, generator)
        return z, level, torch.randn(z.shape, generator=generator, device=device)

    def rewarded(split: Split, rows: int, generator: torch.Generator) -> Batch:
        row = _indices(len(split.x), rows, generator)
        return split.x.index_select(0, row), split.u.index_select(0, row), split.reward.index_select(0, row)

    scale = step_scale(train.x, train.next_x, k[:nx])
    dynamics = Dynamics(network("dynamics"), Normalizer(b, k), scale)
    score = Score(network("score"), Normalizer(b, k), config.sigmas.to(device), config.score_output)
    cost = LearnedCost(network("cost"), Normalizer(b, k))
    mean, unit = reward_units(train.reward)
    return {
        "dynamics": task("dynamics", dynamics, partial(simulation_loss, discount=config.discount), windows),
        "score": task("score", score, score_matching_loss, noisy),
        "cost": task("cost", cost, partial(reward_loss, mean=mean, spread=unit), rewarded),
    }


def reward_units(reward: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the cost −r."""
    return -reward.double().mean().float(), spread(reward[:, None])[0]


@torch.no_grad()
def fold_output(network: Network, mean: Tensor, unit: Tensor) -> None:
    """Change the last (linear) layer so that the network gives `mean + unit · net` from now on."""
    name = f"layers.{len(network.spec.layers) - 1}"
    network.weights[f"{name}.weight"].mul_(unit)
    network.weights[f"{name}.bias"].mul_(unit).add_(mean)


def _indices(below: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(below, (count,), generator=generator, device=generator.device)
