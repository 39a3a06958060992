"""What is asked of a `batching.Batcher`, and what it tells of every step: plain values, no tensors.

Log-probabilities here are those of the model itself, in nats: before bias, penalties, temperature and the rest, so that
a server can score texts whatever the sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from jielong.errors import UsageError
from jielong.generate.automaton import Constraint
from jielong.generate.beam import BeamConfig
from jielong.generate.sampling import Sampling

# A stop string is looked for at every token; one longer than this is a mistake.
MOST_STOP_CHARACTERS = 1000


@dataclass(frozen=True)
class Request:
    """One completion to make.

    prompt: ids, taken as they are. max_new_tokens: most new ones, 0 to read the prompt only (for prompt_logprobs); the
    end of the context ends it earlier. seed: of this row alone; the same as that row's in Engine.generate.
    stop_ids: tokens that end it, told but not part of the text; None for the tokenizer's. stop: strings that end it as
    soon as the text holds one; the text ends before it. logprobs: None for none, k for each new token's own and those
    of the k likeliest. prompt_logprobs: the same for the prompt's tokens (which are then read anew, not from the prefix
    cache); the first one, before which nothing stands, has none.
    min_new_tokens: no stop before there are so many. cache_partition: the prefix cache is shared within it only.
    continues_text: the prompt is a text that goes on, so that the blank before its next word counts.
    constraint: the form that the text must have; it counts what is said, and so is for one request only.
    beam: of a translator alone, whose prompt is the source: search so, instead of drawing by sampling and seed; the
    answer is the last of the num_best hypotheses. It is told in one piece.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    stop_ids: frozenset[int] | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    min_new_tokens: int = 0
    cache_partition: str = ""
    continues_text: bool = False
    constraint: Constraint | None = None
    beam: BeamConfig | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log-probability, None for the first of a prompt, and (id, log-probability) of the likeliest.

    top: likeliest first, lower ids first among equals; its numbers and `logprob` are of one tensor, so that the
    likeliest token's own is equal to the first of top.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Delta:
    """What one step made for one request.

    request: its number, from `submit`. tokens: the new ids, a stop id included. text: what became certain: whole
    characters, and nothing that may yet be the beginning of a stop string; () and "" where there is nothing new.
    logprobs: one for each of tokens when asked for, else (). prompt_logprobs: in the first delta when asked for.
    finish_reason: None while it goes on; "stop" at a stop id or string, "length" at the last token or the end of the
    context, "cancelled", and "error" where the model's scores were no finite numbers. After it no delta follows.
    num_cached_tokens: how many of the num_prompt_tokens were in the prefix cache.
    """

    request: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: str | None
    num_prompt_tokens: int
    num_cached_tokens: int


def check_request(request: Request, vocab_size: int) -> None:
    """Raises UsageError naming what is wrong with a request to a model of `vocab_size` tokens."""
    _check_ids("the prompt", request.prompt, vocab_size)
    _check_ids("stop_ids", request.stop_ids or (), vocab_size)
    _check_ids("logit_bias", [token for token, _ in request.sampling.logit_bias], vocab_size)
    _check_whole("max_new_tokens", request.max_new_tokens, 0)
    _check_whole("min_new_tokens", request.min_new_tokens, 0)
    _check_whole("seed", request.seed, 0)
    for name, number in (("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if number is not None:
            _check_whole(name, number, 0, vocab_size)
    if request.seed >= 1 << 63:
        raise UsageError(f"seed is {request.seed}; legal are whole numbers from 0 to {(1 << 63) - 1}")
    if request.constraint is not None and request.min_new_tokens:
        raise UsageError("min_new_tokens cannot be asked for beside a form, which says itself where a text ends")
    if not request.prompt:
        raise UsageError("the prompt has no tokens; give at least one")
    for text in request.stop:
        if not isinstance(text, str) or not 0 < len(text) <= MOST_STOP_CHARACTERS:
            raise UsageError(
                f"a stop string is {text!r:.60}; legal are texts of 1 to {MOST_STOP_CHARACTERS} characters"
            )


def _check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not good or (most is not None and isinstance(value, int) and value > most):
        legal = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} is {value!r}; it must be a whole number, {legal}")


def _check_ids(what: str, ids: object, vocab_size: int) -> None:
    assert isinstance(ids, tuple | list | frozenset)
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise UsageError(f"{what} holds the id {token!r}; the model's ids go from 0 to {vocab_size - 1}")
