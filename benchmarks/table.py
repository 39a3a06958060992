"""Markdown tables, and the machine in a line: what `jielong bench` prints with."""

from jielong.bench.table import machine, markdown_table

__all__ = ["machine", "markdown_table"]
