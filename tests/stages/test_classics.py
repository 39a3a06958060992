"""The stages `mlm` and `finetune`: whole in miniature, resumed bit-equal, and refusing what cannot teach."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import jielong
from jielong.data.cooccurrence import token_vectors
from jielong.data.labelled import read_examples, split_heldout
from jielong.data.masking import Masking
from jielong.data.sentence_pairs import SentenceRows
from jielong.data.sources import Source
from jielong.errors import DataError, JielongError, RecipeError, UsageError
from jielong.recipe import parse_recipe
from jielong.stages import finetuning
from jielong.stages.pipeline import run_recipe
from jielong.tokenizer import Tokenizer

from .conftest import RUN
from .elsewhere import run_elsewhere

COMMON = """
batch_rows = 4
learning_rate = 3e-3
evaluate_every = 100
checkpoint_every = 2
"""
RECIPE = f"""{RUN}
seed = 3

[data]
root = "DATA"

[data.sources.text]
path = "text.jsonl"
[data.sources.reviews]
path = "reviews.jsonl"
[data.sources.numbers]
path = "numbers.tsv"
[data.sources.quiz]
path = "quiz.jsonl"
[data.sources.squad]
path = "squad.json"

[curate]
sources = ["text"]
heldout = "tail"
heldout_fraction = 0.3
min_stop_words = 0
strip_furniture = false
max_top_grams = [1.0, 1.0, 1.0]
max_duplicate_grams = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

[tokenizer]
vocab_size = 300

[mlm]
model.width = 16
model.encoder_layers = 1
model.num_heads = 2
model.dropout = 0.1
context_tokens = 48
num_steps = 6
{COMMON}

[bert_label]
kind = "finetune"
task = "classification"
sources = ["reviews"]
heldout_fraction = 0.4
num_steps = 4
{COMMON}

[bert_span]
kind = "finetune"
task = "span"
sources = ["squad"]
heldout_fraction = 0.4
num_steps = 2
{COMMON}

[pretrain]
model.width = 16
model.decoder_layers = 1
model.num_heads = 2
context_tokens = 48
num_steps = 3
{COMMON}

[gpt_pairs]
kind = "finetune"
task = "pairs"
sources = ["numbers"]
heldout_fraction = 0.4
language_weight = 0.5
num_steps = 4
dropout = 0.1
{COMMON}

[gpt_similar]
kind = "finetune"
task = "similarity"
sources = ["numbers"]
heldout_fraction = 0.4
language_weight = 0.5
num_steps = 2
{COMMON}

