"""The `sgp-fast` command. What a subcommand needs is imported when it runs, so that help and doctor need next to nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

# Command → what it does, and the module and function behind it.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("make data, train, plan, evaluate, and write a report", "cli_demo", "demo"),
    "data make": ("record a data set with the carried policies", "data.commands", "make"),
    "data info": ("show episodes, lengths and returns of a data set", "data.commands", "info"),
    "data convert": ("convert a data set to another format", "data.commands", "convert"),
    "train": ("train dynamics, score and cost on a data set", "commands", "train_command"),
    "plan": ("plan from every start state of a file", "commands", "plan_command"),
    "evaluate": ("control an environment by planning, and report the returns", "commands", "evaluate_command"),
    "profile": ("show where the time of a plan goes", "bench.profiling", "profile_command"),
    "bench run": ("measure the ladder of planners on this machine", "bench.commands", "run_command"),
    "bench compare": ("compare two result files, or two commits in one run", "bench.commands", "compare_command"),
    "bench report": ("write a page of result files", "bench.commands", "report_command"),
    "bench quality": ("measure returns by backend, dtype and budget", "bench.quality", "quality_command"),
    "bench memory": ("measure memory against the number of problems", "bench.commands", "memory_command"),
    "bench static": ("show what the compiler makes of the kernels", "bench.commands", "static_command"),
    "bench validate": ("hold result files to their schema", "bench.commands", "validate_command"),
    "doctor": ("show versions, devices and which backends can run here", "doctor", "report"),
}

# Those that take up what they did before they were stopped.
RESUMABLE = ("demo", "train", "plan")

# What a user can mend; anything else is our mistake, and shows where it happened.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, or 2 where the user's input was at fault.

    Errors are one line on stderr; `SGP_FAST_DEBUG=1` shows the whole traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(argv)
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"sgp-fast: interrupted{_how_to_go_on(argv)}", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if os.environ.get("SGP_FAST_DEBUG", "0") not in ("", "0"):
            raise
        print(f"sgp-fast: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2


def usage(group: str = "") -> str:
    """The list of commands, or of those of a group."""
    names = [name for name in COMMANDS if name.startswith(group)]
    width = max(map(len, names))
    lines = [f"usage: sgp-fast {group + ' ' if group else ''}COMMAND [options]", ""]
    if not group:
        lines += ["Score-guided planning: plan near the data with a learned score, thousands of plans at once.", ""]
    lines += [f"  {name:<{width}}  {COMMANDS[name][0]}" for name in names]
    return "\n".join([*lines, "", "sgp-fast COMMAND --help shows the options of a command; sgp-fast --version the version."])


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(import_module("sgp_fast._version").__version__)
        return 0
    words = 2 if any(name.startswith(argv[0] + " ") for name in COMMANDS) else 1
    name, rest = " ".join(argv[:words]), argv[words:]
    if words == 2 and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        print(usage(argv[0]))
        return 0
    if name not in COMMANDS:
        known = [known for known in COMMANDS if words == 1 or known.startswith(argv[0] + " ")]
        raise ValueError(f"{name!r} is no command; expected one of {', '.join(known)}")
    if name == "doctor":
        return _doctor(rest)
    _, module, function = COMMANDS[name]
    tyro = import_module("sgp_fast._optional").require("tyro", extra="cli")
    found: Callable[..., Any] = _with_names(tyro, getattr(import_module(f"sgp_fast.{module}"), function))
    settings = _option(rest, "--config") if name in ("plan", "evaluate") else None
    if settings is not None:  # they become the defaults, so that options of the command line come before them
        found = partial(found, planner=import_module("sgp_fast.commands").read_settings(settings))
    with tables(tyro):
        tyro.cli(found, prog=f"sgp-fast {name}", args=rest, config=(tyro.conf.PositionalRequiredArgs,))
    return 0


def _with_names(tyro: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with required arguments that help calls by name, RUN or FILE [...], rather than by type, PATH.

    Choices stay listed.
    """

    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    types, shape = get_type_hints(function), signature(function)
    for name, parameter in shape.parameters.items():
        if parameter.default is Parameter.empty and get_origin(types[name]) is not Literal:
            many = get_origin(types[name]) is tuple
            word = f"{name.upper().removesuffix('S')} [...]" if many else name.upper()
            types[name] = Annotated[types[name], tyro.conf.arg(metavar=word)]
    # Not by way of functools.wraps: tyro would look through it and see the function itself.
    call.__name__, call.__doc__, call.__annotations__ = function.__name__, function.__doc__, types
    parameters = [parameter.replace(annotation=types[name]) for name, parameter in shape.parameters.items()]
    setattr(call, "__signature__", shape.replace(parameters=parameters))  # noqa: B010
    return call


def tables(tyro: Any) -> Any:
    """How options that hold a table are written: one number is a constant, several are a pair or a table."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: Any) -> Any:
        choices = get_args(info.type)
        tables = [choice for choice in choices if get_origin(choice) is Sequence]
        if not tables:
            return None
        (number,) = get_args(tables[0])

        def read(words: list[str]) -> Any:
            if words == ["None"] and type(None) in choices:
                return None
            values = tuple(map(number, words))
            return values[0] if number in choices and len(values) == 1 else values

        def write(value: Any) -> list[str]:
            return [str(item) for item in (value if isinstance(value, tuple) else (value,))]

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"{number.__name__.upper()} [...]",
            instance_from_str=read,
            is_instance=lambda value: value is None or isinstance(value, (int, float, tuple)),
            str_from_instance=write,
        )

    return registry


def _how_to_go_on(argv: list[str]) -> str:
    """What to do after an interruption, where a command takes up what it did before."""
    if not argv or argv[0] not in RESUMABLE:
        return ""
    return "; to go on, run the same command again" + (", without --no-resume" if "--no-resume" in argv else "")


def _option(args: list[str], name: str) -> Path | None:
    """The value of an option, looked up before the command line is parsed."""
    for i, word in enumerate(args):
        if word.startswith(f"{name}="):
            return Path(word.removeprefix(f"{name}="))
        if word == name and i + 1 < len(args):
            return Path(args[i + 1])
    return None


def _doctor(rest: list[str]) -> int:
    """Reports on this installation; needs nothing that may be missing, the command line's own library included."""
    if rest in (["-h"], ["--help"]):
        print("usage: sgp-fast doctor [--json]\n\nShow versions, devices and which backends can run here.\n")
        print("  --json  Print the report as JSON.")
        return 0
    if rest not in ([], ["--json"]):
        raise ValueError(f"doctor takes --json and nothing else; got {' '.join(rest)}")
    doctor = import_module("sgp_fast.doctor")
    report = doctor.report()
    print(import_module("json").dumps(report, indent=2) if rest else doctor.format_report(report))
    return 0
