"""Searching: with runs that are played by a function, and once with real ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jielong.errors import RecipeError, TrainingError, UsageError
from jielong.search import search as module
from jielong.search.ladder import read_point
from jielong.search.search import run_search
from jielong.search.study import Study
from jielong.search.trial import Curve, Judge, Trial, run_trial, shared_until, take_over

STAGES = ["curate", "tokenizer", "pretrain", "sft"]
TINY = """
[run]
seed = 1
threads = 1
dtype = "float32"
[data.world]
megabytes = 0.1
heldout_megabytes = 0.02
junk = false
[curate]
sources = ["world"]
min_stop_words = 0
max_top_grams = [0.4, 0.4, 0.4]
max_duplicate_grams = [0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
[tokenizer]
vocab_size = 300
[pretrain]
model = {preset = "jie-xs", width = 16, decoder_layers = 1}
context_tokens = 128
batch_rows = 4
num_steps = 4
learning_rate = 1e-3
"""


def study(num_trials: int = 6, **more: Any) -> Study:
    search = {"recipe": "r.toml", "stage": "pretrain", "figure": "loss", "goal": "minimise", "num_trials": num_trials}
    space = {"pretrain.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}
    return Study.model_validate({"search": {**search, **more}, "space": space})


def rate_of(trial: Trial) -> float:
    return float(next(one for one in trial.overrides if "learning_rate" in one).split("=")[1])


class Played:
    """Stands for `run_trial`: the loss is best at a rate of 0.01."""

    def __init__(self, fail: Callable[[int], bool] = lambda _: False) -> None:
        self.rates: list[float] = []
        self.ended: list[float] = []
        self.fail = fail

    def __call__(
        self, trial: Trial, shared: Path | None = None, curve: str | None = None, judge: Judge | None = None
    ) -> bool:
        trial.folder.mkdir(parents=True, exist_ok=True)
        if trial.until != "pretrain":
            return True
        rate = rate_of(trial)
        self.rates.append(rate)
        loss = 1 + (math.log10(rate) + 2) ** 2
        if self.fail(len(self.rates)):
            raise TrainingError("the loss is not finite at step 3")
        for step in (10, 20, 30):
            if judge is not None and not judge(step, loss * 30 / step):
                self.ended.append(rate)
                return False
        report = {"stages": {"pretrain": {"figures": {"loss": loss}}}}
        (trial.folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
        return True


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def searched(monkeypatch: pytest.MonkeyPatch, played: Played, asked: Study, recipe: Path, out: Path) -> dict[str, Any]:
    monkeypatch.setattr(module, "run_trial", played)
    return run_search(asked, recipe, STAGES, out, lambda _: None)


def test_it_finds_the_better_region(monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path) -> None:
    found = searched(monkeypatch, Played(), study(20), recipe, tmp_path / "out")
    assert len(found["trials"]) == 20
    assert found["best"]["value"] < 1.1
    assert json.loads((tmp_path / "out" / "search.json").read_text())["best"] == found["best"]


def test_stopped_and_gone_on_with_is_the_same_search(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    whole = Played()
    searched(monkeypatch, whole, study(8), recipe, tmp_path / "whole")

    class Stopped(Played):
        def __call__(self, *arguments: Any) -> bool:
            if len(self.rates) == 5 and arguments[0].until == "pretrain":
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    first, second = Stopped(), Played()
    with pytest.raises(KeyboardInterrupt):
        searched(monkeypatch, first, study(8), recipe, tmp_path / "parts")
    found = searched(monkeypatch, second, study(8), recipe, tmp_path / "parts")
    assert [*first.rates, *second.rates] == whole.rates
    assert [trial["number"] for trial in found["trials"]] == list(range(8))


def test_more_trials_may_be_asked_for_and_nothing_is_run_twice(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    played = Played()
    searched(monkeypatch, played, study(3), recipe, tmp_path / "out")
    searched(monkeypatch, played, study(5), recipe, tmp_path / "out")
    assert len(played.rates) == 5
    with pytest.raises(UsageError, match="holds another search"):
        searched(monkeypatch, played, study(5, figure="other"), recipe, tmp_path / "out")


def test_a_run_that_fails_does_not_end_the_search(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    found = searched(monkeypatch, Played(lambda number: number == 2), study(4), recipe, tmp_path / "out")
    assert [trial["state"] for trial in found["trials"]] == ["finished", "failed", "finished", "finished"]


def test_curves_above_the_median_end_early(monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path) -> None:
    played = Played()
    found = searched(monkeypatch, played, study(16, curve="loss", sampler="random"), recipe, tmp_path / "out")
    assert played.ended
    finished = [trial["value"] for trial in found["trials"] if trial["state"] == "finished"]
    assert all(1 + (math.log10(rate) + 2) ** 2 > sorted(finished)[len(finished) // 2 - 1] for rate in played.ended)
    assert len(finished) >= 4 + 1  # the first ones always run to their end


def test_settings_without_effect_are_refused(monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe's stages are curate"):
        searched(monkeypatch, Played(), study(stage="ppo"), recipe, tmp_path / "out")
    late = study().model_copy(update={"space": {"sft.learning_rate": study().space["pretrain.learning_rate"]}})
    with pytest.raises(RecipeError, match="sft.learning_rate is of a stage after pretrain"):
        searched(monkeypatch, Played(), late, recipe, tmp_path / "out")


def test_what_is_shared_ends_before_the_first_changed_setting() -> None:
    assert shared_until(STAGES, ["pretrain.learning_rate"]) == "tokenizer"
    assert shared_until(STAGES, ["sft.epochs", "tokenizer.vocab_size"]) == "curate"
    assert shared_until(STAGES, ["curate.min_words"]) is None
    assert shared_until(STAGES, ["run.seed"]) is None


def test_only_finished_stages_are_taken_over(tmp_path: Path) -> None:
    for name, done in (("01-curate", True), ("02-tokenizer", False)):
        (tmp_path / "shared" / name).mkdir(parents=True)
        (tmp_path / "shared" / name / "x").write_text(name)
        if done:
            (tmp_path / "shared" / name / "DONE").touch()
    (tmp_path / "run").mkdir()
    take_over(tmp_path / "shared", tmp_path / "run")
    take_over(tmp_path / "shared", tmp_path / "run")  # again: nothing happens
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["01-curate"]
    assert (tmp_path / "run" / "01-curate" / "x").read_text() == "01-curate"


def test_a_half_written_line_of_a_curve_waits(tmp_path: Path) -> None:
    path, curve = tmp_path / "metrics.jsonl", Curve("loss")
    assert list(curve.news(path)) == []
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "other": 1}\n{"step": 3, "lo')
    assert list(curve.news(path)) == [(1, 2.0)]
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "other": 1}\n{"step": 3, "loss": 1.5}\n')
    assert list(curve.news(path)) == [(3, 1.5)]


def test_a_real_search_shares_what_is_the_same(recipe: Path, tmp_path: Path) -> None:
    asked = study(1, figure="heldout_loss_nats")
    found = run_search(asked, recipe, STAGES[:3], tmp_path / "out", lambda _: None)
    assert found["trials"][0]["state"] == "finished" and 0 < found["best"]["value"] < 10
    same = "01-curate/DONE"
    assert (tmp_path / "out/trial-000" / same).samefile(tmp_path / "out/shared" / same)
    point = read_point(tmp_path / "out" / "trial-000", "heldout_loss_nats")
    assert point["loss"] == found["best"]["value"] and point["tokens"] > 0
    wrong = Trial(recipe, tmp_path / "wrong", ["pretrain.learning_rat=1"], "pretrain")
    with pytest.raises(RecipeError, match="(?s)exit code 2.*did you mean `learning_rate`"):
        run_trial(wrong)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no report.json there"):
        read_point(tmp_path, "loss")
