"""The page of results: every figure, every label, every absence in words, and nothing from outside. Numbers are made up."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sgp_fast.bench import page
from sgp_fast.bench.page import accuracy, ladder, limits, plans, returns, style
from sgp_fast.bench.page.words import WORDS
from sgp_fast.bench.records import Results, write
from sgp_fast.bench.rows import CeilingRow, ColdRow, KernelRow, PlanRow, ReturnRow
from sgp_fast.bench.rungs import RUNGS

from . import synthetic

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def full() -> Results:
    return Results(synthetic.header(), tuple(synthetic.rows(widths=(256,), tasks=("hopper-medium",))))


@pytest.fixture(scope="module")
def html(full: Results) -> str:
    return page.render([("full.jsonl", full)])


def small(**changes: object) -> Results:
    """Cold costs only, so that a page takes little to draw."""
    return Results(synthetic.header(**changes), tuple(synthetic.cold()))


def text(html: str) -> str:
    """What a reader sees, figures aside."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.DOTALL)))


def test_every_figure_is_there_with_its_circumstances(html: str, full: Results) -> None:
    for key, words in WORDS.items():
        section = re.search(rf'<section id="f0-{key}">.*?</section>', html, re.DOTALL)
        assert section is not None, key
        assert section[0].count("<svg") >= 1 and words.title in section[0]
        caption = re.search(r"<figcaption>.*?</figcaption>", section[0], re.DOTALL)
        assert caption is not None and full.where in caption[0]
        assert "<details" in section[0] and "<td" in section[0]
    assert "Synthetic CPU" in full.where and "0123456" in full.where and "torch 2.99.0" in full.where
    assert "Not measured here" not in html


def test_the_page_stands_alone_and_is_small(html: str) -> None:
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", html)
    assert not re.search(r"url\((?!#)", html) and "<script" not in html and "@import" not in html
    assert len(html.encode()) < 3e6


def test_the_page_is_well_formed_and_its_ids_are_its_own(html: str) -> None:
    void, stack, ids = {"meta", "link", "br", "hr", "img"}, [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value for name, value in attrs if name == "id")
            if tag not in void:
                stack.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value for name, value in attrs if name == "id")

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Reader().feed(html)
    assert stack == [] and len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="|url\()#([^")]+)', html):
        assert target in ids


