"""The grid regime plans as the eager planner does: with one program, and phase by phase with several.

Interpreted programs run one after another, so several of them cannot meet at a barrier; each phase is a launch then, which
shows that their slices make the right whole. `tests/protocol` checks the barrier itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.backends.fused import backend as fused
from sgp_fast.backends.fused.buffers import Buffers
from sgp_fast.backends.fused.device import EagerDevice
from sgp_fast.backends.fused.graphs import GraphCache
from sgp_fast.backends.fused.grid import GridPlan
from sgp_fast.backends.fused.packed import PackedProblem
from sgp_fast.backends.fused.work import PlanWork
from sgp_fast.kernels.grid.phases import GridTile, Slice
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, mlp
from tests import cases
from tests.cases import NU, NX, Case, planner, relative
from tests.fused.test_fused import DEVICE, INTERPRETED, check, equal, golden, plan, published, small

NZ = NX + NU
Status = sgp.Status


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products are so small that threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(
    cost: str = "learned", terminal: str = "none", scored: str | None = "score", *, width: int = 16, hidden: int = 2,
    with_goal: bool = True, **options: Any,
) -> Case:  # fmt: skip
    """SGP's networks, small: norms and noise levels, ELU, heads with and without an activation."""
    dynamics = mlp(NZ, NX, width=width, hidden_layers=hidden, norm=True)
    made = small("quadratic", "quadratic" if terminal == "quadratic" else "none", dynamics=dynamics, **options)
    parts: dict[str, Any] = {}
    if cost == "learned":
        spec = mlp(NZ, 1, width=width, hidden_layers=hidden, norm=True, head="tanh")
        parts["cost"] = sgp.LearnedCost(cases.module(spec, 2), cases.normalizer(NZ, 2))
    if terminal == "value":
        spec = mlp(NX, 1, width=width, hidden_layers=1, activation="gelu")
        parts["terminal"] = sgp.TerminalValue(cases.module(spec, 4), cases.normalizer(NX, 4))
    if scored is not None:
        levels = 0 if scored == "unconditioned" else len(cases.SIGMAS)
        spec = mlp(NZ, NZ, width=width, hidden_layers=hidden, norm=levels > 0, levels=levels)
        output: Any = "score" if scored == "unconditioned" else scored
        parts["score"] = sgp.Score(cases.module(spec, 8), cases.normalizer(NZ, 8), cases.SIGMAS, output=output)
    for part in parts.values():
        part.to(DEVICE)
    goal = made.goal if with_goal and "quadratic" in (cost, terminal) else None
    return replace(made, problem=replace(made.problem, **parts), goal=goal)


def through(
    monkeypatch: pytest.MonkeyPatch, tile: GridTile | None = None, programs: int | None = None, stepwise: bool = False
) -> None:
    """Plan so, over memory that is NaN wherever it is written before it is read."""

    def make(packed: PackedProblem, settings: sgp.SGP, buffers: Buffers, settled: int) -> GridPlan:
        regime = GridPlan(packed, settings, buffers, settled, tile, programs, stepwise)
        named = ["x", "costate", "grad_u", "running", "terminal"]
        named += ["score"] * (packed.score is not None) + ["change"] * (packed.control_change > 0)
        for tensor in (*regime.workspace, *(getattr(buffers, n) for n in named)):
            tensor.fill_(float("nan"))
        return regime

    monkeypatch.setattr(fused, "candidates_of", lambda *_: {"grid": make})


def cut(block_b: int, block_n: int, block_k: int, split: int) -> Slice:
    return Slice(block_b, block_n, block_k, split, 1, "ieee", INTERPRETED)


# Cost, terminal cost, score; width and hidden layers; bounds, weight of control changes, largest gradient, goals brought by
# the problems; batch, horizon, iterations.
ROWS: list[tuple[str, str, str | None, int, int, str, float, float | None, bool, int, int, int]] = [
    ("learned", "none", "score", 16, 4, "project", 0.0, None, False, 1, 7, 1),
    ("quadratic", "quadratic", "noise", 48, 2, "tanh", 0.3, 0.5, True, 5, 1, 3),
    ("learned", "value", None, 100, 1, "tanh", 0.0, None, False, 1, 1, 3),
    ("quadratic", "value", "unconditioned", 16, 1, "project", 0.3, None, False, 33, 1, 2),
    ("learned", "quadratic", "score", 100, 2, "project", 0.3, 0.5, True, 5, 2, 1),
    ("quadratic", "none", None, 48, 3, "project", 0.0, 0.5, True, 1, 3, 3),
    ("learned", "value", "noise", 16, 3, "none", 0.3, None, False, 2, 2, 2),
]


