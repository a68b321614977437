"""Launches of Triton kernels, which are compiled for sm_90 and emulated (`emulator`) where there is no GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction

from sgp_fast.bench.offline import targeting
from tests.ptx.emulator import Cta, Descriptor, Faults, Program
from tests.ptx.memory import GlobalMemory

# Where several warps hold copies of a row, each reads its moments and controls, and one of them writes them anew. The others
# may read what it wrote: what they make of it is stored by none.
HARMLESS = ("WAR in global memory", "update.py")


@dataclass
class Found:
    """What a plan's launches did, and their faults: `kind at lines of source`, how often, an example."""

    launches: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("copies", "products", "barriers"), 0))
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    wrong: str = ""

    def add(self, cta: Cta, faults: Faults) -> None:
        for name, count in cta.counts.items():
            self.counts[name] += count
        for (kind, location), (count, example) in faults.items():
            if not (kind == HARMLESS[0] and location.startswith(HARMLESS[1])):
                before, first = self.faults.get(f"{kind} at {location}", (0, example))
                self.faults[f"{kind} at {location}"] = (before + count, first)


class Launch:
    """What a kernel is given: its arguments as parameters of PTX, and the tensors that they point to."""

    def __init__(self, kernel: str, arguments: tuple[Any, ...], names: list[str]) -> None:
        self.memory = GlobalMemory()
        self.descriptors: dict[int, Descriptor] = {}
        self._values: list[Any] = []
        for name, argument in zip(names, arguments, strict=False):
            self._add(name, argument)
        self._values += [np.uint64(0)] * 2  # Triton's own: scratch memory and profiling
        self.parameters = {f"{kernel}_param_{i}": x for i, x in enumerate(self._values)}

    def _add(self, name: str, argument: Any) -> None:
        if isinstance(argument, Tensor):
            assert argument.is_contiguous(), name
            data = argument.view(-1).view(torch.uint8).numpy() if argument.numel() else np.zeros(0, np.uint8)
            self._values.append(np.uint64(self.memory.add(name, data)))
        elif isinstance(argument, TensorDescriptor):
            rows, columns = argument.block_shape
            assert columns == argument.shape[1] == 64 and argument.base.element_size() == 2
            self.descriptors[len(self._values)] = Descriptor(argument.base.view(torch.int16).numpy().view(np.uint16), rows)
            self._values.append(np.uint64(len(self._values)))
            self._values += [np.uint32(n) for n in argument.shape] + [np.uint64(n) for n in argument.strides]
        elif isinstance(argument, tuple):
            for i, part in enumerate(argument):
                self._add(f"{name}.{i}", part)
        elif isinstance(argument, int):
            assert -(2**31) <= argument < 2**31, name
            self._values.append(np.uint32(argument & 0xFFFFFFFF))
        elif argument is not None:
            raise TypeError(f"an argument of type {type(argument).__name__}")


@contextmanager
def emulating(changes: tuple[str, str] | None = None) -> Iterator[Found]:
    """Inside, launches of kernels are compiled for sm_90 and emulated; `changes` are made to their PTX first."""
    found, programs, run = Found(), {}, JITFunction.run

    def emulate(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled: Any = run(self, *arguments, grid=grid, warmup=True, **options)
        ptx, name = compiled.asm["ptx"], compiled.metadata.name
        if changes is not None:
            ptx, count = re.subn(*changes, ptx)
            assert count, f"nothing in the PTX is {changes[0]}"
        if id(compiled) not in programs:
            programs[id(compiled)] = (Program(ptx), compiled)
        launch = Launch(name, arguments, self.arg_names)
        wanted = set(re.findall(rf"\b{name}_param_\d+", ptx[: ptx.index("\n{")]))
        assert wanted == launch.parameters.keys(), f"{len(wanted)} parameters, {len(launch.parameters)} arguments"
        found.launches += 1
        for program in range(grid[0]):
            launch.memory.begin_program()
            cta = Cta(
                compiled.metadata.num_warps, compiled.metadata.shared, launch.memory, launch.parameters, launch.descriptors,
                program,
            )  # fmt: skip
            found.add(cta, cta.run(programs[id(compiled)][0]))
        return compiled

    with targeting(90):
        try:
            JITFunction.run = emulate  # pyright: ignore[reportAttributeAccessIssue]
            yield found
        finally:
            JITFunction.run = run
