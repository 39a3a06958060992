"""Conversations that are kept: one SQLite file beside the run.

A conversation is a tree. A message names the one it answers, and is never changed: to edit or to ask again is to add a
sibling. So two windows may write to one conversation; what the one adds the other finds when it looks again.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jielong.errors import StorageError

_TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
  id TEXT PRIMARY KEY, title TEXT NOT NULL, system TEXT NOT NULL, leaf TEXT NOT NULL,
  created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
  place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, conversation TEXT NOT NULL, parent TEXT NOT NULL,
  role TEXT NOT NULL, content TEXT NOT NULL, note TEXT NOT NULL, tokens TEXT, created REAL NOT NULL,
  UNIQUE (conversation, id));
CREATE TABLE IF NOT EXISTS comparisons (
  id TEXT PRIMARY KEY, record TEXT NOT NULL, choice TEXT, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


@dataclass(frozen=True)
class Message:
    """One turn. parent: the id of the message before it, "" for the first. note: what the page keeps beside it.

    tokens: what the page drew from the model, as it was given; None where there is nothing, or it was not asked for.
    """

    id: str
    parent: str
    role: str
    content: str
    note: Mapping[str, Any]
    tokens: list[Any] | None = None
    created: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """Without its tokens, which are many and rarely wanted."""
        record = {"id": self.id, "parent": self.parent, "role": self.role, "content": self.content}
        return {**record, "note": dict(self.note), "created": self.created}


class History:
    """The file. Safe to use from several threads. Raises StorageError when it cannot be opened or written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, check_same_thread=False, timeout=10.0)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{path}: the history of conversations cannot be opened: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def conversations(self) -> list[dict[str, Any]]:
        """All of them, the one used last first, without their messages."""
        with self._open() as file:
            rows = file.execute("SELECT id, title, system, leaf, updated FROM conversations ORDER BY updated DESC")
            return [_conversation(row) for row in rows]

    def conversation(self, name: str) -> dict[str, Any] | None:
        """One with its messages in the order of their making; None when there is none of this id."""
        with self._open() as file:
            found = file.execute("SELECT id, title, system, leaf, updated FROM conversations WHERE id = ?", (name,))
            row = found.fetchone()
            if row is None:
                return None
            columns = "id, parent, role, content, note, created"
            query = f"SELECT {columns} FROM messages WHERE conversation = ? ORDER BY place"
            messages = [
                Message(id, parent, role, content, json.loads(note), None, created).to_record()
                for id, parent, role, content, note, created in file.execute(query, (name,))
            ]
        return {**_conversation(row), "messages": messages}

    def create(self, name: str, title: str, system: str) -> None:
        """A conversation without messages. One that exists already stays as it is."""
        now = time.time()
        with self._open() as file:
            values = (name, title, system, "", now, now)
            file.execute("INSERT OR IGNORE INTO conversations VALUES (?, ?, ?, ?, ?, ?)", values)

    def change(self, name: str, changes: Mapping[str, str]) -> bool:
        """Sets title, system or leaf (the message that is shown last). False when there is no such conversation."""
        columns = [column for column in ("title", "system", "leaf") if column in changes]
        with self._open() as file:
            for column in columns:
                file.execute(f"UPDATE conversations SET {column} = ? WHERE id = ?", (changes[column], name))
            return file.execute("SELECT 1 FROM conversations WHERE id = ?", (name,)).fetchone() is not None

    def remove(self, name: str) -> bool:
        """The conversation and all its messages. False when there was none."""
        with self._open() as file:
            file.execute("DELETE FROM messages WHERE conversation = ?", (name,))
            return file.execute("DELETE FROM conversations WHERE id = ?", (name,)).rowcount > 0

    def add(self, conversation: str, message: Message) -> str:
        """Adds a message and shows it last -> "added", "known" (its id is there), "no conversation" or "no parent"."""
        now = time.time()
        with self._open() as file:
            if file.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation,)).fetchone() is None:
                return "no conversation"
            place = "SELECT 1 FROM messages WHERE conversation = ? AND id = ?"
            if file.execute(place, (conversation, message.id)).fetchone() is not None:
                return "known"
            if message.parent and file.execute(place, (conversation, message.parent)).fetchone() is None:
                return "no parent"
            tokens = None if message.tokens is None else json.dumps(message.tokens, separators=(",", ":"))
            values = (message.id, conversation, message.parent, message.role, message.content)
            file.execute(
                "INSERT INTO messages (id, conversation, parent, role, content, note, tokens, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, json.dumps(dict(message.note)), tokens, now),
            )
            file.execute("UPDATE conversations SET leaf = ?, updated = ? WHERE id = ?", (message.id, now, conversation))
            return "added"

    def tokens(self, conversation: str, message: str) -> list[Any] | None:
        """The tokens kept with a message; None when there is no such message, or it has none."""
        with self._open() as file:
            query = "SELECT tokens FROM messages WHERE conversation = ? AND id = ?"
            row = file.execute(query, (conversation, message)).fetchone()
        return None if row is None or row[0] is None else list(json.loads(row[0]))

    def secret(self, name: str, fresh: bytes) -> bytes:
        """The secret of this name; `fresh` becomes it when there is none yet."""
        with self._open() as file:
            file.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, fresh))
            return bytes(file.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()[0])

    def keep_comparison(self, name: str, record: Mapping[str, Any]) -> None:
        """What was served to be compared, as JSON can hold it."""
        with self._open() as file:
            values = (name, json.dumps(record), time.time())
            file.execute("INSERT INTO comparisons (id, record, created) VALUES (?, ?, ?)", values)

    def comparison(self, name: str) -> tuple[dict[str, Any], str | None] | None:
        """(what was served, the choice made or None); None when nothing was served under this id."""
        with self._open() as file:
            row = file.execute("SELECT record, choice FROM comparisons WHERE id = ?", (name,)).fetchone()
        return None if row is None else (json.loads(row[0]), row[1])

    def decide(self, name: str, choice: str) -> bool:
        """Marks a comparison as voted on. False when it was already: of two voters at once one is first."""
        with self._open() as file:
            query = "UPDATE comparisons SET choice = ? WHERE id = ? AND choice IS NULL"
            return file.execute(query, (choice, name)).rowcount > 0

    def reopen(self, name: str) -> None:
        """Takes a choice back, for a vote that could not be written."""
        with self._open() as file:
            file.execute("UPDATE comparisons SET choice = NULL WHERE id = ?", (name,))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file, locked, in one transaction."""
        with self._lock:
            try:
                with self._file:
                    yield self._file
            except sqlite3.Error as error:
                raise StorageError(f"{self.path}: the history of conversations cannot be used: {error}") from error


def _conversation(row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("id", "title", "system", "leaf", "updated"), row, strict=True))
