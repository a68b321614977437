"""What a function can see beside its arguments, as a value to compare: equal while nothing of it was changed.

Seen are a module's weights and attributes, what a function closes over, its defaults and attributes, the globals that it
names, and the same of functions, objects and classes among these, some levels deep.

    sight   values: of tensors on a GPU how often they were written to, since to read them would wait for the device
    places  what a graph of calls depends on: as sight, but of a device's tensors where they lie, not what they hold
"""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .version import sum_of_bits

Sight = tuple[Hashable, ...]

LEVELS = 12
# Tensors of up to so many numbers are compared whole.
SMALL = 1 << 16
_MODULES_OWN = frozenset(vars(nn.Module()))
_FOREIGN = ("torch", "numpy", "math", "builtins", "functools", "typing")
# What gives another answer at every call, whatever a function sees; and objects that do.
_RESTLESS_NAMES = frozenset(("time", "datetime", "random", "secrets", "os", "uuid"))
_RESTLESS = (Iterator, random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def sight(thing: Any) -> Sight:
    """Of a function, a module, or any object that is called."""
    return tuple(_Walk().see(thing, LEVELS))


@dataclass(frozen=True)
class Places:
    """Equal while a function would do the same operations on the same memory, as far as it can be seen into.

    tensors  that were seen: while they are held, no other has their names
    unseen   why there may be more than was seen; None where nothing says so
    """

    sight: Sight
    tensors: tuple[Tensor, ...] = field(compare=False)
    unseen: str | None = field(compare=False)


def places(thing: Any, device: torch.device) -> Places:
    """Of a function, a module, or any object that is called, whose work is done on a device."""
    walk = _Walk(device.type)
    found = tuple(walk.see(thing, LEVELS))
    return Places(found, tuple(walk.tensors), walk.unseen)


class _Walk:
    """Over all that a thing can see; with a kind of device, tensors there are told by their place."""

    def __init__(self, kind: str | None = None) -> None:
        self._kind, self._seen = kind, set[int]()
        self.tensors: list[Tensor] = []
        self.unseen: str | None = None

    def see(self, thing: Any, depth: int) -> Iterator[Hashable]:
        if isinstance(thing, bool | int | float | complex | str | bytes | np.generic | torch.dtype | None):
            yield repr(thing)
            return
        if id(thing) in self._seen:
            return
        if depth == 0:
            self.unseen = self.unseen or f"what it sees lies more than {LEVELS} levels deep"
            return
        self._seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield self._of_tensor(thing)
        elif isinstance(thing, np.ndarray):
            yield hash(np.ascontiguousarray(thing).tobytes())
        elif isinstance(thing, dict):
            for name, item in thing.items():
                yield repr(name)
                yield from self.see(item, depth - 1)
        elif isinstance(thing, list | tuple | set | frozenset | deque):
            yield len(thing)
            for item in thing:
                yield from self.see(item, depth - 1)
        else:
            self._doubt(thing)
            for item in _parts(thing):
                yield from self.see(item, depth - 1)
            if isinstance(thing, types.FunctionType):
                yield thing.__code__

    def _of_tensor(self, t: Tensor) -> Hashable:
        self.tensors.append(t)
        if self._kind != t.device.type or t.layout != torch.strided:
            return _of_tensor(t)
        return id(t), t.data_ptr(), t.dtype, tuple(t.shape), t.stride()

    def _doubt(self, thing: Any) -> None:
        """Note where a thing may hold what is not seen."""
        if isinstance(thing, _RESTLESS):
            self.unseen = self.unseen or f"it sees a {type(thing).__name__}, whose state is its own"
        elif isinstance(thing, types.ModuleType) and thing.__name__.partition(".")[0] not in _FOREIGN:
            self.unseen = self.unseen or f"it sees the module {thing.__name__} through another"
        elif isinstance(thing, types.BuiltinFunctionType) and thing.__module__ in _RESTLESS_NAMES:
            self.unseen = self.unseen or f"it names {thing.__module__}.{thing.__name__}, which is another at every call"
        elif isinstance(thing, types.FunctionType) and not _is_foreign(thing):
            named = sorted(_RESTLESS_NAMES.intersection(_names(thing.__code__)))
            if named:
                self.unseen = self.unseen or f"it names {named[0]}, which is another at every call"


def _of_tensor(t: Tensor) -> Hashable:
    if t.layout != torch.strided:
        return id(t)
    writes = 0 if t.is_inference() else t._version
    if t.device.type != "cpu":  # to read it would wait for the device
        return id(t), t.data_ptr(), writes, t.dtype, tuple(t.shape), t.stride()
    t = t.detach()
    if t.numel() <= SMALL:
        return tuple(t.shape), hash(t.contiguous().flatten().view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return t.data_ptr(), writes, sum_of_bits(t)


def _parts(thing: Any) -> Iterator[Any]:
    """What an object is made of, and what the code sees that runs when it is called."""
    if isinstance(thing, types.FunctionType):
        yield from (_content(cell) for cell in thing.__closure__ or ())
        yield from (thing.__defaults__, thing.__kwdefaults__, vars(thing))
        if not _is_foreign(thing):
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


def _is_foreign(function: types.FunctionType) -> bool:
    """Whether a function is a library's, which nobody changes."""
    return (function.__module__ or "").partition(".")[0] in _FOREIGN


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
