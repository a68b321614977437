"""Elementary functions that traced costs need and Triton has not: in float32, on the GPU and in the interpreter alike.

Errors are a few units in the last place, but for `power`, whose relative error is that of its exponent, |b log a|, rounded.
"""

# In device code a constant is what it holds: it is not what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false

import triton
import triton.language as tl


@triton.jit
def largest(a, b):
    """The larger; a NaN stays one."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smallest(a, b):
    """The smaller; a NaN stays one."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log1p(x):
    """log(1 + x), exact where 1 + x is rounded: what rounding took is given back as a factor."""
    sum = 1.0 + x
    part = sum - 1.0
    return tl.where((part == 0) | (sum == float("inf")), x, tl.log(sum) * (x / tl.where(part == 0, 1.0, part)))


@triton.jit
def nearest(x):
    """The nearest whole number, the even one of two: adding 1.5 · 2²³ leaves no bits for the rest."""
    return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)


@triton.jit
def power(a, b):
    """a^b; of a negative number only whole powers are numbers."""
    size = tl.exp(b * tl.log(tl.abs(a)))
    whole = tl.floor(b) == b
    odd = tl.floor(b * 0.5) * 2.0 != b
    signed = tl.where(whole, tl.where(odd, -size, size), float("nan"))
    return tl.where(b == 0, 1.0, tl.where(a < 0, signed, size))


@triton.jit
def atan(x):
    """The angle whose tangent is x."""
    size = tl.abs(x)
    steep = size > 1.0
    angle = _atan_of_unit(tl.where(steep, 1.0 / size, size))
    angle = tl.where(steep, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0, -angle, tl.where(x != x, x, angle))


@triton.jit
def atan2(y, x):
    """The angle of the point (x, y), in (−π, π]; 0 at the origin."""
    wide, high = tl.abs(x), tl.abs(y)
    longer, shorter = largest(wide, high), smallest(wide, high)
    angle = _atan_of_unit(shorter / tl.where(longer == 0, 1.0, longer))
    angle = tl.where(high > wide, 1.5707963267948966 - angle, angle)
    angle = tl.where(x < 0, 3.141592653589793 - angle, angle)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def _atan_of_unit(x):
    """For 0 ≤ x ≤ 1: an odd polynomial, fitted at Chebyshev's points; its own error is below 1e-8."""
    s = x * x
    p = 0.0010844928
    p = p * s - 0.0071661649
    p = p * s + 0.0222034550
    p = p * s - 0.0442736684
    p = p * s + 0.0671011399
    p = p * s - 0.0879611756
    p = p * s + 0.1105378475
    p = p * s - 0.1427904842
    p = p * s + 0.1999959585
    p = p * s - 0.3333332367
    p = p * s + 0.9999999996
    return x * p
