"""Models of one's own become cases: a training run's folder, or a Python file; what is wrong with either is told."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sgp_fast as sgp
from sgp_fast.bench import profiling
from sgp_fast.bench.bring import load_case
from sgp_fast.bench.cases import make_case
from sgp_fast.commands import DEFAULT
from sgp_fast.trained import Models

HEAD = """
import torch
import sgp_fast as sgp
problem = sgp.Problem(dynamics=lambda x, u: x + 0.1 * u, cost=lambda x, u: (x**2).sum(-1), bounds=(-1, 1), nu=2)
"""


def run_folder(folder: Path) -> Path:
    made = make_case(16, 1, hidden_layers=2).problem
    assert made.score is not None
    limits = {"low": [-0.5] * 6, "high": [0.5] * 6}
    models = Models(made.dynamics, made.score, made.cost, {"action_range": limits})
    models = replace(models, score=copy.deepcopy(made.score), cost=copy.deepcopy(made.cost))  # a file shares no normalizer
    models.save(folder)
    return folder


def file(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_training_run_becomes_a_case(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "pendulum")
    case = load_case(folder, problems=6, iterations=3)
    assert case.model == "pendulum" and (len(case.x0), case.init.shape) == (6, (6, DEFAULT.horizon, 6))
    assert case.planner == sgp.SGP(horizon=8, iterations=3, step_size=0.1, beta=1.0, tolerance=0.0)
    again = load_case(folder / "models.safetensors", problems=6, iterations=3)
    assert again.model == "pendulum" and torch.equal(case.x0, again.x0) and torch.equal(case.init, again.init)
    assert not torch.equal(case.x0, load_case(folder, problems=6, seed=1).x0)
    normalizer = case.problem.dynamics.normalizer
    assert ((load_case(folder, problems=500).x0 - normalizer.b[:17]) / normalizer.k[:17]).std() == pytest.approx(1, abs=0.05)
    plan = sgp.solve(case.problem, case.planner, case.x0, init=case.init, backend="eager")
    assert plan.u.abs().max() <= 0.5


def test_a_file_brings_problem_planner_and_starts(tmp_path: Path) -> None:
    text = HEAD + "planner = sgp.SGP(horizon=5, iterations=7, tolerance=1e-2)\nx0 = torch.arange(6.0).view(3, 2)\n"
    case = load_case(file(tmp_path, text), problems=4, precision="float64")
    assert case.model == "mine" and case.x0[:, 0].tolist() == [0, 2, 4, 0]
    assert case.planner == sgp.SGP(horizon=5, iterations=7, tolerance=0.0, precision="float64")
    rows = profiling.profile(case, "auto")
    assert (rows[0].backend, rows[0].stage, rows[0].flops) == ("eager", "rollout", None)
    assert "score" not in {row.stage for row in rows}
    assert "—" in profiling.table(rows)


def test_a_file_may_make_its_problem_and_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("SCALE = 0.5\n")
    text = """
import numpy as np, sgp_fast as sgp
class Cost:
    pass
def make_problem():
    from neighbour_of_mine import SCALE
    return sgp.Problem(dynamics=lambda x, u: x + SCALE * u, cost=lambda x, u: (x**2).sum(-1), nu=2)
x0 = np.ones(2)
"""
    path = list(sys.path)
    case = load_case(file(tmp_path, text), problems=3)
    assert case.x0.tolist() == [[1, 1]] * 3 and case.planner.horizon == DEFAULT.horizon and sys.path == path


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("x = 1\n", ValueError, r"mine\.py defines no problem; set `problem"),
        ("problem = 3\n", TypeError, r"mine\.py: problem is a int; expected an sgp\.Problem"),
        ("def make_problem():\n    return 3\n", TypeError, "problem is a int"),
        ("def make_problem():\n    return 1 / 0\n", ValueError, r"mine\.py, line 2: ZeroDivisionError"),
        ("x = 1\nimport no_such_library_here\n", ValueError, r"mine\.py, line 2: ModuleNotFoundError: .*no_such"),
        ("x = 1\n\ny = (\n", ValueError, r"mine\.py, line 3: SyntaxError"),
        ("raise SystemExit(3)\n", ValueError, r"mine\.py, line 1: SystemExit"),
        (HEAD, ValueError, r"mine\.py defines no x0, .*no normalizer.*define `x0`"),
        (HEAD + "planner = {}\nx0 = [[0, 0]]\n", TypeError, r"planner is a dict; expected an sgp\.SGP"),
        (HEAD + "planner = sgp.SGP(horizon=2, starts=3)\nx0 = [[0, 0]]\n", ValueError, "planner.starts is 3; "),
        (HEAD + "x0 = 'here'\n", TypeError, r"x0 is a str .*expected start states \[B, nx\]"),
        (HEAD + "x0 = torch.zeros(2, 3, 4)\n", ValueError, r"x0 has shape \(2, 3, 4\); expected \[B, nx\]"),
        (HEAD + "x0 = torch.tensor([[0, float('nan')]])\n", ValueError, "x0 has a value that is not finite"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, text: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        load_case(file(tmp_path, text), problems=2)


def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; expected the folder of a training run"):
        load_case(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no models\.safetensors"):
        load_case(tmp_path)
    other = tmp_path / "a.txt"
    other.write_text("")
    with pytest.raises(ValueError, match=r"a\.txt is neither; expected the folder"):
        load_case(other)
    with pytest.raises(ValueError, match="problems is 0; expected at least 1"):
        load_case(run_folder(tmp_path / "run"), problems=0)
