from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from sgp_fast.data import Dataset, DatasetError, read_d4rl_hdf5, write_d4rl_hdf5

from .conftest import chain


def write(path: Path, arrays: dict, *leave_out: str, **more) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in {**arrays, **more}.items():
            if key not in leave_out:
                file[key] = value
    return path


def assert_no_straddling(data: Dataset) -> None:
    assert np.array_equal(data.next_observations, data.observations + 1)


def test_with_next_observations_every_row_is_kept(tmp_path):
    arrays = chain((4, 1, 7), (False, True, False))
    more = {"metadata/algorithm": b"SAC", "metadata/policy/fc0/weight": np.ones((2, 2)), "infos/qpos": np.ones((12, 6))}
    data = read_d4rl_hdf5(write(tmp_path / "hopper_medium-v2.hdf5", arrays, **more))
    for key, value in arrays.items():
        assert np.array_equal(getattr(data, key), value), key
    assert data.metadata == {"algorithm": "SAC"}
    assert data.name == "hopper_medium-v2" and data.env_id == "Hopper-v2"
    assert data.infos["qpos"].shape == (12, 6)
    assert data.action_bounds is not None and data.action_bounds[1].tolist() == [1.0, 1.0]


def test_without_next_observations_rows_without_a_successor_are_left_out(tmp_path):
    arrays = chain((4, 1, 7, 3), (False, True, True, False))
    arrays["timeouts"][-1] = False  # the file ends within an episode
    data = read_d4rl_hdf5(write(tmp_path / "data.hdf5", arrays, "next_observations", **{"infos/x": np.arange(15.0)}))
    assert_no_straddling(data)
    assert data.lengths.tolist() == [3, 6, 2]  # the episode of one step is gone
    assert data.episode_starts.tolist() == [0, 3, 9]
    assert not data.terminals.any()  # what happened at a terminal is not in the file
    assert data.timeouts.sum() == 3
    assert data.metadata == {"rows_without_successor": 4, "terminals_without_successor": 2}
    assert np.array_equal(data.infos["x"], [0, 1, 2, 5, 6, 7, 8, 9, 10, 12, 13])


@pytest.mark.parametrize("limit_in", ["argument", "attribute"])
def test_without_timeouts_the_time_limit_ends_an_episode(tmp_path, limit_in):
    # 5-step limit: an episode that terminates early, two that time out, one that terminates on its very last step.
    arrays = chain((3, 5, 5, 5, 2), (True, False, False, True, False))
    path = write(tmp_path / "data.hdf5", arrays, "next_observations", "timeouts")
    if limit_in == "attribute":
        with h5py.File(path, "a") as file:
            file.attrs["max_episode_steps"] = 5
    data = read_d4rl_hdf5(path, max_episode_steps=5 if limit_in == "argument" else None)
    assert_no_straddling(data)
    assert data.lengths.tolist() == [2, 4, 4, 4, 1]


def test_without_timeouts_successors_show_where_episodes_end(tmp_path):
    arrays = chain((3, 5, 2), (True, False, False))
    data = read_d4rl_hdf5(write(tmp_path / "data.hdf5", arrays, "timeouts"))
    assert data.lengths.tolist() == [3, 5, 2]
    assert data.terminals.tolist() == arrays["terminals"].tolist()
    assert data.timeouts.sum() == 1 and data.timeouts[7]


def test_unmarked_boundary_becomes_a_timeout(tmp_path):
    arrays = chain((4, 6, 3), (False, False, True))
    arrays["timeouts"][3] = False
    data = read_d4rl_hdf5(write(tmp_path / "data.hdf5", arrays))
    assert data.lengths.tolist() == [4, 6, 3]
    assert data.metadata["unmarked_boundaries"] == 1
    assert_no_straddling(data)


def test_unknown_time_limit(tmp_path):
    path = write(tmp_path / "data.hdf5", chain((4, 6), (True, False)), "next_observations", "timeouts")
    with pytest.raises(DatasetError, match="pass max_episode_steps"):
        read_d4rl_hdf5(path)


def _hopper(lengths: tuple[int, ...]) -> dict:
    """Rows of 11 that look like hopper's: a reset stands at 1.25, later rows do not."""
    arrays = chain(lengths, (False,) * len(lengths), nx=11, nu=3)
    start = np.concatenate([np.arange(n) == 0 for n in lengths])
    arrays["observations"] = np.where(start[:, None], np.r_[1.25, np.zeros(10)], 0.5).astype(np.float32)
    return arrays


def test_v0_files_of_mujoco_tasks_have_a_thousand_steps(tmp_path):
    path = write(tmp_path / "hopper_mixed.hdf5", _hopper((1000, 1000, 7)), "next_observations", "timeouts")
    assert read_d4rl_hdf5(path).lengths.tolist() == [999, 999, 6]


