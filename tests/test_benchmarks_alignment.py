"""The arithmetic of benchmarks/alignment.py and its neighbours, on curves and points whose answer is known."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from jielong.align.comparisons import Comparison
from jielong.generate.engine import Completion

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return lambda name: importlib.import_module(name)


@pytest.mark.parametrize(("form", "a", "b"), [("rl", 1.5, 0.4), ("bon", 0.9, 0.15), ("rl", 0.3, -0.1)])
def test_a_curve_of_that_form_is_found_again(script: Any, form: str, a: float, b: float) -> None:
    module = script("alignment_fit")
    true = module.Fit(form, a, b, 1.0, 0)
    distances = [0.0, 0.2, 0.5, 1.0, 1.7, 2.4, 3.0]
    found = module.fit_gao(distances, [true.value(d) for d in distances], form)
    assert (found.a, found.b) == (pytest.approx(a), pytest.approx(b))
    assert found.r2 == pytest.approx(1.0) and found.num == 6
    assert found.value(0.0) == 0.0


def test_values_and_peaks_by_hand(script: Any) -> None:
    module = script("alignment_fit")
    rl, bon = module.Fit("rl", 1.0, 0.5, 1.0, 9), module.Fit("bon", 1.0, 0.25, 1.0, 9)
    assert rl.value(math.e) == pytest.approx(math.e * 0.5) and bon.value(2.0) == pytest.approx(1.0)
    assert rl.peak == pytest.approx(math.e) and bon.peak == pytest.approx(2.0)
    for fit in (rl, bon):
        assert fit.value(fit.peak) > max(fit.value(fit.peak - 0.1), fit.value(fit.peak + 0.1))
    assert module.Fit("rl", 1.0, -0.1, 1.0, 9).peak is None


def test_too_few_points_are_refused(script: Any) -> None:
    with pytest.raises(ValueError, match="2 points with d > 0"):
        script("alignment_fit").fit_gao([0.0, 1.0, 2.0], [0.0, 1.0, 1.5], "rl")


def test_a_place_between_two_points_and_one_never_reached(script: Any) -> None:
    at = script("alignment_fit").at
    points = [{"kl": 0.0, "gold": 0.0}, {"kl": 2.0, "gold": 1.0}, {"kl": 1.0, "gold": 3.0}, {"kl": 3.0, "gold": 2.0}]
    assert at(points, "kl", 0.5, "gold") == pytest.approx(0.25)
    assert at(points, "kl", 2.5, "gold") == pytest.approx(2.25)  # first reached on the last stretch
    assert at(points, "kl", 1.5, "gold") == pytest.approx(0.75), "the first time counts"
    assert at(points, "kl", 3.5, "gold") is None


def test_what_has_ended_keeps_its_value_and_what_has_not_begun_has_none(script: Any) -> None:
    held = script("alignment_fit").held
    points = [{"s": 10.0, "gold": 0.0}, {"s": 20.0, "gold": 1.0}]
    assert held(points, "s", 5.0, "gold") is None
    assert held(points, "s", 15.0, "gold") == pytest.approx(0.5) and held(points, "s", 99.0, "gold") == 1.0


def test_windows_keep_all_rows(script: Any) -> None:
    rows = [{"x": float(n)} for n in range(7)]
    assert script("alignment_fit").windows(rows, ("x",), 3) == [{"x": 1.0}, {"x": 4.5}]


def test_shuffled_labels_are_drawn_by_lot(script: Any) -> None:
    message = [{"role": "user", "content": "p"}]
    given = [Comparison(message, ["a", "b"], [(0, 1)]) for _ in range(400)]
    turned = script("alignment_runs").shuffled(given, seed=1)
    share = sum(each.pairs == [(0, 1)] for each in turned) / len(turned)
    assert 0.42 < share < 0.58  # 3.2 sigma
    assert {tuple(each.pairs) for each in turned} == {((0, 1),), ((1, 0),)}
    assert script("alignment_runs").shuffled(given, seed=1) == turned


def test_a_random_reward_depends_on_the_reply_alone(script: Any) -> None:
    reward = script("alignment_runs").RandomReward(3)
    replies = [Completion([1, 2], [n, n + 1], "", [], "stop") for n in range(300)]
    scores = torch.tensor(reward.score_replies(replies))
    assert torch.equal(scores, torch.tensor(reward.score_replies(replies)))
    assert abs(float(scores.mean())) < 0.2 and 0.85 < float(scores.std()) < 1.15
    assert not torch.equal(scores, torch.tensor(script("alignment_runs").RandomReward(4).score_replies(replies)))


def test_marks_are_even_and_end_with_the_last_step(script: Any) -> None:
    marks = script("alignment_runs").even_marks
    assert marks(120) == [20, 40, 60, 80, 100, 120]
    assert marks(2) == [1, 2] and marks(1) == [1]


def start() -> dict[str, Any]:
    figures = {"proxy": 0.0, "gold": 3.5, "kl_nats": 0.0, "gold_win_rate": 0.5, "reply_tokens": 58.0}
    figures |= {"ended_rate": 0.9, "distinct_2": 0.3, "repeated_4gram_rate": 0.05}
    return {**figures, "tax": {"heldout_bits_per_byte": 1.0, "other_skills_right": 0.7}}


def run_of(scale: float) -> dict[str, Any]:
    rollouts = [
        {"kl_nats_per_reply": 0.2 * n, "proxy": scale * n / 10, "gold": 3.5 + scale * math.sqrt(n) / 5}
        for n in range(12)
    ]
    point = {**start(), "step": 12, "seconds": 60.0, "kl_nats": 2.2, "gold": 3.5 + scale, "proxy": 1.0,
             "gold_win_rate": 0.8, "gold_win_rate_ci95": [0.7, 0.9]}  # fmt: skip
    return {"rollouts": rollouts, "points": [point], "tax": start()["tax"]}


def test_the_tables_and_the_figure_of_hand_made_results(script: Any, tmp_path: Path) -> None:
    module = script("alignment")
    results: dict[str, Any] = {"start": start(), **{f"beta-{beta:g}": run_of(1.0) for beta in module.BETAS}}
    curve = [
        {"n": float(n), "kl_bound_nats": math.log(n) - (n - 1) / n, "proxy": math.log2(n),
         "gold": 3.5 + math.log2(n) / 9, "gold_beats_another": 0.8 * n / (n + 1)} for n in (1, 2, 4, 8, 16)
    ]  # fmt: skip
    results |= {"curve": {"curve": curve, "by_gold": curve}, "dpo": {**run_of(0.5), "before": 5.0}}
    reward = {"heldout_accuracy": 0.5, "seconds": 40.0}
    results["null-shuffled"] = {**run_of(0.0), "reward": reward}
    summary = module.summarise(results)
    text = module.report(results, summary)
    assert "PPO, β = 0.05" in text and "Null controls" in text and "Alignment tax" in text
    ppo, dpo = summary["methods"]["ppo"], summary["methods"]["dpo"]
    assert (ppo[0]["seconds"], ppo[1]["seconds"]) == (40.0, 100.0), "a reward model had to be trained first"
    assert (dpo[0]["seconds"], dpo[1]["seconds"]) == (5.0, 65.0)
    assert ppo[1]["gold"] == pytest.approx(1.0)
    assert summary["best_of_n"]["gold_fit"]["form"] == "bon"
    script("alignment_figure").draw(summary, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert svg.count("<svg") == 1 and "best of n" in svg


def test_only_the_making_of_items_is_timed(script: Any) -> None:
    def items() -> Any:
        for number in range(3):
            sum(range(300_000))
            yield number

    found = []
    for item, spent in script("alignment_runs").timed(items()):
        sum(range(3_000_000))  # the caller's own work
        found.append((item, spent))
    assert [item for item, _ in found] == [0, 1, 2]
    seconds = [spent for _, spent in found]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 0.1  # 900 thousand additions, not ten million


def test_growth_of_memory_by_hand(script: Any) -> None:
    found = script("memory_growth").growth([100, 200, 300], [1000, 1300, 1600])
    assert found.bytes_per_iteration == pytest.approx(3.0) and found.span_bytes == 600
    flat = script("memory_growth").growth([1, 2, 3], [5, 5, 5])
    assert flat.bytes_per_iteration == 0 and flat.span_bytes == 0
    with pytest.raises(ValueError, match="two points"):
        script("memory_growth").growth([1], [1])


def test_the_kills_compare_all_but_the_time(script: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    for seconds in (1.0, 2.0):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss_nats": 0.5, "rollout_seconds": {seconds}}}\n')
        found = script("kills").outcome(tmp_path)
        assert found["metrics"] == [{"step": 1, "loss_nats": 0.5}] and found["samples"] == ""
    (tmp_path / "model" / "model.safetensors").write_bytes(b"others")
    assert script("kills").outcome(tmp_path)["weights"] != found["weights"]


def test_a_process_is_killed_unless_it_is_over(script: Any, tmp_path: Path) -> None:
    kill = script("kills").kill_after
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert kill(sleeper, tmp_path / "log", 0.1) is True
    assert kill([sys.executable, "-c", ""], tmp_path / "log", 20.0) is False
