"""What stands in for Gluon under Triton's interpreter, as far as our kernels use it: Gluon itself has no interpreter.

Layouts mean nothing here, and shared memory is an array. What is asynchronous happens when it is waited for, not before:
until then a copy's target holds NaN, and a product has read nothing, so that a wait which comes too late is seen. A wait for
what nothing completes raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

jit = triton.jit


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value


class Shared:
    """Shared memory, or a part of it."""

    def __init__(self, data: Any, dtype: Any) -> None:
        self.data, self.dtype = data, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def index(self, at: Any) -> Shared:
        return Shared(self.data[_number(at)], self.dtype)

    def slice(self, start: int, length: int, dim: int = 0) -> Shared:
        assert dim == 0
        return Shared(self.data[_plain(start) : _plain(start) + _plain(length)], self.dtype)

    def _reinterpret(self, dtype: Any, shape: Any, layout: Any) -> Shared:
        rows, columns = (_plain(n) for n in shape)
        numbers = self.data.reshape(-1)[: rows * columns]
        assert np.shares_memory(numbers, self.data)
        if layout == gl.NVMMASharedLayout():
            return Matrix(numbers.reshape(columns // 64, rows, 64), self.dtype)
        return Shared(numbers.reshape(rows, columns), self.dtype)

    def load(self, layout: Any) -> Any:
        data = np.ascontiguousarray(self._values())
        return tl.core.tensor(TensorHandle(data, tl.float32), tl.block_type(tl.float32, list(data.shape)))

    def store(self, value: Any) -> None:
        self._values()[...] = value.to(self.dtype).to(tl.float32).handle.data

    def _values(self) -> Any:
        return self.data


class Matrix(Shared):
    """A matrix as products read it, `data` in blocks of 64 columns `[blocks, rows, 64]`; or its transpose."""

    def __init__(self, data: Any, dtype: Any, transposed: bool = False) -> None:
        super().__init__(data, dtype)
        self.transposed = transposed

    def slice(self, start: int, length: int, dim: int = 0) -> Matrix:
        first, last = _plain(start) // 64, (_plain(start) + _plain(length)) // 64
        assert dim == 1 and not self.transposed
        return Matrix(self.data[first:last], self.dtype)

    def permute(self, order: Any) -> Matrix:
        return Matrix(self.data, self.dtype, not self.transposed)

    def store(self, value: Any) -> None:
        values = value.to(self.dtype).to(tl.float32).handle.data
        self.data[...] = values.reshape(len(values), -1, 64).transpose(1, 0, 2)

    def _values(self) -> Any:
        blocks, rows, columns = self.data.shape
        values = self.data.transpose(1, 0, 2).reshape(rows, blocks * columns)
        return values.T if self.transposed else values


def _number(value: Any) -> int:
    return int(value.handle.data.item()) if isinstance(value, tl.core.tensor) else int(_plain(value))


class gl:  # noqa: N801
    """`gluon.language`, without layouts."""

    float32, int32, int64 = tl.float32, tl.int32, tl.int64

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
    def convert_layout(x: Any, layout: Any, assert_trivial: bool = False) -> Any:
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

    @staticmethod
    def NVMMASharedLayout(*args: Any, **kwargs: Any) -> str:  # noqa: N802
        return "blocks of 64 columns"

    SliceLayout = BlockedLayout = DistributedLinearLayout = DotOperandLayout = NVMMADistributedLayout = _layout
    SwizzledSharedLayout = _layout


class Described:
    """A tensor, and how many of its rows are copied at once."""

    def __init__(self, tensor: Any, rows: int) -> None:
        self.tensor, self.rows = tensor, rows
        self.dtype = tl.bfloat16 if tensor.dtype == torch.bfloat16 else tl.float16


def described(tensor: Any, rows: int) -> Described:
    return Described(tensor, rows)


class mbarrier:  # noqa: N801
    """By a barrier's address: how often it was completed, the bytes that it expects, and the copies on their way."""

    _of: dict[int, Any] = {}  # noqa: RUF012

    @staticmethod
    def MBarrierLayout() -> None:  # noqa: N802
        return None

    @classmethod
    def init(cls, barrier: Shared, count: int) -> None:
        if cls._of.get(_address(barrier), {}).get("copies"):
            raise RuntimeError("a program has ended with copies on their way")
        cls._of[_address(barrier)] = {"completed": 0, "bytes": 0, "copies": []}

    @classmethod
    def expect(cls, barrier: Shared, size: Any, pred: Any = True) -> None:
        if _number(pred):
            cls._of[_address(barrier)]["bytes"] += _plain(size)

    @classmethod
    def wait(cls, barrier: Shared, parity: Any) -> None:
        state = cls._of[_address(barrier)]
        if state["completed"] % 2 != _number(parity):
            return
        if not state["bytes"] or state["bytes"] != sum(2 * smem.data.size for smem, _ in state["copies"]):
            raise RuntimeError(f"a wait without end: {state['bytes']} bytes expected of {len(state['copies'])} copies")
        for smem, value in state["copies"]:
            smem.data[...] = value
        state.update(completed=state["completed"] + 1, bytes=0, copies=[])


