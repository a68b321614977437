"""CEM and MPPI: closed forms on linear-quadratic problems, pytorch_mppi under the same noise, each problem as if alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.kernels.draws_ref import MOST_NUMBERS, normal_ref, philox_ref, uniform_ref
from sgp_fast.sampling import Sampler
from tests import cases
from tests.cases import NU, NX, T
from tests.controllers import point_mass, point_problem, to_origin

F64 = torch.float64
Status = sgp.Status
PLANNERS: dict[str, Sampler] = {
    "cem": sgp.CEM(T, 3, 32, elites=6, spread=0.5, precision="float64"),
    "mppi": sgp.MPPI(T, 2, 32, temperature=0.7, spread=(0.3, 0.6), precision="float64"),
}
every_planner = pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS.keys())


def noise(planner: Sampler, batch: int, nu: int, seed: int = 0, iteration: int = 0) -> Tensor:
    """ε `[B, S, T, nu]` of a plan from start states without keys of their own."""
    keys, numbers = torch.arange(batch), planner.horizon * nu
    found = normal_ref(seed, keys, iteration, range(planner.samples), numbers, planner.state_dtype)
    return found.view(batch, planner.samples, planner.horizon, nu)


# Random numbers.


def test_philox_gives_the_numbers_of_its_authors() -> None:
    """The known answers of Random123's own tests for philox4x32-10."""
    ones = 0xFFFFFFFF
    known = [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]  # fmt: skip
    for counter, seed, words in known:
        assert tuple(map(int, philox_ref(seed, [torch.tensor(c) for c in counter]))) == words
    assert tuple(map(int, philox_ref(-1, [torch.tensor(ones)] * 4))) == known[1][2], "a seed is taken modulo 2⁶⁴"


def test_draws_are_uniform_and_normal_and_independent() -> None:
    words = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    uniform = uniform_ref(words)
    assert uniform.dtype == torch.float32 and uniform.min() == 0 and uniform.max() < 1
    keys = torch.tensor([0, 1, 5 + 3 * 2**32])
    draws = normal_ref(3, keys, 0, range(4000), 6, F64)
    values = draws.flatten().sort().values
    gap = (torch.special.ndtr(values) - torch.linspace(0, 1, len(values), dtype=F64)).abs().max()
    assert gap < 1.63 / len(values) ** 0.5  # as Kolmogorov bounds it, at one per cent
    others = torch.cat((draws, normal_ref(3, keys, 1, range(4000), 6, F64), normal_ref(4, keys, 0, range(4000), 6, F64)))
    columns = others.transpose(1, 2).flatten(0, 1)
    correlation = torch.corrcoef(columns) - torch.eye(len(columns), dtype=F64)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_a_draw_is_a_function_of_where_it_stands() -> None:
    whole = normal_ref(7, torch.tensor([4, 2**32 + 4, 9]), 2, range(20), 7)
    assert torch.equal(normal_ref(7, torch.tensor([9]), 2, range(11, 14), 7), whole[2:, 11:14])
    assert torch.equal(normal_ref(7, torch.tensor([4]), 2, range(20), 3), whole[:1, :, :3])
    assert not torch.allclose(whole[0], whole[1])
    assert torch.allclose(normal_ref(7, torch.tensor([9]), 2, range(20), 7, F64).float(), whole[2:], atol=1e-5)
    with pytest.raises(ValueError, match="counted to"):
        normal_ref(0, torch.tensor([0]), 0, range(1), MOST_NUMBERS + 1)


# What is right.


