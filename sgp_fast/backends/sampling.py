"""Sampling planners in plain PyTorch, the reference of their kernels and of native code.

Nothing here takes a gradient. Candidates are rolled out in blocks: of their number only controls and costs are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..costs import CustomCost, CustomTerminal, LearnedCost, naming_absent, one_a_row
from ..kernels.draws_ref import normal_ref
from ..models import Dynamics, Ensemble
from ..plan import Plan, Status
from ..problem import AutogradDynamics, Problem
from ..sampling import Sampler
from .products import products_of, products_of_cost

# Candidates rolled out at once: enough for a fast product. Score and cost see all their steps together: at T = 8 and width
# 1024 an activation of theirs takes 134 MB.
BLOCK = 4096
# Controls of all candidates of the problems that are planned together: 32 MB in float64, and some times as much at work.
NUMBERS = 1 << 22


@dataclass(frozen=True)
class SamplingJob:
    """One chunk of a checked batch; `problem` is as the backend prepared it.

    x0 `[B, nx]`, mean and std `[B, T, nu]` to start from; low, high (`[B, nu]` or `[1, nu]`), goal, params as in `Job`.
    keys `[B]` tell problems apart, with `seed`, to the random numbers. `level` is the score's, and `penalty` the weight of
    `Σ_t ‖s̄(z̄_t)‖²` in a candidate's cost; 0: the score is only reported.
    """

    problem: Problem
    planner: Sampler
    x0: Tensor
    mean: Tensor
    std: Tensor
    low: Tensor | None
    high: Tensor | None
    goal: Tensor | None
    params: Tensor | dict[str, Tensor] | None
    level: int
    penalty: float
    seed: int
    keys: Tensor
    deadline: float


class SamplingBackend(Protocol):
    """A way to run a sampling planner; `reason` says why it was chosen."""

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str: ...

    def prepare(self, problem: Problem, planner: Sampler, device: torch.device) -> Problem: ...

    def problems_at_once(self, planner: Sampler, nu: int) -> int: ...

    def run(self, job: SamplingJob) -> Plan: ...


@dataclass(frozen=True)
class Values:
    """What rows of controls come to, `[T, R]` and `[R]`; `distance` is `‖s̄(z̄_t)‖²`, zero without a score."""

    x: Tensor
    running: Tensor
    terminal: Tensor
    change: Tensor
    distance: Tensor

    @property
    def cost(self) -> Tensor:
        """Task cost `[R]`."""
        return self.running.sum(0) + self.terminal + self.change


def evaluate_values(
    problem: Problem, x0: Tensor, u: Tensor, goal: Tensor | None, params: Any, level: int | None
) -> Values:
    """States and costs from `x0 [R, nx]` under `u [T, R, nu]`, without a gradient; `level` None leaves the score out."""
    states = [x0]
    for u_t in u:
        states.append(_step(problem.dynamics, states[-1], u_t))
    x = torch.stack(states)
    t = torch.arange(len(u), device=x.device)[:, None]
    with products_of_cost(problem.cost, x.device):
        running = running_values(problem.cost, x[:-1], u, goal, t, params)
    terminal = torch.zeros_like(running[0])
    if problem.terminal is not None:
        with products_of_cost(problem.terminal, x.device):
            terminal = terminal_values(problem.terminal, x[-1], goal, params)
    change = torch.zeros_like(terminal)
    if problem.control_change:
        change = problem.control_change * (u[1:] - u[:-1]).square().sum((0, 2))
    distance = torch.zeros_like(running)
    if problem.score is not None and level is not None:
        distance = problem.score.normalized(torch.cat((x[:-1], u), -1), level).square().sum(-1).to(running)
    return Values(x, running, terminal, change, distance)


def candidate_costs(job: SamplingJob, u: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """What each of the candidates `u [B, S, T, nu]` costs, `[B, S]`; infinite where it is not finite."""
    planner, samples = job.planner, u.shape[1]
    level = job.level if job.penalty else None
    members = members_of(job.problem)
    flat, blocks = u.flatten(0, 1), []
    for first in range(0, len(flat), BLOCK):
        rows = torch.arange(first, min(first + BLOCK, len(flat)), device=u.device)
        at, u_rows = rows // samples, flat[rows].transpose(0, 1)
        x0, goal, params = job.x0[at], take(job.goal, at), take(job.params, at)
        found = [evaluate_values(member, x0, u_rows, goal, params, level) for member in members]
        blocks.append(torch.stack([v.cost + job.penalty * v.distance.sum(0) for v in found]))
    costs = over_members(torch.cat(blocks, 1), planner.risk).view(-1, samples)
    if planner.effort:
        costs = costs + planner.effort * (mean / std).mul((u.transpose(0, 1) - mean) / std).sum((2, 3)).T
    return torch.where(costs.isfinite(), costs, torch.inf)


def over_members(costs: Tensor, risk: float) -> Tensor:
    """One cost of those of all members `[M, …]`."""
    mean = costs.mean(0)
    return mean + risk * costs.std(0, correction=0) if risk else mean


def members_of(problem: Problem) -> list[Problem]:
    """The problem with each member of an ensemble in turn; itself where there is none."""
    if not isinstance(problem.dynamics, Ensemble):
        return [problem]
    return [replace(problem, dynamics=problem.dynamics[i]) for i in range(len(problem.dynamics))]


def candidates(job: SamplingJob, mean: Tensor, std: Tensor, iteration: int) -> Tensor:
    """The candidates of an iteration, `[B, S, T, nu]`."""
    shape = mean.shape[1:]
    noise = normal_ref(job.seed, job.keys, iteration, range(job.planner.samples), shape.numel(), mean.dtype)
    return clip(job, mean[:, None] + std[:, None] * noise.unflatten(2, shape))


def clip(job: SamplingJob, u: Tensor) -> Tensor:
    """Controls `[B, …, nu]` within the problems' bounds."""
    if job.low is None or job.high is None:
        return u
    shape = (-1, *[1] * (u.ndim - 2), u.shape[-1])
    return torch.clamp(u, job.low.view(shape), job.high.view(shape))


