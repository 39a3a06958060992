"""Tokens on the disk: plain arrays beside a JSON index, mapped into memory instead of read.

    index.json            format, version, dtype, tokenizer_hash, vocab_size, and for each source its shards: their
                          name, tokens, documents, bytes and sha256 of the two files below
    00-00000.bin          tokens of source 0, shard 0, end to end: uint16 where the vocabulary allows it, else uint32
    00-00000.starts.bin   a bit for each token, 1 where a document begins; eight a byte, the first one lowest

All numbers are little-endian. A document never lies in two shards. Where documents begin is a bit beside each token,
because that costs the same to look up however many there are: a list of places would have to be searched for every row,
and as JSON would take longer to parse than training takes to start. Files are written under
other names, flushed and renamed; the index comes last, so that where there is one there is everything.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jielong.errors import DataError

INDEX = "index.json"
FORMAT, VERSION = "jielong tokens", 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
MAX_MAPPED = 128  # files of a source that are mapped at a time: systems allow about a thousand open ones

Tokens = NDArray[np.uint16] | NDArray[np.uint32]
Bits = NDArray[np.uint8]
Ints = NDArray[np.int64]
_SHARD_NAME = re.compile(r"\d{2,}-\d{5,}")


@dataclass(frozen=True)
class Shard:
    """One line of the index. name: of both files, without what follows; sizes and sums are of the files as they are."""

    name: str
    num_tokens: int
    num_documents: int
    bytes: int
    sha256: str
    starts_bytes: int
    starts_sha256: str

    def files(self, folder: Path) -> tuple[tuple[Path, int, str], tuple[Path, int, str]]:
        """(path, bytes, sha256) of the tokens and of where documents begin."""
        tokens, starts = folder / f"{self.name}.bin", folder / f"{self.name}.starts.bin"
        return (tokens, self.bytes, self.sha256), (starts, self.starts_bytes, self.starts_sha256)


@dataclass(frozen=True)
class TokenIndex:
    """What index.json says. sources: name -> its shards, in the order of the text."""

    dtype: str
    tokenizer_hash: str
    vocab_size: int
    sources: Mapping[str, Sequence[Shard]]

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, content: Any, path: Path) -> TokenIndex:
        """Nothing is believed before it is checked. Raises DataError naming the file."""
        try:
            if (content["format"], content["version"]) != (FORMAT, VERSION) or content["dtype"] not in DTYPES:
                raise ValueError(
                    f"format {content['format']!r}, version {content['version']!r}, dtype {content['dtype']!r}; legal "
                    f"are {FORMAT!r}, {VERSION} and one of {', '.join(DTYPES)}"
                )
            sources = {
                str(name): tuple(_checked(Shard(**one), DTYPES[content["dtype"]].itemsize) for one in shards)
                for name, shards in content["sources"].items()
            }
            return cls(content["dtype"], str(content["tokenizer_hash"]), int(content["vocab_size"]), sources)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is no index of token shards: {error}") from error


def _checked(shard: Shard, itemsize: int) -> Shard:
    sizes = (shard.num_tokens, shard.num_documents, shard.bytes, shard.starts_bytes)
    if not _SHARD_NAME.fullmatch(shard.name) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"shard {shard.name!r} has sizes {sizes}; legal are names as 00-00000 and numbers above 0")
    if (shard.bytes, shard.starts_bytes) != (shard.num_tokens * itemsize, -(-shard.num_tokens // 8)):
        raise ValueError(f"shard {shard.name}: its bytes do not fit its number of tokens")
    return shard


class Stream:
    """The tokens of one source, shards end to end; files are mapped when they are first read.

    num_tokens, num_documents: of all shards.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: str) -> None:
        self._folder, self._shards, self._dtype = folder, shards, DTYPES[dtype]
        sizes = [shard.num_tokens for shard in shards]
        self._firsts: list[int] = np.cumsum([0, *sizes]).tolist()
        self._mapped: dict[int, tuple[Tokens, Bits]] = {}
        self.num_tokens: int = sum(sizes)
        self.num_documents: int = sum(shard.num_documents for shard in shards)

    def read(self, first: int, tokens: Ints, is_start: NDArray[np.bool_]) -> int:
        """Fill tokens (T,) from token number `first` on, and is_start (T,): whether a document begins there.

        Returns how many there were, fewer than T at the end of the stream; the rest is left as it is.
        """
        filled, number = 0, bisect_right(self._firsts, first) - 1
        while filled < len(tokens) and number < len(self._shards):
            shard, starts = self._map(number)
            begin = first + filled - self._firsts[number]
            end = min(begin + len(tokens) - filled, len(shard))
            tokens[filled : filled + end - begin] = shard[begin:end]
            bits = np.unpackbits(starts[begin // 8 : -(-end // 8)], bitorder="little")
            is_start[filled : filled + end - begin] = bits[begin % 8 : begin % 8 + end - begin]
            filled, number = filled + end - begin, number + 1
        return filled

    def num_starts_at(self, every: int) -> int:
        """How many documents begin at a multiple of `every` tokens from the stream's beginning."""
        found = 0
        for number, first in enumerate(self._firsts[:-1]):
            shard, starts = self._map(number)
            places = np.arange(-first % every, len(shard), every)
            found += int(np.count_nonzero((starts[places // 8] >> (places % 8).astype(np.uint8)) & 1))
        return found

    def place(self, first: int) -> str:
        """Names the file and the byte of a token, for messages."""
        number = bisect_right(self._firsts, first) - 1
        path = self._shards[number].files(self._folder)[0][0]
        return f"{path}, byte {(first - self._firsts[number]) * self._dtype.itemsize}"

    def _map(self, number: int) -> tuple[Tokens, Bits]:
        found = self._mapped.get(number)
        if found is None:
            while len(self._mapped) >= MAX_MAPPED // 2:
                del self._mapped[next(iter(self._mapped))]  # the one mapped longest ago; the system keeps its pages
            (tokens, _, _), (starts, _, _) = self._shards[number].files(self._folder)
            # As plain arrays: slices of numpy's memmap cost several times as much.
            found = np.asarray(np.memmap(tokens, self._dtype, "r")), np.asarray(np.memmap(starts, np.uint8, "r"))
            self._mapped[number] = found
        return found


def open_streams(folder: Path, tokenizer_hash: str, vocab_size: int) -> dict[str, Stream]:
    """Source -> its tokens. Costs a look at each file's size, whatever the sizes are.

    Raises DataError naming the file when the index or a shard is missing or cut, or the tokens are another tokenizer's.
    """
    index = read_index(folder)
    if (index.tokenizer_hash, index.vocab_size) != (tokenizer_hash, vocab_size):
        raise DataError(
            f"{folder} holds tokens of another tokenizer: its hash is {index.tokenizer_hash[:12]}… with "
            f"{index.vocab_size} ids, this one's {tokenizer_hash[:12]}… with {vocab_size}; remove the folder to encode "
            "the text anew"
        )
    for shards in index.sources.values():
        for shard in shards:
            for path, num_bytes, _ in shard.files(folder):
                _check_size(path, num_bytes)
    return {name: Stream(folder, shards, index.dtype) for name, shards in index.sources.items()}


def read_index(folder: Path) -> TokenIndex:
    """The index of a folder of shards. Raises DataError naming the file when it is missing or damaged."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: it should list token shards; remove {folder} to encode the text anew"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is no index of token shards: {error}") from error
    return TokenIndex.parse(content, path)


def verify(folder: Path) -> None:
    """Read every shard and compare its sha256. Raises DataError naming the first file that is not what was written."""
    for shards in read_index(folder).sources.values():
        for shard in shards:
            for path, num_bytes, sha256 in shard.files(folder):
                _check_size(path, num_bytes)
                with open(path, "rb") as file:
                    found = _sha256(file)
                if found != sha256:
                    raise DataError(
                        f"{path} has changed since it was written: its sha256 is {found[:12]}…, it was {sha256[:12]}…; "
                        f"remove {folder} to encode the text anew"
                    )


def _check_size(path: Path, num_bytes: int) -> None:
    there = path.stat().st_size if path.is_file() else None
    if there != num_bytes:
        what = "is missing" if there is None else f"has {there} bytes"
        raise DataError(
            f"token shard {path} {what}, {num_bytes} bytes should be there; put the file back, or remove {path.parent} "
            "to encode the text anew"
        )


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
