"""What a problem takes, what it makes of it, and how it learns that the weights of its models have changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sgp_fast as sgp
from sgp_fast.costs import CustomCost, CustomTerminal
from sgp_fast.problem import AutogradDynamics
from sgp_fast.sampling import Planner
from tests import cases
from tests.cases import F64, NU, NX, Backend, T, every_backend, module, normalizer, planner, relative
from tests.cases import mlp as mlp_


def step(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return x


def test_modules_and_functions_are_taken_as_they_are() -> None:
    pendulum = cases.Pendulum()
    problem = sgp.Problem(dynamics=pendulum, cost=cases.Tracking(), terminal=cases.one_argument, nu=NU)
    assert isinstance(problem.dynamics, AutogradDynamics) and problem.dynamics.module is pendulum
    assert isinstance(problem.cost, CustomCost) and isinstance(problem.terminal, CustomTerminal)
    own = cases.Spring()
    assert sgp.Problem(dynamics=own, cost=cases.two_arguments, nu=NU).dynamics is own


@pytest.mark.parametrize("kind", ["module", "function"])
def test_autograd_dynamics(kind: str) -> None:
    made = cases.dynamics(kind)
    generator = torch.Generator().manual_seed(0)
    x, u, costate = (torch.randn(4, n, generator=generator, dtype=F64) for n in (NX, NU, NX))
    with torch.no_grad():
        out, pull = AutogradDynamics(made.part).vjp(x, u)
        got = pull(costate)
    leaves = x.requires_grad_(), u.requires_grad_()
    want = made.plain(*leaves)
    assert torch.equal(out, want.detach()) and not out.requires_grad
    for ours, theirs in zip(got, torch.autograd.grad(want, leaves, costate), strict=True):
        assert relative(ours, theirs) < 1e-10


def test_autograd_dynamics_that_use_no_input() -> None:
    x, u = torch.ones(2, NX), torch.ones(2, NU)
    grads = AutogradDynamics(lambda x, u: 2 * x).vjp(x, u)[1](torch.ones(2, NX))
    assert grads[0].any() and not grads[1].any()


def test_dynamics_cut_off_from_autograd_are_refused() -> None:
    """Their gradient would be zero, and every start a converged plan."""
    with pytest.raises(ValueError, match="dynamics.*cut off from autograd"):
        AutogradDynamics(torch.no_grad()(lambda x, u: 2 * x)).vjp(torch.ones(2, NX), torch.ones(2, NU))


def angles(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Of two states and one control."""
    angle, speed = x.unbind(-1)
    return torch.stack((angle + 0.1 * speed, speed + 0.1 * u.squeeze(-1)), -1)


@pytest.mark.parametrize("settings", [planner(), sgp.MPPI(T, 1, 8, spread=0.1)], ids=["SGP", "MPPI"])
@pytest.mark.parametrize(
    ("dynamics", "nx", "nu", "words"),
    [
        (angles, 3, 1, r"dynamics failed on x .*too many values to unpack.*; x0 has nx=3 features and the problem nu=1 con"),
        (lambda x, u: x @ torch.eye(2).to(x) + u, 4, 2, "cannot be multiplied.*; x0 has nx=4 features and .* nu=2 controls"),
        (lambda x, u: x @ torch.eye(2).to(x) + u, 2, 3, "must match the size.*; x0 has nx=2 features and .* nu=3 controls"),
        (lambda x, u: x[..., :2] + u, 3, 2, r"dynamics gave shape .* expected the same, since x0 has nx=3 features"),
    ],
)
def test_dynamics_that_are_of_other_sizes_name_x0(dynamics: Any, nx: int, nu: int, words: str, settings: Planner) -> None:
    problem = sgp.Problem(dynamics=dynamics, cost=cases.two_arguments, nu=nu)
    with pytest.raises(ValueError, match=words):
        sgp.solve(problem, settings, torch.zeros(2, nx))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, NotImplementedError, KeyError])
