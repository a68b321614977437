"""Data that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgp_fast.data import Dataset, make_dataset


@pytest.fixture(scope="session")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 recorded steps of hopper-medium."""
    path = tmp_path_factory.mktemp("made") / "hopper.hdf5"
    return make_dataset("hopper", "medium", 3000, seed=3, path=path, progress=False)


def chain(lengths: tuple[int, ...], terminal: tuple[bool, ...], nx: int = 3, nu: int = 2) -> dict[str, Any]:
    """Arrays of episodes whose observations count up, so that every true successor is the observation plus one.

    Episode e starts at 1000 e: a transition that straddled two episodes would jump by far more than one.
    """
    rng = np.random.default_rng(0)
    observations = np.concatenate([1000.0 * e + np.arange(n) for e, n in enumerate(lengths)])
    last = np.concatenate([np.arange(n) == n - 1 for n in lengths])
    ends = np.repeat(terminal, lengths) & last
    return {
        "observations": np.repeat(observations[:, None], nx, axis=1).astype(np.float32),
        "actions": rng.uniform(-1, 1, (len(observations), nu)).astype(np.float32),
        "next_observations": np.repeat(observations[:, None] + 1, nx, axis=1).astype(np.float32),
        "rewards": np.ones(len(observations), np.float32),
        "terminals": ends,
        "timeouts": last & ~ends,
    }


@pytest.fixture
def dataset() -> Dataset:
    """Episodes of 4, 1, 7 and 5 steps; the second and the last terminate."""
    return Dataset(**chain((4, 1, 7, 5), (False, True, False, True)), name="chain")
