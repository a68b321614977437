"""The controller to compare planners with: the policy that the data were made with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._slots import Slots
from ._starts import keyed_normal
from .data.actors import load_actor, snapshots
from .data.make import QUALITIES


class BehaviorPolicy:
    """The stochastic policy that data made here were recorded with, in B environments.

    Qualities that mix snapshots (`medium-replay`, `medium-expert`) give them to the environments in turn: of n, the one
    numbered i mod n to environment i. The noise of environment i at step k of its episode is a function of (seed, i, k).
    """

    def __init__(self, task: str, quality: str, batch_size: int, seed: int = 0) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"quality is {quality!r}; expected one of {', '.join(QUALITIES)}")
        mixed = {"medium-replay": snapshots(task)["roles"]["medium_replay"], "medium-expert": ["medium", "expert"]}
        self.actors = [load_actor(task, name) for name in mixed.get(quality, [quality])]
        self.batch_size, self.seed = batch_size, seed
        self._slots = Slots(batch_size)

    def act(self, obs: Any, active: Any = None) -> np.ndarray:
        """Actions `[B, nu]` for observations `[B, nx]`; zeros where not active."""
        rows = self._slots.rows(active)
        chosen = self._slots.observations(obs, rows).cpu().numpy()
        nu = len(self.actors[0].low)
        normal = keyed_normal(self.seed, self._slots.keys(rows), nu)
        actions = np.zeros((self.batch_size, nu), np.float32)
        for i, actor in enumerate(self.actors):
            mine = rows % len(self.actors) == i
            # The uniform policy takes its noise on [−1, 1): Φ makes a uniform number of a normal one.
            noise = normal[mine] if actor.head is not None else 2 * _uniform(torch.from_numpy(normal[mine])).numpy() - 1
            actions[rows[mine]] = actor.act(chosen[mine], noise.astype(np.float32))
        self._slots.step[rows] += 1
        return actions

    def check_sizes(self, nx: int, nu: int) -> None:
        """Raise ValueError unless the policy takes nx observations (the uniform one: any number) and gives nu actions."""
        actor = self.actors[0]
        taken = actor.layers[0][0].shape[0] if actor.layers else nx
        if (nx, nu) != (taken, len(actor.low)):
            raise ValueError(f"policy {actor.name} takes {taken} observations and gives {len(actor.low)} actions")

    def reset(self, mask: Any = None) -> None:
        """Begin new episodes in the environments of a mask `[B]`; None: in all."""
        self._slots.step[self._slots.rows(mask, "mask")] = 0


def _uniform(normal: Tensor) -> Tensor:
    """Uniform numbers on [0, 1] of standard normal ones, by their distribution function."""
    return torch.special.ndtr(normal)
