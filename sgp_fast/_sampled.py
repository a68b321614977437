"""Applying a sampling planner to a batch of problems: what `solve` and `MPC` do with one."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._remembered import numbers
from .backends.choosing import choose_sampling
from .backends.sampling import SamplingJob
from .inputs import Inputs, problem_rows, read_inputs
from .kernels.draws_ref import check_numbers
from .models import Ensemble
from .plan import Plan
from .problem import Problem
from .sampling import Sampler


def solve_keyed(
    problem: Problem,
    planner: Sampler,
    x0: Tensor,
    *,
    keys: Tensor,
    warm: Tensor,
    init: Tensor,
    goal: Tensor | None = None,
    params: Any = None,
    seed: int = 0,
    backend: str = "auto",
    time_limit_s: float | None = None,
) -> Plan:
    """`solve` with a key `[B]` for each problem's random numbers; problems that are not `warm [B]` start without `init`."""
    with torch.inference_mode(False), torch.no_grad():
        began = time.perf_counter()
        inputs = read_inputs(problem, planner, x0, goal=goal, params=params, init=init)
        return sample(problem, planner, inputs, keys, warm, seed, backend, time_limit_s, began)


def sample(
    problem: Problem, planner: Sampler, inputs: Inputs, keys: Tensor | None, warm: Tensor | None, seed: int, backend: str,
    time_limit_s: float | None, began: float,
) -> Plan:  # fmt: skip
    """Plan what `read_inputs` has checked; `keys` None numbers the problems, `warm` None is all where there is an init."""
    batch, nu, device = len(inputs.x0), inputs.nu, inputs.x0.device
    check_numbers(planner.horizon * nu)
    std = _first_std(planner, inputs)
    mean = _first_mean(planner, inputs, warm)
    keys = torch.arange(batch, device=device) if keys is None else keys.to(device)
    name, level, sigma, penalty = type(planner).__name__, 0, 0.0, 0.0
    if problem.score is not None:
        level, sigma = problem.score.levels - 1, numbers(problem.score.sigmas)[-1]
        penalty = planner.beta * 0.5 * sigma**2
    elif planner.beta:
        raise ValueError(f"{name}.beta is {planner.beta}, but the problem has no score; give one, or beta=0")
    if planner.risk and not isinstance(problem.dynamics, Ensemble):
        raise ValueError(f"{name}.risk is {planner.risk}, but the dynamics are no Ensemble; give one, or risk=0")
    chosen = choose_sampling(backend, problem, planner, device)
    prepared = chosen.prepare(problem, planner, device)
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s

    chunk = chosen.problems_at_once(planner, nu)
    plans, chunks = [], range(0, batch, chunk)
    for number, first in enumerate(chunks):
        now = time.monotonic()  # chunks share the time that is left alike, as in `solve`
        until = now + (deadline - now) / (len(chunks) - number) if deadline < math.inf else math.inf
        some = slice(first, first + chunk)
        rows = problem_rows(inputs, some)
        plans.append(chosen.run(SamplingJob(
            problem=prepared, planner=planner, x0=rows.x0, mean=mean[some], std=std[some], low=rows.low, high=rows.high,
            goal=rows.goal, params=rows.params, level=level, penalty=penalty, seed=seed, keys=keys[some], deadline=until,
        )))  # fmt: skip
    stats = {
        "backend": chosen.name,
        "reason": chosen.reason,
        "precision": planner.precision,
        "device": str(device),
        "problems": batch,
        "chunks": len(plans),
        "seconds": time.perf_counter() - began,
        "beta": [planner.beta],
        "sigma": [sigma],
        "score": score_words(problem, planner.beta > 0),
    } | plans[0].stats
    return Plan.concatenate(plans, stats) if len(plans) > 1 else replace(plans[0], stats=stats)


def _first_mean(planner: Sampler, inputs: Inputs, warm: Tensor | None) -> Tensor:
    """Controls to start from `[B, T, nu]`, within the bounds: `init`, else the middle of the bounds, or zero without any."""
    shape = (len(inputs.x0), planner.horizon, inputs.nu)
    limits, given = inputs.limits, inputs.init
    rest = inputs.x0.new_zeros(shape) if limits is None else limits.middle[:, None].expand(shape)
    if given is None:
        return rest
    if limits is not None:
        given = torch.clamp(given, limits.low[:, None], limits.high[:, None])
    return given.clone() if warm is None else torch.where(warm.to(given.device)[:, None, None], given, rest)


def _first_std(planner: Sampler, inputs: Inputs) -> Tensor:
    """Standard deviations of the first draws, `[B, T, nu]`."""
    name, shape = type(planner).__name__, (len(inputs.x0), planner.horizon, inputs.nu)
    if planner.spread is not None:
        spread = _spread(planner.spread, inputs.x0.dtype, inputs.x0.device)
        if spread.ndim == 1 and len(spread) != inputs.nu:
            raise ValueError(f"{name}.spread has {len(spread)} entries; the problem has nu={inputs.nu}: give so many")
        return spread.expand(shape)
    if inputs.limits is None:
        raise ValueError(f"{name}.spread is None and the problem has no bounds; give spread, or bounds to take a quarter of")
    quarter = inputs.limits.quarter
    if quarter is None:
        raise ValueError(f"{name}.spread is None and Problem.bounds are not finite; give spread, or finite bounds")
    return quarter[:, None].expand(shape)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _spread(spread: float | tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of a planner, as a tensor that nobody writes to."""
    return torch.tensor(spread, dtype=dtype, device=device)


def score_words(problem: Problem, weighted: bool) -> str:
    """Of what account the score was, for `Plan.stats`."""
    if problem.score is None:
        return "absent: beta has no effect"
    return "weighted by beta" if weighted else "measured only: beta is 0"


def refuse_ensemble(problem: Problem) -> None:
    """Raises ValueError for planners that follow the gradient of one model."""
    if isinstance(problem.dynamics, Ensemble):
        raise ValueError(
            "the dynamics are an Ensemble, and SGP follows the gradient of one model; plan with CEM or MPPI, or one member"
        )
