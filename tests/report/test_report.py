"""The report stands alone, shows every number it was given, says what is missing, and judges by the intervals."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from sgp_fast.demo import table as demo_table
from sgp_fast.report import Frame, MethodResult, OpenLoop, Results, Telemetry, ThroughputRow, write_report
from sgp_fast.report.numbers import alike, number, ratio, seconds
from sgp_fast.report.page import ratios
from sgp_fast.report.pictures import addresses
from sgp_fast.report.verdict import task_verdict, verdict

from .synthetic import HOLDING, curve, method, open_loop, picture, results, strip, task, telemetry, throughput

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """What a page refers to, its ids and text, and whether every element that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data") or (name == "href" and tag != "a"):
                self.loads.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "style" and "url(" in (value or ""):
                self.loads += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.text += data


def written(run: Results, folder: Path) -> tuple[str, Page]:
    path = write_report(run, folder / "report.html")
    text = path.read_text(encoding="utf-8")
    assert [entry.name for entry in folder.iterdir()] == ["report.html"]
    return text, Page(text)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    text, page = written(results(), tmp_path)
    assert "script" not in page.tags and "@import" not in text
    assert all(load.startswith(("data:", "#")) for load in page.loads), page.loads
    assert not re.findall(r"url\((?!#)", text)
    assert re.findall(r"https?://[^\s\"<]*", text) == page.links == ["https://arxiv.org/abs/2306.14079"]
    assert len(text.encode()) < 3_000_000


def test_the_page_is_well_formed_and_its_ids_are_its_own(tmp_path: Path) -> None:
    _, page = written(results(task(), task(name="hopper-expert")), tmp_path)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)


def test_every_number_appears(tmp_path: Path) -> None:
    run = results()
    _, page = written(run, tmp_path)
    for item in run.tasks[0].methods:
        low, high = (f"{value:,.0f}" for value in item.interval)
        assert f"{item.label} {item.mean:,.0f} {low} to {high} ≈ {item.normalized:.1f}" in page.text
    for row in throughput().rows:
        assert f"{row.label} {row.problems}" in page.text and number(row.plans_per_second) in page.text
    for words in ("12.4 ms", "10 of 10", "100,000 transitions in 214 episodes", "torso height (m)", "fell at step 41"):
        assert words in page.text
    for words in ("clip gradient none", "keep moments no", "memory limit 2 GiB", "6 min 43 s in all data 21.0 s"):
        assert words in page.text
    for words in ("plans from inside 4.00 s", "Time per action: the episodes are planned together"):
        assert words in page.text
    for words in ("Example processor", "0123456789abcdef0123456789abcdef01234567", "2.13.0", "step size 0.1", "3 min 3 s"):
        assert words in page.text


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pages.append(written(results(), tmp_path / name)[0])
    assert pages[0] == pages[1]


def test_figures_follow_the_page_and_leave_the_users_style_alone(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 7.5, "font.size": 30.0}):
        text, _ = written(results(), tmp_path)
        assert (matplotlib.rcParams["lines.linewidth"], matplotlib.rcParams["font.size"]) == (7.5, 30.0)
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    # Returns and throughput in two widths, four panels, three dimensions, three networks.
    assert len(figures) == 2 + 4 + 3 + 2 + 3
    for svg in figures:
        assert "font-size: 30" not in svg and "font-family" not in svg
        # Every colour is the page's; black may only be matplotlib's unused default.
        assert not re.findall(r"(?<!, )#(?!000000)[0-9a-f]{6}\b", svg)


