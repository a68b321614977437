"""Reading what a caller gives to `solve`: checked, on one device, in one dtype, with one row a problem."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .costs import (
    COST_ARGUMENTS,
    TERMINAL_ARGUMENTS,
    CustomCost,
    CustomTerminal,
    LearnedCost,
    QuadraticCost,
    QuadraticTerminal,
    TerminalValue,
    arguments,
)
from .plan import Plan
from .planner import SGP
from .problem import Problem
from .sampling import Planner

Params = Tensor | dict[str, Tensor] | None
Moments = tuple[Tensor, Tensor, Tensor] | None
# A bound on the host: its bytes, dtype and shape. Bounds of more bytes are read anew for every plan.
Bound = tuple[bytes, str, tuple[int, ...]]
REMEMBERED = 1 << 16


@dataclass(frozen=True)
class Limits:
    """Bounds on the device, `[B, nu]` or `[1, nu]`, and what follows from them, worked out once. Nobody writes to them."""

    low: Tensor
    high: Tensor

    @functools.cached_property
    def ordered(self) -> bool:
        """Whether every low is below its high; NaN is not."""
        return bool((self.low < self.high).all())

    @functools.cached_property
    def finite(self) -> bool:
        return bool((self.low.isfinite() & self.high.isfinite() & (self.high - self.low).isfinite()).all())

    @functools.cached_property
    def middle(self) -> Tensor:
        """The middle of the bounds, and within them what is nearest to zero where they are not finite."""
        middle = (self.low + self.high) / 2
        return torch.clamp(torch.where(middle.isfinite(), middle, 0.0), self.low, self.high)

    @functools.cached_property
    def quarter(self) -> Tensor | None:
        """A quarter of the range; None where that is not finite."""
        quarter = (self.high - self.low) / 4
        return quarter if bool(quarter.isfinite().all()) else None


@dataclass(frozen=True)
class Inputs:
    """`x0 [B, nx]`, `init [B, T, nu]` or None, bounds `[B, nu]` or `[1, nu]` or None, goal `[B, nx]` or None, params.

    `limits` are the bounds of all problems, where these are some of them.
    """

    x0: Tensor
    nu: int
    init: Tensor | None
    moments: Moments
    low: Tensor | None
    high: Tensor | None
    goal: Tensor | None
    params: Params
    limits: Limits | None = None

    @property
    def nx(self) -> int:
        return self.x0.shape[-1]


def read_inputs(problem: Problem, planner: Planner, x0: Any, *, goal: Any, params: Any, init: Any) -> Inputs:
    """Check every argument against the problem; raises ValueError or TypeError naming the argument and the remedy."""
    device = _device(problem, x0)
    state = planner.state_dtype
    x0 = _tensor("x0", x0, state)
    x0 = x0[None] if x0.ndim == 1 else x0
    if x0.ndim != 2 or x0.shape[0] == 0:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected [B, nx] with at least one problem, or [nx]")
    batch, nx = x0.shape
    numbers = [("x0", x0)]
    x0 = x0.to(device)
    nu = problem.controls(nx)
    _check_sizes(problem, nx, nu)
    for name, value in (("goal", goal), ("params", params)):
        if value is not None and not _reads(problem, name):
            raise ValueError(f"{name} is given, but no cost reads it; {_remedy(problem, name)}")
    limits = _limits(problem, planner, batch, nu, state, device)

    goal = problem.goal if goal is None else goal
    if goal is not None:
        goal = _tensor("goal", goal, state)
        if goal.shape not in ((nx,), (1, nx), (batch, nx)):
            told, expected = f"goal has shape {tuple(goal.shape)}", f"[{nx}] or [{batch}, {nx}]"
            if goal.ndim and (other := goal.shape[-1]) != nx and not hasattr(problem.dynamics, "nx"):  # x0 may be at fault
                told, expected = f"{told} and x0 has nx={nx} features", f"a goal {expected}, or x0 of {other} features"
            raise ValueError(f"{told}; expected {expected}")
        numbers.append(("goal", goal))
        goal = goal.to(device).expand(batch, nx)

    controls, moments = _init(planner, init, batch, nu, state)
    if controls is not None:
        numbers.append(("init", controls))
        controls = controls.to(device)
        moments = None if moments is None else tuple(m.to(controls) for m in moments)
    params = _params(params, batch, state, device)
    _check_finite(numbers)
    low, high = (None, None) if limits is None else (limits.low, limits.high)
    return Inputs(x0, nu, controls, moments, low, high, goal, params, limits)  # pyright: ignore[reportArgumentType]


def check_kinds(problem: Any, planner: Any) -> None:
    """Raise TypeError where these are no problem and planner, or stand in each other's place."""
    if isinstance(problem, Planner) and isinstance(planner, Problem):
        raise TypeError("problem and planner are in each other's place; give solve(problem, planner, x0)")
    for name, value, kind, expected in (
        ("problem", problem, Problem, "a Problem"), ("planner", planner, Planner, "SGP, CEM or MPPI"),
    ):  # fmt: skip
        if not isinstance(value, kind):
            given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise TypeError(f"{name} is {given}; expected {expected}, as in solve(problem, planner, x0)")