@pytest.mark.parametrize(
    ("cost", "terminal", "scored", "width", "hidden", "bounding", "change", "clip", "goal", "batch", "horizon",
     "iterations"), ROWS,
)  # fmt: skip
def test_plans_of_every_kind(
    cost: str, terminal: str, scored: str | None, width: int, hidden: int, bounding: str, change: float, clip: float | None,
    goal: bool, batch: int, horizon: int, iterations: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    through(monkeypatch, programs=1 if INTERPRETED else None)
    bounds: dict[str, Any] = {} if bounding == "none" else {"bounds": (-0.4, 0.5)}
    case = problem(
        cost, terminal, scored, width=width, hidden=hidden, with_goal=goal, batch=batch, horizon=horizon,
        control_change=change, **bounds,
    )  # fmt: skip
    made = check(
        case, "fused:grid", iterations=iterations, bounding="tanh" if bounding == "tanh" else "project", clip_gradient=clip,
        record_cost=True, keep_moments=True, beta=(0.6, 0.1), step_size=(0.1, 0.02),
    )  # fmt: skip
    assert made.stats["regime"] == "grid"


@pytest.mark.parametrize("batch", [5, 33])
@pytest.mark.slow
def test_many_problems_over_a_long_horizon(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, programs=1 if INTERPRETED else None)
    case = problem("learned", "value", batch=batch, horizon=7, width=48, bounds=(-0.4, 0.5), control_change=0.3)
    check(case, "fused:grid", iterations=3, record_cost=True, keep_moments=True)


@pytest.mark.parametrize(
    ("batch", "few", "many", "programs"),
    [
        (1, cut(1, 16, 64, 1), cut(16, 16, 64, 4), 5),
        (5, cut(16, 16, 16, 1), cut(16, 32, 64, 2), 3),
        pytest.param(33, cut(16, 16, 32, 2), cut(64, 16, 32, 1), 4, marks=pytest.mark.slow),
    ],
)
def test_the_slices_of_several_programs_make_one_plan(
    batch: int, few: Slice, many: Slice, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch a phase, and rows and columns that are padded."""
    through(monkeypatch, GridTile(few, many), programs, stepwise=True)
    case = problem("learned", "value" if batch == 5 else "none", width=40, batch=batch, horizon=2, control_change=0.3)
    check(case, "fused:grid", iterations=2, record_cost=True)


def test_how_many_programs_there_are_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: who computes a slice does not matter, and nothing is summed across programs in the order they come."""
    case, plans = problem("learned", "quadratic", batch=3, horizon=1, width=40, bounds=(-0.4, 0.5)), []
    for programs in (1, 4):
        fused.graphs_of.__globals__["_of"].cache_clear()
        through(monkeypatch, GridTile(cut(16, 16, 32, 2), cut(16, 16, 32, 2)), programs, stepwise=True)
        plans.append(plan(case, "fused:grid", iterations=2))
    equal(*plans)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "mish", "tanh"])
def test_plain_perceptrons(activation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, programs=1 if INTERPRETED else None)
    case = small("quadratic", dynamics=mlp(NZ, NX, width=20, hidden_layers=1, activation=activation), batch=2, horizon=2)
    check(case, "fused:grid")


def test_layers_that_add_their_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, programs=1 if INTERPRETED else None)
    first, second = Layer(NZ, "elu", condition="add"), Layer(NZ, "silu", norm=True, condition="add")
    case = problem(batch=2, horizon=2)
    spec = NetworkSpec(NZ, (first, second, Layer(NZ, condition="multiply")), levels=len(cases.SIGMAS))
    score = sgp.Score(cases.module(spec, 8), cases.normalizer(NZ, 8), cases.SIGMAS)
    score.to(DEVICE)
    check(replace(case, problem=replace(case.problem, score=score)), "fused:grid", iterations=2)


def test_products_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, programs=1 if INTERPRETED else None)
    case = problem("learned", "value", batch=5, horizon=1)
    made = check(case, "fused:grid", "float16", step_size=0.0)
    exact = plan(case, "eager", "float64", step_size=0.0)
    assert 1e-5 < relative(made.costate, exact.costate) < 0.01, "the products were not in float16"