def linear_quadratic(seed: int = 0, batch: int = 3) -> tuple[sgp.Problem, Tensor, Tensor, Tensor]:
    """A problem `x' = A x + B u` with quadratic costs, its starts, and the best controls and their cost in closed form.

    The cost is `uᵀ H u + 2 gᵀ u + …` in all controls at once: the solution is that of `H u = −g`.
    """
    generator = torch.Generator().manual_seed(seed)
    A = torch.eye(NX, dtype=F64) + 0.1 * torch.randn(NX, NX, generator=generator, dtype=F64)
    B = 0.5 * torch.randn(NX, NU, generator=generator, dtype=F64)
    Q, R = torch.eye(NX, dtype=F64), torch.eye(NU, dtype=F64)
    x0 = torch.randn(batch, NX, generator=generator, dtype=F64)
    problem = sgp.Problem(
        dynamics=lambda x, u: x @ A.T + u @ B.T, cost=sgp.QuadraticCost(Q, R), terminal=sgp.QuadraticTerminal(3 * Q), nu=NU
    )
    powers = [torch.linalg.matrix_power(A, t) for t in range(T + 1)]
    free = torch.stack(powers)  # x_t = free[t] x0 + forced[t] u
    forced = torch.zeros(T + 1, NX, T * NU, dtype=F64)
    for t in range(1, T + 1):
        for s in range(t):
            forced[t, :, s * NU : (s + 1) * NU] = powers[t - 1 - s] @ B
    weight = torch.ones(T + 1, dtype=F64)
    weight[T] = 3
    H = torch.einsum("t,tni,tnj->ij", weight, forced, forced) + torch.eye(T * NU, dtype=F64)
    g = torch.einsum("t,tni,tnm,bm->bi", weight, forced, free, x0)
    best = torch.linalg.solve(H, -g.T).T.view(batch, T, NU)
    plan = sgp.solve(problem, sgp.SGP(T, 1, step_size=0.0, precision="float64"), x0, init=best)
    return problem, x0, best, plan.cost


def test_cem_converges_to_the_closed_form_of_a_linear_quadratic_problem() -> None:
    problem, x0, best, cost = linear_quadratic()
    plan = sgp.solve(problem, sgp.CEM(T, 60, 512, spread=1.0, momentum=0.3, precision="float64"), x0)
    assert (plan.u - best).abs().max() < 1e-5 and bool((plan.cost - cost < 1e-9 * cost).all())
    assert bool((plan.cost >= cost - 1e-12).all())


def test_mppi_approaches_the_closed_form_as_it_cools() -> None:
    problem, x0, best, cost = linear_quadratic()
    above = []
    for temperature, spread in ((1.0, 0.3), (0.1, 0.1), (0.01, 0.03)):
        planner = sgp.MPPI(T, 100, 512, spread=spread, temperature=temperature, precision="float64", perturbation_cost=False)
        plan = sgp.solve(problem, planner, x0, init=sgp.solve(problem, planner, x0))
        above.append(float(((plan.cost - cost) / cost).max()))
    assert above[0] > above[1] > above[2] and above[2] < 2e-3


def case(**options: Any) -> cases.Case:
    return cases.case("learned", "five arguments", "three arguments", control_change=0.2, **options)


