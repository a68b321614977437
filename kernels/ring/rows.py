"""Rows of a program of the ring regime: their problems and steps, their states and controls, numbers of columns."""

# In device code a constant is what it holds, and a loop is the compiler's: neither is what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportInvalidTypeForm=false

import triton.language as tl

from ..gluon import gl, jit, opaque
from ..update import control_of


@jit
def rows_of(
    block, t, ROWS: tl.constexpr, STEPS: tl.constexpr, PLAN: tl.constexpr, COLUMNS: tl.constexpr, LAYOUT: tl.constexpr
):
    """Of each row: its problem, its step, from t on, and whether there is such a row; and the columns.

    Made anew wherever they are wanted: the layers between need the registers that they would be kept in.
    """
    T: tl.constexpr = PLAN[1]
    PROBLEMS: tl.constexpr = PLAN[2].problems
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT)) + opaque(block.zero)
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT)) + opaque(block.zero)
    problem, step = block.first + rows % PROBLEMS, t + rows // PROBLEMS
    return problem, step, (problem < block.total) & (rows < PROBLEMS * STEPS) & (step < T), cols


@jit
def place_of_row(problem, step, block, PLAN: tl.constexpr):
    """Which of the program's own rows a problem has at a step."""
    return step * PLAN[2].problems + (problem - block.first).to(gl.int32)


@jit
def inputs_of(
    at, search, problem, step, inside, cols, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr
):
    """(x, u) of each row's step, zeros elsewhere."""
    is_x = inside[:, None] & (cols < NX)[None, :]
    x = gl.load(at.x + (problem * (T + 1) + step)[:, None] * NX + cols[None, :], mask=is_x, other=0.0)
    return x + controls_of(search, problem, step, inside, cols, NX, NU, T, BOUNDING)


@jit
def controls_of(
    search, problem, step, inside, cols, NX: tl.constexpr, NU: tl.constexpr, T: tl.constexpr, BOUNDING: tl.constexpr
):
    """The controls of a step in the columns behind the state, zeros elsewhere."""
    mask = inside[:, None] & ((cols >= NX) & (cols < NX + NU))[None, :]
    at = cols[None, :] - NX
    v = gl.load(search.v + (problem * T + step)[:, None] * NU + at, mask=mask, other=0.0)
    if BOUNDING == "tanh":
        low = gl.load(search.low + problem[:, None] * NU + at, mask=mask, other=-1.0)
        high = gl.load(search.high + problem[:, None] * NU + at, mask=mask, other=1.0)
        v = gl.where(mask, control_of(v, low, high, BOUNDING), 0.0)
    return v


@jit
def normalised(z, model, cols, N: tl.constexpr):
    """z̄ = (z − b)·inv_k, of the first N columns."""
    return (z - row(model.b, cols, N)) * row(model.inv_k, cols, N)


@jit
def row(ptr, cols, N: tl.constexpr):
    """Numbers of the first columns, a row, and zeros in those behind them."""
    return gl.load(ptr + cols, mask=cols < N, other=0.0)[None, :]
