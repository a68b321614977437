"""The ring regime plans as the eager planner does, in 16-bit products, for any division of a batch into programs.

Under Triton's interpreter copies and products happen when they are waited for, and what a copy goes to is NaN until then
(`kernels.gluon`), so that a tile which is multiplied too early, or overwritten too early, shows in the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.backends.fused import backend as fused
from sgp_fast.backends.fused import ring as regime
from sgp_fast.backends.fused.buffers import Buffers
from sgp_fast.backends.fused.packed import PackedProblem
from sgp_fast.backends.fused.ring import RingPlan, ring_plans
from sgp_fast.backends.fused.work import PlanWork
from sgp_fast.kernels.gluon import described, gl, jit, mbarrier, tma, warpgroup_mma_wait
from sgp_fast.kernels.network import Block, Layer, NetworkSpec, TimeEmbedding, mlp
from sgp_fast.kernels.packing import PackedNetwork, Program, lay_out
from sgp_fast.kernels.ring.tiles import depth_of, ends, ring_of, tiles_for, tiles_of_operation, uncovered_by_ring, widened
from sgp_fast.solving import job_of
from tests import cases
from tests.cases import NU, NX, Case, planner, relative
from tests.fused.costs import COSTS, costed
from tests.fused.test_fused import DEVICE, INTERPRETED, check, equal, plan, published, small
from tests.fused.test_grid import problem, without_graphs

NZ = NX + NU
BACKEND = "fused:ring"
Status = sgp.Status
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products are so small that threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def through(monkeypatch: pytest.MonkeyPatch, problems: int, warps: int = 8, pinned: int = 0) -> None:
    """Plan with such programs, over memory that is NaN wherever it is written before it is read."""

    def make(packed: PackedProblem, settings: sgp.SGP, buffers: Buffers, settled: int) -> RingPlan:
        made = RingPlan(packed, settings, buffers, settled, problems, warps, pinned)
        named = ["x", "costate", "grad_u", "running", "terminal"]
        named += ["score"] * (packed.score is not None) + ["change"] * (packed.control_change > 0)
        for tensor in (*made.workspace, *(getattr(buffers, n) for n in named)):
            tensor.fill_(float("nan"))
        return made

    monkeypatch.setattr(fused, "candidates_of", lambda *_: {f"ring of {problems} problems": make})


@pytest.fixture(autouse=True)
def no_copy_is_left() -> Iterator[None]:
    """A program that ends with copies on their way would write into the next one's shared memory."""
    yield
    if INTERPRETED:
        assert not any(state["copies"] for state in mbarrier._of.values())
        mbarrier._of.clear()


def covered(**options: Any) -> Case:
    """A learned cost and a score, small."""
    return problem("learned", "none", options.pop("scored", "score"), **options)


# Products; score; width and hidden layers; bounds, weight of control changes, largest gradient; problems of a program;
# batch, horizon, iterations (of many problems one: some gradients are rounding alone, and Adam steps by their sign).
ROWS: list[Any] = [
    ("float16", "score", 16, 2, "project", 0.0, None, 1, 1, 1, 2),
    ("bfloat16", "noise", 48, 2, "tanh", 0.3, None, 4, 3, 3, 1),
    ("float16", None, 100, 2, "none", 0.3, 0.5, 16, 17, 3, 1),
    ("bfloat16", "unconditioned", 16, 1, "project", 0.0, 0.5, 64, 17, 1, 2),
    ("float16", "noise", 256, 2, "tanh", 0.3, None, 2, 3, 1, 1),
    ("bfloat16", None, 256, 1, "project", 0.0, None, 16, 3, 7, 1),
    ("bfloat16", "score", 48, 2, "tanh", 0.0, None, 64, 3, 3, 1),
    ("float16", "unconditioned", 100, 1, "none", 0.3, None, 1, 1, 7, 1),
    pytest.param("bfloat16", "score", 256, 4, "tanh", 0.3, 0.5, 16, 17, 7, 2, marks=slow),
    pytest.param("float16", "noise", 100, 4, "project", 0.3, None, 64, 65, 3, 1, marks=slow),
    pytest.param("float16", "unconditioned", 48, 3, "tanh", 0.3, None, 2, 17, 7, 2, marks=slow),
    pytest.param("bfloat16", None, 256, 2, "project", 0.3, None, 64, 17, 7, 1, marks=slow),
]


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
    assert made.stats["regime"] == f"ring of {problems} problems"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of e^h that is not taken
