"""The methods of the demo in closed loop: the same seeds and steps for each, and pictures of one episode."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from .._optional import require
from ..evaluation import Controller, Evaluation, Trajectory, evaluate
from ..mpc import MPC
from ..policies import BehaviorPolicy
from ..problem import Problem
from ..report import Frame, FrameStrip, MethodResult
from .settings import Settings

FRAMES = 7
PIXELS = (320, 320)


def run_methods(
    settings: Settings, name: str, env_id: str, problem: Problem, say: Callable[[str], None]
) -> tuple[list[MethodResult], list[FrameStrip], str | None]:
    """Every method's episodes, frames of the first episode of each, and why there are none where there are none."""
    task, _, quality = name.partition("-")
    planner, sampling, run = settings.planner_of(name), settings.sampling, settings.evaluation
    batch, seed = run.episodes, settings.seed
    sgp, free, cem = asdict(planner), asdict(replace(planner, beta=0.0)), asdict(sampling)
    sampled = "CEM without score (β = 0)" if sampling.beta == 0 else "CEM"
    methods: list[tuple[str, str, Callable[[], Controller], dict[str, Any]]] = [
        ("behavior", f"behaviour policy ({quality})", lambda: BehaviorPolicy(task, quality, batch, seed), {}),
        ("sgp", "SGP", lambda: MPC(problem, planner, batch, seed=seed), sgp),
        ("no_score", "SGP without score (β = 0)", lambda: MPC(problem, replace(planner, beta=0.0), batch, seed=seed), free),
        ("cem", sampled, lambda: MPC(problem, sampling, batch, seed=seed), cem),
    ]  # fmt: skip
    results, strips, missing = [], [], None
    for key, label, controller, own in methods:
        say(f"{env_id}: {batch} episodes of up to {run.steps} steps with {label}")
        found = evaluate(controller(), env_id, episodes=batch, steps=run.steps, seeds=run.first_seed, record=[0])
        results.append(_result(key, label, found, own, planned=key != "behavior"))
        say(f"  return {found.mean:.0f}, {found.lengths.mean():.0f} steps an episode")
        if missing is None:
            try:
                strips.append(_strip(key, env_id, found.trajectories[0], bool(found.terminated[0])))
            except Exception as why:  # whatever an absent or broken OpenGL raises; the report says so
                missing = f"rendering failed: {type(why).__name__}: {why}"
    return results, strips, missing


def _result(key: str, label: str, found: Evaluation, settings: dict[str, Any], planned: bool) -> MethodResult:
    return MethodResult(
        key=key,
        label=label,
        returns=found.returns,
        lengths=found.lengths,
        interval=found.interval,
        normalized=None if found.normalized is None else float(found.normalized.mean()),
        approximate=found.approximate,
        milliseconds=1e3 * found.seconds_per_plan if planned else None,
        settings=settings,
    )


def _strip(key: str, env_id: str, trajectory: Trajectory, fell: bool) -> FrameStrip:
    """Pictures of an episode at even steps, the last one included, rendered from the simulator's recorded states."""
    if trajectory.qpos is None or trajectory.qvel is None:
        raise ValueError("the environment keeps no MuJoCo state")
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    gym = require("gymnasium", extra="mujoco")
    image = require("PIL.Image", extra="report")
    steps = np.unique(np.linspace(0, len(trajectory.rewards), FRAMES).round().astype(int))
    so_far = np.concatenate(([0.0], np.cumsum(trajectory.rewards)))
    frames = []
    # Named, for without a name gymnasium takes a camera that stays where the episode began.
    env = gym.make(env_id, render_mode="rgb_array", width=PIXELS[0], height=PIXELS[1], camera_name="track")
    try:
        env.reset(seed=0)
        for step in steps:
            env.unwrapped.set_state(trajectory.qpos[step], trajectory.qvel[step])
            data = io.BytesIO()
            image.fromarray(env.render()).quantize(64).save(data, "png", optimize=True)
            frames.append(Frame(int(step), float(so_far[step]), data.getvalue()))
    finally:
        env.close()
    return FrameStrip(key, tuple(frames), float(so_far[-1]), len(trajectory.rewards) if fell else None)
