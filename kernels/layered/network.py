"""A network layer by layer: matrix products, and between them what `pointwise.py` does.

    forward     y₀ = z,  hᵢ = yᵢ Wᵢᵀ,  yᵢ₊₁ = finish_forward(hᵢ)            output: y of the last operation
    backward    Gₙ = finish_backward(cotangent),  gᵢ = Gᵢ Wᵢ,  Gᵢ₋₁ = finish_backward(gᵢ)

The products are the library's, and what stands between them is a launch; or ours, each in one launch with what follows it
(`linear_rows`) or with what stands before it (`linear_columns`).

y and h have a buffer each, in turn read and written, so that a pass touches no more memory than its widest operation does.
Everything is enqueued on the current stream; nothing allocates, and nothing asks the device.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..packing import NONE, Operation, PackedNetwork, Program
from .linear_columns import ColumnCut, columns_backward, columns_forward
from .linear_rows import WIDEST, RowCut, rows_backward, rows_forward
from .pointwise import Condition, Kept, Streams, Vectors, finish_backward, finish_forward, row_stride

# A launch of `linear_steps`, of rows, weight, result, the last operation's vectors, what it keeps, the cut, and its kind.
Step = Callable[..., None]


@dataclass(frozen=True)
class Scratch:
    """What passes from one operation to the next; networks that run one after the other share it.

    y, h            `[rows · widest]`, in the dtype of the products: the operand and the product
    z, out          `[rows · columns]`, `[rows · out_columns]` of float32: input or input-gradient of a network that does not
                    begin with a product, and output
    joined          `[rows · columns]`, in the dtype of the products: the time's part of a first product
    streams         two of `[rows · stream_columns]`, float32
    """

    y: Tensor
    h: Tensor
    z: Tensor
    out: Tensor
    joined: Tensor
    streams: tuple[Tensor, Tensor]

    @classmethod
    def allocate(cls, users: Iterable[tuple[Program, int]], dtype: torch.dtype, device: torch.device) -> "Scratch":
        """For programs with a number of rows each."""
        users = list(users)

        def largest(columns: Callable[[Program], int], dtype: torch.dtype) -> Tensor:
            return torch.empty(max(rows * columns(program) for program, rows in users), dtype=dtype, device=device)

        def stream() -> Tensor:
            return largest(lambda program: program.stream_columns, torch.float32)

        return cls(
            y=largest(lambda program: program.widest, dtype),
            h=largest(lambda program: program.widest, dtype),
            z=largest(lambda program: 0 if begins_with_product(program) else program.columns, torch.float32),
            out=largest(lambda program: program.out_columns, torch.float32),
            joined=largest(lambda program: program.operations[0].columns if program.joined else 0, dtype),
            streams=(stream(), stream()),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.y, self.h, self.z, self.out, self.joined, *self.streams)


class LayeredNetwork:
    """A packed network for a fixed number of rows, `passes` of which are kept for their input-gradients (0: none).

    `inputs [rows, columns]` is where a caller writes normalised inputs, padding zero, before `forward`: it is scratch, and
    so is what the passes return: valid until the next pass of a network with the same scratch.
    """

    def __init__(
        self, packed: PackedNetwork, rows: int, scratch: Scratch, passes: int = 0, cut: RowCut | ColumnCut | None = None
    ) -> None:
        """With a `cut` the products are ours."""
        program, device = packed.program, packed.weights.device
        self.packed, self.program, self.rows, self.scratch, self._cut = packed, program, rows, scratch, cut
        self.saved = torch.empty(passes, program.saved * rows, dtype=packed.weights.dtype, device=device)
        self._moment_rows = -(-rows // 4) * 4  # every moment begins at an aligned address, or kernels would multiply
        self.moments = torch.empty(passes, program.moments * self._moment_rows, device=device)
        self.inputs = self._rows(scratch.y if begins_with_product(program) else scratch.z, program.columns)
        self.out = self._rows(scratch.out, program.out_columns)

    def forward(self, condition: Tensor | None = None, keep: int | None = None) -> Tensor:
        """Output `[rows, out_columns]` in float32 for `inputs`; with `keep`, what the gradient needs is kept as pass `keep`.

        `condition [1 or rows, condition_columns]`, padded with zeros: float32, or of the products' dtype where it is joined
        to the input (a time embedding).
        """
        if isinstance(self._cut, RowCut):
            return self._forward_rows(self._cut, condition, keep)
        if self._cut is not None:
            return self._forward_columns(self._cut, condition, keep)
        program, weights = self.program, self.packed.weights
        if not begins_with_product(program):
            y = self._rows(self.scratch.y, program.columns)
            self._finish_forward(program.entry, self.inputs, y, keep, Condition(), None)
        for i, op in enumerate(program.operations):
            h = self._rows(self.scratch.h, op.columns)
            torch.mm(self._rows(self.scratch.y, op.inputs), self._weight(op).t(), out=h)
            joined = Condition()
            if i == 0 and program.joined:
                assert condition is not None
                wide = weights[program.joined_weight :][: op.columns * program.joined].view(op.columns, program.joined)
                part = self.scratch.joined[: len(condition) * op.columns].view(-1, op.columns)
                torch.mm(condition, wide.t(), out=part)
                joined = _condition(part)
            last = i == len(program.operations) - 1
            y = self.out if last else self._rows(self.scratch.y, op.columns)
            self._finish_forward(op, h, y, keep, joined, condition)
        return self.out

    def vjp(self, cotangent: Tensor, condition: Tensor | None = None, keep: int = 0) -> Tensor:
        """Input-gradient `[rows, columns]` (float32 or the products' dtype) of pass `keep`.

        `cotangent [1 or rows, out_columns]` is float32; `condition` is what the forward pass had.
        """
        if isinstance(self._cut, RowCut):
            return self._vjp_rows(self._cut, cotangent, condition, keep)
        if self._cut is not None:
            return self._vjp_columns(self._cut, cotangent, condition, keep)
        program, grad = self.program, cotangent
        for op in reversed(program.operations):
            y = self._rows(self.scratch.y, op.columns)
            self._finish_backward(op, grad, y, keep, condition)
            grad = self._rows(self.scratch.h, op.inputs)
            torch.mm(y, self._weight(op), out=grad)
        if begins_with_product(program):
            return grad
        out = self._rows(self.scratch.z, program.columns)
        self._finish_backward(program.entry, grad, out, keep, None)
        return out

    def _forward_rows(self, cut: RowCut, condition: Tensor | None, keep: int | None) -> Tensor:
        """`forward`, an operation a launch, from y to h and from h to y in turn."""
        y, last = self._rows(self.scratch.y, self.program.columns), self.program.operations[-1]
        for op in self.program.operations:
            out = self.out if op is last else self._other(y, op.columns)
            given = _condition(condition) if op.condition != "none" else Condition()
            kept = Kept() if keep is None else self._kept(op, keep)
            rows_forward(
                y, self._weight(op), out, self._vectors(op), given, self._streams(op), kept, cut, **self._streamed(op)
            )
            y = out
        return self.out

    def _vjp_rows(self, cut: RowCut, cotangent: Tensor, condition: Tensor | None, keep: int) -> Tensor:
        """`vjp`, likewise."""
        operations = (self.program.entry, *self.program.operations)
        y = self._rows(self.scratch.y, self.program.out_columns)
        self._finish_backward(operations[-1], cotangent, y, keep, condition)
        for before, op in reversed(list(pairwise(operations))):
            out = self._other(y, op.inputs)
            given = _condition(condition) if before.condition == "multiply" else Condition()
            rows_backward(
                y, self._weight(op), out, self._vectors(before), given, self._streams(before), self._kept(before, keep), cut,
                **self._streamed(before),
            )  # fmt: skip
            y = out
        return y

    def _forward_columns(self, cut: ColumnCut, condition: Tensor | None, keep: int | None) -> Tensor:
        """`forward`, a product a launch, and what follows the last."""
        h = self._rows(self.scratch.y, self.program.columns)
        h = self._products(h, (self.program.entry, *self.program.operations), cut, condition, keep)
        return self.finish(h, condition, keep)

    def finish(self, h: Tensor, condition: Tensor | None = None, keep: int | None = None) -> Tensor:
        """The output, of the last product."""
        self._finish_forward(self.program.operations[-1], h, self.out, keep, Condition(), condition)
        return self.out

    def _products(
        self, h: Tensor, operations: Sequence[Operation], cut: ColumnCut, condition: Tensor | None, keep: int | None
    ) -> Tensor:
        """The product of the last of some operations, from that of the first."""
        for before, op in pairwise(operations):
            given = _condition(condition) if before.condition != "none" else Condition()
            kept = Kept() if keep is None else self._kept(before, keep)
            out = self._other(h, op.columns)
            columns_forward(h, self._weight(op), out, self._vectors(before), given, kept, cut, **self._kind(before))
            h = out
        return h

    def forward_step(self, begin: Step, h: Tensor | None, keep: int) -> Tensor:
        """The last product of pass `keep`, from that of the pass before: up to the first product `begin` enqueues.

        Like `vjp_step` for a network whose columns are divided, and which nothing conditions.
        """
        assert isinstance(self._cut, ColumnCut)
        first, last = self.program.operations[0], self.program.operations[-1]
        out, kept = self._other(h, first.columns), Kept() if h is None else self._kept(last, keep - 1)
        begin(h, self._weight(first), out, self._vectors(last), kept, self._cut, **self._kind(last))
        return self._products(out, self.program.operations, self._cut, None, keep)

    def vjp_step(self, begin: Step, grad: Tensor | None, keep: int) -> Tensor:
        """The input-gradient of pass `keep`, from that of the pass behind it, likewise."""
        assert isinstance(self._cut, ColumnCut)
        last = self.program.operations[-1]
        out = self._other(grad, last.inputs)
        begin(grad, self._weight(last), out, self._vectors(last), self._kept(last, keep), self._cut, **self._kind(last))
        return self._products_vjp(out, self.program.operations[:-1], self._cut, None, keep)

    def _vjp_columns(self, cut: ColumnCut, cotangent: Tensor, condition: Tensor | None, keep: int) -> Tensor:
        """`vjp`, likewise: nothing follows the first product."""
        return self._products_vjp(cotangent, self.program.operations, cut, condition, keep)

    def _products_vjp(
        self, grad: Tensor, operations: Sequence[Operation], cut: ColumnCut, condition: Tensor | None, keep: int
    ) -> Tensor:
        """The gradient in the input of the first of some operations, from that in the output of the last."""
        for op in reversed(operations):
            given = _condition(condition) if op.condition == "multiply" else Condition()
            out = self._other(grad, op.inputs)
            columns_backward(
                grad, self._weight(op), out, self._vectors(op), given, self._kept(op, keep), cut, **self._kind(op)
            )
            grad = out
        return grad

    def _other(self, rows: Tensor | None, columns: int) -> Tensor:
        """Of the buffers y and h the one that these rows are not in."""
        in_h = rows is not None and rows.data_ptr() == self.scratch.h.data_ptr()
        return self._rows(self.scratch.y if in_h else self.scratch.h, columns)

    @property
    def columns_divided(self) -> bool:
        """Whether the products are those of `linear_columns`, and `forward_step` and `vjp_step` serve."""
        return isinstance(self._cut, ColumnCut)

    def _finish_forward(
        self, op: Operation, h: Tensor, y: Tensor, keep: int | None,
        joined: Condition, condition: Tensor | None,
    ) -> None:  # fmt: skip
        given = _condition(condition) if op.condition != "none" else Condition()
        kept = Kept() if keep is None else self._kept(op, keep)
        finish_forward(h, y, self._vectors(op), joined, given, self._streams(op), kept, **self._streamed(op))

    def _finish_backward(self, op: Operation, g: Tensor, y: Tensor, keep: int, condition: Tensor | None) -> None:
        given = _condition(condition) if op.condition == "multiply" else Condition()
        finish_backward(g, y, self._vectors(op), given, self._streams(op), self._kept(op, keep), **self._streamed(op))

    def _kind(self, op: Operation) -> dict[str, Any]:
        """What a kernel is compiled for. The like operations of a network, and of others, share their kernels."""
        return {"CONDITION": op.condition, "ACTIVATION": op.activation, "WIDTH": op.width}

    def _streamed(self, op: Operation) -> dict[str, Any]:
        """The same where there may be streams."""
        return {**self._kind(op), "RESIDUAL": op.residual, "STREAM_COLUMNS": self.program.stream_columns}

    def _rows(self, buffer: Tensor, columns: int) -> Tensor:
        return buffer[: self.rows * columns].view(self.rows, columns)

    def _weight(self, op: Operation) -> Tensor:
        return self.packed.weights[op.weight :][: op.columns * op.inputs].view(op.columns, op.inputs)

    def _vectors(self, op: Operation) -> Vectors:
        places = Vectors(op.bias, op.norm_weight, op.norm_bias, op.post_weight, op.post_bias)
        return Vectors(*(None if at == NONE else self.packed.vectors[at:][: op.columns] for at in places))

    def _kept(self, op: Operation, keep: int) -> Kept:
        saved, moments = self.saved[keep], self.moments[keep]

        def row(at: int) -> Tensor | None:
            return None if at == NONE else saved[at * self.rows :][: self.rows * op.columns]

        def moment(at: int) -> Tensor | None:
            return None if at == NONE else moments[at * self._moment_rows :][: self.rows]

        return Kept(row(op.saved), moment(op.moment), row(op.post_saved), moment(op.post_moment))

    def _streams(self, op: Operation) -> Streams:
        places = (op.stream_in, op.stream_out)
        return Streams(*(None if at == NONE else self.scratch.streams[at] for at in places))


def holds_rows(program: Program) -> bool:
    """Whether `linear_rows` serves a network: its rows fit a program, and a product comes first, of the input alone."""
    return program.widest <= WIDEST and begins_with_product(program) and not program.joined


def divides_columns(program: Program) -> bool:
    """Whether `linear_columns` does: nothing is added past a product, and one comes first, of the input alone."""
    return not program.stream_columns and begins_with_product(program) and not program.joined


def begins_with_product(program: Program) -> bool:
    """Whether nothing is done with the input before the first product: then it is the operand, in the products' dtype."""
    return program.entry.post_weight == NONE and program.entry.stream_out == NONE


def _condition(rows: Tensor | None) -> Condition:
    assert rows is not None
    return Condition(rows, row_stride(rows))
