"""The plain version of every kernel: PyTorch, one operation a line, to be held against the paper.

It is the CPU backend, the oracle of the tests and the documentation at once. Weights are a dictionary with the names of
`NetworkSpec.weight_shapes`; they are constants here, so only input-gradients exist. Matrix products run in the dtype of
their weights (bfloat16: operands are rounded, sums accumulated in fp32, and rounded once more); all else in that of `z`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import LAYER_NORM_EPS, Activation, Block, Layer, NetworkSpec

Weights = Mapping[str, Tensor]
Saved = list[tuple[Any, ...]]
aten = torch.ops.aten


def network_forward_ref(
    spec: NetworkSpec, weights: Weights, z: Tensor, condition: Tensor | None = None, save: Saved | None = None
) -> Tensor:
    """Output of the network, `[..., outputs]`, for inputs `z [..., inputs]`.

    `condition` (`[condition_width]` for the whole launch, or a row per input) is what `condition_ref` makes from a level or
    a time. With a list as `save`, what the input-gradient needs of each layer is appended to it.
    """
    h = z
    for index, layer in enumerate(spec.layers):
        name = f"layers.{index}"
        join = condition if spec.time and index == 0 else None
        if isinstance(layer, Block):
            h, kept = _block_forward(weights, name, layer, _join(h, join))
        else:
            h, kept = _layer_forward(weights, name, layer, h, condition, join)
        if save is not None:
            save.append(kept)
    return h


def network_vjp_ref(
    spec: NetworkSpec, weights: Weights, saved: Saved, grad: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Input-gradient `(∂net/∂z)ᵀ grad`, `[..., inputs]`, from what the forward pass saved. No weight gradient is formed."""
    for index in range(len(spec.layers) - 1, -1, -1):
        layer, name = spec.layers[index], f"layers.{index}"
        if isinstance(layer, Block):
            grad = _block_vjp(weights, name, layer, saved[index], grad)
        else:
            grad = _layer_vjp(weights, name, layer, saved[index], grad, condition)
    return grad[..., : spec.inputs]


def condition_ref(spec: NetworkSpec, weights: Weights, at: Tensor | int) -> Tensor | None:
    """The conditioning vector(s) at noise level `at` (whole numbers, table) or at time `at` (any number, embedding).

    A scalar gives `[condition_width]`; a tensor `[...]` gives `[..., condition_width]`. None for an unconditioned network.
    """
    if spec.levels:
        return weights["embedding"][at]
    if spec.time is None:
        return None
    omega = weights["time.frequencies"]
    phase = 2 * math.pi * torch.as_tensor(at, dtype=omega.dtype, device=omega.device)[..., None] * omega
    halves = (phase.sin(), phase.cos()) if spec.time.order == "sin_cos" else (phase.cos(), phase.sin())
    hidden = _linear(weights, "time.hidden", torch.cat(halves, -1))
    return _linear(weights, "time.out", _activate(spec.time.activation, hidden))


def _layer_forward(
    weights: Weights, name: str, layer: Layer, x: Tensor, condition: Tensor | None, join: Tensor | None
) -> tuple[Tensor, tuple[Any, ...]]:
    if join is None:
        h = _linear(weights, name, x)
    else:  # W [x, c] = W_x x + W_c c: the second product is one row when the whole launch shares the time
        w = weights[f"{name}.weight"]
        h = _product(x, w[:, : x.shape[-1]]) + (_product(join, w[:, x.shape[-1] :]) + weights[f"{name}.bias"])
    if layer.condition != "none":
        if condition is None:
            raise ValueError(f"{name} is conditioned, but condition is None; pass what `condition_ref` gives")
        h = h * condition if layer.condition == "multiply" else h + condition
    moments = None
    if layer.norm:
        h, *moments = _normalise(weights, name, h)
    y = _activate(layer.activation, h)
    kept = (moments, _kept(layer.activation, h, y))
    return (x + y if layer.residual else y), kept


def _layer_vjp(
    weights: Weights, name: str, layer: Layer, saved: tuple[Any, ...], grad: Tensor, condition: Tensor | None
) -> Tensor:
    moments, kept = saved
    g = _activate_vjp(layer.activation, grad, kept)
    if layer.norm:
        g = _normalise_vjp(weights, name, moments, g)
    if layer.condition == "multiply" and condition is not None:
        g = g * condition
    g = _product_vjp(g, weights[f"{name}.weight"])
    return grad + g if layer.residual else g


def _block_forward(weights: Weights, name: str, block: Block, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    n, *moments = _normalise(weights, name, x)
    h = _linear(weights, f"{name}.up", n)
    a = _activate(block.activation, h)
    s = x + _linear(weights, f"{name}.down", a)
    y = _activate(block.out, s)
    return y, (moments, _kept(block.activation, h, a), _kept(block.out, s, y))


def _block_vjp(weights: Weights, name: str, block: Block, saved: tuple[Any, ...], grad: Tensor) -> Tensor:
    moments, inner, outer = saved
    skip = _activate_vjp(block.out, grad, outer)
    g = _product_vjp(skip, weights[f"{name}.down.weight"])
    g = _activate_vjp(block.activation, g, inner)
    g = _product_vjp(g, weights[f"{name}.up.weight"])
    return skip + _normalise_vjp(weights, name, moments, g)


def _join(x: Tensor, tail: Tensor | None) -> Tensor:
    return x if tail is None else torch.cat((x, tail.expand(*x.shape[:-1], tail.shape[-1])), -1)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.linear(x, w, b) if w.dtype == x.dtype else _product(x, w) + b


def _product(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x.to(w.dtype), w).to(x.dtype)


def _product_vjp(g: Tensor, w: Tensor) -> Tensor:
    return g @ w if w.dtype == g.dtype else (g.to(w.dtype) @ w).to(g.dtype)


def _normalise(weights: Weights, name: str, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layer norm over the last axis; also what its gradient needs: the input, the mean and 1/√(variance + ε)."""
    w, b = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
    y, mean, rstd = torch.native_layer_norm(h, h.shape[-1:], w, b, LAYER_NORM_EPS)
    return y, h, mean, rstd


def _normalise_vjp(weights: Weights, name: str, moments: list[Tensor], g: Tensor) -> Tensor:
    h, mean, rstd = moments
    w, b = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
    mask = [True, False, False]
    return aten.native_layer_norm_backward(g.contiguous(), h, h.shape[-1:], mean, rstd, w, b, mask)[0]


_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "tanh": torch.tanh,
}
# ReLU, ELU and tanh have derivatives that their own output tells: one saved tensor serves two layers.
_FROM_OUTPUT = {"relu", "elu", "tanh"}
_VJP: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda g, y: aten.threshold_backward(g, y, 0),
    "elu": lambda g, y: aten.elu_backward(g, 1.0, 1.0, 1.0, True, y),
    "silu": lambda g, h: aten.silu_backward(g, h),
    "gelu": lambda g, h: aten.gelu_backward(g, h),
    "mish": lambda g, h: aten.mish_backward(g, h),
    "tanh": lambda g, y: aten.tanh_backward(g, y),
}


def _activate(kind: Activation, h: Tensor) -> Tensor:
    return h if kind == "identity" else _FORWARD[kind](h)


def _kept(kind: Activation, h: Tensor, y: Tensor) -> Tensor | None:
    return None if kind == "identity" else y if kind in _FROM_OUTPUT else h


def _activate_vjp(kind: Activation, grad: Tensor, kept: Tensor | None) -> Tensor:
    return grad if kind == "identity" or kept is None else _VJP[kind](grad, kept)
