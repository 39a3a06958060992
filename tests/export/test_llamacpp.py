"""llama.cpp decodes what we write as our engine does. Skipped without pip install 'jielong[llamacpp]'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.export import gguf as room
from jielong.export import llamacpp
from jielong.export.export import SLACK
from jielong.export.gguf import write_gguf
from jielong.export.probe import Probe
from jielong.export.verify import TEXTS, compare, make_probe
from jielong.export.vocabulary import Vocabulary
from jielong.generate.engine import Engine

Build = Callable[..., Engine]

pytestmark = pytest.mark.skipif(
    not llamacpp.is_installed(), reason="llama.cpp is not installed: pip install 'jielong[llamacpp]'"
)
SHAPES = ("llama", "llama-untied", "llama-wide-heads", "llama-3.1", "qwen2", "qwen3")


def measure(
    engine: Engine, vocabulary: Vocabulary, kind: str, probe: Probe, path: Path, slack: float | None = None
) -> dict[str, Any]:
    write_gguf(path, engine.model, vocabulary, kind, "mine")
    answer = llamacpp.run_llamacpp(path, probe, 1)
    return compare(engine, probe, answer, SLACK[kind] if slack is None else slack, vocabulary.stop_ids)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_decodes_the_same_tokens(
    shape: str, build: Build, vocabulary: Vocabulary, prompts: list[list[int]], tmp_path: Path
) -> None:
    engine = build(shape)
    probe = Probe(prompts, 32, list(TEXTS), make_probe(engine, has_chat=True).conversation)
    figures = measure(engine, vocabulary, "F32", probe, tmp_path / "model.gguf", slack=1e-4)
    assert figures["prompts"] == 24 and figures["tokens"] > 400
    assert figures["equal_tokens"] == figures["tokens"]


@pytest.mark.parametrize(("kind", "share"), [("F16", 0.95), ("Q8_0", 0.5)])
def test_rounded_weights_decode_nearly_the_same(
    kind: str, share: float, build: Build, vocabulary: Vocabulary, prompts: list[list[int]], tmp_path: Path
) -> None:
    figures = measure(build("llama"), vocabulary, kind, Probe(prompts, 32, [], None), tmp_path / "model.gguf")
    assert figures["equal_tokens"] >= share * figures["tokens"]


def test_texts_of_all_kinds_become_the_same_ids(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    engine = build("llama")
    texts = [*TEXTS, *(text[:length] for text in TEXTS for length in range(1, len(text), 3))]
    texts += [
        f"{left}{right}" for left in ("'s", " ", "\n", "1", "a", "。", "é") for right in ("\t\n", "12", "字", "'")
    ]
    figures = measure(engine, vocabulary, "F32", Probe([], 1, texts, None), tmp_path / "model.gguf")
    assert figures["texts"] == len(texts) > 100


@pytest.mark.parametrize("fault", ["rotary pairs", "norm", "special token"])
def test_the_check_finds_a_wrong_file(
    fault: str, build: Build, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build("llama")
    if fault == "rotary pairs":

        def unpaired(rows: Tensor, num_heads: int) -> Tensor:
            return rows

        monkeypatch.setattr(room, "pair_up", unpaired)
    elif fault == "norm":
        monkeypatch.setitem(room.LAYER_NAMES, "ffn_norm.weight", "attn_norm.weight")
        monkeypatch.setitem(room.LAYER_NAMES, "attention_norm.weight", "ffn_norm.weight")
    else:
        vocabulary = replace(vocabulary, controls=frozenset())
    with pytest.raises(ModelError, match="verification failed"):
        measure(engine, vocabulary, "F32", make_probe(engine, has_chat=True), tmp_path / "model.gguf")


def test_a_file_that_is_cut_off(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, build("llama").model, vocabulary, "F32", "mine")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="model.gguf: llama.cpp does not take it: "):
        llamacpp.run_llamacpp(path, Probe([[1]], 1, [], None), 1)


def test_no_answer_in_time(
    build: Build, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "SECONDS", 0.01)
    with pytest.raises(ModelError, match="gave no answer in 0.01 seconds"):
        llamacpp.run_llamacpp(tmp_path / "model.gguf", Probe([[1]], 1, [], None), torch.get_num_threads())
