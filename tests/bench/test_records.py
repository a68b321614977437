"""Results are what the schema says, survive a round trip, and a file that is not theirs is told from one that is."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sgp_fast.bench import records
from sgp_fast.bench.records import SCHEMA_FILE, Writer, header, read, write
from sgp_fast.bench.rows import KINDS, ActRow, CeilingRow, ColdRow, KernelRow, PlanRow, ReturnRow, StageRow
from sgp_fast.kernels.tiling import Tile

RESULTS = SCHEMA_FILE.parent / "results"
PLAN = PlanRow(
    case="64 × 4×256", model="4×256", problems=64, horizon=8, iterations=50, precision="float32", device="cpu",
    rung="compiled", label="sgp_fast compiled", family="ours", timed=64, samples=(0.1500001, 0.25, 0.2), error=1e-7,
    limit=1e-3, cost=-7.5, flops=1e9,
)  # fmt: skip
ROWS = (
    PLAN,
    CeilingRow(what="copy", precision=None, device="cpu", value=2e10, unit="B/s"),
    ColdRow(case="1 × 4×256", device="cpu", rung="jax", label="JAX", imports=1.0, first=2.0, warm=0.1, parts={"made": 1.5}),
    ActRow(case="1 × 4×256", device="cpu", rung="auto", label="sgp_fast auto", problems=1, samples=(0.01,)),
    ReturnRow(
        task="hopper-medium", group="budget", planner="SGP", setting="15", backend="auto", precision="float32",
        device="cpu", seeds=(100, 101), steps=300, returns=(900.0, 910.5), normalized=(28.0, 28.2), milliseconds=1.2,
    ),
    StageRow(case="1 × 4×256", device="cpu", backend="eager", stage="rollout", seconds=0.01, launches=100.0),
    KernelRow(
        kernel="plan_kernel", network="SGP 4×256", dtype="bf16", arch=90, tile=Tile(64, 256, 32), warps=8, registers=255,
        stack=0, spills=0, shared=61440, tensor_memory=0, instructions={"HGMMA": 287}, resident=1, flops_us=3.0,
        bytes_us=12.0, compile_s=20.0,
    ),
)  # fmt: skip


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", header("run", minutes=1.0), ROWS)
    found = read(tmp_path / "rows.jsonl")
    assert found.rows[1:] == ROWS[1:]
    assert found.rows[0] == replace(PLAN, samples=(0.15, 0.25, 0.2))
    assert found.header["settings"] == {"minutes": 1.0}
    assert "torch" in found.where and found.header["date"] in found.where


def test_the_schema_has_the_fields_of_every_row() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())["$defs"]
    assert set(schema) == {"header", *KINDS}
    for kind, cls in KINDS.items():
        assert set(schema[kind]["properties"]) == {"kind", *(f.name for f in fields(cls))}, kind


def test_recorded_results_are_valid() -> None:
    for path in RESULTS.glob("*.jsonl"):
        assert read(path).rows, path


def test_a_median_is_of_all_samples_and_a_rare_quantile_of_fifty() -> None:
    assert PLAN.p50 == 0.2 and PLAN.plans_per_second == 64 / 0.2
    assert PLAN.quantile(0.99) is None
    many = replace(PLAN, samples=tuple(map(float, range(1, 102))))
    assert many.quantile(0.99) == 100.0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"kind": "header", "schema": 1}', "line 1: schema 1; this version reads 2"),
        ('{"kind": "ladder", "version": 1}', "line 1: expected a header first"),
        ("[]", "no object with a kind"),
        ("not json", "line 1: no JSON"),
        ("", "is empty"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=told):
        read(path)


@pytest.mark.parametrize("row", [ROWS[2], ROWS[3]])
def test_a_row_has_numbers_or_a_reason(tmp_path: Path, row: ColdRow | ActRow) -> None:
    bare = {"samples": ()} if isinstance(row, ActRow) else {"imports": None, "first": None, "warm": None, "parts": {}}
    path = tmp_path / "rows.jsonl"
    write(path, header("run"), [replace(row, **bare)])
    with pytest.raises(ValueError, match="line 2: .*reason"):
        read(path)
    write(path, header("run"), [replace(row, reason="no such device", **bare)])
    assert read(path).rows[0] == replace(row, reason="no such device", **bare)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"precision": "float8"}, "precision"),
        ({"problems": 0}, "problems"),
        ({"surplus": 1}, "surplus"),
        ({"samples": []}, "reason"),
        ({"samples": [0.0]}, "samples.0"),
    ],
)
def test_a_row_that_breaks_the_schema_is_named(tmp_path: Path, change: dict, told: str) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, header("run"), [PLAN])
    head, line = path.read_text().splitlines()
    path.write_text(head + "\n" + json.dumps(json.loads(line) | change) + "\n")
    with pytest.raises(ValueError, match=f"line 2: .*{told}"):
        read(path)


def test_a_missing_file_says_what_would_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="bench run --out"):
        read(tmp_path / "none.jsonl")


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    path, head = tmp_path / "rows.jsonl", header("run")
    writer = Writer(path, head)
    writer.add(PLAN)
    with path.open("a") as file:
        file.write('{"kind": "plan", "case": "cut of')
    with pytest.raises(ValueError, match="no JSON"):
        read(path)
    again = Writer(path, head, resume=True)
    assert [row.kind for row in again.done] == ["plan"]
    again.add(ROWS[1])
    assert [row.kind for row in read(path).rows] == ["plan", "ceiling"]


def test_a_rung_that_was_left_out_has_its_row_until_it_is_measured(tmp_path: Path) -> None:
    path, head = tmp_path / "rows.jsonl", header("run")
    skipped = replace(PLAN, samples=(), timed=0, reason="left out for time: about 90 s, and 3 were left")
    other = replace(skipped, rung="jax")
    writer = Writer(path, head)
    for row in (skipped, ROWS[1], other):
        writer.add(row)
    assert [row.kind for row in read(path).rows] == ["plan", "ceiling", "plan"]
    again = Writer(path, head, resume=True)
    again.add(PLAN)
    assert again.rows == [ROWS[1], other, PLAN]
    assert [row.kind for row in read(path).rows] == ["ceiling", "plan", "plan"] and read(path).header == head
    again.add(replace(PLAN, reason="failed in a timed round"))  # what was measured stays
    assert len(read(path).rows) == 4


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Writer(path, header("run"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="--resume"):
        Writer(path, header("run"))
    with pytest.raises(ValueError, match="another command"):
        Writer(path, header("quality"), resume=True)
    assert path.read_bytes() == before


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, header("run"), [replace(PLAN, cost=float("nan"))])
    (row,) = records.read(path).rows
    assert isinstance(row, PlanRow) and row.cost is None
