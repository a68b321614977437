"""Wrong arguments raise before any work, naming argument and remedy; random starts depend on seed and problem alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sgp_fast as sgp
from sgp_fast.inputs import counted_normal
from sgp_fast.streaming import plan_file
from tests import cases
from tests.cases import F64, NU, NX, B, T, planner, relative


def never(*_: Any) -> Any:
    raise AssertionError("work began before the arguments were read")


def problem(**options: Any) -> sgp.Problem:
    return sgp.Problem(**({"dynamics": never, "cost": never, "nu": NU} | options))


X0 = torch.zeros(B, NX)
NAN = torch.tensor([[0.0, 0, 0], [0, torch.nan, 0], [torch.inf, 0, 0]])
PLAN = sgp.Plan(
    u=torch.zeros(B, T + 3, NU), x=X0, costate=X0, cost=X0, terms={}, status=X0, score_norm=X0, grad_norm=X0, iterations=X0
)
LEARNED = cases.dynamics("learned").part
SCORED = {"score": cases.score().part}


@pytest.mark.parametrize(
    ("options", "settings", "given", "error", "words"),
    [
        ({}, {}, {"x0": torch.zeros(B, 2, NX)}, ValueError, r"x0 has shape \(4, 2, 3\); expected \[B, nx\]"),
        ({}, {}, {"x0": torch.zeros(0, NX)}, ValueError, r"x0 has shape \(0, 3\); expected .* at least one problem"),
        ({}, {}, {"x0": torch.zeros(())}, ValueError, "x0 has shape"),
        ({}, {}, {"x0": NAN}, ValueError, r"x0 has a value that is not finite in row 1 \(2 .*mend"),
        ({}, {}, {"x0": NAN[1]}, ValueError, "x0 has a value that is not finite in row 0"),
        ({}, {}, {"x0": "start"}, TypeError, "x0 is a str; expected a tensor or an array"),
        ({}, {}, {"x0": None}, TypeError, "x0 is a NoneType; expected a tensor or an array"),
        ({}, {}, {"x0": [[1.0], [1.0, 2.0]]}, TypeError, "x0 is a list; expected a tensor or an array"),
        ({}, {}, {"x0": torch.zeros(B, NX, dtype=torch.complex64)}, TypeError, "x0 is torch.complex64; expected real"),
        ({"dynamics": LEARNED}, {}, {"x0": torch.zeros(B, 4)}, ValueError, "x0 has nx=4 features; the dynamics have nx=3"),
        ({"nu": None}, {}, {}, ValueError, "number of controls is not known.*give Problem.nu"),
        ({"nu": 4, **SCORED}, {}, {}, ValueError, r"disagree on the number of controls .*score: 2, nu: 4\) for nx=3; give"),
        ({}, {}, {"goal": torch.zeros(2, NX)}, ValueError, r"goal has shape \(2, 3\); expected \[3\] or \[4, 3\]"),
        ({"goal": torch.zeros(5)}, {}, {}, ValueError, r"goal has shape \(5,\) and x0 has nx=3 .*expected a goal \[3\] or "),
        ({}, {}, {"x0": torch.zeros(B, 4), "goal": torch.zeros(3)}, ValueError, "x0 has nx=4 feat.*or x0 of 3 features"),
        ({"dynamics": LEARNED, "goal": torch.zeros(5)}, {}, {}, ValueError, r"goal has shape \(5,\); expected \[3\]"),
        ({"cost": cases.two_arguments}, {}, {"goal": torch.zeros(3)}, ValueError,
         r"goal is given, but no cost reads it; Problem.cost takes \(x, u\): make it \(x, u, goal, t, params\), or leave"),
        ({"cost": cases.two_arguments, "terminal": cases.one_argument}, {}, {"params": torch.zeros(B)}, ValueError,
         r"params is given, .* Problem.terminal takes \(x\): make it \(x, goal, params\), or leave params out"),
        ({"cost": cases.cost("learned").part}, {}, {"goal": torch.zeros(3)}, ValueError, "or use a cost that does"),
        ({}, {}, {"goal": NAN[2]}, ValueError, "goal has a value that is not finite"),
        ({}, {}, {"params": torch.zeros(3)}, ValueError, "params.* has shape .3,.; expected .4, ….*row a problem"),
        ({}, {}, {"params": {"mass": 1.0}}, ValueError, r"params\['mass'\] has shape \(\); expected \[4, …\]"),
        ({}, {}, {"params": {"mass": "heavy"}}, TypeError, r"params\['mass'\] is a str"),
        ({}, {}, {"init": torch.zeros(B, T + 1, NU)}, ValueError, "init has T=6 but horizon=5; pass horizon=6 or re-plan"),
        ({}, {}, {"init": PLAN}, ValueError, "init has T=8 but horizon=5; pass horizon=8 or re-plan"),
        ({}, {}, {"init": torch.zeros(B, T, 3)}, ValueError, r"init has shape \(4, 5, 3\); expected \[4, 5, 2\]"),
        ({}, {}, {"init": torch.zeros(1, T, NU)}, ValueError, r"init has shape \(1, 5, 2\); expected \[4, 5, 2\]"),
        ({}, {}, {"init": torch.zeros(T, NU)}, ValueError, r"init has shape \(5, 2\); expected \[4, 5, 2\]"),
        ({}, {}, {"init": torch.full((B, T, NU), torch.nan)}, ValueError, "init has a value that is not finite in row 0"),
        ({"bounds": (torch.zeros(3, 2), 1.0)}, {}, {}, ValueError, r"bounds \(low\) .*3, 2.*; expected a number"),
        ({"bounds": (1.0, 1.0 + 1e-12)}, {"precision": "float32"}, {}, ValueError, "some low is not below its high; give"),
        ({}, {"bounding": "tanh"}, {}, ValueError, "tanh' needs Problem.bounds; give bounds, or use bounding='project'"),
        ({"bounds": (0, torch.inf)}, {"bounding": "tanh"}, {}, ValueError, "needs finite bounds; use bounding='project'"),
        ({}, {}, {"xT": X0}, ValueError, "xT is given, but single shooting has a free end; use a terminal cost"),
        ({}, {}, {"time_limit_s": 0.0}, ValueError, "time_limit_s is 0.0; expected a positive number of seconds"),
        ({}, {}, {"time_limit_s": float("nan")}, ValueError, "time_limit_s is nan"),
        ({}, {}, {"backend": "fastest"}, ValueError, "backend is 'fastest'; expected 'auto' or one of 'eager'"),
        (SCORED, {"levels": [0, 1, 2]}, {}, ValueError, "levels has 3 entries for iterations=1; give a number"),
        (SCORED, {"levels": [9]}, {}, ValueError, "levels has entries from 9 to 9; the score has levels 0 to 3"),
        ({"cost": sgp.QuadraticCost(torch.eye(2), torch.eye(NU))}, {}, {}, ValueError, r"[Cc]ost.*nx=3"),
        ({"cost": sgp.QuadraticCost(torch.eye(NX), torch.eye(3))}, {}, {}, ValueError, r"[Cc]ost.*nu=2"),
        ({"cost": cases.cost("learned").part, "nu": 4}, {}, {}, ValueError, "[Cc]ost.*nu=4"),
        ({"terminal": sgp.QuadraticTerminal(torch.eye(2))}, {}, {}, ValueError, r"[Tt]erminal.*nx=3"),
        ({"terminal": cases.terminal("value").part}, {}, {"x0": torch.zeros(B, 4)}, ValueError, "[Tt]erminal.*nx=4"),
    ],
)  # fmt: skip
def test_wrong_arguments(options: dict, settings: dict, given: dict, error: type[Exception], words: str) -> None:
    made = problem(**options)
    with pytest.raises(error, match=words):
        sgp.solve(made, planner(**settings), **dict[str, Any]({"x0": X0} | given))


def test_a_problem_and_a_planner_in_each_others_place_are_told_so() -> None:
    case = cases.case("learned", "quadratic")
    told = r"problem and planner are in each other's place; give solve\(problem, planner, x0\)"
    for call in (
        lambda: sgp.solve(planner(), case.problem, case.x0),  # pyright: ignore[reportArgumentType]
        lambda: sgp.MPC(planner(), case.problem, 4),  # pyright: ignore[reportArgumentType]
        lambda: sgp.warmup(planner(), case.problem, [4]),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(TypeError, match=told):
            call()
    with pytest.raises(TypeError, match="problem is a Dynamics; expected a Problem"):
        sgp.solve(LEARNED, planner(), case.x0)
    with pytest.raises(TypeError, match="planner is the class SGP; expected SGP, CEM or MPPI"):
        sgp.solve(case.problem, sgp.SGP, case.x0)  # pyright: ignore[reportArgumentType]


def test_finite_numbers_whose_sum_is_not_are_finite() -> None:
    case = cases.case("learned", "quadratic")
    x0 = torch.full((B, NX), 3e38)
    plan = sgp.solve(case.problem, planner(precision="float32"), x0, goal=torch.full((NX,), 3e38), init=case.u)
    assert (plan.status == sgp.Status.DIVERGED).all()
    for name, wrong in (("x0", {"x0": torch.cat((x0[1:], -torch.inf * x0[:1]))}), ("goal", {"goal": torch.inf * x0[0]})):
        with pytest.raises(ValueError, match=f"{name} has a value that is not finite in row {B - 1 if name == 'x0' else 0}"):
            given: dict = {"x0": x0, "goal": x0[0], "init": case.u} | wrong
            sgp.solve(case.problem, planner(precision="float32"), **given)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizon": 0}, "SGP.horizon is 0; expected a whole number of at least 1"),
        ({"iterations": 2.5}, "SGP.iterations is 2.5"),
        ({"starts": 0}, "SGP.starts is 0"),
        ({"bounding": "clip"}, "SGP.bounding is 'clip'; expected 'project' or 'tanh'"),
        ({"precision": "int8"}, "SGP.precision is 'int8'; expected one of float64, float32, tf32, float16, bfloat16"),
        ({"start_spread": -1.0}, "SGP.start_spread.*at least 0"),
        ({"tolerance": float("nan")}, "SGP.tolerance.*at least 0"),
        ({"clip_gradient": 0.0}, "SGP.clip_gradient is 0.0; expected a positive norm, or None"),
        ({"adam": (0.9, 0.999)}, "SGP.adam is .*expected"),
        ({"adam": (1.0, 0.999, 1e-8)}, "SGP.adam is .*expected"),
        ({"adam": (0.9, 0.999, 0.0)}, "SGP.adam is .*expected"),
        ({"beta": (1, 2, 3), "iterations": 5}, "SGP.beta has 3 entries for iterations=5; give a number"),
        ({"beta": -1.0}, "SGP.beta is -1.0; expected finite"),
        ({"step_size": (1, 2, 3), "iterations": 5}, "SGP.step_size has 3 entries"),
    ],
)
def test_planners_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        planner(**settings)


def test_one_level_may_be_a_number() -> None:
    case = cases.case(score_=cases.score())
    results = []
    for levels in (3, [3, 3], [0, 0]):
        results.append(sgp.solve(case.problem, planner(levels=levels, iterations=2), case.x0, **case.given).u)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_tables_of_a_frozen_planner_are_tuples() -> None:
    made = planner(beta=[0.1, 0.2, 0.3], iterations=3, levels=[0, 1, 2])
    assert made.beta == (0.1, 0.2, 0.3) and made.levels == (0, 1, 2)
    assert made == planner(beta=(0.1, 0.2, 0.3), iterations=3, levels=(0, 1, 2)) and hash(made) == hash(made)


def test_arrays_lists_and_tensors_are_the_same_to_a_planner() -> None:
    case = cases.case("module", "five arguments", "three arguments")
    want = sgp.solve(case.problem, planner(iterations=3), case.x0, **case.given).u
    arrays: dict[str, Any] = {name: getattr(case, name).numpy() for name in ("goal", "params")} | {"init": case.u.numpy()}
    assert torch.equal(sgp.solve(case.problem, planner(iterations=3), case.x0.numpy(), **arrays).u, want)
    lists: dict[str, Any] = {name: value.tolist() for name, value in arrays.items()}
    x0: Any = case.x0.tolist()
    assert torch.equal(sgp.solve(case.problem, planner(iterations=3), x0, **lists).u, want)


def test_one_problem_needs_no_batch_axis() -> None:
    case = cases.case("learned", "quadratic")
    want = sgp.solve(case.problem, planner(iterations=3), case.x0[:1], goal=case.goal[:1], init=case.u[:1])  # pyright: ignore[reportOptionalSubscript]
    got = sgp.solve(case.problem, planner(iterations=3), case.x0[0], goal=case.goal[0], init=case.u[0])  # pyright: ignore[reportOptionalSubscript]
    assert torch.equal(got.u, want.u) and got.u.shape == (1, T, NU)


def test_a_problem_brings_its_own_goal_unless_one_is_given() -> None:
    own, other = torch.full((NX,), 0.5, dtype=F64), torch.zeros(NX, dtype=F64)
    case = cases.case("module", "quadratic", goal=own)
    results = [
        sgp.solve(case.problem, planner(), case.x0, init=case.u, goal=goal).cost for goal in (None, own.expand(B, -1), other)
    ]
    assert torch.equal(results[0], results[1]) and relative(results[2], results[0]) > 1e-3


@pytest.mark.parametrize("numbers", [1, 3, 4, 5, 10])
def test_random_numbers_belong_to_seed_and_problem(numbers: int) -> None:
    all_ = counted_normal(7, 0, 64, numbers)
    for first, rows in ((0, 1), (5, 3), (63, 1), (17, 47)):
        assert np.array_equal(counted_normal(7, first, rows, numbers), all_[first : first + rows])
    assert all_.shape == (64, numbers) and not np.array_equal(counted_normal(8, 0, 64, numbers), all_)
    assert len(np.unique(all_)) == all_.size


def test_random_numbers_are_standard_normal() -> None:
    z = counted_normal(0, 0, 4000, 25)
    assert abs(z.mean()) < 0.015 and abs(z.std() - 1) < 0.01 and abs((z**3).mean()) < 0.03 and abs((z**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(z[:, 0], z[:, 1])[0, 1]) < 0.06 and np.isfinite(z).all()


def test_starts_follow_the_seed() -> None:
    case = cases.case("learned", "quadratic")

    def u(seed: int | None, x0: torch.Tensor = case.x0, **options: Any) -> torch.Tensor:
        shown = cases.Recorder()
        goal = case.goal[0]  # pyright: ignore[reportOptionalSubscript]
        sgp.solve(case.problem, planner(**options), x0, goal=goal, seed=seed, callback=shown)
        return shown.seen[0].u

    assert torch.equal(u(None), u(0)) and torch.equal(u(3), u(3)) and not torch.equal(u(3), u(4))
    assert relative(u(3, start_spread=0.3), 3 * u(3)) < 1e-12
    assert 0.095 < u(0, case.x0[:1].expand(500, -1), start_spread=0.1).std() < 0.105


@pytest.mark.parametrize("still", [0, (0.0, 0.0), (0.0,) * 6])
def test_steps_of_no_length_are_for_controls_that_are_given(still: Any, tmp_path: Path) -> None:
    """Else what was drawn at random would come back as a plan, and nobody would be told."""
    case = cases.case("learned", "quadratic")
    settings = planner(step_size=still, iterations=6)
    words = r"SGP.step_size is .*, so no control would move; give a step above 0, such as 0.1"
    with pytest.raises(ValueError, match=words + ", or init: what its controls come to is then told"):
        sgp.solve(case.problem, settings, case.x0, goal=case.goal)
    with pytest.raises(ValueError, match=words + "$"):
        sgp.MPC(case.problem, settings, B)
    np.save(tmp_path / "x.npy", case.x0.numpy())
    with pytest.raises(ValueError, match=words + "$"):
        plan_file(case.problem, settings, tmp_path / "x.npy", tmp_path / "p.npz")
    assert torch.equal(sgp.solve(case.problem, settings, case.x0, goal=case.goal, init=case.u).u, case.u)
    some = planner(step_size=(0.1, 0.0), iterations=6)
    assert not torch.equal(sgp.solve(case.problem, some, case.x0, goal=case.goal, init=case.u).u, case.u)
