"""Texts continued and scored over HTTP are those of the engine, and are told as `lm-eval` and others read them."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
import torch

from jielong.generate.engine import Engine
from jielong.model.logprobs import scored_logprobs
from jielong.serve.answers import CompletionAnswer

from .conftest import CONTEXT, NAME, Lab

pytestmark = pytest.mark.anyio
PATH = "/v1/completions"


async def complete(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json={"model": NAME, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = CompletionAnswer.model_validate(answer.json()).model_dump()
    return found


async def chunks(client: httpx2.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await client.post(PATH, json={"model": NAME, "stream": True, **body})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def test_text_is_the_engines(client: httpx2.AsyncClient, lab: Lab) -> None:
    engine = Engine(lab.model, lab.tokenizer)
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    for seed in range(4):
        expected = engine.generate(["the cat"], max_new_tokens=30, seed=seed, **settings)[0]
        made = await complete(client, prompt="the cat", max_tokens=30, seed=seed, **settings)
        assert made["choices"][0]["text"] == expected.text
        assert made["choices"][0]["finish_reason"] == expected.finish_reason
        assert made["usage"]["completion_tokens"] == len(expected.tokens)


async def test_choice_and_prompt_order(client: httpx2.AsyncClient) -> None:
    """Index prompt * n + k; choice k of a prompt is the same in whatever company it is asked."""
    asked: dict[str, Any] = {"max_tokens": 12, "seed": 42}
    both = await complete(client, prompt=["the cat", "sat on"], n=3, **asked)
    texts = [choice["text"] for choice in both["choices"]]
    assert [choice["index"] for choice in both["choices"]] == list(range(6)) and len(set(texts)) == 6
    one = await complete(client, prompt="sat on", n=3, **asked)
    assert [choice["text"] for choice in one["choices"]] == texts[3:]
    single = await complete(client, prompt="sat on", **asked)
    assert single["choices"][0]["text"] == texts[3]
    other = await complete(client, prompt="the cat", max_tokens=0)  # a prompt counts once, however large n is
    assert both["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"] + other["usage"]["prompt_tokens"]


async def test_without_a_seed_answers_differ(client: httpx2.AsyncClient) -> None:
    texts = {(await complete(client, prompt="the cat", max_tokens=20))["choices"][0]["text"] for _ in range(4)}
    assert len(texts) > 1


async def test_stream_is_the_whole(client: httpx2.AsyncClient) -> None:
    """Text with split characters, several prompts and choices, log-probabilities, usage: cut anyhow, the same."""
    asked: dict[str, Any] = {
        "prompt": ["the cat", "你"],
        "n": 2,
        "max_tokens": 40,
        "seed": 1,
        "logprobs": 1,
        "echo": True,
    }
    whole = await complete(client, **asked)
    found = await chunks(client, **asked, stream_options={"include_usage": True})
    assert found[-1]["choices"] == [] and found[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in found[:-1])
    for index, choice in enumerate(whole["choices"]):
        mine = [chunk["choices"][0] for chunk in found[:-1] if chunk["choices"][0]["index"] == index]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
        for field, values in choice["logprobs"].items():
            assert [value for one in mine for value in one["logprobs"][field]] == values
    assert {chunk["id"] for chunk in found} == {found[0]["id"]} and {chunk["object"] for chunk in found} == {
        "text_completion"
    }


async def test_scores_are_the_models(client: httpx2.AsyncClient, lab: Lab) -> None:
    """echo + logprobs give, token by token, what the model's own likelihood gives in process."""
    tokens = [lab.tokenizer.bos_id or 0, *lab.tokenizer.encode("the cat sat on the mat 你好 😀")]
    made = await complete(client, prompt=[tokens, tokens[:9]], max_tokens=0, echo=True, logprobs=1)
    mask = torch.ones(1, len(tokens), dtype=torch.bool)
    mask[0, 0] = False
    with torch.inference_mode():
        expected = scored_logprobs(lab.model, torch.tensor([tokens]), None, mask, entropy=False)[0][0].tolist()
    for choice, row in zip(made["choices"], (tokens, tokens[:9]), strict=True):
        odds = choice["logprobs"]
        assert odds["token_logprobs"][0] is None and odds["top_logprobs"][0] is None
        assert odds["token_logprobs"][1:] == pytest.approx(expected[1 : len(row)], abs=2e-5)
        assert choice["finish_reason"] == "length" and len(odds["tokens"]) == len(row)
    assert made["choices"][0]["text"] == "the cat sat on the mat 你好 😀"


