"""Tokenizers of others' folders: ids equal to `transformers`', content never a control token, files kept."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import ModelError, UsageError
from jielong.tokenizer.tokenizer import TextStream, Tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

KINDS = (
    "gpt2", "llama3", "qwen", "qwen3", "llama2", "mistral", "openai_gpt", "bert", "bert_cased", "unigram"
)  # fmt: skip
BYTE_LEVEL = ("gpt2", "llama3", "qwen", "qwen3")
every_kind = pytest.mark.parametrize("kind", KINDS)

any_text = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=" \n\r\t'astldrveASTL12你好é!.,|e\u0301\u00a0", max_size=60),
    st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", errors="replace")),
)


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        kind: transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        for kind, folder in folders.items()
    }


@pytest.fixture(scope="module")
def plain_theirs(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        kind: transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        for kind, folder in folders.items()
    }


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return [*tokenizer.prefix_ids, *tokenizer.encode(text), *tokenizer.suffix_ids]


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


# Ids.


@every_kind
def test_a_thousand_mixed_strings_have_their_ids(
    kind: str, foreign: dict[str, Tokenizer], theirs: dict[str, Any], plain_theirs: dict[str, Any], strings: list[str]
) -> None:
    tokenizer = foreign[kind]
    plain = [text for text in strings if not any(name in text for name in tokenizer.special_ids)]
    assert len(plain) > 900
    ours = [whole(tokenizer, text) for text in plain]
    assert ours == theirs[kind](plain)["input_ids"]
    assert ours == plain_theirs[kind](plain)["input_ids"]
    assert tokenizer.encode_batch(plain) == [tokenizer.encode(text) for text in plain]


@every_kind
@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_ids_of_any_text(kind: str, text: str, foreign: dict[str, Tokenizer], theirs: dict[str, Any]) -> None:
    if not any(name in text for name in foreign[kind].special_ids):
        assert whole(foreign[kind], text) == theirs[kind](text)["input_ids"]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_tiktoken_takes_over_with_the_same_ids(kind: str, folders: dict[str, Path], strings: list[str]) -> None:
    tokenizer = Tokenizer.load(folders[kind])
    slow = [tokenizer.encode(text) for text in strings]
    assert tokenizer._codec._fast is None
    tokenizer._codec.speed_up()
    assert tokenizer._codec._fast is not None
    assert [tokenizer.encode(text) for text in strings] == slow
    long = ["The cat sat. 你好 " * 5_000, "another one\n" * 90]
    assert tokenizer.encode_batch(long) == [tokenizer._codec._encode_slowly(text) for text in long]
    blanks = "word" + " " * 600_000 + "end"
    assert tokenizer.decode(tokenizer.encode(blanks)) == blanks


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(BYTE_LEVEL)))
def test_the_others_are_left_to_the_library(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders[kind])
    tokenizer._codec.speed_up()
    assert tokenizer._codec._fast is None


def test_qwen_composes_characters(foreign: dict[str, Tokenizer]) -> None:
    """NFC: a letter with a combining mark is one character, in a text but not in our own tokenizer's."""
    tokenizer = foreign["qwen"]
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")
    assert tokenizer.decode(tokenizer.encode("cafe\u0301")) == unicodedata.normalize("NFC", "cafe\u0301")
    tokenizer._codec.speed_up()
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")


def test_added_words_are_vocabulary(foreign: dict[str, Tokenizer], theirs: dict[str, Any]) -> None:
    """Qwen3's <think> is no control token: replies are full of it, and text that spells it means it."""
    tokenizer = foreign["qwen3"]
    text = "<think>\nhm\n</think>\n\nyes<tool_call>"
    assert tokenizer.encode(text) == theirs["qwen3"](text)["input_ids"]
    assert theirs["qwen3"].convert_tokens_to_ids("<think>") in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer._codec.speed_up()
    assert tokenizer.encode(text) == theirs["qwen3"](text)["input_ids"]


# Control tokens.


