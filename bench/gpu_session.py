"""`python -m bench.gpu_session PART`: what `gpu_session.sh` measures on a machine with a GPU.

    parity      fused plans against eager ones in float64, where the tests cannot run
    ceilings    the device's matrix products and copies
    speed       plans a second of every backend and regime, and what the choice among tiles measured
    table       a short table of what $OUT holds

Every part writes JSON lines to $OUT as it goes, so that one that is stopped leaves what it had.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import sgp_fast as sgp
from sgp_fast.backends import eager

from .cases import Case, make_case

OUT = Path(os.environ.get("OUT", "gpu-session"))
FUSED = ("fused:tile", "fused:layered")
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
# (width, problems), the sizes of the aims first.
SIZES = [(256, 1024), (256, 16384), (1024, 16384), (256, 64), (512, 4096), (1024, 1024)]
ROUNDS, SECONDS = 5, 6.0


def parity() -> int:
    """Controls and states after two iterations: at most twice eager's error at the same precision, with a floor."""
    wrong = 0
    for width, precision, backend, batch in (
        (w, p, b, n) for w in (48, 256, 512, 1024) for p in PRECISIONS for b in FUSED for n in (1, 65)
    ):
        case = on_gpu(make_case(width, batch, iterations=2))
        exact = plan(case, "eager", "float64")
        what: dict[str, Any] = {"width": width, "problems": batch, "precision": precision, "backend": backend}
        line = {"kind": "parity"} | what
        try:
            ours, plain = plan(case, backend, precision), plan(case, "eager", precision)
        except (ValueError, RuntimeError) as why:
            record("parity", line | {"reason": str(why)})
            continue
        errors = {name: error(getattr(ours, name), getattr(exact, name)) for name in ("x", "u")}
        limits = {name: 2 * error(getattr(plain, name), getattr(exact, name)) + 1e-6 for name in errors}
        right = all(errors[name] <= limits[name] for name in errors)
        wrong += not right
        record("parity", line | {"errors": errors, "limits": limits, "right": right})
    print(f"{wrong} of the plans are wrong")
    return int(wrong > 0)


def ceilings() -> int:
    """Products of random numbers, and copies of much more and of much less than the L2 holds; bytes read and written."""
    n = 8192
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False), ("float16", torch.float16, False), ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        taken = seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 10)
        record("ceilings", {"kind": "ceiling", "what": f"product {name} {n}³", "flops": 2 * n**3 / taken})
    for mib in (4096, 8):
        source = torch.randn(mib << 18, device="cuda")
        to = torch.empty_like(source)
        taken = seconds(lambda to=to, source=source: to.copy_(source), 10 if mib > 100 else 200)
        record("ceilings", {"kind": "ceiling", "what": f"copy of {mib} MiB", "bytes": 2 * 4 * source.numel() / taken})
    return 0


def speed() -> int:
    """bfloat16 plans, T = 8, 50 iterations. What cannot plan a size is recorded with its reason."""
    failures = 0
    for width, batch in SIZES:
        case = on_gpu(make_case(width, batch))
        exact = plan(case, "eager", "float32")
        for backend in (*FUSED, "fused", "eager"):
            failures += not measured(case, width, batch, backend, exact)
    plain = eager.evaluate
    compiled: Any = torch.compile(plain)

    def evaluate(problem: Any, at: Any, u: Any, level: int, beta: Any) -> Any:
        """β as a tensor, lest every iteration be compiled for its own."""
        return compiled(problem, at, u, level, torch.as_tensor(beta, device=u.device))

    eager.evaluate = evaluate
    try:
        for width, batch in SIZES[:3]:
            case = on_gpu(make_case(width, batch))
            measured(case, width, batch, "eager", plan(case, "eager", "float32"), "eager, torch.compile")
    finally:
        eager.evaluate = plain
    return int(failures > 0)


