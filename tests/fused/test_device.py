"""Capture, replay, time and memory: of the device without graphs everywhere, of CUDA graphs where there is a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from sgp_fast.backends.fused.device import CudaDevice, Device, EagerDevice
from sgp_fast.backends.fused.graphs import GraphCache, copy_in

from .fake import FakeDevice

CPU = torch.device("cpu")
MIB = 1 << 20


class Product:
    """`out = relu(x w)·2`, with what it needs between allocated by the body itself."""

    def __init__(self, weight: torch.Tensor, rows: int) -> None:
        self.reads = (weight,)
        self.x = torch.zeros(rows, len(weight), device=weight.device)
        self.out = torch.full((rows, weight.shape[1]), torch.nan, device=weight.device)
        self.bytes = 4 * (self.x.numel() + self.out.numel())

    def body(self) -> None:
        torch.mul((self.x @ self.reads[0]).relu(), 2, out=self.out)


def plan(cache: GraphCache[Product], weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    with cache.lock:
        entry = cache.get("one", (weight,), lambda: Product(weight, 64))
        copy_in(entry.work.x, x, "x")
        entry.graph.replay()
        return entry.work.out[: len(x)].clone()


def test_every_device_keeps_the_protocol() -> None:
    devices: list[Device] = [EagerDevice(CPU), FakeDevice()]
    assert all(device.name for device in devices)


def test_without_graphs_a_replay_runs_the_body_and_nothing_else_does() -> None:
    runs = []
    graph = EagerDevice(CPU).capture(lambda: runs.append(1))
    assert not runs and graph.bytes == 0
    graph.replay()
    graph.replay()
    assert len(runs) == 2
    graph.release()
    graph.release()
    with pytest.raises(RuntimeError, match="was released"):
        graph.replay()


def test_without_graphs_a_plan_is_the_same() -> None:
    cache: GraphCache[Product] = GraphCache(EagerDevice(CPU))
    weight, x = torch.randn(8, 8), torch.randn(5, 8)
    torch.testing.assert_close(plan(cache, weight, x), (x @ weight).relu() * 2)


def test_seconds_are_the_median_of_the_repeats() -> None:
    runs: list[int] = []

    def body() -> None:
        runs.append(1)
        time.sleep(0.05 if len(runs) == 2 else 0)

    assert 0 <= EagerDevice(CPU).seconds(body, 3) < 0.05 and len(runs) == 3


def test_a_cpu_captures_no_graphs() -> None:
    with pytest.raises(ValueError, match="device is cpu"):
        CudaDevice(CPU)


@pytest.fixture
def cuda() -> CudaDevice:
    return CudaDevice(torch.device("cuda"))


@pytest.mark.gpu
def test_a_graph_replays_bit_for_bit_what_runs_without(cuda: CudaDevice) -> None:
    weight, graphs, eager = torch.randn(256, 256, device="cuda"), GraphCache(cuda), GraphCache(EagerDevice(cuda.device))
    for rows in (1, 63, 64):
        x = torch.randn(rows, 256, device="cuda")
        assert torch.equal(plan(graphs, weight, x), plan(eager, weight, x))
    assert graphs.stats.captures == 1


@pytest.mark.gpu
def test_weights_written_in_place_are_read_by_the_next_replay(cuda: CudaDevice) -> None:
    cache, weight, x = GraphCache(cuda), torch.eye(64, device="cuda"), torch.ones(64, 64, device="cuda")
    assert plan(cache, weight, x).eq(2).all()
    weight.mul_(3)
    assert plan(cache, weight, x).eq(6).all() and cache.stats.captures == 1
    assert plan(cache, torch.eye(64, device="cuda"), x).eq(2).all() and cache.stats.recaptures == 1


@pytest.mark.gpu
def test_memory_does_not_grow_over_many_replays(cuda: CudaDevice) -> None:
    cache, weight, x = GraphCache(cuda), torch.randn(256, 256, device="cuda"), torch.randn(64, 256, device="cuda")
    plan(cache, weight, x)
    before = cuda.memory(), torch.cuda.memory_allocated()
    for _ in range(10_000):
        plan(cache, weight, x)
    assert (cuda.memory(), torch.cuda.memory_allocated()) == before


@pytest.mark.gpu
def test_memory_does_not_grow_over_many_captures(cuda: CudaDevice) -> None:
    """One entry, captured again and again: what is evicted must be given back."""
    cache: GraphCache[Product] = GraphCache(cuda, max_entries=1)
    weight = torch.randn(256, 256, device="cuda")

    def capture(times: int) -> int:
        for i in range(times):
            cache.get(i % 2, (weight,), lambda: Product(weight, 4096)).graph.replay()
        return cuda.memory()

    before = capture(10)
    assert capture(100) <= before


@pytest.mark.gpu
def test_the_bytes_of_a_graph_are_what_its_body_allocates(cuda: CudaDevice) -> None:
    out = torch.zeros(1, device="cuda")

    def body() -> None:
        out.copy_(torch.ones(16 * MIB, device="cuda").sum())

    graph = cuda.capture(body)
    assert 64 * MIB <= graph.bytes < 128 * MIB
    graph.replay()
    graph.release()
    assert out.item() == 16 * MIB
    with pytest.raises(RuntimeError, match="was released"):
        graph.replay()


@pytest.mark.gpu
@pytest.mark.parametrize("run", [1, 2])
def test_a_failing_body_leaves_stream_and_device_as_they_were(cuda: CudaDevice, run: int) -> None:
    """It raises in the warm-up, or in the capture itself."""
    runs, x, stream = [], torch.zeros(8, device="cuda"), torch.cuda.current_stream()

    def body() -> None:
        runs.append(1)
        x.add_(1)
        if len(runs) == run:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cuda.capture(body)
    assert torch.cuda.current_stream() == stream and not torch.cuda.is_current_stream_capturing()

    def fill() -> None:
        x.fill_(7)

    cuda.capture(fill).replay()
    assert x.eq(7).all()


@pytest.mark.gpu
def test_planners_on_two_streams_take_turns(cuda: CudaDevice) -> None:
    cache, weight = GraphCache(cuda), torch.eye(256, device="cuda")
    streams, outs = [torch.cuda.Stream(), torch.cuda.Stream()], []
    torch.cuda.synchronize()
    for i in range(200):
        with torch.cuda.stream(streams[i % 2]):
            outs.append(plan(cache, weight, torch.full((64, 256), float(i), device="cuda")))
    torch.cuda.synchronize()
    assert all(out.eq(2 * i).all() for i, out in enumerate(outs))


@pytest.mark.gpu
def test_seconds_are_those_of_the_device(cuda: CudaDevice) -> None:
    x = torch.randn(4096, 4096, device="cuda")

    def products(times: int) -> None:
        for _ in range(times):
            torch.mm(x, x)

    products(1)
    short, long = (cuda.seconds(lambda n=n: products(n), 3) for n in (1, 20))
    assert 0 < short < long
