"""Rounds take turns, keep to their budget, and give everyone enough of them."""

from __future__ import annotations

import time

import pytest
import torch

from sgp_fast.bench import clock

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "PAUSE", 0.0)


def test_all_take_turns() -> None:
    turns: list[str] = []
    found = clock.rounds({name: (lambda name=name: turns.append(name)) for name in "abc"}, CPU, budget=1e9, least=2, most=5)
    assert {name: len(samples) for name, samples in found.items()} == {"a": 5, "b": 5, "c": 5}
    for first in range(0, 15, 3):
        assert sorted(turns[first : first + 3]) == ["a", "b", "c"]
    assert turns != list("abc" * 5)


def test_orders_are_those_of_the_seed() -> None:
    def order(seed: str) -> str:
        turns: list[str] = []
        clock.rounds({name: (lambda name=name: turns.append(name)) for name in "abcd"}, CPU, budget=1e9, most=8, seed=seed)
        return "".join(turns)

    assert order("64 × 4×256") == order("64 × 4×256") != order("1 × 4×256")


def test_a_slow_one_has_two_turns_and_a_quick_one_fills_its_share() -> None:
    found = clock.rounds({"slow": lambda: time.sleep(0.06), "quick": lambda: time.sleep(0.001)}, CPU, budget=0.1)
    assert len(found["slow"]) == 2
    assert 3 <= len(found["quick"]) <= 50
    assert min(found["slow"]) >= 0.06


def test_energy_is_the_mean_of_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(0, 1000, 3))
    monkeypatch.setattr(clock, "energy", lambda device: float(next(counter)))
    monkeypatch.setattr(clock, "TOLD_FROM", 0.0)
    joules: dict[str, float] = {}
    clock.rounds({"a": lambda: None}, CPU, budget=0.0, least=4, most=4, joules=joules)
    assert joules == {"a": 3.0}


def test_energy_of_a_turn_too_short_for_the_counter_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(1000))
    monkeypatch.setattr(clock, "energy", lambda device: float(next(counter)))
    joules: dict[str, float] = {}
    clock.rounds({"a": lambda: None}, CPU, budget=0.0, joules=joules)
    assert joules == {}


def test_one_that_fails_sits_out_and_the_others_go_on() -> None:
    turns = iter(range(100))

    def fails() -> None:
        if next(turns) == 1:
            raise MemoryError("no more")

    failed: dict[str, str] = {}
    found = clock.rounds({"bad": fails, "good": lambda: None}, CPU, budget=1e9, least=4, most=4, failed=failed)
    assert len(found["good"]) == 4 and "no more" in failed["bad"]
    with pytest.raises(ZeroDivisionError):
        clock.rounds({"bad": lambda: 1 / 0}, CPU, budget=0.0)


def test_energy_that_nobody_tells_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # noqa: ANN001
    monkeypatch.setattr(clock, "RAPL", tmp_path / "none")
    assert clock.energy(CPU) is None
    (tmp_path / "uj").write_text("2500000\n")
    monkeypatch.setattr(clock, "RAPL", tmp_path / "uj")
    assert clock.energy(CPU) == 2.5
