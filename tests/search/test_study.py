"""Study files: strict, and every message says what is legal."""

from __future__ import annotations

from pathlib import Path

import pytest

from jielong.config import apply_override
from jielong.errors import RecipeError
from jielong.search.study import load_study, override, pick, recipe_path

SEARCH = """
[search]
recipe = "r.toml"
stage = "pretrain"
figure = "heldout_bits_per_byte"
goal = "minimise"
num_trials = 3
[space]
"pretrain.learning_rate" = {low = 1e-4, high = 1e-2, log = true}
"pretrain.optimizer" = {choices = ["adamw", "muon"]}
"""
SCALING = """
[scaling]
recipe = "r.toml"
stage = "pretrain"
[grid]
"pretrain.model.preset" = ["jie-xs", "jie-s"]
"pretrain.num_steps" = [10, 20, 30]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_search_and_a_ladder_are_read(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, SEARCH), "search")
    assert study.names == ("pretrain.learning_rate", "pretrain.optimizer")
    assert not study.space["pretrain.learning_rate"].is_whole
    ladder = load_study(written(tmp_path, SCALING), "scaling")
    assert len(ladder.points()) == 6
    assert ladder.points()[1] == {"pretrain.model.preset": "jie-xs", "pretrain.num_steps": 20}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('goal = "minimise"', 'goal = "minimize"'), "did you mean 'minimise'"),
        (("[space]", "[spaces]"), r"no table \[spaces\]; did you mean \[space\]"),
        (("low = 1e-4, ", ""), "give low and high, or choices"),
        (("low = 1e-4", "low = 1"), "low = 1 must be below high = 0.01"),
        (("low = 1e-4", "low = -1.0"), "log = true wants low above 0"),
        (('choices = ["adamw", "muon"]', 'choices = ["adamw", "muon"], low = 1'), "choices stands alone"),
        (('choices = ["adamw", "muon"]', 'choices = ["adamw"]'), "optimizer"),
        (("num_trials = 3", "num_trials = 0"), "num_trials"),
        (("num_trials = 3", 'num_trials = 3\nsampler = "grid"'), 'sampler = "grid" wants choices or a step'),
        (("num_trials = 3", "num_trails = 3"), "did you mean `num_trials`"),
    ],
)
def test_a_wrong_study_says_what_is_legal(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in SEARCH
    with pytest.raises(RecipeError, match=message):
        load_study(written(tmp_path, SEARCH.replace(*change)), "search")


def test_the_two_kinds_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds a \[scaling\], not a \[search\]; run  jielong scaling"):
        load_study(written(tmp_path, SCALING), "search")
    with pytest.raises(RecipeError, match=r"either a \[search\]"):
        load_study(written(tmp_path, SEARCH + SCALING.replace("[grid]", "[grid]")), "search")
    with pytest.raises(RecipeError, match=r"\[scaling\] wants a \[grid\]"):
        load_study(written(tmp_path, SCALING.split("[grid]")[0]), "scaling")


def test_the_recipe_lies_beside_the_study(tmp_path: Path) -> None:
    path = written(tmp_path, SEARCH)
    with pytest.raises(RecipeError, match="there is no file"):
        recipe_path(load_study(path, "search"), path)
    (tmp_path / "r.toml").write_text("", encoding="utf-8")
    assert recipe_path(load_study(path, "search"), path) == tmp_path / "r.toml"


@pytest.mark.parametrize("value", [True, False, 3, 1e-4, 0.1 + 0.2, "3", "true", 'a "b" \\ c', "jie-s"])
def test_an_override_keeps_the_value_and_its_type(value: object) -> None:
    mapping = apply_override({"a": {}}, override("a.b", value))  # type: ignore[arg-type]
    assert mapping["a"]["b"] == value and type(mapping["a"]["b"]) is type(value)


def test_a_figure_is_picked_by_its_path() -> None:
    figures = {"loss": 1.5, "exact_match": {"story": 0.25}, "name": "x"}
    assert pick(figures, "loss", "sft") == 1.5
    assert pick(figures, "exact_match.story", "sft") == 0.25
    with pytest.raises(RecipeError, match="stage sft shows no figure 'lose'; it shows: exact_match, loss"):
        pick(figures, "lose", "sft")
    with pytest.raises(RecipeError, match="is 'x', no number"):
        pick(figures, "name", "sft")