def check_moves(planner: Planner, otherwise: str = "") -> None:
    """Raise ValueError where every step has length 0: what was drawn to start from would come back as a plan."""
    if isinstance(planner, SGP) and not planner.moves:
        raise ValueError(
            f"SGP.step_size is {planner.step_size}, so no control would move; give a step above 0, such as 0.1{otherwise}"
        )


def problem_rows(inputs: Inputs, rows: slice) -> Inputs:
    """The problems `rows` of a batch."""

    def cut(t: Tensor | None) -> Tensor | None:
        return t if t is None or len(t) == 1 < len(inputs.x0) else t[rows]

    params = {k: v[rows] for k, v in inputs.params.items()} if isinstance(inputs.params, dict) else cut(inputs.params)
    moments = None if inputs.moments is None else tuple(m[rows] for m in inputs.moments)
    return Inputs(
        inputs.x0[rows], inputs.nu, cut(inputs.init), moments, cut(inputs.low), cut(inputs.high), cut(inputs.goal), params,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def starting_controls(planner: SGP, rows: Inputs, seed: int, first: int) -> Tensor:
    """Controls to start from, `[B·starts, T, nu]`; problem i (from `first`) draws its own numbers, whatever its neighbours.

    The first start of a problem is `init` where given; every other adds `start_spread`·normal to it, or to zero.
    """
    batch, starts = len(rows.x0), planner.starts
    shape = (batch, starts, planner.horizon, rows.nu)
    if rows.init is not None and starts == 1:
        return rows.init
    normal = torch.from_numpy(counted_normal(seed, first, batch, int(np.prod(shape[1:])))).view(shape)
    spread = (planner.start_spread * normal.to(rows.x0.dtype)).to(rows.x0.device)
    if rows.init is not None:
        spread[:, 0] = 0
        spread = spread + rows.init[:, None]
    return spread.flatten(0, 1)


def counted_normal(seed: int, first: int, rows: int, numbers: int) -> np.ndarray:
    """Standard normal `[rows, numbers]` where row i depends on (seed, first + i) alone (Philox, Box–Muller)."""
    blocks = -(-numbers // 4)  # one Philox block gives four 64-bit words, two of them make two normals
    generator = np.random.Philox(key=seed % 2**64)
    generator.advance(first * blocks)
    words = generator.random_raw(rows * blocks * 4).reshape(rows, blocks * 2, 2)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[..., 0])), 2 * np.pi * uniform[..., 1]
    normal = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(rows, -1)
    return np.ascontiguousarray(normal[:, :numbers])


