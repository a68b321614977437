"""A network as library products and pointwise kernels: within twice the error of the plain passes at the same precision."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgp_fast.kernels.layered.linear_columns import ColumnCut
from sgp_fast.kernels.layered.linear_rows import RowCut
from sgp_fast.kernels.layered.network import LayeredNetwork, Scratch
from sgp_fast.kernels.layered.pointwise import Condition, Kept, Streams, Vectors, finish_backward, finish_forward
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, TimeEmbedding, mlp
from sgp_fast.kernels.packing import PackedNetwork, uncovered
from sgp_fast.kernels.reference import network_forward_ref, network_vjp_ref
from tests.cases import F64, FIELD, random_weights, relative, specs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted
PASSES = 2
# Where the plain passes happen to round to the right number: four ulps of float32.
FLOOR = 4 * torch.finfo(torch.float32).eps

Pair = tuple[Tensor, Tensor]


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=F64)


def reference(spec: NetworkSpec, weights: dict[str, Tensor], z: Tensor, cotangent: Tensor, condition: Tensor | None) -> Pair:
    saved: list = []
    out = network_forward_ref(spec, weights, z, condition, saved)
    return out, network_vjp_ref(spec, weights, saved, cotangent, condition)


def at_precision(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices in the dtype of the products, all else in float32."""
    return {n: w.to(dtype if n.startswith("layers.") and w.ndim == 2 else torch.float32) for n, w in weights.items()}


def poison(network: LayeredNetwork) -> None:
    for tensor in (*network.scratch.tensors, network.saved, network.moments):
        tensor.fill_(float("nan"))


def prepared(
    spec: NetworkSpec, weights: dict[str, Tensor], rows: int, dtype: torch.dtype, columns: int = 0, out_columns: int = 0,
    cut: RowCut | ColumnCut | None = None,
) -> LayeredNetwork:  # fmt: skip
    """The network over NaN."""
    packed = PackedNetwork(spec, dtype, DEVICE, columns, out_columns)
    packed.refresh(weights)
    network = LayeredNetwork(packed, rows, Scratch.allocate([(packed.program, rows)], dtype, DEVICE), PASSES, cut)
    poison(network)
    return network


def passes(network: LayeredNetwork, z: Tensor, cotangent: Tensor, condition: Tensor | None, keep: int = 1) -> Pair:
    """Output and input-gradient, each of the true width, after a look at the padding."""
    spec, program = network.packed.spec, network.program
    given = None
    if condition is not None:
        dtype = network.packed.weights.dtype if spec.time else torch.float32
        given = torch.zeros(condition.shape[:-1].numel(), program.condition_columns, dtype=dtype, device=DEVICE)
        given[:, : spec.condition_width] = condition
    network.inputs.zero_()[:, : spec.inputs] = z
    out = network.forward(given, keep=keep).to("cpu", copy=True)
    padded = torch.zeros(len(cotangent), program.out_columns, device=DEVICE)
    padded[:, : spec.outputs] = cotangent
    grad = network.vjp(padded, given, keep=keep).to("cpu", torch.float32, copy=True)
    for tile, width in ((out, spec.outputs), (grad, spec.inputs)):
        assert not tile[tile[:, :width].isfinite().all(1), width:].any(), "the padding is not zero"
    return out[:, : spec.outputs], grad[:, : spec.inputs]


def check(
    spec: NetworkSpec, dtype: torch.dtype, rows: int, per_row: bool, seed: int = 0, columns: int = 0, out_columns: int = 0,
    cut: RowCut | ColumnCut | None = None, floor: float = FLOOR,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    weights = random_weights(spec, seed)
    z, cotangent = draw(generator, rows, spec.inputs), draw(generator, rows, spec.outputs)
    lead = (rows,) if per_row else ()
    condition = draw(generator, *lead, spec.condition_width) if spec.condition_width else None
    want = reference(spec, weights, z, cotangent, condition)
    plain = reference(
        spec, at_precision(weights, dtype), z.float(), cotangent.float(), None if condition is None else condition.float()
    )
    got = passes(prepared(spec, weights, rows, dtype, columns, out_columns, cut), z, cotangent, condition)
    for name, ours, theirs, exact in zip(("output", "gradient"), got, plain, want, strict=True):
        error, allowed = relative(ours, exact), 2 * relative(theirs, exact) + floor
        assert error <= allowed, f"{name} off by {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("per_row", [False, True], ids=["per launch", "per row"])
@pytest.mark.parametrize("name", FIELD)
def test_networks_of_the_field(name: str, per_row: bool, dtype: torch.dtype) -> None:
    check(FIELD[name], dtype, 7, per_row)


@settings(max_examples=50)
@given(
    specs().filter(lambda spec: uncovered(spec) is None), st.booleans(), st.sampled_from([1, 5]), st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float16]), st.sampled_from([0, 64]),
)  # fmt: skip
def test_any_network(
    spec: NetworkSpec, per_row: bool, rows: int, seed: int, dtype: torch.dtype, columns: int
) -> None:
    check(spec, dtype, rows, per_row, seed, columns, columns)


