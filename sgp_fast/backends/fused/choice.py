"""The fastest of several ways to plan, measured once for a device, a problem's shape and the versions, and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import statistics
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ... import kernels
from ..._files import atomic_path
from ..._version import __version__
from ...problem import Problem
from .device import Body, Device

# Each round runs every candidate once, so that a device that slows down slows them all. At least and at most so many
# rounds, and between the two as many as fit the time.
ROUNDS = (3, 15)
SECONDS = 2.0


@dataclass(frozen=True)
class Key:
    """What a measurement holds for: hardware, the parts of the problem, sizes. `rows` is a bucket, `dtype` that of products.

    parts  name and kind of each part of the problem: the spec of its network, or its class where it has none
    """

    device: str
    parts: tuple[tuple[str, str], ...]
    rows: int
    horizon: int
    dtype: str
    nx: int
    nu: int

    @classmethod
    def of(cls, problem: Problem, device: Device, rows: int, horizon: int, dtype: str) -> Key:
        def kind(part: Any) -> str:
            network = getattr(part, "network", None)
            return type(part).__qualname__ if network is None else f"{type(part).__qualname__} of {network.spec!r}"

        parts = tuple((name, kind(part)) for name, part in problem.modules.items())
        return cls(device.name, parts, rows, horizon, dtype, problem.dynamics.nx, problem.dynamics.nu)


@dataclass(frozen=True)
class Choice:
    """Median seconds of the candidates that ran, why the others could not, and the fastest.

    measured  when, in UTC      stored  whether it is on disk, for the next process
    """

    chosen: str
    seconds: Mapping[str, float]
    failures: Mapping[str, str]
    measured: str
    stored: bool

    @property
    def reason(self) -> str:
        """For reports: `tile 1.23 ms, layered 1.80 ms (measured 2026-01-31 12:00 UTC, stored)`."""
        fastest_first = sorted(self.seconds.items(), key=lambda item: item[1])
        parts = [f"{name} {_milliseconds(seconds)} ms" for name, seconds in fastest_first]
        parts += [f"{name} cannot run: {why}" for name, why in self.failures.items()]
        return f"{', '.join(parts)} (measured {self.measured}, {'stored' if self.stored else 'for this process only'})"


class Store:
    """Choices in a folder, one file each, and in memory. A file counts only if it is whole, of this key and of `versions`.

    A folder that cannot be written to is no error: each process then measures for itself.
    """

    def __init__(self, folder: Path, versions: Mapping[str, str]) -> None:
        self.lock = threading.RLock()
        self.folder, self.versions = folder, dict(versions)
        self._known: dict[str, Choice] = {}

    def path(self, key: Key, candidates: Iterable[str]) -> Path:
        """The file of a key and of the candidates for it, whatever their order."""
        text = json.dumps(_identity(key, candidates), sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def read(self, key: Key, candidates: Iterable[str]) -> Choice | None:
        """What was measured before; None where nothing was that can be trusted."""
        names = tuple(candidates)
        path = self.path(key, names)
        with self.lock:
            if path.name in self._known:
                return self._known[path.name]
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                same = found["key"] == _identity(key, names) and found["versions"] == self.versions
                choice = _checked(found["choice"], names) if same else None
            except (OSError, ValueError, LookupError, TypeError, RecursionError):
                return None
            if choice is not None:
                self._known[path.name] = choice
            return choice

    def write(self, key: Key, candidates: Iterable[str], choice: Choice, to_disk: bool = True) -> Choice:
        """Keep a choice, on disk too if that is wanted and possible; what is returned says whether it is."""
        names = tuple(candidates)
        path = self.path(key, names)
        fields = {name: value for name, value in asdict(choice).items() if name != "stored"}
        text = json.dumps({"key": _identity(key, names), "versions": self.versions, "choice": fields}, indent=1)
        stored = to_disk
        if to_disk:
            try:
                with atomic_path(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            except OSError:
                stored = False
        kept = Choice(**fields, stored=stored)
        with self.lock:
            self._known[path.name] = kept
        return kept


def choose(key: Key, candidates: Mapping[str, Body], device: Device, store: Store) -> Choice:
    """The candidate of smallest median time: the stored one, or else measured now and stored.

    candidates  bodies by name; a body may build what it needs when it first runs, which is not timed. One that raises is
                out, with its message as the reason; one that ran out of memory is not remembered as such on disk

    Raises RuntimeError where none can run, ValueError where there is none.
    """
    if not candidates:
        raise ValueError("candidates is empty; give at least one way to plan")
    with store.lock:  # two threads that measure at once would measure each other
        found = store.read(key, candidates)
        if found is not None:
            return found
        seconds, failures, lasting = _measure(candidates, device)
        if not seconds:
            reasons = "; ".join(f"{name}: {why}" for name, why in failures.items())
            raise RuntimeError(f"no candidate could plan {key.rows} rows on {key.device}: {reasons}")
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        choice = Choice(min(seconds, key=seconds.__getitem__), seconds, failures, now, stored=False)
        return store.write(key, candidates, choice, to_disk=lasting)


def _measure(candidates: Mapping[str, Body], device: Device) -> tuple[dict[str, float], dict[str, str], bool]:
    """Median seconds by name, reasons of failure by name, and whether all of these would be the same another time."""
    times: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    lasting = True

    def run(name: str, repeats: int) -> float:
        nonlocal lasting
        body = candidates[name]
        try:
            return device.seconds(body, repeats)
        except Exception as error:
            full = isinstance(error, MemoryError) or "out of memory" in str(error).lower()  # as others may have filled it
            lasting = lasting and not full
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            times.pop(name, None)
            return math.nan

    for name in candidates:
        times[name] = []
        run(name, 1)  # warms up: the first run may build and compile
    spent, rounds = 0.0, 0
    while times and (rounds < ROUNDS[0] or (rounds < ROUNDS[1] and spent < SECONDS)):
        # Back and forth, so that nobody always runs behind the same one.
        for name in list(times) if rounds % 2 == 0 else list(reversed(times)):
            seconds = run(name, 1)
            if name in times:
                times[name].append(seconds)
                spent += seconds
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}, failures, lasting


def _identity(key: Key, candidates: Iterable[str]) -> dict[str, Any]:
    """As JSON reads it back."""
    return asdict(key) | {"parts": [list(part) for part in key.parts], "candidates": sorted(candidates)}


def _checked(fields: Any, candidates: tuple[str, ...]) -> Choice | None:
    """The choice of a file; None unless it speaks of just these candidates and its choice is the fastest of them."""
    choice = Choice(**fields, stored=True)
    seconds, failures = dict(choice.seconds), dict(choice.failures)
    texts = (choice.measured, *failures.values())
    times = seconds.values()
    sound = (
        sorted((*seconds, *failures)) == sorted(candidates)
        and all(isinstance(text, str) for text in texts)
        and all(type(time) is float and 0 <= time < math.inf for time in times)
        and seconds[choice.chosen] == min(times)
    )
    return choice if sound else None


def _milliseconds(seconds: float) -> str:
    """Three digits, or all before the point."""
    value = seconds * 1e3
    digits = 2 - math.floor(math.log10(max(value, 1e-6)))
    return f"{value:.{max(0, digits)}f}"


def user_store() -> Store:
    """The store in `$SGP_FAST_HOME/choices`, else `~/.cache/sgp_fast/choices`, for the versions of this process."""
    home = os.environ.get("SGP_FAST_HOME")
    return _store((Path(home) if home else Path.home() / ".cache" / "sgp_fast") / "choices")


@functools.cache
def _store(folder: Path) -> Store:
    return Store(folder, versions())


def versions() -> dict[str, str]:
    """Of all that decides how fast a plan is, apart from the hardware; "none" for what is not there."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return {
        "sgp_fast": __version__,
        "sources": hash_of(Path(kernels.__file__).parent, Path(__file__).parents[1]),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or "none",
        "driver": _driver(),
    }


def hash_of(*folders: Path) -> str:
    """Of the Python sources in these folders and below: a checkout may change them without another version."""
    digest = hashlib.sha256()
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _driver() -> str:
    """Version of NVIDIA's kernel module, where Linux tells it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "none"
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else "none"