@every_kind
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_content_never_becomes_a_control_token(kind: str, data: st.DataObject, foreign: dict[str, Tokenizer]) -> None:
    tokenizer = foreign[kind]
    spelled = st.sampled_from(sorted(tokenizer.special_ids))
    text = "".join(data.draw(st.lists(st.one_of(spelled, st.text(max_size=8), st.sampled_from(" \n<|")), max_size=8)))
    unknown = {tokenizer.special_ids.get("<unk>"), tokenizer.special_ids.get("[UNK]")}
    assert not (set(tokenizer.special_ids.values()) - unknown).intersection(tokenizer.encode(text))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"unigram"}))
def test_spelled_control_tokens_have_the_ids_of_their_letters(
    kind: str, foreign: dict[str, Tokenizer], theirs: dict[str, Any]
) -> None:
    """As `split_special_tokens` of `transformers`, where the vocabulary itself does not hold the control token."""
    for name in foreign[kind].special_ids:
        text = f"a {name}{name} b\n{name}"
        expected = theirs[kind](text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert foreign[kind].encode(text) == expected


def test_a_vocabulary_that_spells_its_control_tokens(foreign: dict[str, Tokenizer], theirs: dict[str, Any]) -> None:
    """A unigram model finds "</s>" in its own vocabulary, where splitting the added tokens off does not help."""
    split = theirs["unigram"]("a</s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert foreign["unigram"].special_ids["</s>"] in split
    assert foreign["unigram"].special_ids["</s>"] not in foreign["unigram"].encode("a</s>")


def test_what_the_folders_say(foreign: dict[str, Tokenizer]) -> None:
    def facts(kind: str) -> tuple[Any, ...]:
        t = foreign[kind]
        return t.bos_id, t.eos_id, t.prefix_ids, t.suffix_ids

    end = foreign["gpt2"].special_ids["<|endoftext|>"]
    assert facts("gpt2") == (end, end, (), ())
    assert foreign["gpt2"].stop_ids == (end,) and foreign["gpt2"].pad_id == end
    ids = foreign["llama3"].special_ids
    assert facts("llama3") == (ids["<|begin_of_text|>"], ids["<|eot_id|>"], (ids["<|begin_of_text|>"],), ())
    assert set(foreign["llama3"].stop_ids) == {ids["<|eot_id|>"], ids["<|eom_id|>"], ids["<|end_of_text|>"]}
    ids = foreign["qwen"].special_ids
    assert facts("qwen") == (None, ids["<|im_end|>"], (), ())  # "bos_token": null decides, whatever config.json says
    assert foreign["qwen"].stop_ids == (ids["<|im_end|>"], ids["<|endoftext|>"])
    assert foreign["qwen"].pad_id == ids["<|endoftext|>"]
    assert facts("llama2") == facts("mistral") == (1, 2, (1,), ())
    assert facts("openai_gpt") == (None, None, (), ()) and foreign["openai_gpt"].stop_ids == ()
    assert facts("bert") == (None, None, (2,), (3,)) and foreign["bert"].pad_id == 0
    assert foreign["bert"].special_ids == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    assert facts("unigram") == (None, 1, (), (1,))
    assert not any(tokenizer.is_own for tokenizer in foreign.values())


def test_the_file_decides_not_the_class(folders: dict[str, Path], tmp_path: Path) -> None:
    """`LlamaTokenizer` of `transformers` 5 sets the file's normaliser aside; the models were trained with it."""
    folder = copy(folders["llama2"], tmp_path)
    rewrite(folder, "tokenizer_config.json", lambda d: d.update(tokenizer_class="LlamaTokenizer"))
    tokenizer = Tokenizer.load(folder)
    by_file = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for text in ("hello", " hello", "  x", "\n"):
        assert whole(tokenizer, text) == by_file(text)["input_ids"]
    blank = tokenizer._codec.ids["▁"]
    assert tokenizer.encode(" x")[:2] == [blank, blank]


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def test_the_first_file_that_says_something_decides(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["llama3"], tmp_path)
    names = {kind: f"<|{kind}|>" for kind in ("end_of_text", "eot_id", "eom_id", "python_tag")}
    ids = Tokenizer.load(folder).special_ids
    rewrite(folder, "special_tokens_map.json", lambda d: d.update(eos_token=names["python_tag"]))
    assert Tokenizer.load(folder).eos_id == ids["<|eot_id|>"]
    rewrite(folder, "tokenizer_config.json", lambda d: d.pop("eos_token"))
    assert Tokenizer.load(folder).eos_id == ids["<|python_tag|>"]
    rewrite(folder, "special_tokens_map.json", lambda d: d.update(eos_token={"content": names["eom_id"]}))
    assert Tokenizer.load(folder).eos_id == ids["<|eom_id|>"]
    rewrite(folder, "special_tokens_map.json", lambda d: d.update(eos_token="not in the vocabulary"))
    assert Tokenizer.load(folder).eos_id == ids["<|end_of_text|>"]  # first of generation_config.json's list
    rewrite(folder, "generation_config.json", lambda d: d.update(eos_token_id=99_999))
    rewrite(folder, "config.json", lambda d: d.update(eos_token_id=ids["<|eom_id|>"]))
    assert Tokenizer.load(folder).eos_id == ids["<|eom_id|>"]
    rewrite(folder, "tokenizer_config.json", lambda d: d.update(eos_token=None))
    assert Tokenizer.load(folder).eos_id is None


def test_named_tokens_are_control_tokens_though_not_marked(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["qwen"], tmp_path)

    def unmark(document: dict[str, Any]) -> None:
        for token in document["added_tokens"]:
            token["special"] = False

    rewrite(folder, "tokenizer.json", unmark)
    tokenizer = Tokenizer.load(folder)
    assert set(tokenizer.special_ids) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert tokenizer.special_ids["<|im_end|>"] not in tokenizer.encode("<|im_end|>")


# Text.


@every_kind
def test_text_comes_back_as_theirs_does(
    kind: str, foreign: dict[str, Tokenizer], theirs: dict[str, Any], strings: list[str]
) -> None:
    tokenizer = foreign[kind]
    for text in strings:
        ids = tokenizer.encode(text)
        expected = theirs[kind].decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(whole(tokenizer, text)) == tokenizer.decode(ids) == expected
        if kind in BYTE_LEVEL and not kind.startswith("qwen"):
            assert tokenizer.decode(ids) == text


@every_kind
def test_pieces_join_to_the_text(kind: str, foreign: dict[str, Tokenizer], strings: list[str]) -> None:
    tokenizer = foreign[kind]
    for text in strings[:300]:
        ids = whole(tokenizer, text)
        stream = TextStream(tokenizer)
        pieces = [stream.feed(token_id) for token_id in ids] + [stream.flush()]
        assert "".join(pieces) == tokenizer.decode(ids)
        for cut in (1, len(ids) // 2):
            before, rest = ids[:cut], ids[cut:]
            assert tokenizer.decode_bytes(before) + tokenizer.decode_bytes(rest, after=before) == (
                tokenizer.decode_bytes(ids)
            )
            stream = TextStream(tokenizer, after=before)
            assert b"".join(map(stream.feed_bytes, rest)) == tokenizer.decode_bytes(rest, after=before)


def test_blanks_between_words_when_a_text_goes_on(foreign: dict[str, Tokenizer]) -> None:
    for kind, first in (("llama2", "the cat"), ("openai_gpt", "the cat"), ("bert", "the cat"), ("gpt2", "the cat")):
        tokenizer = foreign[kind]
        ids = tokenizer.encode("the cat sat")
        before = tokenizer.encode(first)
        assert ids[: len(before)] == before
        assert tokenizer.decode(ids[len(before) :], after=before) == " sat"
    assert foreign["llama2"].decode(foreign["llama2"].encode("sat")) == "sat"


def test_bytes_that_make_no_character(foreign: dict[str, Tokenizer]) -> None:
    """Single bytes, as a model may produce them: one U+FFFD a broken character, its neighbours kept."""
    tokenizer = foreign["llama2"]
    byte = [tokenizer._codec.ids[f"<0x{value:02X}>"] for value in "你a".encode()]
    assert tokenizer.decode(byte[:3]) == "你" and tokenizer.decode(byte[:2]) == "\ufffd"
    assert tokenizer.decode([*byte[:2], *byte]) == "\ufffd你a"
    assert tokenizer.name(byte[0]) == "\\xe4" and tokenizer.name(1) == "<s>"


@every_kind
def test_names_and_ids_out_of_range(kind: str, foreign: dict[str, Tokenizer]) -> None:
    tokenizer = foreign[kind]
    for name, number in tokenizer.special_ids.items():
        assert tokenizer.name(number) == name and tokenizer.token_bytes(number) == b""
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(UsageError, match="out of range"):
            tokenizer.decode([wrong])


@every_kind
def test_vocabulary_size_is_theirs(kind: str, foreign: dict[str, Tokenizer], theirs: dict[str, Any]) -> None:
    assert foreign[kind].vocab_size == len(theirs[kind])


# Files.


@every_kind
def test_saved_files_are_the_same_bytes(
    kind: str, folders: dict[str, Path], foreign: dict[str, Tokenizer], tmp_path: Path, strings: list[str]
) -> None:
    foreign[kind].save(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    expected = {
        path.name: path.read_bytes()
        for path in folders[kind].iterdir()
        if path.name not in ("config.json", "generation_config.json")
    }
    assert written == expected
    shutil.copy(folders[kind] / "config.json", tmp_path / "config.json")
    again, others = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.hash == foreign[kind].hash
    assert [whole(again, text) for text in strings[:50]] == others(strings[:50])["input_ids"]
    assert others.chat_template == transformers.AutoTokenizer.from_pretrained(folders[kind]).chat_template


def test_hashes_differ_with_the_ids(folders: dict[str, Path], foreign: dict[str, Tokenizer], tmp_path: Path) -> None:
    assert len({tokenizer.hash for kind, tokenizer in foreign.items() if kind != "qwen3"}) == len(foreign) - 1
    assert foreign["qwen"].hash == foreign["qwen3"].hash  # the same vocabulary, another template
    folder = copy(folders["gpt2"], tmp_path)
    rewrite(folder, "tokenizer.json", lambda d: d["model"]["merges"].pop())
    assert Tokenizer.load(folder).hash != foreign["gpt2"].hash


@pytest.mark.parametrize("kind", ["gpt2", "openai_gpt", "bert", "bert_cased"])
def test_the_older_files_are_read(kind: str, folders: dict[str, Path], tmp_path: Path, strings: list[str]) -> None:
    folder = copy(folders[kind], tmp_path)
    (folder / "tokenizer.json").unlink()
    tokenizer = Tokenizer.load(folder)
    others = transformers.AutoTokenizer.from_pretrained(folder)
    assert [whole(tokenizer, text) for text in strings] == others(strings)["input_ids"]
    assert tokenizer.special_ids == Tokenizer.load(folders[kind]).special_ids
    tokenizer.save(tmp_path / "again")
    assert not (tmp_path / "again" / "tokenizer.json").exists()
    (tmp_path / "again" / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert Tokenizer.load(tmp_path / "again").hash == tokenizer.hash


def test_qwens_older_files(folders: dict[str, Path], tmp_path: Path, strings: list[str]) -> None:
    folder = copy(folders["qwen"], tmp_path)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    merges = "".join(f"{left} {right}\n" for left, right in document["model"]["merges"])
    (folder / "vocab.json").write_text(json.dumps(document["model"]["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    added = {str(token.pop("id")): token for token in document["added_tokens"]}
    rewrite(folder, "tokenizer_config.json", lambda d: d.update(added_tokens_decoder=added))
    tokenizer, expected = Tokenizer.load(folder), Tokenizer.load(folders["qwen"])
    assert [tokenizer.encode(text) for text in strings] == [expected.encode(text) for text in strings]
    assert tokenizer.special_ids == expected.special_ids and tokenizer.stop_ids == expected.stop_ids


def test_files_that_are_not_read_say_what_to_do(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["llama2"], tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer.json is missing: a model folder holds its tokenizer in it$"):
        Tokenizer.load(folder)
    (folder / "tokenizer.model").write_bytes(b"spm")
    with pytest.raises(ModelError, match=r"has tokenizer.model: have it written as tokenizer.json with transformers"):
        Tokenizer.load(folder)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "kind": (lambda d: d["model"].update(type="CharBPE"), "\"type\" is 'CharBPE'; legal are BPE, WordPiece, Unigram"),
    "no kind": (lambda d: d["model"].pop("type"), '"type" is None'),
    "no vocabulary": (lambda d: d["model"].pop("vocab"), '"vocab" must give every token'),
    "ids of text": (lambda d: d["model"]["vocab"].update(a="1"), '"vocab" must give every token'),
    "an id twice": (lambda d: d["model"]["vocab"].update(b=d["model"]["vocab"]["a"]), "two tokens have the same id"),
    "no added tokens": (lambda d: d.pop("added_tokens"), '"added_tokens" must be a list'),
    "an added token without an id": (lambda d: d["added_tokens"].append({"content": "x"}), '"added_tokens" must be'),
    "an added id beyond": (lambda d: d["added_tokens"][0].update(id=9000, content="<x>"), "has the id 9000, but"),
    "decoder": (lambda d: d.update(decoder={"type": "CTC"}), "decoder type 'CTC' is not known"),
    "decoder step": (
        lambda d: d.update(decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "CTC"}]}),
        "step 'CTC' is not known",
    ),
    "pre-tokenizer": (lambda d: d.update(pre_tokenizer={"type": "Magic"}), "cannot read it"),
    "a merge of nothing": (lambda d: d["model"]["merges"].append(["漢", "字"]), "cannot read it"),
    "merges": (lambda d: d["model"].update(merges=7), "cannot read it|merges"),
    "three parts": (lambda d: d["model"]["merges"].append(["a", "b", "c"]), "cannot read it|pair"),
    "a broken pattern": (
        lambda d: d.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False}
        ),
        "cannot read it",
    ),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_damaged_files_are_refused_by_name(kind: str, name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    change, message = DAMAGE[name]
    folder = copy(folders[kind], tmp_path)
    rewrite(folder, "tokenizer.json", change)
    with pytest.raises(ModelError, match=message) as raised:
        Tokenizer.load(folder)
    assert str(folder / "tokenizer.json") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [f"{name}.json" for name in (
    "tokenizer", "tokenizer_config", "special_tokens_map", "generation_config", "config"
)])  # fmt: skip
@pytest.mark.parametrize("content", [b'{"a": ', b"[1]", b"\xff\xfe", b"", b"[" * 100_000])
def test_broken_json_is_refused_by_name(name: str, content: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["llama3"], tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=name) as raised:
        Tokenizer.load(folder)
    assert "\n" not in str(raised.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_file_cut_or_changed_anywhere_is_read_or_refused(
    data: st.DataObject, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Fuzzed: any part of a tokenizer.json replaced by something else ends in a tokenizer or in a ModelError."""
    kind = data.draw(st.sampled_from(["gpt2", "llama2", "bert", "unigram", "openai_gpt"]))
    document = json.loads((folders[kind] / "tokenizer.json").read_text(encoding="utf-8"))
    place, key = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(
        st.sampled_from([None, True, -1, 0, 7, 1 << 40, 1e300, "", "x", "BPE", [], {}, [1], {"type": "x"}, [["a", 1]]])
    )
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    try:
        tokenizer = Tokenizer.load(folder)
    except ModelError as error:
        assert "tokenizer.json" in str(error)
        return
    tokenizer.decode(tokenizer.encode("The cat 你好 <s>"))
    tokenizer._codec.speed_up()
    tokenizer.encode("The cat 你好 <s>")
