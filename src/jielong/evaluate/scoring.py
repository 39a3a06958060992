"""How likely a model finds a continuation after a context: many pairs at once, what they share read once.

Pairs with the same context (the options of one question) read it once and go on from its keys and values; pairs of one
group (the same worked examples before every question) read their common beginning once for a whole batch. The plain
twin, one forward pass a pair, gives the same sums (a test holds them together).
Notation: B contexts of a batch, R their continuations, T padded length, D width, M scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.errors import DataError, ModelError, UsageError
from jielong.generate.cache import KeyValueCache
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer

BATCH_TOKENS = 8192  # places of keys and values held at once; bounds memory, not the result
_CHUNK_BYTES = 64 * 2**20  # float32 logits made at once
_SHARED_TOKENS = 16  # a shorter common beginning is not worth a forward pass of its own


@dataclass(frozen=True)
class Pair:
    """A continuation to be scored after a context, both as ids, neither empty.

    group: pairs whose contexts begin alike have the same one, and are put into the same batches.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True)
class Scored:
    """logprob: of the whole continuation, in nats. greedy: whether each of its tokens is the model's likeliest.

    num_tokens: of the continuation. num_cut: tokens that the context lost at its beginning to fit the model.
    """

    logprob: float
    greedy: bool
    num_tokens: int
    num_cut: int


