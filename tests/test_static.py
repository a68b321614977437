"""Kernels compiled ahead of time keep their limits: no spill, shared memory, asynchronous copies, matrix instructions.

Tests here run with Triton's interpreter, which compiles nothing; so each compiles in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton has wheels for Linux only")

from sgp_fast.bench.offline import COUNTED, compiling
from sgp_fast.bench.rows import KernelRow
from sgp_fast.bench.static import (
    CHIPS,
    RELAY_STACK,
    RELAYS,
    RING_STACK,
    RINGS,
    TRACED_RELAYS,
    TRACED_RINGS,
    broken,
    launches,
    table,
)
from sgp_fast.kernels.tiling import Tile

ROOT = Path(__file__).parents[1]
COUNTS = dict.fromkeys(COUNTED, 0)
GROUPED = COUNTS | {"HGMMA": 287, "WARPGROUP.ARRIVE": 150, "LDGSTS": 808, "UTMALDG": 74}
FINE = KernelRow(
    kernel="plan_kernel", network="SGP 4×256", dtype="bf16", arch=90, tile=Tile(64, 256, 32), warps=8, registers=255,
    stack=0, spills=0, shared=61440, tensor_memory=0, instructions=GROUPED, resident=1,
    flops_us=3.0, bytes_us=12.0, compile_s=20.0,
)  # fmt: skip

# What a launch becomes: nothing new for the same kernel, a new one where an argument changes its kind, and a driver that is
# what it was, after an error too.
BINDER = """
import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from sgp_fast.bench.offline import compiling
from sgp_fast.kernels.layered.pointwise import Condition, Kept, Streams, Vectors, finish_forward

def launch(h):
    y, none = torch.empty_like(h), (Vectors(), Condition(), Condition(), Streams(), Kept())
    finish_forward(h, y, *none, "none", "elu", "none", 64, 0)

before, run = driver._active, JITFunction.run
h = torch.zeros(65, 64)
for arch, expected in ((90, 2), (80, 2), (90, 2)):
    with compiling(arch) as made:
        for rows in (h, h[:2], h.flatten()[1:-63].view(64, 64)):
            launch(rows)
    assert len(made) == expected, (arch, [m.constants for m in made])
    for m in made:
        assert m.name == "finish_forward_kernel" and m.arch == arch and m.warps == 8
        assert 8 < m.registers < 128 and m.stack == m.spills == 0 and m.instructions["FFMA"] > 0
    assert made[0].bytes == 2 * h.numel() * 4
    assert driver._active is before and JITFunction.run is run
try:
    with compiling(90):
        raise ValueError
except ValueError:
    assert driver._active is before and JITFunction.run is run
"""

# Device functions, and constants of modules that they read.
CONSTANTS = """
from importlib import import_module
from pkgutil import walk_packages
from triton.runtime.jit import JITCallable
from sgp_fast import kernels

functions = {}
for module in walk_packages(kernels.__path__, "sgp_fast.kernels."):
    found = vars(import_module(module.name)).values()
    functions |= {f"{f.__module__}.{f.__qualname__}": f for f in found if isinstance(f, JITCallable)}
