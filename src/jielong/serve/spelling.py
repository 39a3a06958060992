"""Tokens as clients see them: their text, their bytes, and where they stand in the text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jielong.generate.requests import TokenLogprob
from jielong.tokenizer.tokenizer import TextStream, Tokenizer


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token by itself: its text; a part of a character as bytes:\\xe4\\xbd; a control token by its name."""
    piece = tokenizer.token_bytes(token_id)
    return tokenizer.name(token_id) if not piece else spell(piece)


def spell(piece: bytes) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


@dataclass(frozen=True)
class Told:
    """One token of a text. piece: the bytes it adds. begins: how many characters stand before it. logprob: as told."""

    id: int
    piece: bytes
    begins: int
    logprob: TokenLogprob


class TokenTrack:
    """Follows a text token by token. after: ids that stand before it, as for `TextStream`."""

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._stream = TextStream(tokenizer, after)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._length = 0

    def follow(self, logprobs: Sequence[TokenLogprob]) -> list[Told]:
        """The next tokens of the text."""
        told = []
        for logprob in logprobs:
            piece = self._stream.feed_bytes(logprob.id)
            told.append(Told(logprob.id, piece, self._length, logprob))
            self._length += len(self._characters.decode(piece))
        return told


def completion_logprobs(tokenizer: Tokenizer, told: Sequence[Told], num_top: int) -> dict[str, Any]:
    """The logprobs of /v1/completions: four lists, equally long.

    top_logprobs holds the num_top likeliest tokens and, beside them, the token itself. Of two tokens with one text each
    has a key of its own, so that the greatest value is that of the likeliest token.
    """
    return {
        "tokens": [token_text(tokenizer, one.id) for one in told],
        "token_logprobs": [one.logprob.logprob for one in told],
        "top_logprobs": [_top_by_text(tokenizer, one.logprob, num_top) for one in told],
        "text_offset": [one.begins for one in told],
    }


def _top_by_text(tokenizer: Tokenizer, one: TokenLogprob, num_top: int) -> dict[str, float] | None:
    if one.logprob is None:
        return None
    entries = list(one.top[:num_top])
    if all(token != one.id for token, _ in entries):
        entries.append((one.id, one.logprob))
    found: dict[str, float] = {}
    for token, logprob in entries:
        text = token_text(tokenizer, token)
        found[f"token_id:{token}" if text in found else text] = logprob
    return found


def chat_logprobs(tokenizer: Tokenizer, told: Sequence[Told], num_top: int) -> dict[str, Any]:
    """The logprobs of /v1/chat/completions. The bytes of all tokens, joined, are the content's."""
    content = []
    for one in told:
        top = [
            {"token": token_text(tokenizer, token), "logprob": logprob, "bytes": list(tokenizer.token_bytes(token))}
            for token, logprob in one.logprob.top[:num_top]
        ]
        own = {"token": token_text(tokenizer, one.id), "logprob": one.logprob.logprob, "bytes": list(one.piece)}
        content.append({**own, "top_logprobs": top})
    return {"content": content, "refusal": None}
