"""Whole folders of others, tiny weights with a tiny tokenizer: loaded, asked, spoken to, taught and saved again."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jielong
from jielong.cli import main
from jielong.cli.chat import Conversation
from jielong.data.pack import pack_examples
from jielong.errors import ModelError, UsageError
from jielong.evaluate.likelihood import scored_bytes
from jielong.folder import load, save
from jielong.generate.engine import Engine
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

SPARE = 9  # rows of the embedding beyond the vocabulary
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96}),
    "openai_gpt": ("OpenAIGPT", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96}),
    "llama2": ("Llama", {**SMALL, "max_position_embeddings": 96}),
    "llama3": ("Llama", {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 96}),
    "qwen": ("Qwen2", {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 96}),
    "qwen3": ("Qwen3", {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 96}),
    "mistral": (
        "Mixtral",
        {**SMALL, "num_key_value_heads": 1, "num_local_experts": 4, "max_position_embeddings": 96},
    ),
}
HEADS = {"GPT2": "GPT2LMHeadModel", "OpenAIGPT": "OpenAIGPTLMHeadModel"}
every_shape = pytest.mark.parametrize("kind", sorted(SHAPES))


def make_folder(kind: str, tokenizer_folder: Path, folder: Path, rows: int | None = None) -> Path:
    """A model of the kind with random weights, its spare rows the likeliest, beside its tokenizer."""
    name, shape = SHAPES[kind]
    files = json.loads((tokenizer_folder / "config.json").read_text(encoding="utf-8"))
    size = Tokenizer.load(tokenizer_folder).vocab_size
    ids = {key: value for key, value in files.items() if key in ("bos_token_id", "eos_token_id")}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=size + SPARE if rows is None else rows, tie_word_embeddings=True, **ids, **shape
    )
    torch.manual_seed(3)
    model = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config).float().eval()
    shutil.copytree(tokenizer_folder, folder)
    kept = (folder / "generation_config.json").read_bytes() if (folder / "generation_config.json").exists() else None
    model.save_pretrained(folder)
    if kept is not None:
        (folder / "generation_config.json").write_bytes(kept)
    return folder


@pytest.fixture(scope="module")
def models(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_folder(kind, folders[kind], root / kind) for kind in SHAPES}


@every_shape
def test_a_text_is_continued_as_theirs_would_with_the_spare_rows_left_out(kind: str, models: dict[str, Path]) -> None:
    engine = Engine(*load(models[kind]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(models[kind]).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(models[kind])("the cat sat")["input_ids"]
    size = engine.tokenizer.vocab_size
    assert theirs.config.vocab_size == size + SPARE
    expected: list[int] = []
    with torch.no_grad():
        for _ in range(8):
            expected.append(int(theirs(torch.tensor([tokens + expected])).logits[0, -1, :size].argmax()))
    made = engine.generate(["the cat sat"], max_new_tokens=8, temperature=0.0, stop_ids=())[0]
    assert made.prompt == tokens and made.tokens == expected
    assert made.text == "".join(engine.stream("the cat sat", max_new_tokens=8, temperature=0.0, stop_ids=()))
    both = engine.tokenizer.decode([*made.prompt, *made.tokens])
    assert both == engine.tokenizer.decode(made.prompt) + made.text


@every_shape
def test_spare_rows_are_never_chosen(kind: str, models: dict[str, Path]) -> None:
    model, tokenizer = load(models[kind])
    with torch.no_grad():  # the spare rows as likely as the others, but there are many of them for one draw each
        model.embed.weight[tokenizer.vocab_size :] = model.embed.weight[:SPARE] * 1.5
    engine = Engine(model, tokenizer)
    made = engine.generate(["the cat"] * 64, max_new_tokens=32, temperature=2.0, stop_ids=())
    assert max(max(each.tokens) for each in made) < tokenizer.vocab_size
    everything = engine.top_tokens("the cat", tokenizer.vocab_size)
    assert sum(probability for _, _, probability in everything) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UsageError, match=f"1 to {tokenizer.vocab_size}$"):
        engine.top_tokens("the cat", tokenizer.vocab_size + 1)
    with pytest.raises(UsageError, match=f"0 to {tokenizer.vocab_size - 1}$"):
        engine.generate([[tokenizer.vocab_size]], max_new_tokens=1)


def test_where_a_document_begins(models: dict[str, Path]) -> None:
    gpt2, llama, qwen = (Engine(*load(models[kind])) for kind in ("gpt2", "llama3", "qwen"))
    options: dict[str, Any] = {"max_new_tokens": 1, "temperature": 0.0}
    assert gpt2.generate([""], **options)[0].prompt == [gpt2.tokenizer.bos_id]
    assert gpt2.generate(["a"], **options)[0].prompt == gpt2.tokenizer.encode("a")
    assert llama.generate([""], **options)[0].prompt == [llama.tokenizer.bos_id]
    assert llama.generate(["a"], **options)[0].prompt == [llama.tokenizer.bos_id, *llama.tokenizer.encode("a")]
    with pytest.raises(UsageError, match="no token to begin with"):
        qwen.generate([""], **options)
    assert gpt2.tokenizer.document([7]) == [7, gpt2.tokenizer.eos_id]
    assert llama.tokenizer.document([7]) == [llama.tokenizer.bos_id, 7, llama.tokenizer.eos_id]


@pytest.mark.parametrize("rows", [-1, 1500])
def test_a_tokenizer_of_another_size_is_refused(rows: int, folders: dict[str, Path], tmp_path: Path) -> None:
    size = Tokenizer.load(folders["gpt2"]).vocab_size
    folder = make_folder("gpt2", folders["gpt2"], tmp_path / "model", size + rows)
    with pytest.raises(ModelError, match=rf"the tokenizer has {size} tokens and the model {size + rows}; they must"):
        load(folder)


@every_shape
def test_a_taught_model_keeps_its_tokenizers_files(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer = load(models[kind])
    save(model, tokenizer, tmp_path, {"stage": "sft"})
    for path in models[kind].iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    again, same = load(tmp_path)
    assert same.hash == tokenizer.hash and not same.is_own
    assert (same.bos_id, same.eos_id, same.end_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_id)
    assert set(same.stop_ids) == set(tokenizer.stop_ids) and same.special_ids == tokenizer.special_ids
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("the cat 你好")["input_ids"] == [*same.prefix_ids, *same.encode("the cat 你好")]
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == model.config.vocab_size
    tokenizer_file = tmp_path / "tokenizer.json"
    tokenizer_file.write_bytes(tokenizer_file.read_bytes() + b"\n")
    with pytest.raises(ModelError, match="not the one this model was trained with"):
        load(tmp_path)


def test_instruction_rows_score_what_the_assistant_says(models: dict[str, Path]) -> None:
    for kind in ("llama2", "llama3", "qwen", "qwen3", "mistral"):
        _, tokenizer = load(models[kind])
        messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on a mat"}]
        rows = pack_examples((render(messages, tokenizer) for _ in range(3)), 80, packed=True)
        picked = rows.tokens[rows.mask].tolist()
        assert tokenizer.decode(picked).count("sat on a mat") == 3
        assert picked.count(tokenizer.end_id) == 3
        assert scored_bytes(rows, tokenizer) >= 3 * len("sat on a mat")


def test_a_chat_goes_on_from_its_own_ids(models: dict[str, Path]) -> None:
    """Every turn's prompt begins with the ids of the turn before, unless the template rewrites earlier replies."""
    for kind in ("llama2", "llama3", "qwen", "mistral"):
        engine = Engine(*load(models[kind]))
        talk = Conversation(engine, max_new_tokens=5, temperature=0.0)
        list(talk.ask("the cat", lambda text: None))
        first, _ = render(talk.messages[:1], engine.tokenizer, reply=True)
        list(talk.ask("and then", lambda text: None))
        second, _ = render(talk.messages[:3], engine.tokenizer, reply=True)
        assert second[: len(first)] == first and len(talk.messages) == 4


