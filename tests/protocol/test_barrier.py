"""The barrier's protocol, in every interleaving: nobody passes a barrier before all have arrived, nobody is left waiting.

A small model checker in plain Python does it anywhere; where `spin` is installed it checks `barrier.pml`, the same protocol
once more. Both must find what is wrong with a barrier that resets its counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from .checker import needs_spin, spin

MODEL = Path(__file__).parent / "barrier.pml"

# What a program does next, and in which round it is; then what it last read, where it still acts on that.
Program = tuple[str, int, int]
# The counter, another word of memory for variants, and the programs.
State = tuple[int, int, tuple[Program, ...]]
# From the memory, a program and the number of programs to the memory and the program behind one atomic step; None: it waits.
Step = Callable[[int, int, Program, int], tuple[int, int, Program] | None]


def ticket(counter: int, word: int, program: Program, P: int) -> tuple[int, int, Program] | None:
    """The protocol: add one; read until the counter is at least n·P."""
    at, n, _ = program
    if at == "arrive":
        return counter + 1, word, ("wait", n, 0)
    return (counter, word, ("pass", n, 0)) if counter >= n * P else None


def reset(counter: int, word: int, program: Program, P: int) -> tuple[int, int, Program] | None:
    """Wrong: the last to arrive sets the counter to zero, which is what the others wait for, and may miss."""
    at, n, _ = program
    if at == "arrive":
        return counter + 1, word, ("last" if counter + 1 == P else "wait", n, 0)
    if at == "last":
        return 0, word, ("pass", n, 0)
    return (counter, word, ("pass", n, 0)) if counter == 0 else None


def one_round_short(counter: int, word: int, program: Program, P: int) -> tuple[int, int, Program] | None:
    """Wrong: waits for the arrivals of the round before, as a target computed before the addition would."""
    at, n, _ = program
    if at == "arrive":
        return counter + 1, word, ("wait", n, 0)
    return (counter, word, ("pass", n, 0)) if counter >= (n - 1) * P else None


def not_atomic(counter: int, word: int, program: Program, P: int) -> tuple[int, int, Program] | None:
    """Wrong: reads the counter and writes it back with one more, and arrivals between the two are lost."""
    at, n, seen = program
    if at == "arrive":
        return counter, word, ("write", n, counter)
    if at == "write":
        return seen + 1, word, ("wait", n, 0)
    return (counter, word, ("pass", n, 0)) if counter >= n * P else None


def sense(counter: int, word: int, program: Program, P: int) -> tuple[int, int, Program] | None:
    """Right, and another way: the last resets the counter and turns a second word, which the others wait for."""
    at, n, _ = program
    if at == "arrive":
        return counter + 1, word, ("last" if counter + 1 == P else "wait", n, 0)
    if at == "last":
        return 0, word, ("turn", n, 0)
    if at == "turn":
        return counter, n % 2, ("pass", n, 0)
    return (counter, word, ("pass", n, 0)) if word == n % 2 else None


def violation(step: Step, P: int, rounds: int) -> str | None:
    """What goes wrong in some interleaving of P programs through so many barriers; None if nothing can.

    Every state that can be reached is visited once. A program that "passes" begins its next round in a step of its own, so
    that others may overtake it there.
    """
    first: State = (0, 0, (("arrive", 1, 0),) * P)
    seen: set[State] = {first}
    todo: list[State] = [first]
    while todo:
        state = todo.pop()
        following = list(_following(step, state, P, rounds))
        if not following and any(at != "done" for at, _, _ in state[2]):
            return f"deadlock at {state}"
        for after in following:
            if after in seen:
                continue
            for at, n, _ in after[2]:
                behind = [m for other, m, _ in after[2] if m < n or (m == n and other == "arrive")]
                if at == "pass" and behind:
                    return f"round {n} was passed before all arrived: {after}"
            seen.add(after)
            todo.append(after)
    return None


def _following(step: Step, state: State, P: int, rounds: int) -> Iterable[State]:
    counter, word, programs = state
    for i, program in enumerate(programs):
        at, n, _ = program
        if at == "done":
            continue
        if at == "pass":
            moved = counter, word, (("done", n, 0) if n == rounds else ("arrive", n + 1, 0))
        else:
            moved = step(counter, word, program, P)
        if moved is not None:
            yield moved[0], moved[1], (*programs[:i], moved[2], *programs[i + 1 :])


@pytest.mark.parametrize("P", [1, 2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_nobody_passes_early_and_nobody_is_left(P: int, rounds: int) -> None:
    assert violation(ticket, P, rounds) is None
    assert violation(sense, P, rounds) is None


@pytest.mark.parametrize("P", [2, 3, 4])
def test_broken_barriers_are_caught(P: int) -> None:
    for step in (reset, not_atomic):
        found = violation(step, P, 3)
        assert found is not None, step.__name__
    early = violation(one_round_short, P, 2)
    assert early is not None and early.startswith("round 1 was passed before all arrived")


def test_the_kernel_waits_for_what_was_checked() -> None:
    """The target of barrier n is n·P, the arrival is released and the read acquires: as the model has it."""
    root = Path(__file__).parents[2] / "kernels" / "grid"
    assert "grid_barrier(counter_ptr, (n + 1 - first) * PROGRAMS)" in (root / "plan.py").read_text(encoding="utf-8")
    device = (root / "barrier.py").read_text(encoding="utf-8")
    for word in ("red.release.gpu.global.add.u32 [$1], 1;", "ld.acquire.gpu.global.u32 seen, [$1];", "seen, $2;"):
        assert word in device


@needs_spin
@pytest.mark.parametrize("P", [2, 3, 4])
def test_spin_finds_nothing_but_in_the_broken_variant(P: int, tmp_path: Path) -> None:
    right = spin(MODEL, tmp_path, f"-DP={P}", "-DR=3")
    assert "errors: 0" in right and "Warning: Search not completed" not in right, right
    assert "errors: 1" in spin(MODEL, tmp_path, f"-DP={P}", "-DR=3", "-DRESET")
