"""The input transformations, token by token; and how rows of several examples lie in a batch."""

from __future__ import annotations

import pytest
import torch

from jielong.data.labelled import Example
from jielong.data.span_rows import answer_tokens, span_rows, token_starts
from jielong.data.task_rows import Frame, TaskRows, by_length, collate, task_rows
from jielong.errors import ModelError, UsageError
from jielong.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return Tokenizer.from_merges([])  # a byte is a token


def shown(tokenizer: Tokenizer, row: list[int]) -> str:
    return "".join(tokenizer.name(token) for token in row)


PAIR = Example(("ab", "cde"), "x", "f")


@pytest.mark.parametrize(
    ("task", "example", "encoder", "decoder"),
    [
        ("classification", Example(("ab",), "x", "f"), ["<|cls|>ab<|sep|>"], ["<|start|>ab<|extract|>"]),
        ("pairs", PAIR, ["<|cls|>ab<|sep|>cde<|sep|>"], ["<|start|>ab<|delimiter|>cde<|extract|>"]),
        ("similarity", PAIR, ["<|cls|>ab<|sep|>cde<|sep|>"],
         ["<|start|>ab<|delimiter|>cde<|extract|>", "<|start|>cde<|delimiter|>ab<|extract|>"]),
        ("choice", Example(("q", "ab", "c"), 1, "f"), ["<|cls|>q<|sep|>ab<|sep|>", "<|cls|>q<|sep|>c<|sep|>"],
         ["<|start|>q<|delimiter|>ab<|extract|>", "<|start|>q<|delimiter|>c<|extract|>"]),
    ],
)  # fmt: skip
def test_transformations(plain: Tokenizer, task: str, example: Example, encoder: list[str], decoder: list[str]) -> None:
    kinds = ((encoder, Tokenizer.ENCODER, Frame.encoder), (decoder, Tokenizer.TASK, Frame.decoder))
    for expected, controls, make in kinds:
        tokenizer = plain.with_controls(controls)
        (item,) = task_rows([example], [1], task, tokenizer, make(tokenizer, 32))
        assert [shown(tokenizer, row) for row in item.rows] == expected and not item.truncated
        for row, types in zip(item.rows, item.types, strict=True):
            first_half = len(row)  # [SEP] is the delimiter of an encoder
            if len(example.texts) > 1:
                first_half = row.index(tokenizer.special_ids[controls[1]]) + 1
            assert types == [0] * first_half + [1] * (len(row) - first_half)


def test_the_longer_text_is_cut_first(plain: Tokenizer) -> None:
    tokenizer = plain.with_controls(Tokenizer.TASK)
    frame = Frame.decoder(tokenizer, 9)
    texts = {("abcdefgh", "xy"): "abcd xy", ("ab", "uvwxyz"): "ab uvwx", ("abcdef", "uvwxyz"): "abc uvw",
             ("abc", "xyz"): "abc xyz"}  # fmt: skip
    for (first, second), kept in texts.items():
        row, _, cut = frame.row(tokenizer.encode(first), tokenizer.encode(second))
        left, right = kept.split()
        assert shown(tokenizer, row) == f"<|start|>{left}<|delimiter|>{right}<|extract|>"
        assert cut == (first + second != left + right)
    row, _, cut = frame.row(tokenizer.encode("abcdefghij"))
    assert (shown(tokenizer, row), cut) == ("<|start|>abcdefg<|extract|>", True)


def test_batches_keep_rows_of_one_example_together() -> None:
    items = [
        TaskRows(([1, 2, 3], [1, 4, 5, 6]), ([0, 0, 1], [0, 0, 1, 1]), 1, False),
        TaskRows(([1, 9],), ([0, 0],), 0, False),
    ]
    batch = collate(items, pad_id=77)
    assert batch.tokens.tolist() == [[1, 2, 3, 77], [1, 4, 5, 6], [1, 9, 77, 77]]
    assert batch.segments.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.mask.tolist() == [[False, True, True, False], [False, True, True, True], [False, True, False, False]]
    assert batch.token_types.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert (batch.owners.tolist(), batch.labels.tolist(), batch.num_units) == ([0, 0, 1], [1, 0], 2)
    assert batch.contexts is None and batch.labels.dtype == torch.int64
    assert collate([TaskRows(([1],), ([0],), 0.5, False)], 0).labels.dtype == torch.float32
    assert by_length(items, 1) == [[1], [0]]


