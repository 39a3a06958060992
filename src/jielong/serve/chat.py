"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jielong.serve.engine_thread import EngineThread, Loaded
from jielong.serve.errors import bad_request
from jielong.serve.forms import Forms
from jielong.serve.guard import guard_of
from jielong.serve.intake import read
from jielong.serve.jobs import Job
from jielong.serve.prompts import Wanted, check_room, conversation_ids, engine_requests, most_tokens, num_sequences
from jielong.serve.replies import Envelope, Piece, Replies, Reply
from jielong.serve.schema import ChatBody
from jielong.serve.service import Service, log_event, new_id, partition
from jielong.serve.spelling import Told, chat_logprobs
from jielong.serve.stream import EventStream, Stencil, answer, unless_gone


class Chat:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._forms = {engine.name: Forms() for engine in service.engines}

    async def post(self, request: Request) -> Response:
        service, persona = self._service, self._service.settings.persona
        body = await read(request, ChatBody, service.settings.limits)
        engine = service.engine_of(body.model)
        loaded = engine.ready()
        _check(body, loaded, guarded=persona is not None and bool(persona.guard))
        num_sequences(body, 1, service.settings.limits.sequences)
        ids = await conversation_ids(body.messages, persona, loaded)
        check_room([ids], loaded, 1, "messages")
        odds = (body.top_logprobs or 0) if body.logprobs else None
        wanted = Wanted(most_tokens(body, loaded, persona), partition(request), logprobs=odds)
        constraints = await self._forms[engine.name].constraints(body, loaded)
        asked = engine_requests(body, [ids], wanted, loaded, persona)
        asked = [replace(one, constraint=form) for one, form in zip(asked, constraints, strict=True)]
        job = engine.submit(asked)
        call = _Call(service, body, engine, job)
        if body.stream:
            return EventStream(call.events(), job.cancel, service.metrics)
        whole = await unless_gone(request, call.answer(), job.cancel, service.metrics)
        return answer(whole)


def _check(body: ChatBody, loaded: Loaded, guarded: bool) -> None:
    """Raises ApiError 400 for what is legal but not done here."""
    if loaded.translates and body.response_format is not None and body.response_format.type != "text":
        raise bad_request("a translator writes no JSON", "response_format")
    if guarded and (body.logprobs or body.return_token_ids):
        raise bad_request("this server guards what it says, and gives no tokens and log-probabilities", "logprobs")


class _Call:
    """One request while it is answered."""

    def __init__(self, service: Service, body: ChatBody, engine: EngineThread, job: Job) -> None:
        self._service, self._body, self._job, self._model = service, body, job, engine.name
        self._tokenizer = engine.ready().tokenizer
        persona, held = service.settings.persona, body.logprobs is True
        self._replies = Replies(
            service, job, [Reply(self._tokenizer, one, guard_of(persona), holds_odds=held) for one in job.requests]
        )
        self._id = new_id("chatcmpl")
        self._envelope = Envelope("chat.completion.chunk", self._id, self._model)
        self._stencils: dict[int, Stencil] = {}

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        told = await self._replies.all_told()
        choices = []
        for index, reply in enumerate(self._replies.each):
            message = {"role": "assistant", "content": reply.text, "refusal": None}
            choice = {"index": index, "message": message, "finish_reason": reply.finish_reason}
            choices.append({**choice, "logprobs": self._odds(told[index]), **self._ids(reply.tokens)})
        self._log()
        whole = Envelope("chat.completion", self._id, self._model).wrap(choices)
        whole["usage"] = self._replies.usage(len(choices))
        if self._body.return_token_ids:
            whole["prompt_token_ids"] = list(self._job.requests[0].prompt)
        return whole

    async def events(self) -> AsyncIterator[bytes]:
        """The answer piece by piece: role, text, finish_reason, usage if wanted, [DONE].

        What is new at one time comes together.
        """
        yield b"".join(self._chunk(n, {"role": "assistant", "content": ""}) for n in range(len(self._replies.each)))
        async for pieces in self._replies.pieces():
            chunks = [chunk for piece in pieces for chunk in self._chunks(piece)]
            if self._replies.have_ended:
                self._log()
                usage = self._replies.usage(len(self._replies.each)) if self._body.tells_usage else None
                chunks += self._envelope.ending(usage)
            if chunks:
                yield b"".join(chunks)

    def _chunks(self, piece: Piece) -> Iterator[bytes]:
        """Its text, and the end if it has come to that."""
        body, index = self._body, piece.index
        ids = piece.tokens if body.return_token_ids else []  # told also where their text is still held
        if piece.text and not (body.logprobs or body.return_token_ids):
            if index not in self._stencils:
                self._stencils[index] = Stencil(self._chunk(index, {"content": Stencil.HOLE}))
            yield self._stencils[index].fill(piece.text)
        elif piece.text or piece.told or ids:
            yield self._chunk(index, {"content": piece.text}, piece)
        if piece.finish_reason:
            yield self._chunk(index, {}, finish_reason=piece.finish_reason)

    def _chunk(
        self, index: int, delta: dict[str, Any], told: Piece | None = None, finish_reason: str | None = None
    ) -> bytes:
        """told: whose log-probabilities and ids stand beside the text, where they are asked for."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        if told is not None:
            choice |= {"logprobs": self._odds(told.told), **self._ids(told.tokens)}
        return self._envelope.event(choice, self._body.tells_usage)

    def _odds(self, told: Sequence[Told]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._tokenizer, told, self._body.top_logprobs or 0)

    def _ids(self, tokens: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": list(tokens)} if self._body.return_token_ids else {}

    def _log(self) -> None:
        if self._service.settings.log_prompts:
            messages = [{"role": message.role, "content": message.text} for message in self._body.messages]
            said = [reply.text for reply in self._replies.each]
            log_event("chat", {"id": self._id, "messages": messages, "answers": said})
