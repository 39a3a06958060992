"""Models with the tokenizers of others: Qwen 2 and 3, Llama 3, GPT-2, through run.py and through llama.cpp."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jielong.errors import ModelError
from jielong.export import llamacpp, run
from jielong.export.export import export_model
from jielong.export.vocabulary import read_vocabulary
from jielong.folder import save
from jielong.model.transformer import Transformer
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

BuildRows = Callable[[str, int], Transformer]
# layout of the tokenizer -> (shape of the model, is there a chat?)
FAMILIES = {
    "qwen": ("qwen2", True),
    "qwen3": ("qwen3", True),
    "llama3": ("llama-3.1", True),
    "gpt2": ("gpt2", False),
}


def load_layouts() -> ModuleType:
    """The layouts that the tokenizer's own tests build."""
    path = Path(__file__).parent.parent / "tokenizer" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tokenizer_layouts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def foreign(build_rows: BuildRows, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """foreign("qwen", "qwen2"): a model folder with that tokenizer, its embedding padded to a round number."""
    layouts = load_layouts()
    made: dict[str, Path] = {}

    def make(layout: str, shape: str) -> Path:
        if layout not in made:
            folder = tmp_path_factory.mktemp(layout)
            writer: Any = layouts.__dict__[layout]
            tokenizer = Tokenizer.load(writer(folder / "tokenizer"))
            rows = -(-tokenizer.vocab_size // 64) * 64
            save(build_rows(shape, rows), tokenizer, folder / "model")
            made[layout] = folder / "model"
        return made[layout]

    return make


@pytest.mark.parametrize("layout", FAMILIES)
def test_two_files(layout: str, foreign: Callable[..., Path], tmp_path: Path) -> None:
    shape, has_chat = FAMILIES[layout]
    made = export_model(foreign(layout, shape), tmp_path / "two", "two-files")
    figures = made.verdict.figures
    assert figures["equal_tokens"] == figures["tokens"] > 0 and figures["chat"] is has_chat
    assert made.verdict.text.endswith("; no chat: a base model") is not has_chat


@pytest.mark.skipif(not llamacpp.is_installed(), reason="llama.cpp is not installed: pip install 'jielong[llamacpp]'")
@pytest.mark.parametrize("layout", ["qwen", "qwen3", "llama3"])
def test_gguf(layout: str, foreign: Callable[..., Path], tmp_path: Path) -> None:
    made = export_model(foreign(layout, FAMILIES[layout][0]), tmp_path / "out", "gguf", kind="F32")
    figures = made.verdict.figures
    assert figures["by"] == "llama.cpp" and figures["chat"]
    assert figures["equal_tokens"] == figures["tokens"] > 0


@pytest.mark.parametrize("layout", ["qwen", "qwen3", "llama3"])
def test_conversations_are_rendered_as_the_template_does(
    layout: str, foreign: Callable[..., Path], tmp_path: Path
) -> None:
    folder = foreign(layout, FAMILIES[layout][0])
    export_model(folder, tmp_path / "two", "two-files")
    tokenizer, model = Tokenizer.load(folder), run.Model(tmp_path / "two" / "model.safetensors")
    for system in ("", "be <|im_end|> brief"):
        chat = run.Chat(model, run.Sampler(), 4, system)
        messages = [{"role": "system", "content": system}] if system else []
        for asked, answered in (("hello <|eot_id|> you", "hi"), ("你好", "ok, 42")):
            messages.append({"role": "user", "content": asked})
            assert chat.prompt(asked) == render(messages, tokenizer, reply=True)[0]
            messages.append({"role": "assistant", "content": answered})
            chat.turns.append((asked, answered))


def test_names_that_text_can_spell(foreign: Callable[..., Path], tmp_path: Path) -> None:
    folder = foreign("qwen", "qwen2")
    export_model(folder, tmp_path / "two", "two-files")
    tokenizer, model = Tokenizer.load(folder), run.Model(tmp_path / "two" / "model.safetensors")
    texts = ("<think>a</think>", "a<tool_call> b<think", "<|im_start|>x", "e\u0301 <think>e\u0301", "<think><think>")
    for text in texts:
        assert model.tokenizer.encode(text) == tokenizer.encode(text)
    assert len(model.tokenizer.encode("<think>")) == 1 < len(model.tokenizer.encode("<|im_start|>"))


def test_a_template_that_does_more_than_join(foreign: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in foreign("qwen", "qwen2").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    upper = "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(upper)
    assert read_vocabulary(folder, Tokenizer.load(folder)).joints is None
    made = export_model(folder, tmp_path / "two", "two-files")
    assert made.verdict.text.endswith("; no chat: run.py cannot follow its template")


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    folder = load_layouts().llama2(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer is BPE with byte fallback; only byte-level BPE"):
        read_vocabulary(folder, Tokenizer.load(folder))