@pytest.mark.parametrize(
    ("means", "outcome", "words"),
    [
        (HOLDING, "holds", "earns more than the policy of its data, 884 against 774; without it the return falls to 38."),
        (HOLDING | {"sgp": (770, 20, 300)}, "holds", "keeps up with the policy of its data, 770 against 774; without it"),
        (HOLDING | {"sgp": (600, 20, 300)}, "fails", "Against the claim: with the score the planner earns less than the"),
        (HOLDING | {"no_score": (880, 9, 300)}, "fails", "the return does not fall below the data’s either, 880."),
        (HOLDING | {"no_score": (950, 9, 300)}, "fails", "Against the claim: with the score the planner earns more"),
        (HOLDING | {"sgp": (740, 200, 300)}, "inconclusive", "keep up with the policy of its data or not, 740 against"),
        (HOLDING | {"no_score": (760, 250, 300)}, "inconclusive", "the return falls without it, 760, cannot be told"),
        (HOLDING | {"no_score": (690, 80, 300)}, "inconclusive", "is lower, 690, but not clearly below the data’s"),
    ],
)
def test_the_verdict_compares_intervals(means: dict[str, Any], outcome: str, words: str, tmp_path: Path) -> None:
    run = results(task(means, frames=()))
    judged = verdict(run)
    assert judged.outcome == outcome
    assert words in judged.sentence
    _, page = written(run, tmp_path)
    assert judged.sentence in page.text
    heading = {
        "holds": "This run supports the claim", "fails": "This run speaks against the claim", "inconclusive": "Inconclusive"
    }  # fmt: skip
    assert heading[outcome] in page.text and "The claim is that" in page.text
    assert "the claim holds" not in page.text.lower() and "Why it works" not in page.text, "one run proves nothing"


def test_the_verdict_holds_for_negative_returns_too() -> None:
    """The margin is a share of the size of the return: a loss from −300 to −400 is not held."""
    means = {"behavior": (-300.0, 60, 300), "sgp": (-400.0, 200, 300), "no_score": (-900.0, 20, 300)}
    assert task_verdict(task(means)).outcome == "inconclusive"
    assert task_verdict(task(means | {"sgp": (-305.0, 20, 300)})).outcome == "holds"


def test_the_verdict_says_what_was_not_evaluated() -> None:
    data, guided = HOLDING["behavior"], HOLDING["sgp"]
    assert "SGP is missing" in task_verdict(task({"behavior": data})).sentence
    partial = task_verdict(task({"behavior": data, "sgp": guided}))
    assert partial.outcome == "inconclusive" and "without the score was not evaluated" in partial.sentence
    single = replace(method("sgp", *guided), interval=(np.nan, np.nan))
    methods = (method("behavior", *data), single, method("no_score", *HOLDING["no_score"]))
    assert task_verdict(task(methods=methods)).outcome == "inconclusive"


def test_the_verdict_over_several_tasks_counts_and_names(tmp_path: Path) -> None:
    failing = task(HOLDING | {"sgp": (600, 20, 300)}, name="hopper-expert", frames=())
    unclear = task(HOLDING | {"sgp": (740, 200, 300)}, name="hopper-random", frames=())
    run = results(task(frames=()), failing, unclear)
    assert verdict(run).outcome == "fails"
    assert "On 1 of 3 data sets" in verdict(run).sentence
    assert "it is otherwise on hopper-expert; hopper-random is inconclusive." in verdict(run).sentence
    _, page = written(run, tmp_path)
    assert "This run speaks against the claim on some data sets" in page.text and "All data sets" in page.text
    assert {"#t0", "#t1", "#t2"} <= set(page.links) and {"t0", "t1", "t2"} <= set(page.ids)


def test_missing_parts_are_named_with_the_reason(tmp_path: Path) -> None:
    bare = task(training=(), telemetry=(), open_loop=(), frames=(), missing={"frames": "no OpenGL platform could be opened"})
    _, page = written(results(bare, throughput=None), tmp_path)
    assert "Not in this report: no OpenGL platform could be opened." in page.text
    assert "throughput was not measured" in page.text
    assert page.text.count("Not in this report") == 5
    assert "884" in page.text


def test_a_run_with_nothing_is_still_a_page(tmp_path: Path) -> None:
    nothing = task(methods=(), training=(), telemetry=(), open_loop=(), frames=())
    _, page = written(results(nothing, throughput=None), tmp_path)
    assert "Nothing can be concluded" in page.text


