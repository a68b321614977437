"""MPPI and CEM of TorchRL over the models of a case, in an environment that steps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cases import Case
from .models import SAMPLING, Models, Sampling, load, models_of, seeded


class RewardStep(nn.Module):
    """`(x, u) → (x', −c(x, u))`, the world model of an environment."""

    def __init__(self, models: Models) -> None:
        super().__init__()
        self.models = models

    def forward(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.models.step(x, u), -self.models.cost(x, u)[..., None]


class Advantage(nn.Module):
    """How much better than the best candidate: its return less the highest of the problem's, `[B, K, T, 1]`, at most 0.

    TorchRL's MPPI takes any module that writes "advantage" and weighs candidates by exp(temperature · advantage), which
    would underflow for plain returns. This is TD(λ=1) without discount and value function, but for a shift that the
    weights do not see.
    """

    def forward(self, tensordict: Any) -> Any:
        reward = tensordict["next", "reward"]
        returns = reward.sum(-2, keepdim=True)
        return tensordict.set("advantage", (returns - returns.amax(-3, keepdim=True)).expand_as(reward))


@dataclass(frozen=True, eq=False)
class TorchRL:
    """A planner of TorchRL, which answers the first control only; the others are the same refit of its last candidates.

    sharpness   1/λ of the refit's weights; 0 for CEM, whose elites count alike
    """

    case: Case
    environment: Any
    planner: Any
    settings: Sampling
    sharpness: float

    @torch.no_grad()
    def __call__(self) -> Tensor:
        found = []
        with seeded(self.settings.seed, self.case.device):
            for x0 in self.settings.blocks(self.case.x0):
                first = self.planner(self.environment.at(x0))["action"]
                found.append(torch.cat((first[:, None], self.refit()[:, 1:]), 1))
        return torch.cat(found)

    def refit(self) -> Tensor:
        """Weighted mean `[B, T, nu]` of the elites among the candidates that were imagined last."""
        last = self.environment.imagined
        returns = last["next", "reward"].sum(-2)  # [B, K, 1]
        best, index = returns.topk(self.settings.elites, dim=1)
        actions = last["action"]
        elites = actions.gather(1, index[..., None].expand(-1, -1, *actions.shape[2:]))
        return ((self.sharpness * best).softmax(1)[..., None] * elites).sum(1)

    @torch.no_grad()
    def foreseen(self, u: Tensor) -> Tensor:
        """Task cost `[B]` of controls `u [B, T, nu]` of the first problems, rolled out in the planner's environment."""
        controls = iter(u.unbind(1))
        imagined = self.environment.rollout(
            max_steps=u.shape[1],
            policy=lambda tensordict: tensordict.set("action", next(controls)),
            auto_reset=False,
            tensordict=self.environment.at(self.case.x0[: len(u)]),
            break_when_any_done=False,
        )
        return -imagined["next", "reward"].sum((-2, -1))


def torchrl_mppi(case: Case, settings: Sampling = SAMPLING) -> TorchRL:
    """TorchRL's MPPIPlanner: refits mean and spread to the elites, weighted by exp(−cost/λ)."""
    environment, planners = _environment(models_of(case), case), load("torchrl.modules.planners")
    sharpness = 1 / settings.temperature
    planner = planners.MPPIPlanner(environment, Advantage(), sharpness, *_plan_sizes(case, settings))
    return TorchRL(case, environment, planner.to(case.device), settings, sharpness)


def torchrl_cem(case: Case, settings: Sampling = SAMPLING) -> TorchRL:
    """TorchRL's CEMPlanner: refits mean and spread to the elites, which count alike."""
    environment, planners = _environment(models_of(case), case), load("torchrl.modules.planners")
    return TorchRL(case, environment, planners.CEMPlanner(environment, *_plan_sizes(case, settings)), settings, 0.0)


def _plan_sizes(case: Case, settings: Sampling) -> tuple[int, int, int, int]:
    return case.planner.horizon, settings.iterations, settings.candidates, settings.elites


def _environment(models: Models, case: Case) -> Any:
    """Our models as an environment of TorchRL that accepts any batch and remembers what was imagined in it last."""
    envs, data, tensordict = load("torchrl.envs"), load("torchrl.data"), load("tensordict")
    module = load("tensordict.nn").TensorDictModule
    nx, device = case.x0.shape[1], case.device

    class Environment(envs.ModelBasedEnvBase):
        def __init__(self) -> None:
            keys = ["observation", "action"], ["observation", "reward"]
            super().__init__(module(RewardStep(models), *keys), device=device, batch_size=torch.Size(()))
            state = data.Composite(observation=data.Unbounded((nx,), device=device))
            self.observation_spec, self.state_spec = state, state.clone()
            self.action_spec = data.Bounded(models.low, models.high, models.low.shape, device, torch.float32)
            self.reward_spec = data.Unbounded((1,), device=device)
            self.imagined: Any = None

        def at(self, x0: Tensor) -> Any:
            return tensordict.TensorDict({"observation": x0}, [len(x0)], device=device)

        def rollout(self, *args: Any, **options: Any) -> Any:
            self.imagined = super().rollout(*args, **options)
            return self.imagined

        def _reset(self, tensordict: Any, **options: Any) -> Any:
            """Every state is a start: what is given stays."""
            return self.observation_spec.zero() if tensordict is None else tensordict.select("observation")

    return Environment()
