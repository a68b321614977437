"""Functions of one row as straight-line programs of numbers: what a traced cost becomes, before it is Triton or C++.

    instructions    op, arguments; each argument is a constant or the result of an instruction before
    inputs          the features of a row, by place
    outputs         constants, or results of instructions

There are no shapes here: an array of n features is n numbers, and a sum over them n − 1 additions. So whatever a function
does to shapes costs nothing, zeros of a matrix are never multiplied, and what is computed twice is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """The result of instruction `index`; `logical` where it is true or false rather than a number."""

    index: int
    logical: bool


Value = Term | float | bool


class Instruction(NamedTuple):
    """`op` of `args`; an "input" has its place as its argument."""

    op: str
    args: tuple[Value, ...]


# What each operation is, on tensors; a program is evaluated by them, and constants are folded by them.
TENSORS: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg, "abs": torch.abs, "sqrt": torch.sqrt, "exp": torch.exp, "expm1": torch.expm1, "log": torch.log,
    "log1p": torch.log1p, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "floor": torch.floor,
    "round": torch.round, "erf": torch.erf, "atan": torch.atan,
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum, "min": torch.minimum,
    "pow": torch.pow, "atan2": torch.atan2,
    "lt": torch.lt, "le": torch.le, "eq": torch.eq,
    "and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not, "where": torch.where,
}  # fmt: skip
LOGICAL = ("lt", "le", "eq", "and", "or", "not")


@dataclass(frozen=True)
class Expression:
    """A program that has been recorded: `inputs` features in, a number for each of `outputs`."""

    inputs: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[Value, ...]

    @property
    def operations(self) -> int:
        """How many there are, reading the inputs not counted."""
        return sum(op != "input" for op, _ in self.instructions)

    def place(self, index: int) -> int:
        """Where in a row the input is that instruction `index` reads."""
        (place,) = self.instructions[index].args
        assert isinstance(place, int)
        return place

    def evaluate(self, rows: Tensor) -> Tensor:
        """Outputs `[..., outputs]` for `rows [..., inputs]`, in their dtype: the twin of the code that is made of it."""
        results: list[Tensor] = []

        def of(value: Value) -> Tensor:
            if isinstance(value, Term):
                return results[value.index]
            return torch.tensor(value, dtype=torch.bool if isinstance(value, bool) else rows.dtype, device=rows.device)

        for index, (op, args) in enumerate(self.instructions):
            if op == "input":
                results.append(rows[..., self.place(index)])
            else:
                operands = [of(arg) for arg in args]
                results.append(TENSORS[op](*(o if o.dtype == torch.bool else o.to(rows.dtype) for o in operands)))
        return torch.stack([of(out).to(rows.dtype).expand(rows.shape[:-1]) for out in self.outputs], -1)


class TooLong(Exception):
    """A program has more operations than a recorder takes."""


class Recorder:
    """Records a program, an operation at a time: constants are folded, and what is there already is not done again."""

    def __init__(self, most: int) -> None:
        """`most` operations; TooLong beyond."""
        self._most = most
        self._instructions: list[Instruction] = []
        self._known: dict[tuple[str, tuple[Value, ...]], Term] = {}

    def input(self, place: int) -> Term:
        """The feature at a place."""
        return self._record("input", (place,))

    def apply(self, op: str, *args: Value) -> Value:
        """The result of an operation; a number, where it is known."""
        if not any(isinstance(a, Term) for a in args):
            return _folded(op, args)
        simpler = _simplified(op, args)
        return self._record(op, args) if simpler is None else simpler

    def expression(self, inputs: int, outputs: Sequence[Value]) -> Expression:
        """What leads to the outputs, in order, and nothing else."""
        needed: set[int] = set()
        waiting = [out.index for out in outputs if isinstance(out, Term)]
        while waiting:
            index = waiting.pop()
            if index not in needed:
                needed.add(index)
                waiting += [a.index for a in self._instructions[index].args if isinstance(a, Term)]
        place = {old: new for new, old in enumerate(sorted(needed))}

        def moved(values: Iterable[Value]) -> tuple[Value, ...]:
            return tuple(Term(place[v.index], v.logical) if isinstance(v, Term) else v for v in values)

        kept = tuple(Instruction(op, moved(args)) for op, args in (self._instructions[old] for old in sorted(needed)))
        return Expression(inputs, kept, moved(outputs))

    def _record(self, op: str, args: tuple[Value, ...]) -> Term:
        # 0.0 and False, 1 and True are equal, and must not be taken for one another; nor 0.0 and −0.0.
        key = op, tuple((type(a), repr(a)) for a in args)
        if key not in self._known:  # pyright: ignore[reportOperatorIssue]
            if len(self._instructions) >= self._most:
                raise TooLong(f"it takes more than {self._most} operations a row")
            logical = op in LOGICAL or (op == "where" and all(_is_logical(a) for a in args[1:]))
            self._known[key] = Term(len(self._instructions), logical)  # pyright: ignore[reportArgumentType]
            self._instructions.append(Instruction(op, args))
        return self._known[key]  # pyright: ignore[reportArgumentType]


def _is_logical(value: Value) -> bool:
    return value.logical if isinstance(value, Term) else isinstance(value, bool)


def _folded(op: str, args: tuple[Value, ...]) -> Value:
    tensors = [torch.tensor(a, dtype=torch.bool if isinstance(a, bool) else torch.float64) for a in args]
    return TENSORS[op](*tensors).item()


def _simplified(op: str, args: tuple[Value, ...]) -> Value | None:
    """A value that is there already, where the operation changes nothing.

    A product with zero is zero: what multiplies a constant zero is not looked at, infinite though it may be.
    """
    a, b, c = (*args, None, None)[:3]

    def is_(value: Value | None, number: float) -> bool:
        return isinstance(value, (float, int)) and not isinstance(value, bool) and value == number

    if op in ("add", "sub") and is_(b, 0):
        return a
    if op == "add" and is_(a, 0):
        return b
    if op in ("mul", "div") and is_(b, 1):
        return a
    if op == "mul" and is_(a, 1):
        return b
    if op == "mul" and (is_(a, 0) or is_(b, 0)) or op == "div" and is_(a, 0):
        return 0.0
    if op == "where" and (b == c or isinstance(a, bool)):
        return b if a or b == c else c
    if op in ("and", "or") and isinstance(a, bool) | isinstance(b, bool):
        known, other = (a, b) if isinstance(a, bool) else (b, a)
        return other if known == (op == "and") else known
    return None
