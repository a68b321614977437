"""Schedules: the published tables by their formulas, ours ending exactly at their last values."""

from __future__ import annotations

import math

import pytest

import sgp_fast as sgp
from sgp_fast import schedule


@pytest.mark.parametrize("K", [2, 3, 10, 51, 500])
@pytest.mark.parametrize("S", [1, 3, 10])
def test_published_tables(K: int, S: int) -> None:
    """`max_iters = K` makes K−1 steps; β_min is never reached, and with few iterations nor is the last level."""
    levels, beta = schedule.published_levels(S, K), schedule.published_beta(0.2, 0.1, K)
    assert levels == tuple(round(S * (i / (K + 1)) - 0.5) for i in range(K - 1))
    assert beta == pytest.approx([0.1 + (0.2 - 0.1) * 0.5 * (math.cos(math.pi * i / (K - 1)) + 1) for i in range(K - 1)])
    assert len(levels) == len(beta) == K - 1 and min(beta) > 0.1 and beta[0] == pytest.approx(0.2)
    assert all(0 <= level < S for level in levels)
    if K == 3 and S == 10:
        assert levels == (0, 2) and levels[-1] < S - 1
    made = sgp.SGP.published(8, K, 0.05, beta=0.2, beta_min=0.1, levels=S, precision="float64")
    assert (made.iterations, made.step_size, made.beta, made.levels) == (K - 1, 0.05, beta, levels)


def test_published_levels_round_half_to_even() -> None:
    """S=6, K=11: 6·(2/12) − ½ is a half exactly, which Python rounds to 0 and not to 1."""
    assert schedule.published_levels(6, 11) == (0, 0, 0, 1, 2, 2, 2, 3, 4, 4)


@pytest.mark.parametrize("N", [1, 2, 3, 50])
def test_ours_end_at_their_last_values(N: int) -> None:
    beta = schedule.table((0.2, 0.1), N, "beta")
    assert len(beta) == N and beta[-1] == 0.1 and (N == 1 or beta[0] == 0.2)
    assert list(beta) == sorted(beta, reverse=True)
    if N == 3:
        assert beta[1] == pytest.approx(0.15)
    for S in (1, 2, 7):
        levels = schedule.level_table(None, N, S)
        assert len(levels) == N and levels[-1] == S - 1 and (N == 1 or levels[0] == 0) and list(levels) == sorted(levels)
        if N >= S:
            assert N == 1 or set(levels) == set(range(S))


def test_numbers_and_tables() -> None:
    assert schedule.table(0.3, 3, "beta") == (0.3,) * 3
    assert schedule.table([3, 2, 1], 3, "beta") == (3.0, 2.0, 1.0)
    assert schedule.level_table(2, 3, 4) == (2, 2, 2) and schedule.level_table([3, 1, 0], 3, 4) == (3, 1, 0)


@pytest.mark.parametrize(
    ("tables", "settled"),
    [
        ([(1.0,)], 0),
        ([(1.0, 1.0, 1.0)], 0),
        ([(3.0, 2.0, 2.0)], 1),
        ([(3.0, 2.0, 1.0)], 2),
        ([(1.0, 2.0, 1.0)], 2),
        ([(1.0, 1.0, 1.0), (0, 1, 1)], 1),
    ],
)
def test_when_schedules_have_ended(tables: list, settled: int) -> None:
    assert schedule.last_change(*tables) == settled


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2, 3], "beta has 3 entries for iterations=5; give a number, a pair .* or 5 entries"),
        ([], "beta has 0 entries"),
        (-0.1, "beta is -0.1; expected finite values of at least 0"),
        ((0.1, math.nan), "expected finite values"),
        ([1, 2, 3, 4, math.inf], "expected finite values"),
    ],
)
def test_schedules_that_cannot_be(value, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedule.table(value, 5, "beta")


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([0, 1], "levels has 2 entries for iterations=3; give a number, or one an iteration"),
        ([0, 1, 4], "levels has entries from 0 to 4; the score has levels 0 to 3"),
        (-1, "levels has entries from -1 to -1"),
    ],
)
def test_levels_that_cannot_be(levels, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedule.level_table(levels, 3, 4)
