"""One run of a recipe with some settings changed, as a child process that may be stopped early.

Stages before the first changed setting are the same for all: they are made once, in a folder of their own, and each run
gets them as hard links. A run finds them finished by their hash and goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jielong.errors import RecipeError, TrainingError

POLL_SECONDS = 0.5
WRONG_USE = 2  # the exit code of a recipe or setting that is wrong
# what reads a step's value of the curve and says whether the run may go on
Judge = Callable[[int, float], bool]


@dataclass(frozen=True)
class Trial:
    """A run to be made: recipe file, its folder, --set values, and the stage it ends with."""

    recipe: Path
    folder: Path
    overrides: Sequence[str]
    until: str

    def command(self) -> list[str]:
        sets = [part for one in self.overrides for part in ("--set", one)]
        run = [sys.executable, "-m", "jielong", "run", str(self.recipe), "--out", str(self.folder), "--quiet"]
        return [*run, "--until", self.until, *sets]

    def stage_folder(self) -> Path | None:
        """The folder of the last stage, once it is there."""
        return next(iter(self.folder.glob(f"[0-9][0-9]-{self.until}")), None)

    def figures(self) -> dict[str, Any]:
        """The last stage's figures. Raises RecipeError when it never ran."""
        report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        if self.until not in report["stages"]:
            raise RecipeError(f"{self.folder}: stage {self.until} left no figures")
        return report["stages"][self.until]["figures"]


@dataclass
class Curve:
    """Reads a value's lines from a growing metrics.jsonl, each once; a line that is half written waits."""

    name: str
    position: int = 0
    seen: list[tuple[int, float]] = field(default_factory=list)

    def news(self, path: Path) -> Iterator[tuple[int, float]]:
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.position += len(line)
                record = json.loads(line)
                if self.name in record:
                    yield int(record["step"]), float(record[self.name])


def run_trial(trial: Trial, shared: Path | None = None, curve: str | None = None, judge: Judge | None = None) -> bool:
    """Run it to its end, or go on where it was stopped. False when the judge ended it early.

    shared: a run folder whose finished stages this run may take over. curve: the name in the last stage's metrics.jsonl
    that the judge sees. Raises RecipeError for a recipe that does not take the settings, TrainingError for a run that
    failed, both with the end of its output.
    """
    trial.folder.mkdir(parents=True, exist_ok=True)
    if shared is not None:
        take_over(shared, trial.folder)
    log = trial.folder.with_name(f"{trial.folder.name}.log")
    reader = Curve(curve) if curve is not None else None
    with log.open("ab") as file:
        child = subprocess.Popen(trial.command(), stdout=file, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
                if reader is not None and judge is not None and not _may_go_on(trial, reader, judge):
                    child.terminate()
                    child.wait()
                    return False
        finally:
            if child.poll() is None:  # Ctrl-C, or an error above: the run can be gone on with later
                child.terminate()
                child.wait()
    if child.returncode == 0:
        return True
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-6:])
    error = RecipeError if child.returncode == WRONG_USE else TrainingError
    raise error(f"{trial.folder}: the run ended with exit code {child.returncode}; {log} ends so:\n{tail}")


def _may_go_on(trial: Trial, reader: Curve, judge: Judge) -> bool:
    folder = trial.stage_folder()
    if folder is None:
        return True
    for step, value in reader.news(folder / "metrics.jsonl"):
        if not judge(step, value):
            return False
    return True


def take_over(shared: Path, folder: Path) -> None:
    """Give a run the finished stages of another, as hard links where the disk has them."""
    for stage in sorted(shared.glob("[0-9][0-9]-*")):
        target = folder / stage.name
        if (stage / "DONE").exists() and not target.exists():
            copy = folder / f".{stage.name}.part"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(stage, copy, copy_function=_link)
            copy.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def shared_until(stages: Sequence[str], names: Sequence[str]) -> str | None:
    """The last stage before any of the changed settings takes effect; None when the first stage feels them already."""
    tables = {name.split(".")[0] for name in names}
    if not tables <= set(stages):  # run.seed, data.root ...: everything hangs on them
        return None
    first = min(stages.index(table) for table in tables)
    return stages[first - 1] if first else None
