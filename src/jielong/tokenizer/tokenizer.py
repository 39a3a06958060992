"""Text becomes ids and comes back: this package's own byte-level BPE, and the tokenizers of others' model folders.

Our own ids: 0..255 are the bytes themselves, then one id per merge in merge order, then the special tokens; any text
comes back exactly. A foreign tokenizer.json (`foreign`) keeps its ids, its control tokens and its chat template. Both
work through one `codec.Codec`: tiktoken encodes where it gives the same ids as Hugging Face `tokenizers`, being several
times faster, and `tokenizers` does the rest.

Content can never become a control token: `encode` knows none, and `chat.render` puts them in.
Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Radford et al. 2019, section 2.2 (on bytes).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jielong.config import config_hash, write_atomic
from jielong.errors import ModelError, UsageError
from jielong.tokenizer import hf
from jielong.tokenizer.chat import CHAT_TEMPLATE, ChatForm, OwnForm
from jielong.tokenizer.codec import Codec, without_surrogates
from jielong.tokenizer.foreign import Found, read_folder, with_added
from jielong.tokenizer.spelling import NUM_BYTES
from jielong.tokenizer.template import TemplateForm

# Below this mean length a thread pool costs more than it gains: the lists of ids are built under the interpreter lock.
_THREADED_CHARACTERS = 4096
# From this many characters on it pays to find out whether tiktoken may encode a foreign vocabulary.
_MANY_CHARACTERS = 1_000_000
# Phi's embedding has 905 rows beyond its vocabulary, the most of the common open models.
MOST_SPARE_ROWS = 1024


@dataclass(frozen=True)
class Parts:
    """What a tokenizer is made of.

    codec: text to ids. form: how conversations are written; None for a base model of others. bos_id, eos_id, pad_id,
    stop_ids: see Tokenizer. prefix_ids, suffix_ids: what stands before and after a document. files: name -> content,
    what `save` writes. hash: equal hash, equal ids. origin: the merges of one of our own, or what another's folder
    held. mask_id: what an encoder sees in a hidden token's place.
    """

    codec: Codec
    form: ChatForm | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    stop_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    files: Mapping[str, bytes | str]
    hash: str
    origin: Found | Sequence[tuple[bytes, bytes]]
    mask_id: int | None = None


class Tokenizer:
    """A vocabulary with its control tokens and its way to write conversations. Made by `train` and `load`.

    vocab_size: all ids are below it, control tokens included; a trained one is smaller than asked for when the corpus
    had too little to merge.
    bos_id, eos_id: begin and end of a document; None where a foreign folder names none. pad_id: fills up rows; where a
    folder names none it is eos, or 0: filled-up places are never looked at. end_id: ends an assistant's turn, or None.
    stop_ids: the ids that end a completion. prefix_ids, suffix_ids: what `transformers` puts around a text; () for
    GPT-2, bos before it for Llama and for our own.
    special_ids: all control tokens by name. role_ids: {"system": id, "user": id, "assistant": id} of our own, else {}.
    mask_id: stands in the place of a token that an encoder is to guess; None where there is none.
    form: see `chat.ChatForm`; None for a base model of others. is_own: False for one that others made.
    hash: sha256 (hex) of what decides the ids; equal hash, equal ids.
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
    ENCODER: ClassVar[tuple[str, ...]] = (hf.CLS, hf.SEP, hf.MASK)  # what an encoder of ours has beside them
    TASK: ClassVar[tuple[str, ...]] = ("<|start|>", "<|delimiter|>", "<|extract|>")  # GPT-1's, for fine-tuning

    def __init__(self, parts: Parts) -> None:
        self._codec, self._files, self._origin = parts.codec, parts.files, parts.origin
        self.mask_id = parts.mask_id
        self.form = parts.form
        self.is_own = isinstance(parts.form, OwnForm)
        self.vocab_size: int = parts.codec.size
        self.special_ids: dict[str, int] = dict(parts.codec.control_ids)
        self.role_ids: dict[str, int] = dict(parts.form.role_ids) if isinstance(parts.form, OwnForm) else {}
        self.bos_id, self.eos_id, self.pad_id = parts.bos_id, parts.eos_id, parts.pad_id
        self.end_id = parts.form.end_id if parts.form else None
        self.stop_ids, self.prefix_ids, self.suffix_ids = parts.stop_ids, parts.prefix_ids, parts.suffix_ids
        self.hash = parts.hash

    @classmethod
    def from_merges(cls, merges: Sequence[tuple[bytes, bytes]], more: Sequence[str] = ()) -> Tokenizer:
        """One of our own. merges: pairs of byte strings to join, first learned first; each part is a byte or an earlier
        join. more: control tokens behind the usual ones, of ENCODER and TASK.

        Raises ModelError for a pair with an unknown part or a join that exists already.
        """
        known = {bytes([byte]) for byte in range(NUM_BYTES)}
        for number, (left, right) in enumerate(merges):
            if left not in known or right not in known or left + right in known:
                raise ModelError(
                    f"tokenizer merge {number} joins {left!r} and {right!r}: each part must be a byte or an earlier "
                    "join, and the join must be new"
                )
            known.add(left + right)
        specials = (*cls.SPECIALS, *more)
        document = hf.tokenizer_document(merges, specials)
        codec = Codec(document, specials, "tokenizer.json")
        codec.speed_up()
        ids = codec.control_ids
        settings = hf.tokenizer_settings(specials, CHAT_TEMPLATE)
        parts = Parts(
            codec=codec,
            form=OwnForm(codec, ids),
            bos_id=ids["<|bos|>"],
            eos_id=ids["<|eos|>"],
            pad_id=ids["<|pad|>"],
            stop_ids=(ids["<|eos|>"], ids["<|end|>"]),
            prefix_ids=(ids.get(hf.CLS, ids["<|bos|>"]),),
            suffix_ids=(ids[hf.SEP],) if hf.SEP in ids else (),
            files={"tokenizer.json": hf.json_text(document), "tokenizer_config.json": hf.json_text(settings)},
            hash=config_hash(document),
            origin=merges,
            mask_id=ids.get(hf.MASK),
        )
        return cls(parts)

    def with_controls(self, names: Sequence[str]) -> Tokenizer:
        """A tokenizer with more control tokens, numbered after all others; itself when it has them.

        Text is encoded as before. names: of ENCODER or TASK. The model needs a row more for each: see `model.rehead`.
        """
        missing = [name for name in names if name not in self.special_ids]
        if not missing:
            return self
        if isinstance(self._origin, Found):
            return Tokenizer(_foreign_parts(with_added(self._origin, missing)))
        own = [name for name in self.special_ids if name not in self.SPECIALS]
        return Tokenizer.from_merges(self._origin, (*own, *missing))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges from `texts` until there are `vocab_size` ids (specials included), or nothing repeats.

        Deterministic. Raises UsageError when vocab_size is below bytes plus specials.
        """
        smallest = NUM_BYTES + len(cls.SPECIALS)
        if vocab_size < smallest:
            raise UsageError(
                f"vocab_size is {vocab_size}, must be at least {smallest}: {NUM_BYTES} bytes and "
                f"{len(cls.SPECIALS)} special tokens"
            )
        return cls.from_merges(hf.learn_merges(map(without_surrogates, texts), vocab_size - len(cls.SPECIALS)))

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder, ours or others' (see `foreign` for what is read).

        Raises ModelError naming the file when it is missing, damaged, of another kind, or a file of ours was changed.
        """
        found = read_folder(Path(folder))
        if not hf.is_own(found.document, cls.SPECIALS):
            return cls(_foreign_parts(found))
        path = Path(folder) / "tokenizer.json"
        more = hf.extra_specials(found.document, cls.SPECIALS, (*cls.ENCODER, *cls.TASK))
        merges = hf.read_merges(found.document, path, (*cls.SPECIALS, *more))
        try:
            return cls.from_merges(merges, more)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json (with the chat template) as `transformers` reads them.

        Those of a foreign tokenizer, and what else belongs to it, are written as they were read, byte by byte.
        """
        for name, content in self._files.items():
            write_atomic(Path(folder) / name, content)

    def encode(self, text: str) -> list[int]:
        """Ids of content, nothing around it. Text that spells a control token stays plain text.

        A lone surrogate counts as U+FFFD.
        """
        return self._codec.encode(text)

    def beginning(self, text: str) -> list[int]:
        """The ids of a text that begins a document and goes on: what stands before one, then the text.

        [bos] for an empty text where nothing stands before one (GPT-2); [] where there is nothing to begin with.
        """
        ids = [*self.prefix_ids, *self.encode(text)]
        return [self.bos_id] if not ids and self.bos_id is not None else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """[encode(text) for text in texts], on all cores when the texts are long enough to gain from it."""
        num_characters, num_threads = sum(map(len, texts)), os.cpu_count() or 1
        if num_characters >= _MANY_CHARACTERS:
            self._codec.speed_up()
        if num_threads == 1 or num_characters < _THREADED_CHARACTERS * len(texts) or len(texts) < 2:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(self.encode, texts))

    def speed_up(self) -> None:
        """Look now whether the fast encoder gives the same ids, as `encode_batch` does before it encodes much."""
        self._codec.speed_up()

    def document(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text as a document to learn from: what stands before it, the text, and the end of a document."""
        before, after = self.document_edges
        return [*before, *ids, *after]

    @property
    def document_edges(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What stands before a document to learn from, and what ends it."""
        return self.prefix_ids, () if self.eos_id is None else (self.eos_id,)

    def decode_bytes(self, ids: Iterable[int], after: Iterable[int] = ()) -> bytes:
        """The bytes that the ids stand for; control tokens stand for none. Raises UsageError for an id out of range.

        after: ids that stand before them, of a text that they continue. It matters to foreign tokenizers that see to
        the blanks between words themselves, and so drop the one at the beginning of a text.
        """
        stream = TextStream(self, after)
        return b"".join(map(stream.feed_bytes, ids))

    def decode(self, ids: Iterable[int], after: Iterable[int] = ()) -> str:
        """The text of the ids, without control tokens. Bytes that are not UTF-8 become U+FFFD. after: as above."""
        return self.decode_bytes(ids, after).decode("utf-8", errors="replace")

    def name(self, token_id: int) -> str:
        """How to show an id to a person: a control token by its name, text as it is, half a character as \\xNN."""
        token = self.token_bytes(token_id)
        if token:
            return token.decode("utf-8", errors="backslashreplace")
        return self._codec.name(token_id) or f"<{token_id}>"

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token in the middle of a text. Raises UsageError for an id out of range."""
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"token id {token_id} is out of range: legal ids are 0 to {self.vocab_size - 1}")
        return self._codec.piece(token_id)

    @property
    def chat_template(self) -> str | None:
        """The chat form as a Jinja template, which other programs want; None for a base model of others."""
        return None if self.form is None else self.form.source

    @property
    def drops_blanks(self) -> tuple[bool, bool]:
        """Whether a text loses the blank at its beginning, and that at its end."""
        return self._codec.drops_first_blank, self._codec.drops_last_blank


