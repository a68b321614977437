"""A network's description tells the truth about its weights, its work and its memory, and refuses what cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sgp_fast.kernels.network import Block, Layer, NetworkSpec, TimeEmbedding, mlp
from sgp_fast.kernels.reference import condition_ref, network_forward_ref
from tests.cases import F64, FIELD, random_weights, specs


def run(spec: NetworkSpec, z: Tensor) -> tuple[Tensor, list]:
    """Output and what is saved for the gradient."""
    weights = random_weights(spec)
    condition = condition_ref(spec, weights, 0)
    if condition is None and spec.condition_width:
        condition = torch.ones(spec.condition_width, dtype=F64)
    saved: list = []
    return network_forward_ref(spec, weights, z, condition, saved), saved


def numbers(saved: object) -> int:
    """Every number kept in nested lists and tuples of tensors."""
    if isinstance(saved, Tensor):
        return saved.numel()
    return sum(map(numbers, saved)) if isinstance(saved, (list, tuple)) else 0


@given(specs())
def test_what_is_said_of_shapes_and_memory_is_so(spec: NetworkSpec) -> None:
    rows = 3
    out, saved = run(spec, torch.randn(rows, spec.inputs, dtype=F64))
    assert out.shape == (rows, spec.outputs) and spec.widths[-1] == spec.outputs
    assert numbers(saved) == rows * spec.saved_per_row()


@pytest.mark.parametrize("name", FIELD)
def test_flops_are_those_of_the_products(name: str) -> None:
    """Two for each weight of a product that a row passes through, counted by PyTorch as it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    spec = FIELD[name]
    weights = random_weights(spec)
    rows = 5
    at = torch.zeros(rows, dtype=torch.long)
    condition = condition_ref(spec, weights, at)
    counter = FlopCounterMode(display=False)
    with counter:
        network_forward_ref(spec, weights, torch.zeros(rows, spec.inputs, dtype=F64), condition)
    assert counter.get_total_flops() == rows * spec.flops_per_row()


def test_flops_of_the_published_width() -> None:
    """The figure of 6.4 MFLOP a row of a network with four hidden layers of 1024."""
    assert mlp(23, 1, width=1024).flops_per_row() == 2 * (23 * 1024 + 3 * 1024**2 + 1024)


@given(specs())
def test_a_description_survives_json(spec: NetworkSpec) -> None:
    assert NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_hidden_layers_n_means_n_less_one_normalised() -> None:
    spec = mlp(5, 3, width=8, hidden_layers=4, norm=True, levels=6)
    assert [layer.norm for layer in spec.layers if isinstance(layer, Layer)] == [False, True, True, True, False]
    assert [layer.condition for layer in spec.layers if isinstance(layer, Layer)] == ["none", *["multiply"] * 3, "none"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Layer(0), "Layer.width is 0; expected a whole number"),
        (lambda: Layer(2.5), "Layer.width is 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: Layer(4, "swish"), "Layer.activation is 'swish'; expected one of .*silu"),  # pyright: ignore[reportArgumentType]
        (lambda: Layer(4, condition="film"), "Layer.condition is 'film'; expected one of"),  # pyright: ignore[reportArgumentType]
        (lambda: Block(-1), "Block.hidden is -1"),
        (lambda: Block(4, out="x"), "Block.out is 'x'"),  # pyright: ignore[reportArgumentType]
        (lambda: TimeEmbedding(hidden=0), "TimeEmbedding.hidden is 0"),
        (lambda: TimeEmbedding(order="cos"), "TimeEmbedding.order is 'cos'; expected one of"),  # pyright: ignore[reportArgumentType]
        (lambda: NetworkSpec(0, (Layer(2),)), "NetworkSpec.inputs is 0"),
        (lambda: NetworkSpec(2, ()), "layers is empty; give at least one"),
        (lambda: NetworkSpec(2, (Layer(2),), levels=3), "no layer is conditioned; set Layer.condition"),
        (lambda: NetworkSpec(2, (Layer(3, condition="add"), Layer(4, condition="add"))), r"widths \[3, 4\].*one width"),
        (lambda: NetworkSpec(2, (Layer(3, condition="add"),), time=TimeEmbedding()), "both given; use one"),
        (lambda: NetworkSpec(2, (Layer(6, residual=True),), time=TimeEmbedding(width=4)), "residual over an input joined"),
        (lambda: NetworkSpec(2, (Layer(3, residual=True),)), r"layers\[0\] has a residual from width 2 to 3; make"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@given(st.integers(1, 3))
def test_weights_are_named_in_a_fixed_order(levels: int) -> None:
    names = list(mlp(2, 1, width=3, hidden_layers=2, norm=True, levels=levels).weight_shapes())
    assert names == [
        "embedding", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.1.norm.weight",
        "layers.1.norm.bias", "layers.2.weight", "layers.2.bias",
    ]  # fmt: skip
