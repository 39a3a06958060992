from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data.pack import Rows, pack_examples, pack_stream
from jielong.errors import DataError, StorageError, UsageError
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

Example = tuple[list[int], list[bool]]


def test_stream_by_hand() -> None:
    """Three documents in rows of four: the second goes on in the next row, the last row is padded."""
    rows = pack_stream([[1, 2, 3], [4, 5, 6], [], [7, 8, 9, 10]], 4)
    assert rows.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 2], [1, 1, 2, 2], [1, 1, 0, 0]]
    assert rows.mask.tolist() == [
        [False, True, True, False],
        [False, True, False, True],
        [False, True, False, False],
    ]
    assert (len(rows), rows.num_tokens, rows.num_scored, rows.num_dropped) == (3, 10, 5, 0)


def test_stream_that_fills_its_rows_exactly() -> None:
    rows = pack_stream([[1, 2], [3, 4]], 4)
    assert rows.tokens.tolist() == [[1, 2, 3, 4]]
    assert rows.segments.tolist() == [[1, 1, 2, 2]]
    assert pack_stream([[1, 2, 3, 4], [5, 6, 7, 8]], 4).segments.tolist() == [[1] * 4, [1] * 4]


@pytest.mark.parametrize("documents", [[], [[]]])
def test_no_tokens_make_no_rows(documents: list[list[int]]) -> None:
    rows = pack_stream(documents, 4)
    assert len(rows) == 0
    assert rows.tokens.shape == (0, 4)
    assert len(pack_examples([], 4)) == 0


def slow_stream(documents: list[list[int]], row_tokens: int) -> tuple[list[int], list[bool], list[int]]:
    """The same rule, one token at a time."""
    tokens: list[int] = []
    mask: list[bool] = []
    segments: list[int] = []
    segment = 0
    for document in documents:
        for place, token in enumerate(document):
            new_row = len(tokens) % row_tokens == 0
            segment = 1 if new_row else segment + (place == 0)
            mask.append(place > 0 and not new_row)
            tokens.append(token)
            segments.append(segment)
    return tokens, mask, segments


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), max_size=12), row_tokens=st.integers(2, 9))
def test_stream_equals_the_slow_twin(lengths: list[int], row_tokens: int) -> None:
    documents = [[100 * index + place for place in range(length)] for index, length in enumerate(lengths)]
    rows = pack_stream(iter(documents), row_tokens)
    tokens, mask, segments = slow_stream(documents, row_tokens)
    assert len(rows) == -(-len(tokens) // row_tokens)
    num_padding = len(rows) * row_tokens - len(tokens)
    assert num_padding < row_tokens
    assert rows.tokens.flatten().tolist() == tokens + [0] * num_padding
    assert rows.mask.flatten().tolist() == mask + [False] * num_padding
    assert rows.segments.flatten().tolist() == segments + [0] * num_padding


def example(length: int, first: int = 1) -> Example:
    return list(range(first, first + length)), [False] + [True] * (length - 1)


def test_examples_by_hand() -> None:
    """Lengths 3, 5, 2, 4 in rows of 6: 5 opens row 0, 4 row 1, 3 row 2; 2 goes where it leaves least, behind the 4."""
    rows = pack_examples([example(3, 10), example(5, 20), example(2, 30), example(4, 40)], 6)
    assert rows.tokens.tolist() == [[20, 21, 22, 23, 24, 0], [40, 41, 42, 43, 30, 31], [10, 11, 12, 0, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]]
    assert rows.mask.tolist() == [
        [False, True, True, True, True, False],
        [False, True, True, True, False, True],
        [False, True, True, False, False, False],
    ]


def test_unpacked_examples_keep_their_order_one_to_a_row() -> None:
    rows = pack_examples([example(2, 10), example(3, 20), example(1, 30)], 3, packed=False)
    assert rows.tokens.tolist() == [[10, 11, 0], [20, 21, 22], [30, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("packed", [True, False])
def test_too_long_examples_are_dropped_and_counted(packed: bool) -> None:
    rows = pack_examples([example(5), example(4, 10), example(9)], 4, packed=packed)
    assert rows.tokens.tolist() == [[10, 11, 12, 13]]
    assert rows.num_dropped == 2


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 10), max_size=30), row_tokens=st.integers(10, 16), packed=st.booleans())
def test_each_example_is_one_whole_segment(lengths: list[int], row_tokens: int, packed: bool) -> None:
    examples = [
        ([1000 * index + place for place in range(length)], [place % 3 == 2 for place in range(length)])
        for index, length in enumerate(lengths)
    ]
    rows = pack_examples(examples, row_tokens, packed=packed)
    found = []
    for row in range(len(rows)):
        for segment in range(1, int(rows.segments[row].max()) + 1):
            here = rows.segments[row] == segment
            places = here.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[-1] + 1))
            found.append((rows.tokens[row][here].tolist(), rows.mask[row][here].tolist()))
    assert sorted(found) == sorted(examples)
    assert rows.num_tokens == sum(lengths)
    if packed:  # no two rows could be one: all but one are more than half full
        used = (rows.segments > 0).sum(dim=1).tolist()
        assert sum(amount * 2 <= row_tokens for amount in used) <= 1


