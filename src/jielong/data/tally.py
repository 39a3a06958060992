"""Votes counted: each one once, as comparisons to learn from, and as a table of who agreed and which model won."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from jielong.data.votes import BOTH_BAD, TIE, Vote
from jielong.intervals import wilson_ci95

Item = tuple[str, tuple[str, ...]]  # a prompt, as JSON, and the texts that were compared, in an order of their own


@dataclass(frozen=True)
class Counted:
    """votes: those that count, in the order of the file. num_duplicates: taken back by a later one. num_capped: beyond
    what one user may say.
    """

    votes: list[Vote]
    num_duplicates: int
    num_capped: int


def item_of(vote: Vote) -> Item:
    """What was compared, whichever answer was shown first."""
    prompt = json.dumps(vote.prompt, sort_keys=True, ensure_ascii=False)
    return prompt, tuple(sorted(answer.text for answer in vote.answers))


def count_once(votes: Sequence[Vote], per_user: int | None = None) -> Counted:
    """One vote a user and comparison, the last one, and the last one of an id; of each user the last `per_user`."""
    kept: list[Vote] = []
    seen: set[object] = set()
    num_of: Counter[str] = Counter()
    num_duplicates = num_capped = 0
    for vote in reversed(votes):
        keys = {("id", vote.id), (vote.user, item_of(vote))}
        if keys & seen:
            num_duplicates += 1
        elif per_user is not None and num_of[vote.user] >= per_user:
            num_capped += 1
        else:
            num_of[vote.user] += 1
            kept.append(vote)
        seen |= keys
    return Counted(kept[::-1], num_duplicates, num_capped)


@dataclass
class Taught:
    """Comparison records that the votes amount to, and why others teach nothing."""

    records: list[dict[str, Any]] = field(default_factory=list)  # {"messages", "replies", "pairs", "ties"}
    num_ties: int = 0  # votes that found the answers equal
    num_both_bad: int = 0  # votes that liked none
    num_edited: int = 0  # votes with a better answer
    num_identical: int = 0  # votes on answers that all say the same; left out


def as_comparisons(votes: Sequence[Vote]) -> Taught:
    """What each vote says, as pairs: the chosen answer beats each other one, and an edited answer beats them all.

    A tie, and answers of which none was liked, are pairs found equal: a reward model whose recipe models ties learns
    from them, others leave them out and count them.
    """
    taught = Taught()
    for vote in votes:
        texts = [answer.text for answer in vote.answers]
        edited = vote.edited if vote.edited not in texts else None  # what was "edited" into an answer is that answer
        taught.num_ties += vote.choice == TIE
        taught.num_both_bad += vote.choice == BOTH_BAD
        taught.num_edited += edited is not None
        if len(set(texts)) == 1 and edited is None:
            taught.num_identical += 1
            continue
        winner, places = vote.winner, range(len(texts))
        pairs = [(winner, other) for other in places if other != winner] if winner is not None else []
        ties = list(combinations(places, 2)) if winner is None else []
        if edited is not None:
            pairs += [(len(texts), other) for other in places]
            texts = [*texts, edited]
        taught.records.append({"messages": vote.prompt, "replies": texts, "pairs": pairs, "ties": ties})
    return taught


@dataclass(frozen=True)
class Agreement:
    """How often two users who chose between the same answers chose the same one.

    rate: mean over comparisons of the share of agreeing pairs of users; 0.5 is chance of two. None without any.
    ci95: Wilson's, with comparisons as trials: pairs of one comparison share users. num_pairs: pairs of users.
    """

    rate: float | None
    ci95: tuple[float, float]
    num_comparisons: int
    num_pairs: int


def user_agreement(votes: Sequence[Vote]) -> Agreement:
    """Of votes that were counted once: see `count_once`. Ties and answers that all say the same are no choices."""
    choices: dict[Item, list[str]] = {}
    for vote in votes:
        if vote.winner is not None and len({answer.text for answer in vote.answers}) > 1:
            choices.setdefault(item_of(vote), []).append(vote.answers[vote.winner].text)
    shares, num_pairs = [], 0
    for chosen in choices.values():
        pairs = list(combinations(chosen, 2))
        if pairs:
            shares.append(sum(one == other for one, other in pairs) / len(pairs))
            num_pairs += len(pairs)
    rate = sum(shares) / len(shares) if shares else None
    return Agreement(rate, wilson_ci95(sum(shares), len(shares)), len(shares), num_pairs)


@dataclass
class Match:
    """Two models against each other: pairs of their answers that the first won or lost, or that neither won."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.__dict__)

    @property
    def num(self) -> int:
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def win_rate(self) -> float:
        """Of the first; what neither won counts half. NaN without any."""
        return (self.wins + 0.5 * (self.ties + self.both_bad)) / self.num if self.num else float("nan")

    @property
    def win_rate_ci95(self) -> tuple[float, float]:
        return wilson_ci95(self.win_rate * self.num, self.num)


def duels(vote: Vote) -> Iterator[tuple[int, int, str]]:
    """(place, other place, "wins" | "losses" | "ties" | "both_bad" of the first) of each pair that a vote decides.

    Where three or more answers were shown, a pair without the chosen one was not decided; and a choice between answers
    that say the same is none.
    """
    for one, other in combinations(range(len(vote.answers)), 2):
        if vote.answers[one].text == vote.answers[other].text:
            continue
        if vote.winner is None:
            yield one, other, "ties" if vote.choice == TIE else "both_bad"
        elif vote.winner in (one, other):
            yield one, other, "wins" if vote.winner == one else "losses"


def matches(votes: Sequence[Vote], names: Mapping[str, str]) -> dict[tuple[str, str], Match]:
    """(first, second) -> Match, the names in alphabetical order. Answers of one and the same model are no match.

    names: model_hash -> name, see `model_names`.
    """
    found: dict[tuple[str, str], Match] = {}
    opposite = {"wins": "losses", "losses": "wins"}
    for vote in votes:
        who = [names[answer.model_hash] for answer in vote.answers]
        for one, other, outcome in duels(vote):
            if who[one] == who[other]:
                continue
            if who[one] > who[other]:
                one, other, outcome = other, one, opposite.get(outcome, outcome)
            match = found.setdefault((who[one], who[other]), Match())
            match.__dict__[outcome] += 1
    return dict(sorted(found.items()))


def model_names(votes: Sequence[Vote]) -> dict[str, str]:
    """model_hash -> a name that no other hash has: the model's own, with a piece of the hash where two share it."""
    named: dict[str, str] = {}
    for vote in votes:
        for answer in vote.answers:
            named[answer.model_hash] = answer.model
    shared = {name for name, number in Counter(named.values()).items() if number > 1}
    return {key: f"{name} ({key[:8]})" if name in shared else name for key, name in named.items()}


def first_answer_rate(votes: Sequence[Vote]) -> tuple[float | None, tuple[float, float], int]:
    """How often the answer that stood first was chosen, its 95 % interval, and of how many choices between two.

    Far from a half it says that people, or the page, lean to a side.
    """
    choices = [vote.winner == 0 for vote in votes if vote.winner is not None and len(vote.answers) == 2]
    rate = sum(choices) / len(choices) if choices else None
    return rate, wilson_ci95(sum(choices), len(choices)), len(choices)
