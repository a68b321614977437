"""Counted random numbers on the device: words, uniforms and normals as `draws_ref.py` defines them."""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

import triton
import triton.language as tl


@triton.jit
def normal(seed, keys, iteration, samples, numbers):
    """Standard normal, float32, of the shape that keys (int64), samples and numbers broadcast to. See `normal_ref`."""
    w0, w1, w2, w3 = words(seed, keys, iteration, samples, numbers)
    first = numbers % 4 < 2
    u = tl.maximum(uniform(tl.where(first, w0, w2)), 1e-7)  # draws_ref.LEAST
    turn = uniform(tl.where(first, w1, w3))
    return tl.sqrt(-2.0 * tl.log(u)) * cosine_of_turns(turn, 3 * (numbers % 2))


@triton.jit
def cosine_of_turns(turn, quarters):
    """`cos(2π turn + π/2 quarters)` for turns in [0, 1]; three quarters more make a sine.

    The library's own cosine spills: it is made for angles of any size. Here an eighth of a turn around the nearest quarter
    is left, exactly, and the series have converged to float32 by their fifth term.
    """
    nearest = tl.floor(4 * turn + 0.5)
    x = (turn - 0.25 * nearest) * 6.283185307179586
    y = x * x
    sine = x * (1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880)))))
    cosine = 1 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320 + y * (-1 / 3628800)))))
    quarter = (nearest.to(tl.int32) + quarters) % 4
    value = tl.where(quarter % 2 == 0, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), -value, value)


@triton.jit
def words(seed, keys, iteration, samples, numbers):
    """The four words of the blocks that these numbers are in; numbers are at least 0."""
    block = (iteration << 16) + numbers // 4
    low, high = (keys & 0xFFFFFFFF).to(tl.uint32), (keys >> 32).to(tl.uint32)
    zero = (keys * 0 + samples * 0 + numbers * 0).to(tl.uint32)  # all of one shape
    return tl.philox(seed, zero + block.to(tl.uint32), zero + samples.to(tl.uint32), zero + low, zero + high)


@triton.jit
def uniform(word):
    """Float32 in [0, 1) of a word."""
    return tl.uint_to_uniform_float(word)
