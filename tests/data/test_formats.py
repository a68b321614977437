from __future__ import annotations

import numpy as np
import pytest

from sgp_fast.data import Dataset, DatasetError, convert, load_dataset, read_minari, read_npz, write_minari, write_npz

from .conftest import chain
from .test_d4rl import assert_equal


@pytest.fixture(autouse=True)
def minari_storage(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def test_minari_round_trip(hopper_file, minari_storage):
    data = load_dataset(hopper_file)
    folder = write_minari(data, "sgp/hopper/medium-v0")
    assert folder == minari_storage / "sgp" / "hopper" / "medium-v0"
    for source in ("sgp/hopper/medium-v0", folder, folder / "data"):
        again = read_minari(source)
        assert_equal(data, again)
        assert again.name == "sgp/hopper/medium-v0"


def test_minari_itself_reads_what_was_written(hopper_file):
    import minari

    data = load_dataset(hopper_file)
    write_minari(data, "sgp/hopper/medium-v0")
    stored = minari.load_dataset("sgp/hopper/medium-v0")
    assert stored.total_steps == 3000 and stored.total_episodes == len(data.episodes)
    env_spec = stored.env_spec
    assert env_spec is not None and env_spec.id == "Hopper-v5"
    episode = stored[0]
    assert episode.observations.shape == (data.lengths[0] + 1, 11)
    assert np.array_equal(episode.observations[-1], data.next_observations[data.lengths[0] - 1])


def test_minari_without_an_environment(dataset: Dataset):
    write_minari(dataset, "chain-v0")
    again = read_minari("chain-v0")
    assert again.env_id is None and again.action_bounds is None
    assert np.array_equal(again.observations, dataset.observations)
    assert np.array_equal(again.timeouts, dataset.timeouts)


def test_minari_refuses_what_it_cannot_hold(dataset: Dataset, minari_storage):
    with pytest.raises(ValueError, match="Malformed dataset ID"):
        write_minari(dataset, "no id")
    arrays = chain((4, 3), (True, False))
    arrays["next_observations"][1] += 5
    with pytest.raises(ValueError, match="next_observations at row 1 differs from observations at row 2"):
        write_minari(Dataset(**arrays), "chain-v0")
    assert not list(minari_storage.glob("chain*"))
    write_minari(dataset, "chain-v0")
    with pytest.raises(ValueError, match="exists already"):
        write_minari(dataset, "chain-v0")


def test_minari_absent_and_damaged(dataset: Dataset, minari_storage):
    with pytest.raises(FileNotFoundError, match="not in local storage; download it with: minari download mujoco/hopper"):
        read_minari("mujoco/hopper/medium-v0")
    folder = write_minari(dataset, "chain-v0")
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DatasetError, match="chain-v0: .*cannot be read"):
        read_minari("chain-v0")


def test_minari_with_defects_names_the_row(dataset: Dataset):
    import h5py

    folder = write_minari(dataset, "chain-v0")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        observations = file["episode_2/observations"]
        assert isinstance(observations, h5py.Dataset)
        observations[3] = np.nan
    with pytest.raises(DatasetError, match="chain-v0: observations is not finite at row 8"):
        read_minari("chain-v0")


def test_npz_round_trip_and_defects(hopper_file, tmp_path):
    data = load_dataset(hopper_file)
    path = write_npz(data, tmp_path / "data.npz")
    again = read_npz(path)
    assert_equal(data, again)
    assert again.metadata == data.metadata
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"data\.npz: not a readable \.npz file"):
        read_npz(path)
    np.savez(tmp_path / "part.npz", observations=np.ones((3, 2)))
    with pytest.raises(DatasetError, match=r"part\.npz: key actions is missing"):
        read_npz(tmp_path / "part.npz")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "absent.npz")


def test_convert_in_a_circle(hopper_file, tmp_path):
    convert(hopper_file, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", "sgp/hopper-v0")
    last = convert("sgp/hopper-v0", tmp_path / "b.hdf5")
    assert last == tmp_path / "b.hdf5"
    assert_equal(load_dataset(hopper_file), load_dataset(last))


def test_convert_replaces_nothing(dataset: Dataset, tmp_path):
    source = write_npz(dataset, tmp_path / "a.npz")
    before = source.read_bytes()
    for target in ("a.npz", "b.hdf5"):
        (tmp_path / "b.hdf5").touch()
        with pytest.raises(FileExistsError, match=f"{target} exists already; remove it"):
            convert(source, tmp_path / target)
    assert source.read_bytes() == before
    with pytest.raises(NotADirectoryError, match=r"a\.npz is a file; give a path in a folder"):
        convert(source, source / "x.npz")


def test_a_folder_that_is_no_minari_data_set(tmp_path):
    with pytest.raises(DatasetError, match="is a folder without metadata.json, so no Minari data set; give its folder, or"):
        load_dataset(tmp_path)


def test_convert_to_an_unknown_format(hopper_file):
    with pytest.raises(ValueError, match=r"target is 'data\.csv'; expected a path ending in \.hdf5 or \.npz"):
        convert(hopper_file, "data.csv")
