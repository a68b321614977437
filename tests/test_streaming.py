"""Files of start states in, files of plans out: the same plans however they are cut, killed, packed or read."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import sgp_fast as sgp
from sgp_fast._start_files import open_starts
from sgp_fast.streaming import Parts, plan_file
from tests.controllers import problem

NX, NU, T = 11, 3, 4
PLANNER = sgp.SGP(horizon=T, iterations=3, tolerance=0.0)
ROOT = Path(__file__).parents[1]


def states(count: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, NX)).astype(dtype)


def write(path: Path, x0: np.ndarray, kind: str) -> Path:
    """The start states in one of the ways that people keep them."""
    path = path / {"npy": "x.npy", "npz": "x.npz", "parquet": "x.parquet"}[kind.partition(" ")[0]]
    match kind:
        case "npy":
            np.save(path, x0)
        case "npy columns first":
            np.save(path, np.asfortranarray(x0))
        case "npz":
            np.savez(path, x0)
        case "npz compressed":
            np.savez_compressed(path, x0=x0, other=np.zeros(3))
        case "npz columns first":
            np.savez_compressed(path, x0=np.asfortranarray(x0))
        case "parquet columns":
            table = pa.table({f"x{i}": column for i, column in enumerate(x0.T)})
            pq.write_table(table, path, row_group_size=7)
        case "parquet lists":
            pq.write_table(pa.table({"id": np.arange(len(x0)), "x0": list(x0)}), path, row_group_size=10**6)
        case "parquet fixed lists":
            pq.write_table(pa.table({"state": pa.FixedSizeListArray.from_arrays(x0.ravel(), NX)}), path, row_group_size=5)
    return path


KINDS = [
    "npy", "npy columns first", "npz", "npz compressed", "npz columns first",
    "parquet columns", "parquet lists", "parquet fixed lists",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read_from_any_row_on(kind: str, tmp_path: Path) -> None:
    x0 = states(23)
    file = open_starts(write(tmp_path, x0, kind))
    assert (file.count, file.nx) == (23, NX)
    for first, size in ((0, 4), (0, 100), (3, 5), (14, 7), (22, 1)):
        blocks = list(file.blocks(first, size))
        assert np.array_equal(np.concatenate(blocks), x0[first:])
        assert all(len(block) == size for block in blocks[:-1])


@pytest.mark.parametrize("kind", ["npy", "npz compressed", "parquet columns"])
@pytest.mark.parametrize("planner", [PLANNER, dataclasses.replace(PLANNER, starts=3)], ids=["one start", "three"])
def test_plans_are_those_of_solve_however_they_are_cut(kind: str, planner: sgp.SGP, tmp_path: Path) -> None:
    x0 = states(23)
    starts = write(tmp_path, x0, kind)
    want = sgp.solve(problem(), planner, x0, seed=5)
    for chunk in (1, 7, 23, 1000):
        out = tmp_path / f"plans-{chunk}.npz"
        done = plan_file(problem(), planner, starts, out, chunk=chunk, seed=5, states=True)
        assert (done.count, done.resumed, done.limit) == (23, 0, 23)
        with np.load(out) as got:
            assert np.allclose(got["u"], want.u, atol=2e-5) and np.allclose(got["x"], want.x, atol=2e-5)
            assert np.allclose(got["cost"], want.cost, atol=2e-5)
            assert np.allclose(got["penalty"], want.terms["penalty"], rtol=1e-3)
            assert got["status"].tolist() == want.status.tolist() and got["index"].tolist() == list(range(23))
            assert json.loads(str(got["meta"]))["planner"]["horizon"] == T
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [], "no parts are left"


def test_parquet_and_npz_hold_the_same(tmp_path: Path) -> None:
    starts = write(tmp_path, states(23), "npy")
    for name in ("a.npz", "a.parquet"):
        plan_file(problem(), PLANNER, starts, tmp_path / name, chunk=5, states=True)
    table = pq.read_table(tmp_path / "a.parquet")
    with np.load(tmp_path / "a.npz") as npz:
        assert set(table.column_names) == set(npz.files) - {"meta"} == {"index", "u", "cost", "penalty", "status", "x"}
        for name in table.column_names:
            assert np.array_equal(np.array(table[name].to_pylist(), npz[name].dtype), npz[name])
        assert json.loads(table.schema.metadata[b"meta"]) == json.loads(str(npz["meta"]))
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 5


SCRIPT = """
import sys
from pathlib import Path
import torch
import sgp_fast as sgp
from sgp_fast.streaming import plan_file
from tests.controllers import problem
torch.set_num_threads(1)
planner = sgp.SGP(horizon=4, iterations=3, tolerance=0.0)
plan_file(problem(), planner, Path(sys.argv[1]), Path(sys.argv[2]), chunk=8)
"""


def planning(starts: Path, out: Path, script: str = SCRIPT) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script, str(starts), str(out)], cwd=ROOT, env=environment)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the midst of it; then the same command: finished chunks are not planned again, and nothing differs."""
    count = 6_000
    starts = write(tmp_path, states(count), "npz compressed")
    out, whole = tmp_path / "plans.npz", tmp_path / "whole.npz"
    parts = tmp_path / ".plans.npz.parts"
    process = planning(starts, out)
    try:
        deadline = time.monotonic() + 60
        while len(list(parts.glob("[0-9]*.npz"))) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    finished = np.concatenate([np.load(path)["u"] for path in sorted(parts.glob("[0-9]*.npz"))])
    assert 5 * 8 <= len(finished) < count
    (parts / ".joined-0.part.npz").write_bytes(b"what a kill while joining leaves")

    done = plan_file(problem(), PLANNER, starts, out, chunk=999)
    assert done.resumed == len(finished) and done.count == count and not parts.exists()
    plan_file(problem(), PLANNER, starts, whole, chunk=1024)
    with np.load(out) as a, np.load(whole) as b:
        for name in ("index", "u", "cost", "status", "penalty"):
            assert np.allclose(a[name], b[name], rtol=1e-4, atol=2e-5), name
        assert np.array_equal(a["u"][: len(finished)], finished)
        assert a["u"].shape == (count, T, NU) and np.array_equal(a["index"], np.arange(count))


