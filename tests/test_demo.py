"""The demo: its committed settings, its look into plans, and the whole of it at a small size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sgp_fast as sgp
from sgp_fast.data import make_dataset, read_d4rl_hdf5
from sgp_fast.demo import Settings, read_settings, run_demo
from sgp_fast.demo.inside import Starts, execute
from sgp_fast.demo.settings import FOLDER, Episodes, Inside
from sgp_fast.doctor import usable_cores
from sgp_fast.report import Results
from sgp_fast.training import TrainConfig


def small() -> Settings:
    return replace(
        read_settings("demo"),
        transitions=3_000,
        train=TrainConfig(width=32, hidden_layers=2, steps=60, batch_size=64, evaluate_every=30),
        planner=sgp.SGP(horizon=4, iterations=3, beta=0.3),
        sampling=sgp.CEM(horizon=4, iterations=1, samples=8, elites=2),
        evaluation=Episodes(episodes=2, steps=12, first_seed=0),
        inside=Inside(starts=6, executed_after=(1, 3), shown=2),
    )


@pytest.mark.parametrize("name", ["demo", "full"])
def test_committed_settings(name: str) -> None:
    """Enough episodes and steps to conclude from, and the published size where it is promised."""
    settings = read_settings(name)
    assert settings.evaluation.episodes >= 10 and settings.evaluation.steps >= 300
    assert settings.train.width == {"demo": 256, "full": 1024}[name] and settings.train.hidden_layers == 4
    assert len(settings.tasks) == {"demo": 1, "full": 15}[name]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"hopper-medium"', '"hopper-middling"', "tasks has 'hopper-middling'; expected TASK-QUALITY"),
        ("horizon = 8", "horizont = 8", "horizont"),
        ("8, 15]", "8]", "executed_after must end with planner.iterations"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "demo.toml").read_text().replace(old, new))
    with pytest.raises(ValueError, match=words):
        read_settings(path)


def test_executing_recorded_actions_gives_the_recorded_future(tmp_path: Path) -> None:
    """What the report calls real is: the simulator, from a recorded state, under recorded controls, repeats the record."""
    pytest.importorskip("mujoco")
    data = read_d4rl_hdf5(make_dataset("hopper", "medium", 500, seed=3, path=tmp_path / "d.hdf5", progress=False))
    rows = data.windows(8)[::50]
    starts = Starts(data.observations[rows], data.infos["qpos"][rows], data.infos["qvel"][rows])
    cost, x = execute("Hopper-v5", starts, np.stack([data.actions[row : row + 8] for row in rows]))
    for i, row in enumerate(rows):
        assert np.allclose(x[i, 1:], data.next_observations[row : row + 8], atol=1e-4)
        assert np.isclose(-cost[i], data.rewards[row : row + 8].sum(), atol=1e-3)


def test_a_small_demo_from_nothing_and_again(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    said: list[str] = []
    report = run_demo(small(), tmp_path, say=said.append)
    results = Results.load(tmp_path / "results")
    (task,) = results.tasks
    assert results.circumstances.cores == usable_cores()
    assert [method.key for method in task.methods] == ["behavior", "sgp", "no_score", "cem"]
    assert all(len(method.returns) == 2 and (method.lengths <= 12).all() for method in task.methods)
    assert {t.key for t in task.telemetry} == {"sgp", "no_score"} and task.telemetry[0].real_cost.shape == (6, 2)
    table = said[-1]
    assert table.endswith(f"The report: {report}") and all(method.label in table for method in task.methods)
    assert all(f"{method.mean:.0f}" in report.read_text() for method in task.methods)

    said.clear()  # a second run has nothing to do but write the page; another setting plans again, on the same models
    run_demo(small(), tmp_path, say=said.append)
    assert "finished before" in said[0] and len(said) == 2
    before = (tmp_path / "runs" / "hopper-medium" / "models.safetensors").stat().st_mtime_ns
    run_demo(replace(small(), planner=sgp.SGP(horizon=4, iterations=3, beta=0.1)), tmp_path, say=said.append)
    assert (tmp_path / "runs" / "hopper-medium" / "models.safetensors").stat().st_mtime_ns == before


def test_what_is_damaged_is_done_again(tmp_path: Path) -> None:
    """A kept task that cannot be read is one that is not finished; so is a recording; the losses are with the models."""
    pytest.importorskip("mujoco")
    said: list[str] = []
    run_demo(small(), tmp_path, say=said.append)
    kept = tmp_path / "tasks" / "hopper-medium"
    (data,) = (tmp_path / "data").iterdir()
    for path in (kept / "arrays.npz", data):
        path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "runs" / "hopper-medium" / "history.json").unlink()

    said.clear()
    run_demo(small(), tmp_path, say=said.append)
    assert said[0] == f"hopper-medium: finished before, but {kept} cannot be read; its episodes are run again"
    assert said[1].startswith("making hopper-medium again, as its file cannot be read: 3,000 transitions")
    assert len(Results.load(kept).tasks[0].training) == 3
    said.clear()
    run_demo(small(), tmp_path, say=said.append)
    assert said[0] == f"hopper-medium: finished before, kept in {kept}" and len(said) == 2
