"""The planner on CPUs in native code: `kernels.cpu` runs all iterations of a chunk in one call; see there for how.

It covers `Dynamics` and `Score` over networks of `Layer`s, every cost, every option of the planner but float64. A cost that
is not of ours is traced and compiled (`kernels.traced`), or, where that cannot be, called back in PyTorch once an iteration.
`why_not` names what is not covered.

Which products. In float32 the engine multiplies in float32, or, where the processor has matrix tiles, as six bfloat16
products, whose error is that of float32 (`tests/test_compiled.py` holds it). Which of the two is a rule of the number of
problems a thread, not a measurement, so that two processes on one machine multiply alike. A few rows take the time that
reading the weights takes, so there those of big matrices are whole numbers of 24 bits and a scale a column, where that costs
less than float32 sums lose (`pack_integers`): another such rule. `Plan.stats["products"]` tells.

How the work is divided among threads is measured, where there is a choice: the first call of a size runs one iteration each
way and keeps the fastest for the process. That changes no result but by the rounding of one-row products.
"""

from __future__ import annotations

import ctypes
import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels.cpu import CCost, CPlan, CQuadratic, Engine, PackedNetwork, Products, Store, check_layout, uncovered
from ..kernels.cpu.pack import PRODUCTS, STAGES
from ..kernels.traced.trace import pack_params
from ..plan import Plan
from ..planner import SGP
from ..problem import Problem
from .bounding import Bounding
from .coverage import foreign_part
from .custom import Called, CustomCosts, Traced, is_custom, sights
from .eager import Conditions, Evaluation, Search, conclude, start
from .job import LOOK, Iteration, Job
from .native_costs import Callback, compiled_cost, traced
from .sight import Sight
from .stages import Watch, span, watched
from .version import Version, version

# Rows that one thread plans together: two tiles, and enough for every micro-kernel; a block's activations stay in its cache.
BLOCK_ROWS = 32
# Rows of a pass over all T·R rows of score and cost. More read the weights less often, and fall out of the cache sooner: 64
# and 256 were alike for 64 problems at width 256.
PASS_ROWS = 64
# From so many problems a thread on, six bfloat16 products beat float32: a tile has 16 rows, and below they are partly empty.
# Measured at widths 256 and 1024 on two threads: slower at 4, 8 and 12 problems a thread, faster from 16 on.
SIX_PRODUCTS_FROM = 16
# Products of up to so many rows a thread may take weights of 24 bits. Measured at width 1024 on two threads: 4 and 8
# problems gained a quarter and a tenth; with all products so, of up to 64 rows, less: every block of rows decodes anew.
INTEGERS_UP_TO = 8
# How long a trial of a division runs.
TRIAL_SECONDS = 0.005
WORDS = {"fp32": "fp32", "bf16": "bf16", "bf16x6": "fp32 as six bf16 products"}


def why_not(
    problem: Problem, planner: SGP, device: torch.device, callback: Callable[[Iteration], None] | None
) -> str | None:
    """None where this backend covers the problem, else what it does not cover."""
    if device.type != "cpu":
        return f"native code runs on the CPU, and the models are on {device}"
    if planner.precision not in ("float32", "tf32", "bfloat16"):
        return f"native code plans in float32 and bfloat16, not in {planner.precision}"
    if callback is not None:
        return "a callback wants to see every iteration, and native code runs them all in one call"
    return foreign_part(problem, lambda part, spec: uncovered(spec, table=part == "score"))


@dataclass(frozen=True)
class Division:
    """How a call is divided: by columns of every product, all threads on all rows; or into blocks of rows, a thread each."""

    threads: int
    by_columns: bool

    def __str__(self) -> str:
        shared = "columns of each product" if self.by_columns else f"blocks of {BLOCK_ROWS} problems"
        return f"{self.threads} threads over {shared}" if self.threads > 1 else "1 thread"


@dataclass(frozen=True)
class Packed:
    """A prepared problem as the engine reads it; the C structures point into `keep`."""

    dynamics: PackedNetwork
    score: PackedNetwork | None
    running: PackedNetwork | None
    terminal: PackedNetwork | None
    keep: dict[str, Tensor]

    @property
    def integers(self) -> bool:
        """Some weights are whole numbers of 24 bits."""
        return any(net is not None and net.integers for net in (self.dynamics, self.score, self.running, self.terminal))


