from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from sgp_fast.data import DatasetError, commands, load_dataset, normalized_score, reference_score
from sgp_fast.data.make import cached_path
from sgp_fast.data.scores import REFERENCE_RETURNS

from .conftest import chain


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SGP_FAST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    return tmp_path


def _d4rl_file(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in chain((4, 3), (True, False)).items():
            file[key] = value


def test_made_on_first_use_and_kept(home, capfd):
    data = load_dataset("hopper-random", transitions=500, seed=2)
    assert "making hopper-random: 500 transitions, seed 2" in capfd.readouterr().err
    path = cached_path("hopper", "random", 500, 2)
    assert path.is_file() and path.is_relative_to(home / "home")
    before = path.stat().st_mtime_ns
    again = load_dataset("hopper-random", transitions=500, seed=2)
    assert path.stat().st_mtime_ns == before and "making" not in capfd.readouterr().err
    assert np.array_equal(data.observations, again.observations)
    assert data.name == "sgp_hopper_random-v5" and len(data) == 500


def test_what_cannot_be_read_any_more_is_made_again(capfd):
    data = load_dataset("hopper-random", transitions=500)
    path = cached_path("hopper", "random", 500, 0)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", bytes(len(whole))):
        path.write_bytes(damaged)
        capfd.readouterr()
        assert np.array_equal(load_dataset("hopper-random", transitions=500).observations, data.observations)
        told = f"making hopper-random again, as its file cannot be read: 500 transitions, seed 0, kept as {path}"
        assert told in capfd.readouterr().err and path.read_bytes() == whole


def test_what_cannot_be_made_is_not_announced(monkeypatch, home, capfd):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        with pytest.raises(ImportError, match=r'pip install "sgp-fast\[mujoco\]"'):
            load_dataset("hopper-random", transitions=500)
    (home / "a file").touch()
    monkeypatch.setenv("SGP_FAST_HOME", str(home / "a file"))
    told = r"a file.*where data are kept, cannot be made \(.*\); set SGP_FAST_HOME to a folder"
    for make in (lambda: load_dataset("hopper-random"), lambda: commands.make("hopper", "random")):
        with pytest.raises(OSError, match=told):
            make()
    assert capfd.readouterr().err == ""


def test_size_and_seed_belong_to_made_data(hopper_file):
    with pytest.raises(ValueError, match="transitions and seed belong to data made here"):
        load_dataset(hopper_file, seed=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hoper-medium", "did you mean 'hopper-medium'"),
        ("hopper-medium-v9", "did you mean 'hopper-medium-v2'"),
        ("xyz", "one of hopper-random, hopper-medium"),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hopper-medium-v2", "hopper_medium-v2.hdf5"),
        ("halfcheetah-medium-replay-v1", "halfcheetah_medium_replay-v1.hdf5"),
        ("walker2d-expert-v0", "walker2d_expert.hdf5"),
        ("walker2d-medium-replay-v0", "walker_mixed.hdf5"),
    ],
)
def test_d4rl_names(home, name, file):
    with pytest.raises(FileNotFoundError, match=f"{name} is D4RL's and is not downloaded here: put its file .*{file}"):
        load_dataset(name)
    _d4rl_file(home / "d4rl" / file)
    assert load_dataset(name).lengths.tolist() == [4, 3]


def test_d4rl_is_asked_for_its_file_where_it_is_installed(home, monkeypatch):
    """A package called d4rl whose import fails, as the real one's does, but whose table can be read."""
    package = home / "site" / "d4rl"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise Exception('no MuJoCo binaries')")
    (package / "infos.py").write_text("DATASET_URLS = {'door-human-v1': 'http://host/door-human-v1.hdf5'}")
    monkeypatch.syspath_prepend(str(home / "site"))
    monkeypatch.delitem(sys.modules, "d4rl", raising=False)
    with pytest.raises(FileNotFoundError, match="http://host/door-human-v1.hdf5"):
        load_dataset("door-human-v1")
    _d4rl_file(home / "d4rl" / "door-human-v1.hdf5")
    assert len(load_dataset("door-human-v1")) == 7


