"""votes.jsonl: what people said of answers, one vote a line. Read strictly, appended one whole line at a time.

    {"id": text, "time": "2026-11-25T21:48:00+00:00", "user": text,
     "prompt": [{"role", "content"}, ... up to a user's turn],
     "answers": [{"text", "model": its name, "model_hash": of its weights, "sampling": {"temperature": 1.0, ...}}, ...],
     "choice": "a" | "b" | ... | "tie" | "both_bad", "edited": a better answer, or null}

A line that is anything else is named and left out; above a limit of such lines the file is refused. A last line that a
crash cut short is no error: the next append begins a line of its own.
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jielong.errors import DataError, StorageError, UsageError, nearest
from jielong.tokenizer.chat import Message, check_messages

try:
    import fcntl
except ImportError:  # Windows: two processes that append at once are then not kept apart
    fcntl = None  # type: ignore[assignment]

TIE, BOTH_BAD = "tie", "both_bad"
LETTERS = string.ascii_lowercase  # the names of the answers, in order: so many at most
MAX_BAD_FRACTION = 0.05  # of a file's lines
NUM_NAMED = 5  # bad lines that an error spells out
_KEYS = ("id", "time", "user", "prompt", "answers", "choice", "edited")
_ANSWER_KEYS = ("text", "model", "model_hash", "sampling")


@dataclass(frozen=True)
class Answer:
    """One of the answers that were compared.

    model: a name for people. model_hash: of the weights that wrote it, see `folder.model_hash`; names may be reused.
    sampling: how it was sampled, as the engine was asked: {"temperature": 1.0, "seed": 7, ...}.
    """

    text: str
    model: str
    model_hash: str
    sampling: Mapping[str, Any]


@dataclass(frozen=True)
class Vote:
    """One person's word on two or more answers to one prompt.

    time: ISO 8601 with its zone. prompt: messages, the last one a user's. choice: the letter of the best answer, "tie"
    or "both_bad". edited: what the person would rather have read, None where nothing was written.
    """

    id: str
    time: str
    user: str
    prompt: list[Message]
    answers: tuple[Answer, ...]
    choice: str
    edited: str | None = None

    @property
    def winner(self) -> int | None:
        """Index of the best answer; None for a tie and for answers that were all found bad."""
        return LETTERS.index(self.choice) if self.choice in LETTERS else None

    @property
    def when(self) -> datetime:
        return datetime.fromisoformat(self.time)

    def to_record(self) -> dict[str, Any]:
        """What `from_record` reads, ready to be a line."""
        answers = [
            {"text": one.text, "model": one.model, "model_hash": one.model_hash, "sampling": dict(one.sampling)}
            for one in self.answers
        ]
        found = {"id": self.id, "time": self.time, "user": self.user, "prompt": self.prompt, "answers": answers}
        return {**found, "choice": self.choice, "edited": self.edited}

    @classmethod
    def from_record(cls, record: object) -> Vote:
        """Raises DataError saying what is wrong with a record that is no vote; nothing is guessed or mended."""
        known = _object(record, "a vote", _KEYS, ("edited",))
        prompt, given = known["prompt"], known["answers"]
        if not isinstance(prompt, list) or not isinstance(given, list):
            raise DataError("prompt and answers must be lists")
        try:
            check_messages(prompt)
        except UsageError as error:
            raise DataError(f"prompt: {error}") from None
        if prompt[-1]["role"] != "user":
            raise DataError(f"prompt ends with a turn of the {prompt[-1]['role']}; it must end with the user's")
        for number, message in enumerate(prompt):
            _text(_object(message, f"prompt {number}", ("role", "content")), "content", f"prompt {number}", blank=True)
        if not 2 <= len(given) <= len(LETTERS):
            raise DataError(f"answers are {len(given)}; 2 to {len(LETTERS)} can be compared")
        answers = tuple(_answer(one, f"answer {LETTERS[place]}") for place, one in enumerate(given))
        legal = (*LETTERS[: len(answers)], TIE, BOTH_BAD)
        if known["choice"] not in legal:
            raise DataError(f"choice is {known['choice']!r}; it must be one of {', '.join(legal)}")
        edited = None if known.get("edited") is None else _text(known, "edited", "a vote")
        names = [_text(known, key, "a vote") for key in ("id", "user")]
        return cls(names[0], _time(known["time"]), names[1], prompt, answers, known["choice"], edited)


@dataclass(frozen=True)
class Reading:
    """What `read_votes` found. bad: "FILE:LINE: what is wrong", one a line that is no vote.

    num_lines: whole lines, blank ones left out. half_line: the last one was cut short and is not among them.
    """

    votes: list[Vote]
    num_lines: int
    bad: list[str]
    half_line: bool


def read_votes(path: str | Path, max_bad_fraction: float = MAX_BAD_FRACTION) -> Reading:
    """All votes of a file, in order. max_bad_fraction: of its lines, that may be anything else.

    Raises DataError when there is no such file, when it holds no vote, and when more lines are bad than allowed; the
    message names the first of them.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; a file of votes is wanted, one JSON object a line") from None
    votes: list[Vote] = []
    bad: list[str] = []
    half_line = False
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # some editors put a byte order mark there
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            votes.append(Vote.from_record(_parsed(line)))
        except _NotJson as error:
            half_line = number == len(lines)  # a whole line ends with a newline, and an empty piece follows it
            if not half_line:
                bad.append(f"{path}:{number}: {error}")
        except DataError as error:
            bad.append(f"{path}:{number}: {error}")
    reading = Reading(votes, len(votes) + len(bad), bad, half_line)
    _refuse(path, reading, max_bad_fraction)
    return reading


