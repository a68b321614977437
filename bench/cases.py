"""The problems that every rung plans: random networks of the published shapes and random starts, or your own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.kernels.network import mlp
from sgp_fast.models import Network
from sgp_fast.planner import Precision
from sgp_fast.schedule import level_table, table

Device = Literal["auto", "cpu", "cuda"]
NX, NU, LEVELS = 17, 6, 10
HIDDEN_LAYERS = 4


@dataclass(frozen=True, eq=False)
class Case:
    """A batch of problems with the planner and the controls that all rungs start from; `init [B, T, nu]`.

    `model` names the networks, "4×256" for those made here. The precision of matrix products is `planner.precision`.
    """

    model: str
    problem: sgp.Problem
    planner: sgp.SGP
    x0: Tensor
    init: Tensor

    @property
    def name(self) -> str:
        """Batch and model, and what is not as in the published benchmark: `64 × 4×256, T=16, bfloat16`."""
        rest = [f"T={self.planner.horizon}"] if self.planner.horizon != 8 else []
        rest += [f"{self.planner.iterations} iterations"] if self.planner.iterations != 50 else []
        rest += [self.planner.precision] if self.planner.precision != "float32" else []
        return ", ".join([f"{len(self.x0)} × {self.model}", *rest])

    @property
    def device(self) -> torch.device:
        return self.x0.device

    @property
    def schedule(self) -> list[tuple[float, int]]:
        """β and noise level of every iteration."""
        n, score = self.planner.iterations, self.problem.score
        if score is None:
            return [(0.0, 0)] * n
        levels = level_table(self.planner.levels, n, score.levels)
        return list(zip(table(self.planner.beta, n, "beta"), levels, strict=True))

    def first(self, count: int) -> Case:
        """The first problems of the batch, with their own bounds and goals where these have a row a problem."""

        def rows(t: Any) -> Any:
            return t[:count] if getattr(t, "ndim", 0) == 2 and len(t) == len(self.x0) else t

        problem = self.problem
        if count < len(self.x0):
            bounds: Any = None if problem.bounds is None else tuple(map(rows, problem.bounds))
            problem = replace(problem, bounds=bounds)
        return replace(self, problem=problem, x0=self.x0[:count], init=self.init[:count])

    def in_precision(self, precision: Precision) -> Case:
        return replace(self, planner=replace(self.planner, precision=precision))

    def to(self, device: torch.device | str) -> Case:
        """The case on a device; the problem's modules are moved, not copied."""
        for part in self.problem.modules.values():
            part.to(device)
        return replace(self, x0=self.x0.to(device), init=self.init.to(device))


def make_case(
    width: int,
    batch: int,
    *,
    hidden_layers: int = HIDDEN_LAYERS,
    horizon: int = 8,
    iterations: int = 50,
    precision: Precision = "float32",
    seed: int = 0,
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
    planner = sgp.SGP(
        horizon=horizon, iterations=iterations, step_size=0.1, beta=(0.2, 0.1), tolerance=0.0, precision=precision
    )
    x0 = torch.randn(batch, NX, generator=generator)
    init = 0.1 * torch.randn(batch, horizon, NU, generator=generator)
    return Case(f"{hidden_layers}×{width}", problem, planner, x0, init)


def device_of(name: Device) -> torch.device:
    """The device of that name; ValueError where it is not here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and torch sees no CUDA device; see `sgp-fast doctor`, or give --device cpu")
    return torch.device("cuda:0" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
