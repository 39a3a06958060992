from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import ModelError, UsageError
from jielong.generate.engine import Completion, Engine
from jielong.generate.simple import generate
from jielong.model.logprobs import token_logprobs
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, derive_seed
from jielong.tokenizer.tokenizer import Tokenizer

MAX_LENGTH = 32


def random_prompts(num: int, seed: int, longest: int = 20) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(270) for _ in range(source.randint(1, longest))] for _ in range(num)]


def oracle(model: Transformer, prompt: list[int], seed: int, **options: Any) -> list[int]:
    return generate(model, prompt, generator=torch.Generator().manual_seed(seed), **options)


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("batch_rows", [1, 7, 64])
def test_token_exact_with_the_oracle(engine: Engine, temperature: float, batch_rows: int) -> None:
    """Ragged prompts, rows that stop at different steps, some at the end of the context: the same tokens."""
    prompts = random_prompts(64, seed=int(10 * temperature))
    stops = tuple(range(0, 275, 9))  # about every ninth token ends a row, so that batches are compacted again and again
    made = engine.generate(
        prompts, max_new_tokens=14, temperature=temperature, seed=5, stop_ids=stops, batch_rows=batch_rows
    )
    for row, (prompt, completion) in enumerate(zip(prompts, made, strict=True)):
        seed = derive_seed(5, row)
        slow = oracle(engine.model, prompt, seed, max_new_tokens=14, temperature=temperature, stop_ids=stops)
        assert completion.tokens == slow, row
        assert completion.prompt == prompt
        assert completion.finish_reason == ("stop" if slow[-1] in stops else "length")
        assert completion.text == engine.tokenizer.decode(slow)
        assert len(completion.logprobs) == len(slow)


def test_the_oracle_test_has_variety(engine: Engine) -> None:
    """Guards the test above: its rows do end at many lengths and for both reasons, and the text is not one token."""
    stops = tuple(range(0, 275, 9))
    made = engine.generate(random_prompts(64, seed=10), max_new_tokens=14, seed=5, stop_ids=stops)
    assert len({len(completion.tokens) for completion in made}) > 8
    assert {completion.finish_reason for completion in made} == {"stop", "length"}
    assert len({token for completion in made for token in completion.tokens}) > 100


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_alone_equals_in_a_batch(shared_engine: Engine, data: st.DataObject) -> None:
    """A row's tokens are a function of its prompt and seed: other neighbours, another place, another batch size."""
    prompts = data.draw(
        st.lists(st.lists(st.integers(0, 274), min_size=1, max_size=25), min_size=1, max_size=9), label="prompts"
    )
    seeds = data.draw(st.lists(st.integers(0, 2**40), min_size=len(prompts), max_size=len(prompts)), label="seeds")
    order = data.draw(st.permutations(range(len(prompts))), label="order")
    batch_rows = data.draw(st.integers(1, 9), label="batch_rows")
    temperature, top_k, top_p = data.draw(st.sampled_from([(0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 40, 0.9)]))
    shuffled = shared_engine.generate(
        [prompts[row] for row in order],
        seed=[seeds[row] for row in order],
        max_new_tokens=6,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_rows=batch_rows,
    )
    for row, together in zip(order, shuffled, strict=True):
        alone = shared_engine.generate(
            [prompts[row]], seed=[seeds[row]], max_new_tokens=6, temperature=temperature, top_k=top_k, top_p=top_p
        )[0]
        assert together.tokens == alone.tokens
        assert together.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_full_forward(engine: Engine, temperature: float) -> None:
    made = engine.generate(random_prompts(20, seed=4), max_new_tokens=12, temperature=temperature, seed=3)
    for completion in made:
        tokens = torch.tensor([completion.prompt + completion.tokens])
        with torch.no_grad():
            full = token_logprobs(engine.model(tokens), tokens, temperature)[0, len(completion.prompt) :]
        torch.testing.assert_close(torch.tensor(completion.logprobs), full, rtol=0, atol=1e-4)


def test_greedy_logprobs_are_the_models_own(engine: Engine) -> None:
    completion = engine.generate([[9, 8]], max_new_tokens=5, temperature=0.0)[0]
    tokens = torch.tensor([completion.prompt + completion.tokens])
    with torch.no_grad():
        full = token_logprobs(engine.model(tokens), tokens)[0, 2:]
    torch.testing.assert_close(torch.tensor(completion.logprobs), full, rtol=0, atol=1e-4)


