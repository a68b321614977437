"""Receding horizon: what is remembered, what is not, and that nobody depends on a neighbour."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sgp_fast as sgp
from sgp_fast._starts import keyed_normal
from sgp_fast.inputs import counted_normal
from tests.controllers import point_mass, point_problem, problem

B, NX, NU, T = 5, 11, 3, 6
PLANNER = sgp.SGP(horizon=T, iterations=4, tolerance=0.0)
VARIANTS = {
    "plain": PLANNER,
    "moments": dataclasses.replace(PLANNER, keep_moments=True),
    "starts": dataclasses.replace(PLANNER, starts=3),
    "tanh": dataclasses.replace(PLANNER, bounding="tanh"),
}
every_variant = pytest.mark.parametrize("planner", VARIANTS.values(), ids=VARIANTS.keys())


def observations(steps: int, batch: int = B) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(steps, batch, NX))


@pytest.mark.parametrize("planner", [PLANNER, VARIANTS["starts"]], ids=["one start", "three"])
def test_the_first_step_is_what_solve_plans(planner: sgp.SGP) -> None:
    obs = observations(1)[0]
    mpc = sgp.MPC(problem(), planner, B, seed=7)
    action = mpc.act(obs)
    plan = sgp.solve(problem(), planner, obs, seed=7)
    assert np.allclose(action, plan.u[:, 0], atol=1e-6)
    assert mpc.plan is not None and torch.allclose(mpc.plan.u, plan.u, atol=1e-6) and list(mpc.rows) == list(range(B))


def test_the_next_step_starts_from_the_plan_shifted_by_one() -> None:
    first, second = observations(2)
    mpc = sgp.MPC(problem(), PLANNER, B)
    mpc.act(first)
    assert mpc.plan is not None
    shifted = torch.cat((mpc.plan.u[:, 1:], mpc.plan.u[:, -1:]), 1)
    want = sgp.solve(problem(), PLANNER, second, init=shifted).u[:, 0]
    assert np.array_equal(mpc.act(second), want)


def test_moments_are_shifted_with_the_plan_and_their_count_goes_on() -> None:
    first, second = observations(2)
    planner = VARIANTS["moments"]
    mpc = sgp.MPC(problem(), planner, B)
    mpc.act(first)
    before = mpc.plan
    assert before is not None and before.moments is not None
    m, s, count = before.moments

    def shift(t: torch.Tensor) -> torch.Tensor:
        return torch.cat((t[:, 1:], t[:, -1:]), 1)

    init = dataclasses.replace(before, u=shift(before.u), moments=(shift(m), shift(s), count))
    want = sgp.solve(problem(), planner, second, init=init)
    action = mpc.act(second)
    assert np.array_equal(action, want.u[:, 0])
    assert mpc.plan is not None and mpc.plan.moments is not None and mpc.plan.moments[2].tolist() == [8.0] * B
    forgetful = sgp.MPC(problem(), PLANNER, B)
    forgetful.act(first)
    assert not np.allclose(forgetful.act(second), action, atol=1e-4), "without its moments Adam goes elsewhere"


@every_variant
def test_an_environment_never_depends_on_which_others_are_active(planner: sgp.SGP) -> None:
    """Everyone plans alone in one run; in the other they come and go, and are reset, in a mixed batch."""
    steps = 5
    active = np.random.default_rng(1).random((steps, B)) < 0.6
    active[0] = [True, True, False, True, False]
    resets = {2: np.array([True, False, False, True, False]), 4: np.array([False, False, True, True, True])}
    obs = observations(steps)
    together = sgp.MPC(problem(), planner, B, seed=3)
    alone = [sgp.MPC(problem(), planner, B, seed=3) for _ in range(B)]
    for t in range(steps):
        if t in resets:
            together.reset(resets[t])
            for mpc in alone:
                mpc.reset(resets[t])
        got = together.act(obs[t], active[t])
        for i in range(B):
            mask = np.zeros(B, bool)
            mask[i] = active[t, i]
            want = alone[i].act(obs[t], mask)[i]
            assert np.allclose(got[i], want, atol=2e-5), (t, i)
            assert active[t, i] or not got[i].any()


def test_reset_forgets_and_repeats() -> None:
    obs = observations(1)[0]
    mpc = sgp.MPC(problem(), PLANNER, B)
    first = mpc.act(obs)
    second = mpc.act(obs)
    assert not np.allclose(first, second, atol=1e-4)
    mpc.reset(np.arange(B) == 2)
    third = mpc.act(obs)
    assert np.allclose(third[2], first[2], atol=1e-5) and not np.allclose(third[1], first[1], atol=1e-4)
    mpc.reset()
    assert np.array_equal(mpc.act(obs), first)


def test_observations_of_another_environment_are_refused() -> None:
    mpc = sgp.MPC(problem(), PLANNER, 2)
    with pytest.raises(ValueError, match=f"x0 has nx={NX + 3} features; the dynamics have nx={NX}"):
        mpc.act(np.zeros((2, NX + 3)))


def test_an_inactive_environment_keeps_its_plan_and_may_observe_nothing() -> None:
    first, second = observations(2)
    mpc, other = sgp.MPC(problem(), PLANNER, B), sgp.MPC(problem(), PLANNER, B)
    mpc.act(first)
    other.act(first)
    missing = second.copy()
    missing[3] = np.nan
    mask = np.arange(B) != 3
    assert not mpc.act(missing, mask)[3].any()
    assert np.allclose(mpc.act(second, ~mask)[3], other.act(second)[3], atol=1e-5)
    plan = mpc.plan
    assert not mpc.act(second, np.zeros(B, bool)).any() and mpc.plan is plan


class Blows(nn.Module):
    """A model that gives infinity to states above 100."""

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return point_mass(x, u) * torch.where(x[..., :1] > 100, torch.inf, 1.0)


def test_a_plan_that_diverges_is_not_gone_on_from() -> None:
    mpc = sgp.MPC(point_problem(dynamics=Blows()), PLANNER, 2, seed=4)
    calm, wild = np.ones((2, 2)), np.array([[1.0, 1.0], [1000.0, 1.0]])
    action = mpc.act(wild)
    assert mpc.plan is not None and mpc.plan.status.tolist() == [sgp.Status.LIMIT, sgp.Status.DIVERGED]
    assert np.isfinite(action).all()
    after = mpc.act(calm)
    spread = PLANNER.start_spread * keyed_normal(4, np.array([(1 << 32) + 1]), T)
    init = torch.from_numpy(spread.reshape(1, T, 1))
    fresh = sgp.solve(point_problem(dynamics=Blows()), PLANNER, calm[1:], init=init)
    assert np.allclose(after[1], fresh.u[0, 0], atol=1e-6)
    assert mpc.plan.status[1] == sgp.Status.LIMIT


def test_bounds_goals_and_parameters_belong_to_their_environments() -> None:
    def cost(x: torch.Tensor, u: torch.Tensor, goal: torch.Tensor, t: torch.Tensor, params: Any) -> torch.Tensor:
        return (x - goal).square().sum(-1) + params["weight"] * u.square().sum(-1)

    high = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    task = point_problem(cost=cost, bounds=(-high, high))
    goal = np.array([[5.0, 0], [-5.0, 0], [5.0, 0], [-5.0, 0]])
    params = {"weight": np.array([0.0, 0.0, 1000.0, 0.0])}
    mask = np.array([False, True, True, True])
    for planner in (sgp.SGP(5, 40), sgp.SGP(5, 40, starts=2)):
        mpc = sgp.MPC(task, planner, 4)
        action = mpc.act(np.zeros((4, 2)), mask, goal, params)
        assert np.allclose(action[:, 0], [0, -0.2, 0, -0.4], atol=1e-2), "at their bounds; the third is dear to move"
        assert np.allclose(mpc.act(np.zeros((4, 2)), ~mask, goal, params)[:, 0], [0.1, 0, 0, 0], atol=1e-6)


def test_it_controls() -> None:
    """The point mass comes to rest at the origin."""
    mpc = sgp.MPC(point_problem(), sgp.SGP(horizon=15, iterations=20), 3)
    x = torch.tensor([[1.0, 0.0], [-0.5, 0.5], [0.3, -0.4]], dtype=torch.float64)
    for _ in range(80):
        x = point_mass(x, mpc.act(x))
    assert x.abs().max() < 0.05


def test_answers_in_kind() -> None:
    obs = observations(1)[0]
    mpc = sgp.MPC(problem(), PLANNER, B)
    assert isinstance(mpc.act(obs), np.ndarray)
    action = mpc.act(torch.from_numpy(obs), torch.ones(B, dtype=torch.bool))
    assert isinstance(action, torch.Tensor) and action.dtype == torch.float32 and action.shape == (B, NU)
    assert mpc.seconds > 0


def test_misuse_is_told() -> None:
    mpc = sgp.MPC(problem(), PLANNER, B)
    obs = observations(1)[0]
    obs[3, 2] = np.inf
    with pytest.raises(ValueError, match="not finite in row 3"):
        mpc.act(obs)
    with pytest.raises(ValueError, match=r"expected \[5, nx\]"):
        mpc.act(obs[:4])
    with pytest.raises(ValueError, match=r"boolean mask \[5\]"):
        mpc.act(obs, np.ones(B))
    with pytest.raises(ValueError, match="batch_size is 0"):
        sgp.MPC(problem(), PLANNER, 0)
    with pytest.raises(ValueError, match="keep_moments"):
        sgp.MPC(problem(), dataclasses.replace(PLANNER, keep_moments=True, starts=2), B)
    with pytest.raises(ValueError, match="bounds has 3 rows for batch_size=5"):
        sgp.MPC(problem(bounds=(-torch.ones(3, NU), torch.ones(3, NU))), PLANNER, B)
    with pytest.raises(ValueError, match="goal has 4 rows"):
        mpc.act(observations(1)[0], goal=np.zeros((4, NX)))
    with pytest.raises(ValueError, match="must be the 5 environments"):
        mpc.act(observations(1)[0], params={"w": np.zeros(4)})


def test_the_time_limit_holds_for_every_step() -> None:
    planner = sgp.SGP(horizon=T, iterations=20_000, tolerance=0.0, beta=1.0)
    mpc = sgp.MPC(problem(), planner, B, time_limit_s=0.2, backend="eager")
    for obs in observations(2):
        mpc.act(obs)
        assert mpc.plan is not None and 0 < int(mpc.plan.iterations.max()) < planner.iterations


def test_keyed_numbers_are_the_planners_own() -> None:
    keys = np.array([5, 6, 2, 3, 1 << 40])
    want = [counted_normal(9, int(key), 1, 7)[0] for key in keys]
    assert np.array_equal(keyed_normal(9, keys, 7), np.stack(want))