def test_v0_files_with_other_episodes_are_refused_rather_than_joined(tmp_path):
    path = write(tmp_path / "hopper_medium.hdf5", _hopper((999, 999, 7)), "next_observations", "timeouts")
    with pytest.raises(DatasetError, match=r"row 1000.* not a state after a reset of hopper"):
        read_d4rl_hdf5(path)
    assert read_d4rl_hdf5(path, max_episode_steps=999).lengths.tolist() == [998, 998, 6]


def test_a_recording_is_recognised_by_the_check_of_resets(hopper_file, tmp_path):
    whole = read_d4rl_hdf5(hopper_file)
    arrays = {key: getattr(whole, key) for key in ("observations", "actions", "rewards", "terminals")}
    # Terminals and the limit give every boundary of a recording but that of its cut end.
    data = read_d4rl_hdf5(write(tmp_path / "hopper_medium-v0.hdf5", arrays))
    assert data.lengths.tolist() == (whole.lengths - 1).tolist()


def test_columns_and_float_flags_as_in_some_files(tmp_path):
    arrays = chain((4, 3), (True, False))
    for key in ("rewards", "terminals", "timeouts"):
        arrays[key] = arrays[key].astype(np.float32)[:, None]
    assert read_d4rl_hdf5(write(tmp_path / "data.hdf5", arrays)).lengths.tolist() == [4, 3]


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_missing_key(tmp_path, key):
    path = write(tmp_path / "data.hdf5", chain((4, 3), (True, False)), key)
    with pytest.raises(DatasetError, match=rf"data\.hdf5: key {key} is missing \(found: "):
        read_d4rl_hdf5(path)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_truncated_file(tmp_path, hopper_file, keep):
    raw = hopper_file.read_bytes()
    path = tmp_path / "cut.hdf5"
    path.write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(DatasetError, match=r"cut\.hdf5: not a readable HDF5 file .*truncated"):
        read_d4rl_hdf5(path)


def test_damaged_chunk(tmp_path, hopper_file):
    path = tmp_path / "damaged.hdf5"
    with h5py.File(hopper_file) as file:
        data = file["actions"]
        assert isinstance(data, h5py.Dataset)
        chunk = data.id.get_chunk_info(0)
    raw = bytearray(hopper_file.read_bytes())
    raw[chunk.byte_offset + 8 : chunk.byte_offset + 64] = bytes(56)
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"damaged\.hdf5: actions cannot be read"):
        read_d4rl_hdf5(path)


def test_no_rows(tmp_path):
    path = write(tmp_path / "data.hdf5", {key: value[:0] for key, value in chain((4,), (True,)).items()})
    with pytest.raises(DatasetError, match=r"data\.hdf5: observations has no rows"):
        read_d4rl_hdf5(path)


def test_not_hdf5_and_not_there(tmp_path):
    path = tmp_path / "text.hdf5"
    path.write_text("no data")
    with pytest.raises(DatasetError, match=r"text\.hdf5: not a readable HDF5 file"):
        read_d4rl_hdf5(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_d4rl_hdf5(tmp_path / "absent.hdf5")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rewards", np.ones(6), "rewards has 6 rows but observations has 7"),
        ("next_observations", np.ones((7, 2)), "next_observations has shape"),
        ("next_observations", np.ones((6, 3)), "next_observations has 6 rows"),
        ("observations", np.full((7, 3), np.nan), "observations is not finite at row 0"),
        ("actions", np.r_[np.zeros((5, 2)), [[0, -1.5]], np.zeros((1, 2))], "actions at row 5"),
        ("terminals", np.full(7, 3), "terminals is 3 at row 0"),
    ],
)
def test_defects_name_file_key_and_row(tmp_path, key, value, message):
    path = write(tmp_path / "walker2d_expert-v2.hdf5", {**chain((4, 3), (True, False)), key: value})
    with pytest.raises(DatasetError, match=rf"walker2d_expert-v2\.hdf5: .*{message}"):
        read_d4rl_hdf5(path)


def test_action_bounds_of_other_simulators_are_not_assumed(tmp_path):
    arrays = chain((4, 3), (True, False))
    arrays["actions"] *= 5
    data = read_d4rl_hdf5(write(tmp_path / "bullet-hopper_medium.hdf5", arrays))
    assert data.action_bounds is None and data.env_id is None


def test_write_and_read(tmp_path, hopper_file):
    data = read_d4rl_hdf5(hopper_file)
    again = read_d4rl_hdf5(write_d4rl_hdf5(data, tmp_path / "copy.hdf5"))
    assert_equal(data, again)
    assert json.loads(json.dumps(again.metadata)) == data.metadata


def assert_equal(a: Dataset, b: Dataset) -> None:
    for key in ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts"):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key
    assert a.env_id == b.env_id
    assert a.action_bounds is not None and b.action_bounds is not None
    assert np.array_equal(a.action_bounds, b.action_bounds)
    assert a.infos.keys() == b.infos.keys()
    for key in a.infos:
        assert np.array_equal(a.infos[key], b.infos[key]), key
