"""Problems with costs of every kind, for the regimes that are written in Gluon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tests.cases import NX, Case
from tests.fused.test_fused import DEVICE
from tests.fused.test_grid import problem


def rough(x: torch.Tensor, u: torch.Tensor, goal: torch.Tensor, t: torch.Tensor, params: Any) -> torch.Tensor:
    """A cost of one's own: Huber's, of the way to the goal, and of controls by their time."""
    size = (x - goal).abs()
    return torch.where(size < 1, 0.5 * size.square(), size - 0.5).sum(-1) + (1 + 0.1 * t) * u.square().sum(-1)


def reach(x: torch.Tensor, goal: torch.Tensor, params: dict[str, torch.Tensor]) -> torch.Tensor:
    """A terminal one, with numbers of each problem's own."""
    return params["weight"] * (x - goal).square().sum(-1).sqrt()


def costed(cost: str, terminal: str, scored: str | None, *, goal: bool = True, **options: Any) -> Case:
    """A problem with costs of these kinds: learned, quadratic, or traced."""
    of_ours = (cost if cost != "traced" else "quadratic", terminal if terminal != "traced" else "none")
    made = problem(*of_ours, scored, with_goal=goal, **{"width": 100, "hidden": 2, **options})
    rows, traced = len(made.x0), {name for name, kind in (("cost", cost), ("terminal", terminal)) if kind == "traced"}
    if traced and made.goal is None:
        made = replace(made, goal=torch.linspace(-1, 1, rows * NX, dtype=torch.float64, device=DEVICE).view(rows, NX))
    if "terminal" in traced:
        weight = torch.linspace(0.5, 2, rows, dtype=torch.float64, device=DEVICE)
        made = replace(made, params={"weight": weight})
    owns: dict[str, Any] = {"cost": rough, "terminal": reach}
    return replace(made, problem=replace(made.problem, **{name: owns[name] for name in traced}))


# Costs; score; whether each problem brings a goal; problems of a program or a group; batch, horizon, iterations. Every kind
# of running cost stands beside every kind of terminal one (a learned one beside none, which other tests have).
COSTS: list[Any] = [
    ("quadratic", "none", "score", True, 1, 1, 3, 2),
    ("quadratic", "none", None, False, 4, 3, 2, 2),
    ("quadratic", "quadratic", "score", False, 8, 5, 1, 1),
    ("quadratic", "value", None, True, 2, 3, 9, 1),
    ("quadratic", "traced", "noise", True, 8, 9, 2, 1),
    ("traced", "none", None, True, 8, 5, 9, 1),
    ("traced", "none", "score", True, 2, 1, 1, 2),
    ("traced", "quadratic", "noise", True, 1, 2, 3, 1),
    ("traced", "value", "score", True, 4, 4, 2, 1),
    ("traced", "traced", None, True, 2, 3, 1, 2),
    ("learned", "quadratic", None, True, 2, 1, 9, 1),
    ("learned", "value", "score", True, 8, 3, 1, 1),
    ("learned", "value", None, True, 1, 1, 3, 2),
    ("learned", "traced", "score", True, 4, 5, 3, 1),
]
