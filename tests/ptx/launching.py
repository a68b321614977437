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
from tests.ptx.emulator import Cta, Descriptor, Waiting
from tests.ptx.global_memory import GlobalMemory
from tests.ptx.program import Program
from tests.ptx.schedules import Schedule, take_turns

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

    def add(self, cta: Cta) -> None:
        for name, count in cta.counts.items():
            self.counts[name] += count
        for (kind, location), (count, example) in cta.faults.items():
            if not (kind == HARMLESS[0] and location.startswith(HARMLESS[1])):
                before, first = self.faults.get(f"{kind} at {location}", (0, example))
                self.faults[f"{kind} at {location}"] = (before + count, first)


class Launch:
    """What a kernel is given: its arguments as parameters of PTX, and the tensors that they point to.

    types  of the arguments, as Triton calls them, by their names
    """

    def __init__(self, kernel: str, arguments: dict[str, Any], types: dict[str, Any], programs: int) -> None:
        self.memory = GlobalMemory(programs)
        self.descriptors: dict[int, Descriptor] = {}
        self._values: list[Any] = []
        for name, argument in arguments.items():
            self._add(name, argument, types[name])
        self._values += [np.uint64(0)] * 2  # Triton's own: scratch memory and profiling
        self.parameters = {f"{kernel}_param_{i}": x for i, x in enumerate(self._values)}

    def _add(self, name: str, argument: Any, kind: Any) -> None:
        if kind == "constexpr":
            return
        if isinstance(argument, Tensor):
            assert argument.is_contiguous(), name
            data = argument.view(-1).view(torch.uint8).numpy() if argument.numel() else np.zeros(0, np.uint8)
            self._values.append(np.uint64(self.memory.add(name, data, argument.element_size())))
        elif isinstance(argument, TensorDescriptor):
            rows, columns = argument.block_shape
            assert columns == argument.shape[1] == 64 and argument.base.element_size() == 2
            self.descriptors[len(self._values)] = Descriptor(argument.base.view(torch.int16).numpy().view(np.uint16), rows)
            self._values.append(np.uint64(len(self._values)))
            self._values += [np.uint32(n) for n in argument.shape] + [np.uint64(n) for n in argument.strides]
        elif isinstance(argument, tuple):
            for i, (part, its) in enumerate(zip(argument, kind, strict=True)):
                self._add(f"{name}.{i}", part, its)
        elif isinstance(argument, int):
            bits = 64 if kind in ("i64", "u64") else 32
            assert -(2 ** (bits - 1)) <= argument < 2**bits, name
            self._values.append((np.uint64 if bits == 64 else np.uint32)(argument & 2**bits - 1))
        elif isinstance(argument, float):
            self._values.append(np.float32(argument).view(np.uint32))
        else:
            raise TypeError(f"an argument of type {type(argument).__name__}")


@contextmanager
def emulating(changes: tuple[str, str] | None = None, schedule: Schedule = "in turn") -> Iterator[Found]:
    """Inside, launches of kernels are compiled for sm_90 and emulated; `changes` are made to their PTX first.

    The programs of a launch take turns by the `schedule` (`schedules`).
    """
    found, programs, run = Found(), {}, JITFunction.run

    def emulate(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled: Any = run(self, *arguments, grid=grid, warmup=True, **options)
        ptx, name = compiled.asm["ptx"], compiled.metadata.name
        if changes is not None:
            ptx, count = re.subn(*changes, ptx)
            assert count, f"nothing in the PTX is {changes[0]}"
        if id(compiled) not in programs:
            programs[id(compiled)] = (Program(ptx), compiled)
        given = dict(zip(self.arg_names, arguments, strict=False))
        given |= {key: options[key] for key in self.arg_names if key in options}
        launch = Launch(name, {key: given[key] for key in self.arg_names}, compiled.src.signature, grid[0])
        wanted = set(re.findall(rf"\b{name}_param_\d+", ptx[: ptx.index("\n{")]))
        assert wanted == launch.parameters.keys(), f"{len(wanted)} parameters, {len(launch.parameters)} arguments"
        found.launches += 1
        _emulate(launch, programs[id(compiled)][0], compiled.metadata, grid[0], schedule, found)
        return compiled

    with targeting(90):
        try:
            JITFunction.run = emulate  # pyright: ignore[reportAttributeAccessIssue]
            yield found
        finally:
            JITFunction.run = run


def _emulate(launch: Launch, kernel: Program, made: Any, programs: int, schedule: Schedule, found: Found) -> None:
    stopped = False

    def run(program: int) -> Iterator[Waiting | None]:
        nonlocal stopped
        cta = Cta(made.num_warps, made.shared, launch.memory, launch.parameters, launch.descriptors, program)
        yield from cta.run(kernel)
        found.add(cta)
        stopped |= cta.stopped

    with np.errstate(all="ignore"):
        waiting = take_turns({program: run(program) for program in range(programs)}, launch.memory, schedule)
    waiting.sort(key=lambda each: each.cta.program)
    why = ", ".join(f"program {each.cta.program} waits at {each.what}" for each in waiting)
    for each in waiting:
        if not stopped:  # what a program that was stopped would have given, others wait for
            each.cta.stop(f"deadlock: {why}")
        found.add(each.cta)
