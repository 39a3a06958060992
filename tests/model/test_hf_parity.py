"""Every family against `transformers` on tiny random weights: logits, caches, padding on both sides, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jielong.generate.cache import KeyValueCache
from jielong.model.hf import load_model
from jielong.model.transformer import Transformer

from .hf_cases import BERTS, CHOOSERS, DECODERS, SCORERS, TRANSLATORS, make_theirs, padded

TOLERANCE = 1e-5
SIDES = ("none", "right", "left")


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Transformer, Any]:
    """(ours read from the folder that theirs wrote, theirs)."""
    theirs = make_theirs(request.param)
    theirs.save_pretrained(tmp_path)
    return load_model(tmp_path).eval(), theirs


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.abs().max() > 0.1  # or the tolerance would mean nothing
    assert (found - expected).abs().max().item() <= TOLERANCE


def their_positions(segments: Tensor) -> Tensor:
    """position_ids as generation by `transformers` counts them from an attention mask."""
    return (segments.cumsum(dim=1) - 1).clamp(min=0)


def gradients(theirs: Any, folder: Path) -> dict[str, Tensor]:
    """Their gradients under our names: written as if they were weights, and read by us."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, buffer in theirs.named_buffers():
            if name == "final_logits_bias":
                buffer.zero_()
    theirs.save_pretrained(folder)
    return dict(load_model(folder).named_parameters())


def same_gradients(ours: Transformer, theirs: Any, folder: Path) -> None:
    expected = gradients(theirs, folder / "gradients")
    for name, parameter in ours.named_parameters():
        if name == "logit_bias" and parameter.grad is not None and not expected[name].any():
            continue  # Marian's is a constant there
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = expected[name].abs().max().item()
        assert (found - expected[name]).abs().max().item() <= 1e-4 * scale + 1e-9, name


@pytest.mark.parametrize("pair", DECODERS, indirect=True)
@pytest.mark.parametrize("side", SIDES)
def test_decoder_logits(pair: tuple[Transformer, Any], side: str) -> None:
    ours, theirs = pair
    tokens, segments = padded(side)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=segments, position_ids=their_positions(segments)).logits
        found = ours(tokens, segments)
        if side == "none":
            close(ours(tokens), expected)
    close(found[segments > 0], expected[segments > 0])


@pytest.mark.parametrize("pair", DECODERS, indirect=True)
def test_decoder_with_a_cache(pair: tuple[Transformer, Any]) -> None:
    """Prefill of right-padded prompts, then steps of one token, each against their logits of the whole row."""
    ours, theirs = pair
    tokens, segments = padded("none")
    lengths = torch.tensor([14, 7, 3])  # read at once
    with torch.no_grad():
        expected = theirs(tokens).logits
        cache = KeyValueCache(ours.config, len(tokens), tokens.shape[1], torch.float32, torch.device("cpu"))
        prefill = ours(tokens[:, :14], cache=cache)
        for row, length in enumerate(lengths.tolist()):
            close(prefill[row, :length], expected[row, :length])
        cache.advance(lengths)
        for _ in range(6):
            here = cache.lengths
            step = ours(tokens.gather(1, here[:, None]), cache=cache)[:, 0]
            close(step, expected[torch.arange(len(tokens)), here])
            cache.advance(torch.ones_like(lengths))


@pytest.mark.parametrize("pair", [case for case in DECODERS if case != "gpt1"], indirect=True)  # theirs has no cache
def test_both_caches_agree(pair: tuple[Transformer, Any]) -> None:
    ours, theirs = pair
    tokens, _ = padded("none")
    with torch.no_grad():
        past = theirs(tokens[:, :12], use_cache=True).past_key_values
        cache = KeyValueCache(ours.config, len(tokens), tokens.shape[1], torch.float32, torch.device("cpu"))
        ours(tokens[:, :12], cache=cache)
        cache.advance(torch.full((len(tokens),), 12))
        for index in range(12, 16):
            answer = theirs(tokens[:, index : index + 1], past_key_values=past, use_cache=True)
            past = answer.past_key_values
            close(ours(tokens[:, index : index + 1], cache=cache), answer.logits)
            cache.advance(torch.ones(len(tokens), dtype=torch.int64))


@pytest.mark.parametrize("pair", DECODERS, indirect=True)
@pytest.mark.parametrize("side", ["none", "right"])
def test_decoder_gradients(pair: tuple[Transformer, Any], side: str, tmp_path: Path) -> None:
    ours, theirs = pair
    tokens, segments = padded(side)
    upstream = torch.randn(*tokens.shape, ours.config.vocab_size, generator=torch.Generator().manual_seed(3))
    upstream *= segments[:, :, None]
    theirs(tokens, attention_mask=segments).logits.backward(upstream)
    (ours(tokens) if side == "none" else ours(tokens, segments)).backward(upstream)
    same_gradients(ours, theirs, tmp_path)


