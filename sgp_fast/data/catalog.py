"""Names of data sets: which name means which file, and `load_dataset`."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from .d4rl import read_d4rl_hdf5
from .dataset import Dataset
from .make import QUALITIES, TASKS, read_or_make
from .minari_storage import read_minari
from .npz import read_npz
from .scores import D4RL_NAME

_MINARI_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
_MADE = {f"{task}-{quality}": (task, quality) for task in TASKS for quality in QUALITIES}


def load_dataset(
    name_or_path: str | os.PathLike[str], *, transitions: int | None = None, seed: int | None = None
) -> Dataset:
    """Load offline data by name or path.

    - a path to an .hdf5 or .h5 file (D4RL's layout), to an .npz file of ours, or to the folder of a Minari data set
    - "hopper-medium-v2": D4RL's own data set, where its file is on this machine (it is not downloaded)
    - "mujoco/hopper/medium-v0": a Minari data set in local storage
    - "hopper-medium": data made here, recorded on first use (100,000 transitions with seed 0 unless `transitions` or
      `seed` say otherwise, in well under a minute) and kept in $SGP_FAST_HOME or ~/.cache/sgp_fast. Tasks hopper,
      halfcheetah and walker2d; qualities random, medium, medium-replay, medium-expert and expert.

    Raises ValueError for an unknown name, with those that come near; FileNotFoundError where a file is not there;
    DatasetError where its contents cannot be used.
    """
    name = os.fspath(name_or_path)
    if name in _MADE and not Path(name).exists():
        task, quality = _MADE[name]
        return read_or_make(task, quality, 100_000 if transitions is None else transitions, seed or 0, say=_say)
    if transitions is not None or seed is not None:
        raise ValueError(f"transitions and seed belong to data made here, such as 'hopper-medium'; {name!r} is as it is")
    path = Path(name).expanduser()
    if path.is_dir():
        return read_minari(path)
    if path.suffix in (".hdf5", ".h5"):
        return read_d4rl_hdf5(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if D4RL_NAME.fullmatch(name) or name in _d4rl_infos().get("DATASET_URLS", {}):
        return read_d4rl_hdf5(d4rl_path(name))
    if is_minari_id(name) and "/" in name:
        return read_minari(name)
    raise ValueError(f"no data set is called {name!r}; {_suggestion(name)}")


def is_minari_id(name: str) -> bool:
    """Whether `name` has the form of a Minari id, (namespace/)name-v0."""
    return _MINARI_ID.fullmatch(name) is not None


def d4rl_path(name: str) -> Path:
    """The local file of D4RL's data set `name`; FileNotFoundError, with the place and the address, where it is absent.

    The folder is d4rl's: the one set in the running process, else $D4RL_DATASET_DIR, else ~/.d4rl/datasets.
    """
    url = _d4rl_infos().get("DATASET_URLS", {}).get(name)
    if url is None:
        match = D4RL_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of a D4RL MuJoCo data set, such as 'hopper-medium-v2'")
        task, quality, number = match["task"], match["quality"], match["version"]
        url = f"{task}_{quality.replace('-', '_')}" + (f"-v{number}.hdf5" if number != "0" else ".hdf5")
        if number == "0" and quality == "medium-replay":  # v0 calls these mixed, and walker2d walker
            url = f"{task.replace('walker2d', 'walker')}_mixed.hdf5"
    loaded: Any = sys.modules.get("d4rl.offline_env")
    default = os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets"
    path = Path(getattr(loaded, "DATASET_PATH", default)) / Path(url).name
    if not path.is_file():
        source = f"from {url} " if "://" in url else ""
        made = name.rpartition("-v")[0]
        remedy = f"; for data of the same kind made here, load {made!r}" if made in _MADE else ""
        raise FileNotFoundError(f"{name} is D4RL's and is not downloaded here: put its file {source}at {path}{remedy}")
    return path


def _d4rl_infos() -> dict[str, Any]:
    """The tables of d4rl/infos.py where d4rl is installed, else {}.

    Read from the file: importing d4rl itself starts every simulator that it knows and fails without their binaries.
    """
    try:
        spec = importlib.util.find_spec("d4rl")
    except (ImportError, ValueError):
        return {}
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        file = Path(folder) / "infos.py"
        if file.is_file():
            return runpy.run_path(str(file))
    return {}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _suggestion(name: str) -> str:
    d4rl_names = [f"{made}-v2" for made in _MADE]
    known = [*_MADE, *d4rl_names, *_d4rl_infos().get("DATASET_URLS", {})]
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(match) for match in near)}?"
    return (
        "expected a path to an .hdf5 file, a Minari id such as 'mujoco/hopper/medium-v0', a D4RL name such as "
        f"'hopper-medium-v2', or one of {', '.join(_MADE)}"
    )
