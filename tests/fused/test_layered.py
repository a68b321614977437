"""The layered regime agrees with the eager backend in float64: iterations, the final judgement, and rows that diverge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sgp_fast.backends import eager
from sgp_fast.backends.fused.buffers import Buffers
from sgp_fast.backends.fused.functions import Functions
from sgp_fast.backends.fused.layered import Cuts, Layered, few_rows, layered_plans, whole_rows
from sgp_fast.backends.fused.packed import PackedProblem
from sgp_fast.backends.job import Job, Tables
from sgp_fast.kernels.layered.linear_columns import ONE_ROW, SOME_ROWS
from sgp_fast.kernels.layered.linear_rows import INTERPRETED, RowCut
from sgp_fast.kernels.layered.network import divides_columns
from sgp_fast.planner import SGP
from tests.cases import NU, NX, Case, case, planner, relative, score

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # else Triton is interpreted
CUT = INTERPRETED if DEVICE.type == "cpu" else RowCut(32, 64, 8, 3)
# Where the plain planner happens to round to the right number. Adam divides by the gradient's size, and so by its error.
FLOOR = 2e-6
# Every value and every pair of neighbours that matters: the kinds of dynamics, cost, terminal cost and score; how bounds are
# kept; weight of control changes, largest gradient, whether problems bring goals; problems, horizon and iterations.
CASES: list[tuple[str, str, str, str | None, str | None, float, float | None, bool, int, int, int]] = [
    ("learned", "quadratic", "none", None, None, 0.0, None, True, 4, 2, 1),
    ("learned", "quadratic", "quadratic", "score", "project", 0.3, 0.5, True, 1, 7, 1),
    ("learned", "quadratic", "value", "noise", "tanh", 0.0, 0.5, False, 63, 1, 3),
    ("learned", "learned", "none", "score", "tanh", 0.3, None, True, 64, 1, 1),
    ("learned", "learned", "quadratic", "unconditioned", None, 0.0, 0.5, False, 65, 7, 1),
    ("learned", "learned", "value", None, "project", 0.0, None, True, 5, 2, 3),
    ("scaled blocks", "quadratic", "none", "unconditioned", "tanh", 0.0, 0.5, False, 1, 1, 3),
    ("scaled blocks", "quadratic", "quadratic", None, None, 0.3, None, False, 63, 2, 1),
    ("scaled blocks", "quadratic", "value", "score", "project", 0.0, None, True, 3, 3, 1),
    ("scaled blocks", "learned", "none", "noise", "project", 0.3, 0.5, False, 2, 3, 3),
    ("scaled blocks", "learned", "quadratic", "score", "tanh", 0.0, None, True, 4, 2, 3),
    ("scaled blocks", "learned", "value", "noise", None, 0.3, 0.5, False, 65, 1, 1),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products are so small that threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def job(made: Case, plan: SGP, tables: Tables) -> Job:
    """The case as a backend gets it, in the planner's precision."""
    state = plan.state_dtype
    bounds = made.problem.bounds or (None, None)
    limits = (None if b is None else torch.full((len(made.x0), NU), b) for b in bounds)
    low, high, x0, u, goal = (None if t is None else t.to(DEVICE, state) for t in (*limits, made.x0, made.u, made.goal))
    assert x0 is not None and u is not None
    return Job(
        problem=made.problem.prepared(state, plan.product_dtype, DEVICE), planner=plan, tables=tables, x0=x0, u=u, low=low,
        high=high, goal=goal, params=None, moments=None, first=0, deadline=float("inf"), callback=None,
    )  # fmt: skip


def schedules(iterations: int, settled: int) -> Tables:
    """Different numbers in every iteration."""
    return Tables(
        beta=tuple(0.4 / (i + 1) for i in range(iterations)), levels=tuple(i % 4 for i in range(iterations)),
        sigma=(0.0,) * iterations, step_size=tuple(0.1 / (i + 2) for i in range(iterations)), settled=settled,
    )  # fmt: skip


