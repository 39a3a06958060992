from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import ModelError, UsageError
from jielong.tokenizer.tokenizer import TextStream, Tokenizer

SAMPLES = [
    "",
    " ",
    "Hello, world! It's 2026; we'll see.",
    "翻译:你好,世界。接龙游戏开始！",
    "混合 mixed 文本 text，123.45％",
    "👩‍👩‍👧‍👦 🇨🇳 e\u0301 \u00e9 \ufeff\u200b",
    "def f(x):\n    return {k: v for k, v in x.items()}\r\n\t# done\n\n\n",
    "   leading and trailing   ",
    "'S 'LL 'ſ don't DON'T",
    "\x00\x01\x7f\x80\u0085\u00a0\u2028\u3000x",
    "<|eos|><|end|> <|user|>",
    "a" * 5000,
    "\U00010000\U0010ffff",
]

texts = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=" \n\r\t'astldrveASTL12你好é!.,<|>end", max_size=80),
    st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", errors="replace")),
    st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")),
)


def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """What `tokenizers` makes of the tokenizer.json that ours writes, its added tokens left out."""
    document = json.loads(tokenizer._files["tokenizer.json"])
    return tokenizers.Tokenizer.from_str(json.dumps({**document, "added_tokens": []}))


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Hugging Face's own encoder over the same merges, without the specials."""
    return library(tokenizer)


def test_ids_are_bytes_then_merges_then_specials() -> None:
    tokenizer = Tokenizer.from_merges([(b"a", b"b"), (b"ab", b"c")])
    assert tokenizer.vocab_size == 256 + 2 + 7
    assert tokenizer.encode("ab") == [256]
    assert tokenizer.encode("abcx") == [257, ord("x")]
    assert tokenizer.encode("bc") == [ord("b"), ord("c")]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (258, 259, 260)
    assert tokenizer.role_ids == {"system": 261, "user": 262, "assistant": 263}
    assert tokenizer.end_id == 264
    assert tokenizer.stop_ids == (260, 264)


def test_merges_follow_their_order_not_the_text() -> None:
    # "bc" was learned first, so "abc" is a + bc even though ab stands first in the text.
    tokenizer = Tokenizer.from_merges([(b"b", b"c"), (b"a", b"b")])
    assert tokenizer.encode("abc") == [ord("a"), 256]
    assert tokenizer.encode("abd") == [257, ord("d")]


def test_training_takes_the_most_frequent_pair_first() -> None:
    # "xy" stands five times, "yz" three, "ab" two; each line is split from the next.
    tokenizer = Tokenizer.train(["xy xy xyz xyz xyz", "ab ab"], 263 + 1)
    assert json.loads(tokenizer._files["tokenizer.json"])["model"]["merges"] == [["x", "y"]]


def test_bytes_alone_encode_as_utf8(byte_tokenizer: Tokenizer) -> None:
    assert byte_tokenizer.vocab_size == 263
    assert byte_tokenizer.encode("é你!") == list("é你!".encode())


@pytest.mark.parametrize("text", SAMPLES)
def test_tiktoken_equals_hugging_face_on_samples(
    text: str, tokenizer: Tokenizer, reference: tokenizers.Tokenizer
) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text).ids
    assert tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_tiktoken_equals_hugging_face(tokenizer: Tokenizer, reference: tokenizers.Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_round_trip_is_exact(tokenizer: Tokenizer, byte_tokenizer: Tokenizer, text: str) -> None:
    for each in (tokenizer, byte_tokenizer):
        assert each.decode(each.encode(text)) == text
        assert each.decode_bytes(each.encode(text)) == text.encode()


def test_equal_on_merges_learned_from_random_bytes() -> None:
    """Dense merges over few letters: runs, overlaps and joins of joins, where a wrong merge order would show."""
    rng = random.Random(3)
    words = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 12))) for _ in range(400)]
    tokenizer = Tokenizer.train([" ".join(words)], 263 + 120)
    slow = library(tokenizer)
    assert tokenizer.vocab_size > 263 + 60
    for _ in range(500):
        text = "".join(rng.choice("aab ") for _ in range(rng.randint(1, 60)))
        assert tokenizer.encode(text) == slow.encode(text).ids


