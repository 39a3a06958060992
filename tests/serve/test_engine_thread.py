"""The engine's thread: who gets in, who leaves when, and what everybody is told when it fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import torch

from jielong.errors import ModelError, UsageError
from jielong.generate.requests import Delta
from jielong.serve.api import build_app
from jielong.serve.engine_thread import Loaded
from jielong.serve.service import Service
from jielong.serve.settings import Limits, ServeSettings
from jielong.serve.stream import EventStream

from .conftest import MAX_ROWS, GatedBatcher, Lab, build_model
from .test_bad_input import refused

pytestmark = pytest.mark.anyio
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = {"prompt": "the cat", "max_tokens": 100, "ignore_eos": True}


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not come to that"
        await asyncio.sleep(0.001)


@asynccontextmanager
async def gated(lab: Lab, **limits: Any) -> AsyncIterator[tuple[httpx2.AsyncClient, Service, GatedBatcher]]:
    lab = Lab(lab.model, lab.tokenizer, ServeSettings(limits=Limits(**limits)))
    service, batcher = lab.gated()
    async with lab.client(service) as client:
        try:
            yield client, service, batcher
        finally:
            batcher.free()


async def test_a_full_queue_is_told(lab: Lab) -> None:
    async with gated(lab, queue=2) as (client, service, batcher):
        tasks = [asyncio.ensure_future(client.post(COMPLETE, json=LONG)) for _ in range(MAX_ROWS + 2)]
        await until(lambda: service.engine.num_open == MAX_ROWS + 2)
        for stream in (False, True):
            answer = await client.post(COMPLETE, json={**LONG, "stream": stream})
            refused(answer, 429, "queue_full")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        refused(await client.post(CHAT, json={"messages": [{"role": "user", "content": "hi"}], "n": 3}), 429)
        batcher.free()
        assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * (MAX_ROWS + 2)
        assert (await client.post(COMPLETE, json={"prompt": "a", "max_tokens": 1})).status_code == 200
        assert service.engine.num_open == 0


async def test_all_or_none_of_a_request_gets_in(lab: Lab) -> None:
    async with gated(lab, queue=0) as (client, service, batcher):
        task = asyncio.ensure_future(client.post(COMPLETE, json={**LONG, "n": 3}))
        await until(lambda: service.engine.num_open == 3)
        refused(await client.post(COMPLETE, json={**LONG, "n": 2}), 429)
        assert service.engine.num_open == 3
        batcher.free()
        assert len((await task).json()["choices"]) == 3


async def test_loading(lab: Lab) -> None:
    go = threading.Event()

    def load() -> Loaded:
        assert go.wait(10)
        return lab.load()

    async with lab.client(lab.service(load), wait=False) as client:
        for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", COMPLETE), ("GET", "/tokenizer_info")):
            answer = await client.request(method, path, json=LONG)
            refused(answer, 503, "loading")
            assert answer.headers["retry-after"]
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/version")).status_code == 200
        go.set()

        async def is_healthy() -> None:
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.001)

        await asyncio.wait_for(is_healthy(), 10)
        assert (await client.post(COMPLETE, json={"prompt": "a", "max_tokens": 1})).status_code == 200


async def test_loading_fails(lab: Lab) -> None:
    def load() -> Loaded:
        raise ModelError("no such model")

    service, told = lab.service(load), list[BaseException]()
    service.engine.on_death = told.append
    async with lab.client(service, wait=False) as client:
        with pytest.raises(ModelError):
            await service.engine.loaded()
        refused(await client.get("/health"), 503, "engine_dead")
    assert [str(error) for error in told] == ["no such model"] and not service.engine.was_ready


async def test_a_dying_engine_leaves_nobody_waiting(lab: Lab) -> None:
    """Whoever waits, whole or streaming, running or queued or asking for metrics, gets an error."""
    async with gated(lab) as (client, service, batcher):
        whole = [asyncio.ensure_future(client.post(COMPLETE, json=LONG)) for _ in range(MAX_ROWS + 1)]
        stream = asyncio.ensure_future(
            client.post(CHAT, json={"messages": [{"role": "user", "content": "x"}], "stream": True})
        )
        metrics = asyncio.ensure_future(client.get("/metrics"))
        embedding = asyncio.ensure_future(client.post("/v1/embeddings", json={"input": "a"}))
        await until(lambda: service.engine.num_open == MAX_ROWS + 2)
        batcher.failure = RuntimeError("out of memory")
        batcher.allow(1)
        for answer in await asyncio.gather(*whole):
            refused(answer, 503, "engine_dead")
        events = (await stream).text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert "[DONE]" not in (await stream).text
        assert (await embedding).status_code in (200, 503) and (await metrics).status_code == 200
        refused(await client.get("/health"), 503, "engine_dead")
        refused(await client.post(COMPLETE, json=LONG), 503, "engine_dead")
        assert service.engine.num_open == 0 and "out of memory" not in (await stream).text


async def test_scores_that_are_no_numbers_are_one_requests_error(lab: Lab) -> None:
    """A model with NaN in a row of its embedding: who meets that token gets an error, the others their answers."""
    model = build_model(lab.tokenizer)
    with torch.no_grad():
        model.get_parameter("embed.weight")[ord("Z")] = float("nan")
    async with Lab(model, lab.tokenizer).client() as client:
        bad = {"prompt": [ord("Z")], "max_tokens": 2}
        answer = await client.post(COMPLETE, json=bad)
        refused(answer, 500, "not_finite")
        assert answer.headers["x-should-retry"] == "false"
        events = (await client.post(COMPLETE, json={**bad, "stream": True})).text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_finite"
        good = {"prompt": "the cat", "max_tokens": 3, "logit_bias": {str(ord("Z")): -100}}
        assert (await client.get("/health")).status_code == 200
        assert (await client.post(COMPLETE, json=good)).status_code in (200, 500)


async def test_a_request_that_the_batcher_refuses_ends_nobody_else(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has passed the check before; should the engine's thread find something all the same, it goes on."""
    async with gated(lab) as (client, service, batcher):
        other = asyncio.ensure_future(client.post(COMPLETE, json=LONG))
        await until(lambda: service.engine.num_open == 1)
        batcher.allow(1)
        await until(lambda: batcher.num_steps == 1)
        real, asked = batcher.submit, list[Any]()

        def submit(request: Any) -> int:
            asked.append(request)
            if len(asked) == 2:
                raise UsageError("not this one")
            return real(request)

        monkeypatch.setattr(batcher, "submit", submit)
        batcher.free()
        found = refused(await client.post(COMPLETE, json={**LONG, "n": 3}))
        assert found["message"] == "not this one"
        assert (await other).status_code == 200 and service.engine.num_open == 0 and batcher.num_running == 0
        assert (await client.post(COMPLETE, json={"prompt": "a", "max_tokens": 1})).status_code == 200


