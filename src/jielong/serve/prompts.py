"""From a body to the engine's requests: ids, sampling, seeds. What a client writes is text, never a control token."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from jielong.errors import UsageError
from jielong.generate.beam import BeamConfig
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.generate.translator import source_ids
from jielong.runtime import derive_seed
from jielong.serve.engine_thread import Loaded
from jielong.serve.errors import ApiError, bad_request
from jielong.serve.personas import Persona
from jielong.serve.schema import ChatBody, ChatMessage, SamplingBody
from jielong.serve.service import beside_the_loop
from jielong.tokenizer.chat import render

Prompts = str | list[str] | list[int] | list[list[int]]
# A template of others is a program, whose time nobody knows: it always runs beside the loop.
_AS_IF_LONG = 1 << 30


@dataclass(frozen=True)
class Wanted:
    """What all sequences of one HTTP request have in common. logprobs, prompt_logprobs: as in the engine's Request."""

    max_new_tokens: int
    partition: str
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    continues_text: bool = False


async def prompt_rows(prompt: Prompts, loaded: Loaded, param: str) -> list[list[int]]:
    """The ids of each prompt. Texts begin a document: bos is put before them. Ids are taken as they are.

    A translator's prompts are sentences to translate, with what stands around them.
    Raises ApiError 400 for an empty text where the model has no token to begin with.
    """
    rows: list[list[int]] = []
    for one in [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt:
        if isinstance(one, str):
            rows.append(await beside_the_loop(len(one), partial(_text_ids, one, loaded)))
        elif isinstance(one, list):
            rows.append([token for token in one if isinstance(token, int)])
        if not rows[-1]:
            needs = "a translator needs words" if loaded.translates else "this model has no token to begin with"
            raise bad_request(f"an empty text, and {needs}", param)
    return rows


def _text_ids(text: str, loaded: Loaded) -> list[int]:
    """What the model reads of a text: a decoder its beginning, a translator the whole sentence, [] for blanks."""
    tokenizer = loaded.tokenizer
    if not loaded.translates:
        return tokenizer.beginning(text)
    return source_ids(tokenizer, tokenizer.encode(text.strip())) if text.strip() else []


async def conversation_ids(
    messages: Sequence[ChatMessage], persona: Persona | None, loaded: Loaded, reply: bool = True
) -> list[int]:
    """The ids of a conversation, up to where the assistant begins to speak when reply is set.

    A translator reads the last message alone, which must be the user's.
    persona: its system message comes first; the client's own is refused. Raises ApiError 400 for a conversation that
    the model's chat form cannot write: roles out of turn, a base model, a template that refuses.
    """
    if loaded.translates:
        if messages[-1].role != "user":
            raise bad_request("the last message is what a translator translates: it must be the user's", "messages")
        return (await prompt_rows(messages[-1].text, loaded, "messages"))[0]
    turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
    if persona is not None:
        if turns[0]["role"] == "system":
            raise bad_request("this server plays a role of its own: it takes no system message", "messages[0].role")
        turns.insert(0, {"role": "system", "content": persona.system})
    size = sum(len(turn["content"]) for turn in turns) if loaded.tokenizer.is_own else _AS_IF_LONG
    try:
        ids, _ = await beside_the_loop(size, partial(render, turns, loaded.tokenizer, reply=reply))
    except UsageError as error:
        raise bad_request(str(error), "messages") from None
    return ids


def check_room(rows: Sequence[Sequence[int]], loaded: Loaded, num_needed: int, param: str) -> None:
    """Raises ApiError 400 unless each prompt leaves room for so many tokens in the context.

    A translator's source and translation have a context each.
    """
    longest, num_needed = max(map(len, rows)), 0 if loaded.translates else num_needed
    if longest + num_needed > loaded.context:
        raise bad_request(
            f"the prompt has {longest} tokens, but the model's context is {loaded.context}"
            + (" and an answer needs at least one of them" if num_needed else "")
            + f"; shorten it to {loaded.context - num_needed} tokens or fewer",
            param,
            "context_length_exceeded",
        )


def engine_requests(
    body: SamplingBody, rows: Sequence[Sequence[int]], wanted: Wanted, loaded: Loaded, persona: Persona | None = None
) -> list[Request]:
    """n requests for each row, prompt by prompt.

    Choice k of every prompt draws with derive_seed(seed, k): equal seeds give equal answers, whatever else is asked in
    the same request, and those of Engine.generate([prompt], seed=seed). Raises ApiError 400 for what is out of range.
    """
    seed = secrets.randbits(62) if body.seed is None else body.seed
    stop_ids = frozenset() if body.ignore_eos else frozenset(loaded.tokenizer.stop_ids)
    stop_ids |= frozenset(body.stop_token_ids or ())
    requests = []
    try:
        sampling, width = _sampling(body, persona, 0.0 if loaded.translates else 1.0), _beam_width(body, loaded)
        for row in rows:
            for choice in range(body.n or 1):
                request = Request(
                    prompt=tuple(row),
                    max_new_tokens=wanted.max_new_tokens,
                    sampling=sampling,
                    seed=derive_seed(seed, choice),
                    stop_ids=stop_ids,
                    stop=_stop(body, persona),
                    logprobs=wanted.logprobs,
                    prompt_logprobs=wanted.prompt_logprobs,
                    min_new_tokens=body.min_tokens or 0,
                    cache_partition=wanted.partition,
                    continues_text=wanted.continues_text and not loaded.translates,
                    beam=_beam(body, width, choice),
                )
                if choice == 0:
                    loaded.batcher.check(request)  # reads only what never changes, so that any thread may
                requests.append(request)
    except UsageError as error:
        raise bad_request(str(error)) from None
    return requests


def most_tokens(body: ChatBody, loaded: Loaded, persona: Persona | None) -> int:
    """Most tokens of an answer: as many as the client says, else the persona, else what the context leaves."""
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked is not None:
        return asked
    return loaded.context if persona is None or persona.max_tokens is None else persona.max_tokens


def num_sequences(body: SamplingBody, num_rows: int, most: int) -> int:
    """Prompts times n. Raises ApiError 400 when there are more than one request may have."""
    number = num_rows * (body.n or 1)
    if number > most:
        raise ApiError(400, f"{num_rows} prompts times n = {body.n or 1} make {number} answers; {most} are legal")
    return number


def _beam_width(body: SamplingBody, loaded: Loaded) -> int:
    """How wide a beam a translation is searched with; 1 for tokens drawn one by one, as a decoder's all are.

    Where a client says nothing a translator is asked for its best translation, and not for a draw.
    """
    if not loaded.translates:
        for name, value in (("beam", body.beam), ("length_penalty", body.length_penalty)):
            if value is not None:
                raise bad_request(f"{name} is for translators; this model is a decoder and draws its tokens", name)
        return 1
    n, is_drawn = body.n or 1, bool(body.temperature) or bool(body.min_tokens) or _sampling(body, None).changes_scores
    width = body.beam if body.beam is not None else 1 if is_drawn else max(BeamConfig().beam, n)
    if width > 1 and is_drawn:
        raise bad_request(
            f"beam is {width}, which draws nothing: temperature, bias, penalties and min_tokens need beam = 1", "beam"
        )
    if 1 < width < n:
        raise bad_request(f"n is {n}, but a beam of {width} finds {width} translations at most", "n")
    return width


def _beam(body: SamplingBody, width: int, choice: int) -> BeamConfig | None:
    """Choice k is the k-th best translation."""
    if width == 1:
        return None
    return BeamConfig(width, _or(body.length_penalty, BeamConfig().length_penalty), num_best=choice + 1)


def _sampling(body: SamplingBody, persona: Persona | None, usual_temperature: float = 1.0) -> Sampling:
    """What the client asks for; where it asks for nothing the persona's, and else 1.0: the model as it is."""
    temperature, top_p = body.temperature, body.top_p
    if persona is not None:
        temperature = persona.temperature if temperature is None else temperature
        top_p = persona.top_p if top_p is None else top_p
    return Sampling(
        temperature=_or(temperature, usual_temperature),
        top_k=max(0, body.top_k or 0),
        top_p=_or(top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=tuple((int(token), value) for token, value in (body.logit_bias or {}).items()),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _stop(body: SamplingBody, persona: Persona | None) -> tuple[str, ...]:
    if body.stop is None:
        return tuple(persona.stop) if persona is not None else ()
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
