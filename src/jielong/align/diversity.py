"""How varied replies are: what falls first when a policy has found one answer to everything. Over ids as sampled."""

from __future__ import annotations

from collections.abc import Sequence

from jielong.generate.engine import Completion

REPEATED_GRAM_TOKENS = 4


def grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens, in order; none in fewer than n."""
    return [tuple(tokens[first : first + n]) for first in range(len(tokens) - n + 1)]


def distinct(replies: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of all replies together, in (0, 1]; 0 where there is none.

    It falls as more replies are counted, so it compares equally many.
    Source: Li et al. 2016, arXiv:1510.03055, section 5 (distinct-n); differs in dividing by the number of n-grams.
    """
    found = [gram for reply in replies for gram in grams(reply, n)]
    return len(set(found)) / len(found) if found else 0.0


def repeated(replies: Sequence[Sequence[int]], n: int = REPEATED_GRAM_TOKENS) -> float:
    """Share of a reply's n-grams that it has said before, mean over the replies of n tokens or more; 0 without any.

    Source: Welleck et al. 2020, arXiv:1908.04319, section 6 (seq-rep-n).
    """
    found = [grams(reply, n) for reply in replies if len(reply) >= n]
    return sum(1 - len(set(each)) / len(each) for each in found) / len(found) if found else 0.0


def diversity_figures(completions: Sequence[Completion]) -> dict[str, float]:
    """distinct_1, distinct_2 and repeated_4gram_rate of these replies, the end token included."""
    replies = [completion.tokens for completion in completions]
    return {
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
        "repeated_4gram_rate": repeated(replies),
    }
