"""Byte-level BPE: any text becomes ids and comes back exactly.

Ids: 0..255 are the bytes themselves, then one id per merge in merge order, then the special tokens. Because rank order
is merge order, tiktoken (which merges by the rank of the joined bytes) and Hugging Face `tokenizers` (which merges by
the rank of the pair) give the same ids; the tests hold them to it. tiktoken encodes, being several times faster;
`tokenizers` trains, and reads the rare text that tiktoken's splitter cannot (`_has_endless_blank`).

Content can never become a special token: `encode` knows none, and `chat.render` appends control tokens by id.
Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Radford et al. 2019, section 2.2 (on bytes).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import tiktoken
import tokenizers

from jielong.config import config_hash, write_atomic
from jielong.errors import ModelError, UsageError
from jielong.tokenizer import hf
from jielong.tokenizer.chat import CHAT_TEMPLATE

# tiktoken's backtracking splitter overflows on about 1e6 blank characters in a row; twice this is still safe.
_BLANK_BLOCK = 250_000
# Below this mean length a thread pool costs more than it gains: the lists of ids are built under the interpreter lock.
_THREADED_CHARACTERS = 4096


class Tokenizer:
    """Byte-level BPE vocabulary with this package's special tokens.

    vocab_size: all ids, specials included; smaller than asked for when the corpus had too little to merge.
    pad_id, bos_id, eos_id, end_id: single specials; special_ids: all of them by name.
    role_ids: {"system": id, "user": id, "assistant": id}. stop_ids: the ids that end a reply.
    hash: sha256 (hex) of the canonical tokenizer.json; equal hash, equal ids.
    """

    SPECIALS: ClassVar[tuple[str, ...]] = (
        "<|pad|>",
        "<|bos|>",
        "<|eos|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
    )

    def __init__(self, merges: Sequence[tuple[bytes, bytes]]) -> None:
        """merges: pairs of byte strings to join, first learned first; each part is a byte or an earlier join.

        Raises ModelError for a pair with an unknown part or a join that exists already.
        """
        ranks = {bytes([byte]): byte for byte in range(hf.NUM_BYTES)}
        for left, right in merges:
            if left not in ranks or right not in ranks or left + right in ranks:
                raise ModelError(
                    f"tokenizer merge {len(ranks) - hf.NUM_BYTES} joins {left!r} and {right!r}: each part must be a "
                    "byte or an earlier join, and the join must be new"
                )
            ranks[left + right] = len(ranks)
        self._merges = tuple(merges)
        # Given its ranks, tiktoken has nothing to download.
        self._encoding = tiktoken.Encoding(
            "jielong", pat_str=hf.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )
        self._bytes = [*ranks, *(b"" for _ in self.SPECIALS)]
        self.special_ids: dict[str, int] = {name: len(ranks) + index for index, name in enumerate(self.SPECIALS)}
        self.vocab_size: int = len(self._bytes)
        self.pad_id: int = self.special_ids["<|pad|>"]
        self.bos_id: int = self.special_ids["<|bos|>"]
        self.eos_id: int = self.special_ids["<|eos|>"]
        self.end_id: int = self.special_ids["<|end|>"]
        self.role_ids: dict[str, int] = {
            role: self.special_ids[f"<|{role}|>"] for role in ("system", "user", "assistant")
        }
        self.stop_ids: tuple[int, ...] = (self.eos_id, self.end_id)
        self.hash: str = config_hash(hf.tokenizer_document(self._merges, self.SPECIALS))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges from `texts` until there are `vocab_size` ids (specials included), or nothing repeats.

        Deterministic. Raises UsageError when vocab_size is below bytes plus specials.
        """
        smallest = hf.NUM_BYTES + len(cls.SPECIALS)
        if vocab_size < smallest:
            raise UsageError(
                f"vocab_size is {vocab_size}, must be at least {smallest}: {hf.NUM_BYTES} bytes and "
                f"{len(cls.SPECIALS)} special tokens"
            )
        return cls(hf.learn_merges(map(_without_surrogates, texts), vocab_size - len(cls.SPECIALS)))

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder (its tokenizer.json).

        Raises ModelError naming the file when it is missing, damaged, of another kind, or its specials are not ours.
        """
        path = Path(folder) / "tokenizer.json"
        merges = hf.read_merges(hf.read_document(path), path, cls.SPECIALS)
        try:
            return cls(merges)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json (with the chat template) as `transformers` reads them."""
        document = hf.tokenizer_document(self._merges, self.SPECIALS)
        write_atomic(Path(folder) / "tokenizer.json", hf.json_text(document))
        settings = hf.tokenizer_settings(self.SPECIALS, CHAT_TEMPLATE)
        write_atomic(Path(folder) / "tokenizer_config.json", hf.json_text(settings))

    def encode(self, text: str) -> list[int]:
        """Ids of content. Text that spells a special token stays plain text. A lone surrogate counts as U+FFFD."""
        if _has_endless_blank(text):
            return self._encode_slowly(text)
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """[encode(text) for text in texts], on all cores when the texts are long enough to gain from it."""
        num_threads = os.cpu_count() or 1
        if num_threads == 1 or sum(map(len, texts)) < _THREADED_CHARACTERS * len(texts) or len(texts) < 2:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(self.encode, texts))

    def _encode_slowly(self, text: str) -> list[int]:
        """The same ids by Hugging Face `tokenizers`, whose splitter does not overflow."""
        plain = tokenizers.Tokenizer.from_str(hf.json_text(hf.tokenizer_document(self._merges, [])))
        return plain.encode(_without_surrogates(text)).ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; specials stand for none. Raises UsageError for an id out of range."""
        return b"".join(map(self._token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, without specials. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def name(self, token_id: int) -> str:
        """How to show a single id to a person: a special by its name, text as it is, half a character as \\xNN."""
        token = self._token_bytes(token_id)
        if token_id >= self.pad_id:
            return self.SPECIALS[token_id - self.pad_id]
        return token.decode("utf-8", errors="backslashreplace")

    def _token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"token id {token_id} is out of range: legal ids are 0 to {self.vocab_size - 1}")
        return self._bytes[token_id]


class TextStream:
    """Text of ids that arrive one by one, in pieces that never hold half a character.

    All pieces joined equal `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The characters completed by this id: often one token's text, "" inside a character or for a special."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else "". The stream starts anew."""
        return self._decoder.decode(b"", final=True)


def _without_surrogates(text: str) -> str:
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
