"""The verb `export`: a model folder as files for another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from jielong.export.export import Exported

EXAMPLES = (
    "Examples:  jielong export runs/quickstart quickstart-gguf --to gguf   for llama.cpp, Ollama, LM Studio  ·  "
    "jielong export runs/quickstart two --to two-files   then: python two/run.py  ·  "
    "jielong export runs/quickstart half --to hf --dtype bfloat16   for transformers and vLLM, at half the size"
)


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a run folder: its last model.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for the files.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="gguf|two-files|hf",
            help="gguf: one file for llama.cpp, with tokenizer and chat template. two-files: model.safetensors and a "
            "run.py that needs numpy only. hf: a Hugging Face folder.",
        ),
    ],
    kind: Annotated[
        str | None, typer.Option("--type", metavar="F32|F16|Q8_0", help="gguf: how weights are stored (F16)")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|bfloat16|float16", help="two-files, hf: how weights are stored (float32)"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of the same names in DIR.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout.")] = False,
) -> None:
    """Write a model for another program, and verify it by running it.

    The exported model gets the same prompts as ours, and its tokens are compared; only files that pass get their
    names. Exit code 1 when they differ: then nothing is left in DIR.
    """
    from jielong.cli.models import find_model
    from jielong.errors import UsageError
    from jielong.export.export import export_model

    if to == "gguf" and dtype is not None:
        raise UsageError(f"--dtype {dtype}: a GGUF's weights are chosen by --type (F32, F16, Q8_0)")
    if to != "gguf" and kind is not None:
        raise UsageError(f"--type {kind}: is for --to gguf; here --dtype (float32, bfloat16, float16) chooses")
    found = find_model(model)
    say = Console(stderr=True, highlight=False)
    if found.note:
        say.print(found.note, style="dim", markup=False, soft_wrap=True)
    made = export_model(found.folder, target, to, kind=kind or "F16", dtype=dtype or "float32", force=force)
    if as_json:
        told = {"stored_as": made.stored_as, "files_bytes": made.files, "verified": made.verdict.figures}
        print(json.dumps({"model": str(found.folder), "to": to, "folder": str(target), **told}, ensure_ascii=False))
    else:
        _show(made)


def _show(made: Exported) -> None:
    out = Console(highlight=False)
    for name, num_bytes in made.files.items():
        out.print(f"{num_bytes / 1e6:10.3f} MB  {made.folder / name}", markup=False, soft_wrap=True)
    out.print(f"verified {made.verdict.text}", markup=False, soft_wrap=True)
    if "run.py" in made.files:
        out.print(f"chat:   python {made.folder / 'run.py'}", markup=False, soft_wrap=True)
