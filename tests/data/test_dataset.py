from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from sgp_fast.data import Dataset, DatasetError

from .conftest import chain


def test_episodes_returns_and_lengths(dataset: Dataset):
    assert dataset.episode_starts.tolist() == [0, 4, 5, 12]
    assert dataset.episode_starts.dtype == np.int64
    assert dataset.lengths.tolist() == [4, 1, 7, 5]
    assert dataset.returns.tolist() == [4.0, 1.0, 7.0, 5.0]
    assert dataset.episodes[2] == slice(5, 12)
    assert len(dataset) == 17


def test_last_episode_may_end_with_the_file():
    arrays = chain((4, 3), (False, False))
    arrays["timeouts"][-1] = False
    assert Dataset(**arrays).lengths.tolist() == [4, 3]


@pytest.mark.parametrize("horizon", [1, 2, 4, 5, 7, 8])
def test_windows_stay_in_one_episode_and_none_is_missing(dataset: Dataset, horizon: int):
    starts = dataset.windows(horizon)
    assert len(starts) == sum(max(0, n - horizon + 1) for n in dataset.lengths)
    for start in starts:
        x = dataset.observations[start : start + horizon, 0]
        assert np.array_equal(np.diff(x), np.ones(horizon - 1))
        assert dataset.next_observations[start + horizon - 1, 0] == x[0] + horizon


def test_windows_of_no_step(dataset: Dataset):
    with pytest.raises(ValueError, match="horizon is 0"):
        dataset.windows(0)


def test_split_is_by_episode_and_seeded():
    data = Dataset(**chain(tuple(range(1, 21)), (True,) * 20))
    train, validation = data.split(0.8, seed=1)
    ids = [set(np.unique(part.observations[:, 0] // 1000)) for part in (train, validation)]
    assert len(ids[0]) == 16 and len(ids[1]) == 4 and not ids[0] & ids[1]
    assert len(train) + len(validation) == len(data)
    again = data.split(0.8, seed=1)[0]
    assert np.array_equal(again.observations, train.observations)
    assert not np.array_equal(data.split(0.8, seed=2)[1].lengths, validation.lengths)


def test_split_needs_two_episodes():
    with pytest.raises(ValueError, match="one episode"):
        Dataset(**chain((4,), (True,))).split(0.5)


def test_episodes_do_not_merge_when_an_unfinished_one_moves_forward():
    arrays = chain((4, 3), (True, False))
    arrays["timeouts"][-1] = False
    moved = Dataset(**arrays).take([1, 0])
    assert moved.lengths.tolist() == [3, 4]
    assert moved.timeouts.tolist() == [False, False, True, False, False, False, False]


def test_infos_follow_their_rows(dataset: Dataset):
    data = replace(dataset, infos={"qpos": dataset.observations.astype(np.float64)})
    part = data.take([2])
    assert np.array_equal(part.infos["qpos"], part.observations)


def test_summary(dataset: Dataset):
    facts = dataset.summary()
    assert facts["transitions"] == 17 and facts["episodes"] == 4
    assert (facts["terminals"], facts["timeouts"]) == (2, 2)
    assert facts["return_mean"] == pytest.approx(4.25)
    assert facts["return_quantiles"] == [1.0, 3.25, 4.5, 5.5, 7.0]


def test_types_are_converted_and_arguments_left_alone():
    arrays = chain((4, 3), (True, False))
    arrays["rewards"] = arrays["rewards"].astype(np.float64)[:, None]
    arrays["terminals"] = arrays["terminals"].astype(np.float32)
    data = Dataset(**arrays)
    assert data.rewards.dtype == np.float32 and data.rewards.shape == (7,)
    assert data.terminals.dtype == np.bool_
    assert arrays["rewards"].shape == (7, 1)
    with pytest.raises(FrozenInstanceError):
        data.rewards = arrays["rewards"]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("observations", lambda a: _set(a, (5, 1), np.nan), r"observations is not finite at row 5"),
        ("next_observations", lambda a: _set(a, (2, 0), np.inf), r"next_observations is not finite at row 2"),
        ("actions", lambda a: _set(a, (6, 0), np.nan), r"actions is not finite at row 6"),
        ("rewards", lambda a: _set(a.astype(np.float64), (3,), 1e300), r"rewards is not finite at row 3"),
        ("terminals", lambda a: _set(a.astype(np.float32), (1,), 0.5), r"terminals is 0.5 at row 1"),
        ("rewards", lambda a: a[:-1], r"rewards has 6 rows but observations has 7"),
        ("timeouts", lambda a: a[:-2], r"timeouts has 5 rows but observations has 7"),
        ("next_observations", lambda a: a[:, :2], r"next_observations has 2 columns but observations has 3"),
        ("actions", lambda a: a[:, 0], r"actions has shape \(7,\)"),
        ("actions", lambda a: a.astype(str), r"actions holds <U"),
        ("actions", lambda a: _set(a, (4, 1), 1.01), r"actions at row 4 is .* outside the bounds"),
    ],
)
def test_defects_are_named(key, change, message):
    arrays = chain((4, 3), (True, False))
    arrays[key] = change(arrays[key].copy())
    with pytest.raises(DatasetError, match=message):
        Dataset(**arrays, action_bounds=(-np.ones(2), np.ones(2)))


def _set(array, index, value):
    array[index] = value
    return array


def test_rounding_may_pass_a_bound():
    arrays = chain((4, 3), (True, False))
    arrays["actions"][0, 0] = np.nextafter(np.float32(1), np.float32(2))
    bounds = Dataset(**arrays, action_bounds=(-np.ones(2), np.ones(2))).action_bounds
    assert bounds is not None and bounds[0].dtype == np.float32


def test_empty_is_refused():
    arrays = {key: value[:0] for key, value in chain((4,), (True,)).items()}
    with pytest.raises(DatasetError, match="no rows"):
        Dataset(**arrays)