def test_one_sided_and_degenerate_measurements_do_not_break_the_page(tmp_path: Path) -> None:
    """One method only, one episode, plans that diverged, a loss never validated, a speed that could not be taken."""
    seen = telemetry("no_score")
    diverged = replace(seen, predicted_cost=np.full(48, np.nan), cost_history=np.full((48, 15), np.inf))
    fallen = replace(open_loop("no_score"), real=np.full((6, 9, 4), np.nan))
    never = replace(curve("score"), validation_loss=np.full(600, np.nan))
    alone = replace(method("sgp", 884, 9, 300, episodes=2), returns=[884.0], lengths=[300], interval=(np.nan, np.nan))
    one = task(methods=(alone,), telemetry=(diverged,), open_loop=(fallen,), training=(never,), frames=())
    speeds = throughput()
    failed = replace(speeds.rows[2], plans_per_second=None, p50_seconds=None, note="the plans differ from the reference")
    text, page = written(results(one, throughput=replace(speeds, rows=(speeds.rows[0], failed))), tmp_path)
    assert "the plans differ from the reference" in page.text and "not measured" in page.text
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", text), flags=re.IGNORECASE)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    text, page = written(results(task(name="<script>alert(1)</script>", env_id='A"&<b>-v0', frames=())), tmp_path)
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_pictures_are_kept_where_there_is_room_and_shrunk_where_not() -> None:
    from PIL import Image

    pictures = [picture(seed, 480, 360) for seed in range(6)]
    whole = addresses(pictures, budget=20_000_000)
    assert whole is not None and all(address.startswith("data:image/png;base64,") for address in whole)
    small = addresses(pictures, budget=400_000)
    assert small is not None and sum(map(len, small)) <= 400_000
    assert all(address.startswith("data:image/jpeg;base64,") for address in small)
    import base64

    assert Image.open(io.BytesIO(base64.b64decode(small[0].partition(",")[2]))).width <= 400
    assert addresses(pictures, budget=100) is None


def test_too_many_pictures_are_left_out_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgp_fast.report.page.addresses", lambda pictures: addresses(pictures, budget=100))
    _, page = written(results(), tmp_path)
    assert "more pictures than fit on one page" in page.text


def equal(a: Any, b: Any) -> bool:
    """Whether two trees are the same, of the same types, NaN equal to NaN."""
    if is_dataclass(a):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_results_survive_their_folder(tmp_path: Path) -> None:
    single = replace(method("behavior", 774, 60, 300), interval=(float("nan"), float("nan")), normalized=None)
    run = results(task(methods=(single, method("sgp", 884, 9, 300))), task(name="b"), notes=("One training seed.",))
    folder = run.save(tmp_path / "results")
    assert sorted(entry.name for entry in folder.iterdir()) == ["arrays.npz", "results.json"]
    back = Results.load(folder)
    assert equal(run, back)
    assert not equal(run, results())
    run.save(folder)
    assert equal(run, Results.load(folder))
    (tmp_path / "pages").mkdir()
    first, _ = written(run, tmp_path / "pages")
    second, _ = written(back, tmp_path / "pages")
    assert first == second


