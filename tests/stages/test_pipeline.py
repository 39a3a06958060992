"""A run as a whole: its folder and report, what is skipped, what --until and run.seed do, and what a change touches."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import jielong
from jielong.align.reward import RewardModel
from jielong.config import load_toml
from jielong.recipe import parse_recipe

Invoke = Callable[..., tuple[int, str, str]]
StageOf = Callable[[Path, str], Path]

STAGES = ["curate", "tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate"]
MODELS = ["pretrain", "sft", "reward", "ppo"]
SKILLS = {
    "facts_seen", "facts_unseen", "arithmetic", "translation", "chain", "story", "identity", "refusal", "terminal",
    "echo",
}  # fmt: skip
FIGURES = {
    "curate": ["documents_in", "documents_kept", "removed", "masked", "documents_per_second"],
    "tokenizer": ["bytes_per_token", "round_trip_exact"],
    "pretrain": [
        "heldout_loss_nats", "heldout_bits_per_byte", "trigram_bits_per_byte", "fivegram_bits_per_byte",
        "tokens_per_second", "model_flops_per_second", "mfu", "tokens_seen", "parameters",
    ],
    "sft": ["heldout_loss_nats", "end_of_turn_rate", "exact_match", "exact_match_base"],
    "reward": [
        "heldout_accuracy", "heldout_accuracy_ci95", "length_baseline_accuracy", "noise_ceiling_accuracy",
        "calibration_error", "comparisons",
    ],
    "ppo": [
        "gold_win_rate", "gold_win_rate_ci95", "gold_win_rate_length_controlled", "kl_nats_per_reply",
        "proxy_reward_before", "proxy_reward_after", "gold_reward_before", "gold_reward_after",
        "heldout_bits_per_byte_before", "heldout_bits_per_byte_after",
    ],
    "evaluate": ["exact_match", "exact_match_ci95"],
}  # fmt: skip


@pytest.fixture(scope="module")
def report(reference: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((reference / "report.json").read_text(encoding="utf-8"))
    return found


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    return {name: stage["figures"] for name, stage in report["stages"].items()}


def stage_files(folder: Path) -> dict[str, int]:
    """File of a stage -> when it was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("[0-9][0-9]-*/**/*") if path.is_file()}


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.parent.name[3:]: json.loads(path.read_text(encoding="utf-8"))["hash"] for path in folder.glob("*/DONE")
    }


# ---- what a run leaves ----


def test_report_has_every_figure(report: dict[str, Any]) -> None:
    assert list(report["stages"]) == STAGES
    for name, stage in report["stages"].items():
        assert stage["kind"] == name and stage["seconds"] > 0
        missing = [figure for figure in FIGURES[name] if stage["figures"].get(figure) is None]
        assert not missing, (name, missing)
    assert report["totals"]["seconds"] == pytest.approx(sum(s["seconds"] for s in report["stages"].values()))
    assert report["totals"]["stages_done"] == 7
    assert report["environment"]["threads"] == 1 and report["environment"]["torch"]
    assert report["seed"] == 7


