"""The fused network: within twice the error of the plain passes at the same precision, over memory that was NaN."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgp_fast.backends.products import products_of
from sgp_fast.kernels import PackedNetwork, network_forward, network_op, network_vjp
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, TimeEmbedding, mlp
from sgp_fast.kernels.packing import InputPrecision, round_to_tf32_, uncovered
from sgp_fast.kernels.reference import network_forward_ref, network_vjp_ref
from sgp_fast.kernels.tiling import Tile
from sgp_fast.models import Network
from tests.cases import F64, FIELD, random_weights, relative, specs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted
INTERPRETED = DEVICE.type == "cpu"
# Where the plain passes happen to round to the right number: four ulps of float32, and of 16 bits or tf32 one rounding.
FLOOR = {torch.float32: 4 * 2**-23, torch.float16: 2**-11, torch.bfloat16: 2**-8}
FLOOR_TF32 = 2**-11
HALF = [torch.float32, torch.float16]
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
every_half = pytest.mark.parametrize("dtype", HALF, ids=NAMES.get)

# Every kind of operation: pre-norm blocks that follow one another, and come first and last; norms with and without
# conditioning; residuals before and after them.
EVERYTHING = NetworkSpec(
    6,
    (
        Block(9, "mish", "tanh"), Layer(7, "gelu", norm=True, condition="multiply"), Layer(7, "silu", residual=True),
        Layer(7, "elu", norm=True, condition="add", residual=True), Block(5, "relu"), Block(20, "elu", "silu"),
    ),
)  # fmt: skip
# Networks whose last operation keeps something for its gradient, which is read first of all.
ENDS = {
    "tanh": mlp(5, 3, width=7, hidden_layers=1, head="tanh"),
    "norm": NetworkSpec(5, (Layer(7, "silu"), Layer(6, norm=True))),
    "norm and residual": NetworkSpec(6, (Layer(6, "mish", norm=True, residual=True),)),
    "block": NetworkSpec(5, (Layer(7), Block(9, "silu", "gelu"))),
    "nothing but a product": NetworkSpec(5, (Layer(3),)),
}

Pair = tuple[Tensor, Tensor]


@contextmanager
def poisoned() -> Iterator[None]:
    """Floating-point memory that is asked for is full of NaN."""
    empty = torch.empty

    def filled(*size: Any, **options: Any) -> Tensor:
        made = empty(*size, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with mock.patch("torch.empty", filled):
        yield


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=F64).to(DEVICE)


def on_device(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.to(DEVICE) for name, w in weights.items()}


def reference(spec: NetworkSpec, weights: dict[str, Tensor], z: Tensor, cotangent: Tensor, condition: Tensor | None) -> Pair:
    saved: list = []
    out = network_forward_ref(spec, weights, z, condition, saved)
    return out, network_vjp_ref(spec, weights, saved, cotangent, condition)


def at_precision(weights: dict[str, Tensor], dtype: torch.dtype, input_precision: str) -> dict[str, Tensor]:
    """Matrices in the dtype of the products, all else in float32."""
    made = {n: w.to(dtype if n.startswith("layers.") and w.ndim == 2 else torch.float32) for n, w in weights.items()}
    if input_precision == "tf32":
        made = {n: round_to_tf32_(w.clone()) if n.startswith("layers.") and w.ndim == 2 else w for n, w in made.items()}
    return made


def passes(
    packed: PackedNetwork, z: Tensor, cotangent: Tensor, condition: Tensor | None = None, tile: Tile | None = None
) -> Pair:
    """Output and input-gradient, from memory and into memory that was NaN."""
    given, pulled = z.float(), cotangent.float()
    outs = [torch.full((*z.shape[:-1], n), float("nan"), device=DEVICE) for n in (packed.spec.outputs, packed.spec.inputs)]
    with poisoned():
        made = network_forward(packed, given, condition, out=outs[0], tile=tile)
        grad = network_vjp(packed, given, pulled, condition, out=outs[1], tile=tile)
    assert made is outs[0] and grad is outs[1]
    return made, grad


def check(
    spec: NetworkSpec, dtype: torch.dtype, rows: int, per_row: bool = False, seed: int = 0, tile: Tile | None = None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = on_device(random_weights(spec, seed))
    z, cotangent = draw(generator, rows, spec.inputs), draw(generator, rows, spec.outputs)
    lead = (rows,) if per_row else ()
    condition = draw(generator, *lead, spec.condition_width) if spec.condition_width else None
    single = None if condition is None else condition.float()
    input_precision: InputPrecision = "tf32" if tile is not None and tile.input_precision == "tf32" else "ieee"
    with products_of("float32", DEVICE):
        want = reference(spec, weights, z, cotangent, condition)
    with products_of("tf32" if input_precision == "tf32" else "float32", DEVICE):
        plain = reference(spec, at_precision(weights, dtype, input_precision), z.float(), cotangent.float(), single)
    got = passes(PackedNetwork.of(spec, weights, dtype, input_precision), z, cotangent, single, tile)
    for name, ours, theirs, exact in zip(("output", "gradient"), got, plain, want, strict=True):
        floor = FLOOR_TF32 if input_precision == "tf32" else FLOOR[dtype]
        error, allowed = relative(ours, exact), 2 * relative(theirs, exact) + floor
        assert error <= allowed, f"{name} off by {error:.2e}, allowed {allowed:.2e}"


@every_half
@pytest.mark.parametrize(
    ("name", "per_row"), [(n, each) for n in FIELD for each in (False, True) if FIELD[n].condition_width or not each]
)
def test_networks_of_the_field(name: str, per_row: bool, dtype: torch.dtype) -> None:
    """Those that are conditioned, by one row for all and by a row each."""
    check(FIELD[name], dtype, 7, per_row)


@settings(max_examples=40 if INTERPRETED else 10)  # each is another kernel, which a GPU has to compile
@given(
    specs().filter(lambda spec: uncovered(spec) is None), st.booleans(), st.sampled_from([1, 5, 17]), st.integers(0, 99),
    st.sampled_from(HALF),
)  # fmt: skip
def test_any_network(spec: NetworkSpec, per_row: bool, rows: int, seed: int, dtype: torch.dtype) -> None:
    check(spec, dtype, rows, per_row, seed)


@every_half
@pytest.mark.parametrize("name", ENDS)
def test_networks_that_end_in_anything(name: str, dtype: torch.dtype) -> None:
    check(ENDS[name], dtype, 20)


@pytest.mark.parametrize(
    ("width", "rows", "norm", "dtype"),
    [
        (16, 1, True, torch.float16), (16, 63, False, torch.float32), (16, 64, True, torch.float32),
        (16, 65, False, torch.float16), (48, 1, False, torch.float32), (48, 63, True, torch.float16),
        (48, 64, False, torch.float16), (48, 65, True, torch.float32), (100, 1, True, torch.float32),
        (100, 63, False, torch.float16), (100, 64, True, torch.float16), (100, 65, False, torch.float32),
        (256, 1, False, torch.float16), (256, 63, True, torch.float32),
    ],
)  # fmt: skip
def test_widths_and_batches(width: int, rows: int, norm: bool, dtype: torch.dtype) -> None:
    """Columns in one piece where a norm wants them, else in chunks; programs that are full, and the last in part empty."""
    check(mlp(23, 17, width=width, hidden_layers=2, norm=norm), dtype, rows)


@pytest.mark.parametrize("rows", [64, 65])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.slow
def test_wide_networks_and_full_programs(norm: bool, rows: int) -> None:
    for dtype in HALF:
        check(mlp(23, 17, width=256, norm=norm), dtype, rows)
        check(mlp(23, 17, width=1024, hidden_layers=2, norm=norm), dtype, 1)


TILES = [(16, 16, 16), (16, 32, 64), (32, 64, 16), (64, 16, 32), (64, 256, 64)]


@pytest.mark.parametrize(("block_b", "block_n", "block_k"), TILES)
def test_every_division_gives_the_same(block_b: int, block_n: int, block_k: int) -> None:
    """But for the order of sums: chunks of columns that a stream crosses, steps of a product, rows of a program."""
    body = (Layer(70, "mish"), Layer(70, "silu", residual=True), Layer(70, "elu", residual=True), Block(40))
    spec = NetworkSpec(40, (*body, Layer(33, "tanh")))
    tile = Tile(block_b, block_n, block_k, 4, 2, interpreted=INTERPRETED)
    check(spec, torch.float32, 33, tile=tile)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("name", [name for name, spec in FIELD.items() if spec.condition_width])
def test_conditioned_networks_in_tf32(name: str, per_row: bool) -> None:
    check(FIELD[name], torch.float32, 7, per_row, tile=Tile(16, 64, 32, 4, 2, "tf32", INTERPRETED))


@pytest.mark.parametrize("name", [*ENDS, "everything"])
def test_networks_that_end_in_anything_in_tf32(name: str) -> None:
    check(ENDS.get(name, EVERYTHING), torch.float32, 7, tile=Tile(16, 64, 32, 4, 2, "tf32", INTERPRETED))


def test_tf32_is_rounded_to_the_nearest_as_the_hardware_does_not() -> None:
    """Weights where they are packed, rows in the kernel; a network of an identity matrix shows the latter."""
    spec, one = NetworkSpec(16, (Layer(16),)), 1 + 2**-10
    edges = [1.0, one, 1 + 2**-11, 1 + 2**-11 - 2**-23, one + 2**-11, -1 - 2**-11, 2 - 2**-12, 0.0, -0.0, 1e-38, 3.4e38]
    nearest = [1.0, one, one, 1.0, 1 + 2**-9, -one, 2.0, 0.0, -0.0]
    z = torch.tensor(edges + [0.1, -0.3, 7.7, 1e-20, -1e20], dtype=torch.float32, device=DEVICE)
    rounded = round_to_tf32_(z.clone())
    assert rounded[: len(nearest)].tolist() == nearest
    finite = z.abs().clamp(1e-30, 3e38) * z.sign()
    assert ((round_to_tf32_(finite.clone()) - finite).abs() <= finite.abs() * 2**-11).all()
    assert torch.equal(round_to_tf32_(rounded.clone()), rounded)

    weights = {"layers.0.weight": torch.eye(16, device=DEVICE), "layers.0.bias": torch.zeros(16, device=DEVICE)}
    packed = PackedNetwork.of(spec, weights, torch.float32, "tf32")
    assert torch.equal(network_forward(packed, finite), round_to_tf32_(finite.clone()))
    with_nan = torch.stack((finite, finite))
    with_nan.view(torch.int32)[0, 3] = 0x7FFFFFFF  # a NaN that adding to its bits would make a zero
    out = network_forward(packed, with_nan)
    assert out[0].isnan().any() and torch.equal(out[1], network_forward(packed, finite))


def test_weights_are_packed_rounded_to_tf32_and_vectors_as_they_are() -> None:
    weights = on_device(random_weights(EVERYTHING))
    plain = PackedNetwork.of(EVERYTHING, weights, torch.float32)
    packed = PackedNetwork.of(EVERYTHING, weights, torch.float32, "tf32")
    for _ in range(2):
        assert (packed.weights.view(torch.int32) & 0x1FFF == 0).all()
        off = (packed.weights - plain.weights).abs()
        assert off.any() and (off <= plain.weights.abs() * 2**-11).all()
        assert torch.equal(packed.vectors, plain.vectors)
        weights["layers.0.up.weight"].mul_(1.1)
        for each in (plain, packed):
            each.follow()


def test_gradients_and_times_are_rounded_to_tf32_where_they_are_multiplied() -> None:
    """By identity matrices."""
    eye, bias = torch.eye(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    z, g = draw(torch.Generator().manual_seed(0), 3, 16).float(), draw(torch.Generator().manual_seed(1), 3, 16).float()
    rounded = round_to_tf32_(g.clone())
    weights = {"layers.0.weight": eye, "layers.0.bias": bias}
    packed = PackedNetwork.of(NetworkSpec(16, (Layer(16),)), weights, torch.float32, "tf32")
    assert not torch.equal(rounded, g) and torch.equal(network_vjp(packed, z, g), rounded)

    weights = {"layers.0.weight": torch.cat((0 * eye, eye), 1), "layers.0.bias": bias}
    spec = NetworkSpec(16, (Layer(16),), time=TimeEmbedding(width=16))
    packed = PackedNetwork.of(spec, on_device(random_weights(spec)) | weights, torch.float32, "tf32")
    assert torch.equal(network_forward(packed, z, g), rounded)
    assert torch.equal(network_forward(packed, z, g[0]), rounded[:1].expand(3, -1))


def test_what_no_tf32_product_reads_stays_float32() -> None:
    """What residuals add, and what is kept for the gradient: the derivative of ELU tells ĥ apart from a rounded one."""
    eye, bias = torch.eye(16, device=DEVICE), torch.full((16,), -8.1, device=DEVICE)
    z, g = draw(torch.Generator().manual_seed(0), 3, 16).float(), draw(torch.Generator().manual_seed(1), 3, 16).float()
    weights = {"layers.0.weight": 0 * eye, "layers.0.bias": 0 * bias}
    spec = NetworkSpec(16, (Layer(16, residual=True),))
    packed = PackedNetwork.of(spec, weights, torch.float32, "tf32")
    assert torch.equal(network_forward(packed, z), z) and torch.equal(network_vjp(packed, z, g), g)

    weights = {"layers.0.weight": eye, "layers.0.bias": bias}
    packed = PackedNetwork.of(NetworkSpec(16, (Layer(16, "elu"),)), weights, torch.float32, "tf32")
    want = torch.exp(round_to_tf32_(z.clamp(-1, 1)) + bias) * g
    assert torch.allclose(network_vjp(packed, z.clamp(-1, 1), g), want, rtol=2**-11 + 1e-6, atol=0)


def test_what_is_no_number_is_none_in_tf32() -> None:
    """Whatever its bits: a GPU sets them all, and to add to them would make a zero."""
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001] * 9, dtype=torch.int32, device=DEVICE).view(torch.float32)
    assert nan.isnan().all() and round_to_tf32_(nan.clone()).isnan().all()
    infinite = torch.tensor([torch.inf, -torch.inf], device=DEVICE)
    assert torch.equal(round_to_tf32_(infinite.clone()), infinite)

    spec = NetworkSpec(5, (Layer(3),), time=TimeEmbedding(2, 3, 4))
    weights = {name: w.float() for name, w in on_device(random_weights(spec)).items()}
    z, condition = torch.ones(2, 5, device=DEVICE), torch.ones(2, 4, device=DEVICE)
    packed = PackedNetwork.of(spec, weights, torch.float32, "tf32")
    condition[1, 2] = nan[0]
    assert network_forward(packed, z, condition).isnan().tolist() == [[False] * 3, [True] * 3]
    weights["layers.0.weight"][1, 0] = nan[0]
    assert network_forward(packed, z, condition[:1].expand(2, -1)).isnan().tolist() == [[False, True, False]] * 2


def test_inputs_and_outputs_of_512() -> None:
    check(mlp(512, 512, width=16, hidden_layers=1), torch.float32, 2)


def test_a_row_of_nan_leaves_its_neighbours_as_they_are() -> None:
    """Bit for bit, in the output and in the gradient, with every kind of operation."""
    generator, weights = torch.Generator().manual_seed(0), on_device(random_weights(EVERYTHING))
    packed = PackedNetwork.of(EVERYTHING, weights, torch.float32)
    z, cotangent, condition = draw(generator, 20, 6), draw(generator, 20, 7), draw(generator, 20, 7).float()
    clean = passes(packed, z, cotangent, condition)
    bad = [4, 17]
    z[4], z[17], cotangent[11] = float("nan"), 3e38, float("inf")
    for name, before, after in zip(("output", "gradient"), clean, passes(packed, z, cotangent, condition), strict=True):
        spoiled = bad if name == "output" else [*bad, 11]
        others = [i for i in range(20) if i not in spoiled]
        assert torch.equal(before[others], after[others]), name
        assert not after[spoiled].isfinite().all(1).any(), name


def test_a_row_does_not_depend_on_its_place_or_company() -> None:
    generator, weights = torch.Generator().manual_seed(0), on_device(random_weights(EVERYTHING))
    packed = PackedNetwork.of(EVERYTHING, weights, torch.float32)
    z, cotangent, condition = draw(generator, 70, 6), draw(generator, 70, 7), draw(generator, 70, 7).float()
    together = passes(packed, z, cotangent, condition)
    for i in (0, 37, 69):
        rows = slice(i, i + 1)
        alone = passes(packed, z[rows], cotangent[rows], condition[rows])
        assert all(torch.equal(one, many[rows]) for one, many in zip(alone, together, strict=True))


def test_one_condition_for_all_is_the_same_in_every_row() -> None:
    for spec in (FIELD["SGP score"], NetworkSpec(5, (Layer(9, "mish"), Layer(3)), time=TimeEmbedding(2, 3, 4))):
        generator, weights = torch.Generator().manual_seed(0), on_device(random_weights(spec))
        packed = PackedNetwork.of(spec, weights, torch.float32)
        z, cotangent = draw(generator, 5, spec.inputs), draw(generator, 5, spec.outputs)
        condition = draw(generator, spec.condition_width).float()
        shared = passes(packed, z, cotangent, condition)
        each = passes(packed, z, cotangent, condition.expand(5, -1))
        assert all(torch.equal(one, other) for one, other in zip(shared, each, strict=True))


@pytest.mark.parametrize("name", ["SGP score", "everything"])
def test_scratch_is_kept_with_the_network_where_the_result_goes_to_a_tensor_of_the_callers(name: str) -> None:
    """Nothing is allocated from the second call on, and what scratch held before does not matter."""
    spec = {"SGP score": mlp(5, 4, width=32, norm=True, levels=3), "everything": EVERYTHING}[name]
    generator, weights = torch.Generator().manual_seed(1), on_device(random_weights(spec))
    packed = PackedNetwork.of(spec, weights)
    z, g = draw(generator, 19, spec.inputs).float(), draw(generator, 19, spec.outputs).float()
    c = draw(generator, 19, spec.condition_width).float()
    want = network_forward(packed, z, c), network_vjp(packed, z, g, c)
    outs = [torch.full_like(t, float("nan")) for t in want]

    def run(rows: int) -> None:
        network_forward(packed, z[:rows], c[:rows], out=outs[0][:rows])
        network_vjp(packed, z[:rows], g[:rows], c[:rows], out=outs[1][:rows])

    run(19)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outs, want, strict=True))
    for kept in network_op._workspaces[packed].values():
        kept._tensors["scratch"].fill_(float("nan"))
        kept._tensors["scratch32"].fill_(float("nan"))
    for rows in (19, 3):
        for out in outs:
            out.fill_(float("nan"))
        allocated = mock.Mock(side_effect=AssertionError("allocated"))
        with mock.patch("torch.empty", allocated), mock.patch("torch.zeros", allocated):
            run(rows)
        assert all(torch.equal(ours[:rows], theirs[:rows]) for ours, theirs in zip(outs, want, strict=True))


def test_threads_have_scratch_of_their_own() -> None:
    spec = mlp(5, 4, width=32)
    packed = PackedNetwork.of(spec, on_device(random_weights(spec)))
    z, out = torch.zeros(3, 5, device=DEVICE), torch.zeros(3, 4, device=DEVICE)
    network_forward(packed, z, out=out)
    thread = threading.Thread(target=lambda: network_op._workspace(packed, True).get("scratch", 1, torch.float32))
    thread.start()
    thread.join()
    first, second = network_op._workspaces[packed].values()
    assert first._tensors["scratch"].data_ptr() != second._tensors["scratch"].data_ptr()


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,)], ids=str)
def test_any_leading_shape(lead: tuple[int, ...]) -> None:
    spec = FIELD["SGP score"]
    weights, generator = on_device(random_weights(spec)), torch.Generator().manual_seed(0)
    packed = PackedNetwork.of(spec, weights, torch.float32)
    z, cotangent = draw(generator, *lead, spec.inputs), draw(generator, *lead, spec.outputs)
    condition = draw(generator, *lead, spec.condition_width)
    got = passes(packed, z, cotangent, condition.float())
    for ours, exact in zip(got, reference(spec, weights, z, cotangent, condition), strict=True):
        assert ours.shape == exact.shape and relative(ours, exact) < 1e-5


def test_weights_that_were_written_to_are_followed() -> None:
    """By PyTorch's own count of writes; what goes through `.data` is not counted, and is seen after `refresh`."""
    spec, generator = FIELD["SGP dynamics"], torch.Generator().manual_seed(0)
    weights = {name: w.float() for name, w in on_device(random_weights(spec)).items()}
    packed, z, g = PackedNetwork.of(spec, weights), draw(generator, 3, 5), draw(generator, 3, 3)
    before = passes(packed, z, g)[0]
    weights["layers.1.weight"].mul_(0.5)
    weights["layers.1.norm.bias"].add_(1.0)
    written = passes(packed, z, g)[0]
    assert relative(written, before) > 1e-3
    assert relative(written, network_forward_ref(spec, weights, z.float())) < 1e-5
    weights["layers.2.weight"].data.mul_(0.5)
    packed.refresh(weights)
    assert relative(passes(packed, z, g)[0], network_forward_ref(spec, weights, z.float())) < 1e-5


