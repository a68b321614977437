"""The profile: every stage is there, times add up to the plan, the trace names the stages, and plans stay what they were."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.backends import eager, stages
from sgp_fast.bench import profiling, records, traces, work
from sgp_fast.bench.cases import Case, make_case
from sgp_fast.bench.rows import CeilingRow, StageRow
from sgp_fast.kernels import cpu
from sgp_fast.kernels.cpu.pack import STAGES as ENGINE_STAGES
from sgp_fast.solving import job_of

CEILINGS = [
    CeilingRow(what="matrix product", precision="float32", device="cpu", value=1e11, unit="FLOP/s"),
    CeilingRow(what="copy", precision=None, device="cpu", value=1e10, unit="B/s"),
]
NATIVE = pytest.param("compiled", marks=pytest.mark.skipif(cpu.why_unavailable() is not None, reason="no compiler"))
BACKENDS = ["eager", NATIVE, "fused:layered", pytest.param("fused:tile", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products are so small that threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(backend: str = "eager") -> Case:
    if backend.startswith("fused"):  # interpreted, which takes its time
        return make_case(16, 1, hidden_layers=2, horizon=1, iterations=1)
    return make_case(16, 5, hidden_layers=2, horizon=3, iterations=4)


def solved(case: Case, backend: str) -> sgp.Plan:
    return sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=backend)


@pytest.mark.parametrize("backend", ["eager", NATIVE])
def test_every_stage_has_its_row_and_they_add_up_to_the_plan(backend: str, tmp_path: Path) -> None:
    case = small()
    rows = profiling.profile(case, backend, tmp_path / "trace.json.gz", CEILINGS)
    assert [row.stage for row in rows] == [*stages.STAGES, "gaps"]
    assert all(row.seconds > 0 and row.backend == backend and row.case == case.name for row in rows)
    by_name = {row.stage: row for row in rows}
    for name in ("rollout", "cost", "score", "adjoint", "update"):
        row = by_name[name]
        assert row.floor == max((row.flops or 0) / 1e11, (row.bytes or 0) / 1e10)
    launches = [by_name[name].launches for name in ("rollout", "adjoint", "gaps")]
    assert all((n or 0) > 0 for n in launches) if backend == "eager" else launches[:2] == [0, 0] and (launches[2] or 0) > 0
    text = profiling.table(rows)
    assert all(name in text for name in (*stages.STAGES, "gaps", "100.0%", case.name))
    shares = [float(line.split("%")[0].split()[-1]) for line in text.splitlines() if "%" in line]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.5)


def test_the_trace_is_chrome_json_with_ranges_named_after_the_stages(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    case = small()
    events = traces.record(lambda: solved(case, "eager"), case.device, path)
    with gzip.open(path) as file:
        assert json.load(file)["traceEvents"] == events
    names = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert {f"sgp: {name}" for name in (*stages.STAGES, "plan")} <= names
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json.gz"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_plans_are_the_same_watched_or_not(backend: str) -> None:
    case = small(backend)
    before = solved(case, backend)
    with stages.watching() as watch:
        timed = solved(case, backend)
    with stages.watching(ranges=True), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        shown = solved(case, backend)
    whole = backend == "fused:tile"
    assert set(watch.seconds) == ({stages.WHOLE, "last pass"} if whole else set(stages.STAGES))
    for other in (timed, shown):
        for name, tensor in before.tensors().items():
            assert torch.equal(tensor, other.tensors()[name]), name


def test_nothing_is_entered_while_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a range was entered")

    monkeypatch.setattr(stages, "_range", refuse)
    monkeypatch.setattr(stages.Watch, "stage", refuse)
    solved(small(), "eager")
    assert stages.watched() is None
    with pytest.raises(AssertionError, match="was entered"), stages.watching(ranges=True):
        solved(small(), "eager")
    assert stages.watched() is None


def test_code_that_is_compiled_holds_no_stages() -> None:
    """One graph without breaks, and the same one whether someone watches or not."""
    case = small()
    job = job_of(case.problem, case.planner, case.x0)
    at, _, search = eager.start(job)
    compiled = torch.compile(eager.evaluate, backend="eager", fullgraph=True)
    beta = torch.tensor(0.1)
    with torch.no_grad():
        first = compiled(case.problem, at, search.v, 0, beta)
        with stages.watching(ranges=True) as watch, torch.compiler.set_stance("fail_on_recompile"):
            again = compiled(case.problem, at, search.v, 0, beta)
    assert not watch.seconds and torch.equal(first.grad_u, again.grad_u)


def test_a_stage_within_another_counts_for_the_outer_one() -> None:
    with stages.watching() as watch:
        with stages.stage("last pass"), stages.stage("rollout"):
            pass
        with pytest.raises(KeyError), stages.stage("cost"):
            raise KeyError
        with stages.stage("cost"):
            pass
    assert set(watch.seconds) == {"last pass", "cost"}


def test_the_engine_tells_the_stages_that_there_are() -> None:
    assert ENGINE_STAGES == stages.STAGES


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: int) -> traces.Event:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": tid, "args": args}


def test_kernels_belong_to_the_stage_that_launched_them() -> None:
    """Whenever they ran, from whatever thread, by either interface; inner ranges and the host's operators do not count."""
    events = [
        event("user_annotation", "sgp: rollout", 10, 10), event("user_annotation", "sgp: last pass", 30, 20),
        event("user_annotation", "sgp: cost", 32, 5), event("gpu_user_annotation", "sgp: rollout", 100, 50),
        event("cuda_runtime", "cudaLaunchKernel", 12, 1, correlation=1), event("kernel", "gemm", 100, 4, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 13, 1, 2, correlation=2), event("kernel", "triton", 110, 6, correlation=2),
        event("cuda_runtime", "cudaMemcpyAsync", 33, 1, correlation=3), event("gpu_memcpy", "copy", 120, 8, correlation=3),
        event("cuda_runtime", "cudaLaunchKernel", 25, 1, correlation=4), event("kernel", "between", 130, 2, correlation=4),
        event("kernel", "unseen", 140, 1, correlation=5), event("cpu_op", "aten::mm", 11, 3),
        {"ph": "M", "name": "process_name", "pid": 1},
    ]  # fmt: skip
    found = traces.by_stage(events)
    assert {name: (at.launches, round(1e6 * at.seconds)) for name, at in found.items()} == {
        "rollout": (2, 10), "last pass": (1, 8), None: (2, 3),
    }  # fmt: skip


