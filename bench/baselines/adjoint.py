"""The explicit adjoint in plain library calls: one planning iteration as a pure function of tensors, without autograd.

    forward     x_{t+1} = x_t + scale ⊙ net((z_t − b)/k),  z_t = (x_t, u_t),   t = 0..T−2: no cost depends on x_T
    rows        g_t = ∂_z c(z_t) − β s(z_t)                                    all T·B rows at once
    backward    (λ_t, g_u,t) = g_t + (∂_z f_t)ᵀ λ_{t+1},   λ_T = 0
    update      u ← clip(u − α m̂/(√ŝ + ε))

This is a second writing of what `sgp_fast` computes, as one would write it by hand for speed: product and bias in one call,
PyTorch's own fused norms and activation gradients, no step that no cost depends on. What changes between iterations comes as
a tensor, so that `torch.compile` compiles it once and a CUDA graph can hold all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgp_fast.backends.products import products_of
from sgp_fast.costs import LearnedCost
from sgp_fast.kernels.network import LAYER_NORM_EPS, Activation, Layer
from sgp_fast.models import Dynamics, Network, Normalizer, Score

from ..cases import Case
from ..rung import Runner
from .batch import EVERY, Batch, Narrow, batch_of

aten = torch.ops.aten
Kept = list[tuple[Any, ...]]
Value = Callable[[Tensor], Tensor]
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]

# An activation, and its gradient from (cotangent, input, output).
ACTIVATIONS: dict[Activation, tuple[Value, Gradient]] = {
    "identity": (lambda h: h, lambda g, h, y: g),
    "relu": (F.relu, lambda g, h, y: aten.threshold_backward(g, y, 0)),
    "elu": (F.elu, lambda g, h, y: aten.elu_backward(g, 1.0, 1.0, 1.0, True, y)),
    "silu": (F.silu, lambda g, h, y: aten.silu_backward(g, h)),
    "gelu": (F.gelu, lambda g, h, y: aten.gelu_backward(g, h)),
    "mish": (F.mish, lambda g, h, y: aten.mish_backward(g, h)),
    "tanh": (torch.tanh, lambda g, h, y: aten.tanh_backward(g, y)),
}


class At(NamedTuple):
    """Where a plan stands, as tensors of one number: β, the noise level, and Adam's α/(1 − β₁ⁿ) and 1/(1 − β₂ⁿ)."""

    beta: Tensor
    level: Tensor
    size: Tensor
    correction: Tensor


class AdjointLayer(nn.Module):
    """One layer, `y = act(norm(c ⊙ (W h + b)))`, and its input-gradient."""

    def __init__(self, layer: Layer, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.layer = layer
        self.value, self.gradient = ACTIVATIONS[layer.activation]
        # Parameters, so that compiled code takes them where they are: other tensors a CUDA graph would copy at each call.
        self.weight, self.bias = _constant(weight), _constant(bias)
        self.gain, self.offset = (None, None) if norm is None else map(_constant, norm)

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, tuple[Any, ...]]:
        """Rows `[N, width]` of rows `x [N, inputs]`, and what `pull` needs; `c [1, width]` conditions."""
        layer = self.layer
        h = F.linear(x, self.weight, self.bias)
        if layer.condition != "none" and c is not None:
            h = h * c if layer.condition == "multiply" else h + c
        moments = None
        if self.gain is not None:
            n, mean, rstd = torch.native_layer_norm(h, (layer.width,), self.gain, self.offset, LAYER_NORM_EPS)
            moments, h = (h, mean, rstd), n
        y = self.value(h)
        return (x + y if layer.residual else y), (h, y, moments)

    def pull(self, g: Tensor, kept: tuple[Any, ...], c: Tensor | None) -> Tensor:
        """`(∂y/∂x)ᵀ g`, rows `[N, inputs]`."""
        layer = self.layer
        h, y, moments = kept
        d = self.gradient(g, h, y)
        if moments is not None:
            mask = [True, False, False]
            d = aten.native_layer_norm_backward(d, moments[0], (layer.width,), *moments[1:], self.gain, self.offset, mask)[0]
        if layer.condition == "multiply" and c is not None:
            d = d * c
        d = torch.mm(d, self.weight)
        return g + d if layer.residual else d


class AdjointNetwork(nn.Module):
    """`net((z − b)/k)` of rows z, and its input-gradient; inside, all is in the dtype of the products."""

    def __init__(self, network: Network | Narrow, normalizer: Normalizer) -> None:
        super().__init__()
        w = network.weights
        self.layers = nn.ModuleList()
        for i, layer in enumerate(network.spec.layers):
            assert isinstance(layer, Layer)
            name = f"layers.{i}"
            norm = (w[f"{name}.norm.weight"], w[f"{name}.norm.bias"]) if layer.norm else None
            self.layers.append(AdjointLayer(layer, w[f"{name}.weight"], w[f"{name}.bias"], norm))
        self.table = _constant(w["embedding"]) if "embedding" in w else None
        self.b, self.k = _constant(normalizer.b), _constant(normalizer.k)
        self.dtype = w["layers.0.weight"].dtype

    def forward(self, z: Tensor, level: Tensor | None = None) -> tuple[Tensor, Kept]:
        h, kept = _in(self.dtype, (z - self.b) / self.k), []
        # A row by index_select: indexing by a tensor of one number would ask the device for it.
        c = None if self.table is None or level is None else self.table.index_select(0, level)
        for layer in self.layers:
            h, saved = layer(h, c)
            kept.append(saved)
        return _in(z.dtype, h), kept

    def pull(self, g: Tensor, kept: Kept) -> Tensor:
        """`(∂net/∂z)ᵀ g`, of a network without conditioning."""
        d = _in(self.dtype, g)
        for layer, saved in zip(list(self.layers)[::-1], reversed(kept), strict=True):  # its own reversal is slow
            assert isinstance(layer, AdjointLayer)
            d = layer.pull(d, saved, None)
        return _in(g.dtype, d) / self.k