def append_vote(path: str | Path, vote: Vote) -> None:
    """Add one line, whole or not at all: one write at the end of the file, flushed to the disk.

    Threads and processes may append at once. After a line that a crash cut short a new line begins, so that no vote is
    lost with it. Raises DataError for a vote that `read_votes` would refuse, and StorageError when there is no room.
    """
    path = Path(path)
    line = json.dumps(Vote.from_record(vote.to_record()).to_record(), ensure_ascii=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)  # let go when the handle is closed
            size = os.lseek(handle, 0, os.SEEK_END)
            if size:
                os.lseek(handle, size - 1, os.SEEK_SET)
                line = line if os.read(handle, 1) == b"\n" else b"\n" + line
            if os.write(handle, line) != len(line):
                os.ftruncate(handle, size)
                raise StorageError(f"{path}: no room for a vote of {len(line)} bytes; nothing was written, make room")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(f"{path}: a vote cannot be written: {error.strerror}") from error


class _NotJson(DataError):
    """A line that is no JSON at all: broken, or cut short."""


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _NotJson(f"not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise _NotJson(f"not valid JSON at column {error.colno} ({error.msg}): {line[:40].decode()!r}") from None
    except RecursionError:
        raise _NotJson("not valid JSON: nested too deeply") from None


def _object(value: object, what: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The value as an object that has all of these keys and no other."""
    if not isinstance(value, dict):
        raise DataError(f"{what} must be an object, not {type(value).__name__}")
    for key in value:
        if key not in keys:
            guess = nearest(key, keys)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise DataError(f"{what} has a key {key!r:.40}{hint} (legal: {', '.join(keys)})")
    missing = [key for key in keys if key not in value and key not in optional]
    if missing:
        raise DataError(f"{what} lacks {', '.join(missing)}")
    return value


def _text(record: Mapping[str, Any], key: str, what: str, blank: bool = False) -> str:
    """The text under a key; blank: whether it may be empty. Half of a surrogate pair is no text: it has no UTF-8."""
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f"{what}: {key} must be text, not {type(value).__name__}")
    if not (blank or value.strip()):
        raise DataError(f"{what}: {key} is blank")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{what}: {key} holds half of a surrogate pair, which is no character") from None
    return value


def _answer(value: object, what: str) -> Answer:
    record = _object(value, what, _ANSWER_KEYS)
    if not isinstance(record["sampling"], dict):
        raise DataError(f"{what}: sampling must be an object, not {type(record['sampling']).__name__}")
    text = _text(record, "text", what, blank=True)  # a model may answer nothing, and lose for it
    return Answer(text, _text(record, "model", what), _text(record, "model_hash", what), record["sampling"])


def _time(value: object) -> str:
    try:
        when = datetime.fromisoformat(value.replace("Z", "+00:00")) if isinstance(value, str) else None
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise DataError(f"time is {value!r:.40}; it must be ISO 8601 with its zone, as 2026-11-25T21:48:00+00:00")
    return when.isoformat()


def _missing(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    guess = nearest(path.name, names)
    hint = f"; did you mean {path.parent / guess}?" if guess else ""
    return f"{path}: there is no such file of votes{hint}"


def _refuse(path: Path, reading: Reading, max_bad_fraction: float) -> None:
    """Raises DataError for a file that should not be learned from."""
    num_bad, shown = len(reading.bad), "\n".join(reading.bad[:NUM_NAMED])
    if num_bad > max_bad_fraction * reading.num_lines:
        more = f"\n... and {num_bad - NUM_NAMED} more" if num_bad > NUM_NAMED else ""
        raise DataError(
            f"{path}: {num_bad} of {reading.num_lines} lines are no votes, {100 * max_bad_fraction:.3g} % may be; "
            f"mend or remove them, or allow more (max_bad_fraction):\n{shown}{more}"
        )
    if not reading.votes:
        cut = " (its only line was cut short)" if reading.half_line else ""
        raise DataError(f"{path}: holds no vote{cut}; let people compare answers first")
