"""The sweep puts what matters first, fits the time, and reads the cases that users name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sgp_fast.bench import ladder, sweep, work
from sgp_fast.bench.rows import CeilingRow, PlanRow
from sgp_fast.bench.rungs import RUNGS
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


KNOWN = PlanRow(
    case="x", model="4×64", problems=64, horizon=8, iterations=50, precision="float32", device="cpu", rung="eager",
    label="", family="ours", timed=64, samples=(1.0,), flops=1e9,
)  # fmt: skip


def top(precision: str, value: float) -> CeilingRow:
    return CeilingRow(what="matrix product", precision=precision, device="cpu", value=value, unit="FLOP/s")


def seconds(plan: float, share: float = 1.0) -> Any:
    """Of a rung whose plan takes so long."""
    return pytest.approx((plan if plan <= share else 2 * plan) + ladder.following(plan, share))


def test_what_was_measured_tells_what_a_case_will_take() -> None:
    case = Spec(64, 64).make()
    flops = work.of_batch(case)[0] or 0
    assert sweep.estimates(case, ["eager"], [KNOWN], 1.0) == {"eager": seconds(flops / 1e9)}
    tops = [top("float32", 1e12), top("bfloat16", 1e8)]
    assert sweep.estimates(case, ["eager"], [KNOWN], 1.0, tops) == {"eager": seconds(flops / 1e9)}


def test_a_precision_is_estimated_by_its_own_rows() -> None:
    case = Spec(64, 64, precision="bfloat16").make()
    flops = work.of_batch(case)[0] or 0
    slow = replace(KNOWN, case="x, bfloat16", precision="bfloat16", samples=(50.0,), flops=2e9)
    for rows in ([KNOWN, slow], [slow, KNOWN]):
        assert sweep.estimates(case, ["eager"], rows, 1.0) == {"eager": seconds(50 * flops / 2e9)}


def test_a_precision_that_was_not_measured_is_as_slow_as_its_ceiling() -> None:
    case = Spec(64, 64, precision="bfloat16").make()
    flops = work.of_batch(case)[0] or 0
    slow = [top("float32", 1e11), top("bfloat16", 1e8)]
    later = flops / 1e8 - flops / 1e11
    assert sweep.estimates(case, ["eager"], [KNOWN], 1.0, slow) == {"eager": seconds(flops / 1e9 + later)}
    fast = [top("float32", 1e11), top("bfloat16", 1e12)]
    assert sweep.estimates(case, ["eager"], [KNOWN], 1.0, fast) == {"eager": seconds(flops / 1e9)}
    # Nothing is known of the rung; then of one whose single row was quick, as products of a single row may be.
    assert sweep.estimates(case, ["eager"], [], 1.0, slow) == {"eager": seconds(flops / 1e8)}
    single = replace(KNOWN, case="y", precision="bfloat16", flops=1e9, samples=(1e-3,))
    assert sweep.estimates(case, ["eager"], [single], 1.0, slow) == {"eager": seconds(flops / 1e8)}


def test_the_ceiling_of_pytorch_says_nothing_of_products_that_are_not_its_own() -> None:
    case = Spec(64, 64, precision="bfloat16").make()
    slow = [top("float32", 1e11), top("bfloat16", 1e8)]
    for name in sweep.OWN_PRODUCTS["cpu"]:
        known = [replace(KNOWN, rung=name)]
        assert sweep.estimates(case, [name], known, 1.0, slow) == sweep.estimates(case, [name], known, 1.0)


def test_what_cannot_run_costs_nothing() -> None:
    absent = PlanRow(
        case="x", model="4×64", problems=1, horizon=8, iterations=50, precision="float32", device="cpu", rung="cuda graph",
        label="", family="baseline", reason="needs a GPU",
    )  # fmt: skip
    assert sweep.estimates(Spec(64, 64).make(), ["cuda graph"], [absent], 1.0) == {"cuda graph": 0.0}


def test_what_was_left_out_for_time_tells_nothing() -> None:
    case = Spec(64, 64).make()
    skipped = ladder.left_out(case, "eager", "about 100 s", 5.0)
    assert skipped.left_out and skipped.reason == "left out for time: about 100 s, and only 5 s of the run's time were free"
    assert sweep.estimates(case, ["eager"], [skipped], 1.0) == sweep.estimates(case, ["eager"], [], 1.0)


def test_a_planner_by_sampling_is_estimated_by_its_candidates() -> None:
    """Before it was measured; then its own rows tell."""
    case = Spec(64, 64).make()
    networks = (getattr(case.problem, part).network for part in ("dynamics", "cost"))
    rolled = 5 * 512 * 64 * 8 * sum(network.spec.flops_per_row() for network in networks)
    assert sweep.estimates(case, ["cem"], [], 1.0) == {"cem": seconds(rolled / sweep.GUESS["cpu"])}
    assert rolled > 20 * (work.of_batch(case)[0] or 0)
    known = [KNOWN, replace(KNOWN, rung="cem", flops=None, samples=(3.0,))]
    assert sweep.estimates(case, ["cem"], known, 1.0) == {"cem": seconds(3 * (work.of_batch(case)[0] or 0) / 1e9)}


def test_a_loop_is_as_slow_as_it_is_and_not_slower_for_its_single_row() -> None:
    case = Spec(256, 64).make()
    plan = sweep.SLOW["published"] * (work.of_batch(case)[0] or 0) / 64 / sweep.GUESS["cpu"]
    assert sweep.estimates(case, ["published"], [], 1.0) == {"published": seconds(plan)} and 0.5 < plan < 2


def test_strong_baselines_have_time_before_loops() -> None:
    order = sweep.by_worth(RUNGS)
    assert sorted(order) == sorted(RUNGS) and set(BEST) <= set(order)
    assert order[:4] == ("auto", "adjoint", "autograd", "compiled")
    assert order[-3:] == ("published", "frozen", "one rollout")
    strong, weak = ("jax", "cuda graph", "compile"), ("mppi", "torchrl cem", "published")
    assert max(map(order.index, strong)) < min(map(order.index, weak))
