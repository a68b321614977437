"""Gluon for the kernels that say where their numbers lie; under Triton's interpreter, what stands in for it there."""

# Of two definitions one is taken, and to the type checker they are rivals.
# pyright: reportAssignmentType=false, reportRedeclaration=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "INTERPRETED", "described", "exp2", "fence_async_shared", "gl", "jit", "mbarrier", "mma_v2", "opaque", "product",
    "thread_barrier", "tma", "warpgroup_mma", "warpgroup_mma_wait",
]  # fmt: skip

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.ampere import mma_v2
    from triton.experimental.gluon.language.nvidia.hopper import (
        fence_async_shared,
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    jit = gluon.jit
    thread_barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # its names in triton 3.6, and from 3.7 on

    def described(tensor: Any, rows: int) -> TensorDescriptor:
        """A matrix of 64 columns for `tma`, which copies so many of its rows."""
        return TensorDescriptor.from_tensor(tensor, [rows, 64], gl.NVMMASharedLayout(128, 16, rank=2))

    @jit
    def opaque(x):
        """A number that the compiler knows nothing of: what is computed with it is not moved out of a loop."""
        return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)

    @jit
    def exp2(x):
        """2^x to 2e-7, where numbers below 1e-38 are zeros."""
        return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)

    @jit
    def product(x, y):
        """x · y, rounded before anything is added: two threads that add each other's then get the same sum."""
        return gl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], dtype=gl.float32, is_pure=True, pack=1)
else:
    from .gluon_interpreted import (
        described,
        exp2,
        fence_async_shared,
        gl,
        jit,
        mbarrier,
        mma_v2,
        opaque,
        product,
        thread_barrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )
