"""Costs of the user's own in the fused backend: traced into its kernels, or called between them, they plan as eager does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.backends.fused import graph_stats
from tests.cases import relative
from tests.custom_costs import TRACEABLE, UNTRACEABLE, Given
from tests.test_custom_costs import ends_high, problem, starts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted
PLANNER = sgp.SGP(horizon=3, iterations=3, step_size=0.05, tolerance=0.0)
PROBLEMS = 5


def plan(given: Given, backend: str, **options: Any) -> sgp.Plan:
    made = problem(given.cost, ends_high)
    for part in made.modules.values():
        part.to(DEVICE)
    params = given.params(PROBLEMS)
    params = {n: p.to(DEVICE) for n, p in params.items()} if isinstance(params, dict) else params
    x0 = starts(PROBLEMS).to(DEVICE)
    goal = 0.2 * x0 if given.goal else None
    return sgp.solve(made, PLANNER, x0, goal=goal, params=params, backend=backend, **options)


@pytest.mark.parametrize("backend", ["fused:tile", "fused:layered"])
@pytest.mark.parametrize("name", ["obstacles", "time", "kinks"])
def test_a_traced_cost_plans_as_the_eager_planner_does(name: str, backend: str) -> None:
    ours, theirs = plan(TRACEABLE[name], backend), plan(TRACEABLE[name], "eager")
    wanted = theirs.tensors()
    for key, t in ours.tensors().items():
        assert relative(t.float(), wanted[key].float()) < 2e-5, key
    assert "traced into the kernels" in ours.stats["cost"] and "traced into the kernels" in ours.stats["terminal"]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["fused:tile", "fused:layered"])
@pytest.mark.parametrize("name", TRACEABLE)
def test_every_traced_cost_on_a_gpu(name: str, backend: str) -> None:
    ours, theirs = plan(TRACEABLE[name], backend), plan(TRACEABLE[name], "eager")
    assert relative(ours.u, theirs.u) < 1e-4 and relative(ours.cost, theirs.cost) < 1e-4


@pytest.mark.gpu
def test_a_cost_that_reads_numbers_of_the_device_is_called_without_a_graph() -> None:
    def guarded(x: Tensor, u: Tensor) -> Tensor:
        if not bool((x.abs() < 1e6).all()):
            raise ValueError("far away")
        return x.square().sum(-1) + u.square().sum(-1)

    ours, theirs = plan(Given(guarded), "fused"), plan(Given(guarded), "eager")
    assert relative(ours.u, theirs.u) < 1e-4 and "called in PyTorch" in ours.stats["cost"]


def test_one_that_cannot_be_traced_is_called_between_the_kernels() -> None:
    function, words = UNTRACEABLE["looks up"]
    ours, theirs = plan(Given(function), "fused"), plan(Given(function), "eager")
    wanted = theirs.tensors()
    for key, t in ours.tensors().items():
        assert relative(t.float(), wanted[key].float()) < 2e-5, key
    assert ours.stats["regime"] == "layered" and "called in PyTorch" in ours.stats["cost"] and words in ours.stats["cost"]
    with pytest.raises(ValueError, match=words):
        plan(Given(function), "fused:tile")


def test_a_graph_serves_other_params_and_not_another_function() -> None:
    gain = torch.tensor(1.0, device=DEVICE)

    def cost(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Tensor) -> Tensor:
        return gain * (params * x).square().sum(-1) + u.square().sum(-1)

    made, x0 = problem(cost), starts(PROBLEMS).to(DEVICE)
    for part in made.modules.values():
        part.to(DEVICE)

    def check(params: Tensor) -> int:
        ours, theirs = (sgp.solve(made, PLANNER, x0, params=params, backend=b) for b in ("fused:layered", "eager"))
        assert relative(ours.u, theirs.u) < 2e-5
        return graph_stats(DEVICE).captures

    params = torch.ones(PROBLEMS, 5, device=DEVICE)
    first = check(params)
    assert check(2 * params) == first
    gain.mul_(3)
    assert check(params) == first + 1
