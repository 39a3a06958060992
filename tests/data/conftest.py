"""A small corpus on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jielong.tokenizer import Tokenizer

WORDS = "the fox found a bell under the old bridge 一只狐狸 in 1848 and rang it twice".split()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([" ".join(WORDS)] * 20, 300).save(folder)
    return folder


@pytest.fixture
def write_documents(tmp_path: Path) -> Callable[[Sequence[tuple[str, str]]], Path]:
    """(text, source) pairs to a documents.jsonl."""

    def write(documents: Sequence[tuple[str, str]]) -> Path:
        path = tmp_path / "documents.jsonl"
        records = ({"text": text, "language": "", "source": source} for text, source in documents)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def texts() -> list[tuple[str, str]]:
    """200 documents of 1 to 60 words, of three sources."""
    return [
        (" ".join(WORDS[(number + place) % len(WORDS)] for place in range(1 + number * 7 % 60)), source)
        for number in range(200)
        for source in [("world/story", "world/facts", "novels", "wiki")[number % 4]]
    ]
