"""The planners of other libraries, over the models of a case.

    pytorch_mppi         MPPI of pytorch_mppi, one problem at a time; and its MPPI_Batched, many at once
    torchrl              MPPIPlanner and CEMPlanner of TorchRL, batched, in an environment that steps our models
    stable-worldmodel    GradientSolver of stable-worldmodel: our own algorithm in its loop, Adam and projection included

The sampling planners minimise the task cost alone, since none of them knows a score. The cost that they reach tells no
quality: nothing holds them near the data, so they find where the models are wrong and believe it. What their plans are worth
shows when they are carried out, in closed loop. Here they are checked for one thing: that the cost they foresee for their
controls, through the very models that the library was handed, is the one that float64 finds.

Covered are problems whose steps all cost alike: dynamics of any kind, a cost of `(x, u)`, finite bounds that problems share,
no terminal cost and no penalty on changes. All else is Unavailable, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..cases import Case
from ..rung import Rung, Runner
from .models import COMMAND, SAMPLING, Sampling
from .pytorch_mppi_plan import PytorchMPPI, pytorch_mppi
from .torchrl_plan import torchrl_cem, torchrl_mppi
from .worldmodel_plan import stable_worldmodel


def _batched(case: Case) -> PytorchMPPI:
    return pytorch_mppi(case, batched=True)


def _sampling(
    name: str, label: str, make: Callable[[Case], Runner], *, settings: Sampling = SAMPLING, single: bool = False
) -> Rung:
    label = f"{label}, {settings.budget}"
    return Rung(name, label, "peer", make, single=single, exact=False, candidates=settings.evaluated)


RUNGS: tuple[Rung, ...] = (
    _sampling("pytorch_mppi", "pytorch_mppi MPPI", pytorch_mppi, single=True),
    _sampling(
        "pytorch_mppi command", "pytorch_mppi MPPI", partial(pytorch_mppi, settings=COMMAND), settings=COMMAND, single=True
    ),
    _sampling("pytorch_mppi batched", "pytorch_mppi MPPI_Batched", _batched),
    _sampling("torchrl mppi", "TorchRL MPPI", torchrl_mppi),
    _sampling("torchrl cem", "TorchRL CEM", torchrl_cem),
    Rung("stable-worldmodel", "stable-worldmodel gradient solver", "peer", stable_worldmodel),
)
