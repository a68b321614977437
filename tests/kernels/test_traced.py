"""Traced costs: the program of numbers is the function and its gradient, and so is what Triton and C++ make of it."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgp_fast.costs import CustomCost
from sgp_fast.kernels import cpu
from sgp_fast.kernels.traced import cpp_code
from sgp_fast.kernels.traced.expression import Expression
from sgp_fast.kernels.traced.trace import Features, Untraceable, pack_params, trace
from sgp_fast.kernels.traced.triton_code import device_function
from tests.custom_costs import NU, NX, TRACEABLE, UNTRACEABLE, Given

STEPS, PROBLEMS = 3, 7
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted
every_cost = pytest.mark.parametrize("name", TRACEABLE)


class Rows:
    """Random rows of a cost, the program of it, and what autograd says."""

    def __init__(self, case: Given, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        cost = CustomCost(case.cost)
        self.x = torch.randn(STEPS, PROBLEMS, NX, generator=generator).to(dtype)
        self.u = torch.randn(STEPS, PROBLEMS, NU, generator=generator).to(dtype)
        self.goal = torch.randn(PROBLEMS, NX, generator=generator).to(dtype) if case.goal else None
        self.params = case.params(PROBLEMS)
        self.t = torch.arange(STEPS)[:, None]
        self.features = Features.of(NX, NU, self.goal, self.params)
        self.program: Expression = trace(cost.value_and_grad, self.features, dtype, self.params)
        self.packed = pack_params(self.params, self.features)
        value, *grads = cost.value_and_grad(self.x, self.u, self.goal, self.t, self.params)
        self.wanted = torch.cat((value[..., None], *grads), -1)

    @property
    def features_of_rows(self) -> Tensor:
        lead = (STEPS, PROBLEMS)
        parts = [self.x, self.u, self.t[..., None].expand(*lead, 1)]
        parts[2:2] = [] if self.goal is None else [self.goal.expand(*lead, NX)]
        parts += [] if self.packed is None else [self.packed.expand(*lead, -1)]
        return torch.cat([part.to(self.x.dtype) for part in parts], -1)

    def error(self, got: Tensor) -> float:
        """Relative, of value and gradient together."""
        return float((got - self.wanted).norm() / self.wanted.norm())


@every_cost
def test_a_program_is_the_function_and_its_gradient(name: str) -> None:
    rows = Rows(TRACEABLE[name])
    assert rows.error(rows.program.evaluate(rows.features_of_rows)) < 1e-6


@pytest.mark.parametrize("name", [name for name in TRACEABLE if name not in ("huber", "time", "module")])
def test_in_float64_it_is_so_to_rounding(name: str) -> None:
    # Those left out hold float32 numbers of their own, which do not multiply with float64.
    rows = Rows(TRACEABLE[name], torch.float64)
    assert rows.error(rows.program.evaluate(rows.features_of_rows)) < 1e-13


@pytest.mark.parametrize("name", [name for name in UNTRACEABLE if name != "beyond its row"])
def test_what_cannot_be_traced_says_why(name: str) -> None:
    function, words = UNTRACEABLE[name]
    with pytest.raises(Untraceable, match=words):
        trace(CustomCost(function).value_and_grad, Features.of(NX, NU, None, None), torch.float32)


@triton.jit
def _rows_kernel(
    z_ptr, goal_ptr, params_ptr, value_ptr, grad_ptr, rows, problems, FUNCTION: tl.constexpr, NZ: tl.constexpr,
    NX: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < rows
    problem, step = n % problems, n // problems
    value = FUNCTION(
        z_ptr + n * NZ, goal_ptr + problem * NX, params_ptr + problem * P, step, grad_ptr + n * NZ, inside
    )  # fmt: skip
    tl.store(value_ptr + n, value, mask=inside)


@every_cost
def test_triton_makes_the_same_of_it(name: str) -> None:
    rows = Rows(TRACEABLE[name])
    z = torch.cat((rows.x, rows.u), -1).to(DEVICE)
    value, grad = torch.full((STEPS, PROBLEMS), torch.nan, device=DEVICE), torch.full_like(z, torch.nan)
    goal, params = (torch.zeros(1, device=DEVICE) if t is None else t.to(DEVICE) for t in (rows.goal, rows.packed))
    width = rows.features.params_width
    kernel: Any = _rows_kernel  # to the type checker, constants are none
    kernel[(2,)](
        z, goal, params, value, grad, STEPS * PROBLEMS, PROBLEMS,
        FUNCTION=device_function(rows.program, rows.features), NZ=NX + NU, NX=NX, P=width, BLOCK=16,
    )  # fmt: skip
    assert rows.error(torch.cat((value[..., None], grad), -1).cpu()) < 2e-6


def test_functions_of_different_costs_have_different_names() -> None:
    """The compiler tells functions that a kernel calls apart by their names and the types of what they are given."""
    made = [Rows(case) for case in TRACEABLE.values()]
    named = {repr(device_function(rows.program, rows.features)) for rows in made}
    assert len(named) == len({(rows.program, rows.features) for rows in made}) > 2


@pytest.mark.skipif(cpu.why_unavailable() is not None, reason=str(cpu.why_unavailable()))
@every_cost
def test_cpp_makes_the_same_of_it(name: str) -> None:
    rows = Rows(TRACEABLE[name])
    z = torch.cat((rows.x, rows.u), -1).contiguous()
    value, grad = torch.full((STEPS, PROBLEMS), torch.nan), torch.ones_like(z)
    pointer = cpu.function(cpp_code.source(rows.program, rows.features), cpp_code.SYMBOL)
    call = ctypes.cast(pointer, cpu.COST_FUNCTION)

    def address(t: Tensor | None) -> Any:
        return None if t is None else ctypes.c_void_p(t.data_ptr())

    call(
        address(z), NX + NU, address(rows.goal), NX, address(rows.packed), rows.features.params_width, 0, STEPS, PROBLEMS, 0,
        address(value), address(grad), NX + NU,
    )  # fmt: skip
    assert rows.error(torch.cat((value[..., None], grad - 1), -1)) < 1e-6


_UNARY = {
    "sin": torch.sin, "tanh": torch.tanh, "exp": lambda v: torch.exp(v.clamp(max=3)), "square": torch.square,
    "root": lambda v: (1 + v.square()).sqrt(), "log": lambda v: torch.log1p(v.abs()), "abs": torch.abs,
    "sigmoid": torch.sigmoid, "relu": torch.relu, "cube": lambda v: v**3, "flip": lambda v: v.flip(-1),
    "atan": torch.atan, "erf": torch.erf, "expm1": lambda v: torch.expm1(v.clamp(max=2)),
    "norm": lambda v: v / (1 + v.norm(dim=-1, keepdim=True)), "sum": lambda v: v + v.cumsum(-1),
}  # fmt: skip
_BINARY = {
    "add": torch.add, "mul": torch.mul, "max": torch.maximum, "min": torch.minimum,
    "hypot": lambda a, b: torch.hypot(a, 1 + b),
    "choose": lambda a, b: torch.where(a > b, a * b, a - b), "div": lambda a, b: a / (2 + b.square()),
    "angle": lambda a, b: torch.atan2(a, 1 + b.square()), "outer": lambda a, b: (a[..., :, None] * b[..., None, :]).mean(-1),
}  # fmt: skip


@settings(max_examples=50)
@given(st.data())
def test_random_costs_are_traced_to_rounding(data: st.DataObject) -> None:
    """In float64, value and gradient, of random compositions."""
    step = st.tuples(st.sampled_from([*_UNARY, *_BINARY]), st.integers(0, 9), st.integers(0, 9))
    steps = data.draw(st.lists(step, max_size=6))

    def cost(x: Tensor, u: Tensor) -> Tensor:
        values = [x, torch.cat((u, x[..., : NX - NU]), -1)]
        for op, i, j in steps:
            a, b = values[i % len(values)], values[j % len(values)]
            values.append(_UNARY[op](a) if op in _UNARY else _BINARY[op](a, b))
        return (values[-1] * values[0]).sum(-1) + values[1].mean(-1)

    rows = Rows(Given(cost), torch.float64, seed=len(steps))
    assert rows.error(rows.program.evaluate(rows.features_of_rows)) < 1e-12
