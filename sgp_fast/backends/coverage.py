"""What the backends with kernels of their own can plan: our dynamics and scores over covered networks, and any cost."""

from __future__ import annotations

from collections.abc import Callable

from ..kernels.network import NetworkSpec
from ..models import Dynamics, Network
from ..problem import Problem
from .custom import is_custom


def foreign_part(problem: Problem, uncovered: Callable[[str, NetworkSpec], str | None]) -> str | None:
    """None where every part is one of ours and of the right size, else which is not.

    `uncovered(part, spec)` says what a backend's kernels do not cover of a part's network.
    """
    dynamics, score, cost, terminal = problem.dynamics, problem.score, problem.cost, problem.terminal
    if type(dynamics) is not Dynamics:
        return f"the dynamics are of type {type(dynamics).__name__}, not a sgp_fast Dynamics"
    nx, nz = dynamics.nx, dynamics.network.spec.inputs
    for name, part in (("dynamics", dynamics), ("score", score), ("cost", cost), ("terminal cost", terminal)):
        custom = (part is cost or part is terminal) and is_custom(part)
        network = None if custom else getattr(part, "network", None)
        if network is None:
            continue
        if type(network) is not Network:
            return f"the {name} hold a {type(network).__name__}, not a sgp_fast Network"
        if (why := uncovered(name, network.spec)) is not None:
            return f"the {name} hold {why}"
        if network.spec.inputs != (nx if name == "terminal cost" else nz):
            return f"the {name} take {network.spec.inputs} inputs where the dynamics have nx={nx} and nu={nz - nx}"
    sizes = [("cost", nx, cost, "Q"), ("cost", nz - nx, cost, "R"), ("terminal cost", nx, terminal, "Q")]
    for name, size, part, which in sizes:
        matrix = None if is_custom(part) else getattr(part, which, None)
        if matrix is not None and len(matrix) != size:
            return f"a matrix of the {name} is {len(matrix)} wide where the dynamics have nx={nx} and nu={nz - nx}"
    return None
