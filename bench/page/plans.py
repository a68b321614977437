"""All rows of plans and ceilings in tables, and the few numbers that a passer-by should see."""

from __future__ import annotations

from sgp_fast.report.numbers import NONE, number, ratio

from ..records import Results
from ..rows import CeilingRow, PlanRow
from ..tables import disturbed
from . import style
from .ladder import speedup
from .section import Table, table

COLUMNS = (
    "case|rung|precision|>20th, ms|>median, ms|>80th, ms|>99th, ms|>rounds|>planned|>plans/s|>error|>limit|>cost|>penalty"
    "|>TFLOP/s|>of the product, %|>GB/s|>of the copy, %|>launches an iteration|>MB in a plan|>MB in graphs|>mJ a plan|remark"
)


def plans(results: Results) -> Table | None:
    """Every row of a plan with every number that it has; columns that no row fills are left out."""
    rows = style.ordered(results.of(PlanRow))
    if not rows:
        return None
    ceilings = results.of(CeilingRow)
    copy = max((row.value for row in ceilings if row.unit == "B/s"), default=None)
    products = {row.precision: row.value for row in ceilings if row.unit == "FLOP/s"}
    cells = [_cells(row, products.get(row.precision), copy) for row in rows]
    names = COLUMNS.split("|")
    kept = [i for i in range(len(names)) if i < 3 or any(line[i] not in (NONE, "") for line in cells)]
    return table("|".join(names[i] for i in kept), [tuple(line[i] for i in kept) for line in cells])


def _cells(row: PlanRow, product: float | None, copy: float | None) -> tuple[str, ...]:
    reached = row.flops / row.p50 if row.flops and row.p50 else None
    read = row.bytes / row.p50 if row.bytes and row.p50 else None
    return (
        row.case,
        row.label,
        row.precision,
        *(style.cell(row.quantile(q), 1e3) for q in (0.2, 0.5, 0.8, 0.99)),
        str(len(row.samples)) if row.samples else NONE,
        f"{row.timed:,} of {row.problems:,}" if 0 < row.timed < row.problems else NONE,
        style.cell(row.plans_per_second),
        *map(style.cell, (row.error, row.limit, row.cost, row.penalty)),
        style.cell(reached, 1e-12),
        style.cell(100 * reached / product if reached and product else None),
        style.cell(read, 1e-9),
        style.cell(100 * read / copy if read and copy else None),
        style.cell(row.launches),
        style.cell(row.memory, 1e-6),
        style.cell(row.graphs, 1e-6),
        style.cell(row.joules, 1e3 / row.problems),
        row.reason or row.chosen or "",
    )


def ceilings(results: Results) -> Table | None:
    """What the machine gave at most in the run."""
    rows = results.of(CeilingRow)
    if not rows:
        return None
    return table(
        "ceiling|precision|device|>measured",
        [(row.what, row.precision or NONE, row.device, f"{number(row.value / 1e9)} G{row.unit}") for row in rows],
    )


def facts(results: Results) -> list[dict[str, str]]:
    """At each published case: what a user of ours gets, `auto`, against the fastest other rung and the published loop.

    None where no strong baseline was measured: beside slow loops alone, anything is fast.
    """
    found = []
    for case, of in _published(results).items():
        timed = [row for row in of if row.p50]
        ours = next((row for row in timed if row.rung == "auto"), None)
        if ours is None or not any(map(style.strong, timed)):
            continue
        other = min((row for row in timed if row.family == "baseline"), key=lambda row: row.p50 or 0.0)
        times = speedup(ours, timed)
        loop = f", and {ratio(times)} that of the published loop" if times and other.rung != "published" else ""
        missing = [row.rung for row in of if row.left_out and style.strong(row)]
        without = f" ({', '.join(missing)}: left out for time)" if missing else ""
        base = [row for row in timed if row.rung == "published"] if loop else []
        spread = disturbed([other, *base, ours])
        claim = f"the speed of {other.label}, the fastest other way measured here{without}{loop}"
        text = f"{claim}; {spread}" if spread else claim
        found.append({"value": ratio(speedup(ours, timed, other.rung)), "case": case, "text": text})
    return found


def unclaimed(results: Results) -> str | None:
    """A sentence about the published cases at which ours was measured, and no strong baseline; None where there are none."""
    cases = [
        case for case, of in _published(results).items()
        if any(row.p50 and row.family == "ours" for row in of) and not any(row.p50 and style.strong(row) for row in of)
    ]  # fmt: skip
    if not cases:
        return None
    return f"No speed is claimed at {'; '.join(cases)}: no baseline that plans a whole batch at once was measured there."


def _published(results: Results) -> dict[str, list[PlanRow]]:
    """The rows of each published case."""
    by_case = style.grouped(style.ordered(results.of(PlanRow)), lambda row: row.case)
    return {case: by_case[case] for case in style.PUBLISHED if case in by_case}
