"""Costs that are not of ours, for the backends with kernels: traced into them where that can be, else called between them.

    c(x, u, goal, t, params), ∂c   recorded for one row (`kernels.traced`), held against the cost itself, kept while it stays

A trace holds the numbers that the function saw: weights, constants, globals. Before every plan `sight` looks whether one of
these has changed, and the cost is called on some rows: where it gives other values than before, it is traced anew.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..costs import (
    Cost,
    CustomCost,
    CustomTerminal,
    LearnedCost,
    QuadraticCost,
    QuadraticTerminal,
    TerminalCost,
    TerminalValue,
)
from ..kernels.traced.expression import Expression
from ..kernels.traced.trace import Features, Params, Untraceable, pack_params, trace
from .job import Job
from .sampling import SamplingJob, running_values, terminal_values
from .sight import Sight, sight

OURS = (LearnedCost, QuadraticCost, QuadraticTerminal, TerminalValue)
# A trace is held against its cost at all steps of so many problems, to this part of the size of what they give.
PROBED = 4
CHECKED_TO = 1e-3
# Costs that are no modules and no functions are kept with what was made of them: the last so many.
OBJECTS = 32


@dataclass(frozen=True, eq=False)
class Traced:
    """A cost as a program of numbers, and what a row of it holds. One object for as long as the cost stays as it is."""

    expression: Expression
    features: Features


@dataclass(frozen=True, eq=False)
class Called:
    """A cost that is not traced, and why. One object for as long as the cost stays as it is."""

    reason: str


@dataclass(frozen=True)
class CustomCosts:
    """The costs of a job that are not of ours; None where there is no such cost."""

    running: Traced | Called | None
    terminal: Traced | Called | None

    @property
    def told(self) -> dict[str, str]:
        """What a plan's stats say of them."""
        found = {"cost": self.running, "terminal": self.terminal}
        return {name: _told(made) for name, made in found.items() if made is not None}

    @property
    def split(self) -> str | None:
        """Why some cost is called between the kernels; None where none is."""
        return next((made.reason for made in (self.running, self.terminal) if isinstance(made, Called)), None)


def is_custom(part: Any) -> bool:
    """Whether a cost is not one of ours, exactly."""
    return part is not None and type(part) not in OURS


def custom_costs(job: Job) -> CustomCosts:
    """Of a job, traced where they can be."""
    return _costs(job, gradient=True)


def custom_values(job: SamplingJob) -> CustomCosts:
    """Of a sampling planner's job: their values alone, and no gradient is taken to find them."""
    return _costs(job, gradient=False)


def _costs(job: Job | SamplingJob, gradient: bool) -> CustomCosts:
    running, terminal = job.problem.cost, job.problem.terminal
    return CustomCosts(
        _current(running, job, False, gradient) if is_custom(running) else None,
        _current(terminal, job, True, gradient) if is_custom(terminal) else None,
    )


def sights(*costs: Any) -> tuple[Sight, ...]:
    """What those of some costs that are not of ours can see."""
    return tuple(sight(_function(cost)) for cost in costs if is_custom(cost))


class Probe:
    """Rows of a cost, around the start states of a job's problems, at all steps: fewer problems are varied and repeated."""

    def __init__(self, features: Features, job: Job | SamplingJob) -> None:
        self._features = features
        problems, T = len(job.x0), job.planner.horizon
        of = torch.arange(PROBED, device=job.x0.device) % problems
        steps = (2 * PROBED,) if features.terminal else (T, PROBED)
        of = torch.cat((of, of)) if features.terminal else of
        like: dict[str, Any] = {"dtype": job.x0.dtype, "device": job.x0.device}
        numbers = torch.Size((*steps, features.nx + features.nu)).numel()
        wave = torch.arange(numbers, dtype=torch.float64).mul(0.7).sin().view(*steps, -1).to(**like)
        self.x = job.x0[of] + 0.3 * wave[..., : features.nx]
        self.u = wave[..., features.nx :]
        self.goal = None if job.goal is None else job.goal.expand(problems, -1)[of]
        self.params = _rows(job.params, of)
        self.t = torch.arange(T, device=job.x0.device)[:, None]

    def results(self, cost: Any) -> Tensor:
        """Values and gradients of a cost, `[..., outputs]`; ValueError where they have other shapes than rows have."""
        if not self._features.gradient:
            return self.values(cost)[..., None]
        value, *grads = cost.value_and_grad(*self._arguments)
        wanted = [self.x] if self._features.terminal else [self.x, self.u]
        if value.shape != self.x.shape[:-1] or [g.shape for g in grads] != [z.shape for z in wanted]:
            shapes = ", ".join(str(tuple(t.shape)) for t in (value, *grads))
            raise ValueError(
                f"value_and_grad of a {type(cost).__name__} gave shapes {shapes} for rows {tuple(self.x.shape[:-1])}; "
                "expected a number a row, and gradients as the states and controls are"
            )
        return torch.cat((value[..., None], *grads), -1)

    @torch.no_grad()
    def values(self, cost: Any) -> Tensor:
        """Values alone where the cost is a function, which is quicker, or where no gradient is asked for."""
        if not self._features.gradient:
            return _values(cost, self._features, *self._arguments).clone()
        if not isinstance(cost, CustomCost | CustomTerminal):
            return self.results(cost)
        arguments = self._arguments
        if cost.simple:
            arguments = arguments[: 1 if self._features.terminal else 2]
        return cost.function(*arguments).detach().clone()

    def rows(self) -> Tensor:
        """As an `Expression` takes them."""
        lead = self.x.shape[:-1]
        parts = [self.x] if self._features.terminal else [self.x, self.u]
        parts += [] if self.goal is None else [self.goal.expand(*lead, -1)]
        parts += [] if self._features.terminal else [self.t[..., None].expand(*lead, 1)]
        packed = pack_params(self.params, self._features)
        parts += [] if packed is None else [packed.expand(*lead, -1)]
        return torch.cat([part.to(self.x.dtype) for part in parts], -1)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        if self._features.terminal:
            return self.x, self.goal, self.params
        return self.x, self.u, self.goal, self.t, self.params


