"""response_format over HTTP: JSON that follows the schema, whole or in a stream, and 400 for what is not supported."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from .conftest import Lab
from .test_bad_input import refused

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "right": {"type": "boolean"}},
    "required": ["name", "right"],
    "additionalProperties": False,
}


def asking(schema: Any, **more: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return {"messages": [{"role": "user", "content": "hi"}], "response_format": form, "seed": 1, **more}


async def test_answers_follow_the_schema(client: httpx2.AsyncClient) -> None:
    for seed in range(4):
        made = (await client.post(CHAT, json=asking(SCHEMA, n=3, seed=seed, temperature=1.5))).json()
        for choice in made["choices"]:
            found = json.loads(choice["message"]["content"])
            assert choice["finish_reason"] == "stop" and set(found) == {"name", "right"} and len(found["name"]) <= 5
        events = (
            await client.post(CHAT, json=asking(SCHEMA, n=3, seed=seed, temperature=1.5, stream=True))
        ).text.split("\n\n")
        text = ""
        for event in events[:-2]:
            choice = json.loads(event.removeprefix("data: "))["choices"][0]
            text += choice["delta"].get("content", "") if choice["index"] == 0 else ""
        assert text == made["choices"][0]["message"]["content"]


async def test_any_object(client: httpx2.AsyncClient) -> None:
    body = {**asking({}), "response_format": {"type": "json_object"}, "max_tokens": 20}
    choice = (await client.post(CHAT, json=body)).json()["choices"][0]
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    plain = await client.post(CHAT, json={**asking({}, max_tokens=3), "response_format": {"type": "text"}})
    assert plain.status_code == 200


async def test_what_is_not_supported(client: httpx2.AsyncClient) -> None:
    for schema in (
        {"type": "string", "pattern": "a+"},
        {"$ref": "#"},
        {"type": "array", "maxItems": 10**9},
        {"enum": []},
    ):
        found = refused(await client.post(CHAT, json=asking(schema)))
        assert found["param"] == "response_format.json_schema.schema"
    nested: Any = {}
    for _ in range(300):
        nested = {"type": "array", "items": nested}
    refused(await client.post(CHAT, json=asking(nested)))
    refused(await client.post(CHAT, json=asking({"enum": ["a" * 60_000]})))
    refused(await client.post(CHAT, json={**asking({}), "response_format": {"type": "json_schema"}}))
    for extra in ({"min_tokens": 2}, {"ignore_eos": True}, {"stop_token_ids": [5]}):
        refused(await client.post(CHAT, json=asking(SCHEMA, **extra)))
    assert (await client.post(CHAT, json=asking(SCHEMA))).status_code == 200


async def test_forms_are_kept_and_few(lab: Lab) -> None:
    from jielong.serve.forms import MOST_KEPT, Forms
    from jielong.serve.schema import ChatBody

    forms, loaded = Forms(), lab.load()
    for number in range(MOST_KEPT + 5):
        body = ChatBody.model_validate(asking({"const": number}))
        (one,), (again,) = await forms.constraints(body, loaded), await forms.constraints(body, loaded)
        assert one is not None and again is not None and one is not again
        assert one._automaton is again._automaton
    assert len(forms._kept) == MOST_KEPT