@pytest.mark.parametrize("pair", SCORERS, indirect=True)
@pytest.mark.parametrize("side", ["none", "right"])
def test_scores_and_classes(pair: tuple[Transformer, Any], side: str, tmp_path: Path) -> None:
    """Theirs reads the last token that is not padding, by its id; ours by the segments."""
    ours, theirs = pair
    tokens, segments = padded(side)
    expected = theirs(tokens.masked_fill(segments == 0, theirs.config.pad_token_id), attention_mask=segments).logits
    found = ours(tokens, segments)
    if ours.config.head == "scalar":
        assert found.shape == tokens.shape
        found = found[torch.arange(len(tokens)), segments.sum(dim=1) - 1][:, None]
    close(found, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    expected.backward(upstream)
    found.backward(upstream)
    same_gradients(ours, theirs, tmp_path)


@pytest.mark.parametrize("pair", CHOOSERS, indirect=True)
def test_choice_of_a_decoder(pair: tuple[Transformer, Any]) -> None:
    """Their head adds one number to every candidate; the difference of any two is the same with ours."""
    ours, theirs = pair
    tokens, segments = padded("right")
    last = segments.sum(dim=1) - 1
    with torch.no_grad():
        answer = theirs(tokens[None], mc_token_ids=last[None])  # padding at the right of a causal model needs no mask
        found = ours(tokens, segments)
        bias = theirs.multiple_choice_head.summary.bias
        logits = torch.nn.functional.linear(ours.hidden(tokens, segments), ours.unembed_weight)
    close(found + bias, answer.mc_logits[0])
    close(logits[segments > 0], answer.logits[0][segments > 0])


@pytest.mark.parametrize("pair", BERTS, indirect=True)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.filterwarnings("ignore:.*new weights were drawn")
def test_bert(pair: tuple[Transformer, Any], side: str, tmp_path: Path) -> None:
    ours, theirs = pair
    tokens, segments = padded(side)
    types = (torch.arange(tokens.shape[1]) > 15).long().expand(tokens.shape).contiguous()
    given = {"attention_mask": segments, "token_type_ids": types, "position_ids": their_positions(segments)}
    first = (segments > 0).int().argmax(dim=1)
    kind = type(theirs).__name__
    if side == "left" and kind not in ("BertForMaskedLM", "BertForPreTraining", "BertForQuestionAnswering"):
        pytest.skip("their pooler reads the first position even where it is padding")
    if kind == "BertForMultipleChoice":
        answer = theirs(tokens[None], **{name: value[None] for name, value in given.items()})
        expected, found = answer.logits[0], ours(tokens, segments, token_types=types)
    elif kind == "BertForSequenceClassification":
        expected, found = theirs(tokens, **given).logits, ours(tokens, segments, token_types=types)
    elif kind == "BertForQuestionAnswering":
        answer = theirs(tokens, **given)
        expected = torch.stack((answer.start_logits, answer.end_logits), dim=2)[segments > 0]
        found = ours(tokens, segments, token_types=types)[segments > 0]
    elif kind == "BertModel":
        expected, found = (
            theirs(tokens, **given).last_hidden_state[segments > 0],
            ours.hidden(tokens, segments, token_types=types)[segments > 0],
        )
    else:
        answer = theirs(tokens, **given)
        hidden = ours.hidden(tokens, segments, token_types=types)
        expected = answer.logits if kind == "BertForMaskedLM" else answer.prediction_logits
        expected, found = expected[segments > 0], ours.unembed(hidden, segments)[segments > 0]
        if kind == "BertForPreTraining" and side != "left":
            assert not first.any()
            follows = ours.next_sentence_logits(hidden, segments)
            close(follows, answer.seq_relationship_logits)
            expected = torch.cat((expected.flatten(), answer.seq_relationship_logits.flatten()))
            found = torch.cat((found.flatten(), follows.flatten()))
    close(found, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    expected.backward(upstream)
    found.backward(upstream)
    if kind not in ("BertForMaskedLM", "BertModel"):  # the others lack parts of ours
        same_gradients(ours, theirs, tmp_path)


@pytest.mark.parametrize("pair", TRANSLATORS, indirect=True)
@pytest.mark.parametrize("side", ["none", "right"])
def test_translator(pair: tuple[Transformer, Any], side: str, tmp_path: Path) -> None:
    ours, theirs = pair
    source, source_segments = padded(side, length=15)
    tokens, segments = padded("none", length=11)
    tokens = tokens.flip(1)
    expected = theirs(source, attention_mask=source_segments, decoder_input_ids=tokens).logits
    found = ours(tokens, segments, source=source, source_segments=source_segments)
    close(found, expected)
    if side == "none":
        close(ours(tokens, source=source), expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    expected.backward(upstream)
    found.backward(upstream)
    same_gradients(ours, theirs, tmp_path)


@pytest.mark.parametrize("pair", TRANSLATORS, indirect=True)
def test_translator_padded_at_the_left(pair: tuple[Transformer, Any]) -> None:
    """Theirs counts positions from the row's begin, so the reference is theirs on each row alone, unpadded."""
    ours, theirs = pair
    source, source_segments = padded("left", length=15)
    tokens, segments = padded("left", length=11)
    with torch.no_grad():
        found = ours(tokens, segments, source=source, source_segments=source_segments)
        for row in range(len(tokens)):
            one, other = source_segments[row] > 0, segments[row] > 0
            alone = theirs(source[row][one][None], decoder_input_ids=tokens[row][other][None]).logits[0]
            close(found[row][other], alone)


@pytest.mark.parametrize("pair", TRANSLATORS, indirect=True)
def test_translator_with_a_cache(pair: tuple[Transformer, Any]) -> None:
    ours, theirs = pair
    source, source_segments = padded("right", length=15)
    tokens, _ = padded("none", length=11)
    with torch.no_grad():
        expected = theirs(source, attention_mask=source_segments, decoder_input_ids=tokens).logits
        memory = ours.encode(source, source_segments)
        close(memory[source_segments > 0], theirs.model.encoder(source, source_segments)[0][source_segments > 0])
        cache = KeyValueCache(ours.config, len(tokens), 11, torch.float32, torch.device("cpu"))
        first = ours.hidden(tokens[:, :4], cache=cache, memory=memory, memory_segments=source_segments)
        close(ours.unembed(first), expected[:, :4])
        cache.advance(torch.full((3,), 4))
        for index in range(4, 11):
            step = ours.hidden(tokens[:, index : index + 1], cache=cache, memory_segments=source_segments)
            close(ours.unembed(step)[:, 0], expected[:, index])
            cache.advance(torch.ones(3, dtype=torch.int64))
