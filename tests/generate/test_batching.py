"""Continuous batching: what a request gets is a function of itself, whoever else runs, whatever was read before."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from jielong.errors import ModelError, UsageError
from jielong.generate.batching import Batcher
from jielong.generate.engine import Engine
from jielong.generate.requests import Delta, Request
from jielong.generate.sampling import Sampling
from jielong.generate.simple import generate
from jielong.model.logprobs import token_logprobs
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer

MAX_LENGTH = 32  # of the fixture
GREEDY = Sampling(0.0)


def make_request(prompt: Iterable[int], max_new_tokens: int = 8, **settings: Any) -> Request:
    return Request(tuple(prompt), max_new_tokens, **{"sampling": Sampling(), **settings})


def random_requests(num: int, seed: int, longest: int = 20) -> list[Request]:
    """Ragged prompts, many of which begin alike, and settings of every kind."""
    source = random.Random(seed)
    beginning = [source.randrange(270) for _ in range(longest)]
    kinds = [GREEDY, Sampling(), Sampling(0.7, top_k=9), Sampling(1.3, top_p=0.8), Sampling(1.0, min_p=0.05)]
    found = []
    for number in range(num):
        own = [source.randrange(270) for _ in range(source.randint(1, longest))]
        prompt = (beginning[: source.choice([0, 5, 16, 17])] + own)[: MAX_LENGTH - 4]
        found.append(make_request(prompt, source.randint(1, 14), sampling=kinds[number % 5], seed=number + 7))
    return found


def drain(batcher: Batcher) -> list[Delta]:
    deltas = []
    while not batcher.is_idle:
        deltas += batcher.step()
    return deltas


def collect(deltas: Iterable[Delta], number: int) -> tuple[list[int], str, str | None]:
    """(tokens, text, finish reason) of one request; its deltas end with the reason and nothing comes after it."""
    own = [delta for delta in deltas if delta.request == number]
    assert [delta.finish_reason for delta in own[:-1]] == [None] * (len(own) - 1)
    tokens = [token for delta in own for token in delta.tokens]
    return tokens, "".join(delta.text for delta in own), own[-1].finish_reason


def logprobs_of(deltas: Iterable[Delta], number: int) -> list[tuple[int, float | None]]:
    own = [delta for delta in deltas if delta.request == number]
    prompt = [entry for delta in own for entry in delta.prompt_logprobs or ()]
    return [(entry.id, entry.logprob) for entry in [*prompt, *(entry for delta in own for entry in delta.logprobs)]]


def answer_all(batcher: Batcher, requests: Iterable[Request]) -> list[tuple[list[int], str, str | None]]:
    numbers = [batcher.submit(request) for request in requests]
    deltas = drain(batcher)
    return [collect(deltas, number) for number in numbers]


def as_engine(engine: Engine, request: Request) -> list[int]:
    asked = request.sampling
    made = engine.generate(
        [request.prompt], max_new_tokens=request.max_new_tokens, temperature=asked.temperature, top_k=asked.top_k,
        top_p=asked.top_p, min_p=asked.min_p, seed=[request.seed],
    )  # fmt: skip
    return made[0].tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_token_exact_with_the_oracle(model: Transformer, tokenizer: Tokenizer, temperature: float) -> None:
    """Engine == slow reference without a cache, greedy and drawn, rows coming and going."""
    requests = [replace(request, sampling=Sampling(temperature)) for request in random_requests(35, seed=1)]
    found = answer_all(Batcher(model, tokenizer, max_rows=7, prefill_tokens=11), requests)
    for request, (tokens, text, _) in zip(requests, found, strict=True):
        generator = torch.Generator().manual_seed(request.seed)
        slow = generate(
            model, request.prompt, request.max_new_tokens, temperature=temperature, generator=generator,
            stop_ids=tokenizer.stop_ids,
        )  # fmt: skip
        assert tokens == slow
        assert text == tokenizer.decode(slow)


def test_equal_to_engine_generate(engine: Engine) -> None:
    requests = random_requests(25, seed=2)
    found = answer_all(Batcher(engine.model, engine.tokenizer), requests)
    assert [tokens for tokens, _, _ in found] == [as_engine(engine, request) for request in requests]


@pytest.mark.parametrize("seed", range(3))
def test_alone_equals_among_neighbours_that_come_and_go(model: Transformer, tokenizer: Tokenizer, seed: int) -> None:
    """0 to 15 others join, end and are cancelled at random steps: the same tokens, text and log-probabilities."""
    source = random.Random(seed)
    watched = [replace(request, logprobs=1) for request in random_requests(6, seed=seed)]
    others = iter(random_requests(200, seed=100 + seed))
    single = Batcher(model, tokenizer, cache_bytes=0)
    alone, logprobs = [], []
    for place, request in enumerate(watched):
        single.submit(request)
        made = drain(single)
        alone.append(collect(made, place))
        logprobs.append(logprobs_of(made, place))
    batcher = Batcher(model, tokenizer, max_rows=16, prefill_tokens=source.choice([3, 16, 64]))
    waiting, numbers, deltas, strangers = list(watched), [], [], []
    while waiting or not batcher.is_idle:
        if waiting and source.random() < 0.3:
            numbers.append(batcher.submit(waiting.pop(0)))
        if waiting and source.random() < 0.8:
            strangers.append(batcher.submit(next(others)))
        if strangers and source.random() < 0.2:
            batcher.cancel(source.choice(strangers))
        deltas += batcher.step()
        assert batcher.num_running <= 16
    assert [collect(deltas, number) for number in numbers] == alone
    assert [logprobs_of(deltas, number) for number in numbers] == logprobs  # to the bit


@pytest.mark.parametrize("prefill_tokens", [1, 7, 64, 1000])
def test_chunked_reading_equals_reading_at_once(model: Transformer, tokenizer: Tokenizer, prefill_tokens: int) -> None:
    requests = [replace(request, logprobs=3, prompt_logprobs=3) for request in random_requests(12, seed=3)]
    whole, chunked = Batcher(model, tokenizer, max_rows=1), Batcher(model, tokenizer, prefill_tokens=prefill_tokens)
    for batcher in (whole, chunked):
        for request in requests:
            batcher.submit(request)
    expected, found = drain(whole), drain(chunked)
    for number in range(len(requests)):
        assert collect(found, number) == collect(expected, number)
        assert logprobs_of(found, number) == logprobs_of(expected, number)  # to the bit


# The prefix cache.


@pytest.mark.parametrize("cache_bytes", [3 * 16 * 1024, 1 << 20], ids=["evicting", "roomy"])
@pytest.mark.parametrize("prefill_tokens", [5, 16, 256])
def test_prefix_cache_on_equals_off(
    model: Transformer, tokenizer: Tokenizer, cache_bytes: int, prefill_tokens: int
) -> None:
    """Partial hits, blocks dropped in mid-flight, requests cancelled while they read: tokens and log-probabilities."""
    requests = [replace(request, logprobs=2) for request in random_requests(24, seed=4)]
    off = Batcher(model, tokenizer, cache_bytes=0, max_rows=1)
    on = Batcher(model, tokenizer, cache_bytes=cache_bytes, max_rows=4, prefill_tokens=prefill_tokens)
    expected: list[Delta] = []
    for request in requests:
        off.submit(request)
    expected = drain(off)
    deltas, numbers = [], []
    for place, request in enumerate(requests):
        numbers.append(on.submit(request))
        doomed = on.submit(replace(request, seed=999))
        deltas += on.step()
        if place % 3 == 0:
            on.cancel(doomed)
        assert on.prefix.num_bytes <= cache_bytes
    deltas += drain(on)
    assert sum(delta.num_cached_tokens for delta in deltas if delta.finish_reason) > 60  # or the test shows nothing
    for place, number in enumerate(numbers):
        assert collect(deltas, number) == collect(expected, place)
        assert logprobs_of(deltas, number) == logprobs_of(expected, place)  # to the bit


def test_a_conversation_reads_only_what_is_new(model: Transformer, tokenizer: Tokenizer) -> None:
    batcher = Batcher(model, tokenizer)
    first = make_request(range(17), 8, stop_ids=frozenset())
    tokens, _, _ = answer_all(batcher, [first])[0]
    second = make_request([*first.prompt, *tokens, 9], 4, stop_ids=frozenset())  # 26 tokens
    number = batcher.submit(second)
    deltas = drain(batcher)
    assert {delta.num_cached_tokens for delta in deltas} == {24}  # whole blocks of what was held: 24 tokens
    assert collect(deltas, number) == answer_all(Batcher(model, tokenizer, cache_bytes=0), [second])[0]
    again = batcher.submit(second)
    deltas = drain(batcher)
    assert {delta.num_cached_tokens for delta in deltas if delta.request == again} == {25}  # all but the last: its row
    batcher.submit(make_request([7] * 9, 1))  # in the same row, so that blocks are left alone
    drain(batcher)
    last = batcher.submit(second)
    assert {delta.num_cached_tokens for delta in drain(batcher) if delta.request == last} == {24}
    assert batcher.stats()["cached_tokens"] == 24 + 25 + 24


def test_a_row_is_gone_on_with_where_it_lies(model: Transformer, tokenizer: Tokenizer) -> None:
    """Turn after turn nothing is copied and each place is read once: also the part of a block at the end."""
    batcher, slow = Batcher(model, tokenizer), Batcher(model, tokenizer, cache_bytes=0)
    said, written = [3, 1, 4], []
    batcher.rows.write = lambda *args: written.append(args)  # type: ignore[method-assign]
    for turn in range(5):
        request = make_request(said, 3, stop_ids=frozenset(), logprobs=1)
        number, plain = batcher.submit(request), slow.submit(request)
        deltas, expected = drain(batcher), drain(slow)
        assert collect(deltas, number) == collect(expected, plain)
        assert logprobs_of(deltas, number) == logprobs_of(expected, plain)  # to the bit
        assert {delta.num_cached_tokens for delta in deltas} == {max(len(said) - 2, 0) if turn else 0}
        said = [*said, *collect(deltas, number)[0], 5 + turn]
    assert not written
    number = batcher.submit(make_request(said[:-3] + [9, 9], 2))  # another end: its row is kept up to there
    assert drain(batcher)[-1].num_cached_tokens == len(said) - 3 and number


def test_a_row_is_remembered_for_its_partition_alone(model: Transformer, tokenizer: Tokenizer) -> None:
    batcher = Batcher(model, tokenizer)
    for partition, found in (("key a", 0), ("key b", 0), ("key b", 6), ("key a", 0), ("", 0)):
        batcher.submit(make_request(range(7), 1, cache_partition=partition))  # fewer than a block
        assert drain(batcher)[-1].num_cached_tokens == found


def test_partitions_share_nothing(model: Transformer, tokenizer: Tokenizer) -> None:
    batcher = Batcher(model, tokenizer)
    request = make_request(range(20), 2, cache_partition="key a")

    def num_cached(partition: str) -> int:
        batcher.submit(replace(request, cache_partition=partition))
        return drain(batcher)[-1].num_cached_tokens

    assert [num_cached(partition) for partition in ("key a", "key b", "key a", "", "key b")] == [0, 0, 16, 0, 16]


def test_prompt_logprobs_are_read_anew(model: Transformer, tokenizer: Tokenizer) -> None:
    batcher = Batcher(model, tokenizer)
    request = make_request(range(20), 2)
    answer_all(batcher, [request])
    number = batcher.submit(replace(request, prompt_logprobs=0))
    deltas = drain(batcher)
    assert deltas[0].num_cached_tokens == 0 and len(logprobs_of(deltas, number)) == 20


# Nothing of one request reaches another.


def test_memory_given_back_is_never_read(model: Transformer, tokenizer: Tokenizer) -> None:
    """Keys and values of every request that has ended are NaN; one of them read would make NaN of all that follows."""
    requests = random_requests(40, seed=5)
    batcher = Batcher(model, tokenizer, max_rows=5, prefill_tokens=9)
    batcher.rows.wiped_with = float("nan")
    numbers = []
    deltas = []
    for place, request in enumerate(requests):
        numbers.append(batcher.submit(request))
        if place % 7 == 3:
            batcher.cancel(numbers[place - 1])
        deltas += batcher.step()
    deltas += drain(batcher)
    assert bool(batcher.rows.buffer.isnan().any())  # it was at work
    assert batcher.prefix.num_blocks and not any(
        block.content is not None and bool(block.content.isnan().any()) for block in batcher.prefix._by_use
    )
    alone = Batcher(model, tokenizer, cache_bytes=0)
    for request, number in zip(requests, numbers, strict=True):
        tokens, text, reason = collect(deltas, number)
        assert reason in ("stop", "length", "cancelled")
        if reason != "cancelled":
            assert (tokens, text, reason) == answer_all(alone, [request])[0]


def test_a_row_that_breaks_ends_alone(model: Transformer, tokenizer: Tokenizer) -> None:
    """Token 5 makes NaN: whoever reads or says it ends with an error, the others never know, nothing of it is kept."""
    with torch.no_grad():
        model.embed = torch.nn.Embedding.from_pretrained(model.embed.weight.clone())
        model.unembedding = torch.nn.Linear(model.config.width, model.config.vocab_size, bias=False)
        model.unembedding.weight.copy_(model.embed.weight)
        model.embed.weight[5] = float("nan")
    model.config = replace(model.config, tie_embeddings=False)
    good = [request for request in random_requests(12, seed=6) if 5 not in request.prompt]
    expected = answer_all(Batcher(model, tokenizer), good)
    batcher = Batcher(model, tokenizer)
    broken = make_request([1, 2, 5] * 6, 4)
    numbers = [batcher.submit(request) for request in (good[0], broken, *good[1:], broken)]
    deltas = drain(batcher)
    found = [collect(deltas, number) for number in numbers]
    assert found[1][2] == found[-1][2] == "error"
    assert [found[0], *found[2:-1]] == expected
    assert answer_all(batcher, [make_request([1, 2, 5] * 6, 4)])[0][2] == "error"


def test_cancelled_within_one_step(model: Transformer, tokenizer: Tokenizer) -> None:
    """While it waits, reads and writes; its row is free at once, and nothing is told after the last delta."""
    batcher = Batcher(model, tokenizer, max_rows=2, prefill_tokens=4)
    endless = make_request([1, 2], 20, stop_ids=frozenset())
    writing, also = batcher.submit(endless), batcher.submit(replace(endless, seed=1))
    batcher.step()
    batcher.step()
    assert batcher.num_running == 2
    waiting = batcher.submit(endless)
    batcher.cancel(waiting)
    batcher.cancel(writing)
    assert (batcher.num_running, batcher.num_waiting) == (1, 0) and not batcher.is_idle
    reading = batcher.submit(make_request(range(20)))
    batcher.step()
    assert batcher.num_running == 2
    batcher.cancel(reading)
    batcher.cancel(reading)  # twice does nothing
    batcher.cancel(12345)
    deltas = batcher.step()
    assert [delta.request for delta in deltas if delta.finish_reason] == [reading]
    assert collect(deltas + drain(batcher), also)[2] == "length"
    assert batcher.stats()["cancelled"] == 3 and batcher.num_running == 0
    batcher.cancel(also)
    assert batcher.is_idle and batcher.step() == []


# Stops and text.


def chain(model: Transformer, tokens: list[int]) -> None:
    """The model says `tokens` over and over: each one's embedding asks for the next."""
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.out.weight.zero_()  # type: ignore[union-attr, operator]
            layer.ffn.down.weight.zero_()  # type: ignore[union-attr, operator]
        model.embed.weight.zero_()
        model.unembedding = torch.nn.Linear(model.config.width, model.config.vocab_size, bias=False)
        model.unembedding.weight.zero_()
        for place, token in enumerate(tokens):
            model.embed.weight[token, place] = 1.0
            model.unembedding.weight[tokens[(place + 1) % len(tokens)], place] = 10.0
    model.config = replace(model.config, tie_embeddings=False)


