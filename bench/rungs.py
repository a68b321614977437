"""All rungs of the ladder, by name, in the order in which tables show them."""

from __future__ import annotations

from functools import partial

import sgp_fast as sgp
from sgp_fast.backends import available

from . import baselines, peers
from .cases import Case
from .rung import Rung, Runner, Unavailable


def _ours(backend: str, case: Case) -> Runner:
    """A backend of this package."""
    kind = backend.partition(":")[0]
    if kind != "auto" and (why := available().get(kind, "not built")) is not None:
        raise Unavailable(why)
    if kind == "fused" and case.device.type != "cuda":
        raise Unavailable("Triton kernels run on GPUs, and the case is on the CPU")
    return lambda: sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=backend).u


OURS = tuple(
    Rung(name, f"sgp_fast {name}", "ours", partial(_ours, name))
    for name in ("eager", "compiled", "fused:tile", "fused:layered", "fused:grid", "auto")
)
RUNGS: dict[str, Rung] = {rung.name: rung for rung in (*baselines.RUNGS, *peers.RUNGS, *OURS)}
