"""From a model folder to verified files: whole or not at all, never over something that is there, told in figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from jielong.cli import main
from jielong.errors import ModelError, StorageError, UsageError
from jielong.export import export as room
from jielong.export import llamacpp
from jielong.export.export import Exported, export_model
from jielong.folder import load, save
from jielong.generate.engine import Engine
from jielong.model.hf import read_provenance
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer

Build = Callable[..., Engine]
HF_FILES = {
    "config.json", "generation_config.json", "jielong.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_llamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp has tests of its own; here one export goes through it."""
    monkeypatch.setattr(llamacpp, "is_installed", lambda: False)


def test_two_files(folder: Path, tmp_path: Path) -> None:
    made = export_model(folder, tmp_path / "two", "two-files")
    assert set(made.files) == {path.name for path in (tmp_path / "two").iterdir()} == {"run.py", "model.safetensors"}
    assert made.verdict.text.startswith("by running run.py: 8 prompts, 256 tokens, all equal to the engine's; 10 texts")
    assert made.verdict.figures["by"] == "run.py"
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_gguf_without_llamacpp_is_read_back(folder: Path, tmp_path: Path) -> None:
    made = export_model(folder, tmp_path / "out", "gguf")
    assert set(made.files) == {"model-F16.gguf"}
    expected = "by reading it back: 20 tensors read back within F16's rounding (llama.cpp was not run: pip install"
    assert made.verdict.text.startswith(expected)
    assert made.verdict.figures == {"by": "reading back", "tensors": 20}


