"""docs/models.md is held to the presets: every one in both tables, every number as counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jielong.model.presets import PRESETS, preset_config
from jielong.plan.count import active_parameters, count_parameters
from jielong.plan.hardware import find_device
from jielong.plan.sheet import model_sheet

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
PUBLISHED = [name for name in PRESETS if not name.startswith("jie-")]


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def shown_row(name: str) -> str:
    config = preset_config(name)
    parameters, active = sum(count_parameters(config).values()), sum(active_parameters(config).values())
    layers = "+".join(str(number) for number in (config.encoder_layers, config.decoder_layers) if number)
    heads = f"{config.num_heads}" + (f"/{config.num_kv_heads}" if config.num_kv_heads != config.num_heads else "")
    used = f" ({active:,} used)" if active != parameters else ""
    return (
        f"| `{name}` | {layers} | {config.width} | {heads} of {config.head_size} | {config.ffn_width} | "
        f"{config.vocab_size:,} | {config.max_length:,} | {parameters:,}{used} |"
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_is_as_counted(name: str) -> None:
    assert shown_row(name) in section("Sizes").splitlines()


def test_every_preset_stands_in_the_family() -> None:
    rows = section("The family").splitlines()
    named = re.findall(r"`([\w.-]+)`", " ".join(row.split("|")[2] for row in rows if row.startswith("| ")))
    assert sorted(named) == sorted(PRESETS)


def test_fields_of_the_family_are_fields() -> None:
    fields = set(preset_config("gpt1").__dict__)
    rows = [row.split("|") for row in section("The family").splitlines() if row.startswith("| ")][1:]
    for _, system, presets, differing, *_ in rows:
        named = set(re.findall(r"`(\w+)`", differing))
        assert named <= fields, system
        for name in re.findall(r"`([\w.-]+)`", presets):
            assert named & set(PRESETS[name]) or "none" in differing or "as GPT" in differing, (system, name)


def test_parts_of_the_175b() -> None:
    parts = count_parameters(preset_config("gpt3-175b"))
    rows = section("Where 175 billion parameters are")
    for name, number in parts.items():
        if number:
            assert f"| {name} | {number:,} | {100 * number / sum(parts.values()):.2f} % |" in rows


def test_planned_hours_are_as_planned() -> None:
    rows = re.findall(r"\| ([\d.]+)([kM]) \| `jielong plan ([\w.-]+) --on ([\w-]+)(?: --context (\d+))?` \|", PAGE)
    assert len(rows) == 4
    tokens = {"llama-2": 2e12, "llama-3": 15e12}
    for number, unit, name, device, context in rows:
        sheet = model_sheet(
            preset_config(name), row_tokens=int(context or 4096), tokens=tokens[name[:7]], devices=[find_device(device)]
        )
        shown = float(number) * {"k": 1e3, "M": 1e6}[unit]
        assert sheet["hardware"][0]["device_hours"] == pytest.approx(shown, rel=0.005)
