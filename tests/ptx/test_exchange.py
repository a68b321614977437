"""Compiled programs that hand words to one another, in several orders; and what the emulator must say of wrong ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton has wheels for Linux only")

from tests.ptx.emulator import Cta
from tests.ptx.formats import from_bf16, to_bf16
from tests.ptx.global_memory import GlobalMemory
from tests.ptx.program import Program
from tests.ptx.schedules import SCHEDULES, take_turns
from tests.test_static import python

# What is launched, and what must be said of it.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a slot that is written before all have read it": ({"slots": 1}, "given 2 times"),
    "a program that publishes nothing": (
        {"changes": (r"setp\.ne\.s32 on, %r\d+, 0", "setp.ne.s32 on, %ctaid.x, 0")},
        "deadlock: program 0 waits at words 0 (given 0 times, 0xffffffff 0xffffffff 0xffffffff 0xffffffff), thread 0 for 1,",
    ),
    "words read by ordinary loads": (
        {"changes": (r"ld\.relaxed\.gpu\.global", "ld.global")},
        "read of what another program wrote",
    ),
    "words written by ordinary stores": (
        {"changes": (r"st\.relaxed\.gpu\.global", "st.global")},
        "word read of what another program wrote otherwise",
    ),
    "another stamp awaited": ({"changes": (r"(setp\.ne\.s32 late, first, )%r\d+", r"\g<1>9")}, "deadlock"),
    "no barriers": ({"changes": (r"bar\.sync[^;]*;", "")}, "word over one that another program may still read"),
    "a counter that releases nothing": (
        {"barrier": True, "changes": (r"red\.release", "red.relaxed")},
        "read of what another program wrote",
    ),
    "a counter that is read too early": (
        {"barrier": True, "changes": (r"ld\.acquire", "ld.relaxed")},
        "read of what another program wrote",
    ),
    "a counter without barriers around it": (
        {"barrier": True, "changes": (r"bar\.sync[^;]*;", "")},
        "read of what another program wrote",
    ),
}


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated programs are given tensors in the CPU's memory, where there is a GPU too."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def found(*launches: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found in each of the launches (`exchanges.Exchange`)."""
    done = python("-m", "tests.ptx.exchanges", *map(json.dumps, launches))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_programs_exchange_in_any_order() -> None:
    orders = [*SCHEDULES, 0, 1, 2, 3]
    given = [{"programs": programs, "schedule": order} for programs in (1, 2, 4) for order in orders]
    given += [{"programs": 4, "schedule": order, "together": 1} for order in orders]
    given += [{"programs": programs, "schedule": order, "barrier": True} for programs in (1, 4) for order in orders]
    for launch, made in zip(given, found(*given), strict=True):
        assert not made["faults"] and not made["wrong"], (launch, made)
        assert made["counts"]["barriers"] and (launch.get("barrier") or made["counts"]["products"]), (launch, made)


def test_what_is_wrong_is_reported() -> None:
    launches = [(what, said, launch | {"schedule": order}) for what, (launch, said) in WRONG.items() for order in SCHEDULES]
    for (what, said, launch), made in zip(launches, found(*(launch for *_, launch in launches)), strict=True):
        faults = made["faults"].items()
        assert any(said in fault or said in example for fault, (_, example) in faults), (what, launch, made)


def test_a_word_may_be_written_over_when_its_writer_has_heard_that_it_was_read() -> None:
    def written_over(barrier: bool) -> dict[str, str]:
        memory, warp, words = GlobalMemory(programs=2), np.zeros(1, np.int16), np.zeros((1, 8), np.uint8)
        here, there = (np.array([memory.add(name, np.zeros(8, np.uint8), 8)], np.uint64) for name in ("here", "there"))
        memory.give(here, words, warp, interval=0, release=False)
        memory.take(here, 8, warp, interval=1, acquire=False)
        if barrier:
            memory.barrier(1)
        memory.give(there, words, warp, interval=3 if barrier else 1, release=False)
        memory.take(there, 8, warp, interval=0, acquire=False)
        memory.barrier(0)
        return memory.give(here, words, warp, interval=2, release=False)

    assert not written_over(barrier=True)
    assert list(written_over(barrier=False)) == ["word over one that another program may still read"]


def program(body: str, **registers: Any) -> Cta:
    """Two warps that have run some instructions, with shared memory that holds 0, 1, 2, … in 16 bits."""
    cta = Cta(2, 1024, GlobalMemory(), {}, {}, 0)
    cta.registers |= registers
    cta.shared.data[:] = np.arange(512, dtype=np.uint16).view(np.uint8)
    cta.shared.accesses.written[:] = 1  # in another interval
    take_turns({0: cta.run(Program(f"\n{{\n{body}\nret;\n}}\n"))}, cta.memory, "in turn")
    return cta


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded(transposed: bool) -> None:
    rows = np.random.default_rng(0).permutation(64).reshape(2, 32)  # of 16 bytes, for each thread
    to = (1024 + 16 * rows).astype(np.uint32).reshape(-1)
    cta = program(f"ldmatrix.sync.aligned.m8n8.x4{'.trans' * transposed}.shared.b16 {{%r1, %r2, %r3, %r4}}, [%r0];", r0=to)
    assert not cta.faults
    for warp in range(2):
        for i in range(4):
            matrix = 8 * rows[warp, 8 * i :][:8, None] + np.arange(8)
            matrix = matrix.T if transposed else matrix
            held = cta.registers[f"r{i + 1}"][32 * warp :][:32]
            for lane, (low, high) in enumerate(held.view(np.uint16).reshape(32, 2)):
                assert (low, high) == tuple(matrix[lane // 4, lane % 4 * 2 :][:2])


def test_products_of_warps() -> None:
    """The places of elements are those of the PTX manual, "Matrix Fragments for mma.m16n8k16"."""
    draw = np.random.default_rng(0)
    a, b, c = (from_bf16(to_bf16(draw.standard_normal((2, *shape)))) for shape in ((16, 16), (16, 8), (16, 8)))
    registers: dict[str, Any] = {}
    lanes = [(thread // 32, thread % 32 // 4, thread % 4) for thread in range(64)]

    def pair(matrix: Any, *places: tuple[int, int, int]) -> int:
        low, high = (int(to_bf16(matrix[place])) for place in places)
        return high << 16 | low

    for i in range(4):
        right = 8 * (i >= 2)
        at = [(w, g + 8 * (i % 2), 2 * t + right) for w, g, t in lanes]
        registers[f"r{i}"] = np.array([pair(a, (w, r, k), (w, r, k + 1)) for w, r, k in at], np.uint32)
        registers[f"r{6 + i}"] = np.array([c[w, g + 8 * (i >= 2), 2 * t + i % 2] for w, g, t in lanes], np.float32).view(
            np.uint32
        )
    for i in range(2):
        at = [(w, 2 * t + 8 * i, g) for w, g, t in lanes]
        registers[f"r{4 + i}"] = np.array([pair(b, (w, k, n), (w, k + 1, n)) for w, k, n in at], np.uint32)
    cta = program(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r6, %r7, %r8, %r9}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, "
        "{%r6, %r7, %r8, %r9};",
        **registers,
    )
    for i in range(4):
        exact = [(c + a @ b)[w, g + 8 * (i >= 2), 2 * t + i % 2] for w, g, t in lanes]
        np.testing.assert_allclose(cta.registers[f"r{6 + i}"].view(np.float32), exact, rtol=1e-5, atol=1e-5)
