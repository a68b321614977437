"""What a user could do instead: each rung plans the same problems from the same start, and is as good as it can be made.

    published   one trajectory at a time, eager autograd, a rollout for the cost and one for the score, weight gradients
    autograd    the best that plain PyTorch does: batched, weights frozen, one rollout, the gradient of the controls alone
    jax         the whole plan under one jit, scans over iterations and time (optional: needs jax)

A rung is a function of a case and gives a function that plans it; they all answer the controls `[B, T, nu]`. They cover what
the cases hold: our networks, a learned cost, projected controls, no terminal cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgp_fast.kernels.network import LAYER_NORM_EPS, Layer
from sgp_fast.models import Network
from sgp_fast.schedule import level_table, table

from .cases import Case

Rung = Callable[[Case], Callable[[], Tensor]]


def published(case: Case) -> Callable[[], Tensor]:
    """The loop as published, for each start in turn. Weights require gradients, and the loop forms them."""
    problem = case.problem
    dynamics, cost, score = (_Published(network) for network in _networks(case))
    b, k, nx = problem.dynamics.normalizer.b, problem.dynamics.normalizer.k, problem.dynamics.nx
    schedule = _schedule(case)

    def rollout(x0: Tensor, u: Tensor) -> Tensor:
        x = torch.zeros(len(u) + 1, nx)
        x[0] = x0
        for t in range(len(u)):
            z = torch.cat((x[t].clone(), u[t]))
            x[t + 1] = x[t].clone() + k[:nx] * dynamics(((z - b) / k)[None])[0]
        return x

    def one(x0: Tensor, init: Tensor) -> Tensor:
        u = nn.Parameter(init.clone())
        optimizer = torch.optim.Adam([u], lr=case.step_size)
        for beta, level in schedule:
            optimizer.zero_grad()
            z = torch.cat((rollout(x0, u)[:-1], u), -1)
            loss = cost((z - b) / k).sum()
            z = torch.cat((rollout(x0, u)[:-1], u), -1)
            s = score((z - b) / k, torch.full((len(u),), level)).detach() / k
            (loss - beta * (z * s).sum()).backward()
            optimizer.step()
            loss.item()  # the loop logs its cost, which makes the host wait
            with torch.no_grad():
                u.clamp_(-1, 1)
        return u.detach()

    return lambda: torch.stack([one(x0, init) for x0, init in zip(case.x0, case.init, strict=True)])


class _Published(nn.Module):
    """A network as a module of modules, its weights to be differentiated."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        w = network.weights
        self.spec = network.spec
        self.linears, self.norms = nn.ModuleList(), nn.ModuleList()
        for i in range(len(network.spec.layers)):
            name = f"layers.{i}.weight"
            shape = w[name].shape
            linear = nn.Linear(shape[1], shape[0])
            linear.weight.data, linear.bias.data = w[name].clone(), w[f"layers.{i}.bias"].clone()
            self.linears.append(linear)
            norm = nn.LayerNorm(shape[0], eps=LAYER_NORM_EPS) if f"layers.{i}.norm.weight" in w else nn.Identity()
            if isinstance(norm, nn.LayerNorm):
                norm.weight.data, norm.bias.data = w[f"layers.{i}.norm.weight"].clone(), w[f"layers.{i}.norm.bias"].clone()
            self.norms.append(norm)
        self.embedding = nn.Embedding.from_pretrained(w["embedding"].clone(), freeze=False) if "embedding" in w else None

    def forward(self, z: Tensor, level: Tensor | None = None) -> Tensor:
        for layer, linear, norm in zip(self.spec.layers, self.linears, self.norms, strict=True):
            assert isinstance(layer, Layer)
            z = linear(z)
            if layer.condition == "multiply" and self.embedding is not None:
                z = z * self.embedding(level)
            z = norm(z)
            z = F.elu(z) if layer.activation == "elu" else z
        return z


def autograd(case: Case) -> Callable[[], Tensor]:
    """Batched autograd: weights frozen, one rollout, no step of the dynamics that no cost depends on, fused Adam."""
    dynamics, cost, score = case.problem.dynamics, case.problem.cost, case.problem.score
    assert score is not None
    schedule = _schedule(case)

    def plan() -> Tensor:
        u = case.init.transpose(0, 1).clone(memory_format=torch.contiguous_format).requires_grad_()
        optimizer = torch.optim.Adam([u], lr=case.step_size, fused=True)  # pyright: ignore[reportArgumentType]
        for beta, level in schedule:
            states = [case.x0]
            for t in range(len(u) - 1):
                states.append(dynamics(states[-1], u[t]))
            x = torch.stack(states)
            z = torch.cat((x, u), -1)
            with torch.no_grad():
                pull = beta * score(z, level)
            loss = cost(x, u).sum() - (z * pull).sum()
            (u.grad,) = torch.autograd.grad(loss, u)
            optimizer.step()
            with torch.no_grad():
                u.clamp_(-1, 1)
        return u.detach().transpose(0, 1)

    return plan