def refit(planner: Sampler, mean: Tensor, std: Tensor, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the weighted candidates; as they were where no candidate counts."""
    found = (weights.sum(1) > 0)[:, None, None]
    w = weights[:, :, None, None]
    new = (w * u).sum(1)
    mean_new = torch.where(found, mean + (1 - planner.kept) * (new - mean), mean)
    if not planner.narrows:
        return mean_new, std
    spread = (w * (u - new[:, None]).square()).sum(1).sqrt()
    return mean_new, torch.where(found, std + (1 - planner.kept) * (spread - std), std)


@torch.no_grad()
def run(job: SamplingJob) -> Plan:
    """Plan the job's problems, one operation at a time."""

    def drawn(mean: Tensor, std: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        u = candidates(job, mean, std, iteration)
        return u, candidate_costs(job, u, mean, std)

    def evaluate(u: Tensor) -> list[Values]:
        at = (job.x0, u.transpose(0, 1), job.goal, job.params, job.level)
        return [evaluate_values(member, *at) for member in members_of(job.problem)]

    return plan_with(job, drawn, evaluate)


def plan_with(
    job: SamplingJob,
    drawn: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    evaluate: Callable[[Tensor], list[Values]],
) -> Plan:
    """The algorithm: `drawn(mean, std, iteration)` gives candidates and costs, `evaluate(u)` values under each member."""
    planner, mean, std, taken = job.planner, job.mean, job.std, 0
    found = torch.zeros(len(mean), dtype=torch.bool, device=mean.device)
    for i in range(planner.iterations):
        if time.monotonic() > job.deadline:
            break
        u, costs = drawn(mean, std, i)
        weights = planner.weights(costs)
        found |= weights.sum(1) > 0
        mean, std = refit(planner, mean, std, weights, u)
        taken += 1
    u = clip(job, mean)  # a weighted mean may pass a bound by an ulp
    return conclude(job.penalty, u, evaluate(u), found, taken)


def conclude(penalty: float, u: Tensor, members: list[Values], found: Tensor, taken: int) -> Plan:
    """The plan of controls `u [B, T, nu]`; of an ensemble's members the mean, term by term. Nothing waits for a device."""

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(v, name) for v in members]).mean(0)

    names = ("x", "running", "terminal", "change", "distance")
    v = members[0] if len(members) == 1 else Values(*map(mean, names))
    cost = v.cost
    finite = v.x.isfinite().all(2).all(0) & cost.isfinite()
    # Where time ran out before the first candidate, nothing has been seen to diverge.
    diverged = ~finite | (~found if taken else torch.zeros_like(found))
    status = torch.where(diverged, int(Status.DIVERGED), int(Status.LIMIT)).to(torch.int8)
    x = v.x.transpose(0, 1).contiguous()
    return Plan(
        u=u.contiguous(),
        x=x,
        costate=torch.full_like(x, torch.nan),
        cost=cost,
        terms={
            "running": v.running.T.contiguous(), "terminal": v.terminal, "change": v.change,
            "penalty": penalty * v.distance.sum(0),
        },
        status=status,
        score_norm=v.distance.sqrt().T.contiguous(),
        grad_norm=torch.full_like(cost, torch.nan),
        iterations=torch.full_like(status, taken, dtype=torch.int32),
    )  # fmt: skip