@pytest.mark.parametrize("name", ["ncss_nn", "ncss_quad", "ss_quad"])
def test_the_first_step_of_published_plans(name: str) -> None:
    golden(name, "fused:grid", iterations=1)


@pytest.mark.parametrize("name", ["ncss_nn", "ncss_quad", "ss_quad"])
@pytest.mark.slow
def test_published_plans(name: str) -> None:
    golden(name, "fused:grid", iterations=None)


BAD = (1, 5, 12, 15)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_problems_that_diverge_disturb_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among 16, starts of NaN, of infinity, and finite ones that are infinite once normalised."""
    case = problem("learned", "quadratic", batch=16, horizon=1, bounds=(-0.4, 0.5))
    settings: dict[str, Any] = {"record_cost": True, "keep_moments": True, "tolerance": 1e-8, "clip_gradient": 0.5}
    settings["bounding"] = "tanh"
    calm = plan(case, "fused:grid", **settings)
    load = PlanWork.load_job

    def spoiled(self: PlanWork, *given: Any) -> None:
        load(self, *given)
        for row, value in zip(BAD, (float("nan"), float("inf"), -float("inf"), 3e38), strict=True):
            self.buffers.x0[row] = value

    monkeypatch.setattr(PlanWork, "load_job", spoiled)
    rough = plan(case, "fused:grid", **settings)
    rest = torch.tensor([i for i in range(16) if i not in BAD], device=DEVICE)
    for name, t in rough.select(rest).tensors().items():
        assert torch.equal(t, calm.select(rest).tensors()[name]), name
    gone = rough.select(torch.tensor(BAD, device=DEVICE))
    assert (gone.status == Status.DIVERGED).all() and (gone.iterations == 0).all()


def growing() -> sgp.Problem:
    """x' = 1e9 x + u through a layer of ReLU, and a terminal cost that rewards |x_T|: states grow until they overflow."""
    net = sgp.Network(NetworkSpec(NZ, (Layer(2 * NX, "relu"), Layer(NX))))
    first, second = torch.zeros(2 * NX, NZ), torch.cat((torch.eye(NX), -torch.eye(NX)), 1)
    for sign, rows in ((1, slice(0, NX)), (-1, slice(NX, 2 * NX))):
        first[rows, :NX] = sign * 1e9 * torch.eye(NX)
        first[rows, NX:] = sign * torch.eye(NX)[:, :NU]
    zero = {"layers.0.bias": torch.zeros(2 * NX), "layers.1.bias": torch.zeros(NX)}
    net.load_state_dict({"layers.0.weight": first, "layers.1.weight": second, **zero})
    unit = sgp.Normalizer(torch.zeros(NZ), torch.ones(NZ))
    made = sgp.Problem(
        dynamics=sgp.Dynamics(net, unit), cost=sgp.QuadraticCost(torch.zeros(NX, NX), torch.zeros(NU, NU)),
        terminal=sgp.QuadraticTerminal(-1e-35 * torch.eye(NX)),
    )  # fmt: skip
    for part in made.modules.values():
        part.to(DEVICE)
    return made


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("iterations", [3, 4], ids=["in the last step", "on the way"])
def test_a_problem_that_diverges_ends_as_the_eager_planner_says(iterations: int) -> None:
    """It goes back to the last controls whose gradient was finite; problem 1 never moves."""
    init = torch.full((2, 4, NU), 1e-20, device=DEVICE)
    init[1] = 0
    steps = [10.0 ** (6 * i - 8) for i in range(iterations)]
    settings = planner(horizon=4, precision="float32", iterations=iterations, step_size=steps, record_cost=True)
    x0 = torch.zeros(2, NX, device=DEVICE)
    ours, theirs = (sgp.solve(growing(), settings, x0, init=init, backend=by) for by in ("fused:grid", "eager"))
    assert ours.status.tolist() == theirs.status.tolist() == [Status.DIVERGED, Status.LIMIT]
    assert ours.iterations.tolist() == theirs.iterations.tolist()
    assert relative(ours.u, theirs.u) < 1e-4 and ours.u.isfinite().all()
    assert ours.history is not None and theirs.history is not None
    assert torch.equal(ours.history.isnan(), theirs.history.isnan())