def buffers(work: Job) -> Buffers:
    """A bucket filled as a plan begins; all that a plan writes before it reads is NaN."""
    at, bounding, search = eager.start(work)
    T, R, nu = search.v.shape
    iterations = work.planner.iterations
    out = Buffers.allocate(
        R, T, NX, nu, iterations, DEVICE, bounded=work.low is not None, with_goal=at.goal is not None, with_history=True
    )
    for name in ("x", "costate", "grad_u", "running", "terminal", "history"):
        getattr(out, name).fill_(float("nan"))
    if work.problem.score is not None:
        out.score.fill_(float("nan"))
    if work.problem.control_change:
        out.change.fill_(float("nan"))
    out.x0.copy_(at.x0)
    out.v.copy_(search.v.transpose(0, 1))
    out.good.copy_(out.v)
    out.active.fill_(1)
    for place, given in ((out.low, bounding.low), (out.high, bounding.high), (out.goal, at.goal)):
        if place is not None and given is not None:
            place.copy_(given)
    for name in ("beta", "step_size"):
        getattr(out, name).copy_(torch.tensor(getattr(work.tables, name)))
    out.level.copy_(torch.tensor(work.tables.levels))
    return out


def library(program: Any, rows: int) -> None:
    """Products are not ours."""


def one_row(program: Any, rows: int) -> Any:
    """Products of a row a program, however many there are; wide where programs run one after the other."""
    cut = ONE_ROW if DEVICE.type == "cuda" else replace(ONE_ROW, along=64, across=64)
    return cut if divides_columns(program) else None


def some_rows(program: Any, rows: int) -> Any:
    return SOME_ROWS if divides_columns(program) else None


def all_rows(program: Any, rows: int) -> Any:
    return whole_rows(CUT, program, rows)


def layered(work: Job, dtype: torch.dtype = torch.float32, cuts: Cuts = library) -> Layered:
    """The regime over the job's bucket, its workspace NaN."""
    out = buffers(work)
    packed = PackedProblem(work.problem, dtype, DEVICE, Functions(work, out.rows, DEVICE))
    made = Layered(packed, work.planner, out, work.tables.settled, cuts)
    for tensor in made.workspace:
        tensor.fill_(float("nan"))
    return made


Numbers = dict[str, Tensor]


def numbers(b: Buffers) -> Numbers:
    """All that an iteration writes, and where the search stands."""
    return {f.name: t.clone() for f in fields(b) if isinstance(t := getattr(b, f.name), Tensor)}


def plain(work: Job, iterations: int) -> tuple[Numbers, Numbers]:
    """The same numbers by the eager backend: after some iterations, and after the final judgement.

    After iterations x_T is left out where no cost is of it.
    """
    plan, tables = work.planner, work.tables
    at, bounding, search = eager.start(work)
    history = at.x0.new_full((len(at.x0), plan.iterations), torch.nan)
    taken = torch.zeros_like(search.count, dtype=torch.int32)
    for i in range(iterations):
        u = bounding.control(search.v)
        e = eager.evaluate(work.problem, at, u, tables.levels[i], tables.beta[i])
        g = eager.clip(bounding.pull(search.v, e.grad_u), plan.clip_gradient)
        history[:, i] = torch.where(search.active, e.cost, torch.nan)
        search = eager.judge(plan, search, bounding, u, e.grad_u, i >= tables.settled)
        taken += search.active
        search = eager.adam(plan, search, g, tables.step_size[i])
        search = replace(search, v=bounding.project(search.v))
    stepped = _numbers(search, e, history, taken)
    if work.problem.terminal is None:
        stepped["x"] = stepped["x"][:, :-1]
    while True:
        u = bounding.control(search.v)
        e = eager.evaluate(work.problem, at, u, tables.levels[-1], tables.beta[-1])
        before, search = search.diverged, eager.judge(plan, search, bounding, u, e.grad_u, settled=True)
        if torch.equal(search.diverged, before):
            return stepped, _numbers(search, e, history, taken)


def _numbers(search: eager.Search, e: eager.Evaluation, history: Tensor, taken: Tensor) -> Numbers:
    rows = {name: getattr(search, name).transpose(0, 1) for name in ("v", "good", "m", "s")}
    rows |= {name: getattr(e, name).transpose(0, 1) for name in ("x", "costate", "grad_u", "running")}
    rows |= {name: getattr(search, name) for name in ("count", "active", "diverged", "converged")}
    rows |= {"terminal": e.terminal, "change": e.change, "history": history, "taken": taken}
    if e.score is not None:
        rows["score"] = e.score.transpose(0, 1)
    return rows


