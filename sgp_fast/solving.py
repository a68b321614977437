"""Planning: a frozen planner applied to a batch of problems."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import schedule
from ._remembered import numbers
from ._sampled import refuse_ensemble, sample, score_words
from .backends import choose
from .backends.job import Iteration, Job, Tables
from .inputs import Inputs, check_kinds, check_moves, problem_rows, read_inputs, starting_controls
from .models import Network
from .plan import Plan
from .planner import SGP
from .problem import Problem, device_of
from .sampling import Planner, Sampler


def solve(
    problem: Problem,
    planner: Planner,
    x0: Tensor | np.ndarray,
    *,
    xT: Tensor | None = None,
    goal: Tensor | np.ndarray | None = None,
    params: Any = None,
    init: Plan | Tensor | np.ndarray | None = None,
    seed: int | None = None,
    backend: str = "auto",
    time_limit_s: float | None = None,
    callback: Callable[[Iteration], None] | None = None,
) -> Plan:
    """Plan from B start states at once. Pure: the same arguments give the same plans, and no argument is changed.

    x0            start states `[B, nx]`, or `[nx]` for one problem
    xT            end states; only planners with fixed ends take them
    goal          `[B, nx]` or `[nx]`, for costs that read one
    params        per-problem parameters of custom costs: a tensor `[B, …]`, or a dictionary of such
    planner       `SGP`, or a sampling planner: `CEM`, `MPPI`
    init          controls `[B, T, nu]` or a Plan to start from; without it SGP starts at `start_spread`·normal from `seed`,
                  and sampling planners in the middle of the bounds
    seed          of the random starts and draws; None is 0. Problem i's numbers depend on the seed and on i alone
    backend       "auto", "eager", "compiled" or "fused" ("fused:tile", "fused:layered", "fused:grid", "fused:ring" or
                  "fused:relay" for one regime); `Plan.stats` says what ran and why
    time_limit_s  no iteration is begun after this many seconds, counted from when the models are prepared and shared among
                  chunks (`fused` looks at the clock every fifth iteration). Of the iterates so far, every fifth and the
                  last, the one of best `Plan.ranking` is then returned; `Plan.iterations` tells how many steps there were.
                  What a first call compiles, measures or captures is not stopped: see `warmup`
    callback      called with an `Iteration` before each step of SGP

    A problem that diverges has `Status.DIVERGED` and disturbs no other. Wrong arguments raise before any work.
    """
    check_kinds(problem, planner)
    # Whatever mode the caller is in, plans are ordinary tensors, and products are what `planner.precision` says.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_of(problem).type, enabled=False):
        return _solve(problem, planner, x0, xT, goal, params, init, seed, backend, time_limit_s, callback)


def _solve(
    problem: Problem, planner: Planner, x0: Any, xT: Any, goal: Any, params: Any, init: Any, seed: int | None, backend: str,
    time_limit_s: float | None, callback: Callable[[Iteration], None] | None,
) -> Plan:  # fmt: skip
    began = time.perf_counter()
    inputs = read_inputs(problem, planner, x0, goal=goal, params=params, init=init)
    if xT is not None:
        raise ValueError("xT is given, but single shooting has a free end; use a terminal cost that draws x_T to it")
    if seed is not None and not isinstance(seed, Integral):
        raise TypeError(f"seed is {seed!r}; expected a whole number, or None")
    if time_limit_s is not None and not time_limit_s > 0:
        raise ValueError(f"time_limit_s is {time_limit_s}; expected a positive number of seconds, or None")
    if isinstance(planner, Sampler):
        if callback is not None:
            raise ValueError(f"callback is given, but {type(planner).__name__} takes no gradient steps to look at")
        return sample(problem, planner, inputs, None, None, int(seed or 0), backend, time_limit_s, began)
    if inputs.init is None:
        check_moves(planner, ", or init: what its controls come to is then told")
    refuse_ensemble(problem)
    tables = _tables(problem, planner)
    chosen = choose(backend, problem, planner, inputs.x0.device, callback)
    prepared = chosen.prepare(problem, planner, inputs.x0.device)
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s

    batch = len(inputs.x0)
    chunk = -(-batch // -(-batch // _chunk_size(problem, planner, inputs.nx, inputs.nu)))  # alike, not full ones and a rest
    plans, chunks = [], range(0, batch, chunk)
    for number, first in enumerate(chunks):
        now = time.monotonic()  # chunks share the time that is left alike: none may starve those behind it
        until = now + (deadline - now) / (len(chunks) - number) if deadline < math.inf else math.inf
        rows = problem_rows(inputs, slice(first, first + chunk))
        job = _job(prepared, planner, tables, rows, int(seed or 0), first, until, callback)
        plans.append(_best_start(chosen.run(job), planner.starts))
    seconds = time.perf_counter() - began
    stats = {
        "backend": chosen.name,
        "reason": chosen.reason,
        "precision": planner.precision,
        "device": str(inputs.x0.device),
        "problems": len(inputs.x0),
        "chunks": len(plans),
        "seconds": seconds,
        "beta": list(tables.beta),
        "sigma": list(tables.sigma),
        "score": score_words(problem, any(tables.beta)),
        "step_size": list(tables.step_size),
    } | plans[0].stats  # what the backend has to say
    return Plan.concatenate(plans, stats) if len(plans) > 1 else replace(plans[0], stats=stats)


def job_of(problem: Problem, planner: SGP, x0: Tensor, *, goal: Any = None, params: Any = None) -> Job:
    """What a backend is given for start states `x0 [B, nx]`, without a limit of time; raises as `solve` does."""
    inputs = read_inputs(problem, planner, x0, goal=goal, params=params, init=None)
    return _job(problem, planner, _tables(problem, planner), inputs, 0, 0, math.inf, None)


def _job(
    prepared: Any, planner: SGP, tables: Tables, rows: Inputs, seed: int, first: int, until: float,
    callback: Callable[[Iteration], None] | None,
) -> Job:  # fmt: skip
    return Job(
        problem=prepared, planner=planner, tables=tables, first=first, deadline=until, callback=callback, x0=rows.x0,
        u=starting_controls(planner, rows, seed, first), low=rows.low, high=rows.high, goal=rows.goal, params=rows.params,
        moments=rows.moments,
    )  # fmt: skip


def _tables(problem: Problem, planner: SGP) -> Tables:
    score = problem.score
    tables = _schedules(planner, None if score is None else score.levels)
    if score is None:
        return tables
    sigmas = numbers(score.sigmas)
    return replace(tables, sigma=tuple(sigmas[level] for level in tables.levels))


@functools.lru_cache(maxsize=64)
def _schedules(planner: SGP, count: int | None) -> Tables:
    """All of the tables but sigma, for a score of `count` levels or none."""
    n = planner.iterations
    if count is None:
        beta, levels = (0.0,) * n, (0,) * n
    else:
        beta = schedule.table(planner.beta, n, "SGP.beta")
        levels = schedule.level_table(planner.levels, n, count)
    step_size = schedule.table(planner.step_size, n, "SGP.step_size")
    settled = schedule.last_change(beta, levels, step_size)
    return Tables(beta=beta, levels=levels, sigma=(0.0,) * n, step_size=step_size, settled=settled)


def bytes_per_problem(problem: Problem, planner: SGP, nx: int, nu: int) -> int:
    """About the bytes that one start of a problem holds in an iteration: T rows of saved activations, and its own state.

    The dynamics' activations live through the iteration; those of cost and score pass. So the peak is T·(dynamics +
    the larger of cost and score), and some 20 vectors of `nx + nu` a step. Autograd models are counted as a 4×256
    network. `eager` took a third more when measured (1.75 GB where this says 1.30); `compiled` takes far less, since it
    plans blocks of rows one after the other.
    """
    item = 8 if planner.precision == "float64" else 4

    def saved(part: Any) -> int:
        network = getattr(part, "network", None)
        return network.spec.saved_per_row() if isinstance(network, Network) else 4 * 3 * 256

    widest = max(saved(problem.cost), 0 if problem.score is None else 3 * max(problem.score.network.spec.widths))
    return item * planner.horizon * (saved(problem.dynamics) + widest + 20 * (nx + nu))


def _chunk_size(problem: Problem, planner: SGP, nx: int, nu: int) -> int:
    per_problem = bytes_per_problem(problem, planner, nx, nu) * planner.starts
    return max(1, planner.memory_limit // per_problem)


def _best_start(plan: Plan, starts: int) -> Plan:
    """Of `starts` consecutive rows a problem, the one of best ranking; the first where none is finite."""
    if starts == 1:
        return plan
    ranking = plan.ranking.view(-1, starts)
    best = ranking.argmin(1) + torch.arange(len(ranking), device=ranking.device) * starts
    return plan.select(best)
