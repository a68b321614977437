"""Sampling planners in native code: number by number what the eager reference draws, costs and plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.kernels import cpu
from sgp_fast.kernels.network import Layer, NetworkSpec
from sgp_fast.sampling import Sampler
from tests import cases
from tests.cases import NU, NX, relative
from tests.test_compiled import networks, with_dynamics, words

pytestmark = pytest.mark.skipif(cpu.why_unavailable() is not None, reason=str(cpu.why_unavailable()))
Status = sgp.Status
CLOSE = 1e-5
ULP = 2**-23


def mppi(T: int = 3, **options: Any) -> Sampler:
    return sgp.MPPI(T, **({"iterations": 2, "samples": 40, "temperature": 2.0, "spread": (0.3, 0.6)} | options))


def cem(T: int = 3, **options: Any) -> Sampler:
    return sgp.CEM(T, **({"iterations": 2, "samples": 40, "elites": 7, "momentum": 0.2, "spread": 0.4} | options))


def alike(problem: sgp.Problem, planner: Sampler, x0: Tensor, limit: float = CLOSE, **given: Any) -> sgp.Plan:
    """Whole plans: against float64 the native one loses at most `limit`, or four times what the reference loses.

    MPPI's weights are exponentials of costs over the temperature, so that they are off by as much as an ulp of the largest
    cost is over it; that much is granted, too. The native plan is returned.
    """
    ours, theirs = (sgp.solve(problem, planner, x0, backend=b, **given) for b in ("compiled", "eager"))
    exact = sgp.solve(problem, replace(planner, precision="float64"), x0, backend="eager", **given).tensors()
    assert ours.stats["backend"] == "compiled"
    if isinstance(planner, sgp.MPPI):
        limit = max(limit, ULP * float(exact["cost"].nan_to_num().abs().max()) / planner.temperature)
    for (name, got), want in zip(ours.tensors().items(), theirs.tensors().values(), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype, name
        assert torch.equal(got.isnan(), want.isnan()), name
        if got.is_floating_point():
            right = exact[name].nan_to_num()
            size = right.norm().clamp(min=1e-6)
            error, lost = (float((t.nan_to_num().double() - right).norm() / size) for t in (got, want))
            assert error < max(limit, 4 * lost), f"{name}: {error:.1e}, the reference lost {lost:.1e}"
        else:
            assert torch.equal(got, want), name
    return ours


@pytest.mark.parametrize("seed", [0, -1, 2**63 + 5])
def test_the_engine_draws_what_the_reference_draws(seed: int) -> None:
    """With one candidate, all of the weight is its own: the plan is the draw. Keys are the numbers of the problems."""
    still = with_dynamics(NetworkSpec(NX + NU, (Layer(NX),)), batch=5, horizon=37)
    planner = sgp.CEM(37, 1, 1, elites=1, spread=1.0)
    init = torch.zeros(5, 37, NU)
    ours, theirs = (
        sgp.solve(still.problem, planner, still.x0, goal=still.goal, init=init, seed=seed, backend=b).u
        for b in ("compiled", "eager")
    )
    assert theirs.std() > 0.8 and torch.allclose(ours, theirs, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("scored", ["no score", "score", "noise", "unconditioned"])
@pytest.mark.parametrize("terminal", ["none", "quadratic", "value"])
@pytest.mark.parametrize("cost", ["quadratic", "learned"])
def test_every_kind_of_problem(cost: str, terminal: str, scored: str) -> None:
    kinds = {"no score": None, "score": cases.score(), "noise": cases.score("noise"), "unconditioned": cases.score(levels=0)}
    case = cases.case("learned", cost, terminal, score_=kinds[scored], control_change=0.3, bounds=(-0.6, 0.5))
    beta = 0.0 if kinds[scored] is None else 30.0
    for planner in (mppi(cases.T, beta=beta), cem(cases.T, beta=beta), mppi(cases.T, perturbation_cost=False)):
        made = alike(case.problem, planner, case.x0, **case.given)
        assert bool((made.u >= -0.6).all() and (made.u <= 0.5).all())


@pytest.mark.parametrize("horizon", [1, 7])
@pytest.mark.parametrize("batch", [1, 63, 64])
def test_shapes_that_hurt(batch: int, horizon: int) -> None:
    """Blocks of rows hold candidates of several problems, each with bounds, goal and parameters of its own."""
    low, high = -torch.linspace(0.2, 0.9, batch * NU).view(batch, NU), torch.ones(NU)
    case = cases.case("learned", "five arguments", "three arguments", batch=batch, horizon=horizon, bounds=(low, high))
    made = alike(case.problem, mppi(horizon, samples=13), case.x0, **case.given)
    assert bool((made.u >= low[:, None]).all())
    learned = cases.case("learned", "learned", "value", score_=cases.score(), batch=batch, horizon=horizon)
    alike(learned.problem, cem(horizon, samples=70, beta=10.0), learned.x0, **learned.given)


@pytest.mark.parametrize("spec", list(networks()), ids=words)
def test_every_network(spec: NetworkSpec) -> None:
    case = with_dynamics(spec, 3)
    alike(case.problem, mppi(cases.T, iterations=1), case.x0, **case.given)


@pytest.mark.parametrize("params", ["tensor", "dictionary"])
@pytest.mark.parametrize(("cost", "terminal"), [("module", "three arguments"), ("two arguments", "one argument")])
def test_costs_of_ones_own_are_traced_for_their_values(cost: str, terminal: str, params: str) -> None:
    case = cases.case("learned", cost, terminal, params=params)
    made = alike(case.problem, cem(cases.T), case.x0, **case.given)
    assert "traced" in made.stats["cost"] and "traced" in made.stats["terminal"]


def through_numpy(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Any) -> Tensor:
    assert not torch.is_grad_enabled()
    return torch.from_numpy(np.square((x - goal).numpy())).sum(-1, keepdim=True) * (1 + t[..., None])


def test_a_cost_without_a_gradient_is_called_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it reads, in blocks of candidates that are those of no problem."""
    monkeypatch.setattr("sgp_fast.backends.native_sampling.BLOCK", 17)
    case = cases.case("learned", "quadratic", "quadratic", score_=cases.score())
    for terminal in (None, case.problem.terminal, lambda x, goal, params: torch.from_numpy((x - goal).numpy()).sum(-1)):
        problem = replace(case.problem, cost=through_numpy, terminal=terminal)
        made = alike(problem, mppi(cases.T, beta=5.0, temperature=20.0), case.x0, **case.given)
        assert "called in PyTorch" in made.stats["cost"]


