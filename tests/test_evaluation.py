"""Closed loop: episodes end when they end, counts are exact, and the intervals are the textbook's."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import sgp_fast as sgp
from sgp_fast._episodes import make_env
from sgp_fast._intervals import t_interval, t_quantile
from sgp_fast.policies import BehaviorPolicy
from tests.controllers import point_problem, problem


class Countdown(gymnasium.Env):
    """Ends by itself after `seed mod 7 + 1` steps; reward is the step's number; the observation says how far it is."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.length, self.t = (seed or 0) % 7 + 1, 0
        return np.array([0.0, self.length]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.t += 1
        over = self.t >= self.length
        return np.array([self.t, self.length]), float(self.t), over and self.length != 3, over and self.length == 3, {}


class Longer(Countdown):
    """Observes one number more; nobody is to begin an episode."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        raise AssertionError("an episode began")


class Noting:
    """A controller that does nothing and notes what it was asked."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []
        self.resets = 0

    def act(self, obs: np.ndarray, active: np.ndarray) -> np.ndarray:
        self.asked.append((obs.copy(), active.copy()))
        return np.where(active[:, None], 0.5, np.nan)  # rows that are not active may hold anything

    def reset(self, mask: Any = None) -> None:
        self.resets += 1


@pytest.mark.parametrize("batch", [1, 3, 5, 8])
def test_each_episode_is_counted_to_its_end_and_no_further(batch: int) -> None:
    seeds = (0, 1, 2, 5, 6)
    controller = Noting(batch)
    result = sgp.evaluate(controller, Countdown, episodes=5, seeds=seeds, record=True)
    lengths = [seed + 1 for seed in seeds]
    assert result.lengths.tolist() == lengths and result.env == "Countdown"
    assert result.returns.tolist() == [n * (n + 1) / 2 for n in lengths]
    assert result.terminated.tolist() == [True, True, False, True, True], "the third is cut, not ended"
    assert result.plans == sum(lengths) == sum(int(active.sum()) for _, active in controller.asked)
    assert controller.resets == math.ceil(5 / batch) and not result.approximate and result.normalized is None
    for obs, active in controller.asked:
        assert obs.shape == (batch, 2) and not obs[~active].any() and (obs[active, 0] < obs[active, 1]).all()
    for trajectory, n in zip(result.trajectories, lengths, strict=True):
        assert trajectory.observations[:, 0].tolist() == list(range(n + 1))
        assert trajectory.rewards.tolist() == list(range(1, n + 1)) and trajectory.actions.shape == (n, 1)
        assert trajectory.predicted is None and trajectory.qpos is None


class Slow(Noting):
    """Longer at each step than a bar stands still."""

    def act(self, obs: np.ndarray, active: np.ndarray) -> np.ndarray:
        time.sleep(0.12)
        return super().act(obs, active)


@pytest.mark.parametrize("title", ["", "a title"])
def test_a_bar_shows_the_step_while_no_episode_ends(
    title: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal. With a title it is gone at the end, so that what is printed next takes its place."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sgp.evaluate(Slow(2), Countdown, episodes=2, seeds=[5, 5], progress=title or True)
    shown = capsys.readouterr().err
    still = [drawn for drawn in shown.split("\r") if " 0/2 " in drawn]
    assert any("step 2" in drawn for drawn in still) and all(drawn.startswith(title) for drawn in still)
    assert shown.endswith("\r") if title else "2/2" in shown.splitlines()[-1]


def test_a_limit_on_the_steps() -> None:
    result = sgp.evaluate(Noting(3), Countdown, episodes=3, seeds=[6, 1, 3], steps=4)
    assert result.lengths.tolist() == [4, 2, 4]
    assert result.terminated.tolist() == [False, True, True] and result.approximate, "the first was cut short"


def test_hopper_gives_the_returns_of_a_plain_loop() -> None:
    """The same seeds, one environment at a time, written out."""
    result = sgp.evaluate(
        BehaviorPolicy("hopper", "medium", 3, seed=5), "Hopper-v5", episodes=3, seeds=11, steps=60, record=[1]
    )
    policy = BehaviorPolicy("hopper", "medium", 3, seed=5)
    env = gymnasium.make("Hopper-v5")
    for episode in range(3):
        obs, _ = env.reset(seed=11 + episode)
        total, steps, mask = 0.0, 0, np.arange(3) == episode
        for _ in range(60):
            action = policy.act(np.tile(obs, (3, 1)), mask)[episode]
            obs, reward, terminated, truncated, _ = env.step(action)
            total, steps = total + float(reward), steps + 1
            if terminated or truncated:
                break
        assert result.returns[episode] == pytest.approx(total, rel=1e-9) and result.lengths[episode] == steps
    assert result.approximate and result.normalized is not None
    assert np.allclose(result.normalized, sgp.normalized_score("Hopper-v5", result.returns).score)
    (trajectory,) = result.trajectories
    assert trajectory.episode == 1 and trajectory.qpos is not None and trajectory.qvel is not None
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    simulator: Any = env.unwrapped
    simulator.set_state(trajectory.qpos[7], trajectory.qvel[7])
    obs = env.step(trajectory.actions[7])[0]
    assert np.allclose(obs, trajectory.observations[8], atol=1e-3), "the recorded states are the simulator's"


@pytest.mark.parametrize(
    ("made", "env", "words"),
    [
        (problem(), "HalfCheetah-v5", "HalfCheetah-v5 has 17 observations and 6 act.* x0 has nx=17 .* dynamics have nx=11"),
        (point_problem(), "Hopper-v5", "Hopper-v5 has 11 observations and 3 actions, .* the problem has nu=1 controls; exp"),
        (point_problem(), Longer, "Longer has 3 observations and 1 actions, .* dynamics gave .* x0 has nx=3 features"),
        (point_problem(goal=torch.zeros(2)), Longer, "Longer has 3 .* goal has shape .2,. and x0 has nx=3 features"),
    ],
)
def test_an_environment_of_other_sizes_is_refused_before_any_episode(made: sgp.Problem, env: Any, words: str) -> None:
    mpc = sgp.MPC(made, sgp.SGP(horizon=4, iterations=2), 2)
    with pytest.raises(ValueError, match=words):
        sgp.evaluate(mpc, env, episodes=2, steps=2)
    assert mpc.plan is None


def test_mpc_in_hopper_records_what_its_plans_foresaw() -> None:
    planner = sgp.SGP(horizon=4, iterations=2)
    runs = [
        sgp.evaluate(sgp.MPC(problem(), planner, batch), "Hopper-v5", episodes=2, seeds=3, steps=8, record=True)
        for batch in (2, 3)
    ]
    for a, b in zip(*(run.trajectories for run in runs), strict=True):
        assert np.allclose(a.actions, b.actions, atol=1e-4), "a batch larger than the episodes changes nothing"
    trajectory = runs[0].trajectories[1]
    assert trajectory.predicted is not None and trajectory.predicted.shape == (8, 5, 11)
    assert np.allclose(trajectory.predicted[:, 0], trajectory.observations[:-1], atol=1e-5)
    assert len(runs[0].act_seconds) == 8 and runs[0].plans == 16 and runs[0].seconds_per_plan > 0


def test_json_and_table() -> None:
    result = sgp.evaluate(Noting(2), Countdown, episodes=4, seeds=[6, 6, 5, 5])
    data = json.loads(result.to_json())
    low, high = result.interval
    assert data["return"]["interval_95"] == [low, high] and data["return"]["mean"] == result.mean == 24.5
    assert data["returns"] == [28, 28, 21, 21] and data["normalized_score"] is None
    assert data["planning"]["plans"] == 26 and data["planning"]["calls"] == len(result.act_seconds) == 13
    assert "24.5" in result.table() and f"{low:.1f}, {high:.1f}" in result.table()
    single = sgp.evaluate(Noting(1), Countdown, episodes=1)
    assert json.loads(single.to_json())["return"]["interval_95"] == [None, None]
    assert "no interval" in single.table()


def test_student_t() -> None:
    """Table of the 97.5% quantile (Student's t), and coverage where it is exact."""
    table = {1: 12.70620, 2: 4.302653, 3: 3.182446, 4: 2.776445, 9: 2.262157, 30: 2.042272, 120: 1.979930}
    for df, want in table.items():
        assert t_quantile(df) == pytest.approx(want, rel=1e-6)
    assert t_quantile(9, 0.90) == pytest.approx(1.833113, rel=1e-6)
    sample = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    low, high = np.array([t_interval(values) for values in sample]).T
    assert abs(np.mean((low < 3.0) & (high > 3.0)) - 0.95) < 0.011


@pytest.mark.filterwarnings("error:.*versioned environment", "error:.*out of date")
def test_versions_are_resolved_in_silence() -> None:
    for given, want in (("MountainCarContinuous", "MountainCarContinuous-v0"), ("Hopper-v4", "Hopper-v4")):
        env = make_env(gymnasium, given)
        assert env.spec.id == want
        env.close()


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="cannot make 'Hoper-v5' .*Did you mean: `Hopper`"):
        sgp.evaluate(Noting(1), "Hoper-v5", episodes=1)
    with pytest.raises(ValueError, match="CartPole-v1 has the action space Discrete"):
        sgp.evaluate(Noting(1), "CartPole-v1", episodes=1)
    with pytest.raises(ValueError, match="seeds has 2 entries for episodes=3"):
        sgp.evaluate(Noting(1), Countdown, episodes=3, seeds=[1, 2])
    with pytest.raises(ValueError, match="record names episode 3"):
        sgp.evaluate(Noting(1), Countdown, episodes=3, record=[3])
    with pytest.raises(ValueError, match="episodes is 0; expected at least 1"):
        sgp.evaluate(Noting(1), Countdown, episodes=0)
    with pytest.raises(ValueError, match="seed is -1; expected 0 or more"):
        sgp.evaluate(Noting(1), Countdown, episodes=2, seeds=-1)
    with pytest.raises(ValueError, match="cannot make 'Hopper-v2' .*; give Hopper-v5"):
        sgp.evaluate(Noting(1), "Hopper-v2", episodes=1)
    unbounded = sgp.MPC(point_problem(bounds=None, cost=lambda x, u: -10 * u[..., 0]), sgp.SGP(3, 60), 2)
    with pytest.raises(ValueError, match="action in episode 0 is .* Problem.bounds"):
        sgp.evaluate(unbounded, Countdown, episodes=2)
