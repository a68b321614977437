"""Episodes of a policy in a MuJoCo environment: many at once, each of them the same whatever runs beside it."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._optional import require
from .actors import Actor
from .locomotion import LOCOMOTION

# Episodes that are simulated side by side, so that the policy has rows enough for its products.
AT_ONCE = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of T steps; row t of qpos and qvel is the simulator's state before action t."""

    observations: npt.NDArray[np.float32]  # [T+1, nx], the final one included
    actions: npt.NDArray[np.float32]  # [T, nu]
    rewards: npt.NDArray[np.float32]  # [T]
    qpos: npt.NDArray[np.float64]  # [T, nq]
    qvel: npt.NDArray[np.float64]  # [T, nv]
    terminal: bool  # the last state is absorbing; otherwise the time limit, or the cut at the size asked for, ended it

    def __len__(self) -> int:
        return len(self.actions)

    def first(self, steps: int) -> Episode:
        """The episode cut after `steps`."""
        if steps >= len(self):
            return self
        arrays = (self.actions[:steps], self.rewards[:steps], self.qpos[:steps], self.qvel[:steps])
        return Episode(self.observations[: steps + 1], *arrays, terminal=False)


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Send MuJoCo's warnings to the log meanwhile; compiling HalfCheetah writes one to stderr and to MUJOCO_LOG.TXT."""
    mujoco = require("mujoco", extra="mujoco")
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: log.debug("mujoco: %s", message))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def record(env_id: str, actor: Actor, transitions: int, seed: int) -> Iterator[Episode]:
    """Yield episodes 0, 1, 2, … of `actor` in `env_id` until they hold exactly `transitions` steps; the last one is cut.

    Up to `AT_ONCE` episodes run at once, and the policy is evaluated for all of them together. Episode k has random streams
    of its own, derived from (seed, env_id, actor, k), and rows of the policy do not influence each other, so the same k is
    the same episode in a longer or shorter recording. An episode is given up as soon as the earlier ones hold enough.
    """
    gym = require("gymnasium", extra="mujoco")
    limit = int(gym.spec(env_id).max_episode_steps)
    # With fewer rows than this, a short recording would start long episodes only to give them up.
    simulation = _Simulation(env_id, rows=int(np.clip(transitions // limit, 1, AT_ONCE)), limit=limit, actor=actor)
    stream = zlib.crc32(f"{env_id}/{actor.name}".encode())
    running: dict[int, int] = {}  # episode → row that simulates it
    free = list(range(simulation.rows))[::-1]
    done: dict[int, Episode] = {}
    started = yielded = total = 0
    while total < transitions:
        # Which episodes can still be needed follows from how many steps the earlier ones hold by now.
        held = total
        for k in range(yielded, started):
            if held >= transitions and k in running:
                free.append(running.pop(k))
            held += len(done[k]) if k in done else int(simulation.t[running[k]]) if k in running else 0
        while free and held < transitions:
            running[started] = free.pop()
            simulation.start(running[started], np.random.SeedSequence(seed, spawn_key=(stream, started)))
            started += 1
        ended = simulation.step(list(running.values()))
        for k, row in list(running.items()):
            if ended[row]:
                done[k] = simulation.episode(row)
                free.append(running.pop(k))
        while total < transitions and yielded in done:
            episode = done.pop(yielded).first(transitions - total)
            yielded, total = yielded + 1, total + len(episode)
            yield episode
        # The episode that fills the recording need not run to its end.
        if yielded in running and total + simulation.t[running[yielded]] >= transitions > total:
            yield simulation.episode(running[yielded]).first(transitions - total)
            return


class _Simulation:
    """`rows` copies of one environment and the record of the episode that runs in each."""

    def __init__(self, env_id: str, rows: int, limit: int, actor: Actor) -> None:
        gym = require("gymnasium", extra="mujoco")
        self._mujoco = require("mujoco", extra="mujoco")
        with quiet_mujoco():
            self._env: Any = gym.make(env_id).unwrapped
        self._task, self._actor, self._model = LOCOMOTION[env_id], actor, self._env.model
        self._data = [self._mujoco.MjData(self._model) for _ in range(rows)]
        nx, nu = self._env.observation_space.shape[0], self._env.action_space.shape[0]
        nq, nv = self._model.nq, self._model.nv
        self.rows, self.limit = rows, limit
        self.t = np.zeros(rows, np.int64)
        self.terminal = np.zeros(rows, np.bool_)
        self._input, self._noise_now = np.zeros((AT_ONCE, nx), np.float32), np.zeros((AT_ONCE, nu), np.float32)
        self._noise = np.zeros((rows, limit, nu), np.float32)
        self._observations = np.zeros((rows, limit + 1, nx), np.float32)
        self._actions = np.zeros((rows, limit, nu), np.float32)
        self._rewards = np.zeros((rows, limit), np.float32)
        self._qpos, self._qvel = np.zeros((rows, limit + 1, nq)), np.zeros((rows, limit + 1, nv))
        self._now_qpos, self._now_qvel = np.zeros((rows, nq)), np.zeros((rows, nv))

    def start(self, row: int, seeds: np.random.SeedSequence) -> None:
        """Reset `row` by gymnasium's own rule and draw the noise of the whole episode."""
        self._env.data = self._data[row]
        observation, _ = self._env.reset(seed=int(seeds.generate_state(1)[0]))
        self.t[row], self.terminal[row] = 0, False
        self._observations[row, 0] = observation
        self._qpos[row, 0], self._qvel[row, 0] = self._data[row].qpos, self._data[row].qvel
        self._noise[row] = self._actor.draw(np.random.default_rng(seeds.spawn(1)[0]), self.limit)

    def step(self, rows: list[int]) -> npt.NDArray[np.bool_]:
        """Take one step in these rows; return which rows ended, [all rows]."""
        t = self.t[rows]
        self._input[rows], self._noise_now[rows] = self._observations[rows, t], self._noise[rows, t]
        actions = self._actor.act(self._input, self._noise_now)
        for row in rows:
            data = self._data[row]
            data.ctrl[:] = actions[row]
            self._mujoco.mj_step(self._model, data, nstep=self._env.frame_skip)
            self._now_qpos[row], self._now_qvel[row] = data.qpos, data.qvel
        qpos, qvel, actions = self._now_qpos[rows], self._now_qvel[rows], actions[rows]
        healthy = self._task.healthy(qpos, qvel)
        travelled = qpos[:, 0] - self._qpos[rows, t, 0]
        self._actions[rows, t] = actions
        self._rewards[rows, t] = self._task.reward(travelled, self._env.dt, actions, healthy)
        self._observations[rows, t + 1] = self._task.observe(qpos, qvel)
        self._qpos[rows, t + 1], self._qvel[rows, t + 1] = qpos, qvel
        self.t[rows] = t + 1
        self.terminal[rows] = ~healthy
        return self.terminal | (self.t == self.limit)

    def episode(self, row: int) -> Episode:
        """A copy of what `row` has recorded."""
        t = int(self.t[row])
        return Episode(
            self._observations[row, : t + 1].copy(),
            self._actions[row, :t].copy(),
            self._rewards[row, :t].copy(),
            self._qpos[row, :t].copy(),
            self._qvel[row, :t].copy(),
            bool(self.terminal[row]),
        )
