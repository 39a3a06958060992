from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jielong.align.agreement import measure_agreement
from jielong.align.comparisons import (
    Comparison,
    comparison_batches,
    encode_comparisons,
    pad_rows,
    pair_batch,
    split_by_prompt,
)
from jielong.align.reward import RewardModel, bradley_terry, scalar_from_policy
from jielong.errors import DataError, ModelError, TrainingError
from jielong.model.hf import save_model
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.loop import train_step
from jielong.train.optim import OptimizerConfig, build_optimizer

Make = Callable[..., Transformer]
HELLO = [{"role": "user", "content": "hi"}]


def test_records_come_back_as_they_went() -> None:
    ranked = Comparison.from_record({"messages": HELLO, "replies": ["a", "b", "c"], "ranking": [2, 0, 1]})
    assert ranked.pairs == [(2, 0), (2, 1), (0, 1)]
    assert Comparison.from_record(ranked.to_record()) == ranked
    voted = Comparison.from_record({"messages": HELLO, "replies": ["a", "b"], "pairs": [], "prompt_hash": "x"})
    assert voted.pairs == [] and voted.prompt == "x"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"replies": ["a", "b"], "pairs": []}, "line 7: needs messages"),
        ({"messages": HELLO, "replies": ["a"], "pairs": []}, "line 7: needs messages"),
        ({"messages": HELLO, "replies": ["a", "b"]}, "line 7: needs a ranking"),
        ({"messages": HELLO, "replies": ["a", "b"], "pairs": [[0, 2]]}, r"line 7: \[0, 2\] must be two different"),
        ({"messages": HELLO, "replies": ["a", "b"], "pairs": [[1, 1]]}, r"line 7: \[1, 1\] must be two different"),
    ],
)
def test_a_broken_record_is_named(record: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Comparison.from_record(record, "line 7")


def votes(num: int) -> list[Comparison]:
    """A labeller who wants the letter e."""
    words = ["tree", "rock", "bee", "sand", "leek", "moss", "eel", "fog"]
    found = []
    for n in range(num):
        replies = [words[(n + k * 3) % 8] + words[(n * 5 + k) % 8] for k in range(3)]
        pairs = [[a, b] for a in range(3) for b in range(3) if replies[a].count("e") > replies[b].count("e")]
        found.append(Comparison.from_record({"messages": HELLO, "replies": replies, "pairs": pairs}))
    return found


def test_batches_are_a_function_of_the_step_and_cover_an_epoch(byte_tokenizer: Tokenizer) -> None:
    items = encode_comparisons(votes(10), byte_tokenizer, 99).items
    batches, num_steps = comparison_batches(items, 4, byte_tokenizer.pad_id, seed=1)
    again, _ = comparison_batches(items, 4, byte_tokenizer.pad_id, seed=1)
    assert num_steps == 2
    for step in (5, 0, 3):
        assert torch.equal(batches(step)[0].tokens, again(step)[0].tokens)
    rows = [tuple(row.tolist()) for step in (0, 1) for row in batches(step)[0].tokens[:, 1:9]]
    assert len(rows) == 24, "each prompt at most once an epoch, three replies each"
    assert not torch.equal(batches(0)[0].tokens[:, :9], batches(2)[0].tokens[:, :9])
    with pytest.raises(DataError, match="10 comparisons are fewer than one batch of 11 prompts"):
        comparison_batches(items, 11, 0, 1)


def test_all_are_shuffled_once_an_epoch(byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    items = encode_comparisons(votes(10), byte_tokenizer, 99).items
    batches, num_steps = comparison_batches(items, 2, byte_tokenizer.pad_id, seed=1)
    drawn: list[int] = []
    shuffle = torch.randperm

    def counted(num: int, **settings: Any) -> Tensor:
        drawn.append(num)
        return shuffle(num, **settings)

    monkeypatch.setattr(torch, "randperm", counted)
    for step in range(2 * num_steps):
        batches(step)
    assert (num_steps, drawn) == (5, [10, 10])


def test_micro_batches_make_the_step_of_the_whole(byte_tokenizer: Tokenizer) -> None:
    items = encode_comparisons(votes(12), byte_tokenizer, 99).items
    whole, num_steps = comparison_batches(items, 6, byte_tokenizer.pad_id, seed=1)
    parts, same = comparison_batches(items, 2, byte_tokenizer.pad_id, seed=1, accumulate=3)
    assert num_steps == same == 2
    for step in (0, 3):
        assert [batch.num_units for batch in parts(step)] == [2, 2, 2]
        rows = [row for batch in parts(step) for row in batch.tokens[batch.segments > 0].tolist()]
        (one,) = whole(step)
        assert rows == one.tokens[one.segments > 0].tolist()
    with pytest.raises(DataError, match="12 comparisons are fewer than one batch of 14 prompts"):
        comparison_batches(items, 7, 0, 1, accumulate=2)


def test_comparisons_beyond_the_context_are_dropped_and_counted(byte_tokenizer: Tokenizer) -> None:
    long = Comparison.from_record({"messages": HELLO, "replies": ["a" * 50, "b"], "ranking": [0, 1]})
    encoded = encode_comparisons([long, *votes(2)], byte_tokenizer, 40)
    assert encoded.num_too_long == 1 and len(encoded.items) == 2
    with pytest.raises(DataError, match="none of 1 comparisons has a decided pair of 40 tokens or fewer"):
        pair_batch([long], byte_tokenizer, 40)


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 prompt"):
        split_by_prompt(votes(3), 0.5, 0)


def test_a_reward_model_learns_what_is_wanted(make_model: Make, byte_tokenizer: Tokenizer, runtime: Runtime) -> None:
    model = scalar_from_policy(make_model(vocab_size=263), torch.Generator().manual_seed(1))
    items = encode_comparisons(votes(24), byte_tokenizer, 99).items
    batches, _ = comparison_batches(items, 8, byte_tokenizer.pad_id, seed=2)
    optimizer = build_optimizer(model, OptimizerConfig(3e-3))
    before = measure_agreement(model, items, byte_tokenizer.pad_id)
    stats = [train_step(model, optimizer, batches(step), bradley_terry, runtime, 1.0, step) for step in range(30)]
    after = measure_agreement(model, items, byte_tokenizer.pad_id)
    assert after.accuracy > 0.9 > before.accuracy and after.loss_nats < before.loss_nats
    assert 0.0 <= stats[0].metrics["accuracy"] <= 1.0 and stats[-1].metrics["margin"] > stats[0].metrics["margin"]


def test_replies_that_all_score_the_same_cannot_be_normalised(make_model: Make) -> None:
    tokens, _, ends = pad_rows([[1, 2, 3]] * 4, 0)
    with pytest.raises(TrainingError, match="scores 4 SFT replies with standard deviation"):
        RewardModel(make_model("scalar")).normalise([(tokens, ends)])


def test_critic_starts_on_the_scale_of_the_reward(make_model: Make) -> None:
    """Item 46: its first value of a finished reply goes with the score."""
    model = make_model("scalar", scale=8.0).requires_grad_(False)
    tokens, _, ends = pad_rows([[n, 2 * n, 5] for n in range(6)], 0)
    reward = RewardModel(model)
    reward.normalise([(tokens, ends)])
    critic = reward.critic()
    with torch.no_grad():
        values = critic(tokens)[:, -1]
    assert torch.allclose(values + reward.bias, reward.score(tokens, None, ends), atol=1e-5)
    assert all(weight.requires_grad for weight in critic.parameters())
    critic.score.weight.data.zero_()
    assert model.score.weight.any(), "the critic is a copy"


def test_a_policy_folder_is_no_reward_model(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    with pytest.raises(ModelError, match="is not a reward model"):
        RewardModel.load(tmp_path)
