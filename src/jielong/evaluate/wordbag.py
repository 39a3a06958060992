"""What words alone say about a task, without any order: the baseline that a fine-tuned model has to beat.

A label: logistic regression on which words occur, the strength of its penalty as scikit-learn has it by default. A
number, or one of several candidates: how many words the two texts share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.data.labelled import Example
from jielong.data.words import tokenize

MAX_STEPS = 100
PENALTY = 1.0  # C = 1: half the squared weights beside the sum of the examples' losses


def trivial_answer(labels: Sequence[int | float], task: str) -> int | float:
    """The commonest label; the mean of the numbers; the commonest place of the right candidate."""
    if task == "similarity":
        return sum(labels) / len(labels)
    return Counter(labels).most_common(1)[0][0]


def word_answers(
    train: Sequence[Example], labels: Sequence[int | float], test: Sequence[Example], task: str
) -> list[int | float]:
    """The answers to the test's examples by words alone, after the training examples and their labels."""
    if task == "similarity":
        return [_overlap(*example.texts) for example in test]
    if task == "choice":
        overlaps = [[_overlap(example.texts[0], text) for text in example.texts[1:]] for example in test]
        return [max(range(len(each)), key=each.__getitem__) for each in overlaps]
    vocabulary: dict[str, int] = {}
    bags = [[vocabulary.setdefault(word, len(vocabulary)) for word in _words(example)] for example in train]
    weight, bias = _fit(bags, torch.tensor(labels), len(vocabulary))
    known = [[vocabulary[word] for word in _words(example) if word in vocabulary] for example in test]
    answers: list[int | float] = _logits(known, weight, bias).argmax(dim=1).tolist()
    return answers


def _overlap(first: str, second: str) -> float:
    """Shared words by all words of both texts (Jaccard)."""
    ours, theirs = set(tokenize(first)), set(tokenize(second))
    return len(ours & theirs) / max(1, len(ours | theirs))


def _words(example: Example) -> list[str]:
    """The different words, in order; of a pair by the text that they stand in, or as shared by both."""
    if len(example.texts) == 1:
        return list(dict.fromkeys(tokenize(example.texts[0])))
    first, second = (dict.fromkeys(tokenize(text)) for text in example.texts)
    marked = [f"1 {word}" for word in first if word not in second]
    marked += [f"2 {word}" for word in second if word not in first]
    return [*marked, *(f"both {word}" for word in first if word in second)]


def _logits(bags: Sequence[Sequence[int]], weight: Tensor, bias: Tensor) -> Tensor:
    """(E, C) from the rows of weight (V, C) that each bag names."""
    flat = torch.tensor([word for bag in bags for word in bag], dtype=torch.int64)
    sizes = torch.tensor([0, *map(len, bags)])[:-1]
    return F.embedding_bag(flat, weight, sizes.cumsum(0), mode="sum") + bias


def _fit(bags: Sequence[Sequence[int]], labels: Tensor, num_words: int) -> tuple[Tensor, Tensor]:
    """(weight (V, C), bias (C,)) of least loss, by L-BFGS from zero: the problem is convex, so any start will do."""
    num_labels = int(labels.max()) + 1
    weight = torch.zeros(num_words, num_labels, requires_grad=True)
    bias = torch.zeros(num_labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = F.cross_entropy(_logits(bags, weight, bias), labels, reduction="sum")
        total: Tensor = (nats + weight.square().sum() / (2 * PENALTY)) / len(labels)
        total.backward()
        return total

    optimizer.step(loss)
    return weight.detach(), bias.detach()
