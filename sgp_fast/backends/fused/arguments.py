"""What the regimes pass to their kernels: the problem, the state of the search, and how to step."""

from __future__ import annotations

import math
from typing import Any

from ...kernels.tile import Costs, Evaluation, Model
from ...kernels.update import Options, Search
from ...planner import SGP
from .buffers import Buffers
from .packed import PackedModel, PackedProblem


def search_of(b: Buffers) -> Search:
    """The buffers that the end of an iteration reads and writes."""
    return Search(
        b.v, b.good, b.m, b.s, b.count, b.active, b.diverged, b.converged, b.taken, b.low, b.high, b.grad_u, b.running,
        b.terminal, b.change, b.history,
    )  # fmt: skip


def options_of(packed: PackedProblem, planner: SGP) -> Options:
    """The planner's step, as a constant of the kernels."""
    clip = math.inf if planner.clip_gradient is None else planner.clip_gradient
    return Options(*planner.adam, clip, planner.tolerance, packed.control_change)


def tensors_of(packed: PackedProblem, b: Buffers) -> tuple[Any, ...]:
    """What the kernels of a whole plan begin with: models, costs, evaluation, search and schedules."""
    costs = Costs(
        packed.curvature, packed.goal if packed.curvature is not None else None,
        packed.last_curvature, packed.last_goal if packed.last_curvature is not None else None, b.goal,
        packed.functions.params,
    )  # fmt: skip
    models = (model_of(m) for m in (packed.dynamics, packed.score, packed.cost, packed.terminal))
    return (
        *models, packed.scale, packed.gain, costs, Evaluation(b.x0, b.x, b.costate, b.score), search_of(b),
        b.beta, b.level, b.step_size,
    )  # fmt: skip


def model_of(model: PackedModel | None) -> Model:
    if model is None:
        return Model(None, None, None, None)
    return Model(model.network.weights, model.network.vectors, model.b, model.inv_k)
