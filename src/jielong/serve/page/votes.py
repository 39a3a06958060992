"""What may be voted on, and the votes: signed numbers, a record of what was served, and lines of votes.jsonl."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from jielong.data.votes import Answer, Vote, append_vote
from jielong.errors import DataError, ModelError, StorageError
from jielong.folder import model_hash
from jielong.serve.errors import ApiError, bad_request, no_room, unavailable
from jielong.serve.page.history import History
from jielong.serve.schema import Body

SIDES = ("a", "b")
SHORTEST_SECRET = 32  # bytes


class VoteBody(Body):
    """choice: the side of the better answer. edited: what the person would rather have read."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.[0-9a-f]{64}$")]
    choice: Literal["a", "b", "tie", "both_bad"]
    edited: Annotated[str, Field(min_length=1, max_length=1 << 17)] | None = None


class Weights:
    """The weights of a served model, for their name in votes. They must be those that were there when the server began:
    another round may have written others into the folder since, which did not answer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._began_with, self._name = folder, _stamps(folder), ""

    def name(self) -> str:
        """As `folder.model_hash`, read once. Raises ApiError 503 when the files are gone or not the same any more."""
        if not self._name:
            try:
                found = model_hash(self._folder)
            except (ModelError, OSError):
                found = ""
            if not found or _stamps(self._folder) != self._began_with:
                raise unavailable(
                    f"the weights in {self._folder} are not those that are served any more, so that no vote could say "
                    "whose answers it is on; start the server anew",
                    "weights_changed",
                )
            self._name = found
        return self._name


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """(name, size, when it was written) of each file of weights; [] where there is none."""
    try:
        found = [(path.name, path.stat()) for path in sorted(folder.glob("model*.safetensors"))]
    except OSError:
        return []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


@dataclass(frozen=True)
class Ballots:
    """Where comparisons are kept and votes are written. weights: of each model, by its name. taken: when a reward model
    last took votes to learn from, see `runs.votes_taken`.
    """

    history: History
    votes: Path
    weights: Mapping[str, Weights]
    taken: Callable[[], float]

    def sign(self, number: str) -> str:
        """The number of a comparison, with a signature that this history's secret alone can make."""
        secret = self.history.secret("votes", secrets.token_bytes(SHORTEST_SECRET))
        return f"{number}.{hmac.new(secret, number.encode(), hashlib.sha256).hexdigest()}"

    def keep(self, prompt: list[dict[str, str]], answers: list[dict[str, Any]]) -> str:
        """Remembers what was served; the signed number to vote with. Raises ApiError 507 when it cannot be kept."""
        number = secrets.token_hex(16)
        try:
            self.history.keep_comparison(number, {"prompt": prompt, "answers": answers})
            return self.sign(number)
        except StorageError as error:
            raise no_room(error) from None

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

    def counts(self) -> dict[str, int]:
        """{"votes": lines of the file, "waiting": those that came after a reward model last took any}."""
        try:
            lines = [line for line in self.votes.read_bytes().splitlines() if line.strip()]
        except FileNotFoundError:
            lines = []
        taken = int(self.taken())  # a vote's time has whole seconds
        waiting = len(lines) if taken == 0 else sum(_seconds(line) >= taken for line in lines)
        return {"votes": len(lines), "waiting": waiting}


def _seconds(line: bytes) -> float:
    """When a vote was made; 0 for what is no vote."""
    try:
        return datetime.fromisoformat(json.loads(line)["time"]).timestamp()
    except (ValueError, TypeError, KeyError):
        return 0.0
