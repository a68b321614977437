"""Compiling kernels without a GPU: launches become compilations, and what came out is read from the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# WARPGROUP.ARRIVE begins a group of HGMMA that run one behind the other without a wait.
COUNTED = ("HGMMA", "WARPGROUP.ARRIVE", "UTCMMA", "HMMA", "FFMA", "LDGSTS", "UTMALDG", "LDL", "STL")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one launch: `registers` a thread, `stack` bytes a thread, `shared` bytes a program.

    tensor_memory  columns of it a program, on chips that have it
    bytes          of the tensors that the launch was given: all that it can read and write
    seconds        to compile, or to find it in Triton's cache
    """

    name: str
    constants: dict[str, Any]
    arch: int
    warps: int
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    instructions: dict[str, int]
    bytes: int
    seconds: float

    @property
    def spills(self) -> int:
        """Loads and stores of local memory: where registers were short."""
        return self.instructions["LDL"] + self.instructions["STL"]


class _Target:
    """A device that compiles and never runs, in the place of Triton's driver."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return f"sm_{self._target.arch}"  # kernels are cached by device, and no device has such a name

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def targeting(arch: int) -> Iterator[None]:
    """Inside, Triton takes `sm_<arch>` for the device of this machine, which can compile and launch nothing."""
    active = driver._active
    try:
        driver.set_active(_Target(arch))  # pyright: ignore[reportArgumentType]
        yield
    finally:
        driver._active = active


@contextmanager
def compiling(arch: int) -> Iterator[list[Compiled]]:
    """Inside, every launch of a Triton kernel is compiled for `sm_<arch>` instead; the list grows by one for each new one.

    Raises RuntimeError under TRITON_INTERPRET, where there is nothing to compile.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels are not compiled; start a process without it")
    made: list[Compiled] = []
    seen: set[int] = set()
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        began = time.perf_counter()
        kernel: Any = run(self, *args, grid=grid, warmup=True, **kwargs)
        seconds = time.perf_counter() - began
        if id(kernel) not in seen:
            seen.add(id(kernel))
            made.append(_read(kernel, self.__name__, arch, kwargs, _bytes((args, kwargs)), seconds))
        return kernel

    with targeting(arch):
        try:
            JITFunction.run = compile_only  # pyright: ignore[reportAttributeAccessIssue]
            yield made
        finally:
            JITFunction.run = run


def _bytes(arguments: Any) -> int:
    """Of every tensor in nested tuples and dictionaries."""
    if isinstance(arguments, Tensor):
        return arguments.numel() * arguments.element_size()
    inner = arguments.values() if isinstance(arguments, dict) else arguments if isinstance(arguments, tuple) else ()
    return sum(map(_bytes, inner))


def _read(kernel: Any, name: str, arch: int, kwargs: dict[str, Any], size: int, seconds: float) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told no resource usage of {name}: {usage[-300:]}")
    counts = {word: len(re.findall(rf"\b{re.escape(word)}", code)) for word in COUNTED}
    return Compiled(
        name=name, constants=kwargs, arch=arch, warps=kernel.metadata.num_warps, registers=int(found[1]),
        stack=int(found[2]), shared=kernel.metadata.shared, tensor_memory=kernel.metadata.tmem_size or 0,
        instructions=counts, bytes=size, seconds=seconds,
    )  # fmt: skip


def _cuobjdump(option: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), option, path], capture_output=True, text=True, check=True).stdout
