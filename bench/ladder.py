"""The ladder: every rung plans the same problems, is first held against float64, and is then timed turn by turn.

A rung that is not correct has its error and no time; one that cannot run here, or does not fit in the time that there is, is
listed with the reason. Rungs that plan one problem after the other plan the first of a batch, and their time is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from . import clock, gate, resources, work
from .cases import Case
from .rows import LEFT_OUT, PlanRow
from .rung import Rung, Runner, Unavailable
from .rungs import RUNGS, Ours

# What ends in a row's reason rather than in a traceback: whatever a library raises, the other rungs are measured.
REASONS = (Exception,)
# Counting operators and bytes takes a plan each: not of rungs that take so many seconds for one.
COUNTED_BELOW = 10.0
# XLA's and the native engine's own calls are not PyTorch's to count.
UNCOUNTED = ("jax", "compiled")


def measure(
    case: Case,
    rungs: Iterable[str] | None = None,
    *,
    share: float = 2.0,
    count: bool = True,
    expected: Mapping[str, float] | None = None,
    left: Callable[[], float] = lambda: math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[PlanRow]:
    """A row for each rung (None: all) at a case: those that have no time as soon as that is known, the others at the end.

    `share`: seconds that the timed rounds of a rung fill. `count`: operators and bytes too, two more plans a rung.

    `left()` are the seconds that there are, `expected` those that rungs are thought to take. Rungs come in the order given:
    one is begun where it fits beside what those before it still need, and goes on where its first plan says the same.
    """
    rows: dict[str, PlanRow] = {}
    runners: dict[str, Runner] = {}
    needs: dict[str, float] = {}  # seconds, of those that were begun
    expected = expected or {}
    free = lambda: left() - sum(needs.values())  # noqa: E731
    for rung in map(named, RUNGS if rungs is None else rungs):
        say(f"{case.name}: {rung.name}")
        part = case.first(1) if rung.single else case
        row = _row(case, rung, len(part.x0))
        try:
            held = resources.graph_bytes(case.device)
            runner = rung.make(part)
            if (need := expected.get(rung.name, 0.0)) > (room := free()):
                yield left_out(case, rung.name, f"about {need:,.0f} s", room)
                continue
            u, plan = _timed(runner, case)
            verdict = gate.judge(rung, part, runner, u)
            if verdict.reason is None and share < plan < free() < math.inf:  # the first one compiled, perhaps
                _, plan = _timed(runner, case)
            made = resources.graph_bytes(case.device)
            if rung.name.startswith(("fused", "auto")) and held is not None and made is not None:
                row = replace(row, graphs=max(0.0, made - held))
        except REASONS as why:
            yield replace(row, timed=0, reason=one_line(why))
            continue
        row = replace(row, error=verdict.error, limit=verdict.limit, cost=verdict.cost, penalty=verdict.penalty)
        if verdict.reason is not None:
            yield replace(row, timed=0, reason=verdict.reason)
            continue
        if (need := following(plan, share)) > (room := free()):
            yield left_out(case, rung.name, f"a plan took {plan:,.0f} s, so that it needs {need:,.0f} s", room)
            continue
        rows[rung.name], runners[rung.name], needs[rung.name] = row, runner, need
    say(f"{case.name}: {len(runners)} rungs in turns")
    joules: dict[str, float] = {}
    failed: dict[str, str] = {}
    taken = clock.rounds(runners, case.device, budget=share * len(runners), seed=case.name, joules=joules, failed=failed)
    for name, samples in taken.items():
        if name in failed:
            yield replace(rows[name], timed=0, reason=failed[name])
            continue
        scale = len(case.x0) / rows[name].timed
        energy = None if name not in joules else scale * joules[name]
        row = replace(rows[name], samples=tuple(scale * s for s in samples), joules=energy)
        if count and min(samples) < COUNTED_BELOW and left() > 0:
            row = _counted(row, runners[name], case)
        yield row


def following(plan: float, share: float) -> float:
    """Seconds that a rung needs after its first plans, where one takes so long: for its rounds and for what is counted."""
    return 2 * plan if plan >= COUNTED_BELOW else max(5 * plan, plan + share)


def left_out(case: Case, name: str, needs: str, room: float) -> PlanRow:
    """The row of a rung that was not measured: what it needs, and the seconds that nothing else of the run needs."""
    reason = f"{LEFT_OUT}: {needs}, and only {max(0.0, room):,.0f} s of the run's time were free"
    return replace(_row(case, named(name), 0), reason=reason)


def named(name: str) -> Rung:
    """The rung of that name; ValueError with the names that there are."""
    if name not in RUNGS:
        raise ValueError(f"{name!r} is no rung; expected some of {', '.join(RUNGS)}")
    return RUNGS[name]


def one_line(why: BaseException) -> str:
    """What an exception says, for a cell of a table; with its type, unless it is one that is raised to be read."""
    text = " ".join(str(why).split())[:300]
    return text if text and isinstance(why, Unavailable | ImportError | ValueError) else f"{type(why).__name__}: {text}"


def _timed(runner: Runner, case: Case) -> tuple[Tensor, float]:
    """The controls of a plan, and its seconds."""
    found: list[Tensor] = []
    seconds = clock.seconds(lambda: found.append(runner()), case.device)
    return found[0], seconds


def _row(case: Case, rung: Rung, timed: int) -> PlanRow:
    flops, weights = work.of_batch(case) if rung.exact else (None, None)
    return PlanRow(
        case=case.name, model=case.model, problems=len(case.x0), horizon=case.planner.horizon,
        iterations=case.planner.iterations, precision=case.planner.precision, device=str(case.device), rung=rung.name,
        label=rung.label, family=rung.family, timed=timed, flops=flops, bytes=weights,
    )  # fmt: skip


def _counted(row: PlanRow, runner: Runner, case: Case) -> PlanRow:
    """With operators an iteration, bytes, and, of `auto`, what it chose."""
    try:
        memory = resources.memory(runner, case.device)
        launches = None
        if row.rung not in UNCOUNTED:
            launches = resources.launches(runner, case.device) * row.problems / row.timed / case.planner.iterations
    except REASONS:  # a profiler that cannot run here costs two numbers, not the row
        memory = launches = None
    chosen = _chosen(runner.stats) if row.rung == "auto" and isinstance(runner, Ours) else None
    return replace(row, launches=launches, memory=memory, chosen=chosen)


def _chosen(stats: dict[str, Any]) -> str:
    """The backend that `auto` took, with its regime and reason."""
    kind = f"{stats['backend']}:{stats['regime']}" if "regime" in stats else stats["backend"]
    return f"{kind}; {stats.get('choice') or stats['reason']}"