# The verbs.


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jielong", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
        raise SystemExit(0)
    caught = capsys.readouterr()
    return (left.value.code if isinstance(left.value.code, int) else 0), caught.out, caught.err


@every_shape
def test_complete(
    kind: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "complete", str(models[kind]), "the cat", "-n", "6", "-k", "3")
    assert code == 0 and "the cat" in out and out.count("%") == 3
    engine = Engine(*load(models[kind]))
    assert out.endswith("the cat" + engine.generate(["the cat"], max_new_tokens=6, temperature=0.0)[0].text + "\n")


@pytest.mark.parametrize("kind", ["llama2", "llama3", "qwen", "qwen3", "mistral"])
def test_chat_and_evaluate(
    kind: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n<|im_end|></s>\n"))
    code, out, err = call(monkeypatch, capsys, "chat", str(models[kind]), "-n", "4", "--temperature", "0")
    assert code == 0 and out.count("\n") >= 2 and "parameters" in err  # random weights may say nothing
    options = ["--questions", "1", "-n", "2", "--tasks", "arithmetic", "--json"]
    code, out, _ = call(monkeypatch, capsys, "evaluate", str(models[kind]), *options)
    assert code == 0 and set(json.loads(out)["tasks"]) <= {"arithmetic"}


@pytest.mark.parametrize("kind", ["gpt2", "openai_gpt"])
def test_chat_with_a_base_model_points_to_complete(
    kind: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(monkeypatch, capsys, "chat", str(models[kind]))
    assert code == 2 and "base model" in err and "jielong complete" in err


def test_one_call_loads_both(models: dict[str, Path]) -> None:
    model, tokenizer = jielong.load(models["qwen"])
    assert isinstance(tokenizer, jielong.Tokenizer) and model.config.vocab_size == tokenizer.vocab_size + SPARE