async def test_what_lm_eval_reads(client: httpx2.AsyncClient, lab: Lab) -> None:
    """Its request, and the slices it takes: exactly one made token at the end, and the top one found by equality."""
    rows = [lab.tokenizer.encode(text) for text in ("the cat sat", "on the mat 你", "who?")]
    body = {"prompt": rows, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    made = await complete(client, **body)
    for row, choice in zip(rows, sorted(made["choices"], key=lambda choice: choice["index"]), strict=True):
        odds = choice["logprobs"]
        assert len(odds["token_logprobs"]) == len(odds["top_logprobs"]) == len(row) + 1
        with torch.inference_mode():
            best = lab.model(torch.tensor([row]))[0, :-1].argmax(dim=-1).tolist()
        for token, greedy, own, top in zip(
            row[1:], best, odds["token_logprobs"][1:-1], odds["top_logprobs"][1:-1], strict=True
        ):
            assert 1 <= len(top) <= 2
            assert (own == max(top.values())) == (token == greedy)


async def test_a_stop_token_is_still_an_entry(client: httpx2.AsyncClient, lab: Lab) -> None:
    """`lm-eval` drops the last entry: with none for the end of the text it would drop a token of the continuation."""
    row, end = lab.tokenizer.encode("the cat"), lab.tokenizer.eos_id
    made = await complete(client, prompt=row, max_tokens=1, echo=True, logprobs=1, logit_bias={str(end): 100})
    choice = made["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"] == "the cat"
    assert choice["logprobs"]["tokens"][-1] == "<|eos|>" and len(choice["logprobs"]["tokens"]) == len(row) + 1
    # raw odds: the bias that made it the likeliest does not show
    assert choice["logprobs"]["token_logprobs"][-1] < -1


async def test_pieces_of_characters_have_names_of_their_own(client: httpx2.AsyncClient, lab: Lab) -> None:
    made = await complete(client, prompt="the cat", max_tokens=60, seed=3, logprobs=20, temperature=2.0)
    odds = made["choices"][0]["logprobs"]
    broken = [token for token in odds["tokens"] if token.startswith("bytes:\\x")]
    assert broken and "�" not in "".join(odds["tokens"])
    assert all(len(top) in (20, 21) for top in odds["top_logprobs"])


async def test_offsets_point_into_the_text(client: httpx2.AsyncClient) -> None:
    made = await complete(client, prompt="on the 你 mat", max_tokens=30, seed=8, logprobs=0, echo=True)
    choice = made["choices"][0]
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == sorted(offsets) and offsets[0] == 0
    for token, begin, end in zip(choice["logprobs"]["tokens"], offsets, [*offsets[1:], None], strict=True):
        if not token.startswith(("bytes:", "<|")) and end is not None:
            assert choice["text"][begin:end].lstrip("�") == token
    assert all(len(top) == 1 for top in choice["logprobs"]["top_logprobs"][1:])  # logprobs=0: the token's own


async def test_stop_strings(client: httpx2.AsyncClient) -> None:
    whole = (await complete(client, prompt="the cat", max_tokens=40, temperature=0))["choices"][0]["text"]
    stop = whole[6:9]
    assert whole.index(stop) == 6
    cut = await complete(client, prompt="the cat", max_tokens=40, temperature=0, stop=["nothing like it", stop])
    assert cut["choices"][0]["text"] == whole[:6] and cut["choices"][0]["finish_reason"] == "stop"
    found = await chunks(client, prompt="the cat", max_tokens=40, temperature=0, stop=stop)
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == whole[:6]


async def test_ids_asked_for_are_told(client: httpx2.AsyncClient, lab: Lab) -> None:
    made = (await complete(client, prompt="the cat", max_tokens=8, seed=1, return_token_ids=True))["choices"][0]
    assert made["prompt_token_ids"] == [*lab.tokenizer.prefix_ids, *lab.tokenizer.encode("the cat")]
    assert lab.tokenizer.decode(made["token_ids"]) == made["text"] and len(made["token_ids"]) == 8


async def test_a_stream_tells_all_ids(client: httpx2.AsyncClient) -> None:
    """Also those whose text waits for the rest of a character."""
    num_waiting = 0
    for seed in range(6):
        asked: dict[str, Any] = {"prompt": "the cat", "max_tokens": 30, "seed": seed, "return_token_ids": True}
        whole = (await complete(client, **asked))["choices"][0]
        told = [chunk["choices"][0] for chunk in await chunks(client, **asked)]
        assert [token for one in told for token in one["token_ids"]] == whole["token_ids"]
        assert [one["prompt_token_ids"] for one in told] == [whole["prompt_token_ids"]] + [None] * (len(told) - 1)
        num_waiting += whole["text"].count("\ufffd")
    assert num_waiting, "there was something to wait for"


async def test_the_ends_of_the_context(client: httpx2.AsyncClient) -> None:
    for length, body, status in [
        (CONTEXT - 1, {"max_tokens": 50}, 200),
        (CONTEXT, {"max_tokens": 1}, 400),
        (CONTEXT, {"max_tokens": 0, "echo": True, "logprobs": 1}, 200),
        (CONTEXT + 1, {"max_tokens": 0, "echo": True, "logprobs": 1}, 400),
    ]:
        answer = await client.post(PATH, json={"prompt": [104] * length, **body})
        assert answer.status_code == status, (length, answer.text)
        if status == 400:
            assert answer.json()["error"]["code"] == "context_length_exceeded"
    made = await complete(client, prompt=[104] * (CONTEXT - 1), max_tokens=50, ignore_eos=True)
    assert made["usage"]["completion_tokens"] == 1 and made["choices"][0]["finish_reason"] == "length"


async def test_an_empty_text_begins_a_document(client: httpx2.AsyncClient) -> None:
    made = await complete(client, prompt="", max_tokens=5, seed=1, return_token_ids=True)
    assert len(made["choices"][0]["prompt_token_ids"]) == 1


async def test_ids_get_no_bos(client: httpx2.AsyncClient, lab: Lab) -> None:
    row = lab.tokenizer.encode("the cat")
    made = await complete(client, prompt=row, max_tokens=2, return_token_ids=True)
    assert made["choices"][0]["prompt_token_ids"] == row and made["usage"]["prompt_tokens"] == len(row)


async def test_the_second_time_the_prompt_is_in_the_cache(client: httpx2.AsyncClient) -> None:
    asked: dict[str, Any] = {"prompt": [104] * 100, "max_tokens": 10, "seed": 4}
    first = await complete(client, **asked)
    second = await complete(client, **asked)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 64
    assert first["choices"] == second["choices"]
