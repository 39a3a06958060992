"""/api/fit and /api/branches: what the chat needs beside /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.serve.engine_thread import EngineThread, Loaded
from jielong.serve.errors import bad_request
from jielong.serve.guard import guard_of
from jielong.serve.intake import read
from jielong.serve.jobs import Job
from jielong.serve.personas import Persona
from jielong.serve.prompts import Wanted, check_room, conversation_ids, engine_requests, most_tokens
from jielong.serve.replies import Envelope, Replies, Reply
from jielong.serve.schema import Body, ChatBody, ChatMessage, Messages, TokenId
from jielong.serve.service import Service, new_id, partition
from jielong.serve.spelling import Told, chat_logprobs
from jielong.serve.stream import EventStream, answer
from jielong.tokenizer.tokenizer import Tokenizer

LEAST_ROOM = 4  # an answer has at least one of so many parts of the context
MOST_PREFIX = 1 << 16


class FitBody(Body):
    """A conversation that ends with the user's turn, and how long the answer to it may be. models: those that are to
    read it; the first one when left out.
    """

    messages: Messages
    models: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=8)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=1 << 30)] = 256


class PrefixToken(Body):
    """A token that an answer begins with: by its id, else by its text, else by the bytes of half a character."""

    id: TokenId | None = None
    text: Annotated[str, Field(max_length=4096)] | None = None
    bytes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(max_length=4096)] | None = None


class BranchBody(ChatBody):
    """What POST /v1/chat/completions takes, and how the answer begins."""

    prefix: Annotated[list[PrefixToken], Field(min_length=1, max_length=MOST_PREFIX)]


def talk_routes(service: Service) -> list[Route]:
    """How much of a conversation the model can see; and an answer that begins as another one did."""
    ids_of_bytes: dict[str, dict[bytes, int]] = {}  # by the model's name

    async def fit(request: Request) -> Response:
        body = await read(request, FitBody, service.settings.limits)
        found = []
        for name in body.models or (None,):
            loaded = service.engine_of(name).ready()
            fits = await fitting(body.messages, body.max_tokens, loaded, service.settings.persona)
            found.append((*fits, loaded.context))
        # Whoever sees least of it: what it leaves out, all leave out, so that all answer the same.
        dropped, num_tokens, context = max(found, key=lambda one: (one[0], -one[2]))
        return answer({"dropped": dropped, "prompt_tokens": num_tokens, "context": context})

    async def branches(request: Request) -> Response:
        body = await read(request, BranchBody, service.settings.limits)
        persona = service.settings.persona
        if persona is not None and persona.guard:
            raise bad_request("this server guards what it says, and gives no tokens to branch from", "prefix")
        engine = service.engine_of(body.model)
        loaded = engine.ready()
        if loaded.translates:
            raise bad_request("a translation cannot be made to begin as another did", "prefix")
        if engine.name not in ids_of_bytes:
            ids_of_bytes[engine.name] = _by_bytes(loaded.tokenizer)
        known = ids_of_bytes[engine.name]
        prefix = [_prefix_id(token, number, loaded, known) for number, token in enumerate(body.prefix)]
        ids = [*await conversation_ids(body.messages, persona, loaded), *prefix]
        check_room([ids], loaded, 1, "prefix")
        most = max(1, most_tokens(body, loaded, persona) - len(prefix))
        # The prompt goes on in the middle of a turn, perhaps of a character: what comes is read as its continuation.
        wanted = Wanted(most, partition(request), logprobs=body.top_logprobs or 0, continues_text=True)
        one = body.model_copy(update={"n": 1})
        job = engine.submit(engine_requests(one, [ids], wanted, loaded, persona))
        return EventStream(_chunks(service, body, engine, job), job.cancel, service.metrics)

    return [Route("/api/fit", fit, methods=["POST"]), Route("/api/branches", branches, methods=["POST"])]


async def fitting(
    messages: Sequence[ChatMessage], max_tokens: int, loaded: Loaded, persona: Persona | None
) -> tuple[int, int]:
    """(how many of the oldest turns must be left out, system message not counted; tokens of the rest).

    The rest leaves room for an answer. Turns go in pairs, a question and its answer; the last question stays, whether
    it fits or not. Of a translator, which reads the last message alone, nothing need be left out. Raises ApiError 400
    for a conversation that the model's form cannot write.
    """
    first = 1 if messages[0].role in ("system", "developer") else 0
    room = min(max_tokens, loaded.context // LEAST_ROOM)
    count = partial(_count, messages, first, loaded, persona)
    if loaded.translates:
        return 0, await count(0)
    low, high = 0, (len(messages) - first - 1) // 2  # pairs left out; the more, the fewer tokens
    while low < high:
        middle = (low + high) // 2
        if await count(middle) + room <= loaded.context:
            high = middle
        else:
            low = middle + 1
    return 2 * low, await count(low)


async def _count(
    messages: Sequence[ChatMessage], first: int, loaded: Loaded, persona: Persona | None, num_pairs: int
) -> int:
    kept = [*messages[:first], *messages[first + 2 * num_pairs :]]
    return len(await conversation_ids(kept, persona, loaded))


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The bytes of every token that has some -> its id; of equals the lowest."""
    found: dict[bytes, int] = {}
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(token)
        if piece:
            found.setdefault(piece, token)
    return found


def _prefix_id(token: PrefixToken, number: int, loaded: Loaded, ids_of_bytes: dict[bytes, int]) -> int:
    """Raises ApiError 400 for what is no token of this model, or a control token: an answer says none."""
    where = f"prefix[{number}]"
    if token.id is not None:
        if token.id >= loaded.tokenizer.vocab_size or not loaded.tokenizer.token_bytes(token.id):
            raise bad_request(f"{where}.id is {token.id}, which is no token that an answer can hold", f"{where}.id")
        return token.id
    piece = bytes(token.bytes) if token.bytes is not None else (token.text or "").encode()
    found = ids_of_bytes.get(piece)
    if found is None:
        raise bad_request(f"{where} is {piece!r:.60}, which is no token of this model", where)
    return found


async def _chunks(service: Service, body: ChatBody, engine: EngineThread, job: Job) -> AsyncIterator[bytes]:
    """The answer as /v1/chat/completions streams it, from behind the prefix on."""
    tokenizer = engine.ready().tokenizer
    reply = Reply(tokenizer, job.requests[0], guard_of(service.settings.persona), holds_odds=True)
    replies = Replies(service, job, [reply])
    envelope = Envelope("chat.completion.chunk", new_id("chatcmpl"), engine.name)

    def chunk(delta: dict[str, Any], told: Sequence[Told] = (), finish_reason: str | None = None, **more: Any) -> bytes:
        odds = chat_logprobs(tokenizer, told, body.top_logprobs or 0) if told else None
        choice = {"index": 0, "delta": delta, "logprobs": odds, "finish_reason": finish_reason, **more}
        return envelope.event(choice, tells_usage=False)

    yield chunk({"role": "assistant", "content": ""})
    async for pieces in replies.pieces():
        for piece in pieces:
            if piece.text or piece.told or piece.tokens:
                yield chunk({"content": piece.text}, piece.told, token_ids=list(piece.tokens))
            if piece.finish_reason:
                yield chunk({}, (), piece.finish_reason)
    yield b"".join(envelope.ending(replies.usage(1)))
