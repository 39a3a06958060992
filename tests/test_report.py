"""The report: pass rules by hand-made figures, report.json's schema, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jielong.log import MetricsLog
from jielong.report import Drawn, verdicts, write_report
from jielong.report.curves import Line, Panel, draw, smooth
from jielong.report.panels import panels

FIGURES: dict[str, dict[str, Any]] = {
    "curate": {
        "documents_in": 100,
        "documents_kept": 90,
        "removed": {"near_duplicate": 7, "too_short": 3},
        "documents_per_second": 900.5,
    },
    "tokenizer": {"bytes_per_token": {"en": 3.1, "zh": 2.2}, "round_trip_exact": True, "vocab_size": 512},
    "pretrain": {
        "heldout_loss_nats": 2.0,
        "heldout_bits_per_byte": 1.0,
        "trigram_bits_per_byte": 1.5,
        "fivegram_bits_per_byte": 1.2,
        "tokens_per_second": 20000.0,
        "parameters": 860000,
        "mfu": 0.31,
    },
    "sft": {"end_of_turn_rate": 0.97, "heldout_loss_nats": 0.8, "exact_match": {"story": 0.5}},
    "reward": {
        "heldout_accuracy": 0.74,
        "heldout_accuracy_ci95": [0.70, 0.78],
        "length_baseline_accuracy": 0.55,
        "noise_ceiling_accuracy": 0.76,
        "comparisons": 600,
    },
    "ppo": {"gold_win_rate": 0.7, "gold_win_rate_ci95": [0.62, 0.78], "kl_nats_per_reply": 3.0},
    "evaluate": {
        "exact_match": {"base": {"story": 0.0}, "sft": {"story": 0.5}, "ppo": {"story": 0.75}},
        "exact_match_ci95": {"base": {"story": [0.0, 0.1]}, "sft": {"story": [0.4, 0.6]}, "ppo": {"story": [0.6, 0.9]}},
    },
}
SAMPLES = [{"skill": "story", "prompt": "<script>alert(1)</script>", "base": "a & b", "sft": "讲 <b>个</b>", "ppo": ""}]
BEST_LIKED = [{"prompt": "p <1>", "reply": "the end the end", "proxy_reward": 9.25, "gold_reward": 0.5}]
RECIPE = """
[run]
name = "demo"
seed = 7
[data.sources.novels]
path = "novels"
url = "https://example.org/novels.txt"
licence = "CC0 <public>"
[data.world]
megabytes = 1
""" + "\n".join(f"[{kind}]" for kind in FIGURES)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "environment.json").write_text(
        json.dumps({"cpu": "a <fast> one", "cores": 2, "memory_bytes": 4 * 10**9})
    )
    stages = {kind: {"kind": kind, "seconds": 10.0} for kind in FIGURES}
    plan = {"stages": stages, "totals": {"seconds": 70.0, "flops": 10**12, "memory_bytes": 10**9}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for number, (kind, figures) in enumerate(FIGURES.items(), start=1):
        folder = tmp_path / f"{number:02d}-{kind}"
        folder.mkdir()
        (folder / "figures.json").write_text(json.dumps({"kind": kind, "seconds": 12.5, "figures": figures}))
        log = MetricsLog(folder / "metrics.jsonl")
        for step in range(1, 30):
            value = 5.0 / step
            log.write(step, loss_nats=value, heldout_loss_nats=value, heldout_bits_per_byte=value)
            log.write(step, heldout_accuracy=0.6, tokens_per_second=2e4)
            log.write(step, proxy_reward=value, gold_reward=value, kl_nats_per_reply=value - 0.5, reply_tokens=30.0)
            log.write(step, ended_rate=0.9, distinct_1=0.2, distinct_2=0.5, repeated_4gram_rate=0.1)
    (tmp_path / "01-curate" / "ledger.json").write_text(
        json.dumps({"removed": {"near_duplicate": 7, "too_short": 3}, "examples": {"too_short": ["<i>hm</i>"]}})
    )
    (tmp_path / "07-evaluate" / "samples.json").write_text(json.dumps(SAMPLES))
    (tmp_path / "06-ppo" / "best_liked.json").write_text(json.dumps(BEST_LIKED))
    return tmp_path


class Page(HTMLParser):
    """Tags left open, and every attribute that could load something."""

    VOID = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "data", "action") and not (value or "").startswith("#"):
                self.loads.append((tag, value or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(folder: Path) -> Page:
    page = Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    return page


@pytest.mark.parametrize("kind", [kind for kind in FIGURES if kind != "evaluate"])
def test_good_figures_pass(kind: str) -> None:
    [(rule, passed, shown)] = verdicts(kind, FIGURES[kind])
    assert passed is True and rule and shown


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("curate", {"documents_kept": 91}),
        ("tokenizer", {"round_trip_exact": False}),
        ("pretrain", {"heldout_bits_per_byte": 1.2}),  # equal is not below
        ("sft", {"end_of_turn_rate": 0.95}),
        ("reward", {"length_baseline_accuracy": 0.70}),  # sigma = .08 / 3.92 = .0204: .04 is 1.96 of them
        ("ppo", {"gold_win_rate_ci95": [0.5, 0.9]}),
    ],
)
def test_figures_at_the_edge_fail(kind: str, change: dict[str, Any]) -> None:
    [(_, passed, _)] = verdicts(kind, {**FIGURES[kind], **change})
    assert passed is False


def test_reward_passes_just_above_two_sigma() -> None:
    [(_, passed, shown)] = verdicts("reward", {**FIGURES["reward"], "length_baseline_accuracy": 0.699})
    assert passed is True and "2.0 σ" in shown


@pytest.mark.parametrize("kind", [kind for kind in FIGURES if kind != "evaluate"])
def test_absent_figures_are_never_a_pass(kind: str) -> None:
    [(_, passed, shown)] = verdicts(kind, {})
    assert passed is None and "not measured" in shown


def test_evaluate_has_no_rule() -> None:
    assert verdicts("evaluate", FIGURES["evaluate"]) == []


def test_report_json(run_folder: Path) -> None:
    report = write_report(run_folder)
    assert json.loads((run_folder / "report.json").read_text()) == report
    assert list(report["stages"]) == list(FIGURES)
    assert report["stages"]["ppo"]["kind"] == "ppo"
    assert report["stages"]["ppo"]["seconds"] == 12.5
    assert report["stages"]["pretrain"]["figures"]["heldout_bits_per_byte"] == 1.0
    assert report["totals"]["seconds"] == 7 * 12.5
    assert (report["totals"]["rules_passed"], report["totals"]["rules_failed"]) == (6, 0)
    assert report["seed"] == 7
    assert [source["licence"] for source in report["sources"]] == ["Apache-2.0", "CC0 <public>"]
    assert report["environment"]["cores"] == 2


def test_numbers_that_are_not_finite_become_null(run_folder: Path) -> None:
    path = run_folder / "06-ppo" / "figures.json"
    path.write_text('{"kind": "ppo", "seconds": 1.0, "figures": {"gold_win_rate": NaN, "deep": [Infinity, 1]}}')
    report = write_report(run_folder)
    assert report["stages"]["ppo"]["figures"] == {"gold_win_rate": None, "deep": [None, 1]}
    assert "NaN" not in (run_folder / "report.json").read_text()
    assert report["stages"]["ppo"]["rules"][0]["passed"] is None


def test_page_is_whole_and_loads_nothing(run_folder: Path) -> None:
    write_report(run_folder)
    page = read_page(run_folder)
    assert page.open == []
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)|xmlns", html)
    assert html.count("<svg") == 11  # pretrain 2, sft 1, reward 2, ppo 6


def test_page_shows_samples_escaped_and_side_by_side(run_folder: Path) -> None:
    write_report(run_folder)
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "讲 &lt;b&gt;个&lt;/b&gt;" in html
    assert re.findall(r'<blockquote data-model="(\w+)"', html) == ["base", "sft", "ppo"]
    text = " ".join(read_page(run_folder).text)
    assert "p <1>" in text
    for shown in ("near_duplicate", "<i>hm</i>", "CC0 <public>", "5-gram", "a <fast> one", "https://example.org"):
        assert shown in text


def test_replies_that_the_reward_likes_best_stand_beside_the_judge(run_folder: Path) -> None:
    write_report(run_folder)
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    shown = html.partition("the 1 replies that the reward likes best")[2].partition("</details>")[0]
    assert re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", shown) == [
        "prompt", "reply", "proxy", "gold", "p &lt;1&gt;", "the end the end", "9.25", "0.5",
    ]  # fmt: skip


def test_reward_against_distance_is_over_the_root_and_never_of_less_than_nothing() -> None:
    metrics = [
        {"step": 1, "proxy_reward": 0.5, "kl_nats_per_reply": -0.1},
        {"step": 2, "proxy_reward": 1.0, "kl_nats_per_reply": 4.0, "gold_reward": 3.0},
    ]
    [panel] = [panel for panel in panels("ppo", metrics, {}) if panel.title == "reward against distance"]
    proxy, gold = panel.lines
    assert (proxy.steps, proxy.values, proxy.dots) == ([0.0, 2.0], [0.5, 1.0], True)
    assert (gold.steps, gold.values) == ([2.0], [3.0])
    assert "<svg" in draw(panel, "x")


def test_the_likelihood_is_drawn_without_what_is_added_to_it() -> None:
    metrics = [{"step": 1, "loss_nats": 3.0, "label_nats": 2.0}]
    figures = {"heldout_loss_nats": 2.0, "heldout_bits_per_byte": 1.0}
    assert [list(line.values) for line in panels("pretrain", metrics, figures)[0].lines] == [[1.0], [1.0]]


def test_best_of_n_shows_its_curve() -> None:
    figures = {"best_of_n_proxy": {"4": 2.0, "1": 0.0, "16": 3.0}, "best_of_n_gold": {}}
    [panel] = panels("best_of_n", [], figures)
    assert [(line.steps, line.values) for line in panel.lines] == [([0.0, 2.0, 4.0], [0.0, 2.0, 3.0])]


def test_failed_rule_is_seen(run_folder: Path) -> None:
    path = run_folder / "06-ppo" / "figures.json"
    figures = {**FIGURES["ppo"], "gold_win_rate_ci95": [0.4, 0.6]}
    path.write_text(json.dumps({"kind": "ppo", "seconds": 1.0, "figures": figures}))
    report = write_report(run_folder)
    assert report["totals"]["rules_failed"] == 1
    assert "✗" in (run_folder / "report.html").read_text(encoding="utf-8")


def test_unfinished_run_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[run]\nname = "half"\n[curate]\n[tokenizer]\n')
    folder = tmp_path / "01-curate"
    folder.mkdir()
    (folder / "figures.json").write_text(json.dumps({"kind": "curate", "seconds": 2.0, "figures": FIGURES["curate"]}))
    (tmp_path / "02-tokenizer").mkdir()
    report = write_report(tmp_path)
    assert list(report["stages"]) == ["curate"]
    assert (report["totals"]["stages_done"], report["totals"]["stages"]) == (1, 2)
    assert "1 of 2 stages done" in " ".join(read_page(tmp_path).text)


def test_two_reports_of_one_run_are_equal(run_folder: Path) -> None:
    write_report(run_folder)
    first = (run_folder / "report.html").read_text(encoding="utf-8")
    write_report(run_folder)
    second = (run_folder / "report.html").read_text(encoding="utf-8")
    memory = re.compile(r"[\d.]+[kMG]B")  # the process may have grown in between
    assert memory.sub("", first) == memory.sub("", second)


def test_curves_are_drawn_once_and_again_when_they_change(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def watched(panel: Panel, name: str) -> str:
        names.append(name)
        return draw(panel, name)

    monkeypatch.setattr("jielong.report.curves.draw", watched)
    drawn = Drawn()
    write_report(run_folder, drawn)
    assert len(names) == 11
    first = (run_folder / "report.html").read_text(encoding="utf-8")
    write_report(run_folder, drawn)
    second = (run_folder / "report.html").read_text(encoding="utf-8")
    assert len(names) == 11 and second.count("<svg") == first.count("<svg")
    (metrics,) = run_folder.glob("*-sft/metrics.jsonl")
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 1000, "loss_nats": 0.5}\n')
    write_report(run_folder, drawn)
    assert names[11:] == ["sft-0"]


def test_smooth_is_the_mean_of_the_last_values() -> None:
    assert smooth([4.0, 2.0, 6.0, 0.0], 2) == [4.0, 3.0, 4.0, 3.0]


def test_curves_take_the_colours_of_the_page() -> None:
    svg = draw(Panel("loss", [Line("training", [1, 2, 3], [3.0, 2.0, 1.5])], [("3-gram", 1.8)]), "pretrain")
    assert "var(--c1)" in svg and "var(--line)" in svg and "3-gram" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
