"""Run a recipe: stages in order, each resumable, finished ones skipped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from jielong import __version__
from jielong.config import data_root, write_atomic
from jielong.errors import TrainingError, UsageError, nearest
from jielong.evaluate.tasks import check_present
from jielong.log import Progress
from jielong.recipe import Recipe, Stage, parse_recipe, write_toml
from jielong.recipe.costing import format_plan, plan_recipe
from jielong.report import Drawn, write_report
from jielong.runtime import Runtime, derive_seed, detect, environment, release_memory
from jielong.stages.alignment import run_policy
from jielong.stages.comparisons import run_reward
from jielong.stages.context import Context, clear_checkpoints, read_json, write_json
from jielong.stages.corpus import run_curate, run_tokenizer
from jielong.stages.evaluation import run_evaluate
from jielong.stages.finetuning import run_finetune
from jielong.stages.identity import (
    FileHashes,
    changed_file,
    fetched_inputs,
    made_hash,
    refuse_foreign,
    run_hash,
    stage_hash,
)
from jielong.stages.instruction import run_sft
from jielong.stages.masked import run_mlm
from jielong.stages.preferences import run_best_of_n, run_dpo
from jielong.stages.pretraining import run_pretrain
from jielong.stages.promotion import run_promote
from jielong.stages.translation import run_translate
from jielong.stages.votes import check_votes, keep_votes
from jielong.train.fp8 import check_fp8
from jielong.train.parallel import check_agreement, joined, told_when_lost, wait_for_all

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not kept apart
    fcntl = None  # type: ignore[assignment]

STAGES: dict[str, Callable[[Context], dict[str, Any]]] = {
    "curate": run_curate,
    "tokenizer": run_tokenizer,
    "pretrain": run_pretrain,
    "translate": run_translate,
    "sft": run_sft,
    "reward": run_reward,
    "ppo": run_policy,
    "grpo": run_policy,
    "dpo": run_dpo,
    "best_of_n": run_best_of_n,
    "promote": run_promote,
    "mlm": run_mlm,
    "finetune": run_finetune,
    "evaluate": run_evaluate,
}


ALONE = ("curate", "tokenizer", "promote", "evaluate")  # nothing is trained: one process does them, the others wait


def run_recipe(
    path: str | Path,
    out: str | Path | None = None,
    overrides: list[str] | None = None,
    until: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run every stage of a recipe and return the report that report.json holds.

    path: recipe file. out: run folder (default runs/NAME). overrides: "stage.key=value" settings.
    until: last stage to run.
    Stages that are finished with the same settings and inputs are skipped; a half-finished one goes on where it was.
    Under torchrun every process calls this; the one of rank 0 leads, writes the run folder and returns the report, the
    others return {}.
    Raises RecipeError before anything runs when the recipe is wrong, UsageError when the folder holds the run of
    another recipe or the processes were started differently.
    """
    recipe = parse_recipe(path, overrides or [])
    names = [stage.name for stage in recipe.stages]
    if until is not None and until not in names:
        close = nearest(until, names)
        raise UsageError(
            f"--until {until}: no such stage; legal: {', '.join(names)}"
            + (f"; did you mean {close!r}?" if close else "")
        )
    if until is not None:
        names = names[: names.index(until) + 1]
    folder = Path(out) if out is not None else Path("runs") / recipe.run.name
    for stage in recipe.stages:
        if stage.kind == "evaluate":  # before a model is trained for hours
            check_present(stage.settings.tasks, data_root(recipe.data.root))
    runtime = detect(recipe.run.device, recipe.run.dtype, recipe.run.threads, recipe.run.seed)
    if recipe.run.fp8:
        check_fp8(runtime)
    folders = {stage.name: folder / f"{index:02d}-{stage.name}" for index, stage in enumerate(recipe.stages, start=1)}
    with joined(runtime, recipe.run.layout()) as runtime, told_when_lost(runtime):
        check_agreement("recipe or code", f"{recipe.hash} {__version__} {until}", runtime)
        if runtime.process == 0:
            return _lead(recipe, names, folders, runtime, quiet)
        with Progress(names, quiet=True) as progress:
            for name in names:
                _run_stage(recipe, name, folders, runtime, progress)
                release_memory()
    return {}


