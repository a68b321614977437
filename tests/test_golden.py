"""The published planner's recorded results are reproduced, and published networks are expressible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import sgp_fast as sgp
from sgp_fast.kernels.network import NetworkSpec, mlp, qsm_actor, srpo_behavior
from tests.cases import F64, Backend, every_backend, relative
from tests.golden import FOLDER, errors, load_case, plan_case
from tests.golden.__main__ import main

SHOOTING = sorted(FOLDER.glob("*ss_*.safetensors"))
QSM, SRPO = FOLDER / "qsm_vp5.safetensors", FOLDER / "srpo_behavior.safetensors"


@every_backend
@pytest.mark.parametrize("path", SHOOTING, ids=lambda p: p.stem)
def test_published_plans(path: Path, backend: Backend) -> None:
    case = load_case(path)
    found = errors(case, plan_case(case, backend.name))
    assert set(found) == {"loss_per_iteration", "grad_u_first", "grad_u_last", "u_final", "x_final"}
    assert max(found.values()) < 1e-9, found


@every_backend
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-3), ("bfloat16", 0.1)])
@pytest.mark.parametrize("path", SHOOTING, ids=lambda p: p.stem)
def test_published_first_gradients_in_other_precisions(path: Path, precision: str, limit: float, backend: Backend) -> None:
    case = load_case(path, precision)
    found = errors(case, plan_case(case, backend.name))
    assert 1e-12 < found["grad_u_first"] < limit, found


def test_there_is_a_case_of_each_kind() -> None:
    assert {path.stem.partition("_")[0] for path in SHOOTING} == {"ss", "ncss"}
    assert all(path.stat().st_size <= 400_000 for path in FOLDER.glob("*.safetensors"))


def perturbed(path: Path, to: Path, key: str) -> Path:
    """A copy of a recorded case with one number changed by a millionth."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration protocol)
    tensors[key].view(-1)[0] *= 1 + 1e-6
    safetensors.torch.save_file(tensors, to, metadata=metadata)
    return to


def test_the_command_passes_the_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SHOOTING) and all(line.startswith("ok  ") and "rtol 1e-09" in line for line in lines)


