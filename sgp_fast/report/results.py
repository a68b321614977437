"""The results of a demo run: what was measured, as frozen values that know how to be kept in a folder.

Nothing here is computed: the demo measures, the report shows, and between them lies this.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .storage import load_tree, save_tree

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

METHODS = ("behavior", "sgp", "no_score", "cem", "random_shooting")
PLANNED = ("sgp", "no_score")
ROWS = ("published", "plain", "eager", "compiled", "bf16")


@dataclass(frozen=True, eq=False)
class Circumstances:
    """Where, when and with what a run was made; a number without these says nothing.

    device         as a person would name it, for example the processor's model
    cores          those that the run could use
    versions       library to version, in the order to be shown
    date           ISO 8601
    stage_seconds  stage of the run to its seconds, in the order they ran
    """

    commit: str | None
    device: str
    cores: int
    torch_threads: int
    versions: dict[str, str]
    date: str
    config: str
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DatasetSummary:
    """The offline data of a task; mean and spread of the returns are over its episodes."""

    name: str
    transitions: int
    episodes: int
    return_mean: float
    return_std: float


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """The losses of one network over training, `[K]` each; NaN where one was not measured at a step."""

    network: str
    steps: IntArray
    train_loss: FloatArray
    validation_loss: FloatArray
    seconds: float

    def __post_init__(self) -> None:
        _arrays(self, steps="K", train_loss="K", validation_loss="K")


@dataclass(frozen=True, eq=False)
class MethodResult:
    """The closed-loop episodes of one method; all methods of a task share seeds and the number of steps.

    key                   one of METHODS; decides the colour and the place
    label                 as shown, for example "SGP" or "SGP without score (β = 0)"
    returns               undiscounted return of each episode, `[episodes]`
    lengths               steps that each episode lasted, `[episodes]`; fewer than the task's `episode_steps` is a fall
    interval              95% interval of the mean return, (low, high); NaN where one episode gives none
    normalized            mean D4RL score in percent, None where the task has no reference
    approximate           the references of the score belong to another version of the environment
    milliseconds          per action and environment, planning included; None where there is nothing to time
    settings              of the method, JSON values
    """

    key: str
    label: str
    returns: FloatArray
    lengths: IntArray
    interval: tuple[float, float]
    normalized: float | None = None
    approximate: bool = True
    milliseconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("MethodResult.key", self.key, METHODS)
        _arrays(self, returns="episodes", lengths="episodes")
        if not len(self.returns):
            raise ValueError(f"MethodResult {self.key!r} has no episodes; leave the method out where it did not run")

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))


@dataclass(frozen=True, eq=False)
class Telemetry:
    """Plans of B starts taken from the data, seen from inside; every method plans the same starts.

    key              one of PLANNED
    cost_history     task cost that the model predicts after 0, 1, ... N-1 steps, `[B, N]` (`Plan.history`); NaN after a
                     problem has stopped
    predicted_cost   task cost that the model predicts for the plan that is returned, `[B]`
    real_iterations  steps after which the plan was also executed in the environment, `[M]`, the last being N
    real_cost        minus the reward that the environment paid for those controls, `[B, M]`, in the unit of the cost
    score_norm       ‖s̄‖ along the horizon of the returned plan, `[B, T]`
    """

    key: str
    cost_history: FloatArray
    predicted_cost: FloatArray
    real_iterations: IntArray
    real_cost: FloatArray
    score_norm: FloatArray

    def __post_init__(self) -> None:
        _one_of("Telemetry.key", self.key, PLANNED)
        _arrays(
            self, cost_history="B N", predicted_cost="B", real_iterations="M", real_cost="B M", score_norm="B T"
        )
        if not len(self.real_iterations):
            raise ValueError("Telemetry.real_iterations is empty; execute at least the returned plan")


@dataclass(frozen=True, eq=False)
class OpenLoop:
    """K plans executed without feedback from the simulator state that they were made for.

    key        one of PLANNED
    predicted  states that the model foresees, `[K, T+1, nx]`
    real       states that the environment went through, `[K, T+1, nx]`; NaN after a fall
    scale      what counts as 1 in each dimension, `[nx]`: the spread of the data
    dims       which dimensions are plotted, and `names` what they are called, with units
    """

    key: str
    predicted: FloatArray
    real: FloatArray
    scale: FloatArray
    dims: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _one_of("OpenLoop.key", self.key, PLANNED)
        _arrays(self, predicted="K T+1 nx", real="K T+1 nx", scale="nx")
        nx = self.predicted.shape[-1]
        if len(self.dims) != len(self.names) or not all(0 <= dim < nx for dim in self.dims):
            raise ValueError(
                f"OpenLoop.dims={self.dims} and names={self.names} must be as many, and each dim below nx={nx}"
            )


@dataclass(frozen=True, eq=False)
class Frame:
    """One rendered picture: the step it was taken at, the return gathered until then, the PNG file's bytes."""

    step: int
    return_so_far: float
    png: bytes

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"Frame.png of step {self.step} is no PNG file: it starts with {self.png[:8]!r}")


