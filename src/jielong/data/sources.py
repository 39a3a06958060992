"""Where text comes from: local files in several formats, found under the data root or downloaded to it once.

Everything is read as a stream: one line, one record or (for ``split = "file"``) one file is in memory at a time. Only a
``.json`` array is read whole, because JSON cannot be cut without parsing it.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jielong.data.download import Progress, download
from jielong.data.formats import PACKED, SUFFIXES, format_of, json_rows, jsonl_rows, lines, parquet_rows, table_rows
from jielong.errors import DataError, UsageError, nearest

FORMATS = ("auto", "txt", "jsonl", "json", "csv", "tsv", "parquet")
SPLITS = ("file", "paragraph", "line")


@dataclass
class Document:
    """One unit of pre-training text. `language` is "en", "zh", "other" or "" (not known yet); `source` names where it
    is from.
    """

    text: str
    language: str = ""
    source: str = ""


@dataclass(frozen=True)
class Source:
    """One entry of ``[data.sources.NAME]``.

    name: its key in the recipe, used in messages and the report.
    path: a file, a folder or a glob pattern, relative to the data root (or absolute). A ``.gz`` or ``.zst`` beside it
        counts.
    url, sha256: where a missing file comes from (http, https, hf://datasets/OWNER/NAME/FILE) and its checksum as
    downloaded.
    licence: goes into the report.
    format: one of FORMATS; "auto" goes by the file's suffix.
    field: the column or key that holds the text (a list of strings is joined by newlines).
    split: for txt, what one document is: the whole "file", a "paragraph" (blank lines between) or a "line".
    language: what all documents of this source are written in, when that is known.
    languages: of parallel text in one file, those of its columns or keys; see data/pairs.py.
    limit_documents: read only the first so many.
    """

    name: str
    path: str
    url: str | None = None
    sha256: str | None = None
    licence: str | None = None
    format: str = "auto"
    field: str = "text"
    split: str = "file"
    language: str = ""
    languages: tuple[str, ...] = ()
    limit_documents: int | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise UsageError(f"source {self.name!r}: path is empty; name a file, folder or pattern under the data root")
        for key, value, legal in (("format", self.format, FORMATS), ("split", self.split, SPLITS)):
            if value not in legal:
                hint = nearest(value, legal)
                close = f"; did you mean {hint!r}?" if hint else ""
                raise UsageError(f"source {self.name!r}: {key} = {value!r} is not one of {', '.join(legal)}{close}")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise UsageError(f"source {self.name!r}: sha256 = {self.sha256!r} is not 64 hexadecimal digits")
        if self.languages and (len(set(self.languages)) < 2 or self.language):
            raise UsageError(
                f"source {self.name!r}: languages = {list(self.languages)} with language = {self.language!r}; a file "
                "of pairs has two or more languages, and no single one"
            )
        if self.limit_documents is not None and self.limit_documents < 1:
            raise UsageError(f"source {self.name!r}: limit_documents = {self.limit_documents} must be at least 1")


def resolve(source: Source, root: Path, progress: Progress | None = None) -> Path:
    """The local path of a source: the file or folder (or the pattern, when it matches), downloaded first if need be.

    `progress` is called with (bytes so far, bytes in all or None). A file that is already there is used as it is; the
    sha256 guards downloads only, since the local copy may lawfully be packed differently.

    Raises: DataError when nothing is there and nothing can be downloaded (nearest file name, folder looked in, url).
    """
    found = find(source, root)
    if found is not None:
        return found
    wanted = Path(root) / source.path
    if _is_pattern(source.path):
        raise DataError(f"source {source.name!r}: no file matches {wanted}")
    if source.url is None:
        raise DataError(_missing_message(source, wanted, Path(root)))
    packing = Path(source.url.split("?")[0]).suffix
    target = wanted.with_name(wanted.name + packing) if packing in PACKED and wanted.suffix != packing else wanted
    return download(source.url, target, source.sha256, progress)


def find(source: Source, root: Path) -> Path | None:
    """The local path of a source as `resolve` gives it, None when it is not there; nothing is downloaded."""
    wanted = Path(root) / source.path
    if _is_pattern(source.path):
        return wanted if glob.glob(str(wanted), recursive=True) else None
    return next((candidate for candidate in _candidates(wanted) if candidate.exists()), None)


def files(source: Source, root: Path) -> list[Path]:
    """All files of a source in sorted order; a folder gives every file below it whose format is known.

    Raises: DataError when there is none.
    """
    path = resolve(source, root)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if format_of(file) and not _is_hidden(file, path)]
        what = f"the folder {path} holds no file ending in {', '.join(SUFFIXES)} (or these with .gz, .zst)"
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        what = f"{path} matches folders only"
    found = sorted(file for file in found if file.is_file())
    if not found:
        raise DataError(f"source {source.name!r}: {what}")
    return found


def read_documents(source: Source, root: Path) -> Iterator[Document]:
    """Stream the documents of a source, file after file in sorted order; blank ones are left out.

    Raises: DataError naming the file and the line, record or byte offset for anything that cannot be read, and for a
    source without a single document.
    """
    documents = (
        Document(text, source.language, source.name)
        for path in files(source, root)
        for text in _texts(source, path)
        if text and not text.isspace()
    )
    number = 0
    for number, document in enumerate(islice(documents, source.limit_documents), 1):  # noqa: B007
        yield document
    if number == 0:
        raise DataError(f"source {source.name!r}: {resolve(source, root)} holds no text")


def read_records(source: Source, root: Path) -> Iterator[dict[str, Any]]:
    """Stream the records (JSON objects or table rows) of a source, for instruction and preference data.

    Raises: DataError as `read_documents` does; UsageError for a txt file, which has no records.
    """
    rows = (row for path in files(source, root) for _, row in _rows(source, path))
    return islice(rows, source.limit_documents)


def _candidates(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + packing) for packing in PACKED)]


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(piece.startswith(".") for piece in file.relative_to(folder).parts)


def _missing_message(source: Source, wanted: Path, root: Path) -> str:
    folder = wanted.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    missing_part = wanted.relative_to(folder).parts[0]
    hint = nearest(missing_part, names)
    close = f"; nearest name in {folder}: {hint!r}" if hint else f"; looked in {folder}"
    return (
        f"source {source.name!r}: there is no {wanted} (nor one ending in .gz or .zst){close}. "
        f"It names no url to download it from. Put the file there, correct its path, or set data.root (now {root})."
    )


def _texts(source: Source, path: Path) -> Iterator[str]:
    if _chosen_format(source, path) == "txt":
        return _txt_texts(source, path)
    return (_field_text(source, path, where, row) for where, row in _rows(source, path))


def _chosen_format(source: Source, path: Path) -> str:
    chosen = format_of(path) if source.format == "auto" else source.format
    if chosen is None:
        raise DataError(
            f"source {source.name!r}: cannot tell the format of {path} by its name; set format to one of "
            f"{', '.join(FORMATS[1:])}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"source {source.name!r}: {path} is empty (0 bytes)")
    return chosen


def _txt_texts(source: Source, path: Path) -> Iterator[str]:
    all_lines = (line for _, line in lines(path))
    if source.split == "file":
        yield "".join(all_lines)
    elif source.split == "line":
        yield from (line.rstrip("\r\n") for line in all_lines)
    else:
        paragraph: list[str] = []
        for line in all_lines:
            if line.isspace():
                yield "".join(paragraph).rstrip("\r\n")
                paragraph = []
            else:
                paragraph.append(line)
        yield "".join(paragraph).rstrip("\r\n")


def _rows(source: Source, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of (where the record stands, for messages; the record)."""
    chosen = _chosen_format(source, path)
    if chosen == "jsonl":
        return jsonl_rows(path)
    if chosen == "json":
        return json_rows(path)
    if chosen == "parquet":
        return parquet_rows(path)
    if chosen == "txt":
        raise UsageError(
            f"source {source.name!r}: {path} is plain text and has no records; give jsonl, json, csv, tsv or parquet"
        )
    return table_rows(path, "\t" if chosen == "tsv" else ",")


def _field_text(source: Source, path: Path, where: str, row: dict[str, Any]) -> str:
    if source.field not in row:
        hint = nearest(source.field, row)
        close = f"; did you mean {hint!r}?" if hint else ""
        raise DataError(
            f"{where}: source {source.name!r} reads field {source.field!r}, which this record lacks; it has "
            f"{', '.join(map(repr, row))}{close}"
        )
    value = row[source.field]
    if isinstance(value, list) and all(isinstance(piece, str) for piece in value):
        return "\n".join(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        found = type(value).__name__
        raise DataError(f"{where}: field {source.field!r} of source {source.name!r} must be text, found {found}")
    return value
