"""A network as the kernels read it: padded weights in two flat buffers, and the row of operations that a kernel unrolls.

Every layer of a `NetworkSpec` becomes one or two operations of a single kind,

    h = W y + b → conditioning → layer norm → (+ stream) → activation → (+ stream) → [stream] → layer norm → y

so that a kernel has one loop body for them all. A residual layer adds the stream after its activation, the second product
of a block before it; the layer norm at the end is the pre-norm of the block that follows. The *stream* is what a later
operation adds: the output before that last norm, kept in float32.

Widths are padded to powers of two, of 16 at least, with zero weights: padded columns hold zeros through every operation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .network import Block, Layer, NetworkSpec

Residual = Literal["none", "after", "inside"]
InputPrecision = Literal["ieee", "tf32"]
NONE = -1

MAX_WIDTH = 1024
MAX_INPUTS = 512


@dataclass(frozen=True)
class Operation:
    """One product with all that follows it. Offsets count numbers: `weight` into the weights, the others into the vectors.

    inputs, columns   padded widths of y before and after; `width` is the true one after
    weight            of W `[columns, inputs]`, row-major; -1 wherever an offset has nothing to point at
    saved             where a row keeps what the input-gradient needs: the normed h, or else the activation's input
    moment            where it keeps 1/√(variance + ε) of the norm; `post_saved` and `post_moment` are the last norm's
    stream_in         which stream (0 or 1) is added, `stream_out` which one is written
    """

    inputs: int
    columns: int
    width: int
    weight: int = NONE
    bias: int = NONE
    condition: str = "none"
    norm_weight: int = NONE
    norm_bias: int = NONE
    activation: str = "identity"
    residual: Residual = "none"
    post_weight: int = NONE
    post_bias: int = NONE
    saved: int = NONE
    moment: int = NONE
    post_saved: int = NONE
    post_moment: int = NONE
    stream_in: int = NONE
    stream_out: int = NONE

    @property
    def whole_row(self) -> bool:
        """Whether a norm wants all columns of a row at once; otherwise they may be computed in chunks."""
        return self.norm_weight != NONE or self.post_weight != NONE


@dataclass(frozen=True)
class Program:
    """A network for a kernel: its operations and what it keeps. Hashable, so that a kernel is compiled for it.

    entry             what is done with the input itself, without a product: a norm where the network begins with a block
    joined            padded width of a time embedding, or 0; `joined_weight` is the offset of its columns of the first W
    shared_condition  one row conditions all rows of a launch, not a row each
    embedding         offset in the vectors of the table of noise levels `[levels, condition_columns]`, or -1
    saved, moments    numbers that a row keeps for the input-gradient, in the dtype of the products and in float32
    """

    entry: Operation
    operations: tuple[Operation, ...]
    joined: int
    joined_weight: int
    embedding: int
    condition_columns: int
    saved: int
    moments: int
    shared_condition: bool = True

    @property
    def columns(self) -> int:
        return self.entry.columns

    @property
    def out_columns(self) -> int:
        return self.operations[-1].columns

    @property
    def outputs(self) -> int:
        return self.operations[-1].width

    @property
    def widest(self) -> int:
        """Columns of the widest y."""
        return max(self.columns, *(op.columns for op in self.operations))

    @property
    def stream_columns(self) -> int:
        """Columns of the widest stream; 0 without one."""
        return max((op.columns for op in (self.entry, *self.operations) if op.stream_out != NONE), default=0)

    @property
    def widest_whole_row(self) -> int:
        """Columns of the widest row that has to be in registers at once."""
        whole = [op.columns for op in self.operations if op.whole_row]
        return max(self.columns, self.out_columns, *whole)

    def flops_per_row(self) -> int:
        """Multiply-adds ×2 of one row as the kernels do them, padding included."""
        return sum(2 * op.inputs * op.columns for op in self.operations) + 2 * self.joined * self.operations[0].columns


def padded(width: int) -> int:
    """The next power of two, 16 at least: what a tile of a matrix product can be."""
    return max(16, 1 << (width - 1).bit_length())


def uncovered(spec: NetworkSpec) -> str | None:
    """None where the kernels cover the network, else what they do not."""
    if isinstance(spec.layers[0], Block) and spec.time is not None:
        return "a block as its first layer, over an input joined with time: put a Layer before it"
    widths = [spec.inputs, *spec.widths, *(n.hidden for n in spec.layers if isinstance(n, Block))]
    if max(widths) > MAX_WIDTH:
        return f"a layer {max(widths)} wide; the kernels go to {MAX_WIDTH}"
    if spec.inputs > MAX_INPUTS or spec.outputs > MAX_INPUTS:
        return f"{max(spec.inputs, spec.outputs)} inputs or outputs; the kernels go to {MAX_INPUTS}"
    return None


def beside_chains(networks: Mapping[str, Program]) -> str | None:
    """What networks have beside chains of layers, which are all that some regimes hold; None if nothing."""
    for name, net in networks.items():
        if len(net.operations) < 2:
            return f"the {name}'s single layer"
        if net.stream_columns or net.entry.post_weight != NONE:
            return f"the {name}'s residual layers or blocks"
        if net.joined:
            return f"the {name}'s time embedding"
    return None


@dataclass(frozen=True)
class Copy:
    """Where a weight goes: columns `first…` of `name`, `[rows, columns]`, to a padded `[…, stride]` at `offset`."""

    name: str
    is_matrix: bool
    offset: int
    stride: int
    rows: int
    columns: int
    first: int = 0


class _Places:
    """Counts offsets up while the operations are made."""

    def __init__(self) -> None:
        self.weights = self.vectors = self.saved = self.moments = 0
        self.copies: list[Copy] = []

    def matrix(self, name: str, shape: tuple[int, int], true: tuple[int, int], first: int = 0) -> int:
        offset, self.weights = self.weights, self.weights + shape[0] * shape[1]
        self.copies.append(Copy(name, True, offset, shape[1], *true, first))
        return offset

    def vector(self, name: str, columns: int, width: int, rows: int = 1) -> int:
        offset, self.vectors = self.vectors, self.vectors + rows * columns
        self.copies.append(Copy(name, False, offset, columns, rows, width))
        return offset

    def norm(self, name: str, columns: int, width: int) -> tuple[int, int]:
        return self.vector(f"{name}.norm.weight", columns, width), self.vector(f"{name}.norm.bias", columns, width)

    def keep(self, columns: int) -> int:
        offset, self.saved = self.saved, self.saved + columns
        return offset

    def keep_moment(self) -> int:
        self.moments += 1
        return self.moments - 1


@dataclass(frozen=True)
class Layout:
    """A program, the sizes of its two buffers and the copies that fill them."""

    program: Program
    weights: int
    vectors: int
    copies: tuple[Copy, ...]


def lay_out(spec: NetworkSpec, columns: int = 0, out_columns: int = 0) -> Layout:
    """How a network is packed; raises ValueError where `uncovered`.

    `columns` and `out_columns` widen the padded input and output: a planner keeps the state, the controls and every
    gradient of a problem in tiles of one width.
    """
    if (why := uncovered(spec)) is not None:
        raise ValueError(f"the kernels do not cover a network with {why}")
    places, operations = _Places(), []
    columns = max(columns, padded(spec.inputs))
    y_columns, y_width, stream = columns, spec.inputs, 0

    def needs_stream(index: int) -> bool:
        after = spec.layers[index] if index < len(spec.layers) else None
        return isinstance(after, Block) or (isinstance(after, Layer) and after.residual)

    def pre_norm(index: int, width: int, columns: int) -> dict[str, Any]:
        """The norm of the block at `index`, if one is there."""
        if index >= len(spec.layers) or not isinstance(spec.layers[index], Block):
            return {}
        weight, bias = places.norm(f"layers.{index}", columns, width)
        return {"post_weight": weight, "post_bias": bias, "post_saved": places.keep(columns),
                "post_moment": places.keep_moment()}  # fmt: skip

    entry = Operation(columns, columns, spec.inputs, stream_out=stream if needs_stream(0) else NONE,
                      **pre_norm(0, spec.inputs, columns))  # fmt: skip
    joined = padded(spec.time.width) if spec.time else 0
    joined_weight = NONE
    for index, layer in enumerate(spec.layers):
        name, last = f"layers.{index}", index == len(spec.layers) - 1
        if isinstance(layer, Block):
            hidden = padded(layer.hidden)
            operations.append(Operation(
                y_columns, hidden, layer.hidden, activation=layer.activation,
                weight=places.matrix(f"{name}.up.weight", (hidden, y_columns), (layer.hidden, y_width)),
                bias=places.vector(f"{name}.up.bias", hidden, layer.hidden),
                saved=places.keep(hidden) if layer.activation != "identity" else NONE,
            ))  # fmt: skip
            new, width, inputs, true_inputs, source = y_columns, y_width, hidden, layer.hidden, f"{name}.down"
            what: dict[str, Any] = {"activation": layer.out, "residual": "inside"}
        else:
            new, width, inputs, true_inputs, source = padded(layer.width), layer.width, y_columns, y_width, name
            what = {"activation": layer.activation, "condition": layer.condition}
            what["residual"] = "after" if layer.residual else "none"
        new = max(new, out_columns) if last else new
        if isinstance(layer, Layer) and layer.norm:
            what["norm_weight"], what["norm_bias"] = places.norm(name, new, width)
            what["moment"] = places.keep_moment()
        if "moment" in what or what["activation"] != "identity":
            what["saved"] = places.keep(new)
        if what["residual"] != "none":
            what["stream_in"] = stream
        if needs_stream(index + 1):
            stream = 1 - stream
            what["stream_out"] = stream
        if index == 0 and spec.time:
            joined_weight = places.matrix(f"{source}.weight", (new, joined), (width, spec.time.width), spec.inputs)
        weight = places.matrix(f"{source}.weight", (new, inputs), (width, true_inputs))
        bias = places.vector(f"{source}.bias", new, width)
        operations.append(
            Operation(inputs, new, width, weight=weight, bias=bias, **what, **pre_norm(index + 1, width, new))
        )
        y_columns, y_width = new, width
    condition_columns = max((op.columns for op in operations if op.condition != "none"), default=joined)
    embedding = NONE
    if spec.levels:
        embedding = places.vector("embedding", condition_columns, spec.condition_width, spec.levels)
    program = Program(
        entry=entry, operations=tuple(operations), joined=joined, joined_weight=joined_weight, embedding=embedding,
        condition_columns=condition_columns, saved=places.saved, moments=places.moments,
    )  # fmt: skip
    return Layout(program, max(16, places.weights), max(16, places.vectors), tuple(places.copies))


def round_to_tf32_(values: Tensor) -> Tensor:
    """Float32 numbers as a tf32 product reads them, 10 bits of fraction, rounded in place to the nearest.

    The hardware would cut the other 13 bits off, and every product would come out a little too small. Ties are rounded
    away from zero, as `layers.nearest_tf32` does. A NaN stays one. Allocates nothing.
    """
    values.nan_to_num_(math.nan, math.inf, -math.inf)  # one NaN for all of them: the bits of a GPU's would run over to −0
    values.view(torch.int32).add_(0x1000).bitwise_and_(-0x2000)
    return values


class PackedNetwork:
    """The padded weights of a network on a device, in the dtype of its products; vectors stay in float32.

    Products of float32 are IEEE, or of tf32: then the weights are rounded to it here, once, and kernels round the rows.
    `refresh` copies weights in. It allocates nothing and asks the device nothing, so that it can be part of a graph: then
    every replay sees the weights as they are.
    """

    def __init__(
        self, spec: NetworkSpec, dtype: torch.dtype, device: torch.device, columns: int = 0, out_columns: int = 0,
        input_precision: InputPrecision = "ieee",
    ) -> None:  # fmt: skip
        self.spec, self.input_precision = spec, input_precision
        layout = lay_out(spec, columns, out_columns)
        self.program, self._copies = layout.program, layout.copies
        self.weights = torch.zeros(layout.weights, dtype=dtype, device=device)
        self.vectors = torch.zeros(layout.vectors, dtype=torch.float32, device=device)
        self._source: Mapping[str, Tensor] | None = None
        self._seen: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(
        cls, spec: NetworkSpec, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None,
        input_precision: InputPrecision = "ieee",
    ) -> PackedNetwork:  # fmt: skip
        """The weights under the names of `NetworkSpec.weight_shapes`, packed where they lie, and followed from then on.

        `dtype` of the products: float32 (as when it is not given), float16 or bfloat16; `input_precision` of those of
        float32: "ieee" or "tf32".
        """
        if dtype is None:
            dtype = torch.float32
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"dtype is {dtype}; the kernels multiply in torch.float32, torch.float16 or torch.bfloat16")
        if input_precision not in get_args(InputPrecision) or (input_precision == "tf32" and dtype != torch.float32):
            raise ValueError(
                f"input_precision is {input_precision!r} for products of {dtype}; expected 'ieee', or 'tf32' with float32"
            )
        first = weights[next(name for name in spec.weight_shapes() if name.endswith("weight"))]
        made = cls(spec, dtype, first.device, input_precision=input_precision)
        made._source = weights
        made.follow()
        return made

    def follow(self) -> None:
        """Copy the weights in again if they were written to; of writes through `.data` PyTorch says nothing: `refresh`."""
        if self._source is None:
            return
        now = tuple((t.data_ptr(), t._version) for t in self._source.values())
        if now != self._seen:
            self.refresh(self._source)
            self._seen = now

    @torch.no_grad()
    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of this moment into the buffers."""
        for copy in self._copies:
            buffer = self.weights if copy.is_matrix else self.vectors
            place = buffer.as_strided((copy.rows, copy.columns), (copy.stride, 1), copy.offset)
            place.copy_(weights[copy.name].view(copy.rows, -1)[:, copy.first : copy.first + copy.columns])
        if self.input_precision == "tf32":
            round_to_tf32_(self.weights)

    @property
    def bytes(self) -> int:
        return self.weights.numel() * self.weights.element_size() + self.vectors.numel() * self.vectors.element_size()
