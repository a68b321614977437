"""Native code plans as the eager planner does: its error against float64 is at most twice that of eager float32.

The tests of `test_planner.py` look at gradients through callbacks, mostly in float64; native code has neither. Here plans
are compared whole: every tensor of the plan, after some steps, against the eager planner in float64.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.backends import compiled
from sgp_fast.kernels import cpu
from sgp_fast.kernels.network import Layer, NetworkSpec, mlp
from tests import cases
from tests.cases import NU, NX, B, planner, relative
from tests.golden import FOLDER, load_case

pytestmark = pytest.mark.skipif(cpu.why_unavailable() is not None, reason=str(cpu.why_unavailable()))
Status = sgp.Status
# Where eager's own rounding happens to cancel, some roundings of 2⁻²⁴ are granted.
GRANTED = 16 * 2**-24


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def plan(case: cases.Case, backend: str, precision: str, **options: Any) -> sgp.Plan:
    settings = planner(**({"iterations": 3, "precision": precision, "step_size": 0.05} | options))
    return sgp.solve(case.problem, settings, case.x0, **case.given, backend=backend)


def check(case: cases.Case, precision: str = "float32", **options: Any) -> sgp.Plan:
    """Plan natively, in the same precision eagerly, and in float64; hold the first to the others. Returns the first."""
    ours, theirs = plan(case, "compiled", precision, **options), plan(case, "eager", precision, **options)
    exact = plan(case, "eager", "float64", **options).tensors()
    got, want = ours.tensors(), theirs.tensors()
    assert got.keys() == want.keys()
    for name, t in got.items():
        assert t.shape == want[name].shape and t.dtype == want[name].dtype, name
        if not t.is_floating_point():
            assert torch.equal(t, want[name]), name
            continue
        assert torch.equal(t.isnan(), want[name].isnan()), name
        errors = [relative(x.nan_to_num(), exact[name].nan_to_num()) for x in (t, want[name])]
        granted = GRANTED if precision == "float32" else 2**-8
        assert errors[0] <= 2 * errors[1] + granted, f"{name}: {errors[0]:.1e}, eager {errors[1]:.1e}"
    if precision == "float32":
        assert torch.allclose(ours.cost.double(), exact["cost"], rtol=1e-4, atol=1e-5)
    assert ours.stats["backend"] == "compiled"
    return ours


COVERED = [(c, e) for c in ("quadratic", "learned") for e in ("none", "quadratic", "value")]


@pytest.mark.parametrize("scored", ["no score", "score", "noise", "unconditioned"])
@pytest.mark.parametrize(("cost", "terminal"), COVERED)
def test_every_kind_of_problem(cost: str, terminal: str, scored: str) -> None:
    kinds = {"no score": None, "score": cases.score(), "noise": cases.score("noise"), "unconditioned": cases.score(levels=0)}
    case = cases.case("learned", cost, terminal, score_=kinds[scored], control_change=0.3)
    check(case, iterations=4, beta=(0.6, 0.1), step_size=(0.1, 0.02), record_cost=True, keep_moments=True)


@pytest.mark.parametrize(
    "options",
    [
        {"bounding": "tanh"}, {"clip_gradient": 0.5}, {"adam": (0.8, 0.95, 1e-6)}, {"starts": 3, "record_cost": True},
        {"iterations": 60, "tolerance": 0.05, "beta": 0.1, "levels": [1], "record_cost": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("bounds", ["shared", "each"])
def test_every_option(options: dict[str, Any], bounds: str) -> None:
    low, high = (-0.4, 0.5) if bounds == "shared" else (-torch.linspace(0.2, 0.9, B * NU).view(B, NU), torch.ones(NU))
    case = cases.case("learned", "quadratic", "quadratic", score_=cases.score(), bounds=(low, high))
    made = check(case, **options)
    assert (made.u >= torch.as_tensor(low).view(-1, 1, 1 if bounds == "shared" else NU)).all() and (made.u <= 1).all()


@pytest.mark.parametrize(("batch", "horizon"), [(1, 1), (1, 7), (2, 3), (3, 1), (7, 2), (33, 3), (65, 5), (130, 4)])
@pytest.mark.parametrize("cost", ["quadratic", "learned"])
def test_shapes_that_hurt(batch: int, horizon: int, cost: str) -> None:
    check(cases.case("learned", cost, "value", score_=cases.score(), batch=batch, horizon=horizon), horizon=horizon)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_bfloat16(batch: int) -> None:
    case = cases.case("learned", "learned", "value", score_=cases.score(), batch=batch)
    made = check(case, "bfloat16", iterations=1, step_size=0.0)
    assert made.stats["products"] == "bf16" and relative(made.costate, plan(case, "eager", "float64").costate) > 1e-5


def networks() -> Iterator[NetworkSpec]:
    """Every activation with and without norm and residual, at widths that leave tails of every kind; then a deep one."""
    for index, activation in enumerate(cases.ACTIVATIONS):
        for norm in (False, True):
            width = (5, 16, 17, 33, 64, 70, 100)[(index + 3 * norm) % 7]
            body: Any = {"activation": activation, "norm": norm}
            layers = (Layer(width, **body), Layer(width, residual=True, **body), Layer(width + 3, **body), Layer(NX))
            yield NetworkSpec(NX + NU, layers)
    yield NetworkSpec(NX + NU, (Layer(NX + NU, "tanh", residual=True), Layer(NX, "tanh", norm=False)))
    yield NetworkSpec(NX + NU, (Layer(NX),))
    yield mlp(NX + NU, NX, width=150, hidden_layers=7, norm=True)


def with_dynamics(spec: NetworkSpec, batch: int = 9, **options: Any) -> cases.Case:
    made = cases.learned_dynamics(spec, torch.tensor([0.2, 0.7, 0.4], dtype=torch.float64))
    case = cases.case("learned", "quadratic", "quadratic", batch=batch, **options)
    return dataclasses.replace(case, problem=dataclasses.replace(case.problem, dynamics=made.part), dynamics=made)


def words(spec: NetworkSpec) -> str:
    return "-".join(f"{n.width}{n.activation}{'N' * n.norm}" for n in spec.layers if isinstance(n, Layer))


@pytest.mark.parametrize("spec", list(networks()), ids=words)
@pytest.mark.parametrize("batch", [1, 9])
def test_every_network(spec: NetworkSpec, batch: int) -> None:
    check(with_dynamics(spec, batch), iterations=1, step_size=0.0)


@pytest.mark.parametrize("condition", ["multiply", "add"])
@pytest.mark.parametrize("norm", [False, True])
def test_every_conditioning(condition: Any, norm: bool) -> None:
    layers = (Layer(21, "silu"), Layer(21, "mish", norm, condition), Layer(21, "elu", norm, condition, True), Layer(NX + NU))
    spec, norm_ = NetworkSpec(NX + NU, layers, levels=4), cases.normalizer(NX + NU, 8)
    case = cases.case("learned", "quadratic", batch=9)
    score = sgp.Score(cases.module(spec, 8), norm_, cases.SIGMAS)
    case = dataclasses.replace(case, problem=dataclasses.replace(case.problem, score=score))
    check(case, iterations=4, beta=0.3)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*ss_*.safetensors")), ids=lambda p: p.stem)
def test_published_plans(path: Path) -> None:
    """The recorded results of the published planner, in float32; as near to them as eager float32 is."""
    case = load_case(path, "float32")
    errors = {}
    for backend in ("compiled", "eager"):
        made = sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=backend)
        errors[backend] = [relative(made.u, case.expected["u_final"].view_as(made.u)),
                           relative(made.x, case.expected["x_final"].view_as(made.x))]  # fmt: skip
    for ours, theirs in zip(errors["compiled"], errors["eager"], strict=True):
        assert ours <= 2 * theirs + GRANTED and ours < 1e-3, errors


# Problems side by side.


def wide_case(batch: int) -> cases.Case:
    return cases.case("learned", "learned", "quadratic", score_=cases.score(), batch=batch, bounds=(-1.0, 1.0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_plan_does_not_depend_on_what_is_beside_it(precision: str, two_threads: None) -> None:
    """Bit for bit where the products are the same kind; but for rounding where a lone problem's are not.

    The penalty is summed over the horizon by PyTorch, whose order of summation depends on the batch.
    """
    many = plan(wide_case(100), "compiled", precision, iterations=6)
    some = plan(wide_case(31), "compiled", precision, iterations=6)  # too few for tiles of float32
    for whole, count in ((many, 70), (many, 33), (many, 32), (some, 16), (some, 10)):
        few = plan(wide_case(count), "compiled", precision, iterations=6)
        assert few.stats["products"] == whole.stats["products"]
        for name, t in few.tensors().items():
            want = whole.tensors()[name][:count]
            assert torch.equal(t, want) or name == "terms.penalty" and torch.allclose(t, want, rtol=1e-6), (count, name)
    limit = 1e-5 if precision == "float32" else 0.05
    for count in (10, 5, 2, 1):
        few = plan(wide_case(count), "compiled", precision, iterations=6)
        assert relative(few.u, many.u[:count]) < limit and relative(few.costate, many.costate[:count]) < limit


@pytest.mark.parametrize("batch", [6, 60])
@pytest.mark.parametrize("options", [{}, {"clip_gradient": 0.5}, {"bounding": "tanh"}], ids=str)
def test_a_problem_that_diverges_disturbs_no_other(batch: int, options: dict[str, Any]) -> None:
    calm, rough = wide_case(batch), wide_case(batch)
    rough.x0[[1, 4]] = 3e38  # finite, and infinite once normalised
    settings = {"iterations": 12, "record_cost": True, "keep_moments": True, "tolerance": 1e-8, **options}
    plans = [plan(case, "compiled", "float32", **settings) for case in (calm, rough)]
    rest = torch.tensor([i for i in range(batch) if i not in (1, 4)])
    for name, t in plans[1].select(rest).tensors().items():
        assert torch.equal(t, plans[0].select(rest).tensors()[name]), name
    gone = plans[1].select(torch.tensor([1, 4]))
    assert (gone.status == Status.DIVERGED).all() and (gone.iterations == 0).all() and gone.u.isfinite().all()


def growing() -> sgp.Problem:
    """x' = 1e9 x + u, and a terminal cost that rewards |x_T|: the search makes states grow until they overflow."""
    net = sgp.Network(NetworkSpec(NX + NU, (Layer(NX),)))
    weight = torch.zeros(NX, NX + NU)
    weight[:, :NX], weight[:NU, NX:] = 1e9 * torch.eye(NX), torch.eye(NU)
    net.load_state_dict({"layers.0.weight": weight, "layers.0.bias": torch.zeros(NX)})
    unit = sgp.Normalizer(torch.zeros(NX + NU), torch.ones(NX + NU))
    return sgp.Problem(
        dynamics=sgp.Dynamics(net, unit), cost=sgp.QuadraticCost(torch.zeros(NX, NX), torch.zeros(NU, NU)),
        terminal=sgp.QuadraticTerminal(-1e-35 * torch.eye(NX)),
    )  # fmt: skip


