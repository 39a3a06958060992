"""DPO and IPO: numbers by hand, what must hold at the start, and what they come to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from jielong.align.comparisons import Candidates, collate
from jielong.align.dpo import DPOConfig, dpo, pair_terms, reply_logprobs, with_reference
from jielong.errors import UsageError
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.loop import FitConfig, fit
from jielong.train.optim import OptimizerConfig, build_optimizer

Make = Callable[..., Transformer]
# prompts of 2 and 1 tokens, replies of 3, 2 and 1, 4 tokens; a K-way comparison and a single pair
ITEMS = [
    Candidates([[0, 1, 2, 3, 11], [0, 1, 5, 11], [0, 1, 7, 7, 11]], [3, 2, 3], [(0, 1), (2, 1)]),
    Candidates([[4, 11], [4, 6, 6, 6, 11]], [1, 4], [(1, 0)]),
]


def test_losses_by_hand() -> None:
    better, worse = torch.tensor([0.5, -1.0]), torch.tensor([-0.5, 1.0])
    plain = pair_terms(better, worse, DPOConfig(beta=0.5))
    assert plain.tolist() == pytest.approx([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(1.0))])
    smooth = pair_terms(better, worse, DPOConfig(beta=0.5, label_smoothing=0.1))
    assert smooth[0].item() == pytest.approx(0.9 * math.log(1 + math.exp(-0.5)) + 0.1 * math.log(1 + math.exp(0.5)))
    ipo = pair_terms(better, worse, DPOConfig(beta=0.5, loss="ipo"))
    assert ipo.tolist() == pytest.approx([0.0, 9.0])  # (1 - 1)^2, (-2 - 1)^2


def test_g_at_the_start_the_loss_is_ln_2_and_margins_are_0(make_model: Make, runtime: Runtime) -> None:
    policy = make_model(seed=1, scale=8.0)
    batch = collate(with_reference(policy, ITEMS, 9, runtime), 9)
    loss, metrics = dpo(DPOConfig(0.1))(policy, batch)
    assert loss.item() / batch.num_units == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["margin"].item() == pytest.approx(0, abs=1e-6)


def test_19_dropout_is_off_while_the_policy_learns(make_model: Make, runtime: Runtime) -> None:
    plain = make_model(seed=1, scale=8.0)
    policy = Transformer(dataclasses.replace(plain.config, dropout=0.5, attention_dropout=0.5))
    policy.load_state_dict(plain.state_dict())
    batch = collate(with_reference(policy.eval(), ITEMS, 9, runtime), 9)
    optimizer = build_optimizer(policy, OptimizerConfig(1e-3))
    first = next(fit(policy, optimizer, lambda _: [batch], dpo(DPOConfig(0.1)), lambda _: 1.0, runtime, FitConfig(1)))
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)


def test_g_a_swapped_pair_is_antisymmetric(make_model: Make, runtime: Runtime) -> None:
    policy, reference = make_model(seed=1, scale=8.0), make_model(seed=2, scale=8.0)
    item = with_reference(reference, ITEMS[1:], 9, runtime)[0]
    swapped = dataclasses.replace(item, pairs=[(0, 1)])
    one, other = (dpo(DPOConfig(0.1))(policy, collate([each], 9)) for each in (item, swapped))
    assert one[1]["margin"].item() == pytest.approx(-other[1]["margin"].item(), rel=1e-5)
    z = one[1]["margin"].item()
    assert one[0].item() - other[0].item() == pytest.approx(-z, rel=1e-4)  # softplus(-z) - softplus(z)


def test_g_log_probabilities_are_sums_over_the_reply_alone(make_model: Make) -> None:
    model = make_model(seed=1, scale=8.0)
    batch = collate(ITEMS, 9)
    with torch.no_grad():
        found = reply_logprobs(model, batch)
        rows = [row for item in ITEMS for row in item.rows]
        lengths = [length for item in ITEMS for length in item.reply_tokens]
        for row, length, value in zip(rows, lengths, found.tolist(), strict=True):
            steps = model(torch.tensor([row]))[0, :-1].log_softmax(-1)
            told = steps[torch.arange(len(row) - 1), torch.tensor(row[1:])]
            assert value == pytest.approx(float(told[-length:].sum()), abs=1e-5)


def test_the_reference_may_be_read_once_and_dropped(make_model: Make, runtime: Runtime) -> None:
    """What is kept of it equals a pass of the frozen model beside each batch, whatever the batches were."""
    reference = make_model(seed=2, scale=8.0)
    for batch_prompts in (1, 2):
        known = with_reference(reference, ITEMS, 9, runtime, batch_prompts)
        batch = collate(known, 9)
        with torch.no_grad():
            assert batch.ref_logprobs is not None
            assert torch.allclose(batch.ref_logprobs, reply_logprobs(reference, batch), atol=1e-5)
        assert [len(item.ref_logprobs) for item in known] == [3, 2] and not ITEMS[0].ref_logprobs


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_it_learns_the_order(loss: str, make_model: Make, runtime: Runtime) -> None:
    policy = make_model(seed=1, scale=8.0)
    batch = collate(with_reference(policy, ITEMS, 9, runtime), 9)
    optimizer = build_optimizer(policy, OptimizerConfig(3e-3, weight_decay=0.0))
    objective = dpo(DPOConfig(0.2, loss))
    steps = fit(policy, optimizer, lambda _: [batch], objective, lambda _: 1.0, runtime, FitConfig(30))
    last = list(steps)[-1]
    assert last.metrics["accuracy"] == 1.0 and last.metrics["better_reward"] > last.metrics["worse_reward"]
    if loss == "ipo":  # it stops at a gap of 1 / (2 beta)
        assert last.metrics["margin"] == pytest.approx(0.2 * 1 / (2 * 0.2), abs=0.15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "has no effect with loss = 'ipo'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DPOConfig(**{"beta": 0.1, **settings})
