"""lens.html: attention maps and the logit lens of one text, one file that needs nothing else and runs no script.

A map of the wall is a link to the large one of its head, which CSS shows as the page's target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from jielong.lens.attention import HeadFigures
from jielong.lens.logits import LogitLens
from jielong.report.heatmap import Frame, shown, store, thumbnail
from jielong.report.markup import section, table, text
from jielong.report.page import STYLE

TITLES = {
    "decoder": ("Attention", "Each row is a token and shows which tokens it takes from: itself and those before it."),
    "cross": ("Attention to the source", "Each row is a token of the target and shows what it takes from the source."),
    "encoder": ("Attention of the encoder", "Each row is a token and shows which tokens it takes from, on both sides."),
}
WIDEST_THUMBNAIL, NARROWEST_THUMBNAIL, WALL_PIXELS = 130, 44, 920
MOST_TOLD = 100_000  # with more weights than this only the chosen head says its own when pointed at
CAUTION = (
    "A map shows where a head takes from, not why the model says what it says: other maps can give the same output, "
    "what is taken has been mixed by the layers below, and what a head takes may be ignored above. The logit lens "
    "reads early layers with the norm and the vocabulary of the last; that they seem to say nothing may only mean that "
    "they speak another language. To know what matters, change something and see what the model then says."
)


@dataclass(frozen=True)
class Attention:
    """Maps of one kind. weights: (L, N, T, S). queries, keys: their tokens, T and S names. chosen: (layer, head)."""

    kind: str
    weights: Tensor
    figures: HeadFigures
    queries: Sequence[str]
    keys: Sequence[str]
    chosen: tuple[int, int]


@dataclass(frozen=True)
class Predictions:
    """The logit lens with the names of its tokens: tokens of the text, and top[row][position], k names each."""

    lens: LogitLens
    tokens: Sequence[str]
    top: Sequence[Sequence[Sequence[str]]]


def lens_page(model: str, written: str, attention: Sequence[Attention], predictions: Predictions | None) -> str:
    """The whole page. model: how the model is called; written: the text looked at."""
    pictures = {
        f"m-{maps.kind}-{layer}-{head}": weights
        for maps in attention
        for layer, heads in enumerate(maps.weights)
        for head, weights in enumerate(heads)
    }
    body = [
        '<p class="brand">jielong lens</p>',
        f'<h1>{text(model)}</h1><p class="text">{text(written)}</p>',
        store(pictures, "".join(_frame(maps).labels() for maps in attention)),
        *(_attention(maps) for maps in attention),
        _grid(predictions) if predictions else "",
        _at_the_end(predictions) if predictions else "",
        section("What this cannot tell", f"<p>{text(CAUTION)}</p>"),
    ]
    style = STYLE.read_text(encoding="utf-8") + STYLE.with_name("lens.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(model)} · jielong lens</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _attention(maps: Attention) -> str:
    """The wall of one kind and, below it, the large map of a head."""
    title, meaning = TITLES[maps.kind]
    num_layers, num_heads = maps.weights.shape[:2]
    size = max(NARROWEST_THUMBNAIL, min(WIDEST_THUMBNAIL, WALL_PIXELS // num_heads))
    head = "<th></th>" + "".join(f"<th>head {index}</th>" for index in range(num_heads))
    rows = "".join(
        f"<tr><th>layer {layer}</th>{''.join(_wall_cell(maps, layer, index) for index in range(num_heads))}</tr>"
        for layer in range(num_layers)
    )
    wall = f'<table class="wall" style="--thumb: {size}px"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    frame = _frame(maps)
    large = "".join(_large(maps, frame, layer, index) for layer in range(num_layers) for index in range(num_heads))
    legend = '<p class="note">weight 0 <span class="scale full"></span> 1, drawn by its square root. Choose a map.</p>'
    return section(
        title,
        f'<p class="note">{meaning}</p><div class="scroll">{wall}</div>{legend}<div class="stage">{large}</div>',
        maps.kind,
    )


def _wall_cell(maps: Attention, layer: int, head: int) -> str:
    name, css = f"{maps.kind}-{layer}-{head}", ' class="chosen"' if (layer, head) == maps.chosen else ""
    small = thumbnail(f"m-{name}", maps.weights[layer, head])
    told = f"layer {layer}, head {head}: {in_words(maps, layer, head)}"
    return f'<td><a href="#{name}"{css} title="{told}" aria-label="layer {layer}, head {head}">{small}</a></td>'


def _frame(maps: Attention) -> Frame:
    queries, keys = ([text(shown(token)) for token in tokens] for tokens in (maps.queries, maps.keys))
    return Frame(f"l-{maps.kind}", queries, keys)


def _large(maps: Attention, frame: Frame, layer: int, head: int) -> str:
    name, css = f"{maps.kind}-{layer}-{head}", "head first" if (layer, head) == maps.chosen else "head"
    title = f"layer {layer}, head {head}"
    tells = (layer, head) == maps.chosen or maps.weights.numel() <= MOST_TOLD
    drawn = frame.draw(f"m-{name}", maps.weights[layer, head], title, tells)
    caption = f'<figcaption><b>{title}</b><span class="note">{in_words(maps, layer, head)}</span></figcaption>'
    return f'<figure id="{name}" class="{css}">{caption}<div class="scroll">{drawn}</div></figure>'


def in_words(maps: Attention, layer: int, head: int) -> str:
    """ "to the first token 61 %, to itself 20 %, to the one before 5 %, entropy 1.20 nats"."""
    figures = maps.figures
    shares = (
        ("the first token", figures.to_first),
        ("itself", figures.to_self),
        ("the one before", figures.to_previous),
    )
    told = [f"to {name} {100 * float(share[layer, head]):.0f} %" for name, share in shares if share is not None]
    return ", ".join([*told, f"entropy {float(figures.entropy_nats[layer, head]):.2f} nats"])


def row_name(row: int) -> str:
    """What a row of the logit lens reads."""
    return "embedding" if row == 0 else f"layer {row - 1}"


def _grid(predictions: Predictions) -> str:
    """Rows from the last layer down to the embedding, a column a token: what each would say next."""
    tokens = [text(shown(token)) for token in predictions.tokens]
    num_rows = len(predictions.top)
    top = "<th>after</th>" + "".join(f"<th>{token}</th>" for token in tokens)
    rows = "".join(
        f"<tr><th>{row_name(row)}</th>{''.join(_grid_cell(predictions, row, t) for t in range(len(tokens)))}</tr>"
        for row in reversed(range(num_rows))
    )
    foot = "<th>really next</th>" + "".join(f"<th>{token}</th>" for token in tokens[1:]) + "<th>?</th>"
    grid = (
        f'<table class="grid"><thead><tr>{top}</tr></thead><tbody>{rows}</tbody><tfoot><tr>{foot}</tr></tfoot></table>'
    )
    note = (
        '<p class="note">The likeliest next token if the model had to speak after that layer. Probability 0 '
        '<span class="scale"></span> 1; framed where it is the token that really follows.</p>'
    )
    return section("Logit lens", f'{note}<div class="scroll">{grid}</div>', "logits")


def _grid_cell(predictions: Predictions, row: int, position: int) -> str:
    lens, names = predictions.lens, predictions.top[row][position]
    chances = lens.top_probabilities[row, position].tolist()
    lines = [f"{100 * p:.1f} % {shown(name)}" for name, p in zip(names, chances, strict=True)]
    lines.append(f"entropy {float(lens.entropies_nats[row, position]):.2f} nats")
    css = ""
    if position + 1 < len(predictions.tokens):
        rank, chance = int(lens.ranks[row, position + 1]), float(lens.probabilities[row, position + 1])
        lines.append(f"really next: {shown(predictions.tokens[position + 1])}, rank {rank}, {100 * chance:.1f} %")
        css = ' class="right"' if rank == 1 else ""
    told = text("\n".join(lines))
    return f'<td{css} style="--p: {chances[0]:.3f}" title="{told}">{text(shown(names[0]))}</td>'


def _at_the_end(predictions: Predictions) -> str:
    """What each layer would say after the whole text."""
    lens = predictions.lens
    rows = []
    for row in reversed(range(len(predictions.top))):
        chances = lens.top_probabilities[row, -1].tolist()
        said = " &ensp; ".join(
            f"{text(shown(name))} {100 * p:.1f} %" for name, p in zip(predictions.top[row][-1], chances, strict=True)
        )
        entropy = f"{float(lens.entropies_nats[row, -1]):.2f}"
        rows.append((row_name(row), f'<span class="said">{said}</span>', entropy))
    return section("After the last token", table(("after", "likeliest next tokens", "entropy (nats)"), rows), "next")
