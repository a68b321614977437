"""D4RL's HDF5 files: reading versions v0 to v2 of them, and writing data in the same layout.

Layout: flat arrays `observations, actions, rewards, terminals, timeouts` with one row per step, episodes one after another;
`next_observations` in some files; `infos/*` per step; `metadata/*` or attributes about the origin.
Source: Fu et al. 2020, arXiv 2004.07219, and `d4rl.qlearning_dataset`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._files import atomic_path
from .._optional import require
from .dataset import BoolArray, Dataset, DatasetError, FloatArray, as_flags, as_floats

# gym's limit for the tasks that D4RL records with gym's MuJoCo environments (d4rl/gym_mujoco/__init__.py).
TIME_LIMIT = 1000

# Observation after a reset, position part, and how far noise moves it: halfcheetah, hopper, walker2d and ant of gym.
_RESETS: dict[str, tuple[tuple[float, ...], float]] = {
    "halfcheetah": ((0.0,) * 8, 0.1),
    "hopper": ((1.25,) + (0.0,) * 4, 5e-3),
    "walker2d": ((1.25,) + (0.0,) * 7, 5e-3),
    "ant": ((0.75, 1.0) + (0.0,) * 3, 0.1),
}
_GYM_IDS = {"halfcheetah": "HalfCheetah-v2", "hopper": "Hopper-v2", "walker2d": "Walker2d-v2", "ant": "Ant-v2"}
# "hopper_medium-v2", "walker_mixed", "halfcheetah-expert-v0"; not "bullet-hopper_…", which is another simulator.
_FILE_NAME = re.compile(
    r"(?P<task>halfcheetah|hopper|walker2d|walker|ant)[-_](random|medium|expert|mixed|full)([-_]?(replay|expert|v\d))*"
)


def read_d4rl_hdf5(path: str | os.PathLike[str], *, max_episode_steps: int | None = None) -> Dataset:
    """Read a D4RL HDF5 file of version v0, v1 or v2, or one that `make_dataset` wrote.

    Every row of the result has its true successor; what a file does not hold is not made up:

    - With `next_observations`, all rows are kept. Where a row's successor is not the next row's observation and neither
      flag is set, the file has an unmarked episode boundary (some replay files do): the row becomes a timeout.
    - Without, x_{t+1} is the next row of the same episode. The last row of an episode has no successor in the file,
      whether the episode timed out or terminated: the next row is a reset. (`d4rl.qlearning_dataset` takes it for the
      successor of a terminal and relies on nobody bootstrapping from there; a dynamics model would learn it.) These rows
      are left out, with their reward and their terminal flag, and the row before becomes a timeout: the record stops
      there.
    - Without `timeouts` (the first v0 files) an episode ends at a terminal or after `max_episode_steps`, 1,000 for the
      MuJoCo tasks. Some of those files hold episodes of other lengths: if a row that should follow a reset does not look
      like one, that is an error rather than a transition across two episodes.

    `metadata` has what the file says about itself and, where they are not 0, the counts `rows_without_successor`,
    `terminals_without_successor` and `unmarked_boundaries`. `max_episode_steps` overrides the limit and the check.

    Raises FileNotFoundError, and DatasetError naming file, key and row for truncated files, missing keys, shapes that
    disagree, values that are not finite, and actions outside their bounds (−1 to 1 for the MuJoCo tasks).
    """
    h5py = require("h5py", extra="data")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a D4RL HDF5 file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(
            f"{path}: not a readable HDF5 file ({error}); it may be truncated, so fetch or make it again"
        ) from error
    with file:
        attributes = _read_attributes(file)
        arrays = {key: _read_array(file, key, path) for key in ("observations", "actions", "rewards", "terminals")}
        optional = {key: _read_array(file, key, path) for key in ("next_observations", "timeouts") if key in file}
        infos = _read_infos(file, path, rows=len(arrays["observations"]))

    source = str(path)
    observations = as_floats(arrays["observations"], "observations", ndim=2, source=source)
    terminals = as_flags(arrays["terminals"], "terminals", source=source)
    if len(observations) == 0:
        raise DatasetError(f"{path}: observations has no rows; the recording of this file did not finish")
    for key, value in {**arrays, **optional}.items():
        if len(value) != len(observations):
            raise DatasetError(
                f"{path}: {key} has {len(value)} rows but observations has {len(observations)}; the file is damaged"
            )
    task = _task_of(path)
    timeouts = as_flags(optional["timeouts"], "timeouts", source=source) if "timeouts" in optional else None
    facts = {"rows_without_successor": 0, "terminals_without_successor": 0, "unmarked_boundaries": 0}
    keep: slice | npt.NDArray[np.int64] = slice(None)
    if "next_observations" in optional:
        successors = as_floats(optional["next_observations"], "next_observations", ndim=2, source=source)
        if successors.shape != observations.shape:
            raise DatasetError(
                f"{path}: next_observations has shape {successors.shape} but observations has {observations.shape}"
            )
        timeouts = np.zeros_like(terminals) if timeouts is None else timeouts
        unmarked = _boundaries(observations, successors) & ~(terminals | timeouts)
        timeouts, facts["unmarked_boundaries"] = timeouts | unmarked, int(unmarked.sum())
    else:
        if timeouts is None:
            timeouts = _derive_timeouts(terminals, observations, task, attributes, max_episode_steps, path)
        ends = terminals | timeouts
        ends[-1] = True
        keep = np.flatnonzero(~ends)
        successors = observations[np.minimum(keep + 1, len(observations) - 1)]
        facts["rows_without_successor"] = int(ends.sum())
        facts["terminals_without_successor"] = int(terminals.sum())
        # The row before a dropped one is where its episode now stops.
        timeouts, terminals = np.append(ends[1:], True), np.zeros_like(terminals)
        if len(keep) == 0:
            raise DatasetError(
                f"{path}: no row has a successor: next_observations is missing and every episode has a single row"
            )
    bounds = attributes.pop("action_low", None), attributes.pop("action_high", None)
    if bounds[0] is None or bounds[1] is None:
        nu = arrays["actions"].shape[-1]
        bounds = (-np.ones(nu), np.ones(nu)) if task else None
    try:
        return Dataset(
            observations=observations[keep],
            actions=as_floats(arrays["actions"], "actions", ndim=2, source=source)[keep],
            next_observations=successors,
            rewards=as_floats(arrays["rewards"], "rewards", ndim=1, source=source)[keep],
            terminals=terminals[keep],
            timeouts=timeouts[keep],
            name=str(attributes.pop("name", path.stem)),
            env_id=attributes.pop("env_id", _GYM_IDS.get(task or "")),
            action_bounds=bounds,  # type: ignore[arg-type]
            metadata={**attributes, **{key: value for key, value in facts.items() if value}},
            infos={key: value[keep] for key, value in infos.items()},
        )
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def write_d4rl_hdf5(dataset: Dataset, path: str | os.PathLike[str]) -> Path:
    """Write `dataset` in D4RL's layout (that of v2, with `next_observations`); return the path.

    Flat arrays at the root, infos/*, and the name, env_id, action bounds and metadata as attributes of the root. D4RL's
    own loader reads the file (`env.get_dataset(h5path=path)`). The file appears whole or not at all.
    """
    h5py = require("h5py", extra="data")
    path = Path(path)
    facts = {**dataset.metadata, "name": dataset.name}
    if dataset.env_id is not None:
        facts["env_id"] = dataset.env_id
    if dataset.action_bounds is not None:
        facts["action_low"], facts["action_high"] = (bound.tolist() for bound in dataset.action_bounds)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for key in ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts"):
            file.create_dataset(key, data=getattr(dataset, key), compression="gzip", compression_opts=1)
        for key, value in dataset.infos.items():
            file.create_dataset(f"infos/{key}", data=value, compression="gzip", compression_opts=1)
        write_metadata(file, facts)
    return path


def create_layout(file: Any, rows: int, nx: int, nu: int, infos: dict[str, int], *, chunk_rows: int) -> dict[str, Any]:
    """Make the empty arrays of D4RL's layout in an open file: key → HDF5 data set of `rows` rows. `infos`: key → columns."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "observations": ((rows, nx), np.float32),
        "actions": ((rows, nu), np.float32),
        "next_observations": ((rows, nx), np.float32),
        "rewards": ((rows,), np.float32),
        "terminals": ((rows,), np.bool_),
        "timeouts": ((rows,), np.bool_),
        **{key: ((rows, columns), np.float64) for key, columns in infos.items()},
    }
    chunk = min(chunk_rows, rows)
    return {
        key: file.create_dataset(
            key, shape, dtype, chunks=(chunk, *shape[1:]), compression="gzip", compression_opts=1
        )
        for key, (shape, dtype) in shapes.items()
    }


def write_metadata(file: Any, facts: dict[str, Any]) -> None:
    """Write facts as attributes of the root: strings and numbers as they are, all else as JSON."""
    for key, value in facts.items():
        file.attrs[key] = value if isinstance(value, (str, int, float)) else json.dumps(value)


def _read_attributes(file: Any) -> dict[str, Any]:
    """Attributes of the root, and the scalars that D4RL keeps below metadata/."""

    def plain(value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if isinstance(value, str) and value[:1] in ("[", "{", "n", "t", "f"):
            try:
                return json.loads(value)
            except ValueError:
                return value
        return value.tolist() if isinstance(value, np.ndarray) else value

    facts = {key: plain(value) for key, value in file.attrs.items()}
    group = file.get("metadata")
    for key, value in group.items() if hasattr(group, "items") else ():
        if getattr(value, "shape", None) == ():
            facts.setdefault(key, plain(value[()]))
    return facts


def _read_array(file: Any, key: str, path: Path) -> npt.NDArray[Any]:
    if key not in file:
        found = ", ".join(sorted(file)) or "none"
        raise DatasetError(f"{path}: key {key} is missing (found: {found}); expected D4RL's layout")
    try:
        return np.asarray(file[key][()])
    except (OSError, TypeError, AttributeError) as error:  # a damaged chunk; a group where an array should be
        raise DatasetError(
            f"{path}: {key} cannot be read ({error}); the file is damaged or not in D4RL's layout"
        ) from error


def _read_infos(file: Any, path: Path, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Numeric arrays below infos/ that have one row per step; D4RL's files hold others too, which are of no use here."""
    group = file.get("infos")
    infos = {}
    for key in group if hasattr(group, "keys") else ():
        shape = getattr(group[key], "shape", ())
        if shape and shape[0] == rows and group[key].dtype.kind in "fiub":
            infos[key] = _read_array(file, f"infos/{key}", path)
    return infos


def _task_of(path: Path) -> str | None:
    match = _FILE_NAME.fullmatch(path.stem)
    if match is None:
        return None
    return "walker2d" if match["task"] == "walker" else match["task"]


def _boundaries(observations: FloatArray, successors: FloatArray) -> BoolArray:
    """Rows whose successor is not the observation of the next row, [N]; the last row is not counted."""
    gap = np.abs(successors[:-1] - observations[1:])
    broken = (gap > 1e-4 + 1e-4 * np.abs(successors[:-1])).any(axis=1)
    return np.append(broken, False)


def _derive_timeouts(
    terminals: BoolArray,
    observations: FloatArray,
    task: str | None,
    attributes: dict[str, Any],
    max_episode_steps: int | None,
    path: Path,
) -> BoolArray:
    """Timeouts of a file that holds none: an episode that does not terminate ends after the time limit."""
    limit = max_episode_steps or attributes.get("max_episode_steps") or (TIME_LIMIT if task else None)
    if limit is None:
        raise DatasetError(
            f"{path}: key timeouts is missing and the time limit of its environment is not known; "
            "pass max_episode_steps, for example read_d4rl_hdf5(path, max_episode_steps=1000)"
        )
    rows = np.arange(len(terminals))
    # Steps since the last terminal, counted around the limit: 0 at every start.
    after_terminal = np.concatenate([[True], terminals[:-1]])
    last_start = np.maximum.accumulate(np.where(after_terminal, rows, 0))
    age = (rows - last_start) % int(limit)
    if max_episode_steps is None and task is not None:
        reset, noise = _RESETS[task]
        starts = np.flatnonzero(age == 0)
        position = observations[starts, : len(reset)]
        # Positions that start at exactly 1.0 in ant are a quaternion's, which normalisation moves a little further.
        strange = (np.abs(position - np.asarray(reset, np.float32)) > 1.5 * noise).any(axis=1)
        if strange.any():
            row = int(starts[np.argmax(strange)])
            raise DatasetError(
                f"{path}: key timeouts is missing, and observations at row {row}, where an episode of at most {limit} "
                f"steps should start, is not a state after a reset of {task}: the episodes of this file have another "
                "length; pass max_episode_steps"
            )
    return (age == int(limit) - 1) & ~terminals