[gpt_choice]
kind = "finetune"
task = "choice"
sources = ["quiz"]
heldout_fraction = 0.4
num_steps = 2
{COMMON}
"""
KINDS = ["left", "middle", "right"]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the formats people publish."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(5)
    words = "the cat a dog sees hears near far house tree bird good bad old young and then one day".split()

    def sentence() -> str:
        return " ".join(draw.choices(words, k=7)).capitalize() + "."

    write_lines(folder / "text.jsonl", [{"text": " ".join(sentence() for _ in range(30))} for _ in range(6)])
    reviews = [{"text": sentence(), "label": draw.choice(["neg", "pos"])} for _ in range(30)]
    write_lines(folder / "reviews.jsonl", reviews)
    rows = ["sentence_A\tsentence_B\trelatedness_score\tentailment_judgment"]
    rows += [f"{sentence()}\t{sentence()}\t{draw.random() * 5:.1f}\t{draw.choice(KINDS)}" for _ in range(30)]
    (folder / "numbers.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    quiz = [{"query": sentence(), "choices": draw.choices(words, k=2 + n % 3), "gold": n % 2} for n in range(30)]
    write_lines(folder / "quiz.jsonl", quiz)
    articles = []
    for number in range(12):
        context = f"{sentence()} Number {number} lives in town {number * 7}. {sentence()}"
        answer = {"text": f"town {number * 7}", "answer_start": context.index("town")}
        qas = [{"id": str(number), "question": f"Where lives {number}?", "answers": [answer]}]
        articles.append({"title": "x", "paragraphs": [{"context": context, "qas": qas}]})
    (folder / "squad.json").write_text(json.dumps({"version": "1", "data": articles}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    path = data / "classics.toml"
    path.write_text(RECIPE.replace('"DATA"', json.dumps(str(data))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, no_probe: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole") / "classics"
    return folder, run_recipe(recipe, folder, quiet=True)


def figures(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = report["stages"][name]["figures"]
    return found


def test_every_stage_leaves_its_figures(whole: tuple[Path, dict[str, Any]]) -> None:
    _, report = whole
    mlm = figures(report, "mlm")
    assert mlm["heldout_masked_nats"] > 0 and mlm["frequency_nats"] > 0
    assert 0 <= mlm["heldout_next_sentence_accuracy"] <= 1 and 0.3 < mlm["random_pair_fraction"] < 0.9
    for name, key in (
        ("bert_label", "accuracy"), ("bert_span", "f1"), ("gpt_pairs", "accuracy"), ("gpt_similar", "spearman"),
        ("gpt_choice", "accuracy"),
    ):  # fmt: skip
        found = figures(report, name)
        assert f"heldout_{key}" in found, name
        assert found["score_ci95"][0] <= found["score"] <= found["score_ci95"][1]
        assert found["examples"] + found["heldout_examples"] in (30, 12)
        assert "trivial_score" in found and found["heldout_in_training"] == 0
    assert [rule["passed"] for rule in report["stages"]["mlm"]["rules"]] != [None]


def test_an_encoder_may_begin_with_counted_vectors(recipe: Path, tmp_path: Path) -> None:
    """Hardly trained, its vectors are to each other as the counted ones are, which are turned another way."""
    settings = ['mlm.vectors="counted"', "mlm.next_sentence=false", "mlm.num_steps=1", "mlm.learning_rate=1e-9"]
    report = run_recipe(recipe, tmp_path / "run", settings, until="mlm", quiet=True)
    assert "heldout_next_sentence_accuracy" not in figures(report, "mlm")
    model, tokenizer = jielong.load(tmp_path / "run" / "03-mlm" / "model")
    rows = SentenceRows.load(tmp_path / "run" / "03-mlm" / "documents.safetensors")
    is_text = Masking.of(tokenizer, 0.15, whole_words=False).is_text
    counted = token_vectors(rows, is_text, model.config.width, torch.Generator().manual_seed(5))
    seen = torch.bincount(rows.tokens[rows.segments > 0].long(), minlength=len(is_text)).bool() & is_text
    ours, theirs = (vectors[seen] @ vectors[seen].T for vectors in (model.embed.weight.detach(), counted))
    assert int(seen.sum()) > 20
    assert torch.corrcoef(torch.stack((ours.flatten(), theirs.flatten())))[0, 1] > 0.98


def test_models_are_of_the_task(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    heads = {"03-mlm": "masked_lm", "04-bert_label": "classes", "05-bert_span": "span", "07-gpt_pairs": "classes",
             "09-gpt_choice": "choice"}  # fmt: skip
    for name, head in heads.items():
        model, tokenizer = jielong.load(folder / name / "model")
        assert model.config.head == head
        controls = Tokenizer.TASK if name >= "06" else Tokenizer.ENCODER
        assert set(controls) <= set(tokenizer.special_ids) and model.config.vocab_size == tokenizer.vocab_size
    provenance = json.loads((folder / "07-gpt_pairs" / "model" / "jielong.json").read_text())
    assert provenance["finetune"]["labels"] == KINDS and provenance["parent"] == "../../06-pretrain/model"


def test_answers_are_written_beside_what_is_right(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    rows = [json.loads(line) for line in (folder / "07-gpt_pairs" / "answers.jsonl").read_text().splitlines()]
    share = sum(row["right"] == row["said"] for row in rows) / len(rows)
    assert share == figures(report, "gpt_pairs")["heldout_accuracy"]
    spans = [json.loads(line) for line in (folder / "05-bert_span" / "answers.jsonl").read_text().splitlines()]
    assert all(row["said"] in row["texts"][0] and row["right"].startswith("town ") for row in spans)


@pytest.mark.parametrize(("name", "number"), [("mlm", 3), ("gpt_pairs", 7)])
def test_resumed_is_bit_equal(
    whole: tuple[Path, dict[str, Any]], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, number: int,
) -> None:  # fmt: skip
    """Stopped after a checkpoint and gone on with: same weights, masks, dropout and figures."""
    folder = tmp_path / "classics"
    later = [f"{index:02d}-" for index in range(number, 11)]
    shutil.copytree(whole[0], folder, ignore=lambda _, names: [n for n in names if n[:3] in later])
    write = jielong.log.MetricsLog.write

    def stop(log: Any, step: int, **values: Any) -> None:
        write(log, step, **values)
        if step == 3 and name in str(log.path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jielong.log.MetricsLog.write", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, folder, until=name, quiet=True)
    assert (folder / f"{number:02d}-{name}" / "checkpoints" / "step-000002").is_dir()
    torch.manual_seed(99)  # what another process would begin with
    report = run_recipe(recipe, folder, until=name, quiet=True)
    ours, theirs = (
        load_file(base / f"{number:02d}-{name}" / "model" / "model.safetensors") for base in (folder, whole[0])
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs) and ours.keys() == theirs.keys()
    timed = ("tokens_per_second",)
    expected = {key: value for key, value in figures(whole[1], name).items() if key not in timed}
    assert {key: value for key, value in figures(report, name).items() if key not in timed} == expected


def test_an_encoder_learns_on_another_device(recipe: Path, no_probe: None, tmp_path: Path) -> None:
    report = run_elsewhere(recipe, tmp_path / "run", ['mlm.vectors="counted"', "mlm.num_steps=3"], until="bert_span")
    assert figures(report, "mlm")["heldout_masked_nats"] > 0 and figures(report, "bert_span")["steps"] == 2


def small(tmp_path: Path, task: str, more: str, **files: list[dict[str, Any]]) -> Path:
    """A recipe of one finetune stage that starts from a folder, on files written for the purpose."""
    for name, rows in files.items():
        write_lines(tmp_path / f"{name}.jsonl", rows)
    tables = "".join(f'[data.sources.{name}]\npath = "{name}.jsonl"\n' for name in files)
    path = tmp_path / "small.toml"
    path.write_text(
        f'[run]\ndevice = "cpu"\n[data]\nroot = {json.dumps(str(tmp_path))}\n{tables}\n[finetune]\ntask = "{task}"\n'
        f"num_steps = 1\n{COMMON}{more}",
        encoding="utf-8",
    )
    return path


def test_from_scratch_and_limit(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = whole[0] / "03-mlm" / "model"
    rows = [{"text": f"a cat {n}", "label": "x" if n % 2 else "y"} for n in range(20)]
    more = f'model = {json.dumps(str(folder))}\nsources = ["rows"]\nlimit_examples = 6\nfrom_scratch = true\n'
    report = run_recipe(small(tmp_path, "classification", more, rows=rows), tmp_path / "run", quiet=True)
    found = figures(report, "finetune")
    assert found["examples"] == 6 and found["from_scratch"] is True
    kept = load_file(folder / "model.safetensors")[_embedding(folder)]
    made = load_file(tmp_path / "run" / "01-finetune" / "model" / "model.safetensors")
    assert not torch.allclose(made[_embedding(folder)], kept, atol=0.1)


def test_stages_that_are_compared_learn_from_the_same_examples(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"a cat {n}", "label": "x" if n % 2 else "y"} for n in range(40)]
    more = f'model = {json.dumps(str(whole[0] / "03-mlm" / "model"))}\nsources = ["rows"]\nlimit_examples = 8\n'
    other = f'\n[other]\nkind = "finetune"\ntask = "classification"\nnum_steps = 1\n{COMMON}{more}from_scratch = true\n'
    seen: list[list[str]] = []
    make_rows = finetuning._rows

    def watch(context: Any, data: Any, *rest: Any) -> Any:
        seen.append([example.where for example in data.train])
        return make_rows(context, data, *rest)

    monkeypatch.setattr(finetuning, "_rows", watch)
    path = small(tmp_path, "classification", more + other, rows=rows)
    run_recipe(path, tmp_path / "run", quiet=True)
    run_recipe(path, tmp_path / "another seed", ["run.seed=1"], quiet=True)
    assert len(seen) == 4 and seen[0] == seen[1] and seen[2] == seen[3] != seen[0]


def _embedding(folder: Path) -> str:
    return next(name for name in load_file(folder / "model.safetensors") if "embed" in name and "weight" in name)


def test_a_label_read_off_the_mean_comes_back_from_the_folder(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = whole[0] / "03-mlm" / "model"
    rows = [{"text": f"a cat {n}", "label": "x" if n % 2 else "y"} for n in range(20)]
    more = f'model = {json.dumps(str(folder))}\nsources = ["rows"]\npooling = "mean"\n'
    run_recipe(small(tmp_path, "classification", more, rows=rows), tmp_path / "run", quiet=True)
    model, tokenizer = jielong.load(tmp_path / "run" / "01-finetune" / "model")
    assert model.config.pooling == "mean" and "pooler.weight" not in model.state_dict()
    model.eval()
    answers = [json.loads(line) for line in (tmp_path / "run" / "01-finetune" / "answers.jsonl").open()]
    for answer in answers:
        ids = torch.tensor([[*tokenizer.prefix_ids, *tokenizer.encode(answer["texts"][0]), *tokenizer.suffix_ids]])
        types = torch.zeros_like(ids) if model.config.token_types else None
        logits = model.classifier(model.hidden(ids, token_types=types).mean(dim=1))
        assert ["x", "y"][int(logits.argmax())] == answer["said"]


def test_what_a_task_is_examined_on_stays_out_of_the_text(recipe: Path, data: Path, tmp_path: Path) -> None:
    """The corpus reads the task's own sentences: those held out are missing, by their words, and the rest is there."""
    settings = ['curate.sources=["text","reviews"]', 'curate.heldout="documents"', "curate.min_characters=1"]
    with pytest.raises(RecipeError, match=r"sources names 'reviews', a source of \[bert_label\] too"):
        parse_recipe(recipe, settings)
    settings.append('curate.keep_out=["bert_label","gpt_pairs"]')
    report = run_recipe(recipe, tmp_path / "run", settings, until="curate", quiet=True)
    reviews = read_examples(Source("reviews", "reviews.jsonl"), data, "classification")
    learned, examined = split_heldout(reviews, "classification", 0.4)
    parts = (tmp_path / "run" / "01-curate" / name for name in ("documents.jsonl", "heldout.jsonl"))
    kept = {json.loads(line)["text"] for part in parts for line in part.read_text().splitlines()}
    assert len(examined) > 5 and not kept & {example.texts[0] for example in examined}
    assert {example.texts[0] for example in learned} <= kept
    assert figures(report, "curate")["removed"] == {"contamination": len(examined)}
    inputs = json.loads((tmp_path / "run" / "01-curate" / "stage.json").read_text())["inputs"]
    assert set(inputs) == {"source text", "source reviews", "source numbers"}
    settings.append("bert_label.split_seed=1")  # other examples are held out: the corpus is not that of this recipe
    with pytest.raises(UsageError, match="was made with other settings"):
        run_recipe(recipe, tmp_path / "run", settings, until="curate", quiet=True)


