"""What the tests take Triton's interpreter for."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted


@triton.jit
def _copy_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    """Ties to even, past the largest number to infinity, whatever is no number."""
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    x[:8] = torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -torch.inf, torch.nan, 1e-40])
    y = torch.empty(1024, dtype=torch.bfloat16, device=DEVICE)
    kernel: Any = _copy_kernel
    kernel[(1,)](x.to(DEVICE), y, BLOCK=1024)
    assert torch.equal(y.cpu().view(torch.int16)[:6], x.bfloat16().view(torch.int16)[:6]) and y[6].isnan()
    assert torch.equal(y.cpu()[8:], x.bfloat16()[8:])
