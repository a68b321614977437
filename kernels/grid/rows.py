"""What the items of the grid regime read and write beside layers: states, controls, costates, quadratic and traced costs.

    x_t = x_{t−1} + scale ⊙ net(z̄_{t−1})          λ_t = ∂_x c_t − β s_x + (∂_x f_t)ᵀ λ_{t+1}

Both are computed by every item that reads them, from the hidden layers that an earlier phase left: see `phases.py`.
"""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..block import vector
from ..function import function_cost
from ..layers import columns_of
from ..update import control_of
from .slices import Net, chunks_of, input_gradient, output, width_of


class Rows(NamedTuple):
    """Rows of an item: their places in a network's scratch, the problems and the steps they belong to, and which exist.

    `zero` points at a zero: see `layers.columns_of`.
    """

    place: Any
    problem: Any
    step: Any
    inside: Any
    zero: Any


@triton.jit
def rows_at(block, t, total, rows_total, zero_ptr, PLACED_BY_STEP: tl.constexpr, TILE: tl.constexpr):
    """The rows of a block among `total` that begin at step t.

    Divided in int32, for there are few, and then in int64: they are to be multiplied by strides. PLACED_BY_STEP says that
    the scratch holds them behind those of earlier steps.
    """
    BLOCK_B: tl.constexpr = TILE.block_b
    local = block * BLOCK_B + tl.arange(0, BLOCK_B) + tl.load(zero_ptr)
    step = local // rows_total
    problem = (local - step * rows_total).to(tl.int64)
    place = local.to(tl.int64)
    if PLACED_BY_STEP:
        place += t * rows_total
    return Rows(place, problem, t + step, local < total, zero_ptr)


