"""Counted random numbers: each is a function of where it stands, whoever computes it and in whatever order.

    (w0, w1, w2, w3) = Philox-4x32-10(seed; iteration << 16 | j, sample, key mod 2³², key >> 32)

for the numbers n = 4j … 4j+3 of a candidate; a pair of words makes two normals by Box and Muller. Words and uniforms are
bitwise those of `draws.py`, normals are equal to rounding. (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3".) No triton here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_ITERATIONS = 1 << 16
MOST_NUMBERS = 4 << 16  # of one candidate
ROUNDS = 10
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85
# The largest multiple of 2⁻³¹ by which 2³¹ − 1 stays below 1 when it is rounded to float32.
UNIT = 4.6566127342e-10
LEAST = 1e-7
_LOW = 0xFFFFFFFF


def philox_ref(seed: int, counter: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits, as int64, for counters of 32 bits (int64 tensors that broadcast) and a seed of 64."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(ROUNDS):
        a, b = c0 * ROUND_A, c2 * ROUND_B  # mod 2⁶⁴, as int64 wraps
        c0, c2 = ((b >> 32) & _LOW) ^ c1 ^ k0, ((a >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = b & _LOW, a & _LOW
        k0, k1 = (k0 + KEY_A) & _LOW, (k1 + KEY_B) & _LOW
    return c0, c1, c2, c3


def uniform_ref(word: Tensor) -> Tensor:
    """Float32 in [0, 1) of a word: as a signed number, whose sign is folded away."""
    signed = torch.where(word >= 1 << 31, _LOW - word, word)
    return signed.to(torch.float32) * UNIT


def normal_ref(
    seed: int, keys: Tensor, iteration: int, samples: range, numbers: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal `[len(keys), len(samples), numbers]`.

    keys `[B]` of int64, at least 0, tell problems apart: number n of candidate s of a problem is a function of (seed, key,
    iteration, s, n) alone. Raises ValueError beyond `MOST_NUMBERS`.
    """
    check_numbers(numbers)
    device = keys.device
    block = (iteration << 16) + torch.arange(-(-numbers // 4), device=device)
    sample = torch.arange(samples.start, samples.stop, device=device)[:, None]
    low, high = (keys & _LOW)[:, None, None], (keys >> 32)[:, None, None]
    words = torch.broadcast_tensors(*philox_ref(seed, (block, sample, low, high)))
    pairs = []
    for first, second in ((words[0], words[1]), (words[2], words[3])):
        size = uniform_ref(first).clamp(min=LEAST).to(dtype).log().mul(-2).sqrt()
        angle = uniform_ref(second).to(dtype) * (2 * math.pi)
        pairs += [size * angle.cos(), size * angle.sin()]
    return torch.stack(pairs, -1).flatten(2)[..., :numbers]


def check_numbers(numbers: int) -> None:
    """Raises ValueError where a candidate has more numbers than are counted."""
    if numbers > MOST_NUMBERS:
        raise ValueError(f"a candidate has {numbers} controls (horizon × nu); random numbers are counted to {MOST_NUMBERS}")
