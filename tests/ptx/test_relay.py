"""The compiled relay kernel plans as the eager planner does, its programs in any order, with nothing that goes well by luck.

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
RELAY: dict[str, Any] = {"regime": "relay", "width": 128, "horizon": 2, "programs": 4}
ORDERS = ["in turn", "first", "last", 0]

PLANS: list[dict[str, Any]] = [
    *(RELAY | {"schedule": order} for order in ORDERS),
    *(
        RELAY | {"programs": 8, "problems": 2, "batch": 3, "iterations": 1, "bounding": "tanh", "schedule": order}
        for order in ("last", 1)
    ),
    RELAY | {"programs": 2, "problems": 8, "batch": 8, "precision": "bfloat16", "step_size": 0.0, "schedule": "first"},
    # A layer that every program computes, of one problem and of some.
    *(RELAY | {"whole": True, "problems": n, "batch": n, "hidden": 3, "schedule": 4} for n in (1, 4)),
    # Four warps, and more rows than a block has.
    RELAY | {"hidden": 1, "scored": "unconditioned", "warps": 4, "horizon": 9, "iterations": 1, "schedule": 2},
    # A launch an iteration.
    RELAY | {"hidden": 1, "scored": None, "iterations": 3, "slices": [1, 2], "bounding": "none", "clip": 0.5},
    # A single step, of which costs are all there is but for the dynamics' words.
    RELAY | {"hidden": 1, "scored": "unconditioned", "horizon": 1, "iterations": 3, "step_size": 0.0, "schedule": 3},
    # Costs of all kinds: a terminal network, and what every program computes for itself, with a network and without.
    RELAY | {"cost": "quadratic", "terminal": "value", "problems": 2, "batch": 3, "iterations": 1, "schedule": "last"},
    RELAY | {"cost": "traced", "terminal": "traced", "scored": None, "hidden": 1, "problems": 4, "batch": 4},
    RELAY | {"cost": "traced", "horizon": 1, "hidden": 1, "scored": "unconditioned", "iterations": 3, "schedule": 5},
    RELAY | {"cost": "quadratic", "terminal": "quadratic", "scored": None, "horizon": 1, "hidden": 1, "schedule": "first"},
    RELAY | {"cost": "quadratic", "scored": None, "hidden": 1, "iterations": 3, "whole": True, "schedule": 6},
    # Two problems of a group that diverge.
    RELAY | {"hidden": 1, "scored": None, "iterations": 1, "problems": 4, "batch": 4, "bad": [0, 2], "schedule": "last"},
]

# What the PTX is changed to, and what must be said of it; nothing, where the plan is wrong instead.
WRONG = {
    "stamps that are one ahead": (
        r"and\.b32 mark, (%r\d+), 255;",
        r"add.u32 mark, \1, 1; and.b32 mark, mark, 255;",
        "deadlock",
    ),
    "a program that publishes nothing": (r"setp\.ne\.s32 on, %r\d+, 0", "setp.ne.s32 on, %ctaid.x, 0", "deadlock"),
    "words written by ordinary stores": (
        r"st\.relaxed\.gpu\.global",
        "st.global",
        "word read of what another program wrote otherwise",
    ),
    "words read by ordinary loads": (r"ld\.relaxed\.gpu\.global", "ld.global", "read of what another program wrote"),
    "half of each word": (r"(st\.relaxed\.gpu\.global)\.b64 (\[%rd\d+\]), word", r"\1.b32 \2, a", ""),
    "words that are not waited for": (r"@late bra again;", "", ""),
    "no patience": (r"(setp\.gt\.u32 lost, polls, )\w+", r"\g<1>1", "a trap: the kernel stops itself"),
    "no barriers": (r"bar\.sync[^;]*;", "", "RAW in shared memory"),
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
        assert made["launches"] and made["counts"]["products"] and made["counts"]["barriers"], (given, made)


def test_small_plans() -> None:
    right(*PLANS)


def test_what_is_wrong_is_reported() -> None:
    changed = [RELAY | {"iterations": 1, "changes": [pattern, instead]} for pattern, instead, _ in WRONG.values()]
    for (what, (*_, said)), made in zip(WRONG.items(), found(*changed), strict=True):
        reported = any(said in fault or said in example for fault, (_, example) in made["faults"].items())
        assert reported if said else made["wrong"], (what, made)


@slow
@pytest.mark.parametrize("schedule", [*ORDERS, 1])
def test_two_groups_in_any_order(schedule: str | int) -> None:
    shared = RELAY | {"problems": 2, "batch": 3, "horizon": 3, "iterations": 3, "step_size": 0.0, "schedule": schedule}
    right(shared | {"programs": 8}, shared | {"programs": 2, "warps": 4})


@slow
def test_a_program_alone() -> None:
    right(RELAY | {"programs": 1}, RELAY | {"programs": 1, "problems": 8, "batch": 8, "iterations": 1, "step_size": 0.0})


@slow
def test_more_stamps_than_a_byte_holds() -> None:
    right(RELAY | {"scored": None, "hidden": 1, "programs": 2, "horizon": 1, "iterations": 258, "step_size": 0.0})


def drawn(seed: int) -> dict[str, Any]:
    """A plan of any shape."""
    draw = random.Random(seed)
    problems = draw.choice([1, 1, 2, 4, 8])
    return RELAY | {
        "seed": seed, "problems": problems, "programs": draw.choice([1, 2, 4, 8]),
        "batch": draw.choice([1, problems, problems + 1, max(1, problems - 1)]),
        "precision": draw.choice(["float16", "bfloat16"]), "warps": draw.choice([8, 8, 4]),
        "horizon": draw.choice([1, 2, 3, 5, 8, 9] if problems < 4 else [1, 2, 3]), "iterations": draw.choice([1, 2, 3]),
        "step_size": 0.0, "bounding": draw.choice(["none", "project", "tanh"]),
        "control_change": draw.choice([0.0, 0.0, 0.3]), "scored": draw.choice([None, "score", "noise", "unconditioned"]),
        "clip": draw.choice([None, 0.5]), "schedule": draw.choice([*ORDERS, 1, 2]),
    }  # fmt: skip


@slow
@pytest.mark.parametrize("seed", range(8))
def test_plans_of_any_shape(seed: int) -> None:
    right(drawn(seed))


@slow
@pytest.mark.parametrize(
    "given",
    [
        {"width": 256, "hidden": 4, "programs": 16},
        {"width": 256, "hidden": 4, "programs": 16, "problems": 8, "batch": 8, "warps": 4},
        {"width": 512, "hidden": 3, "programs": 32},
        {"width": 1024, "programs": 16, "scored": None, "horizon": 1},
    ],
    ids=["256", "256, eight problems", "512", "1024"],
)
def test_the_published_shape_and_wider(given: dict[str, Any]) -> None:
    right(RELAY | {"iterations": 1, "step_size": 0.0} | given)
