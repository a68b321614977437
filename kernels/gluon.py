"""Gluon for the kernels that say where their numbers lie; under Triton's interpreter, a stand-in for what they use of it.

Gluon itself has no interpreter. Here layouts mean nothing, shared memory is an array, and a copy arrives when it is waited
for, not before: until then its target holds NaN, so that a wait which comes too late is seen.
"""

# Of two definitions one is taken, and to the type checker they are rivals.
# pyright: reportAssignmentType=false, reportRedeclaration=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import (
        async_copy,
        fence_async_shared,
        mma_v2,
        warpgroup_mma,
        warpgroup_mma_wait,
    )

    jit = gluon.jit
    thread_barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # its names in triton 3.6, and from 3.7 on

    @jit
    def opaque(x):
        """A number that the compiler knows nothing of: what is computed with it is not moved out of a loop."""
        return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)

    @jit
    def exp2(x):
        """2^x to 2e-7, where numbers below 1e-38 are zeros."""
        return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
else:
    import numpy as np
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    jit = triton.jit

    def _plain(value: Any) -> Any:
        return value.value if isinstance(value, tl.constexpr) else value

    class Shared:
        """Shared memory, or a view of it."""

        def __init__(self, data: Any, dtype: Any) -> None:
            self.data, self.dtype = data, dtype

        @property
        def shape(self) -> tuple[int, ...]:
            return self.data.shape

        def index(self, at: Any) -> Shared:
            return Shared(self.data[_number(at)], self.dtype)

        def slice(self, start: int, length: int, dim: int = 0) -> Shared:
            start, length = _plain(start), _plain(length)
            return Shared(self.data[:, start : start + length] if dim else self.data[start : start + length], self.dtype)

        def permute(self, order: Any) -> Shared:
            return Shared(self.data.transpose([_plain(o) for o in order]), self.dtype)

        def _reinterpret(self, dtype: Any, shape: Any, layout: Any) -> Shared:
            shape = [_plain(n) for n in shape]
            view = self.data.reshape(-1)[: int(np.prod(shape))].reshape(shape)
            assert np.shares_memory(view, self.data)
            return Shared(view, self.dtype)

        def load(self, layout: Any) -> Any:
            data = np.ascontiguousarray(self.data)
            return tl.core.tensor(TensorHandle(data, tl.float32), tl.block_type(tl.float32, list(data.shape)))

        def store(self, value: Any) -> None:
            self.data[...] = value.to(self.dtype).to(tl.float32).handle.data

    def _number(value: Any) -> int:
        return int(value.handle.data.item()) if isinstance(value, tl.core.tensor) else int(_plain(value))

    class gl:  # noqa: N801
        """`gluon.language`, without layouts."""

        constexpr, float32, int32, int64 = tl.constexpr, tl.float32, tl.int32, tl.int64

        @staticmethod
        def static_range(*ends: Any) -> Any:
            return tl.static_range(*ends)

        @staticmethod
        def arange(start: int, end: int, layout: Any = None) -> Any:
            return tl.arange(start, end)

        @staticmethod
        def load(pointer: Any, mask: Any = None, other: Any = None) -> Any:
            return tl.load(pointer, mask=mask, other=other)

        @staticmethod
        def store(pointer: Any, value: Any, mask: Any = None) -> None:
            tl.store(pointer, value, mask=mask)

        @staticmethod
        def zeros(shape: Any, dtype: Any, layout: Any = None) -> Any:
            return tl.zeros([_plain(n) for n in shape], _plain(dtype))

        @staticmethod
        def where(condition: Any, x: Any, y: Any) -> Any:
            return tl.where(condition, x, y)

        @staticmethod
        def reduce(pair: Any, axis: int, combine: Any) -> Any:
            """Of a pair, by addition: the interpreter would combine number by number."""
            return tuple(tl.sum(x, axis) for x in pair)

        @staticmethod
        def sum(x: Any, axis: int) -> Any:
            return tl.sum(x, axis)

        @staticmethod
        def program_id(axis: int) -> Any:
            return tl.program_id(axis)

        @staticmethod
        def convert_layout(x: Any, layout: Any) -> Any:
            return x

        @staticmethod
        def num_warps() -> int:
            return 8

        @staticmethod
        def allocate_shared_memory(dtype: Any, shape: Any, layout: Any) -> Shared:
            return Shared(np.full([_plain(n) for n in shape], np.nan, np.float32), _plain(dtype))

        @staticmethod
        def _layout(*args: Any, **kwargs: Any) -> None:
            return None

        SliceLayout = BlockedLayout = DotOperandLayout = NVMMADistributedLayout = NVMMASharedLayout = _layout
        SwizzledSharedLayout = _layout

    class async_copy:  # noqa: N801
        """Copies in groups, which arrive in order."""

        _open: list[Any] = []  # noqa: RUF012
        _groups: list[list[Any]] = []  # noqa: RUF012

        @classmethod
        def async_copy_global_to_shared(cls, smem: Shared, pointer: Any) -> None:
            value = tl.load(pointer)
            smem.data[...] = np.nan
            cls._open.append((smem, value))

        @classmethod
        def commit_group(cls) -> None:
            cls._groups.append(cls._open)
            cls._open = []

        @classmethod
        def wait_group(cls, num_outstanding: int = 0) -> None:
            while len(cls._groups) > _plain(num_outstanding):
                for smem, value in cls._groups.pop(0):
                    smem.store(value)

    def opaque(x: Any) -> Any:
        return x

    def exp2(x: Any) -> Any:
        return tl.exp2(x)

    def thread_barrier() -> None:
        pass

    def fence_async_shared() -> None:
        pass

    def mma_v2(a: Any, b: Any, acc: Any) -> Any:
        return tl.dot(a, b, acc, input_precision="ieee")

    def warpgroup_mma(a: Shared, b: Shared, acc: Any, is_async: bool = False) -> Any:
        return tl.dot(a.load(None), b.load(None), acc, input_precision="ieee")

    def warpgroup_mma_wait(num_outstanding: int, deps: Any) -> Any:
        return deps[0]
