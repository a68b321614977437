"""Results as JSON lines: a header with the circumstances, then a line for each thing that was measured.

    {"kind": "header", "schema": 2, "commit": …, "machine": …, "versions": …}
    {"kind": "plan", "case": "64 × 4×256", "rung": "compiled", "samples": [0.1521, …], …}

`schema.json` beside this file is the contract, for readers in other languages too; `read` and `sgp-fast bench validate` hold
files to it. Lines are written as they are measured, so a run that is killed leaves what it had, and `run --resume` goes on.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sgp_fast._files import atomic_path
from sgp_fast._optional import require
from sgp_fast.doctor import cpu_model
from sgp_fast.kernels.tiling import Tile

from .rows import KINDS, KernelRow, PlanRow, Row

SCHEMA = 2
SCHEMA_FILE = Path(__file__).with_name("schema.json")
# What a run that goes on with a file must have in common with it, beside a problem of one's own.
SAME = ("schema", "command", "commit", "changed", "machine", "versions")
LIBRARIES = (
    "sgp-fast", "torch", "triton", "numpy", "jax", "torchrl", "pytorch-mppi", "stable-worldmodel", "gymnasium", "mujoco",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A file: its circumstances and its rows."""

    header: dict[str, Any]
    rows: tuple[Row, ...]

    def of(self, kind: type[Any]) -> list[Any]:
        """Rows of one kind, in their order."""
        return [row for row in self.rows if isinstance(row, kind)]

    def by_device(self) -> list[Results]:
        """The rows of each device apart, as they first appear; those of none, of kernels ahead of time, with the first."""
        devices = list(dict.fromkeys(device for row in self.rows if (device := _device(row)))) or [None]
        return [
            Results(self.header, tuple(row for row in self.rows if (_device(row) or devices[0]) == device))
            for device in devices
        ]

    @property
    def device(self) -> str:
        """What the rows were measured on, by its name."""
        machine = self.header["machine"]
        on = next(filter(None, map(_device, self.rows)), "cuda" if machine["gpu"] else "cpu")
        return machine["cpu"] if on == "cpu" else machine["gpu"] or on

    @property
    def where(self) -> str:
        """The circumstances in a line, for a caption: device, commit, versions."""
        machine, versions = self.header["machine"], self.header["versions"]
        threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
        place = f"{machine['cpu']}, {threads}" if self.device == machine["cpu"] else self.device
        commit = (self.header["commit"] or "unknown")[:7] + (" with changes" if self.header["changed"] else "")
        told = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "jax") if versions.get(name))
        return f"{place}; commit {commit}; {told}; {self.header['date']}"


def header(command: str, **settings: Any) -> dict[str, Any]:
    """What a number needs beside it: commit, machine, versions, and how the command was called."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    # An installed package may lie within another repository, whose commit says nothing of us.
    told = os.environ.get("SGP_FAST_COMMIT")
    ours = not told and bool(_git("ls-files", Path(__file__).name))
    return {
        "kind": "header",
        "schema": SCHEMA,
        "command": command,
        "settings": settings,
        # A copy of the tree, without its history or with an older one, is told the commit.
        "commit": told or (ours and _git("rev-parse", "HEAD")) or None,
        "changed": ours and bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_model(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu and gpu.name,
            "gpu_memory": gpu and gpu.total_memory,
        },
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {name: _version(name) for name in LIBRARIES},
    }


class Writer:
    """Rows as they are measured: kept in `rows` and, where there is a file, appended to it, a line at a time.

    A rung that was left out for time has a row that says so, until one of the same case and rung takes its place.
    `done` are the rows that the file held already, where `resume` goes on with one. Raises ValueError for a file that is
    there unasked for, and for one that was begun in other circumstances (`SAME`); either stays as it was.
    """

    def __init__(self, path: Path | None, head: dict[str, Any], *, resume: bool = False) -> None:
        self.path, self.head, self.done = path, head, ()
        if path is not None and path.exists():
            if not resume:
                raise ValueError(f"{path} exists; --resume goes on with it, another --out leaves it as it is")
            found, *rows = _load(path, unfinished=True)
            differs = [name for name in SAME if found.get(name) != head[name]]
            differs += ["problem"] * (found.get("settings", {}).get("problem") != head["settings"].get("problem"))
            if differs:
                raise ValueError(f"{path} was begun with another {differs[0]}; give another file, or remove it")
            self.head, self.done = found, tuple(map(_row, rows))
            write(path, found, self.done)  # without the line that a kill may have cut
        elif path is not None:
            write(path, head, ())
        self.rows: list[Row] = list(self.done)

    def add(self, row: Row) -> None:
        kept = [other for other in self.rows if not _supersedes(row, other)]
        whole = len(kept) < len(self.rows)
        self.rows = [*kept, row]
        if self.path is not None and whole:
            write(self.path, self.head, self.rows)
        elif self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def of(self, kind: type[Any]) -> list[Any]:
        """The rows of one kind so far."""
        return [row for row in self.rows if isinstance(row, kind)]


def write(path: Path, head: dict[str, Any], rows: Iterable[Row]) -> None:
    """A whole file at once."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(map(_line, (head, *rows))), encoding="utf-8")


