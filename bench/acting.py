"""A controller's step end to end: observations on the host in, actions on the host out, the plan between warm-started."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

import sgp_fast as sgp
from sgp_fast.backends import available

from .cases import Case
from .ladder import REASONS, one_line
from .rows import ActRow
from .rungs import OURS

STEPS, LEAST = 100, 5
FEWEST = 2 + LEAST  # with those that are not counted


def measure(case: Case, names: Iterable[str], *, budget: float) -> Iterator[ActRow]:
    """A row for each of these of our ways to plan; `budget` seconds in all."""
    wanted = set(names)
    chosen = [rung for rung in OURS if rung.name in wanted]
    for rung in chosen:
        row = ActRow(
            case=case.name, device=str(case.device), rung=rung.name, label=rung.label, problems=len(case.x0)
        )  # fmt: skip
        try:
            yield replace(row, samples=tuple(steps(case, rung.name, budget / len(chosen))))
        except REASONS as why:
            yield replace(row, reason=one_line(why))


def steps(case: Case, backend: str, budget: float) -> list[float]:
    """Seconds of consecutive steps, the first few left out; the observations wander as those of an environment do."""
    kind = backend.partition(":")[0]
    if kind == "fused" and case.device.type != "cuda":
        raise ValueError("Triton kernels run on GPUs, and the case is on the CPU")
    if kind != "auto" and (why := available().get(kind)) is not None:
        raise ValueError(why)
    controller = sgp.MPC(case.problem, case.planner, len(case.x0), backend=backend)
    draw = np.random.default_rng(0)
    obs = case.x0.cpu().numpy()
    taken: list[float] = []
    for step in range(2 + STEPS):
        obs = obs + 0.02 * draw.standard_normal(obs.shape).astype(obs.dtype)
        began = time.perf_counter()
        controller.act(obs)
        taken.append(time.perf_counter() - began)
        if step >= 1 + LEAST and sum(taken) > budget:
            break
    return taken[2:]
