"""In which order the programs of a launch run, which a GPU runs all at once.

A program goes on in parts, which end at words that are not there, and also at barriers, words that it gives, and branches.
One that waits for words goes on when another has stored something. A schedule is one of

    "in turn"   a program goes on as far as it can, and then the next one
    "first"     of those that can go on, always the first
    "last"      of those that can go on, always the last
    a number    by chance: an order of preference, drawn anew every now and then, so that some are ahead by far
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.ptx.emulator import Waiting
from tests.ptx.global_memory import GlobalMemory

Schedule = str | int
SCHEDULES: tuple[Schedule, ...] = ("in turn", "first", "last")
_PARTS = 20  # between draws of an order, on average


def take_turns(programs: dict[int, Iterator[Waiting | None]], memory: GlobalMemory, schedule: Schedule) -> list[Waiting]:
    """Run programs, each an iterator over its parts, to their ends. Returns those that wait for ever."""
    going, choose = dict(programs), _chooser(schedule, len(programs))
    waiting: dict[int, Waiting] = {}
    while going:
        able = [program for program in going if program not in waiting or waiting[program].stores != memory.stores]
        if not able:
            break
        program = choose(able)
        waiting.pop(program, None)
        try:
            found = next(going[program])
        except StopIteration:
            del going[program]
            continue
        if found is not None:
            waiting[program] = found
    return list(waiting.values())


def _chooser(schedule: Schedule, programs: int) -> Callable[[list[int]], int]:
    if schedule == "first":
        return min
    if schedule == "last":
        return max
    if isinstance(schedule, str) and schedule != "in turn":
        raise ValueError(f"no schedule {schedule!r}; there are {SCHEDULES}, and numbers")
    last, draw, order = 0, random.Random(schedule), list(range(programs))

    def in_turn(able: list[int]) -> int:
        nonlocal last
        last = min(able, key=lambda program: (program - last) % programs)
        return last

    def by_chance(able: list[int]) -> int:
        if draw.random() < 1 / _PARTS:
            draw.shuffle(order)
        return min(able, key=order.__getitem__)

    draw.shuffle(order)
    return in_turn if schedule == "in turn" else by_chance
