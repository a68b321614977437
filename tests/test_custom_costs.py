"""Costs of the user's own in native code: traced and compiled, or called back, they plan as the eager planner does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgp_fast as sgp
from sgp_fast.backends.sight import sight
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


class Settings:
    gain = 1.0


class Slotted:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


class Private(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._gain = 1.0
        self.eval()

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self._gain * x.square().sum(-1) + u.square().sum(-1)


def _weighted(x: Tensor, u: Tensor) -> Tensor:
    return _weight * x.square().sum(-1) + u.square().sum(-1)


_weight = 1.0


def changing(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Costs, each with a change of something that it sees and is not given."""
    target, options, module = torch.zeros(NX), {"gain": 1.0}, SmallNetwork()
    slotted, private, number = Slotted(), Private(), {"gain": np.float32(1.0)}
    deep = {"a": {"b": {"c": [{"d": ({"e": [1.0]},)}]}}}
    order = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    def to_target(x: Tensor, u: Tensor) -> Tensor:
        return options["gain"] * (x - target).square().sum(-1)

    def by(gain: Callable[[], Any]) -> Callable[..., Tensor]:
        return lambda x, u: gain() * x.square().sum(-1) + u.square().sum(-1)

    def scaled(gain: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return gain * x.square().sum(-1) + u.square().sum(-1)

    def attributed(x: Tensor, u: Tensor) -> Tensor:
        return attributed.gain * x.square().sum(-1)  # pyright: ignore[reportFunctionMemberAccess]

    attributed.gain, part = 1.0, torch.tensor(1.0)  # pyright: ignore[reportFunctionMemberAccess]

    def inner() -> Any:
        return deep["a"]["b"]["c"][0]["d"][0]["e"]

    return {
        "a tensor": (to_target, lambda: target.add_(1.0)),
        "a dictionary": (to_target, lambda: options.update(gain=3.0)),
        "weights": (module, lambda: next(module.net.parameters()).data.mul_(2)),
        "a global": (_weighted, lambda: monkeypatch.setattr("tests.test_custom_costs._weight", 5.0)),
        "a partial's tensor": (functools.partial(scaled, part), lambda: part.mul_(5)),
        "a class": (by(lambda: Settings.gain), lambda: monkeypatch.setattr(Settings, "gain", 5.0)),
        "a function's attribute": (attributed, lambda: setattr(attributed, "gain", 5.0)),
        "a private attribute": (private, lambda: setattr(private, "_gain", 5.0)),
        "a slot": (by(lambda: slotted.gain), lambda: setattr(slotted, "gain", 5.0)),
        "NumPy's number": (by(lambda: float(number["gain"])), lambda: number.update(gain=np.float32(5.0))),
        "what lies deep": (by(lambda: inner()[0]), lambda: inner().__setitem__(0, 5.0)),
        "an order": (lambda x, u: (order * x).square().sum(-1), lambda: order.data.copy_(order.flip(0))),
    }


@pytest.mark.parametrize("what", changing(pytest.MonkeyPatch()))
def test_what_a_cost_sees_may_change(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cost, change = changing(monkeypatch)[what]
    made, x0 = problem(cost), starts(3)
    before = sgp.solve(made, PLANNER, x0, backend="compiled")
    change()
    after, wanted = (sgp.solve(made, PLANNER, x0, backend=backend) for backend in ("compiled", "eager"))
    alike(after, wanted)
    assert not torch.allclose(after.cost, before.cost)


def by_place(x: Tensor, u: Tensor) -> Tensor:
    """Not of rows: what is in a batch, and how many, decides."""
    return x.square().sum(-1) * (1 + torch.arange(x.shape[0])[:, None]) / x.shape[1]


def through_numpy(x: Tensor, u: Tensor, goal: Any, t: Tensor, params: Any) -> Tensor:
    return x.square().sum(-1) * torch.from_numpy(np.where(t.numpy() >= 3, 10.0, 1.0)).to(x)


def infinite_inside(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(x[..., 0] > 0.3, torch.inf, x.square().sum(-1)) + x.mean()


@pytest.mark.parametrize("cost", [by_place, through_numpy, infinite_inside])
def test_what_is_not_of_rows_alone_is_called_whatever_the_first_batch(cost: Callable[..., Tensor]) -> None:
    for problems, horizon in ((1, 1), (5, 6)):
        plan = sgp.solve(problem(cost), replace(PLANNER, horizon=horizon), starts(problems), backend="compiled")
        assert "called in PyTorch" in plan.stats["cost"]


def test_params_of_another_type_are_another_cost() -> None:
    def cost(x: Tensor, u: Tensor, goal: Any, t: Tensor, params: Tensor) -> Tensor:
        return params * x.square().sum(-1)

    made, x0 = problem(cost), starts(2)
    for params in (torch.tensor([True, False]), torch.tensor([2.0, 3.0])):
        ours, theirs = (sgp.solve(made, PLANNER, x0, params=params, backend=backend) for backend in ("compiled", "eager"))
        alike(ours, theirs)


def test_it_plans_alike_whatever_the_default_dtype() -> None:
    made, x0 = problem(TRACEABLE["hopper"].cost), starts(3)
    wanted = sgp.solve(made, PLANNER, x0, backend="compiled")
    torch.set_default_dtype(torch.float64)
    try:
        alike(sgp.solve(problem(TRACEABLE["hopper"].cost), PLANNER, x0, backend="compiled"), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_first_call_under_a_time_limit_plans_for_as_long_as_any() -> None:
    def cost(x: Tensor, u: Tensor) -> Tensor:
        return (x - 0.123).square().sum(-1) + u.square().sum(-1)

    plan = sgp.solve(problem(cost), replace(PLANNER, iterations=100_000), starts(1), backend="compiled", time_limit_s=0.2)
    assert plan.iterations.item() > 10


def test_a_trace_is_kept_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x0 = problem(TRACEABLE["huber"].cost), starts(3)
    sgp.solve(made, PLANNER, x0, goal=torch.zeros(NX), backend="compiled")
    monkeypatch.setattr("sgp_fast.backends.custom.trace", lambda *args: pytest.fail("traced again"))
    sgp.solve(made, PLANNER, x0, goal=torch.ones(NX), backend="compiled")


SEEN = {"function": branches, "method": SmallNetwork().forward, "module": nn.Linear(2, 3), "lambda": lambda x: x}


@pytest.mark.parametrize("function", SEEN.values(), ids=SEEN)
def test_sight_of_a_function_is_equal_to_itself(function: Callable[..., Any]) -> None:
    assert sight(function) == sight(function)
