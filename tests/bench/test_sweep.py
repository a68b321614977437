"""The sweep puts what matters first, fits the time, and reads the cases that users name."""

from __future__ import annotations

import pytest

from sgp_fast.bench import sweep, work
from sgp_fast.bench.rows import PlanRow
from sgp_fast.bench.sweep import BEST, Spec


def test_the_published_cases_come_first_with_every_rung() -> None:
    specs = list(sweep.sweep("cpu"))
    assert [(s.width, s.problems) for s in specs[:4]] == [(256, 1), (1024, 1), (256, 64), (1024, 64)]
    assert all(s.rungs is None and s.precision == "float32" for s in specs[:4])
    assert {s.problems for s in specs} == {1, 4, 16, 64, 256, 1024, 4096, 16384}
    assert {s.horizon for s in specs} == {4, 8, 16, 32, 64}
    assert {s.width for s in specs} == {64, 128, 256, 512, 1024}
    keys = [(s.width, s.problems, s.horizon, s.iterations, s.precision) for s in specs]
    assert len(set(keys)) == len(keys)
    assert {s.precision for s in sweep.sweep("cuda")} == {"float32", "tf32", "float16", "bfloat16"}


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("64x256", Spec(256, 64)),
        ("1x1024:bfloat16", Spec(1024, 1, precision="bfloat16")),
        ("8x64:T16:100", Spec(64, 8, horizon=16, iterations=100)),
    ],
)
def test_cases_are_read(text: str, spec: Spec) -> None:
    assert sweep.parse(text) == spec


@pytest.mark.parametrize("text", ["", "64", "64x", "0x256", "64x256:T0", "ax256"])
def test_what_is_no_case_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="problems x width"):
        sweep.parse(text)


def test_an_unknown_precision_is_refused_by_the_planner() -> None:
    with pytest.raises(ValueError, match="float8"):
        sweep.parse("64x256:float8").make()


def test_what_was_measured_tells_what_a_case_will_take() -> None:
    case = Spec(64, 64).make()
    flops = 1e9
    known = PlanRow(
        case="x", model="4×64", problems=64, horizon=8, iterations=50, precision="float32", device="cpu", rung="eager",
        label="", family="ours", timed=64, samples=(1.0,), flops=flops,
    )  # fmt: skip
    (taken,) = sweep.estimates(case, ["eager"], [known], 1.0).values()
    plan = (work.of_batch(case)[0] or 0) / flops
    assert taken == pytest.approx(max(sweep.PLANS * plan, 2 * plan + 1.0))


def test_what_cannot_run_costs_nothing() -> None:
    absent = PlanRow(
        case="x", model="4×64", problems=1, horizon=8, iterations=50, precision="float32", device="cpu", rung="cuda graph",
        label="", family="baseline", reason="needs a GPU",
    )  # fmt: skip
    assert sweep.estimates(Spec(64, 64).make(), ["cuda graph"], [absent], 1.0) == {"cuda graph": 0.0}


def test_the_dearest_are_left_out() -> None:
    assert sweep.fitting({"a": 5.0, "b": 50.0, "c": 4.0}, 10.0) == (("a", "c"), ("b",))
    assert sweep.fitting({"a": 5.0}, 1.0) == ((), ("a",))
    assert set(BEST) >= {"autograd", "jax", "compiled", "auto"}