def compare(got: Numbers, want: Numbers, plain: Numbers, factor: float = 2.0) -> None:
    """Flags and counts are the same, all else within `factor` times the plain planner's error in its own precision."""
    for name, exact in want.items():
        if name in ("count", "active", "diverged", "converged", "taken"):
            assert torch.equal(got[name].double(), exact.double()), name
            continue
        ours = got[name][:, : exact.shape[1]] if name == "x" else got[name]
        assert torch.equal(ours.isnan(), exact.isnan()), f"{name}: NaN where none should be, or none where one should"
        ours, theirs = (relative(of.double().nan_to_num(), exact.nan_to_num()) for of in (ours, plain[name]))
        assert ours <= factor * theirs + FLOOR, f"{name} off by {ours:.2e}, the plain planner by {theirs:.2e}"


@pytest.mark.parametrize(
    ("dynamics", "cost", "terminal", "scored", "bounding", "change", "clip", "with_goal", "batch", "horizon", "iterations",
     "cuts"),
    [*((*made, library) for made in CASES), *((*made, one_row) for made in CASES if made[0] == "learned" and made[8] <= 5)],
)  # fmt: skip
def test_iterations_and_the_last_evaluation(
    dynamics: str, cost: str, terminal: str, scored: str | None, bounding: Any, change: float, clip: float | None,
    with_goal: bool, batch: int, horizon: int, iterations: int, cuts: Cuts,
) -> None:  # fmt: skip
    given = None if scored is None else score("score", 0) if scored == "unconditioned" else score(scored)
    options: dict[str, Any] = {} if bounding is None else {"bounds": (-0.6, 0.4)}
    made = case(dynamics, cost, terminal, score_=given, batch=batch, horizon=horizon, control_change=change, **options)
    made = made if with_goal else replace(made, goal=None)
    tables, settings = schedules(iterations, iterations), {"horizon": horizon, "iterations": iterations}

    def planned(precision: str) -> Job:
        plan = planner(precision=precision, bounding=bounding or "project", clip_gradient=clip, **settings)
        return job(made, plan, tables)

    single = planned("float32")
    stepped, last = plain(planned("float64"), iterations)
    stepped_single, last_single = plain(single, iterations)
    ours = layered(single, cuts=cuts)
    ours.iterate(0, iterations)
    compare(numbers(ours.buffers), stepped, stepped_single)
    ours.evaluate(settled=True)
    compare(numbers(ours.buffers), last, last_single)


@pytest.mark.parametrize("cuts", [library, all_rows, some_rows])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("batch", "horizon"), [(8, 3), (17, 2), (2, 1)])
def test_products_in_16_bits(batch: int, horizon: int, dtype: torch.dtype, cuts: Cuts) -> None:
    """Within twice the error of the plain planner with the same products."""
    made = case("learned", "learned", "value", score_=score(), batch=batch, horizon=horizon)
    options, tables = {"horizon": horizon}, schedules(1, 1)
    single = job(made, planner(precision="float32", **options), tables)
    half = replace(single, problem=made.problem.prepared(torch.float32, dtype, DEVICE))
    want, rounded = plain(job(made, planner(**options), tables), 1)[0], plain(half, 1)[0]
    ours = layered(half, dtype, cuts)
    ours.iterate(0, 1)
    names = ("x", "running", "terminal", "score", "costate", "grad_u")
    compare(numbers(ours.buffers), {name: want[name] for name in names}, rounded)


def test_problems_that_converge_stay_where_they_are() -> None:
    """From the iteration on in which the schedules have ended, and not before."""
    made = case("learned", "quadratic", score_=score(), batch=6, horizon=2, bounds=(-0.2, 0.1))
    tables = schedules(3, settled=1)
    options: dict[str, Any] = {"horizon": 2, "iterations": 3}
    free = plain(job(made, planner(**options), tables), 3)[0]["grad_u"].square().sum((1, 2)).sqrt()
    options["tolerance"] = free.median().item()
    single = job(made, planner(precision="float32", **options), tables)
    stepped, _ = plain(job(made, planner(**options), tables), 3)
    assert stepped["converged"].any() and stepped["taken"].min() == 1
    ours = layered(single)
    ours.iterate(0, 3)
    compare(numbers(ours.buffers), stepped, plain(single, 3)[0])


