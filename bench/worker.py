"""One side of a comparison of commits: run as a file, it plans with whatever `sgp_fast` its path finds first.

It uses no more of the package than commits have long had in common, and nothing of this folder: the commit that it measures
may be older than both. `python worker.py 64x256 compiled`, then a word a line: plan, cost.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, cast

import torch


def main() -> None:
    # The folder of this file must not be searched: it is not the commit's.
    sys.path.pop(0)
    import sgp_fast as sgp
    from sgp_fast.kernels.network import mlp
    from sgp_fast.models import Network

    size, _, precision = sys.argv[1].partition(":")
    batch, width = map(int, size.split("x"))
    nx, nu, levels = 17, 6, 10
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator().manual_seed(0)
    z = sgp.Normalizer(0.1 * torch.randn(nx + nu, generator=draw), 0.5 + torch.rand(nx + nu, generator=draw))
    shape = {"width": width, "hidden_layers": 4, "norm": True}
    problem = sgp.Problem(
        dynamics=sgp.Dynamics(Network(mlp(nx + nu, nx, **shape), 0), z).requires_grad_(False).to(device),
        cost=sgp.LearnedCost(Network(mlp(nx + nu, 1, **shape), 1), z).requires_grad_(False).to(device),
        score=sgp.Score(Network(mlp(nx + nu, nx + nu, levels=levels, **shape), 2), z, torch.logspace(-0.5, -3, levels))
        .requires_grad_(False)
        .to(device),
        bounds=(-1.0, 1.0),
    )
    planner = sgp.SGP(
        horizon=8, iterations=50, step_size=0.1, beta=(0.2, 0.1), tolerance=0.0, precision=cast(Any, precision or "float32")
    )
    x0 = torch.randn(batch, nx, generator=draw).to(device)
    init = (0.1 * torch.randn(batch, 8, nu, generator=draw)).to(device)

    def plan() -> sgp.Plan:
        found = sgp.solve(problem, planner, x0, init=init, backend=sys.argv[2])
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    cost = plan().cost.mean().item()
    print(json.dumps({"ready": 1}), flush=True)
    for word in map(str.strip, sys.stdin):
        began = time.perf_counter()
        if word == "plan":
            plan()
        print(json.dumps({"seconds": time.perf_counter() - began} if word == "plan" else {"cost": cost}), flush=True)


if __name__ == "__main__":
    main()
