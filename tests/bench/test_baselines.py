"""The baselines: every rung finds the plan of the reference, does what its name says, and refuses what it cannot do."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.bench import baselines
from sgp_fast.bench.baselines import wrapped
from sgp_fast.bench.baselines.adjoint import Adjoint, steps_of
from sgp_fast.bench.baselines.batch import EVERY, batch_of
from sgp_fast.bench.baselines.published import ModuleNetwork, PublishedLoop
from sgp_fast.bench.baselines.wrapped import GraphedPlan
from sgp_fast.bench.cases import Case, make_case
from sgp_fast.bench.rung import Unavailable
from sgp_fast.kernels.network import Layer, NetworkSpec, mlp, srpo_behavior
from sgp_fast.planner import Precision

RUNGS = {rung.name: rung for rung in baselines.RUNGS}
# Those that need no compiler and no GPU.
PLAIN = ("published", "frozen", "one rollout", "autograd", "adjoint")
small = partial(make_case, 32, hidden_layers=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices are so small that a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def free(case: Case) -> Case:
    """Without bounds."""
    return replace(case, problem=replace(case.problem, bounds=None))


def unscored(case: Case) -> Case:
    return replace(case, problem=replace(case.problem, score=None))


def noise(case: Case) -> Case:
    """The score's network predicts noise."""
    score = case.problem.score
    assert score is not None
    # At the last levels, 1/σ of random networks would drive every control to its bound at once.
    score = sgp.Score(score.network, score.normalizer, torch.linspace(1.0, 0.3, score.levels), output="noise")
    return replace(case, problem=replace(case.problem, score=score))


def uneven(case: Case) -> Case:
    """Bounds a control and problem, steps that shrink, a scale of the dynamics, a normaliser for each model."""
    problem, (batch, _, nu) = case.problem, case.init.shape
    draw = torch.Generator().manual_seed(5)
    high = 0.1 + torch.rand(batch, nu, generator=draw)

    def normalizer() -> sgp.Normalizer:
        return sgp.Normalizer(torch.randn(23, generator=draw), 0.5 + torch.rand(23, generator=draw))

    assert problem.score is not None
    parts: dict[str, Any] = {
        "dynamics": sgp.Dynamics(problem.dynamics.network, normalizer(), torch.rand(17, generator=draw)),
        "cost": sgp.LearnedCost(problem.cost.network, normalizer()),
        "score": sgp.Score(problem.score.network, normalizer(), problem.score.sigmas),
    }
    planner = replace(case.planner, step_size=(0.2, 0.05), adam=(0.8, 0.95, 1e-6))
    return replace(case, problem=replace(problem, **parts, bounds=(-0.5 * high, high)), planner=planner)


def networks(spec: Callable[[int, int, int], NetworkSpec]) -> Callable[[Case], Case]:
    """The case with networks made by `spec(inputs, outputs, levels)`."""

    def change(case: Case) -> Case:
        problem, z = case.problem, case.problem.dynamics.normalizer
        assert problem.score is not None
        made = [sgp.Network(spec(23, outputs, levels), i) for i, (outputs, levels) in enumerate(((17, 0), (1, 0), (23, 10)))]
        return replace(case, problem=replace(
            problem, dynamics=sgp.Dynamics(made[0], z), cost=sgp.LearnedCost(made[1], z),
            score=sgp.Score(made[2], z, problem.score.sigmas),
        ))  # fmt: skip

    return change


def residual(inputs: int, outputs: int, levels: int) -> NetworkSpec:
    """Additive conditioning and a residual, of a layer with a norm."""
    middle = Layer(16, "mish", norm=True, condition="add" if levels else "none", residual=True)
    return NetworkSpec(inputs, (Layer(16, "gelu"), middle, Layer(outputs, "tanh")), levels=levels)


def of_activation(activation: Any) -> Callable[[Case], Case]:
    return networks(
        lambda i, o, levels: mlp(i, o, width=24, hidden_layers=2, activation=activation, norm=True, levels=levels)
    )


