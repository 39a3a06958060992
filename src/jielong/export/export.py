"""One model folder in, files for another program out: written aside, verified, and only then given their names."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jielong.errors import ModelError, StorageError, UsageError, nearest
from jielong.export import llamacpp
from jielong.export.gguf import TYPES, check_gguf, need_gguf, write_gguf
from jielong.export.probe import Answer, Probe
from jielong.export.two_files import PROGRAM, WEIGHTS, load_program, write_two_files
from jielong.export.verify import PROMPTS, Verdict, compare, in_words, make_probe, num_same
from jielong.export.vocabulary import CONVERSATION, read_vocabulary
from jielong.folder import load, save
from jielong.generate.engine import Engine
from jielong.model.hf import OWN_TYPE, read_provenance
from jielong.model.transformer import Transformer
from jielong.model.weights import read_json
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

TARGETS = ("gguf", "two-files", "hf")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How far log-probabilities may be off, in nats: in float32 by the order of sums; llama.cpp also rounds what it
# multiplies with 16-bit weights to 16 bits, and with Q8_0 to 8.
SLACK = {"F32": 0.01, "F16": 0.1, "Q8_0": 1.0}


@dataclass(frozen=True)
class Exported:
    """Where the files are, their names with sizes in bytes, how they were verified; stored_as: the weights' type."""

    folder: Path
    stored_as: str
    files: dict[str, int]
    verdict: Verdict


@dataclass(frozen=True)
class _Loaded:
    """The model to export, and where it came from."""

    source: Path
    model: Transformer
    tokenizer: Tokenizer


