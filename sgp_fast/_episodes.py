"""Episodes of a controller in a gymnasium vector environment: the loop, its checks, and what it records."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Controller(Protocol):
    """What can be evaluated: `MPC`, the policies of `sgp_fast.policies`, or anything alike.

    `act` gets observations `[batch_size, nx]` and a mask `[batch_size]` of the environments that still run, and gives
    actions `[batch_size, nu]`, of which those of other rows are ignored; `reset` begins new episodes in the environments
    of a mask, in all where that is None. Where there are a `plan` and its `rows`, as `MPC` has them, what the plans
    foresee can be recorded; where there is a `check_sizes(nx, nu)`, it is asked first, and raises ValueError.
    """

    @property
    def batch_size(self) -> int: ...

    def act(self, obs: Any, active: Any, /) -> Any: ...

    def reset(self, mask: Any, /) -> None: ...


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One recorded episode of L steps.

    observations  `[L+1, nx]`, actions `[L, nu]`, rewards `[L]`
    predicted     states that the plan of each step foresaw, the first being the observation, `[L, T+1, nx]`; None where the
                  controller keeps no plan
    qpos, qvel    the simulator's state `[L+1, nq]`, `[L+1, nv]`, from which frames are rendered; None outside MuJoCo
    """

    episode: int
    observations: Array
    actions: Array
    rewards: Array
    predicted: Array | None
    qpos: Array | None
    qvel: Array | None


class Outcome(NamedTuple):
    """What came of some episodes, arrays with an entry an episode; `whole` where the environment itself ended it."""

    returns: Array
    lengths: Array
    terminated: Array
    whole: Array
    act_seconds: Array
    plans: int
    trajectories: list[Trajectory]


def run_episodes(
    controller: Controller, vector: Any, chunk: range, seeds: tuple[int, ...], steps: int | None, wanted: set[int], bar: Any
) -> Outcome:
    """Run the episodes of `chunk` side by side, one in each environment of `vector`; those in `wanted` are recorded.

    The vector environment goes on with episodes of its own where one has ended: nothing of them is looked at.
    """
    n, width, batch = len(chunk), vector.num_envs, controller.batch_size
    low, high = vector.single_action_space.low, vector.single_action_space.high
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    terminated, whole = np.zeros(n, bool), np.zeros(n, bool)
    act_seconds: list[float] = []
    plans = 0
    observation, _ = vector.reset(seed=[seeds[chunk[min(i, n - 1)]] for i in range(width)])
    recorders = {i: _Recorder(chunk[i], vector.envs[i], observation[i]) for i in range(n) if chunk[i] in wanted}
    controller.reset(None)
    running = np.ones(n, bool)
    while running.any():
        obs = np.zeros((batch, observation.shape[1]))
        obs[:n][running] = observation[:n][running]
        active = np.zeros(batch, bool)
        active[:n] = running
        start = time.perf_counter()
        action = np.asarray(controller.act(obs, active), dtype=np.float64)
        act_seconds.append(time.perf_counter() - start)
        plans += int(running.sum())
        action = _checked(action, active, low, high, chunk)
        everyone = np.tile(np.clip(0.0, low, high), (width, 1))
        everyone[:n][running] = action[:n][running]
        predictions = _predictions(controller, recorders, running)
        observation, reward, over, cut, _ = vector.step(everyone.astype(vector.single_action_space.dtype))
        returns[running] += reward[:n][running]
        lengths[running] += 1
        for i, recorder in recorders.items():
            if running[i]:
                recorder.add(everyone[i], reward[i], observation[i], predictions.get(i))
        terminated |= running & over[:n]
        whole |= running & (over[:n] | cut[:n])
        ended = running & (over[:n] | cut[:n] | (lengths == (steps or -1)))
        running = running & ~ended
        if bar is not None:
            bar.set_postfix_str(f"step {int(lengths.max()):,}", refresh=False)
            bar.update(int(ended.sum()))
    recorded = [recorder.trajectory() for recorder in recorders.values()]
    return Outcome(returns, lengths, terminated, whole, np.array(act_seconds), plans, recorded)


class _Recorder:
    """Collects one episode."""

    def __init__(self, episode: int, env: Any, observation: Array) -> None:
        self.episode, self.env = episode, env
        self.observations, self.states = [observation.copy()], [_simulator_state(env)]
        self.actions: list[Array] = []
        self.rewards: list[float] = []
        self.predicted: list[Array | None] = []

    def add(self, action: Array, reward: float, observation: Array, predicted: Array | None) -> None:
        self.actions.append(action.copy())
        self.rewards.append(float(reward))
        self.observations.append(observation.copy())
        self.states.append(_simulator_state(self.env))
        self.predicted.append(predicted)

    def trajectory(self) -> Trajectory:
        predicted = [p for p in self.predicted if p is not None]
        states = [state for state in self.states if state is not None]
        return Trajectory(
            episode=self.episode,
            observations=np.stack(self.observations),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards),
            predicted=np.stack(predicted) if len(predicted) == len(self.actions) else None,
            qpos=np.stack([qpos for qpos, _ in states]) if states else None,
            qvel=np.stack([qvel for _, qvel in states]) if states else None,
        )


