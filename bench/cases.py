"""The problems that every rung plans: networks of the published shapes with random weights, and random starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.kernels.network import mlp
from sgp_fast.models import Network

NX, NU, LEVELS = 17, 6, 10


@dataclass(frozen=True)
class Case:
    """A batch of problems with the planner and the controls that all rungs start from; `init [B, T, nu]`."""

    name: str
    problem: sgp.Problem
    planner: sgp.SGP
    step_size: float
    x0: Tensor
    init: Tensor


def make_case(
    width: int, batch: int, *, hidden_layers: int = 4, horizon: int = 8, iterations: int = 50, seed: int = 0
) -> Case:
    """HalfCheetah's sizes (17 states, 6 controls), a learned cost, ten noise levels, controls projected to [−1, 1].

    Weights are random: speed does not depend on their values, and plans of random networks compare as well as any.
    """
    shape: dict[str, Any] = {"width": width, "hidden_layers": hidden_layers}
    generator = torch.Generator().manual_seed(seed)
    normalizer = sgp.Normalizer(
        0.1 * torch.randn(NX + NU, generator=generator), 0.5 + torch.rand(NX + NU, generator=generator)
    )
    dynamics = Network(mlp(NX + NU, NX, norm=True, **shape), seed)
    cost = Network(mlp(NX + NU, 1, norm=True, **shape), seed + 1)
    score = Network(mlp(NX + NU, NX + NU, norm=True, levels=LEVELS, **shape), seed + 2)
    problem = sgp.Problem(
        dynamics=sgp.Dynamics(dynamics, normalizer).requires_grad_(False),
        cost=sgp.LearnedCost(cost, normalizer).requires_grad_(False),
        score=sgp.Score(score, normalizer, torch.logspace(-0.5, -3, LEVELS)).requires_grad_(False),
        bounds=(-1.0, 1.0),
    )
    step_size = 0.1
    planner = sgp.SGP(horizon=horizon, iterations=iterations, step_size=step_size, beta=(0.2, 0.1), tolerance=0.0)
    x0 = torch.randn(batch, NX, generator=generator)
    init = 0.1 * torch.randn(batch, horizon, NU, generator=generator)
    return Case(f"{batch} × {hidden_layers}×{width}", problem, planner, step_size, x0, init)
