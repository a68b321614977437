"""Observation, reward and termination of gymnasium's Hopper-v5, HalfCheetah-v5 and Walker2d-v5, for many at once.

Half of the time of `env.step` in these tasks goes to Python around one small MuJoCo call. Here a recording calls MuJoCo
for each environment and computes the rest for all of them together; the tests hold it against `env.step`, step by step.

    x = (qpos[1:], clip(qvel))     r = (Δ qpos[0]) / dt + healthy reward · healthy − control cost · ‖u‖²

Source: gymnasium.envs.mujoco, hopper_v5, half_cheetah_v5, walker2d_v5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """The constants of one environment; the torso's height is qpos[1] and its pitch qpos[2]."""

    control_cost: float
    velocity_clip: float = np.inf
    healthy_reward: float = 0.0
    height: tuple[float, float] = (-np.inf, np.inf)
    pitch: tuple[float, float] = (-np.inf, np.inf)
    state_limit: float = np.inf

    def observe(self, qpos: FloatArray, qvel: FloatArray) -> FloatArray:
        """Observations [B, nq − 1 + nv] of states [B, nq] and [B, nv]."""
        return np.concatenate([qpos[:, 1:], np.clip(qvel, -self.velocity_clip, self.velocity_clip)], axis=1)

    def healthy(self, qpos: FloatArray, qvel: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether the episode goes on after these states, [B]."""
        height, pitch = qpos[:, 1], qpos[:, 2]
        upright = (self.height[0] < height) & (height < self.height[1])
        upright &= (self.pitch[0] < pitch) & (pitch < self.pitch[1])
        if np.isfinite(self.state_limit):
            state = np.concatenate([qpos[:, 2:], qvel], axis=1)
            upright &= (np.abs(state) < self.state_limit).all(axis=1)
        return upright

    def reward(
        self, travelled: FloatArray, dt: float, actions: npt.NDArray[np.float32], healthy: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Rewards [B] for the distances travelled [B] in dt seconds, the actions [B, nu] and the health reached [B]."""
        cost = self.control_cost * np.square(actions).sum(axis=1, dtype=np.float32)
        return travelled / dt + self.healthy_reward * healthy - cost


LOCOMOTION = {
    "Hopper-v5": Task(
        control_cost=1e-3,
        velocity_clip=10.0,
        healthy_reward=1.0,
        height=(0.7, np.inf),
        pitch=(-0.2, 0.2),
        state_limit=100.0,
    ),
    "HalfCheetah-v5": Task(control_cost=0.1),
    "Walker2d-v5": Task(
        control_cost=1e-3, velocity_clip=10.0, healthy_reward=1.0, height=(0.8, 2.0), pitch=(-1.0, 1.0)
    ),
}