def test_stop_strings_and_characters_over_tokens(model: Transformer, tokenizer: Tokenizer) -> None:
    """Ids are bytes here, so that every character and every stop string comes in parts."""
    text = "aé😀stop界"
    chain(model, list(text.encode()))
    batcher = Batcher(model, tokenizer)
    prompt = [text.encode()[-1]]

    def run(num: int, **settings: Any) -> tuple[list[str], str | None, int]:
        number = batcher.submit(make_request(prompt, num, sampling=GREEDY, **settings))
        deltas = drain(batcher)
        tokens, _, reason = collect(deltas, number)
        return [delta.text for delta in deltas if delta.text], reason, len(tokens)

    assert run(14) == (["a", "é", "😀", "s", "t", "o", "p", "界"], "length", 14)
    assert run(28, stop=("stop",)) == (["a", "é", "😀"], "stop", 11)
    assert run(28, stop=("😀s", "zz")) == (["a", "é"], "stop", 8)
    assert run(11, stop=("stopp",)) == (["a", "é", "😀", "stop"], "length", 11)  # held back until it is settled
    assert run(9, stop=("stop",)) == (["a", "é", "😀", "st"], "length", 9)  # the end came first
    assert run(28, stop=("stop", "é")) == (["a"], "stop", 3)
    assert run(28, stop=("stop",), min_new_tokens=12)[2] == 25  # the first one passes
    assert run(5) == (["a", "é", "\N{REPLACEMENT CHARACTER}"], "length", 5)
    assert run(5, stop=("zz",))[0] == ["a", "é", "\N{REPLACEMENT CHARACTER}"]