def test_operators_count_once_where_no_gpu_works() -> None:
    events = [
        event("user_annotation", "sgp: cost", 10, 10), event("user_annotation", "sgp: native engine", 50, 9),
        event("cpu_op", "aten::linear", 11, 5), event("cpu_op", "aten::mm", 12, 3), event("cpu_op", "aten::add", 17, 1),
        event("cpu_op", "aten::cat", 40, 2),
    ]  # fmt: skip
    assert {name: at.launches for name, at in traces.by_stage(events).items()} == {"cost": 2, None: 2}


def test_what_stages_need() -> None:
    """Counted by hand for two hidden layers; and what is no network of ours is not guessed."""
    case = make_case(16, 5, hidden_layers=2, horizon=3)
    needs = work.of_stages(case)
    weights = {"dynamics": 23 * 16 + 16 * 16 + 16 * 17, "cost": 23 * 16 + 16 * 16 + 16, "score": 23 * 16 + 16 * 16 + 16 * 23}
    assert needs["rollout"] == needs["adjoint"] == (2 * 5 * 2 * weights["dynamics"], 2 * 4 * weights["dynamics"])
    assert needs["cost"] == (2 * 3 * 5 * 2 * weights["cost"], 2 * 4 * weights["cost"])
    assert needs["score"] == (3 * 5 * 2 * weights["score"], 4 * weights["score"])
    half = work.of_stages(case.in_precision("bfloat16"))
    assert half["score"] == (needs["score"][0], 2 * weights["score"])
    problem = sgp.Problem(dynamics=lambda x, u: x + u.sum(-1, keepdim=True), cost=case.problem.cost, nu=6)
    own = work.of_stages(replace(case, problem=problem))
    assert own["rollout"] == own[stages.WHOLE] == (None, None) and own["cost"] == needs["cost"] and "score" not in own


def test_the_command_prints_the_table_and_writes_what_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profiling.ceilings_of_run, "measure", lambda device, precisions: CEILINGS)
    trace, out = tmp_path / "a.json.gz", tmp_path / "rows.jsonl"
    options = {"width": 16, "problems": 3, "horizon": 2, "iterations": 3, "backend": "eager", "device": "cpu"}
    profiling.profile_command(**options, trace=trace, out=out)
    told = capsys.readouterr().out
    assert "rollout" in told and str(trace) in told and trace.is_file()
    rows = records.read(out).of(StageRow)
    assert [row.stage for row in rows] == [*stages.STAGES, "gaps"] and rows[0].case == "3 × 4×16, T=2, 3 iterations"
    before = out.read_bytes()
    with pytest.raises(ValueError, match="exists; give another --out"):
        profiling.profile_command(**options, trace=trace, out=out)
    with pytest.raises(ValueError, match=r"ends in \.json\.gz"):
        profiling.profile_command(**options, trace=tmp_path / "trace.txt")
    assert out.read_bytes() == before
    monkeypatch.chdir(tmp_path)
    profiling.profile_command(**options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json.gz", "rows.jsonl"]