def weighted(
    made: cases.Case, planner: Sampler, mean: Tensor, std: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """One iteration of a planner for each problem, candidate by candidate, from the words of its definition."""
    batch, draws = len(made.x0), noise(planner, len(made.x0), NU)
    means, stds = [], []
    for b in range(batch):
        one = replace(made, goal=None if made.goal is None else made.goal[b], params=made.params[b])
        us = (mean[b] + std * draws[b]).clamp(low, high)
        costs = []
        for u in us:
            x = cases.states(one, one.x0[b][None], u[None])
            cost = cases.task_cost(one, x, u[None])[0]
            if isinstance(planner, sgp.MPPI) and planner.perturbation_cost:
                cost = cost + planner.temperature * sum(mean[b, t] @ ((u[t] - mean[b, t]) / std**2) for t in range(T))
            costs.append(cost)
        order = torch.stack(costs)
        if isinstance(planner, sgp.MPPI):
            w = torch.softmax(-order / planner.temperature, 0)
        else:
            assert isinstance(planner, sgp.CEM)
            w = torch.zeros_like(order)
            w[order.argsort()[: planner.elites]] = 1 / planner.elites
        new = torch.einsum("s,stn->tn", w, us)
        means.append(new)
        stds.append(torch.einsum("s,stn->tn", w, (us - new) ** 2).sqrt())
    return torch.stack(means), torch.stack(stds)


@every_planner
@pytest.mark.parametrize("plain", [True, False])
def test_one_iteration_is_the_weighted_mean_of_its_definition(planner: Sampler, plain: bool) -> None:
    """With every kind of cost, goal, params, bounds that clip; and what CEM keeps of the last distribution."""
    made = case()
    problem = replace(made.problem, bounds=(-0.6, 0.5))
    one = replace(planner, iterations=1)
    if isinstance(planner, sgp.MPPI):
        one = replace(one, perturbation_cost=not plain)
    kept = 0.0
    if isinstance(planner, sgp.CEM) and not plain:
        kept, one = 0.3, replace(one, momentum=0.3)
    plan = sgp.solve(problem, one, made.x0, **made.given)
    start = made.u.clamp(-0.6, 0.5)
    mean, std = weighted(made, one, start, torch.tensor(one.spread, dtype=F64), -0.6, 0.5)
    expected = kept * start + (1 - kept) * mean
    assert torch.allclose(plan.u, expected, atol=1e-10) and (plan.iterations == 1).all()
    if isinstance(planner, sgp.CEM):  # the second iteration draws with what the first left
        two = sgp.solve(problem, replace(one, iterations=2), made.x0, **made.given)
        std = kept * torch.full_like(std, 0.5) + (1 - kept) * std
        u = (expected[:, None] + std[:, None] * noise(one, len(made.x0), NU, iteration=1)).clamp(-0.6, 0.5)
        flat = u.flatten(0, 1)
        rows = {name: v.repeat_interleave(one.samples, 0) for name, v in made.given.items() if name != "init"}
        fixed = sgp.SGP(T, 1, step_size=0.0, precision="float64")
        costs = sgp.solve(problem, fixed, made.x0.repeat_interleave(one.samples, 0), init=flat, **rows).cost
        order = costs.view(-1, one.samples).argsort(1)[:, : planner.elites]
        elites = torch.stack([u[b, order[b]] for b in range(len(u))]).mean(1)
        assert torch.allclose(two.u, kept * expected + (1 - kept) * elites, atol=1e-10)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("perturbation_cost", [True, False])
def test_mppi_is_that_of_pytorch_mppi_under_the_same_noise(bounded: bool, perturbation_cost: bool) -> None:
    library = pytest.importorskip("pytorch_mppi")
    planner = sgp.MPPI(
        T, 3, 64, temperature=0.4, spread=0.5, precision="float64", perturbation_cost=perturbation_cost
    )
    problem = point_problem(bounds=(-0.4, 0.7) if bounded else None)
    x0 = torch.tensor([[1.0, -0.3], [-0.5, 0.8]], dtype=F64)
    init = 0.2 * torch.randn(2, T, 1, generator=torch.Generator().manual_seed(5), dtype=F64)
    plan = sgp.solve(problem, planner, x0, init=init, seed=9)
    for b in range(2):
        # Its running cost is of the state after the step: the state carries the cost of the step that led to it.
        def dynamics(y: Tensor, u: Tensor) -> Tensor:
            return torch.cat((point_mass(y[:, :2], u), to_origin(y[:, :2], u)[:, None]), -1)

        limits = {"u_min": torch.tensor([-0.4], dtype=F64), "u_max": torch.tensor([0.7], dtype=F64)} if bounded else {}
        mppi = library.MPPI(
            dynamics, lambda y, u: y[:, 2], 3, torch.tensor([[0.25]], dtype=F64), num_samples=64, horizon=T, lambda_=0.4,
            U_init=init[b].clone(), **limits,
        )  # fmt: skip
        if not perturbation_cost:
            mppi._compute_action_cost = torch.zeros_like
        for i in range(3):
            ours = 0.5 * noise(planner, 2, 1, seed=9, iteration=i)[b]
            mppi._sample_noise = lambda shape, ours=ours: ours
            mppi.command(torch.cat((x0[b], x0.new_zeros(1))), shift_nominal_trajectory=False)
        assert torch.allclose(plan.u[b], mppi.U, atol=1e-10)


# What a plan says.


@every_planner
def test_a_plan_tells_what_a_gradient_planner_would_tell_of_its_controls(planner: Sampler) -> None:
    made = case(score_=cases.score("noise"), bounds=(-1.0, 1.0))
    plan = sgp.solve(made.problem, replace(planner, beta=0.4), made.x0, **made.given)
    told = sgp.SGP(T, 1, step_size=0.0, beta=0.4, levels=len(cases.SIGMAS) - 1, precision="float64")
    same = sgp.solve(made.problem, told, made.x0, goal=made.goal, params=made.params, init=plan)
    for name in ("u", "x", "cost", "score_norm"):
        assert torch.allclose(getattr(plan, name), getattr(same, name), atol=1e-10), name
    for name, term in same.terms.items():
        assert torch.allclose(plan.terms[name], term, atol=1e-10), name
    assert torch.allclose(plan.ranking, same.ranking)
    assert plan.costate.isnan().all() and plan.grad_norm.isnan().all()
    assert (plan.status == Status.LIMIT).all() and (plan.iterations == planner.iterations).all()
    assert plan.stats["backend"] == "eager" and plan.stats["reason"]


def test_beta_weighs_the_distance_to_the_data() -> None:
    made = case(score_=cases.score(), bounds=(-1.0, 1.0))
    penalties = []
    for beta in (0.0, 1.0, 1e6):
        plan = sgp.solve(made.problem, sgp.CEM(T, 10, 256, beta=beta, precision="float64"), made.x0, **made.given)
        assert bool((plan.terms["penalty"] == 0).all()) == (beta == 0)
        penalties.append(plan.score_norm.square().sum(1))
    assert bool((penalties[2] < penalties[0]).all())


@every_planner
def test_a_problem_is_planned_as_if_alone_and_again_the_same(planner: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(bounds=(-1.0, torch.tensor([1.0, 0.4])))
    plan = sgp.solve(made.problem, planner, made.x0, **made.given, seed=3)
    again = sgp.solve(made.problem, planner, made.x0, **made.given, seed=3)
    other = sgp.solve(made.problem, planner, made.x0, **made.given, seed=4)
    assert torch.equal(plan.u, again.u) and not torch.allclose(plan.u, other.u)
    assert bool((plan.u <= torch.tensor([1.0, 0.4], dtype=F64)).all() and (plan.u >= -1).all())
    first = case(batch=1, bounds=made.problem.bounds)
    alone = sgp.solve(made.problem, planner, first.x0, **first.given, seed=3)
    assert torch.allclose(alone.u[0], plan.u[0], atol=1e-10)
    monkeypatch.setattr("sgp_fast.backends.sampling.NUMBERS", planner.samples * T * NU * 3)
    monkeypatch.setattr("sgp_fast.backends.sampling.BLOCK", 7)
    chunked = sgp.solve(made.problem, planner, made.x0, **made.given, seed=3)
    assert chunked.stats["chunks"] == 2 and torch.allclose(chunked.u, plan.u, atol=1e-10)
    single = sgp.solve(made.problem, replace(planner, precision="float32"), made.x0, **made.given, seed=3)
    assert single.u.dtype == torch.float32 and torch.allclose(single.u.double(), plan.u, atol=0.2)


@every_planner
def test_a_warm_start_is_gone_on_from(planner: Sampler) -> None:
    made = case(bounds=(-1.0, 1.0))
    given = {name: value for name, value in made.given.items() if name != "init"}
    plan = sgp.solve(made.problem, planner, made.x0, **given)
    assert torch.equal(sgp.solve(made.problem, planner, made.x0, **given, init=torch.zeros_like(plan.u)).u, plan.u)
    on = sgp.solve(made.problem, planner, made.x0, **given, init=plan, seed=1)
    more = sgp.solve(made.problem, planner, made.x0, **given, init=on, seed=2)
    assert bool((more.cost < plan.cost).all())


def test_the_middle_of_the_bounds_is_where_a_plan_begins() -> None:
    task = point_problem(bounds=(torch.tensor([1.0]), torch.tensor([2.0])), cost=lambda x, u: 0 * u[..., 0])
    plan = sgp.solve(task, sgp.CEM(T, 1, 4096, elites=4096, precision="float64"), torch.zeros(1, 2))
    assert torch.allclose(plan.u, torch.full_like(plan.u, 1.5), atol=0.03)


# What goes wrong.


def cliff(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(u[..., 0] > 0, torch.nan, (u[..., 0] + 0.5) ** 2)


@every_planner
def test_candidates_that_are_not_finite_have_no_weight(planner: Sampler) -> None:
    made = replace(planner, spread=0.5)
    plan = sgp.solve(point_problem(cost=cliff), made, torch.zeros(2, 2), init=torch.full((2, T, 1), -0.5))
    assert (plan.status == Status.LIMIT).all() and bool((plan.u <= 0).all()) and plan.cost.isfinite().all()


@every_planner
def test_a_problem_without_a_finite_candidate_diverges_and_disturbs_no_other(planner: Sampler) -> None:
    made = replace(planner, spread=0.5)
    task = point_problem(cost=lambda x, u, goal, t, params: to_origin(x, u) / params)
    x0 = torch.ones(3, 2)
    plan = sgp.solve(task, made, x0, params=torch.tensor([1.0, torch.nan, 2.0]))
    fine = sgp.solve(task, made, x0, params=torch.tensor([1.0, 1.0, 2.0]))
    assert plan.status.tolist() == [Status.LIMIT, Status.DIVERGED, Status.LIMIT]
    assert torch.equal(plan.u[1], torch.zeros_like(plan.u[1])), "the mean stays where it was"
    assert torch.equal(plan.u[::2], fine.u[::2]) and plan.ranking[1] == torch.inf


def test_no_gradient_is_taken_and_models_need_none() -> None:
    seen: list[bool] = []

    def cost(x: Tensor, u: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return torch.from_numpy(np.square(x.detach().numpy())).sum(-1, keepdim=True)

    plan = sgp.solve(point_problem(cost=cost), sgp.CEM(3, samples=8, elites=2), torch.ones(1, 2))
    assert seen and not any(seen) and plan.cost.isfinite().all()


def test_time_ends_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("time.monotonic", clock)
    plan = sgp.solve(point_problem(), sgp.CEM(T, 1000, 8, elites=2), torch.ones(1, 2), time_limit_s=10.0)
    assert 0 < int(plan.iterations) < 12 and (plan.status == Status.LIMIT).all()
    plan = sgp.solve(point_problem(), sgp.CEM(T, 1000, 8, elites=2), torch.ones(1, 2), time_limit_s=0.5)
    assert int(plan.iterations) == 0 and (plan.status == Status.LIMIT).all() and not plan.u.any()


# Ensembles.


def ensemble(count: int = 3) -> sgp.Ensemble:
    members = []
    for i in range(count):
        net, norm = cases.module(cases.FIELD["SGP dynamics"], 20 + i), cases.normalizer(NX + NU, 1)
        members.append(sgp.Dynamics(net, norm))
    return sgp.Ensemble(*members)


@pytest.mark.parametrize("risk", [0.0, 0.8])
def test_an_ensemble_costs_the_mean_of_its_members_and_their_disagreement(risk: float) -> None:
    made = cases.case("learned", "quadratic", "quadratic", bounds=(-1.0, 1.0))
    models, planner = ensemble(), sgp.MPPI(T, 1, 16, spread=0.5, risk=risk, precision="float64", perturbation_cost=False)
    plan = sgp.solve(replace(made.problem, dynamics=models), planner, made.x0, **made.given)
    u = (made.u.clamp(-1, 1)[:, None] + 0.5 * noise(planner, len(made.x0), NU)).clamp(-1, 1)
    fixed = sgp.SGP(T, 1, step_size=0.0, precision="float64")
    x0, goal = (t.repeat_interleave(16, 0) for t in (made.x0, made.goal) if t is not None)
    alone = [replace(made.problem, dynamics=models[i]) for i in range(3)]
    costs = torch.stack([sgp.solve(p, fixed, x0, goal=goal, init=u.flatten(0, 1)).cost.view(-1, 16) for p in alone])
    weights = torch.softmax(-(costs.mean(0) + risk * costs.std(0, correction=0)), 1)
    assert torch.allclose(plan.u, torch.einsum("bs,bstn->btn", weights, u), atol=1e-10)
    ends = [sgp.solve(p, fixed, made.x0, goal=made.goal, init=plan) for p in alone]
    assert torch.allclose(plan.cost, torch.stack([e.cost for e in ends]).mean(0))
    assert torch.allclose(plan.x, torch.stack([e.x for e in ends]).mean(0))


def test_misuse_of_ensembles_is_told() -> None:
    with pytest.raises(TypeError, match="members are none"):
        sgp.Ensemble()
    with pytest.raises(TypeError, match="Linear"):
        sgp.Ensemble(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    other = sgp.Dynamics(cases.module(cases.mlp(NX + NU, NX + 1)), cases.normalizer(NX + NU, 1))
    with pytest.raises(ValueError, match="expected one for all"):
        sgp.Ensemble(ensemble()[0], other)
    made = cases.case("learned", "quadratic")
    with pytest.raises(ValueError, match="plan with CEM or MPPI"):
        sgp.solve(replace(made.problem, dynamics=ensemble()), sgp.SGP(T), made.x0)


# Control.


@every_planner
def test_control_of_some_is_control_of_each(planner: Sampler) -> None:
    """Any environments may be active; each sees the same draws and its own shifted mean."""
    task = point_problem(bounds=(torch.tensor([[-1.0], [-0.5], [-1.0]]), torch.tensor([[1.0], [0.5], [0.8]])))
    made = replace(planner, spread=None)
    active = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    obs = np.random.default_rng(3).normal(size=(4, 3, 2))
    together, alone = sgp.MPC(task, made, 3, seed=2), [sgp.MPC(task, made, 3, seed=2) for _ in range(3)]
    for t in range(4):
        got = together.act(np.where(active[t][:, None], obs[t], np.nan), active[t])
        assert not got[~active[t]].any() and (np.abs(got[:, 0]) <= [1.0, 0.5, 1.0]).all()
        for i in np.flatnonzero(active[t]):
            assert np.allclose(got[i], alone[i].act(obs[t], np.arange(3) == i)[i], atol=1e-9)
    assert not together.act(obs[0], np.zeros(3, bool)).any()


@every_planner
def test_a_controller_shifts_its_mean_and_begins_anew_after_a_reset(planner: Sampler) -> None:
    task, made, obs = point_problem(), replace(planner, spread=None), np.random.default_rng(4).normal(size=(3, 2))
    mpc = sgp.MPC(task, made, 3, seed=5)
    first = mpc.act(obs)
    assert mpc.plan is not None
    assert np.allclose(first, sgp.solve(task, made, obs, seed=5).u[:, 0]), "keys of the first step are those of solve"
    shifted = torch.cat((mpc.plan.u[:, 1:], mpc.plan.u[:, -1:]), 1)
    assert mpc._u is not None and torch.equal(mpc._u, shifted)
    second = mpc.act(obs)
    assert not np.allclose(first, second)
    mpc.reset(np.array([False, True, False]))
    third = mpc.act(obs)
    assert np.allclose(third[1], first[1]) and not np.allclose(third[0], first[0])
    mpc.reset()
    assert np.array_equal(mpc.act(obs), first)


@every_planner
def test_sampling_planners_control(planner: Sampler) -> None:
    """The point mass goes where it goes under the gradient planner with the same horizon."""
    ends = []
    sampler = replace(planner, horizon=6, samples=64, spread=None)
    if isinstance(sampler, sgp.MPPI):
        sampler = replace(sampler, temperature=0.01)
    for controller in (sgp.MPC(point_problem(), sampler, 2), sgp.MPC(point_problem(), sgp.SGP(6, 20), 2)):
        x = torch.tensor([[1.0, 0.0], [-0.5, 0.5]], dtype=F64)
        for _ in range(40):
            x = point_mass(x, torch.as_tensor(controller.act(x.numpy())).double())
        ends.append(x)
    assert ends[1].abs().max() < 0.4 and (ends[0] - ends[1]).abs().max() < 0.1


@pytest.mark.parametrize("kind", [torch.float64, torch.int64, torch.bool])
def test_a_cost_in_other_numbers_leaves_the_plan_in_its_own(kind: torch.dtype) -> None:
    task = point_problem(cost=lambda x, u: (4 * x.square()).to(kind).sum(-1))
    plan = sgp.solve(task, sgp.CEM(4, 3, 16, elites=4), torch.ones(2, 2))
    assert plan.u.dtype == plan.x.dtype == plan.cost.dtype == torch.float32 and plan.cost.isfinite().all()


def test_a_start_of_ones_own_is_not_shared() -> None:
    init = torch.full((1, 4, 1), 0.1)
    plan = sgp.solve(point_problem(bounds=None), sgp.MPPI(4, spread=0.1), torch.ones(1, 2), init=init, time_limit_s=1e-9)
    assert torch.equal(plan.u, init) and plan.u.data_ptr() != init.data_ptr()


# Misuse.


def test_misuse_is_told_before_any_work() -> None:
    def forbidden(x: Tensor, u: Tensor) -> Tensor:
        raise AssertionError("work was begun")

    task, x0 = point_problem(cost=forbidden), torch.zeros(2, 2)
    for make, words in (
        (lambda: sgp.CEM(0), "CEM.horizon is 0"),
        (lambda: sgp.MPPI(4, samples=0), "MPPI.samples is 0"),
        (lambda: sgp.CEM(4, 1 << 17), "counted up to"),
        (lambda: sgp.CEM(4, samples=8, elites=9), "elites is 9 of samples=8"),
        (lambda: sgp.CEM(4, momentum=1.0), "CEM.momentum"),
        (lambda: sgp.MPPI(4, temperature=0.0), "MPPI.temperature"),
        (lambda: sgp.MPPI(4, spread=(0.1, -1.0)), "MPPI.spread"),
        (lambda: sgp.CEM(4, beta=-1.0), "CEM.beta"),
        (lambda: sgp.CEM(4, precision="int8"), "CEM.precision"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=words):
            make()
    planner = sgp.CEM(4)
    with pytest.raises(ValueError, match="spread has 2 entries; the problem has nu=1"):
        sgp.solve(task, sgp.MPPI(4, spread=(0.1, 0.2)), x0)
    with pytest.raises(ValueError, match="no bounds; give spread"):
        sgp.solve(replace(task, bounds=None), planner, x0)
    with pytest.raises(ValueError, match="not finite; give spread"):
        sgp.solve(replace(task, bounds=(-1.0, torch.inf)), planner, x0)
    with pytest.raises(ValueError, match="no score"):
        sgp.solve(task, sgp.CEM(4, beta=0.1), x0)
    with pytest.raises(ValueError, match="risk is 1.0, but the dynamics are no Ensemble"):
        sgp.solve(task, sgp.CEM(4, risk=1.0), x0)
    with pytest.raises(TypeError, match="no goal or params was given"):
        sgp.solve(point_problem(cost=lambda x, u, goal, t, params: (x - goal).sum(-1)), planner, x0)
    with pytest.raises(ValueError, match="callback"):
        sgp.solve(task, planner, x0, callback=print)
    with pytest.raises(ValueError, match="init has T=3"):
        sgp.solve(task, planner, x0, init=torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match="has no CEM"):
        sgp.solve(task, planner, x0, backend="fused:tile")
    with pytest.raises(ValueError, match="backend is 'fast'"):
        sgp.solve(task, planner, x0, backend="fast")
    with pytest.raises(ValueError, match="xT is given"):
        sgp.solve(task, planner, x0, xT=x0)
