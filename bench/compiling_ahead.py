"""Compiling kernels before they are needed, many at once: one is a matter of seconds, a session's of many minutes.

What is compiled goes to Triton's cache on disk, from where other processes take it. Without a GPU it is compiled for a
named one, to be carried to a machine that has it, which must have the same triton, and look for its cache at the same path.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from .cases import Case
from .sweep import Spec

# Ways that a regime may have for a size.
MOST = {"relay": 3, "ring": 3, "tile": 3, "layered": 4, "grid": 1}
SAMPLED = "mppi command"  # the rung of our sampling planners whose kernels are compiled, where a case asks for it
Job = tuple[Spec, str, int]


def compile_all(specs: Iterable[Spec], seconds: float, arch: int | None = None) -> tuple[int, int]:
    """Compile what `fused` plans these cases with; how many jobs were left when the seconds had passed, and how many failed.

    arch  of a GPU that is not here; None compiles for the one that is
    """
    jobs = _in_order((spec, *way) for spec in specs for way in _ways(spec))
    workers = min(len(jobs), os.cpu_count() or 1)
    until, left, failed = time.monotonic() + seconds, len(jobs), 0
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    futures = {pool.submit(compile_one, *job, arch): job for job in jobs}
    try:
        for future in as_completed(futures, timeout=max(1.0, until - time.monotonic())):
            left -= 1
            failure = future.exception()
            failed += failure is not None
            told = failure or future.result()
            if told is not None:
                print(told, flush=True)
    except TimeoutError:
        pass
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=left == 0, cancel_futures=True)
    for process in processes if left else ():
        process.terminate()
    counts = f"{len(jobs) - left - failed} of {len(jobs)} jobs done by {workers} processes, {failed} failed, {left} left"
    print(counts, flush=True)
    return left, failed


def compile_one(spec: Spec, regime: str, number: int, arch: int | None) -> str | None:
    """Compile the kernels of one way to plan a case, of that number among the regime's; what came of it, in a line.

    None where the regime has no such way. Raises RuntimeError, in a line too, where compiling failed.
    """
    from sgp_fast.backends.fused.backend import candidates_of
    from sgp_fast.backends.fused.graphs import bucket
    from sgp_fast.backends.fused.work import PlanWork
    from sgp_fast.solving import job_of

    torch.set_num_threads(1)
    began = time.perf_counter()
    case = spec.make().to("cpu" if arch else "cuda:0")
    once = replace(case.planner, iterations=1)
    job, size = job_of(case.problem, once, case.x0), bucket(len(case.x0))
    ways = [(SAMPLED, None)] if regime == SAMPLED else list(candidates_of(job, size, regime).items())
    if number >= len(ways):
        return None
    name, make = ways[number]
    try:
        with launching_nothing(arch):
            _sampling(case) if make is None else PlanWork(job.problem, job, size, case.device, make).body()
    except ValueError:
        return None  # what the regime does not cover
    except Exception as why:
        raise RuntimeError(f"{case.name}, {name}: {type(why).__name__}: {' '.join(str(why).split())[:300]}") from None
    return f"{case.name}, {name}: {time.perf_counter() - began:.0f} s"


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone: it would wait for jobs for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ways(spec: Spec) -> list[tuple[str, int]]:
    """Regimes and numbers of their ways that a case may be planned by."""
    if SAMPLED in (spec.rungs or ()):
        return [(SAMPLED, 0)]
    return [(regime, number) for regime in MOST for number in range(MOST[regime])]


def _sampling(case: Case) -> None:
    from sgp_fast.backends.fused.graphs import bucket
    from sgp_fast.backends.fused.rollout import RolloutWork, tile_of
    from sgp_fast.backends.sampling import SamplingJob
    from sgp_fast.inputs import read_inputs

    from .peers.models import COMMAND
    from .sampling import mppi

    planner, problem, score = mppi(case, COMMAND).planner, case.problem, case.problem.score
    given = read_inputs(problem, planner, case.x0, goal=None, params=None, init=case.init)
    job = SamplingJob(
        problem=problem, planner=planner, x0=given.x0, mean=case.init, std=torch.ones_like(case.init), low=given.low,
        high=given.high, goal=given.goal, params=given.params, level=score.levels - 1 if score else 0, penalty=0.0, seed=0,
        keys=torch.arange(len(case.x0), device=case.device), deadline=math.inf,
    )  # fmt: skip
    size = bucket(len(case.x0))
    tile = tile_of(problem, planner, size * planner.samples, case.device)
    assert tile is not None
    RolloutWork(job, size, tile).body()


def launching_nothing(arch: int | None) -> Any:
    """Inside, launches of Triton kernels compile them and no more; for another chip, `torch.mm` does nothing either."""
    from triton.runtime.jit import JITFunction

    stack = ExitStack()
    if arch is not None:
        from .offline import targeting

        stack.enter_context(targeting(arch))
        multiply = torch.mm
        torch.mm = lambda a, b, *, out=None: multiply(a, b) if out is None else out  # a CPU would take minutes
        stack.callback(setattr, torch, "mm", multiply)
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only  # pyright: ignore[reportAttributeAccessIssue]
    stack.callback(setattr, JITFunction, "run", run)
    return stack


def _in_order(jobs: Iterable[Job]) -> list[Job]:
    """Sizes share most kernels: first a job of each kind, then those that will find what the first ones compiled."""
    seen: Counter[tuple[object, ...]] = Counter()
    found = []
    for job in jobs:
        spec, regime, number = job
        kind = (spec.width, spec.horizon, spec.precision, regime, number)
        found.append((seen[kind], job))
        seen[kind] += 1
    return [job for _, job in sorted(found, key=lambda item: item[0])]
