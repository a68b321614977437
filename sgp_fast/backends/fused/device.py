"""What the fused backend asks of a device: capture work once and replay it, time it, tell the memory.

Work is a body: a function without arguments or result that enqueues on the current stream, reads and writes tensors at
addresses that do not change, never waits for the device, and may be run again and again.
"""

from __future__ import annotations

import platform
import statistics
import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch

Body = Callable[[], None]

# One capture at a time in the process: each begins by waiting for the whole device, which no other may be capturing on then.
_capturing = threading.Lock()


class Graph(Protocol):
    """A captured body. `bytes` is what its capture allocated and the graph keeps."""

    @property
    def bytes(self) -> int: ...

    def replay(self) -> None:
        """Enqueue the body again on the current stream."""
        ...

    def release(self) -> None:
        """Give the memory back, once the last replay has ended. A released graph cannot be replayed."""
        ...


class Device(Protocol):
    """Where bodies run. `name` is that of the hardware; `captures` says whether a graph is more than its body, run again."""

    @property
    def name(self) -> str: ...

    @property
    def captures(self) -> bool: ...

    def capture(self, body: Body) -> Graph:
        """The body as a graph. It may run once on the way; what it raises is raised."""
        ...

    def turn(self) -> None:
        """Order the current stream behind the one that called this before, so that buffers have one user at a time."""
        ...

    def finish(self) -> None:
        """Wait until all that was enqueued on the current stream has run."""
        ...

    def seconds(self, body: Body, repeats: int) -> float:
        """Median seconds of `repeats` runs. None of them warms up."""
        ...

    def memory(self) -> int:
        """Bytes of the device that PyTorch holds in this process, in use or kept for reuse."""
        ...


class CudaGraph:
    """A graph with a memory pool of its own: what the body allocates there, no other graph and no other code is given."""

    def __init__(self, graph: torch.cuda.CUDAGraph, body: Body, device: torch.device) -> None:
        self._device = device
        self._captured: tuple[torch.cuda.CUDAGraph, Body] | None = (graph, body)  # the body holds the tensors that it uses
        self._stream: torch.cuda.Stream | None = None
        segments = torch.cuda.memory_snapshot(graph.pool(), include_traces=False)
        self.bytes = sum(segment["total_size"] for segment in segments)

    def replay(self) -> None:
        if self._captured is None:
            raise RuntimeError("this graph was released; get the entry from the cache again")
        self._stream = torch.cuda.current_stream(self._device)
        self._captured[0].replay()

    def release(self) -> None:
        if self._captured is None:
            return
        if self._stream is not None:
            self._stream.synchronize()
        self._captured[0].reset()
        self._captured = None


class CudaDevice:
    """A CUDA device. Raises ValueError for another kind.

    Graphs of one CudaDevice share the workspace of cuBLAS: `turn` before replaying from another stream.
    """

    captures = True

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"device is {device}; graphs are captured on CUDA devices, use EagerDevice elsewhere")
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.name = torch.cuda.get_device_name(self.device)
        self._warmup, self._capture = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        self._turns = _Turns(self.device)

    def capture(self, body: Body) -> CudaGraph:
        """Run the body once on a side stream, which compiles and allocates what is needed once, then capture it.

        The two streams differ, since cuBLAS keeps a workspace for each: one from the warm-up would lie outside the pool,
        where others could be given its memory while the graph still writes to it.
        """
        graph = torch.cuda.CUDAGraph()
        caller = torch.cuda.current_stream(self.device)
        # The outer context restores the caller's stream where a capture fails, which torch.cuda.graph then does not.
        with _capturing, torch.cuda.device(self.device), torch.cuda.stream(self._warmup):
            self._warmup.wait_stream(caller)
            try:
                body()
            finally:
                caller.wait_stream(self._warmup)
            # "thread_local": another thread may plan or allocate meanwhile.
            with torch.cuda.graph(graph, stream=self._capture, capture_error_mode="thread_local"):
                body()
        return CudaGraph(graph, body, self.device)

    def turn(self) -> None:
        self._turns.take()

    def finish(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def seconds(self, body: Body, repeats: int) -> float:
        return _cuda_seconds(self.device, body, repeats)

    def memory(self) -> int:
        return torch.cuda.memory_reserved(self.device)


class EagerGraph:
    """A body that runs at every replay."""

    bytes = 0

    def __init__(self, body: Body) -> None:
        self._body: Body | None = body

    def replay(self) -> None:
        if self._body is None:
            raise RuntimeError("this graph was released; get the entry from the cache again")
        self._body()

    def release(self) -> None:
        self._body = None


class EagerDevice:
    """Any device, without graphs: a replay runs the body. For CPUs, and to compare graphs with."""

    captures = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._turns = _Turns(device) if device.type == "cuda" else None
        self.name = platform.machine() if self._turns is None else torch.cuda.get_device_name(device)

    def capture(self, body: Body) -> EagerGraph:
        """Nothing runs before the first replay."""
        return EagerGraph(body)

    def turn(self) -> None:
        if self._turns is not None:
            self._turns.take()

    def finish(self) -> None:
        if self._turns is not None:
            torch.cuda.current_stream(self.device).synchronize()

    def seconds(self, body: Body, repeats: int) -> float:
        if self._turns is not None:
            return _cuda_seconds(self.device, body, repeats)

        def once() -> float:
            began = time.perf_counter()
            body()
            return time.perf_counter() - began

        return statistics.median(once() for _ in range(repeats))

    def memory(self) -> int:
        """On CPUs 0: PyTorch does not count there."""
        return 0 if self._turns is None else torch.cuda.memory_reserved(self.device)


class _Turns:
    """The stream that used a device's buffers last."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: torch.cuda.Stream | None = None

    def take(self) -> None:
        stream = torch.cuda.current_stream(self._device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream


def _cuda_seconds(device: torch.device, body: Body, repeats: int) -> float:
    """By events, with an idle device before each run, so that the time to enqueue counts where the device waits for it."""

    def once() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.current_stream(device).synchronize()
        began.record()
        body()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3

    with torch.cuda.device(device):
        return statistics.median(once() for _ in range(repeats))
