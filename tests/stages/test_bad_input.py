"""What goes wrong in a user's hands: one clear message, the right exit code, no traceback, and nothing lost."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jielong.tokenizer import Tokenizer
from jielong.train.checkpoint import latest_checkpoint

from .conftest import NOTES, RUN, notes

Invoke = Callable[..., tuple[int, str, str]]
Trouble = Callable[..., tuple[int, str]]
StageOf = Callable[[Path, str], Path]

DEADLINE_SECONDS = 120.0


@pytest.fixture
def text_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe over the file `notes.txt` in the data folder beside it, which each test writes as it likes."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("JIELONG_DATA", str(tmp_path / "data"))
    path = tmp_path / "text.toml"
    path.write_text(RUN + NOTES, encoding="utf-8")
    return path


def model_folder(reference: Path, tmp_path: Path) -> Path:
    """A copy of the reference's SFT model, to be spoilt."""
    return Path(shutil.copytree(reference / "04-sft" / "model", tmp_path / "model"))


# ---- recipes ----


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.learning_rat=1e-3", "learning_rat = 0.001: unknown key; did you mean `learning_rate`?"),
        ("pretain.num_steps=3", "no table [pretain]; did you mean [pretrain]?"),
        ("pretrain.num_steps=soon", 'num_steps = "soon"'),
        ("pretrain.num_steps=2.5", "num_steps = 2.5"),
        ("run.seed=-1", "seed = -1"),
        ("pretrain.num_steps", "pretrain.num_steps"),
        ("reward.max_new_tokens=128", "leaves no room for a prompt in context_tokens = 128"),
        ("curate.sources=['word']", "did you mean 'world'?"),
    ],
)
def test_wrong_override(override: str, message: str, recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, out, said = invoke("run", recipe, "--out", tmp_path / "run", "--set", override)
    assert (code, out) == (2, "")
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_rows = 4", "batch_row = 4", "batch_row = 4: unknown key; did you mean `batch_rows`?"),
        ("vocab_size = 512", 'vocab_size = "512"', 'vocab_size = "512"'),
        ("vocab_size = 512", "vocab_size = 512\nvocab_size = 600", "not valid TOML"),
        ("[tokenizer]", "[tokeniser]", "did you mean 'tokenizer'?"),
    ],
)
def test_wrong_recipe(old: str, new: str, message: str, recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    code, _, said = invoke("run", path, "--out", tmp_path / "run")
    assert code == 2
    assert message in said and "wrong.toml" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("sft", "[reward]: kind reward needs a stage of kind sft before it; there is none; add [sft]"),
        ("tokenizer", "[pretrain]: kind pretrain needs a stage of kind tokenizer before it"),
    ],
)
def test_stages_that_do_not_fit(removed: str, message: str, recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    blocks = recipe.read_text(encoding="utf-8").split("\n\n")
    path = tmp_path / "gap.toml"
    path.write_text("\n\n".join(block for block in blocks if f"[{removed}]" not in block), encoding="utf-8")
    code, _, said = invoke("run", path, "--out", tmp_path / "run")
    assert code == 2 and message in said
    assert not (tmp_path / "run").exists()


def test_no_such_recipe(tmp_path: Path, invoke: Invoke) -> None:
    code, _, said = invoke("run", tmp_path / "none.toml")
    assert code == 2 and "none.toml: no such recipe file" in said


# ---- data ----


def test_text_recipe_runs_when_nothing_is_wrong(text_recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "data" / "notes.txt").write_text(notes(150), encoding="utf-8")
    code, out, said = invoke("run", text_recipe, "--out", tmp_path / "run", "--json")
    assert code == 0, said
    report = json.loads(out)
    assert list(report["stages"]) == ["curate", "tokenizer", "pretrain"]
    assert report["stages"]["curate"]["figures"]["documents_kept"] > 100


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (None, ("source 'notes': there is no", "notes.txt", "data.root")),
        (b"", ("source 'notes'", "notes.txt is empty (0 bytes)")),
        (b" \n\n \n", ("source 'notes'", "notes.txt holds no text")),
        (notes(40).encode() + b"caf\xe9 au lait\n", ("notes.txt", "UTF-8", f"byte {len(notes(40)) + 3}")),
        (b"short\n" * 3, ("[curate] kept 0 training and 0 held-out documents", "removed")),
        (notes(12).encode(), ("the corpus is smaller than one batch", "batch_rows is 16", "lower batch_rows")),
    ],
    ids=["missing", "empty", "blank", "not-utf-8", "all-removed", "smaller-than-a-batch"],
)
def test_corpus(
    content: bytes | None, messages: tuple[str, ...], text_recipe: Path, tmp_path: Path, invoke: Invoke
) -> None:
    if content is not None:
        (tmp_path / "data" / "notes.txt").write_bytes(content)
    code, _, said = invoke("run", text_recipe, "--out", tmp_path / "run")
    assert code == 1
    error = said[said.index("error:") :]
    assert [message for message in messages if message not in error] == []

    # Nothing is in the way: with the data mended, the same command goes on. Only finished stages are never overwritten.
    (tmp_path / "data" / "notes.txt").write_text(notes(150), encoding="utf-8")
    if "smaller than one batch" in error:
        code, _, said = invoke("run", text_recipe, "--out", tmp_path / "run")
        assert code == 2
        assert "01-curate was made from a file that has changed since: notes.txt" in said and "--out" in said
        shutil.rmtree(tmp_path / "run")  # one of the ways out that it names
    assert invoke("run", text_recipe, "--out", tmp_path / "run")[0] == 0


