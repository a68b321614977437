"""Quality beside speed: the rows of a task end to end, what is kept of a run that was killed, and what the verdict says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

import sgp_fast as sgp
from sgp_fast._intervals import t_interval
from sgp_fast.bench import quality, records
from sgp_fast.bench.quality import arena
from sgp_fast.bench.quality.arena import Settings
from sgp_fast.bench.quality.contenders import Budgets, contenders
from sgp_fast.bench.quality.returns import table, verdict
from sgp_fast.bench.rows import ReturnRow
from sgp_fast.demo import read_settings
from sgp_fast.training import TrainConfig
from tests.controllers import models

TASK = "hopper-medium"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of models as training leaves it, of Hopper's size."""
    actions = {"low": [-1.0] * 3, "high": [1.0] * 3}
    models(11, 3, env_id="Hopper-v5", action_range=actions).save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these gain nothing from a second one, and lose much where others want the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(folder: Path, **options: Any) -> Settings:
    demo = read_settings("demo")
    train = TrainConfig(width=16, hidden_layers=2, steps=20, batch_size=32, evaluate_every=10)
    demo = replace(demo, transitions=1_500, train=train, planner=sgp.SGP(horizon=3, iterations=2, beta=0.3))
    given = {"tasks": (TASK,), "episodes": 2, "steps": 4, "demo": demo, "budgets": Budgets((1,), (8,), 1)}
    return Settings(folder, **(given | options))


def row(returns: tuple[float, ...], backend: str, precision: str = "float32", task: str = TASK, **fields: Any) -> ReturnRow:
    given: dict[str, Any] = {
        "task": task, "group": "precision", "planner": "SGP", "setting": "15 iterations", "backend": backend,
        "precision": precision, "device": "cpu", "seeds": tuple(range(len(returns))), "steps": 300, "returns": returns,
        "normalized": tuple(value / 10 for value in returns),
    }  # fmt: skip
    return ReturnRow(**(given | fields))


def test_a_task_from_end_to_end_and_what_is_left_of_it_later(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arena, "CALLS", 2)
    monkeypatch.setattr(arena, "QUICK_BUDGETS", Budgets((1, 2), (8, 16), 2))
    out = tmp_path / "quality.jsonl"
    options: dict[str, Any] = {"tasks": (TASK,), "episodes": 2, "steps": 4, "runs": (f"{TASK}={run}",), "quick": True}
    quality.quality_command(out, **options)
    found = records.read(out)
    rows = found.of(ReturnRow)
    assert found.header["command"] == "bench quality" and found.header["settings"]["quick"] is True
    assert len({quality.key_of(row) for row in rows}) == len(rows) == 25
    ran = [row for row in rows if row.reason is None]
    assert all(len(row.returns) == len(row.normalized) == 2 and row.seeds == (100, 101) for row in ran)
    assert all((row.milliseconds is None) == (row.group == "data") for row in ran)
    missing = {(row.backend, row.precision) for row in rows if row.reason}
    assert {("fused", "float16"), ("fused", "tf32")} <= missing, "what cannot run here is listed with the reason"
    assert {row.backend for row in ran if row.group == "precision"} >= {"eager"}

    by_way = {(row.backend, row.precision): row.returns for row in ran if row.group == "precision"}
    exact = np.array(by_way["eager", "float64"])
    for (_, precision), returns in by_way.items():  # a few steps, over which rounding has not grown
        assert np.allclose(returns, exact, rtol=1e-3 if precision == "float32" else 0.1)
    printed, drawn = capsys.readouterr()
    assert "hopper-medium: behaviour policy, medium: return" in printed and "none float32" not in printed
    for title in ("behaviour policy, medium: ", "SGP, 15 iterations, eager float32: ", "eager float32, timed: "):
        assert title in drawn, "a row may take minutes, and shows how far it is"
    assert "no difference seen" in printed or "the same in every episode" in printed
    assert "rows are left" not in printed and all(row.setting in printed for row in rows)

    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-2]) + lines[-2][:40])  # as a kill leaves it
    played: list[str] = []
    evaluate = sgp.evaluate
    monkeypatch.setattr(sgp, "evaluate", lambda *a, **o: played.append(o.get("seeds", "")) or evaluate(*a, **o))
    quality.quality_command(out, **options)
    again = out.read_text().splitlines(keepends=True)
    assert again[:-2] == lines[:-2] and len(played) == 3, "two rows, and the observations to time them on"
    assert [row.returns for row in records.read(out).of(ReturnRow)] == [row.returns for row in rows], "the same seeds"

    with pytest.raises(ValueError, match="was begun with steps 4, not 5; give another file"):
        quality.quality_command(out, **{**options, "steps": 5})
    with pytest.raises(ValueError, match="exists; --resume goes on"):
        quality.quality_command(out, **options, resume=False)
    assert out.read_text().splitlines(keepends=True) == again


