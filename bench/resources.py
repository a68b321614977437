"""What a plan takes beside time: bytes, launches."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

from . import traces

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(run: Callable[[], object], device: torch.device) -> float | None:
    """Bytes held at the most in a run, beyond those before it; None where the system does not tell.

    On a GPU by PyTorch's allocator, which does not see what graphs and other libraries hold; on Linux by the resident
    process, once what earlier runs freed is given back. What a library keeps for its next run counts as held before.
    """
    gc.collect()
    _trim()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    try:
        CLEAR.write_text("5")  # the peak becomes what is resident now
        before = _resident("VmRSS")
        run()
        return float(max(0, _resident("VmHWM") - before))
    except (OSError, ValueError):
        return None


def graph_bytes(device: torch.device) -> float | None:
    """Bytes that the graphs of `fused` hold on a GPU; None on CPUs, which have none."""
    if device.type != "cuda":
        return None
    from sgp_fast.backends.fused.backend import graph_stats

    return float(graph_stats(device).bytes)


def launches(run: Callable[[], object], device: torch.device) -> int:
    """Kernels that a run starts on a GPU, graphs' own included; on a CPU the operators that Python dispatches."""
    if device.type != "cuda":
        return traces.operators(run)
    with traces.profiler(device) as profiler:
        run()
        torch.cuda.synchronize(device)
    events = [event for event in profiler.events() or () if not event.is_user_annotation]
    return sum(event.device_type.name == "CUDA" for event in events)


def _trim() -> None:
    """Give what was freed back to the system, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    if found is None:
        raise ValueError(f"{STATUS} tells no {name}")
    return 1024 * int(found[1])
