"""Compiling the engine with the user's own C++ compiler, once for each machine and version of the sources.

The result is kept in the user's cache folder under a name that tells all that went into it: sources, compiler, flags and the
processor's features. It is built beside its place and renamed into it, so that two processes may build at once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
# Contraction lets `a * b + c` become one instruction; math-errno would keep square roots from being vectors. Nothing here
# lets the compiler reorder sums or assume that numbers are finite: a NaN must reach the status of its problem.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
# What this processor has, in the words of GCC, and of clang on ARM; then whatever the compiler takes for granted.
NATIVE = ("-march=native", "-mcpu=native", "")


class BuildError(RuntimeError):
    """The engine could not be compiled or loaded; the message is one line that says why and what helps."""


@dataclass(frozen=True)
class Engine:
    """The loaded library, and what it is: vectors of `lanes` floats, panels of up to `vectors` of them, matrix tiles or not.

    `integers`: it takes weights as whole numbers of 24 bits.
    `seconds` were spent compiling by this process: 0 where the library was there.
    """

    library: ctypes.CDLL
    path: Path
    lanes: int
    vectors: int
    integers: bool
    tiles: bool
    seconds: float

    @property
    def instructions(self) -> str:
        """The instruction set in words, for reports."""
        names = {16: "AVX-512", 8: "AVX2"}
        base = names.get(self.lanes, "NEON" if platform.machine().lower() in ("arm64", "aarch64") else "SSE")
        return f"{base} and AMX" if self.tiles else base


def compiler() -> list[str] | None:
    """The command of the C++ compiler: $CXX (which may hold options), else g++, clang++ or c++; None where there is none."""
    for command in (shlex.split(os.environ.get("CXX", "")), ["g++"], ["clang++"], ["c++"]):
        if command and shutil.which(command[0]):
            return command
    return None


def why_unavailable() -> str | None:
    """None where the engine can be built here, as far as one can tell without building; else the reason and a remedy."""
    if sys.platform == "win32":
        return "the native engine is not built on Windows; use WSL"
    if compiler() is None:
        return "no C++ compiler was found; install g++ or clang++, or set CXX"
    try:
        _cached_failure()
    except BuildError as error:
        return str(error)
    return None


@functools.cache
def engine(architecture: str | None = None) -> Engine:
    """The engine for this processor, or for a given one (such as `-march=x86-64-v3`, for tests). Raises BuildError."""
    command = compiler()
    if command is None:
        raise BuildError("no C++ compiler was found; install g++ or clang++, or set CXX")
    failures = []
    for flag in NATIVE if architecture is None else (architecture,):
        began = time.perf_counter()
        path = cache_folder() / _name(command, flag) / "engine.so"
        if not path.exists():
            failure = _compile([*command, *FLAGS, *filter(None, [flag])], SOURCES / "plan.cpp", path)
            if failure is not None:
                failures.append(failure)
                continue
            return _load(path, time.perf_counter() - began)
        return _load(path, 0.0)
    raise BuildError(f"{command[0]} could not compile the native engine: {failures[0]}")


@functools.cache
def _failure() -> list[str]:
    return []


def _cached_failure() -> None:
    """Raise what an earlier attempt in this process raised, so that nobody compiles in vain twice."""
    if _failure():
        raise BuildError(_failure()[0])


def load() -> Engine:
    """The engine for this processor; a failure is remembered and told by `why_unavailable` from then on."""
    _cached_failure()
    try:
        return engine()
    except BuildError as error:
        _failure().append(str(error))
        raise


def cache_folder() -> Path:
    """Where builds are kept: `$SGP_FAST_HOME/native`, else `~/.cache/sgp_fast/native`."""
    home = os.environ.get("SGP_FAST_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "sgp_fast") / "native"


def _name(command: list[str], flag: str) -> str:
    """A hash of all that decides the machine code."""
    digest = hashlib.sha256()
    for path in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(path.name.encode() + path.read_bytes())
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    for text in (*command, version, *FLAGS, flag, platform.machine(), _processor()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:20]


def _processor() -> str:
    """The processor's features: `-march=native` means another thing on another machine that shares the home folder."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        return platform.processor()


@functools.lru_cache(maxsize=256)
def function(text: str, symbol: str) -> ctypes.c_void_p:
    """The address of a function of a generated C++ source: compiled once, and kept as engines are. Raises BuildError."""
    command = compiler()
    if command is None:
        raise BuildError("no C++ compiler was found; install g++ or clang++, or set CXX")
    command = [*command, *FLAGS]
    digest = hashlib.sha256("\0".join((text, *command, platform.machine())).encode()).hexdigest()[:20]
    path = cache_folder() / digest / "cost.so"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "cost.cpp"
            source.write_text(text, encoding="utf-8")
            failure = _compile(command, source, path)
        if failure is not None:
            raise BuildError(f"{command[0]} could not compile a traced cost: {failure}")
    try:
        return ctypes.cast(getattr(ctypes.CDLL(str(path)), symbol), ctypes.c_void_p)
    except OSError as error:
        raise BuildError(f"{path} does not load ({error}); delete it, it is built anew") from error


def _compile(command: list[str], source: Path, path: Path) -> str | None:
    """Build a source beside `path` and rename into it; the compiler's first error, or None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            done = subprocess.run(
                [*command, str(source), "-o", str(built)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0 or not built.exists():
                lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                return lines[0].strip() if lines else f"it exited with {done.returncode}"
            os.replace(built, path)
    except OSError as error:
        raise BuildError(f"the native engine cannot be kept in {path.parent} ({error}); set SGP_FAST_HOME") from error
    return None


def _load(path: Path, seconds: float) -> Engine:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} does not load ({error}); delete it, it is built anew") from error
    library.sgp_solve.argtypes = library.sgp_evaluate.argtypes = [ctypes.c_void_p]
    library.sgp_prefer_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    machine = [ctypes.c_int32() for _ in range(4)]
    library.sgp_machine(*(ctypes.byref(number) for number in machine))
    lanes, vectors, integers, tiles = (number.value for number in machine)
    return Engine(library, path, lanes, vectors, bool(integers), bool(tiles), seconds)
