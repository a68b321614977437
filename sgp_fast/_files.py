"""Files that are either whole or absent: written beside their place and renamed into it."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well, the file takes the place of `path` in one step.

        with atomic_path("run/plan.npz") as temporary:
            np.savez(temporary, u=u)

    A reader, or a run that is killed at any moment, finds the old file or the new one, never a part. The bytes are on
    disk (fsync) before the rename. The temporary path lies in the same folder, which is made if absent, and keeps the
    suffix, since several writers choose their format by it. When the block raises, the temporary file is removed and
    `path` is as it was; only a killed process leaves one behind (`.NAME-XXXXXXXX.part.SUFFIX`), which nothing reads.

    Raises FileNotFoundError when the block ends without having written the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield temporary
        if not temporary.is_file():
            raise FileNotFoundError(f"nothing was written to {temporary}, which was to become {path}; write to it")
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    # The rename survives a power cut only once the folder's entry is on disk; Windows cannot open a folder for that.
    if os.name == "posix":
        _flush(path.parent, os.O_RDONLY)


def remove_parts(path: Path) -> None:
    """Delete what killed writers of `path` left beside it. Nobody may be writing it."""
    for part in path.parent.glob(f".{glob.escape(path.stem)}-????????.part{glob.escape(path.suffix)}"):
        part.unlink(missing_ok=True)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