def test_a_folder_that_is_not_whole_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no results.json"):
        Results.load(tmp_path)
    folder = results().save(tmp_path / "results")
    whole = (folder / "results.json").read_text(encoding="utf-8")
    results(task(HOLDING | {"sgp": (1.0, 1.0, 3)})).save(folder)
    (folder / "results.json").write_text(whole, encoding="utf-8")
    with pytest.raises(ValueError, match="a save was interrupted; run the demo again"):
        Results.load(folder)
    results().save(folder)
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for change, words in (({"format": 99}, "format 99"), ({"results": {"surprise": 1}}, "lacks or misnames a field")):
        (folder / "results.json").write_text(json.dumps(document | change), encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            Results.load(folder)
    (folder / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is no JSON"):
        Results.load(folder)


def test_results_that_disagree_are_refused() -> None:
    good = telemetry("sgp")
    with pytest.raises(ValueError, match=r"MethodResult.lengths has episodes=2 where MethodResult.returns has episodes=3"):
        MethodResult("sgp", "SGP", [1.0, 2.0, 3.0], [1, 2], (1.0, 2.0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected one of behavior, sgp"):
        MethodResult("ppo", "PPO", np.ones(2), np.ones(2, int), (1.0, 2.0))
    with pytest.raises(ValueError, match="no episodes"):
        MethodResult("sgp", "SGP", np.ones(0), np.ones(0, int), (1.0, 2.0))
    with pytest.raises(ValueError, match="real_iterations is empty"):
        Telemetry("sgp", good.cost_history, good.predicted_cost, np.array([], int), np.ones((48, 0)), good.score_norm)
    with pytest.raises(ValueError, match=r"expected numbers \[B T\]"):
        replace(good, score_norm=np.ones(3))
    path = open_loop("sgp")
    with pytest.raises(ValueError, match="each dim below nx=4"):
        OpenLoop("sgp", path.predicted, path.real, path.scale, (0, 4), ("a", "b"))
    with pytest.raises(ValueError, match="is no PNG file"):
        Frame(0, 0.0, b"GIF89a")
    with pytest.raises(ValueError, match="names a method twice"):
        task(frames=(strip("sgp", 1, 10, 1.0), strip("sgp", 1, 10, 1.0)))


def test_the_figure_of_costs_says_that_a_horizon_is_not_an_episode(tmp_path: Path) -> None:
    """Where the plans without the score look better over their few steps, and where the score's cost rises."""
    guided, free = telemetry("sgp"), telemetry("no_score")
    rising, short = "With the score the line rises", "the plans without the score are the better ones in the simulator, too"
    _, page = written(results(task(telemetry=(guided, free))), tmp_path)
    assert "Only the 8 steps of a plan count here, of the 300 of an episode." in page.text
    assert rising not in page.text and short not in page.text
    up = replace(guided, predicted_cost=guided.cost_history[:, 0] + 1.0)
    better = replace(free, real_cost=guided.real_cost - 2.0)
    _, page = written(results(task(telemetry=(up, better))), tmp_path)
    assert rising in page.text and short in page.text


def test_the_gap_in_words_is_the_gap_that_is_drawn(tmp_path: Path) -> None:
    """Between medians: a median of differences is another number, and 1 here."""
    predicted, real = np.array([0.0, 5.0, 6.0]), np.array([[9.0], [6.0], [7.0]])
    item = replace(telemetry("sgp"), cost_history=np.zeros((3, 15)), predicted_cost=predicted, real_cost=real,
                   real_iterations=np.array([15]), score_norm=np.ones((3, 8)))  # fmt: skip
    _, page = written(results(task(telemetry=(item,))), tmp_path)
    assert "The median of the real costs is 2.00 above that of the predicted ones with the score." in page.text


def test_multiples_of_disturbed_times_are_told_so(tmp_path: Path) -> None:
    rows = throughput().rows
    disturbed = tuple(
        replace(row, p20_seconds=0.704, p80_seconds=20.5) if row.key == "published" else row for row in rows
    )
    words = "times spread from 704 ms to 20.5 s: something else ran on this machine; measure again on a quiet one"
    run = results(throughput=replace(throughput(), rows=disturbed))
    _, page = written(run, tmp_path)
    assert f"ours 64 together; its {words}" in page.text and page.text.count(words) == 2
    assert "something else ran" not in written(results(throughput=throughput()), tmp_path)[1].text
    assert words in demo_table(run, tmp_path / "report.html", 1.0)


def test_multiples_compare_with_the_published_loop() -> None:
    def row(key: str, problems: int, rate: float | None) -> ThroughputRow:
        return ThroughputRow(key, key, problems, rate, None, 1)

    rows = [row("published", 1, 2.0), row("plain", 1, 8.0), row("eager", 64, 100.0), row("compiled", 64, None)]
    assert ratios(rows) == [1.0, 4.0, 50.0, None]
    assert ratios([*rows, row("published", 64, 4.0)]) == [1.0, 4.0, 25.0, None, 1.0]
    assert ratios(rows[1:]) == [None, None, None]


@pytest.mark.parametrize(
    ("value", "text"),
    [(884.2, "884"), (38.04, "38.0"), (0.3123, "0.312"), (-64.4, "−64.4"), (12135.0, "12,135"), (0.0, "0"),
     (9.996, "10.00"), (2.5e-5, "2.50 × 10⁻⁵"), (1.5e9, "1.50 × 10⁹"), (None, "–"), (float("nan"), "–"), (-np.inf, "−∞")],
)  # fmt: skip
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number(value) == text


def test_numbers_to_compare_share_their_decimals() -> None:
    assert alike([884.2, 773.6, 38.04, -0.2]) == ["884", "774", "38", "0"]
    assert alike([27.81, 1.78, None, float("nan")]) == ["27.8", "1.8", "–", "–"]
    assert alike([]) == []


def test_times_and_multiples_have_units() -> None:
    values = [3e-6, 0.0121, 4.2, 370, 7500, None]
    assert [seconds(v) for v in values] == ["3.00 µs", "12.1 ms", "4.20 s", "6 min 10 s", "2 h 5 min", "–"]
    assert [ratio(v) for v in (1.0, 52.3, 1270.4, None)] == ["1.0×", "52×", "1,270×", "–"]


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "sgp-fast\[report\]"'):
        write_report(results(), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
