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

from functools import partial

from ..cases import Case
from ..rung import Rung
from .models import COMMAND, SAMPLING
from .pytorch_mppi_plan import PytorchMPPI, pytorch_mppi
from .torchrl_plan import torchrl_cem, torchrl_mppi
from .worldmodel_plan import stable_worldmodel


def _batched(case: Case) -> PytorchMPPI:
    return pytorch_mppi(case, batched=True)


_BUDGET = SAMPLING.budget
RUNGS: tuple[Rung, ...] = (
    Rung("pytorch_mppi", f"pytorch_mppi MPPI, {_BUDGET}", "peer", pytorch_mppi, single=True, exact=False),
    Rung(
        "pytorch_mppi command", f"pytorch_mppi MPPI, {COMMAND.budget}", "peer", partial(pytorch_mppi, settings=COMMAND),
        single=True, exact=False,
    ),
    Rung("pytorch_mppi batched", f"pytorch_mppi MPPI_Batched, {_BUDGET}", "peer", _batched, exact=False),
    Rung("torchrl mppi", f"TorchRL MPPI, {_BUDGET}", "peer", torchrl_mppi, exact=False),
    Rung("torchrl cem", f"TorchRL CEM, {_BUDGET}", "peer", torchrl_cem, exact=False),
    Rung("stable-worldmodel", "stable-worldmodel gradient solver", "peer", stable_worldmodel),
)  # fmt: skip
