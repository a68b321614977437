"""Traces of a plan by torch.profiler, and what they tell: which work was started in which stage of the algorithm."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sgp_fast._files import atomic_path
from sgp_fast.backends.stages import PREFIX, STAGES, WHOLE, span, watching

Event = dict[str, Any]
NAMES = frozenset(PREFIX + name for name in (*STAGES, WHOLE))
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")
NATIVE = "native engine"


@dataclass(frozen=True)
class Started:
    """Work that was started within a stage: how much, and the seconds that it took."""

    launches: int = 0
    seconds: float = 0.0


def profiler(device: torch.device) -> torch.profiler.profile:
    """Of the host, and of the GPU where the work is there; quiet, where Kineto would tell of its probes on stderr."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)


def record(run: Callable[[], object], device: torch.device, path: Path | None = None) -> list[Event]:
    """The events of a run, with the stages as ranges; at `path` all of it, as gzipped Chrome JSON, which Perfetto opens."""
    with watching(ranges=True), profiler(device) as profile:
        with span("plan"):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    content = _exported(profile)
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(gzip.compress(content, 6))
    return json.loads(content)["traceEvents"]


def operators(run: Callable[[], object]) -> int:
    """How many a run calls on the host, but for those that others call.

    They are read off the trace, which takes a tenth of the time of the profiler's own list of events.
    """
    with profiler(torch.device("cpu")) as profile:
        run()
    return len(_on_host(json.loads(_exported(profile))["traceEvents"]))


def _exported(profile: torch.profiler.profile) -> bytes:
    """Chrome JSON."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(plain))
        return plain.read_bytes()


def by_stage(events: Iterable[Event]) -> dict[str | None, Started]:
    """What was started in each stage, and under None outside of all.

    On a GPU that is kernels and copies, by the moment at which the host launched them, with the time that they took there;
    without one, operators that no other operator called, and calls of the native engine. A stage within another counts for
    the outer one.
    """
    events = [event for event in events if event.get("ph") == "X"]
    ranges = _outermost(event for event in events if event.get("cat") == "user_annotation" and event["name"] in NAMES)
    starts = [event["ts"] for event in ranges]

    def stage(ts: float) -> str | None:
        at = bisect_right(starts, ts) - 1
        inside = at >= 0 and ts <= ranges[at]["ts"] + ranges[at]["dur"]
        return ranges[at]["name"].removeprefix(PREFIX) if inside else None

    found: dict[str | None, Started] = {}
    for ts, seconds in _on_gpu(events) or _on_host(events):
        name = stage(ts)
        before = found.get(name, Started())
        found[name] = Started(before.launches + 1, before.seconds + seconds)
    return found


def _on_gpu(events: list[Event]) -> list[tuple[float, float]]:
    """When the host launched each piece of work on the GPU, and the seconds that it took there."""
    launched = {e["args"].get("correlation"): e["ts"] for e in events if e.get("cat") in CALLS and "args" in e}
    work = [event for event in events if event.get("cat") in ON_GPU]
    # A launch that the profiler did not see lies outside of all stages.
    return [(launched.get(event["args"].get("correlation"), -1.0), event["dur"] / 1e6) for event in work]


def _on_host(events: list[Event]) -> list[tuple[float, float]]:
    """When each operator began that no other called, and each call of the native engine, and the seconds that it took."""
    threads: dict[Any, list[Event]] = {}
    for event in events:
        if event.get("cat") == "cpu_op" or event["name"] == PREFIX + NATIVE:
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    return [(event["ts"], event["dur"] / 1e6) for thread in threads.values() for event in _outermost(thread)]


def _outermost(events: Iterable[Event]) -> list[Event]:
    """The events that lie in no other, in their order; all of one thread."""
    kept: list[Event] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if not kept or event["ts"] >= kept[-1]["ts"] + kept[-1]["dur"]:
            kept.append(event)
    return kept
