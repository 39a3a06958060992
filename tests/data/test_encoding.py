from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data import encoding
from jielong.data.encoding import ONE_SOURCE, UNFINISHED, Plan, encode_corpus
from jielong.data.pack import pack_stream
from jielong.data.shards import INDEX, open_streams, read_index
from jielong.data.stream import StreamRows
from jielong.errors import DataError, StorageError
from jielong.tokenizer import Tokenizer

Documents = Sequence[tuple[str, str]]
Write = Callable[[Documents], Path]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(folder: Path, tokenizer: Tokenizer, names: Sequence[str], row_tokens: int) -> StreamRows:
    streams = open_streams(folder, tokenizer.hash, tokenizer.vocab_size)
    return StreamRows([streams[name] for name in names], row_tokens, tokenizer.vocab_size)


@pytest.fixture
def plan(write_documents: Write, texts: Documents, tokenizer_folder: Path) -> Plan:
    return Plan(write_documents(texts), tokenizer_folder, piece_bytes=700, shard_bytes=2000)


@pytest.mark.parametrize("row_tokens", [2, 16, 33, 5000])
def test_rows_are_those_of_the_packer_in_memory(plan: Plan, texts: Documents, tmp_path: Path, row_tokens: int) -> None:
    """Documents' isolation, what is scored, padding: all as `pack_stream` has it, over many shards."""
    tokenizer = Tokenizer.load(plan.tokenizer)
    encode_corpus(tmp_path / "tokens", plan, 1)
    assert len(read_index(tmp_path / "tokens").sources[ONE_SOURCE]) > 3
    rows = rows_of(tmp_path / "tokens", tokenizer, [ONE_SOURCE], row_tokens)
    wanted = pack_stream([tokenizer.document(tokenizer.encode(text)) for text, _ in texts], row_tokens)
    assert (len(rows), rows.num_tokens, rows.num_scored) == (len(wanted), wanted.num_tokens, wanted.num_scored)
    backwards = list(range(len(wanted)))[::-1]
    found, expected = rows.batch(backwards), wanted.batch(backwards)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.segments, expected.segments)
    assert found.num_units == expected.num_units
    whole = rows.sample(10**9)
    assert torch.equal(whole.tokens, wanted.tokens) and torch.equal(whole.mask, wanted.mask)
    assert torch.equal(whole.segments, wanted.segments)


def test_the_number_of_processes_changes_no_byte(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_corpus(tmp_path / "one", plan, 1)
    monkeypatch.setattr(encoding, "BYTES_PER_PROCESS", 1)  # else so small a corpus gets one process
    seen: list[tuple[int, int]] = []
    encode_corpus(tmp_path / "three", plan, 3, lambda done, total: seen.append((done, total)))
    assert content(tmp_path / "one") == content(tmp_path / "three")
    total = plan.documents.stat().st_size
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}) and seen[-1] == (total, total)


@settings(max_examples=10, deadline=None)
@given(cuts=st.tuples(st.integers(1, 5000), st.integers(500, 5000)))
def test_where_shards_are_cut_changes_no_row(
    tmp_path_factory: pytest.TempPathFactory, texts: Documents, tokenizer_folder: Path, cuts: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text, "source": source}) + "\n" for text, source in texts[:60]))
    tokenizer = Tokenizer.load(tokenizer_folder)
    encode_corpus(folder / "tokens", Plan(path, tokenizer_folder, (), *cuts), 1)
    ids = [token for text, _ in texts[:60] for token in tokenizer.document(tokenizer.encode(text))]
    found = rows_of(folder / "tokens", tokenizer, [ONE_SOURCE], 24).sample(10**9)
    assert found.tokens[found.segments > 0].tolist() == ids


def test_sources_are_told_apart(plan: Plan, texts: Documents, tmp_path: Path) -> None:
    """The world's documents say more than its name; no row holds two sources' text."""
    tokenizer = Tokenizer.load(plan.tokenizer)
    names = ("novels", "wiki", "world")
    encode_corpus(tmp_path / "tokens", replace(plan, sources=names), 1)
    rows = rows_of(tmp_path / "tokens", tokenizer, names, 16)
    first = 0
    for name, size in zip(names, rows.sizes, strict=True):
        mine = [text for text, source in texts if source.partition("/")[0] == name]
        wanted = pack_stream([tokenizer.document(tokenizer.encode(text)) for text in mine], 16)
        assert size == len(wanted)
        assert torch.equal(rows.batch(range(first, first + size)).tokens, wanted.tokens.long())
        first += size


