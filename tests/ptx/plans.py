"""Whole plans of the regimes that are written in Gluon, whose kernels are compiled for sm_90 and emulated.

    python -m tests.ptx.plans '{"width": 64}' '{"regime": "relay", "programs": 4, "width": 128, "schedule": "last"}'

prints what was found in each plan that is given, as a line of JSON. The process must be one without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch

from sgp_fast import SGP, Dynamics, LearnedCost, Plan, Score, Status, TerminalValue
from sgp_fast.backends.fused.buffers import Buffers
from sgp_fast.backends.fused.packed import PackedProblem
from sgp_fast.backends.fused.relay import RelayPlan
from sgp_fast.backends.fused.ring import RingPlan
from sgp_fast.backends.fused.work import PlanWork
from sgp_fast.kernels.network import Layer, NetworkSpec, mlp
from sgp_fast.kernels.relay.tiles import Relay
from sgp_fast.solving import job_of
from tests import cases
from tests.cases import NX, Case, planner
from tests.fused.costs import costed
from tests.fused.test_fused import equal, hold, plan
from tests.ptx.launching import Found, emulating
from tests.ptx.schedules import Schedule

ACTIVATIONS: list[Any] = ["relu", "elu", "silu", "tanh", "mish", "identity"]
WIDTHS = {"ring": [3, 16, 40, 64, 70, 128, 130, 200, 256], "relay": [70, 100, 128, 130, 200, 256, 300]}


@dataclass(frozen=True)
class Emulated:
    """A plan to be emulated: a problem, learned but for its costs, which are of any kind, and how the regime divides it.

    seed      draws the networks and the sizes of states and controls, if it is given; `width` and `hidden` are not used then
    problems  of a program of the ring, or of a group of the relay, which has so many `programs`, and a layer `whole` or not
    pinned    of the ring alone
    bad       problems whose start is no number: the others are held, bit for bit, to the plan in which all are good
    slices    iterations at which another launch goes on
    schedule  by which the programs of a launch take turns
    changes   what is replaced in the compiled PTX before it runs: a regular expression, and what stands there instead
    """

    regime: Literal["ring", "relay"] = "ring"
    precision: str = "float16"
    cost: str = "learned"
    terminal: str = "none"
    scored: str | None = "score"
    width: int = 64
    hidden: int = 2
    seed: int | None = None
    batch: int = 1
    horizon: int = 2
    iterations: int = 2
    step_size: float = 0.02
    bounding: str = "project"
    control_change: float = 0.0
    clip: float | None = None
    problems: int = 1
    programs: int = 1
    whole: bool = False
    warps: int = 8
    pinned: int = 0
    bad: tuple[int, ...] = ()
    slices: tuple[int, ...] = ()
    schedule: Schedule = "in turn"
    changes: tuple[str, str] | None = None


def emulated(given: Emulated) -> Found:
    """Plan by emulated kernels, over memory that is NaN until written, and hold the plan to the eager planner's."""
    case = _case(given)
    options: dict[str, Any] = {
        "iterations": given.iterations, "bounding": "tanh" if given.bounding == "tanh" else "project",
        "clip_gradient": given.clip, "record_cost": True, "keep_moments": True, "beta": (0.6, 0.1),
        "step_size": given.step_size,
    }  # fmt: skip
    settings = planner(horizon=given.horizon, precision=given.precision, **options)
    found, ours = _planned(given, case, settings)
    if given.bad:
        _, calm = _planned(replace(given, bad=(), changes=None), case, settings)
        found.wrong = found.wrong or _disturbance(ours, calm, given.bad)
    else:
        eager, exact = (plan(case, "eager", precision, **options) for precision in (given.precision, "float64"))
        found.wrong = found.wrong or _difference(ours, eager, exact, given.precision)
    return found


@torch.no_grad()
def _planned(given: Emulated, case: Case, settings: SGP) -> tuple[Found, Plan]:
    plans: list[RingPlan | RelayPlan] = []

    def make(packed: PackedProblem, settings: SGP, buffers: Buffers, settled: int) -> RingPlan | RelayPlan:
        if given.regime == "ring":
            made = RingPlan(packed, settings, buffers, settled, given.problems, given.warps, given.pinned)
        else:
            relay = Relay(given.problems, given.programs, given.warps, given.whole)
            made = RelayPlan(packed, settings, buffers, settled, relay)
        named = ["x", "costate", "grad_u", "running", "terminal"]
        named += ["score"] * (packed.score is not None) + ["change"] * (packed.control_change > 0)
        for tensor in (*made.workspace, *(getattr(buffers, name) for name in named)):
            tensor.fill_(float("nan"))
        plans.append(made)
        return made

    job = replace(job_of(case.problem, settings, case.x0, goal=case.goal, params=case.params), u=case.u.float().clone())
    with emulating(given.changes, given.schedule) as found:
        work = PlanWork(case.problem, job, given.batch, torch.device("cpu"), make)
        work.load_job(job)
        work.buffers.x0[list(given.bad)] = float("nan")
        work.begin()
        for first, last in pairwise((0, *given.slices, given.iterations)):
            work.iterate(first, last)
        work.evaluate(settled=True)
        work.conclude()
    if isinstance(plans[0], RelayPlan) and given.bounding != "tanh" and not given.bad:
        found.wrong = _lost(plans[0], given.batch)
    return found, work.results(given.batch)


