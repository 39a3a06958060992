"""Text to ids and ids to bytes, for every kind of tokenizer.json, with control tokens out of reach of text.

A tokenizer knows control tokens such as `<|im_end|>` by their spelling, and so would make one out of a message that
spells it. Here they have other names inside: each control token is renamed to a secret that no text can hold, made anew
for every codec. Plain text then never gives a control token, whatever it spells and whatever the vocabulary holds; a
chat template's own control tokens are written by their secrets. Ids are the same as before.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import tiktoken
import tokenizers

from jielong.errors import ModelError
from jielong.tokenizer.fast import fast_encoding, merge_pair
from jielong.tokenizer.spelling import read_spelling

MODEL_TYPES = ("BPE", "WordPiece", "Unigram", "WordLevel")

# tiktoken's backtracking splitter overflows on about 1e6 blank characters in a row; twice this is still safe.
_BLANK_BLOCK = 250_000
# After one of these a text is encoded as if in the middle of a line: they are never joined with what follows.
_SPACERS = ("\n", "\x01", "。")
_TRIAL = "a word,  1 字 \U000f0000"


class Codec:
    """One tokenizer.json at work.

    size: all ids are below it. control_ids: control token -> id. ids: every token -> id. drops_first_blank,
    drops_last_blank: see `spelling.Spelling`.
    """

    def __init__(self, document: Mapping[str, Any], control: Collection[str], where: str) -> None:
        """document: the content of a tokenizer.json. control: which of its added tokens no text may become.

        where: how messages name it. Raises ModelError when the parts of the document do not fit together.
        """
        self._document, self._where = document, where
        self.ids = token_ids(document, where)
        self.size = max(self.ids.values()) + 1
        self.control_ids = {name: self.ids[name] for name in control}
        self._spelling = read_spelling(document.get("decoder"), where)
        self.drops_first_blank = self._spelling.drops_first_blank
        self.drops_last_blank = self._spelling.drops_last_blank
        self._secrets = {name: f"<{secrets.token_hex(12)}:{number}>" for name, number in self.control_ids.items()}
        # Until a template has been filled in: what makes the spelling of a control token behind it text, and what keeps
        # the end of a message and what stands beside it apart.
        self._as_text, self._wall = f"<{secrets.token_hex(12)}>", f"<{secrets.token_hex(12)}>"
        self._added = {token["content"] for token in document["added_tokens"]}
        visible = self._added - self.control_ids.keys()
        self._visible = re.compile(_any_of(visible)) if visible else None
        self._spelled = re.compile(f"({self._as_text})?({_any_of(self._added)})")
        # What a message must not end or begin with where a template could complete it to a control token.
        self._heads = {name[:length] for name in self.control_ids for length in range(1, len(name))}
        self._tails = {name[length:] for name in self.control_ids for length in range(1, len(name))}
        self._longest = max(map(len, self.control_ids), default=0)
        self._names = {number: name for name, number in self.ids.items()}
        self._pieces: dict[int, bytes] = {}
        self._fast: tiktoken.Encoding | None = None
        self._compared = False

    # Text to ids.

    def encode(self, text: str) -> list[int]:
        """Ids of a whole text, nothing put around it; never a control token but the one for "unknown"."""
        spelled = self._visible is not None and self._visible.search(text)
        if self._fast is None or spelled or _has_endless_blank(text):
            return self._encode_slowly(text)
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(without_surrogates(text))
        return self._fast.encode_ordinary(text)

    def speed_up(self) -> None:
        """Looks, once, whether tiktoken gives the same ids, and encodes by it from then on. Costs about a second."""
        if not self._compared:
            self._compared = True
            if self._document.get("normalizer") in (None, {"type": "NFC"}):
                self._fast = fast_encoding(self._document, self.control_ids)

    def _encode_slowly(self, text: str) -> list[int]:
        """The same ids by Hugging Face `tokenizers`."""
        found: list[int] = self._hidden.encode_batch_fast([without_surrogates(text)], add_special_tokens=False)[0].ids
        return found

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer puts before and after a document: its post-processor, asked.

        Raises ModelError when the tokenizer fails at a text of known and unknown characters.
        """
        try:
            found = self._hidden.encode(_TRIAL, add_special_tokens=True)
        except ModelError:
            raise
        except BaseException as error:  # the library's own failures; a panic in it is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ModelError(f"{self._where}: Hugging Face `tokenizers` cannot encode by it: {_line(error)}") from None
        marks = found.special_tokens_mask
        first = marks.index(0) if 0 in marks else len(marks)
        last = len(marks) - marks[::-1].index(0) if 0 in marks else len(marks)
        return tuple(found.ids[:first]), tuple(found.ids[last:])

    @cached_property
    def _normalizer(self) -> tokenizers.normalizers.Normalizer | None:
        return self._hidden.normalizer if self._document.get("normalizer") else None

    @cached_property
    def _hidden(self) -> tokenizers.Tokenizer:
        """The tokenizer with its control tokens renamed. Raises ModelError when the library cannot read it."""
        added = [
            {**token, "content": self._secrets[token["content"]], "normalized": False, "single_word": False}
            if token["content"] in self._secrets
            else token
            for token in self._document["added_tokens"]
        ]
        try:
            document = {**self._document, "model": self._hidden_model(), "added_tokens": added}
            document.update(truncation=None, padding=None)
            hidden = tokenizers.Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
        except Exception as error:  # the library has no error type of its own
            raise ModelError(f"{self._where}: Hugging Face `tokenizers` cannot read it: {_line(error)}") from None
        for token in added:
            if hidden.token_to_id(token["content"]) != token["id"]:
                raise ModelError(
                    f"{self._where}: an added token has the id {token['id']}, but Hugging Face `tokenizers` would give "
                    f"it {hidden.token_to_id(token['content'])}; added ids must follow those of the vocabulary"
                )
        return hidden

    def _hidden_model(self) -> dict[str, Any]:
        model = dict(self._document["model"])
        vocab = model["vocab"]
        if isinstance(vocab, dict):
            held = [name for name in self._secrets if name in vocab]
            model["vocab"] = dict(vocab)
            model["vocab"].update((self._secrets[name], model["vocab"].pop(name)) for name in held)
            if held and "merges" in model:
                model["merges"] = [merge for merge in model["merges"] if not self._makes_control(merge)]
        else:
            model["vocab"] = [[self._secrets.get(piece, piece), score] for piece, score in vocab]
        if "dropout" in model:
            model["dropout"] = None
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._secrets.get(model["unk_token"], model["unk_token"])
        return model

    def _makes_control(self, merge: object) -> bool:
        left, right = merge_pair(merge)
        return not self._secrets.keys().isdisjoint((left, right, left + right))

    # Texts with control tokens in them: what a chat template writes.

    def shield(self, content: str) -> str:
        """A message, marked so that nothing in it, nor it and its surroundings, spells a control token.

        To be filled into a template and taken out again by `secret`. Content that spells none is given back as it is;
        blanks at the ends stay there, so that a template can strip them.
        """

        def mark(found: re.Match[str]) -> str:
            return (self._as_text if found[2] in self._secrets else "") + found[2]

        content = without_surrogates(content)
        sizes = range(1, min(self._longest, len(content) + 1))
        inside = len(content) < self._longest and any(content in name for name in self._secrets)
        begins = inside or any(content[:size] in self._tails for size in sizes)  # "im_end|>" after a template's "<|"
        ends = inside or any(content[-size:] in self._heads for size in sizes)
        shielded = self._spelled.sub(mark, content)
        return f"{self._wall * begins}{shielded}{self._wall * ends}" if content else content

    def secret(self, text: str) -> str:
        """A filled-in template with its own control tokens renamed, and the marks of `shield` taken out."""

        def rename(found: re.Match[str]) -> str:
            return found[2] if found[1] else self._secrets.get(found[2], found[2])

        return self._spelled.sub(rename, text).replace(self._wall, "")

    def encode_secret(self, text: str, before: str = "") -> list[int]:
        """Ids of a text given by `secret`. before: what stands before it in the same conversation, not encoded."""
        if not before:
            return self._encode_slowly(text)
        for name in self._secrets.values():
            if before.endswith(name):
                return self._encode_slowly(name + text)[1:]
        if not self._puts_blank_first:
            return self._encode_slowly(text)
        for spacer in _SPACERS:
            found = self._hidden.encode(without_surrogates(spacer + text), add_special_tokens=False)
            starts = [start for start, _ in found.offsets]
            if len(spacer) in starts:
                first = starts.index(len(spacer))
                if all(end <= len(spacer) for _, end in found.offsets[:first]):
                    return list(found.ids[first:])
        return self._encode_slowly(text)

    @cached_property
    def _puts_blank_first(self) -> bool:
        """True if a text is encoded in another way at its beginning than after a line end."""
        return self._encode_slowly("\na") != self._encode_slowly("\n") + self._encode_slowly("a")

    # Ids to bytes.

    def piece(self, token_id: int) -> bytes:
        """The bytes of a token in the middle of a text; none for a control token, and for an id that has no token."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._spell(self._names.get(token_id))
        return piece

    def _spell(self, token: str | None) -> bytes:
        if token is None or token in self.control_ids:
            return b""
        return token.encode() if token in self._added else self._spelling.token_bytes(token)

    def name(self, token_id: int) -> str | None:
        """How the tokenizer.json spells a token; None for an id that has none."""
        return self._names.get(token_id)


def token_ids(document: Mapping[str, Any], where: str) -> dict[str, int]:
    """Every token of a tokenizer.json with its id.

    Raises ModelError for a model of another kind, or a vocabulary that is damaged.
    """
    model = document["model"]
    kind, vocab = model.get("type"), model.get("vocab")
    if kind not in MODEL_TYPES:
        raise ModelError(f'{where}: the model\'s "type" is {kind!r}; legal are {", ".join(MODEL_TYPES)}')
    for key, problem in _unsafe(kind, model):
        raise ModelError(f'{where}: the {kind} model\'s "{key}" is {model.get(key)!r:.40}; {problem}')
    added = document.get("added_tokens")
    if not isinstance(added, list) or not all(_is_added(token) for token in added):
        raise ModelError(f'{where}: "added_tokens" must be a list of objects with "id" and "content"')
    if kind == "Unigram":
        pieces = vocab if isinstance(vocab, list) else []
        legal = all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in pieces)
        found = {entry[0]: number for number, entry in enumerate(pieces)} if legal else {}
    else:
        found = dict(vocab) if isinstance(vocab, dict) else {}
        if not all(_is_id(number) for number in found.values()):
            found = {}
    found.update((token["content"], token["id"]) for token in added)
    if len(found) <= len(added):
        raise ModelError(f'{where}: "vocab" must give every token of the {kind} model its id, and does not')
    if len(set(found.values())) != len(found):
        raise ModelError(f"{where}: two tokens have the same id")
    return found


def _line(error: BaseException) -> str:
    """What the library says, on one line."""
    return " ".join(str(error).split())[:200]


def _unsafe(kind: str, model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is legal) of values at which `tokenizers` ends the process, or fails at an unknown character."""
    if kind == "BPE" and model.get("continuing_subword_prefix") not in (None, ""):
        yield "continuing_subword_prefix", "such a BPE model is not read here, legal is null"
    size = len(model["vocab"]) if isinstance(model.get("vocab"), list) else 0
    if kind == "Unigram" and not (_is_id(model.get("unk_id")) and model["unk_id"] < size):
        yield "unk_id", "it must be the place of the unknown token in the vocabulary"


def _is_id(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 31


def _is_added(token: object) -> bool:
    return isinstance(token, dict) and _is_id(token.get("id")) and isinstance(token.get("content"), str)


def _any_of(names: Collection[str]) -> str:
    """A pattern for the longest of the names at a place; it matches nothing when there are none."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name) or r"(?!)"


def without_surrogates(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD, and surrogate pairs joined into their character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _has_endless_blank(text: str) -> bool:
    """True if at least _BLANK_BLOCK blank characters stand in a row, for certain from twice that many on.

    A run of two blocks covers one that is aligned, so that looking at aligned blocks is enough, and costs next to
    nothing: a block's test ends at its first character that is not blank.
    """
    if len(text) < 2 * _BLANK_BLOCK:
        return False
    return any(text[start : start + _BLANK_BLOCK].isspace() for start in range(0, len(text), _BLANK_BLOCK))
