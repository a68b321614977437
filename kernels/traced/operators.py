"""PyTorch's operators on arrays of terms: what a recorded graph is replayed with, one number at a time.

An array holds constants and `expression.Term`s. Views are NumPy's views, so what is written in place is seen through them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .expression import Recorder, Term, TooLong, Value

Array = np.ndarray[Any, Any]


class Unsupported(Exception):
    """An operator, or a use of it, that has no twin here; the message says which."""


def array_of(tensor: Tensor) -> Array:
    """The constants of a tensor, as Python's numbers."""
    out = np.empty(tuple(tensor.shape), object)
    flat = tensor.detach().cpu().flatten().tolist()
    out.flat[:] = [v if isinstance(v, bool) else float(v) for v in flat] if flat else []
    return out


class Operators:
    """The operators, by the names of `torch.ops.aten`, recording into `recorder`."""

    def __init__(self, recorder: Recorder) -> None:
        self._apply: Any = recorder.apply

    def call(self, name: str, overload: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the operator gives; raises Unsupported."""
        base = name.removesuffix("_") if name.endswith("_") and not name.startswith("_") else name
        if base in _ONE_BY_ONE:
            out = self._each(base, args, kwargs)
        else:
            function: Callable[..., Any] | None = getattr(self, f"do_{base}", None)
            if function is None:
                raise Unsupported(f"aten.{name} has no twin in the kernels")
            try:
                out = function(*args, **kwargs)
            except (Unsupported, TooLong):
                raise
            except Exception as error:
                raise Unsupported(f"aten.{name}.{overload} has no twin in the kernels as it is used ({error})") from error
        if base != name:  # in place
            if not args[0].flags.writeable:
                raise Unsupported(f"aten.{name} writes to a tensor that was expanded")
            args[0][...] = out
            return args[0]
        return out

    # One number at a time.

    def _each(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Array:
        function = _ONE_BY_ONE[name]
        numbers = {k: v for k, v in kwargs.items() if k in ("alpha", "rounding_mode", "approximate")}
        if unknown := kwargs.keys() - numbers.keys():
            raise Unsupported(f"aten.{name} with {', '.join(sorted(unknown))} has no twin in the kernels")
        operands = np.broadcast_arrays(*(_array(a) for a in args))
        out = np.empty(operands[0].shape, object)
        for at in np.ndindex(*out.shape):
            out[at] = function(self._apply, *(operand[at] for operand in operands), **numbers)
        return out

    def do_clamp(self, x: Array, min: Any = None, max: Any = None) -> Array:
        x = x if min is None else self._each("maximum", (x, min), {})
        return x if max is None else self._each("minimum", (x, max), {})

    def do_clamp_min(self, x: Array, min: Any) -> Array:
        return self.do_clamp(x, min)

    def do_clamp_max(self, x: Array, max: Any) -> Array:
        return self.do_clamp(x, None, max)

    def do_elu(self, x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
        def one(apply: Any, v: Value) -> Value:
            low = apply("mul", alpha * scale, apply("expm1", apply("mul", input_scale, v)))
            return apply("where", apply("le", v, 0.0), low, apply("mul", scale, v))

        return self._map(one, x)

    def do__to_copy(self, x: Array, dtype: torch.dtype | None = None, **_: Any) -> Array:
        if dtype is None:
            return x.copy()
        if dtype == torch.bool:
            return self._map(lambda apply, v: v if _logical(v) else apply("not", apply("eq", v, 0.0)), x)
        if dtype not in (torch.float32, torch.float64, torch.int32, torch.int64):
            raise Unsupported(f"a conversion to {dtype} has no twin in the kernels")
        return self._map(_number if dtype.is_floating_point else _truncated, x)

    def _map(self, function: Callable[[Any, Value], Value], x: Array) -> Array:
        out = np.empty(x.shape, object)
        for at in np.ndindex(*x.shape):
            out[at] = function(self._apply, x.item(at))
        return out

    # Reductions.

    def do_sum(self, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
        return self._reduced(self._map(_number, x), dim, keepdim, lambda a, b: self._apply("add", a, b), 0.0)

    def do_mean(self, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
        total = self.do_sum(x, dim, keepdim)
        return self._each("div", (total, float(x.size / max(total.size, 1))), {})

    def do_prod(self, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
        return self._reduced(self._map(_number, x), dim, keepdim, lambda a, b: self._apply("mul", a, b), 1.0)

    def do_amax(self, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
        return self._reduced(x, dim, keepdim, lambda a, b: self._apply("max", a, b), -math.inf)

    def do_amin(self, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
        return self._reduced(x, dim, keepdim, lambda a, b: self._apply("min", a, b), math.inf)

    def do_any(self, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
        return self._reduced(self.do__to_copy(x, torch.bool), dim, keepdim, lambda a, b: self._apply("or", a, b), False)

    def do_all(self, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
        return self._reduced(self.do__to_copy(x, torch.bool), dim, keepdim, lambda a, b: self._apply("and", a, b), True)

    def do_var(self, x: Array, dim: Any = None, correction: float = 1, keepdim: bool = False) -> Array:
        centred = self._each("sub", (x, self.do_mean(x, dim, True)), {})
        total = self.do_sum(self._each("square", (centred,), {}), dim, keepdim)
        return self._each("div", (total, float(x.size / max(total.size, 1) - correction)), {})

    def do_var_mean(
        self, x: Array, dim: Any = None, correction: float = 1, keepdim: bool = False
    ) -> tuple[Array, Array]:
        return self.do_var(x, dim, correction, keepdim), self.do_mean(x, dim, keepdim)

    def do_cumsum(self, x: Array, dim: int, dtype: Any = None) -> Array:
        moved = np.moveaxis(self._map(_number, x), dim, 0).copy()
        for i in range(1, len(moved)):
            moved[i] = self._each("add", (moved[i - 1], moved[i]), {})
        return np.moveaxis(moved, 0, dim)

    def do_linalg_vector_norm(
        self, x: Array, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> Array:
        size = self._each("abs", (x,), {})
        if ord == 0:
            raise Unsupported("a norm of order 0 has no twin in the kernels")
        if math.isinf(ord):
            return self.do_amax(size, dim, keepdim) if ord > 0 else self.do_amin(size, dim, keepdim)
        if ord == 1:
            return self.do_sum(size, dim, keepdim)
        powers = self._each("pow", (x if ord == 2 else size, float(ord)), {})
        total = self.do_sum(powers, dim, keepdim)
        return self._each("sqrt", (total,), {}) if ord == 2 else self._each("pow", (total, 1 / ord), {})

    def _reduced(self, x: Array, dim: Any, keepdim: bool, pair: Callable[[Any, Any], Any], empty: Any) -> Array:
        dims = _dims(dim, x.ndim)
        kept = [n for i, n in enumerate(x.shape) if i not in dims]
        rows = np.moveaxis(x, dims, range(x.ndim - len(dims), x.ndim)).reshape(*kept, -1)
        out = np.empty(tuple(kept), object)
        for at in np.ndindex(*kept):
            row = list(rows[at])
            out[at] = reduce(pair, row) if row else empty
        return out.reshape([1 if i in dims else n for i, n in enumerate(x.shape)]) if keepdim else out

    # Products.

    def do_mm(self, a: Array, b: Array) -> Array:
        out = np.empty((*a.shape[:-1], b.shape[-1]), object)
        for at in np.ndindex(*out.shape):
            left, right = a[at[:-1]], b[(*at[:-2], slice(None), at[-1])] if b.ndim > 2 else b[:, at[-1]]
            terms = [self._apply("mul", x, y) for x, y in zip(left, right, strict=True)]
            out[at] = reduce(lambda x, y: self._apply("add", x, y), terms, 0.0)
        return out

    do_bmm = do_mm

    def do_mv(self, a: Array, b: Array) -> Array:
        return self.do_mm(a, b[:, None])[..., 0]

    def do_dot(self, a: Array, b: Array) -> Array:
        return self.do_mm(a[None], b[:, None])[0, 0]

    def do_addmm(self, c: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1) -> Array:
        scaled = self._each("mul", (self.do_mm(a, b), float(alpha)), {})
        return self._each("add", (scaled, self._each("mul", (c, float(beta)), {})), {})

    do_baddbmm = do_addmm

    # Shapes: nothing is computed.

    def do_alias(self, x: Array) -> Array:
        return x

    do_detach = do_lift_fresh = do_lift_fresh_copy = do_alias

    def do_clone(self, x: Array, memory_format: Any = None) -> Array:
        return x.copy()

    def do_copy(self, x: Array, source: Array, non_blocking: bool = False) -> Array:
        return np.broadcast_to(source, x.shape)

    def do_view(self, x: Array, size: Any) -> Array:
        return x.reshape(tuple(size))

    do_reshape = do__unsafe_view = do__reshape_alias = do_view

    def do_expand(self, x: Array, size: Any, implicit: bool = False) -> Array:
        lead = len(size) - x.ndim
        return np.broadcast_to(x, tuple(x.shape[i - lead] if n == -1 else n for i, n in enumerate(size)))

    def do_permute(self, x: Array, dims: Any) -> Array:
        return x.transpose(tuple(dims))

    def do_transpose(self, x: Array, a: int, b: int) -> Array:
        return x.swapaxes(a, b) if x.ndim else x

    def do_t(self, x: Array) -> Array:
        return x.T

    def do_unsqueeze(self, x: Array, dim: int) -> Array:
        return np.expand_dims(x, dim)

    def do_squeeze(self, x: Array, dim: Any = None) -> Array:
        dims = [d for d in _dims(dim, x.ndim) if x.shape[d] == 1]
        return x.squeeze(tuple(dims)) if dims else x

    def do_select(self, x: Array, dim: int, index: int) -> Array:
        # An Ellipsis, so that a single number stays an array that can be written to.
        return x[(*(slice(None),) * (dim % x.ndim), index, ...)]

    def do_slice(self, x: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Array:
        return x[(*(slice(None),) * (dim % x.ndim), slice(start, end, step))]

    def do_unbind(self, x: Array, dim: int = 0) -> list[Array]:
        return [self.do_select(x, dim, i) for i in range(x.shape[dim])]

    def do_split(self, x: Array, size: int, dim: int = 0) -> list[Array]:
        return [self.do_slice(x, dim, i, i + size) for i in range(0, x.shape[dim], size)]

    def do_split_with_sizes(self, x: Array, sizes: Any, dim: int = 0) -> list[Array]:
        ends = list(itertools.accumulate(sizes))
        return [self.do_slice(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def do_cat(self, parts: Sequence[Array], dim: int = 0) -> Array:
        return np.concatenate([p for p in parts if p.shape != (0,)], dim)

    def do_stack(self, parts: Sequence[Array], dim: int = 0) -> Array:
        return np.stack(list(parts), dim)

    def do_repeat(self, x: Array, repeats: Any) -> Array:
        return np.tile(x, tuple(repeats))

    def do_flip(self, x: Array, dims: Any) -> Array:
        return np.flip(x, tuple(dims))

    def do_roll(self, x: Array, shifts: Any, dims: Any = ()) -> Array:
        return np.roll(x, tuple(shifts), tuple(dims) or None)

    def do_diagonal(self, x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
        return x.diagonal(offset, dim1, dim2)

    def do_constant_pad_nd(self, x: Array, pad: Any, value: float = 0.0) -> Array:
        pairs = [(0, 0)] * x.ndim
        for i in range(len(pad) // 2):
            pairs[-1 - i] = (pad[2 * i], pad[2 * i + 1])
        if any(n < 0 for pair in pairs for n in pair):
            raise ValueError("padding is negative")
        return np.pad(x, pairs, constant_values=float(value))

    def do_as_strided(self, x: Array, size: Any, stride: Any, storage_offset: int | None = None) -> Array:
        if not x.flags.c_contiguous or (x.base is not None and x.base.size != x.size):
            raise ValueError("the strides are those of a larger tensor")
        flat = x.reshape(-1)[storage_offset or 0 :]
        return np.lib.stride_tricks.as_strided(flat, tuple(size), tuple(s * x.itemsize for s in stride))

    def do_slice_scatter(
        self, x: Array, source: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
    ) -> Array:
        out = x.copy()
        self.do_slice(out, dim, start, end, step)[...] = source
        return out

    def do_select_scatter(self, x: Array, source: Array, dim: int, index: int) -> Array:
        out = x.copy()
        self.do_select(out, dim, index)[...] = source
        return out

    def do_index(self, x: Array, indices: Sequence[Any]) -> Array:
        return x[_places(x, indices)]

    def do_index_select(self, x: Array, dim: int, index: Array) -> Array:
        return np.take(x, _whole(index), dim)

    def do_gather(self, x: Array, dim: int, index: Array, sparse_grad: bool = False) -> Array:
        return np.take_along_axis(x, _whole(index), dim)

    def do_index_put(self, x: Array, indices: Sequence[Any], values: Array, accumulate: bool = False) -> Array:
        out, places = x.copy(), np.arange(x.size).reshape(x.shape)[_places(x, indices)]
        flat, values = out.reshape(-1), np.broadcast_to(values, places.shape)
        for at in np.ndindex(*places.shape):
            flat[places[at]] = self._apply("add", flat[places[at]], values[at]) if accumulate else values[at]
        return flat.reshape(x.shape)

    # Constants.

    def do_full(self, size: Any, value: Any, dtype: Any = None, **_: Any) -> Array:
        out = np.empty(tuple(size), object)
        out[...] = value if isinstance(value, bool) else float(value)
        return out

    def do_full_like(self, x: Array, value: Any, dtype: Any = None, **_: Any) -> Array:
        return self.do_full(x.shape, value)

    def do_zeros_like(self, x: Array, **_: Any) -> Array:
        return self.do_full(x.shape, 0.0)

    def do_ones_like(self, x: Array, **_: Any) -> Array:
        return self.do_full(x.shape, 1.0)

    def do_zeros(self, size: Any, **_: Any) -> Array:
        return self.do_full(size, 0.0)

    def do_ones(self, size: Any, **_: Any) -> Array:
        return self.do_full(size, 1.0)

    def do_new_zeros(self, x: Array, size: Any, **_: Any) -> Array:
        return self.do_full(size, 0.0)

    def do_empty(self, size: Any, **_: Any) -> Array:
        return self.do_full(size, 0.0)

    def do_empty_like(self, x: Array, **_: Any) -> Array:
        return self.do_full(x.shape, 0.0)

    def do_new_empty(self, x: Array, size: Any, **_: Any) -> Array:
        return self.do_full(size, 0.0)

    def do_new_empty_strided(self, x: Array, size: Any, stride: Any, **_: Any) -> Array:
        return self.do_full(size, 0.0)

    def do_empty_strided(self, size: Any, stride: Any, **_: Any) -> Array:
        return self.do_full(size, 0.0)

    def do_fill(self, x: Array, value: Any) -> Array:
        return np.broadcast_to(_array(value), x.shape)

    def do_scalar_tensor(self, value: Any, **_: Any) -> Array:
        return self.do_full((), value)

    def do_arange(self, *bounds: float, **_: Any) -> Array:
        return _array(np.arange(*bounds))

    def do_eye(self, n: int, m: int | None = None, **_: Any) -> Array:
        return _array(np.eye(n, m))


# An operator on numbers: the recorder's `apply`, then a number of each operand. Its gradient is in the graph already.
def _div(apply: Any, a: Value, b: Value, rounding_mode: str | None = None) -> Value:
    quotient = apply("div", _number(apply, a), _number(apply, b))
    if rounding_mode is None:
        return quotient
    return apply("floor", quotient) if rounding_mode == "floor" else _truncated(apply, quotient)


def _add(apply: Any, a: Value, b: Value, alpha: float = 1) -> Value:
    b = _number(apply, b)
    return apply("add", _number(apply, a), b if alpha == 1 else apply("mul", float(alpha), b))


def _sub(apply: Any, a: Value, b: Value, alpha: float = 1) -> Value:
    b = _number(apply, b)
    return apply("sub", _number(apply, a), b if alpha == 1 else apply("mul", float(alpha), b))


def _pow(apply: Any, a: Value, b: Value) -> Value:
    a, b = _number(apply, a), _number(apply, b)
    if isinstance(b, Term):
        return apply("pow", a, b)
    if abs(b) <= 8 and b == int(b):
        out: Value = 1.0
        for _ in range(abs(int(b))):
            out = apply("mul", out, a)
        return out if b >= 0 else apply("div", 1.0, out)
    if abs(b) == 0.5:
        root = apply("sqrt", a)
        return root if b > 0 else apply("div", 1.0, root)
    return apply("pow", a, b)


def _remainder(apply: Any, a: Value, b: Value) -> Value:
    a, b = _number(apply, a), _number(apply, b)
    return apply("sub", a, apply("mul", apply("floor", apply("div", a, b)), b))


def _fmod(apply: Any, a: Value, b: Value) -> Value:
    return apply("sub", a, apply("mul", _truncated(apply, apply("div", a, b)), b))


def _sigmoid(apply: Any, a: Value) -> Value:
    return apply("div", 1.0, apply("add", 1.0, apply("exp", apply("neg", a))))


def _sign(apply: Any, a: Value) -> Value:
    return apply("where", apply("lt", a, 0.0), -1.0, apply("where", apply("lt", 0.0, a), 1.0, apply("mul", 1.0, a)))


def _gelu(apply: Any, a: Value, approximate: str = "none") -> Value:
    if approximate == "none":
        inner = apply("erf", apply("mul", a, math.sqrt(0.5)))
    else:
        cube = apply("mul", apply("mul", a, a), a)
        inner = apply("tanh", apply("mul", math.sqrt(2 / math.pi), apply("add", a, apply("mul", 0.044715, cube))))
    return apply("mul", apply("mul", a, 0.5), apply("add", 1.0, inner))


def _sinh(apply: Any, a: Value, sign: float = -1.0) -> Value:
    grows, falls = apply("exp", a), apply("exp", apply("neg", a))
    return apply("mul", 0.5, apply("add", grows, apply("mul", sign, falls)))


def _beside(apply: Any, a: Value) -> Value:
    """√(1 − a²): the other side of a right triangle."""
    return apply("sqrt", apply("mul", apply("sub", 1.0, a), apply("add", 1.0, a)))


def _truncated(apply: Any, a: Value) -> Value:
    a = _number(apply, a)
    down = apply("floor", apply("abs", a))
    return apply("where", apply("lt", a, 0.0), apply("neg", down), down)


def _number(apply: Any, a: Value) -> Value:
    """True and false as 1 and 0."""
    if isinstance(a, bool):
        return float(a)
    return apply("where", a, 1.0, 0.0) if isinstance(a, Term) and a.logical else a


def _truth(apply: Any, a: Value) -> Value:
    return a if _logical(a) else apply("not", apply("eq", a, 0.0))


def _logical(a: Value) -> bool:
    return isinstance(a, bool) or (isinstance(a, Term) and a.logical)


def _compared(op: str, swapped: bool = False, negated: bool = False) -> Callable[..., Value]:
    def compare(apply: Any, a: Value, b: Value) -> Value:
        a, b = _number(apply, a), _number(apply, b)
        out = apply(op, b, a) if swapped else apply(op, a, b)
        return apply("not", out) if negated else out

    return compare


def _plain(op: str) -> Callable[..., Value]:
    return lambda apply, *args: apply(op, *(_number(apply, a) for a in args))


def _of_truths(op: str) -> Callable[..., Value]:
    return lambda apply, *args: apply(op, *(_truth(apply, a) for a in args))


def _of_bits(op: str) -> Callable[..., Value]:
    """Of truths alone: whole numbers are floats here, and have no bits."""

    def of(apply: Any, *args: Value) -> Value:
        if not all(map(_logical, args)):
            raise Unsupported(f"bitwise_{op} of whole numbers has no twin in the kernels")
        return apply(op, *args)

    return of


def _where(apply: Any, chosen: Value, a: Value, b: Value) -> Value:
    if not (_logical(a) and _logical(b)):
        a, b = _number(apply, a), _number(apply, b)
    return apply("where", _truth(apply, chosen), a, b)


_ONE_BY_ONE: dict[str, Callable[..., Value]] = {
    **{name: _plain(name) for name in ("neg", "abs", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "floor")},
    **{name: _plain(name) for name in ("round", "erf", "atan", "mul", "atan2")},
    "add": _add, "sub": _sub, "rsub": lambda apply, a, b, alpha=1: _sub(apply, b, a, alpha), "div": _div, "pow": _pow,
    "true_divide": _div, "floor_divide": lambda apply, a, b: _div(apply, a, b, "floor"),
    "maximum": _plain("max"), "minimum": _plain("min"), "remainder": _remainder, "fmod": _fmod,
    "square": lambda apply, a: apply("mul", a, a), "reciprocal": lambda apply, a: apply("div", 1.0, a),
    "rsqrt": lambda apply, a: apply("div", 1.0, apply("sqrt", a)), "relu": lambda apply, a: apply("max", a, 0.0),
    "sigmoid": _sigmoid, "silu": lambda apply, a: apply("mul", a, _sigmoid(apply, a)), "gelu": _gelu,
    "sign": _sign, "sgn": _sign, "trunc": _truncated, "ceil": lambda apply, a: apply("neg", apply("floor", apply("neg", a))),
    "tan": lambda apply, a: apply("div", apply("sin", a), apply("cos", a)),
    "sinh": _sinh, "cosh": lambda apply, a: _sinh(apply, a, 1.0),
    "asin": lambda apply, a: apply("atan2", a, _beside(apply, a)),
    "acos": lambda apply, a: apply("atan2", _beside(apply, a), a),
    "exp2": lambda apply, a: apply("exp", apply("mul", a, math.log(2))),
    "log2": lambda apply, a: apply("mul", apply("log", a), 1 / math.log(2)),
    "log10": lambda apply, a: apply("mul", apply("log", a), 1 / math.log(10)),
    "hypot": lambda apply, a, b: apply("sqrt", apply("add", apply("mul", a, a), apply("mul", b, b))),
    "lt": _compared("lt"), "le": _compared("le"), "gt": _compared("lt", swapped=True), "ge": _compared("le", swapped=True),
    "eq": _compared("eq"), "ne": _compared("eq", negated=True),
    "logical_and": _of_truths("and"), "logical_or": _of_truths("or"), "logical_not": _of_truths("not"),
    "bitwise_and": _of_bits("and"), "bitwise_or": _of_bits("or"), "bitwise_not": _of_bits("not"),
    "logical_xor": lambda apply, a, b: _differ(apply, a, b),
    "where": _where, "isnan": lambda apply, a: apply("not", apply("eq", a, a)),
    "isinf": lambda apply, a: apply("eq", apply("abs", a), math.inf),
    "masked_fill": lambda apply, a, mask, value: _where(apply, mask, value, a),
    "threshold_backward": lambda apply, g, a, at: apply("where", apply("le", a, float(at)), 0.0, g),
    "lerp": lambda apply, a, b, w: apply("add", a, apply("mul", w, apply("sub", b, a))),
}  # fmt: skip


def _differ(apply: Any, a: Value, b: Value) -> Value:
    a, b = _truth(apply, a), _truth(apply, b)
    return apply("or", apply("and", a, apply("not", b)), apply("and", apply("not", a), b))


def _array(value: Any) -> Array:
    """An array of terms and Python's numbers, whatever came."""
    if isinstance(value, Tensor):
        return array_of(value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value
    plain = np.asarray(value)
    out = np.empty(plain.shape, object)
    flat = plain.reshape(-1).tolist()
    for i, at in enumerate(np.ndindex(*plain.shape)):
        v = flat[i]
        out[at] = float(v) if isinstance(v, int) and not isinstance(v, bool) else v
    return out


def _dims(dim: Any, ndim: int) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(ndim))
    return [d % max(ndim, 1) for d in (dim if isinstance(dim, (list, tuple)) else [dim])] if ndim else []


def _whole(index: Array) -> np.ndarray[Any, Any]:
    """Places that are known; they select, so they cannot depend on the row."""
    flat = list(_array(index).reshape(-1))
    if any(isinstance(v, Term) for v in flat):
        raise Unsupported("an index depends on the state, the controls or params")
    logical = bool(flat) and all(isinstance(v, bool) for v in flat)
    return np.array(flat, dtype=bool if logical else np.int64).reshape(np.shape(index))


def _places(x: Array, indices: Sequence[Any]) -> Any:
    return tuple(slice(None) if i is None else _whole(i) for i in indices)
