"""Products in one launch with what follows them: as the library's products with pointwise kernels behind them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgp_fast.kernels.layered.linear_rows import INTERPRETED, RowCut
from sgp_fast.kernels.layered.network import holds_rows
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, mlp, srpo_behavior
from sgp_fast.kernels.packing import lay_out, uncovered
from tests.cases import FIELD, random_weights, specs

from .test_pointwise import DEVICE, EVERYTHING, check, draw, passes, prepared

CUT = INTERPRETED if DEVICE.type == "cpu" else RowCut(32, 64, 8, 3)
# The stream begins behind the first product, so that it is the input alone which is multiplied.
STREAMS = NetworkSpec(6, (Layer(8, "elu"), *EVERYTHING.layers))


def served(spec: NetworkSpec) -> bool:
    return uncovered(spec) is None and holds_rows(lay_out(spec).program)


def test_what_is_served() -> None:
    assert served(mlp(23, 17, norm=True)) and served(STREAMS)
    assert not served(mlp(23, 17, width=512)), "a row too wide for a program"
    assert not served(NetworkSpec(6, (Block(8, "elu"), Layer(4)))), "a norm before the first product"
    assert not served(srpo_behavior(23, 6, width=64)), "a time embedding beside the input"


@pytest.mark.parametrize("per_row", [False, True], ids=["per launch", "per row"])
@pytest.mark.parametrize("name", [name for name in FIELD if served(FIELD[name])])
def test_networks_of_the_field(name: str, per_row: bool) -> None:
    check(FIELD[name], torch.float16, 7, per_row, cut=CUT)


@settings(max_examples=30)
@given(
    specs().filter(served), st.booleans(), st.sampled_from([1, 5, 17]), st.integers(0, 99), st.sampled_from([0, 64]),
)  # fmt: skip
def test_any_network(spec: NetworkSpec, per_row: bool, rows: int, seed: int, columns: int) -> None:
    check(spec, torch.float16, rows, per_row, seed, columns, columns, cut=CUT, floor=5e-4)  # of few numbers: an ulp


@pytest.mark.parametrize(("width", "rows"), [(16, 1), (48, 63), (100, 65), (256, 64), (256, 15)])
def test_widths_and_batches(width: int, rows: int) -> None:
    """Operand and result lie in two buffers in turn, and the last program has rows that are not there."""
    check(mlp(23, 17, width=width, hidden_layers=3, norm=True), torch.float16, rows, per_row=False, cut=CUT)


def test_a_row_of_nan_leaves_its_neighbours_as_they_are() -> None:
    """Bit for bit, in the output and in the gradient."""
    generator, weights = torch.Generator().manual_seed(0), random_weights(STREAMS)
    z, cotangent, condition = draw(generator, 9, 6), draw(generator, 9, STREAMS.outputs), draw(generator, 9, 7)
    run = partial(passes, prepared(STREAMS, weights, 9, torch.float16, cut=CUT))
    clean = run(z, cotangent, condition)
    z[4], cotangent[7] = float("nan"), float("inf")
    for name, before, after in zip(("output", "gradient"), clean, run(z, cotangent, condition), strict=True):
        others = [i for i in range(9) if i not in ((4,) if name == "output" else (4, 7))]
        assert torch.equal(before[others], after[others]) and after[4].isnan().any()


@pytest.mark.gpu
@pytest.mark.parametrize("cut", [RowCut(64, 64, 16, 3), RowCut(32, 64, 8, 3)], ids=["64 rows", "32 rows"])
@pytest.mark.parametrize("rows", [1, 63, 1000])
def test_parity_on_a_gpu(rows: int, cut: RowCut) -> None:
    check(mlp(23, 23, norm=True, levels=4), torch.float16, rows, per_row=False, cut=cut)
