"""The verb `lens`: attention maps and the logit lens of one text, as files and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from jielong.lens.logits import LogitLens
    from jielong.model.transformer import Transformer
    from jielong.report.lens_page import Attention, Predictions
    from jielong.tokenizer.tokenizer import Tokenizer

MOST_TOKENS = 256
NUM_TOP = 5

EXAMPLES = (
    "Examples:  jielong lens runs/quickstart 'The capital of' --out look   then open look/lens.html  ·  "
    "jielong lens runs/quickstart/03-pretrain 'Tom met Anna. Tom met' --out look --layer 2 --head 1  ·  "
    "jielong lens opus-mt-en-de 'Good morning.' --target 'Guten Morgen.' --out look"
)


def lens(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a run folder: its last model.")],
    written: Annotated[str, typer.Argument(metavar="TEXT", help=f"What to look at; at most {MOST_TOKENS} tokens.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for attention.json, logits.json, lens.html.")],
    layer: Annotated[int | None, typer.Option(min=0, help="The layer of the large map, from 0.")] = None,
    head: Annotated[int | None, typer.Option(min=0, help="The head of the large map, from 0.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="TEXT", help="For a translator: what it has written so far of TEXT.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout.")] = False,
) -> None:
    """Look inside a model: where each head takes from, and what each layer would say next.

    Without --layer and --head the large map is that of the head which looks hardest at tokens other than the first and
    itself. A map is not an explanation; docs/lens.md says what it can and cannot tell.
    """
    from jielong.cli.models import find_model
    from jielong.folder import load
    from jielong.lens.attention import attention_maps

    found, say = find_model(model), Console(stderr=True, highlight=False)
    if found.note:
        say.print(found.note, style="dim", markup=False, soft_wrap=True)
    network, tokenizer = load(found.folder)
    tokens, source, notes = _read_text(network, tokenizer, written, target, found.folder)
    maps = attention_maps(network, *(None if ids is None else _tensor(ids) for ids in (tokens, source)))
    names = [_names(tokenizer, ids or []) for ids in (tokens, source)]
    attention = [_chosen(kind, weights, names, (layer, head)) for kind, weights in maps.items()]
    predictions = None
    if not network.config.decoder_layers or network.config.head != "lm":
        notes.append("no logit lens: it needs a decoder that predicts the next token")
    elif tokens is not None:
        predictions = _predict(network, tokenizer, tokens, source)
    for note in notes:
        say.print(note, style="yellow", markup=False, soft_wrap=True)
    files = _write(out, str(found.folder), written, attention, predictions)
    if as_json:
        record: dict[str, Any] = {"model": str(found.folder), "text": written, "files": files, "notes": notes}
        record |= {"tokens": _told(tokens, names[0]), "source": _told(source, names[1])}
        record |= {"heads": {maps.kind: _figures(maps) for maps in attention}}
        record |= {"next": _next(predictions) if predictions else None}
        print(json.dumps(record, ensure_ascii=False))
    else:
        _show(attention, predictions, files)


def _read_text(
    network: Transformer, tokenizer: Tokenizer, written: str, target: str | None, folder: Path
) -> tuple[list[int] | None, list[int] | None, list[str]]:
    """(tokens, source, notices). For an encoder-decoder the text is the source, and tokens are those of the target."""
    from jielong.errors import UsageError

    translates = network.config.encoder_layers > 0 and network.config.decoder_layers > 0
    if target is not None and not translates:
        raise UsageError("--target is for models with an encoder and a decoder; give this one a TEXT alone")
    ids = tokenizer.encode(written)
    if not ids:
        raise UsageError(f"TEXT is {written!r}, which has no tokens; give a text to look at")
    most, notes = min(MOST_TOKENS, network.config.max_length), list[str]()
    whole = _cut(tokenizer.prefix_ids, ids, tokenizer.suffix_ids, most, "TEXT", notes)
    if not translates:
        return whole, None, notes
    if target is None:
        notes.append("only the encoder is shown; --target TEXT gives the decoder something to have written")
        return None, whole, notes
    start = (_start_id(folder, tokenizer),)
    return _cut(start, tokenizer.encode(target), (), most, "--target", notes), whole, notes


def _cut(
    before: Sequence[int], ids: Sequence[int], after: Sequence[int], most: int, where: str, notes: list[str]
) -> list[int]:
    """All ids, those of the text cut so that they are at most `most`; a cut adds to the notices."""
    room = max(0, most - len(before) - len(after))
    if len(ids) > room:
        notes.append(f"{where} has {len(ids)} tokens; the first {room} are shown, more would not be readable here")
    return [*before, *ids[:room], *after]


def _start_id(folder: Path, tokenizer: Tokenizer) -> int:
    """What a decoder's row starts with: decoder_start_token_id of the folder, else bos, else pad."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if isinstance(found, dict) and isinstance(found.get("decoder_start_token_id"), int):
            return int(found["decoder_start_token_id"])
    return tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id


