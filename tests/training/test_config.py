"""The configuration: its levels, its networks, its checks."""

from __future__ import annotations

import json

import pytest
import torch

from sgp_fast.training import TrainConfig


def test_levels_are_geometric_and_fall() -> None:
    sigmas = TrainConfig().sigmas
    assert sigmas.shape == (10,) and sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas[0], torch.tensor(10**-0.5))
    torch.testing.assert_close(sigmas[-1], torch.tensor(1e-3))
    torch.testing.assert_close(sigmas[1:] / sigmas[:-1], torch.full((9,), 10 ** (-2.5 / 9)))
    assert TrainConfig(levels=1, sigma_max=0.2, sigma_min=0.2).sigmas.tolist() == pytest.approx([0.2])


def test_networks_are_those_of_the_paper() -> None:
    config = TrainConfig(width=64)
    assert config.network("dynamics", 11, 3).widths == (64, 64, 64, 64, 11)
    assert config.network("score", 11, 3).widths[-1] == 14 and config.network("score", 11, 3).levels == 10
    assert config.network("cost", 11, 3).widths[-1] == 1 and config.network("cost", 11, 3).levels == 0


def test_json_and_back() -> None:
    config = TrainConfig(width=32, patience=None, clip_gradient=None, sigma_max=0.7)
    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert "checkpoint_seconds" not in config.identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "TrainConfig.steps is 0; expected a whole number"),
        ({"width": 1.5}, "TrainConfig.width is 1.5"),
        ({"learning_rate": 1e-6}, "expected 0 ≤ final ≤ first"),
        ({"sigma_min": 1.0}, "expected 0 < smallest ≤ largest"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"discount": 0.0}, "discount is 0.0"),
        ({"clip_gradient": 0.0}, "clip_gradient is 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"patience": 0}, "patience is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"precision": "16-mixed"}, "expected one of 32-true, bf16-mixed"),
        ({"score_output": "energy"}, "expected one of score, noise"),
    ],
)
def test_wrong_values_raise_at_once(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)
