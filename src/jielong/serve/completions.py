"""POST /v1/completions: texts continued, and scored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jielong.serve.engine_thread import EngineThread
from jielong.serve.errors import ApiError, bad_request
from jielong.serve.intake import read
from jielong.serve.jobs import Job
from jielong.serve.prompts import Prompts, Wanted, check_room, engine_requests, num_sequences, prompt_rows
from jielong.serve.replies import Envelope, Piece, Replies, Reply
from jielong.serve.schema import CompletionBody
from jielong.serve.service import Service, log_event, new_id, partition
from jielong.serve.spelling import Told, completion_logprobs
from jielong.serve.stream import EventStream, Stencil, answer, unless_gone

SHORT = 16  # OpenAI's max_tokens where none is given


class Completions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def post(self, request: Request) -> Response:
        service = self._service
        body = await read(request, CompletionBody, service.settings.limits)
        engine = service.engine_of(body.model)
        loaded = engine.ready()
        if service.settings.persona is not None:
            message = "this server plays a role and answers in chats only; a raw completion would leave the role"
            raise ApiError(403, message, code="persona_served")
        num_sequences(body, _num_prompts(body.prompt), service.settings.limits.sequences)
        rows = await prompt_rows(body.prompt, loaded, "prompt")
        if body.echo and loaded.translates:
            raise bad_request("echo: a translator's answer does not go on from its prompt", "echo")
        usual = loaded.context if loaded.translates else SHORT
        most = usual if body.max_tokens is None else body.max_tokens
        check_room(rows, loaded, min(most, 1), "prompt")
        scored = body.logprobs if body.echo else None
        wanted = Wanted(most, partition(request), body.logprobs, scored, continues_text=True)
        job = engine.submit(engine_requests(body, rows, wanted, loaded))
        call = _Call(service, body, engine, job)
        if body.stream:
            return EventStream(call.events(), job.cancel, service.metrics)
        return answer(await unless_gone(request, call.answer(), job.cancel, service.metrics))


def _num_prompts(prompt: Prompts) -> int:
    return 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)


class _Call:
    """One request while it is answered. Choice k of prompt p has the index p * n + k."""

    def __init__(self, service: Service, body: CompletionBody, engine: EngineThread, job: Job) -> None:
        self._service, self._body, self._job, self._tokenizer = service, body, job, engine.ready().tokenizer
        self._num_choices = body.n or 1
        self._replies = Replies(service, job, [Reply(self._tokenizer, one) for one in job.requests])
        self._envelope = Envelope("text_completion", new_id("cmpl"), engine.name)
        self._stencils: dict[int, Stencil] = {}
        self._echoed = [self._prompt(index) if body.echo else "" for index in range(len(job.requests))]

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        told = await self._replies.all_told()
        choices = []
        for index, reply in enumerate(self._replies.each):
            piece = Piece(index, reply.text, told[index], reply.tokens, reply.finish_reason)
            choices.append(self._choice(piece, begins=True))
        self._log()
        return {**self._envelope.wrap(choices), "usage": self._replies.usage(self._num_choices)}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer piece by piece, usage if wanted, [DONE]. What is new at one time comes together."""
        begun: set[int] = set()
        async for pieces in self._replies.pieces():
            chunks = []
            for piece in pieces:
                begins = piece.index not in begun
                is_told = piece.told or (piece.tokens and self._body.return_token_ids)  # also where text is still held
                if piece.text or is_told or piece.finish_reason or (begins and self._body.echo):
                    begun.add(piece.index)
                    chunks.append(self._chunk(piece, begins))
            if self._replies.have_ended:
                self._log()
                usage = self._replies.usage(self._num_choices) if self._body.tells_usage else None
                chunks += self._envelope.ending(usage)
            if chunks:
                yield b"".join(chunks)

    def _chunk(self, piece: Piece, begins: bool) -> bytes:
        body = self._body
        if begins or piece.finish_reason or body.logprobs is not None or body.return_token_ids:
            return self._envelope.event(self._choice(piece, begins), body.tells_usage)
        stencil = self._stencils.get(piece.index)  # all between the first and the last differ in the text alone
        if stencil is None:
            choice = self._choice(Piece(piece.index, Stencil.HOLE), begins=False)
            stencil = self._stencils[piece.index] = Stencil(self._envelope.event(choice, body.tells_usage))
        return stencil.fill(piece.text)

    def _choice(self, piece: Piece, begins: bool) -> dict[str, Any]:
        """One choice. begins: the prompt is told with it, where it is to be told."""
        prompt = self._echoed[piece.index]
        text = (prompt if begins else "") + piece.text
        choice = {"index": piece.index, "text": text, "finish_reason": piece.finish_reason or None, "logprobs": None}
        if self._body.logprobs is not None:
            before = self._replies.each[piece.index].prompt_told if begins else []  # [] where none was asked for
            choice["logprobs"] = self._odds(before, piece.told, len(prompt))
        if self._body.return_token_ids:
            choice["token_ids"] = list(piece.tokens)
            choice["prompt_token_ids"] = list(self._job.requests[piece.index].prompt) if begins else None
        return choice

    def _odds(self, before: Sequence[Told], told: Sequence[Told], num_characters: int) -> dict[str, Any]:
        """num_characters: those that stand before the completion."""
        odds = completion_logprobs(self._tokenizer, [*before, *told], self._body.logprobs or 0)
        moved = [begins + num_characters for begins in odds["text_offset"][len(before) :]]
        return {**odds, "text_offset": odds["text_offset"][: len(before)] + moved}

    def _prompt(self, index: int) -> str:
        """A prompt as the client wrote it; ids as the text they stand for."""
        number, prompt = index // self._num_choices, self._body.prompt
        if isinstance(prompt, str):
            return prompt
        one = prompt if isinstance(prompt[0], int) else prompt[number]
        return one if isinstance(one, str) else self._tokenizer.decode(self._job.requests[index].prompt)

    def _log(self) -> None:
        if self._service.settings.log_prompts:
            numbers = range(0, len(self._replies.each), self._num_choices)
            said = [reply.text for reply in self._replies.each]
            prompts = [self._prompt(number) for number in numbers]
            log_event("completion", {"id": self._envelope.id, "prompts": prompts, "answers": said})
