"""The end of an iteration as a launch of its own: judge all problems, and move them or not."""

from __future__ import annotations

from typing import Any

from ...kernels.layered.sweeps import update_kernel
from ...kernels.update import chunk_of
from ...planner import SGP
from .arguments import options_of, search_of
from .buffers import Buffers
from .packed import PackedProblem

# Numbers of a program, four a thread of its one warp: it waits for memory, and many programs hide that.
PROGRAM = 128


def update(
    packed: PackedProblem, planner: SGP, buffers: Buffers, i: int, *, settled: bool, moves: bool
) -> None:
    """Enqueue the end of iteration i; `settled` as in `kernels.update`."""
    chunk = chunk_of(buffers.horizon * packed.nu, 1, 32)
    block = max(1, PROGRAM // chunk)
    constants: dict[str, Any] = dict(
        OPTIONS=options_of(packed, planner), T=buffers.horizon, NU=packed.nu, CHUNK=chunk,
        BOUNDING="none" if buffers.low is None else planner.bounding, CHANGE=packed.control_change > 0,
        HISTORY=0 if buffers.history is None else planner.iterations, BLOCK_B=block, num_warps=1,
    )  # fmt: skip
    given = (search_of(buffers), buffers.step_size, i, int(settled), int(moves), buffers.rows)
    update_kernel[(-(-buffers.rows // block),)](*given, **constants)
