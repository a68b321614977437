"""Ways to plan: `eager`, plain PyTorch, the reference; `compiled`, native code for CPUs, faster. `choose` picks one."""

from __future__ import annotations

from collections.abc import Callable
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
    from ..kernels.cpu import why_unavailable

    return {"eager": None, "compiled": why_unavailable()}


def choose(
    name: str,
    problem: Problem,
    planner: SGP,
    device: torch.device,
    batch: int,
    callback: Callable[[Iteration], None] | None = None,
) -> Backend:
    """The backend `name`, or for "auto" the fastest that can run; its `reason` says why. Raises ValueError.

    "auto" takes `compiled` wherever it can be built and covers the problem. There is no race against `eager` first: both use
    the processor's widest instructions, and native code does the same products without the interpreter between them, so a
    race would cost more than it could win. The first use compiles for a few seconds; the result is kept on disk.
    """
    from ..kernels.cpu import BuildError, load
    from .compiled import Compiled, why_not
    from .eager import Eager

    if name not in ("auto", *NAMES):
        raise ValueError(f"backend is {name!r}; expected 'auto' or one of {', '.join(map(repr, NAMES))}")
    if name == "eager":
        return Eager("asked for")
    why = available()["compiled"] or why_not(problem, planner, device, callback)
    if why is None:
        try:
            return Compiled(load(), "asked for" if name == "compiled" else "native code covers this problem")
        except BuildError as error:
            why = str(error)
    if name == "compiled":
        raise ValueError(f"backend 'compiled' cannot plan this: {why}; use backend='eager', or 'auto' to let it choose")
    return Eager(f"not compiled: {why}")
