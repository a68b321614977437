"""Bars of progress in a terminal; in a file of what a command said, a line now and then."""

from __future__ import annotations

import sys
from typing import Any

from ._optional import require

# Seconds between two lines where nobody watches.
BETWEEN_LINES = 30.0


def progress_bar(extra: str, **options: Any) -> Any:
    """tqdm's bar on stderr. Where that is no terminal (nor a notebook), it is a line at the start, the end, and every 30 s.

    `options` are tqdm's; ImportError with the install command of our `extra` where it is absent.
    """
    tqdm = require("tqdm.auto", extra=extra).tqdm
    if sys.stderr is None or sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(**options)
    rarely = {"mininterval": BETWEEN_LINES, "maxinterval": BETWEEN_LINES, "dynamic_ncols": False}
    return tqdm(**{**options, **rarely}, file=_Lines(sys.stderr))


class _Lines:
    """A stream on which each state of a bar is a line of its own, rather than written over the one before."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self._stream.write(f"{line}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
