"""How many threads of PyTorch a training step is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .config import TrainConfig

# Multiply-adds of a hidden layer for one batch: 512 rows of width 128.
NARROW = 512 * 128**2


def worth_threads(config: TrainConfig, device: torch.device) -> int:
    """One thread on a CPU where `batch_size · width²` is at most 512 · 128², else those that the user has set.

    Threads wait for each other after every operation, and spin while they do: beside another busy process a step may
    take fifty times as long. On two cores, 512 rows a batch, a step at width 64, 128 and 256 took two threads 3.1, 3.8
    and 8.3 ms at best, one 2.9, 4.4 and 11.7; beside busy processes two at times took 200 to 500 ms, one 3.2, 4.6 and
    14. So narrow networks lose next to nothing. For wide ones OMP_NUM_THREADS=1 in the environment is the way out on a
    machine that others use. Nothing is tried out as training goes on, since the last bits of the weights depend on the
    number of threads.
    """
    few = device.type == "cpu" and config.batch_size * config.width**2 <= NARROW
    return 1 if few else torch.get_num_threads()


@contextmanager
def training_threads(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Inside, PyTorch has the threads that a step is worth; afterwards those that it had before."""
    before = torch.get_num_threads()
    torch.set_num_threads(worth_threads(config, device))
    try:
        yield
    finally:
        torch.set_num_threads(before)
