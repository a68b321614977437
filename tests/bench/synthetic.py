"""Made-up results for the tests of the page. No number here was measured; none of it may leave the tests."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from sgp_fast.bench.rows import ActRow, CeilingRow, ColdRow, KernelRow, PlanRow, ReturnRow, Row, StageRow
from sgp_fast.kernels.tiling import Tile

# Rung, family, and how fast it is made out to be: milliseconds of a plan of one problem at 4×256, and the share that does
# not grow with the batch.
RUNGS = {
    "published": ("baseline", 350.0, 0.0),
    "frozen": ("baseline", 250.0, 0.0),
    "one rollout": ("baseline", 150.0, 0.0),
    "autograd": ("baseline", 115.0, 0.93),
    "adjoint": ("baseline", 90.0, 0.92),
    "compile": ("baseline", 40.0, 0.85),
    "jax": ("baseline", 26.0, 0.7),
    "pytorch-mppi": ("peer", 60.0, 0.8),
    "torchrl-cem": ("peer", 75.0, 0.8),
    "eager": ("ours", 120.0, 0.94),
    "compiled": ("ours", 11.0, 0.8),
    "auto": ("ours", 11.3, 0.8),
}
SINGLE = ("published", "frozen", "one rollout")
UNAVAILABLE = {"cuda graph": "baseline", "fused:tile": "ours"}
ERRORS = {"float32": 2e-6, "bfloat16": 2e-2}
LIMITS = {"float32": 1e-3, "bfloat16": 0.3}


def header(**changes: Any) -> dict[str, Any]:
    """Circumstances of a machine that does not exist."""
    return {
        "kind": "header",
        "schema": 2,
        "command": "run",
        "settings": {"minutes": 5.0, "cases": []},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "changed": False,
        "date": "2000-01-01",
        "machine": {
            "system": "Test", "cpu": "Synthetic CPU", "instructions": "AVX2", "cores": 2, "threads": 2, "gpu": None,
            "gpu_memory": None,
        },
        "versions": {"python": "3.11.0", "torch": "2.99.0", "jax": "0.99.0", "triton": None, "cuda": None},
    } | changes  # fmt: skip


def rows(
    *, widths: tuple[int, ...] = (256, 1024), tasks: tuple[str, ...] = ("hopper-medium", "halfcheetah-medium")
) -> list[Row]:
    """Rows of every kind, as a whole run, a quality run and a profile would give together."""
    found: list[Row] = []
    for width in widths:
        for problems in (1, 4, 16, 64, 256):
            found += plans(width, problems, "float32", sweep=problems not in (1, 64))
        for problems in (1, 64):
            found += plans(width, problems, "bfloat16", sweep=True)
    return [*found, *ceilings(), *cold(), *acts(), *(row for task in tasks for row in returns(task)), *stages(), *kernels()]


def plans(width: int, problems: int, precision: str, *, sweep: bool = False) -> list[Row]:
    """The ladder at a case; a sweep has its fast rungs only."""
    model, case = f"4×{width}", f"{problems} × 4×{width}" + ("" if precision == "float32" else f", {precision}")
    common: dict[str, Any] = {
        "case": case, "model": model, "problems": problems, "horizon": 8, "iterations": 50, "precision": precision,
        "device": "cpu",
    }  # fmt: skip
    found: list[Row] = []
    for name, (family, single, fixed) in RUNGS.items():
        if sweep and (name in SINGLE or family == "peer"):
            continue
        draw = _draw(case, name)
        slow = (width / 256) ** (2.1 if family == "ours" else 1.9) * (0.6 if precision == "bfloat16" else 1.0)
        taken = 1e-3 * single * slow * (fixed + (1 - fixed) * problems)
        peer = family == "peer"
        timed = 1 if name in SINGLE else problems
        found.append(
            PlanRow(
                **common, rung=name, label=_label(name, family), family=family, timed=timed,
                samples=tuple((taken * draw.lognormal(0, 0.03, 60 if taken < 0.05 else 9)).tolist()),
                error=ERRORS[precision] * float(draw.lognormal(0, 0.7)), limit=LIMITS[precision],
                cost=-3.0 - 0.8 * peer + (0.004 if precision == "bfloat16" else 1e-6) * float(draw.normal()),
                penalty=0.4 + 1.5 * peer, flops=0.82e9 * (width / 256) ** 2 * problems, bytes=1.0e9 * (width / 256) ** 2,
                launches=None if name in ("jax", "compiled") else 220.0, memory=3e6 * problems, 
                graphs=0.0 if family == "ours" else None,
                joules=0.4 * problems, chosen="compiled; measured" if name == "auto" else None,
            )
        )  # fmt: skip
    found += [
        PlanRow(**common, rung=name, label=_label(name, family), family=family, reason="there is no GPU here")
        for name, family in UNAVAILABLE.items()
        if not sweep
    ]
    return found


def ceilings() -> list[Row]:
    product = {"what": "matrix product", "device": "cpu", "unit": "FLOP/s"}
    return [
        CeilingRow(**product, precision="float32", value=4.1e11),
        CeilingRow(**product, precision="bfloat16", value=1.2e12),
        CeilingRow(what="copy", precision=None, device="cpu", value=2.1e10, unit="B/s"),
    ]


def cold() -> list[Row]:
    numbers = {"eager": (1.9, 0.3, 0.12, None), "compile": (1.9, 48.0, 0.04, 590), "jax": (2.6, 1.5, 0.026, 20)}
    numbers |= {"compiled": (1.9, 14.0, 0.011, 126), "adjoint": (1.9, 0.5, 0.2, None)}
    found: list[Row] = [
        ColdRow(
            case="1 × 4×256", device="cpu", rung=name, label=_label(name, RUNGS[name][0]), imports=imports, first=first,
            warm=warm, parts={"compile": 0.9 * first} if first > 10 else {}, pays=paid,
        )
        for name, (imports, first, warm, paid) in numbers.items()
    ]  # fmt: skip
    why = "there is no GPU here"
    return [*found, ColdRow(case="1 × 4×256", device="cpu", rung="fused:tile", label="sgp_fast fused:tile", reason=why)]


def acts() -> list[Row]:
    found: list[Row] = []
    for problems in (1, 64):
        for name in ("eager", "compiled", "auto"):
            case = f"{problems} × 4×256"
            middle = 1e-3 * RUNGS[name][1] * (0.8 + 0.2 * problems)
            samples = tuple((middle * _draw("act", case, name).lognormal(0, 0.05, 60)).tolist())
            found.append(
                ActRow(case=case, device="cpu", rung=name, label=f"sgp_fast {name}", problems=problems, samples=samples)
            )
    return found


def returns(task: str) -> list[Row]:
    """Three groups of one task, with returns that rise with the budget."""
    seeds = tuple(range(10))

    def row(group: str, planner: str, setting: str, backend: str, precision: str, mean: float, ms: float | None) -> Row:
        drawn = _draw(task, group, planner, setting, backend, precision).normal(mean, 20.0, len(seeds))
        return ReturnRow(
            task=task, group=group, planner=planner, setting=setting, backend=backend, precision=precision, device="cpu",
            seeds=seeds, steps=300, returns=tuple(drawn.tolist()), normalized=tuple((drawn / 33).tolist()), milliseconds=ms,
        )  # fmt: skip

    found: list[Row] = [row("data", "behaviour policy", "medium", "none", "float32", 774.0, None)]
    for backend in ("eager", "compiled"):
        for precision in ("float32", "bfloat16"):
            found.append(row("precision", "SGP", "15 iterations", backend, precision, 880.0, 5.0))
    found.append(
        ReturnRow(
            task=task, group="precision", planner="SGP", setting="15 iterations", backend="fused", precision="float32",
            device="cpu", seeds=seeds, steps=300, reason="there is no GPU here",
        )
    )  # fmt: skip
    for n in (1, 2, 5, 10, 15, 30, 60):
        found.append(row("budget", "SGP", f"{n} iterations", "compiled", "float32", 900 - 500 / n, 0.3 + 0.25 * n))
    found.append(row("budget", "SGP, β = 0", "15 iterations", "compiled", "float32", 38.0, 4.0))
    for i, n in enumerate((32, 128, 512, 2048)):
        found.append(row("budget", "random shooting", f"{n} samples", "torch", "float32", 200.0 + 60 * i, 1.5 + 0.004 * n))
        found.append(row("budget", "CEM", f"3 × {n} samples", "torch", "float32", 260.0 + 70 * i, 4.0 + 0.012 * n))
    return found


def stages() -> list[Row]:
    shares = {"rollout": 34.0, "score": 17.0, "cost": 14.0, "adjoint": 40.0, "update": 6.0, "gaps": 9.0}
    found: list[Row] = []
    for case, scale in (("1 × 4×256", 1e-6), ("64 × 4×256", 1.6e-5), ("64 × 4×256, bfloat16", 0.9e-5)):
        problems = int(case.split(" ")[0])
        for backend, slow in (("eager", 5.0), ("compiled", 1.0)):
            for stage, share in shares.items():
                works = stage in ("rollout", "score", "cost", "adjoint")
                found.append(
                    StageRow(
                        case=case, device="cpu", backend=backend, stage=stage, seconds=slow * scale * share,
                        launches=20.0 if works else None, flops=4e6 * problems if works else None,
                        bytes=4e6 if stage in ("rollout", "adjoint") else 5e5 if works else None,
                        floor=0.3 * scale * share if works else None,
                    )
                )  # fmt: skip
    return found


def kernels() -> list[Row]:
    found: list[Row] = []
    for arch in (80, 90):
        for network in ("SGP 4×256", "SGP 4×512"):
            draw = _draw("kernel", str(arch), network)
            spills = 4 if (arch, network) == (80, "SGP 4×512") else 0
            on_h200: dict[str, Any] = {"flops_us": 3.0 if arch == 90 else None, "bytes_us": 12.0 if arch == 90 else None}
            found.append(
                KernelRow(
                    kernel="plan_kernel iterate", network=network, dtype="bf16", arch=arch, tile=Tile(64, 256, 32), warps=8,
                    registers=int(draw.integers(128, 256)), stack=8 * spills, spills=spills, shared=61440, tensor_memory=0,
                    instructions={"HGMMA": 280, "LDGSTS": 800}, resident=1, compile_s=20.0, **on_h200,
                )
            )  # fmt: skip
    return found


def _label(rung: str, family: str) -> str:
    return {"ours": f"sgp_fast {rung}", "baseline": f"{rung} (label)", "peer": f"{rung} (peer)"}[family]


def _draw(*words: str) -> np.random.Generator:
    """Random numbers that depend on the words only."""
    return np.random.default_rng(zlib.crc32("|".join(words).encode()))
