"""The ring of the ring regime: tiles of weights on their way through shared memory, and products with them.

How many there are and in which order they come is in `tiles`; `plan` says what for.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

from typing import Any, NamedTuple

import triton.language as tl

from ..gluon import (
    fence_async_shared,
    gl,
    jit,
    mbarrier,
    opaque,
    thread_barrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from .tiles import (
    depth_of,
    first_tile,
    numbers_of_tile,
    products,
    shared,
    sums,
    tiles_behind_rollout,
    tiles_of_operation,
)


class Weights(NamedTuple):
    """All tiles in memory, the slots that they pass through, and the barriers that say that they have arrived.

    passed  tiles that went through the ring in the iterations before
    more    whether an iteration follows
    steps   of the rollout
    """

    tiles: Any
    slots: Any
    ready: Any
    passed: Any
    more: Any
    steps: Any


@jit
def fetch(ring, m, slot, PLAN: tl.constexpr):
    """Begin to copy the m-th tile from this iteration's first on, if there is one, into its slot, which nothing reads."""
    at, there = tile_at(ring, m, PLAN)
    copy(ring, at, slot, there)


@jit
def pin(ring, at, there, PLAN: tl.constexpr):
    """Begin to copy what a sweep through the dynamics keeps, from the tile `at` on; nothing reads what the last one kept."""
    PINNED: tl.constexpr = PLAN[2].pinned
    IN_TURN: tl.constexpr = PLAN[2].in_turn
    for j in gl.static_range(PINNED):
        copy(ring, at + j, IN_TURN + j, there)


@jit
def copy(ring, at, slot, there):
    ready = ring.ready.index(slot)
    mbarrier.expect(ready, 2 * numbers_of_tile(), pred=there)
    tma.async_copy_global_to_shared(ring.tiles, [at * 256, 0], ready, ring.slots.index(slot), pred=there)


@jit
def tile_at(ring, m, PLAN: tl.constexpr):
    """Which tile is the m-th in turn from this iteration's first on, and whether there is one."""
    ENDS: tl.constexpr = PLAN[0]
    PINNED: tl.constexpr = PLAN[2].pinned
    A: tl.constexpr = ENDS[0]
    B: tl.constexpr = ENDS[1]
    C: tl.constexpr = ENDS[2]
    FORWARD: tl.constexpr = A - PINNED
    COSTS: tl.constexpr = max(1, C - B)  # a modulus, where there is none
    BACKWARD: tl.constexpr = ENDS[3] - C - PINNED
    ADJOINT: tl.constexpr = PLAN[3] * BACKWARD
    everything = tiles_of_iteration(ring.steps, PLAN)
    there = (m < everything) | ring.more
    m = gl.where(m < everything, m, m - everything)
    behind, of_adjoint = m - ring.steps * FORWARD, m - (everything - ADJOINT)
    at = gl.where(behind < 0, PINNED + m % FORWARD, B + (behind - (B - A)) % COSTS)
    if B > A:
        at = gl.where((behind >= 0) & (behind < B - A), A + behind, at)
    return gl.where(of_adjoint < 0, at, C + PINNED + of_adjoint % BACKWARD), there


@jit
def tiles_of_iteration(steps, PLAN: tl.constexpr):
    """That go through the ring, with so many steps of the rollout."""
    return steps * (PLAN[0][0] - PLAN[2].pinned) + tiles_behind_rollout(PLAN[0], PLAN[1], PLAN[3], PLAN[2])


@jit
def multiply(
    y, ring, n, net, NET: tl.constexpr, BACKWARD: tl.constexpr, AT: tl.constexpr, ROWS: tl.constexpr, PLAN: tl.constexpr,
    PINNED: tl.constexpr,
):  # fmt: skip
    """The product of y with operation AT, forward with its weights, backward with their transpose; n tiles came before it.

    Of the pass's first tiles some are PINNED, and the others come in turn. A slot is filled again when its tile's product is
    done in all warps, and the next tile's is under way.
    """
    OP: tl.constexpr = NET.operations[AT]
    COLUMNS: tl.constexpr = OP.inputs if BACKWARD else OP.columns
    DEPTH: tl.constexpr = depth_of(NET, BACKWARD, AT)
    TILES: tl.constexpr = tiles_of_operation(NET, BACKWARD, AT)
    FIRST: tl.constexpr = first_tile(NET, BACKWARD, AT)
    SLOTS: tl.constexpr = PLAN[2].in_turn
    LAYOUT: tl.constexpr = products(ROWS, COLUMNS, gl.num_warps())
    operand = _operand(y, net.zero, ROWS, DEPTH * TILES)
    unknown = opaque(net.zero)  # else the compiler holds where the slots are, in registers
    here = ring.passed + n + unknown
    acc = gl.zeros([ROWS, COLUMNS] if ROWS == 64 else [COLUMNS, ROWS], gl.float32, layout=LAYOUT)
    for k in gl.static_range(TILES):
        if FIRST + k < PINNED:
            mbarrier.wait(ring.ready.index(SLOTS + FIRST + k + unknown), 1 if BACKWARD else 0)
            tile = ring.slots.index(SLOTS + FIRST + k + unknown)
        else:
            mbarrier.wait(ring.ready.index(here % SLOTS), here // SLOTS & 1)
            tile = ring.slots.index(here % SLOTS)
        if BACKWARD:
            w = tile._reinterpret(y.dtype, [DEPTH, COLUMNS], shared()).permute((1, 0))
        else:
            w = tile._reinterpret(y.dtype, [COLUMNS, DEPTH], shared())
        a = operand.slice(k * DEPTH, DEPTH, dim=1)
        if ROWS == 64:
            acc = warpgroup_mma(a, w.permute((1, 0)), acc, use_acc=k > 0, is_async=True)
        else:
            acc = warpgroup_mma(w, a.permute((1, 0)), acc, use_acc=k > 0, is_async=True)
        if FIRST + k >= PINNED:
            acc = warpgroup_mma_wait(1, deps=[acc])
            thread_barrier()
            fetch(ring, n - 1 + SLOTS, (here - 1 + SLOTS) % SLOTS, PLAN)
            n += 1
            here += 1
    acc = warpgroup_mma_wait(0, deps=[acc])
    if ROWS < 64:
        acc = gl.convert_layout(acc.permute((1, 0)), sums(ROWS, COLUMNS, gl.num_warps()), assert_trivial=True)
    return acc, n


@jit
def hand_on(values, y, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write the operand of the next product, when the one before is done in all warps."""
    thread_barrier()
    _operand(y, zero, ROWS, COLUMNS).store(values.to(y.dtype))
    fence_async_shared()
    thread_barrier()


@jit
def _operand(y, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return y.index(opaque(zero))._reinterpret(y.dtype, [ROWS, COLUMNS], shared())
