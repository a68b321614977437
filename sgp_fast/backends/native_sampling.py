"""Sampling planners on CPUs in native code: candidates are drawn, rolled out and costed there, and PyTorch refits to them.

It covers what `compiled` covers, and ensembles. No gradient is taken: a cost that is not of ours is traced for its values
alone, or, where that cannot be, called in PyTorch on the states of all candidates. Products are those of `compiled` for many
problems; a lone problem's last pass, of one row, has them too.
"""

from __future__ import annotations

import ctypes
import math
import time
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels.cpu import CCandidates, CCost, Engine, Products, check_layout, uncovered
from ..plan import Plan
from ..problem import Problem
from ..sampling import Sampler
from .compiled import PRECISIONS, WORDS, choose_products
from .coverage import foreign_part
from .custom import Called, CustomCosts, custom_costs
from .native_costs import compiled_cost
from .native_problem import Packed, Rows, cost_struct, packed, prepared, problem_struct
from .sampling import (
    BLOCK,
    NUMBERS,
    SamplingJob,
    Values,
    members_of,
    over_members,
    plan_with,
    running_values,
    take,
    terminal_values,
)

# Candidates that one thread rolls out together: a block's activations at width 256 are 150 KB, in the second-level cache.
BLOCK_ROWS = 64

_members: weakref.WeakKeyDictionary[Problem, list[Problem]] = weakref.WeakKeyDictionary()


def why_not(problem: Problem, planner: Sampler, device: torch.device) -> str | None:
    """None where native code covers the problem, else what it does not cover."""
    if device.type != "cpu":
        return f"native code runs on the CPU, and the models are on {device}"
    if planner.precision not in PRECISIONS:
        return f"native code plans in float32 and bfloat16, not in {planner.precision}"
    for member in members_of(problem):
        if (why := foreign_part(member, lambda part, spec: uncovered(spec, table=part == "score"))) is not None:
            return why
    return None


