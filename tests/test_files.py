"""A file is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sgp_fast._files import atomic_path, remove_parts


def test_takes_the_place_of_the_old_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    for text in ("first", "second"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".json"
            temporary.write_text(text)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["plan.json"]


def test_an_exception_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["plan.json"]


def test_a_kill_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from sgp_fast._files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    others = [tmp_path / name for name in ("plan.json", ".plans-01234567.part.json", ".plan-01234567.part.npz")]
    for other in others[1:]:
        other.write_text("of another file")
    assert len(os.listdir(tmp_path)) == 4
    remove_parts(path)
    assert {*tmp_path.iterdir()} == {*others}


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "plan.json"):
        pass
    assert os.listdir(tmp_path) == []
