"""What the networks are trained to make small. Each loss gives one number a row; the trainer takes their mean.

All are free of units: errors count in multiples of the spread that the data have, so that a loss of 1 is what a network
that has learned nothing gets, and values compare between data sets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..costs import LearnedCost
from ..models import Dynamics, Score


def simulation_loss(dynamics: Dynamics, x0: Tensor, u: Tensor, targets: Tensor, discount: float = 1.0) -> Tensor:
    """Error of a simulation of H steps against the recorded states, `[B]`.

        x̂_0 = x_0,   x̂_{h+1} = f(x̂_h, u_h),   loss = 1/H Σ_{h=1..H} γ^{h−1} · mean_j ((x̂_h − x_h)_j / scale_j)²

    `x0 [B, nx]`, `u [B, H, nu]`, `targets [B, H, nx]` (the states x_1 … x_H), `discount` γ. H = 1 is one-step prediction.
    The gradient flows through the whole simulation, so that the model learns to correct its own drift.
    """
    horizon, x, loss = u.shape[1], x0, torch.zeros_like(x0[:, 0])
    for h in range(horizon):
        x = dynamics(x, u[:, h])
        error = (x - targets[:, h]) / dynamics.scale
        loss = loss + discount**h * error.square().mean(-1)
    return loss / horizon


def score_matching_loss(score: Score, z: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Denoising score matching, weighted by σ² so that every noise level counts alike, `[B]`.

        loss = σ² · mean_j (s̄(z̄ + σε, σ) + ε/σ)_j² = mean_j (σ s̄(z̄ + σε, σ) + ε)_j²

    `z [B, features]` as recorded, `level [B]` the index of each row's σ, `noise [B, features]` the standard normal ε. Its
    minimum is the score of the data smoothed by σ; its value there is above zero, since ε cannot be told from z̄ + σε.
    Source: Vincent 2011; the weight, Song and Ermon 2019 (arXiv 1907.05600, equation 6).
    """
    network, sigma = score.network, score.sigmas[level][:, None]
    noisy = score.normalizer(z) + sigma * noise
    # An embedding lookup, not indexing: the gradient of indexing adds its rows up in an order that differs between runs.
    weights = network.weights
    condition = F.embedding(level, weights["embedding"]) if network.spec.levels else network.condition(sigma[:, 0])
    out = network(noisy, condition)
    return ((out if score.output == "noise" else sigma * out) + noise).square().mean(-1)


def reward_loss(cost: LearnedCost, x: Tensor, u: Tensor, reward: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Squared error of a cost network against the negative reward, `[B]`, in units of the reward's spread.

        loss = (c(x, u) − (−r − mean)/spread)²

    During training the network predicts the standardised cost; `mean` and `spread` are those of −r, and
    `fold_output` puts them into the last layer afterwards, since a learned cost is its network's output as it comes.
    """
    return (cost(x, u) - (-reward - mean) / spread).square()