def test_top_k_logprobs_are_of_the_restricted_distribution(engine: Engine) -> None:
    made = engine.generate(random_prompts(10, seed=2), max_new_tokens=6, top_k=1, seed=1)
    assert tokens_of(made) == tokens_of(engine.generate(random_prompts(10, seed=2), max_new_tokens=6, temperature=0.0))
    assert all(value == pytest.approx(0, abs=1e-6) for completion in made for value in completion.logprobs)


def test_stop_token_first_last_and_in_the_prompt(engine: Engine) -> None:
    prompt = [3, 4, 5]
    free = engine.generate([prompt], max_new_tokens=8, seed=1, stop_ids=())[0]
    assert len(free.tokens) == 8 and free.finish_reason == "length"
    assert len(set(free.tokens)) == 8
    for position in (0, 3, 7):
        made = engine.generate([prompt], max_new_tokens=8, seed=1, stop_ids=[free.tokens[position]])[0]
        assert made.tokens == free.tokens[: position + 1]
        assert made.finish_reason == "stop"
    assert engine.generate([prompt], max_new_tokens=8, seed=1, stop_ids=prompt)[0] == free


def test_default_stops_end_documents_and_turns(engine: Engine, tokenizer: Tokenizer) -> None:
    prompts = [[token] for token in range(270)]
    made = engine.generate(prompts, max_new_tokens=25, temperature=2.0)
    ended = [completion for completion in made if completion.finish_reason == "stop"]
    assert {completion.tokens[-1] for completion in ended} == {tokenizer.eos_id, tokenizer.end_id}
    assert not any({*completion.tokens[:-1]} & {*tokenizer.stop_ids} for completion in made)
    assert all("<|" not in completion.text for completion in made)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_and_one_new_token(engine: Engine, temperature: float) -> None:
    prompts = [[1, 2], [3], [4] * 31]
    none = engine.generate(prompts, max_new_tokens=0, temperature=temperature)
    assert [(c.prompt, c.tokens, c.text, c.logprobs, c.finish_reason) for c in none] == [
        (prompt, [], "", [], "length") for prompt in prompts
    ]
    one = engine.generate(prompts, max_new_tokens=1, temperature=temperature)
    more = engine.generate(prompts, max_new_tokens=4, temperature=temperature, stop_ids=())
    assert tokens_of(one) == [tokens[:1] for tokens in tokens_of(more)]
    assert list(engine.stream([1, 2], max_new_tokens=0)) == []


def test_the_edge_of_the_context(engine: Engine) -> None:
    prompts = [[5] * (MAX_LENGTH - 1), [6] * (MAX_LENGTH - 2), [7] * 3]
    made = engine.generate(prompts, max_new_tokens=100, temperature=0.0, stop_ids=())
    assert [len(completion.tokens) for completion in made] == [1, 2, MAX_LENGTH - 3]
    assert {completion.finish_reason for completion in made} == {"length"}
    assert tokens_of(made) == [
        oracle(engine.model, prompt, 0, max_new_tokens=100, temperature=0.0) for prompt in prompts
    ]
    for length in (MAX_LENGTH, MAX_LENGTH + 5):
        with pytest.raises(UsageError, match=rf"{length} tokens.*context is 32.*31 tokens or fewer"):
            engine.generate([[1], [5] * length], max_new_tokens=1)


def test_seeds(engine: Engine) -> None:
    prompts = [[1, 2, 3]] * 6
    made = tokens_of(engine.generate(prompts, max_new_tokens=8, seed=1))
    assert made == tokens_of(engine.generate(prompts, max_new_tokens=8, seed=1))
    assert len({tuple(tokens) for tokens in made}) == 6  # equal prompts of one call draw differently
    other = tokens_of(engine.generate(prompts, max_new_tokens=8, seed=2))
    assert not {tuple(tokens) for tokens in made} & {tuple(tokens) for tokens in other}
    longer = tokens_of(engine.generate(prompts, max_new_tokens=12, seed=1, stop_ids=()))
    assert [tokens[: len(short)] for tokens, short in zip(longer, made, strict=True)] == made
    state = torch.get_rng_state()
    engine.generate(prompts, max_new_tokens=3)
    assert torch.equal(state, torch.get_rng_state())  # torch's own generator is neither read nor moved


def test_weights_are_read_at_every_call(engine: Engine, tokenizer: Tokenizer) -> None:
    prompts = random_prompts(8, seed=6)
    before = tokens_of(engine.generate(prompts, max_new_tokens=8))
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    after = tokens_of(engine.generate(prompts, max_new_tokens=8))
    assert after != before
    assert after == tokens_of(Engine(engine.model, tokenizer).generate(prompts, max_new_tokens=8))


