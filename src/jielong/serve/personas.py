"""A served role: a TOML file with the system message of a persona and the rules for what it must never say.

    name = "terminal"
    system = "You are a Linux terminal. ..."
    temperature = 0.2
    stop = ["\\n$ "]
    refusal = "bash: permission denied"

    [[guard]]
    name = "key-material"
    pattern = "-----BEGIN [A-Z ]*PRIVATE KEY-----"

The role cannot be left by a client: a server with a persona takes no system message and no raw completion from outside.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from jielong.config import Settings, load_toml, validate
from jielong.errors import RecipeError

MOST_RULES = 100


class GuardRule(Settings):
    """name: for counters and the log. pattern: a regular expression of Python; what it finds is never said."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    pattern: Annotated[str, Field(min_length=1, max_length=1000)]
    ignore_case: bool = True

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            found = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if found.match(""):
            raise ValueError("matches the empty text, so that nothing could ever be said")
        return pattern

    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.IGNORECASE if self.ignore_case else 0)


class Persona(Settings):
    """The role. system: its system message. temperature, top_p, max_tokens, stop: what holds where a client sets none.

    guard: the rules. refusal: what is said instead of what a rule finds. window_characters: how much of the end of a
    reply is held back until it is certain that no rule finds anything there; a match may be as long as that.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    system: Annotated[str, Field(min_length=1, max_length=100_000)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)] = []
    guard: Annotated[list[GuardRule], Field(max_length=MOST_RULES)] = []
    refusal: Annotated[str, Field(max_length=1000)] = "I cannot say that."
    window_characters: Annotated[int, Field(ge=1, le=4000)] = 80

    @model_validator(mode="after")
    def _is_consistent(self) -> Persona:
        names = [rule.name for rule in self.guard]
        if len(set(names)) < len(names):
            raise ValueError(f"two guard rules have the same name: {', '.join(names)}")
        for rule in self.guard:
            if rule.compiled().search(self.refusal):
                raise ValueError(f"the guard rule {rule.name!r} finds something in the refusal itself")
        return self


def load_persona(path: str | Path) -> Persona:
    """Reads a persona file. Raises RecipeError naming the file, the key, its value and what is legal."""
    if not Path(path).exists():
        raise RecipeError(f"{path}: no such persona file; recipes/personas/terminal.toml is one")
    return validate(Persona, load_toml(path), str(path))
