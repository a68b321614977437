"""How the ring regime divides its work: problems of a program, tiles of weights in their order, places in shared memory.

A tile of weights is as deep as a slot of the ring holds at its width; a pass multiplies the tiles of its operations one
after the other, forward from the first, backward from the last, and J counts them.
"""

# To the type checker, a constexpr function gives a constant.
# pyright: reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import triton

from .gluon import gl
from .packing import NONE, Program

WIDEST = 256


@dataclass(frozen=True)
class Ring:
    """How a program is cut, a constant of the kernel.

    problems  of a program
    few       rows of a step's products: the problems, 16 at least
    many      rows of the products of cost and score, many steps at once
    slots     of the ring
    warps     of a program
    """

    problems: int
    few: int
    many: int
    slots: int = 4
    warps: int = 8

    @property
    def steps(self) -> int:
        """Of a problem, in the rows of cost and score."""
        return self.many // self.problems

    @property
    def shared(self) -> int:
        """Bytes of slots and operands."""
        tile: int = numbers_of_tile()
        return 2 * (self.slots * tile + 2 * self.many * WIDEST)


def ring_of(problems: int, horizon: int) -> Ring:
    """The cut for programs of so many problems, a power of two up to 64."""
    rows = 1 << (problems * horizon - 1).bit_length()
    few = 16 if problems <= 16 else 64
    many = 16 if rows <= 16 else 64
    return Ring(problems, few, many, slots=4 if many == 16 else 3)


def uncovered_by_ring(networks: Mapping[str, Program], learned: bool, terminal: bool) -> str | None:
    """None where the regime serves, else what it does not cover; the problem's cost is `learned`, or has a `terminal`."""
    if not learned:
        return "a cost that is no network"
    if terminal:
        return "a terminal cost"
    for name, net in networks.items():
        if len(net.operations) < 2:
            return f"the {name}'s single layer"
        if net.stream_columns or net.entry.post_weight != NONE:
            return f"the {name}'s residual layers or blocks"
        if net.joined:
            return f"the {name}'s time embedding"
        if net.widest > WIDEST:
            return f"the {name}'s padded width of {net.widest}; it goes to {WIDEST}"
    return None


# Tiles of weights.


@triton.constexpr_function
def numbers_of_tile():
    """Of weights, and so of a slot."""
    return 64 * 256


@triton.constexpr_function
def _tiles(net, backward):
    """Of each tile of a pass: its operation, the depth at which it begins, its depth."""
    found = []
    order = reversed(range(len(net.operations))) if backward else range(len(net.operations))
    for i in order:
        depth, columns = _depth_and_columns(net, backward, i)
        each = min(depth, numbers_of_tile() // columns)
        found += [(i, first, each) for first in range(0, depth, each)]
    return found


@triton.constexpr_function
def _depth_and_columns(net, backward, i):
    op = net.operations[i]
    return (op.columns, op.inputs) if backward else (op.inputs, op.columns)


@triton.constexpr_function
def tiles_of(net, backward):
    """How many a pass has."""
    return len(_tiles(net, backward))


@triton.constexpr_function
def first_tile(net, backward, i):
    """The number of an operation's first."""
    return [tile[0] for tile in _tiles(net, backward)].index(i)


@triton.constexpr_function
def tiles_of_operation(net, backward, i):
    return [tile[0] for tile in _tiles(net, backward)].count(i)


@triton.constexpr_function
def depth_of(net, backward, j):
    return _tiles(net, backward)[j][2]


@triton.constexpr_function
def depth_at(net, backward, j):
    """The depth at which a tile begins."""
    return _tiles(net, backward)[j][1]


@triton.constexpr_function
def tile_rows(net, backward, j):
    """Of a tile as it lies in memory: forward `[columns, depth]`, backward `[depth, columns]`."""
    i, _, each = _tiles(net, backward)[j]
    return each if backward else _depth_and_columns(net, backward, i)[1]


@triton.constexpr_function
def tile_columns(net, backward, j):
    i, _, each = _tiles(net, backward)[j]
    return _depth_and_columns(net, backward, i)[1] if backward else each


@triton.constexpr_function
def tile_stride(net, backward, j):
    return net.operations[_tiles(net, backward)[j][0]].inputs


@triton.constexpr_function
def tile_offset(net, backward, j):
    """In the packed weights."""
    i, first, _ = _tiles(net, backward)[j]
    op = net.operations[i]
    return op.weight + (first * op.inputs if backward else first)


# Vectors, each in a place of its own in shared memory.


@triton.constexpr_function
def place_of(net, i, name):
    """The place of an operation's vector, those of conditions behind all others; with i past the end, how many there are."""
    places, names = [], ("bias", "norm_weight", "norm_bias")
    for at, op in enumerate(net.operations):
        places += [(at, each) for each in names if getattr(op, each) >= 0]
    conditioned = [(0, "condition")] if any(op.condition != "none" for op in net.operations) else []
    places += conditioned
    return len(places) if i == len(net.operations) else places.index((i, name))


# Layouts.


@triton.constexpr_function
def sums(rows, columns, warps):
    """Of a product `[rows, columns]`, and of all that is done with it."""
    if rows == 16:
        return gl.NVMMADistributedLayout([2, 0], [1, warps], [16, 8])
    return gl.NVMMADistributedLayout([3, 0], [4, warps // 4], [16, max(8, columns // (warps // 4)), 16])


@triton.constexpr_function
def shared(columns):
    """Of a matrix in shared memory, as products read it."""
    return gl.NVMMASharedLayout(min(128, 2 * columns), 16, rank=2)


@triton.constexpr_function
def copying(columns, warps):
    """Of pointers to a tile of weights: eight numbers, 16 bytes, each."""
    across = min(32, columns // 8)
    return gl.BlockedLayout([1, 8], [32 // across, across], [warps, 1], [1, 0])
