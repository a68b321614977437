"""Libraries that only some uses need: loaded where they are used, and named with their install command where absent."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple


class Library(NamedTuple):
    """An optional library: the name it is imported by, the name it is installed by, and our extra that brings it."""

    module: str
    distribution: str
    extra: str


LIBRARIES = (
    Library("gymnasium", "gymnasium", "mujoco"),
    Library("mujoco", "mujoco", "mujoco"),
    Library("h5py", "h5py", "data"),
    Library("minari", "minari", "data"),
    Library("PIL", "pillow", "data"),
    Library("pyarrow", "pyarrow", "data"),
    Library("d4rl", "d4rl", "d4rl"),
    Library("lightning_fabric", "lightning-fabric", "train"),
    Library("tqdm", "tqdm", "train"),
    Library("tensorboard", "tensorboard", "tensorboard"),
    Library("tyro", "tyro", "cli"),
    Library("rich", "rich", "cli"),
    Library("matplotlib", "matplotlib", "report"),
    Library("jinja2", "jinja2", "report"),
    Library("pytest_benchmark", "pytest-benchmark", "bench"),
    Library("scipy", "scipy", "bench"),
    Library("jsonschema", "jsonschema", "bench"),
    Library("torchrl", "torchrl", "peers"),
    Library("pytorch_mppi", "pytorch-mppi", "peers"),
    Library("stable_worldmodel", "stable-worldmodel", "worldmodel"),
    Library("jax", "jax", "jax"),
)


def install_command(extra: str) -> str:
    """The shell command that installs what `sgp-fast[extra]` brings."""
    command = f'pip install "sgp-fast[{extra}]"'
    if extra == "d4rl":
        # d4rl's own requirements cannot be installed any more (mujoco-py), so it comes without them.
        command += " && pip install --no-deps d4rl==1.1"
    return command


def require(name: str, extra: str) -> ModuleType:
    """Import the optional module `name`, or say in one sentence how to install it.

        h5py = require("h5py", extra="data")

    Raises ImportError where the library is absent (with the install command) and where it is present but does not
    import (with its own reason, which is kept as the cause).
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        root = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise ImportError(
                f"{name} is installed but needs {error.name}, which is not; run: {install_command(extra)}"
            ) from error
        # A module that is None in sys.modules is reported here too: someone has blocked it on purpose.
        raise ImportError(f"this needs {name}, which is not installed; run: {install_command(extra)}") from error
    except ImportError as error:
        raise ImportError(
            f"{name} is installed but does not import ({error}); reinstall it with: {install_command(extra)}"
        ) from error