def test_test_rows_in_training_are_named_and_counted(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = json.dumps(str(whole[0] / "03-mlm" / "model"))
    rows = [{"text": f"a cat {n}", "label": "x" if n % 2 else "y"} for n in range(12)]
    test = [{"text": "A  Cat 3", "label": "x"}, {"text": "unseen", "label": "y"}]
    more = f'model = {model}\nsources = ["rows"]\nheldout_sources = ["test"]\n'
    report = run_recipe(small(tmp_path, "classification", more, rows=rows, test=test), tmp_path / "run")
    found = figures(report, "finetune")
    assert (found["heldout_in_training"], found["examples"], found["heldout_examples"]) == (1, 11, 2)
    said = capsys.readouterr().err.replace("\n", "")
    assert "1 examples of the sources are in the test" in said and "rows.jsonl:4" in said
    assert "rows.jsonl:4" in (tmp_path / "run" / "01-finetune" / "left_out.json").read_text()


def test_long_texts_are_cut_and_counted_and_blank_ones_left_out(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model = json.dumps(str(whole[0] / "03-mlm" / "model"))
    rows = [{"text": f"a cat {n}", "label": "x" if n % 2 else "y"} for n in range(12)]
    rows += [{"text": "z " * 100, "label": "x"}, {"text": "  ", "label": "y"}]
    more = f'model = {model}\nsources = ["rows"]\nheldout_fraction = 0.3\n'
    found = figures(
        run_recipe(small(tmp_path, "classification", more, rows=rows), tmp_path / "run", quiet=True), "finetune"
    )
    assert (found["truncated"], found["left_out"], found["examples"] + found["heldout_examples"]) == (1, 1, 13)


@pytest.mark.parametrize(
    ("task", "more", "rows", "error", "message"),
    [
        ("classification", 'labels = ["pos", "neg"]\n', [{"text": "a", "label": "Pos"}] * 3, DataError,
         r"rows.jsonl:\d: the label is 'Pos'; legal are pos, neg; did you mean 'pos'"),
        ("classification", "", [{"txt": "a", "label": "x"}], DataError, 'rows.jsonl:1: needs "text"'),
        ("classification", "", [{"text": " ", "label": "x"}], DataError, "no usable row; the first reason: .*blank"),
        ("choice", "", [{"query": "q", "choices": ["a", "b"], "gold": 2}], DataError, "it must be the index of a cand"),
        ("similarity", 'labels = ["a", "b"]\n', [], RecipeError, "labels has no effect with task = 'similarity'"),
        ("classification", "language_weight = 0.5\n", [{"text": f"a {n}", "label": "xy"[n % 2]} for n in range(9)],
         JielongError, "wants a decoder whose output matrix is its embedding"),
        ("span", 'pooling = "mean"\n', [], RecipeError, "pooling has no effect with task = 'span'"),
        ("classification", "row_tokens = 500\n", [{"text": f"a {n}", "label": "xy"[n % 2]} for n in range(9)],
         JielongError, "the model reads at most 48"),
        ("classification", "", [{"text": f"a {n}", "label": "x"} for n in range(9)], DataError,
         r"all \d examples to learn from have the label 'x'; a task has two or more"),
        ("classification", "", [{"text": "a", "label": "x"}, {"text": "A", "label": "y"}], DataError,
         r"there are \d examples to learn from and \d held out"),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_refused(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, task: str, more: str, rows: list[dict[str, Any]],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    model = json.dumps(str(whole[0] / "03-mlm" / "model"))
    more += f'model = {model}\nsources = ["rows"]\nheldout_fraction = 0.5\n'
    with pytest.raises(error, match=message):
        run_recipe(small(tmp_path, task, more, rows=rows), tmp_path / "run", quiet=True)