def test_an_error_of_a_cost_reaches_the_caller_as_it_does_from_the_reference() -> None:
    def fails(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Any) -> Tensor:
        return (x - goal).square().sum(-1)

    def wide(x: Tensor, u: Tensor) -> Tensor:
        return x.square()

    case = cases.case("learned", "learned")
    absent, shape = "no goal or params was given", "expected one number a row"
    for cost, kind, told in ((fails, TypeError, absent), (wide, ValueError, shape)):
        for backend in ("compiled", "eager"):
            with pytest.raises(kind, match=told):
                sgp.solve(replace(case.problem, cost=cost), mppi(cases.T), case.x0, backend=backend)


@pytest.mark.parametrize("risk", [0.0, 0.7])
def test_ensembles(risk: float) -> None:
    case = cases.case("learned", "quadratic", "two arguments", bounds=(-0.5, 0.6), score_=cases.score())
    members = [
        sgp.Dynamics(cases.module(cases.FIELD["SGP dynamics"], seed), cases.normalizer(NX + NU, 1)) for seed in (30, 31, 32)
    ]
    problem = replace(case.problem, dynamics=sgp.Ensemble(*members), terminal=case.problem.terminal)
    alike(problem, mppi(cases.T, risk=risk, beta=3.0), case.x0, goal=case.goal, init=case.u)
    called = replace(problem, cost=through_numpy, terminal=None)
    alike(called, cem(cases.T, risk=risk), case.x0, goal=case.goal)


def test_bfloat16_products() -> None:
    case = cases.case("learned", "learned", "value", score_=cases.score(), batch=20)
    planner = mppi(cases.T, precision="bfloat16", temperature=20.0)
    made = alike(case.problem, planner, case.x0, 0.05, **case.given)
    exact = sgp.solve(case.problem, replace(planner, precision="float64"), case.x0, **case.given)
    assert made.stats["products"] == "bf16" and relative(made.x, exact.x) > 1e-5


