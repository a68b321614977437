"""What the backends with kernels of their own can plan: problems made of our parts, whose networks the kernels cover."""

from __future__ import annotations

from collections.abc import Callable

from ..costs import LearnedCost, QuadraticCost, QuadraticTerminal, TerminalValue
from ..kernels.network import NetworkSpec
from ..models import Dynamics, Network
from ..problem import Problem


def foreign_part(problem: Problem, uncovered: Callable[[str, NetworkSpec], str | None]) -> str | None:
    """None where every part is one of ours and of the right size, else which is not.

    `uncovered(part, spec)` says what a backend's kernels do not cover of a part's network.
    """
    dynamics, score, cost, terminal = problem.dynamics, problem.score, problem.cost, problem.terminal
    if type(dynamics) is not Dynamics:
        return f"the dynamics are a {type(dynamics).__name__}, not a sgp_fast Dynamics"
    if type(cost) not in (LearnedCost, QuadraticCost):
        return f"the cost is a {type(cost).__name__}, not a LearnedCost or QuadraticCost"
    if type(terminal) not in (type(None), TerminalValue, QuadraticTerminal):
        return f"the terminal cost is a {type(terminal).__name__}, not a TerminalValue or QuadraticTerminal"
    nx, nz = dynamics.nx, dynamics.network.spec.inputs
    for name, part in (("dynamics", dynamics), ("score", score), ("cost", cost), ("terminal cost", terminal)):
        network = getattr(part, "network", None)
        if network is None:
            continue
        if type(network) is not Network:
            return f"the {name} hold a {type(network).__name__}, not a sgp_fast Network"
        if (why := uncovered(name, network.spec)) is not None:
            return f"the {name} hold {why}"
        if network.spec.inputs != (nx if name == "terminal cost" else nz):
            return f"the {name} take {network.spec.inputs} inputs where the dynamics have nx={nx} and nu={nz - nx}"
    sizes = [("cost", nx, getattr(cost, "Q", None)), ("cost", nz - nx, getattr(cost, "R", None))]
    for name, size, matrix in (*sizes, ("terminal cost", nx, getattr(terminal, "Q", None))):
        if matrix is not None and len(matrix) != size:
            return f"a matrix of the {name} is {len(matrix)} wide where the dynamics have nx={nx} and nu={nz - nx}"
    return None
