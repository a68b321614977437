"""A case as the baselines take it: checked for what they cover, cast to its precision, laid out time first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sgp_fast.backends.coverage import foreign_part
from sgp_fast.costs import LearnedCost
from sgp_fast.kernels.network import Block, NetworkSpec
from sgp_fast.models import Dynamics, Network, Score, cast
from sgp_fast.schedule import table

from ..cases import Case
from ..rung import Unavailable

FULL = ("float64", "float32", "tf32")
"""Precisions in which the weights need not be cast."""
EVERY = (*FULL, "float16", "bfloat16")


class Step(NamedTuple):
    """What changes from one iteration to the next: β, the noise level, Adam's step size."""

    beta: float
    level: int
    size: float


@dataclass(frozen=True, eq=False)
class Batch:
    """Problems to plan: `x0 [B, nx]`, controls to start from `u [T, B, nu]`, limits `[B, nu]`, or None without any.

    The models are frozen copies in the planner's dtypes: products in `precision`, all else in float32, or float64 with that;
    networks wholly in 16 bits where `batch_of` was asked for these.
    """

    dynamics: Dynamics
    cost: LearnedCost
    score: Score | None
    x0: Tensor
    u: Tensor
    low: Tensor | None
    high: Tensor | None
    steps: tuple[Step, ...]
    adam: tuple[float, float, float]
    precision: str

    @property
    def device(self) -> torch.device:
        return self.x0.device

    def adam_over(self, u: Tensor, *, fused: bool) -> torch.optim.Adam:
        """PyTorch's Adam with the planner's constants; each step sets its size."""
        b1, b2, eps = self.adam
        return torch.optim.Adam([u], betas=(b1, b2), eps=eps, fused=fused)


class Narrow(nn.Module):
    """A network that holds and passes on all its numbers in the dtype of its products, for inputs and outputs of another.

    That is how 16 bits pay in plain library calls: what is written between two products is half as long, and one call
    makes product and bias.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    @property
    def spec(self) -> NetworkSpec:
        return self.network.spec

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.network.weights

    def condition(self, at: Tensor | int) -> Tensor | None:
        return self.network.condition(at)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.network(z.to(self.dtype), condition).to(z.dtype)


def batch_of(case: Case, precisions: tuple[str, ...], *, narrow: bool = False) -> Batch:
    """The case, laid out; Unavailable where the baselines do not cover it, or where `precisions` lacks the planner's.

    `narrow`: networks wholly in the dtype of the products, for callers whose compiler does not join what is between these.
    """
    planner, problem = case.planner, case.problem
    if planner.precision not in precisions:
        raise Unavailable(f"multiplies in {', '.join(precisions)}; the case wants {planner.precision}")
    if (why := _uncovered(case)) is not None:
        raise Unavailable(f"baselines plan our networks of plain layers with a learned cost; {why}")
    state, products, device = planner.state_dtype, planner.product_dtype, case.device

    def part(model: Any) -> Any:
        if model is None:
            return None
        made: Any = cast(model, state, products).to(device)
        if narrow and products != state:
            made.network = Narrow(made.network, products)
        return made

    u = case.init.to(state).transpose(0, 1).clone(memory_format=torch.contiguous_format)
    low = high = None
    if problem.bounds is not None:
        low, high = (torch.as_tensor(b, dtype=state, device=device).expand(u.shape[1:]) for b in problem.bounds)
        u = torch.clamp(u, low, high)
    sizes = table(planner.step_size, planner.iterations, "step_size")
    return Batch(
        dynamics=part(problem.dynamics), cost=part(problem.cost), score=part(problem.score), x0=case.x0.to(state), u=u,
        low=low, high=high, steps=tuple(Step(*at, size) for at, size in zip(case.schedule, sizes, strict=True)),
        adam=planner.adam, precision=planner.precision,
    )  # fmt: skip


def _uncovered(case: Case) -> str | None:
    """What of a case the baselines do not cover; None where they cover it."""
    problem, planner = case.problem, case.planner
    if (why := foreign_part(problem, _unplain)) is not None:
        return why
    if not isinstance(problem.cost, LearnedCost):
        return f"the cost is a {type(problem.cost).__name__}"
    others = {
        "there is a terminal cost": problem.terminal is not None,
        "the change of control is penalised": problem.control_change > 0,
        "tanh keeps the bounds, and they only project": planner.bounding == "tanh",
        f"there are {planner.starts} starts a problem": planner.starts > 1,
        "gradients are clipped": planner.clip_gradient is not None,
        "converged problems stop early: set tolerance=0": planner.tolerance > 0,
    }
    return next((why for why, holds in others.items() if holds), None)


def _unplain(part: str, spec: NetworkSpec) -> str | None:
    if spec.time is not None:
        return "a network with an embedding of time"
    if any(isinstance(layer, Block) for layer in spec.layers):
        return "a network of pre-norm blocks"
    return None
