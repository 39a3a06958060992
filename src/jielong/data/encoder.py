"""A piece of documents.jsonl as tokens: the work that is shared among processes, and the process that does it.

    python -m jielong.data.encoder JOB     where JOB is the JSON of a `Job`

reads lines "BEGIN END" (bytes of the file) and answers each with blocks: a message, empty when all went well, then for
every source its tokens and the lengths of its documents. A block is its size, 8 bytes little-endian, and its bytes. It
is a protocol of our own, because the standard library's pools want pickle and start the caller's script again.
"""

from __future__ import annotations

import json
import signal
import struct
import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import BinaryIO

from jielong.errors import DataError, JielongError
from jielong.tokenizer import Tokenizer

TYPECODES = {"uint16": "H", "uint32": "I"}
_SIZE = struct.Struct("<q")

Encoded = list[tuple[bytes, bytes]]  # of each source: tokens (the job's dtype) and lengths of its documents (int64)


@dataclass(frozen=True)
class Job:
    """What all pieces have in common.

    documents: a file of {"text", "source", ...} lines. tokenizer: its folder. dtype: of the tokens, a key of TYPECODES.
    sources: names to tell apart, each the source of a document or what stands before the "/" in it; () for one stream
    of everything.
    """

    documents: str
    tokenizer: str
    dtype: str
    sources: tuple[str, ...] = ()

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Job:
        content = json.loads(text)
        return cls(**{**content, "sources": tuple(content["sources"])})


class Encoder:
    """Pieces of a file of documents as tokens. Raises ModelError for a tokenizer's folder that cannot be read."""

    def __init__(self, job: Job, tokenizer: Tokenizer | None = None) -> None:
        """tokenizer: the job's, where it is at hand."""
        self._job = job
        tokenizer = tokenizer or Tokenizer.load(job.tokenizer)
        tokenizer.speed_up()
        self._encode = tokenizer.encode
        self._before, self._after = tokenizer.document_edges
        self._numbers = {name: number for number, name in enumerate(job.sources)}

    def encode(self, begin: int, end: int) -> Encoded:
        """The documents in bytes `begin` to `end` of the file, whose lines begin and end there.

        Raises DataError naming the byte of a line that is no document, or of one from a source that is not the job's.
        """
        found = [(array(TYPECODES[self._job.dtype]), array("q")) for _ in self._job.sources or ("",)]
        with open(self._job.documents, "rb") as file:
            file.seek(begin)
            while begin < end:
                line = file.readline()
                tokens, lengths = found[self._add(line, begin, found)]
                begin += len(line)
        return [(_little_endian(tokens), _little_endian(lengths)) for tokens, lengths in found]

    def _add(self, line: bytes, place: int, found: Sequence[tuple[array[int], array[int]]]) -> int:
        """Append one document to its source; returns the source's number."""
        try:
            record = json.loads(line)
            text, source = record["text"], record["source"]
            number = self._numbers.get(source, self._numbers.get(source.partition("/")[0])) if self._numbers else 0
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = f"{self._job.documents}, byte {place}"
            raise DataError(f"{where}: no document with text and source: {error}") from error
        if number is None:
            raise DataError(
                f"{self._job.documents}, byte {place}: the document is from {source!r}, which the mixture does not "
                f"name; it names {', '.join(self._numbers)}"
            )
        ids = [*self._before, *self._encode(text), *self._after]
        if ids:
            found[number][0].fromlist(ids)
            found[number][1].append(len(ids))
        return number


def _little_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def send(stream: BinaryIO, block: bytes) -> None:
    """Write one block."""
    stream.write(_SIZE.pack(len(block)))
    stream.write(block)


def receive(stream: BinaryIO) -> bytes | None:
    """Read one block; None where the other side has ended before it was whole."""
    head = stream.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    (size,) = _SIZE.unpack(head)
    block = stream.read(size)
    return block if len(block) == size else None


def serve(job: Job, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    encoder = Encoder(job)
    for request in requests:
        begin, end = map(int, request.split())
        try:
            encoded, message = encoder.encode(begin, end), b""
        except (JielongError, OSError) as error:
            encoded, message = [], str(error).encode()
        send(answers, message)
        for tokens, lengths in encoded:
            send(answers, tokens)
            send(answers, lengths)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt goes to the process that asks, and that one ends this
    with suppress(BrokenPipeError):  # it was killed
        serve(Job.parse(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
