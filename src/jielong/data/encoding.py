"""A corpus to token shards: in several processes, in memory that does not grow with it, the same whatever their number.

The file of documents is cut into pieces of about a megabyte at line ends. Processes encode pieces; this one takes the
results in the order of the text and appends them to shards. A shard ends where a piece ends, so that an interrupted
encoding goes on at the last finished shard, and comes out the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from itertools import cycle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jielong.config import replacing, write_atomic
from jielong.data.encoder import Encoded, Encoder, Job, receive
from jielong.data.shards import DTYPES, INDEX, Shard, TokenIndex
from jielong.errors import DataError, StorageError
from jielong.tokenizer import Tokenizer

Progress = Callable[[int, int], None]  # bytes of the documents' file encoded so far, bytes in all
Piece = tuple[int, int]  # bytes of the documents' file, from and to

ONE_SOURCE = "all"  # the index's name for the text of all sources, where they are not told apart
PIECE_BYTES = 1 << 20
SHARD_BYTES = 1 << 29
# A process costs about a second to start, in which another encodes some ten megabytes.
BYTES_PER_PROCESS = 16 << 20
UNFINISHED = "unfinished.json"
_AHEAD = 2  # pieces a process is told of at a time, so that it never waits for the next


@dataclass(frozen=True)
class Plan:
    """What to encode, and how finely. piece_bytes and shard_bytes decide where shards end, num_processes nothing.

    sources: see `encoder.Job`.
    """

    documents: Path
    tokenizer: Path
    sources: tuple[str, ...] = ()
    piece_bytes: int = PIECE_BYTES
    shard_bytes: int = SHARD_BYTES


@dataclass
class _Done:
    """What is on the disk: the finished shards of each source, and up to which byte of the documents they go."""

    shards: dict[str, list[Shard]] = field(default_factory=dict)
    read_bytes: int = 0


def encode_corpus(folder: Path, plan: Plan, num_processes: int, progress: Progress | None = None) -> None:
    """Fill `folder` with the token shards of a file of documents; goes on where an earlier call was stopped.

    Memory: a few pieces a process, however large the corpus. Fewer processes are started for a small one.
    Raises DataError for a file without a document or with a line that is none, StorageError when there is no room.
    """
    tokenizer = Tokenizer.load(plan.tokenizer)
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    names = plan.sources or (ONE_SOURCE,)
    total = plan.documents.stat().st_size
    folder.mkdir(parents=True, exist_ok=True)
    made_of = {
        "tokenizer_hash": tokenizer.hash,
        "documents_bytes": total,
        "sources": list(names),
        "piece_bytes": plan.piece_bytes,
        "shard_bytes": plan.shard_bytes,
    }
    done = _unfinished(folder, made_of, names)
    _clear(folder, done)
    job = Job(str(plan.documents), str(plan.tokenizer), dtype, plan.sources)
    pieces = _pieces(plan.documents, done.read_bytes, plan.piece_bytes)
    num_processes = max(1, min(num_processes, (total - done.read_bytes) // BYTES_PER_PROCESS))
    try:
        with ExitStack() as stack:
            if num_processes == 1:  # this one
                encoder = Encoder(job, tokenizer)
                results: Iterator[tuple[Piece, Encoded]] = ((piece, encoder.encode(*piece)) for piece in pieces)
            else:
                results = _in_turns(stack.enter_context(_started(job, num_processes)), pieces, len(names))
            _write(folder, results, done, (plan.shard_bytes, dtype), made_of, progress)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"token shards could not be written to {folder}: {reason}. Make room there, or choose a folder that can be "
            "written; the same command goes on from the last finished shard"
        ) from error
    for name in names:
        if not done.shards[name]:
            whose = f" of source {name!r}" if plan.sources else ""
            raise DataError(f"{plan.documents} holds no document{whose}: there is nothing to learn from")
    index = TokenIndex(dtype, tokenizer.hash, tokenizer.vocab_size, done.shards)
    write_atomic(folder / INDEX, index.text())
    (folder / UNFINISHED).unlink(missing_ok=True)


def _unfinished(folder: Path, made_of: dict[str, Any], names: Sequence[str]) -> _Done:
    """What an interrupted encoding of the same documents by the same tokenizer has left."""
    fresh = _Done({name: [] for name in names})
    path = folder / UNFINISHED
    if not path.exists():
        return fresh
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["made_of"] != made_of:
        return fresh
    shards = {name: [Shard(**one) for one in found["shards"][name]] for name in names}
    whole = all(
        file.is_file() and file.stat().st_size == num_bytes
        for some in shards.values()
        for shard in some
        for file, num_bytes, _ in shard.files(folder)
    )
    return _Done(shards, found["read_bytes"]) if whole else fresh


def _clear(folder: Path, done: _Done) -> None:
    """Remove shards that are not part of what is done, and half ones of a process that was killed."""
    kept = {path for some in done.shards.values() for shard in some for path, _, _ in shard.files(folder)}
    for path in (*folder.glob("*.bin"), *folder.glob(".*.tmp")):
        if path not in kept:
            path.unlink()


def _pieces(documents: Path, begin: int, piece_bytes: int) -> Iterator[Piece]:
    """Where to cut the file: at the first line end after each so many bytes. Reads next to nothing of it."""
    with open(documents, "rb") as file:
        total = file.seek(0, 2)
        while begin < total:
            file.seek(min(begin + piece_bytes, total) - 1)
            file.readline()
            yield begin, file.tell()
            begin = file.tell()


# ---- the processes ----


@contextmanager
def _started(job: Job, num_processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within the block, so many processes that encode; after it, however it ends, there are none."""
    command = [sys.executable, "-m", "jielong.data.encoder", job.text()]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1 << 16)
        for _ in range(num_processes)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with suppress(OSError):
                process.kill()
            process.communicate()


