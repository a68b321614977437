"""What a training run is: one frozen value, and the checks that it can be carried out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..models import NetworkSpec, mlp

NETWORKS = ("dynamics", "score", "cost")


@dataclass(frozen=True)
class TrainConfig:
    """Architecture, optimisation and losses of the three networks; `steps` and everything else hold for each of them.

    The learning rate falls from `learning_rate` to `final_learning_rate` by half a cosine, step by step. What is validated
    and returned is the exponential moving average of the weights. Losses: see `sgp_fast.training.losses`.

    Args:
        width: Units of each hidden layer.
        hidden_layers: How many; the first is plain, the others have layer norm (and noise conditioning, in the score).
        steps: Gradient steps of each network.
        batch_size: Transitions (or windows of `rollout_horizon` transitions) a step.
        learning_rate: Of AdamW, at the first step.
        final_learning_rate: Of AdamW, at the last step.
        weight_decay: Of AdamW, decoupled from the gradient.
        clip_gradient: Largest norm of a network's gradient; None: no limit.
        ema_decay: Of the moving average of the weights, per step; 0 returns the weights themselves.
        sigma_max: Largest noise level of the score, in units of each feature's spread.
        sigma_min: Smallest noise level; those between are geometric.
        levels: How many noise levels.
        score_output: What the score's network gives: the score, or the noise, which is the score times its noise level.
        rollout_horizon: Model steps that the dynamics loss simulates; 1 is one-step prediction.
        discount: Weight of each further simulated step against the one before.
        validation_fraction: Share of the episodes that is kept for validation; 0: none, and no early stopping.
        evaluate_every: Steps between two evaluations.
        patience: Stop a network after this many evaluations without a better one; None: never.
        seed: Of the split, the first weights, the batches and the noise.
        precision: Of the products in training; weights stay in float32.
        checkpoint_seconds: A killed run loses at most this much work; it has no influence on the result.
    """

    width: int = 256
    hidden_layers: int = 4
    steps: int = 6_000
    batch_size: int = 512
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.0
    clip_gradient: float | None = 1.0
    ema_decay: float = 0.999
    sigma_max: float = 10**-0.5
    sigma_min: float = 10**-3.0
    levels: int = 10
    score_output: Literal["score", "noise"] = "noise"
    rollout_horizon: int = 1
    discount: float = 1.0
    validation_fraction: float = 0.05
    evaluate_every: int = 250
    patience: int | None = 10
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name in ("width", "hidden_layers", "steps", "batch_size", "levels", "rollout_horizon", "evaluate_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"TrainConfig.{name} is {value!r}; expected a whole number of at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"TrainConfig.patience is {self.patience}; expected at least 1 evaluation, or None: never stop")
        if not 0 <= self.final_learning_rate <= self.learning_rate < math.inf or self.learning_rate == 0:
            raise ValueError(
                f"TrainConfig.learning_rate is {self.learning_rate} and final_learning_rate {self.final_learning_rate}; "
                "expected 0 ≤ final ≤ first, and the first positive"
            )
        if not 0 < self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(
                f"TrainConfig.sigma_max is {self.sigma_max} and sigma_min {self.sigma_min}; expected 0 < smallest ≤ largest"
            )
        for name, top in (("ema_decay", 1), ("validation_fraction", 1)):
            if not 0 <= getattr(self, name) < top:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; expected 0 ≤ {name} < {top}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"TrainConfig.discount is {self.discount}; expected 0 < discount ≤ 1")
        if self.clip_gradient is not None and not self.clip_gradient > 0:
            raise ValueError(f"TrainConfig.clip_gradient is {self.clip_gradient}; expected a positive norm, or None")
        for name in ("weight_decay", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; expected at least 0")
        for name, choices in (("score_output", ("score", "noise")), ("precision", ("32-true", "bf16-mixed"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels `[levels]`, largest first, geometric from `sigma_max` to `sigma_min`."""
        first, last = math.log10(self.sigma_max), math.log10(self.sigma_min)
        return torch.logspace(first, last, self.levels, dtype=torch.float64).float()

    def network(self, name: str, nx: int, nu: int) -> NetworkSpec:
        """The specification of one of the three networks for nx state features and nu controls."""
        inputs = nx + nu
        outputs = {"dynamics": nx, "score": inputs, "cost": 1}[name]
        levels = self.levels if name == "score" else 0
        return mlp(inputs, outputs, width=self.width, hidden_layers=self.hidden_layers, norm=True, levels=levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The fields that the result depends on; two runs that agree in them and in their data give the same weights."""
        return {name: value for name, value in self.to_dict().items() if name != "checkpoint_seconds"}