def test_wrong_tensors_are_refused_by_name_before_any_work() -> None:
    spec = FIELD["SGP score"]
    packed = PackedNetwork.of(spec, on_device(random_weights(spec)), torch.float32)
    z, g, c = (torch.zeros(4, n, device=DEVICE) for n in (5, 5, 17))
    wrong: list[tuple[str, Any]] = [
        (r"z has shape \(4, 4\); the network makes it \[\.\.\., 5\]", lambda: network_forward(packed, z[:, :4], c)),
        (r"z has strides .*pass z\.contiguous\(\)", lambda: network_forward(packed, torch.zeros(5, 4, device=DEVICE).T, c)),
        (r"z is torch\.int64.*\.float\(\)", lambda: network_forward(packed, z.long(), c)),
        (r"z is on meta", lambda: network_forward(packed, z.to("meta"), c)),
        (r"condition is None; the network takes one of width 17", lambda: network_forward(packed, z)),
        (r"condition has shape \(3, 17\); expected \[17\] or \[4, 17\]", lambda: network_forward(packed, z, c[:3])),
        (r"grad has shape \(3, 5\); expected \(4, 5\)", lambda: network_vjp(packed, z, g[:3], c)),
        (r"out is torch\.float32 \(3, 5\); expected .* \(4, 5\)", lambda: network_forward(packed, z, c, out=z[:3])),
        (r"out is torch\.float64", lambda: network_forward(packed, z, c, out=z.double())),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words):
            call()
    critic = FIELD["SRPO critic"]
    plain = PackedNetwork.of(critic, on_device(random_weights(critic)), torch.float32)
    with pytest.raises(ValueError, match=r"condition is of shape \(4, 17\); the network takes none"):
        network_forward(plain, z, c)


