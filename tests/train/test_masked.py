"""BERT's objective: the very numbers, from the very tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jielong.data.masking import MaskedBatch
from jielong.data.sentence_pairs import SentenceRows
from jielong.errors import DataError
from jielong.evaluate.masked import frequency_baseline, measure_masked
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import detect
from jielong.train.loop import train_step
from jielong.train.masked import hidden_token


@pytest.fixture
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=20, max_length=12, width=16, encoder_layers=1, decoder_layers=0, num_heads=2, num_kv_heads=2,
        head_size=8, ffn_width=24, token_types=2, head="masked_lm", logit_bias=True, dropout=0.2,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(1))
    return model.eval()


def make_batch() -> MaskedBatch:
    tokens = torch.tensor([[18, 1, 2, 19, 3, 19], [18, 4, 19, 5, 19, 0]])
    mask = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]]).bool()
    inputs = torch.where(mask, 17, tokens)
    types = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]])
    segments = torch.tensor([[1] * 6, [1] * 5 + [0]], dtype=torch.int32)
    return MaskedBatch(tokens, inputs, mask, types, segments, torch.tensor([0, 1]), num_units=3)


def test_loss_is_the_mean_of_hidden_tokens_and_the_mean_of_pairs(model: Transformer) -> None:
    batch = make_batch()
    hidden = model.hidden(batch.inputs, batch.segments, token_types=batch.token_types)
    logits = model.unembed(hidden)
    told = [(0, 1, 1), (0, 4, 3), (1, 1, 4)]  # row, place, the token that stands there: no shift by one
    nats = [-torch.log_softmax(logits[row, place], dim=0)[truth] for row, place, truth in told]
    pairs = model.next_sentence_logits(hidden, batch.segments)
    both = F.cross_entropy(pairs, torch.tensor([0, 1]))
    alone, metrics = hidden_token(next_sentence=False)(model, batch)
    torch.testing.assert_close(alone, sum(nats))
    assert set(metrics) == {"masked_accuracy"}
    loss, metrics = hidden_token(next_sentence=True)(model, batch)
    torch.testing.assert_close(loss / 3, sum(nats) / 3 + both)
    torch.testing.assert_close(metrics["next_sentence_nats"] / 3, both.detach())
    right = sum(int(logits[row, place].argmax() == truth) for row, place, truth in told)
    assert int(metrics["masked_accuracy"]) == right


def test_what_is_not_hidden_is_not_scored(model: Transformer) -> None:
    batch = make_batch()
    before, _ = hidden_token(next_sentence=False)(model, batch)
    batch.tokens[~batch.mask] = 7  # the truth elsewhere is not looked at; what the model sees stays
    after, _ = hidden_token(next_sentence=False)(model, batch)
    assert before.equal(after)


def test_measured_as_trained_without_dropout(model: Transformer) -> None:
    batch = make_batch()
    loss, metrics = hidden_token(next_sentence=True)(model, batch)
    scores = measure_masked(model.train(), [batch, batch], detect("cpu", "float32"), next_sentence=True)
    expected = float(loss.detach() - metrics["next_sentence_nats"]) / 3
    assert scores.loss_nats == pytest.approx(expected, rel=1e-5) and model.training
    assert (scores.num_hidden, scores.num_rows) == (6, 4)
    assert scores.accuracy == pytest.approx(float(metrics["masked_accuracy"]) / 3)
    assert scores.next_sentence_accuracy == pytest.approx(float(metrics["next_sentence_accuracy"]) / 3)
    assert measure_masked(model, [batch], detect("cpu", "float32"), False).next_sentence_accuracy is None
    with pytest.raises(DataError, match="no token to hide"):
        measure_masked(model, [], detect("cpu", "float32"), False)


def test_frequency_by_hand() -> None:
    """Counts 3, 1, 0 and one each: 4/7, 2/7, 1/7 for the three ids of text; the hidden are 0, 0 and 1."""
    tokens = torch.tensor([[9, 0, 0, 0, 1, 9, 0]], dtype=torch.int32)
    segments = torch.tensor([[1, 1, 1, 1, 1, 1, 0]], dtype=torch.int32)
    rows = SentenceRows(tokens, torch.zeros_like(tokens), segments, torch.zeros(1, dtype=torch.bool))
    is_text = torch.tensor([True, True, True, *[False] * 7])
    mask = torch.tensor([[False, True, True, False, True]])
    truth = torch.tensor([[9, 0, 0, 0, 1]])
    batch = MaskedBatch(truth, truth, mask, truth, torch.ones(1, 5, dtype=torch.int32), torch.zeros(1).long(), 3)
    nats, accuracy = frequency_baseline(rows, is_text, [batch])
    logs = torch.tensor([4 / 7, 4 / 7, 2 / 7]).double().log()
    assert nats == pytest.approx(-float(logs.mean())) and accuracy == pytest.approx(2 / 3)


def test_hidden_tokens_are_learned_from_both_sides(model: Transformer) -> None:
    """Rows count up by one from any number: what is hidden follows from a neighbour on either side."""
    generator = torch.Generator().manual_seed(3)
    starts = torch.randint(0, 8, (256, 1), generator=generator)
    tokens = torch.cat((torch.full((256, 1), 18), starts + torch.arange(6), torch.full((256, 1), 19)), dim=1)

    def batch(rows: slice, places: torch.Tensor) -> MaskedBatch:
        part = tokens[rows]
        mask = torch.zeros_like(part).bool().scatter_(1, places[:, None], True)
        inputs, types = torch.where(mask, 17, part), torch.zeros_like(part)
        segments = torch.ones_like(part, dtype=torch.int32)
        return MaskedBatch(part, inputs, mask, types, segments, torch.zeros(len(part)).long(), len(part))

    optimizer, runtime = torch.optim.AdamW(model.parameters(), lr=1e-2), detect("cpu", "float32")
    for step in range(200):
        first, places = 32 * (step % 6), torch.randint(1, 7, (32,), generator=generator)
        train_step(model, optimizer, [batch(slice(first, first + 32), places)], hidden_token(False), runtime, 1.0)
    for place in (1, 3, 6):
        unseen = batch(slice(192, 256), torch.full((64,), place))
        assert measure_masked(model, [unseen], runtime, next_sentence=False).accuracy > 0.9, place
