"""Minari data sets in local storage: reading and writing. Nothing is downloaded.

Minari keeps T + 1 observations and T actions for each episode, below $MINARI_DATASETS_PATH or ~/.minari/datasets.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .._optional import require
from .dataset import Dataset, DatasetError

_MARK = "metadata.json"  # in every folder of data that Minari writes
_LEAVES = ("observations", "actions", "rewards", "terminations", "truncations")


def read_minari(id_or_path: str | os.PathLike[str]) -> Dataset:
    """Read a Minari data set by its id ("mujoco/hopper/medium-v0") from local storage, or by the path of its folder.

    terminations become terminals and truncations timeouts; an episode that ends with neither is cut there, a timeout. Its
    infos that have a row per step are kept (those with T + 1 rows lose the last). Observations and actions must be vectors.

    Raises FileNotFoundError where it is not in local storage (with the command that downloads it), DatasetError naming
    the episode and the key where its contents cannot be used.
    """
    minari = require("minari", extra="data")
    require("PIL", extra="data")  # Minari needs it and does not say so
    require("h5py", extra="data")
    source = str(id_or_path)
    folder = Path(source)
    is_path = folder.is_dir()
    if is_path and not any((folder / place / _MARK).is_file() for place in (".", "data")):
        raise DatasetError(
            f"{source} is a folder without {_MARK}, so no Minari data set; give its folder, or an .hdf5 or .npz file"
        )
    try:
        if is_path:
            stored = minari.MinariDataset(str(folder / "data" if (folder / "data").is_dir() else folder))
        else:
            stored = minari.load_dataset(source)
    except FileNotFoundError as error:
        remedy = f"; download it with: minari download {source}" if not is_path else ""
        raise FileNotFoundError(f"Minari data set {source} is not in local storage{remedy}") from error
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{source}: not a readable Minari data set ({error})") from error

    spaces = (stored.spec.observation_space, stored.spec.action_space)
    for key, space in zip(("observations", "actions"), spaces, strict=True):
        if space.shape is None or len(space.shape) != 1:
            raise DatasetError(f"{source}: {key} are {space}; only vectors (a Box of one dimension) can be used")
    parts: dict[str, list[Any]] = {
        key: [] for key in ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts")
    }
    infos: dict[str, list[Any]] = {}
    try:
        for episode in stored.iterate_episodes():
            _append(parts, infos, episode, source)
    except (OSError, KeyError) as error:
        index = len(parts["rewards"])
        raise DatasetError(f"{source}: episode {index} cannot be read ({error}); the data set is damaged") from error
    if not parts["rewards"]:
        raise DatasetError(f"{source}: the data set has no episodes")
    env_spec = stored.spec.env_spec
    action_space = spaces[1]
    bounded = bool(np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all())
    facts = {key: stored.storage.metadata.get(key) for key in ("algorithm_name", "description", "minari_version")}
    return Dataset(
        **{key: np.concatenate(arrays) for key, arrays in parts.items()},
        name=str(stored.storage.metadata.get("dataset_id", folder.name)),
        env_id=env_spec.id if env_spec is not None else None,
        action_bounds=(action_space.low, action_space.high) if bounded else None,
        metadata={key: str(value) for key, value in facts.items() if value is not None},
        infos={key: np.concatenate(arrays) for key, arrays in infos.items() if len(arrays) == len(parts["rewards"])},
    )


def _append(parts: dict[str, list[Any]], infos: dict[str, list[Any]], episode: Any, source: str) -> None:
    """Add one Minari episode to the lists."""
    values = {key: np.asarray(getattr(episode, key)) for key in _LEAVES}
    steps = len(values["rewards"])
    for key, value in values.items():
        expected = steps + 1 if key == "observations" else steps
        if len(value) != expected:
            raise DatasetError(f"{source}: {key} of episode {episode.id} has {len(value)} rows; expected {expected}")
    if steps == 0:
        return
    timeouts = values["truncations"].astype(bool)
    timeouts[-1] |= not bool(values["terminations"][-1])
    parts["observations"].append(values["observations"][:-1])
    parts["next_observations"].append(values["observations"][1:])
    parts["actions"].append(values["actions"])
    parts["rewards"].append(values["rewards"])
    parts["terminals"].append(values["terminations"].astype(bool))
    parts["timeouts"].append(timeouts)
    for key, value in (episode.infos or {}).items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and len(value) in (steps, steps + 1):
            infos.setdefault(key, []).append(value[:steps])


def write_minari(dataset: Dataset, dataset_id: str) -> Path:
    """Write `dataset` to Minari's local storage as `dataset_id`, such as "sgp/hopper/medium-v0"; return its folder.

    Timeouts become truncations. Refused with ValueError: an id that is taken, or one that is no id; a data set in which some
    x_{t+1} is not the next row's x within an episode, since Minari keeps each state once. A failure leaves nothing behind.
    """
    minari = require("minari", extra="data")
    require("PIL", extra="data")
    require("h5py", extra="data")
    gym = require("gymnasium", extra="mujoco")
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    parse_dataset_id(dataset_id)
    folder = Path(get_dataset_path(dataset_id))
    if folder.exists():
        raise ValueError(f"{dataset_id} exists already in {folder}; choose another id or run: minari delete {dataset_id}")
    inner = np.ones(len(dataset), bool)
    inner[dataset.episode_starts + dataset.lengths - 1] = False
    rows = np.flatnonzero(inner)
    broken = (dataset.next_observations[rows] != dataset.observations[rows + 1]).any(axis=1)
    if broken.any():
        row = int(rows[np.argmax(broken)])
        raise ValueError(
            f"next_observations at row {row} differs from observations at row {row + 1}, which Minari cannot hold"
        )

    infinite = np.full(dataset.observations.shape[1], np.inf, np.float32)
    low, high = dataset.action_bounds or (np.full(dataset.actions.shape[1], s * np.inf, np.float32) for s in (-1, 1))
    buffers = []
    for index, episode in enumerate(dataset.episodes):
        last = episode.stop - 1
        truncations = dataset.timeouts[episode].copy()
        truncations[-1] |= not dataset.terminals[last]
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=index,
                observations=np.concatenate([dataset.observations[episode], dataset.next_observations[last : last + 1]]),
                actions=dataset.actions[episode],
                rewards=dataset.rewards[episode],
                terminations=dataset.terminals[episode],
                truncations=truncations,
                infos={key: value[episode] for key, value in dataset.infos.items()} or None,
            )
        )
    spec = gym.envs.registration.registry.get(dataset.env_id)
    try:
        with warnings.catch_warnings():  # about metadata that we leave out on purpose
            warnings.simplefilter("ignore", UserWarning)
            created = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                observation_space=gym.spaces.Box(-infinite, infinite, dtype=np.float32),
                action_space=gym.spaces.Box(low, high, dtype=np.float32),
                algorithm_name=str(dataset.metadata.get("algorithm", "unknown")),
                description=f"{dataset.name}, written by sgp_fast",
            )
            if spec is not None:  # naming the environment to Minari would build it; its specification is all that is wanted
                created.storage.update_metadata({"env_spec": spec.to_json()})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
