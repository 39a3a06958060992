"""One benchmark, one model, one result: items are read, asked, judged, and told with error, interval and chance.

Three ways to ask. Options: the model's likelihood of each. Numbers: it writes, and the reply is read; several samples
can vote. Programs: it writes, and the tests are run; see `sandbox`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jielong.errors import DataError
from jielong.evaluate.asking import Asking
from jielong.evaluate.contamination import overlap
from jielong.evaluate.figures import Figure, mean_figure, perplexity_figure
from jielong.evaluate.items import Item, without_reasoning
from jielong.evaluate.scoring import Pair, Scored, encode_pair, fits, score_pairs
from jielong.evaluate.shots import Pool, preamble
from jielong.evaluate.tasks import Task, find_task, read_items
from jielong.evaluate.writing import write_numbers, write_programs
from jielong.generate.engine import Engine

Row = dict[str, Any]
Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Result:
    """What one model made of one task.

    headline: the figure to be told first. figures: by name, over the items that were asked. chance: of blind choice,
    None where there is no choice. majority: of always giving the commonest answer, where all items have the same
    options. rows: one record an item, in order: what was found and whether it was right. groups: the headline by
    subject. num_cut: items whose context lost its beginning. num_too_long: items left out, for no context would fit.
    contamination: see with_contamination.
    """

    name: str
    headline: str
    shots: int
    figures: dict[str, Figure]
    rows: list[Row]
    chance: float | None = None
    majority: float | None = None
    groups: dict[str, float] = field(default_factory=dict)
    num_cut: int = 0
    num_too_long: int = 0
    contamination: dict[str, Any] | None = None

    def as_record(self) -> dict[str, Any]:
        """For JSON, without the rows."""
        record: dict[str, Any] = {"headline": self.headline, "shots": self.shots}
        record["figures"] = {name: figure.as_record() for name, figure in self.figures.items()}
        record |= {"chance": self.chance, "majority": self.majority}
        record |= {"items_cut": self.num_cut, "items_too_long": self.num_too_long}
        if self.groups:
            record["groups"] = self.groups
        if self.contamination is not None:
            record["contamination"] = self.contamination
        return record


def evaluate_task(
    engine: Engine, name: str, root: Path, asking: Asking | None = None, progress: Progress | None = None
) -> Result:
    """Ask a model all items of a task, or `asking.limit` of them.

    Raises UsageError for a task or settings that cannot be, DataError for items that are missing or broken.
    """
    asking, task = asking or Asking(), find_task(name)
    pool = _pool(name, task, root, asking)
    items = read_items(name, root, asking.limit)
    before = [preamble(pool, item, asking.shots, asking.seed, name) for item in items]
    if task.scoring in ("number", "program"):
        write = write_numbers if task.scoring == "number" else write_programs
        prompts = [text + item.contexts[0] for (text, _), item in zip(before, items, strict=True)]
        rows, figures = write(engine, task, items, prompts, asking)
        num_cut = sum(row["cut"] for row in rows)
        return Result(name, task.headline, asking.shots, figures, rows, num_cut=num_cut)
    return replace(_scored(engine, name, items, before, progress), shots=asking.shots)


def _pool(name: str, task: Task, root: Path, asking: Asking) -> Pool:
    if not asking.shots:
        return Pool((), is_own=False, header=task.header)
    items = read_items(name, root, path=task.shots or None)
    if task.scoring == "number" and not asking.chain_of_thought:
        items = [without_reasoning(item) for item in items]
    return Pool(items, is_own=not task.shots, by_group=task.shots_by_group, header=task.header)


def _scored(
    engine: Engine, name: str, items: Sequence[Item], before: Sequence[tuple[str, str]], progress: Progress | None
) -> Result:
    """The likelihood of every option of every item that fits the model."""
    task, max_length = find_task(name), engine.model.config.max_length
    pairs: list[Pair] = []
    asked: list[tuple[Item, slice]] = []  # with the place of its options among the pairs
    for item, (text, group) in zip(items, before, strict=True):
        own = [encode_pair(engine.tokenizer, text + context, last, group) for context, last in item.options]
        if all(fits(pair, max_length) for pair in own):
            asked.append((item, slice(len(pairs), len(pairs) + len(own))))
            pairs += own
    if not asked:
        raise DataError(f"task {name!r}: no item fits a model that reads {max_length} tokens; all are longer")
    tell = None if progress is None else (lambda done: progress(done, len(pairs)))
    scored = score_pairs(engine.model, pairs, engine.runtime, progress=tell)
    rows = [_row(task, item, scored[place]) for item, place in asked]
    figures = {"acc": mean_figure([float(row["right"]) for row in rows])}
    if task.scoring == "word":
        figures["perplexity"] = perplexity_figure([-row["logprobs_nats"][0] for row in rows])
    if task.normalised:
        figures["acc_norm"] = mean_figure([float(row["right_norm"]) for row in rows])
    result = Result(
        name,
        task.headline,
        0,
        figures,
        rows,
        groups=_by_group(rows, right_key(task.headline)),
        num_cut=sum(row["cut"] for row in rows),
        num_too_long=len(items) - len(rows),
    )
    return _with_baselines(result, [item for item, _ in asked]) if task.scoring == "choice" else result


def right_key(headline: str) -> str:
    """Which entry of a row the headline is the mean of."""
    return "right_norm" if headline == "acc_norm" else "right"


def _row(task: Task, item: Item, found: Sequence[Scored]) -> Row:
    logprobs = [one.logprob for one in found]
    row: Row = {"item": item.number, "group": item.group, "logprobs_nats": logprobs}
    row |= {"cut": any(one.num_cut for one in found), "gold": item.gold}
    if task.scoring == "word":
        return row | {"right": found[0].greedy}
    sizes = [len(last.removeprefix(" ").encode()) for _, last in item.options]
    numbers = range(len(logprobs))  # of equals, the first is chosen
    chosen = max(numbers, key=lambda i: logprobs[i])
    chosen_norm = max(numbers, key=lambda i: logprobs[i] / sizes[i])
    row |= {"chosen": chosen, "right": chosen == item.gold}
    return row | {"chosen_norm": chosen_norm, "right_norm": chosen_norm == item.gold}


def _with_baselines(result: Result, items: Sequence[Item]) -> Result:
    """What a blind choice comes to, and, where all items have the same options, the commonest answer."""
    chance = math.fsum(1 / item.num_options for item in items) / len(items)
    majority = None
    if len(items) > 1 and len(items[0].contexts) == 1 and len({item.continuations for item in items}) == 1:
        majority = max(Counter(item.gold for item in items).values()) / len(items)
    return replace(result, chance=chance, majority=majority)


def _by_group(rows: Sequence[Row], right: str) -> dict[str, float]:
    groups: dict[str, list[bool]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row[right])
    return {name: sum(found) / len(found) for name, found in sorted(groups.items())} if len(groups) > 1 else {}


def with_contamination(asked: Sequence[tuple[Result, Sequence[Item]]], documents: Iterable[str]) -> list[Result]:
    """The same results with what the training text has of each test, and the headline over items it has nothing of.

    asked: results with the items of their tasks, as many as were asked. documents: of the corpus that the model was
    trained on, read once for all tasks.
    """
    found = overlap([item.text for _, items in asked for item in items], documents)
    results, start = [], 0
    for result, items in asked:
        share = {item.number: found.share[start + place] for place, item in enumerate(items)}
        start += len(items)
        right = right_key(result.headline)
        kept = [float(row[right]) for row in result.rows if share[row["item"]] == 0.0]
        hit = [number for number, one in share.items() if one]
        record: dict[str, Any] = {
            "documents": found.num_documents,
            "items_looked_for": sum(one is not None for one in share.values()),
            "items_found": len(hit),
            "first_found": hit[:20],
            "headline_on_clean": mean_figure(kept).as_record() if kept else None,
        }
        results.append(replace(result, contamination=record))
    return results
