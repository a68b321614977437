"""Recorded results of the published planner, and the problems that they were recorded from.

A file holds inputs, weights, and results in float64, and its configuration as JSON. `load_case` builds our own problem and
planner from it; `plan_case` plans, and `errors` compares.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.backends.job import Iteration
from sgp_fast.kernels.network import mlp
from sgp_fast.models import Network

FOLDER = Path(__file__).parent
SHOOTING = ("ncss", "ss")
TINY = 1e-300  # a recorded zero is met by a zero


@dataclass(frozen=True)
class Case:
    """A recorded shooting case as our own problem; `expected` are its recorded results by name."""

    name: str
    problem: sgp.Problem
    planner: sgp.SGP
    x0: Tensor
    init: Tensor
    expected: dict[str, Tensor]


def load_case(path: Path, precision: str = "float64") -> Case:
    """The case of one file. Raises ValueError for a file that is not a recorded shooting case."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
            t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration protocol)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: its configuration is a {type(config).__name__}; expected an object")
    if config.get("kind") not in SHOOTING:
        raise ValueError(f"{path} is of kind {config.get('kind')!r}; expected one of {', '.join(SHOOTING)}")
    nx, nu, width, layers = (config[key] for key in ("nx", "nu", "width", "hidden_layers"))
    conditioned = config["kind"] == "ncss"
    levels = config["sigma_levels"] if conditioned else 0

    body: dict[str, Any] = {"width": width, "hidden_layers": layers}
    dynamics = sgp.Dynamics(_network(t, "dynamics", mlp(nx + nu, nx, norm=True, **body)), _normalizer(t, "dynamics"))
    score_net = mlp(nx + nu, nx + nu, norm=conditioned, levels=levels, **body)
    score = sgp.Score(_network(t, "score", score_net), _normalizer(t, "score"), t["sigmas"])
    if config["cost"] not in ("nn", "quad"):
        raise ValueError(f"{path} has cost {config['cost']!r}; expected 'nn' or 'quad'")
    if config["cost"] == "nn":
        cost = sgp.LearnedCost(_network(t, "cost", mlp(nx + nu, 1, norm=True, **body)), _normalizer(t, "cost"))
        terminal = None
    else:
        cost = sgp.QuadraticCost(t["cost.Q"], t["cost.R"], t["cost.xd"])
        terminal = sgp.QuadraticTerminal(t["cost.Qd"], t["cost.xd"])
    planner = sgp.SGP.published(
        config["horizon"], config["max_iters"], config["lr"], config["beta"], config["beta_min"], max(1, levels),
        precision=precision, tolerance=0.0, record_cost=True,
    )  # fmt: skip
    results = ("loss_per_iteration", "grad_u_first", "grad_u_last", "u_final", "x_final")
    expected = {name: t[name] for name in results}
    problem = sgp.Problem(dynamics=dynamics, cost=cost, score=score, terminal=terminal)
    return Case(config["name"], problem, planner, t["x0"][None], t["u_init"][None], expected)


def plan_case(case: Case, backend: str = "eager") -> dict[str, Tensor]:
    """Our results under the recorded names."""
    losses: list[Tensor] = []
    gradients: list[Tensor] = []

    def record(at: Iteration) -> None:
        z = torch.cat((at.x[:, :-1], at.u), -1)
        pull = 0.0 if at.score is None else (z * at.score).sum((1, 2))
        losses.append((at.cost - at.beta * pull)[0].clone())
        gradients.append(at.grad_u[0].clone())

    plan = sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend=backend, callback=record)
    return {
        "loss_per_iteration": torch.stack(losses),
        "grad_u_first": gradients[0],
        "grad_u_last": gradients[-1],
        "u_final": plan.u[0],
        "x_final": plan.x[0],
    }


def errors(case: Case, results: dict[str, Tensor]) -> dict[str, float]:
    """Relative error ‖ours − recorded‖/‖recorded‖ by name; of the losses, the largest of any single one."""
    out = {}
    for name, want in case.expected.items():
        got = results[name].to(want.dtype)
        if got.shape != want.shape:
            raise ValueError(f"{name} is recorded with shape {list(want.shape)}, and ours is {list(got.shape)}")
        if name == "loss_per_iteration":
            out[name] = ((got - want).abs() / want.abs().clamp(min=TINY)).max().item()
        else:
            out[name] = ((got - want).norm() / want.norm().clamp(min=TINY)).item()
    return out


def _network(t: dict[str, Tensor], part: str, spec: sgp.NetworkSpec) -> Network:
    """A network with the published weights: `mlp.N` numbers every module of a row, `hl.N` the hidden layers."""
    published = {name.removeprefix(f"{part}.net."): w for name, w in t.items() if name.startswith(f"{part}.net.")}
    weights: dict[str, Tensor] = {}
    if spec.levels:
        weights["embedding"] = published["embed.weight"]
        prefixes = {0: "initial", len(spec.layers) - 1: "final"}
        for i in range(len(spec.layers)):
            linear = prefixes.get(i, f"hl.{i - 1}.linear")
            for kind in ("weight", "bias"):
                weights[f"layers.{i}.{kind}"] = published[f"{linear}.{kind}"]
                if i not in prefixes:
                    weights[f"layers.{i}.norm.{kind}"] = published[f"hl.{i - 1}.layernorm.{kind}"]
    else:
        number = 0
        for i, layer in enumerate(spec.layers):
            assert isinstance(layer, sgp.Layer)
            for kind in ("weight", "bias"):
                weights[f"layers.{i}.{kind}"] = published[f"mlp.{number}.{kind}"]
                if layer.norm:
                    weights[f"layers.{i}.norm.{kind}"] = published[f"mlp.{number + 1}.{kind}"]
            number += 3 if layer.norm else 2  # product, norm if any, activation
    network = Network(spec).double()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the recorded weights of {part} are not those of its configuration: {error}") from None
    return network.requires_grad_(False)


def _normalizer(t: dict[str, Tensor], part: str) -> sgp.Normalizer:
    b, k = (torch.cat((t[f"{part}.x_normalizer.{n}"], t[f"{part}.u_normalizer.{n}"])) for n in "bk")
    return sgp.Normalizer(b, k)
