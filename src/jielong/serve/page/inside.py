"""What "Look inside" is told of a model: plain values, made by `lens`. Runs where the model may be used.

Notation: L layers, N heads, T tokens, S tokens of the source, R = L + 1 rows of the logit lens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jielong.errors import UsageError
from jielong.generate.translator import start_id
from jielong.lens.attention import attention_maps, head_figures, telling_head
from jielong.lens.logits import logit_lens
from jielong.lens.vectors import likeness, neighbours, position_table, residual_stream
from jielong.model.config import ModelConfig
from jielong.model.presets import preset_config
from jielong.model.transformer import Transformer
from jielong.plan.count import count_parameters
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

MOST_TOKENS = 192
MOST_WEIGHTS = 6_000_000  # of all maps together: 12 MB on the wire
NUM_TOP = 5
NUM_SCORES = 7
_TOLD = (
    "width", "num_heads", "num_kv_heads", "head_size", "ffn_width", "vocab_size", "max_length", "activation",
    "encoder_layers", "decoder_layers", "positions", "norm", "num_experts", "tie_embeddings",
)  # fmt: skip
_SCALE = 65535  # a weight is sent as a 16-bit fraction: exact to 1e-5, half the bytes of float32


@dataclass(frozen=True)
class Looked:
    """A text as the model reads it. source: of a translator, None for others. cut: whether tokens were left out."""

    tokens: list[int] | None
    source: list[int] | None
    cut: bool

    def names(self, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
        return names(tokenizer, self.tokens or ()), names(tokenizer, self.source or ())

    def written(self, tokenizer: Tokenizer) -> tuple[Tensor, Tensor | None]:
        """(ids that the decoder has before it, those that it reads them beside). A translator begins with a start."""
        source = None if self.source is None else torch.tensor(self.source)
        return torch.tensor([start_id(tokenizer)] if self.tokens is None else self.tokens), source


def names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The tokens as people read them; a row of the embedding beyond the vocabulary shows its number."""
    return [tokenizer.name(token) if token < tokenizer.vocab_size else f"<{token}>" for token in ids]


def look(
    model: Transformer, tokenizer: Tokenizer, text: str, target: str, messages: Sequence[Mapping[str, str]] | None
) -> Looked:
    """The ids of a text, or of a conversation, its beginning when it is too long.

    Encoder-decoders read the text as their source, and target is what they have written so far.
    Raises UsageError when there is nothing to look at, or the model has no way to write conversations.
    """
    config = model.config
    most = min(MOST_TOKENS, config.max_length, _longest(config))
    translates = config.encoder_layers > 0 and config.decoder_layers > 0
    if messages and translates:  # the last question, and what was answered
        asked = [message["content"] for message in messages if message["role"] == "user"]
        text = asked[-1] if asked else ""
        target = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    elif messages:
        reply = messages[-1]["role"] == "user"
        ids = render(messages, tokenizer, reply=reply)[0]
        return Looked(ids[:most], None, len(ids) > most)
    body = tokenizer.encode(text)
    if not body:
        raise UsageError("there is no text to look at")
    whole = [*tokenizer.prefix_ids, *body, *tokenizer.suffix_ids]
    kept, cut = whole[:most], len(whole) > most
    if not translates:
        return Looked(kept, None, cut)
    written = [start_id(tokenizer), *tokenizer.encode(target)]
    return Looked(written[:most] if target else None, kept, cut or len(written) > most)


def _longest(config: ModelConfig) -> int:
    """Tokens whose maps together stay below MOST_WEIGHTS."""
    num_maps = (config.encoder_layers + 2 * config.decoder_layers) * config.num_heads
    return max(8, int((MOST_WEIGHTS / num_maps) ** 0.5))


def attention(model: Transformer, tokenizer: Tokenizer, looked: Looked) -> bytes:
    """All maps: the length of a header (4 bytes, little endian), the header as JSON, padding to 4, then the weights.

    The header: {"cut", "kinds": [{"kind", "shape": [L, N, T, S], "queries", "keys", "shown": [layer, head],
    "figures": {name: [[...]]}}]}. The weights of one kind after the other, uint16, 65535 being 1.
    """
    tokens, source = (None if ids is None else torch.tensor(ids) for ids in (looked.tokens, looked.source))
    maps = attention_maps(model, tokens, source)
    written, read = looked.names(tokenizer)
    kinds, parts = [], []
    for kind, weights in maps.items():
        sides = {"decoder": (written, written), "cross": (written, read), "encoder": (read or written,) * 2}
        queries, keys = sides[kind]
        figures = head_figures(kind, weights)
        told = {name: _rounded(values, 4) for name, values in vars(figures).items() if values is not None}
        shown = list(telling_head(figures.elsewhere))
        head = {"kind": kind, "shape": list(weights.shape), "queries": queries, "keys": keys}
        kinds.append({**head, "shown": shown, "figures": told})
        parts.append((weights * _SCALE).round().to(torch.int32).numpy().astype("<u2").tobytes())
    header = json.dumps({"cut": looked.cut, "kinds": kinds}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 4)
    return len(header).to_bytes(4, "little") + header + b"".join(parts)


