"""The loop against the same steps written plainly, and where it stops."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.training import TrainConfig
from sgp_fast.training.loop import evaluate, fit, make_fabric
from sgp_fast.training.tasks import Split, Task, make_tasks, stream_seed

from .toys import SMALL, linear_system

CPU = torch.device("cpu")
NAMES = ("dynamics", "score", "cost")


def tasks(config: TrainConfig, validated: bool = True) -> dict[str, Task]:
    split = Split.of(linear_system(), config.rollout_horizon, CPU)
    return make_tasks(config, split, Split.of(linear_system(seed=9), config.rollout_horizon, CPU) if validated else None)


def written_plainly(task: Task, config: TrainConfig, name: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """AdamW, clipping, the cosine and the average, each from its formula; the averaged weights and the batch losses."""
    model: Any = copy.deepcopy(task.model)
    weights, losses = model.network.weights, []
    zeros = {key: torch.zeros_like(w) for key, w in weights.items()}
    first, second, average = dict(zeros), dict(zeros), {}
    for step in range(config.steps):
        generator = torch.Generator().manual_seed(stream_seed(config.seed, name, step))
        loss = task.loss(model, *task.draw(config.batch_size, generator)).mean()
        losses.append(loss.item())
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
        factor = min(1.0, (config.clip_gradient or math.inf) / (norm + 1e-6))
        cosine = 0.5 * (1 + math.cos(math.pi * step / (config.steps - 1)))
        rate = config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine
        for key, w in weights.items():
            g, count = grads[key] * factor, step + 1
            first[key] = 0.9 * first[key] + 0.1 * g
            second[key] = 0.999 * second[key] + 0.001 * g * g
            update = first[key] / (1 - 0.9**count) / ((second[key] / (1 - 0.999**count)).sqrt() + 1e-8)
            with torch.no_grad():
                w.sub_(rate * (config.weight_decay * w + update))
            d = min(config.ema_decay, (1 + step) / (10 + step))
            average[key] = w.detach().clone() if step == 0 else d * average[key] + (1 - d) * w.detach()
    return average, losses


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_takes_the_steps_that_its_formula_says(name: str) -> None:
    config = dataclasses.replace(SMALL, steps=20, ema_decay=0.9, weight_decay=0.1, clip_gradient=0.3)
    task = tasks(config, validated=False)[name]
    expected, losses = written_plainly(task, config, name)
    network, record = fit(name, task, config, make_fabric(config), progress=False)
    for key, weight in network.weights.items():
        torch.testing.assert_close(weight.detach(), expected[key], rtol=1e-3, atol=1e-5)
    assert record.history["step"] == [10, 20] and record.history["validation"] == [None, None]
    assert record.history["train"] == pytest.approx([sum(losses[:10]) / 10, sum(losses[10:]) / 10], rel=1e-4)
    assert record.history["learning_rate"][-1] == pytest.approx(config.final_learning_rate)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    torch.set_num_threads(2)
    config = dataclasses.replace(SMALL, steps=10, batch_size=512, width=256)  # so large that sums are shared by threads
    fabric = make_fabric(config)

    def weights(config: TrainConfig, name: str) -> list[torch.Tensor]:
        return [w.detach() for w in fit(name, tasks(config)[name], config, fabric, progress=False)[0].weights.values()]

    for name in NAMES:
        first, again = weights(config, name), weights(config, name)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), name
    other = weights(dataclasses.replace(config, seed=1), "score")
    assert not any(torch.equal(a, b) for a, b in zip(weights(config, "score"), other, strict=True))


@pytest.mark.parametrize(("width", "given", "inside"), [(64, 2, 1), (128, 2, 1), (256, 2, 2), (256, 1, 1)])
def test_narrow_networks_train_with_one_thread_and_nobody_else_loses_any(width: int, given: int, inside: int) -> None:
    before, seen = torch.get_num_threads(), set()
    config = dataclasses.replace(SMALL, steps=2, width=width, batch_size=512)
    task = tasks(config)["dynamics"]

    def loss(*arguments: Any) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return task.loss(*arguments)

    torch.set_num_threads(given)
    try:
        fit("dynamics", dataclasses.replace(task, loss=loss), config, make_fabric(config), progress=False)
        assert seen == {inside} and torch.get_num_threads() == given
        bad = dataclasses.replace(config, learning_rate=1e30, clip_gradient=None, steps=20)
        with pytest.raises(FloatingPointError):
            fit("dynamics", task, bad, make_fabric(bad), progress=False)
        assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)


def test_the_best_evaluation_is_returned_and_patience_ends_the_run() -> None:
    """A rate this large makes validation rise again, so that the best is in the past when patience ends."""
    config = dataclasses.replace(SMALL, steps=400, learning_rate=0.2, ema_decay=0.0, patience=3, evaluate_every=5)
    task = tasks(config)["cost"]
    network, record = fit("cost", task, config, make_fabric(config), progress=False)
    history = record.history
    best = min(range(len(history["step"])), key=lambda i: history["validation"][i])
    assert record.step < 400 and record.finished
    assert history["step"][best] == record.best_step == record.step - 3 * 5
    model = sgp.LearnedCost(network, task.model.normalizer)  # pyright: ignore[reportArgumentType]
    assert evaluate(task, model)[0] == pytest.approx(record.best_validation)


def test_score_validation_is_the_mean_of_its_levels() -> None:
    task = tasks(SMALL)["score"]
    loss, by_level = evaluate(task, task.model)
    assert by_level is not None and len(by_level) == SMALL.levels and task.group is not None
    share = task.group.bincount().tolist()
    assert loss == pytest.approx(sum(n * value for n, value in zip(share, by_level, strict=True)) / sum(share))


def test_a_loss_that_is_not_finite_raises_and_names_the_remedy(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e30, clip_gradient=None)
    path = tmp_path / "dynamics.safetensors"
    with pytest.raises(FloatingPointError, match="dynamics: the loss is not finite after step 10; train with a smaller"):
        fit("dynamics", tasks(config)["dynamics"], config, make_fabric(config), path=path, progress=False)
    assert not path.exists()


def test_bfloat16_products_train_float32_weights() -> None:
    config = dataclasses.replace(SMALL, precision="bf16-mixed", steps=200, evaluate_every=100, batch_size=128)
    network, record = fit("dynamics", tasks(config)["dynamics"], config, make_fabric(config), progress=False)
    assert all(weight.dtype == torch.float32 for weight in network.weights.values())
    assert record.history["train"][1] < 0.7 * record.history["train"][0]


def test_progress_shows_each_network_with_rate_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    fit("score", tasks(SMALL)["score"], SMALL, make_fabric(SMALL), progress=True)
    shown = capsys.readouterr().err
    assert "score" in shown and "30/30" in shown and "step/s" in shown and "validation=" in shown
