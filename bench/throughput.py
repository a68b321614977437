"""The demo's throughput figure: a short ladder in the words of the report."""

from __future__ import annotations

from sgp_fast.report import Throughput, ThroughputRow

from . import ladder
from .cases import make_case
from .gate import comparable
from .rows import PlanRow

# Rung and precision → key and words in the report.
LABELS = {
    ("published", "float32"): ("published", "loop as published, one at a time"),
    ("autograd", "float32"): ("plain", "batched autograd in plain PyTorch"),
    ("eager", "float32"): ("eager", "sgp_fast eager"),
    ("compiled", "float32"): ("compiled", "sgp_fast compiled"),
    ("compiled", "bfloat16"): ("bf16", "sgp_fast compiled, bf16 products"),
}
SECONDS = 8.0


def measure(width: int = 256, problems: tuple[int, ...] = (1, 64)) -> Throughput:
    """The rungs that a report shows, at one width and some numbers of problems, all in one run."""
    rows = []
    for count in problems:
        for precision in ("float32", "bfloat16"):
            rungs = [rung for rung, of in LABELS if of == precision]
            case = make_case(width, count, precision=precision)
            rows += ladder.measure(case, rungs, share=SECONDS / 2, count=False)
    return Throughput(f"T = 8, 50 iterations, 4×{width}, 17 states, 6 controls, learned cost", tuple(map(_row, rows)))


def _row(row: PlanRow) -> ThroughputRow:
    key, label = LABELS[row.rung, row.precision]
    note = row.reason or ("" if row.timed == row.problems else f"{row.timed} of them planned, the time scaled to all")
    return ThroughputRow(
        key=key, label=label, problems=row.problems, plans_per_second=row.plans_per_second, p50_seconds=row.p50,
        p20_seconds=row.quantile(0.2), p80_seconds=row.quantile(0.8), repeats=len(row.samples),
        final_cost=row.cost if comparable(row) else None, note=note,
    )  # fmt: skip
