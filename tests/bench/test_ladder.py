"""Correctness gates speed: what is wrong has no time, what cannot run has a reason, the rest has its circumstances."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.bench import clock, gate, ladder, resources, tables
from sgp_fast.bench.cases import Case, make_case
from sgp_fast.bench.rung import Rung, Unavailable


@pytest.fixture
def case() -> Case:
    return make_case(32, 3, hidden_layers=2, horizon=4, iterations=4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "PAUSE", 0.0)


def rung(name: str, plan, **options) -> Rung:  # noqa: ANN001, ANN003
    return Rung(name, name, "baseline", plan, **options)


def with_rungs(monkeypatch: pytest.MonkeyPatch, *rungs: Rung) -> None:
    monkeypatch.setattr(ladder, "RUNGS", {rung.name: rung for rung in rungs})


def exact(case: Case):  # noqa: ANN201
    return lambda: sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend="eager").u


def test_a_right_rung_has_times_cost_and_circumstances(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with_rungs(monkeypatch, rung("right", exact))
    (row,) = ladder.measure(case, share=0.01)
    assert row.reason is None and len(row.samples) >= 2 and row.timed == row.problems == 3
    assert row.error is not None and row.limit is not None and row.error < 1e-5 < row.limit
    plan = sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend="eager")
    assert row.cost == pytest.approx(plan.cost.mean().item(), rel=1e-5)
    assert row.penalty == pytest.approx(plan.terms["penalty"].mean().item(), rel=1e-4)
    assert row.launches is not None and row.launches > 50
    flops = {name: getattr(case.problem, name).network.spec.flops_per_row() for name in ("dynamics", "cost", "score")}
    assert row.flops == 3 * 4 * (6 * flops["dynamics"] + 8 * flops["cost"] + 4 * flops["score"])
    assert row.bytes == 4 * 4 * (6 * flops["dynamics"] + 2 * flops["cost"] + flops["score"]) / 2


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda u: u + 0.01, "wrong: error"),
        (lambda u: u * float("nan"), "not all of them finite"),
        (lambda u: u[:, :2], "controls of shape"),
        (lambda u: u.sign() * 1.5, "outside their bounds"),
    ],
)
def test_a_wrong_rung_has_an_error_and_no_time(case: Case, monkeypatch: pytest.MonkeyPatch, spoil, told: str) -> None:  # noqa: ANN001
    with_rungs(monkeypatch, rung("wrong", lambda case: lambda: spoil(exact(case)())), rung("right", exact))
    wrong, right = ladder.measure(case, share=0.01, count=False)
    assert not wrong.samples and wrong.reason is not None and told in wrong.reason
    assert right.samples
    assert told in tables.text([wrong, right], ours="right")


@pytest.mark.parametrize("why", [Unavailable("no such device"), ImportError("no such library"), RuntimeError("out of it")])
def test_a_rung_that_cannot_run_is_listed_with_the_reason(
    case: Case, monkeypatch: pytest.MonkeyPatch, why: Exception
) -> None:
    def never(case: Case):  # noqa: ANN202
        raise why

    with_rungs(monkeypatch, rung("absent", never))
    (row,) = ladder.measure(case, share=0.01)
    # What nobody raised on purpose tells its type, too.
    assert row.reason == (f"RuntimeError: {why}" if type(why) is RuntimeError else str(why)) and row.timed == 0


def test_one_problem_of_a_batch_is_planned_by_a_rung_that_plans_singly(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def single(case: Case):  # noqa: ANN202
        seen.append(len(case.x0))
        return exact(case)

    with_rungs(monkeypatch, rung("single", single, single=True), rung("batch", exact))
    monkeypatch.setattr(clock, "rounds", lambda runs, *_, **__: {name: [0.5, 0.5] for name in runs})
    row, batch = ladder.measure(case, share=0.01, count=False)
    assert seen == [1] and row.timed == 1 and row.p50 == 1.5 and batch.p50 == 0.5


class Clock:
    """Time that passes by plans alone, and a run that ends at `until`."""

    def __init__(self, until: float) -> None:
        self.now, self.until = 0.0, until

    def rung(self, name: str, *plans: float) -> Rung:
        """One whose plans take so long, the last as all that follow."""

        def make(case: Case):  # noqa: ANN202
            found, took = exact(case)(), list(plans)

            def run() -> Tensor:
                self.now += took.pop(0) if len(took) > 1 else took[0]
                return found

            return run

        return rung(name, make)

    def seconds(self, run, _device: torch.device) -> float:  # noqa: ANN001
        began = self.now
        run()
        return self.now - began

    def left(self) -> float:
        return self.until - self.now


def test_a_rung_is_begun_and_goes_on_where_it_fits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first plan that takes longer than was thought is all that it costs; one that compiled does not count."""
    time = Clock(until=100.0)
    plans = {"quick": (1.0,), "slow": (25.0,), "dear": (1.0,), "compiles": (20.0, 2.0), "late": (12.0,)}
    with_rungs(monkeypatch, *(time.rung(name, *took) for name, took in plans.items()))
    monkeypatch.setattr(clock, "seconds", time.seconds)
    expected = {"quick": 6.0, "slow": 6.0, "dear": 99.0, "compiles": 6.0, "late": 1.0}
    rows = {row.rung: row for row in ladder.measure(case, share=1.0, count=False, expected=expected, left=time.left)}
    assert rows["quick"].p50 == 1.0 and rows["compiles"].p50 == 2.0
    needs = "a plan took 25 s, so that it needs 50 s"
    assert rows["slow"].reason == f"left out for time: {needs}, and only 44 s of the run's time were free"
    assert rows["dear"].reason == "left out for time: about 99 s, and only 44 s of the run's time were free"
    assert (rows["late"].reason or "").startswith("left out for time: a plan took 12 s")
    assert all(rows[name].left_out and not rows[name].samples for name in ("slow", "dear", "late"))
    assert time.now <= time.until


