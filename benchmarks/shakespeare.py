"""Characters of Shakespeare on a CPU: nanoGPT and recipes/shakespeare.toml side by side.

    python benchmarks/shakespeare.py --nanogpt DIR [--data-root DIR] [--repeats 1] [--threads 2]

DIR is your copy of nanoGPT's public repository; nothing of it is shipped here. Its train.py runs in its README's CPU
setting, with as many threads as ours, in turns with ours. Times are medians over the repeats. Ours runs twice: with as
many steps, and with --fewer-steps, which are enough for a loss of 1.88.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import JIELONG, Child, run_child
from table import machine, markdown_table

from jielong.config import data_root

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "shakespeare.toml"
TEXT = Path("tinyshakespeare/input.txt")
CONTEXT_TOKENS, BATCH_ROWS = 64, 12
EVALUATION_BATCHES = 200  # 153,600 drawn characters: more than the validation text has
MAX_LOSS_NATS = 1.88
MAX_SHARE = 0.5  # of nanoGPT's wall time, until ours has that loss
CHECKPOINTS = "nanogpt-checkpoint"


@dataclass(frozen=True)
class Timed:
    """One training run. process_seconds: the whole command. training_seconds: its steps, without evaluations.

    loss_nats: nats a character of validation text; nanoGPT's is its own estimate at the last step, ours is of all text.
    """

    process_seconds: float
    training_seconds: float
    loss_nats: float


class ChildFailed(Exception):
    """A command of the comparison did not succeed; the message has the end of what it wrote."""


def checked(child: Child, what: str) -> Child:
    if child.exit_code != 0:
        raise ChildFailed(f"{what} failed with exit code {child.exit_code}:\n{child.tail()}")
    return child


def prepare_nanogpt(folder: Path, root: Path, log: Path) -> None:
    """Make nanoGPT's train.bin, val.bin and meta.pkl with its own prepare.py, from the text under our data root."""
    if not (folder / "train.py").is_file():
        raise ChildFailed(f"{folder} has no train.py: --nanogpt must name a copy of nanoGPT's repository")
    data = folder / "data" / "shakespeare_char"
    if all((data / name).exists() for name in ("train.bin", "val.bin", "meta.pkl")):
        return
    if importlib.util.find_spec("requests") is None:
        raise ChildFailed("nanoGPT's prepare.py imports requests, which is not installed here: pip install requests")
    plain = root / TEXT
    packed = plain.with_name(plain.name + ".gz")
    if plain.exists():
        shutil.copyfile(plain, data / "input.txt")
    elif packed.exists():
        (data / "input.txt").write_bytes(gzip.decompress(packed.read_bytes()))
    # without either, prepare.py downloads the text itself
    checked(run_child([sys.executable, "prepare.py"], log, folder=data), "nanoGPT's prepare.py")


def nanogpt_command(num_steps: int, checkpoints: Path, extra: dict[str, Any]) -> list[str]:
    """Its README's command for a machine without a GPU; it says every tenth step, as its configuration has it."""
    settings = {
        "device": "cpu", "compile": False, "eval_iters": 20, "block_size": CONTEXT_TOKENS, "batch_size": BATCH_ROWS,
        "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": num_steps, "lr_decay_iters": num_steps, "dropout": 0.0,
        "out_dir": checkpoints, **extra,
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "train.py", "config/train_shakespeare_char.py", *flags]


def parse_nanogpt(log: str, num_steps: int) -> tuple[float, float]:
    """(seconds of its training steps, its last printed validation loss) from what train.py prints.

    It prints the time of every tenth step. A step at which it also evaluates is left out; the mean of the others stands
    for all.
    """
    evaluated = parse_evaluations(log)
    times = [
        float(milliseconds) / 1000
        for step, milliseconds in re.findall(r"iter (\d+): loss \S+, time (\S+)ms", log)
        if int(step) not in evaluated
    ]
    if not times:
        raise ChildFailed("nanoGPT's output has no step times; is this its train.py?")
    return num_steps * statistics.fmean(times), evaluated[max(evaluated)]


