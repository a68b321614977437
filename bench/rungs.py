"""All rungs of the ladder, by name, in the order in which tables show them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

import sgp_fast as sgp
from sgp_fast.backends import available

from . import baselines, peers, sampling
from .cases import Case
from .rung import Rung, Runner, Unavailable


class Ours:
    """A case planned by a backend of this package; `stats` are those of the last plan."""

    def __init__(self, case: Case, backend: str) -> None:
        self.case, self.backend = case, backend
        self.stats: dict[str, Any] = {}

    def __call__(self) -> Tensor:
        case = self.case
        plan = sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=self.backend)
        self.stats = plan.stats
        return plan.u


def _ours(backend: str, case: Case) -> Runner:
    """The runner of a backend of this package, where it can run."""
    kind = backend.partition(":")[0]
    if kind != "auto" and (why := available().get(kind, "not built")) is not None:
        raise Unavailable(why)
    if kind == "fused" and case.device.type != "cuda":
        raise Unavailable("Triton kernels run on GPUs, and the case is on the CPU")
    return Ours(case, backend)


OURS = tuple(
    Rung(name, f"sgp_fast {name}", "ours", partial(_ours, name))
    for name in ("eager", "compiled", "fused:tile", "fused:layered", "fused:grid", "fused:ring", "fused:relay", "auto")
)
RUNGS: dict[str, Rung] = {rung.name: rung for rung in (*baselines.RUNGS, *peers.RUNGS, *sampling.RUNGS, *OURS)}
