"""The loop as published, one trajectory at a time through eager autograd; and the same without two things it need not do.

The published code forms the gradients of all weights, which nobody reads, and rolls the controls out twice, for the cost and
for the score. `PublishedLoop` does either or not, so that each has a rung of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgp_fast.backends.products import products_of
from sgp_fast.costs import LearnedCost
from sgp_fast.kernels.network import LAYER_NORM_EPS, Activation, Layer
from sgp_fast.models import Dynamics, Network, Score

from ..cases import Case
from .batch import FULL, Batch, batch_of

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "tanh": torch.tanh,
}


class ModuleNetwork(nn.Module):
    """A network as people write one, a module of modules; with `trains`, its weights require gradients."""

    def __init__(self, network: Network, trains: bool) -> None:
        super().__init__()
        w = network.weights
        self.layers = [cast(Layer, layer) for layer in network.spec.layers]
        self.linears, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, layer in enumerate(self.layers):
            weight, bias = w[f"layers.{i}.weight"], w[f"layers.{i}.bias"]
            linear, norm = nn.Linear(weight.shape[1], layer.width), nn.Identity()
            linear.weight, linear.bias = _own(weight), _own(bias)
            if layer.norm:
                norm = nn.LayerNorm(layer.width, eps=LAYER_NORM_EPS)
                norm.weight, norm.bias = _own(w[f"layers.{i}.norm.weight"]), _own(w[f"layers.{i}.norm.bias"])
            self.linears.append(linear)
            self.norms.append(norm)
        self.embedding = nn.Embedding.from_pretrained(w["embedding"].clone(), freeze=False) if "embedding" in w else None
        self.requires_grad_(trains)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        """Outputs for rows `z`, each at its noise level, which only conditioned layers read."""
        for layer, linear, norm in zip(self.layers, self.linears, self.norms, strict=True):
            h = linear(z)
            if layer.condition != "none":
                assert self.embedding is not None
                h = h * self.embedding(level) if layer.condition == "multiply" else h + self.embedding(level)
            h = ACTIVATIONS[layer.activation](norm(h))
            z = z + h if layer.residual else h
        return z


class Model:
    """A model of `(x, u)` over a `ModuleNetwork`: `net((z − b)/k)`."""

    def __init__(self, of: Dynamics | LearnedCost | Score, trains: bool) -> None:
        self.network = ModuleNetwork(of.network, trains)
        self.b, self.k = of.normalizer.b, of.normalizer.k

    def __call__(self, z: Tensor, level: int = 0) -> Tensor:
        return self.network((z - self.b) / self.k, torch.full((len(z),), level, device=z.device))


class PublishedLoop:
    """Plans the problems of a batch one by one. `trains`: form weight gradients; `twice`: roll out for the score again."""

    def __init__(self, batch: Batch, *, trains: bool, twice: bool) -> None:
        self.batch, self.twice = batch, twice
        self.dynamics, self.cost = Model(batch.dynamics, trains), Model(batch.cost, trains)
        self.score = None if batch.score is None else Model(batch.score, trains)

    def __call__(self) -> Tensor:
        with products_of(self.batch.precision, self.batch.device):
            return torch.stack([self.plan(i) for i in range(len(self.batch.x0))])

    def plan(self, i: int) -> Tensor:
        """Controls `[T, nu]` of one problem."""
        batch = self.batch
        x0, u = batch.x0[i], nn.Parameter(batch.u[:, i].clone())
        optimizer = batch.adam_over(u, fused=False)
        for step in batch.steps:
            optimizer.zero_grad()
            z = self.rollout(x0, u)
            loss = self.cost(z).sum()
            if self.score is not None:
                z = self.rollout(x0, u) if self.twice else z
                loss = loss - step.beta * (z * self.scored(z, step.level)).sum()
            loss.backward()
            optimizer.param_groups[0]["lr"] = step.size
            optimizer.step()
            loss.item()  # the loop logs its cost, which makes the host wait
            if batch.low is not None and batch.high is not None:
                with torch.no_grad():
                    u.clamp_(batch.low[i], batch.high[i])
        return u.detach()

    def rollout(self, x0: Tensor, u: Tensor) -> Tensor:
        """States and controls `z [T, nx + nu]`; the last state is computed as well, though no cost depends on it."""
        x = torch.zeros(len(u) + 1, len(x0), dtype=u.dtype, device=u.device)
        x[0] = x0
        for t in range(len(u)):
            z = torch.cat((x[t].clone(), u[t]))
            x[t + 1] = x[t].clone() + self.batch.dynamics.scale * self.dynamics(z[None])[0]
        return torch.cat((x[:-1], u), -1)

    def scored(self, z: Tensor, level: int) -> Tensor:
        """The score of rows `z`, computed with its graph, as published, and then cut off."""
        assert self.score is not None and self.batch.score is not None
        s = self.score(z, level).detach()
        s = s / self.batch.score.sigmas[level] if self.batch.score.output == "noise" else s
        return s / self.score.k


def published(case: Case, *, trains: bool, twice: bool) -> PublishedLoop:
    """The loop for a case: what a rung makes."""
    return PublishedLoop(batch_of(case, FULL), trains=trains, twice=twice)


def _own(weight: Tensor) -> nn.Parameter:
    """A weight of one's own."""
    return nn.Parameter(weight.detach().clone())
