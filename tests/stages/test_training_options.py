"""Options of training through a recipe: z-loss in the metrics, compiling where it is asked for, and their hashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from jielong.recipe import parse_recipe
from jielong.runtime import Runtime
from jielong.stages import training
from jielong.stages.identity import run_hash, stage_hash
from jielong.stages.pipeline import run_recipe

RECIPE = """
[run]
device = "cpu"
dtype = "float32"
threads = 1

[data]
root = "."

[data.sources.notes]
path = "notes.txt"
split = "line"

[curate]
sources = ["notes"]
min_stop_words = 0
heldout_fraction = 0.2

[tokenizer]
vocab_size = 263

[pretrain]
model = {width = 16, decoder_layers = 1, num_heads = 2}
context_tokens = 64
batch_rows = 4
num_steps = 3
learning_rate = 1e-3
"""


@pytest.fixture
def recipe(no_probe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    animals = ["fox", "heron", "badger", "otter", "owl"]
    lines = [
        f"On day {n} of the journey the {animals[n % 5]} met an {animals[n * n % 5]} by the river and spoke of rain."
        for n in range(150)
    ]
    (tmp_path / "notes.txt").write_text("\n".join(lines))
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_options_reach_training(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler the run is the same to the bit as one that did not ask for one."""
    asked: list[torch.nn.Module] = []

    @contextmanager
    def without_compiler(model: torch.nn.Module, runtime: Runtime) -> Iterator[str]:
        asked.append(model)
        yield "there is no compiler"

    monkeypatch.setattr(training, "compiled_layers", without_compiler)
    losses = []
    for name, settings in (("plain", []), ("compile", ["run.compile=true"]), ("z", ["pretrain.z_loss=0.01"])):
        run_recipe(recipe, name, settings, until="pretrain", quiet=True)
        lines = (Path(name) / "03-pretrain" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line) for line in lines])
    assert len(asked) == 1
    plain, compiled, with_z = losses
    assert [line["loss_nats"] for line in plain] == [line["loss_nats"] for line in compiled]
    assert "label_nats" not in plain[0] and with_z[0]["label_nats"] == plain[0]["loss_nats"]
    added = [line["loss_nats"] - line["label_nats"] for line in with_z]
    assert all(0.1 < number < 1 for number in added), "log Z of 263 even logits is 5.6, whose square has weight 0.01"


def test_only_what_is_asked_for_enters_the_hashes(recipe: Path) -> None:
    """What was run before there were these options is still finished."""
    runtime = Runtime(torch.device("cpu"), torch.float32)
    plain = parse_recipe(recipe)
    with_z, compiled = parse_recipe(recipe, ["pretrain.z_loss=0.01"]), parse_recipe(recipe, ["run.compile=true"])
    settings = plain.stages[2].settings.model_dump(mode="json")
    assert settings["z_loss"] == 0.0 and plain.stages[2].kind == "pretrain"
    hashes = [stage_hash(one, one.stages[2], {}, "before") for one in (plain, parse_recipe(recipe), with_z)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert run_hash(plain, runtime) == run_hash(with_z, runtime) != run_hash(compiled, runtime)
