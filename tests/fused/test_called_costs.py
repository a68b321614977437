"""Costs that are called in PyTorch, in graphs: a replay does what a call would, and what no graph can hold is told.

On a device that captures as CUDA does (`tape`), where what is stale stays so; and on a GPU.
"""

from __future__ import annotations

import array
import gc
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgp_fast as sgp
from sgp_fast.backends import held
from sgp_fast.backends.fused import backend
from sgp_fast.backends.fused.device import EagerDevice
from sgp_fast.backends.fused.graphs import GraphCache
from tests.cases import relative
from tests.custom_costs import NX, SmallNetwork
from tests.test_custom_costs import changing, starts
from tests.test_custom_costs import problem as scored

from .tape import TapeDevice

pytestmark = pytest.mark.skipif(not backend.interpreting(), reason="on a GPU, graphs are real: test_custom_costs has these")
# As little as shows it: interpreted kernels are slow, and a capture runs them twice.
PLANNER = sgp.SGP(horizon=1, iterations=1, step_size=0.05, tolerance=0.0)
CEM = sgp.CEM(2, 1, 7, elites=3)
SEEN = ("a tensor", "a dictionary", "weights", "a global", "a class", "a slot")


def problem(cost: Any) -> sgp.Problem:
    return replace(scored(cost), score=None)


class Tape:
    """The fused backend on a tape."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int = 0) -> None:
        self.device = TapeDevice(fails_at)
        plain = EagerDevice(torch.device("cpu"))
        self.ways: dict[bool, Any] = {True: (self.device, GraphCache(self.device)), False: (plain, GraphCache(plain))}
        monkeypatch.setattr(backend, "_of", lambda kind, index, captured: self.ways[captured])

    @property
    def captures(self) -> int:
        """Of plans."""
        return self.ways[True][1].stats.captures


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    return Tape(monkeypatch)


def untraceable(cost: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The cost with an index that depends on the state, which changes nothing."""

    def indexed(x: Tensor, u: Tensor) -> Tensor:
        table = torch.zeros(8, device=x.device)
        return cost(x, u) + table[x[..., 0].nan_to_num().clamp(0, 6).long()]

    return indexed


def bowl(x: Tensor, u: Tensor) -> Tensor:
    return x.square().sum(-1) + u.square().sum(-1)


def both(cost: Any, x0: Tensor, planner: Any = PLANNER, **options: Any) -> sgp.Plan:
    """A plan, which is held against the eager one."""
    made = cost if isinstance(cost, sgp.Problem) else problem(cost)
    eager = {name: value for name, value in options.items() if name != "time_limit_s"}
    ours = sgp.solve(made, planner, x0, backend="fused", **options)
    theirs = sgp.solve(made, planner, x0, backend="eager", **eager)
    assert relative(ours.u, theirs.u) < 2e-5 and relative(ours.cost, theirs.cost) < 2e-5
    return ours


@pytest.mark.parametrize("planner", [PLANNER, CEM], ids=["sgp", "cem"])
def test_calls_are_in_the_graph(tape: Tape, planner: Any) -> None:
    def cost(x: Tensor, u: Tensor, goal: Tensor, t: Tensor, params: Tensor) -> Tensor:
        table = torch.linspace(0, 1, 8, device=x.device)
        return params * (x - goal).square().sum(-1) + (t + 1) * u.square().sum(-1) + table[x[..., 0].clamp(0, 6).long()]

    made = problem(cost)
    for scale, problems in ((1.0, 3), (-0.5, 4), (0.3, 1)):
        x0, goal = scale * starts(problems), 0.1 * scale * starts(problems)
        plan = both(made, x0, replace(planner, horizon=2), goal=goal, params=torch.linspace(0.5, scale + 2, problems))
        assert "called in PyTorch" in plan.stats["cost"] and plan.stats["cost"].endswith("; in the graph")
    assert tape.captures == 2  # buckets of 4 and of 1


def test_one_step_of_one_problem_and_a_time_limit(tape: Tape) -> None:
    cost = untraceable(bowl)
    assert both(cost, starts(1)).stats["cost"].endswith("; in the graph")
    limited = replace(PLANNER, iterations=6)
    for _ in range(2):
        assert both(cost, starts(1), limited, time_limit_s=1e6).stats["cost"].endswith("; in the graph")