def _foreign_parts(found: Found) -> Parts:
    codec = Codec(found.document, found.control, found.where)
    prefix_ids, suffix_ids = codec.around()
    named = {kind: codec.ids[token] for kind, token in found.named.items()}
    form = TemplateForm(codec, found.template, found.named, found.where) if found.template is not None else None
    stops = [codec.ids[token] for token in found.stops]
    if form is not None and form.end_id is not None:
        stops.append(form.end_id)
    return Parts(
        codec=codec,
        form=form,
        bos_id=named.get("bos"),
        eos_id=named.get("eos"),
        pad_id=named.get("pad", named.get("eos", 0)),
        stop_ids=tuple(dict.fromkeys(stops)),
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        files=found.files,
        hash=found.hash,
        origin=found,
        mask_id=named.get("mask"),
    )


def check_sizes(tokenizer: Tokenizer, num_rows: int, where: str) -> None:
    """Raises ModelError unless a model with num_rows rows in its embedding has one for every id, and few others.

    None at all beside our own tokenizers; others pad their embeddings to round numbers.
    """
    size = tokenizer.vocab_size
    if size == num_rows:
        return
    spare = 0 if tokenizer.is_own else max(MOST_SPARE_ROWS, size // 20)
    if not size <= num_rows <= size + spare:
        raise ModelError(
            f"{where}: the tokenizer has {size} tokens and the model {num_rows}; they must agree"
            f"{f', with up to {spare} rows to spare' if spare else ''}. "
            "Use the tokenizer that the model was trained with"
        )


class TextStream:
    """Text of ids that arrive one by one, in pieces that never hold half a character.

    All pieces joined equal `tokenizer.decode` of all ids. after: ids that stand before them, as for `decode`.
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun, self._held = False, b""
        for token_id in after:
            self.feed_bytes(token_id)

    def feed_bytes(self, token_id: int) -> bytes:
        """The bytes that this id adds to the text, a blank that may be its last one held back."""
        piece = self._held + self._tokenizer.token_bytes(token_id)
        drops_first, drops_last = self._tokenizer.drops_blanks
        if drops_first and piece and not self._begun:
            piece = piece.removeprefix(b" ")
            self._begun = True
        self._held = b" " if drops_last and piece.endswith(b" ") else b""
        return piece.removesuffix(self._held)

    def feed(self, token_id: int) -> str:
        """The characters completed by this id: often one token's text, "" inside a character or for a special."""
        return self._decoder.decode(self.feed_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else "". The stream starts anew."""
        self._begun, self._held = False, b""
        return self._decoder.decode(b"", final=True)
