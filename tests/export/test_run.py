"""The file that is handed out: the same ids, the same tokens, and a clear word when something is wrong."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.export import run
from jielong.export.two_files import PROGRAM, WEIGHTS, write_two_files
from jielong.export.vocabulary import Vocabulary
from jielong.generate.engine import Engine
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

Build = Callable[..., Engine]
SOURCE = Path(run.__file__)
# Kinds of characters that a split pattern tells apart, and some that it must not.
CHARACTERS = (
    [chr(code) for code in range(128)],
    list(" \t\n\r\v\f\x1c\x1f\x85\xa0\u2028\u2029\u3000\u200b\ufeff'"),
    list("'sStTrReEvVmMlLdDſK’ß"),
    [chr(code) for code in range(0x4E00, 0x4E60)],
    list("0123456789٣४五Ⅷ²½"),
    list("🙂👩\u200d👧🇨🇳é\u0301ไทยहि"),
)


def write(folder: Path, engine: Engine, vocabulary: Vocabulary, dtype: torch.dtype = torch.float32) -> Path:
    write_two_files(folder, engine.model, vocabulary, dtype)
    return folder / WEIGHTS


@pytest.fixture(scope="module")
def engine(build: Build) -> Engine:
    return build("llama")


@pytest.fixture(scope="module")
def two(engine: Engine, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both files."""
    return write(tmp_path_factory.mktemp("two"), engine, vocabulary).parent


@pytest.fixture(scope="module")
def model(two: Path) -> run.Model:
    return run.Model(two / WEIGHTS)


def command(folder: Path, *arguments: str, stdin: str = "", prefix: str = "") -> subprocess.CompletedProcess[str]:
    """python run.py, without our package; prefix: what is run before it."""
    script = folder / PROGRAM
    start = [str(script)] if not prefix else ["-c", f"import runpy, sys\n{prefix}\nrunpy.run_path({str(script)!r})"]
    return subprocess.run(
        [sys.executable, "-I", *start, *arguments], input=stdin, capture_output=True, encoding="utf-8", timeout=120
    )


# ---- what it is ----


def test_numpy_and_the_standard_library_only() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in names}
    assert roots - {"numpy"} <= set(sys.stdlib_module_names)
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 500


def test_it_is_handed_out_as_it_is(two: Path) -> None:
    assert (two / PROGRAM).read_bytes() == SOURCE.read_bytes()
    assert sorted(path.name for path in two.iterdir()) == [WEIGHTS, PROGRAM]


# ---- text as numbers ----


