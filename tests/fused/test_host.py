"""What a plan asks of the host beside its graph: few operations, one wait for the device. What is remembered holds still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import sgp_fast as sgp
from sgp_fast._remembered import numbers, of_problem
from sgp_fast.backends.fused import backend
from sgp_fast.backends.fused.device import EagerDevice, EagerGraph
from sgp_fast.backends.fused.graphs import GraphCache
from tests.cases import Case
from tests.fused.tape import TapeDevice
from tests.fused.test_fused import INTERPRETED, planner, small

T = 2
SGP = planner(horizon=T, iterations=2, precision="float32", step_size=0.05)
MPPI = sgp.MPPI(T, 1, 12, beta=1.0)
CEM = sgp.CEM(T, 1, 12, elites=4)


class Outside(TorchDispatchMode):
    """Counts the operations beside graphs: those that the device has to do something for, and those that wait for it."""

    FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "lift_fresh", "_unsafe_view")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            self.waits += 1
        elif not func.is_view and name not in self.FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def replays_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph without a GPU runs does not count either."""
    replay = EagerGraph.replay

    def apart(self: EagerGraph) -> None:
        with _disable_current_modes():
            replay(self)

    monkeypatch.setattr(EagerGraph, "replay", apart)


def floats(case: Case) -> Case:
    """In the planner's dtype, as a caller has them who plans again and again."""
    goal = None if case.goal is None else case.goal.float()
    return replace(case, x0=case.x0.float(), u=case.u.float(), goal=goal)


def outside(case: Case, settings: Any, **given: Any) -> Outside:
    def solve() -> None:
        backend_ = "fused:tile" if isinstance(settings, sgp.SGP) else "fused"
        sgp.solve(case.problem, settings, case.x0, goal=case.goal, backend=backend_, **given)

    solve()
    with Outside() as found:
        solve()
    return found


@pytest.mark.usefixtures("replays_apart")
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("settings", "most"),
    [
        (SGP, 6), (replace(SGP, bounding="tanh"), 6), (replace(SGP, keep_moments=True, record_cost=True), 7), (MPPI, 9),
        (CEM, 10),
    ],  # fmt: skip
    ids=["sgp", "tanh", "moments", "mppi", "cem"],
)
def test_a_plan_asks_little_beside_its_graph(settings: Any, most: int, batch: int) -> None:
    learned = settings is not CEM
    case = floats(small("learned" if learned else "quadratic", "value", "score", batch=batch, horizon=T, bounds=(-0.5, 0.6)))
    found = outside(case, settings, **({"init": case.u} if isinstance(settings, sgp.SGP) else {}))
    spread = 2 if batch > 1 else 0  # one pair of bounds for several problems
    assert len(found.names) <= most + spread, found.names
    assert found.waits <= 1


def test_a_plan_in_a_graph_follows_the_levels_that_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay runs no Python: what a plan tells must come from what the device reads."""
    device = TapeDevice()
    plain = EagerDevice(torch.device("cpu"))
    ways: dict[bool, Any] = {True: (device, GraphCache(device)), False: (plain, GraphCache(plain))}
    if not INTERPRETED:
        pytest.skip("a tape records kernels that are interpreted")
    monkeypatch.setattr(backend, "_of", lambda kind, index, captured: ways[captured])
    case = floats(small("learned", "value", "score", batch=3, horizon=T, bounds=(-0.5, 0.6)))

    def plans() -> list[sgp.Plan]:
        names = ("fused:tile", "eager")
        return [sgp.solve(case.problem, SGP, case.x0, goal=case.goal, init=case.u, backend=name) for name in names]

    first = plans()
    assert case.problem.score is not None
    case.problem.score.sigmas.mul_(2)
    second = plans()
    assert len(device.graphs) == 1 and device.graphs[0].replays == 2
    for ours, theirs in (first, second):
        assert ours.stats["sigma"] == theirs.stats["sigma"]
        for (name, t), other in zip(ours.tensors().items(), theirs.tensors().values(), strict=True):
            assert torch.allclose(t, other, rtol=1e-4, atol=1e-5, equal_nan=True), name
    assert (second[0].terms["penalty"] / first[0].terms["penalty"] - 1).abs().min() > 0.1
    assert first[0].u.data_ptr() != second[0].u.data_ptr()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_bounds_that_are_written_to_take_effect(kind: Callable[[Any], Any]) -> None:
    low, high = kind([-0.5, -0.5]), kind([0.4, 0.6])
    case = small(batch=2, horizon=1, bounds=(low, high))

    def controls(settings: Any) -> torch.Tensor:
        given: dict[str, Any] = {"goal": case.goal} if isinstance(settings, sgp.CEM) else case.given
        return sgp.solve(case.problem, settings, case.x0, **given, backend="eager").u

    for settings in (replace(SGP, horizon=1, step_size=1.0), sgp.CEM(1, 1, 12, elites=4)):
        low[:], high[:] = -0.5, 0.6
        before = controls(settings)
        low[:], high[:] = 0.1, 0.2
        after = controls(settings)
        assert (after >= 0.1 - 1e-6).all() and (after <= 0.2 + 1e-6).all() and not torch.equal(before, after)


@pytest.mark.parametrize("settings", [sgp.CEM(1, 1, 12, elites=4), replace(SGP, horizon=1)], ids=["cem", "sgp"])
def test_a_plan_that_is_written_to_spoils_no_other(settings: Any) -> None:
    """One step of one problem: where a view would be as good as a copy."""
    case = small(batch=1, horizon=1, bounds=(-0.5, 0.6))

    def solve() -> sgp.Plan:
        return sgp.solve(case.problem, settings, case.x0, goal=case.goal, backend="fused")

    first, second = solve(), solve()
    for tensor in second.tensors().values():
        tensor.fill_(1)
    for name, tensor in solve().tensors().items():
        assert torch.equal(tensor.nan_to_num(), first.tensors()[name].nan_to_num()), name


def test_what_is_remembered_of_a_problem_goes_with_its_networks() -> None:
    problem = small().problem
    made = [of_problem(problem, "key", object) for _ in range(2)]
    assert made[0] is made[1] and of_problem(problem, "other", object) is not made[0]
    assert of_problem(replace(problem), "key", object) is not made[0]
    problem.dynamics.network = sgp.Network(problem.dynamics.network.spec, seed=1)
    assert of_problem(problem, "key", object) is not made[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_numbers_are_those_of_now(device: str) -> None:
    t = torch.tensor([1.0, 2.0], device=device)
    assert numbers(t) == numbers(t) == (1.0, 2.0)
    t.mul_(2)
    assert numbers(t) == (2.0, 4.0)
    with torch.inference_mode():
        assert numbers(torch.ones(2, device=device)) == (1.0, 1.0)