def test_stop_ids(model: Transformer, tokenizer: Tokenizer) -> None:
    text = "abcdef"
    chain(model, list(text.encode()))
    batcher = Batcher(model, tokenizer)
    stop = frozenset([ord("d")])
    request = make_request(b"f", 20, sampling=GREEDY, stop_ids=stop, logprobs=0)
    number = batcher.submit(request)
    deltas = drain(batcher)
    assert collect(deltas, number) == (list(b"abcd"), "abc", "stop")  # told with its log-probability, not as text
    assert [token for token, _ in logprobs_of(deltas, number)] == list(b"abcd")
    later = answer_all(batcher, [replace(request, min_new_tokens=6)])[0]
    assert ord("d") not in later[0][:6] and len(later[0]) >= 7


# Log-probabilities.


@pytest.mark.parametrize("prefill_tokens", [4, 256])
def test_logprobs_are_the_models_own(model: Transformer, tokenizer: Tokenizer, prefill_tokens: int) -> None:
    """Of the prompt and the reply, whatever the sampling, equal to one forward over the whole."""
    batcher = Batcher(model, tokenizer, prefill_tokens=prefill_tokens)
    sampling = Sampling(1.7, top_k=30, presence_penalty=1.0, logit_bias=((3, 2.0),))
    for request in random_requests(8, seed=8):
        asked = replace(request, sampling=sampling, logprobs=4, prompt_logprobs=4)
        number = batcher.submit(asked)
        deltas = drain(batcher)
        tokens = [*request.prompt, *collect(deltas, number)[0]]
        with torch.no_grad():
            whole = torch.tensor([tokens])
            full = token_logprobs(model(whole), whole)[0]
            everything = model(whole)[0].log_softmax(dim=-1)
        found = logprobs_of(deltas, number)
        assert [token for token, _ in found] == tokens and found[0][1] is None
        assert [value for _, value in found[1:]] == pytest.approx(full[1:].tolist(), abs=1e-4)
        entries = [entry for delta in deltas for entry in (*(delta.prompt_logprobs or ()), *delta.logprobs)]
        assert entries[0].top == ()
        for place, entry in enumerate(entries[1:]):
            best = everything[place].topk(4)
            assert [token for token, _ in entry.top] == best.indices.tolist()
            assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            if entry.id == entry.top[0][0]:
                assert entry.logprob == entry.top[0][1]  # to the bit: lm-eval compares them