def test_random_strings_become_the_same_ids(model: run.Model, tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    for _ in range(4000):
        text = "".join(generator.choice(generator.choice(CHARACTERS)) for _ in range(generator.randrange(30)))
        assert model.tokenizer.encode(text) == tokenizer.encode(text), repr(text)


def assigned(text: str) -> bool:
    return not any(run.unicodedata.category(character) == "Cn" for character in text)


@given(text=st.text().filter(assigned))
def test_any_string_becomes_the_same_ids(text: str, model: run.Model, tokenizer: Tokenizer) -> None:
    """Of characters that this Python's Unicode tables know; those assigned later count as marks in run.py."""
    assert model.tokenizer.encode(text) == tokenizer.encode(text)


def test_halves_of_characters(model: run.Model, tokenizer: Tokenizer) -> None:
    for text in ("a\ud800b", "\ud83d\ude00", "\udc00"):
        assert model.tokenizer.encode(text) == tokenizer.encode(text)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(("name", "pattern"), [("llama-bpe", LLAMA3), ("gpt-2", GPT2)])
def test_splits_of_other_tokenizers(name: str, pattern: str) -> None:
    theirs = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    stand_ins = run._StandIns()
    generator = random.Random(1)
    for _ in range(2000):
        text = "".join(generator.choice(generator.choice(CHARACTERS)) for _ in range(generator.randrange(1, 30)))
        found = run.SPLITS[name].finditer(text.translate(stand_ins))
        pieces = [text[match.start() : match.end()] for match in found]
        assert pieces == [piece for piece, _ in theirs.pre_tokenize_str(text)], repr(text)


def test_a_piece_that_is_a_token_comes_before_merges() -> None:
    data: dict[str, Any] = {
        "tokens": ["a", "b", "c", "bc", "abc"], "merges": [(1, 2, 3)], "split": "llama-bpe", "normalise": "NFC",
        "ignore_merges": True, "bos_id": None, "prefix_ids": [], "stop_ids": [], "added": [],
    }  # fmt: skip
    assert run.Tokenizer(data).encode("abc") == [4]
    assert run.Tokenizer({**data, "ignore_merges": False}).encode("abc") == [0, 3]


# ---- the network ----


@pytest.mark.parametrize("shape", ["llama", "llama-untied", "llama-wide-heads", "llama-3.1", "qwen2", "qwen3", "gpt2"])
def test_greedy_tokens_are_the_engines(
    shape: str, build: Build, vocabulary: Vocabulary, prompts: list[list[int]], tmp_path: Path
) -> None:
    engine = build(shape)
    exported = run.Model(write(tmp_path, engine, vocabulary))
    made = engine.generate(prompts, max_new_tokens=32, temperature=0.0, stop_ids=())
    for prompt, expected in zip(prompts, made, strict=True):
        assert list(run.generate(exported, prompt, 32, run.Sampler(), run.Cache(2), [])) == expected.tokens
    scores = exported.read(prompts[5], run.Cache(2))
    logits = engine.model(torch.tensor([prompts[5]]))[0, -1].detach()
    torch.testing.assert_close(torch.from_numpy(scores), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_computed_in_float32(
    dtype: torch.dtype, engine: Engine, vocabulary: Vocabulary, prompts: list[list[int]], tmp_path: Path, build: Build
) -> None:
    exported = run.Model(write(tmp_path, engine, vocabulary, dtype))
    rounded = Engine(build("llama").model.to(dtype).float(), engine.tokenizer)
    made = rounded.generate(prompts[:6], max_new_tokens=16, temperature=0.0, stop_ids=())
    for prompt, expected in zip(prompts, made, strict=False):
        assert list(run.generate(exported, prompt, 16, run.Sampler(), run.Cache(2), [])) == expected.tokens


def test_reading_in_blocks_and_with_a_cache_changes_nothing(
    build: Build, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    exported = run.Model(write(tmp_path, build("llama", max_length=700), vocabulary))
    ids = [number % 400 for number in range(600)]
    whole = exported.read(ids, run.Cache(2))
    cache = run.Cache(2)
    for start in range(0, 600, 77):
        parts = exported.read(ids[start : start + 77], cache)
    np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-3)
    assert cache.ids == ids
    cache.cut(100)
    exported.read([7, 7, 7], cache)  # another continuation
    cache.cut(100)
    np.testing.assert_allclose(exported.read(ids[100:], cache), whole, rtol=1e-3, atol=1e-3)


# ---- the next token ----


def test_sampling_follows_the_odds() -> None:
    scores = np.log(np.array([0.1, 0.4, 0.3, 0.2], dtype=np.float32))
    assert run.Sampler().choose(scores) == 1
    counts = np.bincount([run.Sampler(1.0, seed=seed).choose(scores) for seed in range(3000)], minlength=4) / 3000
    np.testing.assert_allclose(counts, [0.1, 0.4, 0.3, 0.2], atol=0.03)
    for sampler, kept in ((run.Sampler(1.0, top_k=2), {1, 2}), (run.Sampler(1.0, top_p=0.69), {1, 2})):
        assert {sampler.choose(scores) for _ in range(200)} == kept
    assert {run.Sampler(0.01, seed=seed).choose(scores) for seed in range(100)} == {1}
    one, two = run.Sampler(1.0, seed=5), run.Sampler(1.0, seed=5)
    assert [one.choose(scores) for _ in range(50)] == [two.choose(scores) for _ in range(50)]


def test_generation_ends_at_a_stop_id_and_at_the_context(model: run.Model, engine: Engine) -> None:
    prompt = [1, 2, 3]
    tokens = list(run.generate(model, prompt, 20, run.Sampler(), run.Cache(2), []))
    first = tokens.index(tokens[5])
    assert list(run.generate(model, prompt, 20, run.Sampler(), run.Cache(2), [tokens[5]])) == tokens[: first + 1]
    assert len(list(run.generate(model, [5] * 90, 20, run.Sampler(), run.Cache(2), []))) == 6
    with pytest.raises(run.RunError, match="the text has 96 tokens, the model reads 96; shorten it"):
        next(run.generate(model, [5] * 96, 1, run.Sampler(), run.Cache(2), []))


def test_streamed_text_never_holds_half_a_character(model: run.Model, tokenizer: Tokenizer) -> None:
    ids = [*"字🙂".encode(), tokenizer.end_id]
    pieces = list(run.stream(model, iter(ids)))
    assert "".join(pieces) == "字🙂" and {len(piece) for piece in pieces} == {0, 1}
    assert "".join(run.stream(model, iter([0xE5]))) == "\ufffd"


# ---- the chat ----


def test_a_conversation_is_rendered_as_ours(model: run.Model, tokenizer: Tokenizer) -> None:
    chat = run.Chat(model, run.Sampler(), 4, system="be <|end|> brief")
    messages = [{"role": "system", "content": "be <|end|> brief"}]
    for text in ("hello <|user|>", "你好"):
        messages.append({"role": "user", "content": text})
        assert chat.prompt(text) == render(messages, tokenizer, reply=True)[0]
        messages.append({"role": "assistant", "content": "".join(chat.ask(text))})
    assert len(chat.turns) == 2


def test_the_cache_is_kept_between_turns_and_changes_nothing(model: run.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    read = run.Model.read

    def counted(self: run.Model, ids: list[int], cache: run.Cache) -> Any:
        lengths.append(len(ids))
        return read(self, ids, cache)

    chat = run.Chat(model, run.Sampler(), 3)
    first = "".join(chat.ask("a fox"))
    monkeypatch.setattr(run.Model, "read", counted)
    again = chat.prompt("and then")
    second = "".join(chat.ask("and then"))
    assert lengths[0] < len(again)
    fresh = run.Chat(model, run.Sampler(), 3)
    fresh.turns.append(("a fox", first))
    assert "".join(fresh.ask("and then")) == second


def test_a_full_context_forgets_the_oldest_turns(model: run.Model) -> None:
    chat = run.Chat(model, run.Sampler(), 10)
    for number in range(12):
        "".join(chat.ask(f"question number {number}"))
    assert 0 < len(chat.turns) < 12 and chat.turns[-1][0] == "question number 11"
    with pytest.raises(run.RunError, match="shorten it"):
        "".join(chat.ask("long " * 100))
    assert all(asked != "long " * 100 for asked, _ in chat.turns)


def test_a_model_without_a_chat_format(engine: Engine, vocabulary: Vocabulary, tmp_path: Path) -> None:
    bare = Vocabulary(**{**vocabulary.__dict__, "joints": None})
    exported = run.Model(write(tmp_path, engine, bare))
    with pytest.raises(run.RunError, match="no chat format; continue a text instead: python run.py --complete TEXT"):
        run.Chat(exported, run.Sampler(), 4)


# ---- from the command line ----


def test_complete(two: Path, engine: Engine) -> None:
    done = command(two, "--complete", "从前 a fox", "-n", "12")
    expected = engine.generate(["从前 a fox"], max_new_tokens=12, temperature=0.0)[0].text
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == f"从前 a fox{expected}\n".replace("\r\n", "\n").replace("\r", "\n").split("\n")


def test_chat_without_a_terminal_is_one_turn_a_line(two: Path, model: run.Model) -> None:
    done = command(two, "--temperature", "0", "-n", "5", stdin="a fox\n\n/reset\na fox\n")
    assert (done.returncode, done.stderr) == (0, "")
    answer = "".join(run.Chat(model, run.Sampler(), 5).ask("a fox"))
    assert done.stdout == f"{answer}\n{answer}\n".replace("\r\n", "\n").replace("\r", "\n")
    assert command(two, stdin="/quit\na fox\n").stdout == ""


def test_help_and_wrong_options(two: Path) -> None:
    done = command(two, "--help")
    assert done.returncode == 0 and "python run.py --complete 'Once upon a' -n 40" in done.stdout
    for wrong in (["-n", "0"], ["--top-p", "0"], ["--temperature", "nan"]):
        done = command(two, *wrong)
        assert done.returncode == 2 and "legal are -n from 1" in done.stderr


def test_another_python_and_no_numpy(two: Path) -> None:
    done = command(two, prefix="sys.version_info = (3, 8, 1)")
    assert done.returncode == 1 and done.stderr.startswith("run.py needs Python 3.9 or newer; this is 3.")
    done = command(two, prefix="sys.modules['numpy'] = None")
    assert done.returncode == 1 and done.stderr == "run.py needs numpy; install it: python -m pip install numpy\n"


def test_missing_weights(tmp_path: Path) -> None:
    (tmp_path / PROGRAM).write_bytes(SOURCE.read_bytes())
    done = command(tmp_path, "--complete", "a")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / WEIGHTS} is missing; it belongs beside run.py")


# ---- bad weights ----


def test_cut_off_anywhere(two: Path, tmp_path: Path) -> None:
    content, path = (two / WEIGHTS).read_bytes(), tmp_path / WEIGHTS
    for length in (0, 5, 8, 9, 5000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(run.RunError, match="is cut off or no safetensors file"):
            run.Model(path)


@settings(max_examples=80)
@given(place=st.integers(0, 400), value=st.integers(0, 255))
def test_a_damaged_header_is_an_error_or_harmless(place: int, value: int, two: Path) -> None:
    content = bytearray((two / WEIGHTS).read_bytes())
    content[place] = value
    path = two.parent / "damaged.safetensors"
    path.write_bytes(content)
    try:
        run.Model(path)
    except run.RunError:
        pass


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: dict[str, Any], numbers: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "I64"}, "a tensor has the type I64; known are F32, F16 and BF16"),
        ({"data_offsets": [0, 10**15]}, "a tensor lies at bytes 0 to 1000000000000000"),
        ({"data_offsets": [-4, 4]}, "a tensor lies at bytes -4 to 4"),
        ({"shape": [10**9, 10**9]}, "cannot reshape"),
        ({"shape": [64, 420]}, r"embed.weight has shape \(64, 420\), not \[420, 64\]"),
    ],
)
def test_a_header_that_lies(change: dict[str, Any], message: str, two: Path, tmp_path: Path) -> None:
    header, numbers = header_of((two / WEIGHTS).read_bytes())
    header["embed.weight"] |= change
    (tmp_path / WEIGHTS).write_bytes(with_header(header, numbers))
    with pytest.raises(run.RunError, match=message):
        run.Model(tmp_path / WEIGHTS)


def test_weights_of_others(two: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(run.RunError, match="was not written by `jielong export --to two-files`"):
        run.Model(folder / WEIGHTS)
    header, numbers = header_of((two / WEIGHTS).read_bytes())
    notes = json.loads(header["__metadata__"]["jielong"])
    header["__metadata__"]["jielong"] = json.dumps({**notes, "format": 2})
    (tmp_path / WEIGHTS).write_bytes(with_header(header, numbers))
    with pytest.raises(run.RunError, match="has format 2, not 1: export both files again"):
        run.Model(tmp_path / WEIGHTS)


def test_weights_that_are_not_numbers(two: Path, tmp_path: Path) -> None:
    header, numbers = header_of((two / WEIGHTS).read_bytes())
    start, end = header["norm.weight"]["data_offsets"]
    damaged = numbers[:start] + b"\xff" * (end - start) + numbers[end:]
    (tmp_path / WEIGHTS).write_bytes(with_header(header, damaged))
    with pytest.raises(run.RunError, match="the scores are not finite numbers"):
        run.Model(tmp_path / WEIGHTS).read([1], run.Cache(2))
