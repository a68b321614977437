"""What the machine gives at most, measured in the run that is held against it: a matrix product and a copy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import clock
from .rows import CeilingRow

# Large enough that nothing but the product counts, 2·n³ FLOPs; a copy of much more than caches hold. A CPU without
# instructions for a precision may take minutes for such a product, so there n grows only while a product is quick.
LARGEST = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
SMALLEST, QUICK = 256, 0.1
REPEATS = 5
DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "tf32": torch.float32, "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}  # fmt: skip


def measure(device: torch.device, precisions: tuple[str, ...] = ("float32", "bfloat16")) -> list[CeilingRow]:
    """The best of some runs of each, on random numbers: products of zeros draw less power and run faster."""
    rows = [
        CeilingRow(what="matrix product", precision=p, device=str(device), value=_product(device, p), unit="FLOP/s")
        for p in precisions
    ]
    return [*rows, CeilingRow(what="copy", precision=None, device=str(device), value=_copy(device), unit="B/s")]


def of(rows: list[CeilingRow], precision: str) -> tuple[float | None, float | None]:
    """FLOP/s of products in a precision, and bytes a second of a copy; None where they were not measured."""
    product = [row.value for row in rows if row.unit == "FLOP/s" and row.precision == precision]
    copy = [row.value for row in rows if row.unit == "B/s"]
    return max(product, default=None), max(copy, default=None)


def _product(device: torch.device, precision: str) -> float:
    """FLOP/s of PyTorch's own product of two square matrices."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = precision == "tf32"
    try:
        n = SMALLEST if device.type == "cpu" else LARGEST["cuda"]
        while True:
            a, b = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))
            out = torch.empty_like(a)
            seconds = _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)
            if n >= LARGEST[device.type] or seconds > QUICK:
                return 2 * n**3 / seconds
            n *= 2
    finally:
        matmul.allow_tf32 = before


def _copy(device: torch.device) -> float:
    """Bytes read and written a second."""
    source = torch.zeros(COPIED[device.type] // 4, device=device).normal_()
    to = torch.empty_like(source)
    return 2 * 4 * source.numel() / _best(lambda: to.copy_(source), device)


def _best(run: Callable[[], object], device: torch.device) -> float:
    run()
    return min(clock.seconds(run, device) for _ in range(REPEATS))
