"""Which tokens an encoder has to guess, drawn anew each time a row is read, and what it sees in their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.data.batch import OnDevice
from jielong.data.sentence_pairs import SentenceRows
from jielong.errors import ModelError, UsageError
from jielong.tokenizer.tokenizer import Tokenizer

SHOWN_AS_MASK, SHOWN_AS_OTHER = 0.8, 0.1  # of the chosen tokens; the rest is shown as it is
_IDEOGRAPHS = 0x2E80  # from here on a character is a word of its own


@dataclass(frozen=True)
class MaskedBatch(OnDevice):
    """Rows of which some tokens are to be guessed.

    tokens: (B, T) int64, the truth. inputs: (B, T) int64, what the model sees. mask: (B, T) bool, tokens to be guessed.
    token_types: (B, T) int64. segments: (B, T) int32, 0 = padding. random: (B,) int64, 1 where the second text is from
    another document. num_units: tokens to be guessed.
    """

    tokens: Tensor
    inputs: Tensor
    mask: Tensor
    token_types: Tensor
    segments: Tensor
    random: Tensor
    num_units: int

    def split(self, num_rows: int) -> list[MaskedBatch]:
        """Batches of num_rows rows, in order, each cut to its longest."""
        parts = []
        for first in range(0, len(self.random), num_rows):
            rows = slice(first, first + num_rows)
            width = int((self.segments[rows] > 0).sum(dim=1).max())
            tokens, inputs, mask, types, segments = (
                tensor[rows, :width]
                for tensor in (self.tokens, self.inputs, self.mask, self.token_types, self.segments)
            )
            parts.append(MaskedBatch(tokens, inputs, mask, types, segments, self.random[rows], int(mask.sum())))
        return parts


@dataclass(frozen=True)
class Masking:
    """What is hidden, and how. fraction: of the tokens of a row that are text; at least one of them.

    mask_id: what most of the hidden are shown as. ordinary: (n,) int64, ids that text can have; others are shown out
    of these. is_text: (V,) bool, of them. starts_inside, ends_inside, is_half: (V,) bool, by which whole words are
    told (see `word_numbers`); whole_words: a word is hidden whole or not at all.
    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1. Different here: drawn anew each time (Liu et al. 2019,
    arXiv:1907.11692, section 4.1), by the share of text tokens, and no control token stands in for another token.
    """

    fraction: float
    whole_words: bool
    mask_id: int
    ordinary: Tensor
    is_text: Tensor
    starts_inside: Tensor
    ends_inside: Tensor
    is_half: Tensor

    @classmethod
    def of(cls, tokenizer: Tokenizer, fraction: float, whole_words: bool = False) -> Masking:
        """For rows of this tokenizer. Raises ModelError when it has no mask token, UsageError for a bad fraction."""
        if tokenizer.mask_id is None:
            raise ModelError(
                "the tokenizer has no mask token, which an encoder needs; it has " + ", ".join(tokenizer.special_ids)
            )
        if not 0 < fraction < 1:
            raise UsageError(f"mask_fraction is {fraction}; it must lie between 0 and 1")
        control = set(tokenizer.special_ids.values())
        is_text = torch.tensor([token not in control for token in range(tokenizer.vocab_size)])
        pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        return cls(
            fraction,
            whole_words,
            tokenizer.mask_id,
            is_text.nonzero().flatten(),
            is_text,
            torch.tensor([_is_inside(piece, 0) for piece in pieces]),
            torch.tensor([_is_inside(piece, -1) for piece in pieces]),
            torch.tensor([bool(piece) and 0x80 <= piece[0] < 0xC0 for piece in pieces]),
        )

    def word_numbers(self, tokens: Tensor, text: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T) int64: tokens of one word have one number, from 1; 0 where there is no `text`, (B, T).

        A word is a run of letters and digits. A Chinese character stands alone, but its bytes never apart.
        """
        joins = self.is_half[tokens]
        joins[:, 1:] |= self.ends_inside[tokens[:, :-1]] & self.starts_inside[tokens[:, 1:]]
        joins[:, 1:] &= text[:, :-1]
        joins[:, 0] = False
        return ((text & ~joins).cumsum(dim=1)) * text


def _is_inside(piece: bytes, place: int) -> bool:
    """Whether the first (0) or last (-1) character of a token may stand inside of a word of several tokens."""
    if place == 0 and len(piece) == 1 and 0xC3 <= piece[0] < 0xE0:
        return True  # the first half of a letter beyond ASCII
    text = piece.decode("utf-8", errors="ignore")
    return bool(text) and text[place].isalnum() and ord(text[place]) < _IDEOGRAPHS


def masked_batch(rows: SentenceRows, indices: Tensor, masking: Masking, generator: torch.Generator) -> MaskedBatch:
    """These rows, in this order, with tokens hidden as the generator draws them; cut to the longest of them."""
    segments = rows.segments[indices]
    width = int((segments > 0).sum(dim=1).max())
    tokens = rows.tokens[indices, :width].long()
    mask = choose(tokens, segments[:, :width], masking, generator)
    return MaskedBatch(
        tokens,
        corrupt(tokens, mask, masking, generator),
        mask,
        rows.token_types[indices, :width].long(),
        segments[:, :width],
        rows.random[indices].long(),
        num_units=int(mask.sum()),
    )


def choose(tokens: Tensor, segments: Tensor, masking: Masking, generator: torch.Generator) -> Tensor:
    """(B, T) int64 -> (B, T) bool: round(fraction * text tokens) of each row, at least one.

    Never a control token, nor padding, whose id is not looked at: segments tell of it.

    With whole words: words in random order as long as they fit into that number, and always the first of them.
    """
    text = masking.is_text[tokens] & (segments > 0)
    wanted = (masking.fraction * text.sum(dim=1)).round().clamp(min=1)[:, None]
    words = masking.word_numbers(tokens, text) if masking.whole_words else torch.arange(1, tokens.shape[1] + 1) * text
    noise = torch.rand(tokens.shape[0], tokens.shape[1] + 1, generator=generator).gather(1, words)
    noise[~text] = 2.0  # behind all others
    # The place of each token when words stand in random order; those of one word stay side by side.
    places = noise.argsort(dim=1, stable=True).argsort(dim=1)
    sizes = torch.zeros(tokens.shape[0], tokens.shape[1] + 1, dtype=torch.int64).scatter_add_(1, words, text.long())
    firsts = torch.full_like(sizes, tokens.shape[1]).scatter_reduce_(1, words, places, "amin")
    begins = firsts.gather(1, words)
    fits = (begins + sizes.gather(1, words) <= wanted) | (begins == 0)
    return text & fits


def corrupt(tokens: Tensor, mask: Tensor, masking: Masking, generator: torch.Generator) -> Tensor:
    """What the model sees: of the hidden tokens 80 % as [MASK], 10 % as any other token of text, 10 % as they are."""
    draw = torch.rand(tokens.shape, generator=generator)
    picked = torch.randint(len(masking.ordinary), tokens.shape, generator=generator)
    others = masking.ordinary[picked]
    shown = torch.where(mask & (draw < SHOWN_AS_MASK), masking.mask_id, tokens)
    return torch.where(mask & (draw >= 1 - SHOWN_AS_OTHER), others, shown)
