"""/api/comparisons and /api/votes: two answers side by side, and one vote on them.

What was served is kept with the server, and its number is signed: nobody can vote on what was not served, nor write
what was said, nor vote twice. A vote is a line of votes.jsonl, which the stages `reward` and `dpo` read.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.data.votes import Answer, Vote, append_vote
from jielong.errors import DataError
from jielong.generate.requests import Request as Wish
from jielong.serve.engine_thread import Loaded
from jielong.serve.errors import ApiError, bad_request
from jielong.serve.guard import guard_of
from jielong.serve.intake import read
from jielong.serve.jobs import Job
from jielong.serve.page.history import History
from jielong.serve.prompts import Wanted, check_room, conversation_ids, engine_requests
from jielong.serve.replies import Replies, Reply
from jielong.serve.schema import Body, ChatBody
from jielong.serve.service import Service, partition
from jielong.serve.stream import DONE, EventStream, answer, event

SIDES = ("a", "b")
SHORTEST_SECRET = 32  # bytes


class VoteBody(Body):
    """choice: the side of the better answer. edited: what the person would rather have read."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.[0-9a-f]{64}$")]
    choice: Literal["a", "b", "tie", "both_bad"]
    edited: Annotated[str, Field(min_length=1, max_length=1 << 17)] | None = None


@dataclass(frozen=True)
class Ballots:
    """Where comparisons are kept and votes are written. weights: names the model's weights, asked when it is needed."""

    history: History
    votes: Path
    weights: Callable[[], str]

    def sign(self, number: str) -> str:
        """The number of a comparison, with a signature that this history's secret alone can make."""
        secret = self.history.secret("votes", secrets.token_bytes(SHORTEST_SECRET))
        return f"{number}.{hmac.new(secret, number.encode(), hashlib.sha256).hexdigest()}"

    def keep(self, prompt: list[dict[str, str]], answers: list[dict[str, Any]]) -> str:
        """Remembers what was served; the signed number to vote with."""
        number = secrets.token_hex(16)
        self.history.keep_comparison(number, {"prompt": prompt, "answers": answers})
        return self.sign(number)

    def vote(self, body: VoteBody, user: str) -> list[dict[str, Any]]:
        """Writes the vote -> what wrote each side. Raises ApiError: 403 for a number that is not signed by this server,
        404 for one that is not kept any more, 409 when there is a vote on it.
        """
        number = body.id.partition(".")[0]
        if not hmac.compare_digest(self.sign(number), body.id):
            raise ApiError(403, "this comparison was not served here", code="foreign_comparison")
        found = self.history.comparison(number)
        if found is None:
            raise ApiError(404, "this comparison is not kept any more")
        if not self.history.decide(number, body.choice):
            raise ApiError(409, "there is a vote on this comparison already", code="voted")
        record, _ = found
        try:
            answers = tuple(Answer(**one) for one in record["answers"])
            when = datetime.now(timezone.utc).isoformat(timespec="seconds")
            append_vote(self.votes, Vote(number, when, user, record["prompt"], answers, body.choice, body.edited))
        except DataError as error:
            self.history.reopen(number)
            raise bad_request(f"the vote cannot be written: {error}") from None
        except Exception:
            self.history.reopen(number)
            raise
        return [{"model": one.model, "sampling": dict(one.sampling)} for one in answers]

    def num_votes(self) -> int:
        """Lines of the file; 0 where there is none yet."""
        try:
            with self.votes.open("rb") as file:
                return sum(1 for line in file if line.strip())
        except FileNotFoundError:
            return 0


def comparison_routes(service: Service, ballots: Ballots) -> list[Route]:
    """Two answers; a vote; how many there are; all of them."""

    async def compare(request: Request) -> Response:
        body = await read(request, ChatBody, service.settings.limits)
        loaded, persona = service.model(body.model), service.settings.persona
        ids = await conversation_ids(body.messages, persona, loaded)
        check_room([ids], loaded, 1, "messages")
        most = loaded.context if body.max_tokens is None else body.max_tokens
        both = body.model_copy(update={"n": len(SIDES)})
        job = service.engine.submit(engine_requests(both, [ids], Wanted(most, partition(request)), loaded, persona))
        return EventStream(_events(service, body, loaded, job, ballots), job.cancel, service.metrics)

    async def vote(request: Request) -> Response:
        body = await read(request, VoteBody, service.settings.limits)
        user = partition(request)[:12] or "local"
        told = answer({"answers": await run_in_threadpool(ballots.vote, body, user)})
        told.status_code = 201
        return told

    async def count(request: Request) -> Response:
        return answer({"votes": await run_in_threadpool(ballots.num_votes)})

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


async def _events(service: Service, body: ChatBody, loaded: Loaded, job: Job, ballots: Ballots) -> AsyncIterator[bytes]:
    """{"side", "text"} as it is made, {"side", "finish"} at a side's end, then {"id"} to vote with, and [DONE].

    Which sequence is shown on which side is drawn here, so that no habit of the engine can favour one.
    """
    order = [0, 1] if secrets.randbits(1) else [1, 0]  # order[side]: the sequence that is shown there
    sides = {sequence: SIDES[place] for place, sequence in enumerate(order)}
    persona = service.settings.persona
    replies = Replies(service, job, [Reply(loaded.tokenizer, one, guard_of(persona)) for one in job.requests])
    async for pieces in replies.pieces():
        for piece in pieces:
            if piece.text:
                yield event({"side": sides[piece.index], "text": piece.text})
            if piece.finish_reason:
                yield event({"side": sides[piece.index], "finish": piece.finish_reason})
    prompt = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in body.messages]
    if persona is not None:
        prompt.insert(0, {"role": "system", "content": persona.system})
    weights = await run_in_threadpool(ballots.weights)
    answers = [
        {
            "text": replies.each[sequence].text,
            "model": service.model_name,
            "model_hash": weights,
            "sampling": _told(job.requests[sequence]),
        }
        for sequence in order
    ]
    yield event({"id": await run_in_threadpool(ballots.keep, prompt, answers)})
    yield DONE


def _told(wish: Wish) -> dict[str, Any]:
    """How an answer was sampled: what is not as usual, and always temperature and seed."""
    usual = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    usual |= {"frequency_penalty": 0.0}
    sampling = asdict(wish.sampling)
    told = {name: sampling[name] for name, value in usual.items() if sampling[name] != value}
    return {"temperature": sampling["temperature"], **told, "seed": wish.seed, "max_new_tokens": wish.max_new_tokens}
