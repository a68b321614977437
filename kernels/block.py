"""What kernels do with the rows that a program owns, beside layers: vectors, normalised inputs, a tile of z set aside.

`owner` is a NamedTuple whose `zero` points at a zero (see `layers.columns_of`).
"""

# In device code a constant is what it holds: it is not what its annotation says.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false

import triton
import triton.language as tl

from .layers import columns_of, load_rows, store_rows


@triton.jit
def vector(ptr, owner, COLUMNS: tl.constexpr):
    """The vector at `ptr`, a row `[1, COLUMNS]`."""
    return tl.load(ptr + columns_of(owner, COLUMNS))[None, :]


@triton.jit
def normalised(z, model, owner):
    """z̄ = (z − b)·inv_k."""
    COLUMNS: tl.constexpr = z.shape[1]
    return (z - vector(model.b, owner, COLUMNS)) * vector(model.inv_k, owner, COLUMNS)


@triton.jit
def park(ptr, values, owner, TILE: tl.constexpr):
    """Set a tile of z aside while a network has the registers; a barrier has to lie before `parked`."""
    COLUMNS: tl.constexpr = values.shape[1]
    tl.debug_barrier()  # what lay there before may still be read
    store_rows(owner, ptr, values, columns_of(owner, COLUMNS), COLUMNS, TILE)


@triton.jit
def parked(ptr, owner, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """What was set aside, `[BLOCK_B, COLUMNS]`."""
    return load_rows(owner, ptr, columns_of(owner, COLUMNS), COLUMNS, TILE)