class Adjoint(nn.Module):
    """One iteration: `forward` maps `state [3, T, B, nu]`, the controls and Adam's two moments, to the next state."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        dynamics, cost, score = batch.dynamics, batch.cost, batch.score
        self.dynamics, self.scale = _adjoint(dynamics), _constant(dynamics.scale)
        self.cost = _adjoint(cost)
        self.score = None if score is None else _adjoint(score)
        # s(z) is net/k, or net/(σ k) where the network predicts noise.
        noise = score is not None and score.output == "noise"
        self.inverse_sigmas = _constant(1 / score.sigmas) if score is not None and noise else None
        self.low, self.high = (None if limit is None else _constant(limit) for limit in (batch.low, batch.high))
        self.b1, self.b2, self.eps = batch.adam

    def forward(self, state: Tensor, x0: Tensor, at: At) -> Tensor:
        u, m, s = state.unbind(0)
        g = self.gradient(u, x0, at)
        m, s = torch.lerp(m, g, 1 - self.b1), self.b2 * s + (1 - self.b2) * (g * g)
        u = u - at.size * m / ((s * at.correction).sqrt() + self.eps)
        if self.low is not None:
            u = torch.clamp(u, self.low, self.high)
        return torch.stack((u, m, s))

    def gradient(self, u: Tensor, x0: Tensor, at: At) -> Tensor:
        """Gradient of the plan's cost, score included, in `u [T, B, nu]`; `x0 [B, nx]`."""
        (horizon, count, _), nx = u.shape, x0.shape[-1]
        x, rows, kept = x0, [], []
        for t in range(horizon):
            rows.append(torch.cat((x, u[t]), -1))
            if t < horizon - 1:
                out, saved = self.dynamics(rows[-1])
                x = torch.addcmul(x, out, self.scale)
                kept.append(saved)
        pulls = self.pulls(torch.cat(rows), at).view(horizon, count, -1)
        # λ_{T} = 0: the last step's gradient is that of its own row.
        costate, found = pulls[-1, :, :nx], [pulls[-1, :, nx:]]
        for t in range(horizon - 2, -1, -1):
            back = pulls[t] + self.dynamics.pull(costate * self.scale, kept[t])
            costate = costate + back[:, :nx]
            found.append(back[:, nx:])
        return torch.stack(found[::-1])

    def pulls(self, z: Tensor, at: At) -> Tensor:
        """`∂_z c − β s` of all rows `z [T·B, nx + nu]`."""
        value, kept = self.cost(z)
        pull = self.cost.pull(torch.ones_like(value), kept)
        if self.score is None:
            return pull
        s = self.score(z, at.level)[0]
        weight = at.beta if self.inverse_sigmas is None else at.beta * self.inverse_sigmas.index_select(0, at.level)
        return pull - weight * s / self.score.k


def steps_of(batch: Batch) -> list[At]:
    """Each iteration's numbers on the device, every one a tensor of its own, so that all calls look alike to a compiler."""
    b1, b2, _ = batch.adam

    def number(value: float | int) -> Tensor:
        kind = torch.int64 if isinstance(value, int) else batch.u.dtype
        return torch.tensor([value], dtype=kind, device=batch.device)

    return [
        At(number(step.beta), number(step.level), number(step.size / (1 - b1**n)), number(1 / (1 - b2**n)))
        for n, step in enumerate(batch.steps, 1)
    ]


def start_of(u: Tensor) -> Tensor:
    """The state before the first iteration: controls and no moments."""
    zero = torch.zeros_like(u)
    return torch.stack((u, zero, zero))


def adjoint(case: Case) -> Runner:
    """The iteration as it stands, an operation at a time."""
    batch = batch_of(case, EVERY, narrow=True)
    model, steps, start = Adjoint(batch), steps_of(batch), start_of(batch.u)

    @torch.no_grad()
    def plan() -> Tensor:
        with products_of(batch.precision, batch.device):
            state = start
            for at in steps:
                state = model(state, batch.x0, at)
        return state[0].transpose(0, 1)

    return plan


def _adjoint(of: Dynamics | LearnedCost | Score) -> AdjointNetwork:
    return AdjointNetwork(of.network, of.normalizer)


def _in(dtype: torch.dtype, t: Tensor) -> Tensor:
    return t if t.dtype == dtype else t.to(dtype)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)
