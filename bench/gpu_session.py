"""`python -m bench.gpu_session PART [SECONDS]`: what `gpu_session.sh` measures on a machine with a GPU.

    prepare   the kernels of all cases, compiled where there is no GPU
    device    what the device is
    smoke     one plan of each regime against float64, which takes no compiling: what else is worth the time
    parity    fused plans against eager ones in float64, where the tests cannot run
    compile   the kernels of all cases, many at once
    aims      few problems, and many, in bf16, against the best of the ladder: what the kernels were written for
    ladder    the four published cases, every rung
    profile   where an iteration goes, with traces
    grid      few problems through the grid regime, which stands apart since a barrier may wait for ever
    cold      import, first plan, and what pays them back
    kernels   one small plan of each regime, for a sanitizer to watch
    hot       BACKEND WIDTH PROBLEMS: two iterations in bf16, for Nsight Compute to watch
    more      the rest of the sweep
    table     what $WORK holds, in short

Rows go to $WORK as they are measured, those of the ladder from all parts to one file; a part that is stopped goes on with
its file, and one that left something out for time exits 3. With $DRY set, all of this is tried on the CPU with small cases.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import torch

import sgp_fast as sgp
from sgp_fast.planner import Precision

from . import ceilings, cold, compiling_ahead, ladder, records, sweep, tables
from .cases import Case, make_case
from .rows import CeilingRow, ColdRow, PlanRow, StageRow
from .run import Run, Settings
from .rungs import RUNGS
from .sweep import Spec

WORK = Path(os.environ.get("WORK", "gpu-session"))
DRY = bool(os.environ.get("DRY"))
DEVICE = torch.device("cpu" if DRY else "cuda:0")
SIXTEEN = ("fused:ring", "fused:relay")  # of 16-bit products alone
FUSED = ("fused:tile", "fused:layered", *SIXTEEN)
GRID = "fused:grid"
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "bfloat16")
# What is tried without a GPU.
TRIED = (Spec(32, 4, iterations=3), Spec(48, 2, iterations=3))
# Rungs for the aims: the best of others and ours. What Python starts operator by operator is slower than its graph, the
# compiled one takes a minute before its first plan, and both are in the ladder.
AIMED = ("cuda graph", "jax", *FUSED, "auto")
AIMS = tuple(Spec(w, b, precision="bfloat16", rungs=AIMED) for w, b in (*sweep.LATENCY, *sweep.THROUGHPUT))
SAMPLED = (Spec(256, 1, precision="bfloat16", rungs=("pytorch_mppi command", "mppi command")),)
LADDER = tuple(Spec(width, problems) for width, problems in sweep.PUBLISHED)
COMPILED = (
    *AIMS, *SAMPLED, *LADDER,
    *(Spec(w, b, precision=p) for p in ("tf32", "float16", "bfloat16") for w, b in sweep.PUBLISHED),
)  # fmt: skip
LENT = 90  # sm_90: an H100 or H200
PREPARING = 3600.0
QUICK = ("published", "autograd", "adjoint", "cuda graph", "eager", "compiled", "fused:tile", "auto")


def prepare() -> int:
    """On a machine without a GPU, for one that is lent; 3 where some could not be compiled."""
    return 0 if compiling_ahead.compile_all(COMPILED, PREPARING, LENT) == (0, 0) else 3


def compiling(seconds: float) -> int:
    """A part with failed jobs has failed: the next call tries them again, and finds the others in Triton's cache."""
    left, failed = compiling_ahead.compile_all(TRIED[:1] if DRY else COMPILED, seconds, LENT if DRY else None)
    return 1 if failed else 3 if left else 0


def aims(seconds: float) -> int:
    return _ladder((*AIMS, *SAMPLED), seconds)


def published(seconds: float) -> int:
    return _ladder(LADDER, seconds)


def grid(seconds: float) -> int:
    few = [spec for spec in COMPILED if spec.problems <= 128]
    return _ladder([replace(spec, rungs=(GRID,)) for spec in few], seconds, apart=True)


def more(seconds: float) -> int:
    return _ladder(sweep.sweep("cuda"), seconds)


def profile(seconds: float) -> int:
    """Tables of the regimes at two sizes, with traces that Perfetto opens."""
    from . import profiling

    run = _run("profile", seconds)
    run.ceilings()
    for spec in TRIED if DRY else (Spec(256, 1024, precision="bfloat16"), Spec(1024, 64, precision="bfloat16")):
        case = spec.make().to(DEVICE)
        done = {row.backend for row in run.log.of(StageRow) if row.case == case.name}
        for backend in ("eager", "compiled") if DRY else (*FUSED, "eager"):
            if backend in done:
                continue
            trace = WORK / f"trace-{spec.problems}x{spec.width}-{backend.replace(':', '-')}.json.gz"
            try:
                rows = profiling.profile(case, backend, trace, run.log.of(CeilingRow))
            except ladder.REASONS as why:
                print(f"{case.name}, {backend}: {why}")
                continue
            for row in rows:
                run.log.add(row)
            print(profiling.table(rows))
    return 0


def cold_costs(seconds: float) -> int:
    rungs = ("compiled", "eager") if DRY else ("fused:layered", "cuda graph", "fused:tile", "compile")
    run = _run("cold", seconds)
    run.cold_costs("4x32:T4:3" if DRY else "1024x256:bfloat16", rungs, in_time=True)
    print(tables.text(run.log.rows))
    return 0 if {row.rung for row in run.log.of(ColdRow)} >= {cold.AGAINST, *rungs} else 3


