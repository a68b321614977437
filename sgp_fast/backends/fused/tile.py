"""The tile regime over one bucket: launches `kernels.tile`, where one program plans a block of problems."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels.network_op import is_interpreted
from ...kernels.packing import lay_out, padded
from ...kernels.tile import plan_kernel
from ...kernels.tiling import H200, Tile, fits, keep, limits_of, sizes, tall, tiles
from ...kernels.update import chunk_of
from ...planner import SGP
from ...problem import Problem
from .arguments import options_of, tensors_of
from .buffers import Buffers
from .functions import own
from .launched import Launched
from .packed import PackedProblem
from .work import Make

# Columns of the widest norm: at 4×1024 it took 417 ms on an H200 for what the layered regime did in 40.
WIDEST = 512


class TilePlan(Launched):
    """All iterations of a bucket in one launch. Allocates its scratch once."""

    name = "tile"

    def __init__(
        self, packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int, tile: Tile, tall: Tile, kept: bool
    ) -> None:
        """`settled` is the iteration from which the schedules no longer change; `tall` and `kept`: see `kernels.tile`."""
        self.buffers, self.iterations, self.settled = buffers, planner.iterations, settled
        programs = {name: model.network.program for name, model in packed.models.items()}
        costs = (programs.get("cost"), programs.get("terminal"))
        layout = sizes(tile, tall, planner.horizon, kept, programs["dynamics"], programs.get("score"), costs)
        self.blocks = -(-buffers.rows // tile.block_b)
        self._scratch = torch.empty(self.blocks * layout.scratch, dtype=packed.dtype, device=packed.device)
        self._scratch32 = torch.empty(self.blocks * layout.scratch32, dtype=torch.float32, device=packed.device)
        self._zero = torch.zeros(1, dtype=torch.int32, device=packed.device)
        self._arguments = tensors_of(packed, buffers)
        self._constants: dict[str, Any] = dict(
            DYNAMICS=programs["dynamics"], SCORE=programs.get("score"), COST=costs[0], TERMINAL=costs[1], TILE=tile,
            TALL=tall, T=planner.horizon, NX=packed.nx, NU=packed.nu, KEEP=kept, SIZES=layout,
            CHUNK=chunk_of(planner.horizon * packed.nu, tile.block_b, 32 * tile.warps), CHANGE=packed.control_change > 0,
            HISTORY=0 if buffers.history is None else planner.iterations,
            BOUNDING="none" if buffers.low is None else planner.bounding,
            OPTIONS=options_of(packed, planner), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        functions = packed.functions
        self._constants |= dict(
            FUNCTION=functions.running, LAST_FUNCTION=functions.terminal,
            PARAMS=functions.params_width, ENDS=packed.has_terminal,
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self._scratch, self._scratch32))

    def _launch(self, first: int, last: int, settled: int, *, moves: bool, only_diverged: bool) -> None:
        kernel: Any = plan_kernel[(self.blocks,)]
        kernel(
            *self._arguments, self._zero, self._scratch, self._scratch32, self.buffers.rows, first, last, settled,
            int(moves), int(only_diverged), **self._constants,
        )  # fmt: skip


def tile_plans(problem: Problem, planner: SGP, rows: int, device: torch.device) -> dict[str, Make]:
    """The tile regime with each of the tiles worth trying for a bucket, by name; empty where none is known to serve.

    Nor where a norm spans more than `WIDEST` columns.
    """
    parts = (problem.dynamics, problem.score, own(problem.cost), own(problem.terminal))
    networks = [getattr(part, "network", None) for part in parts]
    specs = [network.spec for network in networks if network is not None]
    columns = padded(problem.dynamics.nx + problem.dynamics.nu)
    programs = tuple(lay_out(spec, columns).program for spec in specs)
    if max(program.widest_whole_row for program in programs) > WIDEST:
        return {}
    dtype = planner.product_dtype
    limits = limits_of(device) if device.type == "cuda" else H200
    found = tiles(
        max(program.widest_whole_row for program in programs), max(program.widest for program in programs), dtype, rows,
        input_precision=planner.input_precision, streams=any(program.stream_columns for program in programs), limits=limits,
        interpreted=is_interpreted(),
    )  # fmt: skip
    serving = tuple(tile for tile in found if fits(tile, programs, dtype, limits.shared))
    ways: dict[str, Make] = {}
    for tile in serving:
        taller = tall(tile, serving, planner.horizon, dtype, limits)
        kept = keep(tile, planner.horizon, programs[0], rows, dtype, limits=limits)
        ways[f"tile of {tile.block_b} rows"] = _made_with(tile, taller, kept)
    return ways


def _made_with(tile: Tile, tall: Tile, kept: bool) -> Make:
    def make(packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int) -> TilePlan:
        return TilePlan(packed, planner, buffers, settled, tile, tall, kept)

    return make