@dataclass(frozen=True)
class EagerSampling:
    """The backend: plain PyTorch on any device."""

    reason: str
    name: str = "eager"

    def prepare(self, problem: Problem, planner: Sampler, device: torch.device) -> Problem:
        return problem.prepared(planner.state_dtype, planner.product_dtype, device)

    def problems_at_once(self, planner: Sampler, nu: int) -> int:
        return max(1, NUMBERS // (planner.samples * planner.horizon * nu))

    def run(self, job: SamplingJob) -> Plan:
        with products_of(job.planner.precision, job.x0.device):
            return run(job)


def take(value: Any, rows: Tensor) -> Any:
    """Rows of a tensor or of each in a dictionary; None stays None."""
    if isinstance(value, dict):
        return {name: item[rows] for name, item in value.items()}
    return None if value is None else value[rows]


def _step(dynamics: Any, x: Tensor, u: Tensor) -> Tensor:
    if isinstance(dynamics, Dynamics):
        return dynamics(x, u)
    out = dynamics(x, u) if isinstance(dynamics, AutogradDynamics) else dynamics.vjp(x, u)[0]
    if out.shape != x.shape:
        raise ValueError(f"dynamics gave shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; expected the same")
    return out.to(x.dtype)


def running_values(cost: Any, x: Tensor, u: Tensor, goal: Tensor | None, t: Tensor, params: Any) -> Tensor:
    """A running cost of states `x [..., nx]` and controls `u [..., nu]`, in their dtype and without its gradient."""
    if isinstance(cost, LearnedCost):
        return cost(x, u)
    if isinstance(cost, CustomCost):
        given = (x, u) if cost.simple else (x, u, goal, t, params)
        with naming_absent("cost", goal=goal, params=params):
            return _one_a_row("cost", cost.function(*given), x)
    return cost.value_and_grad(x, u, goal, t, params)[0].to(x.dtype)


def terminal_values(terminal: Any, x: Tensor, goal: Tensor | None, params: Any) -> Tensor:
    """A terminal cost of last states `x [..., nx]`, without its gradient."""
    if isinstance(terminal, CustomTerminal):
        with naming_absent("terminal", goal=goal, params=params):
            return _one_a_row("terminal", terminal.function(*((x,) if terminal.simple else (x, goal, params))), x)
    return terminal.value_and_grad(x, goal, params)[0].to(x.dtype)


def _one_a_row(name: str, value: Any, x: Tensor) -> Tensor:
    """In the dtype of the states, whatever a function makes of them."""
    return one_a_row(name, value, x.shape[:-1]).to(x.dtype)
