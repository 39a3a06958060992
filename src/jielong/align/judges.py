"""What may judge a reply beside a single reward model: several of them, a function, a service over HTTP."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from jielong.errors import TrainingError, UsageError
from jielong.generate.engine import Completion
from jielong.tokenizer.tokenizer import Tokenizer

NOT_JUDGED = math.nan
MAX_RESPONSE_BYTES = 2**20


class Scorer(Protocol):
    """A reward that reads tokens, as a reward model does."""

    def score(self, tokens: Tensor, segments: Tensor | None, ends: Tensor) -> Tensor:
        """(R,) float32 from tokens (R, T) and the index (R,) of each row's last real token."""
        ...


@runtime_checkable
class ReplyScorer(Protocol):
    """A reward that reads whole replies: a function, a service."""

    def score_replies(self, completions: Sequence[Completion]) -> list[float]:
        """The score of each reply; not a number for one that could not be judged."""
        ...


def judged_rows(scores: Sequence[float], max_skipped_fraction: float) -> list[int]:
    """Rows whose score is a number. Raises TrainingError when more than this fraction is not, or all are."""
    rows = [row for row, score in enumerate(scores) if math.isfinite(score)]
    num_skipped = len(scores) - len(rows)
    if num_skipped > max_skipped_fraction * len(scores) or not rows:
        raise TrainingError(
            f"the reward could not judge {num_skipped} of {len(scores)} replies; at most {max_skipped_fraction:.0%} "
            "may be skipped (max_skipped_fraction). See why it fails; the same command then goes on from the last "
            "checkpoint"
        )
    return rows


@dataclass(frozen=True)
class RewardEnsemble:
    """Several reward models as one: the mean of their normalised scores, or the least, which is harder to please.

    Source: Coste et al. 2023, arXiv:2310.02743, section 3.2 (mean and worst-case optimisation).
    """

    models: Sequence[Scorer]
    combine: str = "mean"  # or "min"

    def __post_init__(self) -> None:
        if self.combine not in ("mean", "min"):
            raise UsageError(f"reward ensemble: combine is {self.combine!r}; it must be mean or min")
        if len(self.models) < 2:
            raise UsageError(f"reward ensemble: {len(self.models)} model(s); it needs 2 or more")

    def score(self, tokens: Tensor, segments: Tensor | None, ends: Tensor) -> Tensor:
        """(R,) float32, as RewardModel.score."""
        scores = torch.stack([model.score(tokens, segments, ends) for model in self.models])  # (models, R)
        return scores.amin(dim=0) if self.combine == "min" else scores.mean(dim=0)


@dataclass(frozen=True)
class FunctionReward:
    """A Python function as reward, for replies that a program can judge.

    function: (what is known of the prompt, the reply's text) -> score; None or not a number: it cannot judge.
    records: ids of a prompt -> what is known of it.
    Raises TrainingError naming the prompt when the function itself fails: that is a bug in it.
    """

    function: Callable[[Any, str], float | None]
    records: Mapping[tuple[int, ...], Any]

    def score_replies(self, completions: Sequence[Completion]) -> list[float]:
        """The function's score of each reply."""
        scores = []
        for completion in completions:
            record = self.records[tuple(completion.prompt)]
            try:
                score = self.function(record, completion.text)
            except Exception as error:
                raise TrainingError(
                    f"the reward function fails on {record!r} and {completion.text!r}: {error!r}"
                ) from error
            scores.append(NOT_JUDGED if score is None else float(score))
        return scores


@dataclass(frozen=True)
class HttpReward:
    """A service as reward. It gets {"items": [{"prompt", "reply"}]} by POST and answers {"scores": [number or null]}.

    What it does not answer in time, or not properly, is not judged; the caller counts that and knows when to stop.
    Raises UsageError for an address that is not http or https.
    """

    url: str
    tokenizer: Tokenizer
    timeout_seconds: float = 10.0
    batch_rows: int = 32

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"reward url is {self.url!r}; it must begin with http:// or https://")

    def score_replies(self, completions: Sequence[Completion]) -> list[float]:
        """The service's score of each reply."""
        scores: list[float] = []
        for first in range(0, len(completions), self.batch_rows):
            part = completions[first : first + self.batch_rows]
            items = [{"prompt": self.tokenizer.decode(each.prompt), "reply": each.text} for each in part]
            scores += self._ask(items)
        return scores

    def _ask(self, items: list[dict[str, str]]) -> list[float]:
        """One request; nothing of it is judged when it fails."""
        body = json.dumps({"items": items}, ensure_ascii=False).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
                answer = json.loads(response.read(MAX_RESPONSE_BYTES))
        except (OSError, HTTPException, ValueError):  # refused, timed out, cut off, no JSON
            return [NOT_JUDGED] * len(items)
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != len(items):
            return [NOT_JUDGED] * len(items)
        numbers = [isinstance(score, int | float) and not isinstance(score, bool) for score in scores]
        return [float(score) if number else NOT_JUDGED for score, number in zip(scores, numbers, strict=True)]