# A problem is prepared anew when a weight has changed, and packed once for each time that it was prepared.
State = tuple[Version, tuple[Sight, ...]]
_prepared: weakref.WeakKeyDictionary[Problem, dict[torch.dtype, tuple[State, Problem]]] = weakref.WeakKeyDictionary()
_packed: weakref.WeakKeyDictionary[Problem, dict[tuple, Packed]] = weakref.WeakKeyDictionary()
_fastest: dict[tuple, Division] = {}


def packed(engine: Engine, problem: Problem, products: Products, wide: bool, few: tuple[bool, bool]) -> Packed:
    """The problem's weights, packed for these products; kept with the problem.

    `few`: whether the products of a step (dynamics, terminal cost) have few rows; those of all steps (score, running cost).
    """
    kept = _packed.setdefault(problem, {})
    key = engine, products, wide, few
    if key in kept:
        return kept[key]

    store = Store(engine)

    def network(part: Any) -> PackedNetwork | None:
        if is_custom_cost(problem, part) or getattr(part, "network", None) is None:
            return None
        net, z = part.network, part.normalizer
        integers = few[part is problem.score or part is problem.cost]
        return PackedNetwork(store, net.spec, net.weights, z.b, z.k, products, wide, integers)

    keep: dict[str, Tensor] = {"scale": problem.dynamics.scale.contiguous()}
    if problem.score is not None:
        noise = problem.score.output == "noise"
        keep["sigma"] = problem.score.sigmas.contiguous() if noise else torch.ones_like(problem.score.sigmas)
    for name, part, matrix in (("Q", problem.cost, "Q"), ("R", problem.cost, "R"), ("Qd", problem.terminal, "Q")):
        if not is_custom(part) and (m := getattr(part, matrix, None)) is not None:
            keep[name] = (m + m.T).contiguous()
    dynamics = network(problem.dynamics)
    assert dynamics is not None
    made = Packed(dynamics, network(problem.score), network(problem.cost), network(problem.terminal), keep)
    kept[key] = made
    return made


