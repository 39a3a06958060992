"""Interpolated n-gram models over token ids: the baseline a neural model has to beat on the same tokens.

    p_n(w | h) = max(c(h w) - D(c(h w)), 0) / c(h)  +  g(h) p_{n-1}(w | h without its first token)
    g(h)       = (D1 N1(h) + D2 N2(h) + D3 N3(h)) / c(h)

c counts occurrences at the highest order and, below it, how many different tokens stand to the left of the n-gram; c(h)
is its sum over w, and N1, N2, N3 count the w with c(h w) = 1, 2, 3 or more. p_0 is uniform. A context never
reaches over the start of its segment: there the highest order is as high as the context is long.
Source: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3 (modified
Kneser-Ney). Differs at segment starts: a start counts as one more token to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jielong.data.pack import Rows
from jielong.errors import DataError, UsageError

MAX_ORDER = 5
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Tokens of many segments laid end to end, padding left out.

    tokens: (M,) int64. depth: (M,) int64, how many tokens stand before it in its segment. scored: (M,) bool.
    """

    tokens: Ints
    depth: Ints
    scored: NDArray[np.bool_]


@dataclass(frozen=True)
class Smoothed:
    """One kind of count of the n-grams of one order, and what follows from it.

    counts: (G,) of the n-grams. discounts: (4,), D(0) to D(3 and more).
    totals: (C,) sums of the counts over each context, 0 where it was never gone on from. backoff: (C,), g(h).
    """

    counts: NDArray[np.int32]
    discounts: Floats
    totals: Floats
    backoff: Floats


@dataclass(frozen=True)
class Order:
    """All n-grams of one order. An n-gram is a context, the number of an (n-1)-gram, and a token.

    keys: (G,) int64, context * V + token, rising; the number of an n-gram is its place here. highest: smoothed counts
    of occurrences; lower: of tokens to the left, None at the highest order counted, where nobody asks for it.
    """

    keys: Ints
    highest: Smoothed
    lower: Smoothed | None

    def find(self, contexts: Ints, tokens: Ints, vocab_size: int) -> Ints:
        """(M,) numbers of the n-grams made of these contexts and tokens; -1 where unseen or the context is -1."""
        if not len(self.keys):  # no segment is that long
            return np.full(len(contexts), -1, dtype=np.int64)
        wanted = contexts * vocab_size + tokens
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((contexts >= 0) & (self.keys[at] == wanted), at, -1)