def predictions(model: Transformer, tokenizer: Tokenizer, looked: Looked) -> dict[str, Any]:
    """The logit lens: {"tokens", "cut", "top": [row][position][k] of [name, probability, id], "entropies", "chances",
    "ranks"}; of a translator, of what it writes.

    top and entropies at a position are about what follows it; chances and ranks about the token itself.
    """
    ids, source = looked.written(tokenizer)
    lens = logit_lens(model, ids, NUM_TOP, source)
    top = [
        [_candidates(tokenizer, *cell) for cell in zip(row, odds, strict=True)]
        for row, odds in zip(lens.top_ids.tolist(), lens.top_probabilities.tolist(), strict=True)
    ]
    told: dict[str, Any] = {"tokens": names(tokenizer, ids.tolist()), "cut": looked.cut, "top": top}
    told |= {"entropies": _rounded(lens.entropies_nats, 3), "chances": _rounded(lens.probabilities, 5)}
    return {**told, "ranks": lens.ranks.tolist()}


def _candidates(tokenizer: Tokenizer, ids: list[int], chances: list[float]) -> list[list[Any]]:
    return [[name, round(p, 5), one] for name, p, one in zip(names(tokenizer, ids), chances, ids, strict=True)]


def steps(model: Transformer, tokenizer: Tokenizer, looked: Looked, num_columns: int = 64) -> dict[str, Any]:
    """One prediction from text to probabilities: {"tokens", "ids", "vectors": [row][column], "lengths": [row],
    "top": [[name, logit]], "log_totals": [number]}.

    vectors: the first numbers of the last token's vector, embedded and after each layer; lengths: of the whole vector.
    log_totals: log of the sum of exp(logit / t) over the vocabulary, for t = 0.1, 0.15, ... 2: what turns a logit into
    a probability at each temperature.
    """
    ids, source = looked.written(tokenizer)
    stream = residual_stream(model, ids, source)[:, -1]  # (R, D)
    with torch.no_grad():
        read = None if source is None else source[None]
        logits = model(ids[None], source=read)[0, -1, : tokenizer.vocab_size].float()
    best = logits.topk(min(NUM_SCORES, len(logits)))
    tops = zip(names(tokenizer, best.indices.tolist()), best.values.tolist(), strict=True)
    totals = [float((logits / (step / 20)).logsumexp(dim=0)) for step in range(2, 41)]
    told: dict[str, Any] = {"tokens": names(tokenizer, ids.tolist()), "ids": ids.tolist(), "cut": looked.cut}
    told |= {"vectors": _rounded(stream[:, :num_columns], 3), "lengths": _rounded(stream.norm(dim=1), 3)}
    return {**told, "top": [[name, round(z, 4)] for name, z in tops], "log_totals": [round(z, 4) for z in totals]}


def near(model: Transformer, tokenizer: Tokenizer, token: int, num_nearest: int = 12) -> dict[str, Any]:
    """{"token", "nearest": [[name, id, cosine]]}. Raises UsageError for an id that is no token."""
    ids, cosines = neighbours(model, token, num_nearest, tokenizer.vocab_size)
    found = zip(names(tokenizer, ids.tolist()), ids.tolist(), cosines.tolist(), strict=True)
    return {"token": tokenizer.name(token), "nearest": [[name, one, round(cosine, 4)] for name, one, cosine in found]}


def positions(model: Transformer, num_positions: int = 96, num_columns: int = 96) -> dict[str, Any]:
    """{"kind", "table": [position][column], "likeness": [position][position]}."""
    table = position_table(model, num_positions, num_columns)
    return {"kind": model.config.positions, "table": _rounded(table, 3), "likeness": _rounded(likeness(table), 3)}


def shape(model: Transformer, name: str) -> dict[str, Any]:
    """{"models": [{"name", "parts": parameters by part}], "config": the numbers a reader may want}.

    The models are this one, called name, and the largest GPT-3 of 2020.
    """
    config = model.config
    models = [{"name": name, "parts": count_parameters(config)}]
    models.append({"name": "GPT-3 175B", "parts": count_parameters(preset_config("gpt3-175b"))})
    return {"models": models, "config": {name: vars(config)[name] for name in _TOLD}}


def _rounded(values: Tensor, decimals: int) -> Any:
    return values.double().round(decimals=decimals).tolist()
