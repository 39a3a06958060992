"""Token shards in a run: sources mixed by weight, and what is said of shards that are not what they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jielong.data.shards import read_index
from jielong.errors import RecipeError
from jielong.recipe import parse_recipe
from jielong.stages import pretraining, tokens
from jielong.stages.pipeline import run_recipe
from jielong.tokenizer import Tokenizer

from .conftest import RUN

Invoke = Callable[..., tuple[int, str, str]]
RECIPE = f"""{RUN}
[data.sources.tales]
path = "tales.txt"
split = "line"
[data.sources.notes]
path = "notes.txt"
split = "line"
[curate]
sources = ["tales", "notes"]
min_stop_words = 0
near_duplicates = false
heldout_fraction = 0.2
[tokenizer]
vocab_size = 263
[pretrain]
model = {{width = 32, decoder_layers = 1, num_heads = 2}}
context_tokens = 32
batch_rows = 8
num_steps = 4
learning_rate = 1e-3
mixture = {{tales = 1.0, notes = 3.0}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    for name, word in (("tales", "fox"), ("notes", "bell")):
        lines = [
            f"The {word} number {line} went over the hill and came back after {line + 3} days." for line in range(40)
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    path = folder / "mixed.toml"
    path.write_text(RECIPE.replace("[run]", f"[data]\nroot = {json.dumps(str(folder))}\n[run]"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, no_probe: None) -> Path:
    """The run, to be copied."""
    run_recipe(recipe, recipe.parent / "run", quiet=True)
    return recipe.parent / "run"


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A copy whose pretrain stage has its shards and is not finished."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "03-pretrain" / "DONE").unlink()
    return folder


def test_sources_are_mixed_by_weight(finished: Path) -> None:
    """Three rows in four are notes, and there is as much text of either."""
    index = read_index(finished / "03-pretrain" / "tokens")
    assert list(index.sources) == ["notes", "tales"]
    figures = json.loads((finished / "report.json").read_text())["stages"]["pretrain"]["figures"]
    rows = {name: -(-shards[0].num_tokens // 32) for name, shards in index.sources.items()}
    assert figures["epochs_by_source"] == {"notes": 24 / rows["notes"], "tales": 8 / rows["tales"]}
    assert figures["ngram_tokens"] == figures["training_tokens"]


def test_without_a_mixture_nothing_is_told_apart(recipe: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.toml"
    plain.write_text(recipe.read_text().replace("mixture = {tales = 1.0, notes = 3.0}\n", ""))
    report = run_recipe(plain, tmp_path / "run", quiet=True)
    assert list(read_index(tmp_path / "run" / "03-pretrain" / "tokens").sources) == ["all"]
    assert "epochs_by_source" not in report["stages"]["pretrain"]["figures"]


def test_a_large_corpus_is_counted_and_measured_in_part(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "NGRAM_TOKENS", 500)
    monkeypatch.setattr(pretraining, "HELDOUT_BYTES", 1000)
    figures = run_recipe(recipe, tmp_path / "run", quiet=True)["stages"]["pretrain"]["figures"]
    assert 300 < figures["ngram_tokens"] <= 500 < figures["training_tokens"]
    lines = (tmp_path / "run" / "01-curate" / "heldout.jsonl").read_bytes().count(b"\n")
    rows = pretraining.Rows.load(tmp_path / "run" / "03-pretrain" / "heldout.safetensors")
    documents = int(
        (rows.tokens[rows.segments > 0] == Tokenizer.load(tmp_path / "run" / "02-tokenizer" / "model").eos_id).sum()
    )
    assert 1 <= documents < lines


@pytest.mark.parametrize(
    ("mixture", "wanted"),
    [
        (
            "{tale = 1.0, notes = 1.0}",
            "mixture names 'tale', which the curate stage before it does not read; did you mean",
        ),
        ("{notes = 1.0}", "mixture has no weight for 'tales', which the curate stage before it reads; give it one"),
        ("{tales = 0.0, notes = 1.0}", "mixture.tales = 0.0: must be greater than 0"),
        ("{tales = 1.0, notes = 9000.0}", "mixture: tales = 1 of 9001 in all is less than one row in 4096"),
        ("{}", "mixture has no weight for 'tales'"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused(recipe: Path, tmp_path: Path, mixture: str, wanted: str) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(recipe.read_text().replace("{tales = 1.0, notes = 3.0}", mixture))
    with pytest.raises(RecipeError, match=wanted):
        parse_recipe(wrong)


def test_a_cut_shard_is_named(recipe: Path, stopped: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "VERIFIED_BYTES", 0)  # as of a corpus too large to be read at each start
    shard = stopped / "03-pretrain" / "tokens" / "01-00000.bin"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:100])
    code, _, said = invoke("run", recipe, "--out", stopped)
    assert code == 1 and "Traceback" not in said
    assert f"01-00000.bin has 100 bytes, {size} bytes should be there" in said
    shard.unlink()
    code, _, said = invoke("run", recipe, "--out", stopped)
    assert code == 1 and f"01-00000.bin is missing, {size} bytes should be there" in said
    shutil.rmtree(shard.parent)  # what the message says to do
    assert invoke("run", recipe, "--out", stopped)[0] == 0


def test_a_changed_shard_of_a_small_corpus_is_found_at_the_start(recipe: Path, stopped: Path, invoke: Invoke) -> None:
    shard = stopped / "03-pretrain" / "tokens" / "00-00000.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    code, _, said = invoke("run", recipe, "--out", stopped)
    assert code == 1 and "00-00000.bin has changed since it was written" in said


def test_tokens_of_another_tokenizer_are_refused(recipe: Path, stopped: Path, invoke: Invoke) -> None:
    index = stopped / "03-pretrain" / "tokens" / "index.json"
    content = json.loads(index.read_text())
    content["tokenizer_hash"] = "ab" * 32
    index.write_text(json.dumps(content))
    code, _, said = invoke("run", recipe, "--out", stopped)
    assert code == 1 and "holds tokens of another tokenizer: its hash is abababababab…" in said