def test_a_prompt_can_be_scored_alone_up_to_the_end_of_the_context(model: Transformer, tokenizer: Tokenizer) -> None:
    batcher = Batcher(model, tokenizer)
    prompt = [int(token) for token in torch.randint(0, 270, (MAX_LENGTH,), generator=torch.Generator().manual_seed(1))]
    number = batcher.submit(make_request(prompt, 0, prompt_logprobs=0))
    deltas = drain(batcher)
    assert len(deltas) == 1 and deltas[0].finish_reason == "length" and deltas[0].tokens == ()
    assert len(logprobs_of(deltas, number)) == MAX_LENGTH
    assert collect(drain_one(batcher, make_request(prompt[:-1], 5, stop_ids=frozenset())), 1)[0] != []
    with pytest.raises(UsageError, match="32 tokens.*context is 32.*31 tokens or fewer"):
        batcher.submit(make_request(prompt, 1))


def drain_one(batcher: Batcher, request: Request) -> list[Delta]:
    batcher.submit(request)
    return drain(batcher)


# The house.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ()}, "prompt has no tokens"),
        ({"prompt": (275,)}, "the prompt holds the id 275.*0 to 274"),
        ({"prompt": (-1,)}, "the prompt holds the id -1"),
        ({"prompt": tuple([1] * 33)}, "33 tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808"),
        ({"stop": ("",)}, "stop string is ''"),
        ({"stop": ("a" * 2000,)}, "stop string"),
        ({"stop_ids": frozenset([275])}, "stop_ids holds the id 275"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": 276}, "logprobs is 276.*0 to 275"),
        ({"prompt_logprobs": 2.5}, "prompt_logprobs is 2.5"),
        ({"sampling": Sampling(logit_bias=((275, 1.0),))}, "logit_bias holds the id 275"),
    ],
)
def test_bad_requests(model: Transformer, tokenizer: Tokenizer, change: dict[str, Any], message: str) -> None:
    batcher = Batcher(model, tokenizer)
    for call in (batcher.check, batcher.submit):
        with pytest.raises(UsageError, match=message):
            call(replace(make_request([1, 2]), **change))
    assert batcher.is_idle


