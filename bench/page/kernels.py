"""Kernels ahead of time: what the compiler made of each, by architecture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sgp_fast.report.numbers import NONE
from sgp_fast.report.svg import MUTED, PANEL, PAPER, WIDE, canvas, color, place

from ..records import Results
from ..rows import KernelRow
from . import style
from .section import Section, panels, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Registers that a thread can have.
MOST = 255
# What tells how a kernel works: products on matrix units of three generations and without, asynchronous copies.
INSTRUCTIONS = ("HGMMA", "HMMA", "UTCMMA", "FFMA", "LDGSTS", "UTMALDG")


def kernels(results: Results, name: str) -> Section | None:
    """Registers of every kernel, a line a network and a panel an architecture; the rest of it in the table."""
    key = "kernels"
    rows = results.of(KernelRow)
    if not rows:
        return None
    by_arch = style.grouped(rows, lambda row: f"sm_{row.arch}")
    return Section(
        key,
        panels(key, name, {arch: partial(_registers, arch, of) for arch, of in by_arch.items()}),
        table(
            "arch|kernel|network|dtype|tile|>registers|>stack, bytes|>spills|>shared, KB|"
            + "|".join(f">{name}" for name in INSTRUCTIONS) + "|>programs a multiprocessor|>roofline",
            [
                (arch, row.kernel, row.network, row.dtype, row.division, str(row.registers), str(row.stack), str(row.spills),
                 f"{row.shared / 1024:.0f}", *(str(row.instructions.get(name, 0)) for name in INSTRUCTIONS),
                 str(row.resident), NONE if row.flops_us is None else row.bound)
                for arch, of in by_arch.items() for row in of
            ],
        ),
        tuple(
            f"{arch}: {sum(map(_spills, of))} of {len(of)} kernels need a stack or spill registers."
            for arch, of in by_arch.items()
        ),
    )  # fmt: skip


def _spills(row: KernelRow) -> bool:
    return bool(row.stack or row.spills)


def _registers(arch: str, rows: Sequence[KernelRow], width: int) -> Figure:
    lines = style.grouped(rows, lambda row: f"{row.network}, {row.dtype}")
    left = 270 if width == WIDE else 196 if width == PANEL else 168
    figure = canvas(width, 78 + 24 * len(lines))
    axes = place(figure, left, 16, top=36, bottom=42)
    axes.set_xlim(0, 1.03 * MOST)
    axes.set_ylim(-len(lines) + 0.4, 0.6)
    for i, (words, of) in enumerate(lines.items()):
        for row in of:
            spills = _spills(row)
            axes.plot(row.registers, -i, "X" if spills else "o", color=color("no_score" if spills else "sgp"), markersize=7,
                      markeredgecolor=PAPER, markeredgewidth=0.7, alpha=0.9)  # fmt: skip
        style.side_note(axes, words, -i, -left, MUTED, at=0)
    axes.set_yticks([])
    axes.grid(True, axis="x")
    style.heading(axes, f"Registers of a thread, {arch}", left)
    axes.set_xlabel("registers", loc="right", labelpad=4)
    return figure