@dataclass(frozen=True, eq=False)
class FrameStrip:
    """Pictures of one episode of a method; `fell_at` is the step it ended at before its time, None if it lasted."""

    key: str
    frames: tuple[Frame, ...]
    total_return: float
    fell_at: int | None = None

    def __post_init__(self) -> None:
        _one_of("FrameStrip.key", self.key, METHODS)


@dataclass(frozen=True, eq=False)
class TaskResults:
    """Everything about one environment and its data. What did not run is absent; `missing` then says why.

    episode_steps  the most steps an episode was given
    missing        part of the report ("frames", "telemetry", "open_loop", "training") to the reason for its absence
    """

    env_id: str
    dataset: DatasetSummary
    episode_steps: int
    methods: tuple[MethodResult, ...]
    training: tuple[TrainingCurve, ...] = ()
    telemetry: tuple[Telemetry, ...] = ()
    open_loop: tuple[OpenLoop, ...] = ()
    frames: tuple[FrameStrip, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("methods", "telemetry", "open_loop", "frames"):
            keys = [item.key for item in getattr(self, name)]
            if len(set(keys)) != len(keys):
                raise ValueError(f"TaskResults.{name} of {self.env_id} names a method twice: {keys}")

    def method(self, key: str) -> MethodResult | None:
        return next((method for method in self.methods if method.key == key), None)


@dataclass(frozen=True, eq=False)
class ThroughputRow:
    """The speed of one way to plan; None where its plans were wrong or it could not run, and `note` says why.

    key         one of ROWS; "published" is what the others are compared with
    problems    planned together
    *_seconds   quantiles of the time for all of them
    final_cost  mean task cost that the plans reached, over the same starts in all rows of as many problems
    """

    key: str
    label: str
    problems: int
    plans_per_second: float | None
    p50_seconds: float | None
    repeats: int
    final_cost: float | None = None
    p20_seconds: float | None = None
    p80_seconds: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _one_of("ThroughputRow.key", self.key, ROWS)


@dataclass(frozen=True, eq=False)
class Throughput:
    """Speeds on one machine in one run; `case` names the shape, for example "T = 8, 50 iterations, 4×256, fp32"."""

    case: str
    rows: tuple[ThroughputRow, ...]


@dataclass(frozen=True, eq=False)
class Results:
    """One run of the demo: one task, or several. `notes` are sentences that a reader must know."""

    circumstances: Circumstances
    tasks: tuple[TaskResults, ...]
    throughput: Throughput | None = None
    notes: tuple[str, ...] = ()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `results.json` and `arrays.npz` into a folder, each atomically; returns the folder."""
        return save_tree(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Results:
        """The results that `save` wrote; FileNotFoundError or ValueError with the remedy."""
        return load_tree(cls, folder)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")


def _arrays(item: Any, **shapes: str) -> None:
    """Make the named fields NumPy arrays and hold them to their shapes, in which equal letters are equal sizes."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        where = f"{type(item).__name__}.{name}"
        value = np.asarray(getattr(item, name))
        axes = shape.split()
        if value.ndim != len(axes) or value.dtype.kind not in "fiub":
            raise ValueError(f"{where} has shape {value.shape} and dtype {value.dtype}; expected numbers [{shape}]")
        for axis, size in zip(axes, value.shape, strict=True):
            known, first = sizes.setdefault(axis, (size, where))
            if size != known:
                raise ValueError(f"{where} has {axis}={size} where {first} has {axis}={known}; they must agree")
        object.__setattr__(item, name, value)
