"""The relay regime over one bucket: groups of programs plan a few problems each, all iterations in one launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from ...kernels.network_op import is_interpreted
from ...kernels.packing import Program, lay_out, padded
from ...kernels.relay.exchange import MOST_STAMPS
from ...kernels.relay.plan import Matrices, Scratch, relay_kernel
from ...kernels.relay.tiles import ROWS, Relay, copies_for, programs_of, uncovered_by_relay, words_of
from ...kernels.update import chunk_of
from ...planner import SGP
from ...problem import Problem
from .arguments import options_of, tensors_of
from .buffers import Buffers
from .functions import own
from .grid import multiprocessors
from .launched import Launched, kept_of_costs
from .packed import PackedProblem
from .work import Make

OWN_COLUMNS = (16, 32, 64)  # of a program
MOST_CONTROLS = 4096  # of a group, which a program holds at once
MOST_KEPT = 1 << 31  # bytes of all programs: each keeps whole layers of all steps
MOST_ITERATIONS = MOST_STAMPS - 1  # of a launch: the controls behind the last one have a stamp, too


class RelayPlan(Launched):
    """All iterations of a bucket. Allocates its scratch once.

    Raises ValueError, with the reason, for what the regime does not cover, and for more programs than are resident at once:
    each waits for what the others of its group hand on.
    """

    name = "relay"

    def __init__(
        self, packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int, relay: Relay | None = None
    ) -> None:
        """`settled` is the iteration from which the schedules no longer change."""
        networks = {name: model.network.program for name, model in packed.models.items()}
        if packed.dtype == torch.float32:
            raise ValueError("the relay regime multiplies in float16 or bfloat16; use backend='fused' for float32")
        T = planner.horizon
        if (why := uncovered_by_relay(networks, T if packed.has_terminal else T - 1)) is not None:
            raise ValueError(f"the relay regime does not cover {why}; use backend='fused', which takes another")
        check_device(packed.device)
        most = multiprocessors(packed.device)
        if relay is None:
            raise ValueError(
                f"{buffers.rows} problems of such networks and horizon cannot be divided among the {most} programs of the "
                "relay regime that are resident at once; use backend='fused', which takes another"
            )
        self.packed, self.buffers, self.relay = packed, buffers, relay
        self.iterations, self.settled = planner.iterations, settled
        groups = -(-buffers.rows // relay.problems)
        self.programs = groups * relay.programs
        if is_interpreted() and relay.programs > 1:
            raise ValueError("interpreted programs run one after another, and would wait for ever; give one program a group")
        if self.programs > most:
            raise ValueError(f"{self.programs} programs, of which {most} are resident at once; give a group more problems")
        dynamics, functions = networks["dynamics"], packed.functions
        controls = padded(T * packed.nu)
        words = words_of(networks, T, relay, controls)
        steps = T * relay.problems
        saved = kept_of_costs(networks, cost=relay.blocks(T) * ROWS, terminal=ROWS)
        inputs = (steps + relay.problems) * dynamics.columns
        kept = self.programs * (packed.dtype.itemsize * (steps * dynamics.saved + saved[0]) + 8 * inputs)
        if relay.problems * controls > MOST_CONTROLS or kept > MOST_KEPT:
            raise ValueError(
                f"horizon is {T}: {relay.problems * controls} controls for a group of the relay regime, and "
                f"{kept / 1e9:.1f} GB of activations; it goes to {MOST_CONTROLS} and {MOST_KEPT / 1e9:.1f} GB; use "
                "backend='fused', which takes another"
            )

        def own_numbers(numbers: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(self.programs * numbers, dtype=dtype, device=packed.device)

        self.scratch = Scratch(
            words=torch.zeros(groups * sum(words.values()), dtype=torch.int64, device=packed.device),
            saved=own_numbers(steps * dynamics.saved, packed.dtype),
            moments=own_numbers(steps * dynamics.moments),
            cost_saved=own_numbers(saved[0], packed.dtype),
            cost_moments=own_numbers(saved[1]),
            controls=own_numbers(relay.problems * controls),
            inputs=own_numbers(inputs),
            pull=own_numbers(inputs),
        )
        self._matrices, self._copies = {}, []
        for name, net in networks.items():
            weights = packed.models[name].network.weights
            made = [torch.zeros_like(weights) for _ in range(1 if name == "score" else 2)]
            self._copies += copies_for(net, weights, made[0], None if name == "score" else made[1])
            self._matrices |= dict(zip((name, f"{name}_turned"), made, strict=False))
        packed.derived.append(self._cut)  # every plan begins with a refresh
        matrices = Matrices(**{name: self._matrices.get(name) for name in Matrices._fields})
        self._arguments = (*tensors_of(packed, buffers), matrices, self.scratch)
        self._constants: dict[str, Any] = dict(
            DYNAMICS=dynamics, SCORE=networks.get("score"), COST=networks.get("cost"), TERMINAL=networks.get("terminal"),
            RELAY=relay, T=T, NX=packed.nx, NU=packed.nu, CONTROLS=controls, SAVED=saved, FUNCTION=functions.running,
            LAST_FUNCTION=functions.terminal, PARAMS=functions.params_width, ENDS=packed.has_terminal,
            CHUNK=chunk_of(T * packed.nu, relay.problems, 32 * relay.warps), WORDS=tuple(accumulate(words.values())),
            BOUNDING="none" if buffers.low is None else planner.bounding, CHANGE=packed.control_change > 0,
            HISTORY=0 if buffers.history is None else planner.iterations, OPTIONS=options_of(packed, planner),
            num_warps=relay.warps,
        )  # fmt: skip
        if relay.programs > 1:  # the driver is to refuse a launch that cannot be resident
            self._constants["launch_cooperative_grid"] = True

    def iterate(self, first: int, last: int) -> None:
        """Enqueue iterations `first … last−1`: as one launch, as long as there are stamps for it."""
        for begin in range(first, last, MOST_ITERATIONS):
            super().iterate(begin, min(begin + MOST_ITERATIONS, last))

    @property
    def workspace(self) -> tuple[torch.Tensor, ...]:
        """What is written before it is read in every evaluation."""
        return tuple(self.scratch)[1:]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self._matrices.values(), *self.scratch))

    def _cut(self) -> None:
        """Copy the weights of this moment to where products read them."""
        for to, source in self._copies:
            to.copy_(source)

    def _launch(self, first: int, last: int, settled: int, *, moves: bool, only_diverged: bool) -> None:
        if not (self.packed.has_terminal or only_diverged):
            self.buffers.terminal.zero_()
        self.scratch.words.zero_()
        kernel: Any = relay_kernel[(self.programs,)]
        kernel(*self._arguments, self.buffers.rows, first, last, settled, int(moves), int(only_diverged), **self._constants)


def relays_for(
    networks: Mapping[str, Program], rows: int, device: torch.device, controls: int = 16
) -> list[Relay]:
    """Cuts of a bucket, the likeliest first, with as few problems a group as there are multiprocessors for; or none.

    A program has 16 columns of the narrowest layer, or 32, so that half as many read every word. With 64 its weights fill
    more than its registers: that is for what would not fit otherwise. A row of 256 is little for eight warps, and less to
    compute than to hand on, for one problem. `controls` are those of a problem's plan, padded.
    """
    sizes = [n for n in (1, 2, 4, 8) if n * controls <= MOST_CONTROLS]
    if is_interpreted():
        return [Relay(min(n, rows), 1) for n in sizes[-1:]]
    found = []
    widest = max(op.columns for net in networks.values() for op in net.operations[:-1])
    for columns in OWN_COLUMNS:
        programs = programs_of(networks, columns)
        fitting = [n for n in sizes if -(-rows // n) * programs <= multiprocessors(device)]
        fitting = fitting if widest <= OWN_COLUMNS[-1] * programs else []
        if fitting and (columns < OWN_COLUMNS[-1] or not found):
            found.append(Relay(fitting[0], programs))
    if found and widest <= 256:
        found = [found[0], replace(found[0], warps=4)]
        found = [replace(found[0], whole=True), *found] if found[0].problems == 1 else found
    return list(dict.fromkeys(found))


def relay_plans(problem: Problem, planner: SGP, rows: int, device: torch.device, *, asked: bool) -> dict[str, Make]:
    """The regime in its cuts, by name; empty where it does not serve, unless it was asked for."""
    if why_not(problem, planner, device) is not None:
        return {"relay": RelayPlan} if asked else {}
    controls = padded(planner.horizon * problem.dynamics.nu)
    relays = relays_for(networks_of(problem), rows, device, controls)
    ways = {f"relay of {name(way)}": _made_with(way) for way in relays}
    return ways or ({"relay": RelayPlan} if asked else {})


def name(relay: Relay) -> str:
    """What a cut is called."""
    more = [f"{relay.warps} warps"] * (relay.warps != Relay.warps) + ["a layer whole"] * relay.whole
    return ", ".join((f"{relay.problems} problems", f"{relay.programs} programs", *more))


def why_not(problem: Problem, planner: SGP, device: torch.device) -> str | None:
    """None where the regime serves, else what it does not cover."""
    if not _is_new_enough(device):
        return "a device before sm_90"
    if planner.product_dtype == torch.float32:
        return "products of float32"
    networks = networks_of(problem)
    return uncovered_by_relay(networks, planner.horizon - (problem.terminal is None))


def networks_of(problem: Problem) -> dict[str, Program]:
    """Programs of the networks, by the problem's parts."""
    costs = {"cost": own(problem.cost), "terminal": own(problem.terminal)}
    parts = {"dynamics": problem.dynamics, "score": problem.score, **costs}
    columns = padded(problem.dynamics.nx + problem.dynamics.nu)
    specs = {name: part.network.spec for name, part in parts.items() if getattr(part, "network", None) is not None}
    outputs = {"dynamics": columns, "score": columns}
    return {name: lay_out(spec, columns, outputs.get(name, 0)).program for name, spec in specs.items()}


def check_device(device: torch.device) -> None:
    """Raises ValueError for a GPU that the kernel is not written for."""
    if not _is_new_enough(device):
        raise ValueError("the relay regime is for sm_90 and later; use backend='fused', which takes another")


def _is_new_enough(device: torch.device) -> bool:
    """Whether the device is, or none at all, where kernels are interpreted or compiled ahead."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 9


def _made_with(relay: Relay) -> Make:
    def make(packed: PackedProblem, planner: SGP, buffers: Buffers, settled: int) -> RelayPlan:
        return RelayPlan(packed, planner, buffers, settled, relay)

    return make
