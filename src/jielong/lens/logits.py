"""The logit lens: what a decoder would say next if it had to speak after each of its layers.

Notation: R = L + 1 rows, the embedded tokens and each of L layers; T tokens, V vocabulary, k candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.logprobs import token_logprobs, token_ranks
from jielong.model.transformer import Transformer


@dataclass(frozen=True)
class LogitLens:
    """What each row expects. Row 0 reads the embedded tokens, row r what layer r - 1 leaves; the last is the model.

    top_ids (R, T, k) int64 and top_probabilities (R, T, k) float32: the likeliest tokens to come after token t.
    entropies_nats (R, T) float32: of that distribution; log V when all are alike.
    probabilities (R, T) float32 and ranks (R, T) int64 speak about token t itself, given those before it: how likely it
    was, and the how manieth (1 = the likeliest). Both are 0 at the first token, which nothing foretells.
    """

    top_ids: Tensor
    top_probabilities: Tensor
    entropies_nats: Tensor
    probabilities: Tensor
    ranks: Tensor


def layer_logits(model: Transformer, tokens: Tensor, source: Tensor | None = None) -> Iterator[Tensor]:
    """R times (T, V) float32: the final norm and the unembedding, applied to the residual stream after each layer.

    tokens: (T,) int64. source: (S,) int64, what a translator reads, None for others. The last equals model(tokens).
    With norms behind the sublayers (GPT-1) there is no final norm: what a layer leaves is normed already.
    Raises ModelError for a model that writes no text, one in training mode, a row longer than max_length, and a source
    that is missing or out of place.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    config = model.config
    if not config.decoder_layers or config.head != "lm":
        raise ModelError(
            "the logit lens needs a decoder that predicts the next token; this model has encoder_layers = "
            f"{config.encoder_layers}, decoder_layers = {config.decoder_layers}, head = {config.head!r}. Its attention "
            "maps can be drawn all the same"
        )
    if config.encoder_layers and source is None:
        raise ModelError("the logit lens of a translator needs its source: what it says next depends on what it reads")
    if model.training:
        raise ModelError("the model is in training mode, where dropout disturbs it; call model.eval() first")
    with torch.no_grad():
        for x in model.residuals(tokens[None], None if source is None else model.encode(source[None])):
            yield model.unembed(model.norm(x))[0].float()


def logit_lens(model: Transformer, tokens: Tensor, num_top: int = 5, source: Tensor | None = None) -> LogitLens:
    """The lens over all positions of a text. tokens (T,) int64. num_top: k, at most V are given.

    source: (S,) int64, what a translator reads. Logits of one row at a time are held. Raises ModelError as
    layer_logits, and when logits are not finite.
    """
    rows = [_read(logits, tokens, num_top) for logits in layer_logits(model, tokens, source)]
    top_ids, top_probabilities, entropies, probabilities, ranks = (torch.stack(x) for x in zip(*rows, strict=True))
    return LogitLens(top_ids, top_probabilities, entropies, probabilities, ranks)


def _read(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, ...]:
    """One row of each field of LogitLens. logits (T, V)."""
    if not bool(logits.isfinite().all()):
        raise ModelError("logits are not finite: the model's weights are broken")
    expected = logits.softmax(dim=-1)
    top_probabilities, top_ids = expected.topk(min(num_top, expected.shape[-1]), dim=-1)
    entropies = torch.special.entr(expected).sum(dim=-1)
    probabilities = token_logprobs(logits[None], tokens[None])[0].exp()
    probabilities[0] = 0.0  # its entry is a placeholder, not a certainty
    return top_ids, top_probabilities, entropies, probabilities, token_ranks(logits[None], tokens[None])[0]
