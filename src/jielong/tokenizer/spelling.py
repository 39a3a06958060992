"""What bytes each token stands for, read from the "decoder" of a tokenizer.json.

A token's bytes do not depend on its neighbours, so that text can be streamed and counted token by token; two blanks at
the ends of a text are the exceptions, `Spelling` says which. Differs from Hugging Face's decoders in one point: where
single bytes (`<0xE4>`) make no character, each maximal part of one becomes U+FFFD, as Python and byte-level decoders do
it, and valid characters beside them are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jielong.errors import ModelError

NUM_BYTES = 256


def _byte_alphabet() -> list[str]:
    """The printable character of each byte: itself where it prints, else the next unused one from U+0100 on.

    Source: Radford et al. 2019 (GPT-2), the table its vocabulary file is written in.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    stand_ins = {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(NUM_BYTES)]


CHARACTERS = _byte_alphabet()
_BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}
_SINGLE_BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")
# What a WordPiece decoder with "cleanup" writes without the blank before it.
_CLOSING = re.compile(r" (?=[.?!,]|n't|'m|'s|'ve|'re)")


def spell(token: bytes) -> str:
    """A token's bytes in the byte-level alphabet, as tokenizer.json has them."""
    return "".join(CHARACTERS[byte] for byte in token)


def unspell(text: str) -> bytes:
    """The inverse of `spell`. Raises KeyError for a character outside the byte alphabet."""
    return bytes(_BYTES[character] for character in text)


@dataclass(frozen=True)
class Spelling:
    """token_bytes: of a vocabulary entry, anywhere in a text but at its ends.

    drops_first_blank: a text loses the blank that it begins with. drops_last_blank: and the one that it ends with.
    """

    token_bytes: Callable[[str], bytes]
    drops_first_blank: bool = False
    drops_last_blank: bool = False


def read_spelling(decoder: Any, where: str) -> Spelling:
    """The spelling that a decoder of tokenizer.json stands for. Raises ModelError for a decoder not known here."""
    if decoder is None:  # tokens are words: blanks between them
        return Spelling(lambda token: f" {token}".encode(), drops_first_blank=True)
    kind = decoder.get("type") if isinstance(decoder, dict) else decoder
    if kind == "Sequence":
        return _sequence(decoder.get("decoders"), where)
    if kind == "ByteLevel":
        return Spelling(_byte_level)
    if kind == "Metaspace":
        mark = str(decoder.get("replacement", "▁"))
        keeps = decoder.get("prepend_scheme") == "never" or decoder.get("add_prefix_space") is False
        return Spelling(lambda token: token.replace(mark, " ").encode(), drops_first_blank=not keeps)
    if kind == "WordPiece":
        return _word_piece(str(decoder.get("prefix", "##")), bool(decoder.get("cleanup", True)))
    if kind == "BPEDecoder":
        suffix = str(decoder.get("suffix", "</w>"))
        return Spelling(lambda token: token.replace(suffix, " ").encode(), drops_last_blank=True)
    raise ModelError(
        f"{where}: decoder type {kind!r} is not known; legal are ByteLevel, Metaspace, WordPiece, BPEDecoder and a "
        "Sequence of Replace, ByteFallback, Fuse and Strip, or none"
    )


def _byte_level(token: str) -> bytes:
    try:
        return unspell(token)
    except KeyError:  # a word added as it is
        return token.encode()


def _word_piece(prefix: str, cleanup: bool) -> Spelling:
    def token_bytes(token: str) -> bytes:
        text = token[len(prefix) :] if token.startswith(prefix) else f" {token}"
        return (_CLOSING.sub("", text) if cleanup else text).encode()

    return Spelling(token_bytes, drops_first_blank=True)


def _sequence(steps: object, where: str) -> Spelling:
    """SentencePiece's way, as a list of steps: Replace blanks, ByteFallback, Fuse, Strip the first blank."""
    replaced: list[tuple[str, str]] = []
    has_bytes = drops_first_blank = False
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ModelError(f'{where}: the decoder\'s "decoders" must be a list of objects')
    if len(steps) == 1:
        return read_spelling(steps[0], where)
    for step in steps:
        kind, pattern = step.get("type"), step.get("pattern")
        if kind == "Replace" and isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            replaced.append((pattern["String"], str(step.get("content", ""))))
        elif kind == "ByteFallback":
            has_bytes = True
        elif kind == "Strip" and (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0):
            drops_first_blank = True
        elif kind != "Fuse":
            raise ModelError(
                f"{where}: the decoder's step {kind!r} is not known in this form; legal are Replace of a string, "
                "ByteFallback, Fuse and Strip of one blank at the start"
            )

    def token_bytes(token: str) -> bytes:
        found = _SINGLE_BYTE.match(token) if has_bytes else None
        if found:
            return bytes([int(found[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return Spelling(token_bytes, drops_first_blank)
