"""A tokenizer as data that a program without our code can use: tokens, merges, the split's name, how a chat is joined.

It is read from a folder's tokenizer.json, so that byte-level BPE of others (Qwen's, Llama 3's, GPT-2's) passes as ours
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jielong.errors import ModelError, UsageError
from jielong.tokenizer.chat import Message, render
from jielong.tokenizer.fast import GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT, merge_pair, split_pattern
from jielong.tokenizer.foreign import read_folder
from jielong.tokenizer.spelling import CHARACTERS
from jielong.tokenizer.tokenizer import Tokenizer

# llama.cpp's names of split patterns. By any other, text would be split otherwise over there.
SPLITS = {QWEN2_SPLIT: "qwen2", LLAMA3_SPLIT: "llama-bpe", GPT2_SPLIT: "gpt-2"}
_MARK = "\0"  # stands for a message's content: a token of its own, and in no template
CONVERSATION: list[Message] = [
    {"role": "user", "content": "What is 12 + 30?"},
    {"role": "assistant", "content": "It is 42."},
    {"role": "user", "content": "你好！"},
]


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

    spelled: each token as tokenizer.json writes it, others by name; tokens: its bytes, b"" for a control token.
    controls: ids that no text becomes; added: ids of names that any text becomes which spells them; gaps: ids that have
    no token. merges: pairs of spelled tokens, first learned first. split: llama.cpp's name of the pattern.
    ignore_merges: a piece that is a token is that token, whatever the merges say. normalise: "NFC" or "".
    bos_id, eos_id, pad_id, end_id, stop_ids, prefix_ids: as in Tokenizer. chat_template: Jinja, "" for none. joints:
    None without a chat format, or where this is not how its template works.
    """

    spelled: list[str]
    tokens: list[bytes]
    controls: frozenset[int]
    added: frozenset[int]
    gaps: frozenset[int]
    merges: list[tuple[str, str]]
    split: str
    ignore_merges: bool
    normalise: str
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    end_id: int | None
    stop_ids: list[int]
    prefix_ids: list[int]
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
    found = read_folder(folder)
    model, where = found.document["model"], found.where
    added = {int(token["id"]): token for token in found.document["added_tokens"]}
    controls = frozenset(tokenizer.special_ids.values())
    _check(found.document, where, [token for number, token in added.items() if number not in controls])
    names = {int(number): name for name, number in model["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    if not set(CHARACTERS) <= set(model["vocab"]):
        raise ModelError(f"{where}: not every byte is a token of its own; byte-level BPE must have all 256")
    if tokenizer.suffix_ids or tokenizer.prefix_ids not in ((), (tokenizer.bos_id,)):
        raise ModelError(f"{where}: it puts more around a text than the token for its beginning, which is not exported")
    return Vocabulary(
        spelled=[names.get(number, f"[UNUSED{number}]") for number in range(tokenizer.vocab_size)],
        tokens=[tokenizer.token_bytes(number) for number in range(tokenizer.vocab_size)],
        controls=controls,
        added=frozenset(added) - controls,
        gaps=frozenset(range(tokenizer.vocab_size)) - frozenset(names),
        merges=[merge_pair(merge) for merge in model["merges"]],
        split=SPLITS[str(split_pattern(found.document["pre_tokenizer"]))],
        ignore_merges=bool(model.get("ignore_merges")),
        normalise=(found.document.get("normalizer") or {}).get("type", ""),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        end_id=tokenizer.end_id,
        stop_ids=sorted(tokenizer.stop_ids),
        prefix_ids=list(tokenizer.prefix_ids),
        chat_template=found.template or "",
        joints=_find_joints(tokenizer),
    )


def _check(document: Mapping[str, Any], where: str, visible: Iterable[Mapping[str, Any]]) -> None:
    """visible: added tokens that text can become. Raises ModelError for what other programs could not follow."""
    model = document["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback" if model.get("byte_fallback") else model.get("type")
        raise ModelError(f"{where}: the tokenizer is {kind}; only byte-level BPE can be exported")
    pattern = split_pattern(document.get("pre_tokenizer"))
    if pattern not in SPLITS:
        legal = ", ".join(SPLITS.values())
        raise ModelError(f"{where}: text is split by a pattern that is not known here; known are those of {legal}")
    normaliser = document.get("normalizer")
    if normaliser not in (None, {"type": "NFC"}):
        raise ModelError(f"{where}: the normaliser is {normaliser!r:.80}; legal are none and NFC")
    for token in visible:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise ModelError(f"{where}: the added token {token['content']!r} depends on what stands beside it")


def join(joints: Joints, messages: list[Message], encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of a conversation that ends with a user's message, ready for a reply."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    contents = [encode(message["content"]) for message in messages if message["role"] != "system"]
    ids = [*joints.user_first]
    if system is not None:
        assert joints.system_first is not None and joints.system_user is not None
        ids = [*joints.system_first, *encode(system), *joints.system_user]
    for turn in range(0, len(contents) - 1, 2):
        ids += [*contents[turn], *joints.user_assistant, *contents[turn + 1], *joints.assistant_user]
    return [*ids, *contents[-1], *joints.reply]


def _find_joints(tokenizer: Tokenizer) -> Joints | None:
    """What `render` puts between contents, found by rendering conversations whose contents are all one mark.

    None for a base model, and for a template that does more than to put something between contents.
    """
    mark = tokenizer.encode(_MARK)

    def between(*roles: str, reply: bool = False) -> list[list[int]]:
        messages: list[Message] = [{"role": role, "content": _MARK} for role in roles]
        pieces: list[list[int]] = [[]]
        for number in render(messages, tokenizer, reply=reply)[0]:
            if [number] == mark:
                pieces.append([])
            else:
                pieces[-1].append(number)
        return pieces

    try:
        user_first, user_assistant, assistant_user, reply = between("user", "assistant", "user", reply=True)
        joints = Joints(None, None, user_first, user_assistant, assistant_user, reply)
        if join(joints, CONVERSATION, tokenizer.encode) != render(CONVERSATION, tokenizer, reply=True)[0]:
            return None
    except (UsageError, ValueError):
        return None
    try:
        system_first, system_user, reply = between("system", "user", reply=True)
        instructed: list[Message] = [{"role": "system", "content": "Be brief."}, *CONVERSATION]
        with_system = Joints(system_first, system_user, user_first, user_assistant, assistant_user, reply)
        same = join(with_system, instructed, tokenizer.encode) == render(instructed, tokenizer, reply=True)[0]
    except (UsageError, ValueError):
        return joints
    return with_system if same else joints