async def leaving(
    service: Service, body: dict[str, Any], path: str = COMPLETE
) -> tuple[list[Any], Callable[[], None], Any]:
    """One request spoken as ASGI: what was sent so far, a function that leaves, and the task."""
    app, sent, left = build_app(service), list[Any](), asyncio.Event()
    content = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if content:
            return content.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": headers, "root_path": "", "scheme": "http", "client": ("127.0.0.1", 1)}  # fmt: skip
    task = asyncio.ensure_future(app(scope, receive, send))
    await asyncio.sleep(0)
    return sent, left.set, task


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 7])
async def test_leaving_frees_the_row_within_a_step(lab: Lab, stream: bool, num_steps: int) -> None:
    """The client leaves when nothing was read, at the first token, in the middle: at the next step no row is taken."""
    async with gated(lab) as (_, service, batcher):
        body = {**LONG, "n": 2, "stream": stream}
        _, leave, task = await leaving(service, body)
        await until(lambda: service.engine.num_open == 2)
        for number in range(num_steps):
            batcher.allow(1)
            await until(lambda number=number: batcher.num_steps == number + 1)  # type: ignore[misc]
        leave()
        await asyncio.wait_for(task, 5)
        batcher.allow(1)  # the step it may be in
        await until(lambda: service.engine.num_open == 0)
        assert batcher.num_running + batcher.num_waiting == 0 and batcher.num_steps <= num_steps + 1
        assert service.metrics.disconnected.values[()] == 1
        assert service.engine.metrics.finished.values[("cancelled",)] == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_while_queued(lab: Lab, stream: bool) -> None:
    async with gated(lab) as (client, service, batcher):
        others = [asyncio.ensure_future(client.post(COMPLETE, json={**LONG, "seed": n})) for n in range(MAX_ROWS)]
        await until(lambda: service.engine.num_open == MAX_ROWS)
        _, leave, task = await leaving(service, {**LONG, "stream": stream})
        await until(lambda: service.engine.num_open == MAX_ROWS + 1)
        batcher.allow(2)
        await until(lambda: batcher.num_steps == 2)
        assert batcher.num_waiting == 1
        leave()
        await asyncio.wait_for(task, 5)
        batcher.allow(1)
        await until(lambda: service.engine.num_open == MAX_ROWS)
        batcher.free()
        assert {answer.status_code for answer in await asyncio.gather(*others)} == {200}


