"""The corpus of a pretrain stage as token shards: encoded once, then opened by whoever reads its rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from jielong.data.encoding import ONE_SOURCE, Plan, encode_corpus
from jielong.data.mixture import Mixture
from jielong.data.shards import INDEX, open_streams, read_index, verify
from jielong.data.stream import StreamRows
from jielong.runtime import available_cores
from jielong.stages.context import Context
from jielong.tokenizer import Tokenizer

# What was encoded before and is not larger is read whole when the stage goes on with it: a second or less.
VERIFIED_BYTES = 1 << 29


def encode_tokens(context: Context) -> None:
    """Leave the shards of the curated text in the stage's folder `tokens`, in the process that leads.

    Those that are there already are compared with their checksums, unless that would take long: their sizes are looked
    at in any case, when they are opened. Raises DataError when they are damaged.
    """
    folder = _folder(context)
    if not context.leads:
        return
    if (folder / INDEX).exists():
        if sum(shard.bytes for shards in read_index(folder).sources.values() for shard in shards) <= VERIFIED_BYTES:
            verify(folder)
        return
    documents = context.folder_of("curate") / "documents.jsonl"
    megabytes = max(1, documents.stat().st_size // 1_000_000)
    context.progress.say(f"{context.name}: encoding {documents.name}")
    context.progress.start(context.name, megabytes)
    begun, first = time.monotonic(), None

    def progress(done: int, _total: int) -> None:
        nonlocal first
        first = done if first is None else first  # what an earlier call did is not this one's speed
        rate = (done - first) / 1e6 / max(time.monotonic() - begun, 1e-9)
        context.progress.update(done // 1_000_000, total=megabytes, megabytes_per_second=rate)

    plan = Plan(documents, context.folder_of("tokenizer") / "model", _sources(context))
    encode_corpus(folder, plan, context.recipe.run.threads or available_cores(), progress)


def corpus_rows(context: Context, tokenizer: Tokenizer) -> StreamRows:
    """The training rows of a pretrain stage, read from its shards as they are asked for."""
    streams = open_streams(_folder(context), tokenizer.hash, tokenizer.vocab_size)
    names = _sources(context) or (ONE_SOURCE,)
    return StreamRows([streams[name] for name in names], context.settings.context_tokens, tokenizer.vocab_size)


def mixed(context: Context, rows: StreamRows) -> tuple[Sequence[int], Sequence[float]] | None:
    """What `RowLoader` wants to know of a pretrain stage's mixture; None without one."""
    if context.settings.mixture is None:
        return None
    return rows.sizes, [context.settings.mixture[name] for name in _sources(context)]


def epochs_by_source(context: Context, rows: StreamRows, num_rows: int) -> dict[str, dict[str, float]]:
    """A figure: how often each source of the mixture was read in so many rows; none without a mixture."""
    told = mixed(context, rows)
    if told is None:
        return {}
    read = Mixture(told[1]).totals(num_rows)
    epochs = (int(num) / size for num, size in zip(read, told[0], strict=True))
    return {"epochs_by_source": dict(zip(_sources(context), epochs, strict=True))}


def _sources(context: Context) -> tuple[str, ...]:
    """The sources that the mixture tells apart, in an order that the recipe's does not change; () without one."""
    return tuple(sorted(context.settings.mixture or ()))


def _folder(context: Context) -> Path:
    return context.home / "tokens"
