"""The session on a GPU, as far as it goes without one: what comes back, and that the next call goes on with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from sgp_fast.bench import compiling_ahead, records
from sgp_fast.bench.gpu_session import AIMED, COMPILED, GRID, compiling
from sgp_fast.bench.sweep import Spec

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="the script wants coreutils")


def environment(folder: Path, work: str = "work") -> dict[str, str]:
    places = {"OUT": "out", "WORK": work, "BROUGHT": "brought", "TRITON_CACHE_DIR": "triton"}
    return os.environ | {name: str(folder / place) for name, place in places.items()} | {"PYTHON": sys.executable}


def session(folder: Path, *parts: str, work: str = "work") -> str:
    done = subprocess.run(
        ["sh", "bench/gpu_session.sh", "--dry-run", *parts], cwd=ROOT, env=environment(folder, work), capture_output=True,
        text=True, check=False,
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


def test_a_session_without_a_gpu_ends_before_its_first_part(tmp_path: Path) -> None:
    without = environment(tmp_path) | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["sh", "bench/gpu_session.sh"], cwd=ROOT, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == "" and "finds no CUDA device here" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_killed_session_ends_what_it_started(tmp_path: Path) -> None:
    endless = tmp_path / "python"
    endless.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/.pid && mv {tmp_path}/.pid {tmp_path}/pid\nexec sleep 300\n")
    endless.chmod(0o755)
    command = ["sh", "bench/gpu_session.sh", "--dry-run", "compile"]
    script = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path) | {"PYTHON": str(endless)}, text=True)
    appears(tmp_path / "pid")
    script.terminate()
    assert script.wait(20) == 130
    assert ends(int((tmp_path / "pid").read_text()), within=5)
    assert (tmp_path / "out" / "session.tar.gz").exists() and not (tmp_path / "work" / "compile.done").exists()


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Even where that is killed and can tell them nothing."""
    (tmp_path / "started.py").write_text(
        "import multiprocessing, os, pathlib, sys, time\n"
        "from sgp_fast.bench.compiling_ahead import _end_with_parent\n"
        "def work():\n"
        "    _end_with_parent()\n"
        "    path = pathlib.Path(sys.argv[1])\n"
        "    path.with_suffix('.part').write_text(str(os.getpid()))\n"
        "    path.with_suffix('.part').rename(path)\n"
        "    time.sleep(300)\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    worker.start()\n"
        "    worker.join()\n"
    )
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "started.py"), str(tmp_path / "pid")], env=here)
    appears(tmp_path / "pid")
    parent.kill()
    parent.wait()
    assert ends(int((tmp_path / "pid").read_text()), within=5)


def appears(path: Path, within: float = 60.0) -> None:
    until = time.monotonic() + within
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def ends(pid: int, within: float) -> bool:
    """Whether the process is gone in time; one that nobody has waited for counts as gone."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
        if not state.strip() or state.startswith("Z"):
            return True
        time.sleep(0.05)
    return False


def test_jobs_that_fail_are_told_apart_and_the_part_is_not_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(compiling_ahead, "MOST", {"tile": 1})
    assert compiling_ahead.compile_all([Spec(32, 4, iterations=1)], 120.0) == (0, 1)
    assert "0 of 1 jobs done by 1 processes, 1 failed, 0 left" in capsys.readouterr().out


@pytest.mark.parametrize(("counts", "exits"), [((0, 0), 0), ((3, 0), 3), ((0, 2), 1), ((3, 2), 1)])
def test_compile_is_done_where_no_job_is_left_and_none_failed(
    counts: tuple[int, int], exits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling_ahead, "compile_all", lambda *_: counts)
    assert compiling(1.0) == exits


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
