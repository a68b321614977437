"""What a plan needs: operations, and bytes that must be read, by a model that is stated here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable

from sgp_fast.backends.stages import WHOLE

from .cases import Case

ITEMSIZE = {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}


def of_batch(case: Case) -> tuple[float | None, float | None]:
    """FLOPs and bytes of all iterations of a batch; None where a part is no network.

    With one network size, and no cost of x_T, that is (5T − 2)·F an iteration and problem, F being one row of one network.
    """
    flops, moved = of_stages(case)[WHOLE]
    n = case.planner.iterations
    return (None, None) if flops is None or moved is None else (flops * n, moved * n)


def of_candidates(case: Case, candidates: int) -> float | None:
    """FLOPs of rolling out so many control sequences for each problem: forward of dynamics and cost; None as above."""
    networks = [getattr(part, "network", None) for part in (case.problem.dynamics, case.problem.cost)]
    if any(network is None for network in networks):
        return None
    B, T, _ = case.init.shape
    return float(candidates * B * T * sum(network.spec.flops_per_row() for network in networks if network is not None))


def of_stages(case: Case) -> dict[str, tuple[float | None, float | None]]:
    """FLOPs and bytes that each stage needs in an iteration, for the batch of B problems; None where a part is no network.

    rollout    forward of T·B rows in T products that wait for one another; T − 1 where no cost looks at x_T
    adjoint    as many input-gradients
    cost       forward and input-gradient of T·B rows, and of B rows of a terminal cost
    score      forward of T·B rows
    update     no products; Adam reads the gradient, controls and both moments, and writes the last three

    FLOPs are `NetworkSpec.flops_per_row`. Bytes are those of the weights, once for every product that must wait for another,
    as if memory were their only place: small networks stay in caches, which are faster.
    """
    problem, planner = case.problem, case.planner
    B, T, nu = case.init.shape

    def products(part: object, rows: int, waits: int) -> tuple[float, float] | None:
        network = getattr(part, "network", None)
        if network is None:
            return None
        flops = network.spec.flops_per_row()  # two for each weight
        return float(rows * flops), float(waits * flops // 2 * ITEMSIZE[planner.precision])

    steps = T if problem.terminal is not None else T - 1
    dynamics = products(problem.dynamics, steps * B, steps)
    costs = [products(problem.cost, 2 * T * B, 2)]
    if problem.terminal is not None:
        costs.append(products(problem.terminal, 2 * B, 2))
    stages = {"rollout": dynamics, "adjoint": dynamics, "cost": _sum(costs)}
    if problem.score is not None:
        stages["score"] = products(problem.score, T * B, 1)
    found: dict[str, tuple[float | None, float | None]] = {
        name: (None, None) if need is None else need for name, need in stages.items()
    }
    found[WHOLE] = _sum(stages.values()) or (None, None)
    found["update"] = None, float(7 * T * B * nu * planner.state_dtype.itemsize)
    return found


def _sum(needs: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    """Together; None where one of them is not known."""
    flops = moved = 0.0
    for need in needs:
        if need is None:
            return None
        flops, moved = flops + need[0], moved + need[1]
    return flops, moved
