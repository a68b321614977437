"""The demo's throughput figure: a short ladder in the words of the report."""

from __future__ import annotations

from sgp_fast.report import Throughput, ThroughputRow

from . import ladder

LABELS = {
    "published": ("published", "loop as published"),
    "autograd": ("plain", "best plain PyTorch"),
    "eager": ("eager", "sgp_fast eager"),
    "compiled": ("compiled", "sgp_fast compiled"),
    "compiled bf16": ("bf16", "sgp_fast compiled, bf16 products"),
}


def measure(width: int = 256, problems: tuple[int, ...] = (1, 64), rounds: int = 5) -> Throughput:
    """The rungs that a report shows, at one width and some numbers of problems, all in one run."""
    rows = ladder.run([(width, count) for count in problems], rungs=tuple(LABELS), rounds=rounds, rung_s=8.0)
    return Throughput(f"T = 8, 50 iterations, 4×{width}, 17 states, 6 controls, learned cost", tuple(map(_row, rows)))


def _row(row: ladder.Row) -> ThroughputRow:
    key, label = LABELS[row.rung]
    note = row.reason or ("" if row.timed == row.problems else f"{row.timed} planned, one at a time, and scaled")
    return ThroughputRow(
        key=key, label=label, problems=row.problems, plans_per_second=row.plans_per_second, p50_seconds=row.p50,
        repeats=row.rounds, final_cost=row.cost, p20_seconds=row.p20, p80_seconds=row.p80, note=note,
    )  # fmt: skip
