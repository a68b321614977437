"""Dynamics, score and cost that were trained together, saved as one file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ._tensorfile import load_tensors, save_tensors
from .costs import LearnedCost
from .models import Dynamics, Network, NetworkSpec, Normalizer, Score

MODELS_FILE = "models.safetensors"


@dataclass(frozen=True)
class Models:
    """Dynamics, score and cost that were trained together, and `info`: what they were trained on and how."""

    dynamics: Dynamics
    score: Score
    cost: LearnedCost
    info: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `models.safetensors` into `folder` (made where missing); `load_models` reads it. Returns its path."""
        parts = {"dynamics": self.dynamics, "score": self.score, "cost": self.cost}
        tensors = {f"{part}.{name}": t for part, model in parts.items() for name, t in model.state_dict().items()}
        config = {"kind": "models", "version": 1, "info": self.info, "score": {}}
        config["networks"] = {part: model.network.spec.to_dict() for part, model in parts.items()}
        config["score"] = {"output": self.score.output, "variables": self.score.variables}
        path = Path(folder) / MODELS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, config)
        return path


def load_models(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Models:
    """Frozen models from a folder that `Models.save` wrote (or from its `models.safetensors`)."""
    path = Path(folder)
    path = path if path.suffix == ".safetensors" else path / MODELS_FILE
    tensors, config = load_tensors(path, "models")
    networks = {part: Network(NetworkSpec.from_dict(spec)) for part, spec in config["networks"].items()}

    def normalizer(part: str) -> Normalizer:
        return Normalizer(tensors[f"{part}.normalizer.b"], tensors[f"{part}.normalizer.k"])

    dynamics = Dynamics(networks["dynamics"], normalizer("dynamics"), tensors["dynamics.scale"])
    score = Score(networks["score"], normalizer("score"), tensors["score.sigmas"], **config["score"])
    cost = LearnedCost(networks["cost"], normalizer("cost"))
    for part, model in (("dynamics", dynamics), ("score", score), ("cost", cost)):
        own = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        model.load_state_dict(own, assign=True)  # in the dtype that was saved
        model.requires_grad_(False).eval().to(device)
    return Models(dynamics, score, cost, config["info"])
