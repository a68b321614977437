"""Costs that are not of ours, for the backends with kernels: traced into them where that can be, else called between them.

    c(x, u, goal, t, params), ∂c   recorded for one row (`kernels.traced`), held against the cost itself, kept while it stays

A trace holds the numbers that the function saw: weights, constants, globals. `Sight` tells when one of them has changed.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
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
from .version import sum_of_bits

OURS = (LearnedCost, QuadraticCost, QuadraticTerminal, TerminalValue)
# A trace is held against its cost at so many steps of so many problems, to this part of the size of what they give.
CHECKED_STEPS, CHECKED_PROBLEMS = 3, 4
CHECKED_TO = 1e-3


@dataclass(frozen=True)
class Traced:
    """A cost as a program of numbers, and what a row of it holds."""

    expression: Expression
    features: Features


@dataclass(frozen=True)
class CustomCosts:
    """The costs of a job that are not of ours: the program of each, or why it has none; None where there is no such cost."""

    running: Traced | str | None
    terminal: Traced | str | None

    @property
    def told(self) -> dict[str, str]:
        """What a plan's stats say of them."""
        found = {"cost": self.running, "terminal": self.terminal}
        return {name: _told(made) for name, made in found.items() if made is not None}

    @property
    def split(self) -> str | None:
        """Why some cost is called between the kernels; None where none is."""
        reasons = [made for made in (self.running, self.terminal) if isinstance(made, str)]
        return reasons[0] if reasons else None


def is_custom(part: Any) -> bool:
    """Whether a cost is not one of ours, exactly."""
    return part is not None and type(part) not in OURS


def custom_costs(job: Job) -> CustomCosts:
    """Of a job, traced where they can be."""
    running, terminal = job.problem.cost, job.problem.terminal
    return CustomCosts(
        _traced(running, job, False) if is_custom(running) else None,
        _traced(terminal, job, True) if is_custom(terminal) else None,
    )


_kept: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Sight, Traced | str]]] = weakref.WeakKeyDictionary()


def _traced(cost: Cost | TerminalCost, job: Job, terminal: bool) -> Traced | str:
    nx, nu = job.x0.shape[1], job.u.shape[2]
    features, dtype = Features.of(nx, nu, job.goal, job.params, terminal), job.x0.dtype
    kinds = tuple(p.dtype for p in job.params.values()) if isinstance(job.params, dict) else None
    seen, key = Sight.of(cost), (features, dtype, kinds)
    try:
        kept = _kept.setdefault(cost, {})
    except TypeError:  # no weak reference to it, or no hash
        kept = {}
    if key not in kept or kept[key][0] != seen:
        kept[key] = seen, _made(cost, features, job)
    return kept[key][1]


def _made(cost: Cost | TerminalCost, features: Features, job: Job) -> Traced | str:
    try:
        expression = trace(cost.value_and_grad, features, job.x0.dtype, job.params, job.x0.device)
    except Untraceable as why:
        return str(why)
    ours, theirs = _compared(cost, expression, features, job)
    size = theirs.abs().amax((0, 1)).clamp(min=1e-6)
    same = ((ours - theirs).abs() <= CHECKED_TO * size) | (ours.isnan() & theirs.isnan()) | (ours == theirs)
    if not bool(same.all()):
        return "recorded for one row, it gives other numbers than for many: rows must be independent"
    return Traced(expression, features)


