"""The native engine is built once, whole or not at all, and reads weights as they were packed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgp_fast.kernels import cpu
from sgp_fast.kernels.cpu import build
from sgp_fast.kernels.cpu.pack import pack_integers
from sgp_fast.kernels.network import Layer, NetworkSpec, mlp, qsm_actor, srpo_behavior

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
BUILD = "from sgp_fast.kernels.cpu import engine; made = engine(); print(made.path, made.lanes, made.seconds > 0)"


@pytest.mark.parametrize("products", ["fp32", "bf16", "bf16x6"])
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 1, 16), (23, 17, 16), (70, 130, 64), (64, 64, 32)])
def test_panels_hold_the_matrix(products: cpu.Products, rows: int, columns: int, width: int) -> None:
    """Unpacked by the rule in products.h, the planes add up to the matrix, and the padding is zero."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    panels = cpu.pack(matrix, products, width)
    if products == "fp32":
        whole = panels.permute(1, 0, 2).reshape(rows, -1)
    else:
        planes, count, pairs, _, _ = panels.shape
        assert planes == (1 if products == "bf16" else 3) and pairs % 16 == 0 and count * width % 32 == 0
        whole = panels.double().sum(0).permute(1, 3, 0, 2).reshape(2 * pairs, -1)
    assert not whole[rows:].any() and not whole[:, columns:].any()
    error = (whole[:rows, :columns].double() - matrix.double()).abs() / matrix.double().abs()
    assert error.max() <= {"fp32": 0, "bf16": 2**-8, "bf16x6": 2**-24}[products]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (23, 70), (300, 130)])
def test_whole_numbers_hold_the_matrix(rows: int, columns: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    matrix[:, columns // 2] = 0
    made = pack_integers(matrix, 64)
    assert made is not None
    three, scale = made
    count = -(-columns // 64)
    words = torch.nn.functional.pad(three[: rows * count * 64 * 3].view(-1, 3), (1, 0)).flatten().view(torch.int32)
    whole = words.view(count, rows, 64).permute(1, 0, 2).reshape(rows, -1).double() * scale.double()
    assert three.numel() == rows * count * 64 * 3 + 16 and not three[-16:].any() and not whole[:, columns:].any()
    largest = matrix.double().abs().amax(0)
    assert ((whole[:, :columns] - matrix).abs() <= 1.001 * 2**-24 * largest).all()


@pytest.mark.parametrize("value", [100.0, float("inf"), float("nan"), 1e-44])
def test_no_whole_numbers_where_they_would_lose(value: float) -> None:
    """A weight far above the others of its column, one that is no number, a column of subnormal ones."""
    matrix = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    matrix[7 if value > 1 else slice(None), 3] = value
    assert pack_integers(matrix, 64) is None


def test_what_is_covered() -> None:
    assert cpu.uncovered(mlp(5, 3, norm=True)) is None
    assert cpu.uncovered(mlp(5, 3, norm=True, levels=4), table=True) is None
    assert "own table" in str(cpu.uncovered(mlp(5, 3, levels=4)))
    assert "own table" in str(cpu.uncovered(NetworkSpec(3, (Layer(3, condition="add"),)), table=True))
    assert "blocks" in str(cpu.uncovered(NetworkSpec(3, srpo_behavior(3, 3).layers)))
    assert "time embedding" in str(cpu.uncovered(qsm_actor(3, 2)))


@needs_compiler
def test_structures_are_those_of_the_library() -> None:
    cpu.check_layout(cpu.load())


@needs_compiler
def test_two_processes_build_at_once_and_the_next_finds_it(tmp_path: Path) -> None:
    environment = os.environ | {"SGP_FAST_HOME": str(tmp_path)}

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", BUILD], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )

    both = [begin(), begin()]
    outputs = [process.communicate()[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    assert outputs[0][:2] == outputs[1][:2] and outputs[0][0].startswith(str(tmp_path / "native"))
    assert sorted(path.name for path in (tmp_path / "native").rglob("*") if path.is_file()) == ["engine.so"]
    assert begin().communicate()[0].split() == [*outputs[0][:2], "False"]


@needs_compiler
def test_the_name_tells_sources_compiler_and_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = build.compiler()
    assert command is not None
    name = build._name(command, "-march=native")
    assert name == build._name(command, "-march=native") != build._name(command, "-march=x86-64")
    assert name != build._name([*command, "-g"], "-march=native")
    for path in build.SOURCES.glob("*.[ch]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert name == build._name(command, "-march=native")
    (tmp_path / "simd.h").write_text("// another\n")
    assert name != build._name(command, "-march=native")


@needs_compiler
def test_a_compiler_that_fails_is_a_reason_and_is_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho run >> \"$0.log\"\necho 'plan.cpp:1: error: no such machine' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("SGP_FAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(build, "engine", build.engine.__wrapped__)
    monkeypatch.setattr(build, "_failure", lambda kept=[]: kept)  # noqa: B006 (one list for this test)
    assert build.why_unavailable() is None
    for _ in range(2):
        with pytest.raises(cpu.BuildError, match="could not compile the native engine: plan.cpp:1: error: no such machine"):
            build.load()
    tries = (tmp_path / "broken.log").read_text().count("run")
    with pytest.raises(cpu.BuildError):
        build.load()
    assert (tmp_path / "broken.log").read_text().count("run") == tries
    assert "no such machine" in str(build.why_unavailable())


def test_without_a_compiler_the_reason_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "install g++ or clang++, or set CXX" in str(cpu.why_unavailable())
    with pytest.raises(cpu.BuildError, match="no C\\+\\+ compiler was found"):
        build.engine.__wrapped__()
