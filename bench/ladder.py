"""The ladder: every rung plans the same problems, is first held against float64, and is then timed turn by turn.

Rungs take turns round after round, so that a drift of the machine hits all alike; a rung that is not correct prints its
error and no time; a rung that cannot run here is listed with the reason. The published loop plans one problem of a batch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast._files import atomic_path
from sgp_fast.backends import available
from sgp_fast.doctor import cpu_model

from .baselines import BASELINES
from .cases import Case, make_case

# The plan of one float32 rung may differ from float64's by rounding that Adam's division amplifies; bfloat16 rounds weights.
LIMITS = {"float32": 1e-3, "bfloat16": 0.3}
# OpenMP's workers go on spinning for some milliseconds after a product: none shall slow the rung that comes next.
PAUSE = 0.05
OURS = {"eager": ("eager", "float32"), "compiled": ("compiled", "float32"), "compiled bf16": ("compiled", "bfloat16")}


@dataclass(frozen=True)
class Row:
    """One rung at one case. Seconds are for all `problems` of the case; `error` is ‖u − u₆₄‖/‖u₆₄‖; `cost` their mean cost.

    `timed` says how many of the problems were planned for the time, which is scaled to all; `reason` why there is none.
    """

    case: str
    rung: str
    precision: str
    problems: int
    timed: int = 0
    rounds: int = 0
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    cold: float | None = None
    error: float | None = None
    cost: float | None = None
    reason: str | None = None

    @property
    def plans_per_second(self) -> float | None:
        return None if self.p50 is None else self.problems / self.p50


def run(
    sizes: list[tuple[int, int]],
    *,
    rungs: tuple[str, ...] | None = None,
    rounds: int = 9,
    rung_s: float = 20.0,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Rows of the rungs (None: all) at each (width, problems); after two rounds, one that used `rung_s` seconds sits out."""
    rows = []
    for width, batch in sizes:
        case = make_case(width, batch)
        reference = _plan(case, "eager", "float64").u
        runners: dict[str, tuple[Case, Callable[[], Tensor]]] = {}
        found: dict[str, Row] = {}
        for name in rungs or (*BASELINES, *OURS):
            progress(f"{case.name}: {name} …")
            part = _part(case, 1) if name == "published" else case
            precision = OURS[name][1] if name in OURS else "float32"
            row = Row(case.name, name, precision, batch, timed=len(part.x0))
            try:
                began = time.perf_counter()
                runner = _runner(part, name)
                u = runner()
                row = replace(row, cold=time.perf_counter() - began)
            except (ImportError, ValueError, RuntimeError) as why:
                found[name] = replace(row, timed=0, reason=str(why).splitlines()[0])
                continue
            want = reference[: len(u)]
            error = ((u.double() - want).norm() / want.norm()).item()
            row = replace(row, error=error, cost=_cost(part, u))
            if not error < LIMITS[precision]:
                row = replace(row, timed=0, reason=f"wrong: error {error:.1e} above {LIMITS[precision]:.0e}")
            else:
                runners[name] = (part, runner)
            found[name] = row
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, (_, runner) in runners.items():
                if len(times[name]) >= 2 and sum(times[name]) > rung_s:
                    continue
                time.sleep(PAUSE)
                began = time.perf_counter()
                runner()
                times[name].append(time.perf_counter() - began)
        for name, samples in times.items():
            scale = batch / found[name].timed
            p20, p50, p80 = (scale * float(np.quantile(samples, q)) for q in (0.2, 0.5, 0.8))
            found[name] = replace(found[name], rounds=len(samples), p20=p20, p50=p50, p80=p80)
        rows += found.values()
    return rows


def circumstances() -> dict[str, object]:
    """What a number needs beside it: commit, machine, versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or None,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "jax": importlib.util.find_spec("jax") and importlib.metadata.version("jax"),
        "python": platform.python_version(),
    }


def write(rows: list[Row], path: Path) -> None:
    """JSON lines: the circumstances, then a line a row."""
    with atomic_path(path) as temporary:
        lines = [json.dumps({"kind": "ladder", "version": 1, **circumstances()}), *(json.dumps(asdict(r)) for r in rows)]
        temporary.write_text("\n".join(lines) + "\n")


def table(rows: list[Row]) -> str:
    """Rungs down, cases across: milliseconds for the batch, and how many times faster than each rung `compiled` is."""
    cases = list(dict.fromkeys(row.case for row in rows))
    cell = {(row.rung, row.case): row for row in rows}
    lines = [f"{'median ms a batch':<16}" + "".join(f"{case:>14}" for case in cases)]
    for rung in dict.fromkeys(row.rung for row in rows):
        line = f"{rung:<16}"
        for case in cases:
            row = cell[rung, case]
            line += f"{'—' if row.p50 is None else f'{1e3 * row.p50:,.1f}':>14}"
        lines.append(line)
    lines.append(f"{'compiled is':<16}")
    for rung in dict.fromkeys(row.rung for row in rows if row.rung != "compiled"):
        line = f"{'  × ' + rung:<16}"
        for case in cases:
            ours, theirs = cell["compiled", case].p50, cell[rung, case].p50
            line += f"{'—' if ours is None or theirs is None else f'{theirs / ours:.2f}':>14}"
        lines.append(line)
    lines += [f"{row.case} {row.rung}: {row.reason}" for row in rows if row.reason]
    return "\n".join(lines)


def spread(rows: list[Row]) -> float:
    """Median over rows of (p80 − p20)/p50: how noisy the run was."""
    known = [(row.p80 - row.p20) / row.p50 for row in rows if row.p50 and row.p80 and row.p20]
    return statistics.median(known) if known else float("nan")


def _runner(case: Case, name: str) -> Callable[[], Tensor]:
    if name in BASELINES:
        return BASELINES[name](case)
    backend, precision = OURS[name]
    if (why := available().get(backend, "not built")) is not None:
        raise ValueError(why)
    return lambda: _plan(case, backend, precision).u


def _plan(case: Case, backend: str, precision: str) -> sgp.Plan:
    planner = replace(case.planner, precision=precision)
    return sgp.solve(case.problem, planner, case.x0, init=case.init, backend=backend)


def _cost(case: Case, u: Tensor) -> float:
    """Mean task cost of the controls, in float64: zero-length steps from them leave them where they are."""
    planner = replace(case.planner, precision="float64", iterations=1, step_size=0.0)
    return sgp.solve(case.problem, planner, case.x0, init=u, backend="eager").cost.mean().item()


def _part(case: Case, count: int) -> Case:
    return replace(case, x0=case.x0[:count], init=case.init[:count])