def test_gguf_through_llamacpp(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not llamacpp.is_installed():
        pytest.skip("llama.cpp is not installed: pip install 'jielong[llamacpp]'")
    made = export_model(folder, tmp_path / "out", "gguf", kind="F32")
    figures = made.verdict.figures
    assert figures["by"] == "llama.cpp" and figures["equal_tokens"] == figures["tokens"] > 0 and figures["chat"]
    assert "in llama.cpp: 8 prompts" in made.verdict.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hf_is_loaded_by_transformers(dtype: str, folder: Path, tmp_path: Path) -> None:
    made = export_model(folder, tmp_path / "hf", "hf", dtype=dtype)
    assert set(made.files) == HF_FILES
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert str(theirs.dtype) == f"torch.{dtype}"
    original, _ = load(folder)
    assert torch.equal(theirs.model.embed_tokens.weight, original.embed.weight.to(theirs.dtype))
    rounded = "" if dtype == "float32" else f"; rounding to {dtype} left "
    assert made.verdict.text.startswith(f"by loading it: 16 tensors and the tokenizer equal{rounded}")
    provenance = read_provenance(tmp_path / "hf")
    parent = os.path.normpath(tmp_path / "hf" / provenance["parent"])
    assert parent == os.path.normpath(folder / "../../04-sft/model") and provenance["kind"] == "ppo"


def test_hf_needs_no_transformers(folder: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['transformers'] = None; from jielong.export.export import export_model\n"
    code += f"export_model({str(folder)!r}, {str(tmp_path / 'hf')!r}, 'hf', dtype='bfloat16')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "hf" / "config.json").exists()


def test_a_reward_model_goes_to_hf_only(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = Transformer(replace(build("llama").model.config, head="scalar"))
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, tokenizer, tmp_path / "reward")
    made = export_model(tmp_path / "reward", tmp_path / "hf", "hf", dtype="bfloat16")
    assert made.verdict.figures == {"by": "loading", "tensors": 17}
    for to in ("gguf", "two-files"):
        with pytest.raises(ModelError, match="head is 'scalar'; .* knows only 'lm'"):
            export_model(tmp_path / "reward", tmp_path / to, to)
        assert not (tmp_path / to).exists()


def test_a_shape_that_transformers_lacks(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(build("llama").model.config, activation="geglu", attention_softcap=30.0, norm_at="both")
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, tokenizer, tmp_path / "model")
    made = export_model(tmp_path / "model", tmp_path / "hf", "hf", dtype="bfloat16")
    assert "; transformers has no architecture of this shape, only jielong loads it" in made.verdict.text


# ---- whole or not at all ----


@pytest.mark.parametrize("to", ["gguf", "two-files", "hf"])
def test_nothing_is_left_when_the_check_fails(
    to: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ModelError("verification failed: on purpose")

    for name in ("check_gguf", "compare", "_rounded"):
        monkeypatch.setattr(room, name, fail)
    with pytest.raises(ModelError, match="on purpose"):
        export_model(folder, tmp_path / "out", to)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_network_fails_the_check(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.py as it would be with a mistake in it."""
    load_program = room.load_program

    def mistaken(scratch: Path) -> Any:
        program = load_program(scratch)
        monkeypatch.setattr(program, "_rotate", lambda x, angles: x)
        return program

    monkeypatch.setattr(room, "load_program", mistaken)
    with pytest.raises(ModelError, match="verification failed: after prompt"):
        export_model(folder, tmp_path / "out", "two-files")
    assert list(tmp_path.iterdir()) == []


def test_no_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("100 requested and 5 written")  # what numpy says

    monkeypatch.setattr(room, "write_gguf", full)
    with pytest.raises(StorageError, match="out could not be written: 100 requested and 5 written. Nothing was left"):
        export_model(folder, tmp_path / "out", "gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced_unasked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    export_model(folder, target, "gguf", kind="F16")
    export_model(folder, target, "gguf", kind="Q8_0")  # another file, the same folder
    (target / "model-F16.gguf").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(room, "load", None)  # refused before the model is loaded
        with pytest.raises(
            UsageError, match="model-F16.gguf exists; choose another folder, or replace it with --force"
        ):
            export_model(folder, target, "gguf", kind="F16")
    made = export_model(folder, target, "gguf", kind="F16", force=True)
    assert (target / "model-F16.gguf").stat().st_size == made.files["model-F16.gguf"]
    assert (target / "notes.txt").read_text() == "mine"
    assert len(list(target.iterdir())) == 3


def test_places_that_cannot_be_meant(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the model itself; the export needs a folder of its own"):
        export_model(folder, folder / "." / "", "hf", force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file is a file"):
        export_model(folder, tmp_path / "file", "hf", force=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "gguff"}, "--to is 'gguff'; legal are gguf, two-files, hf; did you mean gguf?"),
        ({"to": "gguf", "kind": "Q4_0"}, "--type is 'Q4_0'; legal are F32, F16, Q8_0; did you mean Q8_0?"),
        ({"to": "hf", "dtype": "bf16"}, "--dtype is 'bf16'; legal are float32, bfloat16, float16"),
    ],
)
def test_settings(settings: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export_model(folder, tmp_path / "out", **settings)
    assert str(caught.value).startswith(message)


# ---- the verb ----


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jielong", "export", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as left:
        main()
        raise SystemExit(0)
    return int(left.value.code or 0)


def test_the_verb(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, str(folder), str(tmp_path / "two"), "--to", "two-files") == 0
    out = capsys.readouterr().out
    assert "verified by running run.py: 8 prompts, 256 tokens, all equal to the engine's" in out
    assert out.endswith(f"chat:   python {tmp_path / 'two' / 'run.py'}\n")
    assert call(monkeypatch, str(folder), str(tmp_path / "q"), "--to", "gguf", "--type", "Q8_0", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["stored_as"] == "Q8_0" and record["files_bytes"]["model-Q8_0.gguf"] > 10_000
    assert record["verified"] == {"by": "reading back", "tensors": 20}


def test_the_verb_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, message in (
        (["--to", "gguf", "--dtype", "float32"], "a GGUF's weights are chosen by --type"),
        (["--to", "hf", "--type", "F16"], "is for --to gguf; here --dtype"),
        (["--to", "hf2"], "--to is 'hf2'; legal are gguf, two-files, hf"),
        ([], "Missing option '--to'"),
    ):
        assert call(monkeypatch, str(folder), str(tmp_path / "out"), *wrong) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    def fail(*_: Any, **__: Any) -> Exported:
        raise ModelError("verification failed: on purpose")

    monkeypatch.setattr(room, "export_model", fail)
    assert call(monkeypatch, str(folder), str(tmp_path / "out"), "--to", "gguf") == 1
    assert "verification failed: on purpose" in capsys.readouterr().err


def test_help_teaches_by_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert "jielong export runs/quickstart" in out and "python two/run.py" in out and "F32|F16|Q8_0" in out
