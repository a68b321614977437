"""Small data sets whose right answers are known, and a small configuration."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgp_fast.data import Dataset
from sgp_fast.training import TrainConfig

NX, NU = 3, 2
A = np.array([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.05], [0.0, 0.0, 0.8]])
B = np.array([[0.0, 0.1], [0.2, 0.0], [0.1, -0.1]])
OFFSET = np.array([3.0, -1.0, 0.0])  # of the states, so that a normaliser has something to do
SMALL = TrainConfig(width=16, hidden_layers=2, steps=30, batch_size=32, evaluate_every=10, levels=3)


def linear_system(episodes: int = 12, length: int = 40, seed: int = 0, **fields: Any) -> Dataset:
    """`x' − o = A (x − o) + B u` under random controls, reward `1 + 10 u_0`."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(episodes, NX))
    u = random.uniform(-1, 1, size=(length, episodes, NU))
    states = [x]
    for t in range(length):
        states.append(states[-1] @ A.T + u[t] @ B.T)
    path = np.stack(states) + OFFSET  # [length + 1, episodes, NX]
    last = np.arange(episodes * length) % length == length - 1
    arrays = {
        "observations": path[:-1].swapaxes(0, 1).reshape(-1, NX),
        "actions": u.swapaxes(0, 1).reshape(-1, NU),
        "next_observations": path[1:].swapaxes(0, 1).reshape(-1, NX),
        "rewards": 1 + 10 * u[..., 0].T.reshape(-1),
        "terminals": np.zeros_like(last),
        "timeouts": last,
        "action_bounds": (-np.ones(NU), np.ones(NU)),
    }
    return Dataset(**{**arrays, "name": "linear", "env_id": "Linear-v0", **fields})


def gaussian(rows: int, covariance: np.ndarray, mean: np.ndarray, nu: int, seed: int = 0) -> Dataset:
    """Rows of `(x, u)` from one Gaussian, in episodes of 100; the next states and the rewards are zero."""
    z = np.random.default_rng(seed).multivariate_normal(mean, covariance, size=rows).astype(np.float32)
    x, u, zeros = z[:, :-nu], z[:, -nu:], np.zeros(rows, np.float32)
    return Dataset(x, u, np.zeros_like(x), zeros, zeros > 0, np.arange(rows) % 100 == 99, name="gaussian")
