"""Costs that are not of ours, as the native engine calls them: compiled from their trace, or back in PyTorch."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..kernels.cpu import COST_FUNCTION, function
from ..kernels.traced import cpp_code
from .custom import CustomCosts, Traced, custom_costs
from .eager import Conditions
from .job import Job


def compiled_cost(cost: Traced) -> ctypes.c_void_p:
    """The address of a traced cost, compiled at first."""
    return function(cpp_code.source(cost.expression, cost.features), cpp_code.SYMBOL)


def traced(job: Job) -> tuple[Job, CustomCosts]:
    """The costs of a job that are not of ours, compiled, and the job with as much time left as before that."""
    began = time.monotonic()
    costs = custom_costs(job)
    for cost in (costs.running, costs.terminal):
        if isinstance(cost, Traced):
            compiled_cost(cost)
    return replace(job, deadline=job.deadline + time.monotonic() - began), costs


class Callback:
    """A cost that the engine calls back, in PyTorch, for all steps of a block of problems; `pointer` is its `CostFunction`.

    The engine cannot pass on what it raises: it is kept in `failed`, and the values are not numbers from then on.
    """

    def __init__(self, cost: Any, at: Conditions, nu: int, terminal: bool) -> None:
        self.cost, self.at, self.terminal = cost, at, terminal
        self.nx, self.nz = at.x0.shape[1], at.x0.shape[1] + (0 if terminal else nu)
        self.failed: list[BaseException] = []
        self.pointer = COST_FUNCTION(self._call)

    def _call(
        self, z: int, ldz: int, _goal: Any, _ldgoal: int, _params: Any, _ldparams: int, step: int, steps: int, count: int,
        first: int, value: int, gradient: int, ldg: int,
    ) -> None:  # fmt: skip
        values = _view(value, steps, count, 1, 1)[..., 0]
        try:
            with torch.no_grad():
                rows = _view(z, steps, count, ldz, self.nz).clone()
                grads = _view(gradient, steps, count, ldg, self.nz)
                given, *pulls = self._values(rows, slice(first, first + count), step)
                values.copy_(given)
                grads += torch.cat(pulls, -1)
        except BaseException as error:  # KeyboardInterrupt too
            self.failed.append(error)
            values.fill_(torch.nan)
            _view(gradient, steps, count, ldg, self.nz).fill_(torch.nan)

    def _values(self, rows: Tensor, of: slice, step: int) -> tuple[Tensor, ...]:
        at = self.at
        goal = None if at.goal is None else at.goal.expand(len(at.x0), -1)[of]
        params = {n: p[of] for n, p in at.params.items()} if isinstance(at.params, dict) else at.params
        params = params[of] if isinstance(params, Tensor) else params
        if self.terminal:
            value, grad = self.cost.value_and_grad(rows[0], goal, params)
            return value[None], grad[None]
        t = torch.arange(step, step + len(rows))[:, None]
        return self.cost.value_and_grad(rows[..., : self.nx], rows[..., self.nx :], goal, t, params)


def _view(address: int, steps: int, count: int, stride: int, width: int) -> Tensor:
    """The engine's rows as a tensor `[steps, count, width]`."""
    numbers = (steps * count - 1) * stride + width
    flat = torch.frombuffer((ctypes.c_float * numbers).from_address(address), dtype=torch.float32)
    return flat.as_strided((steps, count, width), (count * stride, stride, 1))
