"""Between formats: D4RL HDF5, Minari's local storage, and .npz."""

from __future__ import annotations

import os
from pathlib import Path

from .catalog import is_minari_id, load_dataset
from .d4rl import write_d4rl_hdf5
from .make import SUFFIXES, check_folder
from .minari_storage import write_minari
from .npz import write_npz


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Read `source` and write it as `target`; return the file or folder written.

    `source` is anything that `load_dataset` takes. `target` says the format: a path that ends in .hdf5 or .h5 (D4RL's
    layout) or in .npz, or a Minari id such as "sgp/hopper/medium-v0". Raises ValueError for any other target,
    FileExistsError where it exists and NotADirectoryError where it cannot lie, before reading.
    """
    name = str(target)
    if name.endswith((*SUFFIXES, ".npz")):
        check_folder(Path(name))
        if Path(name).exists():
            raise FileExistsError(f"{name} exists already; remove it, or give another name")
    if name.endswith(SUFFIXES):
        return write_d4rl_hdf5(load_dataset(source), name)
    if name.endswith(".npz"):
        return write_npz(load_dataset(source), name)
    if is_minari_id(name):
        return write_minari(load_dataset(source), name)
    raise ValueError(
        f"target is {name!r}; expected a path ending in .hdf5 or .npz, or a Minari id such as 'sgp/hopper/medium-v0'"
    )