def test_a_network_that_is_not_packed_is_told_how_to_be() -> None:
    spec = NetworkSpec(3, (Layer(2),))
    told = r"packed is a Network; expected a PackedNetwork: .* PackedNetwork.of\(net.spec, net.weights\)"
    with pytest.raises(TypeError, match=told):
        network_forward(Network(spec), torch.zeros(2, 3))  # pyright: ignore[reportArgumentType]


def test_tf32_is_of_float32_and_of_the_tile_alike() -> None:
    spec = NetworkSpec(5, (Layer(3),))
    weights = on_device(random_weights(spec))
    with pytest.raises(ValueError, match="input_precision is 'tf32' for products of torch.float16; expected 'ieee'"):
        PackedNetwork.of(spec, weights, torch.float16, "tf32")
    packed = PackedNetwork.of(spec, weights, torch.float32, "tf32")
    z = torch.zeros(2, 5, device=DEVICE)
    with pytest.raises(ValueError, match="tile multiplies in 'ieee' and packed was made for 'tf32'; give both the same"):
        network_forward(packed, z, tile=Tile(16, interpreted=INTERPRETED))


def test_networks_that_are_not_covered_say_what_is_not() -> None:
    over_time = NetworkSpec(5, (Block(9), Layer(3)), time=TimeEmbedding(2, 3, 4))
    for words, spec in {
        "a block as its first layer, over an input joined with time: put a Layer before it": over_time,
        "a layer 1025 wide; the kernels go to 1024": mlp(5, 3, width=1025),
        "513 inputs or outputs; the kernels go to 512": mlp(513, 3, width=16),
    }.items():
        assert uncovered(spec) == words
        with pytest.raises(ValueError, match=words):
            PackedNetwork(spec, torch.float32, DEVICE)


