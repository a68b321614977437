"""The parts of the page: a section is a figure of one or more panels, and its numbers. What it says is in `words`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgp_fast.report.svg import NARROW, PANEL, WIDE, render

from ..rows import OfRung
from .words import WORDS, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[int], "Figure"]
"""Draws a panel at a width in points."""


@dataclass(frozen=True)
class Table:
    """Cells of text; the columns in `numeric` are set to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Panel:
    """A drawing at the width of the page, and one for phones; one that is half a page wide serves both."""

    wide: str
    narrow: str | None = None


@dataclass(frozen=True)
class Section:
    """A figure and its numbers; `notes` say what is not in it and why, `caption` how to read it where the words do not."""

    key: str
    panels: tuple[Panel, ...]
    table: Table
    notes: tuple[str, ...] = ()
    caption: str = ""

    @property
    def words(self) -> Words:
        return WORDS[self.key]


def panels(key: str, name: str, drawings: Mapping[str, Draw]) -> tuple[Panel, ...]:
    """Panels by what they show: two side by side, or one alone over the page's width with a version for phones.

    `name` begins their ids, which must be unlike those of every other figure of the page.
    """

    def draw(ident: str, subject: str, width: int, size: float) -> str:
        return render(f"{name}-{key}-{ident}", f"{WORDS[key].title}: {subject}", lambda: drawings[subject](width), size)

    if len(drawings) == 1:
        (subject,) = drawings
        return (Panel(*(draw(f"w{width}", subject, width, 13) for width in (WIDE, NARROW))),)
    return tuple(Panel(draw(str(i), subject, PANEL, 12)) for i, subject in enumerate(drawings))


def reasons(rows: Iterable[OfRung], why: str) -> list[str]:
    """A sentence for each reason for which rungs have no numbers, with them and their cases; `why` says "not timed"."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            cases.setdefault((row.reason, row.label), []).append(row.case)
    labels: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, label), at in cases.items():
        labels.setdefault((reason, tuple(at)), []).append(label)
    return [f"{'; '.join(of)}, {why} at {'; '.join(at)}: {reason}" for (reason, at), of in labels.items()]


def table(columns: str, rows: Sequence[Sequence[str]]) -> Table:
    """A table whose columns are named in one string, `rung|>median, ms`, where `>` marks numbers."""
    names = columns.split("|")
    numeric = frozenset(i for i, name in enumerate(names) if name.startswith(">"))
    return Table(tuple(name.removeprefix(">") for name in names), tuple(map(tuple, rows)), numeric)
