"""The stage `translate` on phrases of the built-in world: figures, resuming, the verb, and what goes wrong, told."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from jielong.data.world.translation import Translation
from jielong.folder import load_translator
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.stages import pipeline, training
from jielong.stages.pipeline import run_recipe
from jielong.stages.translation import snapshots_in

from .elsewhere import run_elsewhere

Outcome = tuple[int, str, str]
Invoke = Callable[..., Outcome]
NUM_STEPS, EVERY = 24, 4

RECIPE = """
[run]
name = "phrases"
seed = 3
device = "cpu"
dtype = "float32"
threads = 1

[data]
root = "{root}"

[data.sources.train-en]
path = "train.en"
format = "txt"
language = "en"

[data.sources.train-zh]
path = "train.zh"
format = "txt"
language = "zh"

[data.sources.dev]
path = "dev.tsv"
languages = ["en", "zh"]

[tokenizer]
sources = ["train-en", "train-zh"]
vocab_size = 400

[translate]
sources = ["train-en", "train-zh"]
validation = ["dev"]
from_language = "zh"
to_language = "en"
model.preset = "transformer-tiny"
model.width = 32
model.embedding_scale = 5.656854249492381
model.encoder_layers = 1
model.decoder_layers = 1
model.head_size = 8
model.ffn_width = 64
model.dropout = 0.1
context_tokens = 32
batch_tokens = 256
num_steps = 24
learning_rate = 1e-2
warmup_steps = 4
average_last = 3
watch_pairs = 8
evaluate_every = 4
checkpoint_every = 6
"""


def phrases(num: int, seed: int) -> list[tuple[str, str]]:
    world, draw = Translation(1), random.Random(seed)
    found = [world.phrase(draw, "train") for _ in range(num)]
    return [(phrase.en, phrase.zh) for phrase in found]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root: train.en, train.zh, dev.tsv. One line is empty, one is far too long, one pair is in both."""
    folder = tmp_path_factory.mktemp("pairs")
    dev = list(dict.fromkeys(phrases(30, 2)))
    texts, translations = ({pair[side] for pair in dev} for side in (0, 1))
    train = [pair for pair in phrases(400, 1) if pair[0] not in texts and pair[1] not in translations]
    train += [("", "空"), ("the cat " * 30, "猫"), dev[0]]
    for side, name in ((0, "train.en"), (1, "train.zh")):
        (folder / name).write_text("".join(f"{pair[side]}\n" for pair in train), encoding="utf-8")
    (folder / "dev.tsv").write_text("".join(f"{en}\t{zh}\n" for en, zh in dev), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def recipe(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "phrases.toml"
    path.write_text(RECIPE.format(root=pairs), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference(recipe: Path, no_probe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "phrases"
    run_recipe(recipe, folder, quiet=True)
    return folder


def figures_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "02-translate" / "figures.json").read_text(encoding="utf-8"))["figures"]


def test_layers_that_are_compiled_decode_uncompiled(
    recipe: Path, no_probe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight lengths of a cache, and torch would have compiled enough of a layer: training would go on without."""

    @contextmanager
    def as_if_compiled(model: Transformer, runtime: Runtime) -> Iterator[None]:
        for layer in (*model.encoder, *model.layers):
            layer._compiled_call_impl = layer._call_impl
        yield
        for layer in (*model.encoder, *model.layers):
            layer._compiled_call_impl = None

    hidden, seen = Transformer.hidden, set[tuple[bool, bool]]()

    def watched(
        self: Transformer, tokens: Tensor, segments: Tensor | None = None, cache: Any = None, *more: Any
    ) -> Any:
        seen.add((cache is not None, self.layers[0]._compiled_call_impl is not None))
        return hidden(self, tokens, segments, cache, *more)

    monkeypatch.setattr(training, "compiled_layers", as_if_compiled)
    monkeypatch.setattr(Transformer, "hidden", watched)
    run_recipe(recipe, tmp_path / "run", ["run.compile=true", "translate.num_steps=5"], quiet=True)
    assert (False, True) in seen and (True, False) in seen  # learned compiled, decoded not
    assert (True, True) not in seen


def test_figures(reference: Path, pairs: Path) -> None:
    found = figures_of(reference)
    num_lines = len((pairs / "train.en").read_text(encoding="utf-8").splitlines())
    assert (found["pairs_in"], found["empty"], found["contaminated"], found["too_long"]) == (num_lines, 1, 1, 1)
    assert found["pairs"] == num_lines - 3
    named = json.loads((reference / "02-translate" / "pairs.json").read_text(encoding="utf-8"))["named"]
    assert len(named) == 1 and named[0][1] in (pairs / "dev.tsv").read_text(encoding="utf-8")
    assert "tok:13a" in found["bleu_signature"] and 0 <= found["bleu"] <= 100
    assert sum(one["sentences"] for one in found["bleu_by_source_words"].values()) == found["validation_pairs"]
    assert found["averaged_evaluations"] == 3 and 0 < found["padding_share"] < 0.2
    assert not (reference / "02-translate" / "checkpoints").exists()
    lines = (reference / "02-translate" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line).get("heldout_loss_nats") for line in lines]
    assert [loss is not None for loss in losses] == [step % EVERY == 0 for step in range(1, NUM_STEPS + 1)]
    assert losses[-1] < 0.8 * losses[EVERY - 1]
    sizes = json.loads((reference / "01-tokenizer" / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert set(sizes["bytes_per_token"]) == {"all", "en", "zh"} and sizes["round_trip_exact"]


def test_weights_are_the_mean_of_the_last_evaluations(
    recipe: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    monkeypatch.setattr(pipeline, "clear_checkpoints", lambda folder: None)
    run_recipe(recipe, tmp_path / "run", quiet=True)
    stage = tmp_path / "run" / "02-translate"
    left = sorted(stage.glob("checkpoints/snapshots/*"))
    assert [path.stem for path in left] == ["step-000016", "step-000020", "step-000024"]
    states = [load_file(path) for path in left]
    model, _ = load_translator(stage / "model")
    for name, value in model.named_parameters():
        mean = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(value.detach().double(), mean)
    ours, theirs = (folder / "02-translate" / "model" / "model.safetensors" for folder in (tmp_path / "run", reference))
    assert ours.read_bytes() == theirs.read_bytes()  # two runs are one


def test_the_last_evaluations_are_those_of_the_last_steps(tmp_path: Path) -> None:
    for step in (999_500, 1_000_000, 999_000):
        (tmp_path / f"step-{step:06d}.safetensors").touch()
    assert [path.stem for path in snapshots_in(tmp_path)] == ["step-999000", "step-999500", "step-1000000"]


@pytest.mark.parametrize(("moment", "step"), [("after_step", 17), ("half_model", 24)])
def test_kill_then_the_same_command(
    moment: str,
    step: int,
    recipe: Path,
    reference: Path,
    tmp_path: Path,
    trouble: Callable[..., tuple[int, str]],
    invoke: Invoke,
    lasting: Callable[[Any], Any],
) -> None:
    folder = tmp_path / "phrases"
    shutil.copytree(reference, folder, ignore=lambda _, names: [name for name in names if name == "02-translate"])
    code, errors = trouble("run", recipe, "--out", folder, stage="translate", step=step, moment=moment)
    assert code == -signal.SIGKILL, errors
    code, _, said = invoke("run", recipe, "--out", folder)
    assert code == 0 and "translate: going on from step" in said, said
    ours, theirs = (path / "02-translate" for path in (folder, reference))
    assert (ours / "model" / "model.safetensors").read_bytes() == (theirs / "model" / "model.safetensors").read_bytes()
    assert (ours / "samples.json").read_bytes() == (theirs / "samples.json").read_bytes()
    assert lasting(figures_of(folder)) == lasting(figures_of(reference))


def test_stopped_when_all_is_measured_the_same_weights_are_averaged(
    recipe: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is of step 18: what the evaluation of step 16 left must be there still."""

    def stop(path: Path, value: object) -> None:
        if path.name == "figures.json" and path.parent.name == "02-translate":
            raise KeyboardInterrupt
        write_json(path, value)

    write_json = pipeline.write_json
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run", quiet=True)
    run_recipe(recipe, tmp_path / "run", quiet=True)
    assert figures_of(tmp_path / "run")["averaged_evaluations"] == 3
    ours, theirs = (folder / "02-translate" / "model" / "model.safetensors" for folder in (tmp_path / "run", reference))
    assert ours.read_bytes() == theirs.read_bytes()


def test_it_learns_on_another_device(recipe: Path, no_probe: None, tmp_path: Path) -> None:
    settings = ["translate.num_steps=5", "translate.evaluate_every=3", "translate.checkpoint_every=2"]
    found = run_elsewhere(recipe, tmp_path / "run", settings)["stages"]["translate"]["figures"]
    assert found["averaged_evaluations"] == 2 and 0 <= found["bleu"] <= 100


def test_recurrent_is_trained_by_the_same_stage(recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    settings = ["translate.architecture=recurrent", "translate.recurrent_layers=1", "translate.num_steps=8"]
    run_recipe(recipe, tmp_path / "run", settings, quiet=True)
    found = figures_of(tmp_path / "run")
    assert found["parameters"] > 10_000 and set(found) == set(figures_of(tmp_path / "run"))
    code, out, _ = invoke("translate", tmp_path / "run" / "02-translate", "猫在睡觉", "--beam", 2, "--json")
    assert code == 0 and len(json.loads(out)["translations"]) == 1
    assert invoke("translate", tmp_path / "run", "猫")[0] == 0


@pytest.mark.parametrize("switches", [[], ["one_attention", "one_stack", "layer_by_layer", "causal_source"]])
def test_structures_are_trained_by_the_same_stage(switches: list[str], recipe: Path, tmp_path: Path) -> None:
    settings = ["architecture=structured", f"switches={json.dumps(switches)}", "num_steps=60"]
    settings += ["evaluate_every=20", "model.positions=rotary", "model.norm_at=pre", "model.embedding_scale=1.0"]
    run_recipe(recipe, tmp_path / "run", [f"translate.{setting}" for setting in settings], quiet=True)
    found = figures_of(tmp_path / "run")
    stage = tmp_path / "run" / "02-translate"
    assert (stage / "weights.safetensors").exists() and not (stage / "model").exists()
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [loss for line in lines if (loss := json.loads(line).get("heldout_loss_nats")) is not None]
    assert losses[-1] < 0.8 * losses[0] and 0 <= found["greedy_bleu"] <= 100
    samples = json.loads((stage / "samples.json").read_text(encoding="utf-8"))
    assert len({one["translation"] for one in samples}) > 1, "it reads its source"


def test_verb(reference: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, said = invoke("translate", reference, "红色的猫在睡觉")
    assert code == 0 and out.count("\n") == 1 and "02-translate" in said
    lines = tmp_path / "in.txt"
    lines.write_text("猫\n\n三只狗\n红色的猫在睡觉\n", encoding="utf-8")
    code, from_file, _ = invoke("translate", reference, "--file", lines)
    assert code == 0 and from_file.count("\n") == 4 and from_file.split("\n")[1] == ""
    assert from_file.split("\n")[3] == out.rstrip("\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(lines.read_text(encoding="utf-8")))
    assert invoke("translate", reference)[1] == from_file
    code, out, _ = invoke("translate", reference, "三只狗", "--nbest", 3)
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and len(rows) == 3
    assert [float(score) for score, _ in rows] == sorted((float(score) for score, _ in rows), reverse=True)


def test_transformers_reads_the_folder(reference: Path) -> None:
    from transformers import MarianMTModel

    assert MarianMTModel.from_pretrained(reference / "02-translate" / "model").config.encoder_layers == 1


def test_verb_refuses(reference: Path, tmp_path: Path, invoke: Invoke) -> None:
    from jielong.folder import save
    from jielong.model.presets import preset_config
    from jielong.model.transformer import Transformer
    from jielong.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(reference / "01-tokenizer" / "model")
    save(Transformer(preset_config("jie-xs", tokenizer.vocab_size, 16)), tokenizer, tmp_path / "decoder")
    code, _, said = invoke("translate", tmp_path / "decoder", "猫")
    assert code != 0 and "a decoder only" in said and "complete" in said
    code, _, said = invoke("translate", reference, "猫" * 90)
    assert code == 2 and "the model reads at most 32" in said
    code, _, said = invoke("translate", reference, "猫", "--file", tmp_path / "x")
    assert code == 2 and "both given" in said
    code, _, said = invoke("translate", reference, "--file", tmp_path / "x")
    assert code != 0 and "no such file" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["translate.to_language=fr"], "zh-fr is not in the sources: none is in 'fr' (there: en, zh)"),
        (["translate.validation=[]"], "validation is empty"),
        (['translate.validation=["train-en", "train-zh"]'], "hold other pairs out"),
        (["translate.to_language=zh"], "they must differ"),
        (["translate.model.preset=jie-s"], "is no encoder-decoder, which this stage trains"),
        (["translate.recurrent_layers=3"], "has no effect with architecture = 'transformer'"),
        (['translate.switches=["one_stack"]'], "has no effect with architecture = 'transformer'"),
        (
            ["translate.architecture=structured", 'translate.switches=["one_stak"]'],
            "'one_stak' is none; legal are one_attention, one_stack",
        ),
        (["translate.architecture=structured"], "a structure wants positions 'rotary', norm_at 'pre'"),
        (["translate.final_fraction=0.2"], "no effect with schedule = 'noam'"),
        (['translate.sources=["world"]'], "holds no sentence pairs"),
        (["translate.beam=99"], "beam is 99"),
    ],
)
def test_recipe_is_refused(settings: list[str], message: str, recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    arguments = [part for setting in settings for part in ("--set", setting)]
    code, _, said = invoke("run", recipe, "--out", tmp_path / "run", *arguments)
    assert code == 2 and message in said, said


def test_data_is_refused(recipe: Path, pairs: Path, tmp_path: Path, invoke: Invoke) -> None:
    root = tmp_path / "data"
    shutil.copytree(pairs, root)
    command = ("run", recipe, "--out", tmp_path / "run", "--set", f"data.root={root}")
    code, _, said = invoke(*command, "--set", "translate.context_tokens=8")
    assert code != 0 and "a validation pair has" in said and "context_tokens is 8" in said
    shutil.rmtree(tmp_path / "run")
    with open(root / "train.zh", "a", encoding="utf-8") as file:
        file.write("多了一行\n")
    code, _, said = invoke(*command)
    assert code != 0 and "line n of the one must translate line n of the other" in said