@pytest.mark.parametrize("what", SEEN)
def test_what_a_cost_sees_may_change_between_replays(what: str, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    cost, change = changing(monkeypatch)[what]
    made, x0 = problem(untraceable(cost)), starts(3)
    before = both(made, x0)
    assert before.stats["cost"].endswith("; in the graph")
    change()
    after = both(made, x0)
    assert not torch.allclose(after.cost, before.cost)


def test_what_is_written_in_place_is_read_without_a_capture_and_what_is_rebound_is_captured(tape: Tape) -> None:
    state = {"target": torch.zeros(NX)}
    made, x0 = problem(untraceable(lambda x, u: (x - state["target"]).square().sum(-1))), starts(3)
    both(made, x0)
    for shift in (0.5, -0.25):
        state["target"].add_(shift)
        both(made, x0)
    assert tape.captures == 1
    state["target"] = torch.ones(NX)
    both(made, x0)
    assert tape.captures == 2


def test_one_that_is_rebound_all_the_time_is_captured_no_more(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MOST_CHANGES", 2)
    state = {"target": torch.zeros(NX)}
    made, x0 = problem(untraceable(lambda x, u: (x - state["target"]).square().sum(-1))), starts(1)
    for i in range(5):
        state["target"] = torch.full((NX,), 0.1 * i)
        plan = both(made, x0)
    assert "write to tensors in place" in plan.stats["cost"] and tape.captures == 3


def draws(x: Tensor, u: Tensor) -> Tensor:
    return bowl(x, u) * (1 + 0 * torch.rand_like(x[..., 0]))


def waits(x: Tensor, u: Tensor) -> Tensor:
    return bowl(x, u) if x.abs().max() < 1e6 else u.sum(-1)


def selects(x: Tensor, u: Tensor) -> Tensor:
    out = bowl(x, u)
    return out + 0 * out[out > 0].sum()


def constant(x: Tensor, u: Tensor) -> Tensor:
    return untraceable(bowl)(x, u) + (x * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], device=x.device)).sum(-1)


def clock(x: Tensor, u: Tensor) -> Tensor:
    return untraceable(bowl)(x, u) + 0 * time.time()


_count = itertools.count()


def counts(x: Tensor, u: Tensor) -> Tensor:
    next(_count)
    return untraceable(bowl)(x, u)


_sizes: dict[str, Tensor] = {}


def remembers_shapes(x: Tensor, u: Tensor) -> Tensor:
    if _sizes.get("ones", torch.zeros(0)).shape != u.shape[:-1]:
        _sizes["ones"] = torch.ones(u.shape[:-1])
    return untraceable(bowl)(x, u) * _sizes["ones"]


_one = array.array("d", [1.0])


def from_afar(x: Tensor, u: Tensor) -> Tensor:
    return untraceable(bowl)(x, u) * torch.from_numpy(np.frombuffer(_one, dtype=np.float64).copy()).float()


_lent = torch.ones(1)
_borrowed = weakref.ref(_lent)


def borrows(x: Tensor, u: Tensor) -> Tensor:
    return untraceable(bowl)(x, u) * _borrowed()  # pyright: ignore[reportOperatorIssue]


