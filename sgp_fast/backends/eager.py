"""The planner in plain PyTorch: the reference of every other backend, and the CPU's own where nothing faster runs.

Inside, time comes first: `x [T+1, R, nx]` and `u [T, R, nu]`, so that a step is contiguous and T·R rows are one view.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plan import Plan, Status
from ..planner import SGP
from ..problem import DynamicsModel, Problem
from .bounding import Bounding
from .job import LOOK, Iteration, Job
from .products import products_of, products_of_cost
from .stages import stage

Pullbacks = list[Callable[[Tensor], tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Conditions:
    """What stays as it is through a plan: start states `[R, nx]`, goal, params (a row each), and the steps `t [T, 1]`."""

    x0: Tensor
    goal: Tensor | None
    params: Any
    t: Tensor


@dataclass(frozen=True)
class Evaluation:
    """A rollout with its costs and gradient; tensors time-major. `x [T+1, R, nx]`, without x_T where nobody asked for it."""

    x: Tensor
    costate: Tensor
    grad_u: Tensor
    running: Tensor
    terminal: Tensor
    change: Tensor
    score: Tensor | None

    @property
    def cost(self) -> Tensor:
        """Task cost `[R]`, without the score."""
        return self.running.sum(0) + self.terminal + self.change


def rollout(dynamics: DynamicsModel, x0: Tensor, u: Tensor) -> tuple[Tensor, Pullbacks]:
    """States `x_{t+1} = f(x_t, u_t)`, `[T+1, R, nx]`, and each step's map from a costate to gradients in x and u."""
    states, pullbacks = [x0], []
    for u_t in u:
        x_next, pullback = dynamics.vjp(states[-1], u_t)
        states.append(x_next)
        pullbacks.append(pullback)
    return torch.stack(states), pullbacks