@dataclass(frozen=True)
class Call:
    """One chunk for the engine. `run` may be called again and again: it starts from the same search each time."""

    engine: Engine
    job: Job
    at: Conditions
    bounding: Bounding
    search: Search
    products: Products
    custom: CustomCosts

    def weights(self, division: Division) -> Packed:
        """The weights as this division reads them; which are whole numbers does not depend on it, for it is measured."""
        T, R = self.search.v.shape[:2]
        few = -(-R // torch.get_num_threads()) <= INTEGERS_UP_TO, T * R <= INTEGERS_UP_TO
        return packed(self.engine, self.job.problem, self.products, division.by_columns, few)

    def run(self, division: Division, iterations: int, watch: Watch | None = None) -> dict[str, Tensor]:
        """The search after `iterations`, and the evaluation of its last iterate, by the names of `CPlan`, rows first.

        `watch` is told how long each stage took, by the engine's clock: the mean over its threads, idle ones included.
        """
        job, at, search, tables = self.job, self.at, self.search, self.job.tables
        problem, planner = job.problem, job.planner
        T, R, nu = search.v.shape
        nx = at.x0.shape[1]
        net = self.weights(division)
        empty = at.x0.new_empty
        flags = lambda: torch.zeros(R, dtype=torch.bool)  # noqa: E731
        out = {
            "v": _copied(search.v.transpose(0, 1)), "m": _copied(search.m.transpose(0, 1)),
            "s": _copied(search.s.transpose(0, 1)), "count": _copied(search.count),
            "active": flags(), "diverged": flags(), "converged": flags(), "taken": torch.zeros(R, dtype=torch.int32),
            "x": empty(R, T + 1, nx), "costate": empty(R, T + 1, nx), "grad_u": empty(R, T, nu),
            "running_cost": empty(R, T), "terminal_cost": empty(R), "change_cost": empty(R),
        }  # fmt: skip
        if problem.score is not None:
            out["score_value"] = empty(R, T, nx + nu)
        if planner.record_cost:
            out["history"] = at.x0.new_full((R, planner.iterations), torch.nan)
        held = {
            "beta": torch.tensor(tables.beta, dtype=torch.float32), "x0": at.x0.contiguous(),
            "step_size": torch.tensor(tables.step_size, dtype=torch.float32),
            "level": torch.tensor(tables.levels, dtype=torch.int32),
        }  # fmt: skip
        if self.bounding.low is not None and self.bounding.high is not None:
            wide = max(len(self.bounding.low), len(self.bounding.high))
            held["low"] = self.bounding.low.expand(wide, nu).contiguous()
            held["high"] = self.bounding.high.expand(wide, nu).contiguous()
        goal = None if at.goal is None else at.goal.expand(R, nx).contiguous()
        made = self._cost(net, "running", goal), self._cost(net, "terminal", goal)
        costs = tuple(cost for cost, _ in made)
        c = CPlan(
            rows=R, horizon=T, nx=nx, nu=nu, iterations=iterations, settled=tables.settled,
            products=PRODUCTS.index(self.products), threads=division.threads, by_columns=division.by_columns,
            block_rows=min(BLOCK_ROWS, -(-R // division.threads)), pass_rows=PASS_ROWS,
            tanh_bounds=planner.bounding == "tanh",
            dynamics=net.dynamics.address, score=net.score.address if net.score else None,
            dynamics_scale=net.keep["scale"].data_ptr(), running=costs[0], terminal=costs[1],
            control_change=problem.control_change, penalty=tables.penalty, look=LOOK, adam=planner.adam,
            clip=planner.clip_gradient or math.inf, tolerance=planner.tolerance, seconds=job.deadline - time.monotonic(),
            bound_stride=nu if "low" in held and len(held["low"]) > 1 else 0,
        )  # fmt: skip
        c.score_sigma = net.keep["sigma"].data_ptr() if net.score else None
        for name, t in (out | held).items():
            setattr(c, name, t.data_ptr())
        clock = None if watch is None else torch.zeros(division.threads, len(STAGES), dtype=torch.float64)
        c.clock = None if clock is None else clock.data_ptr()
        if self.engine.library.sgp_solve(ctypes.byref(c)) != 0:
            raise MemoryError(f"no memory for a batch of {R}; lower SGP.memory_limit")
        for _, called in made:
            if isinstance(called, Callback) and called.failed:
                raise called.failed[0]
        if watch is not None and clock is not None:
            for name, seconds in zip(STAGES, clock.mean(0).tolist(), strict=True):
                watch.add(name, seconds)
        return out

    def _cost(self, net: Packed, which: str, goal: Tensor | None) -> tuple[CCost, Any]:
        """The structure, and what must live as long as it is read."""
        part = self.job.problem.cost if which == "running" else self.job.problem.terminal
        cost = CCost(present=part is not None, sign=-1.0 if which == "terminal" else 1.0)
        custom = self.custom.running if which == "running" else self.custom.terminal
        if isinstance(custom, Traced):
            params = pack_params(self.at.params, custom.features)
            cost.function = compiled_cost(custom).value
            if goal is not None:
                cost.goal, cost.goal_stride = goal.data_ptr(), goal.shape[1]
            if params is not None:
                cost.params, cost.params_stride = params.data_ptr(), params.shape[1]
            return cost, params
        if isinstance(custom, Called):
            callback = Callback(part, self.at, self.search.v.shape[2], which == "terminal")
            cost.function = ctypes.cast(callback.pointer, ctypes.c_void_p).value
            return cost, callback
        network = net.running if which == "running" else net.terminal
        if network is not None:
            cost.network = network.address
        elif part is not None:
            cost.x = _quadratic(net.keep["Q" if which == "running" else "Qd"], goal, part.goal)
            if which == "running":
                cost.u = _quadratic(net.keep["R"], None, None)
        return cost, None


def is_custom_cost(problem: Problem, part: Any) -> bool:
    """Whether a part is a cost, and not one of ours."""
    return (part is problem.cost or part is problem.terminal) and is_custom(part)


@dataclass(frozen=True)
class Compiled:
    """The backend: native code on the CPU."""

    engine: Engine
    reason: str
    name: str = "compiled"

    def __post_init__(self) -> None:
        check_layout(self.engine)

    def prepare(self, problem: Problem, planner: SGP, device: torch.device) -> Problem:
        """The problem in the planner's dtypes, kept, with the weights that are packed from it, until a weight changes."""
        kept, now = _prepared.setdefault(problem, {}), (version(problem), sights(problem.cost, problem.terminal))
        dtype = planner.product_dtype
        if dtype not in kept or kept[dtype][0] != now:
            # A new object in any case: to hold the problem itself here would keep it alive for ever.
            kept[dtype] = now, replace(problem.prepared(planner.state_dtype, dtype, device))
        return kept[dtype][1]

    @torch.no_grad()
    def run(self, job: Job) -> Plan:
        at, bounding, search = start(job)
        products = choose_products(self.engine, job.planner, search.v.shape[1])
        job, custom = traced(job)
        call = Call(self.engine, job, at, bounding, search, products, custom)
        began = time.monotonic()
        division = fastest(call)
        tuned = time.monotonic() - began
        call.weights(division)
        # What a first call packs is not of the plan's time.
        call = replace(call, job=replace(job, deadline=job.deadline + time.monotonic() - began))
        with span("native engine"):
            out = call.run(division, job.planner.iterations, watched())

        def steps(name: str) -> Tensor:  # time first, as the eager planner has it
            return out[name].transpose(0, 1)

        search = Search(
            v=steps("v"), good=steps("v"), m=steps("m"), s=steps("s"), count=out["count"],
            active=out["active"], diverged=out["diverged"], converged=out["converged"],
        )  # fmt: skip
        evaluation = Evaluation(
            x=steps("x"), costate=steps("costate"), grad_u=steps("grad_u"), running=steps("running_cost"),
            terminal=out["terminal_cost"], change=out["change_cost"],
            score=steps("score_value") if "score_value" in out else None,
        )  # fmt: skip
        plan = conclude(job, bounding, search, evaluation, out["taken"], out.get("history"))
        plan.stats.update(
            products=WORDS[products] + ", weights of 24 bits" * call.weights(division).integers,
            instructions=self.engine.instructions, division=str(division),
            compile_seconds=self.engine.seconds, **custom.told,
        )  # fmt: skip
        plan.stats["tune_seconds"] = tuned
        return plan


def choose_products(engine: Engine, planner: SGP, rows: int) -> Products:
    """What the products are made of; see the module's docstring."""
    if planner.precision == "bfloat16":
        return "bf16"
    return "bf16x6" if engine.tiles and rows >= SIX_PRODUCTS_FROM * torch.get_num_threads() else "fp32"


def fastest(call: Call) -> Division:
    """The fastest division of a chunk of this size: each way runs some iterations three times, and its best counts.

    As many iterations as take some milliseconds, beside which the start of a thread is little. Another way than the
    likeliest must win by a tenth: what is kept is kept. A call with a time limit has no time to try, and takes what is
    known, or the likeliest.
    """
    job, rows, threads = call.job, call.search.v.shape[1], torch.get_num_threads()
    ways = divisions(rows, threads)
    net = call.weights(ways[0])
    widths = tuple(n.widths for n in (net.dynamics, net.score, net.running, net.terminal) if n is not None)
    costs = tuple(call.custom.told.values())
    key = (call.engine, widths, costs, job.planner.horizon, rows.bit_length(), call.products, threads)
    if (known := _fastest.get(key)) in ways:
        return known
    if len(ways) == 1 or job.deadline < math.inf:
        return ways[0]

    def run(way: Division, iterations: int) -> float:
        began = time.perf_counter()
        call.run(way, iterations)
        return time.perf_counter() - began

    iterations = min(job.planner.iterations, max(1, int(TRIAL_SECONDS / run(ways[0], 1))))
    seconds = dict.fromkeys(ways, math.inf)
    for _ in range(3):
        for way in ways:
            seconds[way] = min(seconds[way], run(way, iterations))
    best = min(ways, key=lambda way: seconds[way])
    _fastest[key] = best if seconds[best] < 0.9 * seconds[ways[0]] else ways[0]
    return _fastest[key]


def divisions(rows: int, threads: int) -> list[Division]:
    """Ways to divide the work, the likeliest first.

    Blocks of rows need no barriers, and so win wherever every thread has a few rows; a block never holds a single row, whose
    products would round differently. With less, threads share columns. Barriers cost more the more threads meet, so halves
    of the threads are tried too; and with a few rows each, whether it is better to read every weight once.
    """
    if threads == 1:
        return [Division(1, by_columns=False)]
    ways = [Division(threads, by_columns=False)] if rows >= 2 * threads else []
    if rows < 8 * threads:
        ways += [Division(max(1, threads >> i), by_columns=True) for i in range(1 if ways else threads.bit_length())]
    return ways


def _quadratic(matrix: Tensor, goal: Tensor | None, default: Tensor | None) -> CQuadratic:
    """`(x − goal)ᵀ Q (x − goal)` with S = Q + Qᵀ; a goal a row, one for all, or the origin."""
    goal, stride = (default, 0) if goal is None else (goal, goal.shape[1])
    return CQuadratic(matrix.data_ptr(), None if goal is None else goal.data_ptr(), len(matrix), stride)


def _copied(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)
