"""`spin`, for the models of this folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_spin = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("cc")), reason="spin (Debian has it) or cc is missing"
)


def spin(model: Path, folder: Path, *options: str) -> str:
    """What spin's verifier says of the model; `folder` is for what it makes."""
    made = subprocess.run(["spin", "-a", *options, str(model)], cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    subprocess.run(["cc", "-O0", "-DSAFETY", "-o", "pan", "pan.c"], cwd=folder, check=True, capture_output=True)
    return subprocess.run(["./pan"], cwd=folder, capture_output=True, text=True, check=False).stdout
