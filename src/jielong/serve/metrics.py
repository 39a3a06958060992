"""Counters of a server, as Prometheus reads them. All are touched by the event loop's thread only.

Source: the text exposition format 0.0.4 of Prometheus.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """A number for each combination of label values. kind "counter" only grows, "gauge" is set."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), kind: str = "counter") -> None:
        self.name, self.text, self.labels, self.kind = name, text, tuple(labels), kind
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, amount: float, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        self.values[labels] = value

    def lines(self) -> list[str]:
        lines = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} {self.kind}"]
        for values, number in sorted(self.values.items()):
            lines.append(f"{self.name}{_labelled(self.labels, values)} {number:.12g}")
        return lines


class Histogram:
    """How often a duration was at most so many seconds."""

    def __init__(self, name: str, text: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.text, self.bounds = name, text, tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def lines(self) -> list[str]:
        lines = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} histogram"]
        so_far = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            so_far += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{self.name}_sum {self.total:.12g}", f"{self.name}_count {so_far}"]


class Metrics:
    """What a server counts. Labels are names of our own: a path is that of a route, never what a client wrote."""

    def __init__(self) -> None:
        self.requests = Counter("jielong_http_requests_total", "HTTP requests answered.", ("path", "status"))
        self.tokens = Counter(
            "jielong_tokens_total", "Tokens read (prompt), found in the prefix cache, made.", ("kind",)
        )
        self.finished = Counter("jielong_sequences_total", "Sequences ended, by how they ended.", ("reason",))
        self.refused = Counter("jielong_guard_refusals_total", "Replies ended by the output guard.", ("rule",))
        self.disconnected = Counter("jielong_disconnects_total", "Clients that left before their answer was whole.")
        self.open = Counter("jielong_sequences_open", "Sequences that run or wait.", kind="gauge")
        self.first_token = Histogram("jielong_first_token_seconds", "From the request to the first token.")
        self.between_tokens = Histogram("jielong_between_tokens_seconds", "From one token of a sequence to the next.")
        self.request_seconds = Histogram("jielong_request_seconds", "From the request to the end of its answer.")
        for kind in ("prompt", "cached", "made"):
            self.tokens.add(0, kind)

    def render(self, engine: Mapping[str, float]) -> str:
        """All of it as text. engine: what the engine itself counts, told as jielong_engine_NAME."""
        lines = [line for one in vars(self).values() for line in one.lines()]
        for name, value in sorted(engine.items()):
            lines += [f"# HELP jielong_engine_{name} Of the engine.", f"# TYPE jielong_engine_{name} gauge"]
            lines.append(f"jielong_engine_{name} {value:.12g}")
        return "\n".join(lines) + "\n"


def _labelled(names: Sequence[str], values: Sequence[str]) -> str:
    """{path="/health",status="200"}, or nothing where there are no labels."""
    pairs = [f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
