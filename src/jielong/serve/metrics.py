"""Counters of a server, as Prometheus reads them. All are touched by the event loop's thread only.

Source: the text exposition format 0.0.4 of Prometheus.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
_NONE: Labels = {}


class Counter:
    """A number for each combination of label values. kind "counter" only grows, "gauge" is set."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), kind: str = "counter") -> None:
        self.name, self.text, self.labels, self.kind = name, text, tuple(labels), kind
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, amount: float, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        self.values[labels] = value

    def samples(self, more: Labels = _NONE) -> list[str]:
        """A line for each number. more: labels that all of them have beside their own."""
        return [
            f"{self.name}{_labelled({**more, **dict(zip(self.labels, values, strict=True))})} {number:.12g}"
            for values, number in sorted(self.values.items())
        ]


class Histogram:
    """How often a duration was at most so many seconds."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.text, self.bounds = name, text, tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def samples(self, more: Labels = _NONE) -> list[str]:
        """A line for each bound, the sum and the count. more: labels that all of them have."""
        lines, so_far = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            so_far += count
            lines.append(f"{self.name}_bucket{_labelled({**more, 'le': bound})} {so_far}")
        labels = _labelled(more)
        return [*lines, f"{self.name}_sum{labels} {self.total:.12g}", f"{self.name}_count{labels} {so_far}"]


class ModelMetrics:
    """What is counted of each model by itself. model: its name, which is a label of all of these."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.tokens = Counter(
            "jielong_tokens_total", "Tokens read (prompt), found in the prefix cache, made.", ("kind",)
        )
        self.finished = Counter("jielong_sequences_total", "Sequences ended, by how they ended.", ("reason",))
        self.open = Counter("jielong_sequences_open", "Sequences that run or wait.", kind="gauge")
        self.first_token = Histogram("jielong_first_token_seconds", "From the request to the first token.")
        self.between_tokens = Histogram("jielong_between_tokens_seconds", "From one token of a sequence to the next.")
        for kind in ("prompt", "cached", "made"):
            self.tokens.add(0, kind)

    @property
    def all(self) -> tuple[Counter | Histogram, ...]:
        return self.tokens, self.finished, self.open, self.first_token, self.between_tokens


class Metrics:
    """What a server counts. Labels are names of our own: a path is that of a route, a model one of those served; never
    what a client wrote. models: their names, in the order of the server's table.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self.requests = Counter("jielong_http_requests_total", "HTTP requests answered.", ("path", "status"))
        self.refused = Counter("jielong_guard_refusals_total", "Replies ended by the output guard.", ("rule",))
        self.disconnected = Counter("jielong_disconnects_total", "Clients that left before their answer was whole.")
        self.request_seconds = Histogram("jielong_request_seconds", "From the request to the end of its answer.")
        self.of = {name: ModelMetrics(name) for name in models}

    def render(self, engines: Mapping[str, Mapping[str, float]]) -> str:
        """All of it as text. engines: model -> what its engine itself counts, told as jielong_engine_NAME."""
        lines: list[str] = []
        for one in (self.requests, self.refused, self.disconnected, self.request_seconds):
            lines += [*_heading(one.name, one.text, one.kind), *one.samples()]
        for same in zip(*(model.all for model in self.of.values()), strict=True):
            lines += _heading(same[0].name, same[0].text, same[0].kind)
            for name, one in zip(self.of, same, strict=True):
                lines += one.samples({"model": name})
        for counted in sorted({counted for counts in engines.values() for counted in counts}):
            lines += _heading(f"jielong_engine_{counted}", "Of the engine.", "gauge")
            for name, counts in engines.items():
                if counted in counts:  # a translator counts less than a decoder
                    lines.append(f"jielong_engine_{counted}{_labelled({'model': name})} {counts[counted]:.12g}")
        return "\n".join(lines) + "\n"


def _heading(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labelled(labels: Labels) -> str:
    """{path="/health",status="200"}, or nothing where there are no labels."""
    pairs = [f'{name}="{_escape(value)}"' for name, value in labels.items()]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
