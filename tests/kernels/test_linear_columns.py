"""Some columns of products in one launch with what stands before them: as the library's with pointwise kernels between."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgp_fast.kernels.layered.linear_columns import ONE_ROW, SOME_ROWS, ColumnCut
from sgp_fast.kernels.layered.network import divides_columns
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, mlp, srpo_behavior
from sgp_fast.kernels.packing import lay_out, uncovered
from tests.cases import FIELD, random_weights, specs

from .test_pointwise import check, draw, passes, prepared

# The interpreter takes a program after the other, so where little is to be seen of it a row has few.
WIDE_ROW = replace(ONE_ROW, along=64, across=64)
CUTS = {"a row a program": WIDE_ROW, "some rows": SOME_ROWS}
# Of networks of a few numbers, two ulps of float16: products are rounded to it, and summed in another order than plainly.
ULPS = 2e-3
every_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
CONDITIONED = NetworkSpec(
    6, (Layer(7, "elu", condition="multiply"), Layer(7, "gelu", norm=True, condition="add"), Layer(5, "tanh"), Layer(3))
)


def served(spec: NetworkSpec) -> bool:
    return uncovered(spec) is None and divides_columns(lay_out(spec).program)


def test_what_is_served() -> None:
    assert served(mlp(23, 17, width=1024, norm=True)) and served(CONDITIONED)
    assert not served(NetworkSpec(6, (Layer(8, "elu"), Layer(8, residual=True)))), "a stream past a product"
    assert not served(NetworkSpec(6, (Block(8, "elu"), Layer(4)))), "a norm before the first product"
    assert not served(srpo_behavior(23, 6, width=64)), "a time embedding beside the input"


@every_cut
@pytest.mark.parametrize("per_row", [False, True], ids=["per launch", "per row"])
@pytest.mark.parametrize("name", [name for name in FIELD if served(FIELD[name])])
def test_networks_of_the_field(name: str, per_row: bool, cut: ColumnCut) -> None:
    check(FIELD[name], torch.float16, 3, per_row, cut=cut)


@every_cut
@settings(max_examples=20)
@given(
    specs().filter(served), st.booleans(), st.sampled_from([1, 5, 17]), st.integers(0, 99), st.sampled_from([0, 64]),
)  # fmt: skip
def test_any_network(
    cut: ColumnCut, spec: NetworkSpec, per_row: bool, rows: int, seed: int, columns: int
) -> None:
    check(spec, torch.float16, rows, per_row, seed, columns, columns, cut=cut, floor=ULPS)


@every_cut
@pytest.mark.parametrize("per_row", [False, True], ids=["per launch", "per row"])
def test_conditioning(per_row: bool, cut: ColumnCut) -> None:
    check(CONDITIONED, torch.float16, 5, per_row, cut=cut, floor=ULPS)


@pytest.mark.parametrize(("width", "rows", "cut"), [
    (16, 1, ONE_ROW), (48, 3, ONE_ROW), (100, 2, ONE_ROW), (256, 1, ONE_ROW), (1024, 1, WIDE_ROW),
    (16, 1, SOME_ROWS), (48, 63, SOME_ROWS), (100, 65, SOME_ROWS), (256, 64, SOME_ROWS), (1024, 17, SOME_ROWS),
])  # fmt: skip
def test_widths_and_batches(width: int, rows: int, cut: ColumnCut) -> None:
    """Operand and result lie in two buffers in turn, and the last program has rows that are not there."""
    check(mlp(23, 17, width=width, hidden_layers=2, norm=True), torch.float16, rows, per_row=False, cut=cut)


def test_a_row_a_program_multiplies_in_float32() -> None:
    check(mlp(23, 17, width=100, norm=True), torch.float32, 3, per_row=False, cut=ONE_ROW)


@every_cut
def test_a_row_of_nan_leaves_its_neighbours_as_they_are(cut: ColumnCut) -> None:
    """Bit for bit, in the output and in the gradient."""
    generator, weights = torch.Generator().manual_seed(0), random_weights(CONDITIONED)
    z, cotangent, condition = draw(generator, 9, 6), draw(generator, 9, CONDITIONED.outputs), draw(generator, 7)
    run = partial(passes, prepared(CONDITIONED, weights, 9, torch.float16, cut=cut))
    clean = run(z, cotangent, condition)
    z[4], cotangent[7] = float("nan"), float("inf")
    for name, before, after in zip(("output", "gradient"), clean, run(z, cotangent, condition), strict=True):
        others = [i for i in range(9) if i not in ((4,) if name == "output" else (4, 7))]
        assert torch.equal(before[others], after[others]) and after[4].isnan().any()


@pytest.mark.gpu
@pytest.mark.parametrize("width", [256, 1024])
@pytest.mark.parametrize(("rows", "cut"), [(1, ONE_ROW), (8, ONE_ROW), (1, SOME_ROWS), (63, SOME_ROWS), (128, SOME_ROWS)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_parity_on_a_gpu(dtype: torch.dtype, rows: int, cut: ColumnCut, width: int) -> None:
    check(mlp(23, 23, width=width, norm=True, levels=4), dtype, rows, per_row=False, cut=cut)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "cut"), [(4, ONE_ROW), (100, SOME_ROWS)])
def test_a_thousand_runs_are_the_same(rows: int, cut: ColumnCut) -> None:
    """What one program of a row keeps, no other of the launch may read."""
    spec = mlp(23, 17, norm=True)
    generator, weights = torch.Generator().manual_seed(0), random_weights(spec)
    network = prepared(spec, weights, rows, torch.bfloat16, cut=cut)
    z, cotangent = draw(generator, rows, 23), draw(generator, rows, 17)
    first = passes(network, z, cotangent, None)
    for _ in range(1000):
        for before, after in zip(first, passes(network, z, cotangent, None), strict=True):
            assert torch.equal(before, after)
