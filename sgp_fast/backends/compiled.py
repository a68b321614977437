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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels.cpu import CCost, CPlan, Engine, Products, check_layout, uncovered
from ..kernels.cpu.pack import STAGES
from ..plan import Plan
from ..planner import SGP
from ..problem import Problem
from ..sampling import Sampler
from .bounding import Bounding
from .coverage import foreign_part
from .custom import Called, CustomCosts
from .eager import Conditions, Evaluation, Search, conclude, start
from .job import LOOK, Iteration, Job
from .native_costs import Callback, traced
from .native_problem import Packed, Rows, cost_struct, packed, prepared, problem_struct
from .stages import Watch, span, watched

# Rows that one thread plans together: two tiles, and enough for every micro-kernel; a block's activations stay in its cache.
BLOCK_ROWS = 32
# From so many problems a thread on, six bfloat16 products beat float32: a tile has 16 rows, and below they are partly empty.
# Measured at widths 256 and 1024 on two threads: slower at 4, 8 and 12 problems a thread, faster from 16 on.
SIX_PRODUCTS_FROM = 16
# Products of up to so many rows a thread may take weights of 24 bits. Measured at width 1024 on two threads: 4 and 8
# problems gained a quarter and a tenth; with all products so, of up to 64 rows, less: every block of rows decodes anew.
INTEGERS_UP_TO = 8
# How long a trial of a division runs.
TRIAL_SECONDS = 0.005
PRECISIONS = ("float32", "tf32", "bfloat16")
WORDS = {"fp32": "fp32", "bf16": "bf16", "bf16x6": "fp32 as six bf16 products"}


def why_not(
    problem: Problem, planner: SGP, device: torch.device, callback: Callable[[Iteration], None] | None
) -> str | None:
    """None where this backend covers the problem, else what it does not cover."""
    if device.type != "cpu":
        return f"native code runs on the CPU, and the models are on {device}"
    if planner.precision not in PRECISIONS:
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


_fastest: dict[tuple, Division] = {}


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
            "beta": torch.tensor(tables.beta, dtype=torch.float32),
            "step_size": torch.tensor(tables.step_size, dtype=torch.float32),
            "level": torch.tensor(tables.levels, dtype=torch.int32),
        }  # fmt: skip
        goal = None if at.goal is None else at.goal.expand(R, nx).contiguous()
        made = self._cost(net, False, goal), self._cost(net, True, goal)
        rows = Rows(at.x0, self.bounding.low, self.bounding.high, nu, T)
        costs = made[0][0], made[1][0]
        whole, alive = problem_struct(net, problem, rows, costs, self.products, division.threads, BLOCK_ROWS)
        c = CPlan(
            problem=whole, iterations=iterations, settled=tables.settled, by_columns=division.by_columns,
            tanh_bounds=planner.bounding == "tanh", penalty=tables.penalty, look=LOOK, adam=planner.adam,
            clip=planner.clip_gradient or math.inf, tolerance=planner.tolerance, seconds=job.deadline - time.monotonic(),
        )  # fmt: skip
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

    def _cost(self, net: Packed, terminal: bool, goal: Tensor | None) -> tuple[CCost, Any]:
        """The structure, and what must live as long as it is read."""
        custom = self.custom.terminal if terminal else self.custom.running
        if not isinstance(custom, Called):
            return cost_struct(net, self.job.problem, terminal, custom, goal, self.at.params)
        part = self.job.problem.terminal if terminal else self.job.problem.cost
        callback = Callback(part, self.at, self.search.v.shape[2], terminal)
        return CCost(present=True, function=ctypes.cast(callback.pointer, ctypes.c_void_p).value), callback


@dataclass(frozen=True)
class Compiled:
    """The backend: native code on the CPU."""

    engine: Engine
    reason: str
    name: str = "compiled"

    def __post_init__(self) -> None:
        check_layout(self.engine)

    def prepare(self, problem: Problem, planner: SGP, device: torch.device) -> Problem:
        return prepared(problem, planner, device)

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
        given = (job.problem, job.planner, job.tables.penalty)
        plan = conclude(*given, bounding, search, evaluation, out["taken"], out.get("history"))
        plan.stats.update(
            products=WORDS[products] + ", weights of 24 bits" * call.weights(division).integers,
            instructions=self.engine.instructions, division=str(division),
            compile_seconds=self.engine.seconds, **custom.told,
        )  # fmt: skip
        plan.stats["tune_seconds"] = tuned
        return plan


def choose_products(engine: Engine, planner: SGP | Sampler, rows: int) -> Products:
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


def _copied(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)
