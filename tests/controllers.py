"""Small things to control: random problems of Hopper's size, a point mass that is an environment and a model at once."""

from __future__ import annotations

from typing import Any

import torch

import sgp_fast as sgp


def normalizer(features: int) -> sgp.Normalizer:
    return sgp.Normalizer(torch.zeros(features), torch.ones(features))


def models(nx: int = 11, nu: int = 3, width: int = 8, **info: Any) -> sgp.Models:
    """Random networks with the parts of a trained run; what they say means nothing."""
    spec = {
        "dynamics": sgp.NetworkSpec(nx + nu, (sgp.Layer(width, "tanh"), sgp.Layer(nx))),
        "score": sgp.NetworkSpec(
            nx + nu, (sgp.Layer(width, "tanh"), sgp.Layer(width, "tanh", condition="multiply"), sgp.Layer(nx + nu)), levels=3
        ),
        "cost": sgp.NetworkSpec(nx + nu, (sgp.Layer(width, "tanh"), sgp.Layer(1))),
    }
    dynamics = sgp.Dynamics(sgp.Network(spec["dynamics"], 0), normalizer(nx + nu), 0.1 * torch.ones(nx))
    score = sgp.Score(sgp.Network(spec["score"], 1), normalizer(nx + nu), torch.tensor([0.3, 0.1, 0.03]))
    return sgp.Models(dynamics, score, sgp.LearnedCost(sgp.Network(spec["cost"], 2), normalizer(nx + nu)), info)


def problem(nx: int = 11, nu: int = 3, **options: Any) -> sgp.Problem:
    parts = models(nx, nu)
    given = {"dynamics": parts.dynamics, "cost": parts.cost, "score": parts.score, "bounds": (-1.0, 1.0)}
    return sgp.Problem(**(given | options))


STEP = 0.1


def point_mass(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Position and velocity on a line, pushed by u: `p' = p + v dt`, `v' = v + u dt`."""
    position, velocity = x[..., :1], x[..., 1:]
    return torch.cat((position + STEP * velocity, velocity + STEP * u), -1)


def to_origin(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1) + 0.01 * u.square().sum(-1)


def point_problem(**options: Any) -> sgp.Problem:
    """Bring the point mass to rest at the origin."""
    return sgp.Problem(**({"dynamics": point_mass, "cost": to_origin, "bounds": (-1.0, 1.0), "nu": 1} | options))