@contextmanager
def vector_of(gym: Any, env: str | Callable[[], Any], width: int) -> Iterator[Any]:
    vector = gym.vector.SyncVectorEnv([(lambda: make_env(gym, env)) if isinstance(env, str) else env] * width)
    try:
        check_spaces(gym, env_name(vector), vector.single_observation_space, vector.single_action_space)
        yield vector
    finally:
        vector.close()


def make_env(gym: Any, env: str) -> Any:
    """`gymnasium.make`, silent about versions; a name without one is the newest. ValueError with the newest for others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s).*(is out of date|Using the latest versioned environment)")
        try:
            return gym.make(env)
        except gym.error.DependencyNotInstalled as error:
            raise ImportError(f"gymnasium cannot make {env!r} ({error})") from error
        except (gym.error.Error, ImportError) as error:
            newest = _newest(gym, env)
            remedy = f"give {newest}" if newest not in (None, env) else "give another one, for example Hopper-v5"
            raise ValueError(f"gymnasium cannot make {env!r} ({str(error).rstrip('.')}); {remedy}") from None


def check_spaces(gym: Any, name: str, observation: Any, action: Any) -> None:
    """Raise ValueError unless observations and actions are vectors of real numbers."""
    for part, space in (("observation", observation), ("action", action)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"{name} has the {part} space {space}; expected a Box with one axis: choose an environment that has one"
            )


def check_fits(name: str, observation: Any, action: Any, controller: Any) -> None:
    """Raise ValueError where a controller says that it is not made for so many observations and actions."""
    check = getattr(controller, "check_sizes", None)
    if check is None:
        return
    (nx,), (nu,) = observation.shape, action.shape
    try:
        check(nx, nu)
    except ValueError as error:
        raise ValueError(f"{name} has {nx} observations and {nu} actions, which do not fit: {error}") from error


def _newest(gym: Any, env: str) -> str | None:
    """The newest version of an environment, whichever version of it `env` names; None where there is none."""
    registration = gym.envs.registration
    try:
        namespace, name, _ = registration.parse_env_id(env)
    except gym.error.Error:
        return None
    version = registration.find_highest_version(namespace, name)
    return None if version is None else registration.get_env_id(namespace, name, version)


@contextmanager
def quiet() -> Iterator[None]:
    """Send MuJoCo's warnings, which some models cause, to the log rather than to stderr and a file; if it is installed."""
    try:
        from .data.rollout import quiet_mujoco

        silence = quiet_mujoco()
        silence.__enter__()
    except ImportError:
        yield
        return
    try:
        yield
    finally:
        silence.__exit__(None, None, None)


def env_name(vector: Any) -> str:
    spec = vector.envs[0].spec
    return spec.id if spec is not None else type(vector.envs[0].unwrapped).__name__


def _checked(action: Array, active: Array, low: Array, high: Array, chunk: range) -> Array:
    """The actions, where they are finite and within the bounds; up to rounding, which is clipped away."""
    expected = (len(active), len(low))
    if action.shape != expected:
        raise ValueError(f"the controller gave actions of shape {action.shape}; expected {expected}")
    slack = 1e-5 * np.maximum(1.0, np.where(np.isfinite(high - low), high - low, 1.0))
    good = np.isfinite(action) & (action >= low - slack) & (action <= high + slack)
    bad = np.flatnonzero(active & ~good.all(1))
    if len(bad):
        episode = chunk[bad[0]]
        raise ValueError(
            f"the controller's action in episode {episode} is {action[bad[0]].tolist()}; the environment takes "
            f"{low.tolist()} to {high.tolist()}: give these as Problem.bounds"
        )
    return np.clip(action, low, high)


def _predictions(controller: Any, recorders: dict[int, _Recorder], running: Array) -> dict[int, Array]:
    """Of controllers that keep a plan, the states that it foresees for the recorded environments."""
    plan, rows = getattr(controller, "plan", None), getattr(controller, "rows", None)
    if plan is None or rows is None:
        return {}
    place = {int(row): i for i, row in enumerate(rows)}
    return {i: plan.x[place[i]].cpu().numpy().copy() for i in recorders if running[i] and i in place}


def _simulator_state(env: Any) -> tuple[Array, Array] | None:
    data: Any = getattr(env.unwrapped, "data", None)
    return (np.array(data.qpos), np.array(data.qvel)) if hasattr(data, "qpos") and hasattr(data, "qvel") else None