@pytest.mark.parametrize(("cost", "terminal", "scored", "goal", "problems", "batch", "horizon", "iterations"), COSTS)
def test_costs_of_every_kind(
    cost: str, terminal: str, scored: str | None, goal: bool, problems: int, batch: int, horizon: int, iterations: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    through(monkeypatch, problems, pinned=problems % 2)
    case = costed(cost, terminal, scored, goal=goal, width=48, batch=batch, horizon=horizon, bounds=(-0.4, 0.5))
    step_size = 0.02 if iterations > 1 else 0.0
    check(case, BACKEND, "float16", iterations=iterations, step_size=step_size, record_cost=True, beta=(0.6, 0.1))


def test_more_slots_than_tiles_of_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile is asked for of the iteration after the next: of so few, an iteration has three or four."""
    for horizon, terminal, scored in ((1, "none", "unconditioned"), (1, "quadratic", None), (2, "none", None)):
        through(monkeypatch, 1)
        case = costed("quadratic", terminal, scored, width=16, hidden=1, batch=1, horizon=horizon)
        check(case, BACKEND, "float16", iterations=4, step_size=0.02)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("activation", ["relu", "elu", "silu", "gelu", "mish", "tanh"])
def test_every_activation(activation: Any, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, 2)
    spec = mlp(NZ, NX, width=20, hidden_layers=2, activation=activation, norm=norm)
    case = covered(scored=None, batch=2, horizon=2)
    dynamics = sgp.Dynamics(cases.module(spec, 1), cases.normalizer(NZ, 1))
    dynamics.to(DEVICE)
    check(replace(case, problem=replace(case.problem, dynamics=dynamics)), BACKEND, "float16", step_size=0.0)


@pytest.mark.parametrize("condition", ["multiply", "add"])
def test_conditions_of_each_kind(condition: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, 4)
    layers = (Layer(9, "elu", condition=condition), Layer(9, "silu", norm=True, condition=condition), Layer(NZ))
    spec = NetworkSpec(NZ, layers, levels=len(cases.SIGMAS))
    case = covered(batch=3, horizon=2)
    score = sgp.Score(cases.module(spec, 8), cases.normalizer(NZ, 8), cases.SIGMAS)
    score.to(DEVICE)
    given = replace(case, problem=replace(case.problem, score=score))
    check(given, BACKEND, "float16", step_size=0.0)


def test_products_are_of_16_bits() -> None:
    case = covered(batch=1, horizon=1)
    exact = plan(case, "eager", "float64", step_size=0.0)
    for precision, least, most in (("float16", 1e-5, 0.01), ("bfloat16", 1e-4, 0.08)):
        made = check(case, BACKEND, precision, step_size=0.0)
        assert least < relative(made.costate, exact.costate) < most, precision


# Programs, and the problems in them.


def test_how_a_batch_is_divided_changes_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case, plans = covered(batch=3, horizon=2, bounds=(-0.4, 0.5)), []
    for problems in (1, 4, 64):
        through(monkeypatch, problems)
        plans.append(plan(case, BACKEND, "float16", step_size=0.0))
    for other in plans[1:]:
        assert relative(other.x, plans[0].x) < 1e-3 and relative(other.costate, plans[0].costate) < 1e-2


@pytest.mark.parametrize(("pinned", "kept"), [(2, 2), (9, 4)])
@pytest.mark.parametrize("scored", ["score", None])
def test_tiles_that_stay_in_shared_memory_change_nothing(
    scored: str | None, pinned: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; more are not pinned than leave two slots to the ring."""
    case, plans = covered(scored=scored, width=256, hidden=2, batch=3, horizon=2), []
    assert ring_of(2, 2, programs(hidden=2), 1, pinned=pinned).pinned == kept
    for count in (0, pinned):
        through(monkeypatch, 2, pinned=count)
        plans.append(plan(case, BACKEND, "bfloat16", iterations=3))
    equal(*plans)


@pytest.mark.parametrize("problems", [4, 64])
def test_a_problem_beside_others_and_beside_padding(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in the same bucket: three problems and a padded row are four problems without the last."""
    through(monkeypatch, problems)
    many, few = (plan(covered(batch=n, horizon=1), BACKEND, "float16", keep_moments=True) for n in (4, 3))
    assert many.stats["bucket"] == few.stats["bucket"] == 4
    equal(few, many.select(torch.arange(3, device=DEVICE)))


BAD = (1, 5, 12, 15)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("problems", [16, 64])
@pytest.mark.parametrize("precision", ["float16", pytest.param("bfloat16", marks=slow)])
def test_problems_that_diverge_disturb_no_other(
    problems: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 16 of one program, starts of NaN, of infinity, and finite ones that are infinite once normalised."""
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


def growing() -> sgp.Problem:
    """x' = 1e9 x + u and a cost of −1e-18 Σ x, each through a layer of ReLU: states grow until they overflow."""

    def network(spec: NetworkSpec, first: torch.Tensor, second: torch.Tensor) -> sgp.Network:
        made = sgp.Network(spec)
        biases = {f"layers.{i}.bias": torch.zeros(len(w)) for i, w in enumerate((first, second))}
        made.load_state_dict({"layers.0.weight": first, "layers.1.weight": second, **biases})
        return made

    up = torch.zeros(2 * NX, NZ)
    for sign, rows in ((1, slice(0, NX)), (-1, slice(NX, 2 * NX))):
        up[rows, :NX] = sign * 1e9 * torch.eye(NX)
        up[rows, NX:] = sign * torch.eye(NX)[:, :NU]
    back = torch.cat((torch.eye(NX), -torch.eye(NX)), 1)
    dynamics = network(NetworkSpec(NZ, (Layer(2 * NX, "relu"), Layer(NX))), up, back)
    cost = network(NetworkSpec(NZ, (Layer(NX, "relu"), Layer(1))), torch.eye(NX, NZ), torch.full((1, NX), -1e-18))
    unit = sgp.Normalizer(torch.zeros(NZ), torch.ones(NZ))
    made = sgp.Problem(dynamics=sgp.Dynamics(dynamics, unit), cost=sgp.LearnedCost(cost, unit))
    for part in made.modules.values():
        part.to(DEVICE)
    return made


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("iterations", [4, 5], ids=["in the last step", "on the way"])
def test_a_problem_that_diverges_ends_as_the_eager_planner_says(
    iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes back to the last controls whose gradient was finite; problem 1, of the same program, never moves."""
    through(monkeypatch, 2)
    init = torch.full((2, 4, NU), 1e-20, device=DEVICE)
    init[1] = 0
    steps = [10.0 ** (10 * i - 8) for i in range(iterations)]
    settings = planner(horizon=4, precision="bfloat16", iterations=iterations, step_size=steps, record_cost=True)
    x0 = torch.zeros(2, NX, device=DEVICE)
    ours, theirs = (sgp.solve(growing(), settings, x0, init=init, backend=by) for by in (BACKEND, "eager"))
    assert ours.status.tolist() == theirs.status.tolist() == [Status.DIVERGED, Status.LIMIT]
    assert ours.iterations.tolist() == theirs.iterations.tolist()
    assert relative(ours.u, theirs.u) < 1e-2 and ours.u.isfinite().all()
    assert ours.history is not None and theirs.history is not None
    assert torch.equal(ours.history.isnan(), theirs.history.isnan())


# What it is divided into, and what it refuses.


def test_programs_are_as_small_as_keep_a_device_at_work_or_twice_that() -> None:
    case, settings = covered(batch=1), planner(precision="bfloat16")
    ways = {
        1: ["1 problems", "1 problems, 16 warps", "1 problems, 2 tiles pinned"],
        4: ["1 problems", "2 problems", "1 problems, 2 tiles pinned"],
        128: ["1 problems", "2 problems", "1 problems, 2 tiles pinned"],
        256: ["2 problems", "4 problems", "2 problems, 2 tiles pinned"],
        1024: ["8 problems", "16 problems"],
        4096: ["32 problems", "64 problems"],
        16384: ["64 problems", "64 problems, 16 warps"],
    }
    for rows, those in ways.items():
        found = ring_plans(case.problem, settings, rows, DEVICE, asked=False)
        assert list(found) == [f"ring of {way}" for way in those], rows


def programs(width: int = 256, hidden: int = 4) -> dict[str, Program]:
    """A problem's networks, packed, of the published shape or another."""
    spec = mlp(NZ, NX, width=width, hidden_layers=hidden, activation="elu", norm=True)
    return {name: lay_out(spec, 16).program for name in ("dynamics", "score", "cost")}


@pytest.mark.parametrize("horizon", [1, 7, 8, 64])
@pytest.mark.parametrize("problems", [1, 2, 16, 32, 64])
def test_a_program_has_whole_steps_and_fits_in_shared_memory(problems: int, horizon: int) -> None:
    ring = ring_of(problems, horizon, programs(), horizon - 1)
    assert ring.few >= problems and ring.steps * problems <= ring.many and ring.steps >= 1
    vectors = 1024 * 3 * (5 + 2 * 4)
    assert ring.slots >= 4 and 32768 * ring.slots + 512 * ring.many + vectors <= 224 << 10


def test_networks_whose_vectors_leave_no_room_are_refused() -> None:
    deep = programs(hidden=20)
    said = uncovered_by_ring(deep)
    assert said == "networks of 63 layers together, whose vectors fill shared memory"


# Tiles.


@pytest.mark.parametrize("width", [16, 48, 100, 200])
def test_tiles_hold_every_weight_where_a_product_reads_it(width: int) -> None:
    """In blocks of 64 columns, in the order of an evaluation, and zeros where networks are widened."""
    layers = (Layer(width, "elu", norm=True), Layer(width, "silu"), Layer(NX))
    names, spec = ("dynamics", "score", "cost", "terminal"), NetworkSpec(NZ, layers)
    weights = {name: cases.module(spec, i).weights for i, name in enumerate(names)}
    packed = {name: PackedNetwork.of(spec, weights[name]) for name in names}
    networks = {name: network.program for name, network in packed.items()}
    tiles, copies = tiles_for(networks, {name: network.weights for name, network in packed.items()})
    for to, source in copies:
        to.copy_(source)
    at = 0
    order = [("dynamics", False), ("terminal", False), ("terminal", True), ("cost", False), ("cost", True)]
    order += [("score", False), ("dynamics", True)]
    for name, backward in order:
        wide = widened(networks[name])
        for i in (2, 1, 0) if backward else (0, 1, 2):
            op, w = wide.operations[i], weights[name][f"layers.{i}.weight"]
            want = torch.zeros(op.columns, op.inputs)
            want[: w.shape[0], : w.shape[1]] = w
            n, depth = tiles_of_operation(wide, backward, i), depth_of(wide, backward, i)
            for k in range(n):
                part = want[k * depth :][:depth] if backward else want[:, k * depth :][:, :depth]
                blocks = torch.cat(part.split(64, 1))
                assert torch.equal(tiles[256 * at :][: len(blocks)], blocks)
                assert not tiles[256 * at + len(blocks) : 256 * (at + 1)].any()
                at += 1
    assert 256 * at == len(tiles) and at == ends(*(widened(networks[name]) for name in names))[-1]


def fewer(case: Case, **parts: Any) -> Case:
    for part in parts.values():
        part.to(DEVICE)
    return replace(case, problem=replace(case.problem, **parts))


def dynamics_of(*layers: Layer | Block, inputs: int = NZ) -> sgp.Dynamics:
    return sgp.Dynamics(cases.module(NetworkSpec(inputs, layers), 1), cases.normalizer(NZ, 1))


def uncovered() -> dict[str, Case]:
    """What is said of each."""
    made = covered(batch=1, horizon=1)
    return {
        "the dynamics's single layer": fewer(made, dynamics=dynamics_of(Layer(NX))),
        "the dynamics's residual layers or blocks": fewer(
            made, dynamics=dynamics_of(Layer(NZ, "silu", residual=True), Layer(NX))),
        "the dynamics's residual layers or blocks;": fewer(made, dynamics=dynamics_of(Layer(8), Block(6), Layer(NX))),
        "the dynamics's padded width of 512; it goes to 256": fewer(
            made, dynamics=dynamics_of(Layer(257, "elu"), Layer(NX))),
    }  # fmt: skip


def test_what_it_does_not_cover_says_so_and_what_would_plan_it() -> None:
    for words, case in uncovered().items():
        with pytest.raises(ValueError) as raised:
            plan(case, BACKEND, "bfloat16")
        said = f"the ring regime does not cover {words.removesuffix(';')}; use backend='fused', which takes another"
        assert str(raised.value) == said


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_products_of_32_bits_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match="multiplies in float16 or bfloat16; use backend='fused' for float32"):
        plan(covered(batch=1, horizon=1), BACKEND, precision)


def test_a_time_embedding_is_refused() -> None:
    spec = NetworkSpec(NZ, (Layer(8, "silu"), Layer(NU)), time=TimeEmbedding(4, 8, 4))
    networks = {"score": lay_out(spec, 16).program}
    assert uncovered_by_ring(networks) == "the score's time embedding"


def test_a_cost_that_cannot_be_traced_is_refused() -> None:
    def branching(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return x.square().sum(-1) if x[..., 0].mean() > 0 else u.square().sum(-1)

    made = covered(batch=1, horizon=1)
    with pytest.raises(ValueError, match="'fused:ring' holds its cost in the kernel.*cannot be traced.*use backend='fused'"):
        plan(replace(made, problem=replace(made.problem, cost=branching)), BACKEND, "bfloat16")


def test_other_architectures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case, settings = covered(batch=1, horizon=1), planner(horizon=1, precision="bfloat16")
    for capability in ((8, 0), (10, 0)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
        assert not ring_plans(case.problem, settings, 64, torch.device("cuda"), asked=False)
        with pytest.raises(ValueError, match="the ring regime is for sm_90 alone; use backend='fused'"):
            regime.check_device(torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert ring_plans(case.problem, settings, 64, torch.device("cuda"), asked=False)
    regime.check_device(torch.device("cuda"))


def test_a_race_has_it_only_where_it_serves() -> None:
    def raced(case: Case, precision: str) -> list[str]:
        settings = planner(horizon=case.u.shape[1], precision=precision)
        job = job_of(case.problem, settings, case.x0, goal=case.goal)
        return [name for name in fused.candidates_of(job, 4) if name.startswith("ring")]

    made = covered(batch=4, horizon=1)
    few = ["ring of 1 problems", "ring of 2 problems", "ring of 1 problems, 2 tiles pinned"]
    assert raced(made, "bfloat16") == raced(made, "float16") == few
    assert not raced(made, "float32") and not raced(made, "tf32")
    assert raced(problem("quadratic", "none", batch=4, horizon=1), "bfloat16") == few
    assert not raced(small("learned", "value", dynamics=NetworkSpec(NZ, (Layer(NX),)), batch=4, horizon=1), "bfloat16")


def test_beside_it_one_tile_is_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = {f"tile of {rows} rows": None for rows in (16, 32, 64)}
    monkeypatch.setattr("sgp_fast.backends.fused.tile.tile_plans", lambda *_: dict(tiles))

    def raced(precision: str, regime: str | None = None) -> list[str]:
        made = covered(batch=4, horizon=1)
        job = job_of(made.problem, planner(horizon=1, precision=precision), made.x0, goal=made.goal)
        return [name for name in fused.candidates_of(job, 4, regime) if name.startswith("tile")]

    assert raced("bfloat16") == ["tile of 16 rows"]
    assert raced("float32") == raced("bfloat16", "tile") == list(tiles)


# The stand-in for Gluon under Triton's interpreter.

interpreted = pytest.mark.skipif(not INTERPRETED, reason="on a GPU copies arrive when they do")


@jit
def reading_early_kernel(source, out):
    """Of a copy: what its target holds before it is waited for, and behind that what it holds afterwards."""
    at = gl.arange(0, 8)[:, None] * 64 + gl.arange(0, 64)[None, :]
    slot = gl.allocate_shared_memory(source.dtype, [8, 64], None)
    ready = gl.allocate_shared_memory(gl.int64, [1], None)
    mbarrier.init(ready, count=1)
    mbarrier.expect(ready, 1024)
    tma.async_copy_global_to_shared(source, [8, 0], ready, slot)
    gl.store(out + at, slot.load(None))
    mbarrier.wait(ready, 0)
    gl.store(out + 512 + at, slot.load(None))


@interpreted
def test_a_copy_has_not_arrived_before_it_is_waited_for() -> None:
    source, out = torch.arange(16 * 64.0).view(16, 64).half(), torch.zeros(16, 64)
    kernel: Any = reading_early_kernel
    kernel[(1,)](described(source, 8), out)
    assert out[:8].isnan().all() and torch.equal(out[8:], source[8:].float())


@interpreted
def test_a_wait_for_what_nothing_completes_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tma, "async_copy_global_to_shared", lambda *_, **__: None)
    with pytest.raises(Exception, match="a wait without end: 32768 bytes expected of 0 copies"):
        plan(covered(batch=2, horizon=1), BACKEND, "float16")


def unwaited(left: int, deps: Any) -> Any:
    """Products are waited for at the end of a layer alone."""
    return deps[0] if left else warpgroup_mma_wait(left, deps)


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("what", ["copies", "products"])
def test_too_few_waits_are_seen(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product of a tile that has not arrived is NaN, or of one that was overwritten, and so is the plan."""
    case = covered(batch=2, horizon=1, width=256)
    right = plan(case, BACKEND, "float16")
    if what == "copies":
        monkeypatch.setattr(mbarrier, "wait", lambda *_: [state["copies"].clear() for state in mbarrier._of.values()])
    else:
        monkeypatch.setattr("sgp_fast.kernels.ring.weights.warpgroup_mma_wait", unwaited)
    wrong = plan(case, BACKEND, "float16")
    assert right.x.isfinite().all() and (right.status != Status.DIVERGED).all()
    assert (wrong.status == Status.DIVERGED).all()


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 63, 1000])
def test_parity_on_a_gpu(batch: int, precision: str) -> None:
    """One evaluation: steps of Adam would divide by gradients that are rounding alone."""
    check(published(batch), BACKEND, precision, iterations=1, step_size=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("problems", "warps", "pinned"),
    [(1, 8, 0), (1, 16, 0), (1, 8, 2), (2, 8, 3), (4, 8, 2), (8, 8, 0), (16, 8, 0), (32, 8, 0), (64, 8, 0), (64, 16, 0)],
)
def test_every_division_on_a_gpu(problems: int, warps: int, pinned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, problems, warps, pinned)
    check(published(100), BACKEND, "bfloat16", iterations=1, step_size=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 100])
def test_a_graph_does_what_its_body_does(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, over a whole plan."""
    through(monkeypatch, 1 if batch == 1 else 16)
    case = published(batch)
    captured = plan(case, BACKEND, "bfloat16", iterations=20)
    without_graphs(monkeypatch, captured.u.device)
    equal(captured, plan(case, BACKEND, "bfloat16", iterations=20))