def test_models_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    monkeypatch.setenv("SGP_FAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(arena, "CALLS", 1)
    settings, said = tiny(tmp_path / "models"), []
    behaviour, planned = islice(quality.quality(settings, say=said.append), 2)
    assert (behaviour.group, planned.backend, planned.setting) == ("data", "eager", "2 iterations")
    assert len(said) == 1 and "training" in said[0] and (tmp_path / "models" / TASK / "models.safetensors").is_file()
    again = next(quality.quality(settings, {quality.key_of(behaviour)}, say=said.append))
    assert again.returns == planned.returns and len(said) == 1


def test_no_time(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the deadline only reasons are told; before it, a row that would take longer is left out, and said to be."""
    monkeypatch.setattr(arena, "CALLS", 1)
    settings, said = tiny(tmp_path / "none", runs={TASK: run}), []
    assert all(row.reason for row in quality.quality(settings, minutes=0, say=said.append)) and not said
    monkeypatch.setattr(quality, "_median_act", lambda *_: 1e6)
    assert all(row.reason for row in quality.quality(settings, minutes=1e3, say=said.append))
    assert said[0] == "hopper-medium: data: behaviour policy, medium is left out, it may take 4000000 s"


def test_training_does_not_count_against_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock starts when all models of rows that are missing are there."""
    order: list[str] = []
    monkeypatch.setattr(arena.Arena, "train", lambda self: order.append(self.task))
    monkeypatch.setattr(quality, "play", lambda *_: None)
    monkeypatch.setattr(quality, "time", SimpleNamespace(monotonic=lambda: order.append("clock") or 0.0))
    settings = tiny(tmp_path, tasks=(TASK, "walker2d-medium", "halfcheetah-medium"))
    done = {quality.key_of(row) for row, _ in quality.entries(settings) if row.task == "walker2d-medium"}
    assert [row.task for row, _ in quality.entries(settings)][:4] == [*settings.tasks, TASK], "each controller on all tasks"
    list(quality.quality(settings, done))
    assert order == [TASK, "halfcheetah-medium", "clock"]


def test_a_backend_that_fails_is_a_row_with_the_reason(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("backend 'compiled' cannot plan this:\n a reason")

    monkeypatch.setattr(arena, "CALLS", 1)
    where = arena.Arena(tiny(tmp_path / "none", runs={TASK: run}), TASK)
    blank, contender = quality.entries(where.settings)[1]
    played = quality.play(where, replace(contender, make=fails), blank, math.inf)
    assert played == replace(blank, reason="backend 'compiled' cannot plan this: a reason")


def test_the_price_of_an_action_is_the_median_of_one_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the calls that compile, tune and capture."""
    clock, took = [0.0], iter([50.0, 20.0, 10.0, 3.0, 1.0, 2.0, 9.0, 2.5])
    seen: list[np.ndarray] = []

    class Slow:
        batch_size = 2

        def act(self, obs: Any, active: Any) -> Any:
            seen.append(obs)
            clock[0] += next(took)

        def reset(self, mask: Any) -> None: ...

    monkeypatch.setattr(quality, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    observations = np.arange(8.0)[:, None]
    assert quality._median_act(Slow(), observations) == 2.5
    assert [obs.tolist() for obs in seen] == [[[i], [i]] for i in range(8)]


def test_who_plays() -> None:
    """Every backend and dtype with the demo's planner, and the same horizon and models for those that sample."""
    planner = read_settings("demo").planner
    found = list(contenders(TASK, planner, Budgets(), "cpu"))
    ways = [(c.backend, c.precision) for c in found if c.group == "precision"]
    assert ways[0] == ("eager", "float32") and len(set(ways)) == len(ways) == 9
    assert all(c.reason for c in found if c.backend == "fused"), "also where Triton interprets its kernels"
    budget = [(c.planner, c.setting) for c in found if c.group == "budget"]
    assert len(set(budget)) == len(budget) == 2 * 7 + 1 + 4 * 5
    assert {("CEM", "3 × 512 samples"), ("SGP", "1 iteration"), ("SGP, β = 0", "15 iterations")} <= set(budget)
    gpu = {(c.backend, c.device) for c in contenders(TASK, planner, Budgets(), "cuda")}
    assert {("eager", "cuda"), ("fused", "cuda"), ("compiled", "cpu")} <= gpu
    assert {c.backend for c in found if c.planner in ("CEM", "MPPI with score", "random shooting")} == {"compiled"}


def test_only_some(tmp_path: Path, run: Path) -> None:
    """Those with a text in their names, in the order of all; a text that names nobody is refused before anything is done."""
    chosen = tiny(tmp_path, runs={TASK: run}, only=("data", "MPPI with", "precision: SGP, 2 iterations, compiled"))
    rows = [row for row, _ in quality.entries(chosen)]
    assert [(row.planner, row.precision) for row in rows] == [
        ("behaviour policy", "float32"), ("SGP", "float32"), ("SGP", "bfloat16"), ("MPPI with score", "float32"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="only has 'mppi', which is in none of: data: behaviour policy, medium"):
        quality.quality_command(tmp_path / "out.jsonl", (TASK,), runs=(f"{TASK}={run}",), only=("mppi",))
    assert not (tmp_path / "out.jsonl").exists()


def test_verdict() -> None:
    """Differences by seed, in whatever order they were run; their t intervals; and all tasks together."""
    reference = row((100.0, 200.0, 300.0), "eager")
    rows = [
        reference,
        row((292.0, 188.0, 90.0), "compiled", "bfloat16", seeds=(2, 1, 0)),
        row((101.0, 198.0, 304.0), "compiled"),
        row((100.0, 200.0, 300.0), "eager", "float64"),
        row((111.0, 212.0, 313.0), "eager", "bfloat16"),
        row((), "fused", seeds=(0, 1, 2), reason="no GPU"),
        row((900.0, 1.0, 1.0), "auto", group="budget"),
    ]
    low, high = t_interval(np.array([-8.0, -12.0, -10.0]))
    assert (round(low), round(high)) == (-15, -5)
    assert verdict(rows) == [
        "hopper-medium, compiled bfloat16: −10 [−15, −5] against 200 with eager float32: lower",
        "hopper-medium, compiled float32: 1.0 [−6.5, 8.5] against 200 with eager float32: no difference seen, at most 3.2% "
        "lower",
        "hopper-medium, eager float64: 0 [0, 0] against 200 with eager float32: the same in every episode",
        "hopper-medium, eager bfloat16: 12 [10, 14] against 200 with eager float32: higher",
        "Of 4 such comparisons, one in twenty would show a difference by chance.",
    ]
    other = [row((10.0, 20.0), "eager", task="walker2d-medium"), row((10.5, 20.5), "compiled", task="walker2d-medium")]
    pooled = [line for line in verdict([*rows, *other]) if line.startswith("2 tasks")]
    low, high = t_interval(np.array([0.1, -0.2, 0.4, 0.05, 0.05]))
    assert (f"{low:.2f}", f"{high:.2f}") == ("-0.19", "0.35")
    assert pooled[0].startswith("2 tasks, compiled float32: 0.08 [−0.19, 0.35] points of normalised return")
    assert pooled[0].endswith("over 5 episodes: no difference seen")
    assert len(pooled) == 1, "only where every task has one"
    assert verdict(rows[1:]) == [] and verdict([]) == []


def test_table() -> None:
    rows = [row((), "fused", "tf32", reason="no GPU here"), row((90.0, 110.0), "eager", milliseconds=1.234)]
    lines = table(rows[::-1]).splitlines()
    head = f"{TASK}, 2 episodes of at most 300 steps return 95% interval normalised ms/action"
    assert lines[0].split() == head.split()
    assert lines[2].split() == ["SGP,", "15", "iterations", "eager", "float32", "100", "[−27,", "227]", "10.0", "1.23"]
    assert lines[3].endswith("fused tf32                no GPU here") and len(lines) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": ("hopper-middling",)}, "tasks has 'hopper-middling'; expected some of hopper-random"),
        ({"tasks": ()}, "tasks is empty"),
        ({"tasks": (TASK, TASK)}, "expected at least one, and each once"),
        ({"episodes": 1}, "episodes is 1; an interval needs at least 2"),
        ({"steps": 0}, "steps is 0; expected 1 to 1000"),
        ({"steps": 1001}, "steps is 1001"),
        ({"seed": -1}, "seed is -1"),
        ({"minutes": 0.0}, "minutes is 0.0; expected a positive number"),
        ({"runs": ("run",)}, "runs has 'run'; expected TASK=FOLDER"),
        ({"runs": (f"{TASK}=/nowhere",)}, "/nowhere of hopper-medium does not exist; train it: sgp-fast train"),
        ({"runs": ("walker2d-medium=RUN",)}, "the models in .* are of Hopper-v5; walker2d-medium is played in Walker2d-v5"),
        ({"runs": ("hopper-expert=RUN",)}, "runs has one for hopper-expert, which is not among tasks"),
        ({"folder": Path(__file__)}, "a file; give a folder for the models"),
    ],
)
def test_bad_input_costs_nothing(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(sgp, "train", lambda *a, **o: pytest.fail("trained"))
    if "runs" in options:
        options = options | {"runs": tuple(text.replace("RUN", str(run)) for text in options["runs"])}
    with pytest.raises((ValueError, OSError), match=words):
        quality.quality_command(tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists()