def test_a_callers_open_autocast_keeps_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """autocast keeps cast weights while it is open; neither stale nor gradient-free ones may pass through a call."""
    monkeypatch.setattr("jielong.generate.packed._SMALL_PARAMETERS", 0)
    half = Engine(engine.model, engine.tokenizer, Runtime(torch.device("cpu"), torch.bfloat16))
    prompts = random_prompts(4, seed=6)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        token_logprobs(engine.model(tokens), tokens).sum().backward()
        with torch.no_grad():
            engine.model.embed.weight.mul_(-1.0)
        inside = tokens_of(half.generate(prompts, max_new_tokens=6))
        engine.model.zero_grad()
        token_logprobs(engine.model(tokens), tokens).sum().backward()
    assert inside == tokens_of(half.generate(prompts, max_new_tokens=6))
    assert all(parameter.grad is not None for parameter in engine.model.parameters())


def test_generating_between_training_steps_leaves_training_alone(engine: Engine) -> None:
    """A forward with gradients works after a call, and its gradients are those without the call."""
    tokens = torch.randint(0, 270, (2, 9), generator=torch.Generator().manual_seed(0))
    grads = []
    for sample_first in (False, True):
        engine.model.zero_grad()
        if sample_first:
            engine.generate([[1, 2]], max_new_tokens=4)
        token_logprobs(engine.model(tokens), tokens).sum().backward()
        grads.append([parameter.grad for parameter in engine.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True) if a is not None and b is not None)
    assert all(grad is not None for grad in grads[1])


