"""A whole plan of one bucket as one body: everything that a graph is captured of."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ...plan import Plan
from ...planner import SGP
from ...problem import Problem
from ..bounding import Bounding
from ..eager import Evaluation, Search, conclude
from ..job import LOOK, Job
from ..products import products_of
from .buffers import Buffers
from .device import Device, Graph
from .functions import Functions
from .graphs import copy_all_in, copy_all_out
from .packed import PackedProblem


class Regime(Protocol):
    """A way to run the iterations of a bucket; both methods only enqueue."""

    @property
    def bytes(self) -> int: ...

    def iterate(self, first: int, last: int) -> None: ...

    def evaluate(self, settled: bool) -> None: ...


Make = Callable[[PackedProblem, "SGP", Buffers, int], Regime]


class Slices:
    """A plan in slices of `LOOK` iterations with a graph each, so that it can stop between two of them; see `run`."""

    def __init__(self, plan: PlanWork, job: Job) -> None:
        self.plan, self.settled = plan, job.tables.settled
        self.reads = plan.reads
        self._ends = [*range(LOOK, plan.iterations, LOOK), plan.iterations]
        self._graphs: list[Graph] = []
        self._judge: dict[bool, Graph] = {}
        self._conclude: list[Graph] = []

    @property
    def bytes(self) -> int:
        return self.plan.bytes + sum(graph.bytes for graph in (*self._graphs, *self._judge.values(), *self._conclude))

    def body(self) -> None:
        self.plan.begin()

    def capture(self, device: Device) -> None:
        """The graphs of all slices, where they are not there yet. Capturing runs them: load a job afterwards."""
        if self._graphs:
            return
        slices = [((last - 1) // LOOK * LOOK, last) for last in self._ends]
        graphs = [device.capture(functools.partial(self.plan.iterate, *ends)) for ends in slices]
        judge = {settled: device.capture(functools.partial(self.plan.evaluate, settled)) for settled in (False, True)}
        self._conclude = [device.capture(self.plan.conclude)]
        self._graphs, self._judge = graphs, judge  # at last: where a capture fails, there are none

    def run(self, job: Job, device: Device) -> None:
        """Plan until all iterations are done or the deadline has passed; in the latter case, back to the best so far.

        The job was loaded and the body replayed. Plans are ranked at their start and after every slice.
        """
        b = self.plan.buffers
        best, ranking, reached = b.v.clone(), torch.full_like(b.terminal, torch.inf), 0
        for graph, last in zip(self._graphs, self._ends, strict=True):
            device.finish()
            if time.monotonic() > job.deadline:
                break
            self._judge[False].replay()
            now = self.plan.ranking(job)
            better = now < ranking
            best = torch.where(better[:, None, None], b.v, best)
            ranking = torch.where(better, now, ranking)
            graph.replay()
            reached = last
        ended = self._judge[reached >= self.settled]
        ended.replay()
        if reached < self.plan.iterations:
            back = (ranking < self.plan.ranking(job)) & (b.active != 0)
            b.v.copy_(torch.where(back[:, None, None], best, b.v))
            b.good.copy_(torch.where(back[:, None, None], best, b.good))
            ended.replay()
        self._conclude[0].replay()


class PlanWork:
    """All of a plan: weights as they are now, the search from its start, every iteration, the last evaluation, the plan.

    `load_job` copies a job in and `results` copies the plan out, cut to the job's rows. All else is the body's: what a graph
    holds costs the device a few microseconds, and what is launched beside it costs the host tens of them.

    start   controls to start from `[R, T, nu]`; Adam's moments are taken from the buffers where the planner keeps them
    """

    def __init__(self, problem: Problem, job: Job, rows: int, device: torch.device, make: Make) -> None:
        planner, tables = job.planner, job.tables
        self.problem, self.reads = problem, problem.tensors
        self.functions = Functions(job, rows, device)
        self.packed = PackedProblem(
            problem, planner.product_dtype, device, self.functions, planner.input_precision
        )
        self.buffers = Buffers.allocate(
            rows, planner.horizon, self.packed.nx, self.packed.nu, planner.iterations, device,
            bounded=job.low is not None, with_goal=job.goal is not None, with_history=planner.record_cost,
        )  # fmt: skip
        for static, values in (
            (self.buffers.beta, tables.beta),
            (self.buffers.step_size, tables.step_size),
            (self.buffers.level, tables.levels),
        ):
            static.copy_(torch.tensor(values, dtype=static.dtype))
        self.start = torch.zeros_like(self.buffers.v)
        self._bounding = Bounding(planner.bounding, self.buffers.low, self.buffers.high)
        self._planner, self._last = planner, (tables.beta[-1], tables.levels[-1])
        self._plan: Plan | None = None
        self.iterations, self._precision = planner.iterations, planner.precision
        self.regime = make(self.packed, planner, self.buffers, tables.settled)
        self.bytes = self._bytes()  # asked for at every plan

    def _bytes(self) -> int:
        networks = sum(model.network.bytes for model in self.packed.models.values())
        start = self.start.numel() * self.start.element_size()
        return networks + self.buffers.bytes + self.functions.bytes + self.regime.bytes + start

    def body(self) -> None:
        self.search()
        self.conclude()

    def search(self) -> None:
        """Without what a plan tells beside its controls."""
        self.begin()
        self.iterate(0, self.iterations)
        self.evaluate(settled=True)

    def iterate(self, first: int, last: int) -> None:
        with products_of(self._precision, self.packed.device):
            self.regime.iterate(first, last)

    def evaluate(self, settled: bool) -> None:
        with products_of(self._precision, self.packed.device):
            self.regime.evaluate(settled)

    def ranking(self, job: Job) -> Tensor:
        """`Plan.ranking` of the rows `[R]`, after an evaluation."""
        b, score = self.buffers, job.problem.score
        value = b.running.sum(1) + b.terminal + b.change
        if score is not None:
            norm = (b.score * score.normalizer.k.to(b.score)).square().sum((1, 2))
            value = value + 0.5 * job.tables.penalty * norm
        return value.nan_to_num(nan=torch.inf)

    def begin(self) -> None:
        """What comes before the first iteration. The start was copied in."""
        b = self.buffers
        self.packed.refresh(self.problem)
        b.v.copy_(self._bounding.variable(self.start.transpose(0, 1)).transpose(0, 1))
        b.good.copy_(b.v)
        if not self._planner.keep_moments:
            for moment in (b.m, b.s, b.count):
                moment.zero_()
        b.active.fill_(1)
        for flags in (b.diverged, b.converged, b.taken):
            flags.zero_()
        if b.history is not None:
            b.history.fill_(torch.nan)

    def load_job(self, job: Job) -> None:
        """Copy in a job, whose rows may be fewer than the bucket has."""
        b, starts = self.buffers, job.planner.starts

        def rows(t: Tensor) -> Tensor:
            if len(t) == 1 < len(job.x0):
                return t.expand(len(job.u), *t.shape[1:])
            return t if starts == 1 else t.repeat_interleave(starts, 0)

        given = [("init", self.start, job.u)]
        of_problems = (("x0", b.x0, job.x0), ("goal", b.goal, job.goal), ("low", b.low, job.low), ("high", b.high, job.high))
        given += [(name, static, rows(t)) for name, static, t in of_problems if static is not None and t is not None]
        if job.moments is not None:
            given += zip(("m", "s", "count"), (b.m, b.s, b.count), job.moments, strict=True)
        elif self._planner.keep_moments:
            torch._foreach_zero_([b.m, b.s, b.count])  # pyright: ignore[reportPrivateImportUsage]
        copy_all_in(given)
        params = job.params
        if starts > 1 and params is not None:
            params = {name: rows(p) for name, p in params.items()} if isinstance(params, dict) else rows(params)
        self.functions.load(params)

    def conclude(self) -> None:
        """Make the plan of the last evaluation: as the reference does, of the buffers."""
        b, score = self.buffers, self.problem.score
        beta, level = self._last
        # In float64, and of the levels of this moment, as `Tables.penalty` is.
        penalty = 0.0 if score is None else beta * score.sigmas[level].double().square()

        def steps(t: Tensor) -> Tensor:
            return t.transpose(0, 1)

        v = steps(b.v)
        search = Search(
            v=v, good=v, m=steps(b.m), s=steps(b.s), count=b.count, active=b.active, diverged=b.diverged != 0,
            converged=b.converged != 0,
        )  # fmt: skip
        evaluation = Evaluation(
            x=steps(b.x), costate=steps(b.costate), grad_u=steps(b.grad_u), running=steps(b.running), terminal=b.terminal,
            change=b.change, score=None if self.packed.score is None else steps(b.score),
        )  # fmt: skip
        # Not in buffers of our own: what is allocated while a graph is captured stays the graph's, at its address.
        self._plan = conclude(
            self.problem, self._planner, penalty, self._bounding, search, evaluation, b.taken, b.history
        )

    def results(self, rows: int) -> Plan:
        """The plan that was concluded; copies, for a graph runs again."""
        assert self._plan is not None
        return Plan.from_tensors(copy_all_out(self._plan.tensors(), rows), {})
