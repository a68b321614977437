"""PTX text as blocks of instructions, each with the line of source that it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LOCATION = re.compile(r"\.loc\s+\d+ (\d+) \d+.*?(?://\s*(.*))?$")
_PREDICATED = re.compile(r"@(!?)(%\w+)\s+(.*)", re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    """`@predicate opcode operands;`, where `location` names lines of source, the innermost first."""

    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    location: str

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def type(self) -> str:
        """The last part of the opcode."""
        return self.parts[-1]


@dataclass
class Block:
    """Instructions without a branch between them, and how they end.

    branch  the label that is gone to, where the predicate of `end` holds; None: to the next block
    end     the branch or the return; None: to the next block
    """

    instructions: list[Instruction] = field(default_factory=list)
    branch: str | None = None
    end: Instruction | None = None


def blocks_of(ptx: str) -> tuple[list[Block], dict[str, int]]:
    """The blocks of the single kernel in `ptx`, and the number of the block at each label."""
    blocks, labels = [Block()], {}
    for item in _items(ptx):
        if isinstance(item, str):
            blocks.append(Block())
            labels[item] = len(blocks) - 1
        elif item.opcode.startswith("bra") or item.opcode == "ret":
            blocks[-1].end = item
            blocks[-1].branch = item.operands[-1] if item.operands else None
            blocks.append(Block())
        else:
            blocks[-1].instructions.append(item)
    return blocks, labels


def _items(ptx: str) -> Iterator[Instruction | str]:
    """Instructions and labels. The loop around a wait for a barrier is left out: a wait is one instruction here."""
    location = "?"
    for line in ptx[ptx.index("\n{") :].split("\n"):
        found = _LOCATION.match(line.strip())
        if found:
            location = (found[2] or found[1]).strip()
            continue
        line = re.sub(r"//.*", "", line).strip()
        if line.startswith("$L__BB"):
            yield line.split(":")[0]
        if not line or line in "{}" or line.startswith(("$", ".", "waitLoop")):
            continue
        for text in (part.strip() for part in line.split(";")):
            if text and not text.startswith((".", "@!complete")):
                yield _instruction(text, location)


def _instruction(text: str, location: str) -> Instruction:
    predicate, negated = None, False
    found = _PREDICATED.match(text)
    if found:
        predicate, negated, text = found[2], bool(found[1]), found[3]
    opcode, *rest = text.split(None, 1)
    return Instruction(opcode, tuple(_split(rest[0])) if rest else (), predicate, negated, location)


def _split(text: str) -> Iterator[str]:
    """Operands, between commas that are in no braces or brackets."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and not depth:
            yield text[start:at].strip()
            start = at + 1
    yield text[start:].strip()


def members(operand: str) -> list[str]:
    """Of `{%r1, %r2}`, or of `%r1` alone."""
    return [part.strip() for part in operand.strip("{} ").split(",")]
