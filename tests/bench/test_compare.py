"""A difference is called one only where the samples say so."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sgp_fast.bench import bootstrap, compare
from sgp_fast.bench.records import header, write

from .test_records import PLAN

ROOT = Path(__file__).parents[2]


def samples(middle: float, seed: int, count: int = 40) -> tuple[float, ...]:
    return tuple(middle * np.exp(0.05 * np.random.default_rng(seed).standard_normal(count)))


@pytest.fixture
def two(tmp_path: Path):  # noqa: ANN201
    def make(*after: float) -> tuple[Path, Path]:
        for name, middle in zip("ab", after, strict=True):
            write(tmp_path / name, header("run"), [replace(PLAN, samples=samples(middle, ord(name)))])
        return tmp_path / "a", tmp_path / "b"

    return make


@pytest.mark.parametrize(("after", "verdict"), [(0.5, "faster"), (2.0, "slower"), (1.0, "no difference seen")])
def test_files(two, after: float, verdict: str) -> None:  # noqa: ANN001
    text = compare.files(*two(1.0, after))
    assert text.splitlines()[-1].endswith(verdict)
    assert "A  " in text and "commit" in text


def test_times_that_were_disturbed_are_told_beside_the_ratio(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, header("run"), [replace(PLAN, samples=samples(1.0, 1))])
    write(b, header("run"), [replace(PLAN, samples=(0.7, 0.7, 1.0, 20.0, 20.0, 20.0))])
    assert compare.files(a, b).splitlines()[-1].strip() == (
        "times spread, B from 700 ms to 20.0 s: something else ran on this machine; measure again on a quiet one"
    )
    assert "spread" not in compare.files(a, a)


def test_files_without_a_case_in_common(two, tmp_path: Path) -> None:  # noqa: ANN001
    a, b = two(1.0, 1.0)
    write(b, header("run"), [replace(PLAN, case="another")])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare.files(a, b)


def test_the_interval_of_a_ratio_holds_it_and_narrows() -> None:
    low, high = bootstrap.ratio(samples(2.0, 1), samples(1.0, 2))
    assert low < 2.0 < high
    wide_low, wide_high = bootstrap.ratio(samples(2.0, 1, 8), samples(1.0, 2, 8))
    assert wide_high - wide_low > high - low
    assert bootstrap.median(samples(1.0, 3)) == bootstrap.median(samples(1.0, 3))


def test_what_is_neither_a_file_nor_a_commit() -> None:
    with pytest.raises(ValueError, match="neither a file of results nor a commit"):
        compare.commits("no-such-commit", "HEAD", ["1x64"], "eager", 1.0)


@pytest.mark.slow
def test_two_commits_plan_in_turns() -> None:
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("no git repository")
    before = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    (change,) = compare.commits("HEAD", "HEAD", ["1x64"], "eager", 2.0)
    assert change.before > 0 and change.cost_before == change.cost_after
    assert 0.5 < change.ratio < 2.0
    assert subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout == before
