"""OpenAI's own client, told to raise at any answer that is not as its models want it, against every endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from .conftest import NAME, Running

TALK: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(live: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture(scope="module")
def lenient(live: Running) -> Iterator[OpenAI]:
    """For what OpenAI's models cannot say: null as finish_reason of a completion that goes on, and base64."""
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def asynchronous(live: Running, strict: bool = True) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, _strict_response_validation=strict)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "jielong"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o'"):
        client.models.retrieve("gpt-4o")


def test_chat(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model=NAME, messages=TALK, max_completion_tokens=6, n=2, seed=1, logprobs=True, top_logprobs=3, temperature=0.9
    )
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.choices[0].message.role == "assistant" and made.choices[0].message.refusal is None
    assert made.usage is not None and made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert made.choices[0].logprobs is not None and made.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in made.choices[0].logprobs.content)
    assert made._request_id is not None and made._request_id.startswith("req_")


def test_chat_stream(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": TALK, "max_tokens": 12, "seed": 5}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_chat_stream_helper(client: OpenAI) -> None:
    """The client's own accumulator, which is stricter about order than the bare stream."""
    with client.chat.completions.stream(model=NAME, messages=TALK, max_tokens=8, stop="zz", seed=2) as stream:
        kinds = {event.type for event in stream}
        with pytest.raises(openai.LengthFinishReasonError) as raised:  # its way to say that the answer was cut
            stream.get_final_completion()
    assert {"chunk", "content.delta"} <= kinds
    assert raised.value.completion.choices[0].finish_reason == "length"


def test_completions(client: OpenAI) -> None:
    made = client.completions.create(model=NAME, prompt=["the cat", "sat"], n=2, max_tokens=5, seed=3, logprobs=2)
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert made.choices[0].logprobs is not None and len(made.choices[0].logprobs.tokens or []) == 5
    ids = client.completions.create(model=NAME, prompt=[116, 104, 101], max_tokens=4, temperature=0)
    assert ids.usage is not None and ids.usage.prompt_tokens == 3


def test_completions_stream(client: OpenAI, lenient: OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "the cat", "max_tokens": 20, "seed": 9}
    whole = client.completions.create(**asked)
    chunks = list(lenient.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    [told], first = [chunk.usage for chunk in chunks if chunk.usage], whole.usage
    assert first is not None and first.total_tokens == first.prompt_tokens + first.completion_tokens
    unlike = {"prompt_tokens_details"}  # the second of two equal prompts finds what the first has left in the cache
    assert told.model_dump(exclude=unlike) == first.model_dump(exclude=unlike)


def test_embeddings(client: OpenAI, lenient: OpenAI) -> None:
    """The client asks for base64 unless told otherwise, and decodes it by itself."""
    made = lenient.embeddings.create(model=NAME, input=["the cat", "sat there"])
    plain = client.embeddings.create(model=NAME, input=["the cat", "sat there"], encoding_format="float")
    assert len(made.data) == 2 and len(made.data[0].embedding) == 32
    for one, other in zip(made.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)


def test_async_client(live: Running) -> None:
    async def talk() -> None:
        async with asynchronous(live) as client:
            assert [model.id async for model in client.models.list()] == [NAME]
            asked: dict[str, Any] = {"model": NAME, "messages": TALK, "max_tokens": 10}
            answers = await asyncio.gather(*(client.chat.completions.create(**asked, seed=n) for n in range(6)))
            for seed, answer in enumerate(answers):
                stream = await client.chat.completions.create(**asked, seed=seed, stream=True)
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
                assert "".join(pieces) == answer.choices[0].message.content
            text = await client.completions.create(model=NAME, prompt="the cat", max_tokens=3)
            assert text.choices[0].finish_reason in ("stop", "length")
            made = await client.embeddings.create(model=NAME, input="the cat", encoding_format="float")
            assert len(made.data) == 1
        async with asynchronous(live, strict=False) as client:
            stream = await client.completions.create(model=NAME, prompt="the cat", max_tokens=3, seed=1, stream=True)
            assert [chunk.choices[0].finish_reason async for chunk in stream][-1] is not None

    asyncio.run(talk())


def test_errors_are_what_the_client_makes_of_them(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=NAME, messages=[], max_tokens=1)
    assert raised.value.param == "messages" and raised.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=TALK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x " * 500}])
    assert long.value.code == "context_length_exceeded"


def test_additions_by_extra_body(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model=NAME,
        messages=TALK,
        max_tokens=6,
        seed=1,
        extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 6, "x": [1]},
    )
    assert made.usage is not None and made.usage.completion_tokens == 6
