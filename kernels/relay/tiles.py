"""How the relay regime divides its work: columns of a program, places of words, layouts of what a program computes.

A program's part of a layer is a product of few columns that is as deep as the layer is wide. Its warps divide the depth:

    warp              0                 1            …
    W  [own, depth]  │ 4 lanes × 8, again …│         …      a lane's numbers lie one behind the other, in memory and shared
    y  [8, depth]    │ 4 lanes × 8, again …│         …      memory; which of them meet in an instruction is all the same

and their sums are added up through shared memory. What passes between programs are rows of hidden layers, as words.
"""

# To the type checker, a constexpr function gives a constant.
# pyright: reportAssignmentType=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import triton
from torch import Tensor

from ..gluon import gl
from ..packing import NONE, Program, beside_chains

ROWS = 8  # of a product
LEAST_OWN = 16  # columns of a program: the rows of an instruction, for the weights stand on its left
MOST_INPUTS = 128  # of a network, or outputs: every program computes all of them


@dataclass(frozen=True)
class Relay:
    """How a launch is cut, a constant of the kernel.

    problems  of a group, whose programs plan together: a power of two, 8 at most
    programs  of a group
    warps     of a program
    whole     every program computes the first hidden layer of the dynamics, and backward the last, which then is not
              handed on: of three layers or more
    """

    problems: int
    programs: int
    warps: int = 8
    whole: bool = False

    def blocks(self, horizon: int) -> int:
        """Blocks of eight rows that all steps of the problems make."""
        return -(-horizon * self.problems // ROWS)


def programs_of(networks: Mapping[str, Program], own: int = LEAST_OWN) -> int:
    """Of a group, with so many columns of the narrowest layer each."""
    return max(1, min(op.columns for net in networks.values() for op in net.operations[:-1]) // own)


def uncovered_by_relay(networks: Mapping[str, Program], swept: int) -> str | None:
    """None where the regime serves, else what it does not cover; through `swept` steps the costate is swept back."""
    if (why := beside_chains(networks)) is not None:
        return why
    if not swept and len(networks) == 1:
        return "a horizon of one step and no network but the dynamics, which then change nothing"
    for name, net in networks.items():
        if name != "score" and any(op.condition != "none" for op in net.operations):
            return f"the {name}'s conditioning"
        if net.operations[-1].norm_weight != NONE:
            return f"a norm in the {name}'s last layer"
        if max(net.columns, net.out_columns) > MOST_INPUTS:
            return f"{max(net.columns, net.out_columns)} inputs or outputs of the {name}; it goes to {MOST_INPUTS}"
        if (narrowest := min(op.columns for op in net.operations[:-1])) < 16 * Relay.warps:
            return f"the {name}'s padded width of {narrowest}, of which {Relay.warps} warps cannot share the depth"
    return None


def tile_by_tile(to: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Views to copy by: of a matrix for deep products, in tiles of 8 rows and 32 columns, each a load of a warp."""
    rows, depth = matrix.shape
    tiles = to.view(rows // 8, depth // 32, 8, 32)
    return tiles, matrix.unflatten(0, (rows // 8, 8)).unflatten(2, (depth // 32, 32)).transpose(1, 2)


def copies_for(net: Program, weights: Tensor, forward: Tensor, turned: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Views to copy by, (to, from): the packed weights, and where there is room their transposes, as products read them.

    The first layer's matrix and the transpose of the last one's, which shallow products read, lie row by row.
    """
    copies = []
    for i, op in enumerate(net.operations):
        place = slice(op.weight, op.weight + op.columns * op.inputs)
        w = weights[place].view(op.columns, op.inputs)
        copies.append((forward[place].view_as(w), w) if i == 0 else tile_by_tile(forward[place], w))
        if turned is not None:
            last = i == len(net.operations) - 1
            copies.append((turned[place].view_as(w.T), w.T) if last else tile_by_tile(turned[place], w.T))
    return copies


# Words: of a block of rows, layer by layer, `[rows, columns]` each. Private numbers of a program lie likewise.


@triton.constexpr_function
def words_before(net, i):
    """Words of a row in the hidden layers before layer i; with the number of hidden layers, in all of them."""
    return sum(op.columns for op in net.operations[:i]) // 2


def words_of(networks: Mapping[str, Program], horizon: int, relay: Relay, controls: int) -> dict[str, int]:
    """Words of a group by what they are, in the order in which they lie."""
    rows = {"dynamics": horizon * relay.problems, "cost": relay.blocks(horizon) * ROWS}
    rows |= {"score": rows["cost"], "terminal": ROWS}
    found = {}
    for name in ("dynamics", "cost", "score", "terminal"):
        net = networks.get(name)
        hidden = 0 if net is None else words_before(net, len(net.operations) - 1)
        found[name] = rows[name] * hidden
        if name != "score":
            found[f"{name}'s gradients"] = rows[name] * hidden
    return {**found, "controls": relay.problems * controls, "diverged": 4}


# Layouts.


@triton.constexpr_function
def together(rows, columns, warps):
    """Words that a thread reads one behind the other."""
    return max(1, min(2, rows * columns // (64 * warps)))


@triton.constexpr_function
def parts(rows, columns, warps):
    """Warps that share a row."""
    return max(1, min(warps // min(rows, warps), columns // (64 * together(rows, columns, warps))))


@triton.constexpr_function
def words(rows, columns, warps):
    """Of words as they are read, `[rows, columns / 2, 2]`: warps share out the rows first."""
    down = min(rows, warps)
    return gl.BlockedLayout([1, together(rows, columns, warps), 2], [1, 32, 1], [down, warps // down, 1], [2, 1, 0])


@triton.constexpr_function
def rows_of_words(rows, columns, warps):
    """Of their numbers, `[rows, columns]`: a word has a column and the eighth behind it, as threads have in products."""
    words = [[0, 1 << i if i < 3 else 2 << i] for i in range(columns.bit_length() - 2)]
    registers, words = [*words[: together(rows, columns, warps) - 1], [0, 8]], words[together(rows, columns, warps) - 1 :]
    lanes, words = words[:5], words[5:]
    down, count = min(rows, warps), parts(rows, columns, warps).bit_length() - 1
    of_warps, words = words[:count], words[count:]
    of_warps += [[0, 0]] * ((warps // down).bit_length() - 1 - count)
    of_warps += [[1 << i, 0] for i in range(down.bit_length() - 1)]
    registers += words + [[down << i, 0] for i in range((rows // down).bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, lanes, of_warps, [], [rows, columns])


@triton.constexpr_function
def some(rows, columns, warps):
    """Of `[rows, columns]` numbers that are no layer's."""
    down, across = min(rows, warps), min(32, columns)
    return gl.BlockedLayout([1, 1], [32 // across, across], [down, warps // down], [1, 0])


@triton.constexpr_function
def split_numbers(rows, columns, warps):
    """Of `[rows, columns]` numbers, each of which has a word of its own: `[rows, columns, 2]`."""
    down, across = min(rows, warps), min(32, columns)
    return gl.BlockedLayout([1, 1, 2], [32 // across, across, 1], [down, warps // down, 1], [2, 1, 0])


@triton.constexpr_function
def sums_of_warps(rows, columns, warps):
    """Of sums `[rows, parts]`, all of a row's in each of the threads that have the row."""
    count, down = parts(rows, columns, warps), min(rows, warps)
    registers = [[0, 1 << i] for i in range(count.bit_length() - 1)]
    registers += [[down << i, 0] for i in range((rows // down).bit_length() - 1)]
    of_warps = [[0, 0]] * ((warps // down).bit_length() - 1) + [[1 << i, 0] for i in range(down.bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, [[0, 0]] * 5, of_warps, [], [rows, count])


@triton.constexpr_function
def together_in_depth(depth, warps):
    """Numbers of an operand that a lane has one behind the other."""
    return min(8, depth // warps // 4)


@triton.constexpr_function
def chains(columns, depth, warps):
    """Sums that a warp has under way side by side, for an instruction waits for the sum that it adds to."""
    return max(1, min(64 // columns, depth // warps // (4 * together_in_depth(depth, warps))))


@triton.constexpr_function
def operand(rows, depth, warps):
    """Of an operand `[rows, depth]` that is read from memory: of weights, or of the eight rows of y."""
    lane, each = together_in_depth(depth, warps), depth // warps
    registers = [[0, 1 << i] for i in range(lane.bit_length() - 1)]
    registers += [[8 << i, 0] for i in range((rows // 8).bit_length() - 1)]
    registers += [[0, 4 * lane << i] for i in range((each // (4 * lane)).bit_length() - 1)]
    lanes = [[0, lane], [0, 2 * lane], [1, 0], [2, 0], [4, 0]]
    of_warps = [[0, each << i] for i in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, lanes, of_warps, [], [rows, depth])


@triton.constexpr_function
def deep_product(warps):
    """Of a product `[warps, columns, 8]` that the warps have divided."""
    return gl.NVMMADistributedLayout([2, 0], [warps, 1, 1], [1, 16, 8])


@triton.constexpr_function
def shallow_product(warps):
    """Of a product `[columns, 8]` that every warp computes."""
    return gl.NVMMADistributedLayout([2, 0], [1, warps], [16, 8])


@triton.constexpr_function
def whole_product(warps):
    """Of a product `[columns, 8]` whose columns the warps have divided."""
    return gl.NVMMADistributedLayout([2, 0], [warps, 1], [16, 8])


@triton.constexpr_function
def pairs(columns, warps):
    """Of such a product, with a word's numbers one behind the other."""
    registers = [[8, 0], [0, 1], *([16 << i, 0] for i in range((columns // 16).bit_length() - 1))]
    lanes = [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[0, 0]] * (warps.bit_length() - 1), [], [columns, 8])


@triton.constexpr_function
def words_of_pairs(columns, warps):
    """Of their words `[columns / 2, 8, 2]`."""
    registers = [[0, 0, 1], [0, 1, 0], *([8 << i, 0, 0] for i in range((columns // 16).bit_length() - 1))]
    lanes = [[0, 2, 0], [0, 4, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[0, 0, 0]] * (warps.bit_length() - 1), [], [columns // 2, 8, 2])


@triton.constexpr_function
def all_parts(columns, warps):
    """Of a product `[warps, columns, 8]`, what all warps have of a number in one thread, and a word's numbers."""
    registers = [[1 << i, 0, 0] for i in range(warps.bit_length() - 1)] + [[0, 8, 0]]
    tiles = [[0, 16 << i, 0] for i in range((columns // 16).bit_length() - 1)]
    count = warps.bit_length() - 2
    of_warps = [[0, 0, 4], *tiles[:count], *([[0, 0, 0]] * (count - len(tiles)))]
    lanes = [[0, 1, 0], [0, 2, 0], [0, 4, 0], [0, 0, 1], [0, 0, 2]]
    return gl.DistributedLinearLayout(registers + tiles[count:], lanes, of_warps, [], [warps, columns, 8])


@triton.constexpr_function
def columns_of_rows(columns, warps):
    """Of `[columns, 8]`: what becomes of such a product."""
    return gl.SliceLayout(0, all_parts(columns, warps))


@triton.constexpr_function
def words_of_columns(columns, warps):
    """Of their words `[columns / 2, 8, 2]`."""
    tiles = [[8 << i, 0, 0] for i in range((columns // 16).bit_length() - 1)]
    count = warps.bit_length() - 2
    of_warps = [[0, 4, 0], *tiles[:count], *([[0, 0, 0]] * (count - len(tiles)))]
    lanes = [[1, 0, 0], [2, 0, 0], [4, 0, 0], [0, 1, 0], [0, 2, 0]]
    return gl.DistributedLinearLayout([[0, 0, 1], *tiles[count:]], lanes, of_warps, [], [columns // 2, 8, 2])


@triton.constexpr_function
def threads_of(columns, warps):
    """That have all of these words."""
    return 32 * min(warps, columns // 8)


@triton.constexpr_function
def shared():
    """Of the operand `[8, depth]` in shared memory: lanes of neighbouring rows read from different banks."""
    return gl.SwizzledSharedLayout(32, 1, 8, [1, 0])


@triton.constexpr_function
def plain(rank):
    """Of shared memory, as it comes."""
    return gl.SwizzledSharedLayout(1, 1, 1, list(range(rank - 1, -1, -1)))