def _address(smem: Shared) -> int:
    return smem.data.__array_interface__["data"][0]


class tma:  # noqa: N801
    """Copies that complete a barrier."""

    @staticmethod
    def async_copy_global_to_shared(source: Described, at: Any, barrier: Shared, smem: Shared, pred: Any = True) -> None:
        if _number(pred):
            first = _number(at[0])
            value = source.tensor[first : first + source.rows].float().cpu().numpy()
            assert value.shape == smem.shape, "a copy beyond the end of its source"
            smem.data[...] = np.nan
            mbarrier._of[_address(barrier)]["copies"].append((smem, value.copy()))


def opaque(x: Any) -> Any:
    return x


def exp2(x: Any) -> Any:
    return tl.exp2(x)


def product(x: Any, y: Any) -> Any:
    return x * y


def thread_barrier() -> None:
    pass


def fence_async_shared() -> None:
    pass


class _Product:
    """A product under way: `acc` is what it is added to, a tensor or another one."""

    def __init__(self, a: Shared, b: Shared, acc: Any) -> None:
        self.a, self.b, self.acc = a, b, acc

    def done(self, outstanding: int = 0) -> Any:
        """The sum, or the product under way with all but so many of those before it done."""
        if outstanding:
            acc = self.acc.done(outstanding - 1) if isinstance(self.acc, _Product) else self.acc
            return _Product(self.a, self.b, acc)
        acc = self.acc.done() if isinstance(self.acc, _Product) else self.acc
        return tl.dot(self.a.load(None), self.b.load(None), acc, input_precision="ieee")


def warpgroup_mma(a: Shared, b: Shared, acc: Any, use_acc: bool = True, is_async: bool = False) -> Any:
    return _Product(a, b, acc if use_acc else acc * 0.0)


def warpgroup_mma_wait(num_outstanding: int, deps: Any) -> Any:
    return deps[0].done(_plain(num_outstanding)) if isinstance(deps[0], _Product) else deps[0]


def mma_v2(a: Any, b: Any, acc: Any) -> Any:
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")


def publish(at: Any, half: Any, values: Any, stamp: Any, there: Any, threads: Any) -> None:
    """`relay.exchange.publish`: the half of each word."""
    bits = (values.to(tl.int32, bitcast=True) & -256) | _mark(half, stamp)
    tl.store(at.to(tl.pointer_type(tl.int32)) + half, bits, mask=there)


def peek(at: Any, half: Any, TOGETHER: Any) -> Any:  # noqa: N803
    """`relay.exchange.peek`."""
    return tl.load(at.to(tl.pointer_type(tl.int32)) + half)


def settle(seen: Any, at: Any, half: Any, stamp: Any, TOGETHER: Any) -> Any:  # noqa: N803
    """`relay.exchange.settle`, which cannot wait here: programs are interpreted one after another."""
    if (tl.abs((seen & 255) - _mark(half, stamp)).handle.data).any():
        raise RuntimeError(f"a wait without end: not every word has the stamp {_number(stamp)}")
    return (seen & -256).to(tl.float32, bitcast=True)


def _mark(half: Any, stamp: Any) -> Any:
    number = _number(stamp)
    return tl.where(half == 0, number & 255, number >> 8).to(tl.int32)
