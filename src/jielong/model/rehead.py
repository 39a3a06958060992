"""A trained model with another head, and with rows for new control tokens: what every fine-tuning begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.transformer import Transformer

_BY_TOKEN = ("embed.weight", "unembedding.weight", "logit_bias")  # parameters with a row for each token


@dataclass(frozen=True)
class NewHead:
    """What the new model has in place of the old one's.

    head, num_labels: as in ModelConfig. vocab_size: not less than before; the rows beyond are new. dropout: of
    embeddings, sublayers and the attention's weights; None leaves both as they are. pooling: as in ModelConfig; with
    "mean" the old model's pooler is left out.
    """

    head: str
    num_labels: int
    vocab_size: int
    dropout: float | None = None
    pooling: str = "cls"


def rehead(model: Transformer, new: NewHead, generator: torch.Generator, keep: bool = True) -> Transformer:
    """A new model with another head on a copy of `model`'s trunk, and of those parts of its head that the new one has.

    What is new is drawn as `init_weights` draws it: for GPT-1 N(0, 0.02), the rows of new tokens among it. keep=False
    draws everything: the same net from scratch.
    Raises ModelError when the vocabulary would shrink.
    Source: Radford et al. 2018, section 3.2; Devlin et al. 2018, arXiv:1810.04805, section 3.2, where the pooler goes
    on from pre-training.
    """
    old = model.config
    if new.vocab_size < old.vocab_size:
        raise ModelError(
            f"vocab_size is {new.vocab_size}; the model has {old.vocab_size} tokens already, at least that"
        )
    config = replace(old, head=new.head, num_labels=new.num_labels, vocab_size=new.vocab_size, pooling=new.pooling)
    if new.dropout is not None:
        config = replace(config, dropout=new.dropout, attention_dropout=new.dropout)
    made = Transformer(config)
    made.init_weights(generator)
    if keep:
        _copy(model.state_dict(), made.state_dict())
    return made.to(model.embed.weight.device)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Put what both have into target, whose tensors are the new model's own; the first rows of those that grew."""
    for name, tensor in target.items():
        if name not in source or name.startswith("classifier."):
            continue
        if name in _BY_TOKEN:
            tensor[: len(source[name])].copy_(source[name])
        else:
            tensor.copy_(source[name])
