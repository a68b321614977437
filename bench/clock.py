"""Time: one run by the device's own clock, and rounds in which all that are compared take turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

# OpenMP's workers go on spinning for some milliseconds after a product: none shall slow the one that comes next.
PAUSE = 0.05
MOST_ROUNDS = 200
# A driver's counter steps some ten times a second: the energy of a shorter turn is that of its neighbours.
TOLD_FROM = 1.0
RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """One run: between two CUDA events on a GPU, by the host's clock on a CPU."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3


def rounds(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    budget: float,
    least: int = 3,
    most: int = MOST_ROUNDS,
    seed: str = "",
    joules: dict[str, float] | None = None,
    failed: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each, from rounds in which every one has a turn, in an order drawn anew, so that a drift hits all alike.

    Orders are drawn from `seed`: with one for all cases, who runs behind whom would be the same in all. `budget` is shared
    alike: one that has used its share sits out, but not before `least` turns (two, where a turn takes more than its share).
    `joules` receives the mean energy of a turn, where the driver tells it and turns are long enough for its counter;
    `failed` what one raised that then sits out, and without `failed` it is raised.
    """
    share, pause = budget / max(1, len(runs)), PAUSE if device.type == "cpu" else 0.0
    taken: dict[str, list[float]] = {name: [] for name in runs}
    order, draw = list(runs), random.Random(seed)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    while order:
        draw.shuffle(order)
        for name in order:
            time.sleep(pause)
            before = energy(device)
            try:
                taken[name].append(seconds(runs[name], device))
            except Exception as why:
                if failed is None:
                    raise
                failed[name] = f"failed in a timed round: {' '.join(str(why).split())[:200] or type(why).__name__}"
                continue
            after = energy(device)
            if before is not None and after is not None:
                spent[name].append(after - before)
        order = [name for name in order if name not in (failed or ())]
        order = [name for name in order if not _enough(taken[name], pause, share, least, most)]
    if joules is not None:
        told = {name for name, values in spent.items() if values and min(values) >= 0 and min(taken[name]) >= TOLD_FROM}
        joules |= {name: sum(spent[name]) / len(spent[name]) for name in told}
    return taken


def _enough(samples: list[float], pause: float, share: float, least: int, most: int) -> bool:
    if min(samples) > share:
        return len(samples) >= min(least, 2)
    return len(samples) >= most or (len(samples) >= least and sum(samples) + pause * len(samples) >= share)


def energy(device: torch.device) -> float | None:
    """Joules that the device has taken since its driver was loaded; None where nobody tells."""
    if device.type == "cuda":
        try:
            import pynvml  # pyright: ignore[reportMissingImports]

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except Exception:  # absent library, driver or permission: each means that nobody tells
            return None
    try:
        return int(RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return None
