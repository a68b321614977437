"""Receding horizon: plan, apply the first control, observe, plan again from where the last plan leaves off."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._sampled import solve_keyed
from ._slots import Rows, Slots
from ._starts import has_rows, random_starts, repeat_rows, solve_starts, take_rows
from .inputs import check_kinds, check_moves, read_inputs
from .plan import Plan, Status
from .planner import SGP
from .problem import Problem, device_of
from .sampling import Planner, Sampler
from .solving import job_of

if TYPE_CHECKING:
    from .backends.fused.receding import Receding


class MPC:
    """A controller for `batch_size` environments that plans all active ones in one call and remembers their plans.

        mpc = sgp.MPC(problem, planner, batch_size=64)
        action = mpc.act(obs)           # [64, nu]
        mpc.reset(terminated | truncated)

    At each step the plan of an environment is shifted by one (`u_t ← u_{t+1}`, the last control repeated) and improved from
    the new observation; Adam's moments are shifted alike where `planner.keep_moments`. An environment without a plan, at
    first and after `reset`, starts from random controls as `solve` does: those of environment i at its k-th step since
    `reset` are a function of (seed, i, k), and at the first step they are what `solve` draws for problem i. With
    `planner.starts > 1` the shifted plan is the first start and the others are drawn around it. Sampling planners shift the
    mean, start anew from the middle of the bounds, and draw by (seed, i, k) at every step. What an environment does never
    depends, beyond rounding, on which others are active.

    plan     the last `Plan`, of the environments that were active
    rows     which those were, `[len(plan)]`
    seconds  time spent planning in all
    """

    def __init__(
        self,
        problem: Problem,
        planner: Planner,
        batch_size: int,
        *,
        backend: str = "auto",
        seed: int = 0,
        time_limit_s: float | None = None,
    ) -> None:
        """`backend` and `time_limit_s` (for one step of all environments) are those of `solve`."""
        self._slots = Slots(batch_size)
        check_kinds(problem, planner)
        check_moves(planner)
        if planner.keep_moments and planner.starts > 1:
            raise ValueError("SGP.keep_moments goes on from one start; use starts=1, or keep_moments=False")
        if time_limit_s is not None and not time_limit_s > 0:
            raise ValueError(f"time_limit_s is {time_limit_s}; expected a positive number of seconds, or None")
        for name, value in (("bounds", problem.bounds), ("goal", (problem.goal,))):
            for part in value or ():
                if has_rows(part) and len(part) != batch_size:
                    raise ValueError(f"Problem.{name} has {len(part)} rows for batch_size={batch_size}; give one each")
        self.problem, self.planner, self.batch_size = problem, planner, batch_size
        if not isinstance(seed, Integral):
            raise TypeError(f"seed is {seed!r}; expected a whole number")
        self.backend, self.seed, self.time_limit_s = backend, int(seed), time_limit_s
        self._plan: Plan | Callable[[], Plan] | None = None
        self._step: Receding | None = None  # the whole step as one graph, where the fused backend plans
        self.rows: Rows = np.empty(0, np.int64)
        self.seconds = 0.0
        self._u: Tensor | None = None  # [B, T, nu], the plans to start from, already shifted
        self._moments: tuple[Tensor, ...] | None = None
        self._warm = np.zeros(batch_size, bool)
        self._last_problem: tuple[bytes, Problem] | None = None

    @property
    def plan(self) -> Plan | None:
        """The last `Plan`, of the environments that were active."""
        if callable(self._plan):
            self._plan = self._plan()
        return self._plan

    def act(self, obs: Any, active: Any = None, goal: Any = None, params: Any = None) -> Any:
        """First controls of new plans, `[B, nu]`, an array or a tensor as `obs` is.

        obs     observations `[B, nx]`, the planner's states; rows that are not active may hold anything
        active  mask `[B]`; the other environments are not planned, keep their plans and get zeros. None: all
        goal    `[nx]` or `[B, nx]`, for costs that read one
        params  of custom costs: a tensor `[B, …]`, or a dictionary of such; their `t` counts from 0 at every plan

        An environment whose plan diverges gets its first control, or zero (within the bounds) where that is not finite,
        and starts anew at the next step; `plan.status` tells. Raises ValueError for wrong shapes and for active rows
        of `obs` that are not finite.
        """
        began = time.perf_counter()
        as_numpy = not isinstance(obs, Tensor)
        rows = self._slots.rows(active)
        x0 = self._slots.observations(obs, rows)
        home = x0.device
        if goal is None and params is None and self._can_step(rows):
            action = self._act_in_one_step(x0, as_numpy)
            self.seconds += time.perf_counter() - began
            return action
        goal = self.problem.goal if goal is None else goal
        goal = None if goal is None else torch.as_tensor(goal)
        if goal is not None and has_rows(goal) and len(goal) != self.batch_size:
            raise ValueError(f"goal has {len(goal)} rows for batch_size={self.batch_size}; give [nx] or one row each")
        _check_params(params, self.batch_size)

        nu = self.problem.controls(x0.shape[1])
        action = torch.zeros(self.batch_size, nu, dtype=self.planner.state_dtype, device=home)
        if len(rows):
            index = torch.from_numpy(rows)
            given = {
                "goal": take_rows(goal, index) if has_rows(goal) else goal,
                "params": take_rows(params, index),
                "backend": self.backend,
                "time_limit_s": self.time_limit_s,
            }
            plan = self._planned(rows, x0.to(device_of(self.problem)) if as_numpy else x0, nu, given)
            self._keep(plan, rows)
            first = self._finite(plan.u[:, 0].to(home), rows)
            if len(rows) < self.batch_size:
                action[index.to(home)] = first
            else:
                action.copy_(first)
        self.seconds += time.perf_counter() - began
        return action.numpy() if as_numpy else action

    def reset(self, mask: Any = None) -> None:
        """Forget the plans of the environments in `mask [B]` (None: of all), as at the start of an episode."""
        rows = self._slots.rows(mask, "mask")
        self._warm[rows] = False
        self._slots.step[rows] = 0

    def check_sizes(self, nx: int, nu: int) -> None:
        """Raise ValueError unless the problem is of nx features and nu controls, as far as a step of one state can tell."""
        planner, device = self.planner, device_of(self.problem)
        x0 = torch.zeros(self.batch_size, nx, dtype=planner.state_dtype, device=device)
        inputs = read_inputs(self.problem, planner, x0, goal=None, params=None, init=None)
        if inputs.nu != nu:
            raise ValueError(f"the problem has nu={inputs.nu} controls; expected {nu}")
        if not hasattr(self.problem.dynamics, "nx"):  # a function shows what it takes only when it is called
            with torch.inference_mode(False), torch.no_grad():
                dynamics = self.problem.prepared(planner.state_dtype, planner.product_dtype, device).dynamics
                dynamics.vjp(inputs.x0[:1], inputs.x0.new_zeros(1, nu))

    def _planned(self, rows: Rows, x0: Tensor, nu: int, given: dict[str, Any]) -> Plan:
        """Plans of some environments from `x0 [len(rows), nx]`."""
        planner, problem = self.planner, self._problem_of(rows)
        if isinstance(planner, Sampler):
            before = x0.new_zeros(len(rows), planner.horizon, nu) if self._u is None else self._rows_of(self._u, rows)
            return solve_keyed(
                problem, planner, x0, keys=torch.from_numpy(self._slots.keys(rows)), warm=torch.from_numpy(self._warm[rows]),
                init=before, seed=self.seed, **given,
            )  # fmt: skip
        starts, moments = self._starts(rows, planner, nu)
        return solve_starts(problem, planner, x0, starts, moments=moments, **given)

    def _starts(self, rows: Rows, planner: SGP, nu: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """Controls to start from `[len(rows), starts, T, nu]`, and Adam's moments where they are kept."""
        warm = torch.from_numpy(self._warm[rows])
        if planner.starts == 1 and bool(warm.all()) and self._u is not None:
            starts = self._rows_of(self._u, rows)[:, None]
        else:
            starts = random_starts(planner, nu, self.seed, self._slots.keys(rows))
            if self._u is not None:
                before = self._u[torch.from_numpy(rows)].to(starts.device)[:, None]
                around = torch.cat((before, before + starts[:, 1:]), 1)
                starts = torch.where(warm[:, None, None, None], around, starts)
        moments = None
        if planner.keep_moments and self._moments is not None:
            index = torch.from_numpy(rows)
            cold = (~warm).to(self._moments[0].device)
            m, s, count = (moment[index].masked_fill(cold.view(-1, *[1] * (moment.ndim - 1)), 0) for moment in self._moments)
            moments = (m, s, count)
        return starts, moments

    def _rows_of(self, kept: Tensor, rows: Rows) -> Tensor:
        """Of some environments; of all of them as it is, for an index would have to go to the device."""
        return kept if len(rows) == self.batch_size else kept[torch.from_numpy(rows)]

    def _keep(self, plan: Plan, rows: Rows) -> None:
        """Remember the plans, shifted by one step; those that diverged are dropped."""
        self._plan, self.rows = plan, rows
        index = torch.from_numpy(rows)
        self._u = _scatter(self._u, index, _shift(plan.u), self.batch_size)
        if self.planner.keep_moments and plan.moments is not None:
            m, s, count = plan.moments
            old = self._moments or (None, None, None)
            new = (_shift(m), _shift(s), count)
            self._moments = tuple(_scatter(o, index, n, self.batch_size) for o, n in zip(old, new, strict=True))
        self._warm[rows] = (plan.status != Status.DIVERGED).cpu().numpy()
        self._slots.step[rows] += 1

    def _can_step(self, rows: Rows) -> bool:
        """Whether this step is one replay of a graph: all environments go on from plans that the fused backend made."""
        plan = self._plan
        if len(rows) < self.batch_size or not self._warm.all() or self.planner.starts > 1 or self.time_limit_s is not None:
            return False
        if isinstance(self.planner, Sampler):
            return False
        if self._step is None or not self._step.reads_still():
            if not isinstance(plan, Plan) or plan.stats["backend"] != "fused" or plan.stats["chunks"] > 1:
                return False
            self._step = self._made_step(plan)
        return True

    def _made_step(self, plan: Plan) -> Receding:
        """The graph of a step; from here on, what is remembered lies where the graph reads it."""
        from .backends.fused.receding import Receding

        assert self._u is not None and isinstance(self.planner, SGP)
        step = Receding(job_of(self.problem, self.planner, plan.x[:, 0]), plan.stats["regime"], plan.stats)
        step.u.copy_(self._u)
        self._u = step.u
        if self._moments is not None:
            for static, kept in zip(step.moments, self._moments, strict=True):
                static.copy_(kept)
            self._moments = step.moments
        return step

    def _act_in_one_step(self, x0: Tensor, as_numpy: bool) -> Any:
        """A copy in, a replay, a copy out."""
        assert self._step is not None and self._u is not None
        rows = np.arange(self.batch_size)
        with torch.inference_mode(False), torch.no_grad():
            out = self._step.step(x0.to(self._u.device, self._u.dtype)).to(x0.device, copy=True)
        self._plan, self.rows = self._step.plan, rows
        on_host = out.cpu()  # the one wait
        self._warm[:] = (on_host[:, -1] == 0).numpy()
        self._slots.step[rows] += 1
        action = out[:, :-1] if bool(on_host[:, :-1].isfinite().all()) else self._finite(out[:, :-1], rows)
        return action.numpy() if as_numpy else action

    def _finite(self, first: Tensor, rows: Rows) -> Tensor:
        """First controls; zero, within the bounds, for an environment where they are not finite."""
        finite = first.isfinite().all(1, keepdim=True)
        if bool(finite.all()):
            return first
        rest = torch.zeros_like(first)
        if self.problem.bounds is not None:
            low, high = (torch.as_tensor(bound).to(first) for bound in self._bounds(rows))
            rest = torch.clamp(rest, low, high)
        return torch.where(finite, first, rest)

    def _bounds(self, rows: Rows) -> Any:
        index = torch.from_numpy(rows)
        return tuple(take_rows(bound, index) if has_rows(bound) else bound for bound in self.problem.bounds or ())

    def _problem_of(self, rows: Rows) -> Problem:
        """The problem of some environments: where bounds have a row each, with the rows that belong to them.

        The last one is kept, since making a problem ready for planning costs more than a step of it.
        """
        if not any(map(has_rows, self.problem.bounds or ())):
            return self.problem
        key = rows.tobytes()
        if self._last_problem is None or self._last_problem[0] != key:
            repeated = tuple(repeat_rows(b, self.planner.starts) if has_rows(b) else b for b in self._bounds(rows))
            self._last_problem = (key, replace(self.problem, bounds=repeated))
        return self._last_problem[1]


def _shift(t: Tensor) -> Tensor:
    """`[B, T, n]` one step on: what was planned for t+1 now stands at t, and the last entry twice."""
    return torch.cat((t[:, 1:], t[:, -1:]), 1)


def _scatter(store: Tensor | None, rows: Tensor, values: Tensor, size: int) -> Tensor:
    """`store [size, …]` with `values` in `rows`; made, of zeros, where there is none yet."""
    if store is None:
        store = values.new_zeros(size, *values.shape[1:])
    if len(rows) == size:
        store.copy_(values)
    else:
        store[rows.to(store.device)] = values
    return store


def _check_params(params: Any, batch: int) -> None:
    items = params if isinstance(params, dict) else {"params": params} if params is not None else {}
    for name, value in items.items():
        shape = tuple(torch.as_tensor(value).shape)
        if not shape or shape[0] != batch:
            raise ValueError(f"params[{name!r}] has shape {shape}; its first axis must be the {batch} environments")
