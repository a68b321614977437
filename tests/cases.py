"""Random problems of every kind, and what they are held against: the same mathematics once more, through autograd.

`network` writes a network's formula out with elementary operations; `Kind` pairs a part of a problem with its plain
function; `gradient` differentiates the total cost of a rollout by autograd, which is what a planner's adjoint must give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import sgp_fast as sgp
from sgp_fast.backends.job import Iteration
from sgp_fast.kernels.network import Activation, Block, Layer, NetworkSpec, TimeEmbedding, mlp, qsm_actor, srpo_behavior

F64 = torch.float64
NX, NU, T, B = 3, 2, 5, 4


@dataclass(frozen=True)
class Backend:
    """A backend under test, and how far from float64 autograd it may be."""

    name: str
    float64: float  # relative error of what it computes in float64
    float32: float  # error in float32, as a multiple of the one that autograd makes in float32
    bfloat16: float  # relative error of gradients with products in bfloat16


BACKENDS = [Backend("eager", float64=1e-10, float32=2.0, bfloat16=0.05)]
every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


# Networks: the table of the field, any other, and their formula.

FIELD: dict[str, NetworkSpec] = {
    "SGP dynamics": mlp(NX + NU, NX, width=17, norm=True),
    "SGP cost": mlp(NX + NU, 1, width=17, norm=True),
    "SGP score": mlp(NX + NU, NX + NU, width=17, norm=True, levels=4),
    "SGP score, unconditioned": mlp(NX + NU, NX + NU, width=17),
    "SRPO behaviour": srpo_behavior(NX + NU, NU, width=9),
    "SRPO policy": mlp(NX, NU, width=16, hidden_layers=2, activation="relu", head="tanh"),
    "SRPO critic": mlp(NX + NU, 1, width=16, hidden_layers=3, activation="relu"),
    "QSM actor": qsm_actor(NX + NU, NU, width=11),
    "QSM critic": mlp(NX + NU, 1, width=16, hidden_layers=2, activation="relu"),
    "model-based RL, SiLU": mlp(NX + NU, NX, width=20, activation="silu"),
    "model-based RL, ReLU": mlp(NX + NU, NX, width=25, hidden_layers=2, activation="relu"),
    "LayerNorm and Mish": NetworkSpec(NX + NU, (Layer(12, "mish", norm=True), Layer(12, "mish", norm=True), Layer(NX))),
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "relu": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "elu": lambda h: torch.where(h > 0, h, torch.exp(h.clamp(max=0)) - 1),
    "silu": lambda h: h / (1 + torch.exp(-h)),
    "gelu": lambda h: h * (1 + torch.erf(h / math.sqrt(2))) / 2,
    "mish": lambda h: h * torch.tanh(torch.log1p(torch.exp(h))),
    "tanh": lambda h: 2 / (1 + torch.exp(-2 * h)) - 1,
}


@st.composite
def specs(draw: st.DrawFn) -> NetworkSpec:
    """Any network: activations, norms, residuals, blocks, conditioning by table, given vectors or time; odd widths.

    Norms are over five numbers at least: over one or two the exact gradient all but vanishes and only rounding is left.
    """
    activations: st.SearchStrategy[Activation] = st.sampled_from(get_args(Activation))
    widths = st.sampled_from((1, 2, 5, 7, 16, 23))
    inputs, conditioned = draw(widths), draw(widths)
    source = draw(st.sampled_from(("none", "table", "vector", "time")))
    time = None
    if source == "time":
        order = draw(st.sampled_from(("sin_cos", "cos_sin")))
        time = TimeEmbedding(draw(widths), draw(widths), draw(widths), draw(activations), draw(st.booleans()), order)
    layers: list[Layer | Block] = []
    width = inputs + (time.width if time else 0)
    for _ in range(draw(st.integers(1, 4))):
        if width >= 5 and draw(st.booleans()) and draw(st.booleans()):
            layers.append(Block(draw(widths), draw(activations), draw(activations)))
            continue
        condition = draw(st.sampled_from(("none", "multiply", "add"))) if source in ("table", "vector") else "none"
        new = conditioned if condition != "none" else draw(st.sampled_from((width, draw(widths))))
        residual = new == width and (bool(layers) or time is None) and draw(st.booleans())
        layers.append(Layer(new, draw(activations), new >= 5 and draw(st.booleans()), condition, residual))
        width = new
    has_condition = any(isinstance(layer, Layer) and layer.condition != "none" for layer in layers)
    return NetworkSpec(inputs, tuple(layers), draw(st.integers(1, 5)) if source == "table" and has_condition else 0, time)


def random_weights(spec: NetworkSpec, seed: int = 0) -> dict[str, Tensor]:
    """Weights in float64 that leave nothing at its neutral value: norms scale and shift, biases are not zero."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in spec.weight_shapes().items():
        scale = shape[-1] ** -0.5 if len(shape) == 2 and name != "embedding" else 0.5
        shift = 1.0 if name.endswith("norm.weight") or name == "embedding" else 0.0
        out[name] = shift + scale * torch.randn(shape, generator=generator, dtype=F64)
    return out


