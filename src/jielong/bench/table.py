"""Markdown tables, and the machine in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """One measurement: a table for people, the same figures for programs, and what must be known to read them.

    figures: one mapping a row, units in the names. holds: False when contenders that must agree did not.
    """

    title: str
    header: tuple[str, ...]
    rows: list[list[str]]
    figures: list[dict[str, Any]]
    note: str
    holds: bool = field(default=True)

    def markdown(self) -> str:
        return f"## {self.title}\n\n{markdown_table(self.header, self.rows)}\n\n{self.note}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def machine(environment: Mapping[str, Any]) -> str:
    """One line out of what jielong.runtime.environment, or a report, says about the machine."""
    parts = [
        str(environment.get("cpu", "unknown processor")),
        f"{environment.get('cores', '?')} cores, {environment.get('threads', '?')} threads",
        f"device {environment.get('device', '?')}",
        f"Python {environment.get('python', '?')}",
        f"torch {environment.get('torch', '?')}",
        f"allocator {'tuned' if environment.get('allocator_tuned') else 'as it comes'}",
    ]
    return ", ".join(parts)