@dataclass(frozen=True)
class Kept:
    """What was made of a cost, what it could see then, and what it gave on some rows."""

    made: Traced | Called
    seen: Sight
    probe: Probe
    gave: Tensor


_of_functions: weakref.WeakKeyDictionary[Any, dict[Any, Kept]] = weakref.WeakKeyDictionary()
_of_objects: OrderedDict[int, tuple[Any, dict[Any, Kept]]] = OrderedDict()


def _current(cost: Cost | TerminalCost, job: Job | SamplingJob, terminal: bool, gradient: bool) -> Traced | Called:
    u = job.u if isinstance(job, Job) else job.mean
    features = replace(Features.of(job.x0.shape[1], u.shape[2], job.goal, job.params, terminal), gradient=gradient)
    params = job.params if isinstance(job.params, dict) else {"": job.params}
    kinds = tuple(None if p is None else p.dtype for p in params.values())
    key = (features, job.x0.dtype, job.x0.device, kinds, job.planner.horizon)
    store, seen = _store(cost), sight(_function(cost))
    kept = store.get(key)
    if kept is None or kept.seen != seen or not _same(kept.probe.values(cost), kept.gave):
        probe = Probe(features, job)
        store[key] = kept = Kept(_made(cost, features, job, probe), seen, probe, probe.values(cost))
    return kept.made


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _function(cost: Any) -> Any:
    """What the user gave."""
    return cost.function if isinstance(cost, CustomCost | CustomTerminal) else cost


def _store(cost: Any) -> dict[Any, Kept]:
    """What is kept of a cost, for as long as the user has it."""
    function = _function(cost)
    if isinstance(function, FunctionType | nn.Module):
        return _of_functions.setdefault(function, {})
    found = _of_objects.pop(id(cost), (cost, {}))
    _of_objects[id(cost)] = found
    while len(_of_objects) > OBJECTS:
        _of_objects.popitem(last=False)
    return found[1]


def _made(cost: Cost | TerminalCost, features: Features, job: Job | SamplingJob, probe: Probe) -> Traced | Called:
    theirs = probe.results(cost)
    try:
        function = cost.value_and_grad if features.gradient else lambda *given: (_values(cost, features, *given),)
        expression = trace(function, features, job.x0.dtype, job.params, job.x0.device)
    except Untraceable as why:
        return Called(str(why))
    ours = expression.evaluate(probe.rows())
    finite = theirs.isfinite()
    size = torch.where(finite, theirs, 0).abs().flatten(0, -2).amax(0).clamp(min=1e-6)
    close = finite & ((ours - theirs).abs() <= CHECKED_TO * size)
    if not bool((close | (ours == theirs) | (ours.isnan() & theirs.isnan())).all()):
        return Called(
            "its recording gives other numbers than the cost itself; rows must be independent, and steps alike but for t"
        )
    return Traced(expression, features)


def _values(cost: Any, features: Features, *given: Any) -> Tensor:
    """As the reference of the sampling planners has them."""
    return terminal_values(cost, *given) if features.terminal else running_values(cost, *given)


def _rows(params: Params, of: Tensor) -> Params:
    """The parameters of some problems."""
    if isinstance(params, dict):
        return {name: p[of] for name, p in params.items()}
    return None if params is None else params[of]


def _told(made: Traced | Called) -> str:
    if isinstance(made, Called):
        return f"called in PyTorch between the kernels: {made.reason}"
    return f"traced into the kernels, {made.expression.operations} operations a row"
