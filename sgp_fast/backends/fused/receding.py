"""A step of receding-horizon control as one graph: shift the last plan, plan from the new observation, give the control.

    observation ──copy──▶ x0 │ v ← variable(u),  plan,  u ← shift(plan),  out ← (u_0, diverged) │ ──copy──▶ action

What is remembered between steps, the controls to start from and Adam's moments, stays where the graph reads and writes it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...plan import Plan
from ..bounding import Bounding
from ..job import Job
from .backend import candidates_of, device_of, in_graph
from .calling import try_calls
from .graphs import bucket, copy_in
from .work import PlanWork


class Receding:
    """The graph of a controller's step, for the environments of a job, all of them at every step.

    u        controls to start the next step from `[B, T, nu]`: the last plan shifted by one, or what the caller writes
    moments  Adam's, likewise, where the planner keeps them
    """

    def __init__(self, job: Job, regime: str, stats: dict[str, Any]) -> None:
        """`regime` is the name that `Plan.stats` gives: what was chosen for a plan of this size serves a step, too.

        `stats` are those of that plan; the plans of the steps have them, too.
        """
        self._stats = stats
        self._job = job
        self._rows = len(job.x0)
        size = bucket(self._rows)
        self._work = PlanWork(job.problem, job, size, job.x0.device, candidates_of(job, size)[regime])
        self._work.load_job(job)
        b = self._work.buffers
        self._bounding = Bounding(job.planner.bounding, b.low, b.high)
        self._u, self._m, self._s = torch.zeros_like(b.v), torch.zeros_like(b.m), torch.zeros_like(b.s)
        self._count = torch.zeros_like(b.count)
        self._out = b.x0.new_zeros(b.rows, b.v.shape[2] + 1)
        self._device = device_of(job.x0.device)
        costs = self._work.functions.costs
        self._graph = in_graph(job, costs, lambda device, _: device.capture(self._body))
        self._is_held = costs.unheld is None
        self._addresses = tuple(t.data_ptr() for t in self._work.reads)

    @property
    def u(self) -> Tensor:
        return self._u[: self._rows]

    @property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._m[: self._rows], self._s[: self._rows], self._count[: self._rows]

    def reads_still(self) -> bool:
        """Whether the problem's weights are the tensors that the graph reads."""
        if not self._work.functions.stay(self._job):
            return False
        costs = self._work.functions.costs
        if self._is_held and self._device.captures:
            try_calls(self._device, costs, self._job.problem)
            if costs.unheld is not None:
                return False  # the graph is not to be trusted any more
        now = self._job.problem.tensors
        return all(a is b and a.data_ptr() == at for a, b, at in zip(now, self._work.reads, self._addresses, strict=True))

    def step(self, x0: Tensor) -> Tensor:
        """One step from `x0 [B, nx]`: first controls and, in the last column, whether a plan diverged, `[B, nu + 1]`.

        The result is the graph's own tensor: copy it before the next step.
        """
        copy_in(self._work.buffers.x0, x0, "obs")
        self._device.turn()
        self._graph.replay()
        return self._out[: self._rows]

    def plan(self) -> Plan:
        """The plan of the last step."""
        self._work.conclude()  # not part of a step: few ask for the plan
        return replace(self._work.results(self._rows), stats=self._stats)

    def _body(self) -> None:
        b = self._work.buffers
        self._work.start.copy_(self._u)
        if self._job.planner.keep_moments:
            for static, kept in ((b.m, self._m), (b.s, self._s), (b.count, self._count)):
                static.copy_(kept)
        self._work.search()
        u = self._bounding.control(b.v.transpose(0, 1)).transpose(0, 1)  # `Bounding` is time-major; here rows come first
        self._out[:, :-1].copy_(u[:, 0])
        self._out[:, -1].copy_(b.diverged)
        for store, new in ((self._u, u), (self._m, b.m), (self._s, b.s)):
            store[:, :-1].copy_(new[:, 1:])
            store[:, -1].copy_(new[:, -1])
        self._count.copy_(b.count)
