"""A controller's step as one graph: the same actions and plans as step by step, and what makes it give way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import sgp_fast as sgp
from tests import cases
from tests.fused.test_fused import small

STEPS = 3


def controllers(backend: str = "fused:tile", problem: dict[str, Any] | None = None, **options: Any) -> list[sgp.MPC]:
    """Two controllers of the same four environments: one takes the short way when it can, the other never does."""
    case = small("learned", scored="score", horizon=3, **(problem or {}))
    planner = replace(cases.planner(horizon=3, iterations=2, **options), precision="float32")
    short, long = (sgp.MPC(case.problem, planner, 4, backend=backend) for _ in range(2))
    long._can_step = lambda rows: False  # pyright: ignore[reportAttributeAccessIssue]
    return [short, long]


def observations(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(4, cases.NX)).astype(np.float32)


@pytest.mark.parametrize("backend", ["fused:tile", "fused:layered"])
@pytest.mark.parametrize("keep_moments", [False, True])
def test_one_replay_gives_the_actions_and_plans_of_the_long_way(backend: str, keep_moments: bool) -> None:
    short, long = controllers(backend, {"bounds": (-0.4, 0.4)}, keep_moments=keep_moments)
    for step in range(STEPS):
        actions = [controller.act(observations(step)) for controller in (short, long)]
        np.testing.assert_array_equal(*actions)
        plans = [controller.plan for controller in (short, long)]
        assert plans[0] is not None and plans[1] is not None
        for name, tensor in plans[1].tensors().items():
            assert torch.equal(plans[0].tensors()[name], tensor), name
        assert plans[0].stats["backend"] == "fused"
    assert short._step is not None and long._step is None


def test_with_tanh_bounds_it_is_the_same_to_rounding() -> None:
    short, long = controllers(problem={"bounds": (-0.4, 0.4)}, bounding="tanh")
    for step in range(STEPS):
        np.testing.assert_allclose(short.act(observations(step)), long.act(observations(step)), rtol=0, atol=1e-6)


def test_a_step_of_some_environments_and_a_reset_take_the_long_way_and_lead_back() -> None:
    short, long = controllers()
    masks = [None, None, np.array([True, False, True, True]), None, None]
    for step, active in enumerate(masks):
        if step == 3:
            for controller in (short, long):
                controller.reset(np.array([False, True, False, False]))
        np.testing.assert_array_equal(*[c.act(observations(step), active) for c in (short, long)])


def test_weights_written_in_place_are_seen_and_replaced_ones_make_a_new_graph() -> None:
    short, long = controllers()
    for controller in (short, long):
        for step in range(2):
            controller.act(observations(step))
    network = short.problem.dynamics.network
    assert long.problem is short.problem
    with torch.no_grad():
        network.weights["layers.0.weight"].mul_(1.5)
    first = short._step
    np.testing.assert_array_equal(*[controller.act(observations(2)) for controller in (short, long)])
    assert short._step is first
    network.get_submodule("layers.0").bias = torch.nn.Parameter(2 * network.weights["layers.0.bias"], requires_grad=False)
    for step in (3, 4):
        np.testing.assert_array_equal(*[controller.act(observations(step)) for controller in (short, long)])
    assert short._step is not first


def test_an_observation_of_another_width_is_refused() -> None:
    short, _ = controllers()
    for step in range(2):
        short.act(observations(step))
    with pytest.raises(ValueError, match="obs has shape"):
        short.act(np.zeros((4, cases.NX + 1), np.float32))
