"""A device that captures as CUDA does, on the CPU: a replay repeats operations and kernels on the memory that they had.

Python does not run again: what it would have decided, rebound or counted is as it was at capture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

from sgp_fast.backends.fused.device import EagerDevice

Body = Callable[[], None]
_EXECUTOR: Any = interpreter.GridExecutor


class TapeGraph:
    bytes = 0

    def __init__(self, steps: list[Body]) -> None:
        self._steps: list[Body] | None = steps
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        assert self._steps is not None, "a released graph was replayed"
        self.replays += 1
        for step in self._steps:
            step()

    def release(self) -> None:
        self._steps = None


class TapeDevice(EagerDevice):
    """With `fails_at` n the n-th capture fails, after its warm-up."""

    captures = True

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__(torch.device("cpu"))
        self.graphs: list[TapeGraph] = []
        self.tries, self._fails_at = 0, fails_at

    def capture(self, body: Body) -> Any:
        body()
        self.tries += 1
        with _Tape() as tape:
            body()
            if self.tries == self._fails_at:
                raise RuntimeError("operation not permitted when stream is capturing")
        self.graphs.append(TapeGraph(tape.steps))
        return self.graphs[-1]


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Body] = []

    def __enter__(self) -> _Tape:
        self._launch = launch = _EXECUTOR.__call__

        def recorded(executor: Any, *args: Any, **kwargs: Any) -> None:
            def step() -> None:
                with _disable_current_modes():
                    launch(executor, *args, **kwargs)

            step()
            self.steps.append(step)

        _EXECUTOR.__call__ = recorded
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _EXECUTOR.__call__ = self._launch
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))

        def step() -> None:
            fresh = func(*args, **(kwargs or {}))
            for old, new in zip(tree_leaves(out), tree_leaves(fresh), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.steps.append(step)
        return out
