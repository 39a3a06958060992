"""Conversations over HTTP: the form of the stream, what is told of tokens, and that no text becomes a control token."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jielong.generate.engine import Engine
from jielong.serve.answers import ChatAnswer
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

from .conftest import NAME, Lab

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
TALK = [{"role": "user", "content": "who sat there?"}]


async def chat(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json={"model": NAME, "messages": TALK, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = ChatAnswer.model_validate(answer.json()).model_dump()
    return found


async def chunks(client: httpx2.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await client.post(PATH, json={"model": NAME, "messages": TALK, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def test_the_answer_is_the_engines(client: httpx2.AsyncClient, lab: Lab) -> None:
    engine = Engine(lab.model, lab.tokenizer)
    ids, _ = render(TALK, lab.tokenizer, reply=True)
    for seed in range(3):
        expected = engine.generate([ids], max_new_tokens=25, seed=seed)[0]
        made = await chat(client, max_tokens=25, seed=seed)
        assert made["choices"][0]["message"]["content"] == expected.text
        assert made["usage"]["prompt_tokens"] == len(ids)


async def test_form_of_the_stream(client: httpx2.AsyncClient) -> None:
    found = await chunks(client, max_tokens=15, seed=1, n=2, stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in found}) == 1
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] > 0
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in found[:-1] if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in one["delta"] for one in mine[1:])
        assert all("finish_reason" in one for one in mine)  # null, and there, on every interior chunk
        assert [one["finish_reason"] is None for one in mine] == [True] * (len(mine) - 1) + [False]
        assert mine[-1]["delta"] == {}
    assert all(chunk["usage"] is None for chunk in found[:-1])
    plain = await chunks(client, max_tokens=2)
    assert all("usage" not in chunk for chunk in plain)


async def test_stream_is_the_whole(client: httpx2.AsyncClient) -> None:
    for extra in ({}, {"stop": ["e", "t"]}, {"logprobs": True, "top_logprobs": 2}, {"temperature": 1.9}):
        asked: dict[str, Any] = {"max_tokens": 60, "seed": 7, "n": 2, **extra}
        whole = await chat(client, **asked)
        found = await chunks(client, **asked)
        for choice in whole["choices"]:
            mine = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == choice["index"]]
            assert "".join(one["delta"].get("content", "") for one in mine) == choice["message"]["content"]
            assert mine[-1]["finish_reason"] == choice["finish_reason"]
            told = [token for one in mine if one["logprobs"] for token in one["logprobs"]["content"]]
            assert told == (choice["logprobs"]["content"] if choice["logprobs"] else [])


async def test_bytes_of_all_tokens_are_the_content(client: httpx2.AsyncClient) -> None:
    for seed in range(6):
        choice = (await chat(client, max_tokens=50, seed=seed, logprobs=True))["choices"][0]
        joined = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
        assert joined.decode("utf-8", errors="replace") == choice["message"]["content"]
        assert all(token["top_logprobs"] == [] for token in choice["logprobs"]["content"])


async def test_odds_never_run_ahead_of_the_text(client: httpx2.AsyncClient) -> None:
    """What may be the beginning of a stop string is not told by its log-probabilities either."""
    content = (await chat(client, max_tokens=30, temperature=0))["choices"][0]["message"]["content"]
    stop = content[5:9]
    assert content.index(stop) == 5
    choice = (await chat(client, max_tokens=30, temperature=0, stop=stop, logprobs=True))["choices"][0]
    assert choice["message"]["content"] == content[:5] and choice["finish_reason"] == "stop"
    heard, told = "", b""
    for chunk in await chunks(client, max_tokens=30, temperature=0, stop=stop, logprobs=True):
        one = chunk["choices"][0]
        heard += one["delta"].get("content", "")
        for token in one["logprobs"]["content"] if one["logprobs"] else []:
            assert len(told.decode("utf-8", errors="ignore")) < len(heard)  # it begins within what was heard
            told += bytes(token["bytes"])
    assert heard == content[:5]


async def test_ends_of_turns(client: httpx2.AsyncClient, lab: Lab) -> None:
    end = {str(lab.tokenizer.end_id): 100}
    made = await chat(client, max_tokens=9, logit_bias=end, logprobs=True)
    assert made["choices"][0]["finish_reason"] == "stop" and made["choices"][0]["message"]["content"] == ""
    assert made["choices"][0]["logprobs"]["content"] == [] and made["usage"]["completion_tokens"] == 1
    on = await chat(client, max_tokens=4, logit_bias=end, ignore_eos=True)
    assert on["choices"][0]["finish_reason"] == "length" and on["usage"]["completion_tokens"] == 4
    later = await chat(client, max_tokens=9, logit_bias=end, min_tokens=3)
    assert later["usage"]["completion_tokens"] == 4


async def test_ways_to_write_a_conversation(client: httpx2.AsyncClient) -> None:
    plain = [{"role": "system", "content": "Be brief.\nNow."}, {"role": "user", "content": "hi"}]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Now."}]},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "Tom"},
    ]
    one, other = [await chat(client, messages=talk, max_tokens=12, seed=1) for talk in (plain, parts)]
    assert one["choices"] == other["choices"] and one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]


async def test_fields_that_others_send_are_ignored(client: httpx2.AsyncClient) -> None:
    extra = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "reasoning_effort": "low"}
    extra |= {"parallel_tool_calls": True, "tools": [{"type": "function", "function": {"name": "f"}}], "x" * 50: None}
    made = await chat(client, max_tokens=3, prompt_cache_key="k", tool_choice="auto", **extra)
    assert made["choices"][0]["message"]["role"] == "assistant"


async def test_max_completion_tokens_wins(client: httpx2.AsyncClient) -> None:
    made = await chat(client, max_tokens=9, max_completion_tokens=3, ignore_eos=True)
    assert made["usage"]["completion_tokens"] == 3
    assert (await chat(client, seed=1, ignore_eos=True))["usage"]["total_tokens"] == 160  # else to the context's end


SPECIALS = [*Tokenizer.SPECIALS, "<|im_end|>", "<|", "|>", "<s>", "</s>"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(
        st.lists(st.one_of(st.sampled_from(SPECIALS), st.text(max_size=8)), max_size=6).map("".join),
        min_size=1,
        max_size=4,
    ),
    system=st.sampled_from(SPECIALS),
)
def test_no_text_becomes_a_control_token(lab: Lab, texts: list[str], system: str) -> None:
    """Whatever a client writes, in any role: control ids stand where the form puts them and nowhere else."""
    import asyncio

    from jielong.serve.prompts import conversation_ids
    from jielong.serve.schema import ChatBody

    texts = texts if len(texts) % 2 else texts[:-1]
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    body = ChatBody.model_validate({"messages": [{"role": "system", "content": system}, *turns]})
    ids = asyncio.run(conversation_ids(body.messages, None, lab.load()))
    control = [lab.tokenizer.name(token) for token in ids if token in lab.tokenizer.special_ids.values()]
    expected = ["<|bos|>"]
    for turn in [{"role": "system"}, *turns]:
        expected += [f"<|{turn['role']}|>", "<|end|>"]
    assert control == [*expected, "<|assistant|>"]


async def test_control_tokens_spelled_in_stops_and_biases_are_text(client: httpx2.AsyncClient, lab: Lab) -> None:
    made = await client.post(PATH, json={"messages": TALK, "max_tokens": 3, "stop": ["<|end|>"], "seed": 1})
    assert (
        made.json()["choices"][0]["message"]["content"]
        == ((await chat(client, max_tokens=3, seed=1))["choices"][0]["message"]["content"])
    )
    bias = await client.post(PATH, json={"messages": TALK, "logit_bias": {"<|end|>": 1}})
    assert bias.status_code == 400 and bias.json()["error"]["param"] == "logit_bias.<|end|>"
