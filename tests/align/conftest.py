"""Models of a few thousand weights and a tokenizer of twelve tokens, so that replies end soon and at ragged lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from jielong.align.learner import Learner, assemble
from jielong.align.rollout import Actors
from jielong.align.settings import PPOConfig
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer

PAD, EOS, END = 9, 10, 11


@dataclass
class TinyTokenizer:
    """What the engine and the rollout read of a tokenizer; ids 0-8 are letters."""

    vocab_size: int = 12
    pad_id: int = PAD
    eos_id: int = EOS
    end_id: int = END
    stop_ids: tuple[int, ...] = (EOS, END)
    is_own: bool = False  # a model may have rows to spare

    def decode(self, ids: list[int]) -> str:
        return "".join("abcdefghi"[i] for i in ids if i < 9)


@dataclass
class CountingReward:
    """Scores a row by how often it holds token 3. Remembers what it was shown."""

    shown: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def score(self, tokens: torch.Tensor, segments: object, ends: torch.Tensor) -> torch.Tensor:
        self.shown.append((tokens, ends))
        real = torch.arange(tokens.shape[1]) <= ends[:, None]
        return ((tokens == 3) & real).sum(dim=1).float()


def build_model(head: str = "lm", seed: int = 0, vocab_size: int = 12, scale: float = 1.0) -> Transformer:
    config = ModelConfig(
        vocab_size=vocab_size,
        max_length=48,
        width=32,
        decoder_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_size=16,
        ffn_width=48,
        head=head,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:  # to N(0, 0.02): the bandits start from all but uniform predictions
                weight.mul_(0.02 * math.sqrt(config.width))
        model.embed.weight.mul_(scale)  # a scale above 1 makes the predictions less uniform
        if head == "scalar":
            model.score.weight.div_(0.02 * math.sqrt(config.width))
    return model.eval()


@pytest.fixture
def make_model() -> Callable[..., Transformer]:
    return build_model


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32, seed=7)


@pytest.fixture
def make_learner() -> Callable[..., Learner]:
    def make(config: PPOConfig, reward: object = None, same_reference: bool = True) -> Learner:
        policy = build_model(seed=1, scale=8.0)
        reference = build_model(seed=1 if same_reference else 2, scale=8.0).requires_grad_(False)
        critic = build_model("scalar", seed=3)
        scorer = CountingReward() if reward is None else reward
        return assemble(Actors(policy, critic, reference, scorer, TinyTokenizer()), config, {})

    return make


@pytest.fixture
def prompts() -> list[list[int]]:
    return [[0, 1, 2], [4], [5, 6, 7, 8, 0], [2, 2], [1, 0, 1, 0], [8]]


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return Tokenizer.train(["a"], 263)