assert len(functions) > 100, len(functions)
for name, function in functions.items():
    function.cache_key
    for (constant, _), (value, _) in function.used_global_vals.items():
        if not isinstance(value, type):
            print(name, constant)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process in which kernels are compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def check(folder: Path, *arguments: str) -> list[dict]:
    """Rows of `python -m bench.static --check`, which must find no broken limit."""
    file = folder / "rows.jsonl"
    done = python("-m", "bench.static", "--check", "--json", str(file), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def test_launches_become_compilations_and_the_driver_stays() -> None:
    done = python("-c", BINDER)
    assert done.returncode == 0, done.stderr


def test_no_device_code_reads_a_constant_of_its_module() -> None:
    """Compiled kernels would be looked for by keys that do not hold it, or that depend on what was hashed before."""
    done = python("-c", CONSTANTS)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_interpreted_kernels_are_refused() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is a GPU: kernels are not interpreted")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), compiling(90):
        pass


def test_each_broken_limit_is_named() -> None:
    assert broken(FINE) == []
    assert "8 bytes of stack" in " ".join(broken(replace(FINE, stack=8)))
    assert "local loads" in " ".join(broken(replace(FINE, spills=2)))
    assert "shared memory" in " ".join(broken(replace(FINE, shared=CHIPS[90].shared + 1)))
    assert "163" not in " ".join(broken(replace(FINE, arch=80, shared=CHIPS[80].shared)))
    assert "shared memory" in " ".join(broken(replace(FINE, arch=80, shared=CHIPS[90].shared)))
    assert broken(replace(FINE, instructions=COUNTS | {"HGMMA": 1})) == ["no asynchronous copies"]
    alone = FINE.instructions | {"WARPGROUP.ARRIVE": 287}
    assert "waits for the one before" in " ".join(broken(replace(FINE, instructions=alone)))
    slow = COUNTS | {"HMMA": 900, "LDGSTS": 1}
    assert "HGMMA" in " ".join(broken(replace(FINE, instructions=slow)))
    for other in (replace(FINE, tile=Tile(32)), replace(FINE, arch=80), replace(FINE, dtype="fp32")):
        assert broken(replace(other, instructions=slow)) == []
    assert "tensor memory" in " ".join(broken(replace(FINE, arch=100, tensor_memory=768)))
    assert broken(replace(FINE, tile=None, instructions=COUNTS)) == []


def test_the_stack_of_ring_kernels_has_a_limit_of_its_own() -> None:
    """Where it is none, none is allowed, and their other limits hold as everywhere."""
    fine = replace(FINE, tile=None, shared=CHIPS[90].shared)
    for kernel, most in RING_STACK.items():
        ring = replace(fine, kernel=kernel, stack=most, spills=2 if most else 0)
        assert broken(ring) == []
        assert f"{most + 8} bytes of stack" in " ".join(broken(replace(ring, stack=most + 8)))
        assert "asynchronous copies" in " ".join(broken(replace(ring, instructions=GROUPED | {"UTMALDG": 0})))
        alone = GROUPED | {"WARPGROUP.ARRIVE": GROUPED["HGMMA"]}
        assert "waits for the one before" in " ".join(broken(replace(ring, instructions=alone)))
        assert "shared memory" in " ".join(broken(replace(ring, shared=CHIPS[90].shared + 1)))
        assert broken(replace(ring, instructions=GROUPED | {"HGMMA": 0}))
    assert "expected none" in " ".join(broken(replace(fine, kernel="plan_kernel", stack=8)))


def test_relay_kernels_spill_where_their_weights_fill_the_registers_alone() -> None:
    fine = replace(FINE, tile=None)
    for (kernel, network), most in RELAY_STACK.items():
        relay = replace(fine, kernel=kernel, network=network, stack=most, spills=2 if most else 0)
        assert broken(relay) == []
        assert f"{most + 8} bytes of stack" in " ".join(broken(replace(relay, stack=most + 8)))
        assert broken(replace(relay, arch=100, stack=most + 48, spills=2)) == []
    found = {arch: sum(launch.kernel.startswith("relay") for launch in launches(arch)) for arch in CHIPS}
    many = len(RELAYS) + len(TRACED_RELAYS) + 1
    assert found == {80: 0, 90: many, 100: many}


def test_ring_kernels_are_of_one_architecture() -> None:
    found = {arch: [launch.dtype for launch in launches(arch) if launch.kernel.startswith("ring")] for arch in CHIPS}
    assert found == {80: [], 90: ["bf16"] * (len(RINGS) + len(TRACED_RINGS)) + ["fp16"] * 2, 100: []}


def test_the_table_says_what_bounds() -> None:
    lines = table([FINE, replace(FINE, arch=80, flops_us=None, bytes_us=None, tile=None)]).splitlines()
    assert lines[1].endswith("12 µs bytes") and "64×256×32 w8 s3" in lines[1]
    assert lines[2].endswith("—") and "w8" in lines[2]


def test_every_name_is_one_launch() -> None:
    for arch in CHIPS:
        names = [launch.name for launch in launches(arch)]
        assert len(set(names)) == len(names)


def test_a_matrix_kernel_and_the_pointwise_kernels_keep_their_limits(tmp_path: Path) -> None:
    (row,) = check(tmp_path, "--arch", "90", "--only", "iterate (kept), SGP 4×256, bf16, 64 rows")
    assert row["instructions"]["HGMMA"] and row["instructions"]["LDGSTS"] and not row["stack"]
    assert row["bytes_us"] > 0 and row["flops_us"] > 0
    assert all("kernel" in row["kernel"] for row in check(tmp_path, "--arch", "90", "--only", "layered"))
    assert len(check(tmp_path, "--arch", "90", "--only", "SRPO policy")) == 2
    assert len(check(tmp_path, "--arch", "90", "--only", "traced cost")) == 4 + len(TRACED_RELAYS) + len(TRACED_RINGS)
    for row in check(tmp_path, "--arch", "90", "--only", "relay_kernel, 1 problems"):
        assert row["instructions"]["HMMA"] and not row["stack"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", CHIPS)
def test_all_kernels_keep_their_limits(arch: int, tmp_path: Path) -> None:
    rows = check(tmp_path, "--arch", str(arch))
    assert {row["arch"] for row in rows} == {arch} and len(rows) > len(list(launches(arch)))
