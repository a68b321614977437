"""What every test shares: without a GPU, kernels are interpreted and GPU tests skipped; property tests are repeatable."""

from __future__ import annotations

import os

import torch

# Before any kernel is imported: without a GPU, Triton interprets them on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

from tests.interpreter import patch_once_a_launch, round_bfloat16

# Examples are the same in every run, and a slow machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

if os.environ.get("TRITON_INTERPRET") == "1":
    patch_once_a_launch()
    round_bfloat16()

# Parallel workers (pytest -n) would otherwise fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
