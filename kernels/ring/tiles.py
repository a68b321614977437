"""How the ring regime divides its work: problems of a program, tiles of weights in their order, places in shared memory.

A tile of weights is as deep as a slot of the ring holds at its width. Tiles lie in memory one behind the other, in the order
in which an evaluation multiplies them, and each as it lies in shared memory: in blocks of 64 columns.

    rollout   dynamics                    forward                          T times, or T − 1 where x_T is not wanted
    end       terminal, terminal          forward, backward                once, if a network is the cost of x_T
    costs     cost, cost, score           forward, backward, forward       as often as `Ring.steps` go into T
    adjoint   dynamics                    backward                         T times, or T − 1 where no cost is of x_T

A pass multiplies the tiles of a network's operations one after the other, forward from the first, backward from the last.
"""

# To the type checker, a constexpr function gives a constant.
# pyright: reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from ..gluon import gl, mbarrier
from ..packing import NONE, Program, beside_chains

WIDEST, LEAST = 256, 64
SHARED = 227 << 10  # bytes of a program
MOST_SLOTS, MOST_WARPS = 6, 16


@dataclass(frozen=True)
class Ring:
    """How a program is cut, a constant of the kernel.

    problems  of a program
    few       rows of a step's products: the problems, 8 at least
    many      rows of the products of cost and score, many steps at once
    slots     for tiles
    warps     of a program
    pinned    slots for tiles of the dynamics that stay for all steps of a sweep; the others are the ring
    """

    problems: int
    few: int
    many: int
    slots: int
    warps: int = 8
    pinned: int = 0

    @property
    def in_turn(self) -> int:
        """Slots of the ring."""
        return self.slots - self.pinned

    @property
    def steps(self) -> int:
        """Of a problem, in the rows of cost and score."""
        return self.many // self.problems


