"""Sampling planners in kernels: number by number what the eager reference draws, costs and plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.backends import sampling as eager
from sgp_fast.backends.fused import rollout
from sgp_fast.backends.sampling import SamplingJob
from sgp_fast.inputs import read_inputs
from sgp_fast.kernels import draws
from sgp_fast.kernels.draws_ref import normal_ref, philox_ref, uniform_ref
from sgp_fast.kernels.network import Layer, NetworkSpec
from sgp_fast.kernels.refit import allocate_sums, weighted_sums
from sgp_fast.sampling import Sampler
from tests import cases
from tests.cases import NU, NX
from tests.fused.test_fused import DEVICE, INTERPRETED, by_twos, rounded_by_hand, selecting, small

T = 2
CEM = sgp.CEM(T, 2, 12, elites=5, momentum=0.2)
MPPI = sgp.MPPI(T, 2, 12, temperature=0.8)
Case = cases.Case
# Costs are sums of T steps through networks of a few layers: roundings of the products add up.
GRANTED = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}


@triton.jit
def draws_kernel(seed_ptr, keys_ptr, words_ptr, uniform_ptr, normal_ptr, iteration, B: tl.constexpr, N: tl.constexpr):
    rows, n = tl.arange(0, B), tl.arange(0, N)
    keys, samples = tl.load(keys_ptr + rows)[:, None], (rows * 7)[:, None]
    w0, w1, w2, w3 = draws.words(tl.load(seed_ptr), keys, iteration, samples, n[None, :])  # pyright: ignore
    place = rows[:, None] * N + n[None, :]
    tl.store(words_ptr + place * 4, w0.to(tl.int64))
    tl.store(words_ptr + place * 4 + 1, w1.to(tl.int64))
    tl.store(words_ptr + place * 4 + 2, w2.to(tl.int64))
    tl.store(words_ptr + place * 4 + 3, w3.to(tl.int64))
    tl.store(uniform_ptr + place, draws.uniform(w0))
    tl.store(normal_ptr + place, draws.normal(tl.load(seed_ptr), keys, iteration, samples, n[None, :]))


@pytest.mark.parametrize("seed", [0, 12345, -1, 2**63 + 5])
def test_the_kernel_draws_what_its_twin_draws(seed: int) -> None:
    B, N, iteration = 4, 16, 3
    keys = torch.tensor([0, 1, 7 + (3 << 32), (1 << 33) + 2], device=DEVICE)
    words = torch.zeros(B, N, 4, dtype=torch.int64, device=DEVICE)
    uniform, normal = torch.full((2, B, N), torch.nan, device=DEVICE)
    signed = torch.tensor([(seed + 2**63) % 2**64 - 2**63], device=DEVICE)
    kernel: Any = draws_kernel
    kernel[(1,)](signed, keys, words, uniform, normal, iteration, B, N)
    block = (iteration << 16) + torch.arange(N, device=DEVICE) // 4
    sample = (torch.arange(B, device=DEVICE) * 7)[:, None]
    low, high = (keys & 0xFFFFFFFF)[:, None], (keys >> 32)[:, None]
    expected = torch.broadcast_tensors(*philox_ref(seed, (block, sample, low, high)))
    assert torch.equal(words, torch.stack(expected, -1))
    assert torch.equal(uniform, uniform_ref(expected[0]))
    twin = torch.cat([normal_ref(seed, keys[b : b + 1], iteration, range(7 * b, 7 * b + 1), N)[0] for b in range(B)])
    # The device's logarithm is a fast one, and its root is of a number near zero now and then.
    assert torch.allclose(normal, twin, atol=2e-6 if INTERPRETED else 2e-5, rtol=1e-6)


def job_of(made: Case, planner: Sampler, seed: int = 5) -> SamplingJob:
    """The job that `solve` would make, warm-started, with keys that are not row numbers."""
    inputs = read_inputs(made.problem, planner, made.x0, goal=made.goal, params=made.params, init=made.u)
    assert inputs.init is not None
    std = torch.tensor([0.3, 0.7], device=DEVICE).expand(len(inputs.x0), planner.horizon, NU).contiguous()
    keys = torch.arange(len(inputs.x0), device=DEVICE) * 3 + (2 << 32)
    mean = inputs.init.contiguous()
    penalty = planner.beta * 0.5 * float(cases.SIGMAS[-1]) ** 2
    return SamplingJob(
        made.problem, planner, inputs.x0, mean, std, inputs.low, inputs.high, inputs.goal, inputs.params,
        len(cases.SIGMAS) - 1, penalty, seed, keys, float("inf"),
    )  # fmt: skip


def test_weighted_sums_are_those_of_the_candidates() -> None:
    """Odd sizes: more than one chunk, and numbers that fill no block."""
    made = small(batch=3, horizon=T, bounds=(-0.5, torch.tensor([[0.4, 0.6], [0.5, 0.2], [1.0, 1.0]])))
    planner = sgp.CEM(T, 1, 300, elites=5)
    job = job_of(made, planner)
    mean = eager.clip(job, job.mean)
    u = eager.candidates(job, mean, job.std, 1)
    weights = torch.rand(3, 300, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    out = allocate_sums(300, mean)
    for tensor in out:
        tensor.fill_(torch.nan)
    assert job.low is not None and job.high is not None
    low, high = (b.expand(3, NU).contiguous() for b in (job.low, job.high))
    seed = torch.tensor([job.seed], device=DEVICE)
    sums, squares = weighted_sums(weights, mean, job.std, low, high, seed, job.keys, 1, out)
    d = u - mean[:, None]
    w = weights[:, :, None, None]
    assert sums.shape[0] == 2
    assert torch.allclose(sums.sum(0), (w * d).sum(1), atol=1e-4)
    assert torch.allclose(squares.sum(0), (w * d * d).sum(1), atol=1e-4)


PROBLEMS: dict[str, dict[str, Any]] = {
    "quadratic": {"cost": "quadratic", "terminal": "quadratic", "bounds": (-0.5, 0.6)},
    "its own goal": {"cost": "quadratic", "terminal": "quadratic", "with_goal": False},
    "learned": {"cost": "learned", "terminal": "value", "scored": "noise", "bounds": (-0.5, 0.6)},
    "penalties": {"cost": "learned", "scored": "score", "control_change": 0.3},
    "unconditioned": {"cost": "quadratic", "scored": "unconditioned", "control_change": 0.3},
}


# In float16 those alone that the others do not cover.
CANDIDATES = [(name, "float32") for name in PROBLEMS] + [
    (name, "float16") for name in PROBLEMS if name not in ("its own goal", "unconditioned")
]


@pytest.mark.parametrize(("name", "precision"), CANDIDATES)
def test_candidates_cost_what_they_cost_the_reference(name: str, precision: Any) -> None:
    """All rows of an odd number of blocks, whose last is not full, by programs that take several."""
    made = small(batch=3, horizon=T, **PROBLEMS[name])
    planner = replace(MPPI, samples=21, precision=precision, beta=40.0 if made.problem.score is not None else 0.0)
    job = job_of(made, planner)
    job = replace(job, mean=eager.clip(job, job.mean))
    tile = rollout.tile_of(job.problem, planner, 4 * planner.samples, DEVICE)
    assert tile is not None
    work = rollout.RolloutWork(job, 4, tile)
    work.load(job)
    work.begin()
    work.members[0].cost.fill_(torch.nan)
    work.iterate(1)
    got = work.members[0].cost[:3]
    prepared = replace(job, problem=job.problem.prepared(torch.float32, planner.product_dtype, DEVICE))
    u = eager.candidates(job, job.mean, job.std, 1)
    expected = eager.candidate_costs(prepared, u, job.mean, job.std)
    assert got.isfinite().all()
    scale = expected.abs().max()
    assert (got - expected).abs().max() < GRANTED[precision] * scale
    mean, std = eager.refit(planner, job.mean, job.std, planner.weights(expected), u)
    assert torch.allclose(work.mean[:3], mean, atol=GRANTED[precision] * float(scale))


def compare(got: sgp.Plan, expected: sgp.Plan, tolerance: float) -> None:
    for tensor, (name, other) in zip(got.tensors().values(), expected.tensors().items(), strict=True):
        assert tensor.shape == other.shape and tensor.dtype == other.dtype, name
        assert torch.allclose(tensor, other, atol=tolerance, rtol=tolerance, equal_nan=True), name


@pytest.mark.parametrize("planner", [CEM, MPPI], ids=["cem", "mppi"])
def test_plans_are_those_of_the_reference(planner: Sampler) -> None:
    """Bucket and chunks, warm start and cold, seed, and what a plan tells; a problem among others as if alone."""
    made = small("learned", "value", "noise", batch=3, horizon=T, bounds=(-0.5, 0.6), control_change=0.1)
    options: dict[str, Any] = {"seed": 11, "goal": made.goal}
    planner = replace(planner, beta=10.0)
    plans = {name: sgp.solve(made.problem, planner, made.x0, backend=name, **options) for name in ("fused", "eager")}
    compare(plans["fused"], plans["eager"], 1e-4)
    assert plans["fused"].stats["backend"] == "fused" and plans["fused"].stats["bucket"] == 4
    assert plans["fused"].costate.isnan().all() and (plans["fused"].iterations == planner.iterations).all()
    again = sgp.solve(made.problem, planner, made.x0, backend="fused", **options)
    assert torch.equal(again.u, plans["fused"].u) and again.stats["graphs"]["hits"] > 0
    limited = sgp.solve(made.problem, planner, made.x0, backend="fused", time_limit_s=1e6, **options)
    assert torch.allclose(limited.u, again.u, atol=1e-6)
    one = sgp.solve(made.problem, planner, made.x0[:1], backend="fused", **options, init=plans["eager"].u[:1])
    warm = sgp.solve(made.problem, planner, made.x0[:1], backend="eager", **options, init=plans["eager"].u[:1])
    assert one.stats["bucket"] == 1 and one.stats["reason"] == "asked for"
    compare(one, warm, 1e-4)


def test_an_ensemble_is_planned_as_the_reference_plans_it() -> None:
    made = small(batch=2, horizon=T, bounds=(-0.5, 0.6))
    spec = cases.mlp(NX + NU, NX, width=9, hidden_layers=1)
    members = [sgp.Dynamics(cases.module(spec, seed), cases.normalizer(NX + NU, 1)) for seed in (30, 31)]
    problem = replace(made.problem, dynamics=sgp.Ensemble(*members).to(DEVICE))
    planner = replace(MPPI, iterations=1, risk=0.7)
    plans = [sgp.solve(problem, planner, made.x0, goal=made.goal, backend=name) for name in ("fused", "eager")]
    compare(plans[0], plans[1], 1e-4)


def test_operands_of_tf32_products_are_rounded_for_every_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the plan, where no draw is off by a bit, by networks where only that rounds."""
    made = small(batch=3, horizon=T)
    spec = NetworkSpec(NX + NU, (Layer(NX + NU, "relu"), Layer(NX)))
    members = [sgp.Dynamics(selecting(spec, seed), by_twos(NX + NU)) for seed in (30, 31)]
    problem = replace(made.problem, dynamics=sgp.Ensemble(*members).to(DEVICE))
    planner = replace(MPPI, precision="tf32")
    job = job_of(replace(made, problem=problem), planner)
    tile = rollout.tile_of(problem, planner, 4 * planner.samples, DEVICE)
    assert tile is not None
    work = rollout.RolloutWork(job, 4, tile)
    work.load(job)
    work.begin()
    work.evaluate()
    plain = problem.prepared(torch.float32, torch.float32, DEVICE)

    def values() -> list[eager.Values]:
        u = job.mean.transpose(0, 1)
        return [eager.evaluate_values(m, job.x0, u, job.goal, job.params, None) for m in eager.members_of(plain)]

    exact = values()
    rounded_by_hand(monkeypatch)
    for got, want, other in zip(work.values(), values(), exact, strict=True):
        x, running = got.x[:, :3], got.running[:, :3]
        assert torch.allclose(x, want.x, rtol=1e-6) and torch.allclose(running, want.running, rtol=1e-5)
        assert (x - other.x).abs().max() > 1e-4