def test_what_cannot_run_is_not_said_to_lack_time(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(case: Case):  # noqa: ANN202
        raise Unavailable("no such device")

    with_rungs(monkeypatch, rung("absent", never))
    (row,) = ladder.measure(case, expected={"absent": 10.0}, left=lambda: 1.0)
    assert row.reason == "no such device" and not row.left_out


@dataclass(frozen=True)
class Sampling:
    """A planner of another kind, which may be wrong about what its controls cost."""

    case: Case
    off: float

    def __call__(self) -> Tensor:
        return torch.zeros_like(self.case.init)

    def foreseen(self, u: Tensor) -> Tensor:
        return gate.evaluated(self.case.first(len(u)), u.double()).cost * (1 + self.off)


@pytest.mark.parametrize(("off", "right"), [(1e-5, True), (0.01, False)])
def test_a_planner_of_another_kind_is_judged_by_what_it_foresees(
    case: Case, monkeypatch: pytest.MonkeyPatch, off: float, right: bool
) -> None:
    with_rungs(monkeypatch, rung("sampling", lambda case: Sampling(case, off), exact=False))
    (row,) = ladder.measure(case, share=0.01, count=False)
    assert bool(row.samples) is right
    assert row.error == pytest.approx(off, rel=1e-2)


def test_an_unknown_rung_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'jaks' is no rung; expected some of published"):
        ladder.named("jaks")


def test_memory_sees_what_a_run_allocates() -> None:
    keep: list[Tensor] = []
    found = resources.memory(lambda: keep.append(torch.ones(1 << 24)), torch.device("cpu"))
    if found is None:
        pytest.skip("this system does not tell")
    assert 0.8 * (1 << 26) < found < 2 * (1 << 26)


def test_launches_are_the_operators_that_python_calls() -> None:
    a = torch.ones(4)
    assert resources.launches(lambda: (a + a) * a, torch.device("cpu")) == 2