class NGram:
    """n-gram counts up to some order, scored as the model of that order or of any lower one."""

    def __init__(self, orders: Sequence[Order], vocab_size: int) -> None:
        self.orders = tuple(orders)
        self.vocab_size = vocab_size

    @property
    def order(self) -> int:
        """The highest order that was counted."""
        return len(self.orders)

    def nats(self, rows: Rows, order: int | None = None) -> tuple[float, int]:
        """(total nats, scored tokens) over the positions that `rows.mask` scores. order: default is the highest."""
        logprobs = self.logprobs(rows, order)
        return -float(logprobs.sum()), int(rows.mask.sum())

    def logprobs(self, rows: Rows, order: int | None = None) -> Floats:
        """(R, T) float64: log p of each scored token in nats, 0 where `rows.mask` is False.

        The context of a token is the `order` - 1 tokens before it, as far as its segment has them.
        Raises UsageError for an order that was not counted, DataError for tokens outside the vocabulary.
        """
        order = self._checked(order)
        layout = lay_out(rows, self.vocab_size)
        chosen = layout.scored
        context: Ints = np.zeros(len(layout.tokens), dtype=np.int64)
        found = np.full(int(chosen.sum()), 1.0 / self.vocab_size)
        for number in range(1, order + 1):
            grams = self.orders[number - 1].find(context, layout.tokens, self.vocab_size)
            is_highest = np.minimum(layout.depth[chosen] + 1, order) == number
            found = self._interpolate(number, context[chosen], grams[chosen], is_highest, found)
            context = _after(grams, layout, number)
        out = np.zeros(tuple(rows.mask.shape))
        out[rows.mask.numpy()] = np.log(found)
        return out

    def probabilities(self, context: Sequence[int], order: int | None = None) -> Floats:
        """(V,) float64: p(w | context) for every w. context: the tokens of the segment so far, or the last of them."""
        order = self._checked(order)
        told = np.asarray(context[max(0, len(context) - order + 1) :], dtype=np.int64)
        _check_tokens(told, self.vocab_size)
        words = np.arange(self.vocab_size, dtype=np.int64)
        found = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for length in range(len(told) + 1):
            at = np.zeros(1, dtype=np.int64)
            for place, token in enumerate(told[len(told) - length :]):
                at = self.orders[place].find(at, np.array([token]), self.vocab_size)
            contexts = np.repeat(at, self.vocab_size)
            grams = self.orders[length].find(contexts, words, self.vocab_size)
            is_highest = np.full(self.vocab_size, length == len(told))
            found = self._interpolate(length + 1, contexts, grams, is_highest, found)
        return found

    def _interpolate(
        self, number: int, contexts: Ints, grams: Ints, is_highest: NDArray[np.bool_], below: Floats
    ) -> Floats:
        """p_n from p_{n-1}, n = number, (M,); p_{n-1} where the context was never seen (-1) or never gone on from."""
        found = below.copy()
        order = self.orders[number - 1]
        for smoothed, uses in ((order.highest, is_highest), (order.lower, ~is_highest)):
            if smoothed is None:
                continue
            at = np.flatnonzero(uses & (contexts >= 0))
            at = at[smoothed.totals[contexts[at]] > 0]
            context, gram = contexts[at], grams[at]
            count = np.where(gram >= 0, smoothed.counts[gram], 0)
            kept = count - smoothed.discounts[np.minimum(count, 3)]
            found[at] = kept / smoothed.totals[context] + smoothed.backoff[context] * below[at]
        return found

    def _checked(self, order: int | None) -> int:
        if order is None:
            return self.order
        if not 1 <= order <= self.order:
            raise UsageError(f"n-gram: order = {order} was not counted; legal are 1 to {self.order}")
        return order


