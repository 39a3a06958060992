"""What every skill is made of: an exchange, and the draw that decides on which side of a split a thing is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """One user turn with a correct reply and the rule by which a program judges any other reply.

    check: "exact" | "one_of" | "contains_all" | "final_number" | "refusal", see evaluate/skills.py.
    system: the system message that the turn needs, or "".
    """

    user: str
    reply: str
    check: str
    answers: tuple[str, ...]
    language: str
    system: str = ""


def fraction(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on seed and parts only: `fraction(...) < 0.2` holds out a fifth of all parts."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56
