"""Many clients at once, a third of which leave: the parts of the benchmark in miniature, against a server in here."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Running


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("serve_load")


@pytest.fixture
def options(load: ModuleType) -> Any:
    small = ["--soak-requests", "120", "--workers", "12", "--kinds", "9", "--patience", "0.05", "--requests", "3"]
    return load.options_of(["model", *small, "--many", "24", "--tokens", "10"])


def test_soak(load: ModuleType, options: Any, live: Running) -> None:
    """Nothing lost, nothing mixed up, nothing left behind; and a mixed-up answer would be seen."""
    (told, *held) = load.soak(load.Server(os.getpid(), live.port), options)
    counts = dict(part.rsplit(" ", 1) for part in told[1].split(", "))
    assert int(counts["lost"]) == int(counts["mixed up"]) == 0
    assert int(counts["whole"]) >= 60 and sum(map(int, counts.values())) == 120
    assert told[2] == "rows free at the end"
    if held:
        early = {row[0]: float(row[2].split()[0].replace(",", "")) for row in held}
        late = {row[0]: float(row[1].replace(",", "")) for row in held}
        assert late["soak: descriptors"] <= early["soak: descriptors"] + 8
        assert late["soak: threads"] <= early["soak: threads"] + 2


def test_a_mixed_up_answer_is_seen(
    load: ModuleType, options: Any, live: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load.ask
    asked: list[Any] = []

    async def ask(port: int, body: Any, leave_after: float | None = None) -> Any:
        asked.append(body)
        heard = await real(port, body)
        if len(asked) == 50:
            heard.text = heard.text[:-1] + "#"
        return heard

    monkeypatch.setattr(load, "ask", ask)
    assert "mixed up 1" in load.soak(load.Server(os.getpid(), live.port), options)[0][1]


def test_many_streams_and_one_after_the_other(load: ModuleType, options: Any, live: Running) -> None:
    whole, first, between = load.many(load.Server(0, live.port), options)
    assert (
        whole[:2] == ["24 streams: answered whole", "24"] and first[1].endswith(" ms") and between[2].startswith("p99")
    )
    assert len(load.first(load.Server(0, live.port), options)) == 2
    assert load.Server(1 << 30, 0).held() == {}