def test_what_is_no_fault_of_the_sizes_is_not_called_one(error: type[Exception]) -> None:
    def fails(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        raise error("another reason")

    with pytest.raises(error, match="^'?another reason'?$"):
        sgp.solve(sgp.Problem(dynamics=fails, cost=cases.two_arguments, nu=1), planner(), torch.zeros(2, NX))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dynamics": None}, ValueError, "Problem.dynamics is None; give a model, a module or a function"),
        ({"cost": None}, ValueError, "Problem.cost is None; give"),
        ({"dynamics": 3}, TypeError, "Problem.dynamics is a int; expected"),
        ({"cost": "quadratic"}, TypeError, "Problem.cost is a str; expected"),
        ({"terminal": 1.0}, TypeError, "Problem.terminal is a float; expected"),
        ({"score": step}, TypeError, "Problem.score is a function; expected a Score, or None"),
        ({"control_change": -1.0}, ValueError, "control_change is -1.0; expected a weight of at least 0"),
        ({"control_change": float("nan")}, ValueError, "control_change is nan"),
        ({"bounds": (1.0,)}, ValueError, r"bounds has 1 entries; expected \(low, high\)"),
        ({"bounds": 1.0}, (TypeError, ValueError), r"Problem.bounds .*expected \(low, high\)"),
        ({"bounds": (1.0, -1.0)}, ValueError, "Problem.bounds: some low is not below its high; give low < high"),
        ({"bounds": (torch.tensor([-1.0, 1.0], dtype=torch.bfloat16), 1.0)}, ValueError, "some low is not below its high"),
        ({"bounds": ([-1.0, np.nan], 1.0)}, ValueError, "some low is not below its high"),
        ({"bounds": (-1.0, [1.0, 1.0, 1.0])}, ValueError, r"disagree on the number of controls \(nu: 2, bounds: 3\); give"),
        ({"bounds": (-1.0, torch.ones(3, 1, NU))}, ValueError, r"bounds \(high\) has shape \[3, 1, 2\]; expected"),
        ({"bounds": (-torch.ones(3, NU), torch.ones(4, NU))}, ValueError, r"have shapes \[3, 2\] and \[4, 2\]; expect"),
        ({"bounds": ("low", 1.0)}, TypeError, r"Problem.bounds \(low\) is 'low'; expected real numbers"),
        ({"nu": 3, "dynamics": cases.dynamics("learned").part}, ValueError, r"disagree .*\(dynamics: 2, nu: 3\)"),
        ({"terminal": sgp.QuadraticCost(torch.eye(2), torch.eye(2))}, TypeError, "Problem.terminal"),
        ({"cost": sgp.QuadraticTerminal(torch.eye(2))}, TypeError, "Problem.cost"),
        ({"cost": lambda x, u, goal: x.sum(-1)}, (TypeError, ValueError), "cost.*3"),
        ({"cost": lambda x, goal: (x - goal).sum(-1)}, TypeError, r"takes \(x, goal\).*second is u; expected \(x, u, goal"),
    ],
)
def test_what_cannot_be_a_problem(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        sgp.Problem(**({"dynamics": step, "cost": cases.two_arguments, "nu": NU} | options))


def test_a_score_of_three_variables_is_not_for_shooting() -> None:
    features = 2 * NX + NU
    score = sgp.Score(module(mlp_(features, features, width=4)), normalizer(features), cases.SIGMAS, variables="xux")
    with pytest.raises(ValueError, match=r"score of \(x, u, x'\); shooting needs one of \(x, u\)"):
        sgp.Problem(dynamics=step, cost=cases.two_arguments, score=score)


def test_the_number_of_controls_is_learned_from_whoever_knows_it() -> None:
    def count(**options: Any) -> int:
        given: dict[str, Any] = {"dynamics": step, "cost": cases.two_arguments}
        return sgp.Problem(**(given | options)).controls(NX)

    assert count(dynamics=cases.dynamics("learned").part) == count(score=cases.score().part) == NU
    assert count(nu=7) == 7 and count(bounds=(0.0, [1.0, 2.0, 3.0])) == 3 and count(bounds=(torch.zeros(5, 4), 1.0)) == 4
    with pytest.raises(ValueError, match="number of controls is not known.*give Problem.nu"):
        count(bounds=(-1.0, 1.0))
    with pytest.raises(ValueError, match="disagree on the number of controls .*score: 2.*nu: 3"):
        count(score=cases.score().part, nu=3)


class Drift(nn.Module):
    """Dynamics of every kind of state: a weight, a buffer, a tensor and a number of its own."""

    offset: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((NX,), 0.1, dtype=F64))
        self.register_buffer("offset", torch.full((NX,), 0.1, dtype=F64))
        self.plain = torch.full((NX,), 0.1, dtype=F64)
        self.rate = 0.1

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return x + (self.weight + self.offset + self.plain + self.rate) * (1 + u.sum(-1, keepdim=True))


