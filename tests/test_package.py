"""The package as users get it: a wheel that holds each file once and works far from the checkout, and editable installs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import sgp_fast

ROOT = Path(__file__).parents[1]
HOMES = {"sgp_fast": "sgp_fast", "kernels": "sgp_fast/kernels", "bench": "sgp_fast/bench"}
LINKS = ("kernels", "bench")

# Prints where the package and its mapped folders came from, and any file that was loaded under two names.
INSPECT = """
import importlib, json, os, sys
from importlib.metadata import version
names = ["sgp_fast", "sgp_fast.kernels", "sgp_fast.bench", "sgp_fast.kernels.network", "sgp_fast.kernels.reference"]
files = {name: importlib.import_module(name).__file__ for name in names}
import sgp_fast
sgp_fast.NetworkSpec
seen = {}
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None) and "sgp_fast" in name:
        seen.setdefault(os.path.realpath(module.__file__), []).append(name)
for bare in ("kernels", "bench", "tests"):
    try:
        importlib.import_module(bare)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{bare} is installed as a top-level package")
twice = [names for names in seen.values() if len(names) > 1]
print(json.dumps({"files": files, "twice": twice, "version": version("sgp-fast")}))
"""


def checkout(folder: Path) -> Path:
    """A copy of what a clone holds, so that building leaves nothing in the real one, nor finds leftovers there."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in HOMES:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that sees nothing of this checkout; its errors fail the test."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_USER")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fresh_environment(folder: Path) -> Path:
    """The interpreter of a new, empty virtual environment that borrows torch and the rest from the one that runs this.

    Its own packages come first, and the editable install of the borrowed environment is not active in it, as that is
    set up by a .pth file, and only those of the new environment are read.
    """
    venv.create(folder, symlinks=os.name == "posix")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ours = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(ours) / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return python


def pip_install(python: Path, *what: str | Path, cwd: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, *what, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = checkout(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_each_file_of_the_package_once(wheel: Path) -> None:
    expected = {
        f"{home}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, home in HOMES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.relative_to(ROOT / folder).parts[0] not in LINKS
    }
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        information = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    assert len(names) == len(set(names))
    assert set(names) == expected
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= information


def test_the_wheel_works_far_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "env")
    pip_install(python, wheel, cwd=tmp_path)
    seen = json.loads(run(python, "-c", INSPECT, cwd=tmp_path))
    assert seen["version"] == sgp_fast.__version__
    assert seen["twice"] == []
    for name, file in seen["files"].items():
        assert Path(file).is_relative_to(tmp_path / "env"), f"{name} came from {file}"
    report = run(python.parent / "sgp-fast", "doctor", cwd=tmp_path)
    assert sgp_fast.__version__ in report and "eager" in report


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_an_editable_install_loads_each_file_once(links: bool, tmp_path: Path) -> None:
    """The links serve bare checkouts; where they cannot be (Windows without the right to make them), the mapping does."""
    source = checkout(tmp_path / "source")
    if not links:
        for name in LINKS:
            (source / "sgp_fast" / name).unlink()
    python = fresh_environment(tmp_path / "env")
    pip_install(python, "--editable", source, cwd=tmp_path)
    seen = json.loads(run(python, "-c", INSPECT, cwd=tmp_path))
    assert seen["twice"] == []
    assert {Path(file).resolve() for file in seen["files"].values()} == {
        source.resolve() / path
        for path in (
            "sgp_fast/__init__.py",
            "kernels/__init__.py",
            "bench/__init__.py",
            "kernels/network.py",
            "kernels/reference.py",
        )
    }


def test_the_links_are_relative() -> None:
    for name in LINKS:
        link = ROOT / "sgp_fast" / name
        assert link.is_symlink() and os.readlink(link) == f"../{name}"


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no checkout")
def test_what_the_commands_of_the_readme_write_is_ignored() -> None:
    for name in (
        "run/", "session/", "trace.json.gz", "hopper.npz", "plans.npz", "starts.npy", "mine.jsonl", "own.jsonl",
        "returns.jsonl", "bench.html",
    ):  # fmt: skip
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False).returncode == 0, name