def test_a_diverged_plan_holds_the_last_controls_whose_gradient_was_finite() -> None:
    """Status, steps taken and controls are the eager planner's; problem 0 breaks on the way, problem 1 never moves."""
    init = torch.full((2, 4, NU), 1e-20)
    init[1] = 0
    settings = planner(horizon=4, precision="float32", iterations=12, step_size=[10.0 ** (3 * i - 8) for i in range(12)])
    settings = dataclasses.replace(settings, record_cost=True)
    ours, theirs = (
        sgp.solve(growing(), settings, torch.zeros(2, NX), init=init, backend=b) for b in ("compiled", "eager")
    )
    assert ours.status.tolist() == theirs.status.tolist() == [Status.DIVERGED, Status.LIMIT]
    assert ours.iterations.tolist() == theirs.iterations.tolist() and 0 < ours.iterations[0] < 12
    assert relative(ours.u, theirs.u) < 1e-4 and ours.u.isfinite().all()
    assert ours.history is not None and theirs.history is not None
    assert torch.equal(ours.history.isnan(), theirs.history.isnan())


# Which products, which threads, which instructions.


@pytest.mark.parametrize("width", [17, 256])
def test_six_bfloat16_products_are_as_exact_as_float32(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twice the error of float32 products, in every tensor of the evaluation."""
    if not cpu.load().tiles:
        pytest.skip("no matrix tiles here: float32 products are float32")
    case = with_dynamics(mlp(NX + NU, NX, width=width, norm=True), batch=64)
    exact = plan(case, "eager", "float64", iterations=1, step_size=0.0).tensors()
    errors = {}
    for rows in (1, 10**6):
        monkeypatch.setattr(compiled, "SIX_PRODUCTS_FROM", rows)
        made = plan(case, "compiled", "float32", iterations=1, step_size=0.0)
        floats = {name: t for name, t in made.tensors().items() if t.is_floating_point()}
        errors[made.stats["products"]] = {name: relative(t, exact[name]) for name, t in floats.items()}
    six, plain = errors["fp32 as six bf16 products"], errors["fp32"]
    for name in six:
        assert six[name] <= 2 * plain[name] + 2**-24, (name, six[name], plain[name])


@pytest.mark.parametrize(("batch", "horizon"), [(1, 1), (1, 7), (2, 4), (1, 8), (7, 2), (15, 3), (20, 2)])
def test_weights_of_24_bits_are_as_exact_as_float32(batch: int, horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twice the error of eager float32, in every tensor of the plan; the widths leave tails of panels."""
    if not cpu.load().integers:
        pytest.skip("no bytes to be permuted here: weights are float32")
    monkeypatch.setattr(sys.modules[cpu.PackedNetwork.__module__], "INTEGERS_FROM", 0)
    for width in (128, 150, 257):
        case = with_dynamics(mlp(NX + NU, NX, width=width, norm=True), batch, score_=cases.score(), horizon=horizon)
        made = check(case, iterations=4, beta=0.3, horizon=horizon)
        few = batch <= compiled.INTEGERS_UP_TO * torch.get_num_threads()
        assert made.stats["products"].endswith(", weights of 24 bits") == few


def test_a_weight_that_24_bits_would_blur_stays_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A huge weight on a dead unit leaves the other weights of its column too few bits; its matrix is not rounded."""
    monkeypatch.setattr(sys.modules[cpu.PackedNetwork.__module__], "INTEGERS_FROM", 0)
    case = with_dynamics(mlp(NX + NU, NX, width=128, hidden_layers=2), batch=1)
    weights = case.problem.dynamics.network.weights
    with torch.no_grad():
        weights["layers.1.weight"][:, 5] = 1e8
        weights["layers.0.weight"][5] = weights["layers.0.bias"][5] = 0
    check(case, iterations=1, step_size=0.0)


@pytest.mark.parametrize("batch", [1, 5, 7])
def test_every_division_of_the_work_gives_the_same(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    for way in compiled.divisions(batch, 3):
        monkeypatch.setattr(compiled, "fastest", lambda call, way=way: way)
        plans.append(plan(wide_case(batch), "compiled", "float32", iterations=5))
        assert plans[-1].stats["division"] == str(way)
    for other in plans[1:]:
        assert relative(other.u, plans[0].u) < 1e-6 and torch.equal(other.status, plans[0].status)


def test_threads_that_share_columns_never_overtake_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual layer at the bottom wants its cotangent after its product, when another thread may be at the next one."""
    monkeypatch.setattr(compiled, "fastest", lambda call: compiled.Division(3, by_columns=True))
    case = with_dynamics(NetworkSpec(NX + NU, (Layer(NX + NU, "tanh", residual=True), Layer(NX, "tanh"))), batch=15)
    plans = [plan(case, "compiled", "float32", iterations=100) for _ in range(10)]
    assert relative(plans[0].u, plan(case, "eager", "float32", iterations=100).u) < 1e-4
    assert all(torch.equal(made.u, plans[0].u) for made in plans)


@pytest.mark.parametrize("architecture", ["-march=x86-64-v3", "-march=x86-64"])
def test_other_instruction_sets(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("instruction sets of x86")
    engine = cpu.engine(architecture)
    assert engine.lanes == (8 if "v3" in architecture else 4) and not engine.tiles
    monkeypatch.setattr(cpu, "load", lambda: engine)
    for batch in (1, 4, 40):
        case = cases.case("learned", "learned", "value", score_=cases.score(), batch=batch, bounds=(-1.0, 1.0))
        made = check(case, iterations=4, beta=0.3)
        assert made.stats["products"] == "fp32" and made.stats["instructions"] == ("AVX2" if "v3" in architecture else "SSE")
        check(case, "bfloat16", iterations=1, step_size=0.0)
    for spec in networks():
        check(with_dynamics(spec), iterations=1, step_size=0.0)
        check(with_dynamics(spec), "bfloat16", iterations=1, step_size=0.0)


def test_two_python_threads_plan_at_once(two_threads: None) -> None:
    case = wide_case(20)
    want = plan(case, "compiled", "float32", iterations=20)
    found: list[Tensor] = []

    def work() -> None:
        found.extend(plan(case, "compiled", "float32", iterations=20).u for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 15 and all(torch.equal(u, want.u) for u in found)


def _solve_in_child(queue: Any) -> None:
    torch.set_num_threads(2)
    queue.put(plan(wide_case(12), "compiled", "float32").u.numpy())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not let a process choose its cores")
def test_a_process_keeps_its_cores_and_plans_on_one(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "divisions", lambda rows, threads: [compiled.Division(2, by_columns=False)])
    case, before = wide_case(8), os.sched_getaffinity(0)
    want = plan(case, "compiled", "float32")
    assert os.sched_getaffinity(0) == before
    try:
        os.sched_setaffinity(0, {min(before)})
        assert torch.equal(plan(case, "compiled", "float32").u, want.u)
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_a_forked_process_plans() -> None:
    want = plan(wide_case(12), "compiled", "float32").u
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_solve_in_child, args=(queue,))
    child.start()
    got = torch.from_numpy(queue.get(timeout=60))
    child.join(60)
    assert child.exitcode == 0 and relative(got, want) < 1e-6


# What is kept, and what is not covered.


def test_no_iteration_begins_after_the_time_limit() -> None:
    for batch in (1, 200):
        case = wide_case(batch)
        settings = planner(precision="float32", iterations=200_000)
        limited = sgp.solve(case.problem, settings, case.x0, init=case.u, time_limit_s=0.3, backend="compiled")
        assert limited.stats["seconds"] < 3 and (limited.status == Status.LIMIT).all()
        assert (limited.iterations > 0).all() and (limited.iterations < 200_000).all()


def test_a_first_plan_has_all_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that a first call packs do not use up the limit: a controller's first step plans, too."""
    case, pack, pauses = wide_case(2), compiled.packed, [0.4]

    def slowly(*given: Any) -> Any:
        time.sleep(pauses.pop() if pauses else 0.0)
        return pack(*given)

    monkeypatch.setattr(compiled, "packed", slowly)
    settings = planner(precision="float32", iterations=3)
    made = sgp.solve(case.problem, settings, case.x0, init=case.u, time_limit_s=0.3, backend="compiled")
    assert not pauses and made.iterations.tolist() == [3, 3]


@pytest.mark.parametrize("batch", [1, 200])
def test_out_of_time_the_best_plan_so_far_comes_back(batch: int) -> None:
    """From a good start, by steps that are far too long."""
    case = wide_case(batch)
    settled = planner(precision="float32", iterations=300, step_size=(0.1, 0.001))
    good = sgp.solve(case.problem, settled, case.x0, init=case.u)
    settings = planner(precision="float32", iterations=200_000, step_size=2.0, tolerance=0.0)
    wild = sgp.solve(case.problem, settings, case.x0, init=good, time_limit_s=0.2, backend="compiled")
    assert (wild.iterations > 0).all() and (wild.iterations < 200_000).all()
    assert (wild.ranking <= good.ranking + 1e-5 * good.ranking.abs()).all()
    free = sgp.solve(case.problem, dataclasses.replace(settings, iterations=7), case.x0, init=good, backend="compiled")
    assert (free.ranking > good.ranking).any()


def test_going_on_with_the_moments_is_one_uninterrupted_run() -> None:
    case = wide_case(B)

    def run(iterations: int, init: Any) -> sgp.Plan:
        settings = planner(iterations=iterations, keep_moments=True, precision="float32", beta=0.3, levels=[1])
        return sgp.solve(case.problem, settings, case.x0, init=init, backend="compiled")

    whole, second = run(12, case.u), run(7, run(5, case.u))
    assert relative(second.u, whole.u) < 1e-6
    assert second.moments is not None and second.moments[2].tolist() == [12.0] * B


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("write", ["in place", "through data"])
def test_a_changed_weight_is_honoured_by_the_next_solve(write: str, precision: str) -> None:
    case = wide_case(3)
    before = plan(case, "compiled", precision)
    weight = case.problem.dynamics.network.weights["layers.1.weight"]
    with torch.no_grad():
        (weight if write == "in place" else weight.data).mul_(0.5)
    after = plan(case, "compiled", precision)
    assert relative(after.x, before.x) > 1e-3
    assert relative(after.x, plan(case, "eager", precision).x) < (1e-5 if precision == "float32" else 0.02)


def test_what_is_not_covered_says_so_and_what_would_work() -> None:
    case = wide_case(2)
    blocks, module = cases.case("scaled blocks"), cases.case("module")
    asked = {
        "float64": (case, {"precision": "float64"}, {}),
        "callback": (case, {"precision": "float32"}, {"callback": lambda at: None}),
        "AutogradDynamics": (module, {"precision": "float32"}, {}),
        "pre-norm blocks": (blocks, {"precision": "float32"}, {}),
    }
    for words, (case, options, extra) in asked.items():
        with pytest.raises(ValueError, match=rf"backend 'compiled' cannot plan this: .*{words}.*; use backend='eager'"):
            sgp.solve(case.problem, planner(**options), case.x0, **case.given, backend="compiled", **extra)
        made = sgp.solve(case.problem, planner(**options), case.x0, **case.given, backend="auto", **extra)
        assert made.stats["backend"] == "eager" and words in made.stats["reason"]
    made = sgp.solve(wide_case(2).problem, planner(precision="float32"), wide_case(2).x0)
    assert made.stats["backend"] == "compiled" and made.stats["compile_seconds"] >= 0


def test_without_a_compiler_auto_plans_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    case = wide_case(2)
    made = plan(case, "auto", "float32")
    assert made.stats["backend"] == "eager" and "no C++ compiler was found" in made.stats["reason"]
    with pytest.raises(ValueError, match="install g\\+\\+ or clang\\+\\+"):
        plan(case, "compiled", "float32")
