"""A run measures what fits, says what does not, and goes on with a file where it left off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sgp_fast.bench import acting, ladder, records, sweep, tables
from sgp_fast.bench.cases import Case
from sgp_fast.bench.rows import CeilingRow, PlanRow
from sgp_fast.bench.run import Run, Settings
from sgp_fast.bench.sweep import Spec

from . import synthetic

CPU = torch.device("cpu")
RUNGS = ("eager", "jax")


@pytest.fixture
def case() -> Case:
    return Spec(16, 2, iterations=2).make()


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rung takes a tenth of a second where it fits, and nothing is planned."""

    def measure(case: Case, names, *, expected, left, **_) -> Iterator[PlanRow]:  # noqa: ANN001, ANN003
        for name in names:
            row = ladder.left_out(case, name, f"about {expected[name]:,.0f} s", left())
            yield row if expected[name] > left() else replace(row, samples=(0.1,), timed=len(case.x0), reason=None)

    monkeypatch.setattr(ladder, "measure", measure)


def begin(path: Path, *, resume: bool = False) -> Run:
    return Run("run", Settings(minutes=1.0, device=CPU, rungs=RUNGS), path, resume=resume)


def test_what_does_not_fit_is_left_out_and_measured_later(tmp_path: Path, case: Case, monkeypatch) -> None:  # noqa: ANN001
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sweep, "estimates", lambda *_: {"eager": 1.0, "jax": 1e4})
    first = begin(path)
    first.case(case, RUNGS)
    assert first.dropped
    found = {row.rung: row for row in records.read(path).of(PlanRow)}  # held to the schema
    assert found["eager"].p50 == 0.1 and not found["jax"].samples
    assert (found["jax"].reason or "").startswith("left out for time: about 10,000 s, and only ")
    told = tables.text(first.log.rows)
    assert not [line for line in told.splitlines() if line.startswith("jax")]
    assert f"left out for time\n  {case.name}: jax about 10,000 s, and only " in told

    monkeypatch.setattr(sweep, "estimates", lambda case, names, *_: dict.fromkeys(names, 1.0))
    second = begin(path, resume=True)
    second.case(case, RUNGS)
    assert not second.dropped
    rows = records.read(path).of(PlanRow)
    assert [(row.rung, row.p50) for row in rows] == [("eager", 0.1), ("jax", 0.1)]


def test_costs_of_columns_that_do_not_compare_are_told_so() -> None:
    """Other numbers of problems are other problems, whose costs differ."""
    def text(*problems: int) -> str:
        rows = [row for count in problems for row in synthetic.plans(256, count, "float32") if isinstance(row, PlanRow)]
        return tables.text(rows)

    note = "a mean over a case's first 16 problems at most: of other problems in another column"
    assert "cost of auto" in text(64) and note not in text(64) and note in text(1, 64)


def test_ratios_of_disturbed_times_are_told_so() -> None:
    rows = [row for row in synthetic.plans(256, 64, "float32") if isinstance(row, PlanRow)]
    disturbed = [replace(row, samples=(0.7, 0.7, 20.0, 20.0)) if row.rung == "jax" else row for row in rows]
    told = "  times spread at 64 × 4×256: jax from 700 ms to 20.0 s: something else ran on this machine;"
    lines = tables.text(disturbed).splitlines()
    assert sum(line.startswith(told) for line in lines) == 1 and "times spread" not in tables.text(rows)
    assert lines.index(next(line for line in lines if line.startswith(told))) < next(
        i for i, line in enumerate(lines) if line.startswith("cost of auto")
    )


def test_a_case_that_was_left_out_whole_is_a_line_and_no_column(tmp_path: Path, case: Case, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(sweep, "estimates", lambda *_: dict.fromkeys(RUNGS, 1e4))
    run = begin(tmp_path / "rows.jsonl")
    run.case(case, RUNGS)
    assert [row.rung for row in run.log.of(PlanRow)] == list(RUNGS)
    told = tables.text(run.log.rows)
    assert "median ms" not in told and "cases of which nothing was measured" in told
    assert told.endswith(f"\n  {case.name}")


def test_a_case_without_a_time_has_no_column() -> None:
    """Its rungs cannot run here, or are wrong; a line for each reason says so."""
    rows = [row for row in synthetic.plans(256, 64, "float32") if isinstance(row, PlanRow) and row.reason]
    told = tables.text(rows)
    assert "median ms" not in told
    assert told == "without a time\n  cuda graph, fused:tile: there is no GPU here"


def test_steps_of_a_controller_are_measured_where_they_fit(tmp_path: Path, case: Case, monkeypatch) -> None:  # noqa: ANN001
    """By rungs whose plan has a time at that case."""
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(acting, "measure", lambda case, names, budget: asked.extend((name, budget) for name in names) or ())
    run = Run("run", Settings(minutes=1.0, device=CPU, rungs=("eager", "compiled", "auto")), tmp_path / "rows.jsonl")
    for name, seconds in (("eager", 20.0), ("auto", 0.1)):
        row = ladder.left_out(case, name, "", 0)
        run.log.add(replace(row, samples=(seconds,), reason=None))
    run.acts([Spec(16, 2, iterations=2)])
    assert asked == [("auto", 1.5)]


def test_the_ceilings_of_the_run_are_what_estimates_are_made_with(tmp_path: Path, case: Case, monkeypatch) -> None:  # noqa: ANN001
    seen = []

    def estimates(case: Case, names, known, share, tops):  # noqa: ANN001, ANN202
        seen.extend(tops)
        return dict.fromkeys(names, 1.0)

    monkeypatch.setattr(sweep, "estimates", estimates)
    run = begin(tmp_path / "rows.jsonl")
    top = CeilingRow(what="matrix product", precision="float32", device="cpu", value=1e11, unit="FLOP/s")
    run.log.add(top)
    run.case(case, RUNGS)
    assert seen == [top]
