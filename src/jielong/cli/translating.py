"""The verb `translate`: a line in, its translation out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from jielong.generate.beam import BeamConfig
    from jielong.generate.translator import Translation, Translator

LINES_AT_ONCE = 256

EXAMPLES = (
    "Examples:  jielong translate runs/tatoeba-zh-en '我爱你'  ·  "
    "jielong translate runs/multi30k-en-de --file news.en > news.de  ·  "
    "echo 'A dog runs.' | jielong translate runs/multi30k-en-de --nbest 4"
)


def translate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a run folder: its last model.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="A sentence; without it, lines of stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="F", help="Translate the lines of this file.")] = None,
    beam: Annotated[int, typer.Option(min=1, help="How many beginnings are kept at each step; 1 is greedy.")] = 4,
    num_best: Annotated[int, typer.Option("--nbest", min=1, help="Show so many translations, with scores.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Above 0 favours longer translations.")] = 0.6,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Translate text with an encoder-decoder: one line in, one line out.

    With --nbest N each line gives N lines: score, a tab, the text.
    """
    from jielong.cli.models import find_model
    from jielong.errors import UsageError
    from jielong.folder import load_translator
    from jielong.generate.beam import BeamConfig
    from jielong.generate.translator import Translator

    if text is not None and file is not None:
        raise UsageError("TEXT and --file are both given; translate one of them")
    config = BeamConfig(max(beam, num_best), length_penalty, num_best=num_best)
    found = find_model(model)
    if found.note:
        Console(stderr=True, highlight=False).print(found.note, style="dim", markup=False, soft_wrap=True)
    translator = Translator(*load_translator(found.folder))
    lines = iter([text]) if text is not None else _lines(file)
    for number, line, translations in _translated(translator, lines, config):
        if as_json:
            print(json.dumps({"line": number, "text": line, "translations": _told(translations)}, ensure_ascii=False))
        elif num_best == 1:
            print(translations[0].text)
        else:
            print("\n".join(f"{one.score:.4f}\t{one.text}" for one in translations))
        sys.stdout.flush()


def _lines(file: Path | None) -> Iterator[str]:
    """The lines of a file, or of stdin, without their ends. Raises DataError where they cannot be read."""
    from jielong.data.formats import lines
    from jielong.errors import DataError

    if file is None:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    if not file.is_file():
        raise DataError(f"--file {file}: there is no such file")
    yield from (line.rstrip("\r\n") for _, line in lines(file))


def _translated(
    translator: Translator, lines: Iterator[str], config: BeamConfig
) -> Iterator[tuple[int, str, list[Translation]]]:
    """(number of the line, it, its translations), in the order of the lines; many at once, where there are many."""
    number = 0
    at_once = 1 if sys.stdin.isatty() else LINES_AT_ONCE  # someone who types waits for an answer
    while True:
        chunk = [line for line, _ in zip(lines, range(at_once), strict=False)]
        if not chunk:
            return
        for line, translations in zip(chunk, translator.translate(chunk, config), strict=True):
            number += 1
            yield number, line, translations


def _told(translations: list[Translation]) -> list[dict[str, Any]]:
    return [{"text": one.text, "score": one.score, "logprob_nats": one.logprob} for one in translations]
