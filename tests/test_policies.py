"""Baselines: the behaviour policy is the one that made the data; the sampling planners find what there is to find."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sgp_fast as sgp
from sgp_fast._starts import keyed_normal
from sgp_fast.data import load_actor
from sgp_fast.policies import CEM, BehaviorPolicy, Candidates, RandomShooting, total_cost
from tests.controllers import point_mass, point_problem, problem

NX = 11
Make = Callable[[sgp.Problem, int], Any]
SAMPLERS: dict[str, Make] = {
    "random shooting": lambda task, batch: RandomShooting(task, 6, batch, samples=64, seed=2),
    "cem": lambda task, batch: CEM(task, 6, batch, iterations=3, samples=32, elites=4, seed=2),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


def test_the_behaviour_policy_is_the_actor_with_noise_of_its_own() -> None:
    obs = np.random.default_rng(0).normal(size=(4, NX))
    policy = BehaviorPolicy("hopper", "expert", 4, seed=6)
    noise = keyed_normal(6, np.arange(4), 3).astype(np.float32)
    assert np.array_equal(policy.act(obs), load_actor("hopper", "expert").act(obs, noise))
    assert not np.array_equal(policy.act(obs), policy.act(obs)), "it is stochastic"
    draws = np.concatenate([BehaviorPolicy("hopper", "random", 500, seed).act(np.zeros((500, NX))) for seed in range(4)])
    for column in draws.T:  # uniform on [−1, 1]: the largest gap to its distribution function, as Kolmogorov bounds it
        gap = np.abs(np.sort(column) - np.linspace(-1, 1, len(column))).max() / 2
        assert gap < 1.63 / np.sqrt(len(column))


def test_mixed_qualities_take_turns() -> None:
    obs = np.random.default_rng(0).normal(size=(5, NX))
    policy = BehaviorPolicy("hopper", "medium-expert", 5)
    noise = keyed_normal(0, np.arange(5), 3).astype(np.float32)
    medium, expert = (load_actor("hopper", name).act(obs, noise) for name in ("medium", "expert"))
    got = policy.act(obs)
    assert np.array_equal(got[::2], medium[::2]) and np.array_equal(got[1::2], expert[1::2])
    assert len(BehaviorPolicy("walker2d", "medium-replay", 2).actors) == 8
    with pytest.raises(ValueError, match="quality is 'good'"):
        BehaviorPolicy("hopper", "good", 1)


@every_sampler
def test_sampling_planners_control(make: Make) -> None:
    """The point mass goes where it goes under the gradient planner with the same horizon."""
    ends = []
    for controller in (make(point_problem(), 2), sgp.MPC(point_problem(), sgp.SGP(6, 20), 2)):
        x = torch.tensor([[1.0, 0.0], [-0.5, 0.5]], dtype=torch.float64)
        for _ in range(40):
            x = point_mass(x, torch.as_tensor(controller.act(x.numpy())).double())
        ends.append(x)
    assert ends[1].abs().max() < 0.4 and (ends[0] - ends[1]).abs().max() < 0.1


def test_cem_reaches_the_optimum_that_gradients_find() -> None:
    task = point_problem()
    x0 = np.array([[0.4, -0.2], [-0.3, 0.1], [2.0, 2.0]])
    best = sgp.solve(task, sgp.SGP(6, 300, step_size=(0.1, 0.001)), x0)
    controller = CEM(task, 6, 3, iterations=20, samples=256, elites=16)
    first = controller.act(x0)
    assert np.allclose(first, best.u[:, 0], atol=0.05)


@every_sampler
def test_an_environment_never_depends_on_which_others_are_active(make: Make) -> None:
    batch, steps = 4, 4
    active = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]], bool)
    obs = np.random.default_rng(3).normal(size=(steps, batch, NX))
    task = problem()
    together, alone = make(task, batch), [make(task, batch) for _ in range(batch)]
    for t in range(steps):
        missing = obs[t].copy()
        missing[~active[t]] = np.nan
        got = together.act(missing, active[t])
        assert not got[~active[t]].any() and np.abs(got).max() <= 1
        for i in np.flatnonzero(active[t]):
            assert np.allclose(got[i], alone[i].act(obs[t], np.arange(batch) == i)[i], atol=1e-4)
    assert not together.act(obs[0], np.zeros(batch, bool)).any()


@every_sampler
def test_reset_begins_the_same_episode_again(make: Make) -> None:
    obs = np.random.default_rng(4).normal(size=(3, NX))
    controller = make(problem(), 3)
    first = controller.act(obs)
    assert not np.allclose(first, controller.act(obs))
    controller.reset(np.array([False, True, False]))
    again = controller.act(obs)
    assert np.allclose(again[1], first[1], atol=1e-5) and not np.allclose(again[0], first[0], atol=1e-3)
    controller.reset()
    assert np.array_equal(controller.act(obs), first)


def test_candidates_cost_what_a_plan_of_them_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over the horizon, as the gradient planner reports it, with every kind of cost; in blocks or whole."""
    weights = torch.diag(torch.arange(1.0, 12.0))
    goal = torch.randn(2, NX, generator=torch.Generator().manual_seed(0))
    tasks = [
        problem(control_change=0.3),
        problem(cost=sgp.QuadraticCost(weights, torch.eye(3)), terminal=sgp.QuadraticTerminal(weights), goal=goal),
        problem(cost=lambda x, u, goal, t, params: (x - goal).square().sum(-1) * t, goal=goal, terminal=lambda x: x[..., 0]),
        problem(dynamics=lambda x, u: x + 0.1 * u.sum(-1, keepdim=True), nu=3),
    ]
    x0 = np.random.default_rng(5).normal(size=(2, NX)).astype(np.float32)
    planner = sgp.SGP(horizon=4, iterations=1, step_size=0.0)
    u = torch.rand(2, 5, 4, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for task in tasks:
        candidates = Candidates(task, 4)
        at = candidates.read(torch.from_numpy(x0), np.arange(2), 2)
        whole = candidates.cost(at, u)
        for k in range(5):
            plan = sgp.solve(task, planner, x0, init=u[:, k])
            assert torch.allclose(whole[:, k], plan.cost, rtol=1e-4)
        monkeypatch.setattr("sgp_fast.policies._BLOCK", 3)
        assert torch.allclose(candidates.cost(at, u), whole, rtol=1e-5)
        monkeypatch.undo()


def test_no_gradient_is_taken() -> None:
    parts = problem()
    seen: list[bool] = []

    def cost(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return x.square().sum(-1)

    CEM(dataclasses.replace(parts, cost=cost), 3, 1, samples=8, elites=2).act(np.zeros((1, NX)))
    assert seen and not any(seen)
    x0, u = torch.zeros(4, NX), torch.zeros(3, 4, 3)
    with torch.no_grad():
        assert not total_cost(parts, x0, u, None).requires_grad


def test_candidates_that_are_not_finite_lose() -> None:
    def cliff(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.where(u[..., 0] > 0, torch.nan, u[..., 0])

    for make in SAMPLERS.values():
        action = make(point_problem(cost=cliff), 1).act(np.zeros((1, 2)))
        assert -1 <= action[0, 0] <= 0


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="draw between bounds"):
        CEM(problem(bounds=None), 4, 2)
    with pytest.raises(ValueError, match="not finite"):
        RandomShooting(problem(bounds=(-1.0, torch.inf)), 4, 2).act(np.zeros((2, NX)))
    with pytest.raises(ValueError, match="elites is 9 of samples=8"):
        CEM(problem(), 4, 2, samples=8, elites=9)
    with pytest.raises(ValueError, match="samples is 0"):
        RandomShooting(problem(), 4, 2, samples=0)
    with pytest.raises(ValueError, match=r"expected \[2, nx\]"):
        BehaviorPolicy("hopper", "medium", 2).act(np.zeros((3, NX)))