def test_a_finished_run_is_not_done_again_and_another_is_not_overwritten(tmp_path: Path) -> None:
    starts = write(tmp_path, states(9), "npy")
    for out in (tmp_path / "plans.npz", tmp_path / "plans.parquet"):
        plan_file(problem(), PLANNER, starts, out, chunk=4)
        before = out.stat()
        done = plan_file(problem(), PLANNER, starts, out, chunk=2)
        assert (done.resumed, done.limit) == (9, 9) and out.stat().st_mtime_ns == before.st_mtime_ns
        for key, value, was in (("beta", 3.0, r"\[0.2, 0.1\]"), ("starts", 2, 1)):
            with pytest.raises(FileExistsError, match=rf"another run \({key} is {value} but was {was}\)"):
                plan_file(problem(), dataclasses.replace(PLANNER, **{key: value}), starts, out)
        with pytest.raises(FileExistsError, match=r"another run \(bounds is \[-0.5, 0.5\] but was .*\)"):
            plan_file(problem(bounds=(-0.5, 0.5)), PLANNER, starts, out)
        with pytest.raises(FileExistsError, match=r"another run \(seed is 1 but was 0\)"):
            plan_file(problem(), PLANNER, starts, out, seed=1)
        plan_file(problem(), PLANNER, starts, out, seed=1, resume=False)
        assert plan_file(problem(), PLANNER, starts, out, seed=1).resumed == 9
        out.write_bytes(out.read_bytes()[:-100])
        with pytest.raises(FileExistsError, match=r"cannot be read \(.*\); truncated\? give another name, or resume=False"):
            plan_file(problem(), PLANNER, starts, out, seed=1)
    np.savez(tmp_path / "mine.npz", u=np.zeros(3))
    pq.write_table(pa.table({"u": [0.0]}), tmp_path / "mine.parquet")
    for out in (tmp_path / "mine.npz", tmp_path / "mine.parquet"):
        with pytest.raises(FileExistsError, match="is no file of plans; give another name"):
            plan_file(problem(), PLANNER, starts, out)


def test_a_chunk_that_cannot_be_read_is_planned_again(tmp_path: Path) -> None:
    starts, out = write(tmp_path, states(9), "npy"), tmp_path / "plans.npz"
    parts = Parts(tmp_path / ".plans.npz.parts", 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "remove", lambda _: None)
        plan_file(problem(), PLANNER, starts, out, chunk=3)
    with np.load(out) as archive:
        whole = archive["u"]
    out.unlink()
    second = parts.folder / f"{3:015d}-3.npz"
    second.write_bytes(second.read_bytes()[:-100])
    assert plan_file(problem(), PLANNER, starts, out, chunk=3).resumed == 3
    with np.load(out) as archive:
        assert np.array_equal(archive["u"], whole)


def test_files_are_planned_with_sgp(tmp_path: Path) -> None:
    planner: Any = sgp.CEM(T)
    with pytest.raises(TypeError, match="planner is a CEM; files of starts are planned with SGP"):
        plan_file(problem(), planner, write(tmp_path, states(9), "npy"), tmp_path / "plans.npz")


