"""Products of a planner in tf32: the networks' alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.backends import eager, products, sampling
from sgp_fast.backends.products import products_of
from sgp_fast.models import Network
from tests import cases


@pytest.mark.parametrize("planner", ["gradient", "sampling"])
def test_costs_multiply_in_float32_where_networks_do_in_tf32(planner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the flag that PyTorch would look at is read where each part is called."""
    seen: dict[str, set[Any]] = {"network": set(), "cost": set(), "terminal": set()}
    asked = torch.backends.cuda.matmul

    def cost(x: Tensor, u: Tensor) -> Tensor:
        seen["cost"].add(asked.allow_tf32)
        return x.square().sum(-1) + u.square().sum(-1)

    def terminal(x: Tensor) -> Tensor:
        seen["terminal"].add(asked.allow_tf32)
        return x.square().sum(-1)

    def on_a_gpu(precision: str, _: torch.device) -> Any:
        return products_of(precision, torch.device("cuda"))

    for module in (products, eager, sampling):
        monkeypatch.setattr(module, "products_of", on_a_gpu)
    made = cases.case("learned", score_=cases.score())
    problem = replace(made.problem, cost=cost, terminal=terminal)
    forward = Network.vjp if planner == "gradient" else Network.forward

    def network(*arguments: Any) -> Any:
        seen["network"].add(asked.allow_tf32)
        return forward(*arguments)

    monkeypatch.setattr(Network, forward.__name__, network)
    settings: Any = {
        "gradient": sgp.SGP(2, iterations=2, step_size=0.1, precision="tf32"),
        "sampling": sgp.MPPI(2, samples=4, temperature=1.0, spread=0.3, beta=1.0, precision="tf32"),
    }
    before = asked.allow_tf32
    sgp.solve(problem, settings[planner], made.x0, backend="eager")
    assert seen == {"network": {True}, "cost": {False}, "terminal": {False}} and asked.allow_tf32 == before
