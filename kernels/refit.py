"""Weighted sums over candidates, whose noise is drawn again rather than read.

    sums[c, b, n] = Σ_{s in chunk c} w_s d_{s,n},    squares[c, b, n] = Σ w_s d²,    d = clip(mean + std ε_s) − mean

A program owns a problem's numbers n (of T·NU) and a chunk of its samples. Chunks are summed outside, always in one order.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draws import normal

CHUNK = 256
BLOCK_S = 32
BLOCK_N = 32


@triton.jit(do_not_specialize=["samples", "iteration"])
def refit_kernel(
    weights_ptr, mean_ptr, std_ptr, low_ptr, high_ptr, seed_ptr, keys_ptr, sums_ptr, squares_ptr, problems, samples,
    iteration,
    NUMBERS: tl.constexpr, NU: tl.constexpr, CHUNK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One chunk's sums; problems, chunks and blocks of numbers are the axes of the grid."""
    b, c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < NUMBERS
    mean = tl.load(mean_ptr + b * NUMBERS + n, mask=inside, other=0.0)
    std = tl.load(std_ptr + b * NUMBERS + n, mask=inside, other=0.0)
    seed, key = tl.load(seed_ptr), tl.load(keys_ptr + b)
    sums, squares = tl.zeros((BLOCK_N,), tl.float32), tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, CHUNK, BLOCK_S):
        s = c * CHUNK + first + tl.arange(0, BLOCK_S)
        w = tl.load(weights_ptr + b * samples + s, mask=s < samples, other=0.0)
        u = mean[None, :] + std[None, :] * normal(seed, key, iteration, s[:, None], n[None, :])
        if low_ptr is not None:
            low = tl.load(low_ptr + b * NU + n % NU)
            high = tl.load(high_ptr + b * NU + n % NU)
            u = tl.minimum(tl.maximum(u, low[None, :]), high[None, :])
        d = u - mean[None, :]
        sums += tl.sum(w[:, None] * d, 0)
        squares += tl.sum(w[:, None] * d * d, 0)
    place = (c * problems + b) * NUMBERS + n
    tl.store(sums_ptr + place, sums, mask=inside)
    tl.store(squares_ptr + place, squares, mask=inside)


def chunks(samples: int) -> int:
    """How many chunks there are of so many samples: the first axis of the sums."""
    return -(-samples // CHUNK)


def weighted_sums(
    weights: Tensor, mean: Tensor, std: Tensor, low: Tensor | None, high: Tensor | None, seed: Tensor, keys: Tensor,
    iteration: int, out: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`Σ_s w_s d_s` and `Σ_s w_s d_s²`, `[chunks(S), B, T, nu]` each, written to `out`, for weights `[B, S]`.

    mean, std `[B, T, nu]`, low, high `[B, nu]`, seed `[1]` and keys `[B]` of int64: all contiguous, float32 otherwise. The
    plain twin is `backends.sampling.refit`, over `backends.sampling.candidates`.
    """
    problems, samples = weights.shape
    numbers, nu = mean.shape[1] * mean.shape[2], mean.shape[2]
    kernel: Any = refit_kernel
    kernel[(problems, chunks(samples), -(-numbers // BLOCK_N))](
        weights, mean, std, low, high, seed, keys, *out, problems, samples, iteration,
        NUMBERS=numbers, NU=nu, CHUNK=CHUNK, BLOCK_S=BLOCK_S, BLOCK_N=BLOCK_N, num_warps=4,
    )  # fmt: skip
    return out


def allocate_sums(samples: int, mean: Tensor) -> tuple[Tensor, Tensor]:
    """What `weighted_sums` writes to."""
    shape = (chunks(samples), *mean.shape)
    return torch.empty(shape, device=mean.device), torch.empty(shape, device=mean.device)
