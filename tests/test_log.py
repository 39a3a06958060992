"""metrics.jsonl survives crashes; the display tells what it is given, at the pace it should."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from jielong.log import MetricsLog, Progress, format_count, format_seconds, format_shown, read_metrics


def test_metrics_come_back_as_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl")
    log.write(1, loss_nats=2.5, note="学", values=[1, 2])
    log.write(2, loss_nats=torch.tensor(1.25), bad=math.nan)
    assert read_metrics(log.path) == [
        {"step": 1, "loss_nats": 2.5, "note": "学", "values": [1, 2]},
        {"step": 2, "loss_nats": 1.25, "bad": None},
    ]


def test_no_file_is_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    MetricsLog(tmp_path / "metrics.jsonl").truncate(3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_truncate_drops_later_steps_and_half_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.write(step, loss=float(step))
    with log.path.open("ab") as file:
        file.write('{"step": 6, "note": "学'.encode()[:-1])  # a crash in the middle of a character
    assert [record["step"] for record in read_metrics(log.path)] == [1, 2, 3, 4, 5]
    log.truncate(3)
    log.write(4, loss=9.0)
    assert [(record["step"], record["loss"]) for record in read_metrics(log.path)] == [(1, 1), (2, 2), (3, 3), (4, 9)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_plain_lines_come_every_ten_seconds(clock: Clock) -> None:
    console = plain_console()
    with Progress(["curate", "pretrain"], console=console, clock=clock) as progress:
        progress.skip("curate")
        progress.start("pretrain", 100)
        for step in range(1, 26):
            clock.now += 1.0
            progress.update(step, loss=2.0, tokens_per_second=21340.0)
        progress.done("pretrain", 25.0, "below the 5-gram")
    assert printed(console) == [
        "✓ curate  already done",
        "pretrain: started, 100 steps",
        "pretrain: step 10/100  loss 2  21.3k tokens/s  1:30 left",
        "pretrain: step 20/100  loss 2  21.3k tokens/s  1:20 left",
        "✓ pretrain  25.0 s  below the 5-gram",
    ]


def test_time_left_counts_from_where_a_resumed_stage_began(clock: Clock) -> None:
    progress = Progress(["pretrain"], quiet=True, clock=clock)
    progress.start("pretrain", 1000)
    progress.update(900)
    assert progress.seconds_left() is None
    clock.now = 10.0
    progress.update(950)
    assert progress.seconds_left() == pytest.approx(10.0)  # 50 steps took 10 s, 50 are left


def test_total_may_be_told_with_the_step(clock: Clock) -> None:
    progress = Progress(["pretrain"], quiet=True, clock=clock)
    progress.start("pretrain")
    progress.update(1, total=3)
    clock.now = 1.0
    progress.update(2)
    assert progress.seconds_left() == pytest.approx(1.0)


def test_quiet_says_nothing(clock: Clock) -> None:
    console = plain_console()
    with Progress(["a"], quiet=True, console=console, clock=clock) as progress:
        progress.start("a", 2)
        clock.now = 60.0
        progress.update(1, loss=1.0)
        progress.say("hello")
        progress.done("a", 1.0)
    assert printed(console) == []


def test_live_display_shows_strip_and_step(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    with Progress(["curate", "pretrain"], console=console, clock=clock) as progress:
        progress.start("pretrain", 10)
        progress.update(4, loss=1.5)
    shown = "\n".join(printed(console))
    assert "▶ pretrain" in shown and "· curate" in shown and "4/10" in shown and "loss 1.5" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.24, "4.2 s"), (59.97, "60.0 s"), (65, "1:05"), (7389.4, "2:03:09"), (302400, "3.5 days")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(950, "950"), (21340, "21.3k"), (4.2e6, "4.2M"), (1.11e15, "1.11P"), (0.5, "0.5")]
)
def test_format_count(number: float, text: str) -> None:
    assert format_count(number) == text


def test_format_shown_leaves_none_out() -> None:
    assert format_shown({"loss": 2.314, "model": "sft", "gold": None}) == "loss 2.31  model sft"
