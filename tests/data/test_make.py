from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest

from sgp_fast.data import QUALITIES, TASKS, load_actor, load_dataset, make_dataset, snapshots
from sgp_fast.data.rollout import quiet_mujoco, record


@pytest.mark.parametrize("task", TASKS)
def test_transitions_are_those_of_gymnasium(task):
    """Replaying the actions through `env.step` from the same reset gives the same states, rewards and ends."""
    config = snapshots(task)
    early = config["roles"]["medium_replay"][0]  # falls soon, so that termination is met
    episodes = list(record(config["env"], load_actor(task, early), 1200, seed=5))
    assert sum(map(len, episodes)) == 1200
    with quiet_mujoco():
        env = gym.make(config["env"]).unwrapped
    assert task == "halfcheetah" or any(episode.terminal for episode in episodes)
    for episode in episodes:
        env.reset(seed=0)
        env.set_state(episode.qpos[0], episode.qvel[0])  # type: ignore[attr-defined]
        for t in range(len(episode)):
            observation, reward, terminated, _, _ = env.step(episode.actions[t])
            np.testing.assert_allclose(episode.observations[t + 1], observation, rtol=1e-5, atol=1e-5)
            assert episode.rewards[t] == pytest.approx(float(reward), rel=1e-5, abs=1e-5)
            assert terminated == (episode.terminal and t == len(episode) - 1)


def test_the_policy_is_the_formula_of_the_snapshots():
    from importlib.resources import as_file, files

    from safetensors.numpy import load_file

    config = snapshots("walker2d")
    step = config["roles"]["expert"]
    with as_file(files("sgp_fast.data") / "actors" / "walker2d.safetensors") as path:
        weights = {key: value.astype(np.float64) for key, value in load_file(path).items() if key.startswith(step)}
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((40, 17)), rng.standard_normal((40, 6))
    h = x
    for layer in ("hidden.0", "hidden.1"):
        h = np.maximum(h @ weights[f"{step}.{layer}.weight"].T + weights[f"{step}.{layer}.bias"], 0)
    mean = h @ weights[f"{step}.mean.weight"].T + weights[f"{step}.mean.bias"]
    log_std = np.clip(h @ weights[f"{step}.log_std.weight"].T + weights[f"{step}.log_std.bias"], -20, 2)
    expected = np.tanh(mean + np.exp(log_std) * noise)
    actual = load_actor("walker2d", "expert").act(x, noise.astype(np.float32))
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_a_row_of_the_policy_does_not_depend_on_the_others():
    actor = load_actor("hopper", "medium")
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((35, 11)).astype(np.float32), actor.draw(rng, 35)
    together = actor.act(x, noise)
    for i in (0, 7, 16, 34):
        assert np.array_equal(actor.act(x[i : i + 1], noise[i : i + 1])[0], together[i])


