"""Limits on the controls: by projection, or by planning in a variable that cannot leave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# tanh is flat at its ends: a start on a bound would have no gradient to leave it by. 1 − 0.998 keeps 0.4% of the slope.
EDGE = 0.998


@dataclass(frozen=True)
class Bounding:
    """Between the decision variables v and the controls u, `[T, R, nu]`; limits are `[R, nu]`, `[1, nu]` or None.

    project   u = v, clipped after each step
    tanh      u = mid + half·tanh(v), so that ∂u/∂v = half·(1 − tanh²v)
    """

    kind: Literal["project", "tanh"]
    low: Tensor | None
    high: Tensor | None

    def variable(self, u: Tensor) -> Tensor:
        """The decision variables of the controls; controls outside the limits are moved inside first."""
        if self.kind == "project":
            return self.project(u)
        mid, half = self._middle()
        return torch.atanh(((u - mid) / half).clamp(-EDGE, EDGE))

    def control(self, v: Tensor) -> Tensor:
        """The controls of the decision variables."""
        if self.kind == "project":
            return v
        mid, half = self._middle()
        return torch.clamp(mid + half * torch.tanh(v), self.low, self.high)  # rounding may pass a limit by an ulp

    def pull(self, v: Tensor, grad_u: Tensor) -> Tensor:
        """The gradient in v of a cost whose gradient in u is `grad_u`."""
        if self.kind == "project":
            return grad_u
        return grad_u * self._middle()[1] * (1 - torch.tanh(v).square())

    def project(self, v: Tensor) -> Tensor:
        """The nearest decision variables within the limits."""
        return v if self.low is None or self.kind == "tanh" else torch.clamp(v, self.low, self.high)

    def projected(self, u: Tensor, grad_u: Tensor) -> Tensor:
        """The gradient in u, less what would only push against a limit: `u − clip(u − g)`. Zero at a constrained optimum.

        In u for both kinds: the gradient in v of tanh vanishes at either limit, the wrong one too.
        """
        return grad_u if self.low is None else u - torch.clamp(u - grad_u, self.low, self.high)

    def _middle(self) -> tuple[Tensor, Tensor]:
        assert self.low is not None and self.high is not None
        return (self.high + self.low) / 2, (self.high - self.low) / 2
