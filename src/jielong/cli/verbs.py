"""The verbs. Imports that bring torch stand inside the verbs, so that `jielong --help` answers at once."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jielong import __version__
from jielong.cli import benching, evaluating, exporting, feedback, looking, serving, studies, translating
from jielong.config import wants_traceback
from jielong.errors import JielongError, UsageError
from jielong.launch import relaunch_with_allocator

NO_PLACE_TO_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)

app = typer.Typer(
    name="jielong",
    help="From raw text to an aligned chat on one machine.\n\n"
    "Start with:  jielong run recipes/quickstart.toml   then   jielong chat runs/quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a run folder: its last model.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as run.seed=1. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="Pack them for a CPU: auto (the fastest), float32, float16, bfloat16, int8, int4.", metavar="KIND"
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        metavar="jielong|llama.cpp",
        help="What decodes; llama.cpp's kernels need pip install 'jielong\\[llamacpp]', and take F32, F16 or Q8_0 "
        "(auto) as --weights.",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Equal seeds, equal texts.")]


def console() -> Console:
    return Console(highlight=False)


def messages() -> Console:
    """What is said beside the result goes to stderr, so that stdout can be piped."""
    return Console(stderr=True, highlight=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"jielong {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:  jielong run recipes/quickstart.toml  ·  "
    "jielong run recipes/novels-chat.toml --set data.root=../data --set run.seed=1 --out runs/novels-1  ·  "
    "jielong run my.toml --until pretrain"
)
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The recipe to run.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME when left out.")] = None,
    overrides: SetOption = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="The last stage to run.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while running.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: every stage in order. Finished stages are skipped, a stopped one goes on where it was."""
    relaunch_with_allocator()  # before torch is imported, which the lines below do
    from jielong.recipe import parse_recipe

    parsed = parse_recipe(recipe, overrides or [])  # a wrong recipe is told before the rest is loaded
    from jielong.stages.pipeline import run_recipe

    folder = out or Path("runs") / parsed.run.name
    try:
        report = run_recipe(recipe, out, overrides or [], until, quiet)
    except KeyboardInterrupt:
        messages().print(f"stopped; the same command goes on from {_stopped_at(folder)}", markup=False)
        raise typer.Exit(1) from None
    if not report:  # a process that does not lead: the one that does says it
        return
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
    elif not quiet:
        _print_report(report, folder)


def _stopped_at(folder: Path) -> str:
    """ "step 400 of pretrain": what a run of the same command will start with."""
    from jielong.train.checkpoint import latest_checkpoint

    for stage in sorted(folder.glob("[0-9][0-9]-*")):
        if not (stage / "DONE").exists():
            checkpoint = latest_checkpoint(stage / "checkpoints")
            step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
            return f"step {step} of {stage.name[3:]}"
    return "step 0"


def _print_report(report: dict[str, Any], folder: Path) -> None:
    from jielong.log import format_seconds
    from jielong.report.verdicts import verdicts
    from jielong.stages.evaluation import MODEL_KINDS

    signs = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "–"}
    width = max(len(name) for name in report["stages"])
    for name, stage in report["stages"].items():
        judged = verdicts(stage["kind"], stage["figures"])
        text = "; ".join(f"{signs[passed]} {rule}: {shown}" for rule, passed, shown in judged)
        console().print(f"{name:<{width}}  {format_seconds(stage['seconds']):>8}  {text}", soft_wrap=True)
    console().print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    if any(stage["kind"] in MODEL_KINDS and stage["kind"] != "pretrain" for stage in report["stages"].values()):
        console().print(f"chat:   jielong chat {folder}", markup=False, soft_wrap=True)
    _print_failed_rules(report)


def _print_failed_rules(report: dict[str, Any]) -> None:
    """One line for what did not prove itself. The exit code stays 0: a low figure is a result, not a failed run."""
    from jielong.report.verdicts import verdicts

    judged = [(name, *each) for name, one in report["stages"].items() for each in verdicts(one["kind"], one["figures"])]
    measured = [passed for _, _, passed, _ in judged if passed is not None]
    failed = [f"{name}: {rule}" for name, rule, passed, _ in judged if passed is False]
    if failed:
        text = f"{len(failed)} of {len(measured)} pass rules do not hold: {'; '.join(failed)}"
        console().print(text, style="yellow", markup=False, soft_wrap=True)


