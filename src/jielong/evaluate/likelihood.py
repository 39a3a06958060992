"""How well a model predicts held-out text: nats per token, bits per byte, and scores token by token.

A position counts when the rows' mask scores it, here and in evaluate/ngram.py alike, so neural and n-gram figures are
totals over the very same tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jielong.data.pack import Rows
from jielong.errors import DataError
from jielong.model.logprobs import scored_logprobs
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer


def heldout_logprobs(
    model: Transformer,
    rows: Rows,
    runtime: Runtime,
    batch_rows: int = 32,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> Tensor:
    """log p of every scored token at `temperature`, nats: (R, T) float32 on the CPU, zero where `rows.mask` is False.

    The model is put in eval() for the time being and its mode restored. `batch_rows` bounds memory, not the result.
    vocab_size: as in `scored_logprobs`, where the rows were sampled by an engine.
    """
    training = model.training
    model.eval()
    pieces = []
    with torch.no_grad():
        for first in range(0, len(rows), batch_rows):
            batch = rows.batch(list(range(first, min(first + batch_rows, len(rows))))).to(runtime.device)
            with runtime.autocast():
                logprobs, _ = scored_logprobs(
                    model, batch.tokens, batch.segments, batch.mask, temperature, False, vocab_size
                )
            pieces.append(logprobs.cpu())
    model.train(training)
    return torch.cat(pieces)


def heldout_nats(model: Transformer, rows: Rows, runtime: Runtime, batch_rows: int = 32) -> tuple[float, int]:
    """(total nats, scored tokens) over `rows`; their quotient is the held-out loss in nats per token.

    Raises DataError when the rows score nothing.
    """
    num_scored = int(rows.mask.sum())
    if num_scored == 0:
        raise DataError(f"held-out rows: none of the {len(rows)} rows scores a token; give longer held-out text")
    # Summed in float64: a million float32 terms would cost the last digits of a figure that is compared.
    return -float(heldout_logprobs(model, rows, runtime, batch_rows).double().sum()), num_scored


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Total nats over a text as bits per byte of it (UTF-8): comparable between tokenizers.

    `num_bytes` counts the text that was scored (see scored_bytes). Raises DataError when it is not positive.
    """
    if num_bytes <= 0:
        raise DataError(f"bits per byte: the held-out text has {num_bytes} bytes; it must have at least one")
    return total_nats / math.log(2) / num_bytes


def scored_bytes(rows: Rows, tokenizer: Tokenizer) -> int:
    """Bytes of text that the scored tokens of `rows` spell; control tokens spell none.

    Differs from the length of the text where a row does not score a token of it: its first one, when a document goes on
    from the row before.
    """
    lengths = torch.tensor([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    return int(lengths[rows.tokens[rows.mask].long()].sum())
