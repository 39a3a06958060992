"""The stage `finetune`: a pre-trained model learns a task from labelled examples, all its weights with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jielong.data.labelled import Example, label_numbers, read_examples, split_heldout, without_test
from jielong.data.loader import RowOrder
from jielong.data.span_rows import span_rows
from jielong.data.task_rows import Frame, LabelledBatch, TaskRows, collate, task_rows
from jielong.errors import DataError, ModelError
from jielong.evaluate.labelled import Score, answers_of, score
from jielong.evaluate.wordbag import trivial_answer, word_answers
from jielong.folder import load, save
from jielong.model.rehead import NewHead, rehead
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.stages.context import Context, write_json, write_jsonl
from jielong.stages.training import micro_batches, train
from jielong.tokenizer import Tokenizer
from jielong.train.labelled import HEADS, answer

PARENTS = ("mlm", "pretrain", "sft")
NUM_NAMED = 3  # examples that a message names; all are in a file


def run_finetune(context: Context) -> dict[str, Any]:
    """Fine-tune on the training examples; score held-out ones beside the trivial answer and a bag of words."""
    settings = context.settings
    task = settings.task
    parent = Path(settings.model) if settings.model is not None else context.last_model(*PARENTS)
    old, tokenizer = load(parent)
    data = gather(context)
    model, tokenizer, frame = prepare(context, old, tokenizer, len(data.labels))
    items, heldout = _rows(context, data, tokenizer, frame)
    num_rows, num_micro = micro_batches(context)
    order = RowOrder(len(items), num_rows * num_micro, context.seed)

    def batches(step: int) -> list[LabelledBatch]:
        parts = order.indices(step).split(num_rows)
        return [collate([items[number] for number in part.tolist()], tokenizer.pad_id) for part in parts]

    def judge() -> tuple[list[Any], Score]:
        answers = answers_of(model, heldout, data.test, task, tokenizer.pad_id, context.runtime)
        return answers, score(answers, data.test, data.test_labels, task)

    def evaluate(_step: int) -> dict[str, float]:
        return {f"heldout_{name}": value for name, value in judge()[1].figures.items()}

    num_steps = settings.steps(order.num_steps_per_epoch)
    objective = answer(task, settings.language_weight)
    totals = train(context, model, objective, batches, num_steps, evaluate)
    answers, found = judge()
    said = {"task": task, "labels": list(data.labels), "label_mean": data.mean, "label_deviation": data.deviation}
    save(model, tokenizer, context.folder / "model", {**context.provenance(totals.steps, parent), "finetune": said})
    _write_answers(context, data, answers)
    return {
        **{f"heldout_{name}": value for name, value in found.figures.items()},
        "score": found.value,
        "score_ci95": list(found.ci95),
        **_baselines(data, task),
        "examples": len(items),
        "heldout_examples": len(data.test),
        "truncated": sum(item.truncated for item in (*items, *heldout)),
        "without_a_window": data.num_windowless,
        "left_out": len(data.left_out),
        "heldout_in_training": len(data.repeated),
        "from_scratch": settings.from_scratch,
        "tokens_per_second": totals.tokens_per_second,
        "steps": totals.steps,
    }


@dataclass
class Labelled:
    """The examples of a task. labels: the words for labels 0, 1, ...; mean, deviation: of training numbers.

    repeated: (where in the sources, where in the test) of examples that were in both, and do not teach. left_out: rows
    of the sources that say nothing. num_windowless: examples of span whose answer fits into no row.
    """

    train: list[Example]
    test: list[Example]
    labels: tuple[str, ...]
    train_labels: Sequence[int | float]
    test_labels: Sequence[int | float]
    left_out: list[str]
    repeated: list[tuple[str, str]]
    mean: float = 0.0
    deviation: float = 1.0
    num_windowless: int = 0


def gather(context: Context) -> Labelled:
    """Read, split, take out what is in the test, and number the labels."""
    settings, left_out = context.settings, list[str]()

    def read(names: Sequence[str]) -> list[Example]:
        sources = (context.source(name) for name in names)
        return [e for source in sources for e in read_examples(source, context.root, settings.task, left_out)]

    examples, repeated = read(settings.sources), list[tuple[str, str]]()
    if settings.heldout_sources:
        test = read(settings.heldout_sources)
        examples, repeated = without_test(examples, test, settings.task)
    else:
        examples, test = split_heldout(examples, settings.task, settings.heldout_fraction, settings.split_seed)
    _tell(context, repeated, left_out)
    labels = settings.labels or tuple(sorted({str(example.label) for example in examples}))
    has_labels = settings.task in ("classification", "pairs")
    if has_labels and labels:
        label_numbers([*examples, *test], labels)
    if not examples or not test:
        raise DataError(
            f"[{context.name}] there are {len(examples)} examples to learn from and {len(test)} held out; give more, "
            "or set another heldout_fraction"
        )
    if has_labels and len(labels) < 2:
        raise DataError(
            f"[{context.name}] all {len(examples)} examples to learn from have the label {labels[0]!r}; a task has two "
            "or more: give examples of others, or name all labels in `labels`"
        )
    # By the run's seed, not the stage's: two stages that are compared with each other learn from the same examples.
    generator = torch.Generator().manual_seed(derive_seed(context.recipe.run.seed, "examples"))
    chosen = torch.randperm(len(examples), generator=generator)[: settings.limit_examples].tolist()
    train_set = [examples[number] for number in chosen]
    if has_labels:
        numbers = label_numbers(train_set, labels), label_numbers(test, labels)
        return Labelled(train_set, test, labels, *numbers, left_out, repeated)
    raw = [[example.label for example in part] for part in (train_set, test)]
    made = Labelled(train_set, test, (), raw[0], raw[1], left_out, repeated)  # type: ignore[arg-type]
    if settings.task == "similarity":
        told = torch.tensor(raw[0], dtype=torch.float64)
        made.mean, made.deviation = float(told.mean()), max(float(told.std(correction=0)), 1e-6)
    return made


def _tell(context: Context, repeated: list[tuple[str, str]], left_out: list[str]) -> None:
    """Name what was taken out: the first few here, all of them in left_out.json."""
    if repeated:
        named = "; ".join(f"{where} is {place}" for where, place in repeated[:NUM_NAMED])
        context.progress.say(
            f"{context.name}: {len(repeated)} examples of the sources are in the test and were taken out: {named}"
        )
    if left_out:
        context.progress.say(f"{context.name}: {len(left_out)} rows say nothing: {'; '.join(left_out[:NUM_NAMED])}")
    write_json(context.folder / "left_out.json", {"in_test": repeated, "says_nothing": left_out})


def prepare(
    context: Context, old: Transformer, tokenizer: Tokenizer, num_labels: int
) -> tuple[Transformer, Tokenizer, Frame]:
    """The model with the task's head, the tokenizer with the control tokens that it needs, and how rows are framed."""
    settings, here = context.settings, f"[{context.name}]"
    if old.config.encoder_layers and old.config.decoder_layers:
        raise ModelError(f"{here} the model has an encoder and a decoder; an encoder or a decoder can learn a task")
    is_decoder = old.config.decoder_layers > 0
    if is_decoder and settings.task == "span":
        raise ModelError(f"{here} task = 'span' reads both directions and wants an encoder; this model is a decoder")
    if is_decoder and settings.pooling == "mean":
        raise ModelError(
            f"{here} pooling = 'mean' is for an encoder; this model is a decoder, whose last token alone has read the "
            "whole row: delete it"
        )
    if settings.language_weight and not (is_decoder and old.config.tie_embeddings):
        raise ModelError(
            f"{here} language_weight = {settings.language_weight} wants a decoder whose output matrix is its "
            "embedding; this model is none; set language_weight = 0"
        )
    row_tokens = settings.row_tokens or old.config.max_length
    if row_tokens > old.config.max_length:
        raise ModelError(f"{here} row_tokens = {row_tokens}; the model reads at most {old.config.max_length}: lower it")
    if is_decoder:
        tokenizer = tokenizer.with_controls(Tokenizer.TASK)
        frame = Frame.decoder(tokenizer, row_tokens)
    else:
        frame = Frame.encoder(tokenizer, row_tokens)
    head = HEADS[settings.task]
    count = {"classification": num_labels, "pairs": num_labels}.get(settings.task, 1)
    new = NewHead(head, count, max(old.config.vocab_size, tokenizer.vocab_size), settings.dropout, settings.pooling)
    generator = context.runtime.generator(context.name, "head")
    return rehead(old, new, generator, keep=not settings.from_scratch), tokenizer, frame