def test_what_diverges_disturbs_no_other() -> None:
    made = small("quadratic", batch=3, horizon=T, bounds=(-0.5, 0.6))
    assert made.goal is not None
    huge = made.x0.clone()
    huge[1] = 1e30  # its square is not finite in float32
    plan = sgp.solve(made.problem, CEM, huge, goal=made.goal, backend="fused")
    fine = sgp.solve(made.problem, CEM, made.x0, goal=made.goal, backend="fused")
    assert plan.status.tolist() == [sgp.Status.LIMIT, sgp.Status.DIVERGED, sgp.Status.LIMIT]
    assert torch.equal(plan.u[::2], fine.u[::2]) and torch.allclose(plan.u[1], torch.full_like(plan.u[1], 0.05), atol=1e-6)


def test_control_in_kernels_is_control_by_the_reference() -> None:
    made = small(batch=3, horizon=T, with_goal=False, bounds=(-0.5, 0.6))
    mpcs = [sgp.MPC(made.problem, CEM, 3, backend=name, seed=4) for name in ("fused", "eager")]
    for active in ([1, 1, 1], [0, 1, 1], [1, 0, 1]):
        got, expected = (mpc.act(made.x0, torch.tensor(active, dtype=torch.bool)) for mpc in mpcs)
        assert torch.allclose(got, expected, atol=1e-4)


