"""HTML pieces: escaped text, tables, numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from jielong.log import format_count, format_seconds

FRACTIONS = ("_rate", "_accuracy", "mfu", "accuracy")


def text(value: object) -> str:
    """Anything as escaped text."""
    return escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """A table of cells that are HTML already; cells that look like numbers stand to the right by CSS class."""
    top = "".join(f"<th>{text(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: str) -> str:
    is_number = cell[:1].isdigit() or cell[:2].lstrip("−-")[:1].isdigit()
    return f'<td class="n">{cell}</td>' if is_number else f"<td>{cell}</td>"


def section(title: str, body: str, anchor: str = "") -> str:
    """A section with its heading, or nothing for an empty body."""
    where = f' id="{text(anchor)}"' if anchor else ""
    return f"<section{where}><h2>{text(title)}</h2>{body}</section>" if body else ""


def folded(title: str, body: str) -> str:
    """Body behind a click."""
    return f"<details><summary>{text(title)}</summary>{body}</details>" if body else ""


def mark(passed: bool | None) -> str:
    """Check mark, cross, or dash for "not measured"."""
    css, sign, word = {
        True: ("pass", "✓", "passed"),
        False: ("fail", "✗", "failed"),
        None: ("open", "–", "not measured"),
    }[passed]
    return f'<span class="{css}" title="{word}">{sign}</span>'


def number(name: str, value: Any) -> str:
    """A figure as people read it, by the unit in its name; escaped."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and len(value) == 2:
        return f"{number(name.removesuffix('_ci95'), value[0])} – {number(name.removesuffix('_ci95'), value[1])}"
    if not isinstance(value, int | float):
        return text(value)
    if name.endswith(FRACTIONS) or name.endswith("_length_controlled"):
        return f"{100 * value:.1f} %"
    if name.endswith("seconds"):
        return format_seconds(float(value))
    if name.endswith("_bytes"):
        return f"{format_count(float(value))}B"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1_000_000 else format_count(value)
    if abs(value) >= 1e6:
        return format_count(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def label(name: str) -> str:
    """heldout_loss_nats -> "heldout loss (nats)"."""
    for unit in ("nats_per_reply", "nats_per_token", "bits_per_byte", "nats", "tokens_per_second", "seconds", "bytes"):
        stem, found, rest = name.partition(f"_{unit}")
        if found:
            return text(f"{stem.replace('_', ' ')}{rest.replace('_', ' ')} ({unit.replace('_', ' ')})")
    return text(name.replace("_ci95", " (95 % interval)").replace("_", " "))


def figures_table(figures: dict[str, Any]) -> str:
    """All figures of a stage; those that are tables themselves follow below."""
    flat = [(name, value) for name, value in figures.items() if not isinstance(value, dict)]
    nested = [(name, value) for name, value in figures.items() if isinstance(value, dict) and value]
    parts = [table(("figure", "value"), [(label(name), number(name, value)) for name, value in flat])] if flat else []
    for name, value in nested:
        if all(isinstance(inner, dict) for inner in value.values()):
            columns = list(value)
            keys = list(dict.fromkeys(key for inner in value.values() for key in inner))
            rows = [(text(key), *(_as_figure(name, value[c].get(key)) for c in columns)) for key in keys]
            parts.append(table((name.replace("_", " "), *columns), rows))
        else:
            rows = [(text(key), _as_figure(name, inner)) for key, inner in value.items()]
            parts.append(table((name.replace("_", " "), ""), rows))
    return '<div class="figures">' + "".join(parts) + "</div>" if parts else ""


def _as_figure(name: str, value: Any) -> str:
    """A value inside a table of figures: the table's name tells the unit."""
    if not name.startswith("exact_match"):
        return number(name, value)
    if isinstance(value, list):
        return " – ".join(f"{100 * part:.0f}" for part in value) + " %"
    return "–" if value is None else f"{100 * value:.0f} %"
