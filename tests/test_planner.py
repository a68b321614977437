"""What a plan must be: the right gradient, Adam's steps, the optimum where it is known, each problem as if alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgp_fast as sgp
from tests import cases
from tests.cases import F64, NU, NX, SIGMAS, B, Backend, Case, Recorder, T, every_backend, gradient, planner, relative

Status = sgp.Status


def first_step(case: Case, backend: Backend, **options: Any) -> tuple[Recorder, sgp.Plan]:
    shown = Recorder()
    plan = sgp.solve(case.problem, planner(**options), case.x0, **case.given, backend=backend.name, callback=shown)
    return shown, plan


def check_gradient(case: Case, backend: Backend, beta: float = 0.7, level: int = 2) -> None:
    shown, plan = first_step(case, backend, beta=beta, levels=level)
    value, grad, _ = gradient(case, case.x0, case.u, beta, level)
    at = shown.seen[0]
    assert torch.equal(at.u, case.u)
    assert relative(at.cost, value) < backend.float64 and relative(at.grad_u, grad) < backend.float64
    value, grad, grad_x0 = gradient(case, case.x0, plan.u, beta, level)  # and of the plan that is returned
    assert relative(plan.cost, value) < backend.float64 and relative(plan.costate[:, 0], grad_x0) < backend.float64
    assert relative(plan.grad_norm, grad.square().sum((1, 2)).sqrt()) < backend.float64


@every_backend
@pytest.mark.parametrize("scored", [False, True], ids=["no score", "score"])
@pytest.mark.parametrize("cost", cases.COSTS)
@pytest.mark.parametrize("dynamics", cases.DYNAMICS)
def test_gradient_against_autograd(backend: Backend, dynamics: str, cost: str, scored: bool) -> None:
    """Of rollout, costs, terminal cost, change of control and the score held constant, in float64."""
    terminal = cases.TERMINALS[(cases.DYNAMICS.index(dynamics) + cases.COSTS.index(cost)) % len(cases.TERMINALS)]
    score = cases.score() if scored else None
    check_gradient(cases.case(dynamics, cost, terminal, score_=score, control_change=0.3), backend)


@every_backend
@pytest.mark.parametrize("terminal", cases.TERMINALS)
@pytest.mark.parametrize("params", ["tensor", "dict"])
def test_gradient_with_every_terminal_cost_and_kind_of_params(backend: Backend, terminal: str, params: str) -> None:
    check_gradient(cases.case("module", "five arguments", terminal, params=params), backend)


@every_backend
@pytest.mark.parametrize("name", [n for n, s in cases.FIELD.items() if s.inputs == NX + NU and not s.time and not s.levels])
def test_gradient_with_every_network_of_the_field_as_dynamics(backend: Backend, name: str) -> None:
    spec = cases.FIELD[name]
    spec = dataclasses.replace(spec, layers=(*spec.layers[:-1], dataclasses.replace(spec.layers[-1], width=NX)))
    made = cases.learned_dynamics(spec)
    case = cases.case("learned", "learned")
    check_gradient(
        dataclasses.replace(case, problem=dataclasses.replace(case.problem, dynamics=made.part), dynamics=made), backend
    )


@every_backend
@pytest.mark.parametrize("output", ["score", "noise"])
@pytest.mark.parametrize("levels", [0, len(SIGMAS)], ids=["unconditioned", "table"])
def test_gradient_with_every_kind_of_score(backend: Backend, output: str, levels: int) -> None:
    for level in (0, 3):
        check_gradient(cases.case("learned", "learned", score_=cases.score(output, levels)), backend, level=level)


@every_backend
@pytest.mark.parametrize(("batch", "horizon"), [(1, 1), (1, 7), (3, 1), (63, 2), (13, 5)])
def test_gradient_at_shapes_that_hurt(backend: Backend, batch: int, horizon: int) -> None:
    case = cases.case("learned", "quadratic", score_=cases.score(), batch=batch, horizon=horizon, control_change=0.3)
    shown = Recorder()
    settings = planner(horizon=horizon, levels=1, beta=0.5)
    plan = sgp.solve(case.problem, settings, case.x0, **case.given, backend=backend.name, callback=shown)
    _, grad, _ = gradient(case, case.x0, case.u, 0.5, 1)
    assert relative(shown.seen[0].grad_u, grad) < backend.float64 and plan.x.shape == (batch, horizon + 1, NX)


@every_backend
@pytest.mark.parametrize("dynamics", ["learned", "scaled blocks"])
def test_precision_is_that_of_float32_and_bfloat16(backend: Backend, dynamics: str) -> None:
    case = cases.case(dynamics, "learned", "value", score_=cases.score(), batch=32)
    _, exact, _ = gradient(case, case.x0, case.u, 0.7, 2)
    in_single = dataclasses.replace(case, x0=case.x0.float(), u=case.u.float())
    for part in case.problem.modules.values():  # the plain functions read the same weights
        part.float()
    _, theirs, _ = gradient(in_single, in_single.x0, in_single.u, 0.7, 2)
    assert theirs.dtype == torch.float32
    case = cases.case(dynamics, "learned", "value", score_=cases.score(), batch=32)  # weights that were not rounded
    found = {}
    for precision in ("float32", "bfloat16"):
        shown, plan = first_step(case, backend, beta=0.7, levels=2, precision=precision)
        assert shown.seen[0].grad_u.dtype == plan.u.dtype == plan.x.dtype == plan.cost.dtype == torch.float32
        found[precision] = relative(shown.seen[0].grad_u, exact)
    # Three roundings of 2⁻²⁴ each are granted where autograd's own error happens to cancel.
    assert found["float32"] < backend.float32 * relative(theirs, exact) + 3 * 2**-24
    assert 1e-5 < found["bfloat16"] < backend.bfloat16


# What the iteration does with the gradient.


@every_backend
@pytest.mark.parametrize("how", ["no score", "beta is zero"])
def test_without_the_score_it_is_plain_trajectory_optimisation(backend: Backend, how: str) -> None:
    """The same iterates as torch.optim.Adam on the total cost of the rollout."""
    case = cases.case("learned", "learned", "value", score_=None if how == "no score" else cases.score())
    beta = 0.0 if how == "beta is zero" else 0.5
    steps = [0.1, 0.05, 0.2, 0.1, 0.02, 0.1]
    shown = Recorder()
    settings = planner(iterations=len(steps), step_size=steps, beta=beta, adam=(0.8, 0.95, 1e-6))
    plan = sgp.solve(case.problem, settings, case.x0, init=case.u, backend=backend.name, callback=shown)

    u = case.u.clone().requires_grad_()
    optimiser = torch.optim.Adam([u], betas=(0.8, 0.95), eps=1e-6)
    for at, step in zip(shown.seen, steps, strict=True):
        assert relative(at.u, u.detach()) < 1e-9
        optimiser.param_groups[0]["lr"] = step
        optimiser.zero_grad()
        cases.task_cost(case, cases.states(case, case.x0, u), u).sum().backward(inputs=[u])
        optimiser.step()
    assert relative(plan.u, u.detach()) < 1e-9


@every_backend
def test_the_schedules_drive_the_iterations(backend: Backend) -> None:
    """Each gradient is that of its own β and level; and β = 0 does not hide the score that telemetry shows."""
    case = cases.case("learned", "learned", score_=cases.score())
    shown, plan = first_step(case, backend, iterations=6, beta=(0.6, 0.1), step_size=(0.1, 0.02))
    assert [at.index for at in shown.seen] == list(range(6))
    for at in shown.seen:
        level = SIGMAS.tolist().index(at.sigma)
        _, grad, _ = gradient(case, case.x0, at.u, at.beta, level)
        assert relative(at.grad_u, grad) < backend.float64
    assert [at.sigma for at in shown.seen] == plan.stats["sigma"] == [SIGMAS[i].item() for i in (0, 1, 1, 2, 2, 3)]
    assert [at.beta for at in shown.seen] == plan.stats["beta"] and plan.stats["beta"][-1] == 0.1
    assert [at.step_size for at in shown.seen] == plan.stats["step_size"] and plan.stats["step_size"][-1] == 0.02


def test_a_callback_sees_what_the_planner_sees() -> None:
    case = cases.case("learned", "quadratic", score_=cases.score())
    shown, plan = first_step(case, cases.BACKENDS[0], iterations=3, record_cost=True, beta=0.4)
    for i, at in enumerate(shown.seen):
        x = cases.states(case, case.x0, at.u)
        z = torch.cat((x[:, :-1], at.u), -1)
        assert case.score is not None and at.score is not None and at.first == 0 and at.beta == 0.4
        assert relative(at.x, x) < 1e-10
        assert relative(at.score, case.score.plain(z, SIGMAS.tolist().index(at.sigma))) < 1e-10
        assert plan.history is not None and torch.equal(plan.history[:, i], at.cost)
    assert plan.history is not None and plan.history.shape == (B, 3)
    assert not torch.equal(shown.seen[0].u, shown.seen[1].u) and (plan.iterations == 3).all()
    without, bare = first_step(cases.case("learned", "quadratic"), cases.BACKENDS[0])
    assert without.seen[0].score is None and bare.history is None and bare.moments is None


@every_backend
def test_clipping_limits_each_problems_gradient(backend: Backend) -> None:
    case = cases.case("module", "quadratic")
    free = first_step(case, backend)[0].seen[0].grad_u
    norms = free.square().sum((1, 2)).sqrt()
    limit = norms.median().item()
    clipped = first_step(case, backend, clip_gradient=limit)[0].seen[0].grad_u
    want = free * (limit / norms).clamp(max=1)[:, None, None]
    assert (norms > limit).any() and (norms < limit).any() and relative(clipped, want) < 1e-5


def test_terms_and_telemetry_of_the_plan() -> None:
    case = cases.case("learned", "quadratic", "quadratic", score_=cases.score(), control_change=0.3)
    _, plan = first_step(case, cases.BACKENDS[0], iterations=4, beta=(0.6, 0.2))
    terms = plan.terms
    assert relative(terms["running"].sum(1) + terms["terminal"] + terms["change"], plan.cost) < 1e-12
    assert relative(terms["change"], 0.3 * plan.u.diff(dim=1).square().sum((1, 2))) < 1e-12
    assert relative(plan.x, cases.states(case, case.x0, plan.u)) < 1e-10
    assert case.goal is not None and relative(terms["terminal"], case.terminal.plain(plan.x[:, -1], case.goal, None)) < 1e-12
    z = torch.cat((plan.x[:, :-1], plan.u), -1)
    assert case.score is not None
    normalized = case.score.plain(z, 3) * case.problem.score.normalizer.k  # pyright: ignore[reportOptionalMemberAccess]
    assert relative(plan.score_norm, normalized.norm(dim=-1)) < 1e-10
    sigma = SIGMAS[-1].item()
    assert relative(terms["penalty"], 0.2 * 0.5 * sigma**2 * normalized.square().sum((1, 2))) < 1e-10
    assert plan.stats["backend"] and plan.stats["reason"] and plan.stats["seconds"] > 0 and plan.stats["problems"] == B


# Optima that are known.


class Linear(nn.Module):
    A: Tensor
    Bu: Tensor

    def __init__(self, A: Tensor, Bu: Tensor) -> None:
        super().__init__()
        self.register_buffer("A", A)
        self.register_buffer("Bu", Bu)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ self.A.T + u @ self.Bu.T


@every_backend
def test_a_linear_quadratic_problem_reaches_the_riccati_solution(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    A, Bu = np.eye(NX) + 0.2 * rng.normal(size=(NX, NX)), rng.normal(size=(NX, NU))
    Q, R, Qd, steps = np.diag([1.0, 0.5, 0.2]), 0.5 * np.eye(NU), 2 * np.eye(NX), 6
    P, gains = Qd, []
    for _ in range(steps):
        K = np.linalg.solve(R + Bu.T @ P @ Bu, Bu.T @ P @ A)
        P = Q + A.T @ P @ (A - Bu @ K)
        gains.append(K)
    x0 = rng.normal(size=(B, NX))
    x, optimal = x0, []
    for K in reversed(gains):
        optimal.append(-x @ K.T)
        x = x @ A.T + optimal[-1] @ Bu.T
    problem = sgp.Problem(
        dynamics=Linear(torch.tensor(A), torch.tensor(Bu)),
        cost=sgp.QuadraticCost(torch.tensor(Q), torch.tensor(R)),
        terminal=sgp.QuadraticTerminal(torch.tensor(Qd)),
        nu=NU,
    )
    settings = planner(horizon=steps, iterations=800, step_size=(0.1, 0.0))
    plan = sgp.solve(problem, settings, x0, backend=backend.name)
    assert relative(plan.u, torch.tensor(np.stack(optimal, 1))) < 1e-6
    assert relative(plan.cost, torch.tensor(np.einsum("bi,ij,bj->b", x0, P, x0))) < 1e-10
    assert relative(plan.costate[:, 0], torch.tensor(2 * x0 @ P)) < 1e-6  # λ_0 = ∂V/∂x


@every_backend
def test_the_score_draws_a_plan_to_the_data(backend: Backend) -> None:
    """Data are a Gaussian about m with the exact score −(z̄ − m)/(1 + σ²), and a cost pulls u away: the optimum is known."""
    features, sigma, m, beta = NX + NU, 0.5, 0.3, 2.0
    spec = sgp.NetworkSpec(features, (sgp.Layer(features),))
    net = sgp.Network(spec).double()
    scale = 1 + sigma**2
    bias = torch.full((features,), m / scale, dtype=F64)
    net.load_state_dict({"layers.0.weight": -torch.eye(features, dtype=F64) / scale, "layers.0.bias": bias})
    k = torch.full((features,), 2.0, dtype=F64)
    score = sgp.Score(net, sgp.Normalizer(torch.zeros_like(k), k), torch.tensor([sigma], dtype=F64))
    target = 3.0
    problem = sgp.Problem(
        dynamics=lambda x, u: x, cost=lambda x, u: (u - target).square().sum(-1), score=score, nu=NU
    )
    settings = planner(iterations=1500, step_size=(0.1, 0.0), beta=beta)
    plan = sgp.solve(problem, settings, torch.zeros(2, NX), backend=backend.name)
    # 2(u − target) + β (u/k − m)/(k·scale) = 0
    pull = beta / (2.0 * scale)
    optimum = (2 * target + pull * m) / (2 + pull / 2.0)
    assert (plan.u - optimum).abs().max() < 1e-6


# Status: how a problem ended.


def parabola(**options: Any) -> sgp.Problem:
    """Minimise Σ‖u‖²: the gradient is 2u."""
    return sgp.Problem(**({"dynamics": lambda x, u: x, "cost": lambda x, u: u.square().sum(-1), "nu": NU} | options))


@every_backend
def test_a_problem_converges_only_after_the_schedules_have_ended(backend: Backend) -> None:
    """Started at the optimum, it waits for β, level and step size to reach their last values."""
    zero = torch.zeros(1, T, NU)
    table = [0.1] * 5 + [0.05] * 5
    net = sgp.Network(sgp.NetworkSpec(NX + NU, (sgp.Layer(NX + NU),))).double()
    net.load_state_dict({name: torch.zeros_like(w) for name, w in net.state_dict().items()})
    unit = sgp.Normalizer(torch.zeros(NX + NU, dtype=F64), torch.ones(NX + NU, dtype=F64))
    silent = sgp.Score(net, unit, SIGMAS)
    for options, steps in (
        ({"step_size": 0.1, "beta": 0.1, "levels": 1}, 0),
        ({"step_size": table, "beta": 0.1, "levels": 1}, 5),
        ({"step_size": 0.1, "beta": table, "levels": 1}, 5),
        ({"step_size": 0.1, "beta": 0.1, "levels": [0] * 7 + [1] * 3}, 7),
        ({"step_size": 0.1, "beta": (0.2, 0.1), "levels": 1}, 9),
        ({"step_size": 0.1, "beta": 0.1, "levels": None}, 8),
    ):
        settings = planner(iterations=10, tolerance=1e-4, **options)
        plan = sgp.solve(parabola(score=silent), settings, torch.zeros(1, NX), init=zero, backend=backend.name)
        assert plan.status.tolist() == [Status.CONVERGED] and plan.iterations.tolist() == [steps], options
    never = sgp.solve(parabola(), planner(iterations=10), torch.zeros(1, NX), init=zero, backend=backend.name)
    assert never.status.tolist() == [Status.LIMIT] and never.iterations.tolist() == [10]


@every_backend
def test_a_clipped_gradient_is_not_a_small_one(backend: Backend) -> None:
    start = torch.full((1, T, NU), 0.5)
    settings = planner(iterations=5, tolerance=1e-3, clip_gradient=1e-4, step_size=0.01)
    plan = sgp.solve(parabola(), settings, torch.zeros(1, NX), init=start, backend=backend.name)
    assert plan.grad_norm > 1 and plan.status.tolist() == [Status.LIMIT] and plan.iterations.tolist() == [5]


@every_backend
def test_a_huge_gradient_is_not_a_small_one(backend: Backend) -> None:
    """In float32 its norm overflows, though each entry is finite."""
    problem = parabola(cost=lambda x, u: 1e25 * u.square().sum(-1))
    settings = planner(iterations=5, tolerance=1e-3, clip_gradient=1.0, precision="float32")
    plan = sgp.solve(problem, settings, torch.zeros(1, NX), init=torch.ones(1, T, NU), backend=backend.name)
    assert plan.status.tolist() == [Status.DIVERGED]


class Cliff(nn.Module):
    """Dynamics that are not finite at once for starts beyond 100, and later for controls above the edge."""

    def __init__(self, edge: float = torch.inf, bad: float = torch.nan) -> None:
        super().__init__()
        self.edge, self.bad = edge, bad
        self.pull = nn.Linear(NX + NU, NX, dtype=F64)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        off = (x[..., :1] > 100) | (u > self.edge).any(-1, keepdim=True)
        return torch.where(off, self.bad, 1.0) * (x + 0.1 * self.pull(torch.cat((x, u), -1)).tanh())


@every_backend
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", [{}, {"starts": 2}, {"clip_gradient": 0.5}, {"bounding": "tanh"}], ids=str)
def test_a_problem_that_diverges_disturbs_no_other(backend: Backend, options: dict, bad: float) -> None:
    """The neighbours are bit for bit what they are beside a problem that stays finite."""
    torch.manual_seed(0)
    problem = sgp.Problem(dynamics=Cliff(bad=bad), cost=cases.two_arguments, bounds=(-1.0, 1.0), nu=NU)
    x0 = torch.randn(6, NX, dtype=F64, generator=torch.Generator().manual_seed(0))
    spoiled = x0.clone()
    spoiled[[1, 4]] = 1e3
    settings = planner(iterations=20, record_cost=True, keep_moments=True, tolerance=1e-8, **options)
    calm, rough = (sgp.solve(problem, settings, start, seed=0, backend=backend.name) for start in (x0, spoiled))
    rest, gone = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])
    for name, t in rough.select(rest).tensors().items():
        assert torch.equal(t, calm.select(rest).tensors()[name]), name
    assert (rough.status[gone] == Status.DIVERGED).all() and (calm.status == Status.LIMIT).all()
    assert (rough.iterations[gone] == 0).all() and rough.u.isfinite().all() and rough.ranking[gone].isinf().all()


@every_backend
def test_a_diverged_plan_holds_the_last_controls_whose_gradient_was_finite(backend: Backend) -> None:
    """The controls grow step by step until the dynamics break; the plan before that is the one that a caller can use."""
    problem = sgp.Problem(dynamics=Cliff(edge=0.35), cost=lambda x, u: x.square().sum(-1) - u.sum(-1), nu=NU)
    shown = Recorder()
    settings = planner(iterations=10, step_size=0.1)
    x0, init = torch.zeros(2, NX), torch.zeros(2, T, NU)
    plan = sgp.solve(problem, settings, x0, init=init, backend=backend.name, callback=shown)
    finite = [at.u for at in shown.seen if at.grad_u[0].isfinite().all()]
    assert 2 < len(finite) < 10 and plan.status.tolist() == [Status.DIVERGED] * 2
    assert torch.equal(plan.u, finite[-1]) and (plan.u <= 0.35).all()


# Each problem as if it were alone.


@every_backend
@pytest.mark.parametrize("options", [{}, {"starts": 3}], ids=["one start", "three starts"])
@pytest.mark.parametrize("kind", ["learned", "module"])
def test_a_problem_alone_among_others_and_in_chunks(backend: Backend, kind: str, options: dict) -> None:
    case = cases.case(kind, "five arguments", "three arguments", score_=cases.score(), batch=64, params="dict")
    settings = planner(iterations=8, record_cost=True, tolerance=0.01, **options)
    given = {"goal": case.goal, "params": case.params, "seed": 5, "backend": backend.name}
    together = sgp.solve(case.problem, settings, case.x0, **given)
    assert together.stats["chunks"] == 1
    budget = {7: 7, 1: 1}
    for chunk in budget:
        from sgp_fast.solving import bytes_per_problem

        limit = chunk * bytes_per_problem(case.problem, settings, NX, NU) * settings.starts
        chunked = dataclasses.replace(settings, memory_limit=limit)
        apart = sgp.solve(case.problem, chunked, case.x0, **given)
        assert apart.stats["chunks"] == -(-64 // chunk)
        same(apart, together)
    first = {name: value[:1] for name, value in case.params.items()}
    alone = sgp.solve(case.problem, settings, case.x0[:1], **(given | {"goal": case.goal[:1], "params": first}))  # pyright: ignore[reportOptionalSubscript]
    same(alone, together.select(torch.tensor([0])))


def test_chunks_are_alike() -> None:
    """None is full and another nearly empty: a backend with buckets would fill both up."""
    from sgp_fast.solving import bytes_per_problem

    case = cases.case("learned", batch=8)
    limit = 7 * bytes_per_problem(case.problem, planner(), NX, NU)
    shown = Recorder()
    plan = sgp.solve(case.problem, planner(iterations=1, memory_limit=limit), case.x0, backend="eager", callback=shown)
    assert plan.stats["chunks"] == 2 and [len(at.u) for at in shown.seen] == [4, 4]


def same(a: sgp.Plan, b: sgp.Plan) -> None:
    """Equal but for rounding in every tensor, NaN at the same places."""
    one, two = a.tensors(), b.tensors()
    assert one.keys() == two.keys()
    for name, t in one.items():
        assert torch.equal(t.isnan(), two[name].isnan()), name
        assert torch.allclose(t.nan_to_num().double(), two[name].nan_to_num().double(), rtol=1e-9, atol=1e-11), name


@every_backend
def test_history_of_a_problem_ends_with_it_whoever_is_beside_it(backend: Backend) -> None:
    init = torch.zeros(2, T, NU)
    init[1] = 1.0
    settings = planner(iterations=20, record_cost=True, tolerance=1e-6)
    both = sgp.solve(parabola(), settings, torch.zeros(2, NX), init=init, backend=backend.name)
    alone = sgp.solve(parabola(), settings, torch.zeros(1, NX), init=init[:1], backend=backend.name)
    assert both.iterations.tolist() == [0, 20]
    same(both.select(torch.tensor([0])), alone)


@every_backend
def test_of_several_starts_the_first_is_as_given_and_the_best_is_kept(backend: Backend) -> None:
    case = cases.case("learned", "learned", score_=cases.score())
    shown = Recorder()
    given = {"init": case.u, "seed": 3, "backend": backend.name}
    settings = planner(iterations=5, start_spread=0.5)
    rankings = []
    for starts in (1, 4):
        several = dataclasses.replace(settings, starts=starts)
        plan = sgp.solve(case.problem, several, case.x0, callback=shown if starts == 4 else None, **given)
        assert plan.u.shape == case.u.shape
        rankings.append(plan.ranking)
    begun = shown.seen[0].u.view(B, 4, T, NU)
    assert torch.equal(begun[:, 0], case.u)
    assert 0.4 < (begun[:, 1:] - case.u[:, None]).std() < 0.6
    each = [
        sgp.solve(case.problem, settings, case.x0, init=begun[:, i], backend=backend.name).ranking for i in range(4)
    ]
    best = torch.stack(each).min(0)
    assert relative(rankings[1], best.values) < 1e-10 and (rankings[1] <= rankings[0] + 1e-12).all()
    assert len(best.indices.unique()) > 1, "one start was the best of every problem; the choice is not tested"


@every_backend
def test_the_best_start_is_not_the_one_that_exploits_the_model(backend: Backend) -> None:
    """Of two starts the one far from the data has the lower task cost, and loses."""
    case = cases.case("learned", "learned", score_=cases.score(), batch=16)
    settings = planner(step_size=0.0, starts=8, start_spread=2.0, beta=2000.0)
    shown, init = Recorder(), torch.zeros(16, T, NU)
    plan = sgp.solve(case.problem, settings, case.x0, init=init, seed=0, backend=backend.name, callback=shown)
    cost, begun = shown.seen[0].cost.view(16, 8), shown.seen[0].u.view(16, 8, T, NU)
    picked = torch.stack([(begun[i] - plan.u[i]).abs().amax((1, 2)).argmin() for i in range(16)])
    assert (picked != cost.argmin(1)).any()


@every_backend
def test_a_start_that_diverges_is_never_kept(backend: Backend) -> None:
    problem = sgp.Problem(dynamics=Cliff(edge=0.0), cost=cases.two_arguments, nu=NU)
    good, settings = -torch.ones(3, T, NU), planner(horizon=T, iterations=2, starts=3, start_spread=0.3, step_size=1e-3)
    plan = sgp.solve(problem, settings, torch.zeros(3, NX), init=good, backend=backend.name)
    assert (plan.status == Status.LIMIT).all() and plan.ranking.isfinite().all()
    bad = sgp.solve(problem, settings, torch.zeros(3, NX), init=-good, backend=backend.name)
    assert (bad.status == Status.DIVERGED).all()


# Time, memory, what is kept and what is left alone.


@every_backend
def test_no_iteration_begins_after_the_time_limit(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the cost moves: a second an evaluation."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def cost(x: Tensor, u: Tensor) -> Tensor:
        clock[0] += 1
        return u.square().sum(-1)

    settings = planner(iterations=50, record_cost=True)
    init = torch.ones(2, T, NU)
    plan = sgp.solve(
        parabola(cost=cost), settings, torch.zeros(2, NX), init=init, time_limit_s=3.5, backend=backend.name
    )
    assert plan.iterations.tolist() == [4, 4] and (plan.status == Status.LIMIT).all()
    shorter = planner(iterations=4)
    assert torch.equal(plan.u, sgp.solve(parabola(), shorter, torch.zeros(2, NX), init=init, backend=backend.name).u)
    assert plan.history is not None and plan.history[:, :4].isfinite().all() and plan.history[:, 4:].isnan().all()


@every_backend
def test_out_of_time_the_best_plan_so_far_comes_back(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a good start, by steps that are far too long, and by a clock that the cost moves: a second an evaluation."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    case = cases.case("learned", "quadratic", bounds=(-3.0, 3.0), score_=cases.score())

    def cost(x: Tensor, u: Tensor) -> Tensor:
        clock[0] += 1
        return (x - 0.3).square().sum(-1) + 0.1 * u.square().sum(-1)

    problem = dataclasses.replace(case.problem, cost=cost, terminal=None)
    good = sgp.solve(problem, planner(iterations=200, step_size=0.05), case.x0, backend=backend.name)
    for limit in (0.5, 5.5, 8.5):
        wild = sgp.solve(
            problem, planner(iterations=20, step_size=2.0), case.x0, init=good, backend=backend.name, time_limit_s=limit
        )
        assert (wild.iterations == math.ceil(limit)).all()
        assert torch.equal(wild.u, good.u) and torch.equal(wild.ranking, good.ranking)
    wall = good.u.max().item() + 1e-3
    walled = dataclasses.replace(problem, cost=lambda x, u: torch.where(u > wall, torch.inf, 0.0).sum(-1) + cost(x, u))
    plan = sgp.solve(
        walled, planner(iterations=20, step_size=2.0), case.x0, init=good, backend=backend.name, time_limit_s=5.5
    )
    assert plan.ranking.isfinite().all() and (plan.status == Status.LIMIT).all()
    # With time for all iterations there is nothing to go back to: the plan is the one without a limit.
    settings = planner(iterations=8, step_size=2.0)
    limited, free = (
        sgp.solve(problem, settings, case.x0, init=good, backend=backend.name, time_limit_s=limit) for limit in (100.0, None)
    )
    assert torch.equal(limited.u, free.u) and not torch.equal(limited.u, good.u)


@every_backend
def test_a_plan_cut_short_before_its_schedules_ended_has_not_converged(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    settings = planner(iterations=100, step_size=(0.1, 0.01), tolerance=1e-4)
    at_rest = torch.zeros(1, T, NU)
    plan = sgp.solve(
        parabola(), settings, torch.zeros(1, NX), init=at_rest, time_limit_s=5.5, backend=backend.name
    )
    assert plan.grad_norm.item() == 0 and 0 < plan.iterations.item() < 99 and plan.status.tolist() == [Status.LIMIT]


@every_backend
@pytest.mark.parametrize("bounding", ["project", "tanh"])
def test_going_on_with_the_moments_is_one_uninterrupted_run(backend: Backend, bounding: str) -> None:
    case = cases.case("learned", "learned", bounds=(-2.0, 2.0))
    options = {"step_size": 0.05, "bounding": bounding}

    def run(iterations: int, init: Any, keep: bool = True) -> sgp.Plan:
        settings = planner(iterations=iterations, keep_moments=keep, **options)
        return sgp.solve(case.problem, settings, case.x0, init=init, backend=backend.name)

    whole = run(12, case.u)
    first = run(5, case.u)
    second = run(7, first)
    assert relative(second.u, whole.u) < 1e-9
    assert second.moments is not None and whole.moments is not None
    for ours, theirs in zip(second.moments, whole.moments, strict=True):
        assert relative(ours, theirs) < 1e-9
    assert second.moments[2].tolist() == [12.0] * B
    assert relative(run(7, first, keep=False).u, whole.u) > 1e-6
    with pytest.raises(ValueError, match="keep_moments goes on from one start; use starts=1"):
        sgp.solve(case.problem, planner(keep_moments=True, starts=2, **options), case.x0, init=first)


@every_backend
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
@pytest.mark.parametrize("given", ["plain", "requires_grad", "inference"])
def test_purity_whatever_the_mode_and_the_tensors(backend: Backend, given: str, context: Any) -> None:
    """Arguments are as before, results are ordinary tensors, and neither depends on autograd's mode."""
    case = cases.case("module", "five arguments", "three arguments", params="dict", score_=cases.score())
    want = sgp.solve(case.problem, planner(iterations=3), case.x0, **case.given, backend=backend.name)

    def as_given(t: Tensor) -> Tensor:
        if given == "inference":
            with torch.inference_mode():
                return t.clone()
        return t.clone().requires_grad_(given == "requires_grad")

    assert case.goal is not None
    x0, init, goal = as_given(case.x0), as_given(case.u), as_given(case.goal)
    params = {name: as_given(value) for name, value in case.params.items()}
    before = [t.detach().clone() for t in (x0, init, goal, *params.values())]
    with context():
        plan = sgp.solve(
            case.problem, planner(iterations=3), x0, init=init, goal=goal, params=params, backend=backend.name
        )
    for t, old in zip((x0, init, goal, *params.values()), before, strict=True):
        assert torch.equal(t, old) and t.grad is None
    for name, t in plan.tensors().items():
        assert torch.equal(t, want.tensors()[name]), name
        assert not t.requires_grad


