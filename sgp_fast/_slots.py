"""The environments of a controller: which are active, how far each is, and what it draws random numbers by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Numbers of step k begin at key k·2³²: more than there are environments.
_STEP_KEY = 1 << 32

Rows = npt.NDArray[np.int64]


class Slots:
    """B places for environments, each at step `step[i]` of its episode."""

    def __init__(self, batch_size: int) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        self.batch_size = batch_size
        self.step = np.zeros(batch_size, np.int64)

    def rows(self, mask: Any, name: str = "active") -> Rows:
        """Indices of the environments in a boolean mask `[B]`; None is all."""
        if mask is None:
            return np.arange(self.batch_size)
        mask = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
        if mask.shape != (self.batch_size,) or mask.dtype != bool:
            raise ValueError(f"{name} is {mask.dtype}{list(mask.shape)}; expected a boolean mask [{self.batch_size}]")
        return np.flatnonzero(mask)

    def keys(self, rows: Rows) -> Rows:
        """A key for the random numbers of each of these environments at its present step; at step 0 it is its index."""
        return rows + _STEP_KEY * self.step[rows]

    def observations(self, obs: Any, rows: Rows) -> Tensor:
        """The observations of some environments `[len(rows), nx]`, from those of all `[B, nx]`; checked to be finite."""
        if not isinstance(obs, Tensor):
            obs = torch.as_tensor(np.asarray(obs))
        if obs.ndim != 2 or len(obs) != self.batch_size:
            raise ValueError(f"obs has shape {tuple(obs.shape)}; expected [{self.batch_size}, nx], a row an environment")
        if obs.dtype.is_complex:
            raise TypeError(f"obs is {obs.dtype}; expected real numbers")
        chosen = obs.detach()[torch.from_numpy(rows).to(obs.device)]
        bad = rows[(~chosen.isfinite().all(1)).cpu().numpy()]
        if len(bad):
            raise ValueError(
                f"obs has a value that is not finite in row {bad[0]} ({len(bad)} active rows in all); reset that "
                "environment, or leave it out of `active`"
            )
        return chosen
