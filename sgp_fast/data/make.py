"""Data made here: recordings of the carried policies, in D4RL's layout, under names that say that they are ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .._files import atomic_path
from .._optional import require
from .._progress import progress_bar
from .actors import TASKS, load_actor, snapshots
from .d4rl import create_layout, read_d4rl_hdf5, write_metadata
from .dataset import Dataset, DatasetError
from .rollout import Episode, record

QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")

SUFFIXES = (".hdf5", ".h5")

# Part of the cache's path: raised whenever the same arguments give other data.
GENERATOR_VERSION = 1

# Rows written at once, and of an HDF5 chunk; the file's bytes depend on it, the data do not.
BLOCK_ROWS = 8192


def dataset_name(task: str, quality: str) -> str:
    """"sgp_hopper_medium-v5": D4RL's pattern, our prefix, the version of the environment."""
    return f"sgp_{task}_{quality.replace('-', '_')}-v5"


def cached_path(task: str, quality: str, transitions: int, seed: int) -> Path:
    """Where `make_dataset` and `load_dataset` keep a data set: below $SGP_FAST_HOME, or else ~/.cache/sgp_fast."""
    home = Path(os.environ.get("SGP_FAST_HOME") or Path.home() / ".cache" / "sgp_fast")
    folder = home / "datasets" / f"generator-{GENERATOR_VERSION}"
    return folder / f"{dataset_name(task, quality)}-{transitions}-seed{seed}.hdf5"


def make_dataset(
    task: str,
    quality: str,
    transitions: int = 100_000,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> Path:
    """Record `transitions` steps of a policy of the given quality and write them as an HDF5 file; return its path.

        load_dataset(make_dataset("hopper", "medium", transitions=10_000, seed=1))

    task         "hopper", "halfcheetah" or "walker2d" (v5 of gymnasium)
    quality      "random": uniform actions. "medium", "expert": one snapshot of training. "medium-replay": equal shares of
                 eight snapshots up to the medium one, early to late. "medium-expert": a half each, medium first.
    transitions  any number; the data are streamed, so that memory does not grow with it
    seed         the same seed gives the same data, to the bit, on the same machine and versions. Shares are recordings of
                 their own: the first half of medium-expert is medium with the same seed.
    path         the .hdf5 or .h5 file to write; by default in the cache that `load_dataset` uses, see `cached_path`
    progress     show a bar where tqdm is installed

    Layout of the file: see `write_d4rl_hdf5`; also infos/qpos and infos/qvel, the simulator's state before each action,
    in float64. Episodes follow each other in full; 1,000 steps are a timeout, and so is the row at which a share reaches
    its size. The file appears whole or not at all. ValueError for unknown names, other suffixes, or sizes that cannot
    be; OSError where the file cannot lie at `path`, or in the cache; ImportError without gymnasium, mujoco and h5py.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    if quality not in QUALITIES:
        raise ValueError(f"quality is {quality!r}; expected one of {', '.join(QUALITIES)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    config = snapshots(task)
    parts = _parts(quality, config["roles"])
    if transitions < len(parts):
        raise ValueError(f"transitions is {transitions}; {quality} data need at least {len(parts)}, one for each snapshot")
    target = Path(path) if path is not None else cached_path(task, quality, transitions, seed)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"path is {str(target)!r}; expected one ending in {' or '.join(SUFFIXES)}, to load it by")
    _check_place(target, cached=path is None)
    h5py, gym = _libraries()
    env_id = config["env"]
    spec = gym.spec(env_id)
    metadata = {
        "name": dataset_name(task, quality),
        "env_id": env_id,
        "seed": seed,
        "max_episode_steps": spec.max_episode_steps,
        "generator": "sgp_fast.data.make_dataset",
        "generator_version": GENERATOR_VERSION,
        "gymnasium": version("gymnasium"),
        "mujoco": version("mujoco"),
        "algorithm": config["algorithm"] if quality != "random" else "uniform",
        "snapshots": list(parts),
        "behavior_returns": [config["snapshots"].get(part, {}).get("return_mean") for part in parts],
    }
    shares = np.diff(np.arange(len(parts) + 1) * transitions // len(parts))
    actors = [load_actor(task, part) for part in parts]
    bounds = {"action_low": actors[-1].low.tolist(), "action_high": actors[-1].high.tolist()}
    episodes = chain.from_iterable(
        record(env_id, actor, int(share), seed) for actor, share in zip(actors, shares, strict=True)
    )
    with _bar(transitions, f"{task}-{quality}", progress) as bar:
        first = next(episodes)  # its widths are the file's, and its simulator's errors come before there is a file
        with atomic_path(target) as temporary, h5py.File(temporary, "w") as file:
            writer = _Writer(file, transitions, first)
            for episode in chain((first,), episodes):
                writer.add(episode)
                bar.update(len(episode))
            writer.flush()
            write_metadata(file, metadata | bounds)
    return target


def read_or_make(
    task: str,
    quality: str,
    transitions: int,
    seed: int,
    path: Path | None = None,
    *,
    say: Callable[[str], None],
) -> Dataset:
    """The data that `make_dataset` gives, made where they are not yet, and again where their file cannot be read.

    `say` is told before anything is made, once it is known that it can be.
    """
    target = cached_path(task, quality, transitions, seed) if path is None else path
    again = ""
    if target.is_file():
        try:
            return read_d4rl_hdf5(target)
        except DatasetError:
            again = " again, as its file cannot be read"
    _check_place(target, cached=path is None)
    _libraries()
    say(f"making {task}-{quality}{again}: {transitions:,} transitions, seed {seed}, kept as {target}")
    return read_d4rl_hdf5(make_dataset(task, quality, transitions, seed, path))


def check_folder(path: Path) -> None:
    """Raise NotADirectoryError where a file stands in place of a folder that `path` is to lie in."""
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"{path} cannot be written: {parent} is a file; give a path in a folder")


def _check_place(path: Path, cached: bool) -> None:
    """Raise OSError where no file can lie at `path`; the cache's folder is made."""
    if not cached:
        check_folder(path)
        return
    folder = path.parent
    remedy = "set SGP_FAST_HOME to a folder that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}, where data are kept, cannot be made ({error.strerror}); {remedy}") from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}, where data are kept, cannot be written; {remedy}")


