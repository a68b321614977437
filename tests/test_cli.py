"""The command line: light to start, honest about errors, and the whole way from data to returns."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import tyro

import sgp_fast as sgp
from sgp_fast import cli
from sgp_fast.commands import DEFAULT, read_settings
from sgp_fast.training import TrainConfig
from tests.controllers import models

ROOT = Path(__file__).parents[1]
RUN = "import sys; from sgp_fast.cli import main; sys.exit(main())"


def shell(*words: str, code: str = RUN, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    bounds = {"low": [-1.0] * 3, "high": [1.0] * 3, "source": "environment"}
    models(env_id="Hopper-v5", action_range=bounds).save(tmp_path / "run")
    return tmp_path / "run"


def test_a_word_that_is_no_command_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a group, those of the group."""
    for words, last in ((["data", "mak"], "of data make, data info, data convert\n"), (["mak"], "bench validate, doctor\n")):
        assert cli.main(words) == 2
        told = capsys.readouterr().err
        assert f"{' '.join(words)!r} is no command; expected one of" in told and told.endswith(last)


def test_help_lists_every_command_and_needs_no_library() -> None:
    code = RUN.replace("sys.exit(main())", "main(); sys.exit(any(n in sys.modules for n in ('torch', 'numpy', 'tyro')))")
    start = time.perf_counter()
    done = shell("--help", code=code)
    assert time.perf_counter() - start < 1 and done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout
    group = shell("data")
    assert "data make" in group.stdout and "evaluate" not in group.stdout


def told(page: str) -> dict[str, str]:
    """What a page of help says of each argument and option, default aside."""
    found: dict[str, str] = {}
    name = ""
    for line in page.splitlines():
        text = line.strip()
        if re.match(r"  (--?[a-z]|[A-Z]+( \[\.{3}\])?  |\{)", line):
            name, _, text = text.partition("  ")
            found[name] = text.strip()
        elif line.startswith("   ") and text and name:  # the rest of what is said of it
            found[name] = f"{found[name]} {text}".strip()
    return {name: re.sub(r"\s*\((default: .*|required)\)$", "", text) for name, text in found.items()}


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "doctor"])
def test_every_command_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each of its options, those of a planner or of a training run included."""
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit_:
        cli.main([*name.split(), "--help"])
    out = capsys.readouterr().out
    assert exit_.value.code == 0 and f"sgp-fast {name}" in out
    options = told(out)
    settings = {"train": TrainConfig, "plan": sgp.SGP, "evaluate": sgp.SGP}.get(name)
    parameters = signature(getattr(import_module(f"sgp_fast.{cli.COMMANDS[name][1]}"), cli.COMMANDS[name][2])).parameters
    assert len(options) == 1 + len(parameters) + (len(dataclasses.fields(settings)) - 1 if settings else 0)
    assert [option for option, text in options.items() if not re.search(r"[a-z]{2} [a-z]", text)] == []


@pytest.mark.parametrize("kind", [sgp.SGP, sgp.CEM, sgp.MPPI, TrainConfig])
def test_the_docstring_of_settings_tells_each_of_them(
    kind: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the form that the command line reads, whether or not a command takes them yet."""
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit), cli.tables(tyro):
        tyro.cli(kind, args=["--help"])
    options = told(capsys.readouterr().out)
    assert len(options) == 1 + len([field for field in dataclasses.fields(kind) if field.init])
    assert [option for option, text in options.items() if not re.search(r"[a-z]{2} [a-z]", text)] == []


