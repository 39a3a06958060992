"""A tokenizer as data: ids, merges, the split's name, and the ids that join a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jielong.errors import ModelError
from jielong.export.vocabulary import Vocabulary, read_vocabulary
from jielong.tokenizer.chat import CHAT_TEMPLATE, render
from jielong.tokenizer.hf import SPLIT_PATTERN
from jielong.tokenizer.tokenizer import Tokenizer


def test_our_own_tokenizer(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    assert len(vocabulary.spelled) == len(vocabulary.tokens) == tokenizer.vocab_size
    assert vocabulary.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert vocabulary.controls == set(tokenizer.special_ids.values()) and not vocabulary.added
    assert [vocabulary.spelled[number] for number in tokenizer.stop_ids] == ["<|eos|>", "<|end|>"]
    assert (vocabulary.split, vocabulary.normalise, vocabulary.ignore_merges) == ("qwen2", "", False)
    assert vocabulary.chat_template == CHAT_TEMPLATE
    assert len(vocabulary.merges) == tokenizer.vocab_size - 256 - len(Tokenizer.SPECIALS)


def test_merges_as_ids_join_bytes(vocabulary: Vocabulary) -> None:
    for left, right, joined in vocabulary.merged_ids:
        assert vocabulary.tokens[left] + vocabulary.tokens[right] == vocabulary.tokens[joined]


@pytest.mark.parametrize("system", ["", "be brief"])
@pytest.mark.parametrize("num_turns", [0, 1, 3])
def test_joints_and_contents_are_the_rendered_conversation(
    system: str, num_turns: int, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    joints = vocabulary.joints
    assert joints is not None and joints.system_first is not None and joints.system_user is not None
    messages = [{"role": "system", "content": system}] if system else []
    ids = joints.system_first + tokenizer.encode(system) + joints.system_user if system else [*joints.user_first]
    for turn in range(num_turns):
        asked, answered = f"what is {turn}? <|end|>", f"你好 {turn}"
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        ids += tokenizer.encode(asked) + joints.user_assistant + tokenizer.encode(answered) + joints.assistant_user
    messages.append({"role": "user", "content": "now\n"})
    ids += tokenizer.encode("now\n") + joints.reply
    assert ids == render(messages, tokenizer, reply=True)[0]


def changed(tmp_path: Path, tokenizer: Tokenizer, **changes: Any) -> Path:
    """The tokenizer's folder with parts of tokenizer.json replaced."""
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return tmp_path


def split_by(pattern: str) -> dict[str, Any]:
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


# Llama 3's, as its tokenizer.json has it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (split_by(LLAMA3), "llama-bpe"),
        (split_by(SPLIT_PATTERN), "qwen2"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}}, "gpt-2"),
    ],
)
def test_splits_of_others_have_names(changes: dict[str, Any], name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert read_vocabulary(changed(tmp_path, tokenizer, **changes), tokenizer).split == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (split_by(r"\w+"), "tokenizer.json: text is split by a pattern that is not known here; known are .*gpt-2"),
        ({"normalizer": {"type": "Lowercase"}}, "the normaliser is {'type': 'Lowercase'}; legal are none and NFC"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "the tokenizer is WordPiece; only byte-level BPE"),
        ({"model": {"type": "BPE", "vocab": {}, "byte_fallback": True}}, "the tokenizer is BPE with byte fallback"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "not every byte is a token of its own"),
        (
            {"added_tokens": [{"id": 300, "content": "<x>", "lstrip": True}]},
            "the added token '<x>' depends on what stands beside it",
        ),
    ],
)
def test_what_others_cannot_follow_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ModelError, match=message):
        read_vocabulary(changed(tmp_path, tokenizer, **changes), tokenizer)


def test_template_of_its_own_file_comes_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert read_vocabulary(tmp_path, tokenizer).chat_template == "{{ messages }}"
