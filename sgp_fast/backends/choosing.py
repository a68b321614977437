"""Which backend runs a sampling planner."""

from __future__ import annotations

import torch

from ..problem import Problem
from ..sampling import Sampler
from . import NAMES
from .sampling import EagerSampling, SamplingBackend


def choose_sampling(name: str, problem: Problem, planner: Sampler, device: torch.device) -> SamplingBackend:
    """The backend `name`, or for "auto" the fastest that can run; its `reason` says why. Raises ValueError."""
    if name not in ("auto", *NAMES):
        raise ValueError(f"backend is {name!r}; expected 'auto' or one of {', '.join(map(repr, NAMES))}")
    if name == "eager":
        return EagerSampling("asked for")
    if ":" in name:
        raise ValueError(f"backend {name!r} has no {type(planner).__name__}; use 'fused', or 'auto' to let it choose")
    kind = ("fused" if device.type == "cuda" else "compiled") if name == "auto" else name
    ask = _fused if kind == "fused" else _compiled
    made = ask(problem, planner, device, "asked for" if name != "auto" else None)
    if not isinstance(made, str):
        return made
    if name != "auto":
        raise ValueError(f"backend {name!r} cannot plan this: {made}; use backend='eager', or 'auto' to let it choose")
    return EagerSampling(f"not {kind}: {made}")


def _compiled(problem: Problem, planner: Sampler, device: torch.device, reason: str | None) -> SamplingBackend | str:
    """The backend, or why it cannot plan this."""
    from ..kernels.cpu import BuildError, load, why_unavailable
    from .native_sampling import CompiledSampling, why_not

    why = why_unavailable() or why_not(problem, planner, device)
    if why is not None:
        return why
    try:
        return CompiledSampling(load(), reason or "native code covers this problem")
    except BuildError as error:
        return str(error)


def _fused(problem: Problem, planner: Sampler, device: torch.device, reason: str | None) -> SamplingBackend | str:
    """The backend, or why it cannot plan this."""
    from .fused import why_unavailable

    if (why := why_unavailable()) is not None:
        return why
    from .fused.rollout import FusedSampling, why_not

    return why_not(problem, planner, device) or FusedSampling(reason or "kernels cover this problem")