def beginning(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What stands before a text that has no context: the begin-of-document token, else that of its end.

    Raises UsageError for a tokenizer with neither, which cannot tell how likely a first word is.
    """
    if tokenizer.prefix_ids:
        return tokenizer.prefix_ids
    found = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if found is None:
        raise UsageError("this tokenizer has no token to begin a document with, so whole sentences cannot be scored")
    return (found,)


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, group: str = "") -> Pair:
    """The pair as ids. Blanks at the context's end count to the continuation, for words carry the blank before them.

    Both are encoded as one text, of which the context alone takes as many tokens as it has by itself: what lm-eval
    does, also where a token would span the border.
    Raises DataError for an empty continuation.
    """
    if not continuation.strip():
        raise DataError(f"a continuation is empty (after {context[-60:]!r}); every option needs a text to be scored")
    bare = context.rstrip()
    prefix, rest = tokenizer.prefix_ids, context[len(bare) :] + continuation
    if not bare:
        return Pair(beginning(tokenizer), tuple(tokenizer.encode(continuation)), group)
    before = tokenizer.encode(bare)
    after = tokenizer.encode(bare + rest)[len(before) :]
    if not after:
        raise DataError(f"{continuation!r} adds no token after {bare[-60:]!r}; it cannot be scored")
    return Pair((*prefix, *before), tuple(after), group)


def fits(pair: Pair, max_length: int) -> bool:
    """Whether the continuation fits the model after at least one token of context."""
    return len(pair.continuation) <= max_length


def score_pairs(
    model: Transformer,
    pairs: Sequence[Pair],
    runtime: Runtime,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> list[Scored]:
    """The score of each pair, in their order.

    A context that is too long for the model loses its beginning: what counts stands nearest to the continuation. Every
    continuation must pass `fits`. progress is called with the number of pairs done. Raises ModelError at scores that
    are not finite.
    """
    limit = model.config.max_length
    cut = [pair.context[max(0, len(pair.context) + len(pair.continuation) - 1 - limit) :] for pair in pairs]
    same: dict[tuple[str, tuple[int, ...]], list[int]] = {}  # group and context -> its pairs
    for index, (pair, context) in enumerate(zip(pairs, cut, strict=True)):
        assert pair.continuation and context, "a pair must have tokens on both sides; see `fits`"
        same.setdefault((pair.group, context), []).append(index)
    results: dict[int, tuple[float, bool]] = {}
    training = model.training
    model.eval()
    for batch in _batches(same, pairs, batch_tokens):
        with torch.inference_mode(), runtime.autocast():
            contexts = [context for _, context in batch]
            members = [same[key] for key in batch]
            found = _score_batch(model, contexts, [[pairs[i].continuation for i in one] for one in members], runtime)
        results.update(zip([i for one in members for i in one], found, strict=True))
        if progress is not None:
            progress(len(results))
    model.train(training)
    return [
        Scored(*results[index], len(pair.continuation), len(pair.context) - len(cut[index]))
        for index, pair in enumerate(pairs)
    ]


Key = tuple[str, tuple[int, ...]]


def _batches(same: dict[Key, list[int]], pairs: Sequence[Pair], batch_tokens: int) -> Iterator[list[Key]]:
    """Contexts of one group and of like length together, as many as batch_tokens holds, at least one."""
    batch: list[Key] = []
    num_rows = longest = 0
    for key in sorted(same, key=lambda key: (key[0], len(key[1]))):
        rows = len(same[key])
        length = len(key[1]) + max(len(pairs[index].continuation) for index in same[key])
        if batch and (key[0] != batch[0][0] or (num_rows + rows) * max(longest, length) > batch_tokens):
            yield batch
            batch, num_rows, longest = [], 0, 0
        batch.append(key)
        num_rows, longest = num_rows + rows, max(longest, length)
    if batch:
        yield batch


def _score_batch(
    model: Transformer,
    contexts: list[tuple[int, ...]],
    continuations: list[list[tuple[int, ...]]],
    runtime: Runtime,
) -> list[tuple[float, bool]]:
    """(log-probability, greedy) of every continuation of every context, in that order."""
    device = runtime.device
    flat = [continuation for one in continuations for continuation in one]
    owner = torch.tensor([row for row, one in enumerate(continuations) for _ in one])  # (R,)
    longest = max(map(len, flat)) - 1
    cache, last = _read_contexts(model, contexts, longest, runtime)  # last (B, D)
    tellers, rows = [last[owner.to(device)]], [torch.arange(len(flat))]
    targets = [torch.tensor([continuation[0] for continuation in flat])]
    going_on = [row for row, continuation in enumerate(flat) if len(continuation) > 1]
    if going_on:
        cache.select(owner[going_on].to(device))
        tokens, mask = _pad([flat[row][:-1] for row in going_on])  # (R', T)
        hidden = model.hidden(tokens.to(device), cache=cache)  # (R', T, D)
        tellers.append(hidden[mask.to(device)])
        rows.append(torch.tensor(going_on)[:, None].expand_as(mask)[mask])
        targets.append(_pad([flat[row][1:] for row in going_on])[0][mask])
    logprobs, best = _told(model, torch.cat(tellers), torch.cat(targets).to(device))
    row = torch.cat(rows)
    sums = torch.zeros(len(flat), dtype=torch.float64).index_add_(0, row, logprobs)
    missed = torch.zeros(len(flat), dtype=torch.int64).index_add_(0, row, (~best).long())
    return list(zip(sums.tolist(), (missed == 0).tolist(), strict=True))


def _read_contexts(
    model: Transformer, contexts: list[tuple[int, ...]], room: int, runtime: Runtime
) -> tuple[KeyValueCache, Tensor]:
    """A cache that has read every context, with room for more tokens after each; and the last states, (B, D)."""
    device, num_shared = runtime.device, _num_shared(contexts)
    first = 1 if num_shared else len(contexts)
    cache = KeyValueCache(model.config, first, max(map(len, contexts)) + room, runtime.dtype, device)
    if num_shared:
        model.hidden(torch.tensor([contexts[0][:num_shared]], device=device), cache=cache)
        cache.advance(torch.tensor([num_shared], device=device))
        cache.select(torch.zeros(len(contexts), dtype=torch.int64, device=device))
    tokens, mask = _pad([context[num_shared:] for context in contexts])
    lengths = mask.sum(dim=1).to(device)  # (B,)
    hidden = model.hidden(tokens.to(device), cache=cache)  # (B, T, D)
    cache.advance(lengths)
    return cache, hidden[torch.arange(len(contexts), device=device), lengths - 1]


def _num_shared(contexts: list[tuple[int, ...]]) -> int:
    """Tokens that all contexts begin with, one at least left to each; 0 where reading them once would gain little."""
    least, most = min(contexts), max(contexts)  # in the order of words, so that these two differ first
    shortest = min(map(len, contexts)) - 1
    shared = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), shortest)
    shared = min(shared, shortest)
    return shared if len(contexts) > 1 and shared >= _SHARED_TOKENS else 0


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of different length as tokens (R, T) int64, 0 behind the end, and a mask (R, T) bool of what is real."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return tokens, mask


def _told(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log p of each target, (M,) float64, and whether it is the likeliest, (M,) bool; hidden (M, D). On the CPU."""
    step = max(1, _CHUNK_BYTES // (4 * model.config.vocab_size))
    logprobs, best = [], []
    for start in range(0, len(targets), step):
        logits, target = model.unembed(hidden[start : start + step]).float(), targets[start : start + step]
        own = logits.log_softmax(dim=-1).gather(1, target[:, None])[:, 0]
        if not bool(own.isfinite().all()):
            raise ModelError("the model's scores are not finite numbers (NaN or infinity): its weights are damaged")
        logprobs.append(own.double().cpu())
        best.append((logits.argmax(dim=-1) == target).cpu())
    return torch.cat(logprobs), torch.cat(best)
