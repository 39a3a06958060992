"""kill -9 at any moment, then the same command: the weights are bit for bit those of a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jielong.stages import pipeline

Outcome = tuple[int, str, str]
Invoke = Callable[..., Outcome]
Trouble = Callable[..., tuple[int, str]]

# stage -> (steps, steps between checkpoints), as in the recipe of conftest.py
STEPS = {"pretrain": (24, 4), "sft": (24, 4), "reward": (24, 4), "ppo": (6, 2)}
MOMENTS = ("after_step", "half_line", "half_checkpoint", "half_model")
DEADLINE_SECONDS = 120.0


@pytest.fixture
def assert_equal_to_reference(
    reference: Path,
    stage_of: Callable[[Path, str], Path],
    sha256: Callable[[Path], str],
    lasting: Callable[[Any], Any],
    metrics_of: Callable[[Path], list[dict[str, Any]]],
) -> Callable[[Path, str], None]:
    """A finished stage of a run folder is, but for time, what the uninterrupted run has."""

    def check(folder: Path, stage: str) -> None:
        ours, theirs = stage_of(folder, stage), stage_of(reference, stage)
        assert (ours / "DONE").read_bytes() == (theirs / "DONE").read_bytes()
        assert not (ours / "checkpoints").exists()
        assert sha256(ours / "model" / "model.safetensors") == sha256(theirs / "model" / "model.safetensors")
        steps = [record["step"] for record in metrics_of(ours)]
        assert steps == list(range(1, STEPS[stage][0] + 1))
        assert lasting(metrics_of(ours)) == lasting(metrics_of(theirs))
        for name in ("samples.json", "comparisons.jsonl"):
            if (theirs / name).exists():
                assert (ours / name).read_bytes() == (theirs / name).read_bytes()

    return check


def chosen_step(stage: str, moment: str, seed: int) -> int:
    """A step in the midst of the stage: any, or one after which there is a checkpoint."""
    num_steps, every = STEPS[stage]
    draw = random.Random(f"{stage} {moment} {seed}")
    if moment == "half_checkpoint":
        return every * draw.randrange(1, num_steps // every)
    return draw.randrange(every + 1, num_steps)


def expected_start(stage: str, moment: str, step: int) -> int:
    """The step of the last checkpoint: metrics are written before it, and the last step has none."""
    num_steps, every = STEPS[stage]
    return ((num_steps if moment == "half_model" else step) - 1) // every * every


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("stage", STEPS)
def test_kill_then_the_same_command(
    stage: str,
    moment: str,
    recipe: Path,
    copied: Callable[[str], Path],
    stage_of: Callable[[Path, str], Path],
    trouble: Trouble,
    invoke: Invoke,
    assert_equal_to_reference: Callable[[Path, str], None],
) -> None:
    folder = copied(stage)
    step = chosen_step(stage, moment, seed=1)
    command = ("run", recipe, "--out", folder, "--until", stage)
    code, errors = trouble(*command, stage=stage, step=step, moment=moment)
    assert code == -signal.SIGKILL, errors
    assert not (stage_of(folder, stage) / "DONE").exists()
    code, _, said = invoke(*command)
    assert code == 0, said
    unit = "iteration" if stage == "ppo" else "step"
    start = expected_start(stage, moment, step)
    resumed = f"{stage}: going on from {unit} {start}\n"
    assert (resumed in said) if start else ("going on" not in said), said
    assert_equal_to_reference(folder, stage)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_killed_twice(
    stage: str,
    recipe: Path,
    copied: Callable[[str], Path],
    trouble: Trouble,
    invoke: Invoke,
    assert_equal_to_reference: Callable[[Path, str], None],
) -> None:
    folder = copied(stage)
    command = ("run", recipe, "--out", folder, "--until", stage)
    num_steps, every = STEPS[stage]
    for step in (every + 1, num_steps - 1):
        code, errors = trouble(*command, stage=stage, step=step, moment="after_step")
        assert code == -signal.SIGKILL, errors
    assert invoke(*command)[0] == 0
    assert_equal_to_reference(folder, stage)


@pytest.mark.parametrize("stage", ["pretrain", "ppo"])
def test_killed_where_checkpoints_are_written_beside_training(
    stage: str,
    recipe: Path,
    copied: Callable[[str], Path],
    trouble: Trouble,
    invoke: Invoke,
    assert_equal_to_reference: Callable[[Path, str], None],
) -> None:
    """A checkpoint has its name when the next one is begun: at the latest the one before the last is there."""
    folder = copied(stage)
    command = ("run", recipe, "--out", folder, "--until", stage, "--set", "run.async_checkpoints=true")
    num_steps, every = STEPS[stage]
    code, errors = trouble(*command, stage=stage, step=num_steps - 1, moment="after_step")
    assert code == -signal.SIGKILL, errors
    code, _, said = invoke(*command)
    assert code == 0, said
    starts = [num_steps - every, num_steps - 2 * every]
    assert any(f"going on from {unit} {start}\n" in said for start in starts for unit in ("step", "iteration")), said
    assert_equal_to_reference(folder, stage)


def test_kill_from_outside(
    recipe: Path,
    copied: Callable[[str], Path],
    stage_of: Callable[[Path, str], Path],
    metrics_of: Callable[[Path], list[dict[str, Any]]],
    invoke: Invoke,
    assert_equal_to_reference: Callable[[Path, str], None],
) -> None:
    """The command as people start it, killed by another process at whatever it is doing then."""
    folder = copied("pretrain")
    command = ("run", str(recipe), "--out", str(folder), "--until", "pretrain")
    metrics = stage_of(folder, "pretrain") / "metrics.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder.parent / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jielong", *command], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 9):
            assert process.poll() is None and time.monotonic() < deadline, (folder.parent / "log.txt").read_text()
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (stage_of(folder, "pretrain") / "DONE").exists()
    code, _, said = invoke(*command)
    assert code == 0, said
    assert "pretrain: going on from step " in said
    assert_equal_to_reference(folder, "pretrain")


def test_killed_between_done_and_the_end_nothing_is_trained_anew(
    recipe: Path, copied: Callable[[str], Path], stage_of: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints go when the stage is done: before that they are what it would go on from."""
    folder = copied("reward")
    monkeypatch.setattr(pipeline, "clear_checkpoints", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_recipe(recipe, folder, until="reward", quiet=True)
    reward = stage_of(folder, "reward")
    assert (reward / "checkpoints").is_dir()
    metrics = (reward / "metrics.jsonl").stat().st_mtime_ns
    monkeypatch.undo()
    pipeline.run_recipe(recipe, folder, until="reward", quiet=True)
    assert (reward / "metrics.jsonl").stat().st_mtime_ns == metrics
    assert not (reward / "checkpoints").exists()


def killed(folder: Path) -> None:
    if folder.name == "05-reward":
        raise KeyboardInterrupt
