"""Texts in, translations out: a translator with its tokenizer, in batches of like lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jielong.data.buckets import padded
from jielong.errors import ModelError, UsageError
from jielong.generate.beam import BeamConfig, Decoder, Hypothesis, beam_search
from jielong.generate.decoders import TranslationModel, begin_decoding
from jielong.model.recurrent import Recurrent
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer

BATCH_TOKENS = 4096  # of the sources of one batch times the beam, padding included
EXTRA_TOKENS = 50  # that a translation may have beyond its source


@dataclass(frozen=True)
class Translation:
    """text: without control tokens. score, logprob, tokens: see Hypothesis."""

    text: str
    score: float
    logprob: float
    tokens: list[int]


def source_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """What an encoder reads of a text's ids: they, and what this tokenizer puts around a text."""
    return [*tokenizer.prefix_ids, *ids, *tokenizer.suffix_ids]


def start_id(tokenizer: Tokenizer) -> int:
    """What a target begins with: bos; without one, as in Marian's folders, padding."""
    return tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id


class Translator:
    """An encoder-decoder, ours or of Hugging Face's Marian shape, or the recurrent baseline, and its tokenizer.

    start: id that a target begins with, None for the tokenizer's. Decoding is in float32 unless runtime says otherwise.
    Raises ModelError for a model without encoder or decoder, or a tokenizer that has no end of a text.
    """

    def __init__(
        self,
        model: TranslationModel,
        tokenizer: Tokenizer,
        runtime: Runtime | None = None,
        start: int | None = None,
    ) -> None:
        if not isinstance(model, Recurrent) and not (model.config.encoder_layers and model.config.decoder_layers):
            kind = "an encoder only" if model.config.encoder_layers else "a decoder only"
            raise ModelError(
                f"this model is {kind}; translating needs both, as the stage `translate` trains them. "
                "To continue text use complete, to talk chat"
            )
        if tokenizer.eos_id is None:
            raise ModelError("this tokenizer names no end-of-text token, so no translation would ever end")
        self.model, self.tokenizer = model.eval(), tokenizer
        here = Runtime(device=next(model.parameters()).device, dtype=torch.float32)
        self.runtime = replace(here, dtype=runtime.dtype) if runtime is not None else here
        self.start = start_id(tokenizer) if start is None else start

    def translate(self, texts: Sequence[str], config: BeamConfig | None = None) -> list[list[Translation]]:
        """The best translations of each text, best first, as many as config.num_best asks for.

        A text of blanks alone is translated as itself. Raises UsageError naming a text longer than the model reads.
        """
        config = BeamConfig() if config is None else config
        encoded = [self._encode(number, text) for number, text in enumerate(texts, 1)]
        results = [[Translation(text, 0.0, 0.0, [])] for text in texts]
        order = sorted((number for number, ids in enumerate(encoded) if ids), key=lambda number: len(encoded[number]))
        for batch in _batches(order, encoded, config.beam):
            for number, found in zip(batch, self.search([encoded[n] for n in batch], config), strict=True):
                results[number] = [
                    Translation(self.tokenizer.decode(one.tokens), one.score, one.logprob, one.tokens) for one in found
                ]
        return results

    def search(self, sources: Sequence[Sequence[int]], config: BeamConfig) -> list[list[Hypothesis]]:
        """Hypotheses for one batch of sources that are ids already, with what stands around a text."""
        most = self.model.config.max_length
        limits = [min(most, len(ids) + EXTRA_TOKENS) for ids in sources]
        decoder = self.begin(sources, config.beam, max(limits))
        stops = [token for token in (self.tokenizer.eos_id,) if token is not None]
        return beam_search(decoder, self.start, stops, limits, config)

    def begin(self, sources: Sequence[Sequence[int]], beam: int, capacity: int) -> Decoder:
        """A decoder that has read a batch of sources; beam: rows of each, capacity: most tokens of a row."""
        source, segments = padded(sources)
        decoder = begin_decoding(self.model, source, segments, beam, capacity, self.runtime)
        num_tokens = self.tokenizer.vocab_size
        return decoder if num_tokens == self.model.config.vocab_size else _Bounded(decoder, num_tokens)

    def _encode(self, number: int, text: str) -> list[int]:
        """The source's ids, none for a text of blanks."""
        if not text.strip():
            return []
        ids = source_ids(self.tokenizer, self.tokenizer.encode(text.strip()))
        most = self.model.config.max_length
        if len(ids) > most:
            raise UsageError(
                f"text {number} has {len(ids)} tokens, but the model reads at most {most}; cut it into sentences: "
                f"{text.strip()[:60]!r}..."
            )
        return ids


class _Bounded:
    """A decoder that says nothing of the rows of its embedding that are no tokens."""

    def __init__(self, decoder: Decoder, num_tokens: int) -> None:
        self._decoder, self._num_tokens = decoder, num_tokens

    def step(self, ids: Tensor) -> Tensor:
        return self._decoder.step(ids)[:, : self._num_tokens]

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        self._decoder.select(rows, sentences)


def _batches(order: Sequence[int], encoded: Sequence[Sequence[int]], beam: int) -> list[list[int]]:
    """The numbers in `order`, by rising length, in groups of at most BATCH_TOKENS."""
    batches: list[list[int]] = []
    for number in order:
        rows = len(batches[-1]) + 1 if batches else 1
        if not batches or rows * len(encoded[number]) * beam > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(number)
    return batches