def test_frames_want_their_tokens(plain: Tokenizer) -> None:
    with pytest.raises(ModelError, match="as BERT's .CLS. and .SEP.; it puts 1 and 0"):
        Frame.encoder(plain, 32)
    with pytest.raises(UsageError, match="rows of 7 tokens leave no room"):
        Frame.decoder(plain.with_controls(Tokenizer.TASK), 7)


# Answers that are pieces of a text.


def test_where_tokens_begin_by_hand() -> None:
    merged = Tokenizer.train(["the cat"] * 5, 300)
    text = "the cat é你x"
    ids = merged.encode(text)
    starts = token_starts(ids, text, merged)
    assert len(starts) == len(ids) + 1 and starts[-1] == len(text)
    place = 0
    for number, token in enumerate(ids):
        piece = merged.token_bytes(token)
        assert text[starts[number] :].encode().startswith(piece) or 0x80 <= piece[0] or not piece.isascii()
        place += len(piece)
    halves = [start for start, token in zip(starts, ids, strict=False) if merged.token_bytes(token)[0] >= 0x80]
    assert halves == [8, 8, 9, 9, 9]  # two bytes of é, three of 你
    assert answer_tokens([0, 3, 7, 8, 9, 12], 4, 3) == (1, 1)
    assert answer_tokens([0, 3, 7, 8, 9, 12], 3, 6) == (1, 3)


def span(context: str, question: str, answer: str) -> Example:
    return Example((context, question), context.index(answer), "f", (answer,))


def test_an_answer_is_where_its_label_says(plain: Tokenizer) -> None:
    tokenizer = plain.with_controls(Tokenizer.ENCODER)
    frame = Frame.encoder(tokenizer, 20)
    long = "0123456789abcdefghijABCDEFGHIJ"
    for example in (span("x ab y", "q?", "ab"), *(span(long, "q?", answer) for answer in ("0", "9ab", "J", "fghij"))):
        (item,) = span_rows([example], tokenizer, frame, teach=True)
        assert item is not None and len(item.rows) == 1 and not item.truncated
        first, last = item.label  # type: ignore[misc]
        assert tokenizer.decode(item.rows[0][first : last + 1]) == example.answers[0]
        assert item.contexts[0][0] <= first <= last < item.contexts[0][1]
        assert shown(tokenizer, item.rows[0]).startswith("<|cls|>q?<|sep|>")


def test_windows_cover_a_long_context(plain: Tokenizer) -> None:
    tokenizer = plain.with_controls(Tokenizer.ENCODER)
    example = span("0123456789abcdefghijABCDEFGHIJ", "q?", "J")
    (item,) = span_rows([example], tokenizer, Frame.encoder(tokenizer, 15), teach=False)
    assert item is not None
    windows = [tokenizer.decode(row[first:end]) for row, (first, end) in zip(item.rows, item.contexts, strict=True)]
    assert windows == ["0123456789", "56789abcde", "abcdefghij", "fghijABCDE", "ABCDEFGHIJ"]
    assert [starts[0] for starts in item.starts] == [0, 5, 10, 15, 20] and item.starts[-1][-1] == 30


def test_an_answer_longer_than_a_row_teaches_nothing(plain: Tokenizer) -> None:
    tokenizer = plain.with_controls(Tokenizer.ENCODER)
    text = "abcdefghijklmnopqrst"
    assert span_rows([span(text, "q?", text)], tokenizer, Frame.encoder(tokenizer, 15), teach=True) == [None]
