"""What a rung costs before it plans at full speed: each in a process of its own, with empty caches.

    imports   `import torch, sgp_fast`
    first     the rung's own libraries, its runner and its first plan: native code built, kernels compiled, ways measured,
              graphs captured; `parts` tells what of it is known: made (the runner), and of ours build (the native
              engine), tune (ways measured, on CPUs with the packing of weights) and capture (graphs, with their kernels)
    warm      the median of three plans after that
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import clock, ladder, sweep
from .cases import Case
from .rows import ColdRow
from .rung import Rung
from .rungs import Ours

# Where compilers and this package keep what they made; an empty folder for each makes a first time of every run.
CACHES = ("SGP_FAST_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")
LIMIT = 600.0
# What the others are paid back against: plain PyTorch, which compiles nothing.
AGAINST = "eager"

# Imports are timed before anything else is loaded, so this runs as text, not as a module of the package.
CHILD = """
import time
began = time.perf_counter()
import json, sys
import torch
import sgp_fast as sgp
sgp.solve
imported = time.perf_counter() - began
from sgp_fast.bench import sweep, ladder
from sgp_fast.bench.cold import took
spec, name, device = sys.argv[1:4]
case = sweep.parse(spec).make().to(device)
rung = ladder.named(name)
case = case.first(1) if rung.single else case
print(json.dumps({"imports": imported} | took(rung, case)))
"""


def measure(text: str, rungs: Iterable[str], device: str, until: float = math.inf) -> Iterator[ColdRow]:
    """A row a rung at a case as `sweep.parse` reads it; `eager` is always among them, for the others to be held against.

    Ends at the first that does not come to its end before `until`, by `time.monotonic`.
    """
    plain: ColdRow | None = None
    case = sweep.parse(text).make().name
    for name in dict.fromkeys((AGAINST, *rungs)):
        row = ColdRow(case=case, device=device, rung=name, label=ladder.named(name).label)
        found = _child(text, name, device, until - time.monotonic())
        if found is None:
            return
        row = replace(row, **found)
        plain = plain or row  # the first is what the others are held against
        yield row if row is plain else replace(row, pays=pays(row, plain))


def pays(row: ColdRow, plain: ColdRow) -> int | None:
    """Plans after which a rung, cold costs and all, has taken less time than plain PyTorch; None: never, or not known."""
    if row.reason or plain.reason:
        return None
    assert row.imports is not None and row.first is not None and row.warm is not None
    assert plain.imports is not None and plain.first is not None and plain.warm is not None
    ahead = (row.imports + row.first) - (plain.imports + plain.first)  # after one plan of each
    if ahead <= 0:
        return 1
    gain = plain.warm - row.warm
    return None if gain <= 0 else 1 + int(-(-ahead // gain))


def took(rung: Rung, case: Case) -> dict[str, object]:
    """In the child: seconds of the first plan and of those after it."""
    began = time.perf_counter()
    runner = rung.make(case)
    made = time.perf_counter() - began
    runner()
    if case.device.type == "cuda":
        torch.cuda.synchronize(case.device)
    first = time.perf_counter() - began
    parts = {"made": made} | (_parts(runner.stats) if isinstance(runner, Ours) else {})
    warm = statistics.median(clock.seconds(runner, case.device) for _ in range(3))
    return {"first": first, "warm": warm, "parts": parts}


def _parts(stats: dict[str, Any]) -> dict[str, float]:
    """Of the first plan, what its backend tells."""
    told = {
        "build": stats.get("compile_seconds"),
        "tune": stats.get("tune_seconds"),
        "capture": stats.get("graphs", {}).get("seconds"),
    }
    return {name: seconds for name, seconds in told.items() if seconds is not None}


def _child(text: str, name: str, device: str, left: float) -> dict[str, object] | None:
    """What the child tells; None where it was stopped because no more seconds were left."""
    with tempfile.TemporaryDirectory() as folder:
        empty = {cache: str(Path(folder) / cache.lower()) for cache in CACHES}
        try:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, text, name, device], env=os.environ | empty, capture_output=True, text=True,
                timeout=max(0.0, min(LIMIT, left)), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            if left < LIMIT:
                return None
            return {"reason": f"took more than {LIMIT:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return {"reason": lines[-1].partition(": ")[2][:300] or lines[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])