def measured(case: Case, width: int, batch: int, backend: str, exact: sgp.Plan, name: str = "") -> bool:
    """Record a backend's time; whether it could plan."""
    line: dict[str, Any] = {"kind": "speed", "width": width, "problems": batch, "backend": name or backend}
    try:
        began = time.perf_counter()
        first = plan(case, backend, "bfloat16")
        torch.cuda.synchronize()
        cold = time.perf_counter() - began
        times: list[float] = []
        while len(times) < ROUNDS and sum(times) < SECONDS:
            began = time.perf_counter()
            plan(case, backend, "bfloat16")
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    except Exception as why:  # whatever it is, the next backend is measured
        record("speed", line | {"reason": f"{type(why).__name__}: {why}"[:500]})
        return False
    p50 = statistics.median(times)
    # 5·T·F a problem and iteration: dynamics and cost forward and backward, score forward.
    parts = (case.problem.dynamics, case.problem.dynamics, case.problem.cost, case.problem.cost, case.problem.score)
    flops = sum(part.network.spec.flops_per_row() for part in parts if part is not None)
    flops *= batch * case.planner.horizon * case.planner.iterations
    told = {key: first.stats.get(key) for key in ("regime", "bucket", "choice", "reason")}
    record("speed", line | told | {
        "plans_per_second": batch / p50, "p50": p50, "times": times, "cold": cold, "flops_per_second": flops / p50,
        "cost": first.cost.mean().item(), "cost_float32": exact.cost.mean().item(),
    })  # fmt: skip
    return True


def summary() -> int:
    """What the folder holds, in a few lines."""
    lines = [json.loads(text) for file in sorted(OUT.glob("*.jsonl")) for text in file.read_text().splitlines()]
    peak = max((line.get("flops", 0.0) for line in lines if line["kind"] == "ceiling"), default=0.0)
    for line in lines:
        if line["kind"] == "ceiling":
            rate = f"{line['flops'] / 1e12:,.0f} TFLOP/s" if "flops" in line else f"{line['bytes'] / 1e12:,.2f} TB/s"
            print(f"{line['what']:<26}{rate:>16}")
    wrong = [line for line in lines if line["kind"] == "parity" and not line.get("right", False)]
    for line in wrong:
        print(f"not right: {line}")
    print(f"{'problems × width':<18}{'backend':<22}{'plans/s':>12}{'ms':>10}{'of peak':>9}  regime, choice")
    for line in (line for line in lines if line["kind"] == "speed"):
        head = f"{line['problems']:>7} × {line['width']:<8}{line['backend']:<22}"
        if "p50" not in line:
            print(f"{head} {line['reason'][:90]}")
            continue
        share = f"{line['flops_per_second'] / peak:.0%}" if peak else "—"
        what = f"{line['regime']}, {line['choice']}" if line["regime"] else ""
        print(f"{head}{line['plans_per_second']:>12,.0f}{1e3 * line['p50']:>10,.2f}{share:>9}  {what}")
    return 0


def on_gpu(case: Case) -> Case:
    for part in case.problem.modules.values():
        part.to("cuda")
    return replace(case, x0=case.x0.cuda(), init=case.init.cuda())


def plan(case: Case, backend: str, precision: str) -> sgp.Plan:
    return sgp.solve(case.problem, replace(case.planner, precision=precision), case.x0, init=case.init, backend=backend)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def seconds(body: Callable[[], object], repeats: int) -> float:
    """Mean of some runs between two events, after three that are not counted."""
    for _ in range(3):
        body()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(repeats):
        body()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3 / repeats


def record(name: str, line: dict[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.jsonl").open("a") as file:
        print(json.dumps(line), file=file)
    print(json.dumps(line)[:300], flush=True)


PARTS = {"parity": parity, "ceilings": ceilings, "speed": speed, "table": summary}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python -m bench.gpu_session {'|'.join(PARTS)}")
    sys.exit(PARTS[sys.argv[1]]())