def test_some_converge_and_the_rest_go_on_to_the_limit() -> None:
    case = problem("quadratic", batch=6, horizon=1, bounds=(-0.2, 0.1), scored=None)
    tolerance = plan(case, "eager", "float64", iterations=3).grad_norm.median().item() * (1 + 1e-3)
    made = check(case, "fused:grid", iterations=3, tolerance=tolerance, record_cost=True)
    assert set(made.status.tolist()) == {Status.CONVERGED, Status.LIMIT}


# What it refuses.


def test_what_it_does_not_cover_says_so_and_what_would_plan_it() -> None:
    spec = NetworkSpec(NZ, (Layer(8), Block(6), Layer(NX)))
    with pytest.raises(ValueError, match="the dynamics's residual layers or blocks.*use backend='fused'"):
        plan(small(dynamics=spec, batch=1, horizon=1), "fused:grid")
    with pytest.raises(ValueError, match="192 problems; it plans 128 at most.*use backend='fused'"):
        plan(small(batch=130, horizon=1), "fused:grid")


def test_it_plans_only_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race that its barrier never ends could not be caught."""
    seen: list[str] = []
    candidates = fused.candidates_of

    def watched(*given: Any) -> Any:
        found = candidates(*given)
        seen.extend(found)
        return {"layered": found["layered"]}

    monkeypatch.setattr(fused, "candidates_of", watched)
    plan(small(batch=1, horizon=1), "fused", iterations=1)
    assert "layered" in seen and "grid" not in seen


@pytest.mark.skipif(not INTERPRETED, reason="programs of a GPU meet at the barrier")
def test_interpreted_programs_never_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, programs=2)
    with pytest.raises(ValueError, match="a barrier would never end; give programs=1"):
        plan(problem(batch=1, horizon=1), "fused:grid")


# On a GPU.


def without_graphs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Plans are made anew from here on, and run as they are."""
    plain = EagerDevice(device)
    cache: GraphCache[Any] = GraphCache(plain)
    monkeypatch.setattr(fused, "_of", lambda *_: (plain, cache))


@pytest.mark.parametrize("batch", [1, 5])
def test_it_plans_in_tf32_within_its_rounding(batch: int) -> None:
    case = problem(batch=batch, horizon=3)
    ours = check(case, "fused:grid", "tf32", iterations=1, step_size=0.0)
    assert relative(ours.x, plan(case, "fused:grid", "float32", iterations=1, step_size=0.0).x) > 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("width", "batch", "precision"),
    [
        (256, 1, "float32"), (256, 5, "float32"), (256, 5, "tf32"), (256, 1, "bfloat16"), (256, 5, "bfloat16"),
        (256, 64, "bfloat16"), (1024, 1, "bfloat16"), (1024, 64, "bfloat16"),
    ],
)  # fmt: skip
def test_parity_on_a_gpu(width: int, batch: int, precision: str) -> None:
    """One evaluation: steps of Adam would divide by gradients that are rounding alone. Each case compiles for a minute."""
    check(published(batch, width), "fused:grid", precision, iterations=1, step_size=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 64])
def test_a_graph_does_what_its_body_does(batch: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, over a whole plan."""
    case = published(batch)
    captured = plan(case, "fused:grid", precision, iterations=20)
    without_graphs(monkeypatch, captured.u.device)
    equal(captured, plan(case, "fused:grid", precision, iterations=20))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 64])
def test_the_barrier_orders_what_launches_would(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: all iterations in one launch, and a launch a phase, a thousand phases and more."""
    case = published(batch)
    whole = plan(case, "fused:grid", "bfloat16", iterations=20)
    through(monkeypatch, stepwise=True)
    without_graphs(monkeypatch, whole.u.device)
    equal(whole, plan(case, "fused:grid", "bfloat16", iterations=20))


@pytest.mark.gpu
def test_more_programs_than_the_device_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By our count, and where that is not asked by the driver: never by waiting for ever."""
    through(monkeypatch, programs=100_000)
    with pytest.raises(RuntimeError, match="100000 programs cannot be resident at once"):
        plan(published(1), "fused:grid", iterations=1)
    monkeypatch.setattr(GridPlan, "_check_residence", lambda self, device: None)
    with pytest.raises(RuntimeError, match="(?i)cooperative"):
        plan(published(1), "fused:grid", iterations=1)