def read(path: Path, *, check: bool = True) -> Results:
    """The results in a file; ValueError with the line and what is wrong with it.

    `check`: hold every line to the schema, which needs a library; files of this very run need not be.
    """
    parsed = _load(path, unfinished=not check)
    for number, value in enumerate(parsed if check else (), 1):
        why = problem_of(value, first=number == 1)
        if why is not None:
            raise ValueError(f"{path}, line {number}: {why}")
    return Results(parsed[0], tuple(_row(value) for value in parsed[1:]))


def _load(path: Path, *, unfinished: bool = False) -> list[Any]:
    """The lines of a file; `unfinished`: a last one without an end, which a killed run leaves, is passed over."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a file of results, as `sgp-fast bench run --out` writes")
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if unfinished and not text.endswith("\n"):
        lines = lines[:-1]
    parsed = [value for number, line in enumerate(lines, 1) for value in _parse(path, number, line)]
    if not parsed:
        raise ValueError(f"{path} is empty; expected a header and rows")
    return parsed


def problem_of(line: Any, *, first: bool) -> str | None:
    """What is wrong with a line; None where it is as the schema says."""
    if not isinstance(line, dict) or "kind" not in line:
        return "no object with a kind; expected JSON lines of results"
    if first != (line["kind"] == "header"):
        return "expected a header first, and one only"
    if first and line.get("schema") != SCHEMA:
        found = line.get("schema", line.get("version"))
        return f"schema {found}; this version reads {SCHEMA}: measure again, or read it with the version that wrote it"
    errors = sorted(_validator().iter_errors(line), key=lambda error: list(map(str, error.path)))
    if not errors:
        return None
    best = require("jsonschema", extra="bench").exceptions.best_match(errors)
    place = ".".join(map(str, best.path))
    return f"{place + ': ' if place else ''}{best.message}"


@cache
def _validator() -> Any:
    jsonschema = require("jsonschema", extra="bench")
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _parse(path: Path, number: int, line: str) -> Iterator[Any]:
    if line.strip():
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}); expected JSON lines of results") from None


def _device(row: Row) -> str | None:
    return getattr(row, "device", None)


def _supersedes(row: Row, other: Row) -> bool:
    """`other` says that its rung was left out for time, and `row` is of the same rung at the same case."""
    return isinstance(row, PlanRow) and isinstance(other, PlanRow) and other.left_out and other.key == row.key


def _row(line: dict[str, Any]) -> Row:
    cls = KINDS[line["kind"]]
    known = {f.name for f in fields(cls)}
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in line.items() if name in known}
    if cls is KernelRow and values["tile"] is not None:
        values["tile"] = Tile(**values["tile"])
    return cls(**values)


def _line(row: Row | dict[str, Any]) -> str:
    value = row if isinstance(row, dict) else {"kind": row.kind} | asdict(row)
    return json.dumps(_rounded(value), ensure_ascii=False, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    """Numbers with six digits, which is more than any of them is worth; those that are not finite become null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, tuple | list) else value


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )  # fmt: skip
    except OSError:
        return ""
    return found.stdout.strip()
