"""File formats as streams: strict UTF-8 lines and records, through gzip and zstandard, each with the place where it
stands.

All errors are DataErrors that name the file and the line, record or byte.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from jielong.errors import DataError

SUFFIXES = {
    ".txt": "txt", ".text": "txt", ".md": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
PACKED = (".gz", ".zst")


def format_of(path: Path) -> str | None:
    """ "txt", "jsonl", ... by the file's name, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) for each non-blank line."""
    for number, line in lines(path):
        if line.isspace():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not valid JSON at column {error.colno} ({error.msg}): {line[:60].strip()!r}"
            ) from error
        yield where, _object(where, row)


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of one JSON array, which is read whole; it may stand under "data", as in SQuAD's files."""
    text = "".join(line for _, line in lines(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON at column {error.colno} ({error.msg}); if it has one "
            "object a line, set format to 'jsonl'"
        ) from error
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds one JSON {type(rows).__name__}; an array of objects is needed")
    for number, row in enumerate(rows, 1):
        where = f"{path}, record {number}"
        yield where, _object(where, row)


def _object(where: str, row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object {{...}} is needed, found {type(row).__name__}")
    return row


def table_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) for each row below the header; fields may be quoted and hold line ends."""
    # The csv module refuses fields above 128 kB unless told; documents are often longer and the limit has no per-reader
    # form.
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader((line for _, line in lines(path)), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                found = len(row) - 1 + len(row[None]) if None in row else sum(v is not None for v in row.values())
                names = ", ".join(reader.fieldnames or [])
                raise DataError(
                    f"{where}: {found} fields where the header has {len(reader.fieldnames or [])} ({names})"
                )
            yield where, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record), read 256 at a time; needs the extra `curate`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install 'jielong[curate]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, record {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Pairs of (line number from 1, line with its line end), strictly UTF-8, a byte order mark left out."""
    offset = 0
    with _unpacked(path) as stream:
        try:
            for number, raw in enumerate(stream, 1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(_not_utf8_message(path, number, offset, raw, error)) from error
                offset += len(raw)
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or cut gzip file after {offset} unpacked bytes ({error})") from error
    if offset == 0:
        raise DataError(f"{path}: is empty")


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as packed:
            yield cast(BinaryIO, packed)
    elif path.suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise DataError(f"{path}: reading .zst needs zstandard: pip install 'jielong[curate]'") from error
        with (
            open(path, "rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        ):
            try:
                yield cast(BinaryIO, io.BufferedReader(cast(Any, stream), 1 << 18))
            except zstandard.ZstdError as error:
                raise DataError(f"{path}: damaged zstd file ({error})") from error
    else:
        with open(path, "rb") as file:
            yield file


def _not_utf8_message(path: Path, line: int, offset: int, raw: bytes, error: UnicodeDecodeError) -> str:
    guess = "GB18030"
    if offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        guess = "UTF-16"
    elif not any(byte >= 0x80 for byte in raw[error.start + 1 : error.start + 2]):
        guess = "WINDOWS-1252"  # a lone high byte is a Western accent or quote, never half a Chinese character
    return (
        f"{path}:{line}: not UTF-8 at byte {offset + error.start} (0x{raw[error.start]:02x}); convert it first, for "
        f"example: iconv -f {guess} -t UTF-8 {path.name} > converted.txt"
    )
