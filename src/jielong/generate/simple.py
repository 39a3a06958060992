"""The slow oracle: one row, no cache, the whole sequence through the model again for every token.

Nothing is fast here and nothing can go stale; the engine is held to it token for token in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from jielong.generate.sampling import sample
from jielong.model.transformer import Transformer


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """The new tokens after `prompt_ids`: up to max_new_tokens, to a stop id (kept), or to the end of the context.

    generator: gives one uniform number a token; None is seeded with 0. temperature 0 takes the likeliest token.
    """
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    tokens = list(prompt_ids)
    end = min(len(tokens) + max_new_tokens, model.config.max_length)
    while len(tokens) < end and not (len(tokens) > len(prompt_ids) and tokens[-1] in stop_ids):
        logits = model(torch.tensor([tokens], device=device))[:, -1]  # (1, V)
        tokens.append(int(sample(logits, temperature=temperature, generators=generator)))
    return tokens[len(prompt_ids) :]
