"""The recipes that are shipped: each parses and can be planned on a machine without its data and without a network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from jielong.recipe import STAGE_SETTINGS, parse_recipe
from jielong.recipe.costing import plan_recipe
from jielong.runtime import detect

CHAIN = ("curate", "tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate")
RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = [
    "bert-films", "bert-novels", "chat-1b", "gpt1-tasks", "gpt2-124m", "multi30k-en-de", "novels-chat", "quickstart",
    "shakespeare", "smoke", "tatoeba-en-zh", "tatoeba-zh-en",
]  # fmt: skip


def test_all_recipes_are_looked_at() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} >= set(NAMES)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_parses_and_plans(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("planning must not use the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr("jielong.recipe.costing.probe_flops", no_network)
    monkeypatch.setenv("JIELONG_DATA", str(tmp_path))
    recipe = parse_recipe(path)
    plan = plan_recipe(recipe, detect("cpu", "float32"), 1e11)
    assert recipe.run.name == path.stem
    assert list(plan["stages"]) == [stage.name for stage in recipe.stages]
    first = next(stage.name for stage in recipe.stages if stage.kind in ("pretrain", "mlm", "translate"))
    assert plan["stages"][first]["seconds"] > 0 and plan["stages"][first]["flops"] > 0
    assert plan["model"]["parameters"] > 0
    assert list(tmp_path.iterdir()) == []


def test_every_source_says_where_it_comes_from() -> None:
    for path in RECIPES.glob("*.toml"):
        for name, source in parse_recipe(path).data.sources.items():
            assert source.licence, f"{path.name}: {name} has no licence"
            assert not Path(source.path).is_absolute() and ".." not in Path(source.path).parts, (path.name, name)


@pytest.mark.parametrize("name", ["smoke", "quickstart"])
def test_chain_covers_every_kind(name: str) -> None:
    recipe = parse_recipe(RECIPES / f"{name}.toml")
    assert set(CHAIN) <= set(STAGE_SETTINGS)
    assert [stage.kind for stage in recipe.stages] == list(CHAIN)
    assert recipe.all_sources() == ("world",)  # nothing to download


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("bert-films", ["classification"]),
     ("bert-novels", ["classification", "pairs", "span"]),
     ("gpt1-tasks", ["classification", "pairs", "similarity", "choice"])],
)  # fmt: skip
def test_classics_fine_tune_on_their_tasks(name: str, tasks: list[str]) -> None:
    stages = [stage for stage in parse_recipe(RECIPES / f"{name}.toml").stages if stage.kind == "finetune"]
    assert [stage.settings.task for stage in stages] == tasks
    if name == "gpt1-tasks":
        assert {(stage.settings.language_weight, stage.settings.epochs) for stage in stages} == {(0.5, 3)}


def test_smoke_is_planned_under_a_minute() -> None:
    plan = plan_recipe(parse_recipe(RECIPES / "smoke.toml"), detect("cpu", "float32"), 1e11)
    assert plan["totals"]["complete"] and plan["totals"]["seconds"] < 60


def test_shakespeare_is_the_setting_of_nanogpt() -> None:
    recipe = parse_recipe(RECIPES / "shakespeare.toml")
    pretrain = next(stage.settings for stage in recipe.stages if stage.kind == "pretrain")
    assert (pretrain.model.decoder_layers, pretrain.model.num_heads, pretrain.model.width) == (4, 4, 128)
    assert (pretrain.context_tokens, pretrain.batch_rows, pretrain.accumulate) == (64, 12, 1)
    assert pretrain.num_steps == 2000
    tokenizer, curate = (next(s.settings for s in recipe.stages if s.kind == kind) for kind in ("tokenizer", "curate"))
    assert tokenizer.vocab_size == 256 + 7  # no merges: a character is a token
    assert (curate.heldout, curate.heldout_fraction) == ("tail", 0.1)


def test_novels_chat_is_the_whole_chain_on_real_text() -> None:
    recipe = parse_recipe(RECIPES / "novels-chat.toml")
    assert [stage.kind for stage in recipe.stages] == list(CHAIN)
    assert "world" not in recipe.all_sources() and "novels" in recipe.all_sources()


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("shakespeare-10m", 10.6e6, 10.8e6), ("gpt2-124m", 100e6, 160e6), ("chat-1b", 0.8e9, 1.5e9)],
)
def test_large_recipes_are_as_large_as_they_say(name: str, least: float, most: float) -> None:
    plan = plan_recipe(parse_recipe(RECIPES / f"{name}.toml"), detect("cpu", "float32"), 1e14)
    assert least < plan["model"]["parameters"] < most