def test_figures_hold_together(report: dict[str, Any], reference: Path) -> None:
    figures = figures_of(report)
    curate = figures["curate"]
    assert curate["documents_in"] == curate["documents_kept"] + sum(curate["removed"].values())
    assert sum(curate["removed"].values()) > 0  # the world hides junk: finding none would be a failure
    documents = (reference / "01-curate" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(documents) == curate["documents_kept"]
    assert {"all", "en", "zh"} <= set(figures["tokenizer"]["bytes_per_token"])
    assert figures["tokenizer"]["round_trip_exact"] is True
    pretrain = figures["pretrain"]
    assert pretrain["tokens_seen"] == 24 * 4 * 128
    assert pretrain["heldout_bits_per_byte"] < 8  # a byte says 8 bits to who knows nothing
    assert 0 < pretrain["fivegram_bits_per_byte"] < pretrain["trigram_bits_per_byte"]
    model, _ = jielong.load(reference / "03-pretrain" / "model")
    assert pretrain["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    for table in (figures["sft"]["exact_match"], figures["sft"]["exact_match_base"]):
        assert set(table) == SKILLS
    assert set(figures["evaluate"]["exact_match"]) == {"base", "sft", "ppo"}
    assert all(set(table) == SKILLS for table in figures["evaluate"]["exact_match"].values())
    for rate, interval in (
        (figures["reward"]["heldout_accuracy"], figures["reward"]["heldout_accuracy_ci95"]),
        (figures["ppo"]["gold_win_rate"], figures["ppo"]["gold_win_rate_ci95"]),
    ):
        assert 0 <= interval[0] <= rate <= interval[1] <= 1
    assert figures["reward"]["comparisons"] <= 24 * 3  # prompts x pairs of 3 replies; equal replies make none
    ppo = figures["ppo"]
    assert ppo["heldout_bits_per_byte_before"] > 0 and math.isfinite(ppo["kl_nats_per_reply"])
    assert ppo["judged_replies"] % 3 == 0 and ppo["episodes"] == 6 * 8


def test_run_folder(reference: Path, recipe: Path, stage_of: StageOf) -> None:
    assert {path.name for path in reference.glob("[0-9][0-9]-*")} == {
        f"{number:02d}-{name}" for number, name in enumerate(STAGES, start=1)
    }
    assert parse_recipe(reference / "recipe.toml").hash == parse_recipe(recipe).hash
    for name in STAGES:
        stage = stage_of(reference, name)
        assert load_toml(stage / "config.toml")[name]["kind"] == name
        assert json.loads((stage / "DONE").read_text(encoding="utf-8"))["hash"]
    for name in MODELS:
        assert (stage_of(reference, name) / "model" / "model.safetensors").exists()
    left_over = [
        str(path)
        for path in reference.rglob("*")
        if path.name == "checkpoints" or path.suffix in (".part", ".tmp") or path.name.startswith(".unfinished")
    ]
    assert not left_over


def test_metrics_have_one_line_a_step(
    reference: Path, stage_of: StageOf, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    for name, num_steps in (("pretrain", 24), ("sft", 24), ("reward", 24), ("ppo", 6)):
        records = metrics_of(stage_of(reference, name))
        assert [record["step"] for record in records] == list(range(1, num_steps + 1))
    pretrain = metrics_of(stage_of(reference, "pretrain"))
    assert all(record["loss_nats"] > 0 and record["tokens_per_second"] > 0 for record in pretrain)
    assert [r["step"] for r in pretrain if "heldout_loss_nats" in r] == [8, 16, 24]
    ppo = metrics_of(stage_of(reference, "ppo"))
    assert all({"proxy_reward", "kl_nats_per_reply", "ended_rate"} <= set(record) for record in ppo)
    assert [record["step"] for record in ppo if "gold_reward" in record] == [1, 2, 4, 6]


def test_models_descend_from_each_other(reference: Path, stage_of: StageOf, sha256: Callable[[Path], str]) -> None:
    models = {name: stage_of(reference, name) / "model" for name in MODELS}
    assert len({sha256(folder / "model.safetensors") for folder in models.values()}) == 4
    assert len({sha256(folder / "tokenizer.json") for folder in models.values()}) == 1
    for name in ("pretrain", "sft", "ppo"):
        model, tokenizer = jielong.load(models[name])
        assert model.config.vocab_size == tokenizer.vocab_size == 512
    assert RewardModel.load(models["reward"]).model.config.head == "scalar"
    for child, parent in (("sft", "pretrain"), ("reward", "sft"), ("ppo", "sft")):
        provenance = json.loads((models[child] / "jielong.json").read_text(encoding="utf-8"))
        assert not Path(provenance["parent"]).is_absolute()  # a run may be moved
        assert (models[child] / provenance["parent"]).resolve() == models[parent].resolve()


def test_models_say_where_they_come_from(reference: Path, recipe: Path, stage_of: StageOf) -> None:
    tokenizers = {jielong.load(stage_of(reference, name) / "model")[1].hash for name in ("pretrain", "sft", "ppo")}
    for name, steps in (("pretrain", 24), ("sft", 24), ("reward", 24), ("ppo", 6)):
        provenance = json.loads((stage_of(reference, name) / "model" / "jielong.json").read_text(encoding="utf-8"))
        assert (provenance["stage"], provenance["kind"], provenance["steps"]) == (name, name, steps)
        assert provenance["recipe_hash"] == parse_recipe(recipe).hash
        assert provenance["data_hash"] == hashes(reference)["curate"]
        assert {provenance["tokenizer_hash"]} == tokenizers
    assert provenance["parent"] == "../../04-sft/model"


class References(HTMLParser):
    """All tags of a page, and where its attributes point."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        pointing = ("src", "srcset", "href", "xlink:href", "poster", "action", "background")
        self.references += [value or "" for name, value in attrs if name in pointing]


def test_page_needs_no_network(reference: Path) -> None:
    page = (reference / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4  # curves of pretrain, sft, reward, ppo
    found = References()
    found.feed(page)
    assert found.tags >= {"svg", "style", "table"}
    assert not found.tags & {"link", "iframe", "object", "embed", "base"}
    references = found.references + re.findall(r"url\(([^)]*)\)", page)
    assert references and [one for one in references if not one.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|WebSocket|import\s*\(", page)
    for name in STAGES:
        assert name in page


# ---- running again ----


def test_finished_stages_are_skipped(
    recipe: Path, copied: Callable[..., Path], report: dict[str, Any], invoke: Invoke
) -> None:
    folder = copied()
    before = stage_files(folder)
    assert len(before) > 40
    code, out, said = invoke("run", recipe, "--out", folder, "--json")
    assert code == 0
    assert [name for name in STAGES if f"✓ {name}  already done" in said] == STAGES
    assert stage_files(folder) == before
    again = json.loads(out)
    assert again["stages"] == report["stages"]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["stages"] == report["stages"]


def test_a_report_that_a_kill_prevented_is_written(recipe: Path, copied: Callable[..., Path], invoke: Invoke) -> None:
    folder = copied()
    for name in ("report.json", "report.html"):
        (folder / name).unlink()
    assert invoke("run", recipe, "--out", folder)[0] == 0
    assert list(json.loads((folder / "report.json").read_text(encoding="utf-8"))["stages"]) == STAGES
    assert (folder / "report.html").exists()


def test_until(recipe: Path, tmp_path: Path, reference: Path, invoke: Invoke) -> None:
    folder = tmp_path / "run"
    code, out, _ = invoke("run", recipe, "--out", folder, "--until", "curate", "--json")
    assert code == 0
    assert list(json.loads(out)["stages"]) == ["curate"]
    assert {path.name for path in folder.glob("[0-9][0-9]-*")} == {"01-curate"}
    before = stage_files(folder)
    assert invoke("run", recipe, "--out", folder, "--until", "tokenizer")[0] == 0
    assert {path.name for path in folder.glob("[0-9][0-9]-*")} == {"01-curate", "02-tokenizer"}
    assert before.items() <= stage_files(folder).items()
    reference_hashes = hashes(reference)  # a part of a run is the same run
    assert hashes(folder) == {name: reference_hashes[name] for name in ("curate", "tokenizer")}


def test_until_a_stage_that_is_not_there(recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, _, said = invoke("run", recipe, "--out", tmp_path / "run", "--until", "rewrad")
    assert code == 2
    assert "--until rewrad: no such stage" in said and "did you mean 'reward'" in said
    assert not (tmp_path / "run").exists()


# ---- seeds and settings ----


def test_equal_seeds_equal_everything(
    recipe: Path,
    tmp_path: Path,
    reference: Path,
    report: dict[str, Any],
    stage_of: StageOf,
    lasting: Callable[[Any], Any],
) -> None:
    folder = tmp_path / "again"
    again = jielong.run(recipe, out=folder, quiet=True)
    assert hashes(folder) == hashes(reference)
    assert lasting(figures_of(again)) == lasting(figures_of(report))
    files = ["01-curate/documents.jsonl", "01-curate/heldout.jsonl", "02-tokenizer/model/tokenizer.json"]
    files += [f"{stage_of(folder, name).name}/model/model.safetensors" for name in MODELS]
    files += ["05-reward/comparisons.jsonl", "06-ppo/samples.json", "07-evaluate/samples.json"]
    assert [name for name in files if (folder / name).read_bytes() != (reference / name).read_bytes()] == []


def test_another_seed_changes_world_weights_and_sampling(
    recipe: Path, tmp_path: Path, reference: Path, stage_of: StageOf, sha256: Callable[[Path], str]
) -> None:
    folder = tmp_path / "other"
    jielong.run(recipe, out=folder, overrides=["run.seed=8"], quiet=True)
    ours, theirs = hashes(folder), hashes(reference)
    assert list(ours) and [name for name in STAGES if ours[name] == theirs[name]] == []
    files = ["01-curate/documents.jsonl", "02-tokenizer/model/tokenizer.json", "05-reward/comparisons.jsonl"]
    files += [f"{stage_of(folder, name).name}/model/model.safetensors" for name in MODELS]
    assert [name for name in files if sha256(folder / name) == sha256(reference / name)] == []
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["seed"] == 8


def test_seed_of_the_weights_alone(
    recipe: Path, reference: Path, tmp_path: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    """A stage under another name draws other numbers from the same seed: no two purposes share them."""
    text = recipe.read_text(encoding="utf-8").replace("[pretrain]", '[base]\nkind = "pretrain"')
    renamed = tmp_path / "renamed.toml"
    renamed.write_text(text, encoding="utf-8")
    jielong.run(renamed, out=tmp_path / "run", until="base", quiet=True)
    for name in ("01-curate/documents.jsonl", "02-tokenizer/model/tokenizer.json"):
        assert (tmp_path / "run" / name).read_bytes() == (reference / name).read_bytes()
    losses = [
        [record["loss_nats"] for record in metrics_of(stage)]
        for stage in (tmp_path / "run" / "03-base", reference / "03-pretrain")
    ]
    assert len(losses[0]) == len(losses[1]) == 24 and losses[0][0] != losses[1][0]


def test_a_changed_setting_touches_its_stage_and_those_after_it(
    recipe: Path, copied: Callable[..., Path], reference: Path, invoke: Invoke, sha256: Callable[[Path], str]
) -> None:
    folder = copied()
    before = stage_files(folder)
    command = ("run", recipe, "--out", folder, "--set", "sft.learning_rate=1e-3", "--until", "sft")
    code, _, said = invoke(*command)
    assert code == 2
    assert f"{folder / '04-sft'} was made with other settings" in said
    assert "03-pretrain" not in said and "--out" in said
    assert stage_files(folder) == before
    # The settings that are not those of this recipe are named in the folder's own config.
    assert load_toml(folder / "04-sft" / "config.toml")["sft"]["learning_rate"] == 3e-3

    for path in sorted(folder.glob("[0-9][0-9]-*"))[3:]:  # as the message says
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()
    code, _, said = invoke(*command)
    assert code == 0
    assert [name for name in STAGES if f"✓ {name}  already done" in said] == ["curate", "tokenizer", "pretrain"]
    ours, theirs = hashes(folder), hashes(reference)
    assert {name: ours[name] == theirs[name] for name in ours} == {
        "curate": True, "tokenizer": True, "pretrain": True, "sft": False,
    }  # fmt: skip
    weights = Path("04-sft/model/model.safetensors")
    assert sha256(folder / weights) != sha256(reference / weights)


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("run.seed=8", "01-curate"),
        ("run.dtype=bfloat16", "01-curate"),
        ("data.world.megabytes=0.2", "01-curate"),
        ("tokenizer.vocab_size=400", "02-tokenizer"),
        ("pretrain.model.width=64", "03-pretrain"),
        ("reward.label_agreement=0.8", "05-reward"),
        ("ppo.kl_coefficient=0.1", "06-ppo"),
        ("evaluate.questions_per_skill=3", "07-evaluate"),
    ],
)
def test_the_first_stage_that_a_setting_changes_is_named(
    override: str, first: str, recipe: Path, reference: Path, invoke: Invoke
) -> None:
    code, _, said = invoke("run", recipe, "--out", reference, "--set", override)
    assert code == 2
    assert f"{reference / first} was made with other settings" in said


@pytest.mark.parametrize("override", ["run.threads=2", "data.root=elsewhere"])
def test_where_it_runs_changes_no_result(
    override: str, recipe: Path, copied: Callable[..., Path], invoke: Invoke
) -> None:
    code, _, said = invoke("run", recipe, "--out", copied(), "--set", override)
    assert code == 0 and "✓ evaluate  already done" in said


def test_ppo_beside_conversations_with_an_average_and_a_budget(
    recipe: Path, copied: Callable[[str], Path], stage_of: StageOf, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    folder = copied("ppo")
    settings = ["ppo.ptx_coefficient=0.5", "ppo.ptx_source=sft", "ppo.ptx_rows=2", "ppo.ema_decay=0.9"]
    report = jielong.run(recipe, folder, overrides=[*settings, "ppo.kl_limit=0.05"], until="ppo", quiet=True)
    figures = report["stages"]["ppo"]["figures"]
    metrics = metrics_of(stage_of(folder, "ppo"))
    assert all(row["ptx_loss_nats"] > 0 for row in metrics[:-1])
    assert 1 < len(metrics) < 6 and metrics[-1]["kl_nats_per_reply"] > 0.05 and "gold_reward" in metrics[-1]
    assert figures["episodes"] == 8 * len(metrics)
    assert 0 <= figures["gold_win_rate_unaveraged"] <= 1
    assert figures["kl_nats_per_reply_unaveraged"] != figures["kl_nats_per_reply"]
