"""Buckets, copies into static buffers, and the cache of graphs, on a device that counts."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sgp_fast.backends.fused.graphs import GraphCache, GraphStats, bucket, copy_in

from .fake import FakeDevice, FakeWork

ROWS = st.integers(1, 1 << 20)


@given(ROWS)
def test_a_bucket_holds_its_rows_and_wastes_little(rows: int) -> None:
    size = bucket(rows)
    assert size >= rows
    if rows <= 64:
        assert size < 2 * rows and size.bit_count() == 1
    else:
        assert size % 64 == 0 and size - rows < max(64, rows / 4)


@given(ROWS, ROWS)
def test_buckets_are_sizes_of_their_own_and_grow_with_the_rows(a: int, b: int) -> None:
    assert bucket(bucket(a)) == bucket(a)
    assert bucket(min(a, b)) <= bucket(max(a, b))


def test_buckets_are_few() -> None:
    sizes = sorted({bucket(rows) for rows in range(1, 2049)})
    tiles = [64 * n for n in (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32)]
    assert sizes == [1, 2, 4, 8, 16, 32, *tiles]


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows_have_no_bucket(rows: int) -> None:
    with pytest.raises(ValueError, match=f"rows is {rows}"):
        bucket(rows)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_copies_fill_the_padding_with_the_last_row(rows: int) -> None:
    static, given = torch.full((4, 2, 3), torch.nan), torch.randn(rows, 3, 2).transpose(1, 2).requires_grad_()
    copy_in(static, given, "u")
    assert not static.requires_grad and torch.equal(static[:rows], given)
    assert torch.equal(static[rows:], given[-1:].expand(4 - rows, 2, 3))


@pytest.mark.parametrize("shape", [(3,), (4, 1), (1, 3, 1), (5, 3), (0, 3), (3, 4), ()])
def test_copies_never_broadcast(shape: tuple[int, ...]) -> None:
    static = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"goal has shape .*; expected \[r, 3\] with r from 1 to 4"):
        copy_in(static, torch.ones(shape), "goal")
    assert not static.any()


def test_copies_never_convert() -> None:
    static = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"x0 is torch.float64; expected torch.float32"):
        copy_in(static, torch.ones(4, 3, dtype=torch.float64), "x0")
    with pytest.raises(ValueError, match="x0 is on meta; expected cpu"):
        copy_in(static, torch.ones(4, 3, device="meta"), "x0")
    assert not static.any()


class Plans:
    """A cache under test, with the work that it holds for each key."""

    def __init__(self, **limits: int) -> None:
        self.device = FakeDevice()
        self.cache: GraphCache[FakeWork] = GraphCache(self.device, **limits)
        self.weight = torch.ones(3)

    def plan(self, key: str, x: Tensor, size: int = 100) -> Tensor:
        entry = self.cache.get(key, (self.weight,), lambda: FakeWork(self.weight, size=size))
        copy_in(entry.work.x, x, "x")
        entry.graph.replay()
        return entry.work.out[: len(x)].clone()

    def touch(self, *keys: str) -> None:
        for key in keys:
            self.plan(key, torch.ones(1, 3))

    @property
    def held(self) -> str:
        """The keys, least recently used first."""
        return "".join(str(key) for key in self.cache._entries)


def test_a_second_plan_replays_what_the_first_captured() -> None:
    plans = Plans()
    for rows in (1, 3, 4):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(plans.plan("a", x), x.sum(1))
    assert [graph.replays for graph in plans.device.graphs] == [3]
    assert plans.cache.stats == GraphStats(hits=2, misses=1, captures=1, entries=1, bytes=110)


def test_captures_are_timed_and_replays_are_not() -> None:
    plans = Plans()
    assert plans.cache.stats.seconds == 0
    plans.touch("a")
    once = plans.cache.stats.seconds
    plans.touch("a")
    assert 0 < once == plans.cache.stats.seconds
    plans.touch("b")
    assert plans.cache.stats.seconds > once


def test_each_get_takes_its_turn_on_the_device() -> None:
    plans = Plans()
    plans.touch("a", "a", "b")
    assert plans.device.turns == 3


def test_the_least_recently_used_goes_first() -> None:
    plans = Plans(max_entries=3)
    plans.touch("a", "b", "c", "a", "d")
    assert plans.held == "cad"
    plans.touch("c", "e")
    assert plans.held == "dce"
    assert [graph.released for graph in plans.device.graphs] == [True, True, False, False, False]
    stats = plans.cache.stats
    assert stats == GraphStats(hits=2, misses=5, captures=5, evictions=2, entries=3, bytes=330)
    assert plans.device.memory() == 30


def test_bytes_of_work_and_graph_are_bounded() -> None:
    plans = Plans(max_bytes=330)
    plans.touch("a", "b", "c")
    assert plans.held == "abc"
    plans.plan("d", torch.ones(1, 3), size=150)  # 160 with its graph: two must go
    assert plans.held == "cd" and plans.cache.stats.bytes == 270 and plans.cache.stats.evictions == 2


def test_an_entry_larger_than_the_bound_stays_alone() -> None:
    plans = Plans(max_bytes=330)
    plans.touch("a", "b")
    plans.plan("c", torch.ones(1, 3), size=1000)
    assert plans.held == "c" and not plans.device.graphs[-1].released
    plans.touch("d")
    assert plans.held == "d" and plans.cache.stats.bytes == 110


def test_weights_written_in_place_take_effect_without_a_capture() -> None:
    plans = Plans()
    x = torch.ones(2, 3)
    assert plans.plan("a", x).tolist() == [3, 3]
    plans.weight.mul_(2)
    plans.weight.data[0] = 10
    assert plans.plan("a", x).tolist() == [14, 14]
    assert plans.cache.stats.captures == 1


def test_a_replaced_weight_is_captured_anew() -> None:
    plans = Plans()
    x = torch.ones(2, 3)
    plans.plan("a", x)
    plans.weight = torch.full((3,), 2.0)
    assert plans.plan("a", x).tolist() == [6, 6]
    assert plans.cache.stats == GraphStats(misses=1, captures=2, recaptures=1, entries=1, bytes=110)
    assert [graph.released for graph in plans.device.graphs] == [True, False]
    plans.plan("a", x)
    assert plans.cache.stats.hits == 1 and plans.cache.stats.captures == 2


def test_a_weight_whose_memory_was_replaced_is_captured_anew() -> None:
    """`p.data = other` leaves the object as it is and moves it elsewhere."""
    plans = Plans()
    plans.touch("a")
    plans.weight.data = torch.full((3,), 2.0)
    assert plans.plan("a", torch.ones(1, 3)).tolist() == [6]
    assert plans.cache.stats.recaptures == 1


def test_another_tensor_at_the_same_address_is_a_replaced_weight() -> None:
    """It may have another shape or strides; and the next one at this address may hold something else."""
    plans = Plans()
    plans.touch("a")
    plans.weight = plans.weight.view(3)
    plans.touch("a")
    assert plans.cache.stats.recaptures == 1


def test_more_or_fewer_weights_are_replaced_weights() -> None:
    plans = Plans()
    plans.touch("a")
    with pytest.raises(ValueError, match=r"work that reads other tensors than `reads`"):
        plans.cache.get("a", (plans.weight, torch.ones(1)), lambda: FakeWork(plans.weight))
    assert [graph.released for graph in plans.device.graphs] == [False, True]
    assert plans.held == "a" and plans.cache.stats.recaptures == 0


@pytest.mark.parametrize(("key", "weight"), [("new", "same"), ("a", "replaced")])
@pytest.mark.parametrize("at", ["build", "capture"])
def test_a_failure_leaves_the_cache_as_it_was(at: str, key: str, weight: str) -> None:
    plans = Plans(max_entries=2)
    plans.touch("a", "b")
    before, held = plans.cache.stats, plans.held
    reads = (plans.weight if weight == "same" else torch.zeros(3),)

    class Failing(FakeWork):
        def body(self) -> None:
            raise ZeroDivisionError

    def build() -> FakeWork:
        if at == "build":
            raise ZeroDivisionError
        return Failing(*reads)

    with pytest.raises(ZeroDivisionError):
        plans.cache.get(key, reads, build)
    assert plans.cache.stats == before and plans.held == held
    assert not any(graph.released for graph in plans.device.graphs) and plans.device.memory() == 20
    assert plans.plan("a", torch.ones(1, 3)).tolist() == [3]
    assert plans.cache.stats.hits == before.hits + 1


def test_planners_in_several_threads_capture_once_and_never_mix_their_rows() -> None:
    plans, wrong = Plans(max_entries=2), []

    def planner(scale: float) -> None:
        for i in range(200):
            key = "abc"[i % 3]
            with plans.cache.lock:
                out = plans.plan(key, torch.full((4, 3), scale))
            if out.tolist() != [3 * scale] * 4:
                wrong.append((key, out))

    threads = [threading.Thread(target=planner, args=(float(n),)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = plans.cache.stats
    assert not wrong
    assert stats.hits + stats.misses == 800 and stats.captures == len(plans.device.graphs) == stats.misses
    assert stats.entries == 2 and stats.evictions == stats.captures - 2 and plans.device.memory() == 20


@pytest.mark.parametrize("limits", [{"max_entries": 0}, {"max_bytes": 0}])
def test_a_cache_of_nothing_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        GraphCache(FakeDevice(), **limits)
