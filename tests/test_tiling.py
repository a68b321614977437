"""How kernels divide their work: what is tried first, what fits, and when activations are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgp_fast.kernels.network import mlp, qsm_actor, srpo_behavior
from sgp_fast.kernels.packing import Program, lay_out
from sgp_fast.kernels.tiling import H200, Tile, fits, keep, sizes, tall, tiles

SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10}
KINDS = [(torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]


def program(width: int = 256, outputs: int = 17) -> Program:
    return lay_out(mlp(23, outputs, width=width, norm=True)).program


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize("chip", SHARED)
def test_every_candidate_fits(dtype: torch.dtype, precision: str, chip: str) -> None:
    for width in (16, 64, 200, 256, 512, 1024):
        net = program(width)
        for tile in tiles(net.widest_whole_row, net.widest, dtype, 4096, input_precision=precision):
            assert tile.input_precision == precision or dtype != torch.float32
            assert fits(tile, (net,), dtype, SHARED[chip])


def test_published_networks_have_candidates() -> None:
    wide = [mlp(23, 17, width=width, norm=True) for width in (512, 1024)]
    for spec in (*wide, srpo_behavior(23, 6), qsm_actor(23, 6)):
        net = lay_out(spec).program
        assert tiles(net.widest_whole_row, net.widest, torch.bfloat16, 1024)


def test_many_problems_want_large_blocks_and_few_want_many() -> None:
    def blocks(rows: int) -> list[int]:
        return [tile.block_b for tile in tiles(256, 256, torch.bfloat16, rows)]

    assert blocks(1 << 20)[0] == max(blocks(1))
    assert blocks(1) == sorted(blocks(1))
    assert sorted(blocks(1)) == sorted(blocks(1 << 20))
    for rows in (1, 100, 2000, 5000, 16384):  # no candidate that occupies as many multiprocessors has larger blocks
        first = blocks(rows)[0]
        waves = {b: -(-rows // (b * H200.multiprocessors)) for b in blocks(rows)}
        assert waves[first] == min(waves.values())


def test_wide_rows_have_few_of_them() -> None:
    assert {tile.block_b for tile in tiles(1024, 1024, torch.bfloat16, 1 << 20)} == {16}
    assert max(tile.block_b for tile in tiles(32, 1024, torch.bfloat16, 1 << 20)) == 64  # no norm: computed in chunks


def test_tensor_memory_asks_for_small_blocks() -> None:
    assert max(tile.block_b for tile in tiles(256, 256, torch.bfloat16, 1 << 20, limits=replace(H200, capability=100))) == 32


@pytest.mark.parametrize(("capability", "rows"), [(80, {16}), (90, {16, 32}), (100, {16, 32})])
def test_tiles_are_for_the_chips_that_have_the_registers(capability: int, rows: set[int]) -> None:
    limits = replace(H200, capability=capability)
    assert {tile.block_b for tile in tiles(512, 512, torch.bfloat16, 1 << 20, limits=limits)} == rows
    assert bool(tiles(1024, 1024, torch.bfloat16, 1 << 20, limits=limits)) == (capability == 90)


def test_residuals_ask_for_small_blocks() -> None:
    assert max(tile.block_b for tile in tiles(256, 1024, torch.bfloat16, 1 << 20, streams=True)) == 16
    (last,) = tiles(256, 1024, torch.bfloat16, 1 << 20, streams=True, limits=replace(H200, capability=100))
    assert (last.block_k, last.stages) == (32, 2), "of steps of 64, sm_100 spills some bytes"


def test_nothing_is_offered_where_nothing_is_known() -> None:
    assert tiles(1024, 1024, torch.float32, 1024) == ()


def test_interpreted_tiles_divide_small_networks() -> None:
    (tile,) = tiles(256, 256, torch.float32, 1024, interpreted=True)
    assert tile.interpreted and tile.block_n < 256 and tile.block_k < 256


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match="input_precision is 'tf64'"):
        tiles(256, 256, torch.float32, 1, input_precision="tf64")


def test_fits_counts_the_deepest_pipeline() -> None:
    net, tile = program(512), Tile(32, 256, 32, 8, 3)
    need = 3 * 32 * (32 + 512) * 2
    assert fits(tile, (net, program(64)), torch.bfloat16, need)
    assert not fits(tile, (program(64), net), torch.bfloat16, need - 1)


def test_keep_weighs_bytes_against_operations() -> None:
    net, tile, dtype = program(), Tile(64, 256, 32), torch.bfloat16
    rows, horizon = 132 * 64, 8
    kept = 132 * horizon * 64 * (2 * net.saved + 4 * net.moments)
    weights = 132 * horizon * net.flops_per_row() // 2 * 2 / H200.bandwidth
    operations = rows * horizon * net.flops_per_row() / H200.matrix_flops

    def kept_with(l2: int, bandwidth: float = H200.bandwidth, flops: float = H200.matrix_flops) -> bool:
        limits = replace(H200, l2=l2, bandwidth=bandwidth, matrix_flops=flops)
        return keep(tile, horizon, net, rows, dtype, limits=limits)

    assert kept_with(kept)  # all in the L2: nothing to pay for
    assert weights > operations
    enough = kept - int(weights * H200.bandwidth / 2)  # of L2, for the rest to take as long as reading the weights again
    assert kept_with(enough + 1024) and not kept_with(enough - 1024)
    slow = operations * 10  # matrix products so slow that they decide
    enough = kept - int(slow * H200.bandwidth / 2)
    assert kept_with(max(0, enough) + 1024, flops=H200.matrix_flops / 10)


def test_few_problems_keep_their_activations() -> None:
    assert keep(Tile(16), 8, program(), 1, torch.bfloat16)


@given(
    rows=st.integers(1, 1 << 20), horizon=st.integers(1, 64), width=st.sampled_from([16, 100, 256, 512]),
    l2=st.integers(0, 1 << 28), more=st.integers(0, 1 << 28),
)  # fmt: skip
def test_more_cache_never_asks_to_compute_again(rows: int, horizon: int, width: int, l2: int, more: int) -> None:
    net, tile = program(width), Tile(32)
    small, large = (keep(tile, horizon, net, rows, torch.bfloat16, limits=replace(H200, l2=at)) for at in (l2, l2 + more))
    assert large >= small


def test_costs_of_several_steps_fill_a_tile() -> None:
    found = tiles(256, 256, torch.bfloat16, 1024)

    def heights(horizon: int) -> dict[int, tuple[int, int]]:
        made = {tile.block_b: tall(tile, found, horizon, torch.bfloat16) for tile in found}
        return {rows: (tile.block_b, tile.steps) for rows, tile in made.items()}

    assert heights(8) == {16: (64, 4), 32: (64, 2), 64: (64, 1)}
    assert heights(2) == {16: (32, 2), 32: (64, 2), 64: (64, 1)}
    assert heights(1) == {rows: (rows, 1) for rows in (16, 32, 64)}
    assert tall(Tile(16, warps=4), found, 8, torch.bfloat16).steps == 1, "as many warps as the kernel has"


@given(horizon=st.integers(1, 64), width=st.sampled_from([256, 512, 1024]), kind=st.sampled_from(KINDS))
def test_a_tall_tile_is_a_known_one_and_never_reads_weights_more_often(
    horizon: int, width: int, kind: tuple[torch.dtype, str]
) -> None:
    found = tiles(width, width, kind[0], 1024, input_precision=kind[1])
    for tile in found:
        made = tall(tile, found, horizon, kind[0])
        assert replace(made, steps=1) in found and made.block_b == made.steps * tile.block_b
        assert -(-horizon // made.steps) <= horizon and made.steps < 2 * horizon


@pytest.mark.parametrize("kept", [False, True])
def test_parts_of_the_scratch_follow_one_another(kept: bool) -> None:
    tile, horizon, net, cost = Tile(16), 5, program(100), program(256, 1)
    tallest = replace(tile, block_b=64, steps=4)
    found, steps = sizes(tile, tallest, horizon, kept, net, None, (cost, None)), horizon if kept else 1
    assert found.saved == 2 * 64 * 256
    assert found.cost_saved - found.saved == steps * 16 * net.saved
    assert found.scratch >= found.cost_saved + 64 * cost.saved
    assert found.cost_moments - found.moments == steps * 16 * net.moments
    assert found.form >= found.cost_moments + 64 * cost.moments
    assert found.pull - found.form == 64 * net.columns
    assert found.scratch32 >= found.pull + 2 * 64 * net.columns, "two passes over five steps, the last not full"
    assert found.scratch % 16 == found.scratch32 % 16 == found.form % 16 == 0