def _rows(
    context: Context, data: Labelled, tokenizer: Tokenizer, frame: Frame
) -> tuple[list[TaskRows], list[TaskRows]]:
    """Rows to learn from and rows to be examined on."""
    task = context.settings.task
    if task == "span":
        taught = span_rows(data.train, tokenizer, frame, teach=True)
        items = [item for item in taught if item is not None]
        data.num_windowless = len(taught) - len(items)
        heldout = [item for item in span_rows(data.test, tokenizer, frame, teach=False) if item is not None]
        if not items:
            raise DataError(
                f"[{context.name}] no answer fits into a row of {frame.row_tokens} tokens; raise row_tokens"
            )
        return items, heldout
    labels, test_labels = data.train_labels, data.test_labels
    if task == "similarity":  # learned as deviations from the mean, in units of their spread
        labels, test_labels = (
            [(float(label) - data.mean) / data.deviation for label in part] for part in (labels, test_labels)
        )
    return (
        task_rows(data.train, labels, task, tokenizer, frame),
        task_rows(data.test, test_labels, task, tokenizer, frame),
    )


def _baselines(data: Labelled, task: str) -> dict[str, float]:
    """What the test scores with the same answer to all, and with words alone."""
    if task == "span":
        return {"trivial_score": 0.0}  # there is no answer that fits all
    same = [trivial_answer(data.train_labels, task)] * len(data.test)
    words = word_answers(data.train, data.train_labels, data.test, task)
    return {
        "trivial_score": score(same, data.test, data.test_labels, task).value,
        "words_score": score(words, data.test, data.test_labels, task).value,
    }


def _write_answers(context: Context, data: Labelled, answers: Sequence[Any]) -> None:
    """answers.jsonl: every held-out example, what is right and what the model says."""
    rows = []
    for example, right, said in zip(data.test, data.test_labels, answers, strict=True):
        if data.labels:
            shown: tuple[Any, Any] = data.labels[int(right)], data.labels[int(said)]
        elif context.settings.task == "similarity":
            shown = right, said * data.deviation + data.mean
        else:
            shown = (example.answers[0] if example.answers else right), said
        rows.append({"where": example.where, "texts": example.texts, "right": shown[0], "said": shown[1]})
    write_jsonl(context.folder / "answers.jsonl", rows)
