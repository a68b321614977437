"""A problem as the kernels read it: every part packed in one width, `columns`, in which the state comes before the controls.

A tile `[rows, columns]` of one step holds `z = (x, u)`, padded with zeros; a gradient in z has the costate's part and the
controls' part in the same places, so that nothing is ever joined or cut apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.packing import InputPrecision, PackedNetwork, padded
from ...problem import Problem
from .functions import Functions, own


@dataclass(frozen=True)
class PackedModel:
    """A network over z̄ = (z − b)·inv_k; `b` and `inv_k` are `[columns]`, zero in the padding."""

    network: PackedNetwork
    b: Tensor
    inv_k: Tensor


class PackedProblem:
    """The parts of a problem on a device, with products in `dtype` (float32, IEEE or tf32, float16 or bfloat16).

    dynamics        `x' = x + scale ⊙ net(z̄)`, `scale [columns]`
    score           `s = net(z̄)·inv_k·gain[level]`; None without one
    cost, terminal  a learned cost or value: a model, or None
    curvature       `[columns, columns]` of float32, `Q + Qᵀ` and `R + Rᵀ` on the diagonal: a quadratic cost is
                    `½ dᵀ S d` with gradient `S d`, `d = z − goal`; None for a learned cost. `last_curvature` is the terminal
                    cost's
    goal            `[1, columns]`, `last_goal` likewise: of the costs themselves, for problems that bring none
    functions       costs that are not of ours; they are not packed
    derived         what a regime makes of the weights for itself, made again after each `refresh`

    `refresh` copies all of it from the problem as it is now. It allocates nothing, so that it can be part of a graph.
    """

    def __init__(
        self, problem: Problem, dtype: torch.dtype, device: torch.device, functions: Functions | None = None,
        input_precision: InputPrecision = "ieee",
    ) -> None:  # fmt: skip
        self.nx, self.nu = problem.dynamics.nx, problem.dynamics.nu
        self.columns = padded(self.nx + self.nu)
        self.dtype, self.device, self.functions = dtype, device, functions or Functions()
        cost, terminal = own(problem.cost), own(problem.terminal)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        def model(part: Any, out_columns: int) -> PackedModel | None:
            if getattr(part, "network", None) is None:
                return None
            network = PackedNetwork(part.network.spec, dtype, device, self.columns, out_columns, input_precision)
            return PackedModel(network, zeros(self.columns), zeros(self.columns))

        dynamics = model(problem.dynamics, self.columns)
        assert dynamics is not None
        self.dynamics = dynamics
        self.score, self.cost = model(problem.score, self.columns), model(cost, 0)
        self.terminal = model(terminal, 0)
        self.scale, self.goal, self.last_goal = zeros(self.columns), zeros(1, self.columns), zeros(1, self.columns)
        self.gain = zeros(1 if problem.score is None else problem.score.levels)
        self.curvature = zeros(self.columns, self.columns) if hasattr(cost, "Q") else None
        self.last_curvature = zeros(self.columns, self.columns) if hasattr(terminal, "Q") else None
        self.control_change = problem.control_change
        self.derived: list[Callable[[], None]] = []
        self.refresh(problem)

    @torch.no_grad()
    def refresh(self, problem: Problem) -> None:
        """Copy weights, normalisers and matrices of this moment."""
        nx = self.nx
        parts = (problem.dynamics, problem.score, problem.cost, problem.terminal)
        for part, model in zip(parts, (self.dynamics, self.score, self.cost, self.terminal), strict=True):
            if model is None or part is None:
                continue
            model.network.refresh(part.network.weights)
            width = len(part.normalizer.b)
            model.b[:width].copy_(part.normalizer.b)
            model.inv_k[:width].copy_(part.normalizer.k).reciprocal_()
        self.scale[:nx].copy_(problem.dynamics.scale)
        if problem.score is not None:
            self.gain.copy_(problem.score.sigmas).reciprocal_() if problem.score.output == "noise" else self.gain.fill_(1)
        if self.curvature is not None:
            nz = nx + self.nu
            self.curvature[:nx, :nx].copy_(problem.cost.Q).add_(problem.cost.Q.T)
            self.curvature[nx:nz, nx:nz].copy_(problem.cost.R).add_(problem.cost.R.T)
        if self.last_curvature is not None:
            self.last_curvature[:nx, :nx].copy_(problem.terminal.Q).add_(problem.terminal.Q.T)
        for part, goal in ((own(problem.cost), self.goal), (own(problem.terminal), self.last_goal)):
            if getattr(part, "goal", None) is not None:
                goal[0, :nx].copy_(part.goal)
        for make in self.derived:
            make()

    @property
    def has_terminal(self) -> bool:
        """Whether something stands at the end of the horizon."""
        return not (self.terminal is None and self.last_curvature is None and self.functions.costs.terminal is None)

    @property
    def models(self) -> dict[str, PackedModel]:
        """The networks, by the names of the problem's parts."""
        parts = {"dynamics": self.dynamics, "score": self.score, "cost": self.cost, "terminal": self.terminal}
        return {name: model for name, model in parts.items() if model is not None}

