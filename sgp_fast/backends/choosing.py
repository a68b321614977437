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
    kind = type(planner).__name__
    if name not in ("auto", "fused"):
        raise ValueError(f"backend {name!r} has no {kind}; use 'fused' on GPUs, 'eager', or 'auto' to let it choose")
    if name == "auto" and device.type != "cuda":
        return EagerSampling(f"{kind} has kernels for GPUs, and the models are on {device}")
    from .fused import why_unavailable

    why = why_unavailable()
    if why is None:
        from .fused.rollout import FusedSampling, why_not

        why = why_not(problem, planner, device)
        if why is None:
            return FusedSampling("asked for" if name != "auto" else "kernels cover this problem")
    if name != "auto":
        raise ValueError(f"backend {name!r} cannot plan this: {why}; use backend='eager', or 'auto' to let it choose")
    return EagerSampling(f"not fused: {why}")
