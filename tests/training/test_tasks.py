"""Normalisers, batches and seeds: what training sees of the data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sgp_fast.models import Normalizer
from sgp_fast.training import TrainConfig
from sgp_fast.training.tasks import Split, make_tasks, normalizer_of, reward_units, spread, step_scale, stream_seed

from .toys import NU, NX, SMALL, linear_system

CPU = torch.device("cpu")


def test_normalizer_gives_zero_mean_and_unit_spread_and_leaves_constants_alone() -> None:
    z = torch.randn(1000, 3) * torch.tensor([5.0, 0.01, 0.0]) + torch.tensor([100.0, 0.0, 0.3])
    normalizer = normalizer_of(z)
    seen = normalizer(z)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert normalizer.k[2] == 1.0


def test_a_constant_that_float32_cannot_hold_is_still_a_constant() -> None:
    values = torch.full((1000, 1), 0.1)
    values[::2] = torch.nextafter(values[::2], torch.tensor(1.0))
    assert spread(values).item() == 1.0


def test_step_scale_is_the_root_mean_square_of_the_change() -> None:
    x = torch.randn(500, 3)
    change = torch.stack((torch.full((500,), 2.0), torch.zeros(500), 0.1 * torch.randn(500)), 1)
    scale = step_scale(x, x + change, torch.tensor([1.0, 3.0, 1.0]))
    torch.testing.assert_close(scale[0], torch.tensor(2.0))  # a clock: constant change, but change
    assert scale[1] == pytest.approx(3e-6)  # what never moves stays where it is
    torch.testing.assert_close(scale[2], ((x[:, 2] + change[:, 2]) - x[:, 2]).square().mean().sqrt())


def test_reward_units() -> None:
    mean, unit = reward_units(torch.tensor([1.0, 3.0]))
    assert (mean, unit) == (-2.0, 1.0)
    assert reward_units(torch.full((5,), 7.0)) == (-7.0, 1.0)


def test_seeds_differ_for_every_use_and_only_depend_on_it() -> None:
    seeds = {stream_seed(seed, name, step) for seed in (0, 1) for name in ("dynamics", "score") for step in range(500)}
    assert len(seeds) == 2000
    assert stream_seed(0, "score", 7) == stream_seed(0, "score", 7) and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("horizon", [1, 5])
def test_windows_hold_consecutive_states_of_one_episode(horizon: int) -> None:
    data = linear_system(episodes=4, length=7)
    config = dataclasses.replace(SMALL, rollout_horizon=horizon)
    split = Split.of(data, horizon, CPU)
    x0, u, targets = make_tasks(config, split, None)["dynamics"].draw(200, torch.Generator().manual_seed(0))
    assert u.shape == (200, horizon, NU) and targets.shape == (200, horizon, NX)
    row_of = {observation.tobytes(): row for row, observation in enumerate(data.observations)}
    starts = set()
    for i in range(200):
        row = row_of[x0[i].numpy().tobytes()]
        starts.add(row % 7)
        assert row // 7 == (row + horizon - 1) // 7
        np.testing.assert_array_equal(u[i], data.actions[row : row + horizon])
        np.testing.assert_array_equal(targets[i], data.next_observations[row : row + horizon])
    assert starts == set(range(7 - horizon + 1))


def test_every_row_draws_its_own_level_and_noise() -> None:
    data = linear_system()
    config = TrainConfig(levels=10)
    task = make_tasks(config, Split.of(data, 1, CPU), None)["score"]
    z, level, noise = task.draw(20_000, torch.Generator().manual_seed(0))
    share = level.bincount(minlength=10) / len(level)
    assert share.sub(0.1).abs().max() < 0.01
    assert noise.shape == z.shape and abs(noise.mean().item()) < 0.01 and abs(noise.std().item() - 1) < 0.01
    assert abs(np.corrcoef(level, noise[:, 0])[0, 1]) < 0.03


def test_statistics_are_of_the_training_part_alone() -> None:
    train, validation = linear_system(seed=1), linear_system(seed=2)
    tasks = make_tasks(SMALL, Split.of(train, 1, CPU), Split.of(validation, 1, CPU))
    z = np.concatenate((train.observations, train.actions), 1)
    for name in ("dynamics", "score", "cost"):
        normalizer = tasks[name].model.normalizer
        assert isinstance(normalizer, Normalizer)
        np.testing.assert_allclose(normalizer.b, z.mean(0), atol=1e-5)
        np.testing.assert_allclose(normalizer.k, z.std(0), rtol=1e-5)
    rows = {row.tobytes() for row in validation.observations}
    batch = tasks["dynamics"].validation
    assert batch is not None and all(x.numpy().tobytes() in rows for x in batch[0])