@dataclass(frozen=True)
class Call:
    """One chunk for the engine; `members` are its problem with each model of an ensemble in turn, packed."""

    engine: Engine
    job: SamplingJob
    products: Products
    members: list[tuple[Problem, Packed]]
    custom: CustomCosts

    def candidates(self, mean: Tensor, std: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """The candidates of an iteration `[B, S, T, nu]`, and what each costs `[B, S]`."""
        job, planner = self.job, self.job.planner
        (B, T, nu), S = mean.shape, planner.samples
        u, costs = mean.new_empty(B * S, T, nu), []
        drawn = {"mean": mean.contiguous(), "std": std.contiguous(), "keys": job.keys.contiguous()}
        for problem, net in self.members:  # each draws the same
            out = {"u": u, "value": mean.new_empty(B * S)}
            states = self._states(B * S) if self.custom.split else {}
            numbers = {"penalty": job.penalty, "effort": planner.effort, "iteration": iteration}
            self._evaluate(problem, net, S, drawn | out | states, **numbers)
            costs.append(self._called(problem, u, S, states["x"], out["value"]) if states else out["value"])
        cost = over_members(torch.stack(costs), planner.risk).view(B, S)
        return u.view(B, S, T, nu), torch.where(cost.isfinite(), cost, torch.inf)

    def evaluate(self, u: Tensor) -> list[Values]:
        """What controls `u [B, T, nu]` come to under each member."""
        found = []
        for problem, net in self.members:
            out = self._states(len(u))
            self._evaluate(problem, net, 1, out | {"u": u.contiguous()})
            values = Values(
                x=out["x"].transpose(0, 1), running=out["running_cost"].T, terminal=out["terminal_cost"],
                change=out["change_cost"], distance=out["distance"].T,
            )  # fmt: skip
            running, terminal = self._of_functions(problem, values.x, u.transpose(0, 1), torch.arange(len(u)))
            if running is not None:
                values = replace(values, running=running)
            if terminal is not None:
                values = replace(values, terminal=terminal)
            found.append(values)
        return found

    def _states(self, rows: int) -> dict[str, Tensor]:
        T, x0 = self.job.planner.horizon, self.job.x0
        return {
            "x": x0.new_empty(rows, T + 1, x0.shape[1]), "running_cost": x0.new_empty(rows, T),
            "terminal_cost": x0.new_empty(rows), "change_cost": x0.new_empty(rows), "distance": x0.new_zeros(rows, T),
        }  # fmt: skip

    def _evaluate(self, problem: Problem, net: Packed, samples: int, tensors: dict[str, Tensor], **numbers: Any) -> None:
        job = self.job
        goal = None if job.goal is None else job.goal.expand(len(job.x0), -1).contiguous()
        made = [self._cost(net, problem, terminal, goal) for terminal in (False, True)]
        rows = Rows(job.x0, job.low, job.high, job.mean.shape[2], job.planner.horizon, samples)
        costs, threads = (made[0][0], made[1][0]), torch.get_num_threads()
        whole, alive = problem_struct(net, problem, rows, costs, self.products, threads, BLOCK_ROWS)
        seed = (job.seed + 2**63) % 2**64 - 2**63
        c = CCandidates(problem=whole, seed=seed, level=job.level, **numbers)
        for name, t in tensors.items():
            setattr(c, name, t.data_ptr())
        if problem.score is None or ("value" in tensors and not job.penalty):  # an address is what asks for it
            c.distance = None
        if self.engine.library.sgp_evaluate(ctypes.byref(c)) != 0:
            raise MemoryError(f"no memory for {whole.rows} candidates; plan fewer problems at once")
        del alive

    def _cost(self, net: Packed, problem: Problem, terminal: bool, goal: Tensor | None) -> tuple[CCost, Tensor | None]:
        """The structure, and what must live as long as it is read; of a cost that is called in PyTorch, none."""
        custom = self.custom.terminal if terminal else self.custom.running
        if isinstance(custom, Called):
            return CCost(present=False), None
        return cost_struct(net, problem, terminal, custom, goal, self.job.params)

    def _called(self, problem: Problem, u: Tensor, samples: int, x: Tensor, value: Tensor) -> Tensor:
        """Costs `[R]` with those that are called in PyTorch, on so many candidates at a time as the reference has."""
        for first in range(0, len(u), BLOCK):
            some = slice(first, first + BLOCK)
            at = torch.arange(first, min(first + BLOCK, len(u))) // samples
            running, terminal = self._of_functions(problem, x[some].transpose(0, 1), u[some].transpose(0, 1), at)
            if running is not None:
                value[some] += running.sum(0)
            if terminal is not None:
                value[some] += terminal
        return value

    def _of_functions(self, problem: Problem, x: Tensor, u: Tensor, at: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What is called in PyTorch: running costs `[T, R]`, last costs `[R]` of rows that are of the problems `at`."""
        job, x, u = self.job, x.contiguous(), u.contiguous()
        running = terminal = None
        goal, params = take(job.goal, at), take(job.params, at)
        if isinstance(self.custom.running, Called):
            running = running_values(problem.cost, x[:-1], u, goal, torch.arange(len(u))[:, None], params)
        if isinstance(self.custom.terminal, Called):
            terminal = terminal_values(problem.terminal, x[-1], goal, params)
        return running, terminal


@dataclass(frozen=True)
class CompiledSampling:
    """The backend: native code on the CPU."""

    engine: Engine
    reason: str
    name: str = "compiled"

    def __post_init__(self) -> None:
        check_layout(self.engine)

    def prepare(self, problem: Problem, planner: Sampler, device: torch.device) -> Problem:
        return prepared(problem, planner, device)

    def problems_at_once(self, planner: Sampler, nu: int) -> int:
        return max(1, NUMBERS // (planner.samples * planner.horizon * nu))

    @torch.no_grad()
    def run(self, job: SamplingJob) -> Plan:
        planner, began = job.planner, time.monotonic()
        products = choose_products(self.engine, planner, len(job.x0) * planner.samples)
        custom = custom_costs(job)
        for cost in (custom.running, custom.terminal):
            if cost is not None and not isinstance(cost, Called):
                compiled_cost(cost)
        if job.problem not in _members:
            # Copies, where there is one alone: to hold the key itself would keep it alive for ever.
            _members[job.problem] = [replace(member) for member in members_of(job.problem)]
        members = [(m, packed(self.engine, m, products, False, (False, False))) for m in _members[job.problem]]
        if job.deadline < math.inf:  # what is compiled and packed at first does not count
            job = replace(job, deadline=job.deadline + time.monotonic() - began)
        call = Call(self.engine, job, products, members, custom)
        plan = plan_with(job, call.candidates, call.evaluate)
        plan.stats.update(
            products=WORDS[products], instructions=self.engine.instructions, compile_seconds=self.engine.seconds,
            division=f"{torch.get_num_threads()} threads over blocks of {BLOCK_ROWS} candidates", **custom.told,
        )  # fmt: skip
        return plan