CASES: dict[str, Callable[[], Case]] = {
    "one problem, one step": lambda: small(1, horizon=1, iterations=3),
    "published": lambda: small(3, horizon=4, iterations=5),
    "no bounds": lambda: free(small(3, horizon=4, iterations=3)),
    "no score": lambda: unscored(small(1, horizon=4, iterations=3)),
    "noise": lambda: noise(small(3, horizon=4, iterations=3)),
    "uneven": lambda: uneven(small(3, horizon=4, iterations=4)),
    "residual": lambda: networks(residual)(small(3, horizon=3, iterations=3)),
    "relu": lambda: of_activation("relu")(small(3, horizon=3, iterations=3)),
    "silu": lambda: of_activation("silu")(small(3, horizon=3, iterations=3)),
}


@cache
def case_of(name: str) -> tuple[Case, Tensor]:
    """A case and the controls of its float64 reference."""
    case = CASES[name]()
    return case, reference(case)


def reference(case: Case) -> Tensor:
    planner = replace(case.planner, precision="float64")
    return sgp.solve(case.problem, planner, case.x0.double(), init=case.init.double(), backend="eager").u


def error(u: Tensor, want: Tensor) -> float:
    assert u.shape == want.shape
    return ((u.double() - want).norm() / want.norm()).item()


# JAX compiles for seconds, so it has few.
BY_JAX = ("one problem, one step", "no score", "uneven")


@pytest.mark.parametrize(("name", "rung"), [*itertools.product(CASES, PLAIN), *itertools.product(BY_JAX, ["jax"])])
def test_a_rung_finds_the_plan_of_the_reference(name: str, rung: str) -> None:
    if rung == "jax":
        pytest.importorskip("jax")
    case, want = case_of(name)
    assert (want - case.init).norm() > 0.1 * case.init.norm(), "nothing was planned"
    run = RUNGS[rung].make(case)
    u = run()
    assert u.dtype == torch.float32 and error(u, want) < 1e-4
    assert torch.equal(run(), u), "a second plan differs from the first"


@pytest.mark.parametrize("rung", PLAIN)
def test_float64_is_the_reference_itself(rung: str) -> None:
    case, want = case_of("published")
    assert error(RUNGS[rung].make(case.in_precision("float64"))(), want) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in BY_JAX])
def test_jax_finds_all_other_plans(name: str) -> None:
    test_a_rung_finds_the_plan_of_the_reference(name, "jax")


@pytest.mark.parametrize(
    ("precision", "rung"), [*itertools.product(("bfloat16", "float16"), ("autograd", "adjoint")), ("bfloat16", "jax")]
)
def test_products_of_16_bits_are_off_as_far_as_those_of_eager(precision: Precision, rung: str) -> None:
    if rung == "jax":
        pytest.importorskip("jax")
    case, want = case_of("published")
    case = case.in_precision(precision)
    eager = error(sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend="eager").u, want)
    off = error(RUNGS[rung].make(case)(), want)
    # XLA may keep more digits between two products than it is asked for.
    assert 1e-4 < off < 0.3 and (eager / 10 if rung == "jax" else eager / 2) < off < 2 * eager


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_16_bits_are_so_between_their_ends(dtype: torch.dtype) -> None:
    case = case_of("published")[0].in_precision(str(dtype).removeprefix("torch."))  # pyright: ignore[reportArgumentType]
    batch = batch_of(case, EVERY, narrow=True)
    z = torch.randn(5, 23)
    for network in (Adjoint(batch).dynamics, Adjoint(batch).cost):
        out, kept = network(z)
        assert out.dtype == torch.float32 and network.pull(torch.ones_like(out), kept).dtype == torch.float32
        assert {t.dtype for h, y, moments in kept for t in (h, y, *(moments or ())[:1])} == {dtype}
    assert {w.dtype for w in batch.dynamics.network.weights.values()} == {dtype}
    assert batch.dynamics.scale.dtype == batch.x0.dtype == torch.float32
    assert batch.dynamics(batch.x0, batch.u[0]).dtype == torch.float32
    # JAX joins what is between two products itself, in float32.
    assert {w.dtype for w in batch_of(case, EVERY).dynamics.network.weights.values()} == {dtype, torch.float32}


