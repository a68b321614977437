"""Ways to plan: `eager`, plain PyTorch, the reference; `compiled`, native code for CPUs; `fused`, kernels for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..planner import SGP
from ..problem import Problem
from .eager import Eager
from .job import Backend, Iteration, Job, Tables

__all__ = ["Backend", "Iteration", "Job", "Tables", "available", "choose"]

NAMES = ("eager", "compiled", "fused", "fused:tile", "fused:layered", "fused:grid", "fused:ring", "fused:relay")


def available() -> dict[str, str | None]:
    """Each backend's name, with None where it can run here and otherwise the reason why not."""
    from ..kernels.cpu import why_unavailable
    from .fused import why_unavailable as fused_why

    return {"eager": None, "compiled": why_unavailable(), "fused": fused_why()}


def choose(
    name: str,
    problem: Problem,
    planner: SGP,
    device: torch.device,
    callback: Callable[[Iteration], None] | None = None,
) -> Backend:
    """The backend `name`, or for "auto" the fastest that can run; its `reason` says why. Raises ValueError.

    "auto" takes the one with kernels for the device, wherever it can run here and covers the problem: `fused` on GPUs, where
    the regimes are measured against each other and against `eager`, `compiled` on CPUs. There is no race of `compiled`
    against `eager`: both use the processor's widest instructions, and native code does the same products without the
    interpreter between them. The first use compiles for some seconds; the result is kept on disk.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"backend is {name!r}; expected 'auto' or one of {', '.join(map(repr, NAMES))}")
    if name == "eager":
        return Eager("asked for")
    kind, _, regime = name.partition(":")
    if kind == "auto":
        kind = "fused" if device.type == "cuda" else "compiled"
    ask = _fused if kind == "fused" else _compiled
    made = ask(problem, planner, device, callback, "asked for" if name != "auto" else None, regime or None)
    if not isinstance(made, str):
        return made
    if name != "auto":
        raise ValueError(f"backend {name!r} cannot plan this: {made}; use backend='eager', or 'auto' to let it choose")
    return Eager(f"not {kind}: {made}")


def _compiled(
    problem: Problem, planner: SGP, device: torch.device, callback: Any, reason: str | None, regime: str | None
) -> Backend | str:
    """The backend, or why it cannot plan this."""
    from ..kernels.cpu import BuildError, load, why_unavailable
    from .compiled import Compiled, why_not

    why = why_unavailable() or why_not(problem, planner, device, callback)
    if why is not None:
        return why
    try:
        return Compiled(load(), reason or "native code covers this problem")
    except BuildError as error:
        return str(error)


def _fused(
    problem: Problem, planner: SGP, device: torch.device, callback: Any, reason: str | None, regime: str | None
) -> Backend | str:
    """The backend, or why it cannot plan this."""
    from .fused import Fused, why_not, why_unavailable

    why = why_unavailable() or why_not(problem, planner, device, callback)
    return why or Fused(reason or "kernels cover this problem", regime, race_eager=reason is None)