@pytest.mark.parametrize("cuts", [library, one_row, some_rows])
def test_iterations_may_come_in_pieces(cuts: Cuts) -> None:
    made = case("learned", "learned", "quadratic", score_=score(), horizon=2)
    work = job(made, planner(precision="float32", horizon=2, iterations=3), schedules(3, 3))
    dtype = torch.float16 if cuts is some_rows else torch.float32
    whole, pieces = layered(work, dtype, cuts), layered(work, dtype, cuts)
    whole.iterate(0, 3)
    for first, last in ((0, 2), (2, 3)):
        pieces.iterate(first, last)
    for name, value in numbers(whole.buffers).items():
        assert torch.equal(numbers(pieces.buffers)[name].nan_to_num(), value.nan_to_num()), name


@pytest.mark.parametrize(
    ("dynamics", "cuts"), [("scaled blocks", library), ("learned", library), ("learned", one_row), ("learned", some_rows)]
)
def test_a_start_of_nan_leaves_its_neighbours_as_they_are(dynamics: str, cuts: Cuts) -> None:
    """Bit for bit; the problem itself is told apart, and keeps its controls."""
    made = case(dynamics, "learned", "value", score_=score(), batch=7, horizon=2, bounds=(-0.6, 0.4))
    work = job(made, planner(precision="float32", horizon=2, iterations=2), schedules(2, 2))
    bad = replace(work, x0=work.x0.index_fill(0, torch.tensor(3, device=DEVICE), float("nan")))
    dtype = torch.float16 if cuts is some_rows else torch.float32
    clean, poisoned = layered(work, dtype, cuts), layered(bad, dtype, cuts)
    start = poisoned.buffers.v.clone()
    for ours in (clean, poisoned):
        ours.iterate(0, 2)
        ours.evaluate(settled=True)
    before, after = numbers(clean.buffers), numbers(poisoned.buffers)
    others = [i for i in range(7) if i != 3]
    for name, value in before.items():
        if len(value) == 7:
            assert torch.equal(after[name][others], value[others]), name
    assert torch.equal(after["v"][3], start[3]) and after["taken"][3] == 0
    assert after["diverged"].tolist() == [0, 0, 0, 1, 0, 0, 0] and after["active"].tolist() == [1, 1, 1, 0, 1, 1, 1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_problems_that_the_last_step_leads_astray_go_back() -> None:
    """They are evaluated once more where their gradient was finite, as the eager backend does."""
    made = case("learned", "quadratic", "quadratic", batch=3, horizon=2)
    tables = replace(schedules(2, 2), step_size=(0.1, 1e25))
    work = job(made, planner(precision="float32", horizon=2, iterations=2), tables)
    _, want = plain(work, 2)
    ours = layered(work)
    ours.iterate(0, 2)
    assert (ours.buffers.v.abs() > 1e20).any()
    ours.evaluate(settled=True)
    got = numbers(ours.buffers)
    assert want["diverged"].all() and want["x"].isfinite().all()
    for name in ("v", "good", "x", "grad_u", "running", "terminal"):
        assert relative(got[name], want[name]) < 1e-5, name
    assert got["diverged"].all() and not got["active"].any()


class Watch(TorchDispatchMode):
    """Notes every operation that gives something new: a tensor that was allocated, or a number that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.new = 0, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func is torch.ops.aten.mm.out
        if any(given.alias_info is None for given in func._schema.returns):
            self.new.add(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_is_allocated_and_nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph may hold: views, and operations that write where they are told to."""
    made = case("scaled blocks", "learned", "value", score_=score(), horizon=3, control_change=0.3, bounds=(-0.6, 0.4))
    ours = layered(job(made, planner(precision="float32", horizon=3, iterations=2), schedules(2, 2)))
    if DEVICE.type == "cpu":  # the interpreter makes copies of its own
        monkeypatch.setattr("triton.runtime.interpreter.GridExecutor.__call__", lambda *_, **__: None)
    with Watch() as watch:
        ours.iterate(0, 2)
        ours.evaluate(settled=True)
    assert watch.new == set()
    assert watch.products == 4 * (3 * 2 * 5 + 2 * 5 + 2 * 3 + 5)  # steps of five products, cost, value, score


def test_products_of_our_own_leave_nothing_to_the_library() -> None:
    made = case("learned", "learned", "value", score_=score(), batch=2, horizon=2)
    work = job(made, planner(precision="float32", horizon=2, iterations=1), schedules(1, 1))
    for cuts in (one_row, some_rows, all_rows):
        ours = layered(work, torch.float16, cuts)
        with Watch() as watch:
            ours._evaluate(0)
        assert watch.products == 0


def test_a_step_is_as_many_launches_as_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """In either direction, where columns are divided; what is left of the sweeps comes at their ends."""
    made = case("learned", "learned", score_=score(), batch=2, horizon=3)
    ours = layered(job(made, planner(precision="float32", horizon=3), schedules(1, 1)), cuts=one_row)
    launches: list[Any] = []
    interpreted = DEVICE.type == "cpu"
    executor = "interpreter.GridExecutor.__call__" if interpreted else "jit.JITFunction.run"
    monkeypatch.setattr(f"triton.runtime.{executor}", lambda *given, **_: launches.append(given))
    ours._rollout(3)
    assert len(launches) == 3 * 5 + 2
    ours._adjoint()  # of two steps: there is no terminal cost
    assert len(launches) == 5 * 5 + 3


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "cuts"), [(4, one_row), (100, some_rows)])
def test_a_thousand_runs_are_the_same(batch: int, cuts: Cuts) -> None:
    """States and costates are written by one program and made by all of them."""
    made = case("learned", "learned", score_=score(), batch=batch, horizon=3)
    ours = layered(job(made, planner(precision="float32", horizon=3), schedules(1, 1)), torch.bfloat16, cuts)
    ours._begin()
    ours._pull.normal_()

    def run() -> list[Tensor]:
        ours._rollout(3)
        ours._adjoint()
        net, b = ours._networks["dynamics"], ours.buffers
        return [t.clone() for t in (b.x, b.costate, b.grad_u, net.saved.nan_to_num(), net.moments.nan_to_num())]

    first = run()
    for _ in range(1000):
        assert all(map(torch.equal, run(), first))


