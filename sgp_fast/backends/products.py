"""How PyTorch's own matrix products on GPUs are made to be what a planner's `precision` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def products_of(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, products of float32 are IEEE or, with "tf32", TF32; those of 16 bits are summed in float32 throughout.

    The caller's settings come back at the end. They are the process's: another thread that multiplies meanwhile sees these.
    """
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    wanted = {
        "allow_tf32": precision == "tf32",
        "allow_fp16_reduced_precision_reduction": False,
        "allow_bf16_reduced_precision_reduction": False,
    }
    before = {name: getattr(matmul, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(matmul, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


def products_of_cost(cost: Any, device: torch.device) -> AbstractContextManager[None]:
    """Inside, products are those of a cost: a network's as they are, all others float32 whatever the networks' are in."""
    return nullcontext() if hasattr(cost, "network") else products_of("float32", device)
