"""What is to be planned: a transition model, a cost, the data's score, and the limits of the controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from .costs import Cost, CustomCost, CustomTerminal, TerminalCost, takes
from .models import Dynamics, Ensemble, Network, Score, cast

Bounds = tuple[Any, Any]

# What functions raise on tensors of other sizes than they are made for.
SIZE_ERRORS = (ValueError, TypeError, IndexError, RuntimeError)

# Our own modules compute alike in training and in evaluation; a plain `nn.Module` only holds others.
_OURS = ("sgp_fast.", "torch.nn.modules.module")


@runtime_checkable
class DynamicsModel(Protocol):
    """A transition model with its own input-gradient: `vjp(x, u) → x', (λ ↦ (∂_x f)ᵀλ, (∂_u f)ᵀλ)`."""

    def vjp(self, x: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]: ...


class AutogradDynamics(nn.Module):
    """Anyone's module `f(x, u) → x'`, its input-gradient through autograd. No weight gradient is formed.

    A module moves, changes dtype and leaves training mode with the problem; what a function or a bound method closes over
    is its own business.
    """

    def __init__(self, module: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """`f(x, u)`, of the shape of x; ValueError that tells the sizes where the module fails on them or gives others."""
        nx, nu = x.shape[-1], u.shape[-1]
        try:
            out = self.module(x, u)
        except SIZE_ERRORS as error:
            if type(error) not in SIZE_ERRORS:  # no memory, a broken device: no fault of x0
                raise
            raise ValueError(
                f"dynamics failed on x {list(x.shape)} and u {list(u.shape)} ({error}); x0 has nx={nx} features and the "
                f"problem nu={nu} controls: give as many as they take"
            ) from error
        if out.shape != x.shape:
            raise ValueError(
                f"dynamics gave shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; expected the same, since x0 has "
                f"nx={nx} features"
            )
        return out

    def vjp(self, x: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        with torch.enable_grad():
            leaves = (x.detach().requires_grad_(), u.detach().requires_grad_())
            out = self(*leaves)
        if not out.requires_grad:
            raise ValueError(
                "dynamics gave a result that is cut off from autograd (no_grad, detach or NumPy?): its gradient is unknown; "
                "where it truly is constant, add 0 * (x.sum() + u.sum())"
            )

        def pullback(costate: Tensor) -> tuple[Tensor, Tensor]:
            grads = torch.autograd.grad(out, leaves, costate, allow_unused=True)
            g_x, g_u = (torch.zeros_like(z) if g is None else g for g, z in zip(grads, leaves, strict=True))
            return g_x, g_u

        return out.detach(), pullback


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise `Σ_t c(x_t, u_t) + c_T(x_T)` near the data, subject to `x_{t+1} = f(x_t, u_t)` and bounds on u.

    dynamics        `Dynamics`, an object with `vjp`, or any module or function `f(x, u) → x'` (through autograd); an
                    `Ensemble` for sampling planners
    score           `Score`; None plans without regard to the data
    cost            `QuadraticCost`, `LearnedCost`, or any module or function (see `CustomCost`)
    terminal        `QuadraticTerminal`, `TerminalValue`, or any module or function (see `CustomTerminal`); None: nothing
    bounds          (low, high), each a number, `[nu]` or `[B, nu]`; None: unbounded
    goal            `[nx]` or `[B, nx]`, where `solve` is given none
    control_change  weight w of the penalty `w Σ_{t≥1} ‖u_t − u_{t−1}‖²`
    nu              number of controls; needed only where neither dynamics, score nor bounds tell it
    """

    dynamics: Any = None
    cost: Any = None
    score: Score | None = None
    terminal: Any = None
    bounds: Bounds | None = None
    goal: Any = None
    control_change: float = 0.0
    nu: int | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if self.dynamics is None or self.cost is None:
            missing = "dynamics" if self.dynamics is None else "cost"
            raise ValueError(f"Problem.{missing} is None; give a model, a module or a function")
        if self.score is not None and not isinstance(self.score, Score):
            raise TypeError(f"Problem.score is a {type(self.score).__name__}; expected a Score, or None to plan without one")
        if self.score is not None and self.score.variables != "xu":
            raise ValueError("Problem.score is a score of (x, u, x'); shooting needs one of (x, u)")
        for name in ("dynamics", "cost", "terminal"):
            if isinstance(getattr(self, name), Network):
                raise TypeError(f"Problem.{name} is a bare Network; wrap it in Dynamics, LearnedCost or TerminalValue")
        if not isinstance(self.dynamics, DynamicsModel | Ensemble):
            set_(self, "dynamics", AutogradDynamics(_callable("dynamics", self.dynamics)))
        if isinstance(self.cost, Cost):
            takes(self.cost.value_and_grad, (5,), "Problem.cost", "a running cost: (x, u, goal, t, params)")
        else:
            set_(self, "cost", CustomCost(_callable("cost", self.cost)))
        if isinstance(self.terminal, TerminalCost):
            takes(self.terminal.value_and_grad, (3,), "Problem.terminal", "a terminal cost: (x, goal, params)")
        elif self.terminal is not None:
            set_(self, "terminal", CustomTerminal(_callable("terminal", self.terminal)))
        if not self.control_change >= 0:
            raise ValueError(f"Problem.control_change is {self.control_change}; expected a weight of at least 0")
        if self.bounds is not None:
            count = len(self.bounds) if isinstance(self.bounds, (tuple, list)) else 1
            if count != 2:
                raise ValueError(f"Problem.bounds has {count} entries; expected (low, high)")
            _check_bounds(*self.bounds)
        self._agreed(getattr(self.dynamics, "nx", None))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that hold weights, by name."""
        parts = {"dynamics": self.dynamics, "cost": self.cost, "score": self.score, "terminal": self.terminal}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every parameter and buffer of the parts, once each."""
        return tuple({id(t): t for part in self.modules.values() for t in _tensors(part)}.values())

    def controls(self, nx: int) -> int:
        """Number of controls, from the parts that know it; ValueError where they, or start states of nx, do not fit."""
        if nx != (nx_model := getattr(self.dynamics, "nx", nx)):
            raise ValueError(f"x0 has nx={nx} features; the dynamics have nx={nx_model}")
        known = self._agreed(nx)
        if not known:
            raise ValueError("the number of controls is not known from dynamics, score or bounds; give Problem.nu")
        return next(iter(known.values()))

    def _agreed(self, nx: int | None) -> dict[str, int]:
        """The number of controls by the parts that know it, which must agree; a score knows it where nx is known."""
        known: dict[str, int] = {}
        if isinstance(self.dynamics, Dynamics | Ensemble):
            known["dynamics"] = self.dynamics.nu
        if self.score is not None and nx is not None:
            known["score"] = self.score.network.spec.inputs - nx
        if self.nu is not None:
            known["nu"] = self.nu
        for bound in self.bounds or ():
            shape = np.shape(bound)
            if shape and shape[-1] > 1:
                known["bounds"] = shape[-1]
        if len(set(known.values())) > 1:
            told, states = ", ".join(f"{name}: {n}" for name, n in known.items()), "" if nx is None else f" for nx={nx}"
            raise ValueError(f"the parts of the problem disagree on the number of controls ({told}){states}; give them one")
        return known

    def prepared(self, state: torch.dtype, products: torch.dtype, device: torch.device) -> Problem:
        """The problem for planning on `device`: tensors in dtype `state`, the networks' products in `products`.

        A part that is so already serves as it is; of any other a frozen copy does. The problem itself is never changed.
        """
        parts: dict[str, Any] = {}
        for name, part in self.modules.items():
            if not _serves(part, state, products, device):
                parts[name] = cast(part, state, products).to(device).eval()
        return replace(self, **parts) if parts else self


def _check_bounds(low: Any, high: Any) -> None:
    """Raise where no control can be between the bounds. Those on a device are looked at in `solve`, which waits for it."""
    sides = []
    for side, value in (("low", low), ("high", high)):
        shape = np.shape(value)
        if len(shape) > 2:
            raise ValueError(f"Problem.bounds ({side}) has shape {list(shape)}; expected a number, [nu] or [B, nu]")
        if isinstance(value, Tensor):
            value = value.detach().double().numpy() if value.device.type == "cpu" else None
        sides.append(None if value is None else np.asarray(value))
        if sides[-1] is not None and sides[-1].dtype.kind not in "biuf":
            raise TypeError(f"Problem.bounds ({side}) is {value!r}; expected real numbers")
    if sides[0] is None or sides[1] is None:
        return
    try:
        ordered = bool((sides[0] < sides[1]).all())
    except ValueError:
        shapes = " and ".join(str(list(side.shape)) for side in sides)
        raise ValueError(f"Problem.bounds have shapes {shapes}; expected numbers, [nu] or [B, nu], alike") from None
    if not ordered:
        raise ValueError("Problem.bounds: some low is not below its high; give low < high for every control")


def device_of(problem: Problem) -> torch.device:
    """Where the problem's models lie; the CPU where they have no weights."""
    for part in problem.modules.values():
        for tensor in _tensors(part):
            return tensor.device
    return torch.device("cpu")


def _tensors(module: nn.Module) -> list[Tensor]:
    """What `parameters` and `buffers` give; those make a name for each, and every plan asks, several times."""
    found: list[Tensor | None] = []
    modules, seen = [module], {id(module)}
    for here in modules:  # which grows on the way
        found += here._parameters.values()
        found += here._buffers.values()
        for child in here._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return list({id(t): t for t in found if t is not None}.values())


def _serves(part: nn.Module, state: torch.dtype, products: torch.dtype, device: torch.device) -> bool:
    """Whether a part can plan without a copy: dtypes and device are right, and nothing acts as if it were in training."""
    tensors = [*part.parameters(), *part.buffers()]
    floating = {t.dtype for t in tensors if t.is_floating_point()}
    foreign = any(m.training for m in part.modules() if not type(m).__module__.startswith(_OURS))
    right = floating <= {state} and state == products and {t.device for t in tensors} <= {device}
    return right and not foreign and not any(t.is_inference() for t in tensors)


def _callable(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"Problem.{name} is a {type(value).__name__}; expected one of our models, a module or a function")
    return value
