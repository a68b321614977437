"""What is measured once is believed as long as it holds, and nothing is chosen that was measured slower."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgp_fast.backends.fused import choice
from sgp_fast.backends.fused.choice import Choice, Key, Store, choose
from tests.cases import case

from .fake import Body, FakeDevice

ROOT = Path(__file__).parents[2]
KEY = Key("fake", (("dynamics", "4x256"),), rows=64, horizon=8, dtype="bfloat16", nx=3, nu=2)
VERSIONS = {"sgp_fast": "1", "sources": "0f", "torch": "2", "triton": "3", "cuda": "4", "driver": "5"}
PAIR = ("tile", "layered")


def store(folder: Path, **other: str) -> Store:
    return Store(folder, VERSIONS | other)


def measure(kept: Store, key: Key = KEY, **seconds: float) -> tuple[Choice, int]:
    """A choice between candidates of these times, and how often they ran for it."""
    device, runs = FakeDevice(), []

    def counted(body: Body) -> Body:
        def run() -> None:
            runs.append(1)
            body()

        return run

    candidates = {name: counted(device.spend(each)) for name, each in seconds.items()}
    return choose(key, candidates, device, kept), len(runs)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def failing(message: str = "no room\nat all", kind: Callable[[str], Exception] = RuntimeError) -> Body:
    def body() -> None:
        raise kind(message)

    return body


def test_the_fastest_is_chosen_and_the_reason_says_why(tmp_path: Path) -> None:
    made, runs = measure(store(tmp_path), layered=1.8e-3, tile=1.234e-3, grid=0.12)
    assert made.chosen == "tile" and runs > 9
    assert made.seconds == pytest.approx({"tile": 1.234e-3, "layered": 1.8e-3, "grid": 0.12})
    assert made.reason == f"tile 1.23 ms, layered 1.80 ms, grid 120 ms (measured {made.measured}, stored)"


@given(st.dictionaries(st.text(min_size=1), st.lists(st.floats(1e-5, 10), min_size=1, max_size=9), min_size=1, max_size=5))
def test_nothing_is_chosen_that_was_measured_slower(times: dict[str, list[float]]) -> None:
    device = FakeDevice()
    candidates = {name: device.spend(*each) for name, each in times.items()}
    made = choose(KEY, candidates, device, store(Path("/dev/null/nowhere")))
    assert set(made.seconds) == set(times)
    assert made.seconds[made.chosen] == min(made.seconds.values())


def test_the_median_decides_and_the_first_run_does_not_count(tmp_path: Path) -> None:
    device = FakeDevice()
    candidates = {"steady": device.spend(3.0), "tile": device.spend(60.0, 1.0, 50.0, 2.0)}
    made = choose(KEY, candidates, device, store(tmp_path))
    assert made.chosen == "tile" and made.seconds == {"steady": 3.0, "tile": 2.0}


def test_candidates_run_in_turns_not_in_blocks(tmp_path: Path) -> None:
    device, order = FakeDevice(), []

    def named(name: str) -> Body:
        spend = device.spend(1.0)

        def body() -> None:
            order.append(name)
            spend()

        return body

    choose(KEY, {"a": named("a"), "b": named("b")}, device, store(tmp_path))
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # once to warm up; then rounds, few since they are long


def test_a_new_process_reads_what_this_one_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGP_FAST_HOME", str(tmp_path))
    made, _ = measure(choice.user_store(), tile=2e-3, layered=1e-3)
    assert only_file(tmp_path / "choices").suffix == ".json"
    code = (
        "from tests.fused.test_choice import KEY, failing\n"
        "from tests.fused.fake import FakeDevice\n"
        "from sgp_fast.backends.fused.choice import choose, user_store\n"
        "print(choose(KEY, {'layered': failing(), 'tile': failing()}, FakeDevice(), user_store()).reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == made.reason and made.stored


def test_a_process_asks_its_memory_first(tmp_path: Path) -> None:
    kept = store(tmp_path)
    made, _ = measure(kept, tile=1.0, layered=2.0)
    only_file(tmp_path).unlink()
    assert measure(kept, tile=2.0, layered=1.0) == (made, 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "other"}, {"parts": (("dynamics", "4x512"),)}, {"rows": 128}, {"horizon": 9}, {"dtype": "float32"},
        {"nx": 4}, {"nu": 1},
    ],
)  # fmt: skip
def test_each_part_of_the_key_has_a_measurement_of_its_own(tmp_path: Path, changed: dict[str, Any]) -> None:
    kept = store(tmp_path)
    measure(kept, tile=1.0, layered=2.0)
    made, runs = measure(kept, replace(KEY, **changed), tile=2.0, layered=1.0)
    assert made.chosen == "layered" and runs > 0
    assert measure(kept, tile=2.0, layered=1.0)[0].chosen == "tile"
    assert len(list(tmp_path.iterdir())) == 2


def test_other_candidates_are_another_measurement(tmp_path: Path) -> None:
    measure(store(tmp_path), tile=1.0, layered=2.0)
    made, runs = measure(store(tmp_path), tile=1.0, layered=2.0, grid=0.5)
    assert made.chosen == "grid" and runs > 0
    assert measure(store(tmp_path), layered=1.0, tile=2.0)[1] == 0  # the same two in another order


@pytest.mark.parametrize("name", VERSIONS)
def test_another_version_measures_again_and_takes_the_file(tmp_path: Path, name: str) -> None:
    measure(store(tmp_path), tile=1.0, layered=2.0)
    made, runs = measure(store(tmp_path, **{name: "new"}), tile=2.0, layered=1.0)
    assert made.chosen == "layered" and runs > 0
    assert measure(store(tmp_path, **{name: "new"}), tile=1.0, layered=2.0) == (made, 0)
    assert only_file(tmp_path).is_file()


def edited(**changes: Any) -> Callable[[str], str]:
    """A file whose choice is changed."""

    def edit(text: str) -> str:
        found = json.loads(text)
        found["choice"] |= changes
        return json.dumps(found)

    return edit


CORRUPTIONS: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "no text": lambda text: b"\xff\xfe\x00",
    "other JSON": lambda text: "[1, 2]",
    "null": lambda text: "null",
    "deep": lambda text: "[" * 100_000,
    "no choice": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "choice"}),
    "the slower one": edited(chosen="tile"),
    "nobody": edited(chosen="grid"),
    "a list for a name": edited(chosen=["layered"]),
    "a time short": edited(seconds={"layered": 1.0}),
    "no times": edited(seconds={}, failures={"tile": "no", "layered": "no"}),
    "a negative time": edited(seconds={"layered": -1.0, "tile": 2.0}),
    "not a number": edited(seconds={"layered": float("nan"), "tile": float("nan")}),
    "a word for a time": edited(seconds={"layered": "1.0", "tile": "2.0"}),
    "a field too many": edited(faith=True),
    "no date": edited(measured=None),
    "another key": lambda text: text.replace('"4x256"', '"4x512"'),
}


@pytest.mark.parametrize("how", CORRUPTIONS)
def test_a_corrupt_file_is_measured_again(tmp_path: Path, how: str) -> None:
    measure(store(tmp_path), tile=2.0, layered=1.0)
    path = only_file(tmp_path)
    before = path.read_text()
    corrupt = CORRUPTIONS[how](before)
    assert corrupt != before
    path.write_bytes(corrupt if isinstance(corrupt, bytes) else corrupt.encode())
    made, runs = measure(store(tmp_path), tile=3.0, layered=4.0)
    assert runs > 0 and made.chosen == "tile" and made.seconds == {"tile": 3.0, "layered": 4.0}
    assert measure(store(tmp_path), tile=2.0, layered=1.0) == (made, 0)


def test_an_untouched_file_is_not_corrupt(tmp_path: Path) -> None:
    made, _ = measure(store(tmp_path), tile=2.0, layered=1.0)
    path = only_file(tmp_path)
    path.write_text(edited()(path.read_text()))
    assert measure(store(tmp_path), tile=1.0, layered=2.0) == (made, 0)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "choices"
    kept = store(folder)
    made, _ = measure(kept, tile=1.0, layered=2.0)
    assert made.chosen == "tile" and not made.stored and made.reason.endswith("for this process only)")
    assert measure(kept, tile=2.0, layered=1.0) == (made, 0)
    assert measure(store(folder), tile=2.0, layered=1.0)[0].chosen == "layered"


def test_a_candidate_that_cannot_run_is_out_and_the_reason_is_kept(tmp_path: Path) -> None:
    device = FakeDevice()
    made = choose(KEY, {"tile": failing(), "layered": device.spend(0.5)}, device, store(tmp_path))
    assert made.chosen == "layered" and made.failures == {"tile": "RuntimeError: no room"}
    assert made.reason.startswith("layered 500 ms, tile cannot run: RuntimeError: no room (measured ")
    assert store(tmp_path).read(KEY, PAIR) == made


def test_a_candidate_that_fails_on_the_way_is_out(tmp_path: Path) -> None:
    device, runs = FakeDevice(), []

    def tile() -> None:
        runs.append(1)
        device.now += 0.1
        if len(runs) == 3:
            raise ValueError("late")

    made = choose(KEY, {"tile": tile, "layered": device.spend(0.5)}, device, store(tmp_path))
    assert made.chosen == "layered" and set(made.seconds) == {"layered"} and made.failures == {"tile": "ValueError: late"}


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_a_full_device_is_not_remembered_on_disk(tmp_path: Path, kind: Callable[[str], Exception]) -> None:
    device = FakeDevice()
    full = failing("CUDA out of memory. Tried to allocate 1 GiB", kind)
    made = choose(KEY, {"tile": full, "layered": device.spend(0.5)}, device, store(tmp_path))
    assert made.chosen == "layered" and not made.stored and not list(tmp_path.iterdir())
    assert measure(store(tmp_path), tile=0.1, layered=0.5)[0].chosen == "tile"


def test_where_nothing_can_run_each_reason_is_told(tmp_path: Path) -> None:
    candidates = {"tile": failing("too wide"), "layered": failing("too narrow")}
    with pytest.raises(RuntimeError, match="64 rows on fake: tile: RuntimeError: too wide; layered: .*: too narrow"):
        choose(KEY, candidates, FakeDevice(), store(tmp_path))
    with pytest.raises(ValueError, match="candidates is empty"):
        choose(KEY, {}, FakeDevice(), store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_interrupt_is_no_failure_of_a_candidate(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose(KEY, {"tile": interrupted}, FakeDevice(), store(tmp_path))
    assert not list(tmp_path.iterdir())


WRITER = """
import sys
from pathlib import Path
from tests.fused.test_choice import KEY, PAIR, store
from sgp_fast.backends.fused.choice import Choice