def _compared(
    cost: Cost | TerminalCost, expression: Expression, features: Features, job: Job
) -> tuple[Tensor, Tensor]:
    """What the program and the cost give, `[steps, problems, outputs]`, around the start states of the job's problems."""
    T, B = min(CHECKED_STEPS, job.planner.horizon), min(CHECKED_PROBLEMS, len(job.x0))
    like: dict[str, Any] = {"dtype": job.x0.dtype, "device": job.x0.device}
    wave = torch.arange(T * B * (features.nx + features.nu), dtype=torch.float64).mul(0.7).sin().view(T, B, -1).to(**like)
    x, u = job.x0[:B] + 0.3 * wave[..., : features.nx], wave[..., features.nx :]
    goal = None if job.goal is None else job.goal.expand(len(job.x0), -1)[:B]
    params = first_rows(job.params, B)
    t = torch.arange(T, device=job.x0.device)[:, None]
    if features.terminal:
        theirs = [cost.value_and_grad(x[i], goal, params) for i in range(T)]  # pyright: ignore[reportCallIssue]
        value, grad = (torch.stack(part) for part in zip(*theirs, strict=True))
        grads = (grad,)
    else:
        value, *grads = cost.value_and_grad(x, u, goal, t, params)  # pyright: ignore[reportCallIssue]
    parts = [x] if features.terminal else [x, u]
    parts += [] if goal is None else [goal.expand(T, -1, -1)]
    parts += [] if features.terminal else [t[..., None].expand(T, B, 1).to(**like)]
    packed = pack_params(params, features)
    parts += [] if packed is None else [packed.to(**like).expand(T, -1, -1)]
    return expression.evaluate(torch.cat(parts, -1)), torch.cat((value[..., None], *grads), -1)


def first_rows(params: Params, rows: int) -> Params:
    """Those of the first problems."""
    if isinstance(params, dict):
        return {name: p[:rows] for name, p in params.items()}
    return None if params is None else params[:rows]


def _told(made: Traced | str) -> str:
    if isinstance(made, str):
        return f"called in PyTorch between the kernels: {made}"
    return f"traced into the kernels, {made.expression.operations} operations a row"


@dataclass(frozen=True, eq=False)
class Sight:
    """What a function can see that is not its arguments: equal while nothing of it was replaced or written to.

    Seen are a module's weights and attributes, what a function closes over, its defaults, the globals that it names, and
    the same of functions and objects among these, some levels deep. What lies deeper is taken to stay.
    """

    things: tuple[Any, ...]
    states: tuple[Any, ...]

    @classmethod
    def of(cls, part: Any) -> Sight:
        inner = part.function if isinstance(part, (CustomCost, CustomTerminal)) else part
        things, states = [], []
        for thing, state in _see(inner, 4, set()):
            things.append(thing)
            states.append(state)
        return cls(tuple(things), tuple(states))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sight) or len(self.things) != len(other.things):
            return False
        return all(a is b for a, b in zip(self.things, other.things, strict=True)) and self.states == other.states

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _see(thing: Any, depth: int, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """Objects with their states; numbers and words are their own state."""
    if isinstance(thing, (bool, int, float, complex, str, bytes, type(None))):
        yield None, repr(thing)
        return
    if id(thing) in seen or depth == 0 or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing, (thing.data_ptr(), 0 if thing.is_inference() else thing._version, sum_of_bits(thing.detach()))
    elif isinstance(thing, np.ndarray):
        yield thing, hash(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield None, len(thing)
        for item in thing:
            yield from _see(item, depth - 1, seen)
    elif isinstance(thing, dict):
        for name, item in thing.items():
            yield None, repr(name)
            yield from _see(item, depth - 1, seen)
    elif isinstance(thing, types.FunctionType):
        yield thing, None
        cells = [_content(cell) for cell in thing.__closure__ or ()]
        names = _names(thing.__code__)
        used = [thing.__globals__[name] for name in names if name in thing.__globals__]
        for module in (value for value in used if isinstance(value, types.ModuleType)):
            if module.__name__.partition(".")[0] not in ("torch", "numpy", "math"):
                used += [vars(module)[name] for name in names if name in vars(module)]
        for item in (*cells, thing.__defaults__, thing.__kwdefaults__, *used):
            yield from _see(item, depth - 1, seen)
    elif isinstance(thing, types.MethodType):
        yield from _see(thing.__func__, depth, seen)
        yield from _see(thing.__self__, depth, seen)
    elif isinstance(thing, nn.Module):
        yield thing, thing.training
        for tensor in (*thing.parameters(), *thing.buffers()):
            yield from _see(tensor, 1, seen)
        for module in thing.modules():
            for name, item in vars(module).items():
                if not name.startswith("_"):
                    yield from _see(item, depth - 1, seen)
    elif not isinstance(thing, (types.ModuleType, types.BuiltinFunctionType)) and hasattr(thing, "__dict__"):
        yield thing, None
        yield from _see(vars(thing), depth, seen)


def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return (*code.co_names, *(name for c in inner for name in _names(c)))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
