"""Who plays in `quality`: the same planner by backend and dtype, planners by their budget, and the policy of the data.

    data        the behaviour policy, which every planner is to be held against
    precision   SGP as the demo has it, on every backend in every dtype: does it matter how the numbers are kept?
    budget      SGP by iterations, CEM, MPPI and random shooting by samples: what does more computation buy?

The sampling planners see the same dynamics and the same cost as SGP, over the same horizon. As they are published they know
no score, which is to be compared with β = 0; "with score", a candidate's distance to the data is part of its cost, which is
to be compared with SGP. Step size and β of SGP are those of the demo at every budget, which were tuned for one of them; the
draws of CEM are divided as in the demo, an eighth of them elites; MPPI has its one iteration an action. Random shooting is
CEM of one round and one elite: the best of some draws around the last plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from sgp_fast import schedule
from sgp_fast.backends import available
from sgp_fast.evaluation import Controller
from sgp_fast.mpc import MPC
from sgp_fast.planner import SGP, Precision
from sgp_fast.policies import BehaviorPolicy
from sgp_fast.problem import Problem
from sgp_fast.sampling import CEM, MPPI, Planner

from ..rows import ReturnRow

Make = Callable[[Problem, int, int], Controller]
"""A controller from a problem, the number of environments, and a seed."""

GROUPS = ("data", "precision", "budget")

# The first is what the others are compared with. tf32 is a precision of GPUs: elsewhere it is float32.
WAYS: dict[str, tuple[Precision, ...]] = {
    "eager": ("float32", "float64", "bfloat16"),
    "compiled": ("float32", "bfloat16"),
    "fused": ("float32", "tf32", "float16", "bfloat16"),
}
REFERENCE = ("eager", "float32")
# Weight of the score in a candidate's cost, as multiples of SGP's β, and the temperature of MPPI: the best of some from 1 to
# 300, and from 0.1 to 30, on hopper-medium at 128 samples, over 200 steps of five seeds that are not played here (5000 on).
WEIGHTS = {"CEM": 300.0, "MPPI": 30.0}
TEMPERATURE = 3.0
# On processors without instructions for it, PyTorch's bfloat16 products take a hundred times as long as those of float32.
DEAREST: tuple[str, Precision] = ("eager", "bfloat16")


@dataclass(frozen=True)
class Budgets:
    """The sizes that are tried: iterations of SGP; samples of random shooting, of MPPI, and of each of CEM's `rounds`."""

    iterations: tuple[int, ...] = (1, 2, 5, 10, 15, 30, 60)
    samples: tuple[int, ...] = (32, 128, 512, 2048)
    rounds: int = 3


@dataclass(frozen=True)
class Contender:
    """One line of the table: a controller in the words of a `ReturnRow`, and how to make it on a problem on `device`.

    plans    whether it plans, so that an action has a price; the behaviour policy does not
    reason   why it cannot run here
    """

    group: str
    planner: str
    setting: str
    backend: str
    precision: str
    device: str
    make: Make
    plans: bool = True
    reason: str | None = None

    @property
    def name(self) -> str:
        return f"{self.group}: {told(self)}"


def told(who: Contender | ReturnRow) -> str:
    """Planner, setting and how it is computed, which is no matter of a policy that plans nothing."""
    how = "" if who.backend == "none" else f", {who.backend} {who.precision}"
    return f"{who.planner}, {who.setting}{how}"


def contenders(task: str, planner: SGP, budgets: Budgets, device: str) -> Iterator[Contender]:
    """All of a task such as "hopper-medium"; `device` is where they plan, but for `compiled`, which plans on the CPU.

    Cheap ones come before dear ones, so that a run that ends early has a whole picture at low budgets.
    """
    name, _, quality = task.partition("-")
    yield Contender(
        "data", "behaviour policy", quality, "none", "float32", "cpu",
        lambda problem, batch, seed: BehaviorPolicy(name, quality, batch, seed), plans=False,
    )  # fmt: skip


    def way(backend: str, precision: Precision) -> Contender:
        return Contender(
            "precision", "SGP", _count(planner.iterations, "iteration"), backend, precision,
            "cpu" if backend == "compiled" else device, partial(_mpc, replace(planner, precision=precision), backend),
            reason=why_not(backend, device),
        )  # fmt: skip

    ways: list[tuple[str, Precision]] = [(backend, at) for backend, precisions in WAYS.items() for at in precisions]
    yield from (way(*at) for at in ways if at != DEAREST)
    yield from _budget(planner, budgets, device)
    yield way(*DEAREST)


def why_not(backend: str, device: str) -> str | None:
    """Why a backend cannot run where this device is the best; None where it can."""
    if backend == "fused" and device != "cuda":
        return "Triton kernels run on GPUs, and there is none here"
    return available()[backend]


def best_backend(device: str) -> str:
    """What "auto" would take for networks that its kernels cover, by name, so that a row says what planned it."""
    wanted = "fused" if device == "cuda" else "compiled"
    return wanted if why_not(wanted, device) is None else "eager"


def _budget(planner: SGP, budgets: Budgets, device: str) -> Iterator[Contender]:
    backend, T, R = best_backend(device), planner.horizon, budgets.rounds

    def of(name: str, setting: str, backend: str, make: Make) -> Contender:
        return Contender("budget", name, setting, backend, "float32", device, make)

    for n in budgets.iterations:
        # A schedule given as a table belongs to one number of iterations; those of the demo are constants and pairs.
        sgp = replace(planner, iterations=n, precision="float32")
        yield of("SGP", _count(n, "iteration"), backend, partial(_mpc, sgp, backend))
        if backend != "eager":  # what the same planner earns and takes in plain PyTorch
            yield of("SGP, plain PyTorch", _count(n, "iteration"), "eager", partial(_mpc, sgp, "eager"))
    free = replace(planner, beta=0.0, precision="float32")
    yield of("SGP, β = 0", _count(free.iterations, "iteration"), backend, partial(_mpc, free, backend))
    last = schedule.table(planner.beta, planner.iterations, "SGP.beta")[-1]
    for n in budgets.samples:
        shooting = CEM(T, 1, n, elites=1)
        cem, mppi = CEM(T, R, n, elites=max(1, n // 8)), MPPI(T, 1, n, temperature=TEMPERATURE)
        yield of("random shooting", _count(n, "sample"), backend, partial(_mpc, shooting, backend))
        for name, setting, drawn in (("MPPI", _count(n, "sample"), mppi), ("CEM", f"{R} × {_count(n, 'sample')}", cem)):
            scored = replace(drawn, beta=WEIGHTS[name] * last)
            yield of(name, setting, backend, partial(_mpc, drawn, backend))
            yield of(f"{name} with score", setting, backend, partial(_mpc, scored, backend))


def _mpc(planner: Planner, backend: str, problem: Problem, batch: int, seed: int) -> Controller:
    return MPC(problem, planner, batch, backend=backend, seed=seed)


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + "s" * (n != 1)
