"""Trains in processes that are killed with SIGKILL again and again, until one finishes; run by test_kill.py.

    python -m tests.training.killed_run WHOLE BROKEN SEED

WHOLE gets an uninterrupted run, BROKEN one that was killed at random moments: half the time after a random delay, the
other half right before or right after a random one of its own file renames. Prints, as JSON, the kills and the steps
reached. Processes are forked from one that has imported everything, so that delays fall into training, not into imports.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import sgp_fast as sgp
from sgp_fast._tensorfile import load_tensors
from sgp_fast.training.loop import make_fabric

from .toys import SMALL, linear_system

# Every step is saved; patience ends one network early, so that this path is interrupted too.
CONFIG = dataclasses.replace(
    SMALL, steps=60, evaluate_every=7, patience=2, learning_rate=0.05, ema_decay=0.5, checkpoint_seconds=0.0
)


def die_at_rename(count: int, after: bool) -> None:
    """Kill this process at its `count`-th rename, before or after it is done."""
    real, seen = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal seen
        seen += 1
        if seen == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # pyright: ignore[reportAttributeAccessIssue]


def start(folder: str, rename: tuple[int, bool] | None = None) -> int:
    """Fork a process that trains into `folder`; its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if rename is not None:
                die_at_rename(*rename)
            sgp.train(linear_system(), CONFIG, folder, progress=False)
            status = 0
        finally:
            os._exit(status)
    return pid


def finish(pid: int) -> int:
    """The exit status of a process; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def reached(folder: str) -> dict[str, int]:
    """The step that the checkpoint of each network has reached."""
    files = sorted(Path(folder, "checkpoints").glob("[!.]*.safetensors"))
    return {path.stem: load_tensors(path, "training")[1]["record"]["step"] for path in files}


def main(whole: str, broken: str, seed: int) -> None:
    torch.set_num_threads(1)
    make_fabric(CONFIG)
    began = time.monotonic()
    assert finish(start(whole)) == 0
    seconds = time.monotonic() - began

    chance, kills = random.Random(seed), []
    while True:
        by_rename = chance.random() < 0.5
        pid = start(broken, (chance.randint(1, 25), chance.random() < 0.5) if by_rename else None)
        if not by_rename:
            time.sleep(chance.uniform(0, seconds / 4))
            os.kill(pid, signal.SIGKILL)  # of a child not yet waited for, so the id is still its own
        status = finish(pid)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills.append({"by_rename": by_rename, "reached": reached(broken)})
        assert len(kills) < 200, "no progress between the kills"
    print(json.dumps({"kills": kills, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
