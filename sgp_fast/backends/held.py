"""Calls of a cost in a graph: which costs may be captured, and which may not, since a replay would be another function.

A graph does again what a call did on the device, on the same memory, and nothing of what Python did between. So a cost is
captured only while

    what it reads is known            every tensor that its operations read is an argument, was made by them, or is seen
                                      (`sight.places`); nothing comes from the host, and no random numbers are drawn
    what it sees stays                where it would see other objects or other memory, it is another cost, captured anew
    nothing else decides              called twice on the same rows it gives the same values, before every plan

Numbers that are written to tensors of the device where they lie are read by the next replay. That nothing but these has
changed is shown by replaying a call alone (`fused.calling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .sight import Places

# A cost that has become another one so many times is captured no more: captures take longer than the graph saves.
MOST_CHANGES = 8


class Held:
    """Whether graphs may hold the calls of a cost, remembered for as long as the user has it; `why_not` None: they may.

    trial    a graph of a call alone; None until there is one
    written  whether something that the cost sees was written to since the trial was last held against a call
    """

    def __init__(self) -> None:
        self.why_not: str | None = None
        self.trial: Any = None
        self.written = False
        self._changes = 0

    def refuse(self, why: str) -> None:
        """For good; the first reason stays."""
        self.why_not, self.trial = self.why_not or why, None

    def change(self) -> None:
        """What the cost sees has changed."""
        self.trial, self.written, self._changes = None, False, self._changes + 1
        if self._changes > MOST_CHANGES:
            self.refuse(f"what it sees has changed {self._changes} times; write to tensors in place instead")


def why_not_held(call: Callable[[], Any], given: Iterable[Tensor], seen: Places, device: torch.device) -> str | None:
    """None where a graph may hold what `call` does with the tensors `given`, else what speaks against it.

    `seen` is what the cost sees. The call is made, once.
    """
    if seen.unseen is not None:
        return seen.unseen
    reads = _Reads(given, seen.tensors, device)
    try:
        with reads:
            call()
    except Exception as error:  # where it is the cost's own, the next call raises it, too
        return f"watched, it raises {type(error).__name__}"
    return reads.why_not


class _Reads(TorchDispatchMode):
    """Watches every operation, and notes the first that a graph could not hold."""

    def __init__(self, given: Iterable[Tensor], seen: Iterable[Tensor], device: torch.device) -> None:
        super().__init__()
        self.why_not: str | None = None
        self._device = device.type
        # Held, so that no other tensor comes to lie where one of them was. Autograd gives what it saved new names, so it is
        # memory that is told apart.
        self._known = [*given, *seen]
        self._places = {_place(t) for t in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.why_not = self.why_not or self._against(func, read, made)
        self._known += made
        self._places.update(map(_place, made))
        return out

    def _against(self, func: Any, read: list[Tensor], made: list[Tensor]) -> str | None:
        name, tags = func.overloadpacket.__name__, func.tags
        if torch.Tag.nondeterministic_seeded in tags:
            return f"it draws random numbers (aten.{name})"
        if torch.Tag.data_dependent_output in tags:
            return f"Python waits for a number of the device (aten.{name})"
        indexes = name.lstrip("_").removeprefix("unsafe_").startswith("index")
        masks = indexes and any(t.dtype in (torch.bool, torch.uint8) for t in read[1:])
        if masks or (torch.Tag.dynamic_output_shape in tags and not indexes):
            return f"a shape depends on numbers of the device (aten.{name})"
        if name.startswith("lift_fresh"):
            host = all(t.ndim == 0 and t.device.type == "cpu" for t in read)
            return None if host else "it makes a tensor of Python's numbers at every call; make it once, outside"
        # A number on the host becomes a constant of the graph, and is one that is seen.
        if any(t.device.type != self._device and not (t.ndim == 0 and t.device.type == "cpu") for t in (*read, *made)):
            return f"it goes through tensors that are not on the device (aten.{name})"
        if any(_place(t) not in self._places and t.numel() for t in read):
            return f"aten.{name} reads a tensor that is not seen from the function"
        return None


def _place(t: Tensor) -> tuple[str, int]:
    """Where the memory of a tensor begins."""
    return t.device.type, t.untyped_storage().data_ptr()