@pytest.mark.parametrize(
    ("width", "rows"),
    [(16, 1), (16, 65), (48, 63), (48, 64), (100, 1), (100, 65), (256, 63), (256, 64), (1024, 1), (1024, 9)],
)
def test_widths_and_batches(width: int, rows: int) -> None:
    """Programs of 256 rows down to four, the last of them full or in part empty."""
    check(mlp(23, 17, width=width, hidden_layers=2, norm=True), torch.float32, rows, per_row=False)


EVERYTHING = NetworkSpec(
    6,
    (
        Block(9, "mish", "tanh"), Layer(7, "gelu", norm=True, condition="multiply"), Layer(7, "silu", residual=True),
        Layer(7, "elu", norm=True, condition="add"), Block(5, "relu"),
    ),
)  # fmt: skip


def test_a_row_of_nan_leaves_its_neighbours_as_they_are() -> None:
    """Bit for bit, in the output and in the gradient, with every kind of operation."""
    generator, weights = torch.Generator().manual_seed(0), random_weights(EVERYTHING)
    z, cotangent, condition = draw(generator, 9, 6), draw(generator, 9, 7), draw(generator, 9, 7)
    run = partial(passes, prepared(EVERYTHING, weights, 9, torch.float32))
    clean = run(z, cotangent, condition)
    z[4], cotangent[7] = float("nan"), float("inf")
    for name, before, after in zip(("output", "gradient"), clean, run(z, cotangent, condition), strict=True):
        others = [i for i in range(9) if i not in ((4,) if name == "output" else (4, 7))]
        assert torch.equal(before[others], after[others]), name
    assert after[[4, 7]].isnan().any(1).all()


def test_passes_are_kept_apart() -> None:
    """Two forward passes, then their gradients in the other order, as in a sweep over the horizon."""
    generator, weights = torch.Generator().manual_seed(0), random_weights(EVERYTHING)
    network = prepared(EVERYTHING, weights, 3, torch.float32)
    condition = draw(generator, 3, 7).float()
    inputs = [draw(generator, 3, 6), draw(generator, 3, 6)]
    padded, cotangent = torch.zeros(3, 16, device=DEVICE), torch.zeros(3, 16, device=DEVICE)
    padded[:, :7], cotangent[:, :7] = condition, 1.0
    alone = [passes(network, z, cotangent[:, :7], condition, keep=0)[1] for z in inputs]
    poison(network)
    for keep, z in enumerate(inputs):
        network.inputs.zero_()[:, :6] = z
        network.forward(padded, keep=keep)
    for keep in (1, 0):
        assert torch.equal(network.vjp(cotangent, padded, keep=keep)[:, :6].cpu(), alone[keep])


def test_saving_changes_nothing() -> None:
    spec = NetworkSpec(5, (Layer(9, "mish", norm=True), Block(6), Layer(3)), time=TimeEmbedding(2, 3, 4))
    network = prepared(spec, random_weights(spec), 5, torch.float16)
    z = draw(torch.Generator().manual_seed(0), 5, 5)
    condition = torch.full((1, 16), 0.5, dtype=torch.float16, device=DEVICE)
    outputs = []
    for keep in (None, 0):
        poison(network)
        network.inputs.zero_()[:, :5] = z
        outputs.append(network.forward(condition, keep=keep).clone())
        assert network.saved[0].isnan().all() == (keep is None)
    assert torch.equal(*outputs)


def test_pointwise_alone() -> None:
    """One operation of everything, forward and backward, against its formula and autograd; outputs start as NaN."""
    generator = torch.Generator().manual_seed(0)
    rows, width, columns = 5, 11, 16

    def padded(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, columns - values.shape[-1])).to(DEVICE, torch.float32)

    h, c, stream, cotangent = (draw(generator, rows, width) for _ in range(4))
    vectors = [draw(generator, width) for _ in range(5)]
    bias, norm_weight, norm_bias, post_weight, post_bias = vectors

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, (width,), w, b)

    leaf, into = h.clone().requires_grad_(), stream.clone().requires_grad_()
    out = torch.nn.functional.silu(norm((leaf + bias) * c, norm_weight, norm_bias)) + into
    y = norm(out, post_weight, post_bias)
    from_stream = draw(generator, rows, width)
    grad_h, grad_into = torch.autograd.grad((y * cotangent).sum() + (out * from_stream).sum(), (leaf, into))

    nan = partial(torch.full, fill_value=float("nan"), device=DEVICE)
    kept = Kept(nan((rows, columns)), nan((rows,)), nan((rows, columns)), nan((rows,)))
    packed = Vectors(*map(padded, vectors))
    kind: dict[str, Any] = dict(
        CONDITION="multiply", ACTIVATION="silu", RESIDUAL="after", WIDTH=width, STREAM_COLUMNS=columns
    )
    condition, result, left = Condition(padded(c), columns), nan((rows, columns)), nan((rows, columns))
    finish_forward(padded(h), result, packed, Condition(), condition, Streams(padded(stream), left), kept, **kind)
    assert relative(result, padded(y.detach())) < 1e-6
    assert relative(left[:, :width], padded(out.detach())[:, :width]) < 1e-6

    result, given = nan((rows, columns)), nan((rows, columns))
    finish_backward(padded(cotangent), result, packed, condition, Streams(given, padded(from_stream)), kept, **kind)
    assert relative(result, padded(grad_h)) < 1e-6
    assert relative(given[:, :width], padded(grad_into)[:, :width]) < 1e-6
