"""What the template shows: for each device of each file its figures, tables, circumstances, and what was not measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sgp_fast.report.numbers import NONE
from sgp_fast.report.svg import PALETTE

from ..records import Results
from . import accuracy, control, kernels, ladder, limits, plans, returns, stages
from .section import Section
from .words import WORDS

FIGURES = {
    "ladder": ladder.waterfall,
    "latency": ladder.latency,
    "cost": accuracy.cost_against_time,
    "accuracy": accuracy.by_dtype,
    "budget": returns.budget,
    "precision": returns.precision,
    "roofline": limits.roofline,
    "stages": stages.stages,
    "act": control.act,
    "cold": control.cold,
    "kernels": kernels.kernels,
}


def context(named: Sequence[tuple[str, Results]]) -> dict[str, Any]:
    """Everything that the template needs, by name."""
    parts = [(name, part) for name, results in named for part in results.by_device()]
    return {
        "files": [_file(name, part, f"f{i}") for i, (name, part) in enumerate(parts)],
        "palette": {name.replace("_", "-"): shades for name, shades in PALETTE.items()},
    }


def _file(name: str, results: Results, ident: str) -> dict[str, Any]:
    sections = [section for draw in FIGURES.values() if (section := draw(results, ident)) is not None]
    shown = {section.key for section in sections}
    return {
        "id": ident,
        "name": name,
        "device": results.device,
        "where": results.where,
        "facts": plans.facts(results),
        "unclaimed": plans.unclaimed(results),
        "sections": [_section(section, ident) for section in sections],
        "missing": [words for key, words in WORDS.items() if key not in shown],
        "plans": plans.plans(results),
        "ceilings": plans.ceilings(results),
        "circumstances": _circumstances(results.header),
    }


def _section(section: Section, ident: str) -> dict[str, Any]:
    return {
        "id": f"{ident}-{section.key}",
        "words": section.words,
        "caption": section.caption or section.words.caption,
        "panels": section.panels,
        "notes": section.notes,
        "table": section.table,
    }


def _circumstances(header: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The header in words: the run, the machine, the versions."""
    run = {name: header[name] for name in ("command", "date", "commit")}
    run["uncommitted changes"] = "yes" if header["changed"] else "no"
    groups = (("Run", run | header["settings"]), ("Machine", header["machine"]), ("Versions", header["versions"]))
    return [(title, [(name.replace("_", " "), _text(value)) for name, value in of.items()]) for title, of in groups]


def _text(value: Any) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