def jax(case: Case) -> Callable[[], Tensor]:
    """The whole plan under one JAX jit: scans over iterations and time, the rollout differentiated by JAX."""
    import jax as jx  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    problem, planner = case.problem, case.planner
    nx = problem.dynamics.nx
    array = lambda t: jnp.asarray(t.detach().numpy())  # noqa: E731
    b, k = array(problem.dynamics.normalizer.b), array(problem.dynamics.normalizer.k)
    parts: dict[str, Network] = dict(zip(("dynamics", "cost", "score"), _networks(case), strict=True))
    # [in, out] is the layout that XLA's CPU products read fastest.
    weights = {p: {n: array(w.T if w.ndim == 2 else w) for n, w in net.weights.items()} for p, net in parts.items()}
    b1, b2, eps = planner.adam

    def network(part: str, w: dict[str, Any], z: Any, level: Any = None) -> Any:
        for i, layer in enumerate(parts[part].spec.layers):
            assert isinstance(layer, Layer)
            z = z @ w[f"layers.{i}.weight"] + w[f"layers.{i}.bias"]
            if layer.condition == "multiply":
                z = z * w["embedding"].T[level]
            if layer.norm:
                d = z - z.mean(-1, keepdims=True)
                z = d * jx.lax.rsqrt(jnp.square(d).mean(-1, keepdims=True) + LAYER_NORM_EPS)
                z = z * w[f"layers.{i}.norm.weight"] + w[f"layers.{i}.norm.bias"]
            z = jx.nn.elu(z) if layer.activation == "elu" else z
        return z

    def loss(u: Any, w: dict[str, Any], x0: Any, beta: Any, level: Any) -> Any:
        def step(x: Any, u_t: Any) -> tuple[Any, Any]:
            zbar = (jnp.concatenate((x, u_t), -1) - b) / k
            return x + k[:nx] * network("dynamics", w["dynamics"], zbar), x

        z = jnp.concatenate((jx.lax.scan(step, x0, u)[1], u), -1).reshape(-1, len(b))
        zbar = (z - b) / k
        s = jx.lax.stop_gradient(network("score", w["score"], zbar, level) / k)
        return network("cost", w["cost"], zbar).sum() - beta * (z * s).sum()

    @jx.jit
    def plan(w: dict[str, Any], x0: Any, u: Any, tables: Any) -> Any:
        def iterate(carry: Any, at: Any) -> tuple[Any, None]:
            u, m, v = carry
            i, beta, level = at
            g = jx.grad(loss)(u, w, x0, beta, level)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            u = u - case.step_size * (m / (1 - b1 ** (i + 1))) / (jnp.sqrt(v / (1 - b2 ** (i + 1))) + eps)
            return (jnp.clip(u, -1, 1), m, v), None

        zero = jnp.zeros_like(u)
        return jx.lax.scan(iterate, (u, zero, zero), tables)[0][0]

    beta, level = (np.array(column) for column in zip(*_schedule(case), strict=True))
    tables = (jnp.arange(len(beta), dtype=jnp.float32), jnp.asarray(beta, jnp.float32), jnp.asarray(level))
    x0, u0 = array(case.x0), array(case.init.transpose(0, 1).contiguous())
    compiled = plan.lower(weights, x0, u0, tables).compile()
    return lambda: torch.from_numpy(np.array(compiled(weights, x0, u0, tables).block_until_ready())).transpose(0, 1)


BASELINES: dict[str, Rung] = {"published": published, "autograd": autograd, "jax": jax}


def _networks(case: Case) -> tuple[Network, Network, Network]:
    """Dynamics, cost and score."""
    problem = case.problem
    assert problem.score is not None
    return problem.dynamics.network, problem.cost.network, problem.score.network


def _schedule(case: Case) -> list[tuple[float, int]]:
    """β and noise level of every iteration."""
    n, score = case.planner.iterations, case.problem.score
    assert score is not None
    return list(zip(table(case.planner.beta, n, "beta"), level_table(case.planner.levels, n, score.levels), strict=True))
