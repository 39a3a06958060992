"""Held-out figures against sums by hand, at exactly the positions that the n-gram baselines score."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from jielong.data.pack import pack_examples, pack_stream
from jielong.errors import DataError
from jielong.evaluate.likelihood import bits_per_byte, heldout_logprobs, heldout_nats, scored_bytes
from jielong.evaluate.ngram import fit_ngram
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer

from ..model.conftest import small_decoder

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small_decoder(vocab_size=30, max_length=16)


def documents(num: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, 30, (5 + 3 * k,), generator=generator).tolist() for k in range(num)]


def test_log_probabilities_at_a_temperature(model: Transformer) -> None:
    rows = pack_stream(documents(2), 16)
    found = heldout_logprobs(model, rows, CPU, temperature=0.5)
    batch = rows.batch(range(len(rows)))
    with torch.no_grad():
        expected = F.log_softmax(model(batch.tokens, batch.segments)[:, :-1] / 0.5, dim=-1)
    expected = expected.gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    assert torch.allclose(found[:, 1:], torch.where(batch.mask[:, 1:], expected, 0.0), atol=1e-5)
    assert not torch.allclose(found, heldout_logprobs(model, rows, CPU), atol=1e-2)


def test_total_is_the_sum_over_documents_run_alone(model: Transformer) -> None:
    texts = [text[:16] for text in documents(5)]
    total = 0.0
    for text in texts:
        tokens = torch.tensor([text])
        total += F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:], reduction="sum").item()
    rows = pack_examples([(text, [False] + [True] * (len(text) - 1)) for text in texts], 16)
    assert len(rows) < len(texts)
    nats, num_scored = heldout_nats(model, rows, CPU)
    assert nats == pytest.approx(total, rel=1e-5)
    assert num_scored == sum(len(text) - 1 for text in texts)


def test_batch_size_does_not_matter(model: Transformer) -> None:
    rows = pack_stream(documents(7), 16)
    whole = heldout_logprobs(model, rows, CPU, batch_rows=100)
    assert whole.shape == rows.mask.shape
    torch.testing.assert_close(heldout_logprobs(model, rows, CPU, batch_rows=3), whole, rtol=1e-5, atol=1e-5)


def test_scores_the_positions_of_the_ngram_baseline(model: Transformer) -> None:
    rows = pack_stream(documents(7), 16)
    neural = heldout_logprobs(model, rows, CPU) != 0
    ngram = torch.from_numpy(fit_ngram(rows, 3, 30).logprobs(rows)) != 0
    assert torch.equal(neural, rows.mask) and torch.equal(ngram, rows.mask)


def test_mode_is_restored_and_no_graph_kept(model: Transformer) -> None:
    rows = pack_stream(documents(2), 16)
    for training in (True, False):
        model.train(training)
        assert not heldout_logprobs(model, rows, CPU).requires_grad
        assert model.training is training


def test_nothing_scored_is_an_error(model: Transformer) -> None:
    rows = pack_examples([([1, 2, 3], [False] * 3)], 4)
    with pytest.raises(DataError, match="none of the 1 rows scores a token"):
        heldout_nats(model, rows, CPU)


def test_bits_per_byte_by_hand() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
    with pytest.raises(DataError, match="0 bytes"):
        bits_per_byte(1.0, 0)


def test_scored_bytes_leaves_out_what_no_row_scores() -> None:
    tokenizer = Tokenizer.train([""], 256 + len(Tokenizer.SPECIALS))  # every byte a token
    texts = ["chain", "词语"]
    rows = pack_stream([[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts], 5)
    # 7 + 8 tokens in three rows. Not scored: both bos, and the firsts of rows 2 and 3, a byte of either text.
    assert int(rows.mask.sum()) == 15 - 4
    assert scored_bytes(rows, tokenizer) == len("chain词语".encode()) - 2
    whole = pack_stream([[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts], 15)
    assert scored_bytes(whole, tokenizer) == len("chain词语".encode())
