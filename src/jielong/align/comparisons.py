"""Comparisons of replies: what was preferred to what, as text, as tokens, as batches, split by prompt."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from jielong.data.batch import PairBatch
from jielong.errors import DataError
from jielong.runtime import derive_seed
from jielong.tokenizer.chat import Message, render
from jielong.tokenizer.tokenizer import Tokenizer


def prompt_hash(messages: Sequence[Message]) -> str:
    """Names a prompt: sha256 of its messages, 16 hex digits."""
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Comparison:
    """One prompt, K replies to it, and which of them was found better than which.

    pairs: (better, worse) indices into replies. ties: pairs found equally good. A pair that is in neither was never
    judged. margins: how much better at least, one a pair, in units of score; empty: 0 throughout.
    """

    messages: list[Message]
    replies: list[str]
    pairs: list[tuple[int, int]]
    prompt: str = ""
    ties: list[tuple[int, int]] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: dict[str, object], where: str = "comparison") -> Comparison:
        """From {"messages", "replies", and "ranking" or "pairs", "ties"?}. Raises DataError, with `where`.

        ranking: best index first, those found equally good as a list in the place of one. pairs: [better, worse] or
        [better, worse, margin].
        """
        messages, replies = record.get("messages"), record.get("replies")
        if not isinstance(messages, list) or not messages or not isinstance(replies, list) or len(replies) < 2:
            raise DataError(f"{where}: needs messages (a list, not empty) and replies (a list of 2 or more texts)")
        ranking, given, equal = record.get("ranking"), record.get("pairs"), record.get("ties", [])
        margins: list[float] = []
        if isinstance(ranking, list):
            places = [place if isinstance(place, list) else [place] for place in ranking]
            judged = [(b, w) for n, place in enumerate(places) for b in place for rest in places[n + 1 :] for w in rest]
            ties = [(a, b) for place in places for n, a in enumerate(place) for b in place[n + 1 :]]
        elif isinstance(given, list) and isinstance(equal, list):
            judged = [(pair[0], pair[1]) for pair in given]
            ties = [(pair[0], pair[1]) for pair in equal]
            if any(len(pair) > 2 for pair in given):
                margins = [float(pair[2]) if len(pair) > 2 else 0.0 for pair in given]
        else:
            raise DataError(f"{where}: needs a ranking (best index first) or pairs ([better, worse] indices)")
        for one, other in (*judged, *ties):
            if one == other or not all(isinstance(i, int) and 0 <= i < len(replies) for i in (one, other)):
                raise DataError(f"{where}: [{one}, {other}] must be two different indices below {len(replies)}")
        if any(not math.isfinite(margin) or margin < 0 for margin in margins):
            raise DataError(f"{where}: margins are {margins}; each must be a number, 0 or more")
        prompt = str(record.get("prompt_hash") or prompt_hash(messages))
        return cls(messages, replies, judged, prompt, ties, margins)

    def to_record(self) -> dict[str, object]:
        """What from_record reads."""
        margins = self.margins or [0.0] * len(self.pairs)
        pairs = [[*pair, margin] if margin else [*pair] for pair, margin in zip(self.pairs, margins, strict=True)]
        ties = {"ties": [list(pair) for pair in self.ties]} if self.ties else {}
        return {"messages": self.messages, "replies": self.replies, "pairs": pairs, **ties, "prompt_hash": self.prompt}


@dataclass(frozen=True)
class Candidates:
    """A comparison in tokens. rows: one per reply, prompt and reply with its end token; pairs: (better, worse) rows.

    margins, targets: one a pair, see PairBatch; empty: 0 and 1 throughout. ref_logprobs: one a row, see align.dpo.
    """

    rows: list[list[int]]
    reply_tokens: list[int]
    pairs: list[tuple[int, int]]
    margins: list[float] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    ref_logprobs: list[float] = field(default_factory=list)


@dataclass
class Encoded:
    """Comparisons ready for batches, and what was left out on the way."""

    items: list[Candidates] = field(default_factory=list)
    num_pairs: int = 0
    num_ties: int = 0  # pairs found equally good, of replies that differ; modelled or dropped
    num_identical: int = 0  # pairs of one text against itself: no information, dropped
    num_undecided: int = 0  # comparisons without any pair that could teach something, dropped
    num_too_long: int = 0  # comparisons with a reply beyond the context, dropped


def encode_comparisons(
    comparisons: Iterable[Comparison], tokenizer: Tokenizer, max_length: int, ties: bool = False
) -> Encoded:
    """Tokens of every comparison that has a judged pair and fits max_length; the rest is counted.

    ties: keep them, as pairs in which either is preferred with chance 1/2; else they are dropped. Counted they are
    either way.
    """
    encoded = Encoded()
    for comparison in comparisons:
        replies, margins = comparison.replies, comparison.margins or [0.0] * len(comparison.pairs)
        judged = [(*pair, margin, 1.0) for pair, margin in zip(comparison.pairs, margins, strict=True)]
        equal = [(*pair, 0.0, 0.5) for pair in comparison.ties if replies[pair[0]] != replies[pair[1]]]
        decided = [pair for pair in judged if replies[pair[0]] != replies[pair[1]]]
        encoded.num_identical += len(comparison.pairs) - len(decided)
        encoded.num_ties += len(equal)
        kept = [*decided, *(equal if ties else [])]
        prompt = len(render(comparison.messages, tokenizer, reply=True)[0])
        rows = [
            render([*comparison.messages, {"role": "assistant", "content": reply}], tokenizer)[0] for reply in replies
        ]
        if max(len(row) for row in rows) > max_length:
            encoded.num_too_long += 1
        elif not kept:
            encoded.num_undecided += 1
        else:
            pairs = [(better, worse) for better, worse, _, _ in kept]
            lengths = [len(row) - prompt for row in rows]
            item = Candidates(rows, lengths, pairs, [pair[2] for pair in kept], [pair[3] for pair in kept])
            encoded.items.append(item)
            encoded.num_pairs += len(kept)
    return encoded


def collate(items: Sequence[Candidates], pad_id: int) -> PairBatch:
    """One batch: every reply is a row, run once, however many pairs it is in; each prompt weighs one in all.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (all pairs of a prompt in one batch element, / C(K, 2)).
    """
    tokens, segments, ends = pad_rows([row for item in items for row in item.rows], pad_id)
    pairs: list[tuple[int, int]] = []
    weights, margins, targets, references = [], [], [], []
    first = 0
    for item in items:
        pairs.extend((first + better, first + worse) for better, worse in item.pairs)
        weights.extend([1 / len(item.pairs)] * len(item.pairs))
        margins.extend(item.margins or [0.0] * len(item.pairs))
        targets.extend(item.targets or [1.0] * len(item.pairs))
        references.extend(item.ref_logprobs)
        first += len(item.rows)
    return PairBatch(
        tokens=tokens,
        segments=segments,
        starts=ends + 1 - torch.tensor([length for item in items for length in item.reply_tokens]),
        ends=ends,
        pairs=torch.tensor(pairs).view(-1, 2),
        weights=torch.tensor(weights),
        margins=torch.tensor(margins),
        targets=torch.tensor(targets),
        num_units=len(items),
        ref_logprobs=torch.tensor(references) if references else None,
    )


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens (R, T) int64 padded at the right, segments (R, T) int32, ends (R,) int64: index of the last token)."""
    lengths = torch.tensor([len(row) for row in rows])
    length = int(lengths.max())
    tokens = torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in rows])
    segments = (torch.arange(length) < lengths[:, None]).int()
    return tokens, segments, lengths - 1