def test_written_weights_are_followed() -> None:
    made = small("quadratic", batch=1, horizon=T, bounds=(-0.5, 0.6))
    before = sgp.solve(made.problem, CEM, made.x0, goal=made.goal, backend="fused")
    with torch.no_grad():
        made.problem.dynamics.network.weights["layers.1.bias"].add_(2.0)
    after = sgp.solve(made.problem, CEM, made.x0, goal=made.goal, backend="fused")
    expected = sgp.solve(made.problem, CEM, made.x0, goal=made.goal, backend="eager")
    assert not torch.allclose(before.cost, after.cost)
    compare(after, expected, 1e-4)


def test_what_is_not_covered_runs_eagerly_and_says_why() -> None:
    def step(x: Tensor, u: Tensor) -> Tensor:
        return 0.9 * x

    made = small("quadratic", batch=1, horizon=T, bounds=(-0.5, 0.6))
    foreign = replace(made.problem, dynamics=step, nu=NU)
    plan = sgp.solve(foreign, CEM, made.x0)
    assert plan.stats["backend"] == "eager" and "AutogradDynamics" in plan.stats["reason"]
    with pytest.raises(ValueError, match="AutogradDynamics.*use backend='eager'"):
        sgp.solve(foreign, CEM, made.x0, backend="fused")
    with pytest.raises(ValueError, match="not in float64"):
        sgp.solve(made.problem, replace(CEM, precision="float64"), made.x0, goal=made.goal, backend="fused")