@triton.jit
def chunk_of(item, zero_ptr, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """Which chunk of a layer's columns an item has, and these columns."""
    WIDTH: tl.constexpr = width_of(COLUMNS, TILE)
    chunk = item % chunks_of(COLUMNS, TILE)
    return chunk, chunk * WIDTH + tl.arange(0, WIDTH) + tl.load(zero_ptr) * 16


@triton.jit
def states(
    t, dynamics, scale_ptr, at, scratch, zero_ptr, rows, rows_total, DYNAMICS: tl.constexpr, LAYOUT: tl.constexpr,
    TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr,
):  # fmt: skip
    """`x_t = x_{t−1} + scale ⊙ net(z̄_{t−1})` `[BLOCK_B, columns]`, from what step t − 1 left; x_0 where t = 0."""
    COLUMNS: tl.constexpr = DYNAMICS.columns
    AT: tl.constexpr = LAYOUT.dynamics
    x = load_states(at.x0, rows, 0, NX, 1, COLUMNS)
    if t > 0:
        net = Net(dynamics.weights, dynamics.vectors, dynamics.vectors, scratch.dynamics, rows_total * T, zero_ptr)
        out = output(net, rows.place - rows_total, rows.inside, DYNAMICS, AT, TILE)
        x = load_states(at.x, rows, t - 1, NX, T + 1, COLUMNS) + vector(scale_ptr, rows, COLUMNS) * out
    return x


@triton.jit
def costate_of(
    t, keeps, dynamics, at, search, scratch, zero_ptr, rows, rows_total, DYNAMICS: tl.constexpr, LAYOUT: tl.constexpr,
    TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr, NU: tl.constexpr,
):  # fmt: skip
    """λ_t `[BLOCK_B, columns]`, from what the sweep over step t left; who `keeps` it writes it, and the gradient g_t.

    Through the last step nothing is swept where no cost is of x_T: λ_{T−1} is what the costs of that step pull.
    """
    COLUMNS: tl.constexpr = DYNAMICS.columns
    AT: tl.constexpr = LAYOUT.dynamics
    cols = columns_of(rows, COLUMNS)[None, :]
    net = Net(dynamics.weights, dynamics.vectors, dynamics.vectors, scratch.dynamics, rows_total * T, zero_ptr)
    place = rows.problem + t * rows_total
    pull = scratch.pull + place[:, None] * COLUMNS + cols
    grad = tl.load(pull, mask=rows.inside[:, None], other=0.0, cache_modifier=".cg")
    SWEPT: tl.constexpr = LAYOUT.swept
    if t < SWEPT:
        grad += vector(dynamics.inv_k, rows, COLUMNS) * input_gradient(net, place, rows.inside, DYNAMICS, AT, TILE)
        grad += load_states(at.costate, rows, t + 1, NX, T + 1, COLUMNS)
    if keeps:
        store_states(at.costate, grad, rows, t, NX, T + 1)
        mask = rows.inside[:, None] & ((cols >= NX) & (cols < NX + NU))
        tl.store(search.grad_u + (rows.problem * T + t)[:, None] * NU + cols - NX, grad, mask=mask)
    return tl.where(cols < NX, grad, 0.0)


@triton.jit
def inputs(
    at, search, rows, cols, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr
):
    """z = (x, u) in the columns `cols`, each row of its own step; at step T the state alone."""
    mask = rows.inside[:, None] & (cols < NX)[None, :]
    place = at.x + (rows.problem * (T + 1) + rows.step)[:, None] * NX + cols[None, :]
    x = tl.load(place, mask=mask, other=0.0, cache_modifier=".cg")
    return x + controls(search, rows, cols, NX, NU, T, BOUNDING)


@triton.jit
def controls(
    search, rows, cols, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr
):
    """The controls of each row's step in the columns behind the state, zeros elsewhere and at step T."""
    cols = cols - NX
    mask = (rows.inside & (rows.step < T))[:, None] & ((cols >= 0) & (cols < NU))[None, :]
    place = search.v + (rows.problem * T + rows.step)[:, None] * NU + cols[None, :]
    v = tl.load(place, mask=mask, other=0.0, cache_modifier=".cg")
    if BOUNDING == "tanh":
        limit = rows.problem[:, None] * NU + cols[None, :]
        low = tl.load(search.low + limit, mask=mask, other=-1.0)
        high = tl.load(search.high + limit, mask=mask, other=1.0)
        v = tl.where(mask, control_of(v, low, high, BOUNDING), 0.0)
    return v


@triton.jit
def load_states(ptr, rows, t, N: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Step t of `[problems, STEPS, N]` in the first N columns, zeros elsewhere."""
    cols = columns_of(rows, COLUMNS)[None, :]
    place = ptr + (rows.problem * STEPS + t)[:, None] * N + cols
    return tl.load(place, mask=rows.inside[:, None] & (cols < N), other=0.0, cache_modifier=".cg")


@triton.jit
def store_states(ptr, values, rows, t, N: tl.constexpr, STEPS: tl.constexpr):
    COLUMNS: tl.constexpr = values.shape[1]
    cols = columns_of(rows, COLUMNS)[None, :]
    place = ptr + (rows.problem * STEPS + t)[:, None] * N + cols
    tl.store(place, values, mask=rows.inside[:, None] & (cols < N))


@triton.jit
def quadratic(
    z, matrix, goal, own_goal, at, search, rows, TILE: tl.constexpr, T: tl.constexpr, NX: tl.constexpr,
    NU: tl.constexpr, BOUNDING: tl.constexpr,
):  # fmt: skip
    """`½ dᵀ S d` `[BLOCK_B]` and its gradient `S d`, d = z − goal, in float32 whatever the networks' products are in.

    d is read again, some columns at a time.
    """
    COLUMNS: tl.constexpr = z.shape[1]
    BLOCK_B: tl.constexpr = TILE.block_b
    cols = columns_of(rows, COLUMNS)
    grad = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
    for k0 in tl.range(0, COLUMNS, 16, num_stages=1):
        k = k0 + columns_of(rows, 16)
        d = inputs(at, search, rows, k, NX, NU, T, BOUNDING) - _goal(goal, own_goal, rows, k, NX)
        part = tl.load(matrix + k[:, None] * COLUMNS + cols[None, :])
        if BLOCK_B == 1:
            grad += tl.sum(tl.reshape(d, (16, 1)) * part, 0)[None, :]
        else:
            grad = tl.dot(d, part, grad, input_precision="ieee")
    d = z - _goal(goal, own_goal, rows, cols, NX)
    return 0.5 * tl.sum(d * grad, 1), grad


@triton.jit
def traced(z, goal, params, scratch, rows, FUNCTION: tl.constexpr, NX: tl.constexpr, PARAMS: tl.constexpr):
    """The value `[BLOCK_B]` of a traced cost and its gradient in z; a row is read from the scratch, number by number."""
    COLUMNS: tl.constexpr = z.shape[1]
    cols, mask, at = columns_of(rows, COLUMNS)[None, :], rows.inside[:, None], rows.place * COLUMNS
    tl.debug_barrier()  # the iteration before may still read them
    tl.store(scratch.form + at[:, None] + cols, z, mask=mask)
    tl.store(scratch.pull + at[:, None] + cols, tl.zeros_like(z), mask=mask)
    tl.debug_barrier()
    value = function_cost(
        scratch.form + at, goal, params, rows.problem, rows.step, scratch.pull + at, rows.inside, FUNCTION, NX, PARAMS
    )
    tl.debug_barrier()
    return value, tl.load(scratch.pull + at[:, None] + cols, mask=mask, other=0.0)


@triton.jit
def _goal(goal, own_goal, rows, cols, NX: tl.constexpr):
    """Each problem's goal, or the cost's own, in the columns `cols`."""
    if goal is None:
        return tl.load(own_goal + cols)[None, :]
    else:
        mask = rows.inside[:, None] & (cols < NX)[None, :]
        return tl.load(goal + rows.problem[:, None] * NX + cols[None, :], mask=mask, other=0.0)


@triton.jit
def first_column(values):
    first = (tl.arange(0, values.shape[1]) == 0)[None, :]
    return tl.sum(tl.where(first, values, 0.0), 1)