class Beside(torch.autograd.Function):
    """Works past PyTorch, as another library's kernel on a stream of its own would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        np.copyto(out.numpy(), x.numpy() ** 2)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * ctx.saved_tensors[0] * grad


def beside(x: Tensor, u: Tensor) -> Tensor:
    return untraceable(lambda x, u: Beside.apply(x).sum(-1) + u.square().sum(-1))(x, u)


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (draws, "random numbers"), (waits, "Python waits"), (selects, "depends on numbers"), (constant, "Python's numbers"),
        (clock, "names time"), (counts, "a count, whose state"), (remembers_shapes, "a call of it changes"),
        (from_afar, "Python's numbers"), (borrows, "not seen from the function"), (beside, "a replay gives other values"),
    ],
)  # fmt: skip
def test_what_no_graph_can_hold_is_called_without_one(cost: Any, words: str, tape: Tape) -> None:
    captures = []
    for scale in (1.0, 0.5):
        told = both(cost, scale * starts(5)).stats["cost"]
        assert "called in PyTorch" in told and "without a graph: " in told and words in told
        captures.append(tape.captures)
    # What a call of so many rows does to what the cost sees is known once the plan was captured.
    assert captures == [cost is remembers_shapes] * 2


def test_what_changes_unseen_is_trusted_no_more(tape: Tape) -> None:
    gain = array.array("d", [1.0])
    made, x0 = problem(untraceable(lambda x, u: gain[0] * x.square().sum(-1))), starts(3)
    assert both(made, x0).stats["cost"].endswith("; in the graph")
    gain[0] = 3.0
    for _ in range(2):
        assert "nothing that it sees has changed" in both(made, x0).stats["cost"]


def test_what_changes_unseen_behind_what_is_seen_is_found_too(tape: Tape) -> None:
    gain, target = array.array("d", [1.0]), torch.zeros(NX)
    made, x0 = problem(untraceable(lambda x, u: gain[0] * (x - target).square().sum(-1))), starts(3)
    both(made, x0)
    target.add_(0.5)
    assert both(made, x0).stats["cost"].endswith("; in the graph") and tape.captures == 1
    target.add_(0.5)
    gain[0] = 3.0
    assert "a replay gives other values" in both(made, x0).stats["cost"]


@pytest.mark.parametrize(("fails_at", "words"), [(1, "it cannot be captured"), (2, "a plan that calls it cannot")])
@pytest.mark.parametrize("planner", [PLANNER, CEM], ids=["sgp", "cem"])
def test_a_capture_that_fails_is_not_tried_again(
    fails_at: int, words: str, planner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape, cost = Tape(monkeypatch, fails_at), untraceable(bowl)
    for _ in range(2):
        told = both(cost, starts(3), planner).stats["cost"]
        assert words in told and "RuntimeError: operation not permitted" in told
    assert tape.device.tries == fails_at


def test_an_error_of_the_cost_itself_is_the_callers(tape: Tape) -> None:
    cost = untraceable(bowl)

    def fails(x: Tensor, u: Tensor) -> Tensor:
        if x.shape[1] > 4:
            raise KeyError("no cost for so many")
        return cost(x, u)

    made = problem(fails)
    both(made, starts(3))
    with pytest.raises(KeyError, match="no cost for so many"):
        sgp.solve(made, PLANNER, starts(9), backend="fused")
    assert both(made, starts(3)).stats["cost"].endswith("; in the graph")


def test_a_controllers_step_follows_what_the_cost_sees(tape: Tape) -> None:
    target, gain, x0 = torch.zeros(NX), array.array("d", [1.0]), starts(2)
    cost = untraceable(lambda x, u: gain[0] * (x - target).square().sum(-1))
    mpcs = [sgp.MPC(problem(cost), PLANNER, 2, backend=name) for name in ("fused", "eager")]

    def act() -> None:
        ours, theirs = (mpc.act(x0) for mpc in mpcs)
        assert relative(ours, theirs) < 2e-5

    for _ in range(3):
        act()
    graph = tape.device.graphs[-1]
    replays = graph.replays
    target.add_(0.5)
    act()
    assert graph.replays == replays + 1
    target.add_(0.5)
    gain[0] = 3.0
    for _ in range(3):
        act()
    assert graph.replays == replays + 1


def test_a_cost_that_is_given_up_is_not_kept(tape: Tape) -> None:
    def make() -> weakref.ref[Any]:
        net = SmallNetwork()
        cost = untraceable(lambda x, u: net(x, u))
        made = problem(cost)
        sgp.solve(made, PLANNER, starts(1), backend="fused")
        return weakref.ref(cost)

    kept = make()
    tape.ways[True][1]._entries.clear()
    tape.device.graphs.clear()
    gc.collect()
    assert kept() is None


@pytest.fixture(autouse=True)
def quiet_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What tests leave in the module's own state."""
    _sizes.clear()
    yield


def test_modules_are_read_where_they_lie(tape: Tape) -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = SmallNetwork()
            self.eval()

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return untraceable(self.inner)(x, u)

    made, x0 = problem(Indexed()), starts(3)
    before = both(made, x0)
    with torch.no_grad():
        made.cost.function.inner.net[0].weight.mul_(2.0)
    after = both(made, x0)
    assert not torch.allclose(before.cost, after.cost) and tape.captures == 1
