"""Who may import whom, read from the source, and what `import sgp_fast` loads, read from a fresh interpreter."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sgp_fast
from sgp_fast._optional import LIBRARIES

ROOT = Path(__file__).parents[1]
OPTIONAL = {library.module for library in LIBRARIES} | {"lightning", "gym"}
TRITON_FREE = ("reference.py", "network.py", "tiling.py", "draws_ref.py", "grid/phases.py")


def sources(folder: str) -> Iterator[Path]:
    """The Python files under a folder of the checkout; links are not followed, so that each file counts once."""
    for top, _, files in os.walk(ROOT / folder):
        yield from (Path(top) / name for name in sorted(files) if name.endswith(".py"))


def package(path: Path) -> tuple[str, ...]:
    """The installed package that a file belongs to: kernels/ and bench/ live inside sgp_fast."""
    parts = path.relative_to(ROOT).parts[:-1]
    return ("sgp_fast", *parts) if parts and parts[0] in ("kernels", "bench") else parts


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Each import of a file: the full name of what is imported, whether it runs with the module, and its line.

    Relative imports are resolved; `from a import b` gives `a.b`, as `b` may be a module. An import inside a function
    or under `if TYPE_CHECKING:` does not run with the module.
    """

    def visit(node: ast.AST, runs: bool) -> Iterator[tuple[str, bool, int]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, runs, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package(path)[: len(package(path)) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", runs, node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, runs)
        else:
            inside = runs and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def violations(folder: str, forbidden, only: tuple[str, ...] = ()) -> list[str]:
    """`file:line imports name` for each import under a folder that `forbidden(name, runs)` says must not be there."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(folder)
        if not only or path.relative_to(ROOT / folder).as_posix() in only
        for name, runs, line in imports(path)
        if forbidden(name, runs)
    ]


def test_the_reader_of_imports_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "kernels" / "one.py"
    path.parent.mkdir()
    path.write_text(
        "import a.b\n"
        "from ..models import c\n"
        "from . import reference\n"
        "if TYPE_CHECKING:\n    import typed\n"
        "try:\n    import tried\nexcept ImportError:\n    pass\n"
        "class A:\n    import inner\n    def f(self):\n        import late\n"
    )
    assert list(imports(path)) == [
        ("a.b", True, 1),
        ("sgp_fast.models.c", True, 2),
        ("sgp_fast.kernels.reference", True, 3),
        ("typed", False, 5),
        ("tried", True, 7),
        ("inner", True, 11),
        ("late", False, 13),
    ]


def test_kernels_import_nothing_of_sgp_fast() -> None:
    assert not violations(
        "kernels", lambda name, runs: is_in(name, "sgp_fast") and not is_in(name, "sgp_fast.kernels")
    )


def test_kernels_import_themselves_relatively_only() -> None:
    absolute = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("kernels")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.level == 0 and is_in(node.module or "", "sgp_fast"))
        or (isinstance(node, ast.Import) and any(is_in(alias.name, "sgp_fast") for alias in node.names))
    ]
    assert not absolute


def test_plain_kernels_need_no_triton() -> None:
    assert not violations("kernels", lambda name, runs: is_in(name, "triton"), only=TRITON_FREE)


@pytest.mark.parametrize("folder", ["sgp_fast", "kernels", "bench", "tests"])
def test_nobody_imports_kernels_or_bench_by_their_bare_name(folder: str) -> None:
    """A bare name would load the same file a second time, with classes that are not the same."""
    assert not violations(folder, lambda name, runs: is_in(name, "kernels") or is_in(name, "bench"))


def test_sgp_fast_imports_neither_bench_nor_tests() -> None:
    """Only the command line reaches for the benchmarks, when it is asked to run them."""
    assert not violations("sgp_fast", lambda name, runs: is_in(name, "tests"))
    found = violations("sgp_fast", lambda name, runs: is_in(name, "sgp_fast.bench") and runs)
    late = violations("sgp_fast", lambda name, runs: is_in(name, "sgp_fast.bench") and not runs)
    assert not found and all(line.startswith("sgp_fast/cli") for line in late), found + late


@pytest.mark.parametrize("folder", ["sgp_fast", "kernels"])
def test_optional_libraries_load_only_when_used(folder: str) -> None:
    assert not violations(folder, lambda name, runs: runs and name.partition(".")[0] in OPTIONAL)


def test_triton_is_the_kernels_business() -> None:
    assert not violations("sgp_fast", lambda name, runs: is_in(name, "triton"))


@pytest.mark.parametrize("name", sgp_fast.__all__)
def test_each_public_name_resolves(name: str) -> None:
    value = getattr(sgp_fast, name)
    assert name in dir(sgp_fast)
    if name in sgp_fast._HOME:
        assert getattr(importlib.import_module(f"sgp_fast.{sgp_fast._HOME[name]}"), name) is value


def test_the_lists_of_public_names_agree() -> None:
    """`__all__` for users, the table for loading, the typed imports for type checkers."""
    typed = {name for name, runs, _ in imports(ROOT / "sgp_fast" / "__init__.py") if not runs}
    assert typed == {f"sgp_fast.{home}.{name}" for name, home in sgp_fast._HOME.items()}
    assert set(sgp_fast.__all__) == {*sgp_fast._HOME, "__version__"}
    assert not {"Any", "TYPE_CHECKING", "annotations", "import_module"} & set(dir(sgp_fast))
    with pytest.raises(AttributeError, match="no attribute 'Planner'"):
        sgp_fast.__getattr__("Planner")


def fresh(code: str) -> str:
    """What a fresh interpreter prints for some code; its errors fail the test."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_no_library_at_all() -> None:
    heavy = sorted({"torch", "triton", "numpy", *OPTIONAL})
    loaded = fresh(f"import sys, sgp_fast; print([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_the_planners_names_load_no_compiler() -> None:
    code = "import sys, sgp_fast as sgp; sgp.solve, sgp.SGP, sgp.Problem, sgp.MPC; "
    code += "print([name for name in ('torch._dynamo', 'torch._inductor', 'triton') if name in sys.modules])"
    assert fresh(code).strip() == "[]"


SOLVE = """
import torch
import sgp_fast as sgp

torch.manual_seed(0)
nx, nu = 3, 2
normalizer = sgp.Normalizer(b=torch.zeros(nx + nu), k=torch.ones(nx + nu))
spec = sgp.NetworkSpec(inputs=nx + nu, layers=(sgp.Layer(16, "tanh"), sgp.Layer(nx)))
problem = sgp.Problem(
    dynamics=sgp.Dynamics(sgp.Network(spec, seed=0), normalizer),
    cost=sgp.QuadraticCost(Q=torch.eye(nx), R=0.1 * torch.eye(nu)),
    bounds=(-1.0, 1.0),
)
plan = sgp.solve(problem, sgp.SGP(horizon=4, iterations=3, step_size=0.1), torch.randn(5, nx), seed=0, backend="eager")
assert plan.u.shape == (5, 4, nu) and plan.x.shape == (5, 5, nx)
assert torch.isfinite(plan.u).all() and plan.u.abs().max() <= 1.0
print("planned")
"""


def test_planning_with_arrays_needs_no_optional_library() -> None:
    block = f"import sys\nfor name in {sorted(OPTIONAL)}:\n    sys.modules[name] = None\n"
    assert fresh(block + SOLVE).strip() == "planned"