# ---- the run folder ----


def test_run_folder_of_another_recipe(
    text_recipe: Path, tmp_path: Path, copied: Callable[..., Path], invoke: Invoke
) -> None:
    folder = copied()
    kept = (folder / "recipe.toml").read_bytes()
    code, _, said = invoke("run", text_recipe, "--out", folder)
    assert code == 2
    assert f"{folder / '01-curate'} was made with other settings" in said and "--out" in said
    assert (folder / "recipe.toml").read_bytes() == kept


def test_run_folder_with_stages_that_the_recipe_lacks(
    recipe: Path, tmp_path: Path, copied: Callable[..., Path], invoke: Invoke
) -> None:
    text = recipe.read_text(encoding="utf-8")
    path = tmp_path / "shorter.toml"
    path.write_text(text[: text.index("[evaluate]")], encoding="utf-8")
    folder = copied()
    code, _, said = invoke("run", path, "--out", folder)
    assert code == 2
    assert f"{folder} holds 07-evaluate, which this recipe does not have" in said


@pytest.mark.parametrize("inside", [False, True])
def test_out_is_a_file(inside: bool, recipe: Path, tmp_path: Path, invoke: Invoke) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    code, _, said = invoke("run", recipe, "--out", file / "run" if inside else file)
    assert code == 2 and "is a file; --out must name a folder" in said
    assert file.read_text() == "precious"


def test_two_runs_in_one_folder(recipe: Path, copied: Callable[..., Path], invoke: Invoke) -> None:
    folder = copied("evaluate")
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, said = invoke("run", recipe, "--out", folder)
        assert code == 2
        assert f"another jielong process is running in {folder}" in said
        assert not (folder / "07-evaluate").exists()
    assert invoke("run", recipe, "--out", folder)[0] == 0  # the lock goes with the process that held it


def test_a_finished_stage_without_its_model(
    recipe: Path, copied: Callable[..., Path], stage_of: StageOf, invoke: Invoke
) -> None:
    folder = copied("reward")
    weights = stage_of(folder, "sft") / "model" / "model.safetensors"
    weights.unlink()
    code, _, said = invoke("run", recipe, "--out", folder)
    assert code == 1 and f"{weights}: the file is missing" in said


# ---- trouble while running ----


def test_full_disk_in_a_checkpoint(
    recipe: Path,
    copied: Callable[[str], Path],
    reference: Path,
    stage_of: StageOf,
    sha256: Callable[[Path], str],
    trouble: Trouble,
    invoke: Invoke,
) -> None:
    folder = copied("sft")
    command = ("run", recipe, "--out", folder, "--until", "sft")
    code, said = trouble(*command, stage="sft", step=6, moment="full_disk")
    checkpoints = stage_of(folder, "sft") / "checkpoints"
    assert code == 1
    assert "step-000008 could not be written" in said and "step-000004, is intact" in said
    assert "MB free" in said and "same command" in said and "Traceback" not in said
    assert [path.name for path in checkpoints.iterdir()] == ["step-000004"]
    code, _, said = invoke(*command)
    assert code == 0 and "sft: going on from step 4\n" in said
    weights = Path("model/model.safetensors")
    assert sha256(stage_of(folder, "sft") / weights) == sha256(stage_of(reference, "sft") / weights)


