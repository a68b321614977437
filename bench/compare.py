"""Two results side by side: of two files, or of two commits that plan in turns in one run.

A file against a file tells what changed only where the machine did not: each was measured at its own time. Two commits are
measured together, each in a process of its own from a checkout of its own, so that a drift of the machine hits both.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgp_fast.report.numbers import DISTURBED, wide_spread

from . import bootstrap, clock
from .records import Results, read
from .rows import PlanRow

ROOT = Path(__file__).resolve().parent.parent
# Turns of each: enough for any interval, and not too many to resample.
MOST = 1000
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Change:
    """How B stands to A at one case of one rung: `ratio` is A's median time over B's, above 1 where B is faster.

    `spread` says whose times were disturbed; empty where both are steady.
    """

    case: str
    rung: str
    before: float
    after: float
    low: float
    high: float
    cost_before: float | None
    cost_after: float | None
    spread: str = ""

    @property
    def ratio(self) -> float:
        return self.before / self.after

    @property
    def verdict(self) -> str:
        """Faster or slower only where the whole interval says so."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "no difference seen"


def files(a: Path, b: Path) -> str:
    """The table of two result files; ValueError where they have no case and rung in common."""
    before, after = read(a), read(b)
    found = list(changes(before, after))
    if not found:
        raise ValueError(f"{a} and {b} have no case and rung in common that both have times for; nothing to compare")
    heads = [f"A  {a}: {before.where}", f"B  {b}: {after.where}"]
    differs = [name for name in ("cpu", "gpu", "threads") if before.header["machine"][name] != after.header["machine"][name]]
    if differs:
        heads.append(f"not the same machine ({', '.join(differs)}): times tell of machines, not of code")
    return "\n".join([*heads, "", table(found)])


def changes(before: Results, after: Results) -> Iterator[Change]:
    """Of every case and rung that both hold a time for."""
    old: dict[tuple[str, str], PlanRow] = {row.key: row for row in before.of(PlanRow) if row.samples}
    for row in after.of(PlanRow):
        if row.samples and row.key in old:
            yield _change(row.case, row.rung, old[row.key].samples, row.samples, old[row.key].cost, row.cost)


def commits(
    a: str, b: str, cases: Sequence[str], backend: str, seconds: float, say: Callable[[str], None] = lambda text: None
) -> list[Change]:
    """Both commits plan each case in turns; ValueError where one is no commit or cannot plan."""
    found = []
    with ExitStack() as stack:
        folders = [stack.enter_context(_checkout(commit)) for commit in (a, b)]
        for case in cases:
            say(f"{case}: {a} and {b} in turns")
            workers = [stack.enter_context(_worker(folder, case, backend)) for folder in folders]
            samples, draw = ([], []), random.Random(0)
            spent = 0.0
            while len(samples[0]) < 3 or (spent < seconds / len(cases) and len(samples[0]) < MOST):
                order = [0, 1]
                draw.shuffle(order)
                for i in order:
                    time.sleep(clock.PAUSE)
                    samples[i].append(_ask(workers[i], "plan")["seconds"])
                    spent += samples[i][-1] + clock.PAUSE
            costs = [_ask(worker, "cost")["cost"] for worker in workers]
            found.append(_change(case, backend, *samples, *costs))
            for worker in workers:
                worker.kill()
    return found


def table(found: Sequence[Change]) -> str:
    """A line a case and rung: both times, how many times faster B is with its interval, and both costs."""
    wide = max(len("case"), *(len(change.case) for change in found))
    lines = [f"{'case':<{wide}}  {'rung':<22}{'A ms':>11}{'B ms':>11}{'B is × as fast':>24}  {'cost A':>9}{'cost B':>10}"]
    for c in found:
        span = f"{c.ratio:.3f} [{c.low:.3f}, {c.high:.3f}]"
        costs = "".join(f"{'—' if cost is None else f'{cost:.4g}':>10}" for cost in (c.cost_before, c.cost_after))
        lines.append(
            f"{c.case:<{wide}}  {c.rung:<22}{1e3 * c.before:>11,.2f}{1e3 * c.after:>11,.2f}{span:>24} {costs}  {c.verdict}"
        )
        if c.spread:
            lines.append(f"{'':<{wide}}  times spread, {c.spread}: {DISTURBED}")
    return "\n".join(lines)


def _change(
    case: str, rung: str, before: Sequence[float], after: Sequence[float], *costs: float | None
) -> Change:
    low, high = bootstrap.ratio(before, after)
    spreads = [(name, wide_spread(*np.quantile(samples, (0.2, 0.8)))) for name, samples in (("A", before), ("B", after))]
    told = ", ".join(f"{name} {spread}" for name, spread in spreads if spread)
    return Change(case, rung, statistics.median(before), statistics.median(after), low, high, *costs, spread=told)


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A work tree of a commit, removed at the end."""
    known = subprocess.run(["git", "rev-parse", "-q", "--verify", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True)
    if known.returncode:
        raise ValueError(f"{commit!r} is neither a file of results nor a commit of {ROOT}; expected two of one or the other")
    with tempfile.TemporaryDirectory(prefix="sgp-fast-") as place:
        folder = Path(place) / "tree"
        _git("worktree", "add", "--detach", "--force", str(folder), commit)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _worker(folder: Path, case: str, backend: str) -> Iterator[subprocess.Popen[str]]:
    """A process that plans with the package in a folder, ready for its first turn."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, str(WORKER), case, backend], cwd=folder, env=environment, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _answer(process)
        yield process
    finally:
        process.kill()
        process.communicate()


def _ask(process: subprocess.Popen[str], word: str) -> dict[str, float]:
    assert process.stdin is not None
    print(word, file=process.stdin, flush=True)
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    if not line:
        told = process.stderr.read().strip().splitlines() or ["it ended without a word"]
        raise ValueError(f"a commit cannot plan this: {told[-1]}")
    return json.loads(line)


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
