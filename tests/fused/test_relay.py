"""The relay regime plans as the eager planner does, in 16-bit products, for any division of a batch into groups.

Interpreted programs run one after another, so a group has one here, which hands all words to itself; that it waits for words
that nobody writes is seen. `tests/ptx` runs groups of several programs, `tests/protocol` checks what they agree on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.backends import NAMES
from sgp_fast.backends.fused import backend as fused
from sgp_fast.backends.fused import relay as regime
from sgp_fast.backends.fused import work
from sgp_fast.backends.fused.buffers import Buffers
from sgp_fast.backends.fused.packed import PackedProblem
from sgp_fast.backends.fused.relay import RelayPlan, relay_plans, relays_for
from sgp_fast.backends.fused.work import PlanWork
from sgp_fast.kernels import gluon_interpreted
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, TimeEmbedding, mlp
from sgp_fast.kernels.packing import PackedNetwork, Program, lay_out
from sgp_fast.kernels.relay import rows as relay_rows
from sgp_fast.kernels.relay.tiles import Relay, copies_for, programs_of, tile_by_tile, uncovered_by_relay, words_of
from sgp_fast.solving import job_of
from tests import cases
from tests.cases import NU, NX, Case, planner, relative
from tests.fused.costs import COSTS, costed
from tests.fused.test_fused import (
    DEVICE,
    INTERPRETED,
    check,
    counts,
    equal,
    multiply_alike,
    plan,
    published,
    small,
    ticking,
)
from tests.fused.test_grid import problem, without_graphs

NZ = NX + NU
BACKEND = "fused:relay"
NAMED = ("dynamics", "cost", "score")
H200 = 132  # multiprocessors
Status = sgp.Status
slow = pytest.mark.slow
interpreted = pytest.mark.skipif(not INTERPRETED, reason="it is about what is interpreted")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products are so small that threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def through(
    monkeypatch: pytest.MonkeyPatch, problems: int, programs: int | None = None, warps: int = 8, whole: bool = False
) -> None:
    """Plan with such groups, over memory that is NaN wherever it is written before it is read.

    By default a group has one program where it is interpreted, and on a GPU one for 16 columns of the narrowest layer.
    """

    def make(packed: PackedProblem, settings: sgp.SGP, buffers: Buffers, settled: int) -> RelayPlan:
        usual = 1 if INTERPRETED else programs_of({name: net.network.program for name, net in packed.models.items()})
        made = RelayPlan(packed, settings, buffers, settled, Relay(problems, programs or usual, warps, whole))
        named = ["x", "costate", "grad_u", "running", "terminal"]
        named += ["score"] * (packed.score is not None) + ["change"] * (packed.control_change > 0)
        for tensor in (*made.workspace, *(getattr(buffers, n) for n in named)):
            tensor.fill_(float("nan"))
        return made

    monkeypatch.setattr(fused, "candidates_of", lambda *_: {f"relay of {problems} problems": make})


def covered(**options: Any) -> Case:
    """A learned cost and a score, as small as may be."""
    given: dict[str, Any] = {"width": 100, "hidden": 2} | options
    return problem("learned", "none", given.pop("scored", "score"), **given)


def fewer(case: Case, **parts: Any) -> Case:
    """The case with other parts."""
    for part in parts.values():
        part.to(DEVICE)
    return replace(case, problem=replace(case.problem, **parts))


def dynamics_of(*layers: Layer | Block) -> sgp.Dynamics:
    return sgp.Dynamics(cases.module(NetworkSpec(NZ, layers), 1), cases.normalizer(NZ, 1))


def cost_of(*layers: Layer) -> sgp.LearnedCost:
    return sgp.LearnedCost(cases.module(NetworkSpec(NZ, layers), 2), cases.normalizer(NZ, 2))


def score_of(*layers: Layer) -> sgp.Score:
    spec = NetworkSpec(NZ, layers, levels=len(cases.SIGMAS))
    return sgp.Score(cases.module(spec, 8), cases.normalizer(NZ, 8), cases.SIGMAS)


# Products; score; width and hidden layers; bounds, weight of control changes, largest gradient; problems of a group; batch,
# horizon, iterations. Every two values of two columns stand in a row together, but for two iterations of many problems: some
# gradients are rounding alone, and Adam steps by their sign.
ROWS: list[Any] = [
    ("float16", "unconditioned", 128, 1, "tanh", 0.3, None, 4, 4, 9, 1),
    ("bfloat16", None, 100, 2, "none", 0.3, 0.5, 2, 1, 1, 2),
    ("float16", None, 100, 3, "project", 0.0, None, 1, 1, 3, 2),
    ("float16", "unconditioned", 256, 3, "project", 0.0, 0.5, 8, 5, 1, 1),
    ("float16", "score", 200, 2, "none", 0.0, None, 2, 1, 7, 1),
    ("bfloat16", "noise", 256, 2, "tanh", 0.3, 0.5, 4, 4, 3, 1),
    ("bfloat16", "score", 128, 4, "project", 0.0, 0.5, 1, 1, 7, 1),
    ("bfloat16", None, 100, 1, "none", 0.0, None, 8, 3, 9, 1),
    ("bfloat16", None, 200, 1, "project", 0.3, 0.5, 2, 2, 9, 2),
    ("float16", "noise", 128, 4, "tanh", 0.0, None, 2, 1, 3, 2),
    ("bfloat16", "score", 200, 3, "tanh", 0.3, None, 4, 4, 1, 1),
    ("float16", "noise", 128, 2, "project", 0.3, None, 8, 8, 1, 1),
    ("float16", "unconditioned", 256, 1, "none", 0.3, 0.5, 1, 1, 9, 1),
    ("bfloat16", "unconditioned", 256, 1, "tanh", 0.0, None, 2, 1, 7, 2),
    ("float16", "unconditioned", 128, 2, "none", 0.0, 0.5, 4, 3, 3, 1),
    ("bfloat16", "noise", 100, 3, "none", 0.3, 0.5, 4, 2, 7, 1),
    ("float16", "score", 100, 4, "tanh", 0.3, 0.5, 8, 3, 1, 1),
    ("bfloat16", None, 200, 1, "tanh", 0.0, 0.5, 8, 5, 3, 1),
    ("bfloat16", "noise", 100, 2, "none", 0.0, 0.5, 1, 2, 9, 1),
    ("bfloat16", "score", 200, 4, "none", 0.3, 0.5, 1, 1, 1, 2),
    ("bfloat16", None, 128, 4, "project", 0.0, None, 4, 4, 9, 1),
    ("bfloat16", "unconditioned", 200, 1, "none", 0.3, 0.5, 2, 2, 1, 1),
    ("float16", "noise", 200, 3, "tanh", 0.3, 0.5, 1, 1, 1, 1),
    ("float16", None, 256, 3, "project", 0.0, 0.5, 2, 1, 1, 1),
    ("bfloat16", "unconditioned", 100, 4, "none", 0.3, None, 2, 2, 1, 1),
    ("bfloat16", "score", 128, 3, "tanh", 0.0, 0.5, 4, 4, 9, 1),
    ("bfloat16", "score", 256, 4, "tanh", 0.0, None, 4, 3, 1, 1),
    ("bfloat16", None, 128, 1, "project", 0.3, 0.5, 8, 3, 7, 1),
    ("bfloat16", "score", 100, 2, "tanh", 0.0, None, 4, 3, 3, 1),
    pytest.param("bfloat16", "score", 256, 4, "tanh", 0.3, 0.5, 8, 17, 7, 1, marks=slow),
    pytest.param("float16", "noise", 512, 3, "project", 0.3, 0.5, 1, 2, 9, 2, marks=slow),
    pytest.param("bfloat16", "score", 1024, 2, "project", 0.0, None, 4, 3, 3, 1, marks=slow),
    pytest.param("float16", None, 700, 4, "tanh", 0.3, None, 2, 2, 3, 1, marks=slow),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of e^h that is not taken
@pytest.mark.parametrize(
    ("precision", "scored", "width", "hidden", "bounding", "change", "clip", "problems", "batch", "horizon", "iterations"),
    ROWS,
)
def test_plans_of_every_kind(
    precision: str, scored: str | None, width: int, hidden: int, bounding: str, change: float, clip: float | None,
    problems: int, batch: int, horizon: int, iterations: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    through(monkeypatch, problems)
    bounds: dict[str, Any] = {} if bounding == "none" else {"bounds": (-0.4, 0.5)}
    case = covered(
        scored=scored, width=width, hidden=hidden, batch=batch, horizon=horizon, control_change=change, **bounds
    )
    made = check(
        case, BACKEND, precision, iterations=iterations, bounding="tanh" if bounding == "tanh" else "project",
        clip_gradient=clip, record_cost=True, keep_moments=True, beta=(0.6, 0.1), step_size=0.02 if iterations > 1 else 0.0,
    )  # fmt: skip
    assert made.stats["regime"] == f"relay of {problems} problems"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of e^h that is not taken
@pytest.mark.parametrize(("cost", "terminal", "scored", "goal", "problems", "batch", "horizon", "iterations"), COSTS)
def test_costs_of_every_kind(
    cost: str, terminal: str, scored: str | None, goal: bool, problems: int, batch: int, horizon: int, iterations: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    through(monkeypatch, problems, whole=problems == 1)
    case = costed(cost, terminal, scored, goal=goal, batch=batch, horizon=horizon, bounds=(-0.4, 0.5))
    step_size = 0.02 if iterations > 1 else 0.0
    check(case, BACKEND, "float16", iterations=iterations, step_size=step_size, record_cost=True, beta=(0.6, 0.1))


@pytest.mark.parametrize("cost", ["quadratic", "traced"])
def test_costs_beside_padding(cost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: three problems and a padded row are four problems without the last."""
    multiply_alike(monkeypatch)
    through(monkeypatch, 8)
    four = costed(cost, cost, "score", batch=4, horizon=2, bounds=(-0.4, 0.5))
    assert four.goal is not None
    params = None if cost == "quadratic" else {"weight": four.params["weight"][:3]}
    three = replace(four, x0=four.x0[:3], u=four.u[:3], goal=four.goal[:3], params=params)
    many, few = (plan(case, BACKEND, "float16") for case in (four, three))
    assert many.stats["bucket"] == few.stats["bucket"] == 4
    equal(few, many.select(torch.arange(3, device=DEVICE)))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("activation", ["identity", "relu", "elu", "silu", "gelu", "mish", "tanh"])
