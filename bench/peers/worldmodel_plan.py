"""The gradient solver of stable-worldmodel over the models of a case: the algorithm of this package in another's loop."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cases import Case
from ..rung import Unavailable
from .models import Models, load, models_of

EXTRA = "worldmodel"


class ProjectedAdam(torch.optim.Adam):
    """Adam whose steps end inside the bounds: the solver takes an optimizer's class, and projects nothing itself."""

    def __init__(self, params: Any, low: Tensor, high: Tensor, **options: Any) -> None:
        super().__init__(params, **options)
        self.low, self.high = low, high

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.clamp_(self.low, self.high)
        return loss


class Objective:
    """What the solver descends: `Σ_t c_t − β_i Σ_t z_t·s(z_t)`, s not differentiated; i is the number of calls so far."""

    def __init__(self, models: Models, schedule: list[tuple[float, int]]) -> None:
        self.models, self.schedule, self.calls = models, schedule, 0

    def get_cost(self, info: dict[str, Tensor], actions: Tensor) -> Tensor:
        """Value `[B, S]` of action sequences `[B, S, T, nu]` from states `[B, S, nx]`."""
        beta, level = self.schedule[self.calls]
        self.calls += 1
        states, u = [info["state"]], actions.movedim(2, 0)
        for u_t in u[:-1]:
            states.append(self.models.step(states[-1], u_t))
        x, score = torch.stack(states), self.models.problem.score
        value = self.models.cost(x, u).sum(0)
        if score is None:
            return value
        z = torch.cat((x, u), -1)
        with torch.no_grad():
            pull = beta * score(z, level)
        return value - (z * pull).sum((0, -1))


def stable_worldmodel(case: Case) -> Callable[[], Tensor]:
    """GradientSolver of stable-worldmodel from `case.init`, with projected Adam: the algorithm of this package.

    The library prints a line a plan, which is held back, and reads the cost back after each step, which is its way.
    """
    models, planner = models_of(case), case.planner
    if planner.bounding != "project" or planner.starts > 1 or planner.clip_gradient is not None:
        raise Unavailable("the solver plans one projected start, and clips no gradient of a single problem")
    solvers, policy = load("stable_worldmodel.solver", EXTRA), load("stable_worldmodel.policy", EXTRA)
    spaces = load("gymnasium.spaces", EXTRA)
    batch, horizon, _ = case.init.shape
    b1, b2, eps = planner.adam
    if not isinstance(planner.step_size, int | float):
        raise Unavailable("takes one step size, and the planner has a schedule of them")
    adam = {"lr": planner.step_size, "betas": (b1, b2), "eps": eps, "low": models.low, "high": models.high}
    config = policy.PlanConfig(horizon=horizon, receding_horizon=1)
    low, high = (bound.cpu().numpy()[None].repeat(batch, 0) for bound in (models.low, models.high))
    space = spaces.Box(low, high)

    def plan() -> Tensor:
        solver = solvers.GradientSolver(
            Objective(models, case.schedule),
            n_steps=planner.iterations,
            device=case.device,
            optimizer_cls=ProjectedAdam,
            optimizer_kwargs=adam,
        )
        solver.configure(action_space=space, n_envs=batch, config=config)
        with contextlib.redirect_stdout(io.StringIO()):
            return solver.solve({"state": case.x0}, init_action=case.init)["actions"].to(case.device)

    return plan
