"""Beam search against every sentence there is, and against transformers on our model in Marian's shape."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jielong.errors import ModelError, UsageError
from jielong.generate.beam import BeamConfig, Hypothesis, beam_search, topk_by_stripes
from jielong.generate.decoders import begin_decoding
from jielong.model.config import ModelConfig
from jielong.model.hf import save_model
from jielong.model.recurrent import Recurrent, RecurrentConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime

START, END = 1, 2
RUNTIME = Runtime(torch.device("cpu"), torch.float32)
SOURCES = torch.tensor([[3, 4, 5, 3], [5, 3, 0, 0], [4, 4, 3, 0]])
SEGMENTS = (SOURCES > 0).int()


def transformer(vocab_size: int, seed: int, sharp: float = 1.0) -> Transformer:
    config = ModelConfig(
        vocab_size=vocab_size, max_length=32, width=16, encoder_layers=2, decoder_layers=2, num_heads=2,
        num_kv_heads=2, head_size=8, ffn_width=32, positions="sinusoidal", norm="layer", norm_at="post",
        activation="relu", ffn_bias=True, embedding_scale=4.0,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.embed.weight *= sharp
    return model.eval()


def recurrent(vocab_size: int, seed: int) -> Recurrent:
    model = Recurrent(RecurrentConfig(vocab_size, 32, 8, 2))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def search(
    model: Transformer | Recurrent, config: BeamConfig, limits: list[int], rows: slice = slice(None)
) -> list[list[Hypothesis]]:
    source, segments = SOURCES[rows], SEGMENTS[rows]
    decoder = begin_decoding(model, source, segments, config.beam, max(limits), RUNTIME)
    return beam_search(decoder, START, [END], limits, config)


@torch.inference_mode()
def logprob(model: Transformer | Recurrent, row: int, tokens: tuple[int, ...]) -> float:
    """The log-probability of a whole target, read at once, without cache or beam."""
    length = int(SEGMENTS[row].sum())
    source, segments = SOURCES[row : row + 1, :length], SEGMENTS[row : row + 1, :length]
    target = torch.tensor([[START, *tokens]])
    memory = model.encode(source, segments)
    logits = model.unembed(model.hidden_of(target, torch.ones_like(target).int(), memory, segments))
    told = logits.log_softmax(dim=-1)[0, :-1].gather(1, target[0, 1:, None])
    return float(told.sum())


def everything(vocab_size: int, limit: int) -> list[tuple[int, ...]]:
    """Every target that ends, or is of the limit's length."""
    others = [token for token in range(vocab_size) if token != END]
    found: list[tuple[int, ...]] = []
    for length in range(1, limit + 1):
        for start in itertools.product(others, repeat=length - 1):
            found += [(*start, token) for token in range(vocab_size) if token == END or length == limit]
    return found