def test_ways_to_plan_by_how_many_problems_there_are() -> None:
    """Some columns a program for few rows; in float32 for those of which each has a program."""
    problem = case("learned", "quadratic", score_=score(), horizon=2).problem
    columns = "layered with products of some columns"
    for precision, most in (("float32", 8), ("bfloat16", 128)):
        ways = [layered_plans(problem, planner(precision=precision), size) for size in (1, most, 2 * most)]
        assert [columns in found for found in ways] == [True, True, False]
    blocks = case("scaled blocks", "quadratic", horizon=2).problem
    assert columns not in layered_plans(blocks, planner(precision="bfloat16"), 1)
    scored = case("scaled blocks", "quadratic", score_=score(), horizon=8).problem
    ways = [layered_plans(scored, planner(precision="bfloat16", horizon=8), size) for size in (16, 64)]
    assert [columns in found for found in ways] == [True, False], "the score has a row a step"
    net = layered(job(case("learned", "quadratic", score_=score()), planner(precision="float32"), schedules(1, 1)))
    program = net.packed.dynamics.network.program
    cuts = [few_rows(torch.bfloat16, program, rows) for rows in (8, 9, 128, 129)]
    assert cuts == [ONE_ROW, SOME_ROWS, SOME_ROWS, None]
    assert few_rows(torch.float32, program, 9) is None


def test_bytes_are_those_of_the_workspace() -> None:
    """By its own arithmetic, for networks of one width without streams."""
    made = case("learned", "learned", score_=score(), batch=6)
    ours = layered(job(made, planner(precision="float32"), schedules(1, 1)), torch.float16)
    rows, columns, widest = 6 * 5, 16, 32
    scratch = rows * (2 * widest * 2 + columns * 4)  # y and h, and the output
    saved = rows * (2 * 4 * widest * 2)  # dynamics of every step and cost: four hidden layers of 17, padded
    moments = 5 * 8 * 3 * 4 + 32 * 3 * 4  # three norms; rows rounded up to four
    assert ours.bytes == scratch + saved + moments + 4 * columns * (6 * 6 + 6) + 4 * widest