def time_nanogpt(options: argparse.Namespace, log: Path) -> Timed:
    command = nanogpt_command(options.steps, log.parent / CHECKPOINTS, {})
    child = checked(run_child(command, log, options.nanogpt, thread_variables(options)), "nanoGPT's train.py")
    seconds, loss = parse_nanogpt(child.output, options.steps)
    return Timed(child.seconds, seconds, loss)


def reevaluate_nanogpt(options: argparse.Namespace, log: Path) -> float | None:
    """Its own estimate over EVALUATION_BATCHES batches for its best checkpoint; not timed.

    train.py takes one more step after that, which nothing reads. None when a try of a few steps left no checkpoint.
    """
    checkpoints = log.parent / CHECKPOINTS
    if not (checkpoints / "ckpt.pt").exists():
        return None
    extra = {"init_from": "resume", "max_iters": 0, "eval_iters": EVALUATION_BATCHES}
    command = nanogpt_command(options.steps, checkpoints, extra)
    child = checked(run_child(command, log, options.nanogpt, thread_variables(options)), "nanoGPT's evaluation")
    return list(parse_evaluations(child.output).values())[-1]


def parse_evaluations(log: str) -> dict[int, float]:
    """step -> validation loss that train.py printed there; at least one."""
    found = re.findall(r"step (\d+): train loss \S+, val loss (\S+)", log)
    if not found:
        raise ChildFailed("nanoGPT printed no validation loss; is there a checkpoint, and is this its train.py?")
    return {int(step): float(loss) for step, loss in found}


def time_jielong(options: argparse.Namespace, folder: Path, num_steps: int) -> Timed:
    settings = [f"run.threads={options.threads}", f"pretrain.num_steps={num_steps}", *options.settings]
    if options.data_root is not None:
        settings.append(f"data.root={options.data_root}")
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = [*JIELONG, "run", str(RECIPE), "--out", str(folder), *arguments]
    log = folder.with_suffix(".log")
    child = checked(run_child(command, log, environment=thread_variables(options)), "jielong run")
    return Timed(child.seconds, *read_jielong(folder))


def read_jielong(folder: Path) -> tuple[float, float]:
    """(seconds of the training steps, loss on the whole validation text) of a finished run."""
    (metrics,) = folder.glob("*-pretrain/metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figures = read_report(folder)["stages"]["pretrain"]["figures"]
    return sum(step["seconds"] for step in steps), figures["heldout_loss_nats"]


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def thread_variables(options: argparse.Namespace) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}


@dataclass(frozen=True)
class Contender:
    """One column of the table: one training, repeated."""

    name: str
    num_steps: int
    runs: list[Timed]

    def median(self, field: str) -> float:
        return statistics.median(getattr(run, field) for run in self.runs)


def comparison(contenders: Sequence[Contender], their_loss: float | None) -> str:
    """The table, a column for each. their_loss: of nanoGPT's best checkpoint, estimated once more."""
    theirs = contenders[0].name == "nanoGPT"

    def line(label: str, field: str, per: Callable[[Contender], float] = lambda one: 1.0) -> list[str]:
        return [label, *(f"{one.median(field) / per(one):.2f}" for one in contenders)]

    def losses(label: str, value: Callable[[Contender], str], of_theirs: bool) -> list[str]:
        shown = (value(one) if (one.name == "nanoGPT") == of_theirs else "–" for one in contenders)
        return [f"validation loss, nats: {label}", *shown]

    rows = [
        ["steps", *(str(one.num_steps) for one in contenders)],
        line("whole process, seconds", "process_seconds"),
        line("training steps alone, seconds", "training_seconds"),
        line("a step, milliseconds", "training_seconds", lambda one: one.num_steps / 1000),
        losses("its estimate at the last step, 20 batches", lambda one: f"{one.runs[-1].loss_nats:.4f}", True),
        losses(f"its best checkpoint, {EVALUATION_BATCHES} batches", lambda one: optional(their_loss), True),
        losses("the whole validation text", lambda one: f"{one.runs[-1].loss_nats:.4f}", False),
    ]
    if theirs:
        whole = contenders[0].median("process_seconds")
        rows.insert(2, ["… of nanoGPT's", *(f"{one.median('process_seconds') / whole:.2f}" for one in contenders)])
    return markdown_table(["", *(one.name for one in contenders)], [row for row in rows if set(row[1:]) != {"–"}])