@app.command(
    epilog="Examples:  jielong plan recipes/quickstart.toml  ·  jielong plan gpt3-175b --on h100 --gpus 1024  ·  "
    "jielong plan recipes/gpt2-124m.toml --on rtx-4090  ·  jielong plan jie-124m --tokens 2.5e9 --vocab-size 50257"
)
def plan(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE.toml|PRESET|MODEL", help="A recipe, a preset's name, or a model folder.")
    ],
    overrides: SetOption = None,
    on: Annotated[str | None, typer.Option(metavar="DEVICE", help="Plan for it: a100-80gb, h100, rtx-4090 ...")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many of it.")] = None,
    flops: Annotated[
        float | None, typer.Option(metavar="FLOP/S", help="Speed of this machine; default: it is probed.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price an hour: of the device of --on, else of this one.")] = None,
    tokens: Annotated[float | None, typer.Option(help="With a preset or a model: tokens to train on.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=1, help="With a preset: size of the vocabulary.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="With a preset or a model: tokens a row.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a recipe or a model will cost: parameters, FLOPs, memory, hours, money, before anything runs."""
    from jielong.cli.planning import Options, format_sheet, is_recipe, plan_for_model, plan_for_recipe
    from jielong.recipe.costing import format_plan

    options = Options(flops, on, gpus, price, tokens, vocab_size, context)
    if is_recipe(name):
        found = plan_for_recipe(name, overrides or [], options)
    elif overrides:
        raise UsageError("--set is for recipes; with a preset or a model use --tokens, --vocab-size and --context")
    else:
        found = plan_for_model(name, options)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        console().print(format_plan(found) if is_recipe(name) else format_sheet(found), soft_wrap=False)


@app.command(
    epilog="Examples:  jielong chat runs/quickstart  ·  jielong chat runs/quickstart/04-sft/model --temperature 0  ·  "
    "echo 'What is 12 + 30?' | jielong chat runs/quickstart"
)
def chat(
    model: ModelArgument,
    system: Annotated[str, typer.Option(help="A system message to start with.")] = "",
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", min=1, help="Longest reply.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.7,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    weights: WeightsOption = "auto",
    engine: EngineOption = "jielong",
) -> None:
    """Talk with a model in the terminal. /help lists the commands; without a terminal, one turn a line from stdin."""
    from jielong.cli.chat import Conversation, talk
    from jielong.cli.engines import EngineChoice, find_engine
    from jielong.model.hf import read_provenance
    from jielong.tokenizer.chat import check_answers

    decoder, found = find_engine(model, EngineChoice(engine, device, weights, seed), messages())
    check_answers(decoder.tokenizer)
    if read_provenance(found.folder).get("kind") == "pretrain":
        messages().print("a base model: it continues text and has not learned to answer", style="yellow")
    conversation = Conversation(decoder, max_new_tokens, temperature, seed)
    conversation.reset(system)
    talk(conversation, messages())


@app.command(
    epilog="Examples:  jielong complete runs/quickstart/03-pretrain 'Once upon a' -n 40  ·  "
    "jielong complete runs/quickstart 'The capital of' -k 10 -n 0"
)
def complete(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(help="The beginning of a document.")],
    top: Annotated[int, typer.Option("-k", "--top", min=0, help="Show the k likeliest next tokens.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", min=0, help="Most new tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    weights: WeightsOption = None,
    engine: EngineOption = "jielong",
    as_json: JsonOption = False,
) -> None:
    """Continue a text; -k shows what the model expects next, with probabilities."""
    from jielong.cli.engines import EngineChoice, find_engine

    decoder, found = find_engine(model, EngineChoice(engine, device, weights, seed), messages())
    top_tokens = decoder.top_tokens(text, top) if top else []
    if as_json:
        made = decoder.generate([text], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)[0]
        record = {
            "model": str(found.folder),
            "text": made.text,
            "tokens": made.tokens,
            "logprobs_nats": made.logprobs,
            "finish_reason": made.finish_reason,
            "top": [{"text": piece, "id": token, "probability": p} for piece, token, p in top_tokens],
        }
        print(json.dumps(record, ensure_ascii=False))
        return
    for piece, token, probability in top_tokens:
        bar = "█" * round(30 * probability)
        console().print(f"{100 * probability:6.2f} %  {piece!r:<16} {token:>6}  {bar}", markup=False)
    if max_new_tokens:
        pieces = decoder.stream(text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        sys.stdout.write(text + next(pieces, ""))  # a text that is too long is refused before any of it is written
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()


app.command(epilog=translating.EXAMPLES)(translating.translate)
app.command(epilog=evaluating.EXAMPLES)(evaluating.evaluate)
app.command(epilog=looking.EXAMPLES)(looking.lens)
app.command(epilog=exporting.EXAMPLES)(exporting.export)
app.command(epilog=feedback.EXAMPLES)(feedback.feedback)
app.command(epilog=serving.EXAMPLES)(serving.serve)
app.command(epilog=studies.SEARCH_EXAMPLES)(studies.search)
app.command(epilog=studies.SCALING_EXAMPLES)(studies.scaling)
app.command(epilog=benching.EXAMPLES)(benching.bench)


def main() -> None:
    """The command `jielong`. Errors meant for the user become one message and an exit code; the rest are our bugs."""
    try:
        app()
    except JielongError as error:
        if wants_traceback():
            raise
        _fail(str(error), error.exit_code)
    except OSError as error:
        if wants_traceback() or error.errno not in NO_PLACE_TO_WRITE:
            raise
        _fail(f"{error.filename or 'writing'}: {error.strerror}; finished stages are kept, the same command goes on", 1)


def _fail(text: str, exit_code: int) -> None:
    say = messages()
    for number, line in enumerate(text.splitlines()):
        say.print("error:" if number == 0 else "      ", style="bold red", end=" ")
        say.print(line, markup=False, soft_wrap=True)
    sys.exit(exit_code)