def module(spec: NetworkSpec, seed: int = 0) -> sgp.Network:
    """Our network with `random_weights`."""
    made = sgp.Network(spec).double()
    made.load_state_dict(random_weights(spec, seed))
    return made.requires_grad_(False)


def network(spec: NetworkSpec, w: Mapping[str, Tensor], z: Tensor, condition: Tensor | None = None) -> Tensor:
    """The network's formula, one elementary operation after the other; autograd differentiates it."""

    def product(name: str, h: Tensor) -> Tensor:
        return torch.einsum("oi,...i->...o", w[f"{name}.weight"], h) + w[f"{name}.bias"]

    def norm(name: str, h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]

    h = z
    if spec.time is not None and condition is not None:
        h = torch.cat((z, condition.expand(*z.shape[:-1], spec.time.width)), -1)
    for i, layer in enumerate(spec.layers):
        name = f"layers.{i}"
        if isinstance(layer, Block):
            inner = ACTIVATIONS[layer.activation](product(f"{name}.up", norm(name, h)))
            h = ACTIVATIONS[layer.out](h + product(f"{name}.down", inner))
            continue
        y = product(name, h)
        if layer.condition != "none" and condition is not None:
            y = y * condition if layer.condition == "multiply" else y + condition
        y = ACTIVATIONS[layer.activation](norm(name, y) if layer.norm else y)
        h = h + y if layer.residual else y
    return h


def embedding(spec: NetworkSpec, w: Mapping[str, Tensor], at: Tensor) -> Tensor | None:
    """The conditioning of rows at levels or times `at`, by its formula."""
    if spec.levels:
        return torch.nn.functional.one_hot(at.long(), spec.levels).to(F64) @ w["embedding"]
    if spec.time is None:
        return None
    phase = 2 * math.pi * at.to(F64)[..., None] * w["time.frequencies"]
    first, second = (torch.sin, torch.cos) if spec.time.order == "sin_cos" else (torch.cos, torch.sin)
    h = torch.cat((first(phase), second(phase)), -1) @ w["time.hidden.weight"].T + w["time.hidden.bias"]
    return ACTIVATIONS[spec.time.activation](h) @ w["time.out.weight"].T + w["time.out.bias"]


def relative(got: Tensor, want: Tensor) -> float:
    """‖got − want‖/‖want‖, or the plain norm where nothing is wanted; shapes must agree."""
    assert got.shape == want.shape, f"{tuple(got.shape)} for {tuple(want.shape)}"
    scale = want.double().norm().item()
    return (got.double() - want.double()).norm().item() / (scale or 1.0)


# Problems: each part as the planner takes it, and as a plain function of the same numbers.


@dataclass(frozen=True)
class Kind:
    """A part of a problem, and the function that it stands for."""

    part: Any
    plain: Callable[..., Tensor]


def normalizer(features: int, seed: int = 0) -> sgp.Normalizer:
    generator = torch.Generator().manual_seed(100 + seed)
    b = 0.3 * torch.randn(features, generator=generator, dtype=F64)
    return sgp.Normalizer(b, 0.5 + torch.rand(features, generator=generator, dtype=F64))


