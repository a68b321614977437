"""The session on a GPU, as far as it goes without one: what comes back, and that the next call goes on with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sgp_fast.bench import compiling_ahead, records
from sgp_fast.bench.gpu_session import AIMED, COMPILED, GRID
from sgp_fast.bench.sweep import Spec

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="the script wants coreutils")


def session(folder: Path, *parts: str, work: str = "work") -> str:
    places = {"OUT": "out", "WORK": work, "BROUGHT": "brought", "TRITON_CACHE_DIR": "triton"}
    environment = os.environ | {name: str(folder / place) for name, place in places.items()} | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["sh", "bench/gpu_session.sh", "--dry-run", *parts], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_comes_back_in_one_file_and_the_next_machine_goes_on_with_it(tmp_path: Path) -> None:
    assert "== device: exit 0" in session(tmp_path, "device")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["session.tar.gz"]
    with tarfile.open(tmp_path / "out" / "session.tar.gz") as archive:
        assert {"commit", "device.log", "device.done"} <= set(archive.getnames())
    assert "== device: was done" in session(tmp_path, "device")
    (tmp_path / "brought").mkdir()
    (tmp_path / "out" / "session.tar.gz").rename(tmp_path / "brought" / "session.tar.gz")
    assert "== device: was done" in session(tmp_path, "device", work="another")


def test_the_grid_regime_is_timed_only_once_its_tests_have_passed(tmp_path: Path) -> None:
    assert "== grid: not before its tests" in session(tmp_path, "grid")
    assert GRID not in AIMED


def test_a_part_of_another_name_is_refused() -> None:
    done = subprocess.run(["sh", "bench/gpu_session.sh", "races"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "races is no part; expected some of device:" in done.stderr


def test_kernels_that_sizes_share_are_compiled_before_they_are_looked_for() -> None:
    jobs = compiling_ahead._in_order(
        (spec, regime, 0) for spec in (Spec(256, 1), Spec(256, 64), Spec(1024, 1)) for regime in ("tile", "grid")
    )
    sizes = [(spec.width, spec.problems, regime) for spec, regime, _ in jobs]
    assert sizes == [
        (256, 1, "tile"), (256, 1, "grid"), (1024, 1, "tile"), (1024, 1, "grid"), (256, 64, "tile"), (256, 64, "grid"),
    ]  # fmt: skip
    assert {spec.precision for spec in COMPILED} == {"float32", "tf32", "float16", "bfloat16"}


def test_a_copy_without_a_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_git", lambda *_: "")
    monkeypatch.delenv("SGP_FAST_COMMIT", raising=False)
    assert records.header("device")["commit"] is None
    monkeypatch.setenv("SGP_FAST_COMMIT", "f" * 40)
    assert records.header("device")["commit"] == "f" * 40


def test_a_copy_with_an_older_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGP_FAST_COMMIT", "f" * 40)
    head = records.header("device")
    assert head["commit"] == "f" * 40 and head["changed"] is False
