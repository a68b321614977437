"""`sgp-fast profile`: where an iteration of a plan goes, stage by stage, and how far each stage is from what it could be.

On CPUs stages are timed by the host's clock (`compiled`: by a clock in the engine, the mean over its threads), on GPUs by
the kernels that they launch, and `other kernels` are those outside of all stages. What is left of the plan's own time is
`gaps`: the host before, between and after the stages, threads and devices that wait. On a GPU, `fused` replays a graph, in
which no profiler sees stages; there the same launches are made one by one for the trace, while the time of the plan is that
of the graph. The tile regime plans in one launch, which is its only stage.

A profiler slows what it watches, so times on CPUs are taken without it, and the trace is another plan.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import sgp_fast as sgp
from sgp_fast.backends.stages import STAGES, WHOLE, watching
from sgp_fast.planner import Precision
from sgp_fast.solving import job_of

from . import ceilings as ceilings_of_run
from . import clock, records, traces, work
from .cases import Case, Device, device_of, make_case
from .rows import CeilingRow, StageRow

REPEATS = 3
# Kernels outside of all stages, on GPUs; and what is left of the plan's time.
OTHER, GAPS = "other kernels", "gaps"


def profile(
    case: Case, backend: str = "auto", trace: Path | None = None, ceilings: Iterable[CeilingRow] = ()
) -> list[StageRow]:
    """A row for each stage, in the order of an iteration, then the pass that follows the last one, and gaps.

    Seconds and launches are those of the plan over its iterations, so they add up to the plan. Plans run to the last
    iteration (tolerance 0). `trace`: where to keep the trace, gzipped Chrome JSON.
    """
    case = replace(case, planner=replace(case.planner, tolerance=0.0))

    def plan() -> sgp.Plan:
        return sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=backend)

    stats = plan().stats  # compiles, tunes and captures
    way, run = stats["backend"], plan
    if "regime" in stats:
        way = f"{way}:{stats['regime'].split()[0]}"
        if case.device.type == "cuda":
            run = _launched(case, stats["regime"], stats["chunks"])
            run()
    if case.device.type == "cuda":
        whole = statistics.median(clock.seconds(plan, case.device) for _ in range(REPEATS))
        started = traces.by_stage(traces.record(run, case.device, trace))
        seconds = {OTHER if name is None else name: at.seconds for name, at in started.items()}
    else:
        whole, seconds = _by_the_clock(plan)
        started = traces.by_stage(traces.record(plan, case.device, trace))
    # Stages and whole are of different plans on a GPU: where nothing but kernels takes time, noise can make this negative.
    seconds[GAPS] = max(0.0, whole - sum(seconds.values()))

    n, needs = case.planner.iterations, work.of_stages(case)
    limits = ceilings_of_run.of(list(ceilings), case.planner.precision)
    rows = []
    for name in (WHOLE, *STAGES, OTHER, GAPS):
        if not seconds.get(name) and name != GAPS:
            continue
        flops, moved = needs.get(name, (None, None))
        outside = OTHER if case.device.type == "cuda" else GAPS
        launches = started.get(None if name == outside else name, traces.Started()).launches / n
        rows.append(
            StageRow(
                case=case.name, device=str(case.device), backend=way, stage=name, seconds=seconds[name] / n,
                launches=launches, flops=flops, bytes=moved, floor=_floor((flops, moved), limits),
            )  # fmt: skip
        )
    return rows


def table(rows: Sequence[StageRow]) -> str:
    """The rows, and their sum."""
    if not rows:
        return "no stages"
    total = sum(row.seconds for row in rows)
    lines = [
        f"{rows[0].case} on {rows[0].device}, {rows[0].backend}; an iteration:",
        _line("stage", "µs", "share", "launches", "GFLOP/s", "floor µs", "× floor"),
    ]
    for row in rows:
        floor = None if row.floor is None else row.floor * 1e6
        times = None if not row.floor else row.seconds / row.floor
        rate = None if row.flops is None else row.flops / row.seconds / 1e9
        numbers = map(_number, (row.launches, rate, floor, times))
        lines.append(_line(row.stage, f"{row.seconds * 1e6:,.1f}", f"{row.seconds / total:.1%}", *numbers))
    launches = sum(row.launches or 0.0 for row in rows)
    lines.append(_line("all", f"{total * 1e6:,.1f}", "100.0%", _number(launches), "", "", ""))
    return "\n".join(lines)


def profile_command(
    problem: Path | None = None,
    width: int = 256,
    problems: int = 64,
    horizon: int | None = None,
    iterations: int | None = None,
    precision: Precision | None = None,
    backend: str = "auto",
    device: Device = "auto",
    trace: Path | None = None,
    out: Path | None = None,
) -> None:
    """Show where an iteration of a plan goes: time and launches by stage, and how far each is from what the machine gives.

    Args:
        problem: Your own: a training run's folder, or a Python file that builds a Problem; else the published networks.
        width: Of the published networks, four hidden layers each.
        problems: How many to plan at once.
        horizon: Steps of the model; by default 8, or as the file's own planner says.
        iterations: Gradient steps; by default 50, or as the file's own planner says.
        precision: Of the networks' products; by default float32, or as the file's own planner says.
        backend: auto, or one of those that `sgp-fast doctor` names.
        device: Where to plan; auto takes the GPU where there is one.
        trace: Write a trace here, for https://ui.perfetto.dev; its name ends in .json.gz.
        out: Record the rows here, as JSON lines.
    """
    for name, value in (("problems", problems), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    place = device_of(device)
    if out is not None and out.exists():
        raise ValueError(f"{out} exists; give another --out, and it stays as it is")
    if trace is not None and not trace.name.endswith(".json.gz"):
        raise ValueError(f"trace is {trace}; expected a name that ends in .json.gz, as Perfetto wants it")
    if problem is not None:
        from .bring import load_case

        case = load_case(problem, problems=problems, horizon=horizon, iterations=iterations, precision=precision)
    else:
        given = {"horizon": horizon, "iterations": iterations, "precision": precision}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        case = make_case(width, problems, **options)
    case = case.to(place)
    limits = ceilings_of_run.measure(place, (case.planner.precision,))
    rows = profile(case, backend, trace, limits)
    print(table(rows))
    for limit in limits:
        print(f"ceiling: {limit.what} {limit.value / 1e9:,.0f} G{limit.unit}")
    if trace is not None:
        print(f"trace written to {trace}; open it at https://ui.perfetto.dev")
    if out is not None:
        records.write(out, records.header("profile", backend=backend, problem=problem and str(problem)), [*limits, *rows])
        print(f"rows written to {out}")


def _by_the_clock(plan: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """Seconds of the plan of median length, and of its stages."""
    runs = []
    for _ in range(REPEATS):
        with watching() as watch:
            whole = clock.seconds(plan, torch.device("cpu"))
        runs.append((whole, watch.seconds))
    return sorted(runs, key=lambda run: run[0])[REPEATS // 2]


def _launched(case: Case, regime: str, chunks: int) -> Callable[[], object]:
    """A plan of the fused backend without its graph, so that a profiler sees which stage launches what."""
    from sgp_fast.backends.fused.backend import candidates_of
    from sgp_fast.backends.fused.graphs import bucket
    from sgp_fast.backends.fused.work import PlanWork

    if chunks > 1:
        raise ValueError(f"{case.name} is planned in {chunks} chunks; profile fewer problems, or raise SGP.memory_limit")
    job = replace(job_of(case.problem, case.planner, case.x0), u=case.init)
    size = bucket(len(case.x0))
    made = PlanWork(case.problem, job, size, case.device, candidates_of(job, size, regime.split()[0])[regime])

    @torch.no_grad()
    def run() -> None:
        made.load_job(job)
        made.body()

    return run


def _floor(need: tuple[float | None, float | None], limits: tuple[float | None, float | None]) -> float | None:
    """The least seconds that the ceilings allow."""
    times = [n / limit for n, limit in zip(need, limits, strict=True) if n is not None and limit]
    return max(times, default=None)


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:,.1f}"


def _line(*words: str) -> str:
    first, *others = words
    return f"{first:<18}" + "".join(f"{word:>11}" for word in others)
