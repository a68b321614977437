"""PTX text as blocks of instructions, each with the line of source that it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

_LOCATION = re.compile(r"\.loc\s+\d+ (\d+) \d+.*?(?://\s*(.*))?$")
_PREDICATED = re.compile(r"@(!?)([\w%]+)\s+(.*)", re.DOTALL)
_BEFORE = re.compile(r"([{}]|[\w$]+:(?!:))\s*(.*)", re.DOTALL)  # a statement
_NAMED = re.compile(r"(?<![\w%$.])[A-Za-z_]\w*")


@dataclass(frozen=True)
class Instruction:
    """`@predicate opcode operands;`, where `location` names lines of source, the innermost first.

    skipped  predicates, with their `!`, of the branches over it: by threads for which one holds
    """

    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    location: str
    skipped: tuple[str, ...] = ()

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

    branch   the label that is gone to, where the predicate of `end` holds; None: to the next block
    end      the branch or the return; None: to the next block
    repeats  it ends a loop of inline assembly, which all threads go through again as long as the branch is taken by one
    """

    instructions: list[Instruction] = field(default_factory=list)
    branch: str | None = None
    end: Instruction | None = None
    repeats: bool = False


def blocks_of(ptx: str) -> tuple[list[Block], dict[str, int]]:
    """The blocks of the single kernel in `ptx`, and the number of the block at each label.

    Blocks end at barriers and at words that are given to other programs, too: there another program may go on.
    """
    blocks, labels = [Block()], {}
    for item in _items(ptx):
        if isinstance(item, str):
            blocks.append(Block())
            labels[item] = len(blocks) - 1
        elif item.opcode.startswith("bra") or item.opcode == "ret":
            end = blocks[-1]
            end.end, end.branch = item, item.operands[-1] if item.operands else None
            end.repeats = not (end.branch or "$").startswith("$") and end.branch in labels
            blocks.append(Block())
        else:
            blocks[-1].instructions.append(item)
            if item.opcode.startswith(("bar.", "red.", "st.relaxed")):
                blocks.append(Block())
    return blocks, labels


@dataclass
class _Braces:
    """A part of the text in braces: what its own names stand for, its labels so far, and some threads' branches ahead."""

    number: int
    registers: dict[str, str] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    ahead: dict[str, list[str]] = field(default_factory=dict)  # label: predicates of the branches

    def declare(self, text: str) -> None:
        """`.reg .type names`."""
        for name in text.split(None, 2)[2].split(","):
            self.registers[name.strip()] = f"%{name.strip()}_{self.number}"

    def renamed(self, text: str) -> str:
        return _NAMED.sub(lambda found: self.registers.get(found[0], found[0]), text)

    def label(self, name: str) -> str:
        self.labels.add(name)
        self.ahead.pop(name, None)
        return f"{name}_{self.number}"

    def instruction(self, text: str, location: str) -> Instruction | None:
        """None for a branch of some threads ahead, in whose place they skip all that it goes over."""
        made = _instruction(text, location, self)
        made = replace(made, skipped=tuple(predicate for over in self.ahead.values() for predicate in over))
        if not made.opcode.startswith("bra"):
            return made
        (label,) = made.operands
        if label in self.labels or made.predicate is None:
            return replace(made, operands=(f"{label}_{self.number}",))
        self.ahead.setdefault(label, []).append(f"{'!' * made.negated}{made.predicate}")
        return None


def _items(ptx: str) -> Iterator[Instruction | str]:
    """Instructions and labels. The loop around a wait for a barrier is left out: a wait is one instruction here.

    Inline assembly has registers and labels of its own within its braces.
    """
    location, number = "?", 0
    braces: list[_Braces] = []
    for line in ptx[ptx.index("\n{") :].split("\n"):
        found = _LOCATION.match(line.strip())
        if found:
            location = (found[2] or found[1]).strip()
            continue
        for text in re.sub(r"//.*", "", line).split(";"):
            text = text.strip()
            while before := _BEFORE.match(text):
                mark, text = before.groups()
                if mark == "{":
                    braces.append(_Braces(number := number + 1))
                elif mark == "}":
                    braces.pop()
                    if not braces:
                        return
                elif mark.startswith("$L__BB"):
                    yield mark[:-1]
                elif not mark.startswith(("$", "waitLoop")):
                    yield braces[-1].label(mark[:-1])
            if text.startswith(".reg") and len(braces) > 1:
                braces[-1].declare(text)
            elif text and not text.startswith((".", "@!complete")):
                made = braces[-1].instruction(text, location) if len(braces) > 1 else _instruction(text, location)
                if made is not None:
                    yield made


def _instruction(text: str, location: str, braces: _Braces | None = None) -> Instruction:
    predicate, negated = None, False
    found = _PREDICATED.match(text)
    if found:
        predicate, negated, text = found[2], bool(found[1]), found[3]
    opcode, *rest = text.split(None, 1)
    operands = tuple(_split(rest[0])) if rest else ()
    if braces is not None:
        predicate = predicate and braces.renamed(predicate)
        operands = tuple(map(braces.renamed, operands))
    return Instruction(opcode, operands, predicate, negated, location)


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