def test_the_uniform_policy_fills_the_bounds():
    actor = load_actor("halfcheetah", "random")
    actions = actor.sample(np.zeros((4000, 17)), np.random.default_rng(0))
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    assert np.abs(actions.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose(actions.std(axis=0), 1 / np.sqrt(3), rtol=0.05)


def test_same_seed_same_file_to_the_byte(hopper_file, tmp_path):
    again = make_dataset("hopper", "medium", 3000, seed=3, path=tmp_path / "again.hdf5", progress=False)
    assert again.read_bytes() == hopper_file.read_bytes()
    other = make_dataset("hopper", "medium", 1000, seed=4, path=tmp_path / "other.hdf5", progress=False)
    assert not np.array_equal(load_dataset(other).observations, load_dataset(hopper_file).observations[:1000])


@pytest.mark.parametrize("quality", ["medium", "random"])
def test_a_shorter_recording_is_the_beginning_of_a_longer_one(quality, tmp_path):
    """More episodes at once, in other rows, and other block sizes of the file change nothing."""
    short = load_dataset(make_dataset("hopper", quality, 1500, seed=3, path=tmp_path / "s.hdf5", progress=False))
    long = load_dataset(make_dataset("hopper", quality, 9001, seed=3, path=tmp_path / "l.hdf5", progress=False))
    assert len(short) == 1500 and len(long) == 9001
    for key in ("observations", "actions", "next_observations", "rewards", "terminals"):
        assert np.array_equal(getattr(short, key), getattr(long, key)[:1500]), key
    assert np.array_equal(short.timeouts[:-1], long.timeouts[:1499])


@pytest.mark.parametrize("task", TASKS)
def test_episodes_are_whole_and_contiguous(task, tmp_path):
    data = load_dataset(make_dataset(task, "expert", 2500, seed=0, path=tmp_path / "d.hdf5", progress=False))
    assert len(data) == 2500
    assert data.env_id == snapshots(task)["env"]
    for episode in data.episodes:
        assert np.array_equal(data.next_observations[episode][:-1], data.observations[episode][1:])
        inner = slice(episode.start, episode.stop - 1)
        assert not (data.terminals[inner].any() or data.timeouts[inner].any())
        # The final transition leads to the true last state (a fallen one after a terminal), not to the one after the reset.
        final = data.next_observations[episode.stop - 1]
        stand, fallen_below = {"hopper": (1.25, 0.7), "walker2d": (1.25, 0.8)}.get(task, (0.0, -np.inf))
        assert np.abs(final[:5] - [stand, 0, 0, 0, 0]).max() > 0.1
        if data.terminals[episode.stop - 1]:
            assert final[0] < fallen_below or final[0] > 2 or abs(final[1]) > 0.2
    assert not (data.terminals & data.timeouts).any()
    assert data.lengths.max() <= 1000
    assert data.timeouts[data.episode_starts[1:] - 1][data.lengths[:-1] == 1000].all()


def test_qpos_and_qvel_are_the_state_before_the_action(hopper_file):
    data = load_dataset(hopper_file)
    qpos, qvel = data.infos["qpos"], data.infos["qvel"]
    assert qpos.dtype == np.float64 and qpos.shape == (3000, 6) and qvel.shape == (3000, 6)
    np.testing.assert_array_equal(data.observations[:, :5], qpos[:, 1:].astype(np.float32))
    np.testing.assert_array_equal(data.observations[:, 5:], np.clip(qvel, -10, 10).astype(np.float32))


def test_shares_of_the_qualities(tmp_path):
    def made(quality, transitions):
        path = tmp_path / f"{quality}.hdf5"
        return load_dataset(make_dataset("hopper", quality, transitions, seed=1, path=path, progress=False))

    both, medium, expert = made("medium-expert", 1600), made("medium", 800), made("expert", 800)
    for key in ("observations", "actions", "rewards", "timeouts"):
        halves = np.concatenate([getattr(medium, key), getattr(expert, key)])
        assert np.array_equal(getattr(both, key), halves), key
    replay = made("medium-replay", 1604)
    roles = snapshots("hopper")["roles"]
    assert replay.metadata["snapshots"] == roles["medium_replay"]
    start = 0
    for i, step in enumerate(roles["medium_replay"]):
        stop = (i + 1) * 1604 // 8
        first = next(record("Hopper-v5", load_actor("hopper", step), stop - start, seed=1))
        assert np.array_equal(replay.actions[start : start + len(first)], first.actions)
        assert replay.timeouts[stop - 1] or replay.terminals[stop - 1]  # no episode runs on into the next share
        start = stop


def test_the_file_says_that_it_is_ours_and_what_made_it(hopper_file):
    with h5py.File(hopper_file) as file:
        assert set(file) == {
            "observations", "actions", "next_observations", "rewards", "terminals", "timeouts", "infos"
        }  # fmt: skip
        facts: dict[str, Any] = dict(file.attrs)
    assert facts["name"] == "sgp_hopper_medium-v5"
    assert facts["env_id"] == "Hopper-v5" and facts["seed"] == 3 and facts["generator_version"] >= 1
    assert facts["gymnasium"] == gym.__version__ and facts["mujoco"].startswith("4.")
    assert "00240000" in facts["snapshots"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ant", "medium", 10, 0), "task is 'ant'; expected one of hopper"),
        (("hopper", "good", 10, 0), "quality is 'good'; expected one of random"),
        (("hopper", "medium", 0, 0), "transitions is 0"),
        (("hopper", "medium-replay", 7, 0), "need at least 8"),
        (("hopper", "medium", 10, -1), "seed is -1"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_dataset(*arguments, path=tmp_path / "x.hdf5")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_loaded_is_refused_before_recording(tmp_path):
    with pytest.raises(ValueError, match=r"d\.npz'; expected one ending in \.hdf5 or \.h5"):
        make_dataset("hopper", "medium", 10**9, path=tmp_path / "d.npz")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file"):
        make_dataset("hopper", "medium", 10**9, path=tmp_path / "file" / "d.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unknown_snapshot():
    with pytest.raises(ValueError, match="snapshot is '123'; hopper has random, medium, expert, 00020000"):
        load_actor("hopper", "123")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_recording_leaves_no_file(tmp_path, number):
    target = tmp_path / "made.hdf5"
    # What a shell runs in the background ignores interrupts, and so does all that it starts; the recording is to have them.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    make = f"from sgp_fast.data import make_dataset; make_dataset('hopper', 'medium', 10**8, 0, {str(target)!r})"
    process = subprocess.Popen([sys.executable, "-c", f"{heed}; {make}"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not any(file.stat().st_size > 0 for file in tmp_path.glob(".made-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.glob(".made-*")), "the recording did not start"
        os.kill(process.pid, number)
        assert process.wait(timeout=20) != 0
    finally:
        process.kill()
    assert not target.exists()
    if number == signal.SIGINT:
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("role", ["medium", "expert"])
def test_mean_returns_are_those_measured_with_the_snapshots(task, role):
    config = snapshots(task)
    measured = config["snapshots"][config["roles"][role]]
    episodes = list(record(config["env"], load_actor(task, role), 24_000, seed=0))[:-1]
    returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in episodes])
    # Five episodes are behind the measured mean; the spread is taken from ours, which are more.
    error = max(returns.std(ddof=1), measured["return_std"]) * np.sqrt(1 / measured["episodes"] + 1 / len(returns))
    assert abs(returns.mean() - measured["return_mean"]) < 3 * error


def test_every_quality_of_every_task_has_its_snapshots():
    for task in TASKS:
        roles = snapshots(task)["roles"]
        assert len(roles["medium_replay"]) == 8 and roles["medium_replay"] == sorted(roles["medium_replay"])
        for role in ("random", "medium", "expert", *roles["medium_replay"]):
            load_actor(task, role)
    assert set(QUALITIES) == {"random", "medium", "medium-replay", "medium-expert", "expert"}
