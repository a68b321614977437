"""Costs of the user's own in native code: traced and compiled, or called back, they plan as the eager planner does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgp_fast as sgp
from sgp_fast.backends.custom import Sight
from sgp_fast.kernels import cpu
from sgp_fast.kernels.network import Layer, NetworkSpec
from tests import cases
from tests.cases import relative
from tests.custom_costs import NU, NX, TRACEABLE, UNTRACEABLE, Given, SmallNetwork, branches

pytestmark = pytest.mark.skipif(cpu.why_unavailable() is not None, reason=str(cpu.why_unavailable()))
NZ = NX + NU
PLANNER = sgp.SGP(horizon=4, iterations=6, step_size=0.05, tolerance=0.0)


def ends_high(x: Tensor, goal: Tensor, params: Any) -> Tensor:
    return (x - 0.5).square().sum(-1).sqrt()


def problem(cost: Any, terminal: Any = None) -> sgp.Problem:
    net = cases.module(NetworkSpec(NZ, (Layer(24, "elu", norm=True), Layer(NX))), 1)
    dynamics = sgp.Dynamics(net, cases.normalizer(NZ, 1))
    net = cases.module(NetworkSpec(NZ, (Layer(20, "silu"), Layer(NZ))), 2)
    score = sgp.Score(net, cases.normalizer(NZ, 2), cases.SIGMAS)
    return sgp.Problem(dynamics=dynamics, score=score, cost=cost, terminal=terminal, bounds=(-1.0, 1.0))


def starts(problems: int) -> Tensor:
    return torch.randn(problems, NX, generator=torch.Generator().manual_seed(5))


def both(given: Given, problems: int, **options: Any) -> tuple[sgp.Plan, sgp.Plan]:
    made, x0 = problem(given.cost, **options), starts(problems)
    extra = {"goal": 0.2 * starts(problems) if given.goal else None, "params": given.params(problems)}
    return tuple(sgp.solve(made, PLANNER, x0, **extra, backend=backend) for backend in ("compiled", "eager"))  # pyright: ignore[reportReturnType]


def alike(ours: sgp.Plan, theirs: sgp.Plan, limit: float = 1e-4) -> None:
    wanted = theirs.tensors()
    for name, t in ours.tensors().items():
        if t.is_floating_point():
            assert relative(t, wanted[name]) < limit, name
        else:
            assert torch.equal(t, wanted[name]), name


@pytest.mark.parametrize("problems", [1, 65])
@pytest.mark.parametrize("name", TRACEABLE)
def test_a_traced_cost_plans_as_the_eager_planner_does(name: str, problems: int) -> None:
    ours, theirs = both(TRACEABLE[name], problems, terminal=ends_high)
    alike(ours, theirs)
    assert "traced into the kernels" in ours.stats["cost"] and "traced into the kernels" in ours.stats["terminal"]


@pytest.mark.parametrize("problems", [1, 65])
def test_one_that_is_called_back_does_too_and_says_why(problems: int) -> None:
    function, words = UNTRACEABLE["looks up"]
    ours, theirs = both(Given(function), problems)
    alike(ours, theirs)
    assert "called in PyTorch" in ours.stats["cost"] and words in ours.stats["cost"]


def test_a_function_that_looks_beyond_its_row_is_not_traced() -> None:
    # Planned alone by either backend it is the same function; of many rows only PyTorch knows what it means.
    function, words = UNTRACEABLE["beyond its row"]
    ours, _ = both(Given(function), 5)
    assert words in ours.stats["cost"]


def test_auto_takes_native_code_for_a_cost_of_ones_own() -> None:
    plan = sgp.solve(problem(TRACEABLE["hopper"].cost), PLANNER, starts(3))
    assert plan.stats["backend"] == "compiled"


def test_an_error_in_a_cost_that_is_called_back_reaches_the_caller() -> None:
    calls = []

    def fails(x: Tensor, u: Tensor) -> Tensor:
        calls.append(len(calls))
        if x.sum() == 0 or len(calls) > 3:
            raise RuntimeError("no cost today")
        return x.square().sum(-1)

    with pytest.raises(RuntimeError, match="no cost today"):
        sgp.solve(problem(fails), PLANNER, starts(3), backend="compiled")


def test_a_cost_that_is_not_a_number_stays_with_its_problem() -> None:
    def root(x: Tensor, u: Tensor) -> Tensor:
        return (x[..., 0] + 100).sqrt() + u.square().sum(-1)

    x0 = starts(5)
    x0[2, 0] = -1000
    ours = sgp.solve(problem(root), PLANNER, x0, backend="compiled")
    theirs = sgp.solve(problem(root), PLANNER, x0, backend="eager")
    assert torch.equal(ours.status, theirs.status) and ours.status[2] == sgp.Status.DIVERGED
    assert relative(ours.u[[0, 1, 3, 4]], theirs.u[[0, 1, 3, 4]]) < 2e-5


_weight = 1.0


def _weighted(x: Tensor, u: Tensor) -> Tensor:
    return _weight * x.square().sum(-1) + u.square().sum(-1)


def test_what_a_cost_closes_over_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    target, options, module = torch.zeros(NX), {"gain": 1.0}, SmallNetwork()

    def to_target(x: Tensor, u: Tensor) -> Tensor:
        return options["gain"] * (x - target).square().sum(-1)

    x0 = starts(3)
    for cost, change in (
        (to_target, lambda: target.add_(1.0)),
        (to_target, lambda: options.update(gain=3.0)),
        (module, lambda: next(module.net.parameters()).data.mul_(2)),
        (_weighted, lambda: monkeypatch.setattr("tests.test_custom_costs._weight", 5.0)),
    ):
        made = problem(cost)
        before = sgp.solve(made, PLANNER, x0, backend="compiled")
        change()
        after, wanted = (sgp.solve(made, PLANNER, x0, backend=backend) for backend in ("compiled", "eager"))
        alike(after, wanted)
        assert not torch.allclose(after.cost, before.cost)


def test_a_trace_is_kept_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x0 = problem(TRACEABLE["huber"].cost), starts(3)
    sgp.solve(made, PLANNER, x0, goal=torch.zeros(NX), backend="compiled")
    monkeypatch.setattr("sgp_fast.backends.custom.trace", lambda *args: pytest.fail("traced again"))
    sgp.solve(made, PLANNER, x0, goal=torch.ones(NX), backend="compiled")


SEEN = {"function": branches, "method": SmallNetwork().forward, "module": nn.Linear(2, 3), "lambda": lambda x: x}


@pytest.mark.parametrize("function", SEEN.values(), ids=SEEN)
def test_sight_of_a_function_is_equal_to_itself(function: Callable[..., Any]) -> None:
    assert Sight.of(function) == Sight.of(function)
