"""Translations asked for one by one: the text of `Translator`, whoever else runs, and an end within a step."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from jielong.errors import ModelError, UsageError
from jielong.generate.beam import BeamConfig
from jielong.generate.requests import Delta, Request
from jielong.generate.sampling import Sampling
from jielong.generate.translating import TranslationBatcher
from jielong.generate.translator import Translator, source_ids
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer

from .conftest import MAX_LENGTH, build_model

TEXTS = ["the cat sat", "你好", "on the mat 😀", "the mat"]
RUNTIME = Runtime(torch.device("cpu"), torch.float32)
GREEDY = Sampling(temperature=0)


def build_translator(tokenizer: Tokenizer, seed: int = 0) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_length=MAX_LENGTH, width=32, encoder_layers=2, decoder_layers=2,
        num_heads=4, num_kv_heads=4, head_size=8, ffn_width=48, positions="sinusoidal", norm="layer", norm_at="post",
        activation="relu", ffn_bias=True, embedding_scale=4.0,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.embed.weight *= 3.0
    return model.eval()


@pytest.fixture(scope="module")
def translator(tokenizer: Tokenizer) -> Translator:
    return Translator(build_translator(tokenizer), tokenizer, RUNTIME)


@pytest.fixture
def batcher(translator: Translator, tokenizer: Tokenizer) -> TranslationBatcher:
    assert isinstance(translator.model, Transformer)
    return TranslationBatcher(translator.model, tokenizer, RUNTIME, max_rows=3, prefill_tokens=64)


def asked(tokenizer: Tokenizer, text: str, beam: int | None = None, **more: object) -> Request:
    source = tuple(source_ids(tokenizer, tokenizer.encode(text)))
    config = None if beam is None else BeamConfig(beam)
    return replace(Request(source, 1000, GREEDY, beam=config), **more)  # type: ignore[arg-type]


def drain(batcher: TranslationBatcher) -> dict[int, list[Delta]]:
    found: dict[int, list[Delta]] = {}
    while not batcher.is_idle:
        for delta in batcher.step():
            found.setdefault(delta.request, []).append(delta)
    return found


def text_of(deltas: list[Delta]) -> str:
    assert all(delta.finish_reason is None for delta in deltas[:-1]) and deltas[-1].finish_reason is not None
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("beam", [None, 1, 4])
def test_the_text_is_the_translators(
    batcher: TranslationBatcher, translator: Translator, tokenizer: Tokenizer, beam: int | None
) -> None:
    numbers = [batcher.submit(asked(tokenizer, text, beam)) for text in TEXTS]
    found = drain(batcher)
    expected = [one[0] for one in translator.translate(TEXTS, BeamConfig(beam or 1))]
    assert [text_of(found[number]) for number in numbers] == [one.text for one in expected]
    assert any(one.text for one in expected)
    for number, one in zip(numbers, expected, strict=True):
        assert [token for delta in found[number] for token in delta.tokens] == one.tokens
        assert found[number][-1].finish_reason == ("stop" if one.tokens[-1] in tokenizer.stop_ids else "length")
        assert len(found[number]) == (1 if beam is not None else len(one.tokens))


def test_neighbours_change_nothing(batcher: TranslationBatcher, tokenizer: Tokenizer) -> None:
    drawn = asked(tokenizer, TEXTS[0], sampling=Sampling(temperature=1), seed=5, logprobs=2)
    number = batcher.submit(drawn)
    alone = drain(batcher)[number]
    for text in TEXTS:
        batcher.submit(asked(tokenizer, text, 3))
    again = batcher.submit(drawn)
    batcher.submit(asked(tokenizer, TEXTS[1], sampling=Sampling(temperature=1), seed=6))
    assert drain(batcher)[again] == [replace(delta, request=again) for delta in alone]
    assert len(alone) > 1


@pytest.mark.parametrize("seed", range(3))
def test_alone_equals_among_others_that_come_and_go(translator: Translator, tokenizer: Tokenizer, seed: int) -> None:
    """Searches and draws of many widths join, end and are cancelled at random steps: tokens, text, odds to the bit."""
    source = random.Random(seed)
    assert isinstance(translator.model, Transformer)
    texts = [" ".join(source.choices(TEXTS, k=source.randint(1, 2))) for _ in range(10)]
    kinds: list[dict[str, object]] = [
        {"beam": 4}, {"beam": 4, "max_new_tokens": 5}, {"beam": 1}, {"beam": 3},
        {"sampling": Sampling(temperature=1), "logprobs": 1},
    ]  # fmt: skip
    watched = [asked(tokenizer, text, **kinds[n % 5], seed=n) for n, text in enumerate(texts)]  # type: ignore[arg-type]
    alone = []
    for request in watched:
        single = TranslationBatcher(translator.model, tokenizer, RUNTIME, max_rows=1, prefill_tokens=64)
        single.submit(request)
        alone.append(drain(single)[0])
    batcher = TranslationBatcher(translator.model, tokenizer, RUNTIME, max_rows=5, prefill_tokens=40)
    waiting, numbers, strangers = list(watched), [], []
    found: dict[int, list[Delta]] = {}
    while waiting or not batcher.is_idle:
        if waiting and source.random() < 0.4:
            numbers.append(batcher.submit(waiting.pop(0)))
        if waiting and source.random() < 0.4:
            strangers.append(batcher.submit(asked(tokenizer, source.choice(TEXTS), source.choice([None, 1, 3, 4]))))
        if strangers and source.random() < 0.2:
            batcher.cancel(source.choice(strangers))
        for delta in batcher.step():
            found.setdefault(delta.request, []).append(delta)
        assert batcher.num_running <= 5
    assert [[replace(one, request=0) for one in found[number]] for number in numbers] == alone


def test_those_that_run_together_share_a_forward(
    batcher: TranslationBatcher, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    hidden = Transformer.hidden

    def counted(model: Transformer, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(tokens))
        return hidden(model, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Transformer, "hidden", counted)
    for text in TEXTS[:3]:
        batcher.submit(asked(tokenizer, text, 4, max_new_tokens=6, stop_ids=frozenset()))
    drain(batcher)
    assert sizes == [12] * 6


def test_odds_of_what_was_searched_are_the_models(batcher: TranslationBatcher, tokenizer: Tokenizer) -> None:
    """A beam's tokens are scored by one reading of the whole: their sum is the hypothesis' own log-probability."""
    searched = batcher.submit(asked(tokenizer, TEXTS[0], 4, logprobs=3))
    greedy = batcher.submit(asked(tokenizer, TEXTS[0], 1, logprobs=3))
    drawn = batcher.submit(asked(tokenizer, TEXTS[0], logprobs=3))
    found = drain(batcher)
    best = Translator(batcher.model, tokenizer, RUNTIME).translate([TEXTS[0]], BeamConfig(4))[0][0]
    told = [one for delta in found[searched] for one in delta.logprobs]
    assert sum(one.logprob or 0.0 for one in told) == pytest.approx(best.logprob, abs=1e-3)
    assert [one.id for one in told] == best.tokens and all(len(one.top) == 3 for one in told)
    one_by_one = [one for delta in found[drawn] for one in delta.logprobs]
    for whole, stepped in zip(found[greedy][0].logprobs, one_by_one, strict=True):
        assert whole.id == stepped.id and whole.logprob == pytest.approx(stepped.logprob, abs=1e-4)


def test_the_nth_best(batcher: TranslationBatcher, translator: Translator, tokenizer: Tokenizer) -> None:
    numbers = [
        batcher.submit(asked(tokenizer, TEXTS[0], beam=4) if rank == 1 else
                       replace(asked(tokenizer, TEXTS[0]), beam=BeamConfig(4, num_best=rank)))
        for rank in (1, 2, 3)
    ]  # fmt: skip
    found = drain(batcher)
    [expected] = translator.translate([TEXTS[0]], BeamConfig(4, num_best=3))
    assert [text_of(found[number]) for number in numbers] == [one.text for one in expected]


@pytest.mark.parametrize("beam", [None, 4])
def test_stops_and_limits(batcher: TranslationBatcher, tokenizer: Tokenizer, beam: int | None) -> None:
    endless = asked(tokenizer, TEXTS[0], beam, max_new_tokens=20, stop_ids=frozenset())
    number = batcher.submit(endless)
    whole = text_of(drain(batcher)[number])
    assert len(whole) > 3
    short = batcher.submit(replace(endless, max_new_tokens=2))
    stopped = batcher.submit(replace(endless, stop=(whole[2],)))
    nothing = batcher.submit(replace(endless, max_new_tokens=0))
    found = drain(batcher)
    assert sum(len(delta.tokens) for delta in found[short]) == 2 and found[short][-1].finish_reason == "length"
    assert text_of(found[stopped]) == whole[: whole.index(whole[2])] and found[stopped][-1].finish_reason == "stop"
    assert text_of(found[nothing]) == "" and found[nothing][-1].finish_reason == "length"


@pytest.mark.parametrize("beam", [None, 4])
def test_a_request_ends_within_a_step(batcher: TranslationBatcher, tokenizer: Tokenizer, beam: int | None) -> None:
    numbers = [batcher.submit(asked(tokenizer, text, beam)) for text in TEXTS]  # one more than may run
    batcher.step()
    batcher.step()
    assert batcher.stats()["running"] == 3 and batcher.stats()["waiting"] == 1
    batcher.cancel(numbers[0])
    batcher.cancel(numbers[3])
    batcher.cancel(numbers[0])
    ended = {delta.request: delta.finish_reason for delta in batcher.step() if delta.finish_reason == "cancelled"}
    assert ended == {numbers[0]: "cancelled", numbers[3]: "cancelled"}
    assert batcher.stats()["running"] == 2 and batcher.stats()["waiting"] == 0
    assert set(drain(batcher)) == {numbers[1], numbers[2]}


def test_penalties_are_of_what_is_written(batcher: TranslationBatcher, tokenizer: Tokenizer) -> None:
    """A word of the source that stands in the target, too, is not thereby said twice."""
    prompt = asked(tokenizer, TEXTS[0]).prompt
    held = asked(tokenizer, TEXTS[0], max_new_tokens=8, sampling=Sampling(0.0, repetition_penalty=9.0))
    number = batcher.submit(held)
    first = drain(batcher)[number][0].tokens
    again = batcher.submit(replace(held, prompt=(*prompt[:-1], *first, prompt[-1])))
    [progress] = batcher._waiting
    assert progress.penalties is not None and not progress.penalties.seen.any()
    told = [token for delta in drain(batcher)[again] for token in delta.tokens]
    assert progress.penalties.seen.nonzero()[:, 0].tolist() == sorted(set(told))


@pytest.mark.parametrize("beam", [None, 2])
def test_scores_that_are_no_numbers_are_one_requests_error(tokenizer: Tokenizer, beam: int | None) -> None:
    model = build_translator(tokenizer)
    with torch.no_grad():
        model.embed.weight[tokenizer.encode("cat")[0]] = torch.nan
    batcher = TranslationBatcher(model, tokenizer, RUNTIME, max_rows=2, prefill_tokens=64)
    number = batcher.submit(asked(tokenizer, "cat", beam))
    assert drain(batcher)[number][-1].finish_reason == "error"


def test_what_is_refused(batcher: TranslationBatcher, tokenizer: Tokenizer) -> None:
    good = asked(tokenizer, TEXTS[0], 4)
    for wrong, said in [
        (replace(good, prompt=()), "no tokens"),
        (replace(good, prompt=(5,) * (MAX_LENGTH + 1)), "reads at most 32"),
        (replace(good, prompt_logprobs=0), "odds of the source"),
        (replace(good, min_new_tokens=2), "beam must be 1"),
        (replace(good, sampling=Sampling(presence_penalty=1.0)), "beam must be 1"),
        (replace(good, prompt=(10**6,)), "the id 1000000"),
    ]:
        with pytest.raises(UsageError, match=said):
            batcher.submit(wrong)
    assert batcher.is_idle
    with pytest.raises(ModelError, match="a decoder only"):
        TranslationBatcher(build_model(tokenizer), tokenizer, RUNTIME, max_rows=2, prefill_tokens=8)
