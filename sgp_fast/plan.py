"""The result of planning: controls, the states that the model foresees, and what a user needs in order to trust them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ._tensorfile import load_tensors, save_tensors


class Status(IntEnum):
    """How a problem ended."""

    LIMIT = 0
    """All iterations, or the time, were used."""
    CONVERGED = 1
    """The projected gradient fell below the tolerance after the schedules had ended."""
    DIVERGED = 2
    """A state, cost or gradient was no longer finite; the controls are the last whose gradient was."""


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """B plans. Costs are at the returned controls; the penalty and the score norms at the last noise level.

    u           controls `[B, T, nu]`
    x           states `[B, T+1, nx]`, the first is the start
    costate     `λ_t = ∂(cost)/∂x_t` with the score's part, `[B, T+1, nx]`
    cost        task cost `[B]`, `running + terminal + change`
    terms       its parts, `running [B, T]`, `terminal [B]`, `change [B]`, and `penalty [B]`, the distance to the data in
                the units of the cost, `β_end · ½ σ_end² Σ_t ‖s̄(z̄_t)‖²`
    status      `[B]`, values of `Status`
    score_norm  `‖s̄(z̄_t)‖` along the horizon, `[B, T]`: large where the plan leaves the data
    grad_norm   norm of the projected gradient at the returned controls `[B]`
    iterations  steps that each problem took `[B]`
    history     task cost before each step, `[B, iterations]`, where the planner records it
    moments     Adam's first and second moments and step count, where the planner keeps them
    stats       backend and why, seconds, schedules as used (`beta`, `sigma`), of what account the `score` was, chunks
    """

    u: Tensor
    x: Tensor
    costate: Tensor
    cost: Tensor
    terms: dict[str, Tensor]
    status: Tensor
    score_norm: Tensor
    grad_norm: Tensor
    iterations: Tensor
    history: Tensor | None = None
    moments: tuple[Tensor, Tensor, Tensor] | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.u)

    def __repr__(self) -> str:
        counts = ", ".join(f"{int((self.status == s).sum())} {s.name.lower()}" for s in Status)
        _, horizon, nu = self.u.shape
        backend = self.stats.get("backend", "unknown")
        score = ", no score" if str(self.stats.get("score")).startswith("absent") else ""
        cost = f"mean cost {float(self.cost.mean()):.4g}"
        return f"Plan({len(self)} problems, horizon {horizon}, {nu} controls; {counts}; {cost}{score}; {backend})"

    @property
    def ranking(self) -> Tensor:
        """What plans of one problem are compared by, `[B]`: task cost and distance to the data; infinite if diverged."""
        value = self.cost + self.terms["penalty"]
        return torch.where((self.status == Status.DIVERGED) | value.isnan(), torch.inf, value)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a flat name, first axis B; `terms.running` and so on."""
        out: dict[str, Tensor] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                out[item.name] = value
            elif item.name == "terms":
                out |= {f"terms.{name}": term for name, term in value.items()}
            elif item.name == "moments" and value is not None:
                out |= {f"moments.{i}": moment for i, moment in enumerate(value)}
        return out

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], stats: dict[str, Any]) -> Plan:
        """The plan whose `tensors()` these are."""
        plain = {name: t for name, t in tensors.items() if "." not in name}
        terms = {name.removeprefix("terms."): t for name, t in tensors.items() if name.startswith("terms.")}
        moments = None
        if "moments.0" in tensors:
            moments = (tensors["moments.0"], tensors["moments.1"], tensors["moments.2"])
        return cls(**plain, terms=terms, moments=moments, stats=stats)

    def select(self, rows: Tensor) -> Plan:
        """The plans of some problems: `rows` are indices or a mask `[B]`."""
        return Plan.from_tensors({name: t[rows] for name, t in self.tensors().items()}, self.stats)

    @classmethod
    def concatenate(cls, plans: list[Plan], stats: dict[str, Any]) -> Plan:
        """One plan of the problems of several, in order."""
        parts = [plan.tensors() for plan in plans]
        return cls.from_tensors({name: torch.cat([p[name] for p in parts]) for name in parts[0]}, stats)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to one safetensors file, atomically; `Plan.load` reads it."""
        save_tensors(path, self.tensors(), {"kind": "plan", "version": 1, "stats": self.stats})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan that `save` wrote; raises FileNotFoundError or ValueError with the remedy."""
        tensors, config = load_tensors(path, "plan")
        return cls.from_tensors(tensors, config["stats"])
