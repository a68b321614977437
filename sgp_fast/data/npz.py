"""Data sets as .npz files."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np

from .._files import atomic_path
from .dataset import Dataset, DatasetError

_ARRAYS = ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts")


def write_npz(dataset: Dataset, path: str | os.PathLike[str]) -> Path:
    """Write `dataset` as a compressed .npz; return the path.

    Keys: the six arrays, infos/*, and `header`, JSON with name, env_id, action_bounds and metadata.
    """
    bounds = dataset.action_bounds
    header = {
        "name": dataset.name,
        "env_id": dataset.env_id,
        "action_bounds": None if bounds is None else [bound.tolist() for bound in bounds],
        "metadata": dataset.metadata,
    }
    arrays = {key: getattr(dataset, key) for key in _ARRAYS}
    arrays |= {f"infos/{key}": value for key, value in dataset.infos.items()}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, header=np.array(json.dumps(header)), **arrays)
    return Path(path)


def read_npz(path: str | os.PathLike[str]) -> Dataset:
    """Read what `write_npz` wrote; `header` and infos/* may be missing. Raises DatasetError naming the file and the key."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _ARRAYS if key not in file]
            if missing:
                raise DatasetError(f"{path}: key {missing[0]} is missing; expected {', '.join(_ARRAYS)}")
            header = json.loads(str(file["header"])) if "header" in file else {}
            arrays = {key: file[key] for key in _ARRAYS}
            infos = {key.removeprefix("infos/"): file[key] for key in file if key.startswith("infos/")}
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: not a readable .npz file ({error}); it may be truncated") from error
    try:
        return Dataset(
            **arrays,
            name=header.get("name", path.stem),
            env_id=header.get("env_id"),
            action_bounds=header.get("action_bounds"),
            metadata=header.get("metadata", {}),
            infos=infos,
        )
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