def _device(problem: Problem, x0: Any) -> torch.device:
    """The device of the models, which x0 must share if it is a tensor there already."""
    devices = {t.device for t in problem.tensors}
    if len(devices) > 1:
        raise ValueError(f"the models lie on several devices ({', '.join(map(str, devices))}); move them to one")
    given = x0.device if isinstance(x0, Tensor) else torch.device("cpu")
    device = next(iter(devices)) if devices else given
    if isinstance(x0, Tensor) and given != device:
        raise ValueError(f"x0 is on {given} and the models are on {device}; move one of them")
    return device


def _tensor(name: str, value: Any, dtype: torch.dtype | None, device: torch.device | None = None) -> Tensor:
    """Of the dtype and on the device; None: as it is."""
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor or an array ({error})") from None
    if value.dtype.is_complex:
        raise TypeError(f"{name} is {value.dtype}; expected real numbers")
    value = value.detach().to(device=device or value.device, dtype=dtype or value.dtype)
    return value.clone() if value.is_inference() else value  # autograd models cannot save inference tensors


def _reads(problem: Problem, name: str) -> bool:
    """Whether a cost can read the problems' goal or params. Costs with a gradient of their own say nothing, and may."""
    for part in (problem.cost, problem.terminal):
        if part is None or isinstance(part, (LearnedCost, TerminalValue)):
            continue
        if isinstance(part, (QuadraticCost, QuadraticTerminal)) and name == "params":
            continue
        if isinstance(part, (CustomCost, CustomTerminal)) and part.simple:
            continue
        return True
    return False


def _remedy(problem: Problem, name: str) -> str:
    """What to do about a goal, or params, that no cost reads: of functions, which arguments they would have to take."""
    told = [
        f"Problem.{kind} takes {arguments(part.function)}: make it {full}"
        for kind, part, full in (("cost", problem.cost, COST_ARGUMENTS), ("terminal", problem.terminal, TERMINAL_ARGUMENTS))
        if isinstance(part, (CustomCost, CustomTerminal))
    ]
    return f"{'; '.join(told)}, or leave {name} out" if told else "leave it out, or use a cost that does"


def _check_sizes(problem: Problem, nx: int, nu: int) -> None:
    """Costs of ours must be of these states and controls; others find out for themselves."""
    cost, terminal = problem.cost, problem.terminal
    sizes: list[tuple[str, int, str, int]] = []
    if isinstance(cost, LearnedCost):
        sizes.append(("cost", cost.network.spec.inputs, "nx+nu", nx + nu))
    if isinstance(cost, QuadraticCost):
        sizes += [("cost: Q", len(cost.Q), "nx", nx), ("cost: R", len(cost.R), "nu", nu)]
    if isinstance(terminal, TerminalValue):
        sizes.append(("terminal", terminal.network.spec.inputs, "nx", nx))
    if isinstance(terminal, QuadraticTerminal):
        sizes.append(("terminal: Q", len(terminal.Q), "nx", nx))
    for name, got, what, want in sizes:
        if got != want:
            raise ValueError(f"{name} is made for {got} features, but the problem has {what}={want} (nx={nx}, nu={nu})")


def _check_finite(values: list[tuple[str, Tensor]]) -> None:
    """Raise ValueError where one has a number that is not finite. Each look at a device waits for it: one look for all."""
    for device in dict.fromkeys(value.device for _, value in values):
        here = [(name, value) for name, value in values if value.device == device]
        flat = [value.flatten() for _, value in here]
        total = (flat[0] if len(flat) == 1 else torch.cat(flat)).sum()
        if not math.isfinite(total.item()):  # or the sum of finite numbers has overflowed
            for name, value in here:
                _finite(name, value)


def _finite(name: str, value: Tensor) -> None:
    bad = (~value.isfinite()).flatten(1).any(1) if value.ndim > 1 else ~value.isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"{name} has a value that is not finite in row {row} ({int(bad.sum())} such rows); mend it")