kept, n = store(Path(sys.argv[1])), float(sys.argv[2])
for i in range(50):
    made = Choice("tile", {"tile": n, "layered": n + 1}, {}, "x" * int(1000 * n), False)
    assert kept.write(KEY, PAIR, made).stored
"""


def test_processes_that_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    folder = tmp_path / "choices"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(n)], cwd=ROOT) for n in (1, 2)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        time.sleep(1e-3)  # leave the processors to the writers
        found = store(folder).read(KEY, PAIR)
        assert found is not None or not seen, "a reader found a part of a file"
        seen += found is not None
    assert [writer.returncode for writer in writers] == [0, 0] and seen
    found = store(folder).read(KEY, PAIR)
    assert found is not None and found.measured == "x" * int(1000 * found.seconds["tile"])
    assert only_file(folder).suffix == ".json"


def test_the_key_of_a_problem_tells_its_networks_apart() -> None:
    device = FakeDevice()
    a, b = (case(cost_=cost).problem for cost in ("learned", "quadratic"))
    keys = {Key.of(problem, device, rows, 8, "float32") for problem in (a, b) for rows in (64, 128)}
    assert len(keys) == 4 and Key.of(a, device, 64, 8, "float32") in keys
    assert {(key.device, key.nx, key.nu) for key in keys} == {("fake", a.dynamics.nx, a.dynamics.nu)}


def test_versions_name_all_that_matters() -> None:
    found = choice.versions()
    assert set(found) == set(VERSIONS) and all(found.values())
    assert found["torch"] == torch.__version__


def test_a_source_that_changes_is_another_version(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    (folder / "cpu").mkdir(parents=True)
    (folder / "tile.py").write_text("rows = 64")
    (folder / "cpu" / "pack.py").write_text("planes = 3")
    before = choice.hash_of(folder)
    (folder / "notes.md").write_text("no source")
    assert choice.hash_of(folder) == before
    (folder / "cpu" / "pack.py").write_text("planes = 1")
    assert choice.hash_of(folder) != before
