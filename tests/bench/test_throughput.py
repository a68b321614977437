"""The demo's throughput figure: what stands in a row of it can be compared with the rows beside it."""

from __future__ import annotations

from sgp_fast.bench import throughput
from sgp_fast.bench.rows import PlanRow

from . import synthetic


def test_a_cost_of_one_problem_does_not_stand_beside_one_of_many() -> None:
    """A loop that plans one of 64 knows what that one costs; the others have a mean over sixteen."""
    for problems in (1, 64):
        found = {row.rung: row for row in synthetic.plans(256, problems, "float32") if isinstance(row, PlanRow)}
        alone, batched = (throughput._row(found[rung]) for rung in ("published", "compiled"))
        assert batched.final_cost == found["compiled"].cost is not None and batched.note == ""
        assert alone.final_cost == (found["published"].cost if problems == 1 else None)
        assert alone.note == ("" if problems == 1 else "1 of them planned, the time scaled to all")
        assert alone.label == "loop as published, one at a time"
