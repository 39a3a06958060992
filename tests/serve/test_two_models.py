"""Two models behind one address: each answers by its name, with an engine of its own, and outlives the other."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jielong.cli import main
from jielong.errors import ModelError, UsageError
from jielong.folder import save
from jielong.generate.engine import Engine
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.serve.api import build_app
from jielong.serve.engine_thread import Loaded
from jielong.serve.errors import ApiError
from jielong.serve.jobs import Joined
from jielong.serve.launch import check_kinds, name_models
from jielong.serve.server import listen, serve_until_stopped
from jielong.serve.settings import ServeSettings

from .conftest import CONTEXT, MAX_ROWS, NAME, OTHER, OTHER_CONTEXT, GatedBatcher, Lab
from .test_bad_input import refused
from .test_engine_thread import until

anyio = pytest.mark.anyio
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "the dog sat"


@pytest.fixture
async def both(lab: Lab, other: Lab) -> AsyncIterator[httpx2.AsyncClient]:
    async with lab.client(lab.beside(other)) as client:
        yield client


def greedy(lab: Lab, text: str) -> str:
    return Engine(lab.model, lab.tokenizer).generate([text], max_new_tokens=12, temperature=0.0)[0].text


@anyio
async def test_each_answers_by_its_name(both: httpx2.AsyncClient, lab: Lab, other: Lab) -> None:
    listed = (await both.get("/v1/models")).json()["data"]
    assert [(one["id"], one["max_model_len"]) for one in listed] == [(NAME, CONTEXT), (OTHER, OTHER_CONTEXT)]
    asked = {"prompt": TEXT, "max_tokens": 12, "temperature": 0}
    for name, who in ((NAME, lab), (OTHER, other), (None, lab)):
        named = {} if name is None else {"model": name}
        whole = (await both.post(COMPLETE, json={**asked, **named})).json()
        assert whole["choices"][0]["text"] == greedy(who, TEXT) and whole["model"] == (name or NAME)
        chat = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 3, "stream": True, **named}
        events = (await both.post(CHAT, json=chat)).text.splitlines()
        models = {json.loads(line[6:])["model"] for line in events if line.startswith("data: {")}
        assert models == {name or NAME}
    assert greedy(lab, TEXT) != greedy(other, TEXT)
    for method, path in (("POST", COMPLETE), ("GET", "/v1/models/third"), ("GET", "/tokenizer_info?model=third")):
        answer = await both.request(method, path, json={**asked, "model": "third"})
        refused(answer, 404, "model_not_found")
        assert "'tiny' and 'other'" in answer.json()["error"]["message"]
    assert (await both.get(f"/v1/models/{OTHER}")).json() == listed[1]


@anyio
async def test_words_and_vectors_are_each_ones_own(both: httpx2.AsyncClient, lab: Lab, other: Lab) -> None:
    for name, who in ((NAME, lab), (OTHER, other)):
        ids = (await both.post("/tokenize", json={"prompt": TEXT, "model": name})).json()["tokens"]
        assert ids == who.tokenizer.beginning(TEXT) + list(who.tokenizer.suffix_ids)
        back = await both.post("/detokenize", json={"tokens": who.tokenizer.encode(TEXT), "model": name})
        assert back.json()["prompt"] == TEXT
        info = (await both.get("/tokenizer_info", params={"model": name})).json()
        assert info["vocab_size"] == who.tokenizer.vocab_size
        vector = (await both.post("/v1/embeddings", json={"input": TEXT, "model": name})).json()
        async with who.client() as alone:
            same = (await alone.post("/v1/embeddings", json={"input": TEXT})).json()
        assert vector["data"] == same["data"] and vector["model"] == name
    assert lab.tokenizer.encode(TEXT) != other.tokenizer.encode(TEXT)


@anyio
async def test_a_form_is_made_of_the_models_own_tokens(both: httpx2.AsyncClient) -> None:
    """One after the other, so that what was kept for the first must not be used for the second."""
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": ["the dog", "the cat"]}}}
    for name in (NAME, OTHER, NAME):
        chat = {"messages": [{"role": "user", "content": "x"}], "response_format": form, "model": name}
        whole = (await both.post(CHAT, json={**chat, "max_tokens": 40})).json()["choices"][0]
        assert whole["finish_reason"] == "stop" and json.loads(whole["message"]["content"]) in ("the dog", "the cat")


@anyio
async def test_the_second_is_loaded_after_the_first(lab: Lab, other: Lab) -> None:
    go, num_loading, most = threading.Event(), 0, 0

    def watched(who: Lab, wait: bool) -> Loaded:
        nonlocal num_loading, most
        num_loading += 1
        most = max(most, num_loading)
        assert not wait or go.wait(10)
        loaded = who.load()
        num_loading -= 1
        return loaded

    service = lab.beside(other, lambda: watched(lab, False), lambda: watched(other, True))
    async with lab.client(service, wait=False) as client:
        await service.engine.loaded()
        assert (await client.post(COMPLETE, json={"prompt": "a", "max_tokens": 1})).status_code == 200
        for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", COMPLETE)):
            answer = await client.request(method, path, json={"prompt": "a", "model": OTHER})
            refused(answer, 503, "loading")
            assert "'other'" in answer.json()["error"]["message"]
        go.set()
        await service.engines[1].loaded()
        assert (await client.get("/health")).status_code == 200 and most == 1


@anyio
async def test_a_second_that_cannot_be_loaded_is_told(lab: Lab, other: Lab) -> None:
    def fail() -> Loaded:
        raise ModelError("no such model")

    service, told = lab.beside(other, load_other=fail), list[BaseException]()
    service.engines[1].on_death = told.append
    async with lab.client(service, wait=False) as client:
        with pytest.raises(ModelError):
            await service.engines[1].loaded()
        refused(await client.get("/health"), 503, "engine_dead")
    assert [str(error) for error in told] == ["no such model"] and not service.engines[1].was_ready


def test_a_second_that_cannot_be_loaded_ends_the_server(lab: Lab, other: Lab) -> None:
    def fail() -> Loaded:
        raise ModelError("no such model")

    settings = ServeSettings(port=0)
    service = Lab(lab.model, lab.tokenizer, settings).beside(other, load_other=fail)
    with pytest.raises(ModelError, match="no such model"):
        serve_until_stopped(build_app(service), service, listen(settings))
    assert service.engine.was_ready, "the first was there"


def gated_pair(lab: Lab, other: Lab) -> tuple[Any, GatedBatcher, GatedBatcher]:
    """(a service of two models whose steps the test allows, their batchers)."""
    batchers = [GatedBatcher(one.model, one.tokenizer, MAX_ROWS) for one in (lab, other)]
    loads = [Loaded(batcher, 1) for batcher in batchers]
    service = lab.beside(other, lambda: loads[0], lambda: loads[1])
    return service, batchers[0], batchers[1]


@anyio
async def test_the_death_of_one_is_not_the_others(lab: Lab, other: Lab) -> None:
    service, first, second = gated_pair(lab, other)
    async with lab.client(service) as client:
        first.free()
        asked = {"prompt": "a", "max_tokens": 4, "ignore_eos": True}
        waiting = asyncio.ensure_future(client.post(COMPLETE, json={**asked, "model": OTHER}))
        await until(lambda: service.engines[1].num_open == 1)
        second.failure = RuntimeError("out of memory")
        second.allow(1)
        refused(await waiting, 503, "engine_dead")
        assert (await client.post(COMPLETE, json=asked)).status_code == 200
        assert "'other'" in refused(await client.get("/health"), 503, "engine_dead")["message"]
        refused(await client.post(COMPLETE, json={**asked, "model": OTHER}), 503, "engine_dead")
        refused(await client.get(f"/v1/models/{OTHER}"), 503, "engine_dead")
        assert [one["id"] for one in (await client.get("/v1/models")).json()["data"]] == [NAME]
        text = (await client.get("/metrics")).text
        assert 'jielong_engine_steps{model="tiny"}' in text and 'jielong_engine_steps{model="other"}' not in text
        assert 'jielong_sequences_total{model="other",reason="error"} 1' in text


@anyio
async def test_a_drain_waits_for_both(lab: Lab, other: Lab) -> None:
    service, first, second = gated_pair(lab, other)
    async with lab.client(service) as client:
        asked = {"prompt": "a", "max_tokens": 4, "ignore_eos": True}
        one, two = (
            asyncio.ensure_future(client.post(COMPLETE, json={**asked, "model": name})) for name in (NAME, OTHER)
        )
        await until(lambda: service.num_open == 2)
        drained = asyncio.ensure_future(service.drain(30))
        await until(lambda: {engine.state for engine in service.engines} == {"draining"})
        for name in (NAME, OTHER):
            refused(await client.post(COMPLETE, json={**asked, "model": name}), 503, "draining")
        refused(await client.get("/health"), 503, "draining")
        assert len((await client.get("/v1/models")).json()["data"]) == 2
        first.free()
        assert (await one).status_code == 200 and not drained.done()
        second.free()
        assert await drained and (await two).status_code == 200
        service.halt()
        assert {engine.state for engine in service.engines} == {"stopped"}


@anyio
async def test_joined_jobs_are_told_of_as_one(lab: Lab, other: Lab) -> None:
    """What each engine makes, in its order; a cancelled one ends; one that fails is told while the other goes on."""
    service, first, second = gated_pair(lab, other)
    wish = Request((5, 6), 3, Sampling(), stop_ids=frozenset())

    def joined() -> Joined:
        return Joined([engine.submit([wish]) for engine in service.engines])

    async with lab.client(service):
        both = joined()
        second.allow(2)  # reads and writes while the first waits
        assert {index for index, _ in await asyncio.wait_for(both.next(), 10)} == {1}
        first.free()
        second.free()
        tokens: dict[int, list[int]] = {0: [], 1: []}
        async for index, delta in everything(both):
            tokens[index] += delta.tokens
        assert len(tokens[0]) == 3 and await both.next() == []
        left = joined()
        left.cancel()
        assert await asyncio.wait_for(left.next(), 10) == []
        await until(lambda: service.num_open == 0)
        second.failure = RuntimeError("out of memory")
        failing = joined()
        with pytest.raises(ApiError, match="failed"):
            async for _ in everything(failing):
                pass
        failing.cancel()
        await until(lambda: service.num_open == 0)


async def everything(job: Joined) -> AsyncIterator[Any]:
    while made := await asyncio.wait_for(job.next(), 10):
        for one in made:
            yield one


def test_names(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "quick"
    policy, base, bare = run / "06-ppo" / "model", run / "04-sft" / "model", tmp_path / "bare"
    for folder in (policy, base, bare, tmp_path / "else" / "bare"):
        folder.mkdir(parents=True)
    (run / "recipe.toml").write_text("")
    none = (None, None)
    assert list(name_models([policy], [None])) == ["quick"] and list(name_models([bare], [None])) == ["bare"]
    assert name_models([policy, bare], none) == {"quick": policy, "bare": bare}
    assert list(name_models([policy, base], none)) == ["06-ppo", "04-sft"], "two of one run"
    assert list(name_models([policy, base], ["new", None])) == ["new", "quick"]
    assert list(name_models([bare, tmp_path / "else" / "bare"], none))[1] == "else-bare"
    with pytest.raises(UsageError, match="both models are called 'x'"):
        name_models([policy, base], ["x", "x"])
    with pytest.raises(UsageError, match="served already"):
        name_models([policy, run / "04-sft" / ".." / "06-ppo" / "model"], ["a", "b"])
    with pytest.raises(UsageError, match="1 to 200"):
        name_models([policy, base], ["a", "line\nend"])


def test_a_translator_goes_beside_translators_only(lab: Lab, translating: Lab, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("decoder", "translator", "another")]
    for one, folder in zip((lab, translating, translating), folders, strict=True):
        save(one.model, one.tokenizer, folder)
    decoder, translator, another = folders
    check_kinds([translator, another])
    for pair in ([decoder, translator], [translator, decoder]):
        with pytest.raises(UsageError, match=r"translator is a translator and .*decoder is none"):
            check_kinds(pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beside", "FOLDER"], "served already"),
        (["--beside-name", "x"], "there is no --beside"),
        (["--name", "x", "--beside", "OTHER", "--beside-name", "x"], "both models are called 'x'"),
        (["--beside", "TRANSLATOR"], "is a translator and"),
    ],
)
def test_wrong_use(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    served: dict[str, Path],
    options: list[str],
    message: str,
) -> None:
    """One message and exit code 2, before anything is loaded or the port is taken."""
    words = [str(served[option]) if option in served else option for option in options]
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(sys, "argv", ["jielong", "serve", str(served["FOLDER"]), *words])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().err
    assert left.value.code == 2 and message in " ".join(told.split()) and "Traceback" not in told


@pytest.fixture(scope="module")
def served(lab: Lab, other: Lab, translating: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    found = {"FOLDER": (lab, "tiny"), "OTHER": (other, "other"), "TRANSLATOR": (translating, "translator")}
    for one, name in found.values():
        save(one.model, one.tokenizer, home / name)
    return {word: home / name for word, (_, name) in found.items()}