@pytest.mark.parametrize(
    ("stage", "step", "moment", "start", "message"),
    [
        ("reward", 24, "full_disk", 20, "05-reward/model/model.safetensors could not be written"),
        ("ppo", 6, "full_disk", 4, "06-ppo/model/model.safetensors could not be written"),
        ("sft", 21, "no_room", 20, "File too large; finished stages are kept, the same command goes on"),
    ],
)
def test_full_disk_elsewhere(
    stage: str,
    step: int,
    moment: str,
    start: int,
    message: str,
    recipe: Path,
    copied: Callable[[str], Path],
    reference: Path,
    stage_of: StageOf,
    sha256: Callable[[Path], str],
    trouble: Trouble,
    invoke: Invoke,
) -> None:
    """While the model of a finished training is saved, and while a line of metrics is."""
    folder = copied(stage)
    command = ("run", recipe, "--out", folder, "--until", stage)
    code, said = trouble(*command, stage=stage, step=step, moment=moment)
    assert code == 1
    assert message in said and "same command" in said and "Traceback" not in said
    assert not list(stage_of(folder, stage).glob("model/*.safetensors"))
    code, _, said = invoke(*command)
    assert code == 0 and f"going on from {'iteration' if stage == 'ppo' else 'step'} {start}\n" in said
    weights = Path("model/model.safetensors")
    assert sha256(stage_of(folder, stage) / weights) == sha256(stage_of(reference, stage) / weights)


@pytest.mark.parametrize(("stage", "step", "start"), [("reward", 11, 8), ("ppo", 3, 2)])
def test_interrupt_inside_a_step(
    stage: str,
    step: int,
    start: int,
    recipe: Path,
    copied: Callable[[str], Path],
    reference: Path,
    stage_of: StageOf,
    sha256: Callable[[Path], str],
    trouble: Trouble,
    invoke: Invoke,
) -> None:
    folder = copied(stage)
    command = ("run", recipe, "--out", folder, "--until", stage)
    code, said = trouble(*command, stage=stage, step=step, moment="interrupt")
    assert code in (1, 130)
    assert f"stopped; the same command goes on from step {start} of {stage}" in said and "Traceback" not in said
    assert invoke(*command)[0] == 0
    weights = Path("model/model.safetensors")
    assert sha256(stage_of(folder, stage) / weights) == sha256(stage_of(reference, stage) / weights)


def test_ctrl_c(
    recipe: Path,
    copied: Callable[[str], Path],
    stage_of: StageOf,
    metrics_of: Callable[[Path], list[dict[str, Any]]],
    trouble: Trouble,
) -> None:
    """The command as people start it, in a stage that would never end, stopped as people stop it."""
    folder = copied("sft")
    command = ("run", str(recipe), "--out", str(folder), "--until", "sft", "--set", "sft.num_steps=1000000")
    metrics = stage_of(folder, "sft") / "metrics.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "JIELONG_ALLOCATOR": "0"}
    with open(folder.parent / "log.txt", "w+", encoding="utf-8") as log:
        # A shell without job control starts what runs in the background deaf to SIGINT, and children inherit that.
        start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        start += "; from jielong.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", start, *command], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 9):
            assert process.poll() is None and time.monotonic() < deadline, (folder.parent / "log.txt").read_text()
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(DEADLINE_SECONDS) in (1, 130)
        finally:
            process.kill()
        log.seek(0)
        said = log.read()
    checkpoint = latest_checkpoint(stage_of(folder, "sft") / "checkpoints")
    assert checkpoint is not None
    start = int(checkpoint.name.removeprefix("step-"))
    assert f"stopped; the same command goes on from step {start} of sft" in said
    assert "Traceback" not in said
    code, said = trouble(*command, stage="sft", step=start + 6, moment="interrupt")
    assert f"sft: going on from step {start}\n" in said
    assert [record["step"] for record in metrics_of(metrics.parent)] == list(range(1, start + 7))


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
def test_loss_that_is_not_finite(
    stage: str,
    recipe: Path,
    copied: Callable[[str], Path],
    stage_of: StageOf,
    metrics_of: Callable[[Path], list[dict[str, Any]]],
    invoke: Invoke,
) -> None:
    folder = copied(stage)
    overrides = ("--set", f"{stage}.learning_rate=1e30", "--set", f"{stage}.checkpoint_every=1")
    code, _, said = invoke("run", recipe, "--out", folder, *overrides)
    assert code == 1
    num_good = len(metrics_of(stage_of(folder, stage)))
    assert 1 <= num_good < 24
    assert f"[{stage}] step {num_good + 1}: " in said
    assert "nan" in said or "inf" in said or "not finite" in said
    assert "Lower the learning rate" in said
    kept = latest_checkpoint(stage_of(folder, stage) / "checkpoints")
    assert kept is not None and kept.name == f"step-{num_good:06d}"
    assert not (stage_of(folder, stage) / "DONE").exists() and not (stage_of(folder, stage) / "model").exists()


