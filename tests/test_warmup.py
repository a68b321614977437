"""Warming up: afterwards the first call finds everything ready."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.backends.fused import graph_stats
from tests import cases


def test_after_a_warmup_the_first_plan_of_a_size_captures_nothing() -> None:
    case = cases.case(cost_="learned", score_=cases.score(), horizon=2)
    planner = replace(cases.planner(horizon=2), precision="float32")
    made = sgp.warmup(case.problem, planner, [3, 8], backend="fused:layered")
    assert {size: stats["bucket"] for size, stats in made.items()} == {3: 4, 8: 8}
    before = graph_stats("cpu")
    sgp.solve(case.problem, planner, case.x0, backend="fused:layered")
    after = graph_stats("cpu")
    assert after.captures == before.captures and after.hits == before.hits + 1


def test_a_size_of_nothing_and_dynamics_without_a_scale_are_refused() -> None:
    case = cases.case("function")
    with pytest.raises(ValueError, match="batch_sizes is"):
        sgp.warmup(case.problem, cases.planner(), [])
    with pytest.raises(ValueError, match="normalizer"):
        sgp.warmup(case.problem, cases.planner(), [4])


def test_a_warmup_reads_the_goal_that_plans_will_have() -> None:
    case = cases.case(cost_="quadratic", horizon=2)
    planner = replace(cases.planner(horizon=2), precision="float32")
    sgp.warmup(case.problem, planner, [4], goal=torch.zeros(cases.NX), backend="fused:layered")
    before = graph_stats("cpu").captures
    sgp.solve(case.problem, planner, case.x0, goal=case.goal, backend="fused:layered")
    assert graph_stats("cpu").captures == before
