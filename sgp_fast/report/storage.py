"""Trees of frozen dataclasses in a folder: `results.json` to be read, `arrays.npz` for arrays and pictures."""

from __future__ import annotations

import hashlib
import json
import math
import os
import types
import zipfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from .._files import atomic_path

T = TypeVar("T")
FORMAT = 1
TREE, ARRAYS = "results.json", "arrays.npz"


def save_tree(tree: Any, folder: str | os.PathLike[str]) -> Path:
    """Write a tree of dataclasses into a folder, arrays first.

    The JSON file holds the digest of the arrays that belong to it and is renamed into place last: a save that is killed
    between the two is found out by `load_tree`, not read as a mixture.
    """
    folder = Path(folder)
    arrays: dict[str, np.ndarray] = {}
    encoded = _encode(tree, "", arrays)
    with atomic_path(folder / ARRAYS) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
        digest = _digest(temporary)
    with atomic_path(folder / TREE) as temporary:
        document = {"format": FORMAT, "arrays_sha256": digest, "results": encoded}
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return folder


def load_tree(cls: type[T], folder: str | os.PathLike[str]) -> T:
    """The tree of `cls` that `save_tree` wrote; FileNotFoundError or ValueError with the remedy."""
    folder = Path(folder)
    for name in (TREE, ARRAYS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; give the folder that the demo wrote its results to")
    again = "run the demo again"
    try:
        document = json.loads((folder / TREE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / TREE} is no JSON ({error}); {again}") from error
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT:
        raise ValueError(f"{folder / TREE} has format {version!r}, this version reads {FORMAT}; {again}")
    if _digest(folder / ARRAYS) != document.get("arrays_sha256"):
        raise ValueError(f"{folder / ARRAYS} does not belong to its {TREE}: a save was interrupted; {again}")
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            return _decode(cls, document["results"], arrays)
    except (KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder / TREE} lacks or misnames a field: {error!r}; {again}") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON of a value; arrays and bytes go to `arrays` under the path that leads to them."""
    if is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name), f"{name}.{f.name}".lstrip("."), arrays) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _encode(item, f"{name}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, bytes):
        value = np.frombuffer(value, dtype=np.uint8)
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN; float("nan") reads it back
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; results hold numbers, strings, arrays and containers of these")


def _decode(hint: Any, value: Any, arrays: Any) -> Any:
    """The value of type `hint` that `_encode` gave."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(next(a for a in args if a is not type(None)), value, arrays)
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{name: _decode(hints[name], item, arrays) for name, item in value.items()})
    if origin is tuple:
        of = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(_decode(kind, item, arrays) for kind, item in zip(of, value, strict=True))
    if origin is dict:
        return {key: _decode(args[1], item, arrays) for key, item in value.items()}
    if origin is np.ndarray:
        return arrays[value["array"]]
    if hint is bytes:
        return arrays[value["array"]].tobytes()
    if hint is Any:
        return value
    return hint(value)
