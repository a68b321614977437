"""One self-contained HTML page of result files: every figure with its numbers, its circumstances and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sgp_fast._files import atomic_path
from sgp_fast._optional import require

from ..records import Results, read

__all__ = ["build", "render", "write"]


def build(files: Sequence[Path]) -> str:
    """The page of result files, in the order given; the same files give the same page, byte for byte.

    Nothing outside is needed: figures are SVG inside, there is no script. Raises ValueError for no file or one of another
    schema, FileNotFoundError for one that is not there, ImportError with the remedy where matplotlib or Jinja2 is absent.
    """
    if not files:
        raise ValueError("files is empty; expected at least one file of results, as `sgp-fast bench run --out` writes")
    return render([(Path(file).name, read(Path(file))) for file in files])


def write(files: Sequence[Path], out: Path) -> None:
    """Write the page, whole or not at all."""
    page = build(files)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(named: Sequence[tuple[str, Results]]) -> str:
    """The page of results that are read already, each with the name of its file."""
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
    return environment.get_template("page.html.j2").render(context(named))
