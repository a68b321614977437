"""The report of a demo run: one HTML file that stands alone, from results that were measured elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from .._files import atomic_path
from .._optional import require
from .results import (
    Circumstances,
    DatasetSummary,
    Frame,
    FrameStrip,
    MethodResult,
    OpenLoop,
    Results,
    TaskResults,
    Telemetry,
    Throughput,
    ThroughputRow,
    TrainingCurve,
)

__all__ = [
    "Circumstances",
    "DatasetSummary",
    "Frame",
    "FrameStrip",
    "MethodResult",
    "OpenLoop",
    "Results",
    "TaskResults",
    "Telemetry",
    "Throughput",
    "ThroughputRow",
    "TrainingCurve",
    "write_report",
]


def write_report(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run to one HTML file, atomically, and return its path.

    The page needs nothing else: styles, figures (SVG) and pictures are inside, there is no script, and what the run did
    not measure is named with the reason. ImportError with the install command where matplotlib or Jinja2 is absent.
    """
    jinja2 = require("jinja2", extra="report")
    require("matplotlib", extra="report")
    from .page import context

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(context(results))
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
