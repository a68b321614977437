"""`train` from a data set to models: what they have learned, and what a folder of a run holds."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sgp_fast as sgp
from sgp_fast.training import TrainConfig
from sgp_fast.training.commands import train_command

from .toys import NU, NX, OFFSET, SMALL, A, B, gaussian, linear_system


def test_what_a_linear_system_teaches() -> None:
    """Dynamics, one-step and simulated, and reward come near the known functions in units of their spread."""
    data = linear_system(episodes=60)
    config = TrainConfig(width=32, hidden_layers=2, steps=500, batch_size=128, rollout_horizon=3, levels=3)
    models = sgp.train(data, config, progress=False)
    held_out = linear_system(episodes=60, seed=5)
    x, u = torch.from_numpy(held_out.observations), torch.from_numpy(held_out.actions)
    with torch.no_grad():
        step = models.dynamics(x, u).numpy() - held_out.next_observations
        reward = models.cost(x, u).numpy() + held_out.rewards
    change = held_out.next_observations - held_out.observations
    assert np.mean(step**2) < 0.02 * np.mean(change**2)
    assert np.mean(reward**2) < 0.02 * held_out.rewards.var()

    start = torch.from_numpy((OFFSET + np.array([0.5, -0.5, 0.2])).astype(np.float32))[None]
    controls, exact = 0.5 * torch.ones(5, 1, NU), start.double().numpy()
    with torch.no_grad():
        simulated = start
        for t in range(5):
            simulated = models.dynamics(simulated, controls[t])
            exact = OFFSET + (exact - OFFSET) @ A.T + controls[t].numpy() @ B.T
    np.testing.assert_allclose(simulated.numpy(), exact, atol=0.1)


@pytest.mark.parametrize("output", ["score", "noise"])
def test_the_score_of_a_gaussian(output: str) -> None:
    """For data N(m, C) in normalised units the learned score tends to −(C̄ + σ²)⁻¹ z̄, at every level."""
    k, correlation = np.array([2.0, 0.5, 1.0]), np.array([[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mean = np.array([1.0, -2.0, 0.0])
    data = gaussian(20_000, correlation * np.outer(k, k), mean, nu=1)
    config = TrainConfig(
        width=32, hidden_layers=2, steps=800, batch_size=256, ema_decay=0.98, levels=3, sigma_max=1.0, sigma_min=0.3,
        learning_rate=3e-3, score_output=output, validation_fraction=0.02,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    from sgp_fast.training.loop import fit, make_fabric
    from sgp_fast.training.tasks import Split, make_tasks

    task = make_tasks(config, Split.of(data, 1, torch.device("cpu")), None)["score"]
    task.model.network.load_state_dict(fit("score", task, config, make_fabric(config), progress=False)[0].state_dict())  # pyright: ignore
    z = torch.from_numpy(gaussian(2000, correlation * np.outer(k, k), mean, nu=1, seed=1).observations)
    z = torch.cat((z, torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))), 1)
    for level, sigma in enumerate(config.sigmas.tolist()):
        exact = -np.linalg.solve(correlation + sigma**2 * np.eye(3), ((z.numpy() - mean) / k).T).T / k
        with torch.no_grad():
            error = (task.model(z, level).numpy() - exact) * k
        assert np.mean(error**2) < 0.03 * np.mean((exact * k) ** 2), (level, np.mean(error**2), np.mean((exact * k) ** 2))


def test_a_run_leaves_models_and_history_and_a_finished_run_is_loaded(tmp_path: Path) -> None:
    data = linear_system()
    models = sgp.train(data, SMALL, tmp_path, progress=False)
    assert not any(parameter.requires_grad for parameter in models.dynamics.parameters())
    assert {path.name for path in tmp_path.iterdir()} == {"models.safetensors", "history.json", "tensorboard"}
    history = json.loads((tmp_path / "history.json").read_text())
    assert set(history) == {"dynamics", "score", "cost"}
    assert all(series["step"] == [10, 20, 30] and len(series["validation"]) == 3 for series in history.values())

    info = models.info
    assert (info["dataset"], info["env_id"], info["transitions"]) == ("linear", "Linear-v0", len(data))
    assert info["config"] == SMALL.to_dict()
    assert info["action_range"] == {"low": [-1, -1], "high": [1, 1], "source": "environment"}
    assert info["networks"]["score"]["validation_loss"] == history["score"]["validation"][-1]
    assert len(info["networks"]["score"]["validation_loss_by_level"]) == SMALL.levels
    assert info["training_transitions"] + info["validation_transitions"] == len(data)

    loaded = sgp.train(data, SMALL, tmp_path, progress=False)
    assert loaded.info == json.loads(json.dumps(info))
    for name in ("dynamics", "score", "cost"):
        for key, value in getattr(models, name).state_dict().items():
            assert torch.equal(value, getattr(loaded, name).state_dict()[key])
    without_folder = sgp.train(data, SMALL, progress=False)
    assert torch.equal(without_folder.cost(*rows(data)), loaded.cost(*rows(data)))


def rows(data: sgp.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data.observations), torch.from_numpy(data.actions)


def test_tensorboard_has_the_losses(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sgp.train(linear_system(), SMALL, tmp_path, progress=False)
    history = json.loads((tmp_path / "history.json").read_text())
    for name in ("dynamics", "score", "cost"):
        events = reader.EventAccumulator(str(tmp_path / "tensorboard" / name)).Reload()
        for tag in ("train", "validation", "learning_rate"):
            scalars = events.Scalars(tag)
            assert [event.step for event in scalars] == history[name]["step"]
            assert [event.value for event in scalars] == pytest.approx(history[name][tag], rel=1e-6)


def test_other_settings_or_data_in_a_folder_are_refused_with_the_remedy(tmp_path: Path) -> None:
    data = linear_system()
    sgp.train(data, SMALL, tmp_path, progress=False)
    before = (tmp_path / "models.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"another configuration \(width is 8 but was 16\); pass resume=False"):
        sgp.train(data, dataclasses.replace(SMALL, width=8), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"trained on other data \('linear', fingerprint .* or another folder"):
        sgp.train(linear_system(seed=3), SMALL, tmp_path, progress=False)
    sgp.train(data, dataclasses.replace(SMALL, checkpoint_seconds=1.0), tmp_path, progress=False)  # no influence, no refusal
    assert (tmp_path / "models.safetensors").read_bytes() == before

    models = sgp.train(data, dataclasses.replace(SMALL, width=8), tmp_path, resume=False, progress=False)
    assert models.cost.network.spec.widths[0] == sgp.load_models(tmp_path).cost.network.spec.widths[0] == 8


def test_what_cannot_be_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    models = sgp.train(linear_system(), SMALL, tmp_path, progress=False)
    path = tmp_path / "models.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"delete it and make it again, or pass resume=False \(--no-resume\) to train anew"):
        sgp.train(linear_system(), SMALL, tmp_path, progress=False)
    again = sgp.train(linear_system(), SMALL, tmp_path, resume=False, progress=False)
    assert again.info["history"] == models.info["history"]


@pytest.mark.parametrize("left", [None, "{ \"dyna"])
def test_a_lost_history_is_written_again(left: str | None, tmp_path: Path) -> None:
    models = sgp.train(linear_system(), SMALL, tmp_path, progress=False)
    path = tmp_path / "history.json"
    before = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_text(left)
    sgp.train(linear_system(), SMALL, tmp_path, progress=False)
    assert path.read_bytes() == before and json.loads(before) == models.info["history"]


def test_models_of_another_origin_are_not_overwritten(tmp_path: Path) -> None:
    models = sgp.train(linear_system(), SMALL, progress=False)
    dataclasses.replace(models, info={}).save(tmp_path)
    with pytest.raises(ValueError, match="was not written by a training run"):
        sgp.train(linear_system(), SMALL, tmp_path, progress=False)


def test_too_few_episodes_raise_before_any_work() -> None:
    one = linear_system(episodes=1)
    with pytest.raises(ValueError, match="has one episode.*validation_fraction=0"):
        sgp.train(one, SMALL, progress=False)
    models = sgp.train(one, dataclasses.replace(SMALL, validation_fraction=0.0), progress=False)
    assert models.info["networks"]["cost"]["best_validation_loss"] is None
    with pytest.raises(ValueError, match="rollout_horizon is 41, but the longest training episode has 40"):
        sgp.train(linear_system(), dataclasses.replace(SMALL, rollout_horizon=41), progress=False)


def test_constant_features_and_rewards_do_no_harm() -> None:
    data = linear_system()
    observations, following = data.observations.copy(), data.next_observations.copy()
    observations[:, 2] = following[:, 2] = 0.1
    data = dataclasses.replace(data, observations=observations, next_observations=following, rewards=np.full(len(data), 3.0))
    models = sgp.train(data, SMALL, progress=False)
    x, u = rows(data)
    assert (models.dynamics(x, u)[:, 2] - 0.1).abs().max() < 1e-4
    assert torch.isfinite(models.score(torch.cat((x, u), 1), 0)).all() and torch.isfinite(models.cost(x, u)).all()


def test_absent_library_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r'lightning_fabric.*pip install "sgp-fast\[train\]"'):
        sgp.train(linear_system(), SMALL, progress=False)


def test_wrong_data_and_folders_are_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"data is a str; pass sgp.load_dataset\('hopper-medium'\)"):
        sgp.train("hopper-medium", SMALL)  # pyright: ignore[reportArgumentType]
    (tmp_path / "starts.npy").touch()
    with pytest.raises(NotADirectoryError, match="starts.npy is a file; give a folder"):
        sgp.train(linear_system(), SMALL, tmp_path / "starts.npy")
    with pytest.raises(NotADirectoryError, match="starts.npy is a file; give a folder"):
        train_command("no data", tmp_path / "starts.npy", SMALL)


def test_the_command_names_its_own_remedy(tmp_path: Path) -> None:
    from sgp_fast.data import write_npz

    sgp.train(linear_system(), SMALL, tmp_path / "run", progress=False)
    path = write_npz(linear_system(seed=3), tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"resume=False \(--no-resume\)"):
        train_command(str(path), tmp_path / "run", SMALL)


def test_command_trains_keeps_the_run_and_prints_the_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sgp_fast.data import write_npz

    path = tmp_path / "linear.npz"
    write_npz(linear_system(), path)
    train_command(str(path), tmp_path / "run", SMALL)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("dynamics", "score", "cost")) and "480 transitions" in printed
    assert sgp.load_models(tmp_path / "run").dynamics.nx == NX
    assert "trained before" not in printed
    train_command(str(path), tmp_path / "run", SMALL)
    again = capsys.readouterr().out
    assert again.rstrip() == f"{printed.rstrip()}, trained before; --no-resume trains anew"
