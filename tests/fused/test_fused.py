"""The fused backend through `solve`: in both regimes it plans as the eager planner does, each problem as if alone.

Plans are compared whole: the error of every tensor against the eager planner in float64 is at most twice that of the eager
planner at the same precision.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgp_fast as sgp
from sgp_fast.backends import choose
from sgp_fast.backends.fused import Fused, graph_stats, layered, work
from sgp_fast.backends.fused import backend as fused
from sgp_fast.backends.fused.device import EagerDevice
from sgp_fast.backends.fused.graphs import GraphCache
from sgp_fast.backends.fused.layered import Layered
from sgp_fast.backends.fused.tile import TilePlan, tile_plans
from sgp_fast.backends.fused.work import Make, PlanWork
from sgp_fast.backends.products import products_of
from sgp_fast.kernels import reference
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, mlp
from sgp_fast.kernels.packing import round_to_tf32_
from sgp_fast.kernels.tiling import Tile
from tests import cases
from tests.cases import NU, NX, Case, planner, relative
from tests.golden import FOLDER, load_case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted
INTERPRETED = DEVICE.type == "cpu"
Status = sgp.Status
REGIMES = ("fused:tile", "fused:layered")
both_regimes = pytest.mark.parametrize("backend", REGIMES)
# Where eager's own rounding happens to cancel. Adam divides by the gradient's size, and so by its error.
GRANTED = {"float32": 2e-6, "tf32": 2**-10, "float16": 2**-9, "bfloat16": 2**-6}

# Small networks with every kind of operation between them: the interpreter takes its time for each.
NZ = NX + NU
DYNAMICS = NetworkSpec(NZ, (Layer(7, "silu", norm=True), Layer(NX)))
SCORE = NetworkSpec(NZ, (Layer(6, "elu", norm=True, condition="multiply"), Layer(NZ)), levels=len(cases.SIGMAS))
UNCONDITIONED = NetworkSpec(NZ, (Layer(NZ, "tanh", residual=True), Layer(NZ)))
COST = NetworkSpec(NZ, (Layer(6), Block(8, "mish"), Layer(1, "tanh")))
VALUE = NetworkSpec(NX, (Layer(6, "gelu"), Layer(1, "silu")))


def small(
    cost: str = "quadratic", terminal: str = "none", scored: str | None = None, *, dynamics: NetworkSpec = DYNAMICS,
    with_goal: bool = True, **options: Any,
) -> Case:  # fmt: skip
    """A problem of small networks, on the device; a row's inputs do not depend on the size of the batch."""
    made = cases.case("learned", "quadratic", "quadratic" if terminal == "quadratic" else "none", **options)
    parts: dict[str, Any] = {"dynamics": sgp.Dynamics(cases.module(dynamics, 1), cases.normalizer(NZ, 1))}
    if cost == "learned":
        parts["cost"] = sgp.LearnedCost(cases.module(COST, 2), cases.normalizer(NZ, 2))
    if terminal == "value":
        parts["terminal"] = sgp.TerminalValue(cases.module(VALUE, 4), cases.normalizer(NX, 4))
    if scored is not None:
        spec, output = (UNCONDITIONED, "score") if scored == "unconditioned" else (SCORE, scored)
        parts["score"] = sgp.Score(cases.module(spec, 8), cases.normalizer(NZ, 8), cases.SIGMAS, output=output)  # pyright: ignore[reportArgumentType]
    problem = replace(made.problem, **parts)
    for part in problem.modules.values():
        part.to(DEVICE)
    reads_goal = with_goal and "quadratic" in (cost, terminal)
    goal = made.goal.to(DEVICE) if made.goal is not None and reads_goal else None
    return replace(made, problem=problem, x0=made.x0.to(DEVICE), u=made.u.to(DEVICE), goal=goal)


def plan(case: Case, backend: str, precision: str = "float32", **options: Any) -> sgp.Plan:
    settings = planner(**({"horizon": case.u.shape[1], "precision": precision, "step_size": 0.05} | options))
    return sgp.solve(case.problem, settings, case.x0, **case.given, backend=backend)


def check(case: Case, backend: str, precision: str = "float32", **options: Any) -> sgp.Plan:
    """Plan with kernels, in the same precision eagerly, and in float64; hold the first to the others. Returns the first."""
    ours, theirs = plan(case, backend, precision, **options), plan(case, "eager", precision, **options)
    hold(ours, theirs, plan(case, "eager", "float64", **options), precision)
    assert ours.stats["backend"] == "fused" and ours.stats["regime"].startswith(backend.removeprefix("fused:"))
    return ours


def hold(ours: sgp.Plan, theirs: sgp.Plan, exact: sgp.Plan, precision: str = "float32") -> None:
    got, want, right = ours.tensors(), theirs.tensors(), exact.tensors()
    assert got.keys() == want.keys()
    for name, t in got.items():
        assert t.shape == want[name].shape and t.dtype == want[name].dtype and t.device == want[name].device, name
        if not t.is_floating_point():
            assert torch.equal(t, right[name]), name
            continue
        assert torch.equal(t.isnan(), want[name].isnan()), name
        errors = [relative(x.nan_to_num(), right[name].nan_to_num()) for x in (t, want[name])]
        assert errors[0] <= 2 * errors[1] + GRANTED[precision], f"{name}: {errors[0]:.1e}, eager {errors[1]:.1e}"