async def test_leaving_between_the_last_token_and_the_usage(lab: Lab) -> None:
    """A client that leaves when all is made: nothing to cancel, nothing breaks."""
    async with gated(lab) as (client, service, batcher):
        body = {
            "prompt": "a",
            "max_tokens": 2,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent, leave, task = await leaving(service, body)
        await until(lambda: service.engine.num_open == 1)
        batcher.allow(2)
        await until(lambda: batcher.num_running == 0 and batcher.num_steps == 2)
        leave()
        await asyncio.wait_for(task, 5)
        await until(lambda: service.engine.num_open == 0)
        batcher.free()
        assert (await client.post(COMPLETE, json={"prompt": "a", "max_tokens": 1})).status_code == 200
        assert sent[0]["status"] == 200


async def test_leaving_during_embeddings(lab: Lab) -> None:
    async with gated(lab) as (client, service, batcher):
        other = asyncio.ensure_future(client.post(COMPLETE, json=LONG))
        await until(lambda: service.engine.num_open == 1)
        _, leave, task = await leaving(service, {"input": ["a"] * 50}, "/v1/embeddings")
        await asyncio.sleep(0.01)
        leave()
        await asyncio.wait_for(task, 5)
        batcher.free()
        assert (await other).status_code == 200


async def test_a_stream_that_waits_is_kept_alive(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, which clients of server-sent events skip, until something comes."""
    monkeypatch.setattr(EventStream, "PING_SECONDS", 0.01)
    async with gated(lab) as (_, service, batcher):
        sent, _, task = await leaving(service, {"prompt": "a", "max_tokens": 2, "ignore_eos": True, "stream": True})
        await until(lambda: len(sent) > 3)
        assert {message["body"] for message in sent[1:4]} == {b": still here\n\n"}
        batcher.free()
        await asyncio.wait_for(task, 10)
        assert sent[-2]["body"].endswith(b"data: [DONE]\n\n") and not sent[-1]["more_body"]


async def test_draining(lab: Lab) -> None:
    async with gated(lab) as (client, service, batcher):
        running = asyncio.ensure_future(client.post(COMPLETE, json=LONG))
        await until(lambda: service.engine.num_open == 1)
        drained = asyncio.ensure_future(service.engine.drain(30))
        await asyncio.sleep(0)
        for path, body in ((COMPLETE, LONG), ("/v1/embeddings", {"input": "a"})):
            refused(await client.post(path, json=body), 503, "draining")
        refused(await client.get("/health"), 503, "draining")
        batcher.free()
        assert await drained
        assert (await running).status_code == 200 and (await running).json()["usage"]["completion_tokens"] == 100


async def test_a_drain_has_an_end(lab: Lab) -> None:
    async with gated(lab) as (client, service, batcher):
        running = asyncio.ensure_future(client.post(COMPLETE, json=LONG))
        await until(lambda: service.engine.num_open == 1)
        assert not await service.engine.drain(0.01)
        service.engine.halt()
        refused(await running, 503, "stopped")  # while the step that it is in still goes on
        assert batcher.num_steps == 0


async def test_what_a_halted_engine_still_makes_is_nobodys(lab: Lab) -> None:
    """Its last step may end a request that was told of its end already; that is counted once."""
    async with gated(lab) as (client, service, batcher):
        engine, is_in_step, step = service.engine, threading.Event(), batcher.step

        def watched() -> list[Delta]:
            is_in_step.set()
            return step()

        batcher.step = watched  # type: ignore[method-assign]
        running = asyncio.ensure_future(client.post(COMPLETE, json={"prompt": "a", "max_tokens": 1}))
        await until(is_in_step.is_set)
        engine.halt()
        refused(await running, 503, "stopped")
        batcher.free()
        await until(lambda: not engine._thread.is_alive())
        await asyncio.sleep(0)
        assert batcher.num_steps == 1 and engine.num_open == 0
        assert engine.metrics.finished.values == {("error",): 1}


async def test_neighbours_cannot_be_told_apart(lab: Lab) -> None:
    """Two dozen requests at once, of all lengths: each text is that of the same request alone."""
    asked: list[dict[str, Any]] = [{"prompt": f"the cat {n}", "max_tokens": 5 + n, "seed": n} for n in range(24)]
    async with lab.client() as client:

        async def text(body: dict[str, Any]) -> str:
            found: str = (await client.post(COMPLETE, json=body)).json()["choices"][0]["text"]
            return found

        alone = [await text(body) for body in asked]
        tasks: list[Awaitable[httpx2.Response]] = [client.post(COMPLETE, json=body) for body in asked]
        together = [answer.json()["choices"][0]["text"] for answer in await asyncio.gather(*tasks)]
    assert together == alone
