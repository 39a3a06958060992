"""The output guard: a reply ends where a rule finds something in it, and the refusal stands there instead.

It works on text that arrives in pieces. The end of the text, `window` characters, is held back; a character is let out
when no rule matches from it on, judged by what is known up to `window` characters further. What comes out therefore
does not depend on how the text was cut into pieces, and nothing of what a rule finds is ever let out, as long as the
match is no longer than the window.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from jielong.serve.personas import Persona


class Rule(Protocol):
    """What a guard asks at every character of a reply. A regular expression is one; a classifier may be another."""

    @property
    def name(self) -> str: ...

    def begins_at(self, text: str, start: int, end: int) -> bool:
        """Whether something that must not be said begins at text[start], judged by text[:end] alone."""
        ...


class PatternRule:
    """A rule by regular expression. It may look at what stands before the place, as \\b and lookbehind do."""

    def __init__(self, name: str, pattern: re.Pattern[str]) -> None:
        self.name = name
        self._match = pattern.match

    def begins_at(self, text: str, start: int, end: int) -> bool:
        return self._match(text, start, end) is not None


class OutputGuard:
    """The guard of one reply. refused: the name of the rule that ended it, or None."""

    def __init__(self, rules: Sequence[Rule], refusal: str, window: int) -> None:
        self.refused: str | None = None
        self._rules, self._refusal, self._window = rules, refusal, window
        self._text, self._place = "", 0  # what is known; how much of it was let out

    def feed(self, piece: str) -> str:
        """What may be said now that `piece` is known; with the refusal at its end when a rule has found something."""
        return self._release(piece, complete=False)

    def flush(self) -> str:
        """The rest, when the reply is over."""
        return self._release("", complete=True)

    def _release(self, piece: str, complete: bool) -> str:
        if self.refused is not None:
            return ""
        self._text += piece
        first, known = self._place, len(self._text)
        while self._place < (known if complete else known - self._window):
            end = min(known, self._place + self._window)
            for rule in self._rules:
                if rule.begins_at(self._text, self._place, end):
                    self.refused = rule.name
                    return self._text[first : self._place] + self._refusal
            self._place += 1
        return self._text[first : self._place]


def guard_of(persona: Persona | None) -> OutputGuard | None:
    """A guard for one reply of this persona, None where it has no rules."""
    if persona is None or not persona.guard:
        return None
    rules = [PatternRule(rule.name, rule.compiled()) for rule in persona.guard]
    return OutputGuard(rules, persona.refusal, persona.window_characters)