def adjoint(pullbacks: Pullbacks, grad_x: Tensor, grad_u: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the plan's cost in u, by sweeping the costate backward from `λ_T = last`.

        g_t = ∂_u c_t − β s_{u,t} + (∂_u f_t)ᵀ λ_{t+1}
        λ_t = ∂_x c_t − β s_{x,t} + (∂_x f_t)ᵀ λ_{t+1}

    `grad_x [T, R, nx]` and `grad_u [T, R, nu]` are the first two terms of each. Returns `g [T, R, nu]`, `λ [T+1, R, nx]`.
    With λ_T = 0 the last step chains nothing back, and its pullback may be missing.
    """
    costates, gradients = [last], []
    if len(pullbacks) < len(grad_u):
        costates.append(grad_x[-1])
        gradients.append(grad_u[-1])
    for t in range(len(pullbacks) - 1, -1, -1):
        from_x, from_u = pullbacks[t](costates[-1])
        gradients.append(grad_u[t] + from_u)
        costates.append(grad_x[t] + from_x)
    return torch.stack(gradients[::-1]), torch.stack(costates[::-1])


def evaluate(
    problem: Problem, at: Conditions, u: Tensor, level: int, beta: float | Tensor, *, last_state: bool = True
) -> Evaluation:
    """One pass of the planner: forward in time, costs and scores of all T·R rows at once, backward chaining.

    Only a terminal cost depends on x_T. Without one the last step has no gradient, and is left out unless `last_state`.
    """
    T = len(u)
    steps = T if problem.terminal is not None else T - 1
    with stage("rollout"):
        x, pullbacks = rollout(problem.dynamics, at.x0, u[: T if last_state else steps])
    with stage("cost"):
        with products_of_cost(problem.cost, u.device):
            running, grad_x, grad_u = problem.cost.value_and_grad(x[:T], u, at.goal, at.t, at.params)
        if problem.terminal is None:
            terminal, last = torch.zeros_like(running[0]), torch.zeros_like(at.x0)
        else:
            with products_of_cost(problem.terminal, u.device):
                terminal, last = problem.terminal.value_and_grad(x[-1], at.goal, at.params)
    score = None
    if problem.score is not None:
        with stage("score"):
            score = problem.score(torch.cat((x[:T], u), -1), level)
            nx = x.shape[-1]
            grad_x = grad_x - beta * score[..., :nx]
            grad_u = grad_u - beta * score[..., nx:]
    change = torch.zeros_like(terminal)
    if problem.control_change:
        with stage("cost"):
            step = u[1:] - u[:-1]
            change = problem.control_change * step.square().sum((0, 2))
            pull = 2 * problem.control_change * step
            grad_u = grad_u + F.pad(pull, (0, 0, 0, 0, 1, 0)) - F.pad(pull, (0, 0, 0, 0, 0, 1))
    with stage("adjoint"):
        grad_u, costate = adjoint(pullbacks[:steps], grad_x, grad_u, last)
    return Evaluation(x, costate, grad_u, running, terminal, change, score)


@dataclass(frozen=True)
class Search:
    """The state of the search: decision variables `v [T, R, nu]`, Adam's moments and its step count `[R]`, who is active.

    `good` are the last v whose gradient was finite: what a problem that diverges goes back to.
    """

    v: Tensor
    good: Tensor
    m: Tensor
    s: Tensor
    count: Tensor
    active: Tensor
    diverged: Tensor
    converged: Tensor


def adam(planner: SGP, search: Search, g: Tensor, step_size: float | Tensor) -> Search:
    """Adam (Kingma and Ba 2015, algorithm 1) for the rows that are active; each row counts its own steps."""
    b1, b2, eps = planner.adam
    # In float64: 1 − β₂ⁿ of a β₂ that is rounded to float32 would be off by some 1e-5 at first.
    m = search.m + (1 - b1) * (g - search.m)
    s = b2 * search.s + (1 - b2) * g * g
    count = search.count + 1
    bias1, bias2 = ((1 - b ** count.double()).to(m)[:, None] for b in (b1, b2))
    v = search.v - step_size * (m / bias1) / ((s / bias2).sqrt() + eps)
    on = search.active[:, None]
    return replace(
        search,
        v=torch.where(on, v, search.v), m=torch.where(on, m, search.m), s=torch.where(on, s, search.s),
        count=torch.where(search.active, count, search.count),
    )  # fmt: skip


def clip(g: Tensor, limit: float | None) -> Tensor:
    """The gradient, scaled down where a problem's norm over horizon and controls is above `limit`."""
    return g if limit is None else g * (limit / (norm(g) + 1e-6)).clamp(max=1)[:, None]


def norm(g: Tensor) -> Tensor:
    """Norm over horizon and controls, `[T, R, nu] → [R]`."""
    return g.square().sum((0, 2)).sqrt()


def judge(
    planner: SGP, search: Search, bounding: Bounding, u: Tensor, grad_u: Tensor, settled: bool
) -> Search:
    """Stop the rows whose gradient is not finite, and those whose projected gradient is small once the schedules ended.

    A gradient whose square overflows counts as not finite: Adam's second moment would hold the row fast from then on.
    """
    finite = norm(grad_u).isfinite()
    diverged = search.active & ~finite
    converged = torch.zeros_like(diverged)
    if settled and planner.tolerance > 0:
        converged = search.active & (norm(bounding.projected(u, grad_u)) < planner.tolerance)
    return replace(
        search,
        v=torch.where(diverged[:, None], search.good, search.v),
        good=torch.where(finite[:, None], search.v, search.good),
        active=search.active & ~diverged & ~converged,
        diverged=search.diverged | diverged,
        converged=search.converged | converged,
    )


def start(job: Job) -> tuple[Conditions, Bounding, Search]:
    """The job as a backend holds it: conditions with a row a start, the bounds, and the search before its first step."""
    planner, starts = job.planner, job.planner.starts

    def rows(t: Tensor | None) -> Any:
        if t is None or starts == 1:
            return t
        return t if len(t) == 1 < len(job.x0) else t.repeat_interleave(starts, 0)

    t = torch.arange(planner.horizon, device=job.x0.device)[:, None]
    params = {name: rows(p) for name, p in job.params.items()} if isinstance(job.params, dict) else rows(job.params)
    at = Conditions(rows(job.x0), rows(job.goal), params, t)
    bounding = Bounding(planner.bounding, rows(job.low), rows(job.high))
    v = bounding.variable(job.u.transpose(0, 1).clone(memory_format=torch.contiguous_format))
    m, s, count = torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(v[0, :, 0])
    if job.moments is not None:
        m, s, count = job.moments[0].transpose(0, 1), job.moments[1].transpose(0, 1), job.moments[2]
    no = torch.zeros_like(count, dtype=torch.bool)
    return at, bounding, Search(v, v, m, s, count, ~no, no, no)


def finish(
    job: Job, at: Conditions, bounding: Bounding, search: Search, settled: bool, taken: Tensor, history: Tensor | None
) -> tuple[Plan, Tensor]:
    """The plan at the last iterate, and whose gradient has diverged `[R]`; one more pass, for all that a plan tells."""
    problem, planner, tables = job.problem, job.planner, job.tables
    while True:
        u = bounding.control(search.v)
        e = evaluate(problem, at, u, tables.levels[-1], tables.beta[-1])
        before, search = search.diverged, judge(planner, search, bounding, u, e.grad_u, settled)
        if torch.equal(search.diverged, before):
            break  # else the last step led some rows astray: once more, from where they were before it
    return conclude(problem, planner, tables.penalty, bounding, search, e, taken, history), search.diverged


def conclude(
    problem: Problem, planner: SGP, penalty: float | Tensor, bounding: Bounding, search: Search, e: Evaluation,
    taken: Tensor, history: Tensor | None,
) -> Plan:  # fmt: skip
    """The plan at an iterate that has been judged; `e` is its evaluation, at the last level and β.

    `penalty` is `Tables.penalty`, of which a graph makes a tensor. Nothing here waits for a device.
    """
    u, cost = bounding.control(search.v), e.cost
    finite = e.x.isfinite().all(2).all(0) & cost.isfinite()
    status = torch.where(search.converged, int(Status.CONVERGED), int(Status.LIMIT))
    status = torch.where(search.diverged | ~finite, int(Status.DIVERGED), status).to(torch.int8)
    score_norm = score_norms(problem, e.running, e.score)
    far = penalty * 0.5 * score_norm.square().sum(0)
    moments = (search.m.transpose(0, 1), search.s.transpose(0, 1), search.count) if planner.keep_moments else None
    return Plan(
        u=u.transpose(0, 1).contiguous(),
        x=e.x.transpose(0, 1).contiguous(),
        costate=e.costate.transpose(0, 1).contiguous(),
        cost=cost,
        terms={"running": e.running.T.contiguous(), "terminal": e.terminal, "change": e.change, "penalty": far},
        status=status,
        score_norm=score_norm.T.contiguous(),
        grad_norm=norm(bounding.projected(u, e.grad_u)),
        iterations=taken,
        history=history,
        moments=moments,
    )


@torch.no_grad()
def run(job: Job) -> Plan:
    """Plan the job's rows, one operation at a time."""
    problem, planner, tables = job.problem, job.planner, job.tables
    at, bounding, search = start(job)
    taken = torch.zeros_like(search.count, dtype=torch.int32)
    costs, reached, best = [], planner.iterations, Best.none(search)
    for i in range(planner.iterations):
        if time.monotonic() > job.deadline:
            reached = i
            break
        u = bounding.control(search.v)
        e = evaluate(problem, at, u, tables.levels[i], tables.beta[i], last_state=job.callback is not None)
        if job.deadline < math.inf and i % LOOK == 0:
            best = best.or_better(search.v, ranking(job, u, e, i))
        with stage("update"):
            g = clip(bounding.pull(search.v, e.grad_u), planner.clip_gradient)
            report(job, i, u, e, g)
            if planner.record_cost:
                costs.append(torch.where(search.active, e.cost, torch.nan))
            search = judge(planner, search, bounding, u, e.grad_u, settled=i >= tables.settled)
            # Only a converging search can end early, and asking a GPU costs a synchronisation.
            if planner.tolerance > 0 and (g.device.type == "cpu" or i % 10 == 9) and not bool(search.active.any()):
                break
            taken += search.active
            search = adam(planner, search, g, tables.step_size[i])
            search = replace(search, v=bounding.project(search.v))
    history = torch.full((len(taken), planner.iterations), torch.nan, dtype=search.v.dtype, device=search.v.device)
    for i, cost in enumerate(costs):
        history[:, i] = cost
    with stage("last pass"):
        settled, kept = reached >= tables.settled, history if planner.record_cost else None
        plan, lost = finish(job, at, bounding, search, settled, taken, kept)
        if reached < planner.iterations and bool((better := best.beats(plan) & ~lost).any()):
            plan, _ = finish(job, at, bounding, best.search(search, better), settled, taken, kept)
        return plan


@dataclass(frozen=True)
class Best:
    """The best iterate of each problem so far, by `Plan.ranking`: what a plan that runs out of time goes back to."""

    v: Tensor
    ranking: Tensor

    @classmethod
    def none(cls, search: Search) -> Best:
        return cls(search.v, torch.full_like(search.count, torch.inf))

    def or_better(self, v: Tensor, ranking: Tensor) -> Best:
        """With the iterate v `[T, R, nu]`, where it ranks better."""
        better = ranking < self.ranking
        return Best(torch.where(better[:, None], v, self.v), torch.where(better, ranking, self.ranking))

    def search(self, search: Search, rows: Tensor) -> Search:
        """The search with the best iterates of some rows in the place of theirs."""
        v, good = (torch.where(rows[:, None], self.v, t) for t in (search.v, search.good))
        return replace(search, v=v, good=good)

    def beats(self, plan: Plan) -> Tensor:
        """Which problems of a plan were better before, `[R]`; what has converged stays as it ended."""
        return (self.ranking < plan.ranking) & (plan.status != Status.CONVERGED)


def ranking(job: Job, u: Tensor, e: Evaluation, i: int) -> Tensor:
    """`Plan.ranking` of the iterate u of iteration i: the score is taken at the last level, whatever that of i."""
    score, levels = e.score, job.tables.levels
    if job.problem.score is not None and levels[i] != levels[-1]:
        score = job.problem.score(torch.cat((e.x[: len(u)], u), -1), levels[-1])
    value = e.cost + job.tables.penalty * 0.5 * score_norms(job.problem, e.running, score).square().sum(0)
    return value.nan_to_num(nan=torch.inf)


def score_norms(problem: Problem, running: Tensor, score: Tensor | None) -> Tensor:
    """`‖s̄(z̄_t)‖`, like the running cost `[T, R]`; zeros without a score."""
    if problem.score is None or score is None:
        return torch.zeros_like(running)
    return (score * problem.score.normalizer.k.to(score)).norm(dim=-1)


def report(job: Job, i: int, u: Tensor, e: Evaluation, g: Tensor) -> None:
    """Tell the caller's callback, where there is one."""
    if job.callback is None:
        return
    tables = job.tables
    job.callback(
        Iteration(
            index=i, first=job.first, beta=tables.beta[i], sigma=tables.sigma[i], step_size=tables.step_size[i],
            u=u.transpose(0, 1), x=e.x.transpose(0, 1), cost=e.cost,
            score=None if e.score is None else e.score.transpose(0, 1), grad_u=g.transpose(0, 1),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Eager:
    """The backend: plain PyTorch on any device."""

    reason: str
    name: str = "eager"

    def prepare(self, problem: Problem, planner: SGP, device: torch.device) -> Problem:
        return problem.prepared(planner.state_dtype, planner.product_dtype, device)

    def run(self, job: Job) -> Plan:
        with products_of(job.planner.precision, job.x0.device):
            return run(job)
