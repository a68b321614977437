"""The backend: from a job to a graph of its bucket, and back to a plan."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from ..._remembered import of_problem
from ...kernels.packing import uncovered
from ...plan import Plan
from ...planner import SGP
from ...problem import Problem
from .. import eager
from ..coverage import foreign_part
from ..custom import CustomCosts, custom_costs
from ..job import Iteration, Job
from ..sampling import SamplingJob
from .calling import in_graph_or_not
from .choice import Key, choose, user_store
from .device import CudaDevice, Device, EagerDevice
from .graphs import GraphCache, GraphStats, bucket
from .work import Make, PlanWork, Slices

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
Jobs = TypeVar("Jobs", Job, SamplingJob)
Used = TypeVar("Used")


def why_unavailable() -> str | None:
    """None where the backend can run on this machine, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it has wheels for Linux): pip install 'triton>=3.6,<4'"
    if interpreting() or torch.cuda.is_available():
        return None
    return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, for tests)"


def interpreting() -> bool:
    """Whether Triton was told to interpret its kernels."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(
    problem: Problem, planner: SGP, device: torch.device, callback: Callable[[Iteration], None] | None
) -> str | None:
    """None where this backend covers the problem, else what it does not cover."""
    if device.type != ("cpu" if interpreting() else "cuda"):
        where = "the CPU, interpreted" if interpreting() else "CUDA devices"
        return f"its kernels run on {where}, and the models are on {device}"
    if planner.precision not in PRECISIONS:
        return f"its kernels plan in {', '.join(PRECISIONS)}, not in {planner.precision}"
    if callback is not None:
        return "a callback wants to see every iteration, and a graph runs them all at once"
    return of_problem(problem, why_not, lambda: foreign_part(problem, lambda part, spec: uncovered(spec)))


@dataclass(frozen=True)
class Fused:
    """The backend. `regime` is "tile", "layered", "grid", "ring" or "relay"; None lets a measurement choose.

    race_eager  eager is measured, too
    """

    reason: str
    regime: str | None = None
    race_eager: bool = False
    name: str = "fused"

    def prepare(self, problem: Problem, planner: SGP, device: torch.device) -> Problem:
        """The problem itself: graphs read its weights where they lie, and so follow what is written to them."""
        return problem

    @torch.no_grad()
    def run(self, job: Job) -> Plan:
        device, rows = job.x0.device, len(job.u)
        size, (job, costs) = bucket(rows), traced(job)
        runs = device_of(device)

        def load(work: PlanWork) -> PlanWork:
            work.load_job(job)
            return work

        def planned(regime: str) -> PlanWork:
            def use(_: Device, cache: GraphCache[Any]) -> PlanWork:
                entry = cache.get(_key(job, size, regime, costs), job.problem.tensors, lambda: made(regime))
                work = load(entry.work)
                entry.graph.replay()
                return work

            return in_graph(job, costs, use)

        def sliced(regime: str) -> PlanWork:
            def use(runs: Device, cache: GraphCache[Any]) -> PlanWork:
                key = ("slices", _key(job, size, regime, costs))
                entry = cache.get(key, job.problem.tensors, lambda: Slices(made(regime), job))
                entry.work.capture(runs)
                work = load(entry.work.plan)
                entry.graph.replay()
                entry.work.run(job, runs)
                return work

            return in_graph(job, costs, use)

        def made(regime: str) -> PlanWork:
            return PlanWork(job.problem, job, size, device, candidates[regime])

        def eagerly() -> Plan:
            planner = job.planner
            prepared = job.problem.prepared(planner.state_dtype, planner.product_dtype, device)
            return eager.Eager("measured fastest").run(replace(job, problem=prepared))

        with using(device):
            candidates = of_problem(
                job.problem, (candidates_of, job.planner, size, device, self.regime, costs.split),
                lambda: candidates_of(job, size, self.regime, costs),
            )  # fmt: skip
            bodies: dict[str, Callable[[], Any]] = {name: functools.partial(planned, name) for name in candidates}
            began, captured = time.perf_counter(), capture_seconds(device)
            bodies |= {"eager": eagerly} if self.race_eager else {}
            regime, why = self._choose(job, size, runs, bodies, costs)
            tuned = time.perf_counter() - began - (capture_seconds(device) - captured)  # captures are counted apart
            if regime == "eager":
                plan = eagerly()
                plan.stats.update(backend="eager", choice=why, tune_seconds=tuned)
                return plan
            work = sliced(regime) if job.deadline < math.inf else planned(regime)
            plan = work.results(rows)
        plan.stats.update(regime=regime, bucket=size, choice=why, tune_seconds=tuned, **told(device, costs))
        return plan

    def _choose(
        self, job: Job, size: int, device: Device, bodies: dict[str, Callable[[], Any]], costs: CustomCosts
    ) -> tuple[str, str]:
        """The way to plan this bucket, and why."""
        if not bodies and costs.split is not None:
            raise ValueError(
                f"backend 'fused:{self.regime}' holds its cost in the kernel, and this one cannot be traced: {costs.split}; "
                "use backend='fused', which calls it between kernels"
            )
        if not bodies:
            raise ValueError(
                f"backend 'fused:{self.regime}' has no tile for networks as wide as these in {job.planner.precision}; use "
                "backend='fused', which takes another regime"
            )
        if len(bodies) == 1:
            return next(iter(bodies)), "asked for"
        if interpreting():
            return next(iter(bodies)), "the first: the interpreter's speed says nothing"
        dtype = job.planner.precision
        key = Key.of(job.problem, device, size, job.planner.horizon, dtype)
        key = replace(key, parts=(*key.parts, *costs.told.items()))
        choice = choose(key, bodies, device, user_store())
        return choice.chosen, choice.reason


def traced(job: Jobs) -> tuple[Jobs, CustomCosts]:
    """The costs of a job that are not of ours, and the job with as much time left as before they were traced."""
    began = time.monotonic()
    costs = custom_costs(job)
    if costs.running is None and costs.terminal is None:
        return job, costs
    return replace(job, deadline=job.deadline + time.monotonic() - began), costs


def candidates_of(
    job: Job, size: int, regime: str | None = None, costs: CustomCosts | None = None
) -> dict[str, Make]:
    """Ways to plan a bucket, by name; those of `regime` where one is asked for."""
    from .grid import grid_plans
    from .layered import layered_plans
    from .relay import relay_plans
    from .ring import ring_plans
    from .tile import tile_plans

    split = (costs or custom_costs(job)).split
    tiles = {} if split else tile_plans(job.problem, job.planner, size, job.x0.device)
    rings = {} if split else ring_plans(job.problem, job.planner, size, job.x0.device, asked=regime == "ring")
    relays = {} if split else relay_plans(job.problem, job.planner, size, job.x0.device, asked=regime == "relay")
    if rings and regime is None:  # on an H200 faster than every tile: of these, which take long to compile, the likeliest
        tiles = dict(list(tiles.items())[:1])
    layered, grids = layered_plans(job.problem, job.planner, size), grid_plans(asked=regime == "grid")
    ways: dict[str, Make] = {**relays, **rings, **tiles, **layered, **grids}
    return {name: make for name, make in ways.items() if regime in (None, name.split()[0])}


def _key(job: Job, size: int, regime: str, costs: CustomCosts) -> Hashable:
    """What a graph is captured for, beside the weights that it reads."""
    parts = tuple(id(part) for part in job.problem.modules.values())
    given = (job.low is not None, job.goal is not None)
    return (parts, job.problem.control_change, job.planner, size, regime, *given, costs)


def device_of(device: torch.device) -> Device:
    """The device interface of a torch device, one for the process."""
    return _of(device.type, _index(device), True)[0]


def graphs_of(device: torch.device, captured: bool = True) -> GraphCache[PlanWork | Slices]:
    """The graphs of a device, one cache for the process: planners share its bounds. Without `captured`, what is no graph."""
    return _of(device.type, _index(device), captured)[1]


def in_graph(job: Job | SamplingJob, costs: CustomCosts, use: Callable[[Device, GraphCache[Any]], Used]) -> Used:
    """`use` of the device and its graphs; of what makes none, where a graph cannot hold a cost that is called."""
    graphs, plain = (_of(job.x0.device.type, _index(job.x0.device), captured) for captured in (True, False))
    return in_graph_or_not(job, costs, graphs, plain, use)


@contextmanager
def using(device: torch.device) -> Iterator[None]:
    """While work of the device's caches is used: it is nobody else's."""
    with graphs_of(device).lock, graphs_of(device, False).lock:
        yield


def capture_seconds(device: torch.device) -> float:
    """What went into captures so far."""
    return graphs_of(device).seconds + graphs_of(device, False).seconds


def told(device: torch.device, costs: CustomCosts) -> dict[str, Any]:
    """What a plan's stats say of graphs, and of costs that are not of ours."""
    stats = graphs_of(device, costs.unheld is None).stats
    return {"graphs": vars(stats).copy(), **costs.told_after(device_of(device).captures)}


@functools.cache
def _of(kind: str, index: int | None, captured: bool) -> tuple[Device, GraphCache[PlanWork | Slices]]:
    device = torch.device(kind, index) if index is not None else torch.device(kind)
    made: Device = CudaDevice(device) if kind == "cuda" and captured else EagerDevice(device)
    return made, GraphCache(made)


def _index(device: torch.device) -> int | None:
    """"cuda" is the current device: the same as "cuda:0" where that is current."""
    return torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index


def graph_stats(device: torch.device | str = "cuda") -> GraphStats:
    """Counts of a device's graphs: hits, misses, captures, recaptures, evictions, entries and bytes."""
    return graphs_of(torch.device(device)).stats
