"""Controllers to compare with: the policy that the data were made with, and sampling planners over the same models."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._slots import Slots
from ._starts import device_of, keyed_normal, take_rows
from .costs import CustomCost, CustomTerminal, LearnedCost
from .data.actors import load_actor, snapshots
from .data.make import QUALITIES
from .inputs import read_inputs
from .models import Dynamics
from .planner import SGP
from .problem import AutogradDynamics, Problem

# Candidates evaluated at once: enough for a fast product, few enough for their activations to be a few tens of megabytes.
_BLOCK = 4096


class BehaviorPolicy:
    """The stochastic policy that data made here were recorded with, in B environments.

    Qualities that mix snapshots (`medium-replay`, `medium-expert`) give them to the environments in turn: of n, the one
    numbered i mod n to environment i. The noise of environment i at step k of its episode is a function of (seed, i, k).
    """

    def __init__(self, task: str, quality: str, batch_size: int, seed: int = 0) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"quality is {quality!r}; expected one of {', '.join(QUALITIES)}")
        mixed = {"medium-replay": snapshots(task)["roles"]["medium_replay"], "medium-expert": ["medium", "expert"]}
        self.actors = [load_actor(task, name) for name in mixed.get(quality, [quality])]
        self.batch_size, self.seed = batch_size, seed
        self._slots = Slots(batch_size)

    def act(self, obs: Any, active: Any = None) -> np.ndarray:
        """Actions `[B, nu]` for observations `[B, nx]`; zeros where not active."""
        rows = self._slots.rows(active)
        chosen = self._slots.observations(obs, rows).cpu().numpy()
        nu = len(self.actors[0].low)
        normal = keyed_normal(self.seed, self._slots.keys(rows), nu)
        actions = np.zeros((self.batch_size, nu), np.float32)
        for i, actor in enumerate(self.actors):
            mine = rows % len(self.actors) == i
            # The uniform policy takes its noise on [−1, 1): Φ makes a uniform number of a normal one.
            noise = normal[mine] if actor.head is not None else 2 * _uniform(torch.from_numpy(normal[mine])).numpy() - 1
            actions[rows[mine]] = actor.act(chosen[mine], noise.astype(np.float32))
        self._slots.step[rows] += 1
        return actions

    def reset(self, mask: Any = None) -> None:
        """Begin new episodes in the environments of a mask `[B]`; None: in all."""
        self._slots.step[self._slots.rows(mask, "mask")] = 0


class RandomShooting:
    """Plan by drawing `samples` control sequences uniformly between the bounds and taking the cheapest.

    The simplest planner over learned models (Nagabandi et al. 2018, arXiv 1708.02596); no plan is remembered. It minimises
    the task cost alone: the problem's score plays no part. Draws of environment i at step k of its episode are a function
    of (seed, i, k).
    """

    def __init__(self, problem: Problem, horizon: int, batch_size: int, *, samples: int = 1024, seed: int = 0) -> None:
        _check_counts(samples=samples)
        self.batch_size, self.samples, self.seed = batch_size, samples, seed
        self._slots, self._candidates = Slots(batch_size), Candidates(problem, horizon)

    def act(self, obs: Any, active: Any = None) -> np.ndarray:
        """First controls `[B, nu]` for observations `[B, nx]`; zeros where not active."""
        rows = self._slots.rows(active)
        at = self._candidates.read(self._slots.observations(obs, rows), rows, self.batch_size)
        actions = np.zeros((self.batch_size, at.nu), np.float32)
        if len(rows):
            shape = (len(rows), self.samples, self._candidates.horizon, at.nu)
            u = _uniform(_normal(self.seed, self._slots.keys(rows), shape, at.x0))
            u = at.low + (at.high - at.low) * u
            best = self._candidates.cost(at, u).argmin(1)
            actions[rows] = u[torch.arange(len(rows)), best, 0].cpu().numpy()
        self._slots.step[rows] += 1
        return actions

    def reset(self, mask: Any = None) -> None:
        """Begin new episodes in the environments of a mask `[B]`; None: in all."""
        self._slots.step[self._slots.rows(mask, "mask")] = 0


class CEM:
    """Plan by the cross-entropy method: draw from a normal distribution, refit it to the cheapest `elites`, and again.

    It starts from the middle of the bounds, or from the last mean shifted by a step, with a standard deviation of a quarter
    of their range; draws outside the bounds are moved onto them. The plan is the last mean (Chua et al. 2018,
    arXiv 1805.12114). It minimises the task cost alone: the problem's score plays no part. Draws of environment i at step k
    of its episode are a function of (seed, i, k).
    """

    def __init__(
        self,
        problem: Problem,
        horizon: int,
        batch_size: int,
        *,
        iterations: int = 5,
        samples: int = 256,
        elites: int = 32,
        seed: int = 0,
    ) -> None:
        _check_counts(iterations=iterations, samples=samples, elites=elites)
        if elites > samples:
            raise ValueError(f"elites is {elites} of samples={samples}; expected at most as many")
        self.batch_size, self.seed = batch_size, seed
        self.iterations, self.samples, self.elites = iterations, samples, elites
        self._slots, self._candidates = Slots(batch_size), Candidates(problem, horizon)
        self._mean: Tensor | None = None  # [B, T, nu], shifted; rows that are not warm are not read
        self._warm = torch.zeros(batch_size, dtype=torch.bool)

    def act(self, obs: Any, active: Any = None) -> np.ndarray:
        """First controls `[B, nu]` for observations `[B, nx]`; zeros where not active."""
        rows = self._slots.rows(active)
        at = self._candidates.read(self._slots.observations(obs, rows), rows, self.batch_size)
        actions = np.zeros((self.batch_size, at.nu), np.float32)
        if not len(rows):
            return actions
        if self._mean is None:
            self._mean = at.x0.new_zeros(self.batch_size, self._candidates.horizon, at.nu)
        index = torch.from_numpy(rows)
        warm = self._warm[index].to(at.x0.device)[:, None, None]
        mean = torch.where(warm, self._mean[index], ((at.low + at.high) / 2)[:, 0])
        std = ((at.high - at.low) / 4)[:, 0].expand_as(mean)
        shape = (len(rows), self.iterations, self.samples, *mean.shape[1:])
        normal = _normal(self.seed, self._slots.keys(rows), shape, at.x0)
        for i in range(self.iterations):
            u = (mean[:, None] + std[:, None] * normal[:, i]).clamp(at.low, at.high)
            best = self._candidates.cost(at, u).topk(self.elites, largest=False).indices
            elite = u.gather(1, best[:, :, None, None].expand(-1, -1, *mean.shape[1:]))
            mean, std = elite.mean(1), elite.std(1, correction=0)
        self._mean[index] = torch.cat((mean[:, 1:], mean[:, -1:]), 1)
        self._warm[index] = True
        self._slots.step[rows] += 1
        actions[rows] = mean[:, 0].cpu().numpy()
        return actions

    def reset(self, mask: Any = None) -> None:
        """Begin new episodes in the environments of a mask `[B]`; None: in all."""
        rows = self._slots.rows(mask, "mask")
        self._slots.step[rows] = 0
        self._warm[torch.from_numpy(rows)] = False


class At(NamedTuple):
    """Where candidates are evaluated: start states `[n, nx]`, bounds `[n or 1, 1, 1, nu]`, goal `[n, nx]` or None."""

    x0: Tensor
    nu: int
    low: Tensor
    high: Tensor
    goal: Tensor | None


class Candidates:
    """The cost of control sequences under a problem's models: values only, without a gradient."""

    def __init__(self, problem: Problem, horizon: int) -> None:
        if problem.bounds is None:
            raise ValueError("Problem.bounds is None; sampling planners draw between bounds: give (low, high)")
        self.problem, self.horizon = problem, horizon
        self._planner = SGP(horizon)  # of which only the dtypes and the checks of inputs are used

    def read(self, x0: Tensor, rows: np.ndarray, batch_size: int) -> At:
        """Start states of the environments `rows` of `batch_size`, with their bounds and goals."""
        device = device_of(self.problem)
        whole = torch.zeros(batch_size, x0.shape[1], dtype=x0.dtype, device=device)
        index = torch.from_numpy(rows).to(device)
        whole[index] = x0.to(device)
        inputs = read_inputs(self.problem, self._planner, whole, goal=None, params=None, init=None)
        assert inputs.low is not None and inputs.high is not None
        low, high = (b[index] if len(b) == batch_size > 1 else b for b in (inputs.low, inputs.high))
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise ValueError("Problem.bounds are not finite; sampling planners draw between bounds: give finite ones")
        return At(inputs.x0[index], inputs.nu, low[:, None, None], high[:, None, None], take_rows(inputs.goal, index))

    @torch.no_grad()
    def cost(self, at: At, u: Tensor) -> Tensor:
        """Cost `[n, S]` of candidates `u [n, S, T, nu]`; infinite where it is not a number."""
        planner = self._planner
        problem = self.problem.prepared(planner.state_dtype, planner.product_dtype, at.x0.device)
        samples = u.shape[1]
        x0 = at.x0.repeat_interleave(samples, 0)
        goal = None if at.goal is None else at.goal.repeat_interleave(samples, 0)
        flat = u.flatten(0, 1).transpose(0, 1)
        parts = []
        for first in range(0, len(x0), _BLOCK):
            rows = slice(first, first + _BLOCK)
            parts.append(total_cost(problem, x0[rows], flat[:, rows], None if goal is None else goal[rows]))
        return torch.cat(parts).nan_to_num(nan=torch.inf).view(-1, samples)