class Pendulum(nn.Module):
    """A user's own dynamics: three states, two controls, weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pull = nn.Linear(NX + NU, NX, dtype=F64)
        nn.init.normal_(self.pull.weight, std=0.4, generator=torch.Generator().manual_seed(3))
        nn.init.normal_(self.pull.bias, std=0.4, generator=torch.Generator().manual_seed(4))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x + 0.2 * torch.sin(self.pull(torch.cat((x, u), -1)))


class Spring:
    """A user's own dynamics with their own adjoint, and no module."""

    def plain(self, x: Tensor, u: Tensor) -> Tensor:
        return 0.9 * x - 0.1 * x**3 + 0.5 * u.sum(-1, keepdim=True)

    def vjp(self, x: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        def pullback(costate: Tensor) -> tuple[Tensor, Tensor]:
            return costate * (0.9 - 0.3 * x**2), 0.5 * costate.sum(-1, keepdim=True).expand_as(u)

        return self.plain(x, u), pullback


class Tracking(nn.Module):
    """A user's own cost as a module with five arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.5, 2.0], dtype=F64))

    def forward(self, x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Any) -> Tensor:
        return five_arguments(x * self.weight, u, goal, t, params)


def two_arguments(x: Tensor, u: Tensor) -> Tensor:
    return (1 + (x * x).sum(-1)).sqrt() + 0.1 * (u * u).sum(-1) + x[..., 0] * u[..., 1]


def five_arguments(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Any) -> Tensor:
    weight, gain = (params["weight"], params["gain"]) if isinstance(params, dict) else (params, 1.0)
    return ((x - goal).tanh().square() * weight).sum(-1) * 0.9**t * gain + 0.1 * (u**4).sum(-1)


def one_argument(x: Tensor) -> Tensor:
    return x.cosh().sum(-1)


def three_arguments(x: Tensor, goal: Tensor, params: Any) -> Tensor:
    weight = params["weight"] if isinstance(params, dict) else params
    return ((x - goal) ** 2 * weight).sum(-1)


def matrix(n: int, seed: int) -> Tensor:
    """A random matrix, unsymmetric, whose symmetric part is positive."""
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return a @ a.T / n + 0.3 * (a - a.T) + 0.1 * torch.eye(n, dtype=F64)


def form(m: Tensor, d: Tensor) -> Tensor:
    return torch.einsum("...i,ij,...j->...", d, m, d)


def learned_dynamics(spec: NetworkSpec, scale: Tensor | None = None) -> Kind:
    net, norm = module(spec, 1), normalizer(NX + NU, 1)

    def plain(x: Tensor, u: Tensor) -> Tensor:
        spread = norm.k[:NX] if scale is None else scale.to(x)
        return x + spread * network(spec, net.weights, (torch.cat((x, u), -1) - norm.b) / norm.k)

    return Kind(sgp.Dynamics(net, norm, scale), plain)


def dynamics(name: str) -> Kind:
    if name == "learned":
        return learned_dynamics(FIELD["SGP dynamics"])
    if name == "scaled blocks":
        spec = NetworkSpec(NX + NU, (Layer(7, "silu"), Block(9, "gelu", "tanh"), Layer(7, "mish", residual=True), Layer(3)))
        return learned_dynamics(spec, torch.tensor([0.2, 0.7, 0.4], dtype=F64))
    if name == "module":
        made = Pendulum()
        return Kind(made, made)
    if name == "own adjoint":
        return Kind(Spring(), Spring().plain)
    return Kind(lambda x, u: torch.cat((x[..., 1:], x[..., :1] * u[..., :1] + u[..., 1:]), -1),
                lambda x, u: torch.cat((x[..., 1:], x[..., :1] * u[..., :1] + u[..., 1:]), -1))  # fmt: skip


def cost(name: str) -> Kind:
    """A running cost; its plain function takes (x, u, goal, t, params)."""
    if name == "quadratic":
        Q, R, own = matrix(NX, 5), matrix(NU, 6), torch.tensor([0.3, -0.2, 0.5], dtype=F64)
        part = sgp.QuadraticCost(Q, R, own)
        return Kind(part, lambda x, u, goal, t, params: form(Q, x - (own if goal is None else goal)) + form(R, u))
    if name == "learned":
        spec = FIELD["SGP cost"]
        net, norm = module(spec, 2), normalizer(NX + NU, 2)

        def plain(x: Tensor, u: Tensor, *_: Any) -> Tensor:
            return network(spec, net.weights, (torch.cat((x, u), -1) - norm.b) / norm.k)[..., 0]

        return Kind(sgp.LearnedCost(net, norm), plain)
    if name == "module":
        made = Tracking()
        return Kind(made, made)
    if name == "five arguments":
        return Kind(five_arguments, five_arguments)
    return Kind(two_arguments, lambda x, u, *_: two_arguments(x, u))


def terminal(name: str) -> Kind:
    """A terminal cost; its plain function takes (x, goal, params)."""
    if name == "quadratic":
        Q = matrix(NX, 7)
        return Kind(sgp.QuadraticTerminal(Q), lambda x, goal, params: form(Q, x if goal is None else x - goal))
    if name == "value":
        spec = mlp(NX, 1, width=9, hidden_layers=2, activation="mish")
        net, norm = module(spec, 4), normalizer(NX, 4)
        return Kind(
            sgp.TerminalValue(net, norm), lambda x, *_: -network(spec, net.weights, (x - norm.b) / norm.k)[..., 0]
        )
    if name == "three arguments":
        return Kind(three_arguments, three_arguments)
    if name == "one argument":
        return Kind(one_argument, lambda x, *_: one_argument(x))
    return Kind(None, lambda x, *_: torch.zeros_like(x[..., 0]))


DYNAMICS = ("learned", "scaled blocks", "module", "own adjoint", "function")
COSTS = ("quadratic", "learned", "module", "five arguments", "two arguments")
TERMINALS = ("none", "quadratic", "value", "three arguments", "one argument")
SIGMAS = torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=F64)


def score(output: str = "score", levels: int = len(SIGMAS)) -> Kind:
    """A score; its plain function takes (z, level)."""
    spec = FIELD["SGP score"] if levels else FIELD["SGP score, unconditioned"]
    net, norm = module(spec, 8), normalizer(NX + NU, 8)

    def plain(z: Tensor, level: int) -> Tensor:
        row = net.weights["embedding"][level] if levels else None
        raw = network(spec, net.weights, (z - norm.b) / norm.k, row)
        return raw / norm.k / (SIGMAS[level] if output == "noise" else 1.0)

    return Kind(sgp.Score(net, norm, SIGMAS, output=output), plain)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Case:
    """A problem with its inputs, and its parts as plain functions."""

    problem: sgp.Problem
    dynamics: Kind
    cost: Kind
    terminal: Kind
    score: Kind | None
    x0: Tensor
    u: Tensor
    goal: Tensor | None
    params: Any

    @property
    def given(self) -> dict[str, Any]:
        """The keyword arguments of `solve` that belong to the problem."""
        return {"goal": self.goal, "params": self.params, "init": self.u}


def case(
    dynamics_: str = "learned", cost_: str = "quadratic", terminal_: str = "none", *, score_: Kind | None = None,
    batch: int = B, horizon: int = T, params: str = "tensor", **options: Any,
) -> Case:  # fmt: skip
    """A problem of the kinds named, with random inputs; a row's inputs do not depend on the size of the batch."""
    d, c, e = dynamics(dynamics_), cost(cost_), terminal(terminal_)

    def draw(i: int, *shape: int) -> Tensor:
        rows = (torch.Generator().manual_seed(1000 * i + j) for j in range(batch))
        return torch.stack([torch.randn(shape, generator=row, dtype=F64) for row in rows])

    x0, u, goal, weight, gain = draw(0, NX), draw(1, horizon, NU), draw(2, NX), draw(3, NX), draw(4)
    given: Any = weight.exp() if params == "tensor" else {"weight": weight.exp(), "gain": gain.exp()}
    needs = cost_ in ("module", "five arguments") or terminal_ == "three arguments"
    problem = sgp.Problem(
        dynamics=d.part, cost=c.part, terminal=e.part, score=None if score_ is None else score_.part, nu=NU, **options
    )
    wants_goal = needs or cost_ == "quadratic"
    return Case(problem, d, c, e, score_, x0, 0.5 * u, goal if wants_goal else None, given if needs else None)


def planner(**options: Any) -> sgp.SGP:
    """A planner in float64 that never stops early, unless told otherwise."""
    settings: dict[str, Any] = {"horizon": T, "iterations": 1, "precision": "float64", "tolerance": 0.0}
    return sgp.SGP(**(settings | options))


def states(case: Case, x0: Tensor, u: Tensor) -> Tensor:
    """The rollout, `[B, T+1, nx]`."""
    x = [x0]
    for t in range(u.shape[1]):
        x.append(case.dynamics.plain(x[-1], u[:, t]))
    return torch.stack(x, 1)


def task_cost(case: Case, x: Tensor, u: Tensor) -> Tensor:
    """The task cost of each problem, one step of the horizon at a time."""
    total = case.terminal.plain(x[:, -1], case.goal, case.params)
    for t in range(u.shape[1]):
        total = total + case.cost.plain(x[:, t], u[:, t], case.goal, torch.tensor(t), case.params)
        if t:
            total = total + case.problem.control_change * ((u[:, t] - u[:, t - 1]) ** 2).sum(-1)
    return total


def gradient(case: Case, x0: Tensor, u: Tensor, beta: float = 0.0, level: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Task cost `[B]`, and the gradients in u and x0 of `task cost − β Σ z·s` with the score s held constant."""
    x0, u = x0.detach().clone().requires_grad_(), u.detach().clone().requires_grad_()
    x = states(case, x0, u)
    value = task_cost(case, x, u)
    total = value.sum()
    if case.score is not None:
        z = torch.cat((x[:, :-1], u), -1)
        total = total - beta * (z * case.score.plain(z, level).detach()).sum()
    g_u, g_x = torch.autograd.grad(total, (u, x0), allow_unused=True)
    return value.detach(), g_u, torch.zeros_like(x0) if g_x is None else g_x


@dataclass
class Recorder:
    """A callback that keeps copies of what it is shown."""

    seen: list[Iteration]

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, at: Iteration) -> None:
        copies: dict[str, Any] = {name: t.clone() for name, t in vars(at).items() if isinstance(t, Tensor)}
        self.seen.append(replace(at, **copies))