@pytest.mark.parametrize("key", ["loss_per_iteration", "grad_u_last", "x_final", "dynamics.x_normalizer.b"])
def test_the_command_fails_a_perturbed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    path = perturbed(FOLDER / "ncss_nn.safetensors", tmp_path / "changed.safetensors", key)
    assert main([str(path), str(SHOOTING[0]), "--rtol", "1e-9"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("FAIL changed.safetensors: ") and second.startswith("ok")
    assert key.startswith("dynamics") or f" {key} " in first
    assert main([str(path), "--rtol", "0.1"]) == 0


def no_file(path: Path) -> None:
    pass


def truncated(path: Path) -> None:
    path.write_bytes(SHOOTING[0].read_bytes()[:3000])


def text(path: Path) -> None:
    path.write_text("not a tensor in sight")


def another(path: Path) -> None:
    shutil.copy(QSM, path)


def without(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)


@pytest.mark.parametrize("spoil", [no_file, truncated, text, another, without], ids=lambda f: f.__name__)
def test_the_command_fails_what_is_no_recorded_case(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any) -> None:
    """With a line, and the other files are still checked."""
    path = tmp_path / "other.safetensors"
    spoil(path)
    assert main([str(path), str(SHOOTING[0])]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("FAIL") and "other.safetensors" in first and second.startswith("ok")


def test_the_command_tells_its_result_by_its_exit(tmp_path: Path) -> None:
    path = perturbed(SHOOTING[0], tmp_path / "changed.safetensors", "u_final")
    for file, code in ((SHOOTING[0], 0), (path, 1)):
        command = [sys.executable, "-m", "tests.golden", str(file), "--rtol", "1e-9"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, env=environment)
        assert done.returncode == code and len(done.stdout.splitlines()) == 1, done


# Published networks: weights by their published names, into our specification.


def read(path: Path) -> dict[str, Tensor]:
    return {name: t.to(F64) if t.is_floating_point() else t for name, t in safetensors.torch.load_file(path).items()}


def build(spec: NetworkSpec, weights: dict[str, Tensor]) -> sgp.Network:
    network = sgp.Network(spec).double()
    network.load_state_dict(weights)
    return network.requires_grad_(False)


def flax(t: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Flax's Dense layers, whose kernels are `[inputs, outputs]`."""
    out = {}
    for ours, theirs in names.items():
        out |= {f"{ours}.weight": t[f"{theirs}.kernel"].T.contiguous(), f"{ours}.bias": t[f"{theirs}.bias"]}
    return out


def qsm_critic(t: dict[str, Tensor], name: str) -> sgp.Network:
    layers = {0: "MLP_0.Dense_0", 1: "MLP_0.Dense_1", 2: "Dense_0"}
    features, hidden = t[f"{name}.MLP_0.Dense_0.kernel"].shape
    spec = mlp(features, 1, width=hidden, hidden_layers=2, activation="relu")
    return build(spec, flax(t, {f"layers.{i}": f"{name}.{layer}" for i, layer in layers.items()}))


def torch_linear(t: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {f"{ours}.{kind}": t[f"{theirs}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")}


def test_the_actor_of_q_score_matching() -> None:
    """ε of a batch of noisy actions, each at its own integer time. Recorded in float32."""
    t = read(QSM)
    z = torch.cat((t["noisy_action"], t["obs"]), -1)
    names = {"time.hidden": "actor.MLP_0.Dense_0", "time.out": "actor.MLP_0.Dense_1"}
    names |= {f"layers.{i}": f"actor.MLP_1.Dense_{i}" for i in range(3)}
    weights = {"time.frequencies": t["actor.FourierFeatures_0.kernel"][:, 0]} | flax(t, names)
    hidden = len(t["actor.MLP_1.Dense_0.bias"])
    actor = build(qsm_actor(z.shape[-1], t["eps"].shape[-1], width=hidden), weights)
    assert relative(actor(z, actor.condition(t["time"])), t["eps"]) < 1e-5


def test_the_critics_of_q_score_matching() -> None:
    """∇_a of the mean of the two critics at the noisy action."""
    t = read(QSM)
    z = torch.cat((t["obs"], t["noisy_action"]), -1)
    grads = []
    for name in ("critic1", "critic2"):
        value, pull = qsm_critic(t, name).vjp(z)
        grads.append(pull(torch.ones_like(value))[:, t["obs"].shape[-1] :])
    assert relative((grads[0] + grads[1]) / 2, t["grad_a_q"]) < 1e-5


def test_the_behaviour_of_srpo() -> None:
    """ε at the noised action `α_t a + σ_t z`, a time t per row; the part of the recorded case that this network needs.

    Recorded in float32, where the phases 2πωt of ω up to 90 have lost five digits.
    """
    t = read(SRPO)
    names = {"time.hidden": "cond_model.0", "time.out": "cond_model.2", "layers.0": "main.fc", "layers.4": "main.out_fc"}
    for i in range(3):
        names |= {f"layers.{i + 1}.{ours}": f"main.blocks.{i}.{theirs}" for ours, theirs in
                  (("norm", "layer_norm"), ("up", "fc1"), ("down", "fc2"))}  # fmt: skip
    weights = torch_linear(t, {ours: f"behavior.{theirs}" for ours, theirs in names.items()})
    weights["time.frequencies"] = t["behavior.embed.0.W"]
    noised = t["alpha_t"][:, None] * t["action"] + t["sigma_t"][:, None] * t["z"]
    z = torch.cat((noised, t["obs"]), -1)
    spec = srpo_behavior(z.shape[-1], t["eps"].shape[-1], width=len(t["behavior.main.fc.bias"]))
    network = build(spec, weights)
    assert relative(network(z, network.condition(t["t"])), t["eps"]) < 1e-5
