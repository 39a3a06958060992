"""What is read off the hidden states: the heads of the Transformer.

The parameters of a head stand at the top of a model's state, beside the trunk's, so heads are no modules of their own
but the base of the model: `add_head` makes what config.head names, `unembed` reads it.
Notation: B batch, T length, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.model.config import ModelConfig
from jielong.model.layers import NONLINEARITIES, build_dropout, build_norm, build_scale


class HeadedModel(nn.Module):
    """The part of the Transformer behind its last layer.

    lm: logits of the next token. masked_lm: logits of the token itself, and the sentence classifier of BERT's
    pre-training. classes: one score a label for a row. choice: one score for a row, a candidate answer. span: two
    scores a token, that an answer begins and that it ends there. scalar: one number a token. What classes and choice
    read of a row: an encoder's pooler over [CLS], or the mean of its states, as config.pooling says; a decoder's last
    token.
    Source: Devlin et al. 2018, arXiv:1810.04805, section 4.2 (span), appendix A (pooler, next sentence; the transform
    before the masked logits is in google-research/bert alone); Radford et al. 2018 (GPT-1), sections 3.2 and 3.3, for
    a decoder's classes and choice, which read the last token.
    """

    config: ModelConfig
    embed: nn.Embedding
    logit_bias: nn.Parameter | None

    def add_head(self, config: ModelConfig) -> None:
        """Make the parameters of config.head, after all others."""
        width, encoder_only = config.width, config.decoder_layers == 0
        self.logit_bias = None
        if config.head in ("lm", "masked_lm"):
            if not config.tie_embeddings:
                self.unembedding = nn.Linear(width, config.vocab_size, bias=False)
            if config.logit_bias:
                self.logit_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.head == "masked_lm":
            self.transform = nn.Linear(width, width)
            self.transform_norm = build_norm(config)
            self.next_sentence = nn.Linear(width, 2)
        if config.head == "scalar":
            self.score = nn.Linear(width, 1, bias=False)
        if config.head in ("classes", "choice"):
            self.classifier = nn.Linear(width, 1 if config.head == "choice" else config.num_labels, bias=encoder_only)
        if config.head == "span":
            self.classifier = nn.Linear(width, 2, bias=encoder_only)
        if encoder_only and config.head not in ("scalar", "span") and config.pooling == "cls":
            self.pooler = nn.Linear(width, width)
        self._pool = _POOLERS[config.pooling] if encoder_only else HeadedModel._pool_last
        self._read = _READERS[config.head]
        self._scale_logits = build_scale(config.logit_scale)
        self._nonlinearity = NONLINEARITIES[config.activation]
        self._drop_pooled = build_dropout(config.dropout)

    @property
    def unembed_weight(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits; the embedding itself when tied."""
        return self.embed.weight if self.config.tie_embeddings else self.unembedding.weight

    @property
    def logit_scale(self) -> float:
        """What every logit is multiplied by before the bias is added."""
        return self.config.logit_scale

    def unembed(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """What the head says of hidden states (..., D).

        lm, masked_lm: logits (..., V). span: (..., 2). scalar: (...) float32. classes: (B, num_labels), choice: (B,),
        for which hidden is (B, T, D) and segments (B, T) tell where a row begins and ends (None: it has no padding).
        """
        return self._read(self, hidden, segments)

    def next_sentence_logits(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, 2) with the masked_lm head: entry 0 for a second sentence that follows the first, entry 1 for another."""
        logits: Tensor = self.next_sentence(self._pool(self, hidden, segments))
        return logits

    def pooled(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """What classes and choice read of each row: (B, T, D) -> (B, D). GPT-1 adds those of two rows up."""
        return self._pool(self, hidden, segments)

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, D), as `pooled` makes it -> (B, num_labels), one column for choice."""
        scores: Tensor = self.classifier(self._drop_pooled(pooled))
        return scores

    def logits(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., V), whatever the head, where the embedding is tied: GPT-1 goes on as a language model."""
        return F.linear(self._scale_logits(hidden), self.unembed_weight, self.logit_bias)

    def _masked_logits(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        return self.logits(self.transform_norm(self._nonlinearity(self.transform(hidden))), segments)

    def _scores(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        # Not a matrix product, so that autocast leaves it in float32: a reward in bfloat16 has 3 digits.
        return (hidden.float() * self.score.weight[0].float()).sum(dim=-1)

    def _classes(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        return self.classify(self.pooled(hidden, segments))

    def _spans(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        scores: Tensor = self.classifier(hidden)
        return scores

    def _choice(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        return self._classes(hidden, segments)[:, 0]

    def _pool_first(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        """An encoder's summary of a row, (B, D): tanh of a projection of its first real token, [CLS]."""
        pooled: Tensor = self.pooler(_pick(hidden, 0 if segments is None else (segments > 0).int().argmax(dim=1)))
        return pooled.tanh()

    def _pool_mean(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        """The mean over a row's states, (B, D), those of the tokens around the text among them.

        No projection of its own: few labels say too little to learn one. Source: Reimers and Gurevych 2019,
        arXiv:1908.10084, section 3 (MEAN), which found it better than [CLS] for what a text is about.
        """
        if segments is None:
            return hidden.mean(dim=1)
        real = (segments > 0).to(hidden.dtype)[:, :, None]  # (B, T, 1)
        return (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)

    def _pool_last(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        """A decoder's summary of a row, (B, D): the state at its last real token, the first that has seen it all."""
        if segments is None:
            return _pick(hidden, -1)
        index = torch.arange(segments.shape[1], device=segments.device)
        return _pick(hidden, ((segments > 0) * index).argmax(dim=1))


def _pick(hidden: Tensor, index: int | Tensor) -> Tensor:
    """(B, D): hidden (B, T, D) at one index for all rows or at one for each (B,)."""
    return hidden[:, index] if isinstance(index, int) else hidden[torch.arange(len(index), device=hidden.device), index]


_POOLERS = {"cls": HeadedModel._pool_first, "mean": HeadedModel._pool_mean}  # of an encoder
_READERS: dict[str, Callable[[HeadedModel, Tensor, Tensor | None], Tensor]] = {
    "lm": HeadedModel.logits,
    "masked_lm": HeadedModel._masked_logits,
    "scalar": HeadedModel._scores,
    "classes": HeadedModel._classes,
    "choice": HeadedModel._choice,
    "span": HeadedModel._spans,
}