def pair_batch(comparisons: Sequence[Comparison], tokenizer: Tokenizer, max_length: int = 1 << 30) -> PairBatch:
    """The batch of these comparisons. Raises DataError when none has a decided pair within max_length tokens."""
    items = encode_comparisons(comparisons, tokenizer, max_length).items
    if not items:
        raise DataError(f"none of {len(comparisons)} comparisons has a decided pair of {max_length} tokens or fewer")
    return collate(items, tokenizer.pad_id)


def comparison_batches(
    items: Sequence[Candidates], batch_prompts: int, pad_id: int, seed: int, accumulate: int = 1
) -> tuple[Callable[[int], list[PairBatch]], int]:
    """(micro-batches of a step, a pure function of it; steps an epoch).

    A step takes `accumulate` micro-batches of batch_prompts prompts. An epoch is a permutation; its ragged end is left
    out. Raises DataError when there are fewer prompts than one step takes.
    """
    step_prompts = batch_prompts * accumulate
    num_steps = len(items) // step_prompts
    if num_steps == 0:
        raise DataError(
            f"{len(items)} comparisons are fewer than one batch of {step_prompts} prompts; lower the batch or add more"
        )

    @lru_cache(maxsize=1)  # all items are shuffled once an epoch, not at every step
    def order_of(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(seed, "comparisons", epoch))
        order: list[int] = torch.randperm(len(items), generator=generator).tolist()
        return order

    def batches(step: int) -> list[PairBatch]:
        epoch, place = divmod(step, num_steps)
        order, firsts = order_of(epoch), range(place * step_prompts, (place + 1) * step_prompts, batch_prompts)
        return [collate([items[i] for i in order[first : first + batch_prompts]], pad_id) for first in firsts]

    return batches, num_steps


def split_by_prompt(
    comparisons: Sequence[Comparison], held_fraction: float, seed: int
) -> tuple[list[Comparison], list[Comparison]]:
    """(training, held-out): every comparison of a prompt goes to the same side. At least one prompt on each.

    Raises DataError when there are fewer than two prompts.
    """
    prompts = sorted({comparison.prompt for comparison in comparisons})
    if len(prompts) < 2:
        raise DataError(f"{len(prompts)} prompt(s) cannot be split into training and held-out; compare more prompts")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(derive_seed(seed, "split")))
    num_held = min(max(round(held_fraction * len(prompts)), 1), len(prompts) - 1)
    held = {prompts[index] for index in order[:num_held].tolist()}
    training = [comparison for comparison in comparisons if comparison.prompt not in held]
    return training, [comparison for comparison in comparisons if comparison.prompt in held]


def split_for_good(
    comparisons: Sequence[Comparison], held_fraction: float, seed: int
) -> tuple[list[Comparison], list[Comparison]]:
    """As `split_by_prompt`, but each prompt's side depends on it and the seed alone, and not on what else there is.

    So a prompt that was held out stays held out when votes are added. held_fraction: the chance of being held out. At
    least one prompt is on each side; only for that may one change it. Raises DataError as `split_by_prompt` does.
    """
    prompts = sorted({comparison.prompt for comparison in comparisons}, key=lambda prompt: _place(prompt, seed))
    if len(prompts) < 2:
        raise DataError(f"{len(prompts)} prompt(s) cannot be split into training and held-out; compare more prompts")
    num_held = sum(_place(prompt, seed) < held_fraction for prompt in prompts)
    held = set(prompts[: min(max(num_held, 1), len(prompts) - 1)])
    training = [comparison for comparison in comparisons if comparison.prompt not in held]
    return training, [comparison for comparison in comparisons if comparison.prompt in held]


def _place(prompt: str, seed: int) -> float:
    """A number in [0, 1) that names a prompt's place."""
    return int(hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()[:12], 16) / 16**12
