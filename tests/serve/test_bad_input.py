"""Whatever comes in: the right status, an error object, and a server that goes on answering."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from jielong.serve.answers import ErrorAnswer
from jielong.serve.settings import Limits, ServeSettings

from .conftest import CONTEXT, NAME, Lab

pytestmark = pytest.mark.anyio
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "hi"}


def refused(answer: httpx2.Response, status: int = 400, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    found = ErrorAnswer.model_validate(answer.json()).error
    assert found.message and len(found.message) < 1000
    if code is not None:
        assert found.code == code
    return found.model_dump()


async def answers(client: httpx2.AsyncClient) -> None:
    answer = await client.post(COMPLETE, json={"prompt": "the cat", "max_tokens": 2})
    assert answer.status_code == 200, answer.text


NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "-1e308",
    "1e999",
    "-1",
    '"1"',
    "true",
    "[]",
    "{}",
    "1" + "0" * 5000,
]
FIELDS = ["n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
          "repetition_penalty", "min_tokens"]  # fmt: skip
LEGAL = {("top_k", "-1"), ("seed", "-1"), ("presence_penalty", "-1"), ("frequency_penalty", "-1")}


@pytest.mark.parametrize("field", FIELDS)
async def test_numbers(client: httpx2.AsyncClient, field: str) -> None:
    for value in NUMBERS:
        for path, rest in ((COMPLETE, '"prompt": "hi"'), (CHAT, f'"messages": [{json.dumps(USER)}]')):
            text = f'{{{rest}, "max_tokens": 1, "{field}": {value}}}'.replace(
                '"max_tokens": 1, "max_tokens"', '"max_tokens"'
            )
            answer = await client.post(path, content=text, headers=JSON)
            if (field, value) in LEGAL:
                assert answer.status_code == 200, (field, value, answer.text)
            else:
                refused(answer)
    for streams in (True, False):
        refused(await client.post(COMPLETE, json={"prompt": "hi", field: "x", "stream": streams}))
    await answers(client)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [290]}, None),
        ({"prompt": [1 << 40]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "logprobs": -1}, "logprobs"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "n": 129}, "n"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "best_of": 0}, "best_of"),
        ({"prompt": "a", "best_of": 3}, None),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "stop": ["a", ""]}, "stop[1]"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "a", "stop": "a" * 257}, "stop"),
        ({"prompt": "a", "stop": [["a"]]}, "stop[0]"),
        ({"prompt": "a", "stop_token_ids": [290]}, None),
        ({"prompt": "a", "stop_token_ids": [0] * 65}, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": {"foo": 0}}, "logit_bias.foo"),
        ({"prompt": "a", "logit_bias": {"290": 1}}, None),
        ({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias.-1"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"prompt": "a", "logit_bias": {"1": 1, "01": 1}}, None),
        ({"prompt": "a", "logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, None),
        ({"prompt": "a", "stream": False, "stream_options": {}}, None),
        ({"prompt": "a", "temperature": 0.0001}, None),
        ({"prompt": "a", "model": 5}, "model"),
        ({"prompt": "a", "echo": "yes"}, "echo"),
        ({"prompt": ["a"] * 100, "n": 2}, None),
    ],
)
async def test_completions(client: httpx2.AsyncClient, body: dict[str, Any], param: str | None) -> None:
    assert refused(await client.post(COMPLETE, json=body))["param"] == param
    if "stream" not in body and "stream_options" not in body:
        assert refused(await client.post(COMPLETE, json={**body, "stream": True}))["param"] == param
    await answers(client)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "system", "content": "only"}]}, "messages"),
        ({"messages": [USER, USER]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [USER], "top_logprobs": 2}, None),
        ({"messages": [USER], "logprobs": 2}, "logprobs"),
        ({"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": [USER], "tool_choice": "required"}, "tool_choice"),
        ({"messages": [USER], "modalities": ["audio"]}, "modalities[0]"),
        ({"messages": [USER], "response_format": {"type": "yaml"}}, "response_format.type"),
        ({"messages": [{"role": "user", "content": "a " * CONTEXT}]}, "messages"),
    ],
)
async def test_chats(client: httpx2.AsyncClient, body: dict[str, Any], param: str | None) -> None:
    assert refused(await client.post(CHAT, json=body))["param"] == param
    await answers(client)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "messages": [USER]},
        {"prompt": 5},
        {"messages": [{"role": "user", "content": 5}]},
    ],
)
async def test_tokenize(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    refused(await client.post("/tokenize", json=body))


async def test_other_endpoints(client: httpx2.AsyncClient) -> None:
    for tokens in (None, "a", [-1], [290], [True], [1.0], [[1]]):
        refused(await client.post("/detokenize", json={"tokens": tokens}))
    for body in ({}, {"input": []}, {"input": [[290]]}, {"input": "a", "encoding_format": "hex"}, {"input": [300]}):
        refused(await client.post("/v1/embeddings", json=body))
    for body in ({"input": "a", "dimensions": 8}, {"input": ["a"] * 129}, {"input": [104] * (CONTEXT + 1)}):
        refused(await client.post("/v1/embeddings", json=body))
    await answers(client)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"text"', b"5", b"{", b'{"prompt": "a",}', b'{"prompt": "a"} x', b"\xff\xfe",
        b'{"prompt": "\xff"}', '{"prompt": "a"}'.encode("utf-16"), b"\xef\xbb\xbf{}", b'{"prompt": "\\ud800"}',
        b'{"\\udc00": 1, "prompt": "a"}', b'{"prompt": "a", "prompt": "b"}', b"[" * 100_000,
        b'{"prompt": "a", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"a":' * 50_000,
        b'{"n": ' + b"9" * 9999 + b"}",
    ],
)  # fmt: skip
async def test_bodies_that_are_no_json_object(client: httpx2.AsyncClient, body: bytes) -> None:
    for path in (COMPLETE, CHAT, "/tokenize", "/detokenize", "/v1/embeddings"):
        refused(await client.post(path, content=body, headers=JSON))
    await answers(client)


async def test_strange_but_legal_text(client: httpx2.AsyncClient) -> None:
    """NUL, bidirectional marks, pairs of surrogates, private characters: text like any other."""
    for text in ("\x00", "a\x00b", "\u202e\u2066x", "\U0010ffff", "\ufdd0", "e\u0301" * 20, "\r\n\x1b[31m", " " * 60):
        assert (await client.post(COMPLETE, json={"prompt": text, "max_tokens": 2, "echo": True})).status_code == 200
        assert (
            await client.post(CHAT, json={"messages": [{**USER, "content": text}], "max_tokens": 2})
        ).status_code == 200
    pair = await client.post(
        "/tokenize", content=b'{"prompt": "\\ud83d\\ude00", "add_special_tokens": false}', headers=JSON
    )
    back = await client.post("/detokenize", json={"tokens": pair.json()["tokens"]})
    assert back.json() == {"prompt": "😀"}


async def test_content_types(client: httpx2.AsyncClient) -> None:
    body = b'{"prompt": "the cat", "max_tokens": 1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"):
        refused(await client.post(COMPLETE, content=body, headers={"content-type": kind}), 415)
    refused(await client.post(COMPLETE, content=body), 415)
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert (await client.post(COMPLETE, content=body, headers={"content-type": kind})).status_code == 200


async def test_methods_and_paths(client: httpx2.AsyncClient) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "BREW"):
        answer = await client.request(method, COMPLETE)
        refused(answer, 405)
        assert answer.headers["allow"] == "POST"
    head = await client.request("HEAD", "/v1/models")
    assert head.status_code == 200 and head.content == b""
    for path in (
        "/v1",
        "/v1/completions/",
        "/v1//completions",
        "/V1/models",
        "/docs",
        "/admin",
        "/%00",
        "/v1/models/",
    ):
        refused(await client.get(path), 404)


@pytest.mark.parametrize(
    "name",
    ["gpt-4o", "../tiny", "..", "/etc/passwd", "..\\..\\tiny", "C:\\model", "file:///etc/passwd", "tiny/", "TINY", "",
     "http://example.org/m", "%2e%2e%2ftiny", "tiny\x00", "a" * 900, "\r\nx: y"],
)  # fmt: skip
async def test_models_are_names_not_paths(client: httpx2.AsyncClient, name: str) -> None:
    for path, body in ((COMPLETE, {"prompt": "a"}), (CHAT, {"messages": [USER]}), ("/tokenize", {"prompt": "a"})):
        refused(await client.post(path, json={**body, "model": name}), 404, "model_not_found")
    refused(await client.post("/v1/embeddings", json={"input": "a", "model": name}), 404, "model_not_found")
    await answers(client)


async def test_paths_in_the_address_are_names_too(client: httpx2.AsyncClient) -> None:
    for name in ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5ctiny", "%00", "%ff%fe", "a" * 5000):
        refused(await client.get(f"/v1/models/{name}"), 404)
    assert (await client.get(f"/v1/models/{NAME}")).status_code == 200


async def test_long_bodies(lab: Lab) -> None:
    settings = ServeSettings(limits=Limits(body_bytes=5000))
    async with Lab(lab.model, lab.tokenizer, settings).client() as client:
        answer = await client.post(COMPLETE, json={"prompt": "a" * 6000})
        refused(answer, 413, "body_too_long")
        assert answer.headers["connection"] == "close"

        async def endless() -> Any:
            for _ in range(1000):
                yield b"x" * 1000
            raise AssertionError("the body was read to its end")

        refused(await client.post(COMPLETE, content=endless(), headers=JSON), 413, "body_too_long")
        for length in ("99999999999999999999999999", "1" * 19):
            lying = {**JSON, "content-length": length}
            assert (await client.post(COMPLETE, content=b"{}", headers=lying)).status_code in (400, 413)
        await answers(client)


async def test_long_heads(client: httpx2.AsyncClient) -> None:
    refused(await client.get("/v1/models", headers={"x-long": "a" * 40_000}), 431)
    refused(await client.get("/v1/models?" + "a" * 40_000), 431)
    await answers(client)


async def test_more_sequences_than_there_is_room_for(lab: Lab) -> None:
    small = Lab(lab.model, lab.tokenizer, ServeSettings(limits=Limits(queue=4)))
    async with small.client() as client:
        refused(await client.post(COMPLETE, json={"prompt": "a", "n": 9}))
        assert (await client.post(COMPLETE, json={"prompt": "a", "n": 8, "max_tokens": 1})).status_code == 200
