"""A kernel's PTX as Python that `emulator.Cta` runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.ptx.parse import Block, blocks_of
from tests.ptx.translate import asked, awaited, condition, translated


class Program:
    """For each block its code and the condition of the branch at its end, and the lines of source of each statement.

    asked    of each block that ends a loop of inline assembly: the words that it asks for, and their stamps
    looping  the blocks of such loops
    """

    def __init__(self, ptx: str) -> None:
        self.blocks, self.labels = blocks_of(ptx)
        self.code: list[Any] = []
        self.locations: list[str] = []
        for block in self.blocks:
            self.code.append(compile("\n".join(self._statements(block)) or "pass", "<ptx>", "exec"))
        self.ends = [compile(condition(block.end), "<ptx>", "eval") if block.end else None for block in self.blocks]
        loops = {number: self._loop(number) for number, block in enumerate(self.blocks) if block.repeats}
        self.looping = {block for loop in loops.values() for block in loop}
        self.asked: dict[int, Any] = {}
        for number, loop in loops.items():
            of = [i for block in loop for i in self.blocks[block].instructions]
            self.asked[number] = compile(f"{asked(of)}, {awaited(of)}", "<ptx>", "eval")

    def _loop(self, number: int) -> range:
        """The blocks of the loop of inline assembly that ends with this one."""
        return range(self.labels[self.blocks[number].branch or ""], number + 1)

    def _statements(self, block: Block) -> Iterator[str]:
        for instruction in block.instructions:
            yield f"cta.at = {len(self.locations)}"
            self.locations.append(instruction.location)
            yield from translated(instruction)
