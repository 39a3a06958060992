"""Worked examples before a question: in-context learning, where no weight changes.

Deterministic: which examples a question gets follows from the seed, the task and the question's number alone, not from
how many questions are asked. Source: Brown et al. 2020, arXiv:2005.14165, section 2.4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jielong.errors import UsageError
from jielong.evaluate.items import Item
from jielong.runtime import derive_seed

BETWEEN = "\n\n"  # as lm-eval has it


@dataclass(frozen=True)
class Pool:
    """Where worked examples come from. is_own: they are the questions themselves, so that each must leave itself out.

    by_group: only examples of the question's own subject, the first ones in the file's order. header: before them.
    """

    items: Sequence[Item]
    is_own: bool
    by_group: bool = False
    header: str = ""


def preamble(pool: Pool, item: Item, num_shots: int, seed: int, name: str) -> tuple[str, str]:
    """(text before the question, what questions with the same text share as their group or "").

    Examples out of another file are the same for all questions (of a subject), so that a model reads them once.
    Raises UsageError when there are too few of them.
    """
    header = pool.header.format(group=item.group)
    if num_shots == 0:
        return header, header
    chosen = _chosen(pool, item, num_shots, seed, name)
    text = header + "".join(example.text + BETWEEN for example in chosen)
    return text, "" if pool.is_own else text


def _chosen(pool: Pool, item: Item, num_shots: int, seed: int, name: str) -> list[Item]:
    if pool.by_group:
        found = [example for example in pool.items if example.group == item.group][:num_shots]
    elif pool.is_own:
        generator = random.Random(derive_seed(seed, "shots", name, item.number))
        drawn = generator.sample(range(len(pool.items)), min(num_shots + 1, len(pool.items)))
        found = [pool.items[index] for index in drawn if pool.items[index].number != item.number][:num_shots]
    else:
        generator = random.Random(derive_seed(seed, "shots", name))
        found = generator.sample(list(pool.items), min(num_shots, len(pool.items)))
    if len(found) < num_shots:
        of_group = f" of {item.group!r}" if pool.by_group else ""
        raise UsageError(f"task {name!r} has {len(found)} worked examples{of_group}, not {num_shots}; ask for fewer")
    return found
