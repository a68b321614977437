"""The grid regime over one bucket: launches `kernels.grid.plan`, where all programs plan a few problems together."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels.grid.phases import (
    MAX_ROWS,
    GridTile,
    layout_of,
    phases,
    resident_programs,
    table_of,
    tile_for,
    uncovered_by_grid,
)
from ...kernels.grid.plan import Scratch, grid_kernel
from ...kernels.network_op import is_interpreted
from ...kernels.tiling import H200
from ...kernels.update import chunk_of
from ...planner import SGP
from .arguments import options_of, tensors_of
from .buffers import Buffers
from .launched import Launched
from .packed import PackedProblem
from .work import Make


class GridPlan(Launched):
    """All iterations of a bucket in one launch of `programs`, by default as many as the fullest phase has items for.

    Allocates its scratch once. With `stepwise` each phase is a launch of its own, which needs no barrier, and no residence.

    Raises ValueError, with the reason, for networks and sizes that the regime does not cover, and RuntimeError where so many
    programs cannot be resident at once: a barrier would wait for ever for one that was not started.
    """

    name = "grid"

    def __init__(
        self, packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int, tile: GridTile | None = None,
        programs: int | None = None, stepwise: bool = False,
    ) -> None:  # fmt: skip
        """`settled` is the iteration from which the schedules no longer change."""
        networks = {name: model.network.program for name, model in packed.models.items()}
        functions = packed.functions
        if functions.costs.split is not None:
            raise ValueError(
                f"the grid regime holds its cost in the kernel, and this one cannot be traced: {functions.costs.split}; use "
                "backend='fused', which calls it between kernels"
            )
        if (why := uncovered_by_grid(networks, buffers.rows)) is not None:
            raise ValueError(f"the grid regime does not cover {why}; use backend='fused', which takes another")
        if packed.device.type == "cuda" and torch.cuda.get_device_capability(packed.device)[0] not in (8, 9):
            raise ValueError("the grid regime was compiled for sm_8x and sm_9x alone; use backend='fused' for another")
        interpreted, T, R = is_interpreted(), planner.horizon, buffers.rows
        tile = tile or tile_for(R, T, packed.dtype.itemsize, planner.input_precision, interpreted)
        swept = T if packed.has_terminal else T - 1
        plan = phases(networks, T, swept)
        table, fullest = table_of(plan, networks, tile, R, T)
        self.buffers, self.iterations, self.settled, self.phases = buffers, planner.iterations, settled, len(plan)
        self.programs = programs or (1 if interpreted else min(fullest, multiprocessors(packed.device)))
        self.stepwise = stepwise
        if interpreted and self.programs > 1 and not stepwise:
            raise ValueError("interpreted programs run one after another, and a barrier would never end; give programs=1")
        layout = layout_of(plan, networks, tile, swept)
        rows = {"dynamics": T * R, "score": T * R, "cost": T * R, "terminal": R}
        slabs = {name: getattr(layout, name) for name in rows}
        self.scratch = {
            name: torch.empty(rows[name] * slab.total, dtype=torch.float32, device=packed.device)
            for name, slab in slabs.items() if slab is not None
        }  # fmt: skip
        for name in ("pull", "form") if functions.present else ("pull",):
            numbers = (T + 1 if functions.present else T) * R * packed.columns
            self.scratch[name] = torch.empty(numbers, dtype=torch.float32, device=packed.device)
        self._counter = torch.zeros(1, dtype=torch.int32, device=packed.device)
        self._table = torch.tensor(table, dtype=torch.int32, device=packed.device)
        self._zero = torch.zeros(1, dtype=torch.int32, device=packed.device)
        self._arguments = (*tensors_of(packed, buffers), Scratch(*(self.scratch.get(n) for n in (*rows, "pull", "form"))))
        self._constants: dict[str, Any] = dict(
            DYNAMICS=networks["dynamics"], SCORE=networks.get("score"), COST=networks.get("cost"),
            TERMINAL=networks.get("terminal"), LAYOUT=layout, PROGRAMS=self.programs, TILE=tile, T=T, NX=packed.nx,
            NU=packed.nu, CHUNK=chunk_of(T * packed.nu, tile.few.block_b, 32 * tile.warps),
            BOUNDING="none" if buffers.low is None else planner.bounding,
            CHANGE=packed.control_change > 0, HISTORY=0 if buffers.history is None else planner.iterations,
            OPTIONS=options_of(packed, planner), FUNCTION=functions.running, LAST_FUNCTION=functions.terminal,
            PARAMS=functions.params_width, MOST=MAX_ROWS, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
        self._synchronise = self.programs > 1 and not stepwise
        if self._synchronise and packed.device.type == "cuda":
            self._check_residence(packed.device)

    @property
    def workspace(self) -> tuple[torch.Tensor, ...]:
        """What is written before it is read in every iteration."""
        return tuple(self.scratch.values())

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.scratch.values())

    def _launch(self, first: int, last: int, settled: int, *, moves: bool, only_diverged: bool) -> None:
        first, last = first * self.phases, last * self.phases
        kernel: Any = grid_kernel[(self.programs,)]
        how = (settled, int(moves), int(only_diverged))
        if not self.stepwise:
            self._counter.zero_()
            kernel(*self._given(first, last, *how), **self._options)
            return
        for phase in range(first, last):
            kernel(*self._given(phase, phase + 1, *how), **self._options)

    def _given(self, *how: int) -> tuple[Any, ...]:
        return (*self._arguments, self._table, self._counter, self._zero, self.buffers.rows, *how)

    @property
    def _options(self) -> dict[str, Any]:
        """Constants, and that the driver is to refuse a launch that cannot be resident (the interpreter has no driver)."""
        cooperative = {"launch_cooperative_grid": True} if self._synchronise else {}
        return {**self._constants, "SYNCHRONISE": self._synchronise, **cooperative}

    def _check_residence(self, device: torch.device) -> None:
        """Compile the kernel of a plan and hold its registers and shared memory against the device's."""
        found = torch.cuda.get_device_properties(device)
        # Triton compiles for the current device and loads there.
        with torch.cuda.device(device):
            made: Any = grid_kernel.warmup(*self._given(0, 1, 0, 0, 0), grid=(self.programs,), **self._options)
            made._init_handles()
        holds = resident_programs(
            made.n_regs, made.metadata.shared, made.metadata.num_warps, found.multi_processor_count,
            found.regs_per_multiprocessor, found.shared_memory_per_multiprocessor,
            found.max_threads_per_multi_processor // 32,
        )  # fmt: skip
        if self.programs > holds:
            raise RuntimeError(
                f"the grid regime's {self.programs} programs cannot be resident at once: {found.name} holds {holds} of "
                f"{made.n_regs} registers a thread and {made.metadata.shared} bytes of shared memory each; use "
                "backend='fused'"
            )


def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; an H200's where kernels are only compiled."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else H200.multiprocessors


def grid_plans(asked: bool) -> dict[str, Make]:
    """The regime by name, where it was asked for; it refuses by itself.

    "auto" does not race it: on an H200 it was slower than the other regimes wherever it was measured
    (`bench/results/h200.md`), and a way takes up to a minute to compile.
    """
    return {"grid": GridPlan} if asked else {}
