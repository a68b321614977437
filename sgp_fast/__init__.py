"""Score-guided planning, thousands of plans at once.

    import sgp_fast as sgp

    data = sgp.load_dataset("hopper-medium")
    models = sgp.train(data)
    problem = sgp.Problem(dynamics=models.dynamics, score=models.score, cost=models.cost, bounds=(-1.0, 1.0))
    x0 = data.observations[:64]
    plan = sgp.solve(problem, sgp.SGP(horizon=8, iterations=50, step_size=0.1, beta=(0.2, 0.1)), x0)

These are the public names. Each is loaded when it is first used, so importing the package costs nothing and a planner
that works on arrays never loads an environment or a plotting library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._warmup import warmup
    from .costs import CustomCost, LearnedCost, QuadraticCost, QuadraticTerminal, TerminalValue
    from .data import Dataset, load_dataset, make_dataset, normalized_score
    from .evaluation import evaluate
    from .models import (
        Block,
        Dynamics,
        Ensemble,
        Layer,
        Network,
        NetworkSpec,
        Normalizer,
        Score,
        TimeEmbedding,
    )
    from .mpc import MPC
    from .plan import Plan, Status
    from .planner import SGP
    from .problem import Problem
    from .sampling import CEM, MPPI
    from .solving import solve
    from .trained import Models, load_models
    from .training import TrainConfig, train

_HOME = {
    "CEM": "sampling",
    "MPC": "mpc",
    "MPPI": "sampling",
    "SGP": "planner",
    "Block": "models",
    "CustomCost": "costs",
    "Dataset": "data",
    "Dynamics": "models",
    "Ensemble": "models",
    "Layer": "models",
    "LearnedCost": "costs",
    "Models": "trained",
    "Network": "models",
    "NetworkSpec": "models",
    "Normalizer": "models",
    "Plan": "plan",
    "Problem": "problem",
    "QuadraticCost": "costs",
    "QuadraticTerminal": "costs",
    "Score": "models",
    "Status": "plan",
    "TerminalValue": "costs",
    "TimeEmbedding": "models",
    "TrainConfig": "training",
    "evaluate": "evaluation",
    "load_dataset": "data",
    "load_models": "trained",
    "make_dataset": "data",
    "normalized_score": "data",
    "solve": "solving",
    "train": "training",
    "warmup": "_warmup",
}

__all__ = [
    "CEM",
    "MPC",
    "MPPI",
    "SGP",
    "Block",
    "CustomCost",
    "Dataset",
    "Dynamics",
    "Ensemble",
    "Layer",
    "LearnedCost",
    "Models",
    "Network",
    "NetworkSpec",
    "Normalizer",
    "Plan",
    "Problem",
    "QuadraticCost",
    "QuadraticTerminal",
    "Score",
    "Status",
    "TerminalValue",
    "TimeEmbedding",
    "TrainConfig",
    "__version__",
    "evaluate",
    "load_dataset",
    "load_models",
    "make_dataset",
    "normalized_score",
    "solve",
    "train",
    "warmup",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module at first use and keep it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) - {"Any", "TYPE_CHECKING", "annotations", "import_module"} | set(__all__))