def test_figures_follow_the_page_into_dark_mode(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert set(re.findall(r"var\(--([a-z-]+)", html)) <= set(re.findall(r"^\s*--([a-z-]+):", html, re.MULTILINE))
    svg = " ".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--sgp, #0072b2)" in svg
    assert set(re.findall(r"(?<!, )(?<!#)#[0-9a-f]{6}\b", svg)) == set()


def test_every_plan_is_in_the_table_with_its_numbers(html: str, full: Results) -> None:
    rows = full.of(PlanRow)
    assert f"All {len(rows)} rows of plans" in html
    table = plans.plans(full)
    assert table is not None and len(table.rows) == len(rows)
    row = next(line for line in table.rows if line[:3] == ("1 × 4×256", "sgp_fast compiled", "float32"))
    found = dict(zip(table.columns, row, strict=True))
    measured = next(r for r in rows if r.key == ("1 × 4×256", "compiled"))
    assert float(found["median, ms"]) == pytest.approx(1e3 * measured.p50, rel=0.01)
    assert float(found["plans/s"]) == pytest.approx(1 / measured.p50, rel=0.01)
    assert float(found["of the product, %"]) == pytest.approx(100 * measured.flops / measured.p50 / 4.1e11, rel=0.01)
    assert found["99th, ms"] != "–" and found["mJ a plan"] == "400"
    published = next(line for line in table.rows if line[:2] == ("64 × 4×256", "published (label)"))
    assert dict(zip(table.columns, published, strict=True))["planned"] == "1 of 64"


def test_columns_that_no_row_fills_are_left_out() -> None:
    row = next(row for row in synthetic.plans(256, 1, "float32") if isinstance(row, PlanRow) and row.rung == "eager")
    table = plans.plans(Results(synthetic.header(), (replace(row, joules=None, memory=None, graphs=None),)))
    assert table is not None and not {"mJ a plan", "MB in a plan", "of the copy, %", "planned"} & set(table.columns)


def test_what_is_not_measured_is_said_with_the_command() -> None:
    html = page.render([("small.jsonl", small())])
    assert '<section id="f0-cold">' in html
    for key in sorted(set(WORDS) - {"cold"}):
        assert f'id="f0-{key}"' not in html
        assert f"{WORDS[key].title}: {WORDS[key].what}. {WORDS[key].command} measures it." in text(html).replace(" :", ":")


def test_a_file_without_rows_is_still_a_page() -> None:
    html = page.render([("empty.jsonl", Results(synthetic.header(), ()))])
    assert "<svg" not in html and html.count(" measures it.") == len(WORDS)


def test_rungs_without_a_time_are_listed_with_the_reason(html: str) -> None:
    told = "cuda graph (label); sgp_fast fused:tile, not timed at 1 × 4×256; 64 × 4×256: there is no GPU here"
    assert told in text(html) and text(html).count("not timed at") == 1
    assert "SGP, 15 iterations, fused float32, not measured on hopper-medium: there is no GPU here" in text(html)
    assert "sgp_fast fused:tile, not measured at 1 × 4×256: there is no GPU here" in text(html)


def test_two_files_stand_side_by_side() -> None:
    other = small(machine=synthetic.header()["machine"] | {"gpu": "Synthetic GPU"}, commit="f" * 40)
    other = replace(other, rows=tuple(replace(row, device="cuda:0") for row in other.rows))
    html = page.render([("cpu.jsonl", small()), ("gpu.jsonl", other)])
    assert html.index('id="f0-cold"') < html.index('id="f1-cold"')
    assert 'href="#f0"' in html and 'href="#f1"' in html
    assert "Synthetic GPU; commit fffffff" in html and "Synthetic CPU, 2 threads; commit 0123456" in html


def test_the_devices_of_one_file_stand_apart() -> None:
    machine = synthetic.header()["machine"] | {"gpu": "Synthetic GPU"}
    on_gpu = [replace(row, device="cuda:0", warm=1e-3) for row in synthetic.cold() if isinstance(row, ColdRow)]
    both = Results(synthetic.header(machine=machine), (*synthetic.cold(), *on_gpu, *synthetic.kernels()))
    cpu, gpu = both.by_device()
    assert (cpu.device, gpu.device) == ("Synthetic CPU", "Synthetic GPU")
    assert {row.device for row in cpu.of(ColdRow)} == {"cpu"} and cpu.of(KernelRow) and not gpu.of(KernelRow)
    html = page.render([("both.jsonl", both)])
    first, second = (html.index(f'<div class="file" id="f{i}">') for i in (0, 1))
    assert first < html.index("<h2>Synthetic CPU</h2>") < second < html.index("<h2>Synthetic GPU</h2>")
    assert len(both.rows) == len(cpu.rows) + len(gpu.rows)


def test_kernels_have_their_registers_and_those_that_spill_are_counted(html: str) -> None:
    assert "sm_80: 1 of 2 kernels need a stack or spill registers." in text(html)
    assert "sm_90: 0 of 2 kernels" in text(html) and "12 µs bytes" in text(html) and "64×256×32 w8 s3" in text(html)


def test_what_was_left_out_for_time_is_listed_with_the_reason() -> None:
    why = "left out for time: about 300 s, and only 20 s of the run's time were free"
    rows = [row for row in synthetic.plans(256, 1, "float32") if isinstance(row, PlanRow) and row.rung != "jax"]
    skipped = PlanRow(
        case="1 × 4×256", model="4×256", problems=1, horizon=8, iterations=50, precision="float32", device="cpu", rung="jax",
        label="jax (label)", family="baseline", reason=why,
    )  # fmt: skip
    results = Results(synthetic.header(), (*rows, skipped))
    climb, every = ladder.waterfall(results, "x"), plans.plans(results)
    note = "Left out for time at 1 × 4×256: jax about 300 s, and only 20 s of the run's time were free"
    assert climb is not None and note in climb.notes
    assert every is not None
    line = next(line for line in every.rows if line[1] == "jax (label)")
    assert line[-1] == why and set(line[3:-1]) == {"–"}


def test_names_are_text() -> None:
    evil = '<img src=x onerror=alert(1)>&"'
    rows = [
        replace(row, label=evil, reason=row.reason and evil) if isinstance(row, PlanRow) else row
        for row in synthetic.plans(256, 1, "float32")
    ]
    rows = [replace(row, rung=evil) if isinstance(row, PlanRow) and row.rung == "eager" else row for row in rows]
    head = synthetic.header(settings={evil: evil}, commit=evil)
    html = page.render([(evil, Results(head, (*rows, *synthetic.returns(evil)[:3])))])
    assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;&amp;" in html


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, synthetic.header(), synthetic.cold())
    first = page.build([path])
    page.write([path], tmp_path / "out.html")
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == first
    assert "a.jsonl" in first and str(tmp_path) not in first


