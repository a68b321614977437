"""Each cost gives the value of its formula and the gradient of that value; custom ones through autograd, row by row."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgp_fast as sgp
from sgp_fast.costs import CustomCost, CustomTerminal
from tests import cases
from tests.cases import F64, NU, NX, B, T, relative

STEPS = torch.arange(T)[:, None]


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor, Any]:
    generator = torch.Generator().manual_seed(0)
    x, u, goal, weight, gain = (
        torch.randn(shape, generator=generator, dtype=F64) for shape in ((T, B, NX), (T, B, NU), (B, NX), (B, NX), (B,))
    )
    return x, u, goal, {"weight": weight.exp(), "gain": gain.exp()} if kind == "dict" else weight.exp()


def part(kind: str, made: Any, wrap: Any) -> Any:
    return made if hasattr(made, "value_and_grad") else wrap(made)


@pytest.mark.parametrize("params", ["tensor", "dict"])
@pytest.mark.parametrize("kind", cases.COSTS)
def test_running_costs(kind: str, params: str) -> None:
    made = cases.cost(kind)
    x, u, goal, given = inputs(params)
    leaves = x.clone().requires_grad_(), u.clone().requires_grad_()
    want = made.plain(*leaves, goal, STEPS, given)
    want_x, want_u = torch.autograd.grad(want.sum(), leaves)
    with torch.no_grad():
        value, grad_x, grad_u = part(kind, made.part, CustomCost).value_and_grad(x, u, goal, STEPS, given)
    for got, wanted in ((value, want.detach()), (grad_x, want_x), (grad_u, want_u)):
        assert relative(got, wanted) < 1e-10 and not got.requires_grad


@pytest.mark.parametrize("params", ["tensor", "dict"])
@pytest.mark.parametrize("kind", cases.TERMINALS[1:])
def test_terminal_costs(kind: str, params: str) -> None:
    made = cases.terminal(kind)
    x, _, goal, given = inputs(params)
    leaf = x[-1].clone().requires_grad_()
    want = made.plain(leaf, goal, given)
    (want_x,) = torch.autograd.grad(want.sum(), leaf)
    with torch.no_grad():
        value, grad = part(kind, made.part, CustomTerminal).value_and_grad(x[-1], goal, given)
    assert relative(value, want.detach()) < 1e-10 and relative(grad, want_x) < 1e-10


def test_the_goal_of_a_problem_stands_before_that_of_the_cost() -> None:
    own = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    cost = sgp.QuadraticCost(torch.eye(NX, dtype=F64), torch.zeros(NU, NU, dtype=F64), own)
    terminal = sgp.QuadraticTerminal(torch.eye(NX, dtype=F64), own)
    x, u, goal, _ = inputs("tensor")
    for given, at in ((None, own), (goal, goal)):
        assert torch.allclose(cost.value_and_grad(x, u, given, STEPS, None)[0], (x - at).square().sum(-1))
        assert torch.allclose(terminal.value_and_grad(x[-1], given, None)[0], (x[-1] - at).square().sum(-1))


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_matrices_may_be_arrays_of_any_number(dtype: type) -> None:
    cost = sgp.QuadraticCost(np.eye(NX, dtype=dtype), np.eye(NU, dtype=dtype))  # pyright: ignore[reportArgumentType]
    problem = sgp.Problem(dynamics=lambda x, u: x, cost=cost, nu=NU)
    plan = sgp.solve(problem, cases.planner(precision="float32"), torch.ones(2, NX), init=torch.zeros(2, T, NU))
    assert torch.isfinite(plan.cost).all() and plan.cost[0] > NX * T - 1


def five(x: Tensor, u: Tensor, goal: Tensor | None, t: Tensor, params: Any) -> Tensor:
    return (x - goal).square().sum(-1) if goal is not None else x.square().sum(-1)


def defaults(x: Tensor, u: Tensor, goal: Tensor | None = None, t: Any = None, params: Any = None) -> Tensor:
    return five(x, u, goal, t, params)


def star(*args: Any) -> Tensor:
    return five(*args)


class Callable5:
    def __call__(self, x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Any) -> Tensor:
        return five(x, u, goal, t, params)


def scaled(scale: float, x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Any) -> Tensor:
    return scale * five(x, u, goal, t, params)


@pytest.mark.parametrize("function", [five, defaults, star, Callable5(), partial(scaled, 1.0)], ids=lambda f: str(f)[:20])
def test_a_cost_that_can_take_a_goal_is_given_it(function: Any) -> None:
    x, u, goal, _ = inputs("tensor")
    assert torch.allclose(CustomCost(function).value_and_grad(x, u, goal, STEPS, None)[0], (x - goal).square().sum(-1))


def test_inputs_that_a_cost_does_not_use_have_gradient_zero() -> None:
    x, u, goal, _ = inputs("tensor")
    _, grad_x, grad_u = CustomCost(lambda x, u: x[..., 0] ** 2).value_and_grad(x, u, goal, STEPS, None)
    assert grad_x[..., 0].any() and not grad_x[..., 1:].any() and not grad_u.any()
    with pytest.raises(ValueError, match="cost.*cut off from autograd"):
        CustomCost(lambda x, u: x.detach().sum(-1)).value_and_grad(x, u, goal, STEPS, None)


@pytest.mark.parametrize("made", [sgp.SGP(5, 2, 0.1), sgp.CEM(5, 2, 8, elites=2)], ids=["SGP", "CEM"])
def test_a_cost_that_gives_no_tensor_is_told_what_to_give(made: Any) -> None:
    problem = sgp.Problem(dynamics=lambda x, u: x + u, cost=lambda x, u: 1.0, bounds=(-1.0, 1.0), nu=1)
    told = r"cost gave a float; expected a tensor of one number a row, .* made of x by PyTorch .* c \+ 0 \* x.sum\(-1\)"
    with pytest.raises(TypeError, match=told):
        sgp.solve(problem, made, torch.zeros(4, 1))
    with pytest.raises(TypeError, match="terminal gave a ndarray; expected a tensor"):
        CustomTerminal(lambda x: x.detach().numpy().sum(-1)).value_and_grad(torch.zeros(4, 2), None, None)


def test_a_last_axis_of_one_is_dropped() -> None:
    x, u, goal, _ = inputs("tensor")
    value, _, _ = CustomCost(lambda x, u: x[..., :1]).value_and_grad(x, u, goal, STEPS, None)
    assert torch.equal(value, x[..., 0])


@pytest.mark.parametrize("shape", ["sum", "features", "column"])
def test_a_cost_that_is_not_one_number_a_row_is_refused(shape: str) -> None:
    x, u, goal, _ = inputs("tensor")
    function = {"sum": lambda x, u: x.sum(), "features": lambda x, u: x, "column": lambda x, u: x[:, :1, 0]}[shape]
    with pytest.raises(ValueError, match="cost gave shape .*expected one number a row"):
        CustomCost(function).value_and_grad(x, u, goal, STEPS, None)


def test_a_custom_cost_makes_no_weight_gradient() -> None:
    layer = nn.Linear(NX, 1, dtype=F64)
    x, u, goal, _ = inputs("tensor")
    CustomCost(lambda x, u: layer(x)).value_and_grad(x, u, goal, STEPS, None)
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sgp.QuadraticCost(torch.zeros(2, 3), torch.eye(2)), r"Q has shape \(2, 3\); expected a square"),
        (lambda: sgp.QuadraticCost(torch.eye(2), torch.zeros(2)), r"R has shape \(2,\); expected a square"),
        (lambda: sgp.QuadraticCost(torch.eye(2), torch.eye(2), torch.zeros(3)), r"goal has shape \(3,\).*\[2\]"),
        (lambda: sgp.QuadraticTerminal(torch.zeros(1, 2)), "Q has shape"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_cost_owns_its_matrices() -> None:
    Q = torch.eye(NX, dtype=F64)
    cost = sgp.QuadraticCost(Q, torch.eye(NU, dtype=F64))
    Q.zero_()
    assert torch.equal(cost.Q, torch.eye(NX, dtype=F64))


def test_a_cost_that_misses_its_goal_says_so() -> None:
    x, u, _, _ = inputs("tensor")
    with pytest.raises(TypeError, match="cost failed.*no goal or params was given; pass it to solve"):
        CustomCost(lambda x, u, goal, t, params: (x - goal).sum(-1)).value_and_grad(x, u, None, STEPS, None)
    with pytest.raises(ValueError, match="cost failed on the key 'weight'; params has 'wait'"):
        weighted = CustomCost(lambda x, u, goal, t, params: params["weight"] * u.square().sum(-1))
        weighted.value_and_grad(x, u, None, STEPS, {"wait": torch.ones(B)})
