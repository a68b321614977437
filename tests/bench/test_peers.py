"""Peers: planners of other libraries answer controls that are sound, repeatable, and cost what they foresee."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.bench import peers, sampling
from sgp_fast.bench.cases import Case, make_case
from sgp_fast.bench.gate import evaluated, judge, reference
from sgp_fast.bench.peers.models import SAMPLING, load, models_of, seeded
from sgp_fast.bench.peers.pytorch_mppi_plan import Carried, pytorch_mppi
from sgp_fast.bench.peers.torchrl_plan import torchrl_cem, torchrl_mppi
from sgp_fast.bench.peers.worldmodel_plan import Objective, ProjectedAdam
from sgp_fast.bench.rung import Rung, Unavailable

LIBRARY = {
    "pytorch_mppi": "pytorch_mppi",
    "pytorch_mppi command": "pytorch_mppi",
    "pytorch_mppi batched": "pytorch_mppi",
    "torchrl mppi": "torchrl",
    "torchrl cem": "torchrl",
    "stable-worldmodel": "stable_worldmodel.solver",
}
SAMPLERS = [rung for rung in peers.RUNGS if not rung.exact]


@pytest.fixture
def case() -> Case:
    return make_case(32, 2, hidden_layers=2, horizon=4, iterations=6)


def planned(rung: Rung, case: Case) -> Any:
    """A rung's runner, or a skip where its library is absent or does not import here."""
    try:
        load(LIBRARY[rung.name])
    except (ImportError, Unavailable) as error:
        pytest.skip(str(error))
    return rung.make(case)


def cost(case: Case, u: Tensor) -> Tensor:
    return evaluated(case, u.double()).cost


def test_every_rung_names_a_library() -> None:
    assert set(LIBRARY) == {rung.name for rung in peers.RUNGS}
    assert all(rung.family == "peer" for rung in peers.RUNGS)


@pytest.mark.parametrize("rung", SAMPLERS, ids=lambda rung: rung.name)
def test_a_sampling_planner_plans(rung: Rung, case: Case) -> None:
    runner = planned(rung, case)
    before = torch.get_rng_state()
    u = runner()
    assert torch.equal(torch.get_rng_state(), before)
    assert u.shape == case.init.shape and u.dtype == torch.float32 and u.device == case.device
    assert bool((u.abs() <= 1).all()) and not u.requires_grad
    assert bool((cost(case, u) < cost(case, torch.zeros_like(u)) - 0.1).all())
    assert bool((cost(case, u) < cost(case, case.init) - 0.1).all())
    assert torch.equal(runner(), u)


@pytest.mark.parametrize("rung", SAMPLERS, ids=lambda rung: rung.name)
def test_a_sampling_planner_foresees_the_cost(rung: Rung, case: Case) -> None:
    runner = planned(rung, case)
    u = 2 * torch.rand(case.init.shape, generator=torch.Generator().manual_seed(1)) - 1
    torch.testing.assert_close(runner.foreseen(u).double(), cost(case, u), rtol=0, atol=1e-5)
    torch.testing.assert_close(runner.foreseen(u[:1]), runner.foreseen(u)[:1])
    assert judge(rung, case, runner, u).reason is None


@pytest.mark.parametrize("rung", sampling.RUNGS, ids=lambda rung: rung.name)
def test_our_sampling_planners_stand_beside_them(rung: Rung, case: Case) -> None:
    runner = rung.make(case)
    u = runner()
    assert bool((cost(case, u) < cost(case, case.init) - 0.1).all()) and torch.equal(runner(), u)
    torch.testing.assert_close(runner.foreseen(u).double(), cost(case, u), rtol=0, atol=1e-5)  # pyright: ignore[reportFunctionMemberAccess]
    assert judge(rung, case, runner, u).reason is None


def test_the_gate_refuses_a_library_with_another_cost(case: Case) -> None:
    rung = next(rung for rung in SAMPLERS if rung.name == "pytorch_mppi")
    runner = planned(rung, case)
    other = make_case(32, 2, hidden_layers=2, horizon=4, iterations=6, seed=1)
    wrong = replace(runner, model=Carried(models_of(other)))
    assert "foresees" in (judge(rung, case, wrong, case.init).reason or "")


@pytest.mark.parametrize("make", [torchrl_mppi, torchrl_cem])
def test_torchrl_answers_the_first_control_of_the_refit(make: Any, case: Case) -> None:
    pytest.importorskip("torchrl")
    runner = make(case)
    with torch.no_grad(), seeded(SAMPLING.seed, case.device):
        first = runner.planner(runner.environment.at(case.x0))["action"]
    torch.testing.assert_close(runner.refit()[:, 0], first, rtol=0, atol=1e-6)
    assert torch.equal(runner()[:, 0], first)


