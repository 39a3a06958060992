from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.transformer import Transformer

SEGMENTS = torch.ones(3, 24, dtype=torch.int32)
SEGMENTS[0, 20:] = 0  # padding at the right
SEGMENTS[1, :5] = 0  # and at the left


@torch.no_grad()
def test_masked_lm_logits_and_next_sentence_by_formula(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("bert")
    types = (torch.arange(24) > 11).long().expand(3, 24)
    hidden = model.hidden(tokens, SEGMENTS, token_types=types)
    inner = F.layer_norm(
        F.gelu(hidden @ model.transform.weight.T + model.transform.bias),
        (32,), model.transform_norm.weight, model.transform_norm.bias, 1e-12,
    )  # fmt: skip
    logits = model(tokens, SEGMENTS, token_types=types)
    torch.testing.assert_close(logits, inner @ model.embed.weight.T + model.logit_bias, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.unembed(hidden[:, 3]), logits[:, 3])  # at picked positions alone
    first = torch.stack((hidden[0, 0], hidden[1, 5], hidden[2, 0]))
    pooled = torch.tanh(first @ model.pooler.weight.T + model.pooler.bias)
    expected = pooled @ model.next_sentence.weight.T + model.next_sentence.bias
    torch.testing.assert_close(model.next_sentence_logits(hidden, SEGMENTS), expected)
    assert expected.shape == (3, 2)


@torch.no_grad()
def test_classes_of_an_encoder_read_the_first_token(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("bert", head="classes", num_labels=3, logit_bias=False)
    hidden = model.hidden(tokens, SEGMENTS)
    pooled = torch.tanh(model.pooler(torch.stack((hidden[0, 0], hidden[1, 5], hidden[2, 0]))))
    assert model.classifier.bias is not None and model(tokens, SEGMENTS).shape == (3, 3)
    torch.testing.assert_close(model(tokens, SEGMENTS), pooled @ model.classifier.weight.T + model.classifier.bias)
    torch.testing.assert_close(model(tokens)[2], model(tokens, SEGMENTS)[2], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_classes_of_an_encoder_may_read_the_mean_of_all_states(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("bert", head="classes", num_labels=3, logit_bias=False, pooling="mean")
    hidden = model.hidden(tokens, SEGMENTS)
    means = torch.stack((hidden[0, :20].mean(dim=0), hidden[1, 5:].mean(dim=0), hidden[2].mean(dim=0)))
    expected = means @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(tokens, SEGMENTS), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens)[2], expected[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"head": "masked_lm"}, {"head": "span"}, {"family": "gpt1", "head": "classes"}])
def test_a_mean_is_for_labels_and_choices_of_an_encoder(build_family, changes: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    head, family = changes["head"], changes.get("family", "bert")
    with pytest.raises(ModelError, match="pooling is 'mean', which the heads 'classes' and 'choice' of an encoder"):
        build_family(family, head=head, logit_bias=False, pooling="mean")


@torch.no_grad()
def test_classes_and_choice_of_a_decoder_read_the_last_real_token(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("gpt1", head="classes", num_labels=4)
    hidden = model.hidden(tokens, SEGMENTS)
    last = torch.stack((hidden[0, 19], hidden[1, 23], hidden[2, 23]))
    assert model.classifier.bias is None
    torch.testing.assert_close(model(tokens, SEGMENTS), last @ model.classifier.weight.T)
    torch.testing.assert_close(model(tokens), model.hidden(tokens)[:, -1] @ model.classifier.weight.T)
    # What GPT-1 adds as an auxiliary loss while it fine-tunes: the logits of the tied matrix.
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embed.weight.T)
    choice: Transformer = build_family("gpt1", head="choice")
    last = choice.hidden(tokens, SEGMENTS)[[0, 1, 2], [19, 23, 23]]
    torch.testing.assert_close(choice(tokens, SEGMENTS), (last @ choice.classifier.weight.T)[:, 0])


@torch.no_grad()
def test_what_a_row_says_does_not_depend_on_its_padding(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    for name, pooling in (("bert", "cls"), ("bert", "mean"), ("gpt2", "cls"), ("qwen3", "cls")):
        model: Transformer = build_family(name, head="classes", num_labels=2, logit_bias=False, pooling=pooling)
        alone = model(tokens[:1, :7])
        for left in (0, 4, 9):
            padded = torch.randint(61, (1, 16), generator=torch.Generator().manual_seed(left))
            padded[:, left : left + 7] = tokens[:1, :7]
            segments = torch.zeros(1, 16, dtype=torch.int32)
            segments[:, left : left + 7] = 1
            torch.testing.assert_close(model(padded, segments), alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logit_scale_and_bias(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("two-stacks-rotary", attention_softcap=0.0)
    hidden = model.hidden(tokens, memory=model.encode(tokens))
    expected = 2.0 * hidden @ model.embed.weight.T + model.logit_bias
    torch.testing.assert_close(model.unembed(hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "head", "names"),
    [
        ("bert", "masked_lm", ["logit_bias", "transform.weight", "transform.bias", "transform_norm.weight",
                               "transform_norm.bias", "next_sentence.weight", "next_sentence.bias", "pooler.weight",
                               "pooler.bias"]),
        ("encoder-pre", "classes", ["classifier.weight", "classifier.bias", "pooler.weight", "pooler.bias"]),
        ("encoder-pre", "choice", ["classifier.weight", "classifier.bias", "pooler.weight", "pooler.bias"]),
        ("encoder-pre", "scalar", ["score.weight"]),
        ("bert", "span", ["classifier.weight", "classifier.bias"]),
        ("jie", "span", ["classifier.weight"]),
        ("mixtral", "lm", ["unembedding.weight"]),
        ("mixtral", "classes", ["classifier.weight"]),
        ("marian", "lm", ["logit_bias"]),
        ("marian", "scalar", ["score.weight"]),
        ("jie", "lm", []),
    ],
)  # fmt: skip
def test_parameters_of_each_head(build_family, name: str, head: str, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    state = build_family(name, head=head).state_dict()
    trunk = ("embed.", "positions.", "token_types.", "embedding_norm.", "encoder", "layers.", "norm.")
    assert sorted(key for key in state if not key.startswith(trunk)) == sorted(names)