def ring_of(
    problems: int, horizon: int, networks: Mapping[str, Program], swept: int, warps: int = 8, pinned: int = 0
) -> Ring:
    """The cut for programs of so many problems, a power of two up to 64, whose costate is swept back through `swept` steps.

    It has as many slots as fit, but for one more than the tiles of an iteration, and up to so many of them pinned. At least
    two slots are left to the ring, and a tile of the dynamics to go through it.
    """
    few = max(8, problems)
    many = min(64, max(8, 1 << (problems * horizon - 1).bit_length()))
    slots = min(MOST_SLOTS, (SHARED - _beside(max(few, many), networks, warps)) // (2 * numbers_of_tile()))
    parts = {name: widened(net) for name, net in networks.items()}
    dynamics = parts["dynamics"]
    tiles = min(first_tile(dynamics, backward, NONE) for backward in (False, True))
    pinned = max(0, min(pinned, slots - 2, tiles - 1)) if horizon > 1 else 0
    cut = Ring(problems, few, many, slots, warps, pinned)
    behind = ends(dynamics, *(parts.get(name) for name in ("score", "cost", "terminal")))
    turns = max(1, horizon - 1) * (behind[0] - pinned) + tiles_behind_rollout(behind, horizon, swept, cut)
    return replace(cut, slots=min(slots, pinned + turns + 1))


def _beside(rows: int, networks: Mapping[str, Program], warps: int) -> int:
    """Bytes of shared memory beside the slots: the operand, all networks' vectors, and what sums of rows go through."""
    vectors: int = sum(place_of(net, len(net.operations), "") for net in networks.values())
    sums_of_warps = 128 * warps + 8 * min(rows, 32) * warps
    return 2 * rows * WIDEST + 4 * WIDEST * vectors + sums_of_warps + 128  # the last for barriers, and to align


def uncovered_by_ring(networks: Mapping[str, Program]) -> str | None:
    """None where the regime serves, else what it does not cover."""
    if (why := beside_chains(networks)) is not None:
        return why
    for name, net in networks.items():
        if net.widest > WIDEST:
            return f"the {name}'s padded width of {net.widest}; it goes to {WIDEST}"
    if ring_of(64, 1, networks, 1, MOST_WARPS).slots < 2:
        layers = sum(len(net.operations) for net in networks.values())
        return f"networks of {layers} layers together, whose vectors fill shared memory"
    return None


def widened(net: Program) -> Program:
    """The network with widths of 64 and more, which products of tiles want; its vectors stay as they are."""
    saved, operations = 0, []
    for op in net.operations:
        inputs, columns = max(LEAST, op.inputs), max(LEAST, op.columns)
        operations.append(replace(op, inputs=inputs, columns=columns, saved=NONE if op.saved == NONE else saved))
        saved += 0 if op.saved == NONE else columns
    entry = replace(net.entry, inputs=max(LEAST, net.columns), columns=max(LEAST, net.columns))
    return replace(net, entry=entry, operations=tuple(operations), saved=saved)


# Tiles of weights. Networks are widened here.


@triton.constexpr_function
def numbers_of_tile():
    """Of weights, and so of a slot: 256 rows of 64."""
    return 256 * 64


@triton.constexpr_function
def tiles_of_operation(net, backward, i):
    op = net.operations[i]
    depth, columns = (op.columns, op.inputs) if backward else (op.inputs, op.columns)
    return -(-depth * columns // numbers_of_tile())


@triton.constexpr_function
def depth_of(net, backward, i):
    """Of an operation's tiles."""
    op = net.operations[i]
    return (op.columns if backward else op.inputs) // tiles_of_operation(net, backward, i)


@triton.constexpr_function
def first_tile(net, backward, i):
    """The number of an operation's first tile in a pass; with i = −1, of how many tiles the pass is."""
    order = list(range(len(net.operations)))
    before = order if i < 0 else order[i + 1 :] if backward else order[:i]
    return sum(tiles_of_operation(net, backward, j) for j in before)


@triton.constexpr_function
def ends(dynamics, score, cost, terminal):
    """The number of the first tile behind the rollout, behind the terminal cost, behind the costs and behind the adjoint."""
    found = [0]
    for passes in _passes(dynamics, score, cost, terminal):
        found.append(found[-1] + sum(first_tile(net, backward, -1) for net, backward in passes))
    return tuple(found[1:])


@triton.constexpr_function
def tiles_behind_rollout(ends, horizon, swept, ring):
    """That go through the ring in an iteration."""
    costs = -(-horizon // ring.steps) * (ends[2] - ends[1])
    return ends[1] - ends[0] + costs + swept * (ends[3] - ends[2] - ring.pinned)


@triton.constexpr_function
def _passes(dynamics, score, cost, terminal):
    costs = [(cost, False), (cost, True), (score, False)]
    passes = [(dynamics, False)], [(terminal, False), (terminal, True)], costs, [(dynamics, True)]
    return tuple([(net, backward) for net, backward in each if net is not None] for each in passes)


def tiles_for(networks: Mapping[str, Program], weights: Mapping[str, Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Memory for all tiles, `[rows, 64]` of zeros, and the copies that fill it from the packed weights, as (to, from)."""
    found = {name: widened(net) for name, net in networks.items()}
    parts = [found.get(name) for name in ("dynamics", "score", "cost", "terminal")]
    some = weights["dynamics"]
    made = torch.zeros(ends(*parts)[-1] * numbers_of_tile() // 64, 64, dtype=some.dtype, device=some.device)
    names, copies, at = {id(net): name for name, net in found.items()}, [], 0
    for net, backward in (each for passes in _passes(*parts) for each in passes):
        name = names[id(net)]
        order = range(len(net.operations))
        for i in reversed(order) if backward else order:
            op, packed, n = net.operations[i], networks[name].operations[i], tiles_of_operation(net, backward, i)
            w = weights[name][packed.weight :][: packed.columns * packed.inputs].view(packed.columns, packed.inputs)
            copies.append(_copy(made.view(-1)[at:], w, op.columns, op.inputs, n if backward else 1))
            at += n * numbers_of_tile()
    return made, copies


def _copy(to: Tensor, w: Tensor, columns: int, inputs: int, parts: int) -> tuple[Tensor, Tensor]:
    """Of a matrix `w` widened to `[columns, inputs]`: cut into parts of its rows, and these into blocks of 64 columns."""
    rows, across = columns // parts, min(64, w.shape[1])
    place = to[: columns * inputs].view(parts, inputs // 64, rows, 64)
    blocks = w.view(parts, w.shape[0] // parts, -1, across).transpose(1, 2)
    return place[:, :, : blocks.shape[2], :across], blocks


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
    """Of a product `[rows, columns]`, and of all that is done with it: of fewer than 64 rows the transpose of `products`."""
    if rows == 64:
        return products(rows, columns, warps)
    registers = [[1, 0], [0, 8], *([1 << i, 0] for i in range(3, rows.bit_length() - 1))]
    registers += [[0, 16 * warps << i] for i in range((columns // (16 * warps)).bit_length() - 1)]
    lanes = [[2, 0], [4, 0], [0, 1], [0, 2], [0, 4]]
    of_warps = [[0, 16 << i if 16 << i < columns else 0] for i in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, lanes, of_warps, [], [rows, columns])


@triton.constexpr_function
def parts(rows, warps):
    """Of each warp's sums, `[rows, warps]`: all warps' in one thread, and rows where `sums` has them."""
    registers = [[0, 1 << i] for i in range(warps.bit_length() - 1)]
    registers += [[1, 0], *([1 << i, 0] for i in range(3, rows.bit_length() - 1))]
    lanes = [[2, 0], [4, 0], [0, 0], [0, 0], [0, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[0, 0]] * (warps.bit_length() - 1), [], [rows, warps])


@triton.constexpr_function
def products(rows, columns, warps):
    """Of a product as it is computed: of fewer than 64 rows `[columns, rows]`, for 64 are the least on the left."""
    if rows == 64:
        return gl.NVMMADistributedLayout([3, 0], [4, warps // 4], [16, max(8, columns // (warps // 4)), 16])
    return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, rows, 16])


@triton.constexpr_function
def shared():
    """Of a matrix in shared memory, in blocks of 64 columns, as products read it."""
    return gl.NVMMASharedLayout(128, 16, rank=2)


@triton.constexpr_function
def barriers():
    """Of barriers in shared memory."""
    return mbarrier.MBarrierLayout()


@triton.constexpr_function
def controls(numbers, warps):
    """Of so many controls of all problems, `[problems, numbers]`."""
    across = min(32, numbers)
    return gl.BlockedLayout([1, 1], [32 // across, across], [warps, 1], [1, 0])
