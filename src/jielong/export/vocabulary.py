"""A tokenizer as data that a program without our code can use: tokens, merges, the split's name, how a chat is joined.

It is read from tokenizer.json, so that byte-level BPE of others (Qwen's, Llama 3's, GPT-2's) passes as ours does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jielong.errors import JielongError, ModelError, UsageError
from jielong.tokenizer.chat import Message, render
from jielong.tokenizer.hf import SPLIT_PATTERN, read_document
from jielong.tokenizer.tokenizer import Tokenizer

# llama.cpp's name of a split pattern -> the pattern. A pattern that is not here would be split otherwise over there.
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPLITS = {
    "qwen2": SPLIT_PATTERN,
    "llama-bpe": SPLIT_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
    "gpt-2": _GPT2_PATTERN,
}
_MARK = "\0"  # stands for a message's content: always a token of its own, and in no template


@dataclass(frozen=True)
class Joints:
    """The ids between the contents of a conversation's messages; the contents are encoded on their own.

    system_first, user_first: before the first message. system_user, user_assistant, assistant_user: between two.
    reply: after the last message, a user's, up to where the assistant's answer begins.
    """

    system_first: list[int] | None  # None: the format has no system message
    system_user: list[int] | None
    user_first: list[int]
    user_assistant: list[int]
    assistant_user: list[int]
    reply: list[int]


@dataclass(frozen=True)
class Vocabulary:
    """Everything of a tokenizer, by id.

    spelled: each token as tokenizer.json writes it, specials by name; tokens: its bytes, b"" for a special.
    controls: ids that text cannot spell; added: ids of names that are tokens wherever a text spells them.
    merges: pairs of spelled tokens, first learned first. split: llama.cpp's name of the pattern; ignore_merges: a piece
    that is a token is that token, whatever the merges say. normalise: "NFC" or "". joints: None without a chat format.
    """

    spelled: list[str]
    tokens: list[bytes]
    controls: frozenset[int]
    added: frozenset[int]
    merges: list[tuple[str, str]]
    split: str
    ignore_merges: bool
    normalise: str
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    end_id: int | None
    stop_ids: list[int]
    chat_template: str
    joints: Joints | None

    @property
    def merged_ids(self) -> list[tuple[int, int, int]]:
        """Each merge as ids: (left, right, joined)."""
        number = {name: index for index, name in enumerate(self.spelled)}
        return [(number[left], number[right], number[left + right]) for left, right in self.merges]


def read_vocabulary(folder: Path, tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a model folder, whose `tokenizer` is loaded.

    Raises ModelError naming tokenizer.json and what in it other programs could not follow.
    """
    path = folder / "tokenizer.json"
    document = read_document(path)
    model = document["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelError(f"{path}: the tokenizer is {model.get('type')!r}; only byte-level BPE can be exported")
    added = {int(token["id"]): token for token in document.get("added_tokens") or []}
    names = {int(number): name for name, number in model["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    if sorted(names) != list(range(tokenizer.vocab_size)):
        raise ModelError(f"{path}: {len(names)} tokens are not numbered 0 to {tokenizer.vocab_size - 1} without gaps")
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    controls = frozenset(number for number, token in added.items() if token.get("special"))
    return Vocabulary(
        spelled=[names[number] for number in range(len(names))],
        tokens=[tokenizer.decode_bytes([number]) for number in range(len(names))],
        controls=controls,
        added=frozenset(added) - controls,
        merges=[(left, right) for left, right in pairs],
        split=_split_name(document, path),
        ignore_merges=bool(model.get("ignore_merges")),
        normalise=_normaliser(document, path),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        end_id=tokenizer.end_id,
        stop_ids=sorted(tokenizer.stop_ids),
        chat_template=_chat_template(folder),
        joints=_find_joints(tokenizer),
    )


def _split_name(document: Mapping[str, Any], path: Path) -> str:
    """Raises ModelError for a pattern that llama.cpp has no name for."""
    outer = document.get("pre_tokenizer") or {}
    pattern = None
    for step in outer.get("pretokenizers", [outer]):
        if step.get("type") == "Split":
            pattern = step.get("pattern", {}).get("Regex")
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            pattern = _GPT2_PATTERN
    for name, known in _SPLITS.items():
        if pattern == known:
            return name
    raise ModelError(f"{path}: text is split by {pattern!r}; legal are the patterns of {', '.join(_SPLITS)}")


def _normaliser(document: Mapping[str, Any], path: Path) -> str:
    kind = (document.get("normalizer") or {}).get("type", "")
    if kind not in ("", "NFC"):
        raise ModelError(f"{path}: the normaliser is {kind!r}; legal are none and NFC")
    return str(kind)


def _chat_template(folder: Path) -> str:
    """The Jinja text that others render a conversation with; "" when there is none."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return ""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("chat_template") or ""
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not a JSON object ({error}); copy the folder again") from None
    if isinstance(found, list):  # several by name, as older folders have it
        found = next((each["template"] for each in found if each.get("name") == "default"), "")
    return str(found)


def _find_joints(tokenizer: Tokenizer) -> Joints | None:
    """What `render` puts between contents, found by rendering conversations whose contents are all one mark."""
    mark = tokenizer.encode(_MARK)
    assert len(mark) == 1, mark

    def between(*roles: str, reply: bool = False) -> list[list[int]]:
        messages: list[Message] = [{"role": role, "content": _MARK} for role in roles]
        pieces: list[list[int]] = [[]]
        for number in render(messages, tokenizer, reply=reply)[0]:
            if number == mark[0]:
                pieces.append([])
            else:
                pieces[-1].append(number)
        return pieces

    try:
        user_first, user_assistant, assistant_user, reply = between("user", "assistant", "user", reply=True)
    except UsageError:
        return None
    try:
        system_first, system_user, _ = between("system", "user")
    except JielongError:
        return Joints(None, None, user_first, user_assistant, assistant_user, reply)
    return Joints(system_first, system_user, user_first, user_assistant, assistant_user, reply)
