"""`sgp-fast demo`: the demo, with throughput measured by the benchmark suite."""

from __future__ import annotations

from pathlib import Path


def demo(full: bool = False, out: Path | None = None) -> None:
    """Make data, train, plan, evaluate in closed loop, and write one HTML report. Takes minutes; can be stopped and resumed.

    Args:
        full: The published size: 4×1024 networks, all tasks and data sets. Takes a day on a CPU.
        out: The folder of the demo; by default demo/, or demo-full/.
    """
    from .bench.throughput import measure
    from .demo import read_settings, run_demo

    settings = read_settings("full" if full else "demo")
    run_demo(settings, out or Path("demo-full" if full else "demo"), measure=lambda: measure(settings.train.width))
