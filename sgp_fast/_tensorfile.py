"""One file for tensors and their description: safetensors with JSON in its header, written beside and renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ._files import atomic_path

_KEY = "config"


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write `tensors` and `config` (plain JSON data) to `path`; a reader sees the old file or the new, never a part."""
    data = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with atomic_path(Path(path)) as temporary:
        # By way of bytes: `save_file` would make a file that only its owner may read, whatever the umask.
        temporary.write_bytes(safetensors.torch.save(data, metadata={_KEY: json.dumps(config)}))


def load_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a file that `save_tensors` wrote with `config["kind"] == kind`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a {kind} file written by sgp_fast")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration protocol)
    except safetensors.SafetensorError as error:
        why = f"{path} is not a readable safetensors file ({error})"
        raise ValueError(f"{why}; truncated? delete it and make it again") from None
    if config.get("kind") != kind:
        raise ValueError(f"{path} holds {config.get('kind', 'something unknown')!r}; expected a {kind} file")
    return tensors, config