def test_both_splitters_agree_on_every_character() -> None:
    """Each library has Unicode tables of its own. With all byte pairs merged, splits show in the ids."""
    pairs = [(bytes([left]), bytes([right])) for left in range(256) for right in range(256)]
    tokenizer = Tokenizer.from_merges(pairs)
    slow = library(tokenizer)
    # Every character of the first plane, but of the long runs of ideographs and of the rarer planes every 16th only.
    sparse = [
        range(0x3400, 0xA000, 16),
        range(0xAC00, 0xD800, 16),
        range(0x10000, 0x32400, 16),
        range(0xE0000, 0xE01F0),
    ]
    points = [*range(0x3400), *range(0xA000, 0xAC00), *range(0xE000, 0x10000), *(p for part in sparse for p in part)]
    for start in range(0, len(points), 10_000):
        text = "".join(f"ab{chr(point)}c " for point in points[start : start + 10_000])
        assert tokenizer.encode(text) == slow.encode(text).ids


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(Tokenizer.SPECIALS), st.text(max_size=10)), max_size=8))
def test_content_never_becomes_a_special(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert all(token_id < tokenizer.pad_id for token_id in ids)
    assert tokenizer.decode(ids) == text


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"  # a pair, joined
    assert Tokenizer.train(["a\ud800b a\ud800b"], 263).vocab_size == 263


def test_a_million_blanks_do_not_overflow_the_splitter(tokenizer: Tokenizer) -> None:
    text = "word" + " " * 1_100_000 + "end"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_slow_path_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    for text in SAMPLES:
        assert tokenizer._codec._encode_slowly(text) == tokenizer.encode(text)
    assert tokenizer._codec._encode_slowly("a\ud800") == tokenizer.encode("a\ud800")


def test_encode_batch_equals_encode(tokenizer: Tokenizer) -> None:
    long = ["The cat sat. 你好 " * 800, "another one\n" * 900, ""]
    for batch in (SAMPLES, long, []):
        assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


def test_decode_leaves_specials_out_and_refuses_unknown_ids(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.end_id, tokenizer.eos_id]
    assert tokenizer.decode(ids) == "hi"
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(UsageError, match=rf"{wrong} is out of range.*0 to {tokenizer.vocab_size - 1}"):
            tokenizer.decode([wrong])
        with pytest.raises(UsageError, match="out of range"):
            tokenizer.name(wrong)


def test_names_of_single_ids(byte_tokenizer: Tokenizer) -> None:
    assert byte_tokenizer.name(byte_tokenizer.eos_id) == "<|eos|>"
    assert byte_tokenizer.name(ord("a")) == "a"
    assert byte_tokenizer.name(0xE4) == "\\xe4"


def test_a_small_corpus_gives_a_smaller_vocabulary() -> None:
    tokenizer = Tokenizer.train(["abab"], 5000)  # "ab" repeats; then "abab" occurs once and is not worth a token
    assert tokenizer.vocab_size == 263 + 1
    assert Tokenizer.train([], 5000).vocab_size == 263


def test_vocabulary_size_is_exact_when_the_corpus_suffices(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 420
    assert len({tokenizer.token_bytes(token_id) for token_id in range(tokenizer.pad_id)}) == tokenizer.pad_id


def test_a_vocabulary_below_bytes_and_specials_is_refused() -> None:
    with pytest.raises(UsageError, match="vocab_size is 262, must be at least 263"):
        Tokenizer.train(["text"], 262)


def test_training_is_deterministic_across_processes(tokenizer: Tokenizer) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from conftest import corpus\n"
        "from jielong.tokenizer.tokenizer import Tokenizer; print(Tokenizer.train(corpus(), 420).hash)"
    )
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONHASHSEED": "1234", "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == tokenizer.hash


def test_hash_is_stable_over_save_and_load_and_differs_between_tokenizers(
    tokenizer: Tokenizer, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    again.save(tmp_path / "twice")
    assert again.hash == tokenizer.hash == Tokenizer.load(tmp_path / "twice").hash
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "twice" / "tokenizer.json").read_bytes()
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(SAMPLES[3]) == tokenizer.encode(SAMPLES[3])
    assert byte_tokenizer.hash != tokenizer.hash


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    with mock.patch("socket.socket", side_effect=AssertionError("network")):
        tokenizer = Tokenizer.train(["hello hello"], 270)
        tokenizer.save(tmp_path)
        assert Tokenizer.load(tmp_path).decode(tokenizer.encode("hello")) == "hello"


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([(b"ab", b"c")], "each part must be a byte or an earlier join"),
        ([(b"a", b"b"), (b"a", b"b")], "the join must be new"),
        ([(b"", b"a")], "each part must be a byte"),
    ],
)
def test_merges_that_make_no_vocabulary_are_refused(merges: list[tuple[bytes, bytes]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Tokenizer.from_merges(merges)


@settings(max_examples=200, deadline=None)
@given(raw=st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)))
def test_stream_pieces_join_to_the_decoded_text(byte_tokenizer: Tokenizer, raw: bytes) -> None:
    """Any bytes, valid UTF-8 or not, with specials among them."""
    ids = [byte_tokenizer.bos_id, *raw, byte_tokenizer.end_id]
    stream = TextStream(byte_tokenizer)
    pieces = [stream.feed(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == byte_tokenizer.decode(ids)


def test_stream_never_gives_half_a_character(byte_tokenizer: Tokenizer) -> None:
    stream = TextStream(byte_tokenizer)
    assert [stream.feed(byte) for byte in "a你".encode()] == ["a", "", "", "你"]
    assert stream.flush() == ""
    assert [stream.feed(byte) for byte in "你".encode()[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.feed(ord("b")) == "b"  # the stream starts anew after a flush
