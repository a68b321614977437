"""The tensors of one bucket of problems: what a plan reads and what it writes, at addresses that never change."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Buffers:
    """R rows (a start of a problem each), rows first; float32 unless told otherwise.

    x0 [R, nx]; decision variables v, the last good ones and Adam's moments m and s `[R, T, nu]`, its step count [R];
    active, diverged, converged [R] of int8, taken [R] of int32;
    low, high [R, nu], goal [R, nx] or None;
    of the last evaluation: x and costate [R, T+1, nx], grad_u [R, T, nu], running [R, T], terminal and change [R],
    score [R, T, nx+nu]; history [R, N] or None;
    tables beta and step_size [N], level [N] of int32.
    """

    x0: Tensor
    v: Tensor
    good: Tensor
    m: Tensor
    s: Tensor
    count: Tensor
    active: Tensor
    diverged: Tensor
    converged: Tensor
    taken: Tensor
    low: Tensor | None
    high: Tensor | None
    goal: Tensor | None
    x: Tensor
    costate: Tensor
    grad_u: Tensor
    running: Tensor
    terminal: Tensor
    change: Tensor
    score: Tensor
    history: Tensor | None
    beta: Tensor
    step_size: Tensor
    level: Tensor

    @classmethod
    def allocate(
        cls, rows: int, horizon: int, nx: int, nu: int, iterations: int, device: torch.device, *,
        bounded: bool, with_goal: bool, with_history: bool,
    ) -> Buffers:  # fmt: skip
        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        def flags() -> Tensor:
            return torch.zeros(rows, dtype=torch.int8, device=device)

        controls = (rows, horizon, nu)
        return cls(
            x0=floats(rows, nx), v=floats(*controls), good=floats(*controls), m=floats(*controls), s=floats(*controls),
            count=floats(rows), active=flags(), diverged=flags(), converged=flags(),
            taken=torch.zeros(rows, dtype=torch.int32, device=device),
            low=floats(rows, nu) if bounded else None, high=floats(rows, nu) if bounded else None,
            goal=floats(rows, nx) if with_goal else None,
            x=floats(rows, horizon + 1, nx), costate=floats(rows, horizon + 1, nx), grad_u=floats(*controls),
            running=floats(rows, horizon), terminal=floats(rows), change=floats(rows),
            score=floats(rows, horizon, nx + nu), history=floats(rows, iterations) if with_history else None,
            beta=floats(iterations), step_size=floats(iterations),
            level=torch.zeros(iterations, dtype=torch.int32, device=device),
        )  # fmt: skip

    @property
    def rows(self) -> int:
        return len(self.x0)

    @property
    def horizon(self) -> int:
        return self.v.shape[1]

    @property
    def bytes(self) -> int:
        tensors = [t for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)
