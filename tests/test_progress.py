"""Progress: a bar where somebody watches, a few lines where a file is written."""

from __future__ import annotations

import io
import sys

import pytest

pytest.importorskip("tqdm")

from sgp_fast import _progress
from sgp_fast._progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress_bar("train", total=2000, desc="score", mininterval=0.0, miniters=1, **options)
    for _ in range(2000):
        bar.update()
    bar.close()
    return stream.getvalue()


def test_a_file_gets_a_line_at_the_start_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = shown(io.StringIO(), monkeypatch).splitlines()
    assert first.startswith("score:   0%") and last.startswith("score: 100%") and "2000/2000" in last
    (first,) = shown(io.StringIO(), monkeypatch, leave=False).splitlines()
    assert first.startswith("score:   0%")


def test_a_file_gets_lines_of_their_own_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "BETWEEN_LINES", 0.0)
    text = shown(io.StringIO(), monkeypatch)
    assert "\r" not in text and len(text.splitlines()) > 100


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch)
    assert text.count("\r") > 100 and text.count("\n") == 1
