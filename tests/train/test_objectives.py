from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from jielong.data.buckets import pair_batch
from jielong.data.pack import pack_examples
from jielong.model.config import ModelConfig
from jielong.model.routing import Routing
from jielong.model.transformer import Transformer
from jielong.train.objectives import next_token, next_token_and_z, next_token_of_experts, translation


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=30,
        max_length=24,
        width=32,
        decoder_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_size=16,
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


def test_z_loss_joins_the_sum(model: Transformer) -> None:
    """By hand: log Z of the logits before each scored token, squared; its gradient is the slow sum's."""
    ids, scored = example(1, 12)
    batch = pack_examples([(ids, scored)], 12).batch([0])
    plain, _ = next_token(model, batch)
    log_z = model(batch.tokens)[0, :-1].logsumexp(dim=1)[batch.mask[0, 1:]]
    loss, metrics = next_token_and_z(0.5)(model, batch)
    assert loss.item() == pytest.approx((plain + 0.5 * log_z.square().sum()).item(), rel=1e-5)
    assert metrics["label_nats"].item() == pytest.approx(plain.item(), rel=1e-6)
    wanted = torch.autograd.grad(plain + 0.5 * log_z.square().sum(), list(model.parameters()))
    for found, exact in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


def test_router_losses_join_the_sum(model: Transformer) -> None:
    config = replace(model.config, num_experts=4, experts_per_token=2, ffn_width=16)
    experts = Transformer(config)
    experts.init_weights(torch.Generator().manual_seed(1))
    batch = pack_examples([example(2, 13), example(3, 9)], 24).batch([0])
    plain, _ = next_token(experts, batch)
    routing = Routing()
    experts.hidden(batch.tokens, batch.segments, routing=routing)
    balance, router_z = routing.balance_loss().item(), routing.z_loss().item()

    loss, metrics = next_token_of_experts(balance=0.01, router_z=0.001)(experts, batch)
    added = batch.num_units * (0.01 * balance + 0.001 * router_z)
    assert loss.item() == pytest.approx(plain.item() + added, rel=1e-6)
    assert metrics["router_balance"].item() == pytest.approx(batch.num_units * balance)
    assert metrics["router_z"].item() == pytest.approx(batch.num_units * router_z)
    assert 1 / 4 <= metrics["router_peak"].item() / batch.num_units <= 1 / 2  # two choices a token: at most a half
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics["label_nats"].item() == plain.item()
    without, _ = next_token_of_experts(balance=0.0, router_z=0.0)(experts, batch)
    assert without.item() == plain.item()
    with_z, _ = next_token_of_experts(balance=0.0, router_z=0.0, z_weight=0.5)(experts, batch)
    assert with_z.item() == next_token_and_z(0.5)(experts, batch)[0].item() > plain.item()


def test_the_balance_loss_balances() -> None:
    """A router that sends everything to one expert is brought back by the loss alone."""
    config = ModelConfig(
        vocab_size=30, max_length=24, width=32, decoder_layers=1, num_heads=2, num_kv_heads=2, head_size=16,
        ffn_width=16, num_experts=4, experts_per_token=1,
    )  # fmt: skip
    experts = Transformer(config)
    experts.init_weights(torch.Generator().manual_seed(1))
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        experts.embed.weight += direction  # all tokens have this in common, and expert 2 likes it
        experts.layers[0].ffn.router.weight[2] += direction / 8
    batch = pack_examples([example(seed, 24) for seed in range(8)], 24).batch(list(range(8)))
    optimizer = torch.optim.Adam([experts.layers[0].ffn.router.weight], lr=0.01)
    peaks = []
    for _ in range(60):
        loss, metrics = next_token_of_experts(balance=1.0, router_z=0.0)(experts, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        peaks.append(metrics["router_peak"].item() / batch.num_units)
    assert peaks[0] > 0.9 and peaks[-1] < 0.5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
def test_translation_is_torchs_smoothed_cross_entropy(bias: bool, smoothing: float) -> None:
    config = ModelConfig(
        vocab_size=30, max_length=24, width=32, encoder_layers=1, decoder_layers=1, num_heads=2, num_kv_heads=2,
        head_size=16, ffn_width=48, logit_bias=bias,
    )  # fmt: skip
    made = Transformer(config).double()
    made.init_weights(torch.Generator().manual_seed(0))
    batch = pair_batch([[3, 4, 5], [6, 7, 8, 9, 4]], [[1, 9, 8, 2], [1, 5, 2]])
    logits = made(batch.tokens, batch.segments, source=batch.source, source_segments=batch.source_segments)[:, :-1]
    told, labels = logits[batch.mask[:, 1:]], batch.tokens[:, 1:][batch.mask[:, 1:]]
    wanted = F.cross_entropy(told, labels, label_smoothing=smoothing, reduction="sum")
    plain = F.cross_entropy(told, labels, reduction="sum")
    expected = torch.autograd.grad(wanted, list(made.parameters()))
    loss, metrics = translation(smoothing)(made, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5) and batch.num_units == 5
    assert metrics["label_nats"].item() == pytest.approx(plain.item(), rel=1e-5)
    for found, gradient in zip(torch.autograd.grad(3 * loss, list(made.parameters())), expected, strict=True):
        torch.testing.assert_close(found, 3 * gradient, rtol=1e-4, atol=1e-5)
