"""/api/comparisons and /api/votes: two answers side by side, and one vote on them.

The two are of one model, or each of another where two are served. What was served is kept with the server, and its
number is signed: nobody can vote on what was not served, nor write what was said, nor vote twice. A vote is a line of
votes.jsonl, which the stages `reward`, `dpo` and `promote` read.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.generate.requests import Request as Wish
from jielong.runtime import derive_seed
from jielong.serve.engine_thread import EngineThread
from jielong.serve.errors import ApiError, bad_request
from jielong.serve.guard import guard_of
from jielong.serve.intake import read
from jielong.serve.jobs import Job, Joined
from jielong.serve.page.votes import SIDES, Ballots, VoteBody
from jielong.serve.prompts import Wanted, check_room, conversation_ids, engine_requests, most_tokens
from jielong.serve.replies import Replies, Reply
from jielong.serve.schema import ChatBody
from jielong.serve.service import Service, log_event, partition
from jielong.serve.stream import DONE, EventStream, answer, event

_TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True)
class Duel:
    """Two sequences that are made at once. writers, weights: whose each is, and the name of that model's weights."""

    job: Job | Joined
    writers: Sequence[EngineThread]
    weights: Sequence[str]


def comparison_routes(service: Service, ballots: Ballots) -> list[Route]:
    """Two answers; a vote; how many there are; all of them."""

    async def compare(request: Request) -> Response:
        body = await read(request, ChatBody, service.settings.limits)
        engines = service.engines if body.model is None else (service.engine_of(body.model),)
        weights = [await run_in_threadpool(ballots.weights[engine.name].name) for engine in engines]
        if len(engines) == 1:
            asked = await _wishes(service, body.model_copy(update={"n": len(SIDES)}), engines[0], partition(request))
            duel = Duel(engines[0].submit(asked), engines * 2, weights * 2)
        else:
            duel = Duel(_submit(engines, await _one_of_each(service, body, partition(request))), engines, weights)
        return EventStream(_events(service, body, duel, ballots), duel.job.cancel, service.metrics)

    async def vote(request: Request) -> Response:
        body = await read(request, VoteBody, service.settings.limits)
        user = partition(request)[:12] or "local"
        told = answer({"answers": await run_in_threadpool(ballots.vote, body, user)})
        told.status_code = 201
        return told

    async def count(request: Request) -> Response:
        return answer(await run_in_threadpool(ballots.counts))

    async def votes(request: Request) -> Response:
        try:
            content = await run_in_threadpool(ballots.votes.read_bytes)
        except FileNotFoundError:
            content = b""
        return Response(content, media_type="application/jsonl", headers={"cache-control": "no-store"})

    return [
        Route("/api/comparisons", compare, methods=["POST"]),
        Route("/api/votes", vote, methods=["POST"]),
        Route("/api/votes", count, methods=["GET"]),
        Route("/api/votes.jsonl", votes, methods=["GET"]),
    ]


async def _wishes(service: Service, body: ChatBody, engine: EngineThread, cache: str) -> list[Wish]:
    """body.n answers of one model. Raises ApiError as /v1/chat/completions does."""
    loaded, persona = engine.ready(), service.settings.persona
    ids = await conversation_ids(body.messages, persona, loaded)
    check_room([ids], loaded, 1, "messages")
    return engine_requests(body, [ids], Wanted(most_tokens(body, loaded, persona), cache), loaded, persona)


async def _one_of_each(service: Service, body: ChatBody, cache: str) -> list[Wish]:
    """An answer of each model, from seeds of their own: with the same one, models that are much alike say the same.

    Raises ApiError 400 where one of them cannot answer, saying which.
    """
    seed = secrets.randbits(62) if body.seed is None else body.seed
    wishes: list[Wish] = []
    failed: list[tuple[str, ApiError]] = []
    for place, engine in enumerate(service.engines):
        one = body.model_copy(update={"n": 1, "seed": derive_seed(seed, "side", place)})
        try:
            wishes += await _wishes(service, one, engine, cache)
        except ApiError as error:
            failed.append((engine.name, error))
    if not failed:
        return wishes
    name, why = failed[0]
    if why.status >= 500:  # loading, or dead: says which
        raise why
    if wishes and why.code == _TOO_LONG:
        [other] = [engine.name for engine in service.engines if engine.name != name]
        message = f"{other!r} can read this, but {name!r} cannot: {why.message}. Or ask {other!r} alone"
        raise bad_request(message, why.param, "too_long_for_one")
    raise ApiError(why.status, f"{name!r}: {why.message}", param=why.param, code=why.code)


def _submit(engines: Sequence[EngineThread], wishes: Sequence[Wish]) -> Joined:
    """One sequence to each engine, to all or to none. Raises ApiError as `EngineThread.submit` does."""
    jobs: list[Job] = []
    try:
        for engine, wish in zip(engines, wishes, strict=True):
            jobs.append(engine.submit([wish]))
    except ApiError:
        for job in jobs:
            job.cancel()
        raise
    return Joined(jobs)


async def _events(service: Service, body: ChatBody, duel: Duel, ballots: Ballots) -> AsyncIterator[bytes]:
    """{"side", "text"} as it is made, {"side", "finish"} at a side's end, then {"id"} to vote with, and [DONE].

    Which sequence is shown on which side is drawn here, so that neither a habit of the engine nor the order of the
    models can favour one, and nothing that is told before the vote says which is which.
    """
    order = [0, 1] if secrets.randbits(1) else [1, 0]  # order[side]: the sequence that is shown there
    sides = {sequence: SIDES[place] for place, sequence in enumerate(order)}
    persona, requests = service.settings.persona, duel.job.requests
    try:
        tokenizers = [writer.ready().tokenizer for writer in duel.writers]
        each = [Reply(t, one, guard_of(persona)) for t, one in zip(tokenizers, requests, strict=True)]
        async for pieces in Replies(service, duel.job, each).pieces():
            for piece in pieces:
                if piece.text:
                    yield event({"side": sides[piece.index], "text": piece.text})
                if piece.finish_reason:
                    yield event({"side": sides[piece.index], "finish": piece.finish_reason})
    except ApiError:
        duel.job.cancel()  # what one engine has failed at, the other need not finish
        raise
    prompt = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in body.messages]
    if persona is not None:
        prompt.insert(0, {"role": "system", "content": persona.system})
    answers = [
        {
            "text": each[sequence].text,
            "model": duel.writers[sequence].name,
            "model_hash": duel.weights[sequence],
            "sampling": _told(requests[sequence]),
        }
        for sequence in order
    ]
    if service.settings.log_prompts:
        log_event("comparison", {"messages": prompt, "answers": [one["text"] for one in answers]})
    yield event({"id": await run_in_threadpool(ballots.keep, prompt, answers)})
    yield DONE


def _told(wish: Wish) -> dict[str, Any]:
    """How an answer was sampled: what is not as usual, and always temperature and seed."""
    usual = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    usual |= {"frequency_penalty": 0.0}
    sampling = asdict(wish.sampling)
    told = {name: sampling[name] for name, value in usual.items() if sampling[name] != value}
    return {"temperature": sampling["temperature"], **told, "seed": wish.seed, "max_new_tokens": wish.max_new_tokens}
