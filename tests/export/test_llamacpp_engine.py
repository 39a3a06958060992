"""The engine with llama.cpp's kernels behind our methods. Skipped without pip install 'jielong[llamacpp]'."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jielong.errors import ModelError, UsageError
from jielong.export import llamacpp
from jielong.export.llamacpp_engine import LlamaCppEngine
from jielong.generate.engine import Engine

Build = Callable[..., Engine]
PROMPTS = ["The cat", "天气", "12 + 30 ="]

pytestmark = pytest.mark.skipif(
    not llamacpp.is_installed(), reason="llama.cpp is not installed: pip install 'jielong[llamacpp]'"
)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[LlamaCppEngine]:
    from jielong.folder import load

    model, tokenizer = load(folder)
    with LlamaCppEngine(model, tokenizer, folder, "F32") as engine:
        yield engine


def test_greedy_completions_are_those_of_our_engine(engine: LlamaCppEngine) -> None:
    ours = Engine(engine.model, engine.tokenizer).generate(PROMPTS, max_new_tokens=24, temperature=0.0)
    theirs = engine.generate(PROMPTS, max_new_tokens=24, temperature=0.0)
    assert [made.tokens for made in theirs] == [made.tokens for made in ours]
    assert [made.text for made in theirs] == [made.text for made in ours]
    assert [made.finish_reason for made in theirs] == [made.finish_reason for made in ours]
    told = [(own, found) for own, found in zip(ours, theirs, strict=True) if found.logprobs]
    assert told
    for own, found in told:
        assert found.logprobs == pytest.approx(own.logprobs, abs=0.02)  # it keeps keys and values in 16 bits


def test_a_stream_is_the_completion_in_pieces(engine: LlamaCppEngine) -> None:
    num_pieces = 0
    for prompt in PROMPTS:
        [whole] = engine.generate([prompt], max_new_tokens=24, temperature=0.0)
        pieces = list(engine.stream(prompt, max_new_tokens=24, temperature=0.0))
        assert "".join(pieces).strip("\ufffd") == whole.text.strip("\ufffd")
        num_pieces += len(pieces)
    assert num_pieces > len(PROMPTS)


def test_equal_seeds_draw_equal_texts(engine: LlamaCppEngine) -> None:
    def draw(seed: int) -> list[list[int]]:
        made = engine.generate(["The"] * 3, max_new_tokens=12, temperature=1.0, top_p=0.95, seed=seed)
        assert all(not one.logprobs for one in made)
        return [one.tokens for one in made]

    assert draw(1) == draw(1) != draw(2)


def test_what_it_cannot_do_is_told_at_once(engine: LlamaCppEngine) -> None:
    with pytest.raises(UsageError, match="ends a text at the model's own stop tokens"):
        engine.stream("The", max_new_tokens=4, stop_ids=())
    with pytest.raises(UsageError, match="penalties"):
        engine.generate(["The"], max_new_tokens=4, repetition_penalty=1.1)
    with pytest.raises(UsageError, match="shorten the prompt"):
        engine.generate([[5] * engine.model.config.max_length], max_new_tokens=4)
    assert engine.generate(["The"], max_new_tokens=0)[0].tokens == []


def test_a_stream_may_be_left(engine: LlamaCppEngine) -> None:
    pieces = engine.stream(PROMPTS[1], max_new_tokens=90, temperature=0.0)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert engine.generate(["The"], max_new_tokens=3, temperature=0.0)[0].tokens


def test_its_process_ends_with_it(folder: Path) -> None:
    from jielong.folder import load

    engine = LlamaCppEngine(*load(folder), folder, "Q8_0")
    process = engine._server._process
    assert process.poll() is None
    del engine
    gc.collect()
    assert process.poll() is not None


def test_nothing_stays_behind_however_it_ends(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is gone once it is loaded: a killed owner can remove nothing."""
    from jielong.folder import load

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LlamaCppEngine(*load(folder), folder, "F16") as engine:
        assert not list(tmp_path.iterdir())
        assert len(engine.generate(["The"], max_new_tokens=8, temperature=0.0)[0].tokens) == 8


def test_a_dead_process_is_told(folder: Path) -> None:
    from jielong.folder import load

    engine = LlamaCppEngine(*load(folder), folder, "F16")
    engine._server._process.kill()
    engine._server._process.wait()
    with pytest.raises(ModelError, match="does not answer"):
        engine.generate(["The"], max_new_tokens=3)
    engine.close()


def test_an_unknown_kind_is_told(folder: Path) -> None:
    from jielong.folder import load

    with pytest.raises(UsageError, match="F32, F16, Q8_0, not 'int8'"):
        LlamaCppEngine(*load(folder), folder, "int8")
