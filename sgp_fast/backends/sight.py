"""What a function can see beside its arguments, as a value to compare: equal while nothing of it was changed.

Seen are a module's weights and attributes, what a function closes over, its defaults and attributes, the globals that it
names, and the same of functions, objects and classes among these, some levels deep.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .version import sum_of_bits

Sight = tuple[Hashable, ...]

LEVELS = 6
# Tensors of up to so many numbers are compared whole.
SMALL = 1 << 16
_MODULES_OWN = frozenset(vars(nn.Module()))
_FOREIGN = ("torch", "numpy", "math", "builtins", "functools", "typing")


def sight(thing: Any) -> Sight:
    """Of a function, a module, or any object that is called."""
    return tuple(_see(thing, LEVELS, set()))


def _see(thing: Any, depth: int, seen: set[int]) -> Iterator[Hashable]:
    if isinstance(thing, bool | int | float | complex | str | bytes | np.generic | torch.dtype | None):
        yield repr(thing)
        return
    if depth == 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield _of_tensor(thing)
    elif isinstance(thing, np.ndarray):
        yield hash(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, dict):
        for name, item in thing.items():
            yield repr(name)
            yield from _see(item, depth - 1, seen)
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield len(thing)
        for item in thing:
            yield from _see(item, depth - 1, seen)
    else:
        for item in _parts(thing):
            yield from _see(item, depth - 1, seen)
        if isinstance(thing, types.FunctionType):
            yield thing.__code__


def _of_tensor(t: Tensor) -> Hashable:
    if t.layout != torch.strided:
        return id(t)
    writes = 0 if t.is_inference() else t._version
    if t.device.type != "cpu":  # to read it would wait for the device
        return id(t), t.data_ptr(), writes
    t = t.detach()
    if t.numel() <= SMALL:
        return tuple(t.shape), hash(t.contiguous().flatten().view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return t.data_ptr(), writes, sum_of_bits(t)


def _parts(thing: Any) -> Iterator[Any]:
    """What an object is made of, and what the code sees that runs when it is called."""
    if isinstance(thing, types.FunctionType):
        yield from (_content(cell) for cell in thing.__closure__ or ())
        yield from (thing.__defaults__, thing.__kwdefaults__, vars(thing))
        yield from _globals(thing)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, type):
        if thing.__module__.partition(".")[0] not in _FOREIGN:
            yield {name: item for name, item in vars(thing).items() if not name.startswith("__") or name == "__call__"}
    elif isinstance(thing, nn.Module):
        yield thing.training
        yield from (*thing.parameters(), *thing.buffers())
        for module in thing.modules():
            yield {name: item for name, item in vars(module).items() if name not in _MODULES_OWN}
            yield type(module)
    elif isinstance(thing, property):
        yield thing.fget
    elif isinstance(thing, staticmethod | classmethod):
        yield thing.__func__
    elif not isinstance(thing, types.ModuleType | types.BuiltinFunctionType):
        yield getattr(thing, "__dict__", None)
        yield [getattr(thing, name, None) for kind in type(thing).__mro__ for name in _slots(kind)]
        yield type(thing)


def _globals(function: types.FunctionType) -> Iterator[Any]:
    """The globals that a function names, and of modules among them what it may name there."""
    names = _names(function.__code__)
    for name in names:
        if name not in function.__globals__:
            continue
        value = function.__globals__[name]
        if not isinstance(value, types.ModuleType):
            yield value
        elif value.__name__.partition(".")[0] not in _FOREIGN:
            yield [vars(value)[inner] for inner in names if inner in vars(value)]


def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return (*code.co_names, *(name for c in inner for name in _names(c)))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
