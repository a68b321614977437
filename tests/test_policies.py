"""The behaviour policy is the one that made the data."""

from __future__ import annotations

import numpy as np
import pytest

from sgp_fast._starts import keyed_normal
from sgp_fast.data import load_actor
from sgp_fast.evaluation import evaluate
from sgp_fast.policies import BehaviorPolicy

NX = 11


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


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match=r"expected \[2, nx\]"):
        BehaviorPolicy("hopper", "medium", 2).act(np.zeros((3, NX)))


def test_it_is_for_the_sizes_of_its_task() -> None:
    policy = BehaviorPolicy("hopper", "medium", 2)
    policy.check_sizes(11, 3)
    for nx, nu in ((17, 3), (11, 6)):
        with pytest.raises(ValueError, match="takes 11 observations and gives 3 actions"):
            policy.check_sizes(nx, nu)
    BehaviorPolicy("hopper", "random", 2).check_sizes(17, 3)  # takes no notice of what it observes
    with pytest.raises(ValueError, match="HalfCheetah-v5 has 17 observations and 6 actions, which do not fit"):
        evaluate(policy, "HalfCheetah-v5", episodes=2, steps=1)