def fit_ngram(source: Rows | Sequence[Ints], order: int, vocab_size: int) -> NGram:
    """Count the n-grams of orders 1 to `order` (at most 5).

    source: packed rows, every segment a text of its own, or one array of token ids a text. Every token but the first of
    a segment is counted, as the neural model's loss has it; `rows.mask` plays no part.
    Raises UsageError for an order out of range, DataError for no tokens or for ids outside the vocabulary.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UsageError(f"n-gram: order = {order} must be 1 to {MAX_ORDER}")
    layout = lay_out(source, vocab_size)
    if not (layout.depth > 0).any():
        raise DataError("n-gram: the corpus has no segment of two tokens or more, so there is nothing to count")
    orders: list[Order] = []
    context: Ints = np.zeros(len(layout.tokens), dtype=np.int64)
    counted, grams, _ = _count(layout, context, 1, vocab_size)
    num_contexts = 1
    for number in range(2, order + 1):
        context = _after(grams, layout, number - 1)
        longer, longer_grams, examples = _count(layout, context, number, vocab_size)
        lefts = counted.at_start + np.bincount(grams[examples], minlength=len(counted.keys)).astype(np.int32)
        orders.append(_smooth_order(counted, lefts, num_contexts, vocab_size))
        num_contexts = len(counted.keys)
        counted, grams = longer, longer_grams
    orders.append(_smooth_order(counted, None, num_contexts, vocab_size))
    return NGram(orders, vocab_size)


# ---- laying out ----


def lay_out(source: Rows | Sequence[Ints], vocab_size: int) -> Layout:
    """Rows (padding dropped, a segment ends with its row) or plain texts as one Layout."""
    if isinstance(source, Rows):
        segments = source.segments.numpy()
        real = segments > 0
        starts = np.ones(segments.shape, dtype=bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        tokens = source.tokens.numpy()[real].astype(np.int64)
        begins, scored = starts[real], source.mask.numpy()[real]
    else:
        texts = [np.asarray(text, dtype=np.int64) for text in source if len(text)]
        tokens = np.concatenate(texts) if texts else np.zeros(0, dtype=np.int64)
        begins = np.zeros(len(tokens), dtype=bool)
        begins[np.cumsum([0, *(len(text) for text in texts[:-1])])[: len(texts)]] = True
        scored = ~begins
    _check_tokens(tokens, vocab_size)
    index = np.arange(len(tokens), dtype=np.int64)
    depth = index - np.maximum.accumulate(np.where(begins, index, 0)) if len(tokens) else index
    return Layout(tokens, depth, scored)


def _check_tokens(tokens: Ints, vocab_size: int) -> None:
    if len(tokens) and not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise DataError(
            f"n-gram: token ids run from {tokens.min()} to {tokens.max()}, the vocabulary from 0 to {vocab_size - 1}; "
            "were the rows made with another tokenizer?"
        )


def _after(grams: Ints, layout: Layout, number: int) -> Ints:
    """n-grams (n = number) ending at each position -> context of the next; -1 where its segment is too short."""
    context = np.full(len(grams), -1, dtype=np.int64)
    context[1:] = grams[:-1]
    context[layout.depth < number] = -1
    return context


# ---- counting ----


@dataclass(frozen=True)
class _Counted:
    """keys: as in Order. counts: (G,) occurrences. at_start: (G,) 1 where one of them begins a segment, else 0."""

    keys: Ints
    counts: NDArray[np.int32]
    at_start: NDArray[np.int32]


def _count(layout: Layout, context: Ints, number: int, vocab_size: int) -> tuple[_Counted, Ints, Ints]:
    """(n-grams of order `number`, the one ending at each position or -1, a position where each of them ends)."""
    if number == 1:
        # All ids are there, so that a unigram's number is its token; first tokens of segments are context only.
        counts = np.bincount(layout.tokens[layout.depth > 0], minlength=vocab_size).astype(np.int32)
        keys = np.arange(vocab_size, dtype=np.int64)
        return _Counted(keys, counts, np.zeros_like(counts)), layout.tokens, keys
    ends = np.flatnonzero(layout.depth >= number - 1)
    wanted = context[ends] * vocab_size + layout.tokens[ends]
    rising = np.argsort(wanted)
    wanted = wanted[rising]
    is_new = np.ones(len(wanted), dtype=bool)
    is_new[1:] = wanted[1:] != wanted[:-1]
    firsts = np.flatnonzero(is_new)
    counts = np.diff(firsts, append=len(wanted)).astype(np.int32)
    grams = np.full(len(layout.tokens), -1, dtype=np.int64)
    grams[ends[rising]] = np.cumsum(is_new) - 1
    at_start = np.zeros(len(firsts), dtype=np.int32)
    at_start[grams[layout.depth == number - 1]] = 1
    return _Counted(wanted[firsts], counts, at_start), grams, ends[rising[firsts]]


def _smooth_order(counted: _Counted, lefts: NDArray[np.int32] | None, num_contexts: int, vocab_size: int) -> Order:
    contexts = counted.keys // vocab_size
    lower = _smooth(lefts, contexts, num_contexts) if lefts is not None else None
    return Order(counted.keys, _smooth(counted.counts, contexts, num_contexts), lower)


def _smooth(counts: NDArray[np.int32], contexts: Ints, num_contexts: int) -> Smoothed:
    discounts = _discounts(counts)
    taken = discounts[np.minimum(counts, 3)]
    totals = np.bincount(contexts, weights=counts, minlength=num_contexts).astype(np.float64)
    backoff = np.bincount(contexts, weights=taken, minlength=num_contexts) / np.maximum(totals, 1)
    return Smoothed(counts, discounts, totals, backoff)


def _discounts(counts: NDArray[np.int32]) -> Floats:
    """D(0) = 0, D1, D2, D3 from the numbers of n-grams seen once, twice, three and four times.

    Small or regular corpora lack some of these, or give a discount outside (0, i]; they get 1/2, 1, 3/2.
    Source: Chen and Goodman 1999, eq. 17.
    """
    once, twice, thrice, fourth = (float(n) for n in np.bincount(np.minimum(counts, 5), minlength=5)[1:5])
    if min(once, twice, thrice, fourth) > 0:
        share = once / (once + 2 * twice)
        found = [1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * fourth / thrice]
        if all(0 < discount <= times for times, discount in enumerate(found, start=1)):
            return np.array([0.0, *found])
    return np.array([0.0, 0.5, 1.0, 1.5])
