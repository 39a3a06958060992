"""An encoder-decoder over HTTP: a prompt, or the last message, is a sentence; the answer is its translation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from jielong.errors import UsageError
from jielong.folder import save
from jielong.generate.beam import BeamConfig
from jielong.generate.translator import Translator
from jielong.runtime import Runtime
from jielong.serve.launch import EngineOptions, load_folder, load_for
from jielong.serve.personas import Persona
from jielong.serve.settings import ServeSettings

from .conftest import NAME, Lab
from .test_engine_thread import until

pytestmark = pytest.mark.anyio
TEXT = "the cat sat on the mat"
RUNTIME = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def translator(translating: Lab) -> Translator:
    return Translator(translating.model, translating.tokenizer, RUNTIME)


@pytest.fixture
async def client(translating: Lab) -> AsyncIterator[httpx2.AsyncClient]:
    async with translating.client() as client:
        yield client


def best(translator: Translator, text: str, beam: int = 4, num_best: int = 1) -> list[str]:
    [found] = translator.translate([text], BeamConfig(beam, num_best=num_best))
    return [one.text for one in found]


async def post(client: httpx2.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(client: httpx2.AsyncClient, path: str, said: str, **body: Any) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def test_completions_are_the_translators(client: httpx2.AsyncClient, translator: Translator) -> None:
    texts = [TEXT, "你好", " who sat there? "]
    whole = await post(client, "/v1/completions", prompt=texts)
    assert [choice["text"] for choice in whole["choices"]] == [best(translator, text)[0] for text in texts]
    assert whole["usage"]["completion_tokens"] > 0 and {c["finish_reason"] for c in whole["choices"]} <= {
        "stop",
        "length",
    }
    greedy = await post(client, "/v1/completions", prompt=TEXT, beam=1)
    assert greedy["choices"][0]["text"] == best(translator, TEXT, 1)[0]
    several = await post(client, "/v1/completions", prompt=TEXT, n=3, beam=5)
    assert [choice["text"] for choice in several["choices"]] == best(translator, TEXT, 5, 3)
    short = await post(client, "/v1/completions", prompt=TEXT, max_tokens=2, ignore_eos=True)
    assert short["usage"]["completion_tokens"] == 2 and short["choices"][0]["finish_reason"] == "length"


async def test_a_chat_translates_its_last_message(client: httpx2.AsyncClient, translator: Translator) -> None:
    before = [{"role": "system", "content": "Be short."}, user("hello"), {"role": "assistant", "content": "你好"}]
    whole = await post(client, "/v1/chat/completions", messages=[*before, user(TEXT)])
    assert whole["choices"][0]["message"]["content"] == best(translator, TEXT)[0]
    await refused(client, "/v1/chat/completions", "the user's", messages=before)
    await refused(client, "/v1/chat/completions", "a translator needs words", messages=[user("  ")])


@pytest.mark.parametrize("beam", [1, 4])
async def test_a_stream_is_the_whole(client: httpx2.AsyncClient, beam: int) -> None:
    body = {"messages": [user(TEXT)], "beam": beam, "logprobs": True, "top_logprobs": 2}
    whole = (await post(client, "/v1/chat/completions", **body))["choices"][0]
    answer = await client.post("/v1/chat/completions", json={**body, "stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == whole["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    told = [one for choice in choices for one in (choice["logprobs"] or {"content": []})["content"]]
    assert told == whole["logprobs"]["content"] and told and all(len(one["top_logprobs"]) == 2 for one in told)


async def test_draws_are_the_seeds(client: httpx2.AsyncClient) -> None:
    texts = {}
    for seed in (1, 2, 1):
        body = {"prompt": TEXT, "temperature": 1, "seed": seed, "ignore_eos": True, "max_tokens": 12}
        text = (await post(client, "/v1/completions", **body))["choices"][0]["text"]
        assert texts.setdefault(seed, text) == text
    assert texts[1] != texts[2]


async def test_many_at_once_get_their_own(client: httpx2.AsyncClient, translator: Translator) -> None:
    texts = ["the cat", "on the mat", "who sat there?", "I think", "all day", "你好,接龙!", "it sat", "mat"]
    answers = await asyncio.gather(*(post(client, "/v1/completions", prompt=text) for text in texts))
    assert [answer["choices"][0]["text"] for answer in answers] == [best(translator, text)[0] for text in texts]


async def test_leaving_frees_the_engine(translating: Lab) -> None:
    service = translating.service()
    async with translating.client(service) as client:
        batcher = service.engine.ready().batcher
        asking = asyncio.ensure_future(
            client.post("/v1/completions", json={"prompt": TEXT * 3, "ignore_eos": True, "beam": 8})
        )
        await until(lambda: batcher.stats()["running"] > 0)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.wait_for(service.engine.idle.wait(), 10)
        assert batcher.stats()["new_tokens"] == 0 and batcher.stats()["running"] == 0


async def test_what_is_not_done_is_refused(client: httpx2.AsyncClient, lab: Lab) -> None:
    completions, chats = "/v1/completions", "/v1/chat/completions"
    await refused(client, completions, "does not go on", prompt=TEXT, echo=True)
    await refused(client, completions, "a translator needs words", prompt=" \n ")
    await refused(client, completions, "draws nothing", prompt=TEXT, beam=4, temperature=0.5)
    await refused(client, completions, "draws nothing", prompt=TEXT, beam=4, presence_penalty=1)
    await refused(client, completions, "n is 3", prompt=TEXT, beam=2, n=3)
    await refused(client, completions, "must be less than or equal to 64", prompt=TEXT, beam=65)
    await refused(client, completions, "160", prompt="the cat " * 200)
    await refused(client, chats, "no JSON", messages=[user(TEXT)], response_format={"type": "json_object"})
    async with lab.client() as decoder:
        await refused(decoder, completions, "for translators", prompt=TEXT, beam=2)
        await refused(decoder, chats, "for translators", messages=[user(TEXT)], length_penalty=1.0)


async def test_what_else_there_is(client: httpx2.AsyncClient, translating: Lab) -> None:
    vector = (await post(client, "/v1/embeddings", input=TEXT))["data"][0]["embedding"]
    assert len(vector) == 32 and sum(x * x for x in vector) == pytest.approx(1, abs=1e-4)
    ids = (await post(client, "/tokenize", prompt=TEXT))["tokens"]
    with torch.inference_mode():
        mean = translating.model.encode(torch.tensor([ids]))[0].mean(dim=0)
    assert vector == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5), "what /tokenize tells is what is read"
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == NAME
    assert 'jielong_engine_running{model="tiny"} 0' in (await client.get("/metrics")).text


def test_a_folder_is_served_by_its_kind(lab: Lab, translating: Lab, tmp_path: Path) -> None:
    save(translating.model, translating.tokenizer, tmp_path / "translator")
    save(lab.model, lab.tokenizer, tmp_path / "decoder")
    options = EngineOptions(4, 0, 64, "auto", "cpu", 1)
    assert load_folder(tmp_path / "translator", options).translates
    assert not load_folder(tmp_path / "decoder", options).translates
    with pytest.raises(UsageError, match="int8"):
        load_folder(tmp_path / "translator", EngineOptions(4, 0, 64, "int8", "cpu", 1))
    role = ServeSettings(persona=Persona(name="terminal", system="You are a terminal.", refusal="no"))
    with pytest.raises(UsageError, match="plays no role"):
        load_for(role, tmp_path / "translator", options)