def _tensor(ids: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor(ids, dtype=torch.int64)


def _names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The tokens as people read them. A row of the embedding beyond the vocabulary shows its number."""
    return [tokenizer.name(token) if token < tokenizer.vocab_size else f"<{token}>" for token in ids]


def _chosen(
    kind: str, weights: Tensor, names: Sequence[Sequence[str]], wanted: tuple[int | None, int | None]
) -> Attention:
    """The maps of a kind with the head of their large map: the wanted one, or the most telling of what is left open."""
    from jielong.errors import UsageError
    from jielong.lens.attention import head_figures, telling_head
    from jielong.report.lens_page import Attention

    for name, number, size in zip(("layer", "head"), wanted, weights.shape[:2], strict=True):
        if number is not None and number >= size:
            raise UsageError(f"--{name} is {number}, but this model's {kind} has {size}; legal are 0 to {size - 1}")
    tokens, source = names
    queries, keys = {"decoder": (tokens, tokens), "cross": (tokens, source), "encoder": (source or tokens,) * 2}[kind]
    figures, (layer, head) = head_figures(kind, weights), wanted
    open_layers = slice(None) if layer is None else slice(layer, layer + 1)
    open_heads = slice(None) if head is None else slice(head, head + 1)
    most_layer, most_head = telling_head(figures.elsewhere[open_layers, open_heads])
    return Attention(kind, weights, figures, queries, keys, (most_layer + (layer or 0), most_head + (head or 0)))


def _predict(
    network: Transformer, tokenizer: Tokenizer, tokens: Sequence[int], source: Sequence[int] | None
) -> Predictions:
    from jielong.lens.logits import logit_lens
    from jielong.report.lens_page import Predictions

    found = logit_lens(network, _tensor(tokens), NUM_TOP, None if source is None else _tensor(source))
    top = [[_names(tokenizer, ids) for ids in row] for row in found.top_ids.tolist()]
    return Predictions(found, _names(tokenizer, tokens), top)


def _write(
    out: Path, model: str, written: str, attention: Sequence[Attention], predictions: Predictions | None
) -> dict[str, int]:
    """The files, each whole or not at all -> their sizes in bytes."""
    from jielong.config import write_atomic
    from jielong.report.lens_page import lens_page

    contents = {"attention.json": "".join(_attention_json(model, written, attention))}
    if predictions is not None:
        contents["logits.json"] = json.dumps(_logits_record(model, written, predictions), ensure_ascii=False)
    contents["lens.html"] = lens_page(model, written, attention, predictions)
    for name, content in contents.items():
        write_atomic(out / name, content)
    return {str(out / name): len(content.encode("utf-8")) for name, content in contents.items()}


def _attention_json(model: str, written: str, attention: Sequence[Attention]) -> Iterator[str]:
    """{"model", "text", KIND: {"queries", "keys", "shape", "heads", "weights"}}; weights[layer][head][query][key] with
    four decimals. In pieces, for a large model's lists would not fit as Python numbers.
    """
    start = json.dumps({"model": model, "text": written}, ensure_ascii=False)
    yield start[:-1]
    for maps in attention:
        head: dict[str, Any] = {"queries": list(maps.queries), "keys": list(maps.keys)}
        head |= {"shape": list(maps.weights.shape), "heads": _figures(maps)}
        yield f',\n"{maps.kind}": {json.dumps(head, ensure_ascii=False)[:-1]}, "weights": ['
        for number, layer in enumerate(maps.weights):
            yield ",\n" if number else "\n"
            yield json.dumps(layer.double().round(decimals=4).tolist(), separators=(",", ":"))
        yield "]}"
    yield "}\n"


def _figures(maps: Attention) -> dict[str, Any]:
    """Figures of all heads as lists [layer][head], and which head is shown large."""
    found: dict[str, Any] = {"shown": list(maps.chosen)}
    for name, values in vars(maps.figures).items():
        if values is not None:
            found[name] = values.double().round(decimals=4).tolist()
    return found


def _logits_record(model: str, written: str, predictions: Predictions) -> dict[str, Any]:
    """Entry [row][position] of top and entropies_nats is about what follows the position; the others about itself."""
    from jielong.report.lens_page import row_name

    found: LogitLens = predictions.lens
    return {
        "model": model,
        "text": written,
        "tokens": list(predictions.tokens),
        "rows": [row_name(row) for row in range(len(predictions.top))],
        "top": [[_candidates(predictions, row, t) for t in range(len(names))] for row, names in _rows(predictions)],
        "entropies_nats": found.entropies_nats.double().round(decimals=4).tolist(),
        "probabilities": found.probabilities.double().round(decimals=6).tolist(),
        "ranks": found.ranks.tolist(),
    }


def _rows(predictions: Predictions) -> Iterator[tuple[int, Sequence[Sequence[str]]]]:
    return enumerate(predictions.top)


def _candidates(predictions: Predictions, row: int, position: int) -> list[dict[str, Any]]:
    found = predictions.lens
    ids, chances = found.top_ids[row, position].tolist(), found.top_probabilities[row, position].tolist()
    names = predictions.top[row][position]
    return [
        {"text": name, "id": token, "probability": round(p, 6)}
        for name, token, p in zip(names, ids, chances, strict=True)
    ]


def _next(predictions: Predictions) -> dict[str, Any]:
    """Row -> its candidates after the last token."""
    from jielong.report.lens_page import row_name

    return {row_name(row): _candidates(predictions, row, -1) for row in range(len(predictions.top))}


def _told(ids: Sequence[int] | None, names: Sequence[str]) -> list[dict[str, Any]] | None:
    return None if ids is None else [{"id": token, "text": name} for token, name in zip(ids, names, strict=True)]


def _show(attention: Sequence[Attention], predictions: Predictions | None, files: dict[str, int]) -> None:
    """Tokens, the heads shown large, and the three likeliest next tokens of each layer at the last position."""
    from jielong.report.heatmap import shown
    from jielong.report.lens_page import in_words, row_name

    out = Console(highlight=False)
    for maps in attention:
        tokens = " ".join(shown(token) for token in maps.queries)
        layer, head = maps.chosen
        out.print(f"{maps.kind}: {len(maps.queries)} tokens: {tokens}", markup=False, soft_wrap=True)
        said = f"{maps.kind}: layer {layer}, head {head} has the large map: {in_words(maps, layer, head)}"
        out.print(said, markup=False, soft_wrap=True)
    for row in reversed(range(len(predictions.top))) if predictions else ():
        assert predictions is not None
        best = _candidates(predictions, row, -1)[:3]
        told = "   ".join(f"{100 * each['probability']:5.1f} % {shown(each['text']):<12}" for each in best)
        out.print(f"{row_name(row):>10}  {told}".rstrip(), markup=False, soft_wrap=True)
    for name, num_bytes in files.items():
        out.print(f"{num_bytes / 1e6:10.3f} MB  {name}", markup=False, soft_wrap=True)
