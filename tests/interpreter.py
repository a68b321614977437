"""Triton's interpreter, made quick enough and right enough for tests.

It patches the whole language module anew at every call of a device function, which is most of what a call costs. Once a
launch, for each module that the functions use, is enough. And it cuts float32 to bfloat16 where devices round.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np


def patch_once_a_launch() -> None:
    """Let nested calls find the language as their launch patched it; does nothing where the interpreter is another."""
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    if patch is None or not hasattr(interpreter, "tl"):
        return
    language = {interpreter.tl, interpreter.tl.core}
    patched: set[int] = set()

    class Launch:
        """The patches of one launch, undone together at its end."""

        def __init__(self, scopes: list[Any]) -> None:
            self.scopes = scopes

        def restore(self) -> None:
            patched.clear()
            for scope in reversed(self.scopes):
                scope.restore()

    running: list[Launch] = []

    def patch_lang(fn: Any) -> Launch:
        modules = {id(m) for m in fn.__globals__.values() if inspect.ismodule(m) and m in language}
        if not patched:
            running[:] = [Launch([])]
        if not modules <= patched:
            patched.update(modules)
            running[0].scopes.append(patch(fn))
        return running[0]

    interpreter._patch_lang = patch_lang


def round_bfloat16() -> None:
    """Make bfloat16 of float32 by rounding to the nearest, ties to even; does nothing where the interpreter is another."""
    from triton.runtime import interpreter

    builder: Any = getattr(interpreter, "InterpreterBuilder", None)
    if builder is None or not hasattr(interpreter, "tl") or not hasattr(builder, "cast_impl"):
        return
    cast, tl = builder.cast_impl, interpreter.tl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return cast(self, src, dst_type)
        bits = src.data.astype(np.float32).view(np.uint32).astype(np.uint64)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
        return interpreter.TensorHandle(np.where(np.isnan(src.data), np.uint16(0x7FC0), nearest), tl.bfloat16)

    builder.cast_impl = cast_impl
