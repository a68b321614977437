"""Costs of the user's own in the fused backend: traced into its kernels, or called between them, they plan as eager does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.backends.fused import graph_stats, rollout
from tests.cases import relative
from tests.custom_costs import NX, TRACEABLE, UNTRACEABLE, Given
from tests.test_custom_costs import ends_high, problem, starts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted
PLANNER = sgp.SGP(horizon=3, iterations=3, step_size=0.05, tolerance=0.0)
PROBLEMS = 5


def plan(
    given: Given, backend: str, planner: Any = PLANNER, terminal: Any = ends_high, *, problems: int = PROBLEMS,
    **options: Any,
) -> sgp.Plan:  # fmt: skip
    made = problem(given.cost, terminal)
    for part in made.modules.values():
        part.to(DEVICE)
    params = given.params(problems)
    params = {n: p.to(DEVICE) for n, p in params.items()} if isinstance(params, dict) else params
    x0 = starts(problems).to(DEVICE)
    goal = 0.2 * x0 if given.goal else None
    return sgp.solve(made, planner, x0, goal=goal, params=params, backend=backend, **options)


@pytest.mark.parametrize("backend", ["fused:tile", "fused:layered", "fused:grid"])
@pytest.mark.parametrize("name", ["obstacles", "time", "kinks"])
def test_a_traced_cost_plans_as_the_eager_planner_does(name: str, backend: str) -> None:
    ours, theirs = plan(TRACEABLE[name], backend), plan(TRACEABLE[name], "eager")
    wanted = theirs.tensors()
    for key, t in ours.tensors().items():
        assert relative(t.float(), wanted[key].float()) < 2e-5, key
    assert "traced into the kernels" in ours.stats["cost"] and "traced into the kernels" in ours.stats["terminal"]


@pytest.mark.parametrize("name", ["obstacles", "time"])
def test_a_traced_cost_of_more_problems_than_a_block_has(name: str) -> None:
    """Those of the second block have goals and params of their own, at each of the steps that lie in it."""
    planner = replace(PLANNER, iterations=1)
    ours, theirs = (plan(TRACEABLE[name], backend, planner, problems=19) for backend in ("fused:tile", "eager"))
    alike(ours, theirs, 2e-5)


SAMPLERS = {"cem": sgp.CEM(3, 2, 13, elites=5, momentum=0.1), "mppi": sgp.MPPI(3, 1, 11, temperature=0.8)}
# In float16 a candidate's cost differs by the rounding of its products, and with it how much it counts.
GRANTED = {"float32": 2e-5, "float16": 2e-2}


def alike(ours: sgp.Plan, theirs: sgp.Plan, limit: float) -> None:
    wanted = theirs.tensors()
    for key, t in ours.tensors().items():
        assert relative(t.float().nan_to_num(), wanted[key].float().nan_to_num()) < limit, key


@pytest.mark.parametrize(
    ("name", "kind", "precision"),
    [
        ("obstacles", "cem", "float32"), ("hopper", "mppi", "float32"), ("huber", "cem", "float32"),
        ("module", "mppi", "float32"), ("time", "cem", "float32"), ("obstacles", "mppi", "float16"),
    ],
)  # fmt: skip
def test_a_traced_cost_of_candidates_is_the_eager_planners(name: str, kind: str, precision: Any) -> None:
    """Values alone, of blocks that hold candidates of several problems."""
    planner = replace(SAMPLERS[kind], precision=precision)
    ours, theirs = (plan(TRACEABLE[name], backend, planner, seed=3) for backend in ("fused", "eager"))
    alike(ours, theirs, GRANTED[precision])
    for which in ("cost", "terminal"):
        assert "traced into the kernels" in ours.stats[which]


def past(x: Tensor, u: Tensor) -> Tensor:
    """Without a derivative that says anything: what only sampling planners can follow."""
    return ((x[..., 0] > 0.1) | (u[..., 0] > 0.2)).float() + x[..., 1:].abs().sum(-1).round().detach()


def test_a_cost_of_candidates_needs_no_gradient() -> None:
    ours, theirs = (plan(Given(past), backend, SAMPLERS["cem"], None, seed=3) for backend in ("fused", "eager"))
    alike(ours, theirs, 2e-5)
    assert "traced into the kernels" in ours.stats["cost"] and "terminal" not in ours.stats
    with pytest.raises(ValueError, match="cut off from autograd"):
        plan(Given(past), "fused")


def looks_up_last(x: Tensor, goal: Any, params: Any) -> Tensor:
    return UNTRACEABLE["looks up"][0](x, x)


@pytest.mark.parametrize(
    ("running", "terminal"), [("looks up", ends_high), ("obstacles", looks_up_last), ("looks up", None)]
)
def test_a_cost_of_candidates_that_cannot_be_traced_is_called_on_all_of_them(
    running: str, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few at a time, which begin and end within a problem; the other cost stays in the kernel."""
    monkeypatch.setattr(rollout, "STORED", 24)
    given = TRACEABLE.get(running) or Given(UNTRACEABLE[running][0])
    ours, theirs = (plan(given, backend, SAMPLERS["cem"], terminal, seed=3) for backend in ("fused", "eager"))
    alike(ours, theirs, 2e-5)
    for which, called in (("cost", running == "looks up"), ("terminal", terminal is looks_up_last)):
        if which == "cost" or terminal is not None:
            assert ("called in PyTorch" if called else "traced into the kernels") in ours.stats[which]