def test_weight_gradients_are_formed_as_published_and_by_no_other_rung() -> None:
    case = case_of("published")[0]
    for rung in ("published", "frozen", "one rollout"):
        loop = RUNGS[rung].make(case)
        assert isinstance(loop, PublishedLoop)
        loop()
        for model in (loop.dynamics, loop.cost):
            weights = list(model.network.parameters())
            assert len(weights) > 4
            if rung == "published":
                assert all(w.grad is not None and bool(w.grad.any()) for w in weights)
            else:
                assert not any(w.requires_grad or w.grad is not None for w in weights)
    for part in case.problem.modules.values():
        assert not any(w.requires_grad or w.grad is not None for w in part.parameters()), "the case itself was changed"


@pytest.mark.parametrize(("rung", "rollouts"), [("published", 2), ("frozen", 2), ("one rollout", 1)])
def test_rollouts_are_as_many_as_the_name_says(rung: str, rollouts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("published")[0].first(1)
    loop = RUNGS[rung].make(case)
    assert isinstance(loop, PublishedLoop)
    calls, forward = [], ModuleNetwork.forward
    monkeypatch.setattr(ModuleNetwork, "forward", lambda self, z, level: calls.append(self) or forward(self, z, level))
    loop()
    steps = calls.count(loop.dynamics.network)
    assert steps == rollouts * case.planner.horizon * case.planner.iterations


def test_the_adjoint_is_the_gradient_that_autograd_finds() -> None:
    """Its cost differentiated by autograd, in float64, with β and level as they are in the second iteration."""
    batch = batch_of(case_of("uneven")[0].in_precision("float64"), EVERY)
    at, step, u = steps_of(batch)[1], batch.steps[1], batch.u.clone().requires_grad_()
    assert batch.score is not None
    x = [batch.x0]
    for u_t in u:
        x.append(batch.dynamics(x[-1], u_t))
    z = torch.cat((torch.stack(x[:-1]), u), -1)
    pull = step.beta * batch.score(z, step.level).detach()
    (want,) = torch.autograd.grad(batch.cost(z[..., :17], u).sum() - (z * pull).sum(), u)
    assert error(Adjoint(batch).gradient(batch.u, batch.x0, at), want) < 1e-12


def captured_by_none(log: list[str]) -> wrapped.Capture:
    """In a GPU's place: the warm-up and the recorded run happen, and a replay runs the body again."""

    def capture(whole: wrapped.Body, part: wrapped.Body, device: torch.device) -> wrapped.Body:
        part()
        log.append(str(device))
        return whole

    return capture


def test_the_graphs_plan_reads_its_own_inputs_and_gives_a_copy() -> None:
    case, want = case_of("published")
    batch, log = batch_of(case, EVERY), []
    plan = GraphedPlan(batch, captured_by_none(log))
    first = plan()
    assert log == ["cpu"] and error(first, want) < 1e-4
    plan.u.fill_(torch.nan)  # what an earlier plan may have left there
    second = plan()
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr() != plan.out.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("rung", ["cuda graph", "compile", "compile reduce-overhead", "jax", *PLAIN])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu(rung: str, precision: Precision) -> None:
    if rung == "jax":
        pytest.importorskip("jax")
    case = small(3, horizon=4, iterations=5, precision=precision).to("cuda")
    want = reference(case)
    try:
        run = RUNGS[rung].make(case)
    except Unavailable as why:
        pytest.skip(str(why))
    u = run()
    assert u.device.type == "cuda" and error(u, want) < (1e-4 if precision == "float32" else 0.3)
    assert torch.equal(run(), run())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`torch.compile` that captures, counts and runs what it captured, without building code; one version a code object."""
    from torch._dynamo.testing import CompileCounter

    counter, real = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, mode, **options: real(f, backend=counter, **options))
    with torch._dynamo.config.patch(recompile_limit=1):
        yield counter


def test_an_iteration_is_compiled_once_and_each_runner_keeps_its_own(counted: Any) -> None:
    cases = [small(batch, horizon=2, iterations=3) for batch in (2, 1, 3)]
    runners = [RUNGS["compile"].make(case) for case in cases]
    for case, run in zip(cases, runners, strict=True):
        assert error(run(), reference(case)) < 1e-4
    assert counted.frame_count == len(cases)
    for run in runners:
        run()
    assert counted.frame_count == len(cases), "something was compiled anew"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "precision"), [("compile", "float32"), ("compile max-autotune", "bfloat16")])
def test_compiled_code_finds_the_plan(
    mode: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In silence: what autotuning timed is nothing for the screen, and is printed as ever where others compile."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what was tuned before would not be tuned again
    before = torch._inductor.config.save_config_portable()
    case = small(2, horizon=2, iterations=3, precision=precision)
    assert error(RUNGS[mode].make(case)(), reference(case)) < (1e-4 if precision == "float32" else 0.3)
    assert "AUTOTUNE" not in capfd.readouterr().err.upper()
    assert torch._inductor.config.save_config_portable() == before


def quadratic(case: Case) -> Case:
    return replace(case, problem=replace(case.problem, cost=sgp.QuadraticCost(torch.eye(17), torch.eye(6))))


def terminal(case: Case) -> Case:
    return replace(case, problem=replace(case.problem, terminal=sgp.QuadraticTerminal(torch.eye(17))))


def foreign(case: Case) -> Case:
    return replace(case, problem=replace(case.problem, dynamics=lambda x, u: x + 0 * u.sum(-1, keepdim=True)))


def blocks(case: Case) -> Case:
    z = case.problem.dynamics.normalizer
    spec = replace(srpo_behavior(23, 1, width=8), time=None)
    return replace(case, problem=replace(case.problem, cost=sgp.LearnedCost(sgp.Network(spec, 0), z)))


def planned(**options: Any) -> Callable[[Case], Case]:
    return lambda case: replace(case, planner=replace(case.planner, **options))


REFUSED: dict[str, tuple[Callable[[Case], Case], str]] = {
    "another cost": (quadratic, "the cost is a QuadraticCost"),
    "terminal cost": (terminal, "there is a terminal cost"),
    "a user's module": (foreign, "the dynamics are of type AutogradDynamics"),
    "blocks": (blocks, "the cost hold a network of pre-norm blocks"),
    "tanh": (planned(bounding="tanh"), "tanh keeps the bounds"),
    "starts": (planned(starts=2), "2 starts a problem"),
    "clipping": (planned(clip_gradient=1.0), "gradients are clipped"),
    "early stops": (planned(tolerance=1e-4), "set tolerance=0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_baseline_covers_is_refused_by_name(name: str) -> None:
    change, why = REFUSED[name]
    case = change(small(1, horizon=2, iterations=2))
    for rung in PLAIN:
        with pytest.raises(Unavailable, match=f"learned cost; .*{why}"):
            RUNGS[rung].make(case)


def test_what_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    case = small(1, horizon=2, iterations=2)
    with pytest.raises(Unavailable, match="a CUDA graph needs a GPU"):
        RUNGS["cuda graph"].make(case)
    with pytest.raises(Unavailable, match="on CPUs there are none"):
        RUNGS["compile reduce-overhead"].make(case)
    with pytest.raises(Unavailable, match=r"multiplies in float64, float32, tf32; the case wants bfloat16"):
        RUNGS["published"].make(case.in_precision("bfloat16"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match="needs a C\\+\\+ compiler and there is no no-such-compiler"):
        RUNGS["compile"].make(case)


def test_jax_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    case = small(1, horizon=2, iterations=2)
    with pytest.raises(Unavailable, match="the case wants float64"):
        RUNGS["jax"].make(case.in_precision("float64"))
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ImportError, match="pip install"):
        RUNGS["jax"].make(case)


def test_the_ladder_is_whole_and_in_order() -> None:
    assert list(RUNGS) == [
        "published", "frozen", "one rollout", "autograd", "adjoint", "compile", "compile reduce-overhead",
        "compile max-autotune", "cuda graph", "jax",
    ]  # fmt: skip
    assert [name for name, rung in RUNGS.items() if rung.single] == ["published", "frozen", "one rollout"]
    assert all(rung.family == "baseline" and rung.exact for rung in RUNGS.values())
