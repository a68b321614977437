"""Memory against the number of problems: peak resident bytes of a fresh process that plans B problems, less its base."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace

import sgp_fast as sgp
from sgp_fast.solving import bytes_per_problem

from .cases import NU, NX, make_case

WIDTH = 256
COUNTS = (1_000, 3_000, 10_000, 30_000)


def run(counts: tuple[int, ...] = COUNTS) -> list[dict[str, float]]:
    """A row a count: what the model `bytes_per_problem` says, and what a process took."""
    rows = []
    for count in counts:
        out = subprocess.run(
            [sys.executable, "-m", __name__, str(count)], capture_output=True, text=True, check=True
        )  # fmt: skip
        rows.append(json.loads(out.stdout.splitlines()[-1]))
    return rows


def measure(count: int) -> dict[str, float]:
    """Plan `count` problems for three iterations in this process; three hold as much as fifty."""
    case = make_case(WIDTH, count, iterations=3)
    small = replace(case, x0=case.x0[:8], init=case.init[:8])
    for part in (small, case):
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        plan = sgp.solve(part.problem, part.planner, part.x0, init=part.init)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = bytes_per_problem(case.problem, case.planner, NX, NU)
    taken = {"modelled": model * count, "measured": peak - base, "peak": peak}
    return {"problems": count, "chunks": plan.stats["chunks"], **taken}


def table(rows: list[dict[str, float]]) -> str:
    lines = [f"{'problems':>10}{'chunks':>8}{'model GB':>10}{'taken GB':>10}{'process GB':>12}"]
    for r in rows:
        sizes = f"{r['modelled'] / 1e9:>10.2f}{r['measured'] / 1e9:>10.2f}{r['peak'] / 1e9:>12.2f}"
        lines.append(f"{r['problems']:>10,}{r['chunks']:>8}{sizes}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