def test_bfloat16_decodes_near_float32(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        for parameter in engine.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.3)  # ordinary weights: rounding then stays small
    runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    assert Engine(engine.model, engine.tokenizer, runtime).runtime.dtype == torch.float32  # small model on a CPU
    monkeypatch.setattr("jielong.generate.packed._SMALL_PARAMETERS", 0)
    half = Engine(engine.model, engine.tokenizer, runtime)
    assert half.runtime == runtime
    gaps = []
    for completion in half.generate(random_prompts(20, seed=8), max_new_tokens=10):
        tokens = torch.tensor([completion.prompt + completion.tokens])
        with torch.no_grad():
            full = token_logprobs(engine.model(tokens), tokens)[0, len(completion.prompt) :]
        gaps.append((torch.tensor(completion.logprobs) - full).abs().mean())
    assert 0 < torch.stack(gaps).mean() < 1e-2


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_packed_weights_decode_near_the_model(engine: Engine, weights: str) -> None:
    with torch.no_grad():
        for parameter in engine.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.3)
    packed = Engine(engine.model, engine.tokenizer, weights=weights)
    prompts = random_prompts(20, seed=8)
    made = packed.generate(prompts, max_new_tokens=10)
    if weights == "float32":
        assert tokens_of(made) == tokens_of(engine.generate(prompts, max_new_tokens=10))
    gaps = []
    for completion in made:
        tokens = torch.tensor([completion.prompt + completion.tokens])
        with torch.no_grad():
            full = token_logprobs(engine.model(tokens), tokens)[0, len(completion.prompt) :]
        gaps.append((torch.tensor(completion.logprobs) - full).abs().mean())
    assert torch.stack(gaps).mean() < {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.02, "int4": 0.2}[weights]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_nan_are_an_error(engine: Engine, temperature: float) -> None:
    with torch.no_grad():
        engine.model.norm.weight[3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        engine.generate([[1, 2], [3]], max_new_tokens=4, temperature=temperature)
    with pytest.raises(ModelError, match="not finite"):
        list(engine.stream([1, 2], max_new_tokens=4, temperature=temperature))
    with pytest.raises(ModelError, match="not finite"):
        engine.top_tokens([1, 2], 3)


def test_text_prompts_begin_a_document(engine: Engine, tokenizer: Tokenizer) -> None:
    text, chinese = engine.generate(["the cat <|end|>", "你好"], max_new_tokens=4)
    assert text.prompt == [tokenizer.bos_id, *tokenizer.encode("the cat <|end|>")]
    assert tokenizer.end_id not in text.prompt
    assert chinese.prompt == [tokenizer.bos_id, *tokenizer.encode("你好")]
    assert engine.generate([""], max_new_tokens=1)[0].prompt == [tokenizer.bos_id]
    assert engine.generate([], max_new_tokens=4) == []


def favour(model: Transformer, tokens: list[int]) -> None:
    """Make the model say `tokens` over and over, by a chain: each one's embedding asks for the next."""
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.out.weight.zero_()  # type: ignore[union-attr, operator]
            layer.ffn.down.weight.zero_()  # type: ignore[union-attr, operator]
        model.embed.weight.zero_()
        for place, token in enumerate(tokens):
            model.embed.weight[token, place] = 1.0
        model.unembedding = torch.nn.Linear(model.config.width, model.config.vocab_size, bias=False)
        model.unembedding.weight.zero_()
        for place in range(len(tokens)):
            model.unembedding.weight[tokens[(place + 1) % len(tokens)], place] = 10.0
    model.config = replace(model.config, tie_embeddings=False)


def test_stream_is_generate_in_whole_characters(engine: Engine) -> None:
    text = "é界😀"
    tokens = list(text.encode())  # ids 0..255 are bytes
    favour(engine.model, tokens)
    prompt = [tokens[-1]]
    pieces = list(engine.stream(prompt, max_new_tokens=2 * len(tokens), temperature=0.0))
    assert pieces == ["é", "界", "😀"] * 2
    cut = list(engine.stream(prompt, max_new_tokens=len(tokens) - 1, temperature=0.0))
    assert cut[:2] == ["é", "界"]
    assert "".join(cut) == engine.generate([prompt], max_new_tokens=len(tokens) - 1, temperature=0.0)[0].text
    assert cut[-1] == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_stream_joined_is_generate(engine: Engine, temperature: float) -> None:
    for seed, prompt in enumerate(random_prompts(15, seed=7)):
        options: dict[str, Any] = {"max_new_tokens": 16, "temperature": temperature, "seed": seed}
        pieces = list(engine.stream(prompt, **options))
        assert "".join(pieces) == engine.generate([prompt], **options)[0].text
        assert all(pieces)


def test_stream_is_lazy_and_leaves_no_mode_behind(engine: Engine) -> None:
    pieces = engine.stream([1], max_new_tokens=20, temperature=2.0, stop_ids=())
    next(pieces)
    assert not torch.is_inference_mode_enabled()
    assert (torch.ones(1, requires_grad=True) * 2).requires_grad
    pieces.close()  # type: ignore[attr-defined]


def test_top_tokens(engine: Engine, tokenizer: Tokenizer) -> None:
    found = engine.top_tokens([1, 2, 3], tokenizer.vocab_size)
    with torch.no_grad():
        probabilities = engine.model(torch.tensor([[1, 2, 3]]))[0, -1].softmax(dim=-1)
    assert sum(probability for _, _, probability in found) == pytest.approx(1, abs=1e-5)
    assert [probability for _, _, probability in found] == pytest.approx(
        probabilities.sort(descending=True).values.tolist()
    )
    assert sorted(token for _, token, _ in found) == list(range(tokenizer.vocab_size))
    assert {token: text for text, token, _ in found}[tokenizer.end_id] == "<|end|>"
    assert {token: text for text, token, _ in found}[ord("a")] == "a"
    assert engine.top_tokens([1, 2, 3], 4) == found[:4]
    greedy = engine.generate(["the"], max_new_tokens=1, temperature=0.0)[0].tokens[0]
    assert engine.top_tokens("the", 1)[0][1] == greedy
    for k in (0, -1, tokenizer.vocab_size + 1, True):
        with pytest.raises(UsageError, match=f"k is {k}"):
            engine.top_tokens("the", k)
    with pytest.raises(UsageError, match="context is 32"):
        engine.top_tokens([1] * 32, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -3}, "top_k is -3"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"stop_ids": [275]}, "stop id 275.*0 to 274"),
        ({"prompts": [[]]}, "prompt 0 has no tokens"),
        ({"prompts": [[1], [275]]}, "prompt 1 holds the id 275.*0 to 274"),
        ({"prompts": [[-1]]}, "prompt 0 holds the id -1"),
    ],
)
def test_bad_requests(engine: Engine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine.generate(**{"prompts": [[1]], "max_new_tokens": 2, **options})


def test_errors_of_a_stream_come_at_once(engine: Engine) -> None:
    with pytest.raises(UsageError, match="top_p"):
        engine.stream([1], max_new_tokens=2, top_p=2.0)
    with pytest.raises(UsageError, match="context"):
        engine.stream([1] * 40, max_new_tokens=2)


def test_a_model_and_tokenizer_that_do_not_belong_together(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="263 tokens and the model 275"):
        Engine(model, Tokenizer.from_merges([]))
    scorer = Transformer(replace(model.config, head="scalar"))
    with pytest.raises(ModelError, match="'scalar' head"):
        Engine(scorer, tokenizer)
