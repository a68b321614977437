"""Made-up results for tests of the report's form: plausible shapes and sizes, drawn from a seed, measured by nobody."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from sgp_fast.report import (
    Circumstances,
    DatasetSummary,
    Frame,
    FrameStrip,
    MethodResult,
    OpenLoop,
    Results,
    TaskResults,
    Telemetry,
    Throughput,
    ThroughputRow,
    TrainingCurve,
)

LABELS = {
    "behavior": "Behaviour policy",
    "sgp": "SGP",
    "no_score": "SGP without score, β = 0",
    "cem": "CEM, same models",
    "random_shooting": "Random shooting",
}
# Mean and spread of the returns of each method, and the steps that it lasts.
HOLDING = {"behavior": (774, 60, 300), "sgp": (884, 9, 300), "no_score": (38, 2, 41), "cem": (512, 160, 230)}

SETTINGS = {
    "horizon": 8, "iterations": 15, "step_size": 0.1, "beta": [1.0, 0.5], "clip_gradient": None, "keep_moments": False,
    "memory_limit": 2 << 30,
}  # fmt: skip


def picture(seed: int, width: int = 64, height: int = 48) -> bytes:
    """A small PNG file that compresses badly, as renderings do."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def method(key: str, mean: float, spread: float, steps: int, episodes: int = 10, seed: int = 0) -> MethodResult:
    draws = np.random.default_rng(seed).normal(size=episodes)
    returns = mean + spread * (draws - draws.mean()) / draws.std()
    half = 1.96 * returns.std(ddof=1) / np.sqrt(episodes)
    lengths = np.full(episodes, steps)
    return MethodResult(
        key=key,
        label=LABELS[key],
        returns=returns,
        lengths=lengths,
        interval=(float(returns.mean() - half), float(returns.mean() + half)),
        normalized=100 * (mean + 20) / 3254,
        milliseconds=None if key == "behavior" else 12.4,
        settings={} if key == "behavior" else SETTINGS,
    )


def strip(key: str, frames: int, steps: int, total: float, size: tuple[int, int] = (64, 48)) -> FrameStrip:
    shots = np.linspace(0, steps, frames).astype(int)
    pictures = tuple(Frame(int(t), float(total * t / steps), picture(int(t), *size)) for t in shots)
    return FrameStrip(key, pictures, float(total), fell_at=steps if steps < 300 else None)


def telemetry(key: str, seed: int = 0) -> Telemetry:
    rng = np.random.default_rng(seed)
    N, B, T, free = 15, 48, 8, key == "no_score"
    start = rng.normal(-20, 3, (B, 1))
    gain = (30.0 if free else 7.0) * (1 + 0.2 * rng.normal(size=(B, 1)))
    predicted = start - gain * (1 - np.exp(-np.arange(N + 1) / 4))
    checkpoints = np.array([0, 5, 10, 15])
    share = -0.4 if free else 0.85
    real = start + share * (predicted[:, checkpoints] - start) + rng.normal(0, 1.2, (B, 4))
    norm = (np.geomspace(2, 60, T) if free else np.full(T, 1.6)) * np.exp(0.25 * rng.normal(size=(B, T)))
    return Telemetry(key, predicted[:, :N], predicted[:, N], checkpoints, real, norm)


def open_loop(key: str, seed: int = 0) -> OpenLoop:
    rng = np.random.default_rng(seed)
    K, T, nx = 6, 8, 4
    real = np.cumsum(rng.normal(0, 0.15, (K, T + 1, nx)), axis=1)
    drift = 0.5 if key == "no_score" else 0.04
    predicted = real + drift * np.arange(T + 1)[:, None] * rng.normal(0.4, 0.3, (K, 1, nx))
    if key == "no_score":
        real[:2, 6:] = np.nan
    names = ("torso height (m)", "torso angle (rad)", "forward speed (m/s)")
    return OpenLoop(key, predicted, real, np.ones(nx), (0, 1, 3), names)


def curve(network: str, seed: int = 0) -> TrainingCurve:
    rng = np.random.default_rng(seed)
    steps = np.arange(0, 6000, 10)
    loss = 0.02 + 0.9 * np.exp(-steps / 700.0)
    validation = np.where(np.arange(len(steps)) % 20 == 0, 1.1 * loss, np.nan)
    return TrainingCurve(network, steps, loss * np.exp(0.12 * rng.normal(size=len(steps))), validation, 61.0)


def task(means: Mapping[str, tuple[float, float, int]] = HOLDING, name: str = "hopper-medium", **changes) -> TaskResults:
    """Results of one task with the given (mean, spread, steps) by method."""
    whole = {
        "env_id": "Hopper-v5",
        "dataset": DatasetSummary(name, 100_000, 214, 1432.0, 310.0),
        "episode_steps": 300,
        "methods": tuple(method(key, *values, seed=i) for i, (key, values) in enumerate(means.items())),
        "training": tuple(curve(network, i) for i, network in enumerate(("dynamics", "score", "cost"))),
        "telemetry": (telemetry("sgp"), telemetry("no_score", 1)),
        "open_loop": (open_loop("sgp"), open_loop("no_score", 1)),
        "frames": tuple(strip(key, 6, steps, mean) for key, (mean, _, steps) in means.items()),
    }
    return TaskResults(**(whole | changes))


def throughput() -> Throughput:
    rows = []
    for problems, rates in ((1, (0.85, 14.2, 43.1, 61.5, 60.2)), (64, (0.85, 79.6, 171.0, 262.0, 301.0))):
        names = ("Loop as published", "Best plain PyTorch, batched", "Ours, eager", "Ours, compiled", "Ours, compiled, bf16")
        for key, label, rate in zip(("published", "plain", "eager", "compiled", "bf16"), names, rates, strict=True):
            if (key, problems) == ("published", 64):
                continue
            middle = problems / rate
            rows.append(
                ThroughputRow(key, label, problems, rate, middle, 20, -12.3, 0.97 * middle, 1.05 * middle)
            )
    return Throughput("T = 8, 50 iterations, 4×256, fp32 unless said", tuple(rows))


def results(*tasks: TaskResults, **changes) -> Results:
    whole = {
        "circumstances": Circumstances(
            commit="0123456789abcdef0123456789abcdef01234567",
            device="Example processor",
            cores=2,
            torch_threads=2,
            versions={"sgp_fast": "0.1.0", "torch": "2.13.0", "numpy": "2.4.0"},
            date="2025-01-31T14:05:00+00:00",
            config="demo/hopper-medium.toml",
            stage_seconds={
                "hopper-medium: data": 21.0, "hopper-medium: training": 183.0, "hopper-medium: episodes": 140.0,
                "hopper-medium: plans from inside": 4.0, "throughput": 55.0,
            },  # fmt: skip
        ),
        "tasks": tasks or (task(),),
        "throughput": throughput(),
    }
    return Results(**(whole | changes))
