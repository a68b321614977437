"""The plain passes agree with the written-out formula and with autograd, for every network, in float64 below 1e-10."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgp_fast.kernels.network import NetworkSpec, mlp
from sgp_fast.kernels.reference import condition_ref, network_forward_ref, network_vjp_ref
from tests.cases import F64, FIELD, embedding, network, random_weights, relative, specs

LIMIT = 1e-10


def both(spec: NetworkSpec, weights: dict[str, Tensor], z: Tensor, condition: Tensor | None) -> tuple[float, float]:
    """Relative errors of output and input-gradient against autograd through the formula."""
    leaf = z.clone().requires_grad_()
    want = network(spec, weights, leaf, condition)
    cotangent = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=want.dtype)
    (want_grad,) = torch.autograd.grad(want, leaf, cotangent)
    saved: list = []
    with torch.no_grad():
        got = network_forward_ref(spec, weights, z, condition, saved)
        grad = network_vjp_ref(spec, weights, saved, cotangent, condition)
        assert torch.equal(got, network_forward_ref(spec, weights, z, condition)), "saving changed the output"
    return relative(got, want.detach()), relative(grad, want_grad)


def check(spec: NetworkSpec, per_row: bool, lead: tuple[int, ...], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = random_weights(spec, seed)
    z = torch.randn(*lead, spec.inputs, generator=generator, dtype=F64)
    shape = lead if per_row else ()
    at = torch.randint(spec.levels, shape, generator=generator) if spec.levels else torch.rand(shape, generator=generator)
    condition = condition_ref(spec, weights, at.to(F64) if spec.time else at)
    want = embedding(spec, weights, at)
    if condition is None:
        assert want is None
        if spec.condition_width:  # conditioned by vectors that the caller brings
            condition = torch.randn(*shape, spec.condition_width, generator=generator, dtype=F64)
    else:
        assert want is not None and relative(condition, want) < LIMIT
    forward, backward = both(spec, weights, z, condition)
    assert forward < LIMIT and backward < LIMIT, (forward, backward)


@pytest.mark.parametrize("per_row", [False, True], ids=["per launch", "per row"])
@pytest.mark.parametrize("name", FIELD)
def test_networks_of_the_field(name: str, per_row: bool) -> None:
    check(FIELD[name], per_row, (7,))


@settings(max_examples=200)
@given(specs(), st.booleans(), st.sampled_from([(1,), (5,), (2, 3)]), st.integers(0, 99))
def test_any_network(spec: NetworkSpec, per_row: bool, lead: tuple[int, ...], seed: int) -> None:
    check(spec, per_row, lead, seed)


def test_times_need_not_be_whole() -> None:
    spec = FIELD["SRPO behaviour"]
    weights = random_weights(spec)
    whole, half = (condition_ref(spec, weights, torch.tensor(t)) for t in (1.0, 1.5))
    assert whole is not None and half is not None and relative(half, whole) > 0.01


def test_no_weight_gradient_and_no_graph() -> None:
    spec = FIELD["SGP dynamics"]
    weights = {name: w.requires_grad_() for name, w in random_weights(spec).items()}
    saved: list = []
    with torch.no_grad():
        out = network_forward_ref(spec, weights, torch.randn(3, spec.inputs, dtype=F64), None, saved)
        grad = network_vjp_ref(spec, weights, saved, out, None)
    assert not out.requires_grad and not grad.requires_grad and all(w.grad is None for w in weights.values())


@pytest.mark.parametrize("name", FIELD)
def test_bfloat16_is_for_products_only(name: str) -> None:
    """Products lose some of bfloat16's 2⁻⁸ a layer, not more; and everything between them stays in float32.

    Where rounding moves an input across a ReLU's kink, that row's gradient jumps, so those are allowed more.
    """
    spec = FIELD[name]
    exact = random_weights(spec)
    mixed = {
        n: w.to(torch.bfloat16 if w.ndim == 2 and n.startswith("layers.") else torch.float32) for n, w in exact.items()
    }
    z = torch.randn(64, spec.inputs, generator=torch.Generator().manual_seed(0), dtype=F64)
    condition, mixed_condition = condition_ref(spec, exact, 1), condition_ref(spec, mixed, 1)
    results = []
    for weights, x, c in ((exact, z, condition), (mixed, z.float(), mixed_condition)):
        saved: list = []
        out = network_forward_ref(spec, weights, x, c, saved)
        results.append((out, network_vjp_ref(spec, weights, saved, torch.ones_like(out), c)))
    kinks = any(layer.activation == "relu" for layer in spec.layers)
    for got, want, limit in zip(results[1], results[0], (2.0**-6, 2.0 ** (-4 if kinks else -6)), strict=True):
        assert got.dtype == torch.float32
        assert 0 < relative(got, want) < len(spec.layers) * limit


def test_rows_do_not_know_each_other() -> None:
    """A row that is not finite leaves the others bit for bit as they are."""
    spec = mlp(5, 3, width=16, norm=True)
    weights = random_weights(spec)
    z = torch.randn(6, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    poisoned = z.clone()
    poisoned[2] = torch.nan
    results = []
    for rows in (z, poisoned):
        saved: list = []
        out = network_forward_ref(spec, weights, rows, None, saved)
        results.append((out, network_vjp_ref(spec, weights, saved, torch.ones_like(out))))
    others = torch.tensor([0, 1, 3, 4, 5])
    for clean, spoiled in zip(*results, strict=True):
        assert torch.equal(clean[others], spoiled[others]) and spoiled[2].isnan().all()