def test_ppo_that_diverges(recipe: Path, copied: Callable[[str], Path], stage_of: StageOf, invoke: Invoke) -> None:
    folder = copied("ppo")
    code, _, said = invoke("run", recipe, "--out", folder, "--set", "ppo.learning_rate=1e30")
    assert code == 1
    assert "error: [ppo] " in said
    assert not (stage_of(folder, "ppo") / "DONE").exists()


def test_damaged_checkpoint(
    recipe: Path, copied: Callable[[str], Path], stage_of: StageOf, trouble: Trouble, invoke: Invoke
) -> None:
    folder = copied("reward")
    command = ("run", recipe, "--out", folder, "--until", "reward")
    trouble(*command, stage="reward", step=10, moment="after_step")
    checkpoint = stage_of(folder, "reward") / "checkpoints" / "step-000008"
    os.truncate(checkpoint / "model.safetensors", 1000)
    code, _, said = invoke(*command)
    assert code == 1
    assert f"{checkpoint / 'model.safetensors'} is missing or damaged" in said
    assert f"Delete {checkpoint} to go on from the one before it" in said
    shutil.rmtree(checkpoint)
    code, _, said = invoke(*command)
    assert code == 0 and "reward: going on from step 4\n" in said


# ---- model folders ----


def ask(verb: str, folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    extra = {"chat": (), "complete": ("hello",), "evaluate": ("--tasks", "identity", "--questions", "2")}[verb]
    return invoke(verb, folder, *extra)


@pytest.mark.parametrize("verb", ["chat", "complete", "evaluate"])
@pytest.mark.parametrize("size", [512, 300])
def test_tokenizer_of_another_model(
    size: int, verb: str, reference: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(reference, tmp_path)
    assert ask(verb, folder, invoke, monkeypatch)[0] == 0
    Tokenizer.train([notes(400)], size).save(folder)
    code, out, said = ask(verb, folder, invoke, monkeypatch)
    assert (code, out) == (1, "")
    assert f"{folder}: tokenizer.json is not the one this model was trained with" in said


@pytest.mark.parametrize("truncated", [False, True], ids=["missing", "truncated"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "jielong.json"])
def test_model_folder_with_a_file_missing_or_truncated(
    name: str, truncated: bool, reference: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(reference, tmp_path)
    if truncated:
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
    else:
        (folder / name).unlink()
    code, out, said = ask("complete", folder, invoke, monkeypatch)
    if name == "jielong.json" and not truncated:
        assert code == 0  # a folder that others wrote has none
        return
    assert (code, out) == (1, "")
    assert name in said and str(folder) in said
    assert any(word in said for word in ("missing", "truncated", "not JSON", "no config.json", "cut off"))


def test_a_broken_model_in_the_midst_of_a_run(
    recipe: Path, copied: Callable[[str], Path], stage_of: StageOf, invoke: Invoke
) -> None:
    folder = copied("sft")
    weights = stage_of(folder, "pretrain") / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    code, _, said = invoke("run", recipe, "--out", folder)
    assert code == 1 and f"{weights}: truncated" in said


def test_prompt_longer_than_the_context(reference: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, said = invoke("complete", reference, "otter " * 200)
    assert (code, out.strip()) == (2, "")
    assert "but the model's context is 128" in said and "shorten the prompt to 127 tokens or fewer" in said
    monkeypatch.setattr("sys.stdin", io.StringIO("otter " * 200 + "\nhello\n"))
    code, out, said = invoke("chat", reference, "-n", "8")
    assert code == 0  # the turn is refused, the conversation goes on
    assert "but the model's context is 128" in said
    assert out.count("\n") >= 2 and out.strip()


def test_no_such_model(reference: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, _, said = invoke("complete", reference.parent / "micr", "hello")
    assert code == 1 and f"did you mean {reference}?" in said
    (tmp_path / "empty").mkdir()
    code, _, said = invoke("chat", tmp_path / "empty")
    assert code == 1 and "no config.json" in said
