"""The verb `evaluate`: questions of the built-in world, and public benchmarks, asked of one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = (
    "Examples:  jielong evaluate runs/quickstart  ·  "
    "jielong evaluate runs/quickstart/04-sft --tasks arithmetic,translation --questions 50 --json  ·  "
    "jielong evaluate smollm --tasks hellaswag,lambada,blimp --limit 500 --data-root ../data  ·  "
    "jielong evaluate qwen --tasks gsm8k --shots 8 --samples 5 --temperature 0.7"
)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a run folder: its last model.")],
    tasks: Annotated[
        str, typer.Option(help="Names with commas between; all questions of the world when left out.")
    ] = "",
    questions: Annotated[int, typer.Option(min=1, help="World: held-out questions a task.")] = 100,
    world_seed: Annotated[
        int | None, typer.Option(help="World: its seed; known for a model inside its run folder.")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Benchmarks: worked examples before each question.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Benchmarks: only so many items, evenly spaced.")] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Benchmarks answered in writing: replies to each question; they vote.")
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the samples; 0 takes the likeliest token.")] = 0.0,
    chain_of_thought: Annotated[
        bool, typer.Option("--chain-of-thought/--no-chain-of-thought", help="Worked examples show their reasoning.")
    ] = True,
    max_new_tokens: Annotated[
        int | None, typer.Option("-n", "--max-new-tokens", min=1, help="Longest reply; the task's own when left out.")
    ] = None,
    data_root: Annotated[str | None, typer.Option(metavar="DIR", help="Where the benchmarks' files are.")] = None,
    overlap: Annotated[
        bool, typer.Option("--overlap/--no-overlap", help="Look for the items in the run's training text.")
    ] = True,
    items: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one JSON line an item.")] = None,
    seed: Annotated[int, typer.Option(help="Of the worked examples and the samples.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout.")] = False,
) -> None:
    """The task table of a model, with 95 % intervals and what chance would give.

    Tasks of the built-in world are questions that a chat answers; benchmarks (lambada, hellaswag, mmlu, gsm8k ...) are
    files under the data root. docs/evaluation.md lists them all.
    """
    from jielong.cli.engines import EngineChoice, find_engine
    from jielong.cli.tasks import Benchmarks, ask_benchmarks, ask_world, print_table, split_names
    from jielong.cli.verbs import console, messages
    from jielong.evaluate.asking import Asking

    world, benchmarks = split_names(tasks)
    asking = Asking(shots, limit, seed, samples, temperature, max_new_tokens, chain_of_thought)
    wanted = Benchmarks(benchmarks, asking, data_root, overlap, items)
    engine, found = find_engine(model, EngineChoice("jielong", device, None, seed), messages())
    record: dict[str, Any] = {"model": str(found.folder)}
    table: dict[str, dict[str, Any]] = {}
    if world:
        record["questions_per_task"] = questions
        table |= ask_world(engine, found, world, questions, max_new_tokens or 64, world_seed, messages())
    if benchmarks:
        table |= ask_benchmarks(engine, found, wanted, messages())
    if as_json:
        print(json.dumps({**record, "tasks": table}, ensure_ascii=False))
    else:
        print_table(table, console())