@pytest.mark.parametrize("traced", [True, False])
def test_one_problem_one_step_one_candidate_row_of_a_block(traced: bool) -> None:
    given = TRACEABLE["time"] if traced else Given(UNTRACEABLE["looks up"][0])
    made, x0 = problem(given.cost), starts(1)
    for part in made.modules.values():
        part.to(DEVICE)
    params = given.params(1)
    options: dict[str, Any] = {"params": params, "goal": torch.zeros(NX) if given.goal else None, "seed": 2}
    ours, theirs = (sgp.solve(made, sgp.MPPI(1, 1, 3), x0, backend=b, **options) for b in ("fused", "eager"))
    alike(ours, theirs, 2e-5)


@pytest.mark.parametrize("traced", [True, False])
def test_what_is_not_a_number_stays_with_its_problem(traced: bool) -> None:
    def root(x: Tensor, u: Tensor) -> Tensor:
        return (x[..., 0] + 100).sqrt() + u.square().sum(-1)

    def looking(x: Tensor, u: Tensor) -> Tensor:
        table = torch.linspace(0, 1, 8, device=x.device)
        return root(x, u) + table[(x[..., 1].nan_to_num().clamp(-3, 3) + 3).long()]

    x0, cost = starts(PROBLEMS), root if traced else looking
    fine = _sampled(cost, x0)
    x0[2, 0] = -1000
    ours = _sampled(cost, x0)
    others = [0, 1, 3, 4]
    assert ours.status[2] == sgp.Status.DIVERGED and (ours.status[others] == sgp.Status.LIMIT).all()
    assert torch.equal(ours.u[others], fine.u[others])
    assert ("traced" if traced else "called") in ours.stats["cost"]


def _sampled(cost: Any, x0: Tensor) -> sgp.Plan:
    made = problem(cost)
    for part in made.modules.values():
        part.to(DEVICE)
    return sgp.solve(made, SAMPLERS["cem"], x0, backend="fused")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["fused:tile", "fused:layered", "fused:grid"])
@pytest.mark.parametrize("name", TRACEABLE)
def test_every_traced_cost_on_a_gpu(name: str, backend: str) -> None:
    ours, theirs = plan(TRACEABLE[name], backend), plan(TRACEABLE[name], "eager")
    assert relative(ours.u, theirs.u) < 1e-4 and relative(ours.cost, theirs.cost) < 1e-4


