"""The ring regime over one bucket: all iterations are one launch of `kernels.ring.plan`."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels.gluon import described
from ...kernels.packing import lay_out, padded
from ...kernels.ring.plan import Scratch, ring_kernel
from ...kernels.ring.tiles import ring_of, tiles_for, uncovered_by_ring, widened
from ...kernels.tiling import H200
from ...kernels.update import chunk_of
from ...planner import SGP
from ...problem import Problem
from .arguments import options_of, tensors_of
from .buffers import Buffers
from .functions import own
from .launched import Launched, kept_of_costs
from .packed import PackedProblem
from .work import Make

MOST_PROBLEMS = 64
# Tiles that stay in shared memory for a sweep, and problems of a program up to which there is room for them.
PINNED, MOST_PINNING = 2, 4


class RingPlan(Launched):
    """All iterations of a bucket. Allocates its scratch once.

    Raises ValueError, with the reason, for what the regime does not cover.
    """

    name = "ring"

    def __init__(
        self, packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int, problems: int, warps: int = 8,
        pinned: int = 0,
    ) -> None:  # fmt: skip
        """With programs of so many problems and warps, and so many tiles `pinned` where they fit.

        `settled` is the iteration from which the schedules no longer change.
        """
        packed_as = {name: model.network.program for name, model in packed.models.items()}
        if packed.dtype == torch.float32:
            raise ValueError("the ring regime multiplies in float16 or bfloat16; use backend='fused' for float32")
        if (why := uncovered_by_ring(packed_as)) is not None:
            raise ValueError(f"the ring regime does not cover {why}; use backend='fused', which takes another")
        check_device(packed.device)
        self.packed, self.planner, self.buffers = packed, planner, buffers
        self.iterations, self.settled = planner.iterations, settled
        T, functions = planner.horizon, packed.functions
        ring = self.ring = ring_of(problems, T, packed_as, T if packed.has_terminal else T - 1, warps, pinned)
        networks = {name: widened(net) for name, net in packed_as.items()}
        dynamics, inputs = networks["dynamics"], (T + 1) * ring.problems * networks["dynamics"].columns
        self.programs = -(-buffers.rows // ring.problems)
        saved = kept_of_costs(networks, cost=ring.many, terminal=ring.few)
        local = packed.curvature is not None or packed.last_curvature is not None or functions.present

        def kept(numbers: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(self.programs * numbers, dtype=dtype, device=packed.device)

        self.scratch = Scratch(
            saved=kept(T * ring.few * dynamics.saved, packed.dtype),
            moments=kept(T * ring.few * dynamics.moments, torch.float32),
            cost_saved=kept(saved[0], packed.dtype),
            cost_moments=kept(saved[1], torch.float32),
            inputs=kept(inputs if local else 0, torch.float32),
            pull=kept(inputs, torch.float32),
        )
        weights = {name: model.network.weights for name, model in packed.models.items()}
        self.tiles, self._copies = tiles_for(packed_as, weights)
        packed.derived.append(self._cut)  # every plan begins with a refresh
        tiles = described(self.tiles, 256)
        self._arguments = (tiles, *tensors_of(packed, buffers), self.scratch)
        self._constants: dict[str, Any] = dict(
            DYNAMICS=dynamics, SCORE=networks.get("score"), COST=networks.get("cost"), TERMINAL=networks.get("terminal"),
            RING=ring, T=T, N=packed.columns, NX=packed.nx, NU=packed.nu, SAVED=saved, FUNCTION=functions.running,
            LAST_FUNCTION=functions.terminal, PARAMS=functions.params_width, ENDS=packed.has_terminal,
            CHUNK=chunk_of(T * packed.nu, ring.problems, 32 * ring.warps),
            BOUNDING="none" if buffers.low is None else planner.bounding, CHANGE=packed.control_change > 0,
            HISTORY=0 if buffers.history is None else planner.iterations, OPTIONS=options_of(packed, planner),
            num_warps=ring.warps,
        )  # fmt: skip

    @property
    def workspace(self) -> tuple[torch.Tensor, ...]:
        """What is written before it is read in every evaluation."""
        return tuple(self.scratch)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tiles, *self.scratch))

    def _cut(self) -> None:
        """Cut the weights of this moment into tiles."""
        for to, source in self._copies:
            to.copy_(source)

    def _launch(self, first: int, last: int, settled: int, *, moves: bool, only_diverged: bool) -> None:
        if not (self.packed.has_terminal or only_diverged):
            self.buffers.terminal.zero_()
        kernel: Any = ring_kernel[(self.programs,)]
        kernel(
            *self._arguments, self.buffers.rows, first, last, settled, int(moves), int(only_diverged), 0, **self._constants
        )


def ring_plans(problem: Problem, planner: SGP, rows: int, device: torch.device, *, asked: bool) -> dict[str, Make]:
    """The regime with programs of so many problems, by name; empty where it does not serve, unless it was asked for.

    As few problems a program as keep all multiprocessors at work, or twice as many, which reads the weights half as often;
    where that is one and the same, with twice the warps; where there is room, with tiles that are not read at every step.
    """
    if not asked and why_not(problem, planner, device) is not None:
        return {}
    few = 1 << max(0, -(-rows // H200.multiprocessors) - 1).bit_length()
    sizes = sorted({min(few, MOST_PROBLEMS), min(2 * few, MOST_PROBLEMS)} if rows > 1 else {1})
    ways = [(n, 8, 0) for n in sizes]
    ways += [(sizes[0], 16, 0)] if len(sizes) == 1 else []
    ways += [(sizes[0], 8, PINNED)] if sizes[0] <= MOST_PINNING else []
    return {f"ring of {name(*way)}": _made_with(*way) for way in ways}


def name(problems: int, warps: int, pinned: int) -> str:
    """What programs of the regime are called."""
    more = [f"{warps} warps"] * (warps != 8) + [f"{pinned} tiles pinned"] * (pinned > 0)
    return ", ".join((f"{problems} problems", *more))


def why_not(problem: Problem, planner: SGP, device: torch.device) -> str | None:
    """None where the regime serves, else what it does not cover."""
    if not _is_sm_90(device):
        return "a device that is no sm_90"
    if planner.product_dtype == torch.float32:
        return "products of float32"
    costs = {"cost": own(problem.cost), "terminal": own(problem.terminal)}
    parts = {"dynamics": problem.dynamics, "score": problem.score, **costs}
    columns = padded(problem.dynamics.nx + problem.dynamics.nu)
    specs = {name: part.network.spec for name, part in parts.items() if getattr(part, "network", None) is not None}
    networks = {name: lay_out(spec, columns).program for name, spec in specs.items()}
    return uncovered_by_ring(networks)


def check_device(device: torch.device) -> None:
    """Raises ValueError for a GPU that the kernel is not written for."""
    if not _is_sm_90(device):
        raise ValueError("the ring regime is for sm_90 alone; use backend='fused', which takes another")


def _is_sm_90(device: torch.device) -> bool:
    """Whether the device is one, or none at all, where kernels are interpreted or compiled ahead."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9


def _made_with(problems: int, warps: int, pinned: int) -> Make:
    def make(packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int) -> RingPlan:
        return RingPlan(packed, planner, buffers, settled, problems, warps, pinned)

    return make
