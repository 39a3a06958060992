"""The one tree of errors that a user may meet.

The message of each says what went wrong, where, the value found, what is legal, and what to do. The command line prints
it without a traceback and leaves with `exit_code`. Our own bugs are `assert`s, never these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JielongError(Exception):
    """Base of all errors meant for the user."""

    exit_code = 1


class UsageError(JielongError):
    """A command or a function was called in a way that cannot work."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe file, a key in it, or a value is wrong."""


class DataError(JielongError):
    """A source, a corpus or a row is missing, broken or too small."""


class ModelError(JielongError):
    """A model folder, its config, its tokenizer or a shape is wrong."""


class CheckpointError(JielongError):
    """A checkpoint cannot be written or read back."""


class StorageError(JielongError):
    """A file cannot be written: no room, no permission."""


class TrainingError(JielongError):
    """Training cannot go on, for instance because the loss is not finite."""


def nearest(word: str, legal: Iterable[str]) -> str | None:
    """The legal word most like `word`, or None when none is close: for "did you mean"."""
    found = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, legal: Iterable[str]) -> str:
    """ "; did you mean 'WORD'?" for the end of a sentence, or "" when no legal word is close."""
    guess = nearest(word, legal)
    return f"; did you mean '{guess}'?" if guess else ""