def test_bad_batchers(model: Transformer, tokenizer: Tokenizer) -> None:
    for name, value in (("max_rows", 0), ("cache_bytes", -1), ("prefill_tokens", 0), ("max_rows", True)):
        with pytest.raises(UsageError, match=f"{name} is {value}"):
            Batcher(model, tokenizer, **{name: value})
    with pytest.raises(ModelError, match="1 encoder layers"):
        Batcher(Transformer(replace(model.config, encoder_layers=1)), tokenizer)
    with pytest.raises(ModelError, match="263 tokens"):
        Batcher(model, Tokenizer.from_merges([]))


def test_counts(model: Transformer, tokenizer: Tokenizer) -> None:
    batcher = Batcher(model, tokenizer, max_rows=2)
    requests = [make_request([1, 2, 3], 3, seed=seed, stop_ids=frozenset()) for seed in range(3)]
    for request in requests:
        batcher.submit(request)
    assert (batcher.num_waiting, batcher.num_running, batcher.is_idle) == (3, 0, False)
    deltas = batcher.step()
    assert (batcher.num_waiting, batcher.num_running) == (1, 2) and len(deltas) == 2
    drain(batcher)
    counts = batcher.stats()
    assert {name: counts[name] for name in ("finished", "new_tokens", "prompt_tokens", "running")} == {
        "finished": 3.0, "new_tokens": 9.0, "prompt_tokens": 9.0, "running": 0.0,
    }  # fmt: skip