def _libraries() -> tuple[Any, Any]:
    """h5py and gymnasium, once all that makes data is there; the extra that brings the simulator brings the whole of it."""
    h5py, gym, _ = (require(name, extra="mujoco") for name in ("h5py", "gymnasium", "mujoco"))
    return h5py, gym


def _parts(quality: str, roles: dict[str, Any]) -> list[str]:
    """The snapshots that a quality is recorded from, in order."""
    if quality == "medium-replay":
        return list(roles["medium_replay"])
    if quality == "medium-expert":
        return [roles["medium"], roles["expert"]]
    return [roles.get(quality, quality)]


class _Writer:
    """Collects rows in a block of fixed size and writes it when it is full, so that HDF5 chunks are written once."""

    def __init__(self, file: Any, rows: int, like: Episode) -> None:
        widths = {"infos/qpos": like.qpos.shape[1], "infos/qvel": like.qvel.shape[1]}
        self._file = create_layout(
            file, rows, like.observations.shape[1], like.actions.shape[1], widths, chunk_rows=BLOCK_ROWS
        )
        self._block = {
            key: np.empty((min(BLOCK_ROWS, rows), *array.shape[1:]), array.dtype) for key, array in self._file.items()
        }
        self._filled = self._written = 0

    def add(self, episode: Episode) -> None:
        steps = len(episode)
        last = np.arange(steps) == steps - 1
        rows = {
            "observations": episode.observations[:-1],
            "actions": episode.actions,
            "next_observations": episode.observations[1:],
            "rewards": episode.rewards,
            "terminals": last & episode.terminal,
            "timeouts": last & (not episode.terminal),
            "infos/qpos": episode.qpos,
            "infos/qvel": episode.qvel,
        }
        done = 0
        while done < steps:
            block_rows = len(self._block["rewards"])
            count = min(steps - done, block_rows - self._filled)
            for key, block in self._block.items():
                block[self._filled : self._filled + count] = rows[key][done : done + count]
            self._filled, done = self._filled + count, done + count
            if self._filled == block_rows:
                self.flush()

    def flush(self) -> None:
        if self._filled:
            for key, block in self._block.items():
                self._file[key][self._written : self._written + self._filled] = block[: self._filled]
        self._written, self._filled = self._written + self._filled, 0


class _NoBar:
    """Stands in for a progress bar."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, _: int) -> None:
        return None


def _bar(total: int, label: str, progress: bool) -> Any:
    if progress:
        try:
            return progress_bar("cli", total=total, desc=label, unit="step", unit_scale=True, leave=False)
        except ImportError:
            pass
    return _NoBar()