def test_weights_that_changed_are_another_run(tmp_path: Path) -> None:
    starts = write(tmp_path, states(9), "npy")
    task = problem()
    plan_file(task, PLANNER, starts, tmp_path / "plans.npz")
    with torch.no_grad():
        next(task.dynamics.parameters()).add_(1e-3)
    with pytest.raises(FileExistsError, match=r"another run \(fingerprint of the models is '.*' but was '.*'\)"):
        plan_file(task, PLANNER, starts, tmp_path / "plans.npz")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """The peak of a process that plans 20,000 start states is that of one that plans 1,000, in KiB.

    Plans of the former, states included, are over 5 MB, so that holding them would show.
    """
    script = SCRIPT.replace("chunk=8", "chunk=500, states=True") + (
        "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (1_000, 20_000):
        starts, out = tmp_path / f"{count}.npy", tmp_path / f"{count}.npz"
        np.save(starts, states(count))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(starts), str(out)]
        peaks.append(int(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 4_000, peaks


def test_misuse_is_told_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x0 = states(9)
    good = write(tmp_path, x0, "npy")
    x0[7, 2] = np.nan

    def fails(match: str, starts: Path, out: str = "plans.npz", task: sgp.Problem | None = None) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            plan_file(task or problem(), PLANNER, starts, tmp_path / out)
        assert not list(tmp_path.glob(".*")) and not (tmp_path / "plans.npz").exists()

    fails("row 7 has a value that is not finite", write(tmp_path, x0, "npz"))
    fails("row 7 has a value that is not finite", write(tmp_path, x0, "parquet columns"))
    fails("does not exist", tmp_path / "no.npy")
    fails("suffix is '.csv'", tmp_path / "no.csv")
    fails("suffix is '.txt'", good, "plans.txt")
    fails("row a problem", good, task=problem(bounds=(-torch.ones(9, NU), torch.ones(9, NU))))
    np.save(tmp_path / "flat.npy", np.zeros(9))
    fails(r"flat.npy is float64\[9\]", tmp_path / "flat.npy")
    np.savez(tmp_path / "two.npz", a=x0, b=x0)
    fails("holds a, b; expected the start states under the key x0", tmp_path / "two.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK not really")
    fails("not a readable .npz", tmp_path / "bad.npz")
    (tmp_path / "short.npy").write_bytes(good.read_bytes()[:-8])
    fails("truncated", tmp_path / "short.npy")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    fails("not a readable .parquet", tmp_path / "bad.parquet")
    pq.write_table(pa.table({"a": [1.0], "name": ["x"]}), tmp_path / "text.parquet")
    fails("column name is no number", tmp_path / "text.parquet")
    pq.write_table(pa.table({"x0": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match="row 1 has 1 features; the first row has 2"):
        list(open_starts(tmp_path / "ragged.parquet").blocks())
    pq.write_table(pa.table({"a": [1.0, None], "b": [1.0, 2.0]}), tmp_path / "null.parquet")
    with pytest.raises(ValueError, match="column a has an empty value"):
        list(open_starts(tmp_path / "null.parquet").blocks())
    np.save(tmp_path / "wide.npy", np.zeros((3, 5)))
    fails("wide.npy holds states of nx=5 features; the dynamics have nx=11", tmp_path / "wide.npy")
    for match, planner, backend, seed in (
        ("levels", dataclasses.replace(PLANNER, levels=99), "auto", 0),
        ("backend is 'warp'", PLANNER, "warp", 0),
        ("seed is -1; expected 0 or more", PLANNER, "auto", -1),
    ):
        with pytest.raises(ValueError, match=match):
            plan_file(problem(), planner, good, tmp_path / "plans.npz", progress=True, backend=backend, seed=seed)
        assert not list(tmp_path.glob(".*")) and not capsys.readouterr().err
    (tmp_path / "text.npy").write_text("1, 2, 3")
    fails("write it with numpy.save", tmp_path / "text.npy")


def test_parts_without_a_finished_row_stand_in_no_ones_way(tmp_path: Path) -> None:
    starts, out = write(tmp_path, states(9), "npy"), tmp_path / "plans.npz"
    parts = Parts(tmp_path / ".plans.npz.parts", 9)
    assert parts.begin({"run": "that was killed before its first chunk"}) == 0
    assert plan_file(problem(), PLANNER, starts, out).resumed == 0
    assert parts.begin({"run": "another"}) == 0
    parts.add(0, {"index": np.arange(4)})
    out.unlink()
    with pytest.raises(FileExistsError, match="unfinished plans of another run"):
        plan_file(problem(), PLANNER, starts, out)
