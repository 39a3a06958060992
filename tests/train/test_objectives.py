from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jielong.data.pack import pack_examples
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.train.objectives import next_token


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=30, max_length=24, width=32, decoder_layers=2, num_heads=2, num_kv_heads=2, head_size=16,
        ffn_width=48,
    )
    made = Transformer(config)
    made.init_weights(torch.Generator().manual_seed(0))
    return made


def example(seed: int, length: int) -> tuple[list[int], list[bool]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30, (length,), generator=generator).tolist()
    scored = torch.rand(length, generator=generator) < 0.6
    scored[0] = False
    scored[-1] = True
    return ids, scored.tolist()


def test_sum_of_cross_entropy_over_scored_tokens(model: Transformer) -> None:
    ids, scored = example(1, 12)
    batch = pack_examples([(ids, scored)], 12).batch([0])
    wanted = sum(
        F.cross_entropy(model(batch.tokens)[0, place - 1], batch.tokens[0, place]).item()
        for place in range(12)
        if scored[place]
    )
    loss, metrics = next_token(model, batch)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert metrics == {} and batch.num_units == sum(scored)


def test_packed_equals_alone(model: Transformer) -> None:
    pair = [example(2, 13), example(3, 9)]
    packed = pack_examples(pair, 24)
    alone = pack_examples(pair, 24, packed=False)
    assert len(packed) == 1 and len(alone) == 2
    wanted = sum(next_token(model, alone.batch([row]))[0].item() for row in range(2))
    assert next_token(model, packed.batch([0]))[0].item() == pytest.approx(wanted, rel=1e-5)


def test_a_token_nobody_scores_or_reads_changes_nothing(model: Transformer) -> None:
    ids, scored = example(4, 12)
    scored = [*scored[:-1], False]  # the last token: no later one sees it
    before, _ = next_token(model, pack_examples([(ids, scored)], 12).batch([0]))
    after, _ = next_token(model, pack_examples([([*ids[:-1], (ids[-1] + 1) % 30], scored)], 12).batch([0]))
    assert before.item() == after.item()
