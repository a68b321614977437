"""What was measured, a frozen row each; `records.py` keeps them in files, `schema.json` says the same to other readers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import numpy as np

from sgp_fast.kernels.tiling import Tile
from sgp_fast.report.numbers import wide_spread

# How the reason begins of a rung that could run, and was not measured because it did not fit in the time of the run.
LEFT_OUT = "left out for time"


@dataclass(frozen=True, kw_only=True)
class OfRung:
    """What rows of a rung at a case have in common; `reason`: why it has no numbers there."""

    case: str
    device: str
    rung: str
    label: str
    reason: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What makes rows of two files comparable: the same case, the same rung."""
        return self.case, self.rung

    @property
    def left_out(self) -> bool:
        """A run with more time would measure it."""
        return self.reason is not None and self.reason.startswith(LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class PlanRow(OfRung):
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
    """

    kind: ClassVar[str] = "plan"
    model: str
    problems: int
    horizon: int
    iterations: int
    precision: str
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

    def quantile(self, q: float) -> float | None:
        """Seconds for the batch; the 99th percentile only of fifty samples and more."""
        if not self.samples or (q > 0.9 and len(self.samples) < 50):
            return None
        return float(np.quantile(self.samples, q))

    @property
    def p50(self) -> float | None:
        return self.quantile(0.5)

    @property
    def wide_spread(self) -> str | None:
        """The 20th and 80th percentile of the time in words where they are far apart; None where it is steady."""
        return wide_spread(self.quantile(0.2), self.quantile(0.8))

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
class ColdRow(OfRung):
    """What a rung costs before it plans at full speed, in a process of its own with empty caches; all seconds.

    first   the first plan, all that it compiles, tunes and captures included; `warm`: a plan after that
    parts   of `first`, where they are known: made (the runner), build (the native engine), tune (ways measured), capture
            (graphs)
    pays    plans after which import, first plan and warm plans together take less than with `eager`; None: never
    """

    kind: ClassVar[str] = "cold"
    imports: float | None = None
    first: float | None = None
    warm: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    pays: int | None = None


@dataclass(frozen=True, kw_only=True)
class ActRow(OfRung):
    """A controller's step end to end: observations on the host in, actions on the host out. Seconds, one sample a step."""

    kind: ClassVar[str] = "act"
    problems: int
    samples: tuple[float, ...] = ()


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
    """What the compiler made of a kernel, ahead of time (`bench.static`), for an architecture `arch`, sm_90 being 90.

    stack, shared     bytes a program; `spills`: local loads and stores in the code; `tensor_memory`: columns
    instructions      how many there are of each kind that tells how a kernel works
    resident          programs that a multiprocessor holds at once
    flops_us, bytes_us  the two sides of the roofline of a launch; None for chips that were not measured
    """

    kind: ClassVar[str] = "kernel"
    kernel: str
    network: str
    dtype: str
    arch: int
    tile: Tile | None
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

    @property
    def bound(self) -> str:
        """The longer side of the roofline."""
        if self.flops_us is None or self.bytes_us is None:
            return "—"
        side = "FLOPs" if self.flops_us > self.bytes_us else "bytes"
        return f"{max(self.flops_us, self.bytes_us):,.0f} µs {side}"

    @property
    def division(self) -> str:
        """Tile, warps and stages in short."""
        tile = self.tile
        if tile is None:
            return f"w{self.warps}"
        return f"{tile.block_b}×{tile.block_n}×{tile.block_k} w{tile.warps} s{tile.stages}"


Row = PlanRow | CeilingRow | ColdRow | ActRow | ReturnRow | StageRow | KernelRow
KINDS: dict[str, type[Any]] = {row.kind: row for row in get_args(Row)}