@pytest.mark.gpu
def test_a_cost_that_reads_numbers_of_the_device_is_called_without_a_graph() -> None:
    def guarded(x: Tensor, u: Tensor) -> Tensor:
        if not bool((x.abs() < 1e6).all()):
            raise ValueError("far away")
        return x.square().sum(-1) + u.square().sum(-1)

    ours, theirs = plan(Given(guarded), "fused:layered"), plan(Given(guarded), "eager")
    assert relative(ours.u, theirs.u) < 1e-4
    assert "called in PyTorch" in ours.stats["cost"] and "without a graph: Python waits" in ours.stats["cost"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sgp", "cem"])
def test_calls_in_a_graph_on_a_gpu_follow_what_the_cost_sees(kind: str) -> None:
    """`tests/fused/test_called_costs` has more of this, on a device that captures likewise."""
    state = {"target": torch.zeros(NX, device=DEVICE)}

    def cost(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Tensor) -> Tensor:
        table = torch.linspace(0, 1, 8, device=x.device)
        distance = (x - state["target"] - goal).square().sum(-1)
        return params * distance + (t + 1) * u.square().sum(-1) + table[x[..., 0].clamp(0, 6).long()]

    made = problem(cost)
    for part in made.modules.values():
        part.to(DEVICE)
    planner, backend = (PLANNER, "fused:layered") if kind == "sgp" else (SAMPLERS["cem"], "fused")

    def check(scale: float) -> int:
        options: dict[str, Any] = {"goal": 0.1 * starts(PROBLEMS), "params": scale * torch.linspace(0.5, 2, PROBLEMS)}
        ours, theirs = (sgp.solve(made, planner, scale * starts(PROBLEMS), backend=b, **options) for b in (backend, "eager"))
        assert relative(ours.u, theirs.u) < 1e-4 and relative(ours.cost, theirs.cost) < 1e-4
        assert ours.stats["cost"].endswith("; in the graph"), ours.stats["cost"]
        return graph_stats(DEVICE).captures

    captures = check(1.0)
    assert check(-0.5) == captures
    state["target"].add_(0.5)
    assert check(1.0) == captures
    state["target"] = torch.full((NX,), -0.5, device=DEVICE)
    assert check(1.0) == captures + 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRACEABLE)
def test_every_traced_cost_of_candidates_on_a_gpu(name: str) -> None:
    ours, theirs = (plan(TRACEABLE[name], backend, SAMPLERS["cem"], seed=3) for backend in ("fused", "eager"))
    assert relative(ours.u, theirs.u) < 1e-4 and relative(ours.cost, theirs.cost) < 1e-4


def test_one_that_cannot_be_traced_is_called_between_the_kernels() -> None:
    function, words = UNTRACEABLE["looks up"]
    ours, theirs = plan(Given(function), "fused"), plan(Given(function), "eager")
    wanted = theirs.tensors()
    for key, t in ours.tensors().items():
        assert relative(t.float(), wanted[key].float()) < 2e-5, key
    assert ours.stats["regime"] == "layered" and "called in PyTorch" in ours.stats["cost"] and words in ours.stats["cost"]
    for regime in ("tile", "grid"):
        with pytest.raises(ValueError, match=words):
            plan(Given(function), f"fused:{regime}")


def test_a_graph_serves_other_params_and_not_another_function() -> None:
    gain = torch.tensor(1.0, device=DEVICE)

    def cost(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Tensor) -> Tensor:
        return gain * (params * x).square().sum(-1) + u.square().sum(-1)

    made, x0 = problem(cost), starts(PROBLEMS).to(DEVICE)
    for part in made.modules.values():
        part.to(DEVICE)

    def check(params: Tensor) -> int:
        ours, theirs = (sgp.solve(made, PLANNER, x0, params=params, backend=b) for b in ("fused:layered", "eager"))
        assert relative(ours.u, theirs.u) < 2e-5
        return graph_stats(DEVICE).captures

    params = torch.ones(PROBLEMS, 5, device=DEVICE)
    first = check(params)
    assert check(2 * params) == first
    gain.mul_(3)
    assert check(params) == first + 1