@pytest.mark.parametrize("processes", [1, 2])
def test_a_document_of_another_source_is_refused(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(encoding, "BYTES_PER_PROCESS", 1)
    with pytest.raises(DataError, match=r"documents.jsonl, byte \d+: the document is from 'wiki', which the mixture"):
        encode_corpus(tmp_path / "tokens", replace(plan, sources=("novels", "world")), processes)
    assert not (tmp_path / "tokens" / INDEX).exists()
    assert not list((tmp_path / "tokens").glob(".*"))  # no half shard


class Stop(Exception):
    pass


def test_an_interrupted_encoding_goes_on_and_comes_out_the_same(plan: Plan, tmp_path: Path) -> None:
    encode_corpus(tmp_path / "whole", plan, 1)
    begun: list[int] = []

    def stop(done: int, total: int) -> None:
        begun.append(done)
        if done > 0.7 * total:
            raise Stop

    with pytest.raises(Stop):
        encode_corpus(tmp_path / "cut", plan, 1, stop)
    left = json.loads((tmp_path / "cut" / UNFINISHED).read_text())
    assert left["read_bytes"] > 0 and not (tmp_path / "cut" / INDEX).exists()
    again: list[int] = []
    encode_corpus(tmp_path / "cut", plan, 1, lambda done, _: again.append(done))
    assert content(tmp_path / "whole") == content(tmp_path / "cut")
    assert again[0] > left["read_bytes"] and len(again) < len(begun)


@pytest.mark.parametrize("change", ["tokenizer", "shard"])
def test_an_interrupted_encoding_of_something_else_begins_anew(plan: Plan, tmp_path: Path, change: str) -> None:
    def stop(done: int, total: int) -> None:
        if done > 0.7 * total:
            raise Stop

    with pytest.raises(Stop):
        encode_corpus(tmp_path / "cut", plan, 1, stop)
    if change == "tokenizer":
        Tokenizer.train(["another corpus altogether"] * 9, 290).save(tmp_path / "other")
        plan = replace(plan, tokenizer=tmp_path / "other")
    else:
        next((tmp_path / "cut").glob("*.starts.bin")).unlink()
    (tmp_path / "cut" / ".00-00009.bin.1234.tmp").write_bytes(b"half a shard")  # of a process that was killed
    encode_corpus(tmp_path / "fresh", plan, 1)
    encode_corpus(tmp_path / "cut", plan, 1)
    assert content(tmp_path / "fresh") == content(tmp_path / "cut")


def test_a_corpus_without_a_document_is_refused(tmp_path: Path, tokenizer_folder: Path, write_documents: Write) -> None:
    with pytest.raises(DataError, match=r"documents.jsonl holds no document: there is nothing to learn from"):
        encode_corpus(tmp_path / "tokens", Plan(write_documents([]), tokenizer_folder), 1)
    with pytest.raises(DataError, match="holds no document of source 'b'"):
        encode_corpus(tmp_path / "more", Plan(write_documents([("x", "a")]), tokenizer_folder, ("a", "b")), 1)


def test_a_line_that_is_no_document_is_named(plan: Plan, tmp_path: Path) -> None:
    head = plan.documents.read_bytes()
    plan.documents.write_bytes(head + b'{"text": 3}\n')
    with pytest.raises(DataError, match=f"documents.jsonl, byte {len(head)}: no document with text and source"):
        encode_corpus(tmp_path / "tokens", plan, 1)


def test_a_full_disk_is_said_and_leaves_what_is_whole(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def full(path: Path, text: str) -> None:
        written.append(path)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_atomic", full)
        with pytest.raises(StorageError, match=r"written to .*tokens: No space left on device. Make room there"):
            encode_corpus(tmp_path / "tokens", plan, 1)
    assert written
    encode_corpus(tmp_path / "tokens", plan, 1)
    encode_corpus(tmp_path / "fresh", plan, 1)
    assert content(tmp_path / "fresh") == content(tmp_path / "tokens")


def test_a_process_that_dies_is_said(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(encoding.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match=r"has ended \(exit code 1\).*--set run.threads=1"):
        encode_corpus(tmp_path / "tokens", plan, 2)


def test_memory_does_not_grow_with_the_corpus(plan: Plan, tmp_path: Path) -> None:
    """Whatever is there of the corpus at a time is a piece, and the shards are on the disk as they grow."""
    import tracemalloc

    peaks = []
    text = plan.documents.read_bytes()
    for times in (10, 80):
        plan.documents.write_bytes(text * times)
        many = replace(plan, piece_bytes=20_000, shard_bytes=1 << 29)
        tracemalloc.start()
        encode_corpus(tmp_path / f"tokens-{times}", many, 1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_large_vocabularies_get_four_bytes(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda _: 70_000, lambda *_: None), raising=False)
    encode_corpus(tmp_path / "tokens", plan, 1)
    index = read_index(tmp_path / "tokens")
    assert index.dtype == "uint32"
    shard = index.sources[ONE_SOURCE][0]
    assert shard.bytes == 4 * shard.num_tokens
    tokens = np.fromfile(tmp_path / "tokens" / f"{shard.name}.bin", "<u4")
    assert tokens.max() < 300
