"""The policies that data are made with: soft actor-critic snapshots carried in the package, and uniform noise.

Action of a snapshot for an observation x, with h two ReLU layers of width 256 and ε standard normal:

    u = low + (tanh(μ(h) + exp(clip(log σ(h), −20, 2)) ε) + 1)/2 · (high − low)

Source: Haarnoja et al. 2018, arXiv 1801.01290.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

FloatArray = npt.NDArray[np.float32]

# Rows are always evaluated in blocks of one height, with zeros behind the last: a product of another height may round
# differently, and then an episode would depend on how many others were simulated beside it. Of these the first in which
# a row's place does not matter either: on AVX2, OpenBLAS sums the rows of a block of 16 in different orders, not those of 8.
BLOCKS = (16, 8, 4, 2, 1)

TASKS = ("hopper", "halfcheetah", "walker2d")


@dataclass(frozen=True, eq=False)
class Actor:
    """A stochastic policy as a function of the observation and of noise drawn beforehand.

    layers     ((weight [in, out], bias [out]), …) of the hidden layers; empty for a policy that ignores the observation
    head       (weight [width, 2 nu], bias [2 nu]): mean, then log standard deviation; None for uniform noise
    low, high  [nu] action bounds
    """

    name: str
    layers: tuple[tuple[FloatArray, FloatArray], ...]
    head: tuple[FloatArray, FloatArray] | None
    log_std_clip: tuple[float, float]
    low: FloatArray
    high: FloatArray

    def draw(self, rng: np.random.Generator, *shape: int) -> FloatArray:
        """Noise for `act`, [*shape, nu]: standard normal, or uniform on [−1, 1) for the uniform policy."""
        shape = (*shape, len(self.low))
        if self.head is None:
            return rng.uniform(-1.0, 1.0, shape).astype(np.float32)
        return rng.standard_normal(shape, dtype=np.float32)

    def act(self, observations: npt.ArrayLike, noise: FloatArray) -> FloatArray:
        """Actions [B, nu] for observations [B, nx] and noise [B, nu]; zero noise gives the mode of a snapshot.

        The action of a row does not depend on the other rows, to the last bit.
        """
        x = np.asarray(observations, dtype=np.float32)
        rows = len(x)
        block_rows = self.block_rows
        if rows == block_rows:
            return self._act_block(x, noise)
        out = np.empty((rows, len(self.low)), np.float32)
        for start in range(0, rows, block_rows):
            stop = min(start + block_rows, rows)
            block = np.zeros((block_rows, x.shape[1]), np.float32)
            block[: stop - start] = x[start:stop]
            block_noise = np.zeros((block_rows, len(self.low)), np.float32)
            block_noise[: stop - start] = noise[start:stop]
            out[start:stop] = self._act_block(block, block_noise)[: stop - start]
        return out

    @property
    def block_rows(self) -> int:
        """Rows of a block: see `BLOCKS`."""
        matrices = [weight for weight, _ in self.layers] + ([] if self.head is None else [self.head[0]])
        return _block_rows(tuple((matrix.shape[0], matrix.shape[1]) for matrix in matrices))

    def sample(self, observations: npt.ArrayLike, rng: np.random.Generator) -> FloatArray:
        """Actions [B, nu] for observations [B, nx], with noise from `rng`."""
        x = np.asarray(observations, dtype=np.float32)
        return self.act(x, self.draw(rng, len(x)))

    def _act_block(self, x: FloatArray, noise: FloatArray) -> FloatArray:
        if self.head is None:
            squashed = noise
        else:
            for weight, bias in self.layers:
                x = np.maximum(x @ weight + bias, np.float32(0))
            mean, log_std = np.split(x @ self.head[0] + self.head[1], 2, axis=1)
            low, high = np.float32(self.log_std_clip[0]), np.float32(self.log_std_clip[1])
            squashed = np.tanh(mean + np.exp(np.clip(log_std, low, high)) * noise)
        action = self.low + (squashed + np.float32(1)) * np.float32(0.5) * (self.high - self.low)
        # Rounding may pass a bound by one unit.
        return np.clip(action, self.low, self.high).astype(np.float32, copy=False)


@functools.cache
def _block_rows(shapes: tuple[tuple[int, int], ...]) -> int:
    """The first of `BLOCKS` in which products with matrices `[in, out]` of these shapes round every row alike here."""
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((1, shape[0])), rng.standard_normal(shape)) for shape in shapes]

    def alike(rows: int) -> bool:
        products = (np.repeat(row.astype(np.float32), rows, 0) @ matrix.astype(np.float32) for row, matrix in pairs)
        return all((product == product[0]).all() for product in products)

    return next(rows for rows in BLOCKS if alike(rows))


def snapshots(task: str) -> dict[str, Any]:
    """What is known about the snapshots of `task`: environment id, versions, measured returns, and roles.

    `["snapshots"]` maps a snapshot to its return_mean, return_std and episode_length over a few episodes; `["roles"]`
    names the snapshots of `medium` and `expert` and, from early to late, those of `medium_replay`.
    """
    with as_file(_path(task)) as path, safe_open(path, "np") as file:
        return json.loads(file.metadata()["config"])


def load_actor(task: str, snapshot: str) -> Actor:
    """The policy of `task` named `snapshot`: "medium", "expert", "random" (uniform noise), or one of `snapshots(task)`.

    The bounds of all three tasks are −1 and 1. Raises ValueError for a task or a snapshot that is not carried.
    """
    config = snapshots(task)
    chosen = config["roles"].get(snapshot, snapshot) if snapshot != "medium_replay" else snapshot
    with as_file(_path(task)) as path, safe_open(path, "np") as file:
        nu = file.get_slice(f"{config['roles']['medium']}.mean.bias").get_shape()[0]
        bounds = (-np.ones(nu, np.float32), np.ones(nu, np.float32))
        clip = (float(config["log_std_clip"][0]), float(config["log_std_clip"][1]))
        if snapshot == "random":
            return Actor("random", (), None, clip, *bounds)
        if chosen not in config["snapshots"]:
            known = ", ".join(["random", "medium", "expert", *config["snapshots"]])
            raise ValueError(f"snapshot is {snapshot!r}; {task} has {known}")

        def linear(part: str) -> tuple[FloatArray, FloatArray]:
            weight = file.get_tensor(f"{chosen}.{part}.weight").astype(np.float32)
            return np.ascontiguousarray(weight.T), file.get_tensor(f"{chosen}.{part}.bias").astype(np.float32)

        mean, log_std = linear("mean"), linear("log_std")
        head = (np.concatenate([mean[0], log_std[0]], axis=1), np.concatenate([mean[1], log_std[1]]))
        return Actor(chosen, (linear("hidden.0"), linear("hidden.1")), head, clip, *bounds)


def _path(task: str) -> Any:
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    return files("sgp_fast.data") / "actors" / f"{task}.safetensors"
