"""What a user could do instead, as a ladder: each rung adds one improvement to the one before, so that each shows its worth.

    published       one trajectory at a time, eager autograd, a rollout for the cost and one for the score, weight gradients
    frozen          … without the gradients of the weights, which nobody reads
    one rollout     … and with one rollout
    autograd        the best that plain PyTorch does: all problems at once, no step that no cost depends on, fused Adam
    adjoint         the gradient by hand in library calls, cost and score of all steps at once, no autograd
    compile         … that iteration under torch.compile, in its three modes
    cuda graph      … all iterations as one CUDA graph, captured by hand
    jax             the whole plan under one jit, scans over iterations and time (optional: needs jax)

With 16 bits, networks are wholly so between their ends; JAX joins what is between two products itself, and keeps float32
there. Each is as good as it can be made, and answers the same controls as `sgp_fast` up to rounding. They cover problems of
our networks of plain layers with a learned cost, a score or none, and projected controls; `batch.py` says what they refuse.
"""

from __future__ import annotations

from functools import partial

import torch

from sgp_fast.backends.products import products_of

from ..cases import Case
from ..rung import Rung, Runner
from .adjoint import adjoint
from .batch import EVERY, batch_of
from .jax_plan import jax_plan
from .published import published
from .wrapped import compiled, cuda_graph


def autograd(case: Case) -> Runner:
    """Batched autograd: weights frozen, one rollout, no step of the dynamics that no cost depends on, fused Adam."""
    batch = batch_of(case, EVERY, narrow=True)

    def plan() -> torch.Tensor:
        u = batch.u.clone().requires_grad_()
        optimizer = batch.adam_over(u, fused=True)
        for step in batch.steps:
            states = [batch.x0]
            for t in range(len(u) - 1):
                states.append(batch.dynamics(states[-1], u[t]))
            x = torch.stack(states)
            loss = batch.cost(x, u).sum()
            if batch.score is not None:
                z = torch.cat((x, u), -1)
                with torch.no_grad():
                    pull = step.beta * batch.score(z, step.level)
                loss = loss - (z * pull).sum()
            (u.grad,) = torch.autograd.grad(loss, u)
            optimizer.param_groups[0]["lr"] = step.size
            optimizer.step()
            if batch.low is not None and batch.high is not None:
                with torch.no_grad():
                    u.clamp_(batch.low, batch.high)
        return u.detach().transpose(0, 1)

    def run() -> torch.Tensor:
        with products_of(batch.precision, batch.device):
            return plan()

    return run


RUNGS: tuple[Rung, ...] = (
    Rung("published", "loop as published", "baseline", partial(published, trains=True, twice=True), single=True),
    Rung("frozen", "as published, weights frozen", "baseline", partial(published, trains=False, twice=True), single=True),
    Rung(
        "one rollout",
        "as published, weights frozen, one rollout",
        "baseline",
        partial(published, trains=False, twice=False),
        single=True,
    ),
    Rung("autograd", "batched autograd (best plain PyTorch)", "baseline", autograd),
    Rung("adjoint", "explicit adjoint, library calls", "baseline", adjoint),
    Rung("compile", "adjoint, torch.compile", "baseline", partial(compiled, mode="default")),
    *(
        Rung(f"compile {mode}", f"adjoint, torch.compile {mode}", "baseline", partial(compiled, mode=mode))
        for mode in ("reduce-overhead", "max-autotune")
    ),
    Rung("cuda graph", "adjoint, one CUDA graph by hand", "baseline", cuda_graph),
    Rung("jax", "JAX, one jit with scans", "baseline", jax_plan),
)