def _lost(relay: RelayPlan, batch: int) -> str:
    """What is wrong with the controls that programs were handed: all bits must have arrived, for costs are in float32."""
    v, controls = relay.buffers.v.flatten(1)[:batch], relay.scratch.controls
    programs, problems = relay.relay.programs, relay.relay.problems
    handed = controls.view(-1, programs, problems, len(controls) // (relay.programs * problems))
    own = handed.transpose(0, 1).flatten(1, 2)[:, :batch, : v.shape[1]]
    return "" if all(torch.equal(each, v) for each in own) else "controls that were handed on are others"


def _case(given: Emulated) -> Case:
    bounds: dict[str, Any] = {} if given.bounding == "none" else {"bounds": (-0.4, 0.5)}
    case = costed(
        given.cost, given.terminal, given.scored, width=given.width, hidden=given.hidden, batch=given.batch,
        horizon=given.horizon, control_change=given.control_change, **bounds,
    )  # fmt: skip
    if given.terminal == "value":  # the compiled error function, which GELU wants, branches thread by thread
        value = mlp(NX, 1, width=given.width, hidden_layers=given.hidden, activation="silu", norm=True)
        terminal = TerminalValue(cases.module(value, 4), cases.normalizer(NX, 4))
        case = replace(case, problem=replace(case.problem, terminal=terminal))
    return case if given.seed is None else _drawn(case, given, random.Random(given.seed))


def _drawn(case: Case, given: Emulated, draw: random.Random) -> Case:
    """The case with other networks, of any width, activation, norm and condition that the regime covers."""
    nx, nu = draw.choice([1, 3, 5, 17, 60, 100]), draw.choice([1, 2, 6, 20])

    def network(outputs: int, levels: int = 0) -> NetworkSpec:
        widths, layers = WIDTHS[given.regime], []
        conditioned = draw.choice(widths)  # one width for all of them
        for i in range(draw.randint(1, 3)):
            condition: Any = draw.choice(["multiply", "add"]) if levels and (i == 0 or draw.random() < 0.6) else "none"
            width = draw.choice(widths) if condition == "none" else conditioned
            layers.append(Layer(width, draw.choice(ACTIVATIONS), norm=draw.random() < 0.5, condition=condition))
        head: Any = draw.choice(["identity", "identity", "tanh", "elu"])
        norm = draw.random() < 0.2 and given.regime == "ring"
        return NetworkSpec(nx + nu, (*layers, Layer(outputs, head, norm=norm)), levels=levels)

    def part(kind: Any, spec: NetworkSpec, key: int, *rest: Any, **named: Any) -> Any:
        return kind(cases.module(spec, key), cases.normalizer(nx + nu, key), *rest, **named)

    score = None
    if given.scored is not None:
        levels = 0 if given.scored == "unconditioned" else len(cases.SIGMAS)
        output = "noise" if given.scored == "noise" else "score"
        score = part(Score, network(nx + nu, levels), 8, cases.SIGMAS, output=output)
    drawn = replace(
        case.problem, dynamics=part(Dynamics, network(nx), 1), cost=part(LearnedCost, network(1), 2), score=score, nu=nu
    )
    numbers = torch.Generator().manual_seed(draw.randrange(1 << 30))
    x0 = torch.randn(given.batch, nx, generator=numbers, dtype=torch.float64)
    u = 0.3 * torch.randn(given.batch, given.horizon, nu, generator=numbers, dtype=torch.float64)
    return replace(case, problem=drawn, x0=x0, u=u, goal=None)


def _disturbance(ours: Plan, calm: Plan, bad: tuple[int, ...]) -> str:
    """What is wrong with a plan of some bad problems, beside that of good ones alone."""
    good = torch.tensor([row for row in range(len(ours.u)) if row not in bad])
    try:
        equal(ours.select(good), calm.select(good))
    except AssertionError as error:
        return str(error) or "other numbers"
    return "" if (ours.status[list(bad)] == Status.DIVERGED).all() else "a bad problem has not diverged"


def _difference(ours: Plan, eager: Plan, exact: Plan, precision: str) -> str:
    """What is wrong with a plan; nothing where it is right."""
    try:
        hold(ours, eager, exact, precision)
    except AssertionError as error:
        return str(error) or "values where the eager plan has none, or none where it has some"
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    for options in sys.argv[1:]:
        print(json.dumps(asdict(emulated(Emulated(**json.loads(options))))))