def optional(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def notes(options: argparse.Namespace, environment: dict[str, Any]) -> str:
    """What must be known to read the table."""
    return f"""Steps of {BATCH_ROWS} rows of {CONTEXT_TOKENS} characters; times are medians of {options.repeats}.
nanoGPT computes in float32 on a CPU, with the allocator as it comes; jielong in {environment.get("dtype", "?")}.
nanoGPT's losses are its own estimates over random batches. Its whole process includes its evaluations;
jielong's the curation, the tokenizer, the evaluations, the n-gram baselines and the report.
{machine(environment)}"""


def judge(ours: Contender, fewer: Contender, theirs: list[Timed]) -> list[tuple[str, bool]]:
    """What is promised: the loss of every repeat, and the median wall time of the whole process."""
    found = []
    for one in (ours, fewer):
        loss = max(run.loss_nats for run in one.runs)
        rule = f"{one.num_steps} steps: loss on the whole validation text {loss:.4f} ≤ {MAX_LOSS_NATS} nats"
        found.append((rule, loss <= MAX_LOSS_NATS))
    if theirs:
        other = statistics.median(run.process_seconds for run in theirs)
        for one, share in ((ours, 1.0), (fewer, MAX_SHARE)):
            mine = one.median("process_seconds")
            rule = f"{one.num_steps} steps: whole process {mine:.1f} s, at most {share:g} of nanoGPT's {other:.1f} s"
            found.append((rule, mine <= share * other))
    return found


def compare(options: argparse.Namespace) -> bool:
    """Run both in turns, print. True when what is promised holds."""
    out: Path = options.out
    theirs: list[Timed] = []
    their_loss = None
    ours, fewer = (Contender("jielong", steps, []) for steps in (options.steps, options.fewer_steps))
    if options.nanogpt is not None:
        root = data_root(str(options.data_root) if options.data_root else None)
        prepare_nanogpt(options.nanogpt, root, out / "nanogpt-prepare.log")
    for repeat in range(1, options.repeats + 1):
        print(f"repeat {repeat} of {options.repeats}; logs and runs are in {out}", flush=True)
        if options.nanogpt is not None:
            theirs.append(time_nanogpt(options, out / f"nanogpt-{repeat}.log"))
        for one in (ours, fewer):
            one.runs.append(time_jielong(options, out / f"jielong-{one.num_steps}-{repeat}", one.num_steps))
    if options.nanogpt is not None:
        their_loss = reevaluate_nanogpt(options, out / "nanogpt-evaluation.log")
    verdicts = judge(ours, fewer, theirs)
    report = read_report(out / f"jielong-{ours.num_steps}-1")
    columns = [Contender("nanoGPT", options.steps, theirs)] if theirs else []
    table = comparison([*columns, ours, fewer], their_loss)
    judged = "\n".join(f"{'holds' if holds else 'FAILS'}: {rule}" for rule, holds in verdicts)
    text = "\n\n".join([table, notes(options, report["environment"]), judged])
    print("\n" + text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    return all(holds for _, holds in verdicts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a copy of nanoGPT; without it only ours runs")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where tinyshakespeare/input.txt(.gz) lies")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000, help="fewer only to try the script")
    parser.add_argument("--fewer-steps", type=int, default=500, help=f"ours reaches {MAX_LOSS_NATS} nats with them")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmark-shakespeare"), help="a new folder (%(default)s)"
    )
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="as in jielong run"
    )
    options = parser.parse_args(arguments)
    if options.steps == options.fewer_steps:
        parser.error("--steps and --fewer-steps must differ")
    if options.out.exists():
        parser.error(f"{options.out} is there already; a run that finds finished stages is no measurement")
    options.out = options.out.absolute()
    options.out.mkdir(parents=True)
    try:
        return 0 if compare(options) else 1
    except ChildFailed as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
