"""`sgp-fast bench …`: the functions behind the commands, typed so that the command line is made of them."""

from __future__ import annotations

from pathlib import Path

from . import records, run, sweep, tables
from .cases import Device, device_of
from .rungs import RUNGS


def run_command(
    minutes: float = 5.0,
    out: Path | None = None,
    cases: tuple[str, ...] = (),
    rungs: tuple[str, ...] = (),
    problem: Path | None = None,
    problems: int = 64,
    device: Device = "auto",
    cold_costs: bool = False,
    resume: bool = False,
) -> None:
    """Measure the ladder of planners: every rung is held against float64 before it is timed. Prints a table.

    Args:
        minutes: How long it may take, but for --cases and --cold-costs; what fits is chosen, the published cases first.
        out: Record the rows here, as JSON lines.
        cases: Measure these instead, all of them: problems x width, like 64x256, or 64x256:T16:100:bfloat16.
        rungs: Only these rungs.
        problem: Your own instead of the published networks: a training run's folder, or a Python file that builds a Problem.
        problems: How many start states of your own problem.
        device: Where to plan; auto takes the GPU where there is one.
        cold_costs: Measure import, first plan and what it takes to pay them back, too; each rung in a process of its own.
        resume: Go on with the file that --out names.
    """
    settings = run.Settings(minutes, device_of(device), cases, problem, problems, rungs or tuple(RUNGS), cold_costs)
    rows = run.run(settings, out, resume=resume, say=_say)
    print(f"\n{records.Results(records.header('run'), tuple(rows)).where}\n\n{tables.text(rows)}")
    if out is not None:
        print(f"written to {out}")


def compare_command(
    a: str,
    b: str,
    cases: tuple[str, ...] = ("1x256", "64x256"),
    backend: str = "auto",
    minutes: float = 2.0,
) -> None:
    """Compare two result files, or two commits that plan in turns in one run.

    Args:
        a: A file of results, or a commit.
        b: Another of the same kind.
        cases: For commits: what they plan, problems x width, like 64x256, or 64x256:bfloat16.
        backend: For commits: how they plan.
        minutes: For commits: how long both plan together.
    """
    from . import compare

    if Path(a).is_file() != Path(b).is_file():
        raise ValueError(f"{a!r} and {b!r} are not of one kind; expected two files of results, or two commits")
    if Path(a).is_file():
        print(compare.files(Path(a), Path(b)))
        return
    for text in cases:
        spec = sweep.parse(text)
        if (spec.horizon, spec.iterations) != (sweep.Spec.horizon, sweep.Spec.iterations):
            raise ValueError(f"case {text!r} is not T = 8 with 50 iterations, which is what commits plan; leave that out")
    print(compare.table(compare.commits(a, b, cases, backend, 60 * minutes, say=_say)))


def report_command(files: tuple[Path, ...], out: Path = Path("bench.html")) -> None:
    """Write one self-contained HTML page of result files.

    Args:
        files: What `bench run`, `bench quality` and `profile` recorded.
        out: The page.
    """
    from . import page

    if not files:
        raise ValueError("no file is given; expected files of results, as `sgp-fast bench run --out` writes")
    page.write(files, out)
    print(f"written to {out}")


def validate_command(files: tuple[Path, ...]) -> None:
    """Hold result files to their schema; exits 1 where one breaks it.

    Args:
        files: Files of results.
    """
    if not files:
        raise ValueError("no file is given; name one or more that bench run, bench quality or profile recorded")
    broken = 0
    for path in files:
        try:
            found = records.read(path)
            print(f"{path}: {len(found.rows)} rows; {found.where}")
        except (ValueError, OSError) as why:
            broken += 1
            print(why)
    if broken:
        raise SystemExit(1)


def static_command(
    arch: tuple[int, ...] = (80, 90, 100), only: str = "", names: bool = False, out: Path | None = None, check: bool = False
) -> None:
    """What the compiler makes of every kernel, without a GPU: registers, spills, shared memory, instructions.

    Args:
        arch: Architectures to compile for: 80, 90, 100.
        only: Kernels whose name has this in it.
        names: Print the names of all kernels and compile none.
        out: Record the rows here.
        check: Exit 1 where a limit is broken.
    """
    from . import static

    if unknown := sorted(set(arch) - set(static.CHIPS)):
        raise ValueError(f"--arch {unknown[0]} is not known; expected some of {', '.join(map(str, static.CHIPS))}")
    arguments = ["--arch", *map(str, arch), "--only", only, *["--names"] * names, *["--check"] * check]
    if (status := static.main(arguments + (["--json", str(out)] if out else []))) != 0:
        raise SystemExit(status)


def memory_command() -> None:
    """Peak memory against the number of problems, each in a process of its own."""
    from . import memory

    print(memory.table(memory.run()))


def _say(text: str) -> None:
    print(text, flush=True)