def test_packing_a_hundred_thousand_examples_is_quick_and_tight() -> None:
    rng = random.Random(0)
    ids, flags = list(range(300)), [False] + [True] * 299
    examples = [(ids[:length], flags[:length]) for length in (rng.randint(4, 40) for _ in range(100_000))]
    start = time.perf_counter()
    rows = pack_examples(examples, 128)
    assert time.perf_counter() - start < 30  # under 1 s alone; looking at every open row would take minutes
    assert rows.num_tokens / rows.tokens.numel() > 0.99


def test_lists_that_differ_in_length_are_a_bug() -> None:
    with pytest.raises(ValueError, match="3 ids but 2 scored flags"):
        pack_examples([([1, 2, 3], [False, True])], 8)


@pytest.mark.parametrize("row_tokens", [1, 0, -3])
def test_rows_too_short_to_predict_in(row_tokens: int) -> None:
    with pytest.raises(UsageError, match=f"row_tokens is {row_tokens}, must be at least 2"):
        pack_stream([[1, 2]], row_tokens)
    with pytest.raises(UsageError, match="row_tokens"):
        pack_examples([example(2)], row_tokens)


def test_scoring_what_nothing_predicts_is_a_bug() -> None:
    with pytest.raises(ValueError, match="first token of a segment"):
        pack_examples([([1, 2], [True, True])], 4)
    with pytest.raises(ValueError, match="first token of a segment"):
        pack_examples([example(2), ([1, 2], [True, True])], 4)
    tokens = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="padding"):
        Rows(tokens, torch.tensor([[False, True]]), torch.tensor([[1, 0]], dtype=torch.int32))
    with pytest.raises(ValueError, match="same"):
        Rows(tokens, torch.zeros(1, 3, dtype=torch.bool), tokens)
    with pytest.raises(ValueError, match="int32, bool, int32"):
        Rows(tokens.long(), torch.zeros(1, 2, dtype=torch.bool), tokens)


def test_batch_picks_rows_in_order_and_counts_scored_tokens() -> None:
    rows = pack_stream([[1, 2, 3], [4, 5, 6], [7, 8, 9, 10]], 4)
    batch = rows.batch([2, 0])
    assert batch.tokens.tolist() == [[9, 10, 0, 0], [1, 2, 3, 4]]
    assert batch.segments.tolist() == [[1, 1, 0, 0], [1, 1, 1, 2]]
    assert batch.num_units == int(batch.mask.sum()) == 3
    assert torch.equal(rows.batch(torch.tensor([2, 0])).tokens, batch.tokens)


def test_scored_tokens_of_packed_chats_decode_to_the_assistant_text() -> None:
    """The golden test of the loss mask: what SFT learns to say, read back from the rows it learns from."""
    tokenizer = Tokenizer.train(["hello there, how are you 你好 你好 hello there"] * 3, 300)
    chats = [
        [("user", "hello?"), ("assistant", "hi 你好!"), ("user", "more"), ("assistant", "<|end|> is text")],
        [("system", "be kind"), ("user", "hello there"), ("assistant", "")],
        [("user", "2+2"), ("assistant", "4")],
    ]
    messages = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    expected = ["hi 你好!", "<|end|> is text", "", "4"]
    for packed in (True, False):
        rows = pack_examples((render(chat, tokenizer) for chat in messages), 80, packed=packed)
        assert len(rows) == (1 if packed else 3)
        found: list[str] = []
        for row in range(len(rows)):
            reply: list[int] = []
            for place in rows.mask[row].nonzero().flatten().tolist():
                token = int(rows.tokens[row, place])
                reply.append(token)
                if token == tokenizer.end_id:
                    found.append(tokenizer.decode(reply))
                    reply = []
            assert reply == []  # the last scored token is an end token
        assert sorted(found) == sorted(expected)


def test_save_and_load(tmp_path: Path) -> None:
    rows = pack_examples([example(3), example(9)], 6)
    rows.save(tmp_path / "deep" / "rows.safetensors")
    again = Rows.load(tmp_path / "deep" / "rows.safetensors")
    for name in ("tokens", "mask", "segments"):
        assert torch.equal(vars(again)[name], vars(rows)[name])
        assert vars(again)[name].dtype == vars(rows)[name].dtype
    assert again.num_dropped == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rows.safetensors"]


def test_load_refuses_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    with pytest.raises(DataError, match=r"rows\.safetensors is missing"):
        Rows.load(path)
    pack_stream([[1, 2, 3, 4, 5]], 4).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-5], b"{}" * 50):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"rows\.safetensors does not hold packed rows"):
            Rows.load(path)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="does not hold packed rows"):
        Rows.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.safetensors"
    pack_stream([[1, 2, 3]], 4).save(path)
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jielong.config.os.fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        pack_stream([[4, 5, 6, 7]], 4).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
