"""Sampling planners in kernels: launches `kernels.rollout` and `kernels.refit`, a whole plan as one graph."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..._remembered import of_problem
from ...kernels.network_op import is_interpreted
from ...kernels.packing import Program, lay_out, padded, uncovered
from ...kernels.refit import allocate_sums, weighted_sums
from ...kernels.rollout import Draws, Quadratics, Results, rollout_kernel
from ...kernels.tiling import H200, Tile, fits, limits_of, tiles, value_sizes
from ...plan import Plan
from ...problem import Problem
from ...sampling import Sampler
from ..coverage import foreign_part
from ..custom import CustomCosts
from ..sampling import NUMBERS, SamplingJob, Values, conclude, members_of, over_members, take
from .arguments import model_of
from .backend import PRECISIONS, device_of, in_graph, interpreting, told, traced, using
from .device import Device
from .functions import Functions, own
from .graphs import GraphCache, bucket, copy_all_in, copy_all_out
from .packed import PackedProblem

# Candidates of all problems that are planned together: their costs are 64 MB, and a few times as much at work.
CANDIDATES = 1 << 24
# Candidates whose states and controls are stored at once, for a cost that is called: 53 MB at T = 8, nx = 17, nu = 6.
STORED = 1 << 16
# Programs of a launch: each takes one block of candidates after the other, and its scratch serves them all.
PROGRAMS_A_MULTIPROCESSOR = 2
# What a thread can have. Without being told, the assembler of sm_80 keeps small blocks to half of it, and spills.
_MOST_REGISTERS = 255


def why_not(problem: Problem, planner: Sampler, device: torch.device) -> str | None:
    """None where the kernels cover the problem, else what they do not cover."""
    if device.type != ("cpu" if interpreting() else "cuda"):
        where = "the CPU, interpreted" if interpreting() else "CUDA devices"
        return f"its kernels run on {where}, and the models are on {device}"
    if planner.precision not in PRECISIONS:
        return f"its kernels plan in {', '.join(PRECISIONS)}, not in {planner.precision}"
    if (why := of_problem(problem, why_not, lambda: _foreign_part(problem))) is not None:
        return why
    if known_tile(problem, planner, planner.samples, device) is None:
        return f"no tile is known for networks as wide as these in {planner.precision}"
    return None


def _foreign_part(problem: Problem) -> str | None:
    found = (foreign_part(member, lambda part, spec: uncovered(spec)) for member in members_of(problem))
    return next((why for why in found if why is not None), None)


def known_tile(problem: Problem, planner: Sampler, rows: int, device: torch.device) -> Tile | None:
    """`tile_of`, remembered: every plan asks, twice."""
    return of_problem(problem, (tile_of, planner, rows, device), lambda: tile_of(problem, planner, rows, device))


def tile_of(problem: Problem, planner: Sampler, rows: int, device: torch.device) -> Tile | None:
    """How the rollout of so many candidates is divided: the tile expected to be fastest."""
    costs = [own(problem.cost), own(problem.terminal)]
    parts = [member.dynamics for member in members_of(problem)] + [problem.score, *costs]
    specs = [part.network.spec for part in parts if getattr(part, "network", None) is not None]
    columns = padded(parts[0].nx + parts[0].nu)
    programs = tuple(lay_out(spec, columns).program for spec in specs)
    limits = limits_of(device) if device.type == "cuda" else H200
    found = tiles(
        max(program.widest_whole_row for program in programs), max(program.widest for program in programs),
        planner.product_dtype, rows, input_precision=planner.input_precision,
        streams=any(program.stream_columns for program in programs), limits=limits, interpreted=is_interpreted(),
    )  # fmt: skip
    return next((tile for tile in found if fits(tile, programs, planner.product_dtype, limits.shared)), None)


@dataclass(frozen=True)
class Member:
    """What one model's rollout reads and writes: its packed parts, the candidates' costs, and its values at the plan."""

    packed: PackedProblem
    cost: Tensor
    at_plan: Results

    @classmethod
    def allocate(cls, packed: PackedProblem, rows: int, samples: int, horizon: int) -> Member:
        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=packed.device)

        at_plan = Results(
            floats(rows), floats(rows, horizon + 1, packed.nx), None, floats(rows, horizon), floats(rows), floats(rows),
            floats(rows, horizon),
        )  # fmt: skip
        return cls(packed, floats(rows, samples), at_plan)

    @property
    def bytes(self) -> int:
        networks = sum(model.network.bytes for model in self.packed.models.values())
        tensors = (t for t in (self.cost, *self.at_plan) if t is not None)
        return networks + sum(t.numel() * t.element_size() for t in tensors)


class RolloutWork:
    """All of a sampling plan of one bucket of problems: `body` is what a graph is captured of."""

    def __init__(self, job: SamplingJob, rows: int, tile: Tile) -> None:
        problem, planner, device = job.problem, job.planner, job.x0.device
        self._problems, self.reads = members_of(problem), problem.tensors
        self._planner, self._tile, self._penalty, self._level = planner, tile, job.penalty, job.level
        self._plan: Plan | None = None
        self.functions = Functions(job, rows, device)
        packed = [
            PackedProblem(m, planner.product_dtype, device, self.functions, planner.input_precision) for m in self._problems
        ]
        self.members = [Member.allocate(p, rows, planner.samples, planner.horizon) for p in packed]
        nx, nu = packed[0].nx, packed[0].nu

        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        self._x0, self._start, self._start_std = floats(rows, nx), *(floats(rows, planner.horizon, nu) for _ in range(2))
        self.mean, self._std = torch.zeros_like(self._start), torch.zeros_like(self._start)
        self._low, self._high = (None if job.low is None else floats(rows, nu) for _ in range(2))
        self._goal = None if job.goal is None else floats(rows, nx)
        self._seed, self._seeded = torch.zeros(1, dtype=torch.int64, device=device), 0
        self._keys = torch.zeros(rows, dtype=torch.int64, device=device)
        self.found = torch.zeros(rows, dtype=torch.bool, device=device)
        self._sums = allocate_sums(planner.samples, self.mean)
        stored = min(STORED, rows * planner.samples) if self.functions.costs.split is not None else 0
        self._states, self._controls = floats(stored, planner.horizon + 1, nx), floats(stored, planner.horizon, nu)
        self._steps = torch.arange(planner.horizon, device=device)[:, None]
        self._zero = torch.zeros(1, dtype=torch.int32, device=device)
        self._layout = value_sizes(tile, _programs(packed))
        self._programs = min(-(-rows * planner.samples // tile.block_b), _most_programs(device))
        self._scratch = torch.empty(self._programs * self._layout.scratch, dtype=planner.product_dtype, device=device)
        self._scratch32 = torch.empty(self._programs * self._layout.scratch32, dtype=torch.float32, device=device)
        self.bytes = self._bytes()  # asked for at every plan

    def _bytes(self) -> int:
        own = (self._start, self._start_std, self.mean, self._std, *self._sums, self._scratch, self._scratch32,
               self._states, self._controls)  # fmt: skip
        members = sum(member.bytes for member in self.members)
        return sum(t.numel() * t.element_size() for t in own) + members + self.functions.bytes

    def load(self, job: SamplingJob) -> None:
        """Copy in a job, whose problems may be fewer than the bucket has."""
        given = [
            ("x0", self._x0, job.x0), ("mean", self._start, job.mean), ("std", self._start_std, job.std),
            ("low", self._low, job.low), ("high", self._high, job.high), ("goal", self._goal, job.goal),
            ("keys", self._keys, job.keys),
        ]  # fmt: skip
        copy_all_in([
            (name, static, tensor.expand(len(job.x0), *tensor.shape[1:]) if len(tensor) == 1 else tensor)
            for name, static, tensor in given if static is not None and tensor is not None
        ])  # fmt: skip
        self.functions.load(job.params)
        if job.seed != self._seeded:
            self._seed.fill_((job.seed + 2**63) % 2**64 - 2**63)
            self._seeded = job.seed

    def body(self) -> None:
        self.begin()
        for i in range(self._planner.iterations):
            self.iterate(i)
        self.evaluate()
        self.conclude(self._planner.iterations)

    def iterate(self, i: int) -> None:
        self.roll_out(i)
        self.refit(i)

    def begin(self) -> None:
        for member, problem in zip(self.members, self._problems, strict=True):
            member.packed.refresh(problem)
        self.mean.copy_(self._start)
        self._std.copy_(self._start_std)
        self.found.zero_()

    def roll_out(self, i: int) -> None:
        """Enqueue the costs of the candidates of iteration i."""
        samples, called = self._planner.samples, len(self._states) > 0
        rows = len(self.mean) * samples
        at_once = len(self._states) if called else rows
        for member in self.members:
            stored = (self._states, self._controls) if called else (None, None)
            for first in range(0, rows, at_once):
                last = min(first + at_once, rows)
                self._launch(member, i, samples, first, last, Results(member.cost, *stored, *[None] * 4), noise=True)
                if called:
                    at = torch.arange(first, last, device=self.mean.device) // samples
                    x, u = (t[: last - first].transpose(0, 1).contiguous() for t in (self._states, self._controls))
                    running, terminal = self._called(x, u, at)
                    member.cost.view(-1)[first:last].add_(running.sum(0)).add_(terminal)

    def refit(self, i: int) -> None:
        """Enqueue the refit to the candidates of iteration i; as `backends.sampling` has it."""
        planner = self._planner
        costs = over_members(torch.stack([member.cost for member in self.members]), planner.risk)
        weights = planner.weights(torch.where(costs.isfinite(), costs, torch.inf))
        found = weights.sum(1) > 0
        self.found.logical_or_(found)
        sums, squares = weighted_sums(
            weights, self.mean, self._std, self._low, self._high, self._seed, self._keys, i, self._sums
        )
        step = torch.where(found[:, None, None], sums.sum(0), 0.0)
        if planner.narrows:
            spread = (squares.sum(0) - step.square()).clamp(min=0).sqrt()
            self._std.copy_(torch.where(found[:, None, None], self._std.lerp(spread, 1 - planner.kept), self._std))
        self.mean.add_(step, alpha=1 - planner.kept)

    def evaluate(self) -> None:
        """Enqueue the evaluation of the mean, which is the plan."""
        if self._low is not None and self._high is not None:
            self.mean.copy_(torch.clamp(self.mean, self._low[:, None], self._high[:, None]))
        rows = len(self.mean)
        for member in self.members:
            at_plan = member.at_plan
            self._launch(member, 0, 1, 0, rows, at_plan, noise=False)
            if len(self._states):
                x, u = (t.transpose(0, 1).contiguous() for t in (at_plan.x, self.mean))
                running, terminal = self._called(x, u, torch.arange(rows, device=x.device))
                at_plan.running.add_(running.T)
                at_plan.terminal.add_(terminal)

    def values(self) -> list[Values]:
        """What the mean comes to under each member, time-major, where the last evaluation wrote it."""

        def steps(t: Tensor) -> Tensor:
            return t.transpose(0, 1)

        found = (member.at_plan for member in self.members)
        return [Values(steps(at.x), steps(at.running), at.terminal, at.change, steps(at.distance)) for at in found]

    def conclude(self, taken: int) -> None:
        """Make the plan of the last evaluation, after so many iterations."""
        # Not in buffers of our own: what is allocated while a graph is captured stays the graph's, at its address.
        self._plan = conclude(self._penalty, self.mean, self.values(), self.found, taken)

    def results(self, rows: int) -> Plan:
        """The plan that was concluded; copies, for a graph runs again."""
        assert self._plan is not None
        return Plan.from_tensors(copy_all_out(self._plan.tensors(), rows), {})

    def _called(self, x: Tensor, u: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Running `[T, rows]` and terminal `[rows]` costs of what is called, for rows of the problems `at`; else zeros."""
        functions, goal = self.functions, take(self._goal, at)
        params = take(functions.given, at)
        running, terminal = x.new_zeros(u.shape[:2]), x.new_zeros(u.shape[1])
        if functions.calls is not None:
            running = functions.calls(x[:-1], u, goal, self._steps, params)
        if functions.last_calls is not None:
            terminal = functions.last_calls(x[-1], goal, params)
        return running, terminal

    def _launch(
        self, member: Member, i: int, samples: int, first: int, last: int, results: Results, noise: bool
    ) -> None:
        """Enqueue the rollout of the rows `first … last−1`, `samples` a problem; without noise they are the mean's."""
        packed, planner, tile = member.packed, self._planner, self._tile
        programs = {name: model.network.program for name, model in packed.models.items()}
        scored = packed.score is not None and (not noise or self._penalty > 0)
        functions = self.functions
        quadratics = Quadratics(
            packed.curvature, packed.goal if packed.curvature is not None else None,
            packed.last_curvature, packed.last_goal if packed.last_curvature is not None else None, self._goal,
        )  # fmt: skip
        draws = Draws(self.mean, self._std, self._low, self._high, self._seed, self._keys)
        models = (packed.dynamics, packed.score if scored else None, packed.cost, packed.terminal)
        kernel: Any = rollout_kernel
        kernel[(min(-(-(last - first) // tile.block_b), self._programs),)](
            *map(model_of, models), packed.scale, packed.gain, quadratics, functions.params, self._x0, draws, results,
            self._zero, self._scratch, self._scratch32, first, last, samples, i, float(self._penalty),
            float(packed.control_change), float(planner.effort),
            DYNAMICS=programs["dynamics"], SCORE=programs.get("score") if scored else None, COST=programs.get("cost"),
            TERMINAL=programs.get("terminal"), TILE=tile, T=planner.horizon, NX=packed.nx, NU=packed.nu, LEVEL=self._level,
            SIZES=self._layout, NOISE=noise, CHANGE=packed.control_change > 0, EFFORT=noise and planner.effort > 0,
            FUNCTION=functions.running, LAST_FUNCTION=functions.terminal, PARAMS=functions.params_width,
            num_warps=tile.warps, num_stages=tile.stages, maxnreg=_MOST_REGISTERS,
        )  # fmt: skip


@dataclass(frozen=True)
class FusedSampling:
    """The backend."""

    reason: str
    name: str = "fused"

    def prepare(self, problem: Problem, planner: Sampler, device: torch.device) -> Problem:
        """The problem itself: graphs read its weights where they lie, and so follow what is written to them."""
        return problem

    def problems_at_once(self, planner: Sampler, nu: int) -> int:
        return max(1, min(CANDIDATES // planner.samples, NUMBERS // (planner.horizon * nu)))

    @torch.no_grad()
    def run(self, job: SamplingJob) -> Plan:
        planner, device = job.planner, job.x0.device
        batch, (job, costs) = len(job.x0), traced(job)
        size = bucket(batch)
        tile = known_tile(job.problem, planner, size * planner.samples, device)
        assert tile is not None  # `why_not` has found one
        def made() -> RolloutWork:
            return RolloutWork(job, size, tile)

        # One cache holds the graphs of a device, whatever they plan; a key's work is always of one kind.
        def use(_: Device, cache: GraphCache[Any]) -> RolloutWork:
            entry = cache.get(_key(job, size, costs), job.problem.tensors, made)
            work = entry.work
            work.load(job)
            if job.deadline < math.inf:
                _until(job, work)
            else:
                entry.graph.replay()
            return work

        with using(device):
            plan = in_graph(job, costs, use).results(batch)
        stats = {"regime": f"rollout, tile of {tile.block_b} rows", "bucket": size, **told(device, costs)}
        return replace(plan, stats=stats)


def _until(job: SamplingJob, work: RolloutWork) -> None:
    """Iterate while there is time, without a graph, and conclude."""
    device, taken = job.x0.device, 0
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        work.begin()
        while taken < job.planner.iterations and time.monotonic() <= job.deadline:
            work.iterate(taken)
            taken += 1
            device_of(device).finish()
        work.evaluate()
        work.conclude(taken)


def _key(job: SamplingJob, size: int, costs: CustomCosts) -> Hashable:
    """What a graph is captured for, beside the weights that it reads."""
    parts = tuple(id(part) for part in job.problem.modules.values())
    given = (job.low is not None, job.goal is not None, job.level, job.penalty)
    return ("sampling", parts, job.problem.control_change, job.planner, size, *given, costs)


def _programs(packed: list[PackedProblem]) -> tuple[Program, ...]:
    """Of all networks, the dynamics' first."""
    return tuple(model.network.program for p in packed for model in p.models.values())


def _most_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # interpreted: so that programs have more than one block
    return PROGRAMS_A_MULTIPROCESSOR * limits_of(device).multiprocessors