def _lead(recipe: Recipe, names: list[str], folders: dict[str, Path], runtime: Runtime, quiet: bool) -> dict[str, Any]:
    """The run, in the process that owns its folder."""
    folder, drawn = next(iter(folders.values())).parent, Drawn()
    with _locked(folder):
        refuse_foreign(folder, recipe, runtime, folders)
        check_votes(recipe, names, folders)
        write_atomic(folder / "recipe.toml", write_toml(recipe))
        write_json(folder / "environment.json", environment(runtime))
        _print_plan(recipe, runtime, folder, quiet)
        with Progress(names, quiet=quiet) as progress:
            report = write_report(folder, drawn)  # a kill may have come between a stage and its report
            for name in names:
                if _run_stage(recipe, name, folders, runtime, progress):
                    report = write_report(folder, drawn)
                    release_memory()
    return report


def _print_plan(recipe: Recipe, runtime: Runtime, folder: Path, quiet: bool) -> None:
    """Say what the run will cost before it begins; the report sets plan.json beside what it did cost."""
    path = folder / "plan.json"
    if path.exists():
        return
    plan = plan_recipe(recipe, runtime)
    write_json(path, plan)
    if not quiet:
        Console(stderr=True).print(format_plan(plan))


def _run_stage(recipe: Recipe, name: str, folders: dict[str, Path], runtime: Runtime, progress: Progress) -> bool:
    """Run one stage unless its DONE file says that it is finished; returns whether there was something to do."""
    stage = next(stage for stage in recipe.stages if stage.name == name)
    folder, order = folders[name], list(folders)
    done = (folder / "DONE").exists()
    wait_for_all(runtime)  # all have looked before one may finish it
    if done:
        if runtime.process == 0:
            clear_checkpoints(folder)  # a kill may have come between DONE and this
        progress.skip(name)
        return False
    earlier = order[: order.index(name)]
    if runtime.process == 0:
        previous = made_hash(folders[earlier[-1]]) if earlier else run_hash(recipe, runtime)
        _begin(recipe, stage, folder, previous, progress)
    wait_for_all(runtime)
    context = Context(
        name=name,
        kind=stage.kind,
        settings=stage.settings,
        recipe=recipe,
        folder=folder if runtime.process == 0 else folder / f".process-{runtime.process}",
        home=folder,
        runtime=runtime,
        progress=progress,
        earlier={other: folders[other] for other in earlier},
        kinds={other.name: other.kind for other in recipe.stages},
    )
    # Dropout draws from torch's own generator; a checkpoint keeps its state.
    torch.manual_seed(derive_seed(context.seed, "dropout", runtime.rank))
    if runtime.process > 0:
        _follow(context)
        return True
    spent_file = folder / "seconds.json"
    before = read_json(spent_file)["seconds"] if spent_file.exists() else 0.0
    progress.start(name)
    started = time.monotonic()
    try:
        figures = STAGES[stage.kind](context)
    except TrainingError as error:
        raise TrainingError(f"[{name}] {error}") from error
    finally:
        seconds = before + time.monotonic() - started
        write_json(spent_file, {"seconds": seconds})
    wait_for_all(runtime)
    write_json(folder / "figures.json", {"kind": stage.kind, "seconds": seconds, "figures": figures})
    write_atomic(folder / "DONE", json.dumps({"hash": made_hash(folder)}) + "\n")
    clear_checkpoints(folder)  # no sooner: without them a stage that a kill left unfinished would be trained anew
    progress.done(name, seconds, "")
    return True


def _follow(context: Context) -> None:
    """A stage in a process that does not lead: the same work on its own share of the rows, and nothing is kept."""
    if context.kind not in ALONE:
        shutil.rmtree(context.folder, ignore_errors=True)
        context.folder.mkdir()
        try:
            STAGES[context.kind](context)
        finally:
            shutil.rmtree(context.folder, ignore_errors=True)
    wait_for_all(context.runtime)


def _begin(recipe: Recipe, stage: Stage, folder: Path, previous: str, progress: Progress) -> None:
    """Fetch what the stage reads and write down what it is made from; if it had begun with other files, clear it."""
    inputs = fetched_inputs(recipe, stage, FileHashes(folder.parent / "inputs.json"), progress.say)
    description = folder / "stage.json"
    changed = changed_file(read_json(description).get("inputs", {}), inputs) if description.exists() else None
    if changed is not None:
        progress.say(f"{stage.name}: {changed} has changed since this stage was stopped; it begins anew")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    inputs |= keep_votes(stage, folder, progress.say)
    content = {"name": stage.name, "kind": stage.kind, "hash": stage_hash(recipe, stage, inputs, previous)}
    write_json(description, {**content, "inputs": inputs})
    write_atomic(folder / "config.toml", write_toml(recipe, stage=stage.name))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; two runs in one folder would spoil each other."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder} is a file; --out must name a folder") from None
    with open(folder / ".lock", "w") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another jielong process is running in {folder}; wait for it or choose another --out"
            ) from None
        yield
