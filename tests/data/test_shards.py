from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jielong.data import shards
from jielong.data.encoding import ONE_SOURCE, Plan, encode_corpus
from jielong.data.shards import INDEX, open_streams, read_index, verify
from jielong.data.stream import StreamRows
from jielong.errors import DataError
from jielong.tokenizer import Tokenizer


@pytest.fixture
def folder(
    tmp_path: Path, texts: list[tuple[str, str]], tokenizer_folder: Path, write_documents: Callable[[Any], Path]
) -> Path:
    """A folder of several shards."""
    encode_corpus(tmp_path / "tokens", Plan(write_documents(texts), tokenizer_folder, (), 700, 2000), 1)
    return tmp_path / "tokens"


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


def test_the_format_is_plain(folder: Path, tokenizer: Tokenizer, texts: list[tuple[str, str]]) -> None:
    """Numbers and JSON that any program reads, with no code of ours."""
    index = json.loads((folder / INDEX).read_text())
    assert (index["format"], index["version"], index["dtype"]) == ("jielong tokens", 1, "uint16")
    assert index["tokenizer_hash"] == tokenizer.hash
    documents = []
    for shard in index["sources"]["all"]:
        tokens = np.fromfile(folder / f"{shard['name']}.bin", "<u2")
        bits = np.unpackbits(np.fromfile(folder / f"{shard['name']}.starts.bin", np.uint8), bitorder="little")
        starts = np.flatnonzero(bits)
        assert (len(tokens), len(starts)) == (shard["num_tokens"], shard["num_documents"]) and starts[0] == 0
        documents += [piece.tolist() for piece in np.split(tokens, starts[1:])]
    assert documents == [tokenizer.document(tokenizer.encode(text)) for text, _ in texts]


@pytest.mark.parametrize("suffix", [".bin", ".starts.bin"])
def test_a_missing_or_cut_shard_is_named_with_its_sizes(folder: Path, tokenizer: Tokenizer, suffix: str) -> None:
    path = folder / f"00-00001{suffix}"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-6])
    wanted = f"00-00001{suffix} has {size - 6} bytes, {size} bytes should be there; put the file back, or remove"
    with pytest.raises(DataError, match=wanted):
        open_streams(folder, tokenizer.hash, tokenizer.vocab_size)
    path.unlink()
    with pytest.raises(DataError, match=f"00-00001{suffix} is missing, {size} bytes should be there"):
        open_streams(folder, tokenizer.hash, tokenizer.vocab_size)
    with pytest.raises(DataError, match="is missing"):
        verify(folder)


@pytest.mark.parametrize("suffix", [".bin", ".starts.bin"])
def test_a_changed_shard_is_found_by_its_checksum(folder: Path, suffix: str) -> None:
    verify(folder)
    path = folder / f"00-00002{suffix}"
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"00-00002{suffix} has changed since it was written: its sha256 is"):
        verify(folder)


def test_tokens_of_another_tokenizer_are_refused(folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=f"another tokenizer: its hash is {tokenizer.hash[:12]}… with 300 ids"):
        open_streams(folder, "0" * 64, 300)
    with pytest.raises(DataError, match="with 300 ids, this one's .* with 301"):
        open_streams(folder, tokenizer.hash, 301)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "tokens"}, "format 'tokens'"),
        ({"dtype": "float32"}, "dtype 'float32'"),
        ({"sources": []}, "is no index"),
        ({"sources": {"all": [{"name": "00-00000"}]}}, "is no index"),
    ],
)
def test_an_index_of_another_kind_is_refused(folder: Path, change: dict[str, Any], wanted: str) -> None:
    content = json.loads((folder / INDEX).read_text()) | change
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(DataError, match=wanted):
        read_index(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("name", "../00-00000"), ("num_tokens", -4), ("bytes", 7), ("num_documents", "3")]
)
def test_a_line_of_the_index_is_checked(folder: Path, key: str, value: Any) -> None:
    content = json.loads((folder / INDEX).read_text())
    content["sources"]["all"][0][key] = value
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"index.json is no index of token shards: shard"):
        read_index(folder)


def test_an_index_that_is_cut_or_missing_is_named(folder: Path) -> None:
    (folder / INDEX).write_text((folder / INDEX).read_text()[:50])
    with pytest.raises(DataError, match="index.json is no index of token shards"):
        read_index(folder)
    (folder / INDEX).unlink()
    with pytest.raises(DataError, match="index.json is missing: it should list token shards; remove"):
        read_index(folder)


def test_few_files_are_mapped_at_a_time(
    folder: Path, tokenizer: Tokenizer, texts: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_MAPPED", 4)
    stream = open_streams(folder, tokenizer.hash, tokenizer.vocab_size)[ONE_SOURCE]
    tokens, is_start = np.zeros(stream.num_tokens, np.int64), np.zeros(stream.num_tokens, bool)
    assert stream.read(0, tokens, is_start) == stream.num_tokens
    assert tokens.tolist() == [token for text, _ in texts for token in tokenizer.document(tokenizer.encode(text))]
    lengths = [len(tokenizer.document(tokenizer.encode(text))) for text, _ in texts]
    assert np.flatnonzero(is_start).tolist() == np.cumsum([0, *lengths[:-1]]).tolist()
    assert stream.num_starts_at(7) == int(is_start[::7].sum())
    assert len(stream._mapped) == 2 < len(read_index(folder).sources[ONE_SOURCE])


def test_a_token_beyond_the_vocabulary_is_named(folder: Path, tokenizer: Tokenizer) -> None:
    """Damage that keeps the size is found where it is read, before it is an index into nothing."""
    path = folder / "00-00001.bin"
    tokens = np.fromfile(path, "<u2")
    tokens[5] = 60_000
    tokens.tofile(path)
    stream = open_streams(folder, tokenizer.hash, tokenizer.vocab_size)[ONE_SOURCE]
    rows = StreamRows([stream], 16, tokenizer.vocab_size)
    with pytest.raises(DataError, match=r"00-00001.bin, byte 10: the token there is 60000, legal are 0 to 299"):
        rows.batch(range(len(rows)))
