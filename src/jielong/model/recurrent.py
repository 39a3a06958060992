"""The translator before the Transformer: two LSTMs and attention, through torch.nn. A baseline to measure against.

The encoder reads the source in both directions; the decoder reads the target, and each of its states looks at all of
the encoder's, by which it is mixed with what it looked at before a word is chosen. Attention stands behind the decoder
and is not fed back into it, so that a whole target is read at once in training.
Source: Luong et al. 2015, arXiv:1508.04025, sections 3 and 3.1 (global attention, score "general", without section
3.3's input feeding); Sennrich et al. 2017, arXiv:1703.04357, section 2 (the decoder begins with the mean of the
encoder's states). One matrix is source, target and output embedding, as in our Transformer.
Notation: B batch, S source length, T target length, D width, V vocabulary, L layers.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from jielong.config import write_atomic
from jielong.errors import ModelError
from jielong.model.context import as_bias, visible_source
from jielong.tensors import write_tensors

ARCHITECTURE = "JielongRecurrent"
State = tuple[Tensor, Tensor]  # of the decoder's LSTM: (L, B, D) each


@dataclass(frozen=True)
class RecurrentConfig:
    """width: of embeddings, encoder (half for each direction) and decoder, even. layers: of either. max_length: the
    longest row that it is asked to read; an LSTM itself has no such bound. dropout: of embeddings, between layers and
    before the output.
    """

    vocab_size: int
    max_length: int
    width: int
    layers: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2 or self.layers < 1 or not 0 <= self.dropout < 1:
            raise ModelError(
                f"width is {self.width}, layers {self.layers}, dropout {self.dropout}; an even width, 1 or more layers "
                "and a dropout of at least 0 and under 1 are legal"
            )


class Recurrent(nn.Module):
    """LSTM encoder-decoder with attention. Trained by the same objective and searched by the same beam as Transformer.

    It computes in float32 whatever autocast says: torch's LSTM is slower in bfloat16 on a CPU.
    """

    logit_bias: Tensor | None = None
    logit_scale: float = 1.0

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        between = config.dropout if config.layers > 1 else 0.0
        self.embed = nn.Embedding(config.vocab_size, width)
        self.encoder = nn.LSTM(width, width // 2, config.layers, batch_first=True, dropout=between, bidirectional=True)
        self.bridge = nn.Linear(width, 2 * config.layers * width)
        self.decoder = nn.LSTM(width, width, config.layers, batch_first=True, dropout=between)
        self.score = nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(2 * width, width, bias=False)
        self.drop = nn.Dropout(config.dropout)

    @property
    def unembed_weight(self) -> Tensor:
        """(V, D)."""
        return self.embed.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """All matrices N(0, 1 / sqrt(D)), biases 0 but for those of the forget gates, which begin open at 1."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(self.config.width))
                continue
            parameter.zero_()
            if "bias_ih" in name:  # input, forget, cell, output
                quarter = len(parameter) // 4
                parameter[quarter : 2 * quarter] = 1.0

    def encode(self, source: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, S) ids and segments, padding on the right -> (B, S, D), zero at padding."""
        with torch.autocast(source.device.type, enabled=False):
            embedded = self.drop(self.embed(source))
            if segments is None:
                states, _ = self.encoder(embedded)
                return states
            lengths = (segments > 0).sum(dim=1).cpu()
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True, total_length=source.shape[1])
            return states

    def begin(self, memory: Tensor, memory_segments: Tensor) -> State:
        """The decoder's first state, of the mean of memory (B, S, D)."""
        real = (memory_segments > 0)[..., None].to(memory.dtype)  # (B, S, 1)
        mean = (memory * real).sum(dim=1) / real.sum(dim=1)
        both = torch.tanh(self.bridge(mean)).view(len(mean), 2, self.config.layers, -1).permute(1, 2, 0, 3)
        return both[0].contiguous(), both[1].contiguous()

    def step(self, tokens: Tensor, state: State, memory: Tensor, memory_segments: Tensor) -> tuple[Tensor, State]:
        """Read T more tokens (B, T): what each would say, (B, T, D), and the state after them."""
        states, state = self.decoder(self.drop(self.embed(tokens)), state)
        scores = torch.bmm(self.score(states), memory.transpose(1, 2))  # (B, T, S)
        weights = (scores + as_bias(visible_source(None, memory_segments), scores.dtype)).softmax(dim=-1)
        mixed = torch.tanh(self.mix(torch.cat([torch.bmm(weights, memory), states], dim=-1)))
        return self.drop(mixed), state

    def hidden_of(self, tokens: Tensor, segments: Tensor, memory: Tensor, memory_segments: Tensor) -> Tensor:
        """(B, T) -> (B, T, D). What stands at padding of the target means nothing."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.step(tokens, self.begin(memory, memory_segments), memory, memory_segments)[0]

    def unembed(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits (..., V)."""
        return hidden @ self.embed.weight.T


def save_recurrent(model: Recurrent, folder: str | Path, extra: dict[str, Any]) -> None:
    """config.json, model.safetensors and jielong.json; only this package reads such a folder."""
    folder = Path(folder)
    write_tensors(
        folder / "model.safetensors", {name: value.contiguous() for name, value in model.state_dict().items()}
    )
    write_atomic(folder / "jielong.json", json.dumps({"version": 1, **extra}, ensure_ascii=False, indent=2) + "\n")
    content = {"architectures": [ARCHITECTURE], "model_type": "jielong_recurrent", "head": "lm", **asdict(model.config)}
    write_atomic(folder / "config.json", json.dumps(content, indent=2) + "\n")


def is_recurrent(folder: str | Path) -> bool:
    """Whether config.json is that of a Recurrent; False where there is none that can be read."""
    try:
        content = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("architectures") == [ARCHITECTURE]


def load_recurrent(folder: str | Path) -> Recurrent:
    """Read what `save_recurrent` wrote. Raises ModelError naming the file."""
    folder = Path(folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        names = ("vocab_size", "max_length", "width", "layers", "dropout")
        model = Recurrent(RecurrentConfig(**{name: content[name] for name in names}))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'}: a size is missing or of a wrong type: {error}") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{folder / 'model.safetensors'} does not fit config.json, or is damaged: {error}") from None
    return model
