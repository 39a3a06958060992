"""What becomes of one sequence on its way to a client: text through the guard, tokens and their odds beside it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jielong import __version__
from jielong.generate.requests import Delta, Request
from jielong.serve.errors import ApiError
from jielong.serve.guard import OutputGuard
from jielong.serve.jobs import Job, Joined
from jielong.serve.service import Service, log_event
from jielong.serve.spelling import TokenTrack, Told
from jielong.serve.stream import DONE, event, to_json
from jielong.tokenizer.tokenizer import Tokenizer

FINGERPRINT = f"jielong-{__version__}"
_AFTER, _AFTER_WITH_USAGE = b"]}\n\n", b'],"usage":null}\n\n'


@dataclass
class Envelope:
    """What all chunks and answers to one request say of themselves."""

    kind: str  # OpenAI's "object"
    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """An answer around its choices."""
        return {**self._head, "choices": list(choices)}

    def event(self, choice: dict[str, Any], tells_usage: bool) -> bytes:
        """One chunk of a stream, with one choice. What all chunks have in common is written once: there are many.

        tells_usage: every chunk has the key then, and the last one the numbers.
        """
        return self._before + to_json(choice) + (_AFTER_WITH_USAGE if tells_usage else _AFTER)

    def ending(self, usage: dict[str, Any] | None) -> list[bytes]:
        """What comes behind all choices of a stream: a chunk with the usage where it was asked for, then [DONE]."""
        told = [] if usage is None else [event({**self._head, "choices": [], "usage": usage})]
        return [*told, DONE]

    @cached_property
    def _head(self) -> dict[str, Any]:
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": FINGERPRINT}

    @cached_property
    def _before(self) -> bytes:
        return b"data: " + to_json(self._head)[:-1] + b',"choices":['


class Reply:
    """One sequence. text: what was let out so far. finish_reason: "" while it goes on, then a client's word for it.

    guard: sees the text before anybody does. holds_odds: log-probabilities are told when the text of their tokens is,
    so that they never run ahead of it; those of a stop string or stop token are not told at all.
    """

    def __init__(
        self, tokenizer: Tokenizer, request: Request, guard: OutputGuard | None = None, holds_odds: bool = False
    ) -> None:
        self.text, self.finish_reason = "", ""
        self.tokens: list[int] = []
        self.num_prompt, self.num_cached = len(request.prompt), 0
        self.prompt_told: list[Told] = []
        self._guard, self._holds_odds = guard, holds_odds
        self._waiting: list[Told] = []
        self._track = TokenTrack(tokenizer, request.prompt if request.continues_text else ())
        self._tokenizer = tokenizer

    def take(self, delta: Delta) -> tuple[str, list[Told]]:
        """(text, log-probabilities) that become certain by this delta.

        Raises ApiError 500 when the model's scores are no numbers. After a refusal by the guard finish_reason is
        "content_filter", and the sequence should be cancelled.
        """
        if self.finish_reason:
            return "", []
        if delta.finish_reason == "error":
            message = "the model's scores for the next token are not finite numbers: its weights are damaged"
            raise ApiError(500, message, code="not_finite", headers={"x-should-retry": "false"})
        self.num_cached = delta.num_cached_tokens
        self.tokens.extend(delta.tokens)
        if delta.prompt_logprobs is not None:
            self.prompt_told = TokenTrack(self._tokenizer).follow(delta.prompt_logprobs)
        piece = delta.text
        if self._guard is not None:
            piece = self._guard.feed(piece)
            if delta.finish_reason is not None:
                piece += self._guard.flush()
            if self._guard.refused is not None:
                self.finish_reason = "content_filter"
        if delta.finish_reason is not None and not self.finish_reason:
            self.finish_reason = delta.finish_reason
        self.text += piece
        return piece, self._released(self._track.follow(delta.logprobs))

    @property
    def refused(self) -> str | None:
        return None if self._guard is None else self._guard.refused

    def _released(self, told: list[Told]) -> list[Told]:
        if not self._holds_odds:
            return told
        waiting = self._waiting + told
        ready = [one for one in waiting if one.begins < len(self.text)]
        self._waiting = waiting[len(ready) :]
        return ready


@dataclass
class Piece:
    """What is new of one sequence. finish_reason: "" unless this is its last piece."""

    index: int
    text: str = ""
    told: list[Told] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""


class Replies:
    """The sequences of one HTTP request, as they are made."""

    def __init__(self, service: Service, job: Job | Joined, replies: Sequence[Reply]) -> None:
        self.each = list(replies)
        self._service, self._job = service, job

    @property
    def have_ended(self) -> bool:
        """Whether no piece comes any more."""
        return all(reply.finish_reason for reply in self.each)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What is new, one piece a sequence at a time; each sequence has exactly one piece with a finish_reason.

        A reply that the guard has refused is counted, logged and cancelled. Raises ApiError when the engine fails.
        """
        while not self.have_ended and (made := await self._job.next()):
            found: dict[int, Piece] = {}
            for index, delta in made:
                reply = self.each[index]
                if reply.finish_reason:
                    continue  # made before the engine knew that the guard had ended it
                piece = found.setdefault(index, Piece(index))
                text, told = reply.take(delta)
                piece.text += text
                piece.told += told
                piece.tokens += delta.tokens
                piece.finish_reason = reply.finish_reason
                if reply.refused is not None:
                    self._refuse(index, reply.refused)
            if found:
                yield list(found.values())

    async def all_told(self) -> list[list[Told]]:
        """Waits until all have ended: the log-probabilities told of each. Their texts are then in `each`."""
        told: list[list[Told]] = [[] for _ in self.each]
        async for pieces in self.pieces():
            for piece in pieces:
                told[piece.index] += piece.told
        return told

    def _refuse(self, index: int, rule: str) -> None:
        self._job.cancel(index)
        self._service.metrics.refused.add(1, rule)
        log_event("guard_refusal", {"rule": rule})

    def usage(self, num_choices: int) -> dict[str, Any]:
        """Tokens read and made. A prompt counts once, however many choices there are of it."""
        prompts = self.each[::num_choices]
        num_prompt, num_made = sum(one.num_prompt for one in prompts), sum(len(one.tokens) for one in self.each)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_made,
            "total_tokens": num_prompt + num_made,
            "prompt_tokens_details": {"cached_tokens": sum(one.num_cached for one in prompts)},
        }
