"""Plans for a file of start states: any number of them, in constant memory, and never twice after a run was killed.

Finished chunks lie beside the output, in `.NAME.parts/`, each written whole or not at all. When all are there they are
joined into the output, which appears in one step, and removed; until then they take as much disk as the output itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._files import atomic_path
from ._identity import differences
from ._optional import require
from ._progress import progress_bar
from ._start_files import StartFile, open_starts
from ._starts import has_rows, random_starts, solve_starts
from ._version import __version__
from .inputs import check_moves
from .plan import Plan
from .planner import SGP
from .problem import Problem, device_of

FORMATS = (".npz", ".parquet")

_REMEDY = "give another name, or resume=False (--no-resume) to replace it"


@dataclass(frozen=True)
class Summary:
    """What a run did: rows in all, those that were finished before it, and how many plans ended in each status."""

    out: Path
    count: int
    resumed: int
    converged: int
    limit: int
    diverged: int


def plan_file(
    problem: Problem,
    planner: SGP,
    starts: Path,
    out: Path,
    *,
    chunk: int = 1024,
    seed: int = 0,
    backend: str = "auto",
    states: bool = False,
    resume: bool = True,
    progress: bool = False,
) -> Summary:
    """Plan from every start state of a file and write the plans to another.

    starts    .npy, .npz or .parquet; see `open_starts`
    out       .npz or .parquet, with a row a start state: `index` (its row in `starts`), `u [T, nu]`, task `cost`,
              `penalty` (distance to the data, as in `Plan.terms`), `status` (values of `Status`), and with `states` also
              `x [T+1, nx]`; the planner's settings as JSON in `meta`
    chunk     problems planned at once, and so what a kill can lose. Plans do not depend on it, beyond rounding
    seed      of the random starts: row i draws what `solve` draws for problem i of the whole
    resume    go on where a run that was killed left off; a finished output of the same run is left as it is. False: anew,
              and what is there is replaced
    progress  show a bar

    The whole file is checked before any work, and so are the settings. Raises FileNotFoundError and ValueError naming file
    and row; FileExistsError, with what differs, where `out` or its finished chunks belong to another run, and where `out`
    cannot be read.
    """
    if not isinstance(planner, SGP):
        raise TypeError(f"planner is a {type(planner).__name__}; files of starts are planned with SGP")
    check_moves(planner)
    starts, out = Path(starts), Path(out)
    if out.suffix not in FORMATS:
        raise ValueError(f"{out}: the suffix is {out.suffix!r}; expected plans as {' or '.join(FORMATS)}")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    for name, values in (("bounds", problem.bounds or ()), ("goal", (problem.goal,))):
        if any(map(has_rows, values)):
            raise ValueError(f"Problem.{name} has a row a problem; a file of starts takes one for all of them")
    if out.suffix == ".parquet":
        require("pyarrow.parquet", extra="data")
    file = open_starts(starts)
    nx = getattr(problem.dynamics, "nx", file.nx)
    if file.nx != nx:
        raise ValueError(f"{starts} holds states of nx={file.nx} features; the dynamics have nx={nx}: give states of theirs")
    nu = problem.controls(file.nx)
    identity = _identity(problem, planner, file, seed, states)
    meta = {"sgp_fast": __version__, "seed": seed, "backend": backend, "planner": asdict(planner), "identity": identity}
    parts = Parts(out.with_name(f".{out.name}.parts"), file.count)
    if resume and out.exists():
        _refuse_another(f"{out} holds the plans", _identity_of(out), identity, _REMEDY)
        return _summary(out, file.count, file.count, _statuses(out))
    device = device_of(problem)

    def plans_of(block: np.ndarray, keys: np.ndarray) -> Plan:
        x0 = torch.from_numpy(block).to(device)
        return solve_starts(problem, planner, x0, random_starts(planner, nu, seed, keys), backend=backend)

    # One row is planned for its errors alone: settings that do not fit must leave nothing behind, nor remove anything.
    plans_of(next(file.blocks(0, 1)), np.arange(1))
    if not resume:
        parts.remove()
    done = parts.begin(identity)
    bar = progress_bar("cli", total=file.count, initial=done, unit="plan") if progress else None
    first = done
    for block in file.blocks(first, chunk) if first < file.count else ():
        keys = np.arange(first, first + len(block))
        parts.add(first, _columns(plans_of(block, keys), keys, states))
        first += len(block)
        if bar is not None:
            bar.update(len(block))
    if bar is not None:
        bar.close()
    # Joined among the chunks, so that what a kill leaves behind goes with them.
    joined = parts.folder / f"joined{out.suffix}"
    with atomic_path(joined) as temporary:
        (_write_npz if out.suffix == ".npz" else _write_parquet)(temporary, parts, json.dumps(meta))
    summary = _summary(out, file.count, done, (arrays["status"] for arrays in parts.each(("status",))))
    os.replace(joined, out)
    parts.remove()
    return summary


class Parts:
    """The finished chunks of a run: files `FIRST-COUNT.npz` in a folder, beside the identity of the run that made them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def begin(self, identity: dict[str, Any]) -> int:
        """Make the folder, or find rows 0 to n finished in it; n. FileExistsError where another run finished some."""
        mark = self.folder / "identity"
        if mark.is_file() and self._spans():
            remedy = "remove it, or give resume=False (--no-resume)"
            _refuse_another(f"{self.folder} holds the unfinished plans", _json(mark.read_text()), identity, remedy)
            for rest in self.folder.glob(".*"):  # of files that were being written when the run was killed
                rest.unlink()
        else:
            self.remove()
            with atomic_path(mark) as temporary:
                temporary.write_text(json.dumps(identity))
        return sum(count for _, count in self._spans())

    def add(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        with atomic_path(self.folder / f"{first:015d}-{len(arrays['index'])}.npz") as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    def each(self, names: tuple[str, ...] | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of each chunk, in order; all of them, or some."""
        for path, _ in self._spans():
            with np.load(path) as archive:
                yield {name: archive[name] for name in (names or archive.files)}

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _spans(self) -> list[tuple[Path, int]]:
        """The whole chunks that follow each other from row 0 on; their sizes may differ, as a run may go on with another."""
        found = sorted(self.folder.glob("[0-9]*-*.npz"))
        spans: list[tuple[Path, int]] = []
        row = 0
        for path in found:
            first, count = map(int, path.stem.split("-"))
            if first == row and zipfile.is_zipfile(path):
                spans.append((path, count))
                row += count
        return spans


def _columns(plan: Plan, keys: np.ndarray, states: bool) -> dict[str, np.ndarray]:
    tensors = {"u": plan.u, "cost": plan.cost, "penalty": plan.terms["penalty"], "status": plan.status}
    if states:
        tensors["x"] = plan.x
    return {"index": keys.astype(np.int64)} | {name: t.cpu().numpy() for name, t in tensors.items()}


def _write_npz(path: Path, parts: Parts, meta: str) -> None:
    """Join the chunks into one .npz, uncompressed, a member at a time and a chunk at a time; zip64, so of any size."""
    layout = {name: (array.dtype, array.shape[1:]) for name, array in next(parts.each()).items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, (dtype, shape) in layout.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                header = {"descr": dtype.str, "fortran_order": False, "shape": (parts.count, *shape)}
                np.lib.format.write_array_header_1_0(member, header)
                for arrays in parts.each((name,)):
                    member.write(np.ascontiguousarray(arrays[name]).tobytes())
        with archive.open(zipfile.ZipInfo("meta.npy"), "w") as member:
            np.lib.format.write_array(member, np.array(meta), allow_pickle=False)


def _write_parquet(path: Path, parts: Parts, meta: str) -> None:
    """Join the chunks into one .parquet, a row group a chunk; controls and states are lists of lists of fixed sizes."""
    pa: Any = require("pyarrow", extra="data")
    pq: Any = require("pyarrow.parquet", extra="data")

    def column(array: np.ndarray) -> Any:
        values = pa.array(array.reshape(-1))
        for size in array.shape[:0:-1]:
            values = pa.FixedSizeListArray.from_arrays(values, size)
        return values

    def table(arrays: dict[str, np.ndarray]) -> Any:
        return pa.table({name: column(array) for name, array in arrays.items()})

    schema = table(next(parts.each())).schema.with_metadata({"meta": meta})
    with pq.ParquetWriter(path, schema) as writer:
        for arrays in parts.each():
            writer.write_table(table(arrays).replace_schema_metadata({"meta": meta}))


def _identity(problem: Problem, planner: SGP, file: StartFile, seed: int, states: bool) -> dict[str, Any]:
    """What decides the plans, as plain JSON: settings, seed, and digests of models and start states.

    All start states are read, and so checked. Of functions only the name is known: one that changes under the same name is
    not noticed.
    """
    starts, weights = hashlib.blake2b(digest_size=12), hashlib.blake2b(digest_size=12)
    for block in file.blocks(size=65536):
        starts.update(block.tobytes())
    for name, part in problem.modules.items():
        for key, tensor in part.state_dict().items():
            weights.update(f"{name}.{key}".encode())
            weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    parts = {"dynamics": problem.dynamics, "cost": problem.cost, "terminal": problem.terminal, "score": problem.score}
    identity = {
        **asdict(planner),
        "seed": seed,
        "states": states,
        "start states": [file.count, file.nx],
        "fingerprint of the start states": starts.hexdigest(),
        "fingerprint of the models": weights.hexdigest(),
        **{name: [type(part).__qualname__, _function_name(part)] for name, part in parts.items()},
        "control_change": problem.control_change,
        "bounds": _listed(problem.bounds),
        "goal": _listed(problem.goal),
    }
    return json.loads(json.dumps(identity))  # as it is read again


def _function_name(part: Any) -> str | None:
    function = getattr(part, "function", getattr(part, "module", None))
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)


def _listed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_listed(item) for item in value]
    return None if value is None else torch.as_tensor(value).tolist()


def _identity_of(out: Path) -> Any:
    """The identity in a finished output; FileExistsError where it cannot be read, or is none of ours."""
    try:
        if out.suffix == ".npz":
            with zipfile.ZipFile(out) as archive, archive.open("meta.npy") as member:
                meta = str(np.lib.format.read_array(member, allow_pickle=False))
        else:
            pq: Any = require("pyarrow.parquet", extra="data")
            meta = pq.read_schema(out).metadata[b"meta"]
        return json.loads(meta)["identity"]
    except (KeyError, TypeError):
        raise FileExistsError(f"{out} is no file of plans; {_REMEDY}") from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise FileExistsError(f"{out} cannot be read ({error}); truncated? {_REMEDY}") from None


def _refuse_another(what: str, found: Any, identity: dict[str, Any], remedy: str) -> None:
    """FileExistsError, with what differs, where plans are not of the run that is asked for."""
    if found != identity:
        why = differences(identity, found) if isinstance(found, dict) else "of another version of sgp_fast"
        raise FileExistsError(f"{what} of another run ({why}); {remedy}")


def _json(text: str) -> Any:
    """The data in a text; None where it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _statuses(out: Path) -> Iterator[np.ndarray]:
    """The statuses in a finished output, a block at a time."""
    if out.suffix == ".npz":
        with zipfile.ZipFile(out) as archive, archive.open("status.npy") as member:
            np.lib.format.read_magic(member)
            np.lib.format.read_array_header_1_0(member)
            while block := member.read(1 << 20):
                yield np.frombuffer(block, np.int8)
        return
    pq: Any = require("pyarrow.parquet", extra="data")
    for batch in pq.ParquetFile(out).iter_batches(columns=["status"]):
        yield np.asarray(batch.column(0))


def _summary(out: Path, count: int, resumed: int, statuses: Iterator[np.ndarray]) -> Summary:
    totals = sum((np.bincount(status, minlength=3) for status in statuses), np.zeros(3, np.int64))
    limit, converged, diverged = totals.tolist()
    return Summary(out, count, resumed, converged, limit, diverged)
