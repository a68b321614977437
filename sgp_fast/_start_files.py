"""Start states from files of any size, a block of rows at a time: .npy, .npz and .parquet, in constant memory."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ._optional import require

FORMATS = (".npy", ".npz", ".parquet")


@dataclass(frozen=True)
class StartFile:
    """N start states of nx features in a file. `_open(first, size)` yields its blocks, which `blocks` checks."""

    path: Path
    count: int
    nx: int
    _open: Callable[[int, int], Iterator[npt.NDArray[np.float64]]]

    def blocks(self, first: int = 0, size: int = 4096) -> Iterator[npt.NDArray[np.float64]]:
        """Blocks `[size, nx]` from row `first` on, the last one shorter.

        Raises ValueError naming file and row for a value that is not finite.
        """
        row = first
        for block in self._open(first, size):
            bad = np.flatnonzero(~np.isfinite(block).all(1))
            if len(bad):
                raise ValueError(f"{self.path}: row {row + bad[0]} has a value that is not finite; remove or mend it")
            row += len(block)
            yield block
        if row != self.count:
            raise ValueError(f"{self.path} ends after row {row} of {self.count}; it may be truncated: make it again")


def open_starts(path: Path) -> StartFile:
    """The start states in a file.

    - .npy: an array `[N, nx]`
    - .npz: the array `x0`, or the only one, `[N, nx]`; compressed or not
    - .parquet: the list column `x0`, or the only list column; otherwise all columns, which must be numbers, in their order

    Raises FileNotFoundError, ValueError naming file and key, and ImportError for .parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: the suffix is {path.suffix!r}; expected start states as {', '.join(FORMATS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected start states as {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        return _open_parquet(path)
    if path.suffix == ".npy":
        return _open_array(path, str(path), lambda stack: stack.enter_context(path.open("rb")))
    return _open_npz(path)


def _open_npz(path: Path) -> StartFile:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}); it may be truncated: make it again") from None
    keys = [name.removesuffix(".npy") for name in names]
    if "x0" not in keys and len(keys) != 1:
        raise ValueError(f"{path} holds {', '.join(keys) or 'nothing'}; expected the start states under the key x0")
    name = names[keys.index("x0") if "x0" in keys else 0]

    def stream(stack: ExitStack) -> IO[bytes]:
        return stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(name))

    return _open_array(path, f"{path}[{name.removesuffix('.npy')}]", stream)


def _open_array(path: Path, label: str, stream: Callable[[ExitStack], IO[bytes]]) -> StartFile:
    """An array in NumPy's format. In Fortran order, as pandas gives it, every column is read by a stream of its own."""
    with ExitStack() as stack:
        file = stream(stack)
        try:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read_header(file)
        except ValueError as error:
            raise ValueError(f"{label} is not an array in NumPy's format ({error}); write it with numpy.save") from None
        start = file.tell()
    if dtype.kind not in "fiu" or len(shape) != 2 or 0 in shape:
        raise ValueError(f"{label} is {dtype}{list(shape)}; expected real numbers [N, nx] with at least one row")
    count, nx = shape

    def blocks(first: int, size: int) -> Iterator[npt.NDArray[np.float64]]:
        columns, width = (nx, 1) if fortran else (1, nx)
        with ExitStack() as stack:
            streams = [stream(stack) for _ in range(columns)]
            for column, file in enumerate(streams):
                file.seek(start + (column * count + first * width) * dtype.itemsize)
            for row in range(first, count, size):
                rows = min(size, count - row)
                parts = [_read(file, rows * width * dtype.itemsize, label) for file in streams]
                stacked = np.stack([np.frombuffer(part, dtype).reshape(rows, width) for part in parts], 1)
                yield stacked.reshape(rows, nx).astype(np.float64)

    return StartFile(path, count, nx, blocks)


def _read(file: IO[bytes], size: int, label: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{label} ends before its last row; it may be truncated: make it again")
    return data


def _open_parquet(path: Path) -> StartFile:
    pq: Any = require("pyarrow.parquet", extra="data")
    types: Any = require("pyarrow.types", extra="data")

    def open_file() -> Any:
        # A small buffer and no read-ahead: otherwise whole row groups are held.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)

    try:
        file = open_file()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable .parquet file ({error}); it may be truncated: make it again") from None
    with file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        kinds = (types.is_list, types.is_fixed_size_list, types.is_large_list)
        lists = [column.name for column in schema if any(kind(column.type) for kind in kinds)]
        if "x0" in lists or len(lists) == 1:
            names = ["x0"] if "x0" in lists else lists
            if not _is_number(types, schema.field(names[0]).type.value_type):
                raise ValueError(f"{path}: column {names[0]} is {schema.field(names[0]).type}; expected lists of numbers")
        else:
            names = schema.names
            wrong = [name for name in names if not _is_number(types, schema.field(name).type)]
            if wrong or not names:
                raise ValueError(
                    f"{path}: column {', '.join(wrong) or '(none)'} is no number; expected a list column x0, or numbers only"
                )
        if not count:
            raise ValueError(f"{path} has no rows; expected at least one start state")
        as_list = names[0] in lists
        nx = len(next(file.iter_batches(1, columns=names)).column(0)[0].as_py() or ()) if as_list else len(names)
        if not nx:
            raise ValueError(f"{path}: the first row of {names[0]} is empty; expected the features of a start state")

    def matrix(batch: Any, row: int) -> npt.NDArray[np.float64]:
        for name in names:
            if batch.column(name).null_count:
                raise ValueError(f"{path}: column {name} has an empty value in rows {row} to {row + len(batch) - 1}")
        if not as_list:
            return np.stack([np.asarray(batch.column(name), np.float64) for name in names], 1)
        column = batch.column(names[0])
        lengths = np.asarray(column.value_lengths())
        wrong = np.flatnonzero(lengths != nx)
        if len(wrong):
            raise ValueError(f"{path}: row {row + wrong[0]} has {lengths[wrong[0]]} features; the first row has {nx}")
        return np.asarray(column.flatten(), np.float64).reshape(len(batch), nx)

    def blocks(first: int, size: int) -> Iterator[npt.NDArray[np.float64]]:
        group, row = 0, 0
        while group < len(groups) - 1 and row + groups[group] <= first:
            row += groups[group]
            group += 1
        kept = np.empty((0, nx))
        with open_file() as file:
            wanted = list(range(group, len(groups)))
            for batch in file.iter_batches(size, row_groups=wanted, columns=names, use_threads=False):
                rows = matrix(batch, row)
                kept = np.concatenate((kept, rows[max(0, first - row) :]))
                row += len(rows)
                while len(kept) >= size:
                    yield kept[:size]
                    kept = kept[size:]
        if len(kept):
            yield kept

    return StartFile(path, count, nx, blocks)


def _is_number(types: Any, kind: Any) -> bool:
    return types.is_floating(kind) or types.is_integer(kind)

