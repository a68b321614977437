"""Costs of a plan: quadratic, learned, or any PyTorch function; and what stands at the end of the horizon.

A running cost answers `value_and_grad(x, u, goal, t, params)` with `x [T, B, nx]`, `u [T, B, nu]`, and gives the values
`[T, B]` and the gradients in x and u. A terminal cost answers `value_and_grad(x, goal, params)` with `x [B, nx]`.
Costs are minimised. Rows are independent, which is what lets one call serve all T·B of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .models import Network, Normalizer, check_inputs, check_unconditioned

CostFunction = Callable[..., Tensor]

# What a custom cost takes, and what a terminal one does; either may leave all but `(x, u)`, or `(x)`, out.
COST_ARGUMENTS, TERMINAL_ARGUMENTS = "(x, u, goal, t, params)", "(x, goal, params)"


@runtime_checkable
class Cost(Protocol):
    """A running cost `c(x, u)`, with `goal [B, nx]`, time steps `t [T, 1]` and per-problem `params [B, …]` at hand."""

    def value_and_grad(
        self, x: Tensor, u: Tensor, goal: Tensor | None, t: Tensor, params: Any
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@runtime_checkable
class TerminalCost(Protocol):
    """A cost `c_T(x)` of the last state."""

    def value_and_grad(self, x: Tensor, goal: Tensor | None, params: Any) -> tuple[Tensor, Tensor]: ...


class QuadraticCost(nn.Module):
    """`(x − goal)ᵀ Q (x − goal) + uᵀ R u`, without the ½. `Q [nx, nx]`, `R [nu, nu]`; both may be unsymmetric.

    `goal [nx]` is used for the problems that bring none of their own; without either it is the origin.
    """

    Q: Tensor
    R: Tensor
    goal: Tensor | None

    def __init__(self, Q: Tensor, R: Tensor, goal: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("Q", _square("Q", Q))
        self.register_buffer("R", _square("R", R))
        self.register_buffer("goal", _goal(goal, len(Q)))

    def value_and_grad(
        self, x: Tensor, u: Tensor, goal: Tensor | None, t: Tensor, params: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        value_x, grad_x = _quadratic(self.Q, _from_goal(x, goal, self.goal))
        value_u, grad_u = _quadratic(self.R, u)
        return value_x + value_u, grad_x, grad_u


class QuadraticTerminal(nn.Module):
    """`(x_T − goal)ᵀ Q (x_T − goal)`, without the ½; `goal` as in `QuadraticCost`."""

    Q: Tensor
    goal: Tensor | None

    def __init__(self, Q: Tensor, goal: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("Q", _square("Q", Q))
        self.register_buffer("goal", _goal(goal, len(Q)))

    def value_and_grad(self, x: Tensor, goal: Tensor | None, params: Any) -> tuple[Tensor, Tensor]:
        return _quadratic(self.Q, _from_goal(x, goal, self.goal))


class LearnedCost(nn.Module):
    """`c(x, u) = net(z̄)`, used as it comes: a network trained on the negative reward of `(x, u)`."""

    def __init__(self, network: Network, normalizer: Normalizer) -> None:
        super().__init__()
        check_inputs("LearnedCost", network, normalizer)
        check_one_number("LearnedCost", network)
        self.network, self.normalizer = network, normalizer

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Cost `[...]` of states `x [..., nx]` and controls `u [..., nu]`."""
        return self.network(self.normalizer(torch.cat((x, u), -1)))[..., 0]

    def value_and_grad(
        self, x: Tensor, u: Tensor, goal: Tensor | None, t: Tensor, params: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        value, pull = self.network.vjp(self.normalizer(torch.cat((x, u), -1)))
        grad = pull(torch.ones_like(value)) / self.normalizer.k
        return value[..., 0], grad[..., : x.shape[-1]], grad[..., x.shape[-1] :]


class TerminalValue(nn.Module):
    """`c_T(x) = −V(x)` of a value network: the return that is expected after the horizon, to be gained."""

    def __init__(self, network: Network, normalizer: Normalizer) -> None:
        super().__init__()
        check_inputs("TerminalValue", network, normalizer)
        check_one_number("TerminalValue", network)
        self.network, self.normalizer = network, normalizer

    def value_and_grad(self, x: Tensor, goal: Tensor | None, params: Any) -> tuple[Tensor, Tensor]:
        value, pull = self.network.vjp(self.normalizer(x))
        return -value[..., 0], pull(-torch.ones_like(value)) / self.normalizer.k


class CustomCost(nn.Module):
    """Any PyTorch function or module, `cost(x, u, goal, t, params) → [...]` or `cost(x, u) → [...]`, through autograd.

    Features are last and any shape may lead: `x [..., nx]`, `u [..., nu]`; `goal`, `t` and the entries of `params`
    broadcast against them. The function must treat rows alone and give one number a row. A module moves and changes
    dtype with the problem; a plain function's own tensors are its own business.
    """

    def __init__(self, function: CostFunction) -> None:
        super().__init__()
        self.function = function
        expected = f"{COST_ARGUMENTS} or (x, u)"
        self.simple = takes(function, (5, 2), "Problem.cost", expected) == 2
        if self.simple and (named := arguments(function)).endswith((" goal)", " t)", " params)")):
            raise TypeError(f"Problem.cost takes {named}, but of two arguments the second is u; expected {expected}")

    def value_and_grad(
        self, x: Tensor, u: Tensor, goal: Tensor | None, t: Tensor, params: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        extra = () if self.simple else (goal, t, params)
        with naming_absent("cost", goal=goal, params=params):
            value, (grad_x, grad_u) = _autograd("cost", lambda x, u: self.function(x, u, *extra), x, u)
        return value, grad_x, grad_u


class CustomTerminal(nn.Module):
    """Any PyTorch function or module of the last state, `terminal(x, goal, params) → [...]` or `terminal(x)`, as above."""

    def __init__(self, function: CostFunction) -> None:
        super().__init__()
        self.function = function
        self.simple = takes(function, (3, 1), "Problem.terminal", f"{TERMINAL_ARGUMENTS} or (x)") == 1

    def value_and_grad(self, x: Tensor, goal: Tensor | None, params: Any) -> tuple[Tensor, Tensor]:
        extra = () if self.simple else (goal, params)
        with naming_absent("terminal", goal=goal, params=params):
            value, (grad,) = _autograd("terminal", lambda x: self.function(x, *extra), x)
        return value, grad


def check_one_number(owner: str, network: Network) -> None:
    check_unconditioned(owner, network)
    if network.spec.outputs != 1:
        raise ValueError(f"{owner}: the network has {network.spec.outputs} outputs; make it 1")


def arguments(function: Callable[..., Any]) -> str:
    """The names of a function's arguments, as in `(x, u)`; `(…)` where it does not tell."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return "(…)"
    return f"({', '.join(signature.parameters)})"


def takes(function: Callable[..., Any], counts: tuple[int, ...], name: str, expected: str) -> int:
    """The first of `counts` that the function can be called with; the first where it does not tell. TypeError if none."""
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return counts[0]
    for count in counts:
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    raise TypeError(f"{name} takes {len(signature.parameters)} arguments, {signature}; expected {expected}")


@contextmanager
def naming_absent(name: str, **given: Any) -> Iterator[None]:
    """Where a function fails on a goal or params that are None, or lack a key, say what was given."""
    try:
        yield
    except KeyError as error:
        params = given.get("params")
        if not isinstance(params, dict) or not error.args or error.args[0] in params:
            raise
        raise ValueError(f"{name} failed on the key {error.args[0]!r}; params has {', '.join(map(repr, params))}") from error
    except TypeError as error:
        absent = [what for what, value in given.items() if value is None]
        if "NoneType" not in str(error) or not absent:
            raise
        raise TypeError(f"{name} failed ({error}), and no {' or '.join(absent)} was given; pass it to solve") from error


def _autograd(name: str, function: CostFunction, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Values and input-gradients of a function of independent rows; an input that it does not use has gradient zero."""
    rows = inputs[0].shape[:-1]
    with torch.enable_grad():
        leaves = [z.detach().requires_grad_() for z in inputs]
        value = one_a_row(name, function(*leaves), rows)
        if not value.requires_grad:
            raise ValueError(
                f"{name} gave a value that is cut off from autograd (no_grad, detach or NumPy?): its gradient is unknown; "
                "where it truly is constant, add 0 * x.sum()"
            )
        grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return value.detach(), tuple(torch.zeros_like(z) if g is None else g for g, z in zip(grads, inputs, strict=True))


def one_a_row(name: str, value: Any, rows: torch.Size) -> Tensor:
    """What a cost function gave, as a tensor of one number a row; raises where it is none."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} gave a {type(value).__name__}; expected a tensor of one number a row, {list(rows)}, made of x by "
            "PyTorch (not by float(), .item() or NumPy); a constant c is c + 0 * x.sum(-1)"
        )
    value = value[..., 0] if value.shape == (*rows, 1) else value
    if value.shape != rows:
        raise ValueError(f"{name} gave shape {tuple(value.shape)} for rows {tuple(rows)}; expected one number a row")
    return value


def _quadratic(matrix: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """`dᵀ M d` and its gradient `(M + Mᵀ) d` for rows `d [..., n]`."""
    md = d @ matrix.T
    return (md * d).sum(-1), md + d @ matrix


def _from_goal(x: Tensor, goal: Tensor | None, default: Tensor | None) -> Tensor:
    goal = default if goal is None else goal
    return x if goal is None else x - goal


def _square(name: str, matrix: Tensor) -> Tensor:
    matrix = _floating(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; expected a square matrix, [n, n]")
    return matrix.detach().clone()


def _goal(goal: Tensor | None, features: int) -> Tensor | None:
    if goal is None:
        return None
    goal = _floating(goal)
    if goal.shape != (features,):
        raise ValueError(f"goal has shape {tuple(goal.shape)}; the matrix makes it [{features}]")
    return goal.detach().clone()


def _floating(values: Any) -> Tensor:
    """A tensor of the values, in PyTorch's default dtype where they are whole numbers."""
    tensor = torch.as_tensor(values)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
