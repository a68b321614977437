"""Triton's interpreter, made quick enough for tests.

It patches the whole language module anew at every call of a device function, which is most of what a call costs. Once a
launch, for each module that the functions use, is enough.
"""

from __future__ import annotations

import inspect
from typing import Any


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
