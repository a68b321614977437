"""A whole plan of one bucket as one body: everything that a graph is captured of."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ...planner import SGP
from ...problem import Problem
from ..eager import Conditions, Evaluation, Search
from ..job import LOOK, Job
from ..products import products_of
from .buffers import Buffers
from .device import Device, Graph
from .functions import Functions
from .graphs import copy_in
from .packed import PackedProblem, sources


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

    @property
    def bytes(self) -> int:
        return self.plan.bytes + sum(graph.bytes for graph in (*self._graphs, *self._judge.values()))

    def body(self) -> None:
        self.plan.begin()

    def capture(self, device: Device) -> None:
        """The graphs of all slices, where they are not there yet. Capturing runs them: load a job afterwards."""
        if self._graphs:
            return
        slices = [((last - 1) // LOOK * LOOK, last) for last in self._ends]
        graphs = [device.capture(functools.partial(self.plan.iterate, *ends)) for ends in slices]
        judge = {settled: device.capture(functools.partial(self.plan.evaluate, settled)) for settled in (False, True)}
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


class PlanWork:
    """All of a plan: weights as they are now, the search from its start, every iteration, the last evaluation.

    `load` copies a job in and `results` reads what came out, cut to the job's rows.
    """

    def __init__(self, problem: Problem, job: Job, rows: int, device: torch.device, make: Make) -> None:
        planner, tables = job.planner, job.tables
        self.problem, self.reads = problem, sources(problem)
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
        self.iterations, self._precision = planner.iterations, planner.precision
        self.regime = make(self.packed, planner, self.buffers, tables.settled)

    @property
    def bytes(self) -> int:
        networks = sum(model.network.bytes for model in self.packed.models.values())
        return networks + self.buffers.bytes + self.functions.bytes + self.regime.bytes

    def body(self) -> None:
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
        b.good.copy_(b.v)
        b.active.fill_(1)
        for flags in (b.diverged, b.converged, b.taken):
            flags.zero_()
        if b.history is not None:
            b.history.fill_(torch.nan)

    def load(self, at: Conditions, search: Search, low: Tensor | None, high: Tensor | None) -> None:
        """Copy in where a search starts; tensors of `search` are time-major, as the reference has them."""
        b = self.buffers
        given: list[tuple[str, Tensor | None, Tensor | None]] = [
            ("x0", b.x0, at.x0), ("goal", b.goal, at.goal), ("low", b.low, low), ("high", b.high, high),
            ("count", b.count, search.count),
        ]  # fmt: skip
        given += [(n, getattr(b, n), getattr(search, n).transpose(0, 1)) for n in ("v", "m", "s")]
        for name, static, tensor in given:
            if static is not None and tensor is not None:
                rows = tensor.expand(len(at.x0), *tensor.shape[1:]) if len(tensor) == 1 else tensor
                copy_in(static, rows, name)
        self.functions.load(at.params)

    def results(self, rows: int) -> tuple[Search, Evaluation, Tensor, Tensor | None]:
        """The search, the last evaluation (time-major), the steps taken and the history; copies, for a graph runs again."""
        b = self.buffers

        def steps(t: Tensor) -> Tensor:
            return t[:rows].transpose(0, 1).clone()

        v = steps(b.v)
        search = Search(
            v=v, good=v, m=steps(b.m), s=steps(b.s), count=b.count[:rows].clone(), active=b.active[:rows] != 0,
            diverged=b.diverged[:rows] != 0, converged=b.converged[:rows] != 0,
        )  # fmt: skip
        evaluation = Evaluation(
            x=steps(b.x), costate=steps(b.costate), grad_u=steps(b.grad_u), running=steps(b.running),
            terminal=b.terminal[:rows].clone(), change=b.change[:rows].clone(),
            score=None if self.packed.score is None else steps(b.score),
        )  # fmt: skip
        return search, evaluation, b.taken[:rows].clone(), None if b.history is None else b.history[:rows].clone()