@pytest.mark.parametrize("architecture", ["-march=x86-64-v3", "-march=x86-64"])
def test_other_instruction_sets(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("instruction sets of x86")
    engine = cpu.engine(architecture)
    monkeypatch.setattr(cpu, "load", lambda: engine)
    case = cases.case("learned", "learned", "value", score_=cases.score(), bounds=(-0.5, 0.6))
    alike(case.problem, mppi(cases.T, beta=3.0), case.x0, **case.given)


def test_a_problem_is_planned_as_if_alone_and_again_the_same() -> None:
    case = cases.case("learned", "learned", score_=cases.score(), batch=9, bounds=(-1.0, 1.0))
    planner = cem(cases.T, samples=65, beta=3.0)
    many = sgp.solve(case.problem, planner, case.x0, init=case.u, backend="compiled")
    again = sgp.solve(case.problem, planner, case.x0, init=case.u, backend="compiled")
    alone = sgp.solve(case.problem, planner, case.x0[:1], init=case.u[:1], backend="compiled")
    assert torch.equal(many.u, again.u) and relative(alone.u, many.u[:1]) < 1e-5


def test_candidates_and_problems_that_diverge_disturb_no_other() -> None:
    case = cases.case("learned", "quadratic", batch=3, bounds=(-0.5, 0.6))
    huge = case.x0.clone()
    huge[1] = 1e30  # its square is not finite in float32
    rough, calm = (sgp.solve(case.problem, cem(cases.T), x, goal=case.goal, backend="compiled") for x in (huge, case.x0))
    assert rough.status.tolist() == [Status.LIMIT, Status.DIVERGED, Status.LIMIT]
    assert torch.equal(rough.u[::2], calm.u[::2])


def test_time_ends_a_plan_between_iterations() -> None:
    case = cases.case("learned", "learned", bounds=(-1.0, 1.0))
    planner = cem(cases.T, iterations=60_000)
    made = sgp.solve(case.problem, planner, case.x0, backend="compiled", time_limit_s=0.2)
    assert made.stats["seconds"] < 3 and bool((made.iterations > 0).all() and (made.iterations < 60_000).all())
    none = sgp.solve(case.problem, planner, case.x0, init=case.u, backend="compiled", time_limit_s=1e-9)
    assert (none.iterations == 0).all() and relative(none.u, case.u.clamp(-1, 1)) < 1e-6


def test_a_changed_weight_and_a_changed_number_are_honoured() -> None:
    case, gain = cases.case("learned", "learned"), [1.0]
    problem = replace(case.problem, terminal=lambda x: gain[0] * x.square().sum(-1))
    before = alike(problem, mppi(cases.T), case.x0)
    with torch.no_grad():
        problem.dynamics.network.weights["layers.1.weight"].mul_(0.5)
    after = alike(problem, mppi(cases.T), case.x0)
    gain[0] = 3.0
    last = alike(problem, mppi(cases.T), case.x0)
    assert relative(after.x, before.x) > 1e-3 and relative(last.terms["terminal"], after.terms["terminal"]) > 0.1


def test_control_is_that_of_the_reference() -> None:
    case = cases.case("learned", "learned", batch=3, bounds=(-0.5, 0.6))
    mpcs = [sgp.MPC(case.problem, cem(cases.T), 3, backend=name, seed=4) for name in ("compiled", "eager")]
    for active in ([1, 1, 1], [0, 1, 1], [1, 0, 1]):
        got, expected = (mpc.act(case.x0, torch.tensor(active, dtype=torch.bool)) for mpc in mpcs)
        assert torch.allclose(got, expected, atol=1e-5)


def test_auto_takes_native_code_and_says_what_it_does_not_cover() -> None:
    case = cases.case("learned", "learned")
    plan = sgp.solve(case.problem, mppi(cases.T), case.x0)
    assert plan.stats["backend"] == "compiled" and plan.stats["reason"] == "native code covers this problem"
    asked = {
        "float64": (case, {"precision": "float64"}),
        "AutogradDynamics": (cases.case("module", "learned"), {}),
        "pre-norm blocks": (cases.case("scaled blocks", "learned"), {}),
    }
    for told, (case, options) in asked.items():
        planner = mppi(cases.T, **options)
        made = sgp.solve(case.problem, planner, case.x0)
        assert made.stats["backend"] == "eager" and told in made.stats["reason"]
        with pytest.raises(ValueError, match=rf"backend 'compiled' cannot plan this: .*{told}.*; use backend='eager'"):
            sgp.solve(case.problem, planner, case.x0, backend="compiled")


def test_without_a_compiler_auto_plans_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    made = sgp.solve(cases.case("learned", "learned").problem, mppi(cases.T), torch.ones(1, NX))
    assert made.stats["backend"] == "eager" and "no C++ compiler was found" in made.stats["reason"]
