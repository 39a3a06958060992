"""A whole run in a few seconds: a small world, a model of thirty thousand weights, two dozen steps a stage."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jielong.cli import main
from jielong.stages.pipeline import run_recipe

STAGES = ("curate", "tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate")
RUN = """
[run]
device = "cpu"
dtype = "float32"
threads = 1
"""
# The shortest way to a model: of notes.txt, which a test fills, see `notes`.
NOTES = """
[data.sources.notes]
path = "notes.txt"
split = "line"

[curate]
sources = ["notes"]
min_stop_words = 0
heldout_fraction = 0.2

[tokenizer]
vocab_size = 263

[pretrain]
model = {width = 32, decoder_layers = 1, num_heads = 2}
context_tokens = 64
batch_rows = 16
num_steps = 2
learning_rate = 1e-3
"""
# Of the world, whose lines are made from templates and repeat themselves by design.
CURATE = """[curate]
sources = ["world"]
min_stop_words = 0
max_top_grams = [0.4, 0.4, 0.4]
max_duplicate_grams = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
"""
RECIPE = f"""{RUN}
name = "micro"
seed = 7

[data.world]
megabytes = 0.15
heldout_megabytes = 0.02

{CURATE}
[tokenizer]
vocab_size = 512

[pretrain]
model.width = 32
model.decoder_layers = 1
model.num_heads = 2
context_tokens = 128
batch_rows = 4
num_steps = 24
learning_rate = 5e-3
warmup_steps = 2
evaluate_every = 8
checkpoint_every = 4

[sft]
sources = ["world"]
num_conversations = 60
num_steps = 24
batch_rows = 4
accumulate = 2
learning_rate = 3e-3
warmup_steps = 2
evaluate_every = 8
checkpoint_every = 4

[reward]
sources = ["world"]
num_prompts = 24
replies_per_prompt = 3
num_steps = 24
batch_rows = 4
learning_rate = 1e-3
max_new_tokens = 16
evaluate_every = 8
checkpoint_every = 4

[ppo]
num_iterations = 6
rollout_rows = 8
minibatch_rows = 4
max_new_tokens = 16
kl_coefficient = 0.02
target_kl = 2.0
learning_rate = 1e-3
critic_learning_rate = 1e-3
warmup_iterations = 1
watch_every = 2
checkpoint_every = 2
judged_prompts = 8

[evaluate]
questions_per_skill = 2
max_new_tokens = 16
"""

Outcome = tuple[int, str, str]  # exit code, stdout, stderr
Invoke = Callable[..., Outcome]


def notes(num: int) -> str:
    """Lines that curation has no quarrel with."""
    animals = ("otter", "heron", "badger", "marten", "plover", "weasel", "curlew")
    return "".join(
        f"On day {n} of the journey the {animals[n % 7]} met a {animals[n * n % 5]} by the river and spoke of rain.\n"
        for n in range(num)
    )


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "micro.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def no_probe() -> Iterator[None]:
    """A made-up speed of this machine instead of two seconds of measuring it in every run; plan/ tests the probe."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("jielong.stages.pretraining.probe_flops", "jielong.recipe.costing.probe_flops"):
            patch.setattr(place, lambda runtime: 1e11)
        yield


@pytest.fixture(scope="session")
def reference(recipe: Path, no_probe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the recipe, all stages done without interruption. Not to be changed: see `copied`."""
    folder = tmp_path_factory.mktemp("reference") / "micro"
    run_recipe(recipe, folder, quiet=True)
    return folder


@pytest.fixture
def copied(reference: Path, tmp_path: Path) -> Callable[[str | None], Path]:
    """A copy of the reference as it was before a stage began (None: all of it), files with their times."""

    def copy(before: str | None = None) -> Path:
        folder = tmp_path / "micro"
        missing = STAGES[STAGES.index(before) :] if before else ()
        shutil.copytree(reference, folder, ignore=lambda _, names: [name for name in names if name[3:] in missing])
        return folder

    return copy


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """The command in this process: fast, and what it prints is caught. What is not a user's error is raised."""
    monkeypatch.setenv("JIELONG_ALLOCATOR", "0")  # else `run` would start this very process again
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("JIELONG_TRACEBACK", raising=False)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["jielong", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
            raise SystemExit(0)
        caught = capsys.readouterr()
        code = left.value.code
        return (code if isinstance(code, int) else 0), caught.out, caught.err

    return call


@pytest.fixture
def trouble(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the command in another process that meets with trouble: see killed_run.py. Returns exit code and messages.

    A fork server imports everything once; each process forked from it is as good as a fresh one and starts at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch._dynamo", "jielong.cli", "jielong.stages.pipeline"])

    def run(*arguments: object, stage: str, step: int, moment: str) -> tuple[int, str]:
        errors = tmp_path / "errors.txt"
        order = {
            "arguments": [str(argument) for argument in arguments],
            "stage": stage,
            "step": step,
            "moment": moment,
            "errors": str(errors),
        }
        script = Path(__file__).with_name("killed_run.py")
        process = context.Process(target=runpy.run_path, args=(str(script), {"ORDER": order}, "__main__"))
        process.start()
        process.join(timeout=120)
        assert process.exitcode is not None, f"still running: {errors.read_text(encoding='utf-8')}"
        return process.exitcode, errors.read_text(encoding="utf-8")

    return run


@pytest.fixture(scope="session")
def stage_of() -> Callable[[Path, str], Path]:
    """RUN, NAME -> RUN/NN-NAME."""
    return lambda folder, name: folder / f"{STAGES.index(name) + 1:02d}-{name}"


@pytest.fixture(scope="session")
def sha256() -> Callable[[Path], str]:
    return lambda path: hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def lasting() -> Callable[[Any], Any]:
    """Figures or metrics without those that measure time, which no two runs share."""
    spent = ("seconds", "per_second", "mfu")

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(inner) for key, inner in value.items() if not key.endswith(spent)}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    return strip


@pytest.fixture(scope="session")
def metrics_of() -> Callable[[Path], list[dict[str, Any]]]:
    """A stage folder's metrics.jsonl, every line of which must be whole."""
    return lambda stage: [json.loads(line) for line in (stage / "metrics.jsonl").read_text("utf-8").splitlines()]
