"""Activations and their derivatives as device functions, chosen by name when a kernel is compiled.

Derivatives are of the pre-activation, which is what the kernels keep. Everything is float32, and made of what both the GPU
and Triton's interpreter have. A NaN stays one: a problem that diverges must be seen to.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

import triton
import triton.language as tl


@triton.jit
def activate(h, KIND: tl.constexpr, EXACT: tl.constexpr = True):
    """`act(h)`, element by element. Without EXACT, differences may cancel: an error of 1e-7, nothing beside 16 bits."""
    if KIND == "relu":
        return tl.maximum(h, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == "elu":
        return tl.where(h > 0, h, expm1(h) if EXACT else tl.exp(h) - 1)
    elif KIND == "silu":
        return h * tl.sigmoid(h)
    elif KIND == "gelu":
        return 0.5 * h * (1 + tl.erf(h * 0.7071067811865476))
    elif KIND == "mish":
        return h * _mish_gate(h)
    elif KIND == "tanh":
        return tanh(h)
    else:
        tl.static_assert(KIND == "identity", "unknown activation")
        return h


@triton.jit
def activate_vjp(g, h, KIND: tl.constexpr):
    """`g · act'(h)`, element by element."""
    if KIND == "relu":
        # A product: with a choice between 0 and g, asynchronous products wait for each other (ptxas, C7514). Where h ≤ 0
        # an infinite g gives NaN, and a NaN stays one, as in native code; PyTorch has zeros there.
        return g * tl.where(h <= 0, 0.0, 1.0)
    elif KIND == "elu":
        return g * tl.where(h > 0, 1.0, tl.exp(h))
    elif KIND == "silu":
        s = tl.sigmoid(h)
        return g * s * (1 + h * (1 - s))
    elif KIND == "gelu":
        cdf = 0.5 * (1 + tl.erf(h * 0.7071067811865476))
        return g * (cdf + h * 0.3989422804014327 * tl.exp(-0.5 * h * h))
    elif KIND == "mish":
        gate = _mish_gate(h)
        return g * (gate + h * (1 - gate * gate) * tl.sigmoid(h))
    elif KIND == "tanh":
        return g * tanh_slope(h)
    else:
        tl.static_assert(KIND == "identity", "unknown activation")
        return g


@triton.jit
def tanh(h):
    """tanh, by its series where `1 − 2/(e^{2h} + 1)` would cancel."""
    s = h * h
    near = h * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    far = 1 - 2 / (tl.exp(2 * h) + 1)
    return tl.where(s < 0.04, near, far)


@triton.jit
def tanh_slope(h):
    """1 − tanh²h, as 4e/(1 + e)² with e = e^{−2|h|}, which does not cancel."""
    e = tl.exp(-2 * tl.abs(h))
    return 4 * e / ((1 + e) * (1 + e))


@triton.jit
def expm1(h):
    """`e^h − 1`, by its series where the difference would cancel."""
    near = h * (1 + h * (1 / 2 + h * (1 / 6 + h * (1 / 24 + h * (1 / 120 + h * (1 / 720))))))
    return tl.where(tl.abs(h) < 0.3, near, tl.exp(h) - 1)


@triton.jit
def _mish_gate(h):
    """tanh(log(1 + e^h)) = w/(w + 2) with w = e^h(e^h + 2); past 20 it is 1 in float32."""
    e = tl.exp(tl.minimum(h, 20.0))
    w = e * (e + 2)
    return w / (w + 2)
