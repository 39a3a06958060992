"""What fits into the context; and branches that begin exactly where another answer was."""

from __future__ import annotations

import codecs
from typing import Any

import httpx2
import pytest

from ..conftest import CONTEXT
from .conftest import events

USER = {"role": "user", "content": "who sat there?"}
ASSISTANT = {"role": "assistant", "content": "the cat, I think."}


def fit(client: httpx2.Client, messages: list[dict[str, str]], max_tokens: int = 20) -> dict[str, int]:
    reply = client.post("/api/fit", json={"messages": messages, "max_tokens": max_tokens})
    assert reply.status_code == 200
    return dict(reply.json())


def test_the_oldest_pairs_go_first_and_no_more_than_needed(client: httpx2.Client) -> None:
    talk = [USER, ASSISTANT] * 12 + [USER]
    found = fit(client, talk)
    assert found["dropped"] > 0 and found["dropped"] % 2 == 0 and found["context"] == CONTEXT
    assert found["prompt_tokens"] + 20 <= CONTEXT
    assert fit(client, talk[found["dropped"] :])["dropped"] == 0
    assert fit(client, talk[found["dropped"] - 2 :])["dropped"] == 2


def test_the_system_message_stays_and_a_last_question_is_never_dropped(client: httpx2.Client) -> None:
    system = {"role": "system", "content": "be short"}
    assert fit(client, [system, USER])["dropped"] == 0
    assert fit(client, [system, USER, ASSISTANT, {"role": "user", "content": "x" * 3000}])["dropped"] == 2
    assert client.post("/api/fit", json={"messages": [ASSISTANT]}).status_code == 400


def chunks(reply: Any) -> tuple[str, list[int], list[dict[str, Any]]]:
    """(text, ids, log-probabilities) of a streamed answer."""
    choices = [event["choices"][0] for event in events(reply.text) if event["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    ids = [token for choice in choices for token in choice.get("token_ids", [])]
    return text, ids, [one for choice in choices for one in (choice["logprobs"] or {"content": []})["content"]]


def stream(client: httpx2.Client, path: str, **more: Any) -> tuple[str, list[int], list[dict[str, Any]]]:
    asked = {"messages": [USER], "max_tokens": 24, "temperature": 0.0, "logprobs": True, "top_logprobs": 5}
    reply = client.post(path, json={**asked, "stream": True, "return_token_ids": True, **more})
    assert reply.status_code == 200, reply.text
    return chunks(reply)


@pytest.mark.parametrize("num_kept", [1, 7, 15])
def test_a_branch_goes_on_as_the_answer_did(client: httpx2.Client, num_kept: int) -> None:
    text, ids, odds = stream(client, "/v1/chat/completions")
    prefix = [{"id": token} for token in ids[:num_kept]]
    rest, rest_ids, rest_odds = stream(client, "/api/branches", prefix=prefix)
    assert rest_ids == ids[num_kept:]
    kept = bytes(byte for one in odds[:num_kept] for byte in one["bytes"])
    assert (kept + b"".join(bytes(one["bytes"]) for one in rest_odds)).decode(errors="replace") == text
    # Half a character of the prefix is completed by what follows, and is told there.
    assert codecs.getincrementaldecoder("utf-8")("replace").decode(kept) + rest == text
    assert [one["logprob"] for one in rest_odds] == pytest.approx([one["logprob"] for one in odds[num_kept:]], abs=1e-4)


def test_an_alternative_is_found_by_its_bytes(client: httpx2.Client) -> None:
    _, ids, odds = stream(client, "/v1/chat/completions")
    for other in odds[2]["top_logprobs"][1:]:
        prefix = [{"id": ids[0]}, {"id": ids[1]}, {"bytes": other["bytes"]}]
        if not other["bytes"]:
            continue  # a control token: an answer says none
        stream(client, "/api/branches", prefix=prefix)


@pytest.mark.parametrize(
    "token", [{"id": 1 << 20}, {"text": "no token at all"}, {"bytes": [300]}, {}, {"id": -1}], ids=str
)
def test_what_is_no_token_is_refused(client: httpx2.Client, token: dict[str, Any]) -> None:
    asked = {"messages": [USER], "prefix": [{"text": "t"}, token]}
    reply = client.post("/api/branches", json=asked)
    assert reply.status_code == 400 and "prefix" in reply.json()["error"]["message"]


def test_control_tokens_are_no_answer(client: httpx2.Client, site: Any) -> None:
    end = site.service.engine.ready().tokenizer.end_id
    reply = client.post("/api/branches", json={"messages": [USER], "prefix": [{"id": end}]})
    assert reply.status_code == 400
