"""The command line: `jielong VERB`. Thin; what it does is done on the floors below."""

from jielong.cli.verbs import main

__all__ = ["main"]