@every_backend
def test_models_made_in_inference_mode_plan_too(backend: Backend) -> None:
    with torch.inference_mode():
        case = cases.case("module", "learned", score_=cases.score())
    ordinary = cases.case("module", "learned", score_=cases.score())
    plans = [
        sgp.solve(c.problem, planner(iterations=2), ordinary.x0, init=ordinary.u, backend=backend.name)
        for c in (case, ordinary)
    ]
    assert torch.equal(plans[0].u, plans[1].u)


@every_backend
def test_a_plan_shares_no_memory_with_its_arguments(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where no step was taken."""
    case = cases.case("module", "two arguments", batch=1)
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    plan = sgp.solve(case.problem, planner(), case.x0, init=case.u, backend=backend.name, time_limit_s=0.5)
    assert plan.iterations.tolist() == [0] and torch.equal(plan.u, case.u)
    given = {case.u.untyped_storage().data_ptr(), case.x0.untyped_storage().data_ptr()}
    assert not [name for name, t in plan.tensors().items() if t.untyped_storage().data_ptr() in given]


@every_backend
def test_solving_twice_gives_the_same(backend: Backend) -> None:
    case = cases.case("learned", "learned", score_=cases.score())
    settings = planner(iterations=4, starts=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two = (sgp.solve(case.problem, settings, case.x0, seed=2, backend=backend.name) for _ in range(2))
    assert all(torch.equal(t, two.tensors()[name]) for name, t in one.tensors().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_own_dynamics_may_have_parts_of_any_name() -> None:
    class Mine(cases.Spring):
        network = nn.Linear(1, 1)

    case = cases.case("own adjoint", "two arguments")
    problem = dataclasses.replace(case.problem, dynamics=Mine())
    want = sgp.solve(case.problem, planner(), case.x0, init=case.u)
    assert torch.equal(sgp.solve(problem, planner(), case.x0, init=case.u).u, want.u)
