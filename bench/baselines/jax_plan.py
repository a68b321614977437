"""The whole plan under one JAX jit: scans over iterations and time, the rollout differentiated by JAX, the same weights."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgp_fast._optional import require
from sgp_fast.kernels.network import LAYER_NORM_EPS, Layer
from sgp_fast.models import Network

from ..cases import Case
from ..rung import Runner, Unavailable
from .batch import Batch, batch_of

# Steps of the time loop that XLA sees at once, and may fuse.
UNROLLED = 8
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")


def jax_plan(case: Case) -> Runner:
    """The runner, compiled for the case's device; what it answers, PyTorch reads where JAX left it."""
    # JAX would else take most of a GPU's memory at once, and leave none to the other rungs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = require("jax", extra="jax")
    batch = batch_of(case, PRECISIONS)
    inputs = jax.device_put(_inputs(jax, batch), _device(jax, batch.device))
    compiled = jax.jit(_plan(jax, batch)).lower(*inputs).compile()

    def plan() -> Tensor:
        return torch.from_dlpack(compiled(*inputs).block_until_ready()).transpose(0, 1)

    return plan


def _device(jax: Any, device: torch.device) -> Any:
    try:
        return jax.devices(device.type)[device.index or 0]
    except RuntimeError:
        raise Unavailable(f"jax has no device of kind {device.type} here; install jax with the plugin for it") from None


def _inputs(jax: Any, batch: Batch) -> tuple[Any, ...]:
    """Weights, start states, controls, and the tables of the iterations, as arrays of JAX."""
    jnp = jax.numpy

    def array(tensor: Tensor) -> Any:
        dtype = str(tensor.dtype).removeprefix("torch.")  # NumPy, which carries it, has no bfloat16
        return jnp.asarray(tensor.detach().cpu().float().numpy()).astype(dtype)

    def weights(network: Network) -> dict[str, Any]:
        # [in, out] is the layout that XLA's CPU products read fastest.
        of_products = {name for name, w in network.weights.items() if w.ndim == 2 and name != "embedding"}
        return {name: array(w.T if name in of_products else w) for name, w in network.weights.items()}

    models = {"dynamics": batch.dynamics, "cost": batch.cost, "score": batch.score}
    parts = {
        name: {"w": weights(model.network), "b": array(model.normalizer.b), "k": array(model.normalizer.k)}
        for name, model in models.items()
        if model is not None
    }
    parts["dynamics"]["scale"] = array(batch.dynamics.scale)
    if batch.score is not None and batch.score.output == "noise":
        parts["score"]["sigmas"] = array(batch.score.sigmas)
    beta, level, size = (np.array(column) for column in zip(*batch.steps, strict=True))
    b1, b2, _ = batch.adam
    n = np.arange(1, len(beta) + 1)
    floats = (jnp.asarray(column, jnp.float32) for column in (beta, size / (1 - b1**n), 1 / (1 - b2**n)))
    limits = None if batch.low is None or batch.high is None else (array(batch.low), array(batch.high))
    return parts, array(batch.x0), array(batch.u), limits, (jnp.asarray(level), *floats)


def _plan(jax: Any, batch: Batch) -> Any:
    """The plan as a pure function of `_inputs`."""
    jnp = jax.numpy
    b1, b2, eps = batch.adam
    activations = {name: getattr(jax.nn, name) for name in ("relu", "elu", "silu", "mish", "tanh")}
    activations["identity"] = lambda h: h
    activations["gelu"] = lambda h: jax.nn.gelu(h, approximate=False)
    specs = {"dynamics": batch.dynamics.network.spec, "cost": batch.cost.network.spec}
    if batch.score is not None:
        specs["score"] = batch.score.network.spec
    # On GPUs JAX's products of float32 are TF32 unless told otherwise.
    product = jax.lax.Precision.HIGH if batch.precision == "tf32" else jax.lax.Precision.HIGHEST

    def network(name: str, part: Any, z: Any, level: Any = None) -> Any:
        w, h = part["w"], (z - part["b"]) / part["k"]
        for i, layer in enumerate(specs[name].layers):
            assert isinstance(layer, Layer)
            weight, x = w[f"layers.{i}.weight"], h
            h = jnp.matmul(x.astype(weight.dtype), weight, precision=product).astype(x.dtype) + w[f"layers.{i}.bias"]
            if layer.condition != "none":
                row = w["embedding"][level]
                h = h * row if layer.condition == "multiply" else h + row
            if layer.norm:
                d = h - h.mean(-1, keepdims=True)
                h = d * jax.lax.rsqrt(jnp.square(d).mean(-1, keepdims=True) + LAYER_NORM_EPS)
                h = h * w[f"layers.{i}.norm.weight"] + w[f"layers.{i}.norm.bias"]
            h = activations[layer.activation](h)
            h = x + h if layer.residual else h
        return h

    def loss(u: Any, parts: Any, x0: Any, beta: Any, level: Any) -> Any:
        def step(x: Any, u_t: Any) -> tuple[Any, Any]:
            z = jnp.concatenate((x, u_t), -1)
            return x + parts["dynamics"]["scale"] * network("dynamics", parts["dynamics"], z), x

        last, x = jax.lax.scan(step, x0, u[:-1], unroll=UNROLLED)  # no cost depends on the state after the last control
        x = jnp.concatenate((x, last[None]))
        z = jnp.concatenate((x, u), -1).reshape(-1, x.shape[-1] + u.shape[-1])
        total = network("cost", parts["cost"], z).sum()
        if "score" not in parts:
            return total
        s = network("score", parts["score"], z, level) / parts["score"]["k"]
        s = s / parts["score"]["sigmas"][level] if "sigmas" in parts["score"] else s
        return total - beta * (z * jax.lax.stop_gradient(s)).sum()

    def plan(parts: Any, x0: Any, u: Any, limits: Any, tables: Any) -> Any:
        def iterate(carry: Any, at: Any) -> tuple[Any, None]:
            u, m, s = carry
            level, beta, size, correction = at
            g = jax.grad(loss)(u, parts, x0, beta, level)
            m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
            u = u - size * m / (jnp.sqrt(s * correction) + eps)
            return (u if limits is None else jnp.clip(u, *limits), m, s), None

        zero = jnp.zeros_like(u)
        return jax.lax.scan(iterate, (u, zero, zero), tables)[0][0]

    return plan
