"""Your own model as a case: the folder of a training run, or a Python file that builds a `Problem`."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.problem import device_of
from sgp_fast.solving import job_of
from sgp_fast.trained import MODELS_FILE

from .cases import Case

EXPECTED = "expected the folder of a training run, its models.safetensors, or a Python file that builds a Problem"


@dataclass(frozen=True)
class Brought:
    """What a source tells: its name, the problem, the planner, and start states where it has its own."""

    name: str
    problem: sgp.Problem
    planner: sgp.SGP
    x0: Tensor | None = None


def load_case(
    source: Path | str,
    *,
    problems: int = 64,
    horizon: int | None = None,
    iterations: int | None = None,
    precision: str | None = None,
    seed: int = 0,
) -> Case:
    """The case of a source, with its own planner where `horizon`, `iterations` and `precision` say nothing else.

    source   the folder of a training run or its models.safetensors: the networks as `sgp-fast evaluate` plans with them
             a Python file that defines `problem`, an `sgp.Problem`, or `make_problem()`, which gives one; also, if it
             likes, `planner` (an `sgp.SGP`) and `x0`, start states `[B, nx]`, which are taken in turn

    Other start states are b + k·normal, by the normalizer of the dynamics. Problems are planned once from one start, and
    to the last iteration (tolerance 0): a time that depends on when a plan converges compares badly. Raises
    FileNotFoundError, TypeError or ValueError that name the file, and the line where it is to blame.
    """
    source = Path(source)
    if problems < 1:
        raise ValueError(f"problems is {problems}; expected at least 1")
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; {EXPECTED}")
    if source.is_file() and source.suffix not in (".py", ".safetensors"):
        raise ValueError(f"{source} is neither; {EXPECTED}")
    brought = _file(source) if source.suffix == ".py" else _run(source)
    planner = brought.planner
    if planner.starts > 1:
        raise ValueError(f"{source}: planner.starts is {planner.starts}; a case plans one start a problem: leave it out")
    given = {"horizon": horizon, "iterations": iterations, "precision": precision}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    planner = replace(planner, tolerance=0.0, **changes)
    x0 = _starts(brought, source, problems, seed)
    job = job_of(brought.problem, planner, x0)  # checked, as `solve` would
    return Case(brought.name, brought.problem, planner, job.x0, job.u)


def _run(source: Path) -> Brought:
    """Trained models, planned with as the commands do."""
    from sgp_fast.commands import DEFAULT, models_of, problem_of, trained_bounds

    models = models_of(source)
    folder = source.resolve() if source.is_dir() else source.resolve().parent
    return Brought(folder.name or MODELS_FILE, problem_of(models, trained_bounds(models)), DEFAULT)


def _file(source: Path) -> Brought:
    """What a Python file defines. Its neighbours import, as where Python runs it."""
    with _on_path(str(source.resolve().parent)):
        defined = _executed(source)
        problem = defined.get("problem")
        if problem is None and callable(make := defined.get("make_problem")):
            problem = _told(source, make)
    if problem is None:
        raise ValueError(f"{source} defines no problem; set `problem = sgp.Problem(...)`, or define make_problem()")
    _expect(source, "problem", problem, sgp.Problem)
    planner = defined.get("planner")
    if planner is None:
        from sgp_fast.commands import DEFAULT as planner
    _expect(source, "planner", planner, sgp.SGP)
    return Brought(source.stem, problem, planner, _own_starts(source, defined.get("x0")))


def _executed(source: Path) -> dict[str, Any]:
    """The names of a file that was run as a module, so that its classes can be found by name."""
    module = ModuleType(f"sgp_fast_case_{abs(hash(source.resolve())):x}")
    module.__file__ = str(source)
    sys.modules[module.__name__] = module
    try:
        _told(source, lambda: exec(compile(source.read_bytes(), str(source), "exec"), vars(module)))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return vars(module)


@contextlib.contextmanager
def _on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _told(source: Path, call: Callable[[], Any]) -> Any:
    """The result of a call into a user's file; what it raises comes as a ValueError with the file's own line."""
    try:
        return call()
    except SyntaxError as error:
        raise ValueError(f"{error.filename or source}, line {error.lineno}: SyntaxError: {error.msg}") from error
    except (Exception, SystemExit) as error:
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(source)]
        line = f", line {own[-1]}" if own else ""
        raise ValueError(f"{source}{line}: {type(error).__name__}: {error}") from error


def _expect(source: Path, name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{source}: {name} is a {type(value).__name__}; expected an sgp.{kind.__name__}")


def _own_starts(source: Path, x0: Any) -> Tensor | None:
    if x0 is None:
        return None
    try:
        starts = torch.as_tensor(x0).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{source}: x0 is a {type(x0).__name__} ({error}); expected start states [B, nx]") from None
    starts = starts[None] if starts.ndim == 1 else starts
    if starts.ndim != 2 or len(starts) == 0:
        raise ValueError(f"{source}: x0 has shape {tuple(starts.shape)}; expected [B, nx] with at least one start, or [nx]")
    return starts


def _starts(brought: Brought, source: Path, problems: int, seed: int) -> Tensor:
    """Start states `[problems, nx]`: the source's own in turn, else random ones of the scale of its data."""
    device = device_of(brought.problem)
    if brought.x0 is not None:
        rows = torch.arange(problems) % len(brought.x0)
        return brought.x0.to(device)[rows.to(device)]
    dynamics = brought.problem.dynamics
    normalizer = getattr(dynamics, "normalizer", None)
    if normalizer is None or not hasattr(dynamics, "nx"):
        raise ValueError(
            f"{source} defines no x0, and its dynamics have no normalizer to draw start states by; "
            "define `x0`, start states [B, nx]"
        )
    b, k = (t[: dynamics.nx].detach().cpu() for t in (normalizer.b, normalizer.k))
    normal = torch.randn(problems, dynamics.nx, generator=torch.Generator().manual_seed(seed), dtype=b.dtype)
    return (b + k * normal).to(device)
