"""Labelled examples as rows of tokens: one transformation for each kind of task, for encoders and decoders alike.

An encoder reads [CLS] A [SEP] or [CLS] A [SEP] B [SEP], a decoder <start> A <extract> or <start> A <delimiter> B
<extract>, whose last token has seen all. The two differ in the three tokens alone, but for similarity, which has no
order: a decoder reads both orders, an encoder one.
Source: Radford et al. 2018 (GPT-1), section 3.3 and figure 1; Devlin et al. 2018, arXiv:1810.04805, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.data.batch import OnDevice
from jielong.data.labelled import Example
from jielong.errors import ModelError, UsageError
from jielong.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class LabelledBatch(OnDevice):
    """N rows of E examples.

    tokens: (N, T) int64. segments: (N, T) int32, 0 = padding. token_types: (N, T) int64, 1 for the second text. mask:
    (N, T) bool, tokens a language model is scored at: all but the first. owners: (N,) int64, which example each row is
    of, in order. labels: (E,) int64 (a label or the right candidate) or float32 (a number); (E, 2) int64 for span, the
    first and the last token of the answer in its row. contexts: (N, T) bool, where an answer may stand; span alone has
    it. num_units: E.
    """

    tokens: Tensor
    segments: Tensor
    token_types: Tensor
    mask: Tensor
    owners: Tensor
    labels: Tensor
    num_units: int
    contexts: Tensor | None = None


@dataclass(frozen=True)
class Frame:
    """The tokens around the texts. row_tokens: of a row, at most. both_orders: of a pair that has no order."""

    first: int
    between: int
    last: int
    row_tokens: int
    both_orders: bool

    @classmethod
    def encoder(cls, tokenizer: Tokenizer, row_tokens: int) -> Frame:
        """[CLS], [SEP], [SEP]. Raises ModelError for a tokenizer that puts no such tokens around a text."""
        if len(tokenizer.prefix_ids) != 1 or len(tokenizer.suffix_ids) != 1:
            raise ModelError(
                "the tokenizer must put one token before a text and one behind it, as BERT's [CLS] and [SEP]; it puts "
                f"{len(tokenizer.prefix_ids)} and {len(tokenizer.suffix_ids)}"
            )
        first, last = tokenizer.prefix_ids[0], tokenizer.suffix_ids[0]
        return cls(first, last, last, _checked(row_tokens), both_orders=False)

    @classmethod
    def decoder(cls, tokenizer: Tokenizer, row_tokens: int) -> Frame:
        """<start>, <delimiter>, <extract>, which Tokenizer.with_controls(Tokenizer.TASK) has."""
        first, between, last = (tokenizer.special_ids[name] for name in Tokenizer.TASK)
        return cls(first, between, last, _checked(row_tokens), both_orders=True)

    def row(self, *texts: Sequence[int]) -> tuple[list[int], list[int], bool]:
        """(ids, token types, whether something was cut) of one text or of two. The longer is cut first, at its end."""
        room = self.row_tokens - 1 - len(texts)
        lengths = [len(text) for text in texts]
        excess = max(0, sum(lengths) - room)
        if len(texts) == 2:
            longer = min(excess, abs(lengths[0] - lengths[1]))
            half = (excess - longer) // 2
            more = longer + (excess - longer) - half
            cut = [more, half] if lengths[0] >= lengths[1] else [half, more]
        else:
            cut = [excess]
        kept = [list(text[: len(text) - gone]) for text, gone in zip(texts, cut, strict=True)]
        ids, types = [self.first, *kept[0]], [0] * (len(kept[0]) + 1)
        if len(texts) == 2:
            ids, types = [*ids, self.between, *kept[1]], [*types, 0, *[1] * len(kept[1])]
        return [*ids, self.last], [*types, len(texts) - 1], excess > 0


def _checked(row_tokens: int) -> int:
    if row_tokens < 8:
        raise UsageError(f"rows of {row_tokens} tokens leave no room for texts; at least 8 are needed")
    return row_tokens


@dataclass(frozen=True)
class TaskRows:
    """One example as the model reads it. rows, types: its rows. label: see LabelledBatch. truncated: a text was cut.

    contexts: of each row the places (first, end) where an answer may stand, for span. starts: the character of the
    context at which each of these tokens begins, and where the last one ends.
    """

    rows: tuple[list[int], ...]
    types: tuple[list[int], ...]
    label: int | float | tuple[int, int]
    truncated: bool
    contexts: tuple[tuple[int, int], ...] = ()
    starts: tuple[tuple[int, ...], ...] = ()

    @property
    def longest(self) -> int:
        return max(map(len, self.rows))


def task_rows(
    examples: Sequence[Example], labels: Sequence[int | float], task: str, tokenizer: Tokenizer, frame: Frame
) -> list[TaskRows]:
    """The rows of every example: classification and pairs one, similarity one or both orders, choice one a candidate.

    labels: numbers, in the order of the examples.
    """
    encoded = iter(tokenizer.encode_batch([text for example in examples for text in example.texts]))
    made = []
    for example, label in zip(examples, labels, strict=True):
        texts = [next(encoded) for _ in example.texts]
        if task == "choice":
            framed = [frame.row(texts[0], candidate) for candidate in texts[1:]]
        elif task == "similarity" and frame.both_orders:
            framed = [frame.row(*texts), frame.row(*reversed(texts))]
        else:
            framed = [frame.row(*texts)]
        rows, types, cut = zip(*framed, strict=True)
        made.append(TaskRows(rows, types, label, any(cut)))
    return made


def collate(items: Sequence[TaskRows], pad_id: int) -> LabelledBatch:
    """The examples' rows one below the other, padded at the right."""
    rows = [row for item in items for row in item.rows]
    types = [each for item in items for each in item.types]
    shape = (len(rows), max(map(len, rows)))
    tokens = torch.full(shape, pad_id, dtype=torch.int64)
    token_types, segments = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int32)
    for number, (row, kinds) in enumerate(zip(rows, types, strict=True)):
        tokens[number, : len(row)] = torch.tensor(row)
        token_types[number, : len(row)] = torch.tensor(kinds)
        segments[number, : len(row)] = 1
    mask = segments > 0
    mask[:, 0] = False
    owners = torch.tensor([owner for owner, item in enumerate(items) for _ in item.rows])
    values = [item.label for item in items]
    labels = torch.tensor(values, dtype=torch.float32 if isinstance(values[0], float) else torch.int64)
    contexts = None
    if items[0].contexts:
        contexts = torch.zeros(shape, dtype=torch.bool)
        for number, (first, end) in enumerate(place for item in items for place in item.contexts):
            contexts[number, first:end] = True
    return LabelledBatch(tokens, segments, token_types, mask, owners, labels, len(items), contexts)


def by_length(items: Iterable[TaskRows], batch_rows: int) -> list[list[int]]:
    """Numbers of the examples in groups of batch_rows, those of similar length together: for reading them all once."""
    lengths = [item.longest for item in items]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[first : first + batch_rows] for first in range(0, len(order), batch_rows)]
