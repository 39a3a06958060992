"""What a correct PPO must keep, by the numbers of the project's list: tokens, masks, reward model (1-17).

19-43, rollout and update, are in test_invariants_ppo.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jielong.align.agreement import length_baseline, measure_agreement, position_baseline
from jielong.align.comparisons import (
    Comparison,
    collate,
    encode_comparisons,
    pad_rows,
    pair_batch,
    prompt_hash,
    split_by_prompt,
)
from jielong.align.reward import (
    RewardModel,
    bradley_terry,
    pair_loss,
    scalar_from_policy,
)
from jielong.align.rollout import fitting_prompts, lay_out, values_before
from jielong.data.pack import pack_examples
from jielong.errors import DataError, UsageError
from jielong.generate.engine import Completion
from jielong.model.context import segment_positions
from jielong.model.logprobs import scored_logprobs, token_logprobs
from jielong.model.transformer import Transformer
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.objectives import next_token

Make = Callable[..., Transformer]
HELLO = [{"role": "user", "content": "hi"}]


def comparison(content: str, replies: list[str], ranking: list[int]) -> Comparison:
    return Comparison.from_record(
        {"messages": [{"role": "user", "content": content}], "replies": replies, "ranking": ranking}
    )


def made(prompt: list[int], tokens: list[int]) -> Completion:
    return Completion(prompt, tokens, "", [0.0] * len(tokens), "stop")


@pytest.fixture
def byte_model(make_model: Make) -> Transformer:
    return make_model(vocab_size=263, scale=4.0)


@pytest.fixture
def scorer(make_model: Make) -> Transformer:
    return make_model("scalar", vocab_size=263, scale=4.0)


# A. Tokens and masks


def test_01_control_tokens_are_different_ids(byte_tokenizer: Tokenizer) -> None:
    t = byte_tokenizer
    ids = [t.pad_id, t.bos_id, t.eos_id, t.end_id, *t.role_ids.values()]
    assert len(set(ids)) == len(ids)


def test_02_all_stages_see_the_same_ids(byte_tokenizer: Tokenizer) -> None:
    prompt, _ = render(HELLO, byte_tokenizer, reply=True)
    whole, scored = render([*HELLO, {"role": "assistant", "content": "yo"}], byte_tokenizer)
    reply = [*byte_tokenizer.encode("yo"), byte_tokenizer.end_id]
    items = encode_comparisons([comparison("hi", ["yo", "no"], [0, 1])], byte_tokenizer, 99).items
    rollout_row = lay_out([made(prompt, reply)], byte_tokenizer.pad_id)[0][0].tolist()
    assert whole == prompt + reply == items[0].rows[0] == rollout_row
    assert [t for t, s in zip(whole, scored, strict=True) if s] == reply


def test_03_sampled_ids_are_never_encoded_again(byte_tokenizer: Tokenizer) -> None:
    """Half a character does not survive decoding and encoding; the rollout must hold it all the same."""
    reply = [0xE4, 0xBD, byte_tokenizer.bos_id, 97, byte_tokenizer.end_id]
    assert byte_tokenizer.encode(byte_tokenizer.decode(reply)) != reply
    tokens, mask, _, _ = lay_out([made([1, 2], reply), made([3], [4] * 9)], byte_tokenizer.pad_id)
    assert tokens[0][mask[0]].tolist() == reply


def test_04_sft_loss_is_on_the_reply_and_its_end(byte_tokenizer: Tokenizer, byte_model: Transformer) -> None:
    ids, scored = render([*HELLO, {"role": "assistant", "content": "yo"}, *HELLO], byte_tokenizer)
    tokens, mask = torch.tensor([ids]), torch.tensor([scored])
    assert byte_tokenizer.decode(tokens[mask].tolist()) == "yo" and tokens[mask][-1] == byte_tokenizer.end_id
    logits = byte_model(tokens).detach().requires_grad_(True)
    (token_logprobs(logits, tokens) * mask).sum().backward()
    assert logits.grad is not None
    told = logits.grad[0].abs().sum(dim=-1) > 0
    assert told.tolist() == [*mask[0, 1:].tolist(), False], "only what predicts a scored token gets a gradient"


def test_05_packing_changes_no_loss_and_leaks_nothing(byte_tokenizer: Tokenizer, byte_model: Transformer) -> None:
    examples = [render([*HELLO, {"role": "assistant", "content": text}], byte_tokenizer) for text in ("yo", "good day")]
    packed = pack_examples(examples, 48).batch([0])
    alone = pack_examples(examples, 24, packed=False).batch([0, 1])
    assert packed.tokens.shape[0] == 1 and packed.num_units == alone.num_units
    together, apart = (next_token(byte_model, batch)[0].detach() for batch in (packed, alone))
    assert float(together) == pytest.approx(float(apart), rel=1e-5)
    other = packed.tokens.clone()
    first = packed.segments[0] == 1
    other[0, first] = (other[0, first] + 1) % 250
    with torch.no_grad():
        before, after = (byte_model(tokens, packed.segments)[0] for tokens in (packed.tokens, other))
    second = packed.segments[0] == 2
    assert torch.equal(before[second], after[second]) and not torch.equal(before[first], after[first])


def test_06_padding_and_neighbours_change_nothing(byte_model: Transformer, scorer: Transformer) -> None:
    row, neighbour = [5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    narrow, wide = pad_rows([row], 256), pad_rows([neighbour, row], 256)
    mask = torch.tensor([[False, False, True, True, True]])
    wide_mask = torch.zeros(wide[0].shape, dtype=torch.bool)
    wide_mask[:, 2:5] = True
    with torch.no_grad():
        for segments in (None, wide[1]):
            alone = scored_logprobs(byte_model, narrow[0], None, mask)[0][0]
            among = scored_logprobs(byte_model, wide[0], segments, wide_mask)[0][1, :5]
            assert torch.allclose(alone, among, atol=1e-5)
            values = values_before(scorer, narrow[0])[0]
            assert torch.allclose(values, values_before(scorer, wide[0], segments)[1, :5], atol=1e-5)
    reward = RewardModel(scorer, 2.0, 0.5)
    assert torch.allclose(
        reward.score(narrow[0], None, narrow[2])[0], reward.score(wide[0], None, wide[2])[1], atol=1e-5
    )


def test_07_positions_count_from_the_start_of_each_document() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0]])
    assert segment_positions(segments)[0, :6].tolist() == [0, 1, 2, 0, 1, 0]


def test_08_reply_mask_ends_with_the_first_stop_and_nothing_is_forced() -> None:
    end, pad = 11, 9
    tokens, mask, segments, ends = lay_out([made([1, 2], [5, end]), made([3], [6, 7, 8, 6])], pad)
    assert mask.tolist() == [[False, False, True, True, False], [False, True, True, True, True]]
    assert tokens[0].tolist() == [1, 2, 5, end, pad] and segments[0].tolist() == [1, 1, 1, 1, 0]
    assert end not in tokens[1][mask[1]].tolist(), "a reply that was cut off gets no end token"
    assert ends.tolist() == [3, 4]


def test_09_prompts_without_room_for_a_reply_are_left_out_and_counted() -> None:
    kept, num_rejected = fitting_prompts([[1] * 40, [1] * 38, [1] * 39], max_length=48, max_new_tokens=10)
    assert [len(prompt) for prompt in kept] == [38] and num_rejected == 2
    with pytest.raises(UsageError, match="none of 1 prompts leaves room for a reply of 10 tokens"):
        fitting_prompts([[1] * 40], 48, 10)


# B. Reward model


def test_10_score_is_read_at_the_last_real_token(scorer: Transformer, byte_tokenizer: Tokenizer) -> None:
    pad = byte_tokenizer.pad_id
    rows = [[1, 2, pad, 3, pad, 4], [5, 6]]  # pad ids inside a text must not fool the score
    tokens, _, ends = pad_rows(rows, pad)
    assert ends.tolist() == [5, 1]
    found = RewardModel(scorer).score(tokens, None, ends)
    with torch.no_grad():
        expected = [float(scorer(torch.tensor([row]))[0, -1]) for row in rows]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_11_pair_loss_at_equal_scores_and_its_gradient() -> None:
    better, worse = torch.tensor([0.3, 1.5], requires_grad=True), torch.tensor([0.3, -0.5], requires_grad=True)
    loss = pair_loss(better, worse)
    assert loss.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-2.0))])
    loss.sum().backward()
    assert better.grad is not None and worse.grad is not None
    assert better.grad.tolist() == pytest.approx([-0.5, 1 / (1 + math.exp(-2.0)) - 1])
    assert torch.equal(better.grad, -worse.grad)


def test_12_a_constant_added_to_all_scores_changes_nothing() -> None:
    better, worse = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 4.0])
    assert torch.allclose(pair_loss(better + 7, worse + 7), pair_loss(better, worse), atol=1e-5)


def test_13_k_way_is_the_average_of_its_explicit_pairs(scorer: Transformer, byte_tokenizer: Tokenizer) -> None:
    replies = ["a", "bb", "ccc", "dd"]
    four, two = comparison("hi", replies, [2, 0, 3, 1]), comparison("you", ["x", "yy"], [1, 0])
    batch = pair_batch([four, two], byte_tokenizer)
    assert batch.tokens.shape[0] == 6 and len(batch.pairs) == 7 and batch.num_units == 2
    assert batch.weights.tolist() == pytest.approx([1 / 6] * 6 + [1.0])
    explicit = []
    for source in (four, two):
        pairs = [Comparison(source.messages, source.replies, [pair]) for pair in source.pairs]
        losses = [bradley_terry(scorer, pair_batch([each], byte_tokenizer))[0].item() for each in pairs]
        explicit.append(sum(losses) / len(losses))
    loss, metrics = bradley_terry(scorer, batch)
    assert loss.item() == pytest.approx(sum(explicit), rel=1e-5)
    assert 0 <= float(metrics["accuracy"]) <= 2


def test_13_ties_are_dropped_and_counted(byte_tokenizer: Tokenizer) -> None:
    same = comparison("hi", ["a", "a", "b"], [0, 1, 2])
    encoded = encode_comparisons([same, comparison("hi", ["c", "c"], [0, 1])], byte_tokenizer, 99)
    assert encoded.num_identical == 2 and encoded.num_pairs == 2 and len(encoded.items) == 1
    assert collate(encoded.items, 0).weights.tolist() == [0.5, 0.5]


def test_13_ties_may_be_modelled(scorer: Transformer, byte_tokenizer: Tokenizer) -> None:
    """As pairs in which either is preferred with chance 1/2; counted whether they are kept or not."""
    record = {"messages": HELLO, "replies": ["a", "bb", "cc", "cc"], "ranking": [1, [0, 2], 3]}
    tied = Comparison.from_record(record)
    assert tied.ties == [(0, 2)] and len(tied.pairs) == 5 and Comparison.from_record(tied.to_record()) == tied
    dropped, kept = (encode_comparisons([tied], byte_tokenizer, 99, ties=ties) for ties in (False, True))
    assert (dropped.num_pairs, dropped.num_ties, kept.num_pairs, kept.num_ties) == (4, 1, 5, 1)
    batch = collate(kept.items, byte_tokenizer.pad_id)
    assert batch.targets.tolist() == [1.0] * 4 + [0.5]
    better, worse = torch.tensor([1.5], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    loss = pair_loss(better, worse, target=0.5)
    assert loss.item() == pytest.approx(0.5 * (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))))
    assert pair_loss(better, better, target=0.5).item() == pytest.approx(math.log(2)), "least at equal scores"
    loss.backward()
    assert better.grad is not None and float(better.grad) > 0, "the higher one is pulled down"
    only_tie = Comparison.from_record({"messages": HELLO, "replies": ["a", "b"], "ranking": [[0, 1]]})
    assert encode_comparisons([only_tie], byte_tokenizer, 99).num_undecided == 1
    assert bradley_terry(scorer, batch)[0].isfinite()


def test_14_a_margin_asks_for_more(scorer: Transformer, byte_tokenizer: Tokenizer) -> None:
    better, worse = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.5])
    expected = [math.log(1 + math.exp(-(1.0 - 0.7))), math.log(1 + math.exp(0.7))]
    assert pair_loss(better, worse, 0.7).tolist() == pytest.approx(expected)
    assert torch.equal(pair_loss(better, worse, 0.0), pair_loss(better, worse))
    record = {"messages": HELLO, "replies": ["a", "bb", "c"], "pairs": [[0, 1, 1.5], [0, 2]]}
    read = Comparison.from_record(record)
    assert read.margins == [1.5, 0.0] and Comparison.from_record(read.to_record()) == read
    batch = pair_batch([read], byte_tokenizer)
    assert batch.margins.tolist() == [1.5, 0.0]
    plain = pair_batch([Comparison.from_record({**record, "pairs": [[0, 1], [0, 2]]})], byte_tokenizer)
    assert bradley_terry(scorer, batch)[0] > bradley_terry(scorer, plain)[0]
    for pairs in ([[0, 1, -1.0]], [[0, 1, math.nan]], [[0, "1"]], [[0, 0]], [[0, 3]]):
        with pytest.raises(DataError, match="line 7"):
            Comparison.from_record({**record, "pairs": pairs}, "line 7")


def test_15_split_is_by_prompt() -> None:
    comparisons = [comparison(f"question {n % 20}", [f"a{n}", "b"], [0, 1]) for n in range(60)]
    training, heldout = split_by_prompt(comparisons, 0.25, seed=3)
    assert len(training) == 45 and len(heldout) == 15
    assert not {each.prompt for each in training} & {each.prompt for each in heldout}
    assert split_by_prompt(comparisons, 0.25, 3)[1] == heldout != split_by_prompt(comparisons, 0.25, 4)[1]
    assert comparisons[0].prompt == prompt_hash(comparisons[0].messages)


def test_15_baselines_and_interval_stand_beside_the_accuracy(scorer: Transformer, byte_tokenizer: Tokenizer) -> None:
    longer = [comparison(f"q{n}", ["aaaa", "b"], [0, 1]) for n in range(8)]
    mixed = [*longer[:3], comparison("r", ["c", "dd"], [0, 1])]
    train, held = (encode_comparisons(part, byte_tokenizer, 99).items for part in (longer, mixed))
    assert length_baseline(train, held) == 0.75 and position_baseline(held) == 1.0
    found = measure_agreement(scorer, held, byte_tokenizer.pad_id, batch_prompts=3)
    assert found.num_pairs == 4 and found.ci95[0] <= found.accuracy <= found.ci95[1]


def test_16_head_starts_small_and_without_bias(make_model: Make) -> None:
    policy = make_model(vocab_size=263)
    heads = [scalar_from_policy(policy, torch.Generator().manual_seed(s)).score for s in range(40)]
    assert all(head.bias is None for head in heads)
    weights = torch.cat([head.weight.flatten() for head in heads])
    assert float(weights.detach().std()) == pytest.approx(1 / math.sqrt(policy.config.width + 1), rel=0.1)
    reward = scalar_from_policy(policy, torch.Generator())
    assert torch.equal(reward.layers[1].ffn.down.weight, policy.layers[1].ffn.down.weight)


def test_17_normalisation_survives_the_folder(scorer: Transformer, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [[n, n + 1, 2 * n + 1, 7][: 2 + n % 3] for n in range(40)]
    batches = [(tokens, ends) for tokens, _, ends in (pad_rows(part, 256) for part in (rows[:25], rows[25:]))]
    reward = RewardModel(scorer)
    raw_mean, raw_deviation = reward.normalise(batches)
    assert reward.gain == pytest.approx(1 / raw_deviation) and reward.bias == pytest.approx(-raw_mean / raw_deviation)
    reward.save(byte_tokenizer, tmp_path, {"stage": "reward"})
    loaded = RewardModel.load(tmp_path)
    scores, again = (torch.cat([each.score(t, None, e) for t, e in batches]) for each in (reward, loaded))
    assert abs(float(again.mean())) < 0.05 and float(again.std(correction=0)) == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(scores, again)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
