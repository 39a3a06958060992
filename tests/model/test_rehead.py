"""Another head on a trained trunk: what is kept, what is new, and that old tokens mean what they meant."""

from __future__ import annotations

import pytest
import torch

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.rehead import NewHead, rehead
from jielong.model.transformer import Transformer

TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("family", ["gpt1", "jie"])
def test_a_decoder_goes_on_as_the_same_language_model(build_family, family: str) -> None:  # type: ignore[no-untyped-def]
    old = build_family(family)
    new = rehead(old, NewHead("classes", 3, vocab_size=64), generator())
    assert (new.config.vocab_size, new.config.head, new.config.num_labels) == (64, "classes", 3)
    torch.testing.assert_close(new.hidden(TOKENS), old.hidden(TOKENS))
    torch.testing.assert_close(new.logits(new.hidden(TOKENS))[..., :61], old(TOKENS))
    rows = new.embed.weight[61:]
    spread = old.config.init_std or old.config.width**-0.5
    assert 0.5 * spread < rows.std().item() < 1.5 * spread
    assert new(TOKENS).shape == (2, 3)


def test_an_encoder_keeps_its_pooler(build_family) -> None:  # type: ignore[no-untyped-def]
    old = build_family("bert")
    new = rehead(old, NewHead("classes", 2, vocab_size=61), generator())
    assert new.pooler.weight.equal(old.pooler.weight) and not new.classifier.bias.any()
    types = (torch.arange(9) > 4).long().expand(2, 9)
    torch.testing.assert_close(new.hidden(TOKENS, token_types=types), old.hidden(TOKENS, token_types=types))
    span = rehead(old, NewHead("span", 1, vocab_size=61), generator())
    assert span(TOKENS).shape == (2, 9, 2) and "pooler.weight" not in span.state_dict()


def test_a_mean_needs_no_pooler(build_family) -> None:  # type: ignore[no-untyped-def]
    old = build_family("bert")
    mean = rehead(old, NewHead("classes", 2, vocab_size=61, pooling="mean"), generator())
    assert mean.config.pooling == "mean" and "pooler.weight" not in mean.state_dict()
    expected = mean.classifier(old.hidden(TOKENS).mean(dim=1))
    torch.testing.assert_close(mean(TOKENS), expected)
    back = rehead(mean, NewHead("classes", 2, vocab_size=61), generator())
    assert back.config.pooling == "cls" and "pooler.weight" in back.state_dict()


def test_from_scratch_is_the_same_net_with_other_weights(build_family) -> None:  # type: ignore[no-untyped-def]
    old = build_family("gpt1")
    kept, drawn, again = (
        rehead(old, NewHead("choice", 1, 64), generator(), keep=keep) for keep in (True, False, False)
    )
    assert kept.config == drawn.config
    assert {name: p.shape for name, p in kept.named_parameters()} == {
        name: p.shape for name, p in drawn.named_parameters()
    }
    assert kept.classifier.weight.equal(drawn.classifier.weight)  # drawn alike: only the trunk differs
    assert not drawn.embed.weight[:61].equal(old.embed.weight)
    assert all(one.equal(other) for one, other in zip(drawn.parameters(), again.parameters(), strict=True))


def test_a_second_task_gets_a_new_classifier(build_family) -> None:  # type: ignore[no-untyped-def]
    first = rehead(build_family("gpt1"), NewHead("classes", 3, 61), generator())
    second = rehead(first, NewHead("classes", 2, 61), torch.Generator().manual_seed(9))
    assert second.classifier.weight.shape == (2, 32)
    torch.testing.assert_close(second.hidden(TOKENS), first.hidden(TOKENS))


def test_dropout_is_put_in_place_of_the_old(build_family) -> None:  # type: ignore[no-untyped-def]
    old = build_family("gpt1", dropout=0.3, attention_dropout=0.2)
    assert rehead(old, NewHead("choice", 1, 61, dropout=0.1), generator()).config.attention_dropout == 0.1
    assert rehead(old, NewHead("choice", 1, 61), generator()).config.dropout == 0.3


def test_tokens_are_never_taken_away() -> None:
    config = ModelConfig(
        vocab_size=30, max_length=8, width=8, decoder_layers=1, num_heads=1, num_kv_heads=1, head_size=8, ffn_width=8
    )
    with pytest.raises(ModelError, match="vocab_size is 29; the model has 30 tokens"):
        rehead(Transformer(config), NewHead("choice", 1, 29), generator())
