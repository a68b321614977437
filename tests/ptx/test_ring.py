"""The compiled ring kernel plans as the eager planner does, with no access that goes well by luck alone.

Tests here run with Triton's interpreter, which compiles nothing; so each compiles and emulates in a process of its own.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton has wheels for Linux only")

from tests.test_static import python

slow = pytest.mark.slow
FEW: dict[str, Any] = {"width": 64, "horizon": 2, "pinned": 2}
MANY: dict[str, Any] = {"problems": 64, "batch": 65, "width": 64, "horizon": 2, "step_size": 0.0}

# What the PTX is changed to, and what must be said of it.
WRONG = {
    "no proxy fence": (r"fence\.proxy\.async[^;]*;", "", "product of stores without a fence and a barrier"),
    "no barriers": (r"bar\.sync[^;]*;", "", "RAW in shared memory"),
    "the other parity": (r"(try_wait\.parity\S* complete, \[%r\d+\], )%r\d+", r"\g<1>1", "target of a copy in flight"),
    "one product too many in flight": (r"(wgmma\.wait_group\S*\s+)0", r"\g<1>1", "accumulator of a product in flight"),
    "another byte awaited": (r"(expect_tx[^;]*, )32768;", r"\g<1>32769;", "a wait without end"),
    "a copy to another place": (
        r"(cp\.async\.bulk\.tensor\.2d\S* \[%r\d+)\]",
        r"\g<1>+1024]",
        "product of what nothing wrote",
    ),
}


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated programs are given tensors in the CPU's memory, where there is a GPU too."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def found(*plans: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found in each of the plans (`plans.Found`)."""
    done = python("-m", "tests.ptx.plans", *map(json.dumps, plans))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def right(*plans: dict[str, Any]) -> None:
    for given, made in zip(plans, found(*plans), strict=True):
        assert not made["faults"] and not made["wrong"], (given, made)
        assert made["launches"] and all(made["counts"].values()), (given, made)


@pytest.mark.parametrize(
    "given",
    [
        FEW,
        FEW | {"precision": "bfloat16", "warps": 16, "pinned": 0, "scored": "noise", "bounding": "tanh", "slices": [1]},
        MANY,
        FEW | {"cost": "traced", "terminal": "traced", "problems": 2, "batch": 3, "iterations": 1},
        FEW | {"cost": "quadratic", "terminal": "value", "problems": 8, "batch": 8, "step_size": 0.0, "scored": None},
        FEW | {"cost": "quadratic", "width": 16, "hidden": 1, "horizon": 1, "iterations": 4, "scored": "unconditioned"},
    ],
    ids=[
        "one problem", "one problem, 16 warps, a launch an iteration", "64 problems", "traced costs",
        "a quadratic cost and a terminal network", "fewer tiles than slots",
    ],
)
def test_small_plans(given: dict[str, Any]) -> None:
    right(given)


def test_what_is_wrong_is_reported() -> None:
    changed = [FEW | {"iterations": 1, "changes": [pattern, instead]} for pattern, instead, _ in WRONG.values()]
    for (what, (*_, said)), made in zip(WRONG.items(), found(*changed), strict=True):
        assert any(said in fault or said in example for fault, (_, example) in made["faults"].items()), (what, made)


def drawn(seed: int) -> dict[str, Any]:
    """A plan of any shape."""
    draw = random.Random(seed)
    problems = draw.choice([1, 1, 2, 4, 8, 16, 32, 64])
    return {
        "seed": seed, "problems": problems, "batch": draw.choice([1, problems, problems + 1, max(1, problems - 1)]),
        "precision": draw.choice(["float16", "bfloat16"]), "warps": draw.choice([8, 8, 16]),
        "pinned": draw.choice([0, 0, 1, 2, 3]), "horizon": draw.choice([1, 2, 3, 5, 8, 9] if problems < 16 else [1, 2, 3]),
        "iterations": draw.choice([1, 2, 3]), "step_size": 0.0, "bounding": draw.choice(["none", "project", "tanh"]),
        "control_change": draw.choice([0.0, 0.0, 0.3]), "scored": draw.choice([None, "score", "noise", "unconditioned"]),
        "clip": draw.choice([None, 0.5]),
    }  # fmt: skip


@slow
@pytest.mark.parametrize("seed", range(8))
def test_plans_of_any_shape(seed: int) -> None:
    right(drawn(seed))


@slow
@pytest.mark.parametrize(("problems", "horizon"), [(1, 9), (16, 3)])
def test_the_published_shape(problems: int, horizon: int) -> None:
    right({
        "width": 256, "hidden": 4, "problems": problems, "batch": problems + 1, "horizon": horizon, "iterations": 1,
        "step_size": 0.0,
    })  # fmt: skip
