"""`pytest --benchmark-only bench/`: a small set for tracking regressions, with pytest-benchmark's own storage and compare.

    pytest --benchmark-only --benchmark-autosave bench/            # record
    pytest --benchmark-only --benchmark-compare bench/             # against the last record

The whole ladder, with its check against float64, is `sgp-fast bench run`; here only our own backends are timed.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from . import gate, ladder
from .cases import make_case
from .rung import Unavailable

SIZES = [(256, 1), (256, 64), (1024, 1)]


@pytest.mark.parametrize("backend", ["eager", "compiled", "fused:tile", "fused:layered", "fused:grid"])
@pytest.mark.parametrize(("width", "problems"), SIZES, ids=[f"{b}x{w}" for w, b in SIZES])
def test_plan(benchmark, backend: str, width: int, problems: int) -> None:  # noqa: ANN001
    case = make_case(width, problems).to("cuda" if torch.cuda.is_available() else "cpu")
    rung = ladder.named(backend)
    try:
        runner = rung.make(case)
        found = runner()
    except (Unavailable, ValueError) as why:
        pytest.skip(str(why))
    verdict = gate.judge(rung, case, runner, found)
    assert verdict.reason is None
    benchmark.extra_info["cost"] = verdict.cost

    def plan() -> None:
        runner()
        if case.device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(plan, rounds=10, warmup_rounds=1)
