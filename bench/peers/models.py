"""What any peer is given: the models of a case as functions of single steps, the settings of sampling, and its library."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast._optional import require
from sgp_fast.costs import CustomCost
from sgp_fast.models import cast
from sgp_fast.planner import Precision
from sgp_fast.problem import AutogradDynamics

from ..cases import Case
from ..rung import Unavailable


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling planners. All evaluate `iterations × candidates` control sequences a problem.

    candidates    sequences drawn at once; 512 and 64 elites as in TD-MPC (Hansen et al. 2022, arXiv 2203.04955)
    elites        the cheapest ones, which TorchRL's planners refit their distribution to
    iterations    refits; 5 as CEM in PETS (Chua et al. 2018, arXiv 1805.12114)
    temperature   λ of MPPI's weights exp(−cost/λ), our choice: costs of a few steps differ by tenths between candidates, so
                  pytorch_mppi's default of 1 weighs all alike and moves nothing
    spread        standard deviation of pytorch_mppi's noise, as a share of the range between the bounds. TorchRL's planners
                  begin with mean 0 and standard deviation 1 whatever the bounds are
    seed          of all draws, anew at every plan
    rows          candidates evaluated at once; larger batches are planned in blocks, as activations would not fit
    """

    candidates: int = 512
    elites: int = 64
    iterations: int = 5
    temperature: float = 0.05
    spread: float = 0.25
    seed: int = 0
    rows: int = 1 << 18

    @property
    def evaluated(self) -> int:
        """Candidates of a plan."""
        return self.iterations * self.candidates

    @property
    def budget(self) -> str:
        """For labels: `5 × 512 candidates`."""
        return f"{self.iterations} × {self.candidates:,} candidates"

    def blocks(self, x0: Tensor) -> tuple[Tensor, ...]:
        """A batch `[B, ...]` in pieces whose candidates are evaluated at once."""
        return x0.split(max(1, self.rows // self.candidates))


SAMPLING = Sampling()
# One command of a controller that draws many.
COMMAND = Sampling(candidates=4096, iterations=1)


@dataclass(frozen=True, eq=False)
class Models:
    """Dynamics and cost as functions of `x [..., nx]` and `u [..., nu]`, differentiable, weights frozen; bounds `[nu]`."""

    problem: sgp.Problem
    low: Tensor
    high: Tensor

    def step(self, x: Tensor, u: Tensor) -> Tensor:
        dynamics = self.problem.dynamics
        return dynamics.module(x, u) if isinstance(dynamics, AutogradDynamics) else dynamics(x, u)

    def cost(self, x: Tensor, u: Tensor) -> Tensor:
        """Cost `[...]` of a step."""
        cost = self.problem.cost
        if isinstance(cost, sgp.QuadraticCost):
            return cost.value_and_grad(x, u, self.problem.goal, torch.zeros(()), None)[0]
        return (cost.function(x, u) if isinstance(cost, CustomCost) else cost(x, u)).reshape(x.shape[:-1])


def models_of(case: Case, precisions: Collection[Precision] = ("float32",)) -> Models:
    """The models of a case, with products in its precision; raises Unavailable for one that is not covered."""
    problem, planner = case.problem, case.planner
    reasons = {
        f"plans in {' or '.join(precisions)}, and the case is in {planner.precision}": planner.precision not in precisions,
        "steps the dynamics by value, and these have only `vjp`": not callable(problem.dynamics)
        and not isinstance(problem.dynamics, AutogradDynamics),
        "takes a cost of (x, u), and this one is another": not isinstance(problem.cost, sgp.LearnedCost | sgp.QuadraticCost)
        and not (isinstance(problem.cost, CustomCost) and problem.cost.simple),
        "takes costs of single steps, and the problem has a terminal cost": problem.terminal is not None,
        "takes costs of single steps, and the problem penalises changes": problem.control_change != 0,
        "takes one goal, and each problem has its own": getattr(problem.goal, "ndim", 1) > 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise Unavailable(reason)
    low, high = _bounds(case)
    problem = problem.prepared(torch.float32, planner.product_dtype, case.device)
    frozen = {
        name: cast(part, torch.float32, planner.product_dtype)
        for name, part in problem.modules.items()
        if any(weight.requires_grad for weight in part.parameters())
    }
    goal = None if problem.goal is None else torch.as_tensor(problem.goal).to(case.x0)
    return Models(replace(problem, goal=goal, **frozen), low, high)  # pyright: ignore[reportArgumentType]


def _bounds(case: Case) -> tuple[Tensor, Tensor]:
    """Bounds `[nu]` on the case's device."""
    if case.problem.bounds is None:
        raise Unavailable("plans between bounds, and the problem has none")
    low, high = (torch.as_tensor(bound).to(case.init) for bound in case.problem.bounds)
    if max(low.ndim, high.ndim) > 1:
        raise Unavailable("takes bounds that all problems share, and each problem has its own")
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise Unavailable("plans between finite bounds, and these are not")
    nu = case.init.shape[-1]
    return low.expand(nu).contiguous(), high.expand(nu).contiguous()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The libraries draw from PyTorch's global generators: seed them for a plan, and leave them as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def load(name: str, extra: str = "peers") -> ModuleType:
    """A peer's module. Some break at import with an error of their own, as where torchvision was built for another torch."""
    try:
        return require(name, extra=extra)
    except ImportError:
        raise
    except Exception as error:
        raise Unavailable(f"{name} is installed but does not import ({error})") from error