def _in_turns(
    processes: list[subprocess.Popen[bytes]], pieces: Iterator[Piece], num_sources: int
) -> Iterator[tuple[Piece, Encoded]]:
    """Piece i goes to process i modulo their number, and comes back from there."""
    told: deque[tuple[Piece, subprocess.Popen[bytes]]] = deque()
    for process, piece in zip(cycle(processes), pieces, strict=False):
        _tell(process, piece)
        told.append((piece, process))
        if len(told) == _AHEAD * len(processes):
            ready, busy = told.popleft()
            yield ready, _answer(busy, num_sources)
    for ready, busy in told:
        yield ready, _answer(busy, num_sources)


def _tell(process: subprocess.Popen[bytes], piece: Piece) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended; reading its answer says so
        process.stdin.write(b"%d %d\n" % piece)
        process.stdin.flush()


def _answer(process: subprocess.Popen[bytes], num_sources: int) -> Encoded:
    """Raises DataError with the message of a process that could not encode its piece, or has ended."""
    assert isinstance(process.stdout, BufferedReader)
    blocks: list[bytes] = []
    for _ in range(1 + 2 * num_sources):
        block = receive(process.stdout)
        if block is None:
            raise DataError(
                f"a process that encodes the corpus has ended (exit code {process.wait()}), perhaps for want of "
                "memory; the same command goes on from the last finished shard, with --set run.threads=1 in one process"
            )
        if not blocks and block:
            raise DataError(block.decode())
        blocks.append(block)
    return list(zip(blocks[1::2], blocks[2::2], strict=True))


# ---- the files ----


class _Part:
    """A shard that is being written, under other names until it is whole."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self._name, self._itemsize = name, DTYPES[dtype].itemsize
        self._stack = ExitStack()
        self._digests = hashlib.sha256(), hashlib.sha256()
        self.sizes = [0, 0]  # bytes of the tokens and of the starts
        self._num_documents = 0
        self._bits = np.zeros(0, dtype=bool)  # of the starts, fewer than a byte has
        self._files: list[BinaryIO] = []
        for suffix in (".bin", ".starts.bin"):
            temporary = self._stack.enter_context(replacing(folder / f"{name}{suffix}"))
            self._files.append(self._stack.enter_context(open(temporary, "wb")))

    def add(self, tokens: bytes, lengths: bytes) -> None:
        """tokens: of some documents; lengths: int64, how many each has."""
        sizes = np.frombuffer(lengths, "<i8")
        is_start = np.zeros(len(tokens) // self._itemsize, dtype=bool)
        is_start[np.cumsum(sizes) - sizes] = True
        bits = np.concatenate([self._bits, is_start])
        whole = len(bits) // 8 * 8
        self._bits, self._num_documents = bits[whole:], self._num_documents + len(sizes)
        self._append(tokens, bits[:whole])

    def _append(self, tokens: bytes, bits: NDArray[np.bool_]) -> None:
        for number, block in enumerate((tokens, np.packbits(bits, bitorder="little").tobytes())):
            self._files[number].write(block)
            self._digests[number].update(block)
            self.sizes[number] += len(block)

    def finish(self) -> Shard:
        """Flush both files and put them in their places."""
        self._append(b"", self._bits)
        self._stack.close()
        sums = [digest.hexdigest() for digest in self._digests]
        num_tokens = self.sizes[0] // self._itemsize
        return Shard(self._name, num_tokens, self._num_documents, self.sizes[0], sums[0], self.sizes[1], sums[1])

    def abandon(self, error: BaseException) -> None:
        """Remove the temporary files."""
        self._stack.__exit__(type(error), error, error.__traceback__)


def _write(
    folder: Path,
    results: Iterator[tuple[Piece, Encoded]],
    done: _Done,
    form: tuple[int, str],
    made_of: dict[str, Any],
    progress: Progress | None,
) -> None:
    """Append the results to shards; all sources' shards end together, when one is full. form: (its bytes, dtype)."""
    shard_bytes, dtype = form
    parts: dict[str, _Part] = {}

    def finish(read_bytes: int) -> None:
        for name, part in parts.items():
            done.shards[name].append(part.finish())
        parts.clear()
        done.read_bytes = read_bytes
        shards = {name: [asdict(shard) for shard in some] for name, some in done.shards.items()}
        content = {"made_of": made_of, "read_bytes": read_bytes, "shards": shards}
        write_atomic(folder / UNFINISHED, json.dumps(content))

    try:
        for (_, end), encoded in results:
            for number, (name, (tokens, lengths)) in enumerate(zip(done.shards, encoded, strict=True)):
                if lengths:
                    if name not in parts:
                        parts[name] = _Part(folder, f"{number:02d}-{len(done.shards[name]):05d}", dtype)
                    parts[name].add(tokens, lengths)
            if any(part.sizes[0] >= shard_bytes for part in parts.values()):
                finish(end)
            if progress is not None:
                progress(end, made_of["documents_bytes"])
        finish(made_of["documents_bytes"])
    except BaseException as error:
        for part in parts.values():
            part.abandon(error)
        raise