def test_bad_input_leaves_the_page_as_it_was(tmp_path: Path) -> None:
    out, bad = tmp_path / "out.html", tmp_path / "bad.jsonl"
    out.write_text("before")
    bad.write_text('{"kind": "ladder", "version": 1}\n')
    with pytest.raises(ValueError, match="bad.jsonl, line 1"):
        page.write([bad], out)
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        page.write([tmp_path / "none.jsonl"], out)
    with pytest.raises(ValueError, match="at least one file"):
        page.build([])
    assert out.read_text() == "before"


def test_facts_are_held_against_the_fastest_other_rung(full: Results) -> None:
    rows = {row.rung: row for row in full.of(PlanRow) if row.case == "1 × 4×256" and row.p50}
    fact = plans.facts(full)[0]
    assert fact["case"] == "1 × 4×256" and "jax" in fact["text"]
    assert fact["value"] == f"{rows['jax'].p50 / rows['auto'].p50:.1f}×"
    slower = Results(full.header, tuple(replace(row, samples=tuple(9 * s for s in row.samples)) if isinstance(row, PlanRow)
                                        and row.family == "ours" else row for row in full.rows))  # fmt: skip
    assert plans.facts(slower)[0]["value"] == "0.3×"


def test_ratios_of_disturbed_times_are_told_so(full: Results) -> None:
    rows = tuple(
        replace(row, samples=(0.001, 0.001, 0.7, 0.7, 0.7, 20.0, 20.0)) if row.key == ("1 × 4×256", "published") else row
        for row in full.of(PlanRow)
    )
    told = "times spread at 1 × 4×256: published from 141 ms to 16.1 s: something else ran on this machine; measure again on"
    disturbed = Results(full.header, rows)
    page_text, ladder_notes = text(page.render([("x", disturbed)])), ladder.waterfall(disturbed, "x")
    assert told in plans.facts(disturbed)[0]["text"] and told in page_text and ladder_notes is not None
    assert any(told.removeprefix("t") in note for note in ladder_notes.notes)
    assert "times spread" not in text(page.render([("x", full)]))


def only(results: Results, case: str, *rungs: str) -> Results:
    """The plans of these rungs at a case."""
    return Results(results.header, tuple(row for row in results.of(PlanRow) if row.case == case and row.rung in rungs))


def test_no_speed_is_claimed_beside_loops_alone(full: Results) -> None:
    loops = only(full, "64 × 4×256", "published", "one rollout", "auto")
    told = "No speed is claimed at 64 × 4×256: no baseline that plans a whole batch at once was measured there."
    assert plans.facts(loops) == [] and plans.unclaimed(loops) == told and told in text(page.render([("loops", loops)]))
    jax = next(row for row in full.of(PlanRow) if row.key == ("64 × 4×256", "jax"))
    absent = replace(jax, samples=(), reason="left out for time: about 9 s, and only 1 s of the run's time were free")
    weaker = Results(full.header, (*only(full, "64 × 4×256", "published", "adjoint", "auto").rows, absent))
    (fact,) = plans.facts(weaker)
    assert "adjoint (label), the fastest other way measured here (jax: left out for time), and " in fact["text"]
    assert plans.unclaimed(weaker) is None and plans.unclaimed(full) is None