@pytest.mark.parametrize("make", [torchrl_mppi, torchrl_cem, lambda *a: pytorch_mppi(*a, batched=True)])
def test_blocks_plan_the_whole_batch(make: Any) -> None:
    pytest.importorskip("torchrl")
    pytest.importorskip("pytorch_mppi")
    case = make_case(16, 3, hidden_layers=2, horizon=2)
    settings = replace(SAMPLING, rows=2 * SAMPLING.candidates)  # blocks of two problems, and one that is left
    u = make(case, settings)()
    whole = make(case, SAMPLING)()
    assert u.shape == case.init.shape
    torch.testing.assert_close(cost(case, u), cost(case, whole), rtol=0, atol=0.2)  # other draws


def test_stable_worldmodel_finds_the_reference(case: Case) -> None:
    rung = next(rung for rung in peers.RUNGS if rung.name == "stable-worldmodel")
    runner = planned(rung, case)
    u = runner()
    want = reference(case)
    assert u.shape == case.init.shape and u.device == case.device
    assert ((u.double() - want).norm() / want.norm()).item() < 1e-5
    assert torch.equal(runner(), u)
    assert judge(rung, case, runner, u).reason is None


def test_the_objective_under_projected_adam_is_the_reference(case: Case) -> None:
    """What the rung hands to the solver, in the plainest loop: holds where the library is absent."""
    models = models_of(case)
    objective = Objective(models, case.schedule)
    u = case.init[:, None].clone().requires_grad_()
    adam = ProjectedAdam([u], models.low, models.high, lr=case.planner.step_size)
    for _ in range(case.planner.iterations):
        adam.zero_grad()
        objective.get_cost({"state": case.x0[:, None]}, u).sum().backward()
        adam.step()
    want = reference(case)
    assert ((u.detach()[:, 0].double() - want).norm() / want.norm()).item() < 1e-5


def test_weights_collect_no_gradient(case: Case) -> None:
    for part in case.problem.modules.values():
        part.requires_grad_(True)
    models = models_of(case)
    assert not any(weight.requires_grad for part in models.problem.modules.values() for weight in part.parameters())
    assert all(weight.requires_grad for weight in case.problem.dynamics.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"cost": lambda x, u: (x - 1).square().sum(-1) + u.square().sum(-1)},
        {"dynamics": lambda x, u: 0.9 * x + u.sum(-1, keepdim=True)},
        {"cost": sgp.QuadraticCost(torch.eye(17), torch.eye(6)), "goal": torch.ones(17)},
    ],
    ids=["custom cost", "custom dynamics", "quadratic cost with a goal"],
)
def test_models_of_any_kind_cost_what_the_planner_says(change: dict[str, Any], case: Case) -> None:
    case = replace(case, problem=replace(case.problem, **change))
    model = Carried(models_of(case))
    y, total = model.start(case.x0), torch.zeros(2)
    for u in case.init.unbind(1):
        y = model.dynamics(y, u)
        total = total + model.running_cost(y, u)
    torch.testing.assert_close(total.double(), cost(case, case.init), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bounds": None}, "has none"),
        ({"bounds": (-float("inf"), 1.0)}, "finite"),
        ({"bounds": (-torch.ones(2, 6), torch.ones(2, 6))}, "its own"),
        ({"terminal": lambda x: x.square().sum(-1)}, "terminal cost"),
        ({"control_change": 0.1}, "penalises changes"),
        ({"cost": lambda x, u, goal, t, params: x.sum(-1)}, "cost of"),
        ({"goal": torch.zeros(2, 17)}, "one goal"),
    ],
)
def test_problems_that_are_not_covered_say_why(change: dict[str, Any], reason: str, case: Case) -> None:
    with pytest.raises(Unavailable, match=reason):
        models_of(replace(case, problem=replace(case.problem, **change)))


def test_pytorch_mppi_calls_models_of_any_precision(case: Case) -> None:
    rung = next(rung for rung in SAMPLERS if rung.name == "pytorch_mppi command")
    runner = planned(rung, case.in_precision("bfloat16"))
    assert judge(rung, runner.case, runner, runner()).reason is None
    single = rung.make(case)
    off = (runner.foreseen(case.init) - single.foreseen(case.init)).norm() / single.foreseen(case.init).norm()  # pyright: ignore[reportAttributeAccessIssue]
    assert 1e-4 < off < 0.1


def test_other_precisions_are_not_covered(case: Case) -> None:
    with pytest.raises(Unavailable, match="bfloat16"):
        models_of(case.in_precision("bfloat16"))


@pytest.mark.parametrize("rung", peers.RUNGS, ids=lambda rung: rung.name)
def test_an_absent_library_is_named_with_its_remedy(rung: Rung, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    root = LIBRARY[rung.name].partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == root]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, root, None)
    with pytest.raises(ImportError, match=r"sgp-fast\[(peers|worldmodel)\]"):
        rung.make(case)


def test_a_library_that_breaks_at_import_is_unavailable(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unavailable, match="broken_peer is installed but does not import .*nms"):
        load("broken_peer")
