"""Local files of every format, and every way in which they can be wrong."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from jielong.data.sources import Document, Source, files, read_documents, read_records, resolve
from jielong.errors import DataError, UsageError

ROWS = [{"text": "first line\nsecond line", "kind": "a"}, {"text": "苹果,香蕉", "kind": "b"}]


def texts(root: Path, path: str, **options: object) -> list[str]:
    return [document.text for document in read_documents(Source("it", path, **options), root)]  # type: ignore[arg-type]


def test_txt_is_one_document_a_file_a_paragraph_or_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\n\n \nthree\n".encode())
    assert texts(tmp_path, "a.txt") == ["one\r\ntwo\n\n \nthree\n"]
    assert texts(tmp_path, "a.txt", split="paragraph") == ["one\r\ntwo", "three"]
    assert texts(tmp_path, "a.txt", split="line") == ["one", "two", "three"]


def test_documents_say_source_and_language(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    assert list(read_documents(Source("it", "a.txt", language="en"), tmp_path)) == [Document("hello", "en", "it")]


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.json", "rows.csv", "rows.tsv", "rows.parquet"]
)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if name.endswith(".gz"):
        path.write_bytes(
            gzip.compress(lines[:20]) + gzip.compress(lines[20:])
        )  # two members, as pigz and warc tools write
    elif name.endswith(".zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(lines))
    elif name.endswith(".jsonl"):
        path.write_bytes(lines + b"\n")
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "kind"], delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    assert list(read_records(Source("it", name), tmp_path)) == ROWS
    assert texts(tmp_path, name) == [row["text"] for row in ROWS]
    assert texts(tmp_path, name, limit_documents=1) == [ROWS[0]["text"]]


def test_long_csv_fields_and_lists_of_strings(tmp_path: Path) -> None:
    long = "x" * 300_000
    (tmp_path / "a.csv").write_text(f"text\n{long}\n")
    assert texts(tmp_path, "a.csv") == [long]
    (tmp_path / "poem.jsonl").write_text('{"lines": ["one", "two"]}\n{"lines": null}\n')
    assert texts(tmp_path, "poem.jsonl", field="lines") == ["one\ntwo"]


def test_folders_globs_and_packed_neighbours(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/c.txt", "a.md", ".hidden.txt", "image.png"):
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).write_text(name)
    assert texts(tmp_path, "corpus") == ["a.md", "b.txt", "sub/c.txt"]
    assert texts(tmp_path, "corpus/**/*.txt") == ["b.txt", "sub/c.txt"]
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert resolve(Source("it", "d.txt"), tmp_path) == tmp_path / "d.txt.gz"
    assert texts(tmp_path, "d.txt") == ["packed"]


def test_reading_is_a_stream(tmp_path: Path) -> None:
    """The first documents come before a broken line far behind them is reached."""
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' * 50_000 + "{broken\n")
    stream = read_documents(Source("it", "a.jsonl"), tmp_path)
    assert next(stream).text == "fine"
    with pytest.raises(DataError, match=r"a\.jsonl:50001: not valid JSON at column 2"):
        list(stream)


def refused(root: Path, path: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        texts(root, path, **options)
    return str(caught.value)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "novels.train.txt").write_text("x")
    message = refused(tmp_path, "books/novel.train.txt")
    assert "'novels.train.txt'" in message and str(tmp_path / "books") in message and "no url" in message
    assert "'books'" in refused(tmp_path, "book/novels.train.txt")
    assert "no file matches" in refused(tmp_path, "books/*.csv")
    (tmp_path / "none").mkdir()
    assert "holds no file ending in .txt" in refused(tmp_path, "none")


def test_not_utf8_names_file_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "gb.txt").write_bytes(b"plain\n" + b"ab" + "中文".encode("gb18030"))
    message = refused(tmp_path, "gb.txt")
    assert "gb.txt:2" in message and "at byte 8 (0xd6)" in message and "iconv -f GB18030" in message
    (tmp_path / "latin.txt").write_bytes("café au lait".encode("latin-1"))
    assert "at byte 3 (0xe9)" in refused(tmp_path, "latin.txt") and "WINDOWS-1252" in refused(tmp_path, "latin.txt")
    (tmp_path / "wide.txt").write_bytes("hello".encode("utf-16"))
    assert "UTF-16" in refused(tmp_path, "wide.txt")


def test_wrong_content(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"txet": "b"}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "ragged.csv").write_text("text,kind\na,b\nc\n")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"hello world" * 1000)[:-20])
    (tmp_path / "fake.parquet").write_text("not parquet")
    (tmp_path / "what.bin").write_text("x")
    assert "is empty" in refused(tmp_path, "empty.txt") and "is empty" in refused(tmp_path, "empty.txt.gz")
    assert "holds no text" in refused(tmp_path, "blank.txt")
    message = refused(tmp_path, "rows.jsonl")
    assert "rows.jsonl:2" in message and "did you mean 'txet'" in message
    assert "list.jsonl:1" in refused(tmp_path, "list.jsonl")
    assert "must be text, found int" in refused(tmp_path, "number.jsonl")
    assert "ragged.csv:3: 1 fields where the header has 2 (text, kind)" in refused(tmp_path, "ragged.csv")
    assert "damaged or cut gzip" in refused(tmp_path, "cut.txt.gz")
    assert "cannot be read as parquet" in refused(tmp_path, "fake.parquet")
    assert "cannot tell the format" in refused(tmp_path, "what.bin")
    assert texts(tmp_path, "what.bin", format="txt") == ["x"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "jsnl"}, "did you mean 'jsonl'"),
        ({"split": "lines"}, "did you mean 'line'"),
        ({"sha256": "abc"}, "64 hexadecimal"),
        ({"limit_documents": 0}, "at least 1"),
    ],
)
def test_wrong_settings(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Source("it", "a.txt", **options)  # type: ignore[arg-type]


def test_plain_text_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match="has no records"):
        list(read_records(Source("it", "a.txt"), tmp_path))


def test_files_are_sorted(tmp_path: Path) -> None:
    for name in ("2.txt", "10.txt", "1.txt"):
        (tmp_path / name).write_text(name)
    assert [path.name for path in files(Source("it", "."), tmp_path)] == ["1.txt", "10.txt", "2.txt"]
