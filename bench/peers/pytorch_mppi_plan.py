"""MPPI of pytorch_mppi over the models of a case, one problem at a time or batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgp_fast.planner import Precision

from ..cases import Case
from .models import SAMPLING, Models, Sampling, load, models_of, seeded

# Its own arithmetic is float32; the models that it calls may multiply in less.
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Carried:
    """The models where the cost is evaluated after the step: the state carries the cost of the step that led to it.

    pytorch_mppi evaluates `c(x_{t+1}, u_t)`, our cost is `c(x_t, u_t)`; hence `y = (x, c)`, `f(y, u) = (f(x, u), c(x, u))`.
    """

    models: Models

    @staticmethod
    def start(x0: Tensor) -> Tensor:
        return torch.cat((x0, torch.zeros_like(x0[..., :1])), -1)

    def dynamics(self, y: Tensor, u: Tensor) -> Tensor:
        x = y[..., :-1]
        return torch.cat((self.models.step(x, u), self.models.cost(x, u)[..., None]), -1)

    def running_cost(self, y: Tensor, u: Tensor) -> Tensor:
        return y[..., -1]


@dataclass(frozen=True, eq=False)
class PytorchMPPI:
    """pytorch_mppi's planners from `case.init`: `iterations` commands that refine the nominal controls without a shift."""

    case: Case
    model: Carried
    settings: Sampling
    parts: tuple[tuple[Any, Tensor, Tensor], ...]
    """A planner with the start and the initial controls of what it plans: one problem, or a block of them."""

    @torch.no_grad()
    def __call__(self) -> Tensor:
        found = []
        with seeded(self.settings.seed, self.case.device):
            for mppi, start, init in self.parts:
                mppi.U = init.clone()
                for _ in range(self.settings.iterations):
                    mppi.command(start, shift_nominal_trajectory=False)
                found.append(mppi.U.view(-1, *init.shape[-2:]))
        return torch.cat(found).clamp(self.model.models.low, self.model.models.high)

    @torch.no_grad()
    def foreseen(self, u: Tensor) -> Tensor:
        """Task cost `[B]` of controls `u [B, T, nu]` of the first problems, through the functions that the library calls."""
        y, total = self.model.start(self.case.x0[: len(u)]), u.new_zeros(len(u))
        for u_t in u.unbind(1):
            y = self.model.dynamics(y, u_t)
            total = total + self.model.running_cost(y, u_t)
        return total


def pytorch_mppi(case: Case, settings: Sampling = SAMPLING, batched: bool = False) -> PytorchMPPI:
    """MPPI (Williams et al. 2017) of pytorch_mppi, each problem in turn; or its MPPI_Batched, where all share noise."""
    library, model = load("pytorch_mppi"), Carried(models_of(case, PRECISIONS))
    low, high = model.models.low, model.models.high
    options: dict[str, Any] = {
        "nx": case.x0.shape[1] + 1,
        "noise_sigma": torch.diag((settings.spread * (high - low)).square()),
        "num_samples": settings.candidates,
        "horizon": case.planner.horizon,
        "device": case.device,
        "lambda_": settings.temperature,
        "u_min": low,
        "u_max": high,
    }
    start = model.start(case.x0)
    if batched:
        blocks = tuple(zip(settings.blocks(start), settings.blocks(case.init), strict=True))
        make = library.MPPI_Batched
        planners = [make(model.dynamics, model.running_cost, num_envs=len(y), **options) for y, _ in blocks]
    else:
        blocks = tuple(zip(start, case.init, strict=True))
        planners = [library.MPPI(model.dynamics, model.running_cost, **options)] * len(blocks)
    return PytorchMPPI(case, model, settings, tuple((p, y, u) for p, (y, u) in zip(planners, blocks, strict=True)))