def equal(a: sgp.Plan, b: sgp.Plan) -> None:
    """Bit for bit, but for the penalty: PyTorch sums it over the horizon in an order that depends on the batch."""
    one, two = a.tensors(), b.tensors()
    assert one.keys() == two.keys()
    for name, t in one.items():
        if name == "terms.penalty":
            assert torch.allclose(t, two[name], rtol=1e-6, equal_nan=True)
        else:
            assert torch.equal(t.isnan(), two[name].isnan()), name
            assert torch.equal(t.nan_to_num(), two[name].nan_to_num()), name


# Every two values of two columns stand in a row together, but for what would take long: many problems over a long horizon.
ROWS: list[tuple[str, str, str, str | None, str | None, float, float | None, bool, int, int, int, int, bool]] = [
    ("tile", "quadratic", "none", "noise", "tanh one", 0.0, None, True, 1, 1, 1, 3, True),
    ("tile", "learned", "quadratic", "score", "project one", 0.3, 0.5, False, 3, 2, 4, 1, False),
    ("layered", "learned", "value", "unconditioned", "project each", 0.3, 0.5, True, 1, 1, 65, 3, False),
    ("layered", "quadratic", "value", None, None, 0.3, None, False, 1, 2, 64, 1, True),
    ("layered", "learned", "none", None, "tanh each", 0.0, 0.5, True, 3, 7, 1, 1, False),
    ("layered", "quadratic", "quadratic", "unconditioned", "tanh each", 0.0, 0.5, False, 1, 1, 63, 3, True),
    ("tile", "quadratic", "value", "noise", None, 0.0, None, True, 3, 7, 4, 1, False),
    ("layered", "learned", "none", "noise", "project each", 0.0, None, False, 1, 2, 65, 1, True),
    ("layered", "learned", "none", "score", "project one", 0.0, None, True, 1, 2, 63, 3, True),
    ("layered", "learned", "none", "unconditioned", "tanh one", 0.3, 0.5, True, 1, 7, 4, 1, True),
    ("tile", "learned", "quadratic", "noise", "project one", 0.0, 0.5, True, 1, 1, 64, 1, False),
    ("tile", "learned", "quadratic", None, "tanh one", 0.0, None, False, 3, 1, 4, 3, False),
    ("tile", "quadratic", "value", "score", "tanh each", 0.3, None, False, 1, 2, 1, 1, True),
    ("tile", "learned", "none", "score", None, 0.3, 0.5, True, 1, 1, 63, 1, False),
    ("tile", "quadratic", "quadratic", "unconditioned", "project each", 0.0, None, True, 3, 7, 1, 1, False),
    ("tile", "quadratic", "quadratic", "score", "project one", 0.3, 0.5, True, 1, 1, 65, 1, True),
    ("layered", "learned", "value", "score", "project one", 0.0, None, False, 1, 7, 1, 1, False),
    ("tile", "quadratic", "value", "noise", "tanh one", 0.3, 0.5, False, 1, 1, 63, 1, True),
    ("layered", "quadratic", "none", "unconditioned", "tanh one", 0.0, 0.5, True, 1, 2, 64, 3, True),
    ("tile", "learned", "quadratic", "unconditioned", None, 0.0, None, True, 1, 2, 1, 3, True),
    ("tile", "learned", "value", "score", "project each", 0.3, None, False, 1, 1, 64, 1, False),
    ("tile", "learned", "value", None, "project each", 0.0, None, False, 1, 1, 63, 1, False),
    ("tile", "learned", "quadratic", None, "tanh each", 0.0, None, False, 1, 1, 65, 1, False),
    ("tile", "learned", "quadratic", "noise", "tanh each", 0.3, None, False, 3, 2, 4, 3, False),
]


def limits(bounds: str | None, batch: int) -> dict[str, Any]:
    """Bounds of the problem: none, one pair for all, or others for each control of each problem."""
    if bounds is None:
        return {}
    if bounds.endswith("one"):
        return {"bounds": (-0.4, 0.5)}
    return {"bounds": (-torch.linspace(0.2, 0.9, batch * NU).view(batch, NU), torch.tensor([0.3, 0.6]))}


@pytest.mark.parametrize(
    ("regime", "cost", "terminal", "scored", "bounds", "change", "clip", "goal", "starts", "horizon", "batch", "iterations",
     "keeps"), ROWS,
)  # fmt: skip
def test_plans_of_every_kind(
    regime: str, cost: str, terminal: str, scored: str | None, bounds: str | None, change: float, clip: float | None,
    goal: bool, starts: int, horizon: int, batch: int, iterations: int, keeps: bool,
) -> None:  # fmt: skip
    case = small(
        cost, terminal, scored, with_goal=goal, batch=batch, horizon=horizon, control_change=change, **limits(bounds, batch)
    )
    bounding = (bounds or "project").split()[0]
    made = check(
        case, f"fused:{regime}", iterations=iterations, starts=starts, bounding=bounding, clip_gradient=clip,
        record_cost=keeps, keep_moments=keeps, beta=(0.6, 0.1), step_size=(0.1, 0.02),
    )  # fmt: skip
    assert made.stats["bucket"] == {1: 1, 3: 4, 4: 4, 12: 16, 63: 64, 64: 64, 65: 128}[batch * starts]


@both_regimes
@pytest.mark.parametrize("batch", [63, 64, 65])
@pytest.mark.parametrize(("cost", "terminal"), [("quadratic", "value"), ("learned", "quadratic")])
@pytest.mark.slow
def test_many_problems_over_a_long_horizon(cost: str, terminal: str, batch: int, backend: str) -> None:
    case = small(cost, terminal, "score", batch=batch, horizon=7, bounds=(-0.4, 0.5), control_change=0.3)
    check(case, backend, iterations=3, record_cost=True, keep_moments=True)