def test_minari_names(home, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(home / "minari"))
    with pytest.raises(FileNotFoundError, match="minari download mujoco/hopper/medium-v0"):
        load_dataset("mujoco/hopper/medium-v0")


def test_normalized_scores():
    score = normalized_score("hopper-medium-v2", [-20.272305, 3234.3])
    np.testing.assert_allclose(score.score, [0.0, 100.0])
    assert not score.approximate
    assert normalized_score("HalfCheetah-v5", 12135.0) == (100.0, True)
    with pytest.raises(ValueError, match="no reference score for 'Reacher-v5'"):
        normalized_score("Reacher-v5", 0.0)


@pytest.mark.parametrize(
    ("name", "task", "approximate"),
    [
        ("ant-random-expert-v0", "ant", False),
        ("Walker2d-v2", "walker2d", False),
        ("Hopper-v4", "hopper", True),
        ("sgp_halfcheetah_medium_replay-v5", "halfcheetah", True),
        ("walker2d-medium-expert", "walker2d", True),
        ("mujoco/ant/simple-v0", "ant", True),
    ],
)
def test_names_with_a_reference(name, task, approximate):
    reference = reference_score(name)
    assert reference is not None
    assert (reference.task, reference.approximate) == (task, approximate)
    assert reference[1:3] == REFERENCE_RETURNS[task]


@pytest.mark.parametrize("name", ["antmaze-umaze-v0", "bullet-hopper-medium-v0", "Humanoid-v5", "anthill-v2"])
def test_names_without_a_reference(name):
    assert reference_score(name) is None


def test_the_table_is_d4rls():
    spec = importlib.util.find_spec("d4rl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("d4rl is not installed")
    infos = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "infos.py"))
    checked = 0
    for name, minimum in infos["REF_MIN_SCORE"].items():
        reference = reference_score(name)
        if reference is not None:
            assert (reference.minimum, reference.maximum) == (minimum, infos["REF_MAX_SCORE"][name])
            assert not reference.approximate
            checked += 1
    assert checked >= 68


def test_command_info(hopper_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    commands.info(str(hopper_file))
    shown = capsys.readouterr().out
    data = load_dataset(hopper_file)
    for text in (
        "sgp_hopper_medium-v5", "Hopper-v5", "3,000", f"mean {data.returns.mean():.1f}", "approximate", "action 2"
    ):  # fmt: skip
        assert text in shown, text


def test_commands_make_and_convert(home, capsys):
    commands.make("halfcheetah", "random", transitions=200, seed=1, output=home / "x.hdf5")
    shown = capsys.readouterr().out
    assert "200 transitions in" in shown and f"next: sgp-fast data info {home / 'x.hdf5'}\n" in shown
    commands.make("hopper", "random", transitions=200)  # not what the name alone means, so that its path is needed
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown == f"next: sgp-fast data info {cached_path('hopper', 'random', 200, 0)}"
    assert len(load_dataset(shown.split()[-1])) == 200
    commands.convert(str(home / "x.hdf5"), str(home / "x.npz"))
    assert capsys.readouterr().out.strip().endswith("x.npz")
    assert len(load_dataset(home / "x.npz")) == 200


def test_nothing_optional_is_imported_before_it_is_used():
    code = (
        "import sys, sgp_fast.data as d; d.normalized_score('Hopper-v5', 1.0); "
        "print([m for m in ('h5py', 'minari', 'gymnasium', 'mujoco', 'tqdm', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_absent_library_gives_the_install_command(monkeypatch, hopper_file):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install "sgp-fast\[data\]"'):
        load_dataset(hopper_file)


def test_dataset_error_is_a_value_error():
    assert issubclass(DatasetError, ValueError)
