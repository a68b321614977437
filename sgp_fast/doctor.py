"""What is installed here, what the machine offers, and which backends can run on it: `sgp-fast doctor`.

Everything is looked up with care, because this is what people run when something is broken: a missing or a broken
library is a line of the report, never an exception.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from ._optional import LIBRARIES, install_command
from ._version import __version__

# The instruction sets that decide the speed of a matrix product, as torch names them.
_CPU_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "neon", "bf16", "sve")


def report() -> dict[str, Any]:
    """Describe this installation and this machine, as plain values that JSON can hold.

    - `versions`: python, sgp_fast, torch, triton, numpy, safetensors; None where one is absent.
    - `optional`: for each optional library its `version` (None where absent) and the `install` command that brings it.
    - `platform`: operating system; `torch_error`: why torch does not import, else None.
    - `cpu`: model, logical cores, those this process may use, torch's threads, its instruction sets.
    - `compiler`: path of a C++ compiler, or None.
    - `gpus`: name, memory in bytes, compute capability, one entry a CUDA device.
    - `backends`: for each backend None where it can run here, else the reason why it cannot.
    """
    torch, torch_error = _load("torch")
    versions = {"python": platform.python_version(), "sgp_fast": __version__}
    versions |= {name: _version(name) for name in ("torch", "triton", "numpy", "safetensors")}
    return {
        "versions": versions,
        "optional": {
            library.distribution: {"version": _version(library.distribution), "install": install_command(library.extra)}
            for library in LIBRARIES
        },
        "platform": platform.platform(),
        "torch_error": torch_error,
        "cpu": _cpu(torch),
        "compiler": _compiler(),
        "gpus": _gpus(torch),
        "backends": _backends(),
    }


def format_report(report: dict[str, Any]) -> str:
    """Lay a `report()` out as text, one fact a line under a heading for each kind."""
    versions, backends, optional = (report[key].items() for key in ("versions", "backends", "optional"))
    blocks = [
        ("Versions", [(name, found or "not installed") for name, found in versions]),
        ("Machine", _machine_lines(report)),
        ("Backends", [(name, "can run" if why is None else f"cannot run: {why}") for name, why in backends]),
        ("Optional libraries", [(name, at["version"] or f"not installed: {at['install']}") for name, at in optional]),
    ]
    width = max(len(name) for _, lines in blocks for name, _ in lines)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in lines)]) for title, lines in blocks
    )


def _machine_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    cpu = report["cpu"]
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores usable"
    lines = [("system", report["platform"]), ("CPU", f"{cpu['model']}, {cores}")]
    if report["torch_error"]:
        lines.append(("torch", f"does not import: {report['torch_error']}"))
    else:
        sets = ", ".join(cpu["features"]) or "not reported"
        threads = f"{cpu['torch_threads']} threads, {cpu['capability']} kernels"
        lines.append(("torch on the CPU", f"{threads}; the CPU has {sets}"))
    lines.append(("C++ compiler", report["compiler"] or "none found"))
    for index, gpu in enumerate(report["gpus"]):
        memory = f"{gpu['memory'] / 2**30:.1f} GiB"
        lines.append((f"GPU {index}", f"{gpu['name']}, {memory}, compute capability {gpu['capability']}"))
    if not report["gpus"]:
        lines.append(("GPU", "no CUDA device"))
    return lines


def _load(name: str) -> tuple[ModuleType | None, str | None]:
    """The module, or the reason why it does not import; a broken binary raises whatever its loader raises."""
    try:
        return import_module(name), None
    except Exception as error:
        return None, _one_line(error)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu(torch: ModuleType | None) -> dict[str, Any]:
    cpu: dict[str, Any] = {"model": cpu_model(), "cores": os.cpu_count() or 1, "usable_cores": usable_cores()}
    if torch is None:
        return cpu | {"torch_threads": None, "capability": None, "features": []}
    # get_capabilities is younger than the oldest torch that we support.
    reported = getattr(torch.cpu, "get_capabilities", dict)()
    return cpu | {
        "torch_threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": [name for name in _CPU_FEATURES if reported.get(name)],
    }


def usable_cores() -> int:
    """The logical cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name: /proc/cpuinfo on Linux, where `platform.processor()` is often empty."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _compiler() -> str | None:
    """The C++ compiler that torch.compile would find: $CXX, else the usual names."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl" if sys.platform == "win32" else None):
        if name and (path := shutil.which(name)):
            return path
    return None


def _gpus(torch: ModuleType | None) -> list[dict[str, Any]]:
    if torch is None or not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": device.name, "memory": device.total_memory, "capability": f"{device.major}.{device.minor}"}
        for device in devices
    ]


def _backends() -> dict[str, str | None]:
    try:
        return dict(import_module("sgp_fast.backends").available())
    except Exception as error:
        why = f"the backends do not load: {_one_line(error)}"
        return {name: why for name in ("eager", "compiled", "fused")}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
