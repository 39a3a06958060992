"""What a run says while it runs: metrics.jsonl for programs, one live display for people."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jielong.config import write_atomic

PLAIN_LINE_SECONDS = 10.0


class MetricsLog:
    """Append-only JSON lines, one object a step, flushed as they come: {"step": 3, "loss_nats": 2.5, ...}.

    Units are in the names. A value that is not finite is written as null, which JSON can hold.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, **values: Any) -> None:
        """Adds one line. Numbers may be one-element tensors."""
        record = {"step": int(step), **{name: _json_value(value) for name, value in values.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def truncate(self, step: int) -> None:
        """Drops lines of later steps than `step`, and a half-written last line: what a resumed run will write again."""
        if not self.path.exists():
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; [] when there is none. A line cut by a crash is left out."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:  # half a line, or half a character
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str | list | dict):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class Progress:
    """The display of a run: a strip of stages, and for the present one a bar, figures and the time left.

    On a terminal it is redrawn in place; otherwise it prints a plain line about every ten seconds. quiet: nothing.
    clock: seconds, monotonic; a parameter so that tests need not wait.
    """

    def __init__(
        self,
        stage_names: Sequence[str],
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._clock = clock
        self._state = {name: "waiting" for name in stage_names}
        self._notes: dict[str, str] = {}
        self._stage = ""
        self._total: int | None = None
        self._step = 0
        self._first: tuple[int, float] | None = None  # step and time of the first update: a resumed stage starts late
        self._shown: dict[str, Any] = {}
        self._began = self._last_line = clock()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._draw, refresh_per_second=3, redirect_stderr=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start(self, stage: str, total: int | None = None) -> None:
        """The stage begins; total: its number of steps, None when not known. May be called again with a new total."""
        if stage != self._stage:
            self._began = self._last_line = self._clock()
        self._state[stage] = "running"
        self._stage, self._total, self._step, self._first, self._shown = stage, total, 0, None, {}
        self._print_plain(f"{stage}: started" + (f", {total} steps" if total else ""))

    def update(self, step: int, total: int | None = None, **shown: Any) -> None:
        """step: steps done, of total. shown: figures by name, for example loss=2.31, tokens_per_second=21000."""
        now = self._clock()
        self._total = total or self._total
        if self._first is None:
            self._first = (step, now)
        self._step = step
        self._shown.update(shown)
        if self._live is None and now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            of_total = f"/{self._total}" if self._total else ""
            left = self.seconds_left()
            eta = f"  {format_seconds(left)} left" if left is not None else ""
            self._print_plain(f"{self._stage}: step {step}{of_total}  {format_shown(self._shown)}{eta}")

    def done(self, stage: str, seconds: float, note: str = "") -> None:
        """The stage is finished; note: its headline figure, in a few words."""
        self._state[stage] = "done"
        self._notes[stage] = f"{format_seconds(seconds)}  {note}".rstrip()
        self.say(f"✓ {stage}  {self._notes[stage]}")
        self._stage = ""

    def skip(self, stage: str) -> None:
        """The stage was finished by an earlier run of the same command."""
        self._state[stage] = "skipped"
        self.say(f"✓ {stage}  already done")

    def say(self, text: str) -> None:
        """A line that stays on the screen."""
        if self._quiet:
            return
        self._console.print(Text(text), highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Time to the end of the present stage at its mean pace, None while that is unknown."""
        if self._first is None or not self._total:
            return None
        steps, seconds = self._step - self._first[0], self._clock() - self._first[1]
        return seconds / steps * max(self._total - self._step, 0) if steps > 0 else None

    def _print_plain(self, text: str) -> None:
        if self._live is None:
            self.say(text)

    def _draw(self) -> Group:
        strip = Text()
        styles = {
            "done": ("✓", "green"),
            "skipped": ("✓", "dim"),
            "running": ("▶", "bold cyan"),
            "waiting": ("·", "dim"),
        }
        for name, state in self._state.items():
            mark, style = styles[state]
            strip.append(f"{mark} {name}   ", style=style)
        if not self._stage:
            return Group(strip)
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self._total, completed=self._step, width=28, pulse=self._total is None)
        left = self.seconds_left()
        row.add_row(
            Text(self._stage, style="bold"),
            bar,
            Text(f"{self._step}/{self._total}" if self._total else str(self._step)),
            Text(format_shown(self._shown)),
            Text(f"{format_seconds(self._clock() - self._began)} gone", style="dim"),
            Text(f"{format_seconds(left)} left" if left is not None else "", style="dim"),
        )
        return Group(strip, row)


def format_seconds(seconds: float) -> str:
    """4.2 s, 1:05, 2:03:09, 3.5 days."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.1f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_count(number: float) -> str:
    """950, 21.3k, 4.2M, 1.5G, 1.11P: three figures are enough to follow a run."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def format_shown(shown: dict[str, Any]) -> str:
    """loss=2.314, tokens_per_second=21340 -> "loss 2.31  21.3k tokens/s"."""
    parts = []
    for name, value in shown.items():
        if value is None:
            continue
        if isinstance(value, str):
            parts.append(f"{name} {value}")
        elif name.endswith("_per_second"):
            parts.append(f"{format_count(float(value))} {name.removesuffix('_per_second').replace('_', ' ')}/s")
        else:
            parts.append(f"{name.replace('_', ' ')} {format_count(float(value))}")
    return "  ".join(parts)
