"""tokenizer.json and tokenizer_config.json: `transformers` reads ours, and damaged ones are refused with a reason."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import ModelError
from jielong.tokenizer.chat import render
from jielong.tokenizer.spelling import CHARACTERS, spell, unspell
from jielong.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer.save(path)
    (path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return path


@pytest.fixture(scope="module")
def foreign(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_transformers_knows_the_specials(foreign: Any, tokenizer: Tokenizer) -> None:
    assert len(foreign) == tokenizer.vocab_size
    assert (foreign.pad_token_id, foreign.bos_token_id, foreign.eos_token_id) == (
        tokenizer.pad_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )
    assert {name: foreign.convert_tokens_to_ids(name) for name in Tokenizer.SPECIALS} == tokenizer.special_ids
    assert set(foreign.all_special_tokens) == set(Tokenizer.SPECIALS)


content = st.text(max_size=40).filter(lambda text: not any(name in text for name in Tokenizer.SPECIALS))


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(content, min_size=1, max_size=5), system=st.booleans())
def test_apply_chat_template_gives_our_ids(foreign: Any, tokenizer: Tokenizer, texts: list[str], system: bool) -> None:
    roles = (["system"] if system else []) + ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    assert _template_ids(foreign, messages, False) == render(messages, tokenizer)[0]
    if messages[-1]["role"] == "user":
        assert _template_ids(foreign, messages, True) == render(messages, tokenizer, reply=True)[0]


def _template_ids(foreign: Any, messages: list[dict[str, str]], reply: bool) -> list[int]:
    return list(foreign.apply_chat_template(messages, add_generation_prompt=reply, return_dict=False))


def test_the_template_refuses_other_roles(foreign: Any) -> None:
    with pytest.raises(Exception, match="role must be system, user or assistant"):
        foreign.apply_chat_template([{"role": "tool", "content": "x"}])


@settings(max_examples=100, deadline=None)
@given(text=content)
def test_transformers_encodes_and_decodes_alike(foreign: Any, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert foreign.encode(text, add_special_tokens=False) == ids
    assert foreign.decode([*ids, tokenizer.end_id], skip_special_tokens=True) == text


def test_what_transformers_saves_again_is_read_back(foreign: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    foreign.save_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.hash == tokenizer.hash


def test_the_byte_alphabet_is_the_one_of_the_library() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    assert sorted(CHARACTERS) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert (spell(b" a\n"), unspell("Ġ")) == ("ĠaĊ", b" ")


def test_missing_and_damaged_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff\xfe" + whole, b"[" * 100_000, b"[]", b'{"model": 3}'):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)


def _remove_end(document: dict[str, Any]) -> None:
    document["added_tokens"].pop()


def _double_pad(document: dict[str, Any]) -> None:
    document["added_tokens"][2]["content"] = "<|pad|>"


def _pad_is_eos(document: dict[str, Any]) -> None:
    document["added_tokens"][2]["id"] = document["added_tokens"][0]["id"]


def _no_specials(document: dict[str, Any]) -> None:
    del document["added_tokens"]


def _other_kind(document: dict[str, Any]) -> None:
    document["model"]["type"] = "WordPiece"


def _other_pattern(document: dict[str, Any]) -> None:
    document["pre_tokenizer"] = {"type": "Whitespace"}


def _normaliser(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "NFC"}


def _swapped_ids(document: dict[str, Any]) -> None:
    vocab = document["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def _lost_token(document: dict[str, Any]) -> None:
    document["model"]["vocab"].popitem()


def _bad_merge(document: dict[str, Any]) -> None:
    document["model"]["merges"][0] = ["漢", "a"]


def _three_parts(document: dict[str, Any]) -> None:
    document["model"]["merges"][0] = "a b c"


def _no_merges(document: dict[str, Any]) -> None:
    del document["model"]["merges"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_end, r"missing: \['<\|end\|>'\]"),
        (_double_pad, r"missing: \['<\|eos\|>'\], doubled: \['<\|pad\|>'\]"),
        (_pad_is_eos, "the special tokens have ids"),
        (_no_specials, "added_tokens"),
        (_other_kind, "not a byte-level BPE"),
        (_other_pattern, "splits text by another pattern"),
        (_normaliser, "without normaliser"),
        (_swapped_ids, "must number the 256 bytes"),
        (_lost_token, "must number the 256 bytes"),
        (_bad_merge, "must be a list of pairs"),
        (_three_parts, "must be a list of pairs"),
        (_no_merges, "must be a list of pairs"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    damage: Callable[[dict[str, Any]], None], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    damage(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ModelError, match=message) as raised:
        Tokenizer.load(tmp_path)
    assert str(path) in str(raised.value)


def test_older_spelling_of_merges_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    path.write_text(json.dumps(document), encoding="utf-8")
    assert Tokenizer.load(tmp_path).hash == tokenizer.hash


def test_loading_warns_of_nothing(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