def export_model(
    source: str | Path, target: str | Path, to: str, *, kind: str = "F16", dtype: str = "float32", force: bool = False
) -> Exported:
    """Export the model folder `source` into the folder `target`.

    to: "gguf" with weights of `kind` (F32, F16, Q8_0), "two-files" or "hf" with weights of `dtype` (float32, bfloat16,
    float16). force: files of the same names in `target` are replaced; others are left alone either way.
    Raises UsageError for settings, ModelError for a model that the other program cannot compute or when the check
    fails, StorageError when there is no room. Nothing is left in `target` then.
    """
    for setting, value, legal in (("--to", to, TARGETS), ("--type", kind, TYPES), ("--dtype", dtype, tuple(DTYPES))):
        _one_of(setting, value, legal)
    if to == "gguf":
        need_gguf()  # before a large model is loaded in vain
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or target.resolve() == source.resolve()):
        what = "is the model itself" if target.is_dir() else "is a file"
        raise UsageError(f"{target} {what}; the export needs a folder of its own")
    _refuse_taken(target, _names(to, kind), force)
    loaded = _Loaded(source, *load(source))
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        if to == "gguf":
            verdict = _gguf(loaded, scratch, kind)
        elif to == "two-files":
            verdict = _two_files(loaded, scratch, DTYPES[dtype])
        else:
            verdict = _hf(loaded, scratch, target, DTYPES[dtype])
        files = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        _refuse_taken(target, files, force)  # again: the check may have taken its time
        _place(scratch, target)
    except OSError as error:
        raise StorageError(
            f"{target} could not be written: {error.strerror or error}. Nothing was left there; make room, or choose a "
            "folder that can be written"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(target, kind if to == "gguf" else dtype, files, verdict)


def _one_of(setting: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        near = nearest(value, legal)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(f"{setting} is {value!r}; legal are {', '.join(legal)}{hint}")


def _gguf(loaded: _Loaded, scratch: Path, kind: str) -> Verdict:
    vocabulary = read_vocabulary(loaded.source, loaded.tokenizer)
    path = scratch / _names("gguf", kind)[0]
    parts = [part for part in loaded.source.resolve().parts if part != "model"]
    write_gguf(path, loaded.model, vocabulary, kind, parts[-1])
    figures: dict[str, Any] = {"tensors": check_gguf(path, loaded.model, vocabulary, kind)}
    read_back = f"{figures['tensors']} tensors read back within {kind}'s rounding"
    if not llamacpp.is_installed():
        text = f"by reading it back: {read_back} (llama.cpp was not run: pip install 'jielong[llamacpp]')"
        return Verdict(text, {"by": "reading back", **figures})
    engine = Engine(loaded.model, loaded.tokenizer)
    probe = make_probe(engine, _answers(loaded.tokenizer))
    answer = llamacpp.run_llamacpp(path, probe, torch.get_num_threads())
    found = compare(engine, probe, answer, SLACK[kind], vocabulary.stop_ids)
    return Verdict(f"in llama.cpp: {in_words(found)}; {read_back}", {"by": "llama.cpp", **found, **figures})


def _two_files(loaded: _Loaded, scratch: Path, dtype: torch.dtype) -> Verdict:
    vocabulary = read_vocabulary(loaded.source, loaded.tokenizer)
    write_two_files(scratch, loaded.model, vocabulary, dtype)
    engine = Engine(_rounded(loaded.model, dtype), loaded.tokenizer)
    probe = make_probe(engine, vocabulary.joints is not None)
    found = compare(engine, probe, _run_program(scratch, probe), SLACK["F32"], ())
    found |= _as_before(loaded, engine, probe, dtype)
    _run_command(scratch, engine)
    text = f"by running run.py: {in_words(found)}{_rounding_in_words(found, dtype)}"
    if vocabulary.joints is None:
        text += "; no chat: " + ("run.py cannot follow its template" if vocabulary.chat_template else "a base model")
    return Verdict(text, {"by": "run.py", **found})


def _answers(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer can write a conversation: it has a chat template, and that one takes it."""
    try:
        render(CONVERSATION, tokenizer, reply=True)
    except UsageError:
        return False
    return True


def _run_program(scratch: Path, probe: Probe) -> Answer:
    """The probe through the exported run.py, in this process."""
    run = load_program(scratch)
    model = run.Model(scratch / WEIGHTS)
    layers = model.config["decoder_layers"]
    tokens = [
        list(run.generate(model, prompt, probe.num_tokens, run.Sampler(), run.Cache(layers), []))
        for prompt in probe.prompts
    ]
    chat = None
    if probe.conversation is not None:
        talk = run.Chat(model, run.Sampler(), probe.num_tokens)
        asked, answered, last = (message["content"] for message in probe.conversation)
        talk.turns.append((asked, answered))
        chat = talk.prompt(last)
    return Answer(tokens, [[] for _ in tokens], [model.tokenizer.encode(text) for text in probe.texts], chat)


def _run_command(scratch: Path, engine: Engine) -> None:
    """Raises ModelError unless `python run.py --complete TEXT` says what the engine says."""
    text = PROMPTS[0]
    command = [sys.executable, str(scratch / PROGRAM), "--complete", text, "-n", "8"]
    done = subprocess.run(command, capture_output=True, timeout=600)
    expected = text + engine.generate([text], max_new_tokens=8, temperature=0.0)[0].text
    if done.returncode or done.stdout.decode("utf-8", "replace").split() != expected.split():
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise ModelError(f"verification failed: run.py --complete said {said!r}, the engine {expected!r}")


def _hf(loaded: _Loaded, scratch: Path, target: Path, dtype: torch.dtype) -> Verdict:
    provenance = {k: v for k, v in read_provenance(loaded.source).items() if k not in ("version", "tokenizer_hash")}
    if "parent" in provenance:  # a path from the model's folder, which is another one now
        provenance["parent"] = os.path.relpath(loaded.source / provenance["parent"], target)
    save(copy.deepcopy(loaded.model).to(dtype), loaded.tokenizer, scratch, provenance)
    model, tokenizer = load(scratch)
    rounded = dict(_rounded(loaded.model, dtype).named_parameters())
    wrong = [name for name, values in model.named_parameters() if not torch.equal(values, rounded[name])]
    if wrong or tokenizer.hash != loaded.tokenizer.hash:
        raise ModelError(f"verification failed: {wrong[0] if wrong else 'the tokenizer'} is not read back as it was")
    figures: dict[str, Any] = {"by": "loading", "tensors": len(rounded)}
    text = f"by loading it: {len(rounded)} tensors and the tokenizer equal"
    if read_json(scratch / "config.json")["model_type"] == OWN_TYPE:
        text += "; transformers has no architecture of this shape, only jielong loads it"
    if model.config.head != "lm" or model.config.encoder_layers:
        return Verdict(text, figures)
    engine = Engine(model, tokenizer)
    probe = make_probe(engine, has_chat=False)
    found = _as_before(loaded, engine, probe, dtype)
    return Verdict(text + _rounding_in_words(found, dtype), {**figures, **found})


def _rounded(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The model as float32 computes it after its weights went through `dtype`."""
    return model if dtype == torch.float32 else copy.deepcopy(model).to(dtype).float()


def _as_before(loaded: _Loaded, rounded: Engine, probe: Probe, dtype: torch.dtype) -> dict[str, Any]:
    """How many of the probe's tokens the rounding left as they were; nothing to say in float32."""
    if dtype == torch.float32:
        return {}
    engines = (Engine(loaded.model, loaded.tokenizer), rounded)
    before, after = (
        engine.generate(probe.prompts, max_new_tokens=probe.num_tokens, temperature=0.0, stop_ids=())
        for engine in engines
    )
    same = sum(num_same(one.tokens, two.tokens) for one, two in zip(before, after, strict=True))
    return {"unrounded_tokens": sum(len(made.tokens) for made in before), "equal_unrounded_tokens": same}


def _rounding_in_words(figures: dict[str, Any], dtype: torch.dtype) -> str:
    if "unrounded_tokens" not in figures:
        return ""
    name = str(dtype).removeprefix("torch.")
    equal, all_tokens = figures["equal_unrounded_tokens"], figures["unrounded_tokens"]
    return f"; rounding to {name} left {equal} of {all_tokens} tokens as they were"


def _names(to: str, kind: str) -> tuple[str, ...]:
    """Files that the export is sure to write."""
    return {"gguf": (f"model-{kind}.gguf",), "two-files": (WEIGHTS, PROGRAM), "hf": (WEIGHTS, "config.json")}[to]


def _refuse_taken(target: Path, names: Iterable[str], force: bool) -> None:
    """Raises UsageError when one of the files is there and is not to be replaced."""
    taken = [name for name in names if (target / name).exists()]
    if taken and not force:
        raise UsageError(f"{target / taken[0]} exists; choose another folder, or replace it with --force")


def _place(scratch: Path, target: Path) -> None:
    """Give the finished files their names. A folder that is not there yet appears at once, whole."""
    names = sorted(path.name for path in scratch.iterdir())
    for name in names:
        with open(scratch / name, "rb+") as file:
            os.fsync(file.fileno())
    if not target.exists():
        os.rename(scratch, target)
        return
    for name in names:
        os.replace(scratch / name, target / name)
