"""Costs as users write them, for the tests of tracing: obstacles, goals, a MuJoCo-style reward, Huber, and what is odd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NX, NU = 5, 2
_MIXING = torch.linspace(-1, 1, NX * NX).view(NX, NX).cos()


def obstacles(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: dict[str, Tensor]) -> Tensor:
    """To a goal, around round obstacles, `centres [B, n, 2]` and `radii [B, n]`."""
    distance = (x[..., None, :2] - params["centres"]).norm(dim=-1)
    inside = (params["radii"] - distance).clamp(min=0)
    return (x - goal).square().sum(-1) + 10 * inside.square().sum(-1) + 0.1 * u.square().sum(-1)


def huber(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Any) -> Tensor:
    return F.huber_loss(x @ _MIXING.to(x), goal.expand_as(x), reduction="none", delta=0.5).sum(-1) + 0.01 * u.abs().sum(-1)


def hopper_like(x: Tensor, u: Tensor) -> Tensor:
    """A reward as MuJoCo's tasks have it: forward speed, a bonus for standing, control cost."""
    healthy = (x[..., 0] > -0.7) & (x[..., 1].abs() < 0.9)
    return -(x[..., 3] + torch.where(healthy, 1.0, 0.0) - 1e-3 * u.square().sum(-1))


def quadratic_in_time(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Tensor) -> Tensor:
    """A weight for each problem, discounted; the last steps count double."""
    weight = params * 0.9**t * torch.where(t >= 2, 2.0, 1.0)
    return weight * torch.einsum("...i,ij,...j->...", x, _MIXING.to(x), x).square() + u.square().mean(-1)


def swing(x: Tensor, u: Tensor) -> Tensor:
    angle = torch.atan2(x[..., 0], 1.5 + x[..., 1])
    lean = torch.sin(x[..., 2]).pow(2) + torch.tan(0.3 * x[..., 3])
    return angle.square() + lean + torch.asin(0.5 * torch.tanh(u[..., 0]))


def smooth_choices(x: Tensor, u: Tensor) -> Tensor:
    return torch.logsumexp(x, -1) + F.softplus(x[..., 0]) + F.gelu(x[..., 1]) + (F.softmax(x, -1) * x).sum(-1)


def kinks(x: Tensor, u: Tensor) -> Tensor:
    return x.relu().amax(-1) + torch.maximum(u[..., 0], u[..., 1]) + x.clamp(-0.5, 0.5).abs().sum(-1) + F.elu(x[..., 0])


def written_in_place(x: Tensor, u: Tensor) -> Tensor:
    scaled = x.clone()
    scaled[..., 1:3] *= 2
    scaled[..., 0] += u[..., 0]
    return scaled.square().sum(-1)


def powers(x: Tensor, u: Tensor) -> Tensor:
    roots = (1 + x[..., 0].square()).pow(0.3) + (x[..., 2].abs() + 1).rsqrt()
    return roots + x[..., 1] ** 3 + torch.log1p(x[..., 3].square())


class SmallNetwork(nn.Module):
    """A module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(NX + NU, 6), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 1))
        for p in self.net.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.net(torch.cat((x, u), -1)).square().mean(-1)


@dataclass(frozen=True)
class Given:
    """A cost, whether it reads a goal, and params of so many problems."""

    cost: Callable[..., Tensor] | nn.Module
    goal: bool = False
    params: Callable[[int], Any] = lambda problems: None


def _obstacles(problems: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(problems, 3, 2, generator=generator)
    return {"centres": centres, "radii": 0.5 + torch.rand(problems, 3, generator=generator)}


TRACEABLE: dict[str, Given] = {
    "obstacles": Given(obstacles, goal=True, params=_obstacles),
    "huber": Given(huber, goal=True),
    "hopper": Given(hopper_like),
    "time": Given(quadratic_in_time, goal=True, params=lambda problems: torch.linspace(0.5, 1.5, problems)),
    "swing": Given(swing),
    "choices": Given(smooth_choices),
    "kinks": Given(kinks),
    "in place": Given(written_in_place),
    "powers": Given(powers),
    "module": Given(SmallNetwork()),
}


def branches(x: Tensor, u: Tensor) -> Tensor:
    return x.square().sum(-1) if x.sum() > 0 else u.square().sum(-1)


def looks_up(x: Tensor, u: Tensor) -> Tensor:
    table = torch.linspace(0, 1, 8, device=x.device)
    return table[(x[..., 0].clamp(0, 6)).long()] + x.square().sum(-1)


def beyond_its_row(x: Tensor, u: Tensor) -> Tensor:
    return (x - x.mean(0, keepdim=True)).square().sum(-1) + u.square().sum(-1)


def huge(x: Tensor, u: Tensor) -> Tensor:
    wide = torch.outer(torch.linspace(-1, 1, 2000), torch.linspace(0.5, 1, NX)).to(x)
    return (x @ wide.T).tanh().sum(-1)


# With words of the reason.
UNTRACEABLE: dict[str, tuple[Callable[..., Tensor], str]] = {
    "branches": (branches, "torch.where"),
    "looks up": (looks_up, "index depends"),
    "beyond its row": (beyond_its_row, "rows must be independent"),
    "huge": (huge, "more than 4096 operations"),
}
