"""Problems as the native engine reads them: weights packed once for as long as they stay, and the structure it is passed."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels.cpu import CCost, CProblem, CQuadratic, Engine, PackedNetwork, Products, Store
from ..kernels.cpu.pack import PRODUCTS
from ..kernels.traced.trace import pack_params
from ..planner import SGP
from ..problem import Problem
from ..sampling import Sampler
from .custom import Traced, is_custom, sights
from .native_costs import compiled_cost
from .sight import Sight
from .version import Version, version

# Rows of a pass over all T·R rows of score and cost. More read the weights less often, and fall out of the cache sooner: 64
# and 256 were alike for 64 problems at width 256.
PASS_ROWS = 64


@dataclass(frozen=True)
class Packed:
    """A prepared problem as the engine reads it; the C structures point into `keep`."""

    dynamics: PackedNetwork
    score: PackedNetwork | None
    running: PackedNetwork | None
    terminal: PackedNetwork | None
    keep: dict[str, Tensor]

    @property
    def integers(self) -> bool:
        """Some weights are whole numbers of 24 bits."""
        return any(net is not None and net.integers for net in (self.dynamics, self.score, self.running, self.terminal))


# A problem is prepared anew when a weight has changed, and packed once for each time that it was prepared.
State = tuple[Version, tuple[Sight, ...]]
_prepared: weakref.WeakKeyDictionary[Problem, dict[torch.dtype, tuple[State, Problem]]] = weakref.WeakKeyDictionary()
_packed: weakref.WeakKeyDictionary[Problem, dict[tuple, Packed]] = weakref.WeakKeyDictionary()


def prepared(problem: Problem, planner: SGP | Sampler, device: torch.device) -> Problem:
    """The problem in the planner's dtypes, kept, with the weights that are packed from it, until a weight changes."""
    kept, now = _prepared.setdefault(problem, {}), (version(problem), sights(problem.cost, problem.terminal))
    dtype = planner.product_dtype
    if dtype not in kept or kept[dtype][0] != now:
        # A new object in any case: to hold the problem itself here would keep it alive for ever.
        kept[dtype] = now, replace(problem.prepared(planner.state_dtype, dtype, device))
    return kept[dtype][1]


def packed(engine: Engine, problem: Problem, products: Products, wide: bool, few: tuple[bool, bool]) -> Packed:
    """The problem's weights, packed for these products; kept with the problem.

    `few`: whether the products of a step (dynamics, terminal cost) have few rows; those of all steps (score, running cost).
    """
    kept = _packed.setdefault(problem, {})
    key = engine, products, wide, few
    if key in kept:
        return kept[key]

    store = Store(engine)

    def network(part: Any) -> PackedNetwork | None:
        if is_custom_cost(problem, part) or getattr(part, "network", None) is None:
            return None
        net, z = part.network, part.normalizer
        integers = few[part is problem.score or part is problem.cost]
        return PackedNetwork(store, net.spec, net.weights, z.b, z.k, products, wide, integers)

    keep: dict[str, Tensor] = {"scale": problem.dynamics.scale.contiguous()}
    if problem.score is not None:
        noise = problem.score.output == "noise"
        keep["sigma"] = problem.score.sigmas.contiguous() if noise else torch.ones_like(problem.score.sigmas)
    for name, part, matrix in (("Q", problem.cost, "Q"), ("R", problem.cost, "R"), ("Qd", problem.terminal, "Q")):
        if not is_custom(part) and (m := getattr(part, matrix, None)) is not None:
            keep[name] = (m + m.T).contiguous()
    dynamics = network(problem.dynamics)
    assert dynamics is not None
    made = Packed(dynamics, network(problem.score), network(problem.cost), network(problem.terminal), keep)
    kept[key] = made
    return made


@dataclass(frozen=True)
class Rows:
    """What the rows of a call are given: `x0 [B, nx]` and the others as in a job, `samples` rows of each problem."""

    x0: Tensor
    low: Tensor | None
    high: Tensor | None
    nu: int
    horizon: int
    samples: int = 1


def problem_struct(
    net: Packed, problem: Problem, rows: Rows, costs: tuple[CCost, CCost], products: Products, threads: int, most: int
) -> tuple[CProblem, list[Tensor]]:
    """The structure, and what must live as long as it is read. `most`: rows that a thread plans together."""
    count, x0 = len(rows.x0) * rows.samples, rows.x0.contiguous()
    held, c = [x0], CProblem(
        rows=count, samples=rows.samples, horizon=rows.horizon, nx=x0.shape[1], nu=rows.nu,
        products=PRODUCTS.index(products), threads=threads, block_rows=min(most, -(-count // threads)), pass_rows=PASS_ROWS,
        x0=x0.data_ptr(), dynamics=net.dynamics.address, score=net.score.address if net.score else None,
        dynamics_scale=net.keep["scale"].data_ptr(), score_sigma=net.keep["sigma"].data_ptr() if net.score else None,
        running=costs[0], terminal=costs[1], control_change=problem.control_change,
    )  # fmt: skip
    if rows.low is not None and rows.high is not None:
        wide = max(len(rows.low), len(rows.high))
        low, high = (bound.expand(wide, rows.nu).contiguous() for bound in (rows.low, rows.high))
        c.low, c.high, c.bound_stride = low.data_ptr(), high.data_ptr(), rows.nu if wide > 1 else 0
        held += [low, high]
    return c, held


def cost_struct(
    net: Packed, problem: Problem, terminal: bool, traced: Traced | None, goal: Tensor | None, params: Any
) -> tuple[CCost, Tensor | None]:
    """The structure of a cost of ours, or of a traced one, and what must live as long as it is read; `goal [B, nx]`."""
    part = problem.terminal if terminal else problem.cost
    cost = CCost(present=part is not None, sign=-1.0 if terminal else 1.0)
    if traced is not None:
        rows = pack_params(params, traced.features)
        cost.function = compiled_cost(traced).value
        if goal is not None:
            cost.goal, cost.goal_stride = goal.data_ptr(), goal.shape[1]
        if rows is not None:
            cost.params, cost.params_stride = rows.data_ptr(), rows.shape[1]
        return cost, rows
    network = net.terminal if terminal else net.running
    if network is not None:
        cost.network = network.address
    elif part is not None and not is_custom(part):
        cost.x = _quadratic(net.keep["Qd" if terminal else "Q"], goal, part.goal)
        if not terminal:
            cost.u = _quadratic(net.keep["R"], None, None)
    return cost, None


def is_custom_cost(problem: Problem, part: Any) -> bool:
    """Whether a part is a cost, and not one of ours."""
    return (part is problem.cost or part is problem.terminal) and is_custom(part)


def _quadratic(matrix: Tensor, goal: Tensor | None, default: Tensor | None) -> CQuadratic:
    """`(x − goal)ᵀ Q (x − goal)` with S = Q + Qᵀ; a goal a problem, one for all, or the origin."""
    goal, stride = (default, 0) if goal is None else (goal, goal.shape[1])
    return CQuadratic(matrix.data_ptr(), None if goal is None else goal.data_ptr(), len(matrix), stride)