@pytest.mark.parametrize("whole", [False, True], ids=["handed on", "whole"])
def test_every_activation(activation: Any, norm: bool, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all layers of the dynamics, the last one's among them, and of the cost; where all programs compute a layer, too."""
    through(monkeypatch, 2, whole=whole)
    case = covered(scored=None, batch=2, horizon=2)
    layers = (Layer(90, activation, norm=norm), Layer(128, activation, norm=norm))
    given = fewer(case, dynamics=dynamics_of(*layers, Layer(NX, activation)), cost=cost_of(*layers, Layer(1, activation)))
    check(given, BACKEND, "float16", step_size=0.0)


@pytest.mark.parametrize("condition", ["multiply", "add"])
def test_conditions_of_each_kind(condition: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, 4)
    layers = (Layer(90, "elu", condition=condition), Layer(90, "silu", norm=True, condition=condition), Layer(NZ, "tanh"))
    case = covered(batch=3, horizon=2)
    for levels in ([0], [2]):
        check(fewer(case, score=score_of(*layers)), BACKEND, "float16", step_size=0.0, levels=levels)


@pytest.mark.parametrize("condition", ["multiply", "add"])
def test_a_condition_in_the_last_layer(condition: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, 2)
    score = score_of(Layer(90, "elu"), Layer(NZ, condition=condition))
    check(fewer(covered(batch=2, horizon=2), score=score), BACKEND, "bfloat16", step_size=0.0)


@pytest.mark.parametrize("problems", [1, 4])
def test_networks_of_different_widths_and_depths(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score ends before the cost does, and is wider; what one of them leaves is nothing to another."""
    through(monkeypatch, problems)
    given = fewer(
        covered(batch=3, horizon=3, bounds=(-0.4, 0.5)),
        dynamics=dynamics_of(Layer(256, "elu", norm=True), Layer(100, "silu"), Layer(NX)),
        cost=cost_of(Layer(100, "elu", norm=True), Layer(130, "tanh"), Layer(128, "mish", norm=True), Layer(1, "silu")),
        score=score_of(Layer(300, "relu", condition="multiply"), Layer(NZ)),
    )  # fmt: skip
    check(given, BACKEND, "bfloat16", step_size=0.0, record_cost=True)


def test_as_many_states_and_controls_as_it_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 together, which stand in two matrices of a first layer."""
    through(monkeypatch, 2)
    nx, nu, horizon = 100, 28, 3
    nets = [
        sgp.Dynamics(cases.module(mlp(nx + nu, nx, width=128, hidden_layers=1), 1), cases.normalizer(nx + nu, 1)),
        sgp.LearnedCost(cases.module(mlp(nx + nu, 1, width=128, hidden_layers=2), 2), cases.normalizer(nx + nu, 2)),
    ]
    for part in nets:
        part.to(DEVICE)
    draw = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, nx, generator=draw, dtype=torch.float64).to(DEVICE)
    u = 0.3 * torch.randn(2, horizon, nu, generator=draw, dtype=torch.float64).to(DEVICE)
    wide = sgp.Problem(dynamics=nets[0], cost=nets[1], nu=nu, bounds=(-0.4, 0.5))
    case = replace(covered(scored=None, batch=2, horizon=horizon), problem=wide, x0=x0, u=u)
    check(case, BACKEND, "bfloat16", step_size=0.0)


def test_products_are_of_16_bits() -> None:
    case = covered(batch=1, horizon=1)
    exact = plan(case, "eager", "float64", step_size=0.0)
    for precision, least, most in (("float16", 1e-5, 0.01), ("bfloat16", 1e-4, 0.08)):
        made = check(case, BACKEND, precision, step_size=0.0)
        assert least < relative(made.costate, exact.costate) < most, precision


def test_controls_are_handed_on_with_all_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dynamics pass them on, states hold them: only the products round."""
    through(monkeypatch, 2)
    case = covered(scored=None, batch=2, horizon=3)
    before = plan(case, BACKEND, "float16", step_size=0.0)
    told, names = [], ("controls", "inputs")
    launch = RelayPlan._launch

    def watched(self: RelayPlan, *given: Any, **options: Any) -> None:
        launch(self, *given, **options)
        told.append({name: getattr(self.scratch, name).clone() for name in names} | {"v": self.buffers.v.clone()})

    monkeypatch.setattr(RelayPlan, "_launch", watched)
    equal(before, plan(case, BACKEND, "float16", step_size=0.0))
    controls, v = told[0]["controls"].view(-1, 2, 16)[0], told[0]["v"]
    assert torch.equal(controls[:, : 3 * NU], v.flatten(1)[:2])
    assert torch.equal(told[0]["inputs"].view(-1, 4, 2, 16)[0, :3, :, NX:NZ], v[:2].transpose(0, 1))


# Groups, and the problems in them.


def test_how_a_batch_is_divided_changes_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case, plans = covered(batch=3, horizon=2, bounds=(-0.4, 0.5)), []
    for problems in (1, 2, 4, 8):
        through(monkeypatch, problems)
        plans.append(plan(case, BACKEND, "float16", step_size=0.0))
    for other in plans[1:]:
        assert relative(other.x, plans[0].x) < 1e-3 and relative(other.costate, plans[0].costate) < 1e-2


@pytest.mark.parametrize("problems", [2, 8])
def test_a_problem_beside_others_and_beside_padding(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in the same bucket: three problems and a padded row are four problems without the last."""
    multiply_alike(monkeypatch)
    through(monkeypatch, problems)
    many, few = (plan(covered(batch=n, horizon=2), BACKEND, "float16", keep_moments=True) for n in (4, 3))
    assert many.stats["bucket"] == few.stats["bucket"] == 4
    equal(few, many.select(torch.arange(3, device=DEVICE)))


@pytest.mark.parametrize("problems", [2, pytest.param(8, marks=slow)])
def test_a_problem_wherever_it_stands(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: in another place of its group, and in another group."""
    multiply_alike(monkeypatch)
    through(monkeypatch, problems)
    case, turned = covered(batch=4, horizon=2), torch.tensor([3, 2, 0, 1], device=DEVICE)
    moved = replace(case, x0=case.x0[turned], u=case.u[turned])
    one, other = (plan(given, BACKEND, "bfloat16", keep_moments=True, iterations=2) for given in (case, moved))
    equal(other, one.select(turned))


BAD = (1, 5, 12, 15)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("problems", [pytest.param(1, marks=slow), 2, 8])
@pytest.mark.parametrize("precision", ["float16", pytest.param("bfloat16", marks=slow)])
def test_problems_that_diverge_disturb_no_other(
    problems: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 16, starts of NaN, of infinity, and finite ones that are infinite once normalised."""
    through(monkeypatch, problems)
    case = covered(batch=16, horizon=2, bounds=(-0.4, 0.5))
    settings: dict[str, Any] = {"record_cost": True, "keep_moments": True, "tolerance": 1e-8, "clip_gradient": 0.5}
    settings["bounding"] = "tanh"
    calm = plan(case, BACKEND, precision, **settings)
    load = PlanWork.load_job

    def spoiled(self: PlanWork, *given: Any) -> None:
        load(self, *given)
        for row, value in zip(BAD, (float("nan"), float("inf"), -float("inf"), 3e38), strict=True):
            self.buffers.x0[row] = value

    monkeypatch.setattr(PlanWork, "load_job", spoiled)
    rough = plan(case, BACKEND, precision, **settings)
    rest = torch.tensor([i for i in range(16) if i not in BAD], device=DEVICE)
    for name, t in rough.select(rest).tensors().items():
        assert torch.equal(t, calm.select(rest).tensors()[name]), name
    gone = rough.select(torch.tensor(BAD, device=DEVICE))
    assert (gone.status == Status.DIVERGED).all() and (gone.iterations == 0).all()


# How a search goes on, and ends.


def growing(activation: Any) -> sgp.Problem:
    """x' = 1e8 x + u by a layer of ReLU, and a cost of −1e-18 Σ x by one with this activation: states overflow."""

    def network(activation: Any, outputs: int, first: torch.Tensor, second: torch.Tensor) -> sgp.Network:
        made = sgp.Network(NetworkSpec(NZ, (Layer(128, activation), Layer(outputs))))
        biases = {f"layers.{i}.bias": torch.zeros(len(w)) for i, w in enumerate((first, second))}
        made.load_state_dict({"layers.0.weight": first, "layers.1.weight": second, **biases})
        return made

    up, back = torch.zeros(128, NZ), torch.zeros(NX, 128)
    for sign, rows in ((1, slice(0, NX)), (-1, slice(NX, 2 * NX))):
        up[rows, :NX] = sign * 1e8 * torch.eye(NX)
        up[rows, NX:] = sign * torch.eye(NX)[:, :NU]
        back[:, rows] = sign * torch.eye(NX)
    ahead, total = torch.zeros(128, NZ), torch.zeros(1, 128)
    ahead[:NX], total[:, :NX] = torch.eye(NX, NZ), -1e-18
    unit = sgp.Normalizer(torch.zeros(NZ), torch.ones(NZ))
    made = sgp.Problem(
        dynamics=sgp.Dynamics(network("relu", NX, up, back), unit),
        cost=sgp.LearnedCost(network(activation, 1, ahead, total), unit),
    )
    for part in made.modules.values():
        part.to(DEVICE)
    return made


def grown(iterations: int, batch: int, backend: str, activation: str = "elu") -> sgp.Plan:
    """A plan of `growing`, of which problem 0 alone moves."""
    init = torch.zeros(batch, 4, NU, device=DEVICE)
    init[0] = 1e-20
    steps = [10.0 ** (11 * i - 9) for i in range(iterations)]
    settings = planner(horizon=4, precision="bfloat16", iterations=iterations, step_size=steps, record_cost=True)
    x0 = torch.zeros(batch, NX, device=DEVICE)
    return sgp.solve(growing(activation), settings, x0, init=init, backend=backend)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("iterations", [4, 5], ids=["in the last step", "on the way"])
@pytest.mark.parametrize("activation", ["elu", "relu"])
def test_a_problem_that_diverges_ends_as_the_eager_planner_says(
    activation: str, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes back to the last controls whose gradient was finite; problem 1, of the same group, never moves.

    Where the cost has ReLU its gradient is finite although the cost is not, and the problem goes on.
    """
    through(monkeypatch, 2)
    ours, theirs = (grown(iterations, 2, by, activation) for by in (BACKEND, "eager"))
    assert ours.status.tolist() == theirs.status.tolist() == [Status.DIVERGED, Status.LIMIT]
    assert ours.iterations.tolist() == theirs.iterations.tolist() == [4 if activation == "elu" else iterations, iterations]
    assert relative(ours.u, theirs.u) < 1e-2 and ours.u.isfinite().all()
    assert ours.history is not None and theirs.history is not None
    assert torch.equal(ours.history.isnan(), theirs.history.isnan())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_last_pass_is_repeated_where_a_problem_has_diverged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of problems 0 and 1 is evaluated again, and that of problems 2 and 3 is not."""
    through(monkeypatch, 2)
    without_graphs(monkeypatch, DEVICE)
    launch, left = RelayPlan._launch, []

    def marked(self: RelayPlan, *given: Any, only_diverged: bool, **options: Any) -> None:
        written = (self.buffers.x, self.buffers.costate, self.buffers.running, self.buffers.grad_u)
        before = [t.clone() for t in written]
        for t in written:
            t.fill_(7)
        launch(self, *given, only_diverged=only_diverged, **options)
        if only_diverged:
            left.append([(t == 7).flatten(1).any(1).tolist() for t in written])
            for t, values in zip(written, before, strict=True):
                t[2:] = values[2:]

    monkeypatch.setattr(RelayPlan, "_launch", marked)
    made = grown(4, 4, BACKEND)
    assert left == [[[False, False, True, True]] * 4]
    assert made.status.tolist() == [Status.DIVERGED, *[Status.LIMIT] * 3] and made.x.isfinite().all()


def test_some_converge_and_the_rest_go_on_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, 4)
    case = covered(batch=6, horizon=1, bounds=(-0.2, 0.1), scored=None)
    norms = plan(case, "eager", "float64", iterations=3, step_size=0.0).grad_norm.sort().values
    gaps = norms.diff()
    tolerance = float(norms[gaps.argmax()] + gaps.max() / 2)  # where rounding decides nothing
    made = check(case, BACKEND, "float16", iterations=3, tolerance=tolerance, record_cost=True, step_size=0.0)
    assert set(made.status.tolist()) == {Status.CONVERGED, Status.LIMIT}


def test_a_time_limit_stops_between_slices_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch for each slice, whose words begin anew, makes what one launch does."""
    ticking(monkeypatch)
    through(monkeypatch, 2)
    monkeypatch.setattr(work, "LOOK", 2)
    case = covered(scored=None, batch=2, horizon=2)

    def run(iterations: int, limit: float | None) -> sgp.Plan:
        settings = planner(horizon=2, iterations=iterations, precision="bfloat16", record_cost=True, step_size=0.05)
        return sgp.solve(case.problem, settings, case.x0, **case.given, backend=BACKEND, time_limit_s=limit)

    cut, whole = run(6, 3.5), run(4, None)
    assert cut.iterations.tolist() == [4] * 2 and (cut.status == Status.LIMIT).all()
    assert torch.equal(cut.u, whole.u) and torch.equal(cut.x, whole.x) and torch.equal(cut.costate, whole.costate)
    assert cut.history is not None and whole.history is not None
    assert torch.equal(cut.history[:, :4], whole.history) and cut.history[:, 4:].isnan().all()
    equal(run(4, 1e6), whole)


@pytest.mark.parametrize("most", [1, 2])
def test_more_iterations_than_stamps_are_several_launches(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the plan that one launch makes."""
    through(monkeypatch, 2)
    whole = plan(covered(batch=2, horizon=2, bounds=(-0.4, 0.5)), BACKEND, "float16", iterations=5, record_cost=True)
    launch, ends = RelayPlan._launch, []

    def counted(self: RelayPlan, first: int, last: int, *given: Any, moves: bool, **options: Any) -> None:
        if moves:
            ends.append((first, last))
        launch(self, first, last, *given, moves=moves, **options)

    monkeypatch.setattr(RelayPlan, "_launch", counted)
    monkeypatch.setattr(regime, "MOST_ITERATIONS", most)
    cut = plan(covered(batch=2, horizon=2, bounds=(-0.4, 0.5)), BACKEND, "float16", iterations=5, record_cost=True)
    equal(cut, whole)
    assert ends[: -(-5 // most)] == [(first, min(first + most, 5)) for first in range(0, 5, most)]


@interpreted
def test_stamps_of_more_than_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is the same where the first iteration's stamp is 255, and so the next ones need both bytes of a word."""
    through(monkeypatch, 2)

    def made() -> sgp.Plan:
        return plan(covered(batch=2, horizon=2), BACKEND, "float16", iterations=3)

    whole = made()
    mark, seen = gluon_interpreted._mark, set()

    def later(half: Any, stamp: Any) -> Any:
        seen.add(gluon_interpreted._number(stamp) + 254)
        return mark(half, stamp + 254)

    monkeypatch.setattr(gluon_interpreted, "_mark", later)
    equal(made(), whole)
    assert seen == {255, 256, 257, 258}


def test_plans_go_on_from_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their moments: two plans of two iterations are one of four, bit for bit."""
    through(monkeypatch, 2)
    case = covered(batch=2, horizon=2, bounds=(-0.4, 0.5))

    def run(iterations: int, init: Any) -> sgp.Plan:
        settings = planner(
            horizon=2, iterations=iterations, precision="float16", keep_moments=True, beta=0.3, levels=[1], step_size=0.05
        )
        return sgp.solve(case.problem, settings, case.x0, init=init, backend=BACKEND)

    equal(run(2, run(2, case.u)), replace(run(4, case.u), iterations=torch.full((2,), 2, device=DEVICE)))


def test_weights_written_in_place_are_cut_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all networks, the first matrix, one between, and the last."""
    through(monkeypatch, 1)
    case = covered(batch=1, horizon=2)
    before = plan(case, BACKEND, "float16", step_size=0.0)
    for part, name in itertools.product(("dynamics", "cost", "score"), ("layers.0", "layers.1", "layers.2")):
        with torch.no_grad():
            getattr(case.problem, part).network.weights[f"{name}.weight"].mul_(1.3)
        after = plan(case, BACKEND, "float16", step_size=0.0)
        assert counts(after)[0] == counts(before)[0] + 1 and counts(after)[1:] == counts(before)[1:], (part, name)
        assert relative(after.costate, before.costate) > 1e-3 or part == "score", (part, name)
        assert relative(after.costate, plan(case, "eager", "float64", step_size=0.0).costate) < 0.01, (part, name)
        before = after


# Words.


@interpreted
@pytest.mark.parametrize("where", ["rows", "plan"])
def test_a_wait_for_a_word_that_nobody_writes_raises(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one of a layer, or a control."""
    monkeypatch.setattr(f"sgp_fast.kernels.relay.{where}.publish", lambda *_: None)
    with pytest.raises(Exception, match="a wait without end: not every word has the stamp 1"):
        plan(covered(batch=2, horizon=1), BACKEND, "float16")


@interpreted
def test_words_of_the_iteration_before_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = relay_rows.publish

    def once(at: Any, half: Any, values: Any, stamp: Any, *rest: Any) -> None:
        if gluon_interpreted._number(stamp) == 1:
            publish(at, half, values, stamp, *rest)

    monkeypatch.setattr(relay_rows, "publish", once)
    plan(covered(batch=2, horizon=1), BACKEND, "float16", iterations=1)
    with pytest.raises(Exception, match="a wait without end: not every word has the stamp 2"):
        plan(covered(batch=2, horizon=1), BACKEND, "float16", iterations=2)


def test_words_of_one_launch_are_not_left_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are zero at the start of each: another launch would take those that have its stamps."""
    through(monkeypatch, 1)
    without_graphs(monkeypatch, DEVICE)
    launch, left, old = RelayPlan._launch, [], 0x3F8000003F800001  # 1, 1 and the stamp 1

    def watched(self: RelayPlan, *given: Any, **options: Any) -> None:
        self.scratch.words.fill_(old)
        launch(self, *given, **options)
        left.append(bool((self.scratch.words == old).any()))

    monkeypatch.setattr(RelayPlan, "_launch", watched)
    plan(covered(batch=1, horizon=1, scored=None), BACKEND, "float16")
    assert left == [False] * 3


# What it is divided into.


def programs(width: int = 256, hidden: int = 4, scored: bool = True) -> dict[str, Program]:
    """A problem's networks, packed, of the published shape or another."""
    spec = mlp(NZ, NX, width=width, hidden_layers=hidden, activation="elu", norm=True)
    return {name: lay_out(spec, 16).program for name in NAMED[: 3 if scored else 2]}


@pytest.fixture
def on_an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regime, "is_interpreted", lambda: False)
    monkeypatch.setattr(regime, "multiprocessors", lambda device: H200)


@pytest.mark.usefixtures("on_an_h200")
@pytest.mark.parametrize(
    ("rows", "width", "found"),
    [
        (1, 1024, [Relay(1, 64), Relay(1, 32)]),
        (2, 1024, [Relay(1, 64), Relay(1, 32)]),
        (4, 1024, [Relay(2, 64), Relay(1, 32)]),
        (64, 1024, [Relay(8, 16)]),
        (128, 1024, []),
        (1, 256, [Relay(1, 16, whole=True), Relay(1, 16), Relay(1, 16, 4)]),
        (8, 256, [Relay(1, 16, whole=True), Relay(1, 16), Relay(1, 16, 4)]),
        (16, 256, [Relay(2, 16), Relay(2, 16, 4)]),
        (64, 256, [Relay(8, 16), Relay(8, 16, 4)]),
        (128, 256, [Relay(8, 8), Relay(8, 8, 4)]),
        (256, 256, [Relay(8, 4), Relay(8, 4, 4)]),
        (512, 256, []),
    ],
)
def test_groups_have_as_few_problems_as_there_are_multiprocessors_for(rows: int, width: int, found: list[Relay]) -> None:
    """Of programs of 16 columns, and of 32; of narrow rows with four warps too, and a layer that is not handed on."""
    assert relays_for(programs(width), rows, DEVICE) == found
    for relay in found:
        assert -(-rows // relay.problems) * relay.programs <= H200 and width // relay.programs in regime.OWN_COLUMNS


@pytest.mark.usefixtures("on_an_h200")
def test_groups_hold_the_controls_of_a_long_horizon() -> None:
    """As few problems as that takes; or none, where those have too many programs."""
    assert relays_for(programs(256), 64, DEVICE, regime.MOST_CONTROLS // 4) == [Relay(4, 8), Relay(4, 8, 4)]
    assert relays_for(programs(256), 1, DEVICE, regime.MOST_CONTROLS) == relays_for(programs(256), 1, DEVICE)
    assert not relays_for(programs(256), 1, DEVICE, 2 * regime.MOST_CONTROLS)


@pytest.mark.usefixtures("on_an_h200")
def test_no_layer_is_too_wide_for_what_the_narrowest_is_divided_into() -> None:
    """A program has 64 columns of the widest at most."""
    for width, found in ((512, [Relay(1, 8)]), (1024, [])):
        nets = {name: lay_out(NetworkSpec(NZ, (Layer(width), Layer(128), Layer(NX))), 16).program for name in NAMED}
        assert relays_for(nets, 1, DEVICE) == found


def test_programs_have_columns_of_the_narrowest_layer() -> None:
    nets = programs(1024) | {"cost": lay_out(NetworkSpec(NZ, (Layer(1024), Layer(200), Layer(1))), 16).program}
    assert [programs_of(nets, own) for own in (16, 32, 64)] == [16, 8, 4]
    assert programs_of(nets, 512) == 1


@interpreted
def test_interpreted_groups_have_one_program() -> None:
    assert [relays_for(programs(), rows, DEVICE) for rows in (1, 4, 64)] == [[Relay(n, 1)] for n in (1, 4, 8)]


@pytest.mark.parametrize("horizon", [1, 3, 7, 8])
@pytest.mark.parametrize("problems", [1, 2, 4, 8])
@pytest.mark.parametrize("scored", [False, True])
def test_words_begin_where_vectors_of_them_may(problems: int, horizon: int, scored: bool) -> None:
    """A word for two numbers of a hidden layer, of every step and problem; and where each kind begins is a multiple of 4."""
    nets, relay = programs(hidden=3, scored=scored), Relay(problems, 16)
    blocks = relay.blocks(horizon)
    assert 8 * blocks >= horizon * problems > 8 * (blocks - 1)
    found = words_of(nets, horizon, relay, controls=16)
    dynamics, cost = 3 * 128 * horizon * problems, 3 * 128 * 8 * blocks
    assert found == {
        "dynamics": dynamics, "dynamics's gradients": dynamics, "cost": cost, "cost's gradients": cost,
        "score": cost if scored else 0, "terminal": 0, "terminal's gradients": 0, "controls": 16 * problems, "diverged": 4,
    }  # fmt: skip
    ends = words_of({**nets, "terminal": nets["cost"]}, horizon, relay, controls=16)
    assert ends == found | {"terminal": 8 * 3 * 128, "terminal's gradients": 8 * 3 * 128}
    assert list(found) == [
        "dynamics", "dynamics's gradients", "cost", "cost's gradients", "score", "terminal", "terminal's gradients",
        "controls", "diverged",
    ]  # fmt: skip
    assert all(end % 4 == 0 for end in itertools.accumulate(found.values()))


def test_words_of_networks_of_different_widths() -> None:
    """Narrower ones, whose rows begin at multiples of 4 still."""
    nets = programs(hidden=1) | {"cost": lay_out(NetworkSpec(NZ, (Layer(130), Layer(128), Layer(1))), 16).program}
    found = words_of(nets, 3, Relay(1, 8), controls=32)
    assert (found["dynamics"], found["cost"], found["score"], found["controls"]) == (3 * 128, 8 * 192, 8 * 128, 32)


# Weights as products read them.


@pytest.mark.parametrize(("rows", "depth"), [(16, 128), (256, 128), (128, 1024)])
def test_tiles_lie_where_lanes_read_them(rows: int, depth: int) -> None:
    """Eight rows of 32 numbers, one behind the other: 512 bytes, which a warp loads at once."""
    w, flat = torch.randn(rows, depth), torch.full((rows * depth,), float("nan"))
    to, source = tile_by_tile(flat, w)
    to.copy_(source)
    r, k = torch.arange(rows)[:, None], torch.arange(depth)[None, :]
    assert torch.equal(flat[(r // 8 * (depth // 32) + k // 32) * 256 + r % 8 * 32 + k % 32], w)


def test_copies_hold_every_weight_where_a_product_reads_it() -> None:
    """Deep ones tile by tile; shallow ones, of the first layer and of the last one's transpose, row by row."""
    spec = NetworkSpec(NZ, (Layer(100, "elu", norm=True), Layer(256, "silu"), Layer(NX)))
    packed = PackedNetwork.of(spec, cases.module(spec, 1).weights)
    net, w = packed.program, packed.weights
    forward, turned = torch.full_like(w, float("nan")), torch.full_like(w, float("nan"))
    for to, source in copies_for(net, w, forward, turned):
        to.copy_(source)
    for i, op in enumerate(net.operations):
        matrix = w[op.weight :][: op.columns * op.inputs].view(op.columns, op.inputs)
        for flat, of, shallow in ((forward, matrix, i == 0), (turned, matrix.T, i == 2)):
            r, k = torch.arange(of.shape[0])[:, None], torch.arange(of.shape[1])[None, :]
            depth = of.shape[1]
            place = r * depth + k if shallow else (r // 8 * (depth // 32) + k // 32) * 256 + r % 8 * 32 + k % 32
            assert torch.equal(flat[op.weight + place], of), i
    assert len(copies_for(net, w, forward, None)) == len(net.operations)


# What it refuses.


def wide(nx: int) -> Case:
    """A problem of so many states."""
    made = covered(batch=1, horizon=1, scored=None)
    parts = (
        sgp.Dynamics(cases.module(mlp(nx + NU, nx, width=128, hidden_layers=1), 1), cases.normalizer(nx + NU, 1)),
        sgp.LearnedCost(cases.module(mlp(nx + NU, 1, width=128, hidden_layers=1), 2), cases.normalizer(nx + NU, 2)),
    )
    for part in parts:
        part.to(DEVICE)
    x0 = torch.zeros(1, nx, device=DEVICE, dtype=torch.float64)
    return replace(made, problem=sgp.Problem(dynamics=parts[0], cost=parts[1], nu=NU), x0=x0)


def uncovered() -> dict[str, Case]:
    """What is said of each."""
    made = covered(batch=1, horizon=1)
    return {
        "a horizon of one step and no network but the dynamics, which then change nothing": problem(
            "quadratic", "none", None, width=100, batch=1, horizon=1),
        "the dynamics's single layer": fewer(made, dynamics=dynamics_of(Layer(NX))),
        "the dynamics's residual layers or blocks": fewer(
            made, dynamics=dynamics_of(Layer(100, "silu"), Layer(100, "silu", residual=True), Layer(NX))),
        "the dynamics's residual layers or blocks;": fewer(made, dynamics=dynamics_of(Layer(100), Block(100), Layer(NX))),
        "a norm in the cost's last layer": fewer(made, cost=cost_of(Layer(100, "elu"), Layer(1, norm=True))),
        "256 inputs or outputs of the dynamics; it goes to 128": wide(127),
        "the dynamics's padded width of 64, of which 8 warps cannot share the depth": fewer(
            made, dynamics=dynamics_of(Layer(128, "elu"), Layer(64, "elu"), Layer(NX))),
        "the score's padded width of 16, of which 8 warps cannot share the depth": fewer(
            made, score=score_of(Layer(9, "elu", condition="add"), Layer(NZ))),
    }  # fmt: skip


def test_what_it_does_not_cover_says_so_and_what_would_plan_it() -> None:
    for words, case in uncovered().items():
        with pytest.raises(ValueError) as raised:
            plan(case, BACKEND, "bfloat16")
        said = f"the relay regime does not cover {words.removesuffix(';')}; use backend='fused', which takes another"
        assert str(raised.value) == said


def test_where_it_does_not_serve_it_is_no_candidate() -> None:
    for words, case in uncovered().items():
        settings = planner(horizon=1, precision="bfloat16")
        assert not relay_plans(case.problem, settings, 1, DEVICE, asked=False), words
        assert list(relay_plans(case.problem, settings, 1, DEVICE, asked=True)) == ["relay"], words


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_products_of_32_bits_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match="multiplies in float16 or bfloat16; use backend='fused' for float32"):
        plan(covered(batch=1, horizon=1), BACKEND, precision)


def test_a_time_embedding_is_refused() -> None:
    spec = NetworkSpec(NZ, (Layer(128, "silu"), Layer(NU)), time=TimeEmbedding(4, 8, 4))
    networks = {"score": lay_out(spec, 16).program}
    assert uncovered_by_relay(networks, swept=1) == "the score's time embedding"


def test_a_cost_that_cannot_be_traced_is_refused() -> None:
    def branching(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return x.square().sum(-1) if x[..., 0].mean() > 0 else u.square().sum(-1)

    made = covered(batch=1, horizon=1)
    with pytest.raises(ValueError, match="'fused:relay' holds its cost in the kernel.*cannot be traced.*backend='fused'"):
        plan(replace(made, problem=replace(made.problem, cost=branching)), BACKEND, "bfloat16")


def test_too_many_problems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case, settings = covered(batch=3, horizon=1), planner(horizon=1, precision="bfloat16")
    monkeypatch.setattr(regime, "relays_for", lambda *_: [])
    assert not relay_plans(case.problem, settings, 4, DEVICE, asked=False)
    said = f"4 problems of such networks and horizon cannot be divided among the {regime.multiprocessors(DEVICE)} programs"
    with pytest.raises(ValueError, match=f"{said} of the relay regime that are resident at once; use backend='fused'"):
        plan(case, BACKEND, "bfloat16")


@pytest.mark.parametrize(("name", "most"), [("MOST_CONTROLS", 63), ("MOST_KEPT", 1 << 13)])
def test_longer_horizons_are_refused(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose controls a program cannot hold, or whose activations are too many to keep."""
    through(monkeypatch, 4)
    monkeypatch.setattr(regime, name, most)
    said = "horizon is 3: 64 controls for a group of the relay regime, and .* GB of activations; it goes to .* and .* GB"
    with pytest.raises(ValueError, match=f"{said}; use backend='fused', which takes another"):
        plan(covered(batch=4, horizon=3), BACKEND, "bfloat16")


def test_more_programs_than_are_resident_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By our count alone: nothing would end their waiting."""
    through(monkeypatch, 1)
    monkeypatch.setattr(regime, "multiprocessors", lambda device: 3)
    with pytest.raises(ValueError, match="programs, of which 3 are resident at once; give a group more problems"):
        plan(covered(batch=4, horizon=1), BACKEND, "bfloat16")


@interpreted
def test_interpreted_programs_never_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, 1, programs=2)
    with pytest.raises(ValueError, match="would wait for ever; give one program a group"):
        plan(covered(batch=1, horizon=1), BACKEND, "bfloat16")


def test_older_architectures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case, settings = covered(batch=1, horizon=1), planner(horizon=1, precision="bfloat16")
    monkeypatch.setattr(regime, "multiprocessors", lambda device: H200)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert not relay_plans(case.problem, settings, 1, torch.device("cuda"), asked=False)
    with pytest.raises(ValueError, match="the relay regime is for sm_90 and later; use backend='fused'"):
        regime.check_device(torch.device("cuda"))
    for capability in ((9, 0), (10, 0)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
        assert relay_plans(case.problem, settings, 1, torch.device("cuda"), asked=False)
        regime.check_device(torch.device("cuda"))


def test_a_race_has_it_only_where_it_serves() -> None:
    def raced(case: Case, precision: str) -> list[str]:
        settings = planner(horizon=case.u.shape[1], precision=precision)
        job = job_of(case.problem, settings, case.x0, goal=case.goal)
        return [name for name in fused.candidates_of(job, 4) if name.startswith("relay")]

    made = covered(batch=4, horizon=1)
    found = raced(made, "bfloat16")
    assert found == raced(made, "float16") and found
    assert not INTERPRETED or found == ["relay of 4 problems, 1 programs"]
    assert not raced(made, "float32") and not raced(made, "tf32")
    assert raced(problem("quadratic", "none", width=100, batch=4, horizon=1), "bfloat16") == found
    assert not raced(small("learned", "value", batch=4, horizon=1), "bfloat16")


def test_it_is_a_backend_that_may_be_asked_for() -> None:
    assert BACKEND in NAMES
    made = covered(batch=1, horizon=1)
    job = job_of(made.problem, planner(horizon=1, precision="bfloat16"), made.x0, goal=made.goal)
    assert all(name.startswith("relay of ") for name in fused.candidates_of(job, 4, "relay"))


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize(("batch", "width"), [(1, 256), (5, 256), (63, 256), (1, 1024), (63, 1024)])
def test_parity_on_a_gpu(batch: int, width: int, precision: str) -> None:
    """One evaluation: steps of Adam would divide by gradients that are rounding alone."""
    check(published(batch, width), BACKEND, precision, iterations=1, step_size=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize(("problems", "programs"), [(1, 1), (1, 16), (2, 16), (4, 8), (8, 4), (8, 16), (2, 8)])
def test_every_division_on_a_gpu(problems: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, problems, programs)
    check(published(6), BACKEND, "bfloat16", iterations=1, step_size=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 16])
def test_a_graph_does_what_its_body_does(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, over a whole plan."""
    through(monkeypatch, 1 if batch == 1 else 4)
    case = published(batch)
    captured = plan(case, BACKEND, "bfloat16", iterations=20)
    without_graphs(monkeypatch, captured.u.device)
    equal(captured, plan(case, BACKEND, "bfloat16", iterations=20))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 16])
def test_every_plan_is_the_same(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, a hundred times: whoever is late, nobody takes another word than the one that was meant."""
    through(monkeypatch, 1 if batch == 1 else 4)
    case = published(batch)
    first = plan(case, BACKEND, "bfloat16", iterations=50)
    for _ in range(100):
        equal(first, plan(case, BACKEND, "bfloat16", iterations=50))
