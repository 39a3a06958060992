"""The check of an export finds what it must find: another token, another id, another log-probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from jielong.errors import ModelError
from jielong.export.probe import Answer, Probe
from jielong.export.verify import TEXTS, compare, in_words, make_probe
from jielong.generate.engine import Engine
from jielong.tokenizer.chat import render

Build = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine(build: Build) -> Engine:
    return build("llama")


@pytest.fixture
def probe(engine: Engine) -> Probe:
    return make_probe(engine, has_chat=True, num_tokens=8)


@pytest.fixture
def answer(engine: Engine, probe: Probe) -> Answer:
    """What the engine itself says."""
    made = engine.generate(probe.prompts, max_new_tokens=8, temperature=0.0, stop_ids=())
    ids = [engine.tokenizer.encode(text) for text in TEXTS]
    assert probe.conversation is not None
    chat = render(probe.conversation, engine.tokenizer, reply=True)[0]
    return Answer([each.tokens for each in made], [each.logprobs for each in made], ids, chat)


def test_equal_answers(engine: Engine, probe: Probe, answer: Answer) -> None:
    figures = compare(engine, probe, answer, 0.0, ())
    assert figures == {
        "prompts": 8, "tokens": 64, "equal_tokens": 64, "max_logprob_difference_nats": 0.0, "texts": len(TEXTS),
        "chat": True,
    }  # fmt: skip
    words = "8 prompts, 64 tokens, all equal to the engine's, log-probabilities within 0 nats; 10 texts tokenized alike"
    assert in_words(figures) == f"{words}, a chat rendered alike"


def test_another_token_is_an_error_where_it_is_clearly_worse(engine: Engine, probe: Probe, answer: Answer) -> None:
    prompt = [*probe.prompts[2], *answer.tokens[2][:3]]
    (_, best, likeliest), (_, second, less_likely) = engine.top_tokens(prompt, 2)
    assert best == answer.tokens[2][3]
    answer.tokens[2][3] = second
    message = rf"after prompt 2 and 3 equal tokens came \[{second}\], from the engine \[{best}\], which it holds"
    with pytest.raises(ModelError, match=message):
        compare(engine, probe, answer, 1e-4, ())
    figures = compare(engine, probe, answer, 5.0, ())
    assert (figures["equal_tokens"], figures["replies_parted"]) == (64 - 5, 1)
    assert 0 < figures["max_gap_nats"] < 5
    assert "59 of 64 tokens equal to the engine's (1 reply parts where its own token is likelier" in in_words(figures)


def test_a_reply_that_ends_early_is_an_error(engine: Engine, probe: Probe, answer: Answer) -> None:
    answer.tokens[0].pop()
    assert engine.tokenizer.decode_bytes(answer.tokens[0][-1:])
    with pytest.raises(ModelError, match="likelier by inf nats"):
        compare(engine, probe, answer, 1.0, ())


def test_other_log_probabilities_are_an_error(engine: Engine, probe: Probe, answer: Answer) -> None:
    answer.logprobs[1][0] -= 0.2
    with pytest.raises(ModelError, match="log-probabilities differ by 0.2 nats"):
        compare(engine, probe, answer, 0.1, ())
    answer.logprobs[1].clear()  # not known
    assert compare(engine, probe, answer, 0.1, ())["max_logprob_difference_nats"] == 0


def test_other_ids_are_an_error(engine: Engine, probe: Probe, answer: Answer) -> None:
    assert answer.chat is not None
    with pytest.raises(ModelError, match="a conversation became the tokens"):
        compare(engine, probe, replace(answer, chat=answer.chat[1:]), 0.1, ())
    answer.ids[3] = [1, 2]
    with pytest.raises(ModelError, match=r"'naïve café.*became the tokens \[1, 2\]"):
        compare(engine, probe, answer, 0.1, ())


def test_a_short_context_cuts_the_prompts(build: Build) -> None:
    probe = make_probe(build("llama", max_length=8), has_chat=True)
    assert {len(prompt) for prompt in probe.prompts} == {4}