def kernels() -> int:
    """Small plans through the regimes, so that every kernel of a plan is launched; grid comes last, once it was tested."""
    few: tuple[Precision, ...] = ("float32", "bfloat16")
    ways = ("eager", "compiled") if DRY else (*FUSED, GRID) if (WORK / "gridtests.done").exists() else FUSED
    for backend in ways:
        for precision in few[1:] if backend in SIXTEEN else few:
            case = make_case(128, 65, horizon=3, iterations=2, precision=precision).to(DEVICE)
            plan = sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=backend)
            assert bool(plan.u.isfinite().all())
            print(f"{precision}, {backend}: {len(plan.u)} plans")
    return 0


def hot(backend: str, width: str, problems: str) -> int:
    case = make_case(int(width), int(problems), iterations=2, precision="bfloat16").to(DEVICE)
    plan = _plan(case, backend)
    print(plan.stats)
    return 0


def smoke() -> int:
    backends = ("eager", "compiled") if DRY else (*FUSED, GRID)
    return _parity(product((256,), ("bfloat16",), backends, (1, 64)))


def parity() -> int:
    return _parity(product((48, 256, 512, 1024), PRECISIONS, FUSED, (1, 65)))


def _parity(cases: Iterable[tuple[int, Precision, str, int]]) -> int:
    """Controls and states after two iterations: at most twice eager's error at the same precision, with a floor."""
    wrong = 0
    for width, precision, backend, batch in cases:
        case = make_case(width, batch, iterations=2, precision=precision).to(DEVICE)
        exact = _plan(case.in_precision("float64"), "eager")
        try:
            ours, plain = _plan(case, backend), _plan(case, "eager")
        except ladder.REASONS as why:
            wrong += not isinstance(why, ValueError)  # what is refused on purpose
            print(f"{case.name}, {backend}: {ladder.one_line(why)}", flush=True)
            continue
        for name in ("x", "u"):
            error, limit = (_error(getattr(plan, name), getattr(exact, name)) for plan in (ours, plain))
            right = error <= 2 * limit + 1e-6
            wrong += not right
            print(f"{case.name}, {backend}: {name} {error:.1e}, eager's {limit:.1e}{'' if right else ': WRONG'}", flush=True)
    print(f"{wrong} of the plans are wrong")
    return int(wrong > 0)


def device() -> int:
    head = records.header("device")
    print(head["machine"], head["versions"])
    if not DRY:
        found = torch.cuda.get_device_properties(0)
        print(f"{found.name}: sm_{found.major}{found.minor}, {found.multi_processor_count} multiprocessors")
        print(f"{found.L2_cache_size >> 20} MB of L2, {found.shared_memory_per_block_optin} bytes of shared memory a block")
    return 0


def table() -> int:
    """The ladder of all parts, and of each of our rows the share of the device's product that it reaches."""
    rows = [row for path in sorted(WORK.glob("*.jsonl")) for row in records.read(path, check=False).rows]
    print(tables.text(rows))
    tops = [row for row in rows if isinstance(row, CeilingRow)]
    for row in rows:
        if isinstance(row, PlanRow) and row.family == "ours" and row.p50 and row.flops:
            top, _ = ceilings.of(tops, row.precision)
            share = f"{row.flops / row.p50 / top:.0%} of the product" if top else ""
            print(f"{row.case:<32}{row.rung:<16}{row.plans_per_second:>12,.0f} plans/s  {share}  {row.chosen or ''}")
    return 0


def _ladder(specs: Iterable[Spec], seconds: float, *, apart: bool = False) -> int:
    """The cases that fit in the seconds, with the rungs that fit, all parts into one file; 3 where some are left.

    `apart`: the grid regime, too; others leave it out.
    """
    run = _run("ladder", seconds)
    run.ceilings()
    for spec in TRIED if DRY else specs:
        rungs = QUICK if DRY else spec.rungs or tuple(RUNGS)
        run.case(spec.make(), rungs if apart else [name for name in rungs if name != GRID])
    print(tables.text(run.log.rows))
    return 3 if run.dropped else 0


def _run(name: str, seconds: float) -> Run:
    """Rows to the part's file, gone on with where it is there; to another where that was begun on another machine."""
    settings = Settings(minutes=seconds / 60, device=DEVICE)
    for number in count(1):
        path = WORK / (f"{name}.jsonl" if number == 1 else f"{name}-{number}.jsonl")
        try:
            return Run(name, settings, path, resume=True, say=lambda text: print(text, flush=True))
        except ValueError as why:
            print(why)
    raise AssertionError


def _plan(case: Case, backend: str) -> sgp.Plan:
    return sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=backend)


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


UNTIMED: dict[str, Callable[[], int]] = {
    "prepare": prepare, "device": device, "smoke": smoke, "parity": parity, "kernels": kernels, "table": table,
}  # fmt: skip
TIMED: dict[str, Callable[[float], int]] = {
    "compile": compiling, "aims": aims, "ladder": published, "profile": profile, "grid": grid, "cold": cold_costs,
    "more": more,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    if len(arguments) == 1 and arguments[0] in UNTIMED:
        return UNTIMED[arguments[0]]()
    if len(arguments) == 2 and arguments[0] in TIMED:
        return TIMED[arguments[0]](float(arguments[1]))
    if len(arguments) == 4 and arguments[0] == "hot":
        return hot(*arguments[1:])
    usage = f"{'|'.join(UNTIMED)}, {'|'.join(TIMED)} SECONDS, or hot BACKEND WIDTH PROBLEMS"
    print(f"usage: python -m bench.gpu_session {usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
