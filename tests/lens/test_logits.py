"""The logit lens: its last row is the model, its figures agree with logits written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.lens.logits import layer_logits, logit_lens
from jielong.model.hf import load_model

from ..model.conftest import FAMILIES
from ..model.hf_cases import make_theirs
from .conftest import BuildFamily

DECODERS = [name for name, fields in FAMILIES.items() if not fields.get("encoder_layers")]


@pytest.mark.parametrize("name", DECODERS)
def test_the_last_row_is_the_model(name: str, build_family: BuildFamily, tokens: Tensor) -> None:
    model = build_family(name)
    rows = list(layer_logits(model, tokens))
    assert len(rows) == model.config.decoder_layers + 1
    assert all(row.shape == (20, 61) and row.dtype == torch.float32 for row in rows)
    assert torch.equal(rows[-1], model(tokens[None])[0])
    assert (rows[-1] - rows[-2]).abs().max() > 0.1


@pytest.mark.parametrize("case", ["llama", "qwen3", "gpt2", "gpt1"])
def test_rows_are_the_hidden_states_of_transformers(case: str, tokens: Tensor, tmp_path: Path) -> None:
    """Their hidden_states are the residual stream; the last is given after the final norm."""
    theirs = make_theirs(case)
    theirs.save_pretrained(tmp_path)
    made = theirs(tokens[None], output_hidden_states=True)
    norm = {"gpt2": lambda x: theirs.transformer.ln_f(x), "gpt1": lambda x: x}.get(case, lambda x: theirs.model.norm(x))
    states = [*map(norm, made.hidden_states[:-1]), made.hidden_states[-1]]
    rows = list(layer_logits(load_model(tmp_path).eval(), tokens))
    assert len(rows) == len(states)
    for row, state in zip(rows, states, strict=True):
        assert (row - theirs.lm_head(state)[0]).abs().max() <= 2e-5


def test_figures_agree_with_the_logits(build_family: BuildFamily, tokens: Tensor) -> None:
    model = build_family("jie")
    lens = logit_lens(model, tokens, num_top=3)
    assert lens.top_ids.shape == (3, 20, 3) and lens.ranks.shape == lens.probabilities.shape == (3, 20)
    for row, logits in enumerate(layer_logits(model, tokens)):
        for position in range(20):
            expected = logits[position].softmax(dim=-1)
            order = expected.argsort(descending=True)
            assert lens.top_ids[row, position].tolist() == order[:3].tolist()
            torch.testing.assert_close(lens.top_probabilities[row, position], expected[order[:3]])
            entropy = -(expected * expected.log()).sum()
            torch.testing.assert_close(lens.entropies_nats[row, position], entropy, rtol=1e-5, atol=1e-6)
            if position + 1 < 20:  # what stands at position + 1 was told here
                follows = int(tokens[position + 1])
                torch.testing.assert_close(lens.probabilities[row, position + 1], expected[follows])
                assert lens.ranks[row, position + 1] == order.tolist().index(follows) + 1
    assert (lens.probabilities[:, 0] == 0).all() and (lens.ranks[:, 0] == 0).all()


def test_one_token_and_more_candidates_than_the_vocabulary(build_family: BuildFamily, tokens: Tensor) -> None:
    lens = logit_lens(build_family("jie"), tokens[:1], num_top=100)
    assert lens.top_ids.shape == (3, 1, 61)


@pytest.mark.parametrize("name", ["marian", "two-stacks-rotary"])
def test_a_translators_last_row_is_what_it_writes_next(name: str, build_family: BuildFamily, tokens: Tensor) -> None:
    model = build_family(name)
    rows = list(layer_logits(model, tokens, tokens[:7]))
    assert len(rows) == model.config.decoder_layers + 1
    with torch.no_grad():
        assert torch.equal(rows[-1], model(tokens[None], source=tokens[None, :7])[0])
    assert (rows[-1] - list(layer_logits(model, tokens, tokens[7:]))[-1]).abs().max() > 0.01, "it reads its source"
    with pytest.raises(ModelError, match="needs its source"):
        logit_lens(model, tokens)


def test_models_that_do_not_continue_text_are_refused(build_family: BuildFamily, tokens: Tensor) -> None:
    with pytest.raises(ModelError, match=r"needs a decoder .* decoder_layers = 0"):
        logit_lens(build_family("bert"), tokens)
    with pytest.raises(ModelError, match="no encoder"):
        logit_lens(build_family("jie"), tokens, source=tokens)


def test_training_mode_and_broken_weights_are_refused(build_family: BuildFamily, tokens: Tensor) -> None:
    with pytest.raises(ModelError, match=r"call model.eval\(\)"):
        logit_lens(build_family("jie").train(), tokens)
    broken = build_family("jie")
    with torch.no_grad():
        broken.embed.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        logit_lens(broken, tokens)