@pytest.mark.parametrize("penalty", ["gnmt", "length"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("make", [transformer, recurrent])
def test_a_beam_as_wide_as_all_is_exhaustive_search(make, alpha: float, penalty: str) -> None:
    vocab_size, limit = 6, 3
    model = make(vocab_size, seed=int(10 * alpha) + 1)
    every = everything(vocab_size, limit)
    config = BeamConfig(64, alpha, penalty, "bound", num_best=20)
    for row, found in enumerate(search(model, config, [limit] * 3)):
        ranked = sorted(
            ((logprob(model, row, tokens) / float(config.divisor(len(tokens))), tokens) for tokens in every),
            reverse=True,
        )
        assert [tuple(one.tokens) for one in found] == [tokens for _, tokens in ranked[:20]]
        assert [one.score for one in found] == pytest.approx([score for score, _ in ranked[:20]], abs=1e-5)


@pytest.mark.parametrize("make", [transformer, recurrent])
def test_scores_are_those_of_reading_the_sentence(make) -> None:
    model = make(12, seed=4)
    for row, found in enumerate(search(model, BeamConfig(4, num_best=4), [9, 5, 7])):
        assert len(found) == 4
        for one in found:
            assert one.logprob == pytest.approx(logprob(model, row, tuple(one.tokens)), abs=1e-4)
            assert one.score == pytest.approx(one.logprob / ((5 + len(one.tokens)) / 6) ** 0.6, abs=1e-5)
            assert one.tokens[-1] == END or len(one.tokens) == [9, 5, 7][row]
            assert END not in one.tokens[:-1]
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize("stop", ["current", "bound", "full"])
@pytest.mark.parametrize("seed", range(4))
def test_a_sentence_does_not_see_its_neighbours(seed: int, stop: str) -> None:
    model, config, limits = transformer(9, seed, sharp=2.0), BeamConfig(3, stop=stop, num_best=3), [14, 6, 10]
    together = search(model, config, limits)
    for row, found in enumerate(together):
        (alone,) = search(model, config, [limits[row]], slice(row, row + 1))
        assert [one.tokens for one in found] == [one.tokens for one in alone]
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=1e-5)


def test_one_beam_takes_the_likeliest_token_each_time() -> None:
    model = transformer(12, seed=4)
    for row, (found,) in enumerate(search(model, BeamConfig(1), [8] * 3)):
        tokens: list[int] = []
        while len(tokens) < 8 and END not in tokens:
            tokens.append(max(range(12), key=lambda token: logprob(model, row, (*tokens, token))))
        assert found.tokens == tokens


# early_stopping of theirs -> our stop
STOPS: list[tuple[bool | str, str]] = [(False, "current"), ("never", "bound"), (True, "full")]


@pytest.mark.parametrize(("early", "stop"), STOPS)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_equals_transformers(early: bool | str, stop: str, alpha: float, tmp_path: Path) -> None:
    from transformers import MarianMTModel

    for seed in range(3):
        model = transformer(30, seed, sharp=1.5)
        save_model(
            model, tmp_path / str(seed), token_ids={"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0}
        )
        theirs = MarianMTModel.from_pretrained(tmp_path / str(seed)).eval()
        assert theirs.config.model_type == "marian"
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 9, (6,), generator=draw)
        source = torch.randint(3, 30, (6, 8), generator=draw) * (torch.arange(8) < lengths[:, None])
        segments = (torch.arange(8) < lengths[:, None]).int()
        made = theirs.generate(
            input_ids=source, attention_mask=segments.long(), num_beams=4, num_return_sequences=4, do_sample=False,
            length_penalty=alpha, early_stopping=early, max_new_tokens=12, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        decoder = begin_decoding(model, source, segments, 4, 12, RUNTIME)
        config = BeamConfig(4, alpha, "length", stop, num_best=4)
        ours = [one for found in beam_search(decoder, START, [END], [12] * 6, config) for one in found]
        assert [one.score for one in ours] == pytest.approx(made.sequences_scores.tolist(), abs=1e-5)
        assert [one.tokens for one in ours] == [_cut(row) for row in made.sequences[:, 1:]]


def _cut(row: Tensor) -> list[int]:
    """Up to the end of the sentence, which theirs fill up with padding."""
    tokens = row.tolist()
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def test_settings_out_of_range() -> None:
    for wrong, message in (
        ({"beam": 0}, "beam is 0"),
        ({"num_best": 5}, "num_best is 5; legal are 1 to the beam, 4"),
        ({"length_penalty": math.inf}, "length_penalty is inf"),
        ({"penalty": "gnm"}, "did you mean 'gnmt'"),
        ({"stop": "never"}, "legal are current, bound, full"),
    ):
        with pytest.raises(UsageError, match=message):
            BeamConfig(**wrong)


def test_broken_weights_are_told() -> None:
    model = transformer(12, seed=1)
    with torch.no_grad():
        model.layers[0].ffn.up.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        search(model, BeamConfig(2), [5] * 3)


@pytest.mark.parametrize("num_columns", [7, 400, 1000, 1033])
@pytest.mark.parametrize("num", [1, 6])
def test_topk_by_stripes_is_topk(num_columns: int, num: int) -> None:
    scores = torch.randn(9, num_columns, generator=torch.Generator().manual_seed(num_columns))
    scores[1, -3:] += 9  # in what is left over behind the stripes
    scores[2, ::16] += 9
    best, ids = topk_by_stripes(scores, num)
    assert torch.equal(best, scores.topk(num, dim=-1).values) and torch.equal(scores.gather(1, ids), best)
    assert all(len(set(row)) == num for row in ids.tolist())


def test_topk_by_stripes_among_equals_and_without_numbers() -> None:
    scores = torch.zeros(2, 1000)
    scores[1, 321] = math.nan
    best, ids = topk_by_stripes(scores, 5)
    assert best[0].eq(0).all() and len(set(ids[0].tolist())) == 5
    assert best[1, 0].isnan() and ids[1, 0] == 321