def test_the_ladder_says_what_it_shows(full: Results) -> None:
    """No column of speeds without the loop that they are held against; no colour that does not occur."""
    every, few = ladder.waterfall(full, "x"), ladder.waterfall(only(full, "64 × 4×256", "adjoint", "jax", "auto"), "x")
    assert every is not None and few is not None
    assert "against published" in every.table.columns and "as published. Grey, amber, green: the same" in every.caption
    assert "against published" not in few.table.columns and "published" not in few.caption
    assert "axis. Grey, green: the same algorithm by other means. Blue and black: ours. The fine line" in few.caption


def test_rungs_look_unlike_each_other(full: Results) -> None:
    ours = [rung for rung in RUNGS.values() if rung.family != "peer"]
    assert len({style.look_of(rung.name, rung.family) for rung in ours}) == len(ours)


def test_a_figure_of_a_single_point_is_left_out(full: Results) -> None:
    rows = (*only(full, "64 × 4×256", "compiled").rows, *full.of(CeilingRow))
    one = Results(full.header, rows)
    assert accuracy.cost_against_time(one, "x") is accuracy.by_dtype(one, "x") is limits.roofline(one, "x") is None


def test_one_thread_is_one() -> None:
    machine = synthetic.header()["machine"] | {"threads": 1}
    assert "Synthetic CPU, 1 thread; commit" in small(machine=machine).where


def test_costs_of_one_problem_are_not_held_against_those_of_many(full: Results) -> None:
    section = accuracy.cost_against_time(full, "x")
    assert section is not None
    shown = {(line[0], line[1]) for line in section.table.rows}
    assert ("1 × 4×256", "published (label)") in shown and ("64 × 4×256", "published (label)") not in shown
    (note,) = section.notes
    assert note.startswith("Costs of one problem, shown only where the case has one: published (label); ")
    climb = ladder.waterfall(full, "x")
    assert climb is not None
    costs = {(line[0], line[1]): line[-1] for line in climb.table.rows}
    assert costs["64 × 4×256", "published (label)"] == "–" != costs["64 × 4×256", "sgp_fast auto"]
    assert costs["1 × 4×256", "published (label)"] == costs["1 × 4×256", "sgp_fast auto"] != "–"


def test_a_rung_that_broke_its_limit_has_its_error_and_no_time() -> None:
    rows = [
        replace(row, samples=(), timed=0, error=0.5, reason="wrong: error 5.0e-01 above 1e-03") if row.rung == "jax" else row
        for row in synthetic.plans(256, 1, "float32") if isinstance(row, PlanRow)
    ]  # fmt: skip
    results = Results(synthetic.header(), tuple(rows))
    dtype, climb = accuracy.by_dtype(results, "x"), ladder.waterfall(results, "x")
    assert dtype is not None and climb is not None
    assert any("Only one precision was measured" in note for note in dtype.notes)
    assert any("jax (label)" in line and "0.500" in line for line in dtype.table.rows)
    assert any("jax (label), not timed" in note and "wrong" in note for note in climb.notes)
    jax = next(line for line in climb.table.rows if line[1] == "jax (label)")
    assert jax[2] == "–"


def test_a_precision_without_a_ceiling_is_named(full: Results) -> None:
    rows = tuple(row for row in full.rows if not (isinstance(row, CeilingRow) and row.precision == "bfloat16"))
    section = limits.roofline(Results(full.header, rows), "x")
    assert section is not None and any("bfloat16" in note for note in section.notes)
    assert limits.roofline(Results(full.header, tuple(r for r in rows if not isinstance(r, CeilingRow))), "x") is None


def test_one_episode_and_one_case_are_drawn_without_intervals() -> None:
    rows = [
        replace(row, seeds=row.seeds[:1], returns=row.returns[:1], normalized=())
        for row in synthetic.returns("hopper-medium") if isinstance(row, ReturnRow)
    ]  # fmt: skip
    results = Results(synthetic.header(), tuple(rows))
    for section in (returns.budget(results, "x"), returns.precision(results, "x")):
        assert section is not None and "nan" not in section.panels[0].wide.lower()
        assert section.panels[0].narrow is not None


def test_cold_costs_say_when_they_are_paid_back(html: str, full: Results) -> None:
    section = re.search(r'<section id="f0-cold">.*?</section>', html, re.DOTALL)
    assert section is not None
    for row in full.of(ColdRow):
        if row.pays:
            assert f"{row.pays} plans" in section[0]
    assert "never" in section[0] and "the measure" in section[0]
