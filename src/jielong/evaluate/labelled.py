"""What a fine-tuned model answers to examples it has not learned from, and how good that is."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jielong.data.labelled import Example
from jielong.data.task_rows import LabelledBatch, TaskRows, by_length, collate
from jielong.intervals import Z_95, wilson_ci95
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.labelled import read_answers, row_states

BATCH_ROWS = 64
MAX_ANSWER_TOKENS = 30  # as in run_squad.py

Answer = int | float | str  # a label's or candidate's number, a number, or a piece of the context


@torch.no_grad()
def answers_of(
    model: Transformer, items: Sequence[TaskRows], examples: Sequence[Example], task: str, pad_id: int, runtime: Runtime
) -> list[Answer]:
    """The model's answer to every example, in their order. The model's mode is restored."""
    training = model.training
    model.eval()
    found: dict[int, Answer] = {}
    for numbers in by_length(items, BATCH_ROWS):
        batch = collate([items[number] for number in numbers], pad_id).to(runtime.device)
        with runtime.autocast():
            answers = read_answers(model, row_states(model, batch), batch, task).cpu()
        if task == "span":
            spans = _best_spans(answers, batch)
            texts = [_text(examples[n], items[n], *span) for n, span in zip(numbers, spans, strict=True)]
            found.update(zip(numbers, texts, strict=True))
        else:
            values = answers.tolist() if task == "similarity" else answers.argmax(dim=1).tolist()
            found.update(zip(numbers, values, strict=True))
    model.train(training)
    return [found[number] for number in range(len(items))]


def _best_spans(logits: Tensor, batch: LabelledBatch) -> list[tuple[int, int, int]]:
    """(row among the example's, first token, last token) with the greatest sum of both logits, for each example."""
    length = logits.shape[1]
    sums = logits[:, :, 0, None] + logits[:, None, :, 1]  # (N, T, T): begin, end
    size = torch.arange(length) - torch.arange(length)[:, None]
    legal = (size >= 0) & (size < MAX_ANSWER_TOKENS)
    best, place = sums.masked_fill(~legal, float("-inf")).flatten(1).max(dim=1)
    owners = batch.owners.cpu()
    spans = []
    for owner in range(batch.num_units):
        rows = (owners == owner).nonzero().flatten()
        row = int(best[rows].argmax())
        first, last = divmod(int(place[rows[row]]), length)
        spans.append((row, first, last))
    return spans


def _text(example: Example, item: TaskRows, row: int, first: int, last: int) -> str:
    """The piece of the context that these tokens of one of its rows spell."""
    begin, starts = item.contexts[row][0], item.starts[row]
    return example.texts[0][starts[first - begin] : starts[min(last - begin + 1, len(starts) - 1)]].strip()


@dataclass(frozen=True)
class Score:
    """figures: all of the task's, under the names of the report. value, ci95: the one that the task is judged by."""

    value: float
    ci95: tuple[float, float]
    figures: dict[str, float]


def score(answers: Sequence[Answer], examples: Sequence[Example], labels: Sequence[int | float], task: str) -> Score:
    """Accuracy (labels, choices), Pearson's and Spearman's correlation (numbers), or F1 and exact match (spans)."""
    if task == "similarity":
        given, truth = np.asarray(answers, float), np.asarray(labels, float)
        pearson, spearman = correlation(given, truth), correlation(ranks(given), ranks(truth))
        return Score(pearson, fisher_ci95(pearson, len(truth)), {"pearson": pearson, "spearman": spearman})
    if task == "span":
        pairs = [(str(said), example.answers) for said, example in zip(answers, examples, strict=True)]
        f1 = np.array([max(word_f1(said, right) for right in legal) for said, legal in pairs])
        exact = np.array([max(plain_words(said) == plain_words(right) for right in legal) for said, legal in pairs])
        mean = float(f1.mean())
        half = Z_95 * float(f1.std(ddof=1)) / math.sqrt(len(f1)) if len(f1) > 1 else 1.0
        figures = {"f1": mean, "exact_match": float(exact.mean())}
        return Score(mean, (max(0.0, mean - half), min(1.0, mean + half)), figures)
    right = sum(said == label for said, label in zip(answers, labels, strict=True))
    return Score(right / len(labels), wilson_ci95(right, len(labels)), {"accuracy": right / len(labels)})


def correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # the mean of equal numbers may differ from them in the last digit
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y) / math.sqrt(float((x @ x) * (y @ y)))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    means: NDArray[np.float64] = (last - (counts - 1) / 2)[places.reshape(-1)].astype(np.float64)
    return means


def fisher_ci95(pearson: float, num: int) -> tuple[float, float]:
    """95 % interval of a correlation by Fisher's z; (-1, 1) for 3 pairs or fewer."""
    if num <= 3:
        return -1.0, 1.0
    z, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, pearson))), Z_95 / math.sqrt(num - 3)
    return math.tanh(z - half), math.tanh(z + half)


_ARTICLE = re.compile(r"\b(a|an|the)\b")
_IDEOGRAPH = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "。，、；：？！“”‘’（）《》〈〉「」『』【】·…—～")


def plain_words(text: str) -> list[str]:
    """Words as SQuAD's own script compares them: lower case, no punctuation, no articles. A Chinese character is one.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; for Chinese, Cui et al. 2019, arXiv:1810.07366.
    """
    bare = _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION))
    return _IDEOGRAPH.sub(r" \1 ", bare).split()


def word_f1(said: str, right: str) -> float:
    """F1 of the words of two texts, as often as they occur; 1 for two texts without words."""
    ours, theirs = plain_words(said), plain_words(right)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))
