"""What can be said of an entity: a relation, with its canonical sentence, other phrasings and questions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """canonical is the sentence that replies use; phrasings state the same fact in other ways.

    In all of them {n} is the entity's name and {v} the value; questions have {n} only.
    """

    name: str
    canonical: str
    phrasings: tuple[str, ...]
    questions: tuple[str, ...]
