"""Normalised scores: returns on the scale on which a random policy has 0 and D4RL's expert has 100."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Mean return of a random policy and of a soft actor-critic expert; D4RL (Fu et al., 2020), d4rl/infos.py. All data sets of a
# task, in versions v0 to v2, share one pair.
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}

_TASK = "|".join(REFERENCE_RETURNS)
_QUALITY = "random|medium|expert|medium-replay|full-replay|medium-expert|random-expert"
D4RL_NAME = re.compile(rf"(?P<task>{_TASK})-(?P<quality>{_QUALITY})-v(?P<version>[012])")
_PATTERNS = (
    D4RL_NAME,
    re.compile(rf"(?P<task>{_TASK})-v(?P<version>\d+)", re.IGNORECASE),  # gymnasium's ids
    re.compile(rf"(?P<task>{_TASK})(-({_QUALITY}))?"),  # data made here
    re.compile(rf"sgp_(?P<task>{_TASK})_.*"),  # data made here, by their full name
    re.compile(rf"(mujoco|D4RL)/(?P<task>{_TASK})/.+"),  # Minari
)


class ReferenceScore(NamedTuple):
    """The returns that count as 0 and as 100, and whether they were measured in another version of the environment."""

    task: str
    minimum: float
    maximum: float
    approximate: bool


class NormalizedScore(NamedTuple):
    """`score` in percent, shaped like the returns; `approximate` when the references are of another environment version."""

    score: npt.NDArray[np.float64]
    approximate: bool


def reference_score(env_or_name: str) -> ReferenceScore | None:
    """The reference returns for an environment id or the name of a data set, or None where D4RL publishes none.

    Known are HalfCheetah, Hopper, Walker2d and Ant: ids of gymnasium ("Hopper-v5"), names of D4RL ("hopper-medium-v2"), of
    Minari ("mujoco/hopper/medium-v0") and of data made here ("hopper-medium"). The references were measured in the v2
    environments; for all others, whose rewards and physics differ a little, they are approximate.
    """
    for pattern in _PATTERNS:
        match = pattern.fullmatch(env_or_name)
        if match:
            task = match["task"].lower()
            minimum, maximum = REFERENCE_RETURNS[task]
            exact = pattern is D4RL_NAME or ("version" in match.groupdict() and match["version"] == "2")
            return ReferenceScore(task, minimum, maximum, approximate=not exact)
    return None


def normalized_score(env_or_name: str, returns: npt.ArrayLike) -> NormalizedScore:
    """Score of undiscounted returns of whole episodes, in percent.

        score = 100 (return − random) / (expert − random)

    `env_or_name` as in `reference_score`; ValueError where there is no reference.
    Source: Fu et al. 2020, arXiv 2004.07219, §5.
    """
    reference = reference_score(env_or_name)
    if reference is None:
        raise ValueError(
            f"D4RL publishes no reference score for {env_or_name!r}; known are the tasks {', '.join(REFERENCE_RETURNS)}, "
            "for example 'Hopper-v5' or 'hopper-medium-v2'"
        )
    values = np.asarray(returns, dtype=np.float64)
    score = 100.0 * (values - reference.minimum) / (reference.maximum - reference.minimum)
    return NormalizedScore(score, reference.approximate)