def test_doctor_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--help"]) == 0
    assert "\n  --json  Print the report as JSON.\n" in capsys.readouterr().out
    assert cli.main(["doctor", "--x"]) == 2
    assert capsys.readouterr().err == "sgp-fast: error: doctor takes --json and nothing else; got --x\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("profile --problems -1", "problems is -1; expected at least 1"),
        ("profile --width 0", "width is 0; expected at least 1"),
        ("bench run --problem run --problems 0", "problems is 0; expected at least 1"),
        ("bench run --problem nowhere", "nowhere does not exist; expected the folder of a training run"),
        ("bench run --resume", "--resume needs --out, the file to go on with"),
        ("bench static --arch 70", "--arch 70 is not known; expected some of 80, 90, 100"),
        ("bench static --arch 80 --only relay_kernel",
         "--only 'relay_kernel' is in no name of a kernel for --arch 80; it is in some for --arch 90, 100"),
        ("bench static --arch 90 --only zzz", "--only 'zzz' is in no name of a kernel; --names shows them"),
    ],
)
def test_measuring_is_refused_before_any_work(
    words: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sgp_fast.bench import ceilings

    monkeypatch.setattr(ceilings, "measure", lambda *_: pytest.fail("measured"))
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sgp-fast: error: {told}") and error.count("\n") == 1


@pytest.mark.parametrize("command", ["report", "validate"])
def test_help_says_that_several_files_may_be_given(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", command, "--help"])
    assert "FILE [...]" in capsys.readouterr().out.splitlines()[0]


def test_doctor_needs_no_optional_library() -> None:
    block = "import sys\nfor name in ('tyro', 'rich', 'tqdm', 'gymnasium'):\n    sys.modules[name] = None\n"
    done = shell("doctor", "--json", code=block + RUN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["sgp_fast"] == sgp.__version__
    done = shell("train", code=block + RUN)
    assert done.returncode == 2
    assert done.stderr == (
        'sgp-fast: error: this needs tyro, which is not installed; run: pip install "sgp-fast[cli]"\n'
    )


def test_errors_are_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["fly"], ["data", "shred"], ["plan", str(tmp_path), "a.npy", "b.npz"], ["evaluate", "x", "--config", "no.toml"]
    for words in wrong:
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("sgp-fast: error: ") and err.count("\n") == 1 and "Traceback" not in err
    done = shell("plan", str(tmp_path), "a.npy", "b.npz", SGP_FAST_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr and "FileNotFoundError" in done.stderr
    with pytest.raises(SystemExit) as exit_:
        cli.main(["evaluate", "--episodes", "many", "x"])
    assert exit_.value.code == 2


def test_an_interruption_is_told_with_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stop)
    for words, rest in (
        ("train d r", "; to go on, run the same command again"),
        ("plan r s o --no-resume", "; to go on, run the same command again, without --no-resume"),
        ("evaluate r", ""),
    ):
        assert cli.main(words.split()) == 130
        assert capsys.readouterr().err == f"sgp-fast: interrupted{rest}\n"


def test_settings_come_from_options_and_from_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").write_text("[planner]\nhorizon = 3\niterations = 2\nbeta = [0.3, 0.1]\nlevels = [2]\n")
    (tmp_path / "p.json").write_text('{"horizon": 3, "iterations": 2, "beta": [0.3, 0.1], "levels": [2]}')
    want = sgp.SGP(3, 2, step_size=DEFAULT.step_size, beta=(0.3, 0.1), levels=(2,))
    assert read_settings(tmp_path / "p.toml") == read_settings(tmp_path / "p.json") == want

    def planner(*options: str) -> dict:
        out = tmp_path / "e.json"
        assert cli.main(["evaluate", str(run), "--episodes", "1", "--steps", "2", "--out", str(out), *options]) == 0
        return json.loads(out.read_text())["planner"]

    got = planner("--config", str(tmp_path / "p.toml"), "--planner.iterations", "5")
    assert (got["horizon"], got["iterations"], got["beta"], got["levels"]) == (3, 5, [0.3, 0.1], [2])
    got = planner("--planner.horizon", "2", "--planner.beta", "0.5", "--planner.step-size", "0.2", "0.1")
    assert (got["horizon"], got["beta"], got["step_size"]) == (2, 0.5, [0.2, 0.1])
    assert planner("--planner.levels", "1", "--planner.iterations", "2")["levels"] == 1
    assert planner("--planner.levels", "1", "2", "--planner.iterations", "2")["levels"] == [1, 2]
    assert planner()["iterations"] == DEFAULT.iterations
    capsys.readouterr()

    (tmp_path / "bad.toml").write_text("horizont = 3\n")
    assert cli.main(["evaluate", str(run), f"--config={tmp_path / 'bad.toml'}"]) == 2
    assert "horizont is no setting of the planner" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{")
    assert cli.main(["evaluate", str(run), "--config", str(tmp_path / "bad.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        cli.main(["evaluate", str(run), "--planner.iterations", "0"])
    assert exit_.value.code == 2
    assert "SGP.iterations is 0" in capsys.readouterr().err


def test_evaluate_writes_what_it_prints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run), "--episodes", "2", "--steps", "3", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    data = json.loads((run / "evaluation-Hopper-v5.json").read_text())
    assert data["seeds"] == [4, 5] and data["backend"] in ("eager", "compiled")
    assert f"{data['return']['mean']:.1f}" in out
    loaded = sgp.load_models(run)
    problem = sgp.Problem(dynamics=loaded.dynamics, cost=loaded.cost, score=loaded.score, bounds=(-1.0, 1.0))
    want = sgp.evaluate(sgp.MPC(problem, DEFAULT, 2, seed=4), "Hopper-v5", episodes=2, steps=3, seeds=4)
    assert np.allclose(data["returns"], want.returns, rtol=1e-5)
    assert cli.main(["evaluate", str(run), "--env", "Hoper-v5"]) == 2
    assert "gymnasium cannot make 'Hoper-v5'" in capsys.readouterr().err


def test_plan_writes_what_solve_plans(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x0 = np.random.default_rng(0).normal(size=(9, 11))
    np.save(tmp_path / "x.npy", x0)
    words = ["plan", str(run), str(tmp_path / "x.npy"), str(tmp_path / "p.npz"), "--seed", "3", "--chunk", "4", "--states"]
    assert cli.main(words) == 0
    assert "9 plans; " in capsys.readouterr().out
    loaded = sgp.load_models(run)
    problem = sgp.Problem(dynamics=loaded.dynamics, cost=loaded.cost, score=loaded.score, bounds=(-1.0, 1.0))
    with np.load(tmp_path / "p.npz") as got:
        assert np.allclose(got["u"], sgp.solve(problem, DEFAULT, x0, seed=3).u, atol=1e-4) and got["x"].shape == (9, 9, 11)
    assert cli.main(words) == 0
    assert "9 of them before this run" in capsys.readouterr().out
    assert cli.main([*words, "--planner.beta", "2"]) == 2
    assert "holds the plans of another run" in capsys.readouterr().err


def test_help_calls_arguments_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for words, names in (("plan", "RUN STARTS OUT"), ("train", "DATA OUT"), ("data convert", "SOURCE TARGET")):
        with pytest.raises(SystemExit):
            cli.main([*words.split(), "--help"])
        assert capsys.readouterr().out.splitlines()[0].endswith(f"] {names}")


def test_what_is_no_run_is_told_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(run: Path) -> str:
        assert cli.main(["evaluate", str(run)]) == 2
        return capsys.readouterr().err

    nowhere, bare, unfinished, notes = (tmp_path / name for name in ("nowhere", "bare", "unfinished", "notes.txt"))
    bare.mkdir()
    (unfinished / "checkpoints").mkdir(parents=True)
    notes.write_text("no run")
    assert f"does not exist; train one: sgp-fast train DATA {nowhere}" in error(nowhere)
    assert f"train one: sgp-fast train DATA {bare}" in error(bare)
    assert "training is unfinished; run train again" in error(unfinished)
    assert "is no run of training; expected its folder" in error(notes)


def test_evaluate_wants_an_environment_that_fits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*options: str) -> str:
        assert cli.main(["evaluate", str(run), *options]) == 2
        return capsys.readouterr().err

    assert "CartPole-v1 has the action space Discrete(2); expected a Box" in error("--env", "CartPole-v1")
    told = error("--env", "HalfCheetah-v5")
    assert "HalfCheetah-v5 has 17 observations and 6 actions; the models have 11 and 3, of Hopper-v5" in told
    assert "seed is -1; expected 0 or more" in error("--seed", "-1")
    assert "episodes is 0; expected at least 1" in error("--episodes", "0")
    assert "batch_size is 0; expected at least 1" in error("--batch-size", "0")
    assert "'Hopper-v2'" in (told := error("--env", "Hopper-v2")) and "give Hopper-v5" in told

    short = ["evaluate", str(run), "--episodes", "1", "--steps", "1", "--planner.iterations", "1"]
    assert cli.main([*short, "--env", "Hopper-v4"]) == 0
    warning = "sgp-fast: warning: the models were trained on data of Hopper-v5, not of Hopper-v4\n"
    assert warning in capsys.readouterr().err
    assert cli.main([*short, "--env", "Hopper"]) == 0, "the newest, which is that of the data"
    assert "warning" not in capsys.readouterr().err.lower() and (run / "evaluation-Hopper-v5.json").is_file()


def test_from_data_to_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, home, plans = (str(tmp_path / name) for name in ("d.hdf5", "run", "p.parquet"))
    assert cli.main(["data", "make", "hopper", "random", "--transitions", "600", "--output", data]) == 0
    assert cli.main(["data", "info", data]) == 0
    assert cli.main(["data", "convert", data, str(tmp_path / "d.npz")]) == 0
    small = ["--config.steps", "4", "--config.width", "8", "--config.evaluate-every", "2", "--config.batch-size", "32"]
    assert cli.main(["train", data, home, *small]) == 0
    np.save(tmp_path / "x.npy", sgp.load_dataset(data).observations[:5])
    assert cli.main(["plan", home, str(tmp_path / "x.npy"), plans]) == 0
    assert cli.main(["evaluate", home, "--episodes", "2", "--steps", "3"]) == 0
    assert "600" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "evaluation-Hopper-v5.json").read_text())["lengths"] == [3, 3]