# On a GPU.

GPU_SPECS = {
    "SGP 256": mlp(23, 17, width=256, norm=True), "SGP score 256": mlp(23, 23, width=256, norm=True, levels=10),
    "ReLU 200": mlp(23, 17, width=200, activation="relu"), "everything": EVERYTHING,
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=NAMES.get)
@pytest.mark.parametrize("name", GPU_SPECS)
def test_parity_on_a_gpu(name: str, dtype: torch.dtype, rows: int) -> None:
    check(GPU_SPECS[name], dtype, rows)


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_SPECS)
def test_parity_in_tf32(name: str) -> None:
    check(GPU_SPECS[name], torch.float32, 65, tile=Tile(32, 256, 32, 8, 3, "tf32"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*ENDS, "everything"])
def test_a_thousand_runs_are_the_same(name: str) -> None:
    """A store that races with a load would differ once in a while."""
    spec = ENDS.get(name, EVERYTHING)
    generator, weights = torch.Generator().manual_seed(0), on_device(random_weights(spec))
    packed = PackedNetwork.of(spec, weights, torch.float16)
    z, cotangent = draw(generator, 5000, spec.inputs).float(), draw(generator, 5000, spec.outputs).float()
    condition = draw(generator, spec.condition_width).float() if spec.condition_width else None
    first = network_vjp(packed, z, cotangent, condition)
    for _ in range(1000):
        assert torch.equal(network_vjp(packed, z, cotangent, condition), first)
