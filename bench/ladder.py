"""The ladder: every rung plans the same problems, is first held against float64, and is then timed turn by turn.

A rung that is not correct has its error and no time; one that cannot run here is listed with the reason. Rungs that plan one
problem after the other plan the first of a batch, and their time is scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import sgp_fast as sgp
from sgp_fast.kernels.network import NetworkSpec

from . import clock, gate, resources
from .cases import Case
from .rows import PlanRow
from .rung import Rung, Runner, Unavailable
from .rungs import RUNGS

# What ends in a row's reason rather than in a traceback: what rungs raise on purpose, and what libraries raise in them.
REASONS = (Unavailable, ImportError, ValueError, RuntimeError, TypeError, NotImplementedError)
# Counting operators and bytes takes a plan each: not of rungs that take so many seconds for one.
COUNTED_BELOW = 10.0
# XLA's and the native engine's own calls are not PyTorch's to count.
UNCOUNTED = ("jax", "compiled")
ITEMSIZE = {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}


def measure(
    case: Case,
    rungs: Iterable[str] | None = None,
    *,
    budget: float = 60.0,
    count: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[PlanRow]:
    """A row for each rung (None: all) at a case. `budget`: seconds for the timed rounds of all rungs together.

    `count`: operators and bytes too, which takes two more plans a rung.
    """
    rows: dict[str, PlanRow] = {}
    runners: dict[str, Runner] = {}
    for rung in map(named, RUNGS if rungs is None else rungs):
        say(f"{case.name}: {rung.name}")
        part = case.first(1) if rung.single else case
        row = _row(case, rung, len(part.x0))
        try:
            runner = rung.make(part)
            verdict = gate.judge(rung, part, runner, runner())
        except REASONS as why:
            rows[rung.name] = replace(row, timed=0, reason=one_line(why))
            continue
        row = replace(row, error=verdict.error, limit=verdict.limit, cost=verdict.cost, penalty=verdict.penalty)
        rows[rung.name] = replace(row, timed=0, reason=verdict.reason) if verdict.reason else row
        if verdict.reason is None:
            runners[rung.name] = runner
    say(f"{case.name}: {len(runners)} rungs in turns")
    joules: dict[str, float] = {}
    for name, samples in clock.rounds(runners, case.device, budget=budget, joules=joules).items():
        scale = len(case.x0) / rows[name].timed
        taken = None if name not in joules else scale * joules[name]
        row = replace(rows[name], samples=tuple(scale * s for s in samples), joules=taken)
        if count and min(samples) < COUNTED_BELOW:
            row = _counted(row, runners[name], case)
        rows[name] = row
    return list(rows.values())


def named(name: str) -> Rung:
    """The rung of that name; ValueError with the names that there are."""
    if name not in RUNGS:
        raise ValueError(f"{name!r} is no rung; expected some of {', '.join(RUNGS)}")
    return RUNGS[name]


def work(case: Case) -> tuple[float | None, float | None]:
    """FLOPs of the batch, 5·T·F an iteration and problem, and bytes of weights that it reads at least (see `PlanRow`).

    Forward and input-gradient of the dynamics wait T times each, and so read their weights T times; the cost's are read
    twice, the score's once. None where a part is no network.
    """
    problem, planner = case.problem, case.planner
    specs = {name: _spec(getattr(problem, name)) for name in ("dynamics", "cost", "score")}
    if problem.score is None:
        specs.pop("score")
    if any(spec is None for spec in specs.values()):
        return None, None
    flops = weights = 0
    for name, spec in specs.items():
        assert spec is not None
        passes, waits = {"dynamics": (2, 2 * planner.horizon), "cost": (2, 2), "score": (1, 1)}[name]
        flops += passes * planner.horizon * spec.flops_per_row()
        weights += waits * spec.flops_per_row() // 2
    flops *= planner.iterations * len(case.x0)
    weights *= planner.iterations * ITEMSIZE[planner.precision]
    return float(flops), float(weights)


def one_line(why: BaseException) -> str:
    """What an exception says, for a cell of a table."""
    return " ".join(str(why).split())[:300] or type(why).__name__


def _row(case: Case, rung: Rung, timed: int) -> PlanRow:
    flops, weights = work(case)
    return PlanRow(
        case=case.name, model=case.model, problems=len(case.x0), horizon=case.planner.horizon,
        iterations=case.planner.iterations, precision=case.planner.precision, device=str(case.device), rung=rung.name,
        label=rung.label, family=rung.family, timed=timed, flops=flops, bytes=weights,
    )  # fmt: skip


def _counted(row: PlanRow, runner: Runner, case: Case) -> PlanRow:
    """With operators an iteration, bytes, and, of `auto`, what it chose."""
    try:
        memory = resources.memory(runner, case.device)
        launches = resources.launches(runner, case.device) / case.planner.iterations if row.rung not in UNCOUNTED else None
    except REASONS:  # a profiler that cannot run here costs two numbers, not the row
        memory = launches = None
    graphs = resources.graph_bytes(case.device) if row.family == "ours" else None
    chosen = _chosen(case) if row.rung == "auto" else None
    return replace(row, launches=launches, memory=memory, graphs=graphs, chosen=chosen)


def _chosen(case: Case) -> str:
    """The backend that `auto` takes, with its regime and reason."""
    stats = sgp.solve(case.problem, case.planner, case.x0, init=case.init).stats
    kind = f"{stats['backend']}:{stats['regime']}" if "regime" in stats else stats["backend"]
    return f"{kind}; {stats.get('choice') or stats['reason']}"


def _spec(part: object) -> NetworkSpec | None:
    return getattr(getattr(part, "network", None), "spec", None)