def total_cost(problem: Problem, x0: Tensor, u: Tensor, goal: Tensor | None) -> Tensor:
    """`Σ_t c(x_t, u_t) + c_T(x_T)` and the penalty on changes, `[R]`, from `x0 [R, nx]` under `u [T, R, nu]`."""
    states = [x0]
    for u_t in u:
        states.append(_step(problem.dynamics, states[-1], u_t))
    x = torch.stack(states)
    t = torch.arange(len(u), device=x.device)[:, None]
    cost = _running(problem.cost, x[:-1], u, goal, t).sum(0)
    if problem.terminal is not None:
        cost = cost + _terminal(problem.terminal, x[-1], goal)
    if problem.control_change:
        cost = cost + problem.control_change * (u[1:] - u[:-1]).square().sum((0, 2))
    return cost


def _step(dynamics: Any, x: Tensor, u: Tensor) -> Tensor:
    if isinstance(dynamics, Dynamics):
        return dynamics(x, u)
    return dynamics.module(x, u) if isinstance(dynamics, AutogradDynamics) else dynamics.vjp(x, u)[0]


def _running(cost: Any, x: Tensor, u: Tensor, goal: Tensor | None, t: Tensor) -> Tensor:
    if isinstance(cost, LearnedCost):
        return cost(x, u)
    if isinstance(cost, CustomCost):
        value = cost.function(x, u) if cost.simple else cost.function(x, u, goal, t, None)
        return value.reshape(x.shape[:-1])
    return cost.value_and_grad(x, u, goal, t, None)[0]


def _terminal(terminal: Any, x: Tensor, goal: Tensor | None) -> Tensor:
    if isinstance(terminal, CustomTerminal):
        value = terminal.function(x) if terminal.simple else terminal.function(x, goal, None)
        return value.reshape(x.shape[:-1])
    return terminal.value_and_grad(x, goal, None)[0]


def _normal(seed: int, keys: np.ndarray, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.from_numpy(keyed_normal(seed, keys, int(np.prod(shape[1:])))).to(like).view(shape)


def _uniform(normal: Tensor) -> Tensor:
    """Uniform numbers on [0, 1] of standard normal ones, by their distribution function."""
    return torch.special.ndtr(normal)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