def write(drift: Drift) -> None:
    with torch.no_grad():
        drift.weight.add_(1)


def replace(drift: Drift) -> None:
    drift.weight = nn.Parameter(drift.weight.detach() + 1)


CHANGES = {
    "written in place": write,
    "written through .data": lambda d: d.weight.data.add_(1),
    "given new .data": lambda d: setattr(d.weight, "data", d.weight.data + 1),
    "replaced": replace,
    "written through NumPy": lambda d: d.weight.detach().numpy().__iadd__(1),
    "a buffer": lambda d: d.offset.add_(1),
    "a tensor that is no buffer": lambda d: d.plain.add_(1),
    "a number": lambda d: setattr(d, "rate", 1.1),
}


@every_backend
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_changed_weight_is_honoured_by_the_next_solve(backend: Backend, change: str, precision: str) -> None:
    """However it was changed, and whether or not the planner works in its dtype: the old model would be a wrong plan."""
    drift = Drift()
    problem = sgp.Problem(dynamics=drift, cost=cases.two_arguments, nu=NU)
    x0, init = torch.zeros(2, NX), torch.zeros(2, T, NU)
    settings = planner(precision=precision, step_size=0.0)
    plans = []
    for act in (None, CHANGES[change]):
        if act is not None:
            act(drift)
        plans.append(sgp.solve(problem, settings, x0, init=init, backend=backend.name).x[:, 1])
    assert torch.allclose(plans[0], torch.tensor(0.4, dtype=plans[0].dtype))
    assert torch.allclose(plans[1], torch.tensor(1.4, dtype=plans[0].dtype))


@every_backend
@pytest.mark.parametrize("how", ["in place", "assigned", "replaced often"])
def test_changed_weights_of_our_own_networks_are_honoured(backend: Backend, how: str) -> None:
    case = cases.case("learned", "learned", score_=cases.score())
    settings = planner(iterations=2)
    solve = lambda: sgp.solve(case.problem, settings, case.x0, init=case.u, backend=backend.name)  # noqa: E731
    before = solve()
    net = case.problem.dynamics.network
    for _ in range(50 if how == "replaced often" else 1):  # freed tensors give their addresses to later ones
        zeros = {name: torch.zeros_like(w) for name, w in net.state_dict().items()}
        net.load_state_dict(zeros, assign=how != "in place")
    after = solve()
    assert relative(before.x[:, 1], case.x0) > 0.01
    assert torch.equal(after.x, case.x0[:, None].expand_as(after.x)), "dynamics with no weight stand still"


def test_planning_neither_moves_nor_freezes_the_callers_modules() -> None:
    case = cases.case("module", "module")
    drift = case.problem.dynamics.module.train()
    sgp.solve(case.problem, planner(precision="float32"), case.x0, **case.given)
    assert drift.training and all(p.requires_grad and p.dtype == F64 and p.grad is None for p in drift.parameters())
