"""A plan is saved whole or not at all, comes back as it was, and its rows can be taken apart and put together."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

import sgp_fast as sgp
from sgp_fast import _files
from sgp_fast.plan import Plan
from sgp_fast.sampling import Planner
from tests import cases
from tests.cases import planner


def make(**options) -> Plan:
    case = cases.case("learned", "learned", "value", score_=cases.score(), control_change=0.1)
    return sgp.solve(case.problem, planner(iterations=3, **options), case.x0, seed=1)


def same(a: Plan, b: Plan) -> None:
    one, two = a.tensors(), b.tensors()
    assert one.keys() == two.keys()
    assert all(t.dtype == two[n].dtype and torch.equal(t.nan_to_num(7), two[n].nan_to_num(7)) for n, t in one.items())


@pytest.mark.parametrize("options", [{}, {"record_cost": True, "keep_moments": True}, {"precision": "float32"}])
def test_save_and_load(tmp_path: Path, options: dict) -> None:
    plan = make(**options)
    plan.save(tmp_path / "new" / "plan.safetensors")
    loaded = Plan.load(tmp_path / "new" / "plan.safetensors")
    same(plan, loaded)
    assert loaded.stats == plan.stats and (loaded.moments is None) == (plan.moments is None) and len(loaded) == len(plan)
    names = set(plan.tensors())
    assert {"u", "x", "costate", "cost", "terms.running", "terms.penalty", "status", "score_norm"} <= names
    assert ("history" in names) == ("moments.2" in names) == ("record_cost" in options)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "plan.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"plan\.safetensors is not a readable.*make it again"):
        Plan.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; expected a plan file"):
        Plan.load(tmp_path / "none.safetensors")
    golden = Path(__file__).parent / "golden" / "ss_quad.safetensors"
    with pytest.raises(ValueError, match="expected a plan file"):
        Plan.load(golden)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.safetensors"
    old = make()
    old.save(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        make(start_spread=1.0).save(path)
    monkeypatch.undo()
    same(Plan.load(path), old)
    assert os.listdir(tmp_path) == ["plan.safetensors"]


def test_rows_apart_and_together() -> None:
    plan = make(record_cost=True, keep_moments=True)
    last, mask = plan.select(torch.tensor([3])), torch.tensor([True, True, True, False])
    same(Plan.concatenate([plan.select(mask), last], plan.stats), plan)
    assert torch.equal(last.x[0], plan.x[3]) and last.moments is not None and last.history is not None


def test_ranking_never_prefers_the_diverged() -> None:
    plan = make()
    assert torch.equal(plan.ranking, plan.cost + plan.terms["penalty"])
    plan.status[1] = sgp.Status.DIVERGED
    plan.cost[2] = torch.nan
    assert plan.ranking[1:3].isinf().all() and plan.ranking[[0, 3]].isfinite().all()


def test_a_plan_prints_in_a_line() -> None:
    case = cases.case("learned", "learned", score_=cases.score())
    text = repr(sgp.solve(case.problem, planner(iterations=1), case.x0))
    assert f"; {len(case.x0)} limit, 0 converged, 0 diverged; mean cost" in text and "\n" not in text
    assert "no score" not in text


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("settings", [planner(precision="float32"), sgp.MPPI(cases.T, 1, 8, spread=0.1)])
def test_a_plan_tells_of_what_account_the_score_was(settings: Planner, backend: str) -> None:
    """A problem without one is an ordinary use, and SGP's β is not 0 of itself: no error, but no secret either."""
    def of(score: cases.Kind | None, beta: float) -> Plan:
        case = cases.case("learned", "learned", score_=score)
        return sgp.solve(case.problem, dataclasses.replace(settings, beta=beta), case.x0, backend=backend)

    assert of(cases.score(), 0.3).stats["score"] == "weighted by beta"
    assert of(cases.score(), 0.0).stats["score"] == "measured only: beta is 0"
    without = of(None, 0.3 if isinstance(settings, sgp.SGP) else 0.0)
    assert without.stats["score"] == "absent: beta has no effect" and set(without.stats["beta"]) == {0.0}
    assert repr(without).endswith(f", no score; {without.stats['backend']})")
