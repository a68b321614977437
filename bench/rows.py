"""What was measured, a frozen row each; `records.py` keeps them in files, `schema.json` says the same to other readers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One rung at one case: how right its plan is, and how long one takes.

    samples   seconds for the whole batch, one a round; where only `timed` of the `problems` were planned, scaled to all
    error     ‖u − u₆₄‖/‖u₆₄‖ against float64 over the first problems, at most `limit`; of planners of another kind the
              error of the cost that they foresee
    cost      mean task cost of the controls that it found for these, in float64; `penalty`: that of leaving the data. The
              first 16 problems, or the one, where a rung plans one at a time
    flops     of the batch, 2 a multiply-add, counting what the plan needs (`work.py`), not what a rung did
    bytes     of weights that a batch reads at least: every network once for each product that must wait for another
    launches  kernels (CPU: operators) that an iteration starts, for the whole batch
    memory    bytes allocated at the most in a plan, beyond what was held before
    graphs    bytes of the graphs that the first plan captured, those of ways that were only measured among them
    joules    of a batch, where the driver tells it
    reason    why there is no time
    """

    kind: ClassVar[str] = "plan"
    case: str
    model: str
    problems: int
    horizon: int
    iterations: int
    precision: str
    device: str
    rung: str
    label: str
    family: str
    timed: int = 0
    samples: tuple[float, ...] = ()
    error: float | None = None
    limit: float | None = None
    cost: float | None = None
    penalty: float | None = None
    flops: float | None = None
    bytes: float | None = None
    launches: float | None = None
    memory: float | None = None
    graphs: float | None = None
    joules: float | None = None
    chosen: str | None = None
    reason: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What makes rows of two files comparable: the same case, the same rung."""
        return self.case, self.rung

    def quantile(self, q: float) -> float | None:
        """Seconds for the batch; the 99th percentile only of fifty samples and more."""
        if not self.samples or (q > 0.9 and len(self.samples) < 50):
            return None
        return float(np.quantile(self.samples, q))

    @property
    def p50(self) -> float | None:
        return self.quantile(0.5)

    @property
    def plans_per_second(self) -> float | None:
        return None if self.p50 is None else self.problems / self.p50


@dataclass(frozen=True, kw_only=True)
class CeilingRow:
    """What the machine gave in this run: a big matrix product (FLOP/s), a big copy (bytes read and written a second)."""

    kind: ClassVar[str] = "ceiling"
    what: str
    precision: str | None
    device: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class ColdRow:
    """What a rung costs before it plans at full speed, in a process of its own with empty caches; all seconds.

    first   the first plan, all that it compiles, tunes and captures included; `warm`: a plan after that
    parts   of `first`, where they are known: made (the runner), build (the native engine)
    pays    plans after which import, first plan and warm plans together take less than with `eager`; None: never
    """

    kind: ClassVar[str] = "cold"
    case: str
    device: str
    rung: str
    label: str
    imports: float | None = None
    first: float | None = None
    warm: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    pays: int | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ActRow:
    """A controller's step end to end: observations on the host in, actions on the host out. Seconds, one sample a step."""

    kind: ClassVar[str] = "act"
    case: str
    device: str
    rung: str
    label: str
    problems: int
    samples: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReturnRow:
    """Closed loop: what a controller earned in an environment, and what an action cost.

    returns    one an episode, `seeds` in the same order; `normalized`: by D4RL's references, approximate on v5 environments
    group      "precision": the same planner by backend and dtype; "budget": one planner by its budget; "data": the behaviour
    """

    kind: ClassVar[str] = "return"
    task: str
    group: str
    planner: str
    setting: str
    backend: str
    precision: str
    device: str
    seeds: tuple[int, ...]
    steps: int
    returns: tuple[float, ...] = ()
    normalized: tuple[float, ...] = ()
    milliseconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """Where an iteration of a plan goes: one stage of the algorithm. Seconds and launches an iteration, for the batch.

    floor   the least that the stage could take by the ceilings of the same run: the larger of FLOPs and bytes over theirs
    """

    kind: ClassVar[str] = "stage"
    case: str
    device: str
    backend: str
    stage: str
    seconds: float
    launches: float | None = None
    flops: float | None = None
    bytes: float | None = None
    floor: float | None = None


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """What the compiler made of a kernel, ahead of time: see `bench.static`, which tells what the columns are."""

    kind: ClassVar[str] = "kernel"
    kernel: str
    network: str
    dtype: str
    arch: int
    tile: dict[str, Any] | None
    warps: int
    registers: int
    stack: int
    spills: int
    shared: int
    tensor_memory: int
    instructions: dict[str, int]
    resident: int
    flops_us: float | None
    bytes_us: float | None
    compile_s: float


Row = PlanRow | CeilingRow | ColdRow | ActRow | ReturnRow | StageRow | KernelRow
KINDS: dict[str, type[Any]] = {row.kind: row for row in get_args(Row)}
