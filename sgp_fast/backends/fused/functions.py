"""The costs of a bucket that are not of ours, at addresses that never change: device functions, or the costs themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.traced.trace import Features, Params, pack_params
from ..custom import Called, CustomCosts, Traced, custom_costs, is_custom
from ..job import Job
from ..sampling import SamplingJob, running_values, terminal_values
from .graphs import copy_in


class Functions:
    """Of a job, for a bucket of R rows; of none, none. For a sampling planner they are without gradients.

    running, terminal  `device_function`s of the costs that are traced; else None
    calls, last_calls  the costs' own `value_and_grad` where they are not, or what gives their values alone; else None
    params             what is traced reads of the problems' parameters, `[R, width]`; None where there are none
    given              the parameters as the costs themselves take them
    """

    def __init__(self, job: Job | SamplingJob | None = None, rows: int = 0, device: torch.device | None = None) -> None:
        self.costs = CustomCosts(None, None) if job is None else custom_costs(job)
        self._features: Features | None = None
        self.running = self.terminal = self.calls = self.last_calls = self.params = None
        self.given: Params = None
        if job is None:
            return
        values = (running_values, terminal_values) if isinstance(job, SamplingJob) else (None, None)
        self.running, self.calls = self._made(self.costs.running, job.problem.cost, values[0])
        self.terminal, self.last_calls = self._made(self.costs.terminal, job.problem.terminal, values[1])
        width = 0 if self._features is None else self._features.params_width
        self.params = torch.zeros(rows, width, dtype=torch.float32, device=device) if width else None
        if self.calls is not None or self.last_calls is not None:
            self.given = _static(job.params, rows)

    @property
    def present(self) -> bool:
        """Whether there is any."""
        return self.costs.running is not None or self.costs.terminal is not None

    @property
    def params_width(self) -> int:
        """Numbers of a problem's parameters that traced costs read."""
        return 0 if self.params is None else self.params.shape[1]

    @property
    def bytes(self) -> int:
        given = self.given.values() if isinstance(self.given, dict) else [self.given]
        return sum(t.numel() * t.element_size() for t in (self.params, *given) if t is not None)

    def load(self, params: Params) -> None:
        """Copy in the parameters of a job's problems, a row a start."""
        if self.params is not None and self._features is not None:
            packed = pack_params(params, self._features)
            assert packed is not None
            copy_in(self.params, packed, "params")
        if isinstance(self.given, dict) and isinstance(params, dict):
            for name, static in self.given.items():
                copy_in(static, params[name], f"params[{name!r}]")
        elif isinstance(self.given, Tensor) and isinstance(params, Tensor):
            copy_in(self.given, params, "params")

    def stay(self, job: Job | SamplingJob) -> bool:
        """Whether the job's costs are still what was traced."""
        now = custom_costs(job) if self.present else self.costs
        return now.running is self.costs.running and now.terminal is self.costs.terminal

    def _made(
        self, found: Traced | Called | None, cost: Any, values: Callable[..., Tensor] | None
    ) -> tuple[Any, Callable[..., Any] | None]:
        if found is None:
            return None, None
        if isinstance(found, Called):
            return None, cost.value_and_grad if values is None else functools.partial(values, cost)
        from ...kernels.traced.triton_code import device_function

        self._features = found.features
        return device_function(found.expression, found.features), None


def own(cost: Any) -> Any:
    """The cost where it is one of ours, which the kernels know; else None."""
    return None if is_custom(cost) else cost


def _static(params: Params, rows: int) -> Params:
    """Memory for the parameters of a bucket."""
    if isinstance(params, dict):
        return {name: p.new_ones(rows, *p.shape[1:]) for name, p in params.items()}
    return None if params is None else params.new_ones(rows, *params.shape[1:])
