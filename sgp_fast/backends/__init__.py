"""Ways to plan: `eager`, plain PyTorch, the reference; `compiled`, the same for CPUs, faster. `choose` picks one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .job import Backend, Iteration, Job, Tables

if TYPE_CHECKING:
    from ..planner import SGP
    from ..problem import Problem

__all__ = ["Backend", "Iteration", "Job", "Tables", "available", "choose"]

NAMES = ("eager", "compiled")


def available() -> dict[str, str | None]:
    """Each backend's name, with None where it can run here and otherwise the reason why not."""
    return {"eager": None, "compiled": "not built yet"}


def choose(name: str, problem: Problem, planner: SGP, device: torch.device, batch: int) -> Backend:
    """The backend `name`, or for "auto" the fastest that can run; its `reason` says why. Raises ValueError."""
    from .eager import Eager

    if name not in ("auto", *NAMES):
        raise ValueError(f"backend is {name!r}; expected 'auto' or one of {', '.join(map(repr, NAMES))}")
    if name != "auto" and (why := available()[name]) is not None:
        raise ValueError(f"backend {name!r} cannot run here: {why}; use backend='eager'")
    return Eager("asked for" if name == "eager" else "the only backend that can run here")
