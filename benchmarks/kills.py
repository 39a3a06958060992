"""kill -9 a stage at random moments, give the same command again, and compare with the run that was never stopped.

    python benchmarks/kills.py recipes/smoke.toml --stage ppo --kills 10 --out runs/kills

Each kill is a run of its own: the stages before are copied, the stage is started as people start it, killed after a
random time, and started again. Weights must then be bit for bit the same, and so every figure but the times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from child import JIELONG, run_child
from table import markdown_table

from jielong.recipe import parse_recipe

MEASURES_TIME = ("seconds", "per_second", "mfu")


def stage_folder(run: Path, name: str) -> Path:
    return next(run.glob(f"[0-9][0-9]-{name}"))


def outcome(stage: Path) -> dict[str, Any]:
    """What a finished stage left, without times: the weights' hash, every line of its metrics, its samples."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    weights = hashlib.sha256((stage / "model" / "model.safetensors").read_bytes()).hexdigest()
    samples = stage / "samples.json"
    return {
        "weights": weights,
        "metrics": [{k: v for k, v in line.items() if not k.endswith(MEASURES_TIME)} for line in lines],
        "samples": samples.read_text(encoding="utf-8") if samples.exists() else "",
    }


def finish(command: list[str], log: Path) -> float:
    """Run the command to its end; returns its seconds. Raises SystemExit with the end of its log when it fails."""
    done = run_child(command, log)
    if done.exit_code:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.tail()}")
    return done.seconds


def kill_after(command: list[str], log: Path, seconds: float) -> bool:
    """Start, wait, kill -9. False when it was over before."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(timeout=seconds)
            return False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True


def lines_of(stage: Path) -> int:
    metrics = stage / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--stage", default="ppo")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    names = [stage.name for stage in parse_recipe(options.recipe, options.settings).stages]
    before = names[names.index(options.stage) - 1]
    settings = [part for setting in options.settings for part in ("--set", setting)]

    def command(run: Path, until: str) -> list[str]:
        return [*JIELONG, "run", str(options.recipe), "--out", str(run), "--until", until, *settings]

    base, whole = options.out / "base", options.out / "whole"
    options.out.mkdir(parents=True, exist_ok=True)
    finish(command(base, before), options.out / "base.log")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(base, whole)
    seconds = finish(command(whole, options.stage), options.out / "whole.log")
    expected, draw = outcome(stage_folder(whole, options.stage)), random.Random(options.seed)
    rows, num_equal = [], 0
    for number in range(1, options.kills + 1):
        run, log = options.out / f"killed-{number}", options.out / f"killed-{number}.log"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base, run)
        moment = draw.uniform(0.2, 0.95) * seconds
        killed = kill_after(command(run, options.stage), log, moment)
        done_lines = lines_of(run / stage_folder(whole, options.stage).name) if killed else -1  # or not yet there
        started = time.perf_counter()
        finish(command(run, options.stage), log)
        equal = outcome(stage_folder(run, options.stage)) == expected
        num_equal += equal
        told = f"{done_lines} of {len(expected['metrics'])}" if killed else "was over"
        again = time.perf_counter() - started
        rows.append((str(number), f"{moment:.1f}", told, f"{again:.1f}", "yes" if equal else "NO"))
        shutil.rmtree(run)
    print(f"[{options.stage}] of {options.recipe}, uninterrupted {seconds:.1f} s")
    print(markdown_table(("kill", "after s", "iterations done", "again s", "bit-equal"), rows))
    print(f"{num_equal} of {options.kills} bit-equal")
    raise SystemExit(0 if num_equal == options.kills else 1)


if __name__ == "__main__":
    main()