@both_regimes
@pytest.mark.parametrize("bounding", ["project", "tanh"])
def test_controls_that_are_taken_in_parts(bounding: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen at once of a problem's 22, where a thread could not hold all of them."""
    for regime in ("tile", "updating"):
        monkeypatch.setattr(f"sgp_fast.backends.fused.{regime}.chunk_of", lambda *_: 16)
    case = small("quadratic", "quadratic", batch=3, horizon=11, control_change=0.3, bounds=(-0.4, 0.5))
    check(case, backend, iterations=3, bounding=bounding, clip_gradient=0.5, record_cost=True, keep_moments=True)


@both_regimes
@pytest.mark.parametrize("dynamics", ["learned", "scaled blocks"])
@pytest.mark.slow
def test_networks_at_their_usual_depth(dynamics: str, backend: str) -> None:
    case = cases.case(dynamics, "learned", "value", score_=cases.score(), batch=17, horizon=3)
    for part in case.problem.modules.values():
        part.to(DEVICE)
    check(replace(case, x0=case.x0.to(DEVICE), u=case.u.to(DEVICE)), backend, iterations=2)


@both_regimes
def test_products_in_float16(backend: str) -> None:
    case = small("learned", "value", "score", batch=5, horizon=1)
    made = check(case, backend, "float16", step_size=0.0)
    exact = plan(case, "eager", "float64", step_size=0.0)
    assert 1e-5 < relative(made.costate, exact.costate) < 0.01, "the products were not in float16"


ENDS = {
    "norm": NetworkSpec(NZ, (Layer(6, "mish"), Layer(NX, "tanh", norm=False))),
    "block": NetworkSpec(NZ, (Layer(NX), Block(5, "silu", "tanh"))),
    "one product": NetworkSpec(NZ, (Layer(NX, "gelu"),)),
}


@both_regimes
@pytest.mark.parametrize("name", ENDS)
def test_dynamics_whose_last_operation_is_not_a_product_alone(name: str, backend: str) -> None:
    """What it kept is read first of all on the way back."""
    check(small("learned", dynamics=ENDS[name], batch=3, horizon=2), backend)


def through(monkeypatch: pytest.MonkeyPatch, name: str, make: Make) -> None:
    """Plan by `make`, over memory that is NaN wherever it is written before it is read."""

    def poisoned(packed: Any, settings: sgp.SGP, buffers: Any, settled: int) -> Any:
        regime = make(packed, settings, buffers, settled)
        scratch = (regime._scratch, regime._scratch32) if isinstance(regime, TilePlan) else regime.workspace  # pyright: ignore[reportAttributeAccessIssue]
        named = ["x", "costate", "grad_u", "running", "terminal"]
        named += ["score"] * (packed.score is not None) + ["change"] * (packed.control_change > 0)
        for tensor in (*scratch, *(getattr(buffers, n) for n in named)):
            tensor.fill_(float("nan"))
        return regime

    monkeypatch.setattr(fused, "candidates_of", lambda *_: {name: poisoned})


@pytest.mark.parametrize(
    ("block_b", "block_n", "block_k", "steps", "keep"),
    [(16, 16, 32, 4, True), (32, 64, 32, 2, False), (16, 32, 16, 8, False), (64, 32, 64, 1, False), (64, 32, 64, 1, True)],
)
def test_every_tile_with_activations_kept_and_not(
    block_b: int, block_n: int, block_k: int, steps: int, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = Tile(block_b, block_n, block_k, 4, 2, interpreted=INTERPRETED)
    tall = replace(tile, block_b=steps * block_b, block_n=32, steps=steps)
    through(monkeypatch, "tile", partial(TilePlan, tile=tile, tall=tall, kept=keep))
    dynamics = NetworkSpec(NZ, (Layer(NZ, "silu", residual=True), Block(33, "elu"), Layer(NX, "tanh")))
    case = small("learned", "value", "score", dynamics=dynamics, batch=19, control_change=0.3, bounds=(-0.4, 0.5), horizon=5)
    check(case, "fused:tile", bounding="tanh", record_cost=True)


def test_keeping_activations_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept and made again in the same precision: the plans are the same bit for bit."""
    tile, plans = Tile(16, 32, 32, 4, 2, interpreted=INTERPRETED), []
    for keep in (False, True):
        through(monkeypatch, f"tile {keep}", partial(TilePlan, tile=tile, tall=tile, kept=keep))
        case = small("learned", "quadratic", "score", batch=3)
        plans.append(plan(case, "fused:tile", "float16"))
    equal(*plans)


def multiply_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the interpreter's products, whichever row a number stands in, the same rounding: some BLAS round rows otherwise."""
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    class InDouble:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def matmul(self, a: Any, b: Any, dtype: Any) -> Any:
            return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(dtype)

    monkeypatch.setattr(interpreter, "np", InDouble())


@pytest.mark.parametrize("cost", ["learned", "quadratic"])
def test_steps_at_once_change_nothing(cost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs and scores of several steps beside one another are those of one step at a time, bit for bit."""
    multiply_alike(monkeypatch)
    tile, plans = Tile(16, 32, 32, 4, 2, interpreted=INTERPRETED), []
    for steps in (1, 2, 4):
        tall = replace(tile, block_b=steps * tile.block_b, steps=steps)
        through(monkeypatch, f"tile {steps}", partial(TilePlan, tile=tile, tall=tall, kept=True))
        case = small(cost, "quadratic", "score", batch=19, horizon=7, **limits("tanh each", 19))
        plans.append(plan(case, "fused:tile", "float16", bounding="tanh"))
    for other in plans[1:]:
        equal(plans[0], other)


@pytest.mark.parametrize("horizon", [1, 4])
def test_the_tiles_of_a_bucket_hold_several_steps_where_there_are(horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgp_fast.backends.fused.tile.TilePlan", lambda *given: given[4:6])
    ways = tile_plans(small().problem, planner(horizon=horizon, precision="float32"), 16, DEVICE)
    made: list[Any] = [make(*[None] * 4) for make in ways.values()]  # pyright: ignore[reportArgumentType]
    assert all(tall.block_b == tall.steps * tile.block_b for tile, tall in made)
    assert any(tall.steps > 1 for _, tall in made) == (horizon > 1)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_block_writes_nothing_behind_its_scratch(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step needs a pass of its own, most of whose rows are of no step."""
    tile, behind = Tile(16, 32, 32, 4, 2, interpreted=INTERPRETED), 4096
    tall, wholes = replace(tile, block_b=steps * tile.block_b, steps=steps), []

    def make(packed: Any, settings: sgp.SGP, buffers: Any, settled: int) -> TilePlan:
        regime = TilePlan(packed, settings, buffers, settled, tile, tall, True)
        for name in ("_scratch", "_scratch32"):
            own = getattr(regime, name)
            wholes.append(own.new_full((len(own) + behind,), float("nan")))
            setattr(regime, name, wholes[-1][: len(own)])
        return regime

    through(monkeypatch, "tile", make)
    plan(small("learned", "value", "score", dynamics=ENDS["block"], batch=3, horizon=5), "fused:tile")
    assert len(wholes) == 2 and all(whole[-behind:].isnan().all() for whole in wholes)


def test_the_layered_workspace_is_written_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, "layered", Layered)
    case = small("learned", "value", "score", batch=5, horizon=3, control_change=0.3, bounds=(-0.4, 0.5))
    check(case, "fused:layered", bounding="tanh", record_cost=True)


GOLDEN = ("ncss_nn", "ncss_quad", "ss_quad")


@both_regimes
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.slow
def test_published_plans(name: str, backend: str) -> None:
    golden(name, backend, iterations=None)


FIRST_STEPS = [*((name, "fused:layered") for name in GOLDEN), ("ncss_nn", "fused:tile"), ("ss_quad", "fused:tile")]


@pytest.mark.parametrize(("name", "backend"), FIRST_STEPS)
def test_the_first_step_of_published_plans(name: str, backend: str) -> None:
    golden(name, backend, iterations=1)


def golden(name: str, backend: str, iterations: int | None) -> None:
    """A recorded case in float32, as near to its float64 as eager float32 is: whole, or its first steps."""
    case = load_case(FOLDER / f"{name}.safetensors", "float32")
    for part in case.problem.modules.values():
        part.to(DEVICE)
    settings = case.planner
    if iterations is not None:
        tables = {field: getattr(settings, field)[:iterations] for field in ("beta", "levels")}
        settings = replace(settings, iterations=iterations, **tables)

    def solved(by: str, precision: Any) -> sgp.Plan:
        given = replace(settings, precision=precision)
        return sgp.solve(case.problem, given, case.x0.to(DEVICE), init=case.init.to(DEVICE), backend=by)

    ours, theirs, exact = solved(backend, "float32"), solved("eager", "float32"), solved("eager", "float64")
    if iterations is None:
        recorded = {"u": case.expected["u_final"], "x": case.expected["x_final"]}
        exact = replace(exact, **{name: t.to(DEVICE).view_as(getattr(exact, name)) for name, t in recorded.items()})
    hold(ours, theirs, exact)
    assert relative(ours.u, exact.u) < 1e-4 and relative(ours.x, exact.x) < 1e-4


# How a search ends.


@both_regimes
def test_some_converge_and_the_rest_go_on_to_the_limit(backend: str) -> None:
    case = small(batch=6, horizon=1, bounds=(-0.2, 0.1))
    tolerance = plan(case, "eager", "float64", iterations=3).grad_norm.median().item() * (1 + 1e-3)
    made = check(case, backend, iterations=3, tolerance=tolerance, record_cost=True)
    assert set(made.status.tolist()) == {Status.CONVERGED, Status.LIMIT}


def growing() -> sgp.Problem:
    """x' = 1e9 x + u, and a terminal cost that rewards |x_T|: the search makes states grow until they overflow."""
    net = sgp.Network(NetworkSpec(NZ, (Layer(NX),)))
    weight = torch.zeros(NX, NZ)
    weight[:, :NX], weight[:NU, NX:] = 1e9 * torch.eye(NX), torch.eye(NU)
    net.load_state_dict({"layers.0.weight": weight, "layers.0.bias": torch.zeros(NX)})
    unit = sgp.Normalizer(torch.zeros(NZ), torch.ones(NZ))
    problem = sgp.Problem(
        dynamics=sgp.Dynamics(net, unit), cost=sgp.QuadraticCost(torch.zeros(NX, NX), torch.zeros(NU, NU)),
        terminal=sgp.QuadraticTerminal(-1e-35 * torch.eye(NX)),
    )  # fmt: skip
    for part in problem.modules.values():
        part.to(DEVICE)
    return problem


@both_regimes
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("iterations", [3, 4], ids=["in the last step", "on the way"])
def test_a_problem_that_diverges_ends_as_the_eager_planner_says(iterations: int, backend: str) -> None:
    """It goes back to the last controls whose gradient was finite; problem 1 never moves."""
    init = torch.full((2, 4, NU), 1e-20, device=DEVICE)
    init[1] = 0
    steps = [10.0 ** (6 * i - 8) for i in range(iterations)]
    settings = planner(horizon=4, precision="float32", iterations=iterations, step_size=steps, record_cost=True)
    ours, theirs = (
        sgp.solve(growing(), settings, torch.zeros(2, NX, device=DEVICE), init=init, backend=b) for b in (backend, "eager")
    )
    assert ours.status.tolist() == theirs.status.tolist() == [Status.DIVERGED, Status.LIMIT]
    assert ours.iterations.tolist() == theirs.iterations.tolist() == [3, iterations]
    assert relative(ours.u, theirs.u) < 1e-4 and ours.u.isfinite().all()
    assert ours.history is not None and theirs.history is not None
    assert torch.equal(ours.history.isnan(), theirs.history.isnan())


@pytest.mark.parametrize("backend", ["fused:tile", "fused:layered", "fused:grid"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("horizon", [1, 4])
def test_a_last_step_that_overflows_stops_no_search_unless_it_costs(horizon: int, backend: str) -> None:
    """A norm makes NaNs of it, which zero costates would carry back. Of the plan in the end, the status tells it."""
    case = small(dynamics=mlp(NZ, NX, width=16, hidden_layers=2, norm=True), batch=2, horizon=horizon, with_goal=False)
    case.problem.cost.Q.zero_()
    case.problem.cost.R.zero_()
    case.u[:, :-1], case.u[:, -1] = 0, 3e38
    ours, theirs = (plan(case, by, iterations=2) for by in (backend, "eager"))
    for made in (ours, theirs):
        assert made.x[:, -1].isnan().all() and made.x[:, :-1].isfinite().all() and made.costate.isfinite().all()
        assert (made.iterations == 2).all() and (made.status == Status.DIVERGED).all()
    assert torch.equal(ours.u, theirs.u.float())


@both_regimes
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bounding", ["project", "tanh"])
def test_a_step_that_is_not_a_number_is_not_clipped_to_a_bound(bounding: str, backend: str) -> None:
    """An ε that float32 cannot hold, and a gradient of zero: the step is 0/0, and the problem has diverged."""
    case = small(batch=2, horizon=1, bounds=(-1.0, 1.0))
    case.problem.cost.Q.zero_()
    case.problem.cost.R.zero_()
    plans = [plan(case, by, iterations=2, adam=(0.9, 0.999, 1e-60), bounding=bounding) for by in (backend, "eager")]
    assert plans[0].status.tolist() == plans[1].status.tolist() == [Status.DIVERGED] * 2
    assert relative(plans[0].u, plans[1].u) < 1e-6


def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only iterations move: a second each."""
    clock, iterate = [100.0], PlanWork.iterate
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def counted(self: PlanWork, first: int, last: int) -> None:
        clock[0] += last - first
        iterate(self, first, last)

    monkeypatch.setattr(PlanWork, "iterate", counted)


@both_regimes
def test_a_time_limit_stops_between_slices_and_says_where(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch)
    monkeypatch.setattr(work, "LOOK", 2)
    case = small(batch=2, horizon=1)

    def run(iterations: int, limit: float | None) -> sgp.Plan:
        settings = planner(horizon=1, iterations=iterations, precision="float32", record_cost=True)
        return sgp.solve(case.problem, settings, case.x0, **case.given, backend=backend, time_limit_s=limit)

    slices = 2 * work.LOOK
    cut, whole = run(3 * work.LOOK, slices - 0.5), run(slices, None)
    assert cut.iterations.tolist() == [slices] * 2 and (cut.status == Status.LIMIT).all()
    assert torch.equal(cut.u, whole.u) and torch.equal(cut.x, whole.x) and torch.equal(cut.costate, whole.costate)
    assert cut.history is not None and whole.history is not None
    assert torch.equal(cut.history[:, :slices], whole.history) and cut.history[:, slices:].isnan().all()


def test_out_of_time_the_best_plan_so_far_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a good start, by steps that are far too long."""
    ticking(monkeypatch)
    case = small(batch=3, horizon=1, scored="score", bounds=(-3.0, 3.0))
    good = sgp.solve(case.problem, planner(horizon=1, iterations=60, step_size=0.1), case.x0, **case.given, backend="eager")
    given = {**case.given, "init": good.u.float()}
    for backend, limit in (("fused:tile", 4.5), ("fused:layered", 4.5), ("fused:layered", 9.5)):
        settings = planner(horizon=1, iterations=15, step_size=2.0, precision="float32")
        made = sgp.solve(case.problem, settings, case.x0, **given, backend=backend, time_limit_s=limit)
        start = sgp.solve(case.problem, replace(settings, step_size=0.0), case.x0, **given, backend="eager")
        assert (made.iterations == (5 if limit < 5 else 10)).all()
        assert relative(made.u, good.u) < 1e-6 and relative(made.ranking, start.ranking) < 1e-5


def test_a_plan_cut_short_before_its_schedules_ended_has_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch)
    case = small(batch=1, horizon=1)
    settings = planner(horizon=1, iterations=20, precision="float32", tolerance=1e6, step_size=(0.1, 0.01))
    made = sgp.solve(case.problem, settings, case.x0, **case.given, backend="fused:layered", time_limit_s=0.5)
    assert made.iterations.tolist() == [work.LOOK] and made.status.tolist() == [Status.LIMIT]
    made = sgp.solve(case.problem, settings, case.x0, **case.given, backend="fused:layered")
    assert made.status.tolist() == [Status.CONVERGED]


# Graphs follow the weights.


def counts(made: sgp.Plan) -> tuple[int, int, int]:
    stats = made.stats["graphs"]
    return stats["hits"], stats["captures"], stats["recaptures"]


def writes(problem: sgp.Problem) -> dict[str, Callable[[], Any]]:
    weights, norm, cost = problem.dynamics.network.weights, problem.dynamics.normalizer, problem.cost
    return {
        "a matrix in place": lambda: weights["layers.1.weight"].mul_(1.5),
        "a vector through .data": lambda: weights["layers.0.norm.bias"].data.add_(0.5),
        "the normaliser": lambda: norm.k.mul_(1.2),
        "the cost": lambda: cost.Q.data.mul_(3.0),
        "the goal": lambda: cost.goal.add_(1.0),
    }


@both_regimes
def test_what_is_written_in_place_takes_effect_without_a_capture(backend: str) -> None:
    case = small(with_goal=False, batch=1, horizon=1, terminal="value")
    case.problem.dynamics.float()  # as a trainer has them, beside others in float64
    before = plan(case, backend)
    for name, write in writes(case.problem).items():
        with torch.no_grad():
            write()
        after = plan(case, backend)
        assert counts(after)[0] == counts(before)[0] + 1 and counts(after)[1:] == counts(before)[1:], name
        assert relative(after.costate, before.costate) > 1e-3, name
        assert relative(after.costate, plan(case, "eager").costate) < 1e-5, name
        before = after


@both_regimes
@pytest.mark.parametrize("how", ["a new parameter", "new data"])
def test_a_weight_that_was_replaced_is_captured_again(how: str, backend: str) -> None:
    case = small(batch=1, horizon=1)
    before = plan(case, backend)
    layer = case.problem.dynamics.network.get_submodule("layers.1")
    if how == "new data":
        layer.weight.data = 2 * layer.weight.data
    else:
        layer.weight = nn.Parameter(2 * layer.weight.detach(), requires_grad=False)
    after = plan(case, backend)
    assert counts(after)[2] == counts(before)[2] + 1 and relative(after.x, before.x) > 1e-3
    assert relative(after.x, plan(case, "eager").x) < 1e-5
    assert counts(plan(case, backend))[1:] == counts(after)[1:]


@both_regimes
def test_planners_and_problems_in_turn_do_not_disturb_one_another(backend: str) -> None:
    """Each has a graph of its own, and a plan is no view of what the next replay writes to."""
    short, long, other = small(batch=2, horizon=1), small(batch=2, horizon=2), small("learned", batch=2, horizon=1)
    ways = [(short, 1), (long, 1), (short, 2), (other, 1)]
    first = [plan(case, backend, iterations=n) for case, n in ways]
    kept = [{name: t.clone() for name, t in made.tensors().items()} for made in first]
    second = [plan(case, backend, iterations=n) for case, n in ways]
    assert counts(second[-1])[1:] == counts(first[-1])[1:] and counts(second[-1])[0] >= counts(first[-1])[0] + len(ways)
    for one, two, copy in zip(first, second, kept, strict=True):
        equal(one, two)
        assert all(torch.equal(t, copy[name]) for name, t in one.tensors().items())
    assert relative(first[0].u, first[2].u) > 1e-4


def test_statistics_are_those_of_the_device_that_planned() -> None:
    made = plan(small(batch=1, horizon=1), "fused:layered")
    for device in (made.u.device, made.u.device.type):  # "cuda" is the current one
        assert vars(graph_stats(device)) == made.stats["graphs"], device


# Each problem as if it were alone.


@both_regimes
def test_a_problem_beside_others_and_beside_padding(backend: str) -> None:
    """Bit for bit, in the same bucket: three problems and a padded row are four problems without the last."""
    many, few = (plan(small("learned", "value", "score", batch=n, horizon=1), backend, keep_moments=True) for n in (4, 3))
    assert many.stats["bucket"] == few.stats["bucket"] == 4
    equal(few, many.select(torch.arange(3, device=DEVICE)))


SPOILED = (float("nan"), float("inf"), -float("inf"), 3e38)


@both_regimes
@pytest.mark.parametrize("problems", [64, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_problems_that_diverge_disturb_no_other(
    problems: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 64 or 1000, starts of NaN, of infinity, and finite ones that are infinite once normalised: bit for bit."""
    case = small("learned", "quadratic", "score", batch=problems, horizon=1, bounds=(-0.4, 0.5))
    bad = [1, 5, 40, problems - 1, *range(64, problems, 7)]
    settings: dict[str, Any] = {"record_cost": True, "keep_moments": True, "tolerance": 1e-8, "clip_gradient": 0.5}
    settings["bounding"] = "tanh"
    calm = plan(case, backend, **settings)
    load = PlanWork.load_job

    def spoiled(self: PlanWork, *given: Any) -> None:
        load(self, *given)
        for row, value in zip(bad, itertools.cycle(SPOILED), strict=False):
            self.buffers.x0[row] = value

    monkeypatch.setattr(PlanWork, "load_job", spoiled)
    rough = plan(case, backend, **settings)
    rest = torch.tensor([i for i in range(problems) if i not in bad], device=DEVICE)
    for name, t in rough.select(rest).tensors().items():
        assert torch.equal(t, calm.select(rest).tensors()[name]), name
    gone = rough.select(torch.tensor(bad, device=DEVICE))
    assert (gone.status == Status.DIVERGED).all() and (gone.iterations == 0).all()
    where_they_began = plan(case, "eager", **{**settings, "step_size": 0.0})
    assert relative(gone.u, where_they_began.u[bad]) < 1e-6


@both_regimes
@pytest.mark.slow
def test_a_problem_alone_and_among_a_thousand(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, padded to the same bucket."""
    case = small(batch=1000, horizon=1, scored="score")
    many = plan(case, backend, iterations=2)
    monkeypatch.setattr(fused, "bucket", lambda rows: many.stats["bucket"])
    # The interpreter multiplies by NumPy, whose BLAS may round rows 6 to 11 of each dozen otherwise than the rest: rows that
    # stand among the first of their block, whatever its size.
    for row in (64, 961) if INTERPRETED else (64, 71, 999):
        cut = {name: t[row : row + 1] for name, t in (("x0", case.x0), ("u", case.u))}
        goal = None if case.goal is None else case.goal[row : row + 1]
        alone = plan(replace(case, goal=goal, **cut), backend, iterations=2)
        equal(alone, many.select(torch.tensor([row], device=DEVICE)))


# What is not covered.


def uncovered() -> dict[str, tuple[Case, dict[str, Any], dict[str, Any]]]:
    """What is said of each: a case, options of the planner, arguments of `solve`."""
    made = small(batch=2)
    wide = replace(made, problem=replace(made.problem, dynamics=cases.learned_dynamics(mlp(NZ, NX, width=1025)).part))
    for part in wide.problem.modules.values():
        part.to(DEVICE)
    module = cases.case("module", batch=2, horizon=5)
    return {
        "its kernels plan in float32, tf32, float16, bfloat16, not in float64": (made, {"precision": "float64"}, {}),
        "a callback wants to see every iteration, and a graph runs them all at once": (
            made, {}, {"callback": lambda at: None}),
        "the dynamics are of type AutogradDynamics, not a sgp_fast Dynamics": (module, {}, {}),
        "the dynamics hold a layer 1025 wide; the kernels go to 1024": (wide, {}, {}),
    }  # fmt: skip


@both_regimes
def test_what_is_not_covered_says_so_and_what_would_work(backend: str) -> None:
    for words, (case, options, extra) in uncovered().items():
        settings = planner(**({"horizon": case.u.shape[1], "precision": "float32"} | options))
        with pytest.raises(ValueError) as raised:
            sgp.solve(case.problem, settings, case.x0, **case.given, backend=backend, **extra)
        assert str(raised.value).startswith(f"backend '{backend}' cannot plan this: {words}; use backend='eager'")


def test_auto_takes_what_it_covers_and_says_what_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU."""
    monkeypatch.setattr(fused, "interpreting", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for words, (case, options, extra) in uncovered().items():
        settings = planner(**({"horizon": case.u.shape[1], "precision": "float32"} | options))
        made = choose("auto", case.problem, settings, torch.device("cuda"), extra.get("callback"))
        assert made.name == "eager" and made.reason == f"not fused: {words}"
    settings = planner(precision="float32")
    made = choose("auto", small().problem, settings, torch.device("cuda"))
    assert isinstance(made, Fused) and made.race_eager and made.regime is None
    with pytest.raises(ValueError, match="its kernels run on CUDA devices, and the models are on cpu; use backend='eager'"):
        choose("fused", small().problem, settings, torch.device("cpu"))


def test_a_machine_without_a_gpu_or_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case, settings = small(), planner(precision="float32")
    monkeypatch.setattr(fused, "interpreting", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"backend 'fused' cannot plan this: no CUDA device \(TRITON_INTERPRET=1"):
        choose("fused", case.problem, settings, torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="triton is not installed .* pip install 'triton>=3.6,<4'"):
        choose("fused", case.problem, settings, torch.device("cpu"))


# On a GPU.


def published(batch: int, width: int = 256, horizon: int = 8) -> Case:
    """Networks as they are published, at states and controls of random size."""
    made = small(batch=batch, horizon=horizon, bounds=(-1.0, 1.0), dynamics=mlp(NZ, NX, width=width, norm=True))
    parts = {
        "cost": sgp.LearnedCost(cases.module(mlp(NZ, 1, width=width, norm=True), 2), cases.normalizer(NZ, 2)),
        "score": sgp.Score(
            cases.module(mlp(NZ, NZ, width=width, norm=True, levels=4), 8), cases.normalizer(NZ, 8), cases.SIGMAS
        ),
    }
    for part in parts.values():
        part.to(DEVICE)
    return replace(made, problem=replace(made.problem, **parts), goal=None)


def test_tile_plans_in_tf32_within_its_rounding() -> None:
    """Rounded as on a GPU even where it is interpreted, and so off by more than products of float32 are."""
    case = small("learned", "value", "noise", batch=5, horizon=3)
    ours = check(case, "fused:tile", "tf32", iterations=1, step_size=0.0)
    exact = plan(case, "fused:tile", "float32", iterations=1, step_size=0.0)
    assert relative(ours.x, exact.x) > 1e-6


def selecting(spec: NetworkSpec, seed: int) -> sgp.Network:
    """Every output of a layer is a multiple of an input of its own, so that what a product rounds is its operands alone.

    Layers are no wider than the one before.
    """
    made = cases.module(spec, seed)
    for name, w in made.weights.items():
        if w.ndim == 2 and name != "embedding":
            w.copy_(torch.eye(*w.shape, dtype=w.dtype) * (1 + 0.1 * w.abs()))
    return made


def rounded_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the plain networks multiply what tf32 products on a GPU are to multiply."""

    def rounded(t: Tensor) -> Tensor:
        return round_to_tf32_(t.clone())

    def linear(weights: reference.Weights, name: str, x: Tensor) -> Tensor:
        return rounded(x) @ rounded(weights[f"{name}.weight"]).T + weights[f"{name}.bias"]

    monkeypatch.setattr(reference, "_linear", linear)
    monkeypatch.setattr(reference, "_product_vjp", lambda g, w: rounded(g) @ rounded(w))


def by_twos(features: int) -> sgp.Normalizer:
    """A normaliser that divides by two, exactly."""
    return sgp.Normalizer(cases.normalizer(features).b, torch.full((features,), 2.0, dtype=cases.F64))


@pytest.mark.parametrize(
    ("backend", "cost"), [("fused:tile", "learned"), ("fused:tile", "quadratic"), ("fused:grid", "learned")]
)
def test_operands_of_tf32_products_are_rounded_and_nothing_else_is(
    backend: str, cost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All networks, forward and backward, where only that rounds: it is the plain plan to the last bits of float32.

    Gradients of quadratic costs have sums in them that round, too.
    """
    made = small(cost, cost, batch=3, horizon=3)
    nets = {
        "dynamics": NetworkSpec(NZ, (Layer(NZ, "relu"), Layer(NZ), Layer(NX))),
        "cost": NetworkSpec(NZ, (Layer(NZ), Layer(1))),
        "terminal": NetworkSpec(NX, (Layer(NX), Layer(1))),
        "score": NetworkSpec(NZ, (Layer(NZ, condition="multiply"), Layer(NZ)), levels=len(cases.SIGMAS)),
    }
    nets = {name: selecting(spec, seed) for seed, (name, spec) in enumerate(nets.items())}
    parts: dict[str, Any] = {
        "dynamics": sgp.Dynamics(nets["dynamics"], by_twos(NZ)),
        "score": sgp.Score(nets["score"], by_twos(NZ), cases.SIGMAS, output="score"),
    }
    told = ["x", "terms.running", "terms.terminal", "score_norm"]
    if cost == "learned":
        parts["cost"] = sgp.LearnedCost(nets["cost"], by_twos(NZ))
        parts["terminal"] = sgp.TerminalValue(nets["terminal"], by_twos(NX))
        told += ["costate", "grad_norm"]
    for part in parts.values():
        part.to(DEVICE)
    case = replace(made, problem=replace(made.problem, **parts))
    options: dict[str, Any] = {"iterations": 1, "step_size": 0.0}
    got, exact = (plan(case, backend, precision, **options).tensors() for precision in ("tf32", "float32"))
    rounded_by_hand(monkeypatch)
    want = plan(case, "eager", "float32", **options).tensors()
    for name in told:
        assert relative(got[name], want[name]) < 1e-6, name
        assert relative(got[name], exact[name]) > 1e-5, name


@pytest.mark.skipif(not INTERPRETED, reason="it looks at what is multiplied, which a capture forbids")
def test_the_librarys_products_of_costs_stay_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quadratic cost and one that is called, where the networks' products are tf32; as on a GPU."""
    seen: dict[str, set[bool]] = {"network": set(), "quadratic": set(), "called": set()}
    multiply, asked = torch.mm, torch.backends.cuda.matmul

    def seeing(a: Tensor, b: Tensor, **out: Any) -> Tensor:
        seen["quadratic" if b.shape == b.T.shape and torch.allclose(b, b.T) else "network"].add(bool(asked.allow_tf32))
        return multiply(a, b, **out)

    def called(x: Tensor) -> Tensor:
        seen["called"].add(bool(asked.allow_tf32))
        table = torch.zeros(8, device=x.device)  # an index that depends on the state cannot be traced
        return x.square().sum(-1) + table[x[..., 0].nan_to_num().clamp(0, 6).long()]

    for module in (work, layered):
        monkeypatch.setattr(module, "products_of", lambda precision, _: products_of(precision, torch.device("cuda")))
    monkeypatch.setattr(torch, "mm", seeing)
    made = small(batch=2, horizon=2)
    case = replace(made, problem=replace(made.problem, terminal=called))
    before = asked.allow_tf32
    plan(case, "fused:layered", "tf32", iterations=1)
    assert seen["network"] == {True} and seen["quadratic"] == seen["called"] == {False}
    assert asked.allow_tf32 == before


@pytest.mark.gpu
@both_regimes
@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 63, 1000])
def test_parity_on_a_gpu(batch: int, precision: str, backend: str) -> None:
    """One evaluation: steps of Adam would divide by gradients that are rounding alone."""
    check(published(batch), backend, precision, iterations=1, step_size=0.0)


@pytest.mark.gpu
@both_regimes
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_does_what_its_body_does(precision: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, over a whole plan."""
    case = published(100)
    captured = plan(case, backend, precision, iterations=20)
    plain = EagerDevice(captured.u.device)
    cache: GraphCache[PlanWork] = GraphCache(plain)
    monkeypatch.setattr(fused, "_of", lambda *_: (plain, cache))
    equal(captured, plan(case, backend, precision, iterations=20))


@pytest.mark.gpu
@both_regimes
def test_ten_thousand_plans_take_no_more_memory_than_a_hundred(backend: str) -> None:
    case = published(64, width=64)
    before = first = plan(case, backend, iterations=2)
    held = (0, 0)
    for number in range(10_000):
        before = plan(case, backend, iterations=2)
        if number == 100:
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == held
    equal(first, before)


@pytest.mark.gpu
@both_regimes
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_has_nothing_to_say(tool: str, backend: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    script = (
        "from tests.fused.test_fused import plan, small\n"
        "made = plan(small('learned', 'value', 'score', batch=65, bounds=(-0.4, 0.5), control_change=0.3), "
        f"{backend!r}, 'float16', iterations=2, record_cost=True)\n"
        "assert made.u.isfinite().all() and made.stats['backend'] == 'fused'\n"
    )
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
