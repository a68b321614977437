"""Which cases a run measures: what matters most first, and as much as the time allows.

    1   the four published cases, float32, every rung: the table of the README
    2   the same with bfloat16 products (on GPUs tf32 and float16 too): accuracy and speed by dtype
    3   problems from 1 to 16,384 at 4×256, then at 4×1024: latency against batch
    4   horizons from 4 to 64, widths from 64 to 1024, iterations from 10 to 200

On GPUs the sizes of high throughput come before single plans. A rung is begun only if what is known of its speed says that
it fits: what users get and the strong baselines first, published loops last. What does not fit has a row that says so, and a
run that goes on with the file measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sgp_fast.planner import Precision

from . import ceilings, ladder, work
from .cases import Case, make_case
from .rows import CeilingRow, PlanRow

PUBLISHED = ((256, 1), (1024, 1), (256, 64), (1024, 64))
# Few problems, which are planned for their latency.
LATENCY = ((256, 1), (1024, 1), (1024, 64))
THROUGHPUT = ((256, 1024), (256, 16384), (1024, 16384))
PROBLEMS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
HORIZONS, WIDTHS, ITERATIONS = (4, 16, 32, 64), (64, 128, 512, 1024), (10, 200)
# The rungs of a sweep: the best of each family. The whole ladder at every size would say the same again, for hours.
BEST = ("autograd", "adjoint", "compile", "cuda graph", "jax", "eager", "compiled", "fused:tile", "fused:layered",
        "fused:grid", "fused:ring", "fused:relay", "auto")  # fmt: skip
# Who is measured first in a case: what a user of ours gets, and the best of what else there is. Then the rest of ours, what
# takes a compiler, planners by sampling, and loops over single problems.
FIRST = ("auto", "adjoint", "autograd", "compiled", "jax", "cuda graph")
# FLOP/s that a rung is taken to reach before it was measured, on CPUs and GPUs: a low guess costs a case, a high one time.
GUESS = {"cpu": 2e10, "cuda": 5e12}
SLOW = {"published": 20.0, "frozen": 15.0, "one rollout": 12.0, "compile max-autotune": 2.0}
# Seconds of an iteration whose operators Python starts one by one on a GPU, and those that do not.
WAITS = {"cpu": 0.0, "cuda": 0.02}
ONE_LAUNCH = ("cuda graph", "jax", "fused:tile", "fused:layered", "fused:grid", "fused:ring", "fused:relay")
# Rungs whose products are not PyTorch's: what its products reach in a precision says nothing of theirs.
OWN_PRODUCTS = {"cpu": ("jax", "compiled", "auto"), "cuda": ("jax",)}
# A plan whose FLOPs nobody knows, as a part of a rung's rounds.
SHORT = 1 / 6
# Seconds before a rung's first plan: compilers, and the reference.
COLD = {"compile": 90.0, "compile reduce-overhead": 90.0, "compile max-autotune": 180.0, "jax": 5.0}


@dataclass(frozen=True)
class Spec:
    """A case to be made, and the rungs for it (None: all)."""

    width: int
    problems: int
    horizon: int = 8
    iterations: int = 50
    precision: Precision = "float32"
    rungs: tuple[str, ...] | None = None

    def make(self) -> Case:
        return make_case(
            self.width, self.problems, horizon=self.horizon, iterations=self.iterations, precision=self.precision
        )


def sweep(device: str) -> Iterator[Spec]:
    """All cases in the order of their worth, each once."""
    seen: set[tuple[Any, ...]] = set()
    for spec in _sweep(device):
        key = (spec.width, spec.problems, spec.horizon, spec.iterations, spec.precision)
        if key not in seen:
            seen.add(key)
            yield spec


def _sweep(device: str) -> Iterator[Spec]:
    gpu = device == "cuda"
    if gpu:
        for width, problems in THROUGHPUT:
            yield Spec(width, problems, precision="bfloat16", rungs=BEST)
    for width, problems in PUBLISHED:
        yield Spec(width, problems)
    for precision in ("bfloat16", "tf32", "float16") if gpu else ("bfloat16",):
        for width, problems in PUBLISHED:
            yield Spec(width, problems, precision=precision, rungs=BEST)
    for width in (256, 1024):
        for problems in PROBLEMS:
            yield Spec(width, problems, rungs=BEST)
    for horizon in HORIZONS:
        yield Spec(256, 64, horizon=horizon, rungs=BEST)
    for width in WIDTHS:
        yield Spec(width, 64, rungs=BEST)
    for iterations in ITERATIONS:
        yield Spec(256, 64, iterations=iterations, rungs=BEST)


def parse(text: str) -> Spec:
    """`64x256` (problems x width), with more after colons: `64x256:T16:100:bfloat16` (horizon, iterations, precision)."""
    size, *rest = text.split(":")
    try:
        problems, width = map(int, size.split("x"))
        found: dict[str, Any] = {}
        for word in rest:
            if word.startswith("T"):
                found["horizon"] = int(word[1:])
            elif word.isdigit():
                found["iterations"] = int(word)
            else:
                found["precision"] = word
        if min(problems, width, found.get("horizon", 1), found.get("iterations", 1)) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"case {text!r} is not understood; expected problems x width, like 64x256 or 64x256:T16:100:bfloat16"
        ) from None
    return Spec(width, problems, **found)


def estimates(
    case: Case, rungs: Iterable[str], known: Iterable[PlanRow], share: float, tops: Iterable[CeilingRow] = ()
) -> dict[str, float]:
    """Seconds that each rung takes at a case: its cold start and plans, by what it took for the work most like this.

    Rows of the case's own precision tell; where a rung has none yet, those of others do, and its products are taken to be
    slower by as much as the ceilings of the run, `tops`, differ: a processor without instructions for a precision may need
    a hundred times as long. `share` are the seconds that the timed rounds of a rung fill where its plans are short.
    """
    batch, tops = work.of_batch(case)[0], list(tops)
    known = [row for row in known if row.device == str(case.device) and not row.left_out]
    needs = {row.case: row.flops for row in known if row.flops}  # rows of other algorithms do not hold it
    found = {}
    for name in rungs:
        like = [row for row in known if row.rung == name]
        if like and not any(row.p50 for row in like):
            found[name] = 0.0  # it cannot run here, and says so at once
            continue
        rung = ladder.named(name)
        part = 1 / len(case.x0) if rung.single else 1.0
        sampled = work.of_candidates(case, rung.candidates) if rung.candidates else None
        measured = [(row.precision, row.p50, needs[row.case]) for row in like if row.p50 and row.case in needs]
        limits = [] if name in OWN_PRODUCTS[case.device.type] else tops
        plan = SHORT * share if batch is None else _plan(name, batch, sampled or batch, part, case, measured, limits)
        first = plan if plan <= share else 2 * plan
        found[name] = COLD.get(name, 0.0) + first + ladder.following(plan, share)
    return found


def by_worth(rungs: Iterable[str]) -> tuple[str, ...]:
    """Rungs in the order in which they are given time."""

    def rank(name: str) -> int:
        rung = ladder.named(name)
        if name in FIRST:
            return FIRST.index(name)
        return len(FIRST) + (3 if rung.loop else 2 if rung.candidates else rung.family != "ours")

    return tuple(sorted(rungs, key=rank))


def _plan(
    name: str, flops: float, own_flops: float, part: float, case: Case, measured: Sequence[tuple[str, float, float]],
    tops: list[CeilingRow],
) -> float:
    """Seconds of one plan of that part of the batch: at the rate of the work most like it of what was `measured` (precision,
    seconds, FLOPs), the last of equals; else a guess, low where there are few rows. Never faster than the ceiling.

    `flops` are those of a case, by which measured ones compare; `own_flops` those that this rung needs for it.
    """

    def products(precision: str) -> float:  # seconds of the batch's at the ceiling, none where that was not measured
        top, _ = ceilings.of(tops, precision)
        return 0.0 if top is None else own_flops / top

    own = case.planner.precision
    if measured:
        best = [row for row in measured if row[0] == own] or measured
        precision, seconds, done = min(reversed(best), key=lambda row: abs(math.log(row[2] / flops)))
        batch = seconds * flops / done + max(0.0, products(own) - products(precision))
    else:
        rung = ladder.named(name)
        rows = math.inf if rung.loop else part * len(case.x0) * max(1, rung.candidates)  # loops are slow for other reasons
        few = min(1.0, max(0.05, rows / 64))
        waits = case.planner.iterations * WAITS[case.device.type] if name not in ONE_LAUNCH else 0.0
        batch = max(own_flops * SLOW.get(name, 1.0) / GUESS[case.device.type] / few, waits / part)
    return part * max(batch, products(own))
