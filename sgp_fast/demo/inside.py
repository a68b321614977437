"""Looking into plans: what the model promises for them, what the simulator pays, and how far from the data they go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from .._optional import require
from ..backends.job import Iteration
from ..data import Dataset
from ..planner import SGP
from ..problem import Problem
from ..report import OpenLoop, Telemetry
from ..solving import solve
from .settings import Inside

Array = npt.NDArray[np.floating]

# What is shown of predicted and real trajectories: an index of the observation and its name.
SHOWN = {
    "Hopper-v5": {0: "torso height, m", 1: "torso pitch, rad", 5: "forward speed, m/s"},
    "HalfCheetah-v5": {0: "torso height, m", 1: "torso pitch, rad", 8: "forward speed, m/s"},
    "Walker2d-v5": {0: "torso height, m", 1: "torso pitch, rad", 8: "forward speed, m/s"},
}


@dataclass(frozen=True)
class Starts:
    """States of the data, as the planner sees them `[B, nx]` and as the simulator does."""

    x0: Array
    qpos: Array
    qvel: Array


def look_inside(
    inside: Inside, env_id: str, data: Dataset, problem: Problem, planner: SGP, seed: int
) -> tuple[list[Telemetry], list[OpenLoop]]:
    """The same starts planned with and without the score, each plan executed in the simulator after some iterations."""
    rng = np.random.default_rng(seed)
    # A start whose episode goes on for a horizon: otherwise what comes next is a fall that no plan could avoid.
    rows = np.sort(rng.choice(data.windows(planner.horizon), inside.starts, replace=False))
    starts = Starts(data.observations[rows], data.infos["qpos"][rows], data.infos["qvel"][rows])
    telemetry, open_loop = [], []
    for key, chosen in (("sgp", planner), ("no_score", replace(planner, beta=0.0))):
        seen: dict[int, Array] = {}

        def keep(at: Iteration, seen: dict[int, Array] = seen) -> None:
            if at.index in inside.executed_after:
                seen[at.index] = at.u.numpy().copy()

        chosen = replace(chosen, record_cost=True)
        plan = solve(problem, chosen, torch.from_numpy(starts.x0), seed=seed, callback=keep)
        assert plan.history is not None
        seen[planner.iterations] = plan.u.numpy()
        executed = [execute(env_id, starts, seen[i]) for i in inside.executed_after]
        telemetry.append(
            Telemetry(
                key=key,
                cost_history=plan.history.numpy(),
                predicted_cost=plan.cost.numpy(),
                real_iterations=np.array(inside.executed_after),
                real_cost=np.stack([cost for cost, _ in executed], 1),
                score_norm=plan.score_norm.numpy(),
            )
        )
        first = slice(0, inside.shown)
        open_loop.append(
            OpenLoop(
                key=key,
                predicted=plan.x[first].numpy(),
                real=executed[-1][1][first],
                scale=data.observations.std(0),
                dims=tuple(SHOWN[env_id]),
                names=tuple(SHOWN[env_id].values()),
            )
        )
    return telemetry, open_loop


def execute(env_id: str, starts: Starts, u: Array) -> tuple[Array, Array]:
    """Controls `[B, T, nu]` in the simulator from its own states: minus the reward `[B]`, and observations `[B, T+1, nx]`.

    After a fall no reward is paid, and there are no observations (NaN).
    """
    gym = require("gymnasium", extra="mujoco")
    env = gym.make(env_id)
    cost = np.zeros(len(u))
    x = np.full((len(u), u.shape[1] + 1, starts.x0.shape[1]), np.nan)
    x[:, 0] = starts.x0
    for i, controls in enumerate(u):
        env.reset(seed=0)
        env.unwrapped.set_state(starts.qpos[i], starts.qvel[i])
        for t, control in enumerate(controls):
            x[i, t + 1], reward, terminated, _, _ = env.step(control)
            cost[i] -= float(reward)
            if terminated:
                break
    env.close()
    return cost, x
