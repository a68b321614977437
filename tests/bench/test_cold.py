"""Cold costs: what the first plan took, in parts where the backend tells them, and when it is paid back."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from sgp_fast.bench import cold, ladder, tables
from sgp_fast.bench.cases import make_case
from sgp_fast.bench.rows import ColdRow
from sgp_fast.kernels.cpu import why_unavailable

PLAIN = ColdRow(case="1 × 4×256", device="cpu", rung="eager", label="eager", imports=2.0, first=0.4, warm=0.3)


OURS = {"made", "build", "tune"}


@pytest.mark.parametrize(("rung", "parts"), [("adjoint", {"made"}), ("eager", {"made"}), ("auto", OURS), ("compiled", OURS)])
def test_the_first_plan_is_told_in_parts(rung: str, parts: set[str]) -> None:
    if "build" in parts and (why := why_unavailable()) is not None:
        pytest.skip(why)
    case = make_case(32, 3, hidden_layers=2, horizon=4, iterations=3)
    found = cold.took(ladder.named(rung), case)
    first, told = found["first"], found["parts"]
    assert isinstance(first, float) and isinstance(told, dict) and set(told) == parts
    assert found["warm"] > 0 and min(told.values()) >= 0  # pyright: ignore[reportOperatorIssue]
    # A library that this process built earlier keeps its seconds; all else happened in this first plan.
    assert sum(seconds for name, seconds in told.items() if name != "build") <= first


def test_graphs_tell_what_their_captures_took() -> None:
    assert cold._parts({"tune_seconds": 0.5, "graphs": {"seconds": 2.0, "hits": 3}}) == {"tune": 0.5, "capture": 2.0}
    assert cold._parts({"compile_seconds": 14.0}) == {"build": 14.0}
    assert cold._parts({}) == {}


def test_what_is_quicker_is_paid_back_by_and_by() -> None:
    quick = replace(PLAIN, rung="compiled", first=15.4, warm=0.05)
    assert cold.pays(quick, PLAIN) == 61  # 15 s more at first, and a quarter of a second less for each plan after it
    assert cold.pays(replace(quick, warm=0.3), PLAIN) is None
    assert cold.pays(replace(quick, first=0.1), PLAIN) == 1
    assert cold.pays(replace(quick, imports=None, first=None, warm=None, reason="took more than 600 s"), PLAIN) is None


def test_what_would_end_too_late_is_left_for_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lefts: list[float] = []

    def child(text: str, name: str, device: str, left: float) -> dict[str, object] | None:
        lefts.append(left)
        return None if name == "compile" else {"imports": 1.0, "first": 2.0, "warm": 0.1}

    monkeypatch.setattr(cold, "_child", child)
    rows = list(cold.measure("2x32", ["adjoint", "compile", "auto"], "cpu", until=time.monotonic() + 100))
    assert [row.rung for row in rows] == ["eager", "adjoint"] and all(90 < left <= 100 for left in lefts)


def test_a_child_without_time_is_no_row() -> None:
    assert cold._child("2x32", "eager", "cpu", -1.0) is None


def test_the_table_has_the_parts() -> None:
    row = replace(PLAIN, rung="auto", first=15.0, parts={"made": 0.001, "build": 14.0, "tune": 0.25}, pays=61)
    assert "paid back after 61 plans  (build 14.00, tune 0.25)" in tables.text([row])
