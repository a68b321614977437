"""Limits on the controls: projection never leaves them, tanh has the adjoint that belongs to it and starts inside."""

from __future__ import annotations

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.backends.bounding import Bounding
from sgp_fast.plan import Status
from tests import cases
from tests.cases import F64, NU, Backend, Recorder, every_backend, planner, relative

LOW, HIGH = torch.tensor([[-1.0, -0.2]], dtype=F64), torch.tensor([[0.5, 3.0]], dtype=F64)


def controls(rows: int = 6, scale: float = 0.4) -> torch.Tensor:
    normal = torch.randn(5, rows, NU, generator=torch.Generator().manual_seed(0), dtype=F64)
    return (LOW + HIGH) / 2 + scale * (HIGH - LOW) / 2 * normal.tanh()


def test_tanh_goes_there_and_back_within_the_limits() -> None:
    tanh = Bounding("tanh", LOW, HIGH)
    u = controls(scale=0.99)
    assert relative(tanh.control(tanh.variable(u)), u) < 1e-12
    far = tanh.control(1e3 * torch.randn(5, 6, NU, dtype=F64))
    assert ((far >= LOW) & (far <= HIGH)).all()


def test_the_adjoint_of_tanh() -> None:
    tanh = Bounding("tanh", LOW, HIGH)
    v = tanh.variable(controls()).requires_grad_()
    cotangent = torch.randn(v.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    (want,) = torch.autograd.grad(LOW + (HIGH - LOW) * torch.sigmoid(2 * v), v, cotangent)
    assert relative(tanh.pull(v.detach(), cotangent), want) < 1e-10


@pytest.mark.parametrize("side", [-1, 1])
def test_tanh_moves_a_start_at_a_bound_inside_by_a_thousandth(side: int) -> None:
    tanh = Bounding("tanh", LOW, HIGH)
    at = (LOW if side < 0 else HIGH).expand(5, 6, NU)
    for start in (at, at + side * 10):
        u = tanh.control(tanh.variable(start))
        assert relative(u, at - side * 0.001 * (HIGH - LOW)) < 1e-12


def test_projection_and_the_projected_gradient() -> None:
    box = Bounding("project", LOW, HIGH)
    u = controls(scale=3)
    inside = box.project(u)
    assert torch.equal(inside, u.maximum(LOW).minimum(HIGH)) and not torch.equal(inside, u)
    assert torch.equal(box.variable(u), inside) and torch.equal(box.control(inside), inside)
    corner = LOW.expand(1, 1, NU)
    outward, inward = torch.ones(1, 1, NU, dtype=F64), -0.1 * torch.ones(1, 1, NU, dtype=F64)
    assert not box.projected(corner, outward).any()  # a descent step would leave the box
    assert relative(box.projected(corner, inward), inward) < 1e-12
    free = Bounding("project", None, None)
    assert torch.equal(free.project(u), u) and torch.equal(free.projected(u, u), u)


def limits(kind: str, batch: int) -> tuple[object, object]:
    if kind == "number":
        return -0.3, 0.2
    if kind == "per control":
        return [-0.3, -0.1], torch.tensor([0.2, 0.4], dtype=F64)
    if kind == "per problem":
        return -0.1 * torch.arange(1, batch + 1)[:, None].expand(-1, NU), 0.2 * torch.arange(1, batch + 1)[:, None]
    return -0.3, 0.1 * torch.arange(1, batch + 1)[:, None].expand(-1, NU)


@every_backend
@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize("bounding", ["project", "tanh"])
@pytest.mark.parametrize("kind", ["number", "per control", "per problem", "mixed"])
def test_bounds_are_kept_at_all_times(backend: Backend, kind: str, bounding: str, starts: int) -> None:
    case = cases.case("module", "two arguments", bounds=limits(kind, cases.B))
    shown = Recorder()
    sgp.solve(
        case.problem, planner(iterations=15, step_size=0.5, bounding=bounding, starts=starts), case.x0, init=3 * case.u,
        backend=backend.name, callback=shown,
    )  # fmt: skip
    low, high = (torch.as_tensor(b, dtype=F64) for b in limits(kind, cases.B))
    if low.ndim == 2:
        low = low.repeat_interleave(starts, 0)[:, None]
    if high.ndim == 2:
        high = high.repeat_interleave(starts, 0)[:, None]
    assert all(bool(((at.u >= low) & (at.u <= high)).all()) for at in shown.seen) and len(shown.seen) == 15
    edge = 0.02 if bounding == "tanh" else 0.0
    assert any(bool(((at.u <= low + edge) | (at.u >= high - edge)).any()) for at in shown.seen), "the limits were never met"


@every_backend
def test_a_problem_has_its_own_bounds_alone_and_in_chunks(backend: Backend) -> None:
    low, high = limits("per problem", cases.B)
    settings = planner(iterations=10, step_size=0.3)
    case = cases.case("module", "two arguments", bounds=(low, high))
    together = sgp.solve(case.problem, settings, case.x0, init=case.u, backend=backend.name)
    chunked = planner(iterations=10, step_size=0.3, memory_limit=1)
    one_by_one = sgp.solve(case.problem, chunked, case.x0, init=case.u, backend=backend.name)
    assert one_by_one.stats["chunks"] == cases.B and relative(one_by_one.u, together.u) < 1e-10
    for i in range(cases.B):
        alone = cases.case("module", "two arguments", bounds=(low[i], high[i]))  # pyright: ignore[reportIndexIssue]
        plan = sgp.solve(alone.problem, settings, case.x0[i], init=case.u[i], backend=backend.name)
        assert relative(plan.u[0], together.u[i]) < 1e-10


@every_backend
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_tanh_leaves_a_start_at_a_bound(backend: Backend, side: float) -> None:
    """The optimum is in the middle; a variable at tanh's flat end would never get there."""
    problem = sgp.Problem(dynamics=lambda x, u: x, cost=lambda x, u: (u * u).sum(-1), bounds=(-1.0, 1.0), nu=NU)
    init = torch.full((2, 3, NU), side)
    settings = planner(horizon=3, iterations=300, step_size=(0.1, 0.0), bounding="tanh")
    plan = sgp.solve(problem, settings, torch.zeros(2, 3), init=init, backend=backend.name)
    assert plan.u.abs().max() < 1e-3


@every_backend
def test_at_a_constrained_optimum_the_projected_gradient_is_zero_and_the_problem_has_converged(backend: Backend) -> None:
    """Targets within and beyond the limits: the optimum is the target, clipped; the plain gradient there is not zero."""
    target = torch.tensor([0.4, 2.0], dtype=F64)
    problem = sgp.Problem(
        dynamics=lambda x, u: x, cost=lambda x, u: (u - target).square().sum(-1), bounds=(-1.0, 1.0), nu=NU
    )
    settings = planner(horizon=3, iterations=600, step_size=0.05, tolerance=1e-6)
    plan = sgp.solve(problem, settings, torch.zeros(2, 3), seed=1, backend=backend.name)
    assert (plan.status == sgp.Status.CONVERGED).all() and (plan.iterations < 600).all()
    assert plan.grad_norm.max() < 1e-6
    assert (plan.u - target.clamp(-1, 1)).abs().max() < 1e-6


@every_backend
def test_a_wrong_bound_is_no_optimum(backend: Backend) -> None:
    """A step so long that tanh saturates: its gradient in v vanishes there, the one in u does not."""
    problem = sgp.Problem(
        dynamics=lambda x, u: x + u, cost=lambda x, u: (u - 0.5).square().sum(-1), bounds=(-1.0, 1.0), nu=NU
    )
    settings = planner(bounding="tanh", step_size=20.0, iterations=1, tolerance=1e-3)
    plan = sgp.solve(problem, settings, torch.zeros(1, NU), init=torch.zeros(1, settings.horizon, NU), backend=backend.name)
    assert (plan.u > 0.999).all() and plan.grad_norm > 1 and plan.status.tolist() == [Status.LIMIT]
