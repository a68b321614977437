"""Transitions in order, with the episodes they belong to: what every reader returns and every trainer takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

# Actions are rounded to float32 after the map to their bounds, and so may pass one by a few units in the last place.
BOUND_TOLERANCE = 1e-5


class DatasetError(ValueError):
    """Data that cannot be used as it is; the message names the source, the key and the row."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions (x_t, u_t, r_t, x_{t+1}) in the order in which they were recorded.

    Fields, for N transitions of nx observations and nu actions:
        observations       [N, nx] float32, x_t
        actions            [N, nu] float32, u_t
        next_observations  [N, nx] float32, x_{t+1}: the true successor, never the first observation of another episode
        rewards            [N] float32, r_t
        terminals          [N] bool, x_{t+1} is absorbing: nothing follows, its value is zero
        timeouts           [N] bool, the record of the episode stops here although the task goes on (a time limit, or a cut)
        name               what the data are called
        env_id             the gymnasium id of the environment that they come from, or None
        action_bounds      (low [nu], high [nu]) of that environment, or None where unknown; actions must lie within
        metadata           facts about the origin (seed, versions, behaviour policy, rows dropped by a reader), JSON values
        infos              further arrays with one row per transition, such as qpos and qvel of D4RL files

    An episode is a run of rows that ends with a terminal or a timeout; the last one may end with neither, because the
    file does. Arrays are converted to the types above and checked: DatasetError names the key and the first row where
    shapes disagree, a value is not finite, a flag is not 0 or 1, or an action is outside its bounds.
    """

    observations: FloatArray
    actions: FloatArray
    next_observations: FloatArray
    rewards: FloatArray
    terminals: BoolArray
    timeouts: BoolArray
    name: str = "dataset"
    env_id: str | None = None
    action_bounds: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    infos: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(key: str, value: Any) -> None:
            object.__setattr__(self, key, value)

        for key in ("observations", "actions", "next_observations"):
            put(key, as_floats(getattr(self, key), key, ndim=2, source=self.name))
        put("rewards", as_floats(self.rewards, "rewards", ndim=1, source=self.name))
        for key in ("terminals", "timeouts"):
            put(key, as_flags(getattr(self, key), key, source=self.name))
        rows = len(self.observations)
        if rows == 0:
            raise DatasetError(f"{self.name}: observations has no rows; a data set needs at least one transition")
        keys = ("actions", "next_observations", "rewards", "terminals", "timeouts")
        for key, value in {**{key: getattr(self, key) for key in keys}, **self.infos}.items():
            if len(value) != rows:
                raise DatasetError(
                    f"{self.name}: {key} has {len(value)} rows but observations has {rows}; they must agree"
                )
        if self.next_observations.shape != self.observations.shape:
            raise DatasetError(
                f"{self.name}: next_observations has {self.next_observations.shape[1]} columns but observations has "
                f"{self.observations.shape[1]}; they must agree"
            )
        if self.action_bounds is not None:
            put("action_bounds", _checked_bounds(self.actions, *self.action_bounds, source=self.name))

    def __len__(self) -> int:
        return len(self.observations)

    @cached_property
    def episode_starts(self) -> IntArray:
        """First row of each episode, [E]."""
        ends = np.flatnonzero(self.terminals | self.timeouts)
        starts = np.concatenate([[0], ends + 1])
        return starts[starts < len(self)].astype(np.int64)

    @cached_property
    def episodes(self) -> list[slice]:
        """Rows of each episode, in order."""
        ends = np.append(self.episode_starts[1:], len(self))
        return [slice(int(start), int(end)) for start, end in zip(self.episode_starts, ends, strict=True)]

    @cached_property
    def lengths(self) -> IntArray:
        """Number of transitions of each episode, [E]."""
        return np.diff(self.episode_starts, append=len(self)).astype(np.int64)

    @cached_property
    def returns(self) -> npt.NDArray[np.float64]:
        """Sum of the rewards of each episode, [E], undiscounted, added up in float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    def windows(self, horizon: int) -> IntArray:
        """Rows at which a window of `horizon` transitions starts that lies in one episode, ascending.

        Row i is listed when rows i, …, i + horizon − 1 belong to one episode, so that observations[i:i+horizon] and
        next_observations[i+horizon-1] are horizon + 1 consecutive states. Empty when every episode is shorter.
        """
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; a window needs at least 1 transition")
        ends = np.repeat(self.episode_starts + self.lengths, self.lengths)
        return np.flatnonzero(ends - np.arange(len(self)) >= horizon).astype(np.int64)

    def take(self, episodes: npt.ArrayLike) -> Dataset:
        """The data set of the episodes with these indices, in the order given."""
        chosen = np.asarray(episodes, dtype=np.int64)
        if chosen.size == 0:
            raise ValueError("episodes is empty; a data set needs at least one")
        rows = np.concatenate([np.arange(self.episodes[e].start, self.episodes[e].stop) for e in chosen])
        timeouts = self.timeouts[rows]
        # An episode that ended with the file has no flag; elsewhere it needs one, or the next episode would join it.
        last = np.cumsum(self.lengths[chosen])[:-1] - 1
        timeouts[last] |= ~self.terminals[rows[last]]
        return replace(
            self,
            observations=self.observations[rows],
            actions=self.actions[rows],
            next_observations=self.next_observations[rows],
            rewards=self.rewards[rows],
            terminals=self.terminals[rows],
            timeouts=timeouts,
            infos={key: value[rows] for key, value in self.infos.items()},
        )

    def split(self, fraction: float = 0.9, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Split by episode: `fraction` of the episodes, drawn by `seed`, and the others (training and validation).

        Neighbouring transitions are nearly equal, so a split by rows would validate on what was trained on. Both parts keep
        the order of recording and get at least one episode; ValueError where there is only one.
        """
        count = len(self.episode_starts)
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction is {fraction}; expected a share between 0 and 1, such as 0.9")
        if count < 2:
            raise ValueError(f"{self.name} has one episode; a split by episode needs at least two, so record more")
        first = int(np.clip(round(fraction * count), 1, count - 1))
        order = np.random.default_rng(seed).permutation(count)
        return self.take(np.sort(order[:first])), self.take(np.sort(order[first:]))

    def summary(self) -> dict[str, Any]:
        """Counts, and statistics of lengths and returns, as plain numbers."""
        lengths, returns = self.lengths, self.returns
        quantiles = np.quantile(returns, [0.0, 0.25, 0.5, 0.75, 1.0])
        return {
            "name": self.name,
            "env_id": self.env_id,
            "transitions": len(self),
            "episodes": len(lengths),
            "nx": self.observations.shape[1],
            "nu": self.actions.shape[1],
            "terminals": int(self.terminals.sum()),
            "timeouts": int(self.timeouts.sum()),
            "length_mean": float(lengths.mean()),
            "length_min": int(lengths.min()),
            "length_max": int(lengths.max()),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_quantiles": [float(q) for q in quantiles],
        }

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, env_id={self.env_id!r}, {len(self):,} transitions in {len(self.episode_starts):,} "
            f"episodes, nx={self.observations.shape[1]}, nu={self.actions.shape[1]}, mean return {self.returns.mean():.1f})"
        )


def as_floats(value: Any, key: str, *, ndim: int, source: str) -> FloatArray:
    """`value` as a contiguous float32 array of `ndim` dimensions, every element finite."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{source}: {key} holds {array.dtype}; expected numbers")
    if ndim == 1 and array.ndim == 2 and array.shape[1] == 1:  # some D4RL files store rewards and flags as columns
        array = array[:, 0]
    if array.ndim != ndim:
        expected = "[rows, features]" if ndim == 2 else "[rows]"
        raise DatasetError(f"{source}: {key} has shape {array.shape}; expected {expected}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which is reported below with its row
        array = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(array) if ndim == 1 else np.isfinite(array).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DatasetError(f"{source}: {key} is not finite at row {row} ({array[row]}); remove or repair that episode")
    return array


def as_flags(value: Any, key: str, *, source: str) -> BoolArray:
    """`value` as a bool array [rows]; numbers are accepted where they are 0 or 1."""
    array = np.asarray(value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DatasetError(f"{source}: {key} has shape {array.shape}; expected [rows]")
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DatasetError(f"{source}: {key} is {array[row]} at row {row}; expected 0 or 1")
    return array.astype(np.bool_)


def _checked_bounds(actions: FloatArray, low: Any, high: Any, *, source: str) -> tuple[FloatArray, FloatArray]:
    """Bounds as two [nu] arrays, after checking that every action lies between them up to rounding."""
    nu = actions.shape[1]
    bounds = []
    for side, bound in (("low", low), ("high", high)):
        array = np.asarray(bound, dtype=np.float32)
        if array.shape not in ((), (nu,)):
            raise DatasetError(f"{source}: the {side} action bound has shape {array.shape}; expected [{nu}]")
        bounds.append(np.ascontiguousarray(np.broadcast_to(array, (nu,))))
    lower, upper = bounds
    tolerance = BOUND_TOLERANCE * np.maximum(1.0, np.maximum(np.abs(lower), np.abs(upper)))
    tolerance = np.where(np.isfinite(tolerance), tolerance, 0.0)
    outside = ((actions < lower - tolerance) | (actions > upper + tolerance)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise DatasetError(
            f"{source}: actions at row {row} is {actions[row]}, outside the bounds {lower} to {upper}; "
            "rescale or clip the actions before loading them"
        )
    return lower, upper
