"""A run that is killed at any moment ends with the weights of an uninterrupted one, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sgp_fast as sgp
from sgp_fast._tensorfile import load_tensors
from sgp_fast.training import loop

from .killed_run import CONFIG
from .toys import linear_system

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_gives_the_weights_of_a_whole_one(tmp_path: Path, seed: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-m", "tests.training.killed_run", str(whole), str(broken), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])["kills"]
    reached = [tuple(kill["reached"].values()) for kill in kills]
    assert len(kills) >= 5 and len(set(reached)) >= 4, kills  # it was killed in earnest, at different steps

    one, config = load_tensors(whole / "models.safetensors", "models")
    other, other_config = load_tensors(broken / "models.safetensors", "models")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "history.json").read_bytes() == (broken / "history.json").read_bytes()
    for name, summary in config["info"]["networks"].items():
        again = other_config["info"]["networks"][name]
        assert {**summary, "seconds": 0} == {**again, "seconds": 0}
    assert {path.name for path in broken.iterdir()} == {"models.safetensors", "history.json", "tensorboard"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
def test_an_interrupted_run_loses_no_step(tmp_path: Path) -> None:
    """Ctrl-C in the midst of a step: it is finished and saved, however long the next checkpoint is away."""
    from . import killed_run

    config = dataclasses.replace(CONFIG, checkpoint_seconds=1e6)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            seed_of = loop.stream_seed

            def interrupted(seed: int, *about: str | int) -> int:
                if about == ("score", 7):
                    signal.raise_signal(signal.SIGINT)
                return seed_of(seed, *about)

            loop.stream_seed = interrupted  # pyright: ignore[reportPrivateImportUsage]
            sgp.train(linear_system(), config, tmp_path / "broken", progress=False)
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    assert killed_run.finish(pid) == 130
    assert killed_run.reached(str(tmp_path / "broken"))["score"] == 8
    one = sgp.train(linear_system(), config, tmp_path / "broken", progress=False)
    other = sgp.train(linear_system(), config, progress=False)
    assert one.info["history"] == other.info["history"]
    for part in ("dynamics", "score", "cost"):
        weights = getattr(other, part).state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in getattr(one, part).state_dict().items())


def test_an_unfinished_run_refuses_other_settings(tmp_path: Path) -> None:
    """The checkpoints of an unfinished run are held to configuration and data as finished models are."""
    from . import killed_run

    pid = killed_run.start(str(tmp_path), rename=(10, True))
    assert killed_run.finish(pid) == -9 and killed_run.reached(str(tmp_path)) == {"dynamics": 10}
    with pytest.raises(ValueError, match="dynamics.safetensors was trained on other data"):
        sgp.train(linear_system(seed=4), CONFIG, tmp_path, progress=False)
    for name in (".history-01234567.part.json", ".models-01234567.part.safetensors"):  # of a kill in the last moments
        (tmp_path / name).touch()
    models = sgp.train(linear_system(seed=4), CONFIG, tmp_path, resume=False, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"models.safetensors", "history.json", "tensorboard"}
    assert models.info["networks"]["dynamics"]["steps"] <= CONFIG.steps