def _limits(
    problem: Problem, planner: Planner, batch: int, nu: int, dtype: torch.dtype, device: torch.device
) -> Limits | None:
    if problem.bounds is None:
        if planner.bounding == "tanh":
            raise ValueError("SGP.bounding='tanh' needs Problem.bounds; give bounds, or use bounding='project'")
        return None
    low, high = map(_on_host, problem.bounds)
    sizes = (batch, nu, dtype, device)
    known = low is not None and high is not None
    limits = _remembered_limits(low, high, *sizes) if known else _limits_of(*problem.bounds, *sizes)
    if not limits.ordered:
        raise ValueError("bounds: some low is not below its high; give low < high for every control")
    if planner.bounding == "tanh" and not limits.finite:
        raise ValueError("SGP.bounding='tanh' needs finite bounds; use bounding='project' for controls without a limit")
    return limits


def _limits_of(low: Any, high: Any, batch: int, nu: int, dtype: torch.dtype, device: torch.device) -> Limits:
    sides = []
    for side, value in (("low", low), ("high", high)):
        bound = _tensor(f"bounds ({side})", value, dtype, device)
        if bound.shape not in ((), (1,), (nu,), (1, nu), (batch, nu), (batch, 1)):
            raise ValueError(f"bounds ({side}) is {list(bound.shape)}; expected a number, [{nu}] or [{batch}, {nu}]")
        sides.append(bound.expand(batch if bound.ndim == 2 and len(bound) == batch else 1, nu))
    return Limits(*sides)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def _remembered_limits(
    low: Bound, high: Bound, batch: int, nu: int, dtype: torch.dtype, device: torch.device
) -> Limits:
    """The same of numbers, which thus go to the device, and are looked at there, once."""
    low_array, high_array = (np.frombuffer(data, kind).reshape(shape).copy() for data, kind, shape in (low, high))
    limits = _limits_of(low_array, high_array, batch, nu, dtype, device)
    return Limits(limits.low.contiguous(), limits.high.contiguous())


def _on_host(value: Any) -> Bound | None:
    """A bound that lies on the host, by value: arrays may be written to. None for others, and for what is no bound."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return None
    try:
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    if array.dtype.kind not in "biuf" or array.nbytes > REMEMBERED:
        return None
    return array.tobytes(), array.dtype.str, array.shape


def _init(planner: Planner, init: Any, batch: int, nu: int, dtype: torch.dtype) -> tuple[Tensor | None, Moments]:
    if init is None:
        return None, None
    moments = init.moments if isinstance(init, Plan) and planner.keep_moments else None
    u = _tensor("init", init.u if isinstance(init, Plan) else init, dtype)
    u = u[None] if u.ndim == 2 and batch == 1 else u
    if u.ndim == 3 and u.shape[1] != planner.horizon:
        raise ValueError(f"init has T={u.shape[1]} but horizon={planner.horizon}; pass horizon={u.shape[1]} or re-plan")
    if u.shape != (batch, planner.horizon, nu):
        raise ValueError(f"init has shape {tuple(u.shape)}; expected [{batch}, {planner.horizon}, {nu}]")
    if moments is not None and planner.starts > 1:
        raise ValueError("SGP.keep_moments goes on from one start; use starts=1")
    return u, moments


def _params(params: Any, batch: int, dtype: torch.dtype, device: torch.device) -> Params:
    if params is None:
        return None
    items = params if isinstance(params, dict) else {"params": params}
    out = {}
    for name, value in items.items():
        tensor = _tensor(f"params[{name!r}]", value, None, device)
        if tensor.is_floating_point():  # whole numbers and masks stay what they are: they index and select
            tensor = tensor.to(dtype)
        if tensor.ndim == 0 or len(tensor) != batch:
            raise ValueError(f"params[{name!r}] has shape {tuple(tensor.shape)}; expected [{batch}, …], a row a problem")
        out[name] = tensor
    return out if isinstance(params, dict) else out["params"]
