"""What `jielong plan` plans, from its options, and how a model's sheet looks on a terminal of 80 columns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jielong.cli.models import find_model
from jielong.errors import ModelError, UsageError, nearest
from jielong.log import format_count, format_seconds
from jielong.model.config import ModelConfig
from jielong.model.hf import read_config
from jielong.model.presets import PRESETS, TRAINED_ON, preset_config
from jielong.plan.hardware import DEVICES, Device, find_device, this_machine
from jielong.plan.sheet import TOKENS_A_PARAMETER, model_sheet
from jielong.recipe import parse_recipe
from jielong.recipe.costing import plan_recipe
from jielong.runtime import Runtime, detect

VOCAB_SIZE, CONTEXT_TOKENS = 4096, 512  # of our own presets, which leave both to the data
ROW_TOKENS = 4096  # rows of a published model that could read longer ones
NARROW = 1024  # narrower models do not fill a large card


@dataclass(frozen=True)
class Options:
    """The options of the verb; None for what was not given."""

    flops: float | None = None
    on: str | None = None
    num_devices: int | None = None
    price: float | None = None
    tokens: float | None = None
    vocab_size: int | None = None
    context_tokens: int | None = None

    def check(self) -> None:
        """Raises UsageError for options that leave one another without effect, and for numbers that are none."""
        if self.on is not None and self.flops is not None:
            raise UsageError("--flops is the speed of this machine, which --on leaves without effect; give one of them")
        for name, value in (("--flops", self.flops), ("--tokens", self.tokens)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} is {value}; it must be above 0")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise UsageError(f"--price is {self.price}; it must be 0 or more")


def is_recipe(name: str) -> bool:
    """Whether `name` means a recipe file: by its ending, or because there is such a file."""
    return name.endswith(".toml") or Path(name).is_file()


def plan_for_recipe(path: str, overrides: list[str], options: Options) -> dict[str, Any]:
    """The plan of a recipe, on this machine or on the device of --on."""
    options.check()
    for name, value in (
        ("--tokens", options.tokens),
        ("--vocab-size", options.vocab_size),
        ("--context", options.context_tokens),
    ):
        if value is not None:
            raise UsageError(f"{name} is for presets and model folders: a recipe says it itself; use --set")
    if options.num_devices is not None and options.on is None:
        raise UsageError("--gpus has no effect without --on: a recipe is planned for this machine")
    parsed = parse_recipe(path, overrides)
    runtime = detect(parsed.run.device, parsed.run.dtype, parsed.run.threads, parsed.run.seed)
    device = find_device(options.on) if options.on is not None else None
    found = plan_recipe(parsed, runtime, options.flops, device, options.num_devices or 1)
    price = options.price
    if price is None and device is not None:
        price = device.price_an_hour
    if price is not None:
        found["price"] = found["totals"]["seconds"] / 3600 * price * (options.num_devices or 1)
    return found


def plan_for_model(name: str, options: Options, runtime: Runtime | None = None) -> dict[str, Any]:
    """The sheet of a preset, or of the model in a folder.

    Raises UsageError for a name that is neither, ModelError for a folder that cannot be read.
    """
    options.check()
    published, config = _config(name, options)
    row_tokens = options.context_tokens or min(config.max_length, ROW_TOKENS)
    tokens = options.tokens or TRAINED_ON.get(name if published else "")
    sheet = model_sheet(
        config,
        row_tokens=row_tokens,
        tokens=tokens,
        devices=_devices(config, options, runtime or detect()),
        num_devices=options.num_devices,
    )
    origin = "given" if options.tokens else "published" if tokens else f"{TOKENS_A_PARAMETER} a parameter"
    return {"name": name, **sheet, "tokens_are": origin}


def _config(name: str, options: Options) -> tuple[bool, ModelConfig]:
    """Whether it is a preset, and the config; a greater --context than the model's makes a model for it."""
    if name in PRESETS:
        own = "vocab_size" not in PRESETS[name]
        vocab_size = options.vocab_size or (VOCAB_SIZE if own else None)
        least = options.context_tokens or (CONTEXT_TOKENS if own else 0)
        return True, preset_config(name, vocab_size, max(least, PRESETS[name].get("max_length", 0)))
    if not Path(name).is_dir():
        guess = nearest(name, PRESETS)
        hint = f"; did you mean {guess}?" if guess else ""
        raise UsageError(
            f"{name}: neither a recipe (.toml) nor a preset nor a model folder{hint} (presets: {', '.join(PRESETS)})"
        )
    if options.vocab_size is not None:
        raise UsageError("--vocab-size is for presets: a model folder has its vocabulary")
    config = read_config(find_model(name).folder)
    if options.context_tokens is not None and options.context_tokens > config.max_length:
        raise ModelError(f"{name}: --context is {options.context_tokens}; the model reads at most {config.max_length}")
    return False, config


def _devices(config: ModelConfig, options: Options, runtime: Runtime) -> list[Device]:
    """This machine and all others, or the one of --on, at the price of --price."""
    if options.on is None:
        here = this_machine(config, runtime, options.flops)
        return [dataclasses.replace(here, price_an_hour=options.price), *DEVICES.values()]
    device = find_device(options.on)
    return [device if options.price is None else dataclasses.replace(device, price_an_hour=options.price)]


def format_sheet(sheet: dict[str, Any]) -> Group:
    """The sheet as tables for the terminal."""
    blocks: list[RenderableType] = [
        Text(_headline(sheet)),
        _parts(sheet["model"]),
        *(Text(line) for line in _operations(sheet)),
        _training_table(sheet),
        _serving_table(sheet),
        _hardware_table(sheet),
        *(Text(line) for line in _remarks(sheet)),
    ]
    return Group(*blocks)


def _headline(sheet: dict[str, Any]) -> str:
    config = sheet["model"]["config"]
    stacks = " + ".join(
        f"{config[f'{side}_layers']} {side} layers" for side in ("encoder", "decoder") if config[f"{side}_layers"]
    )
    heads = f"{config['num_heads']} heads of {config['head_size']}"
    if config["num_kv_heads"] != config["num_heads"]:
        heads += f" sharing {config['num_kv_heads']} kv heads"
    experts = (
        f", {config['num_experts']} experts of which {config['experts_per_token']}" if config["num_experts"] else ""
    )
    return (
        f"{sheet['name']}: {format_count(sheet['model']['parameters'])} parameters, {stacks}, {config['width']} wide, "
        f"{heads}, feed-forward {config['ffn_width']}{experts}, vocabulary {config['vocab_size']:,}, "
        f"context {config['max_length']:,}\n"
    )


def _table(title: str | None, *columns: str) -> Table:
    """A plain table: the first column to the left, numbers to the right, a title over it."""
    title = None if title is None else f"\n{title}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _parts(model: dict[str, Any]) -> Table:
    table = _table(None, "part", "parameters", "share")
    for name, number in model["parts"].items():
        if number:
            table.add_row(name, f"{number:,}", f"{100 * number / model['parameters']:.2f} %")
    table.add_row("all", f"{model['parameters']:,}", "", style="bold")
    if model["active_parameters"] != model["parameters"]:
        share = f"{100 * model['active_parameters'] / model['parameters']:.2f} %"
        table.add_row("used by a token", f"{model['active_parameters']:,}", share)
    return table


def _operations(sheet: dict[str, Any]) -> list[str]:
    flops, forward = sheet["flops"], sheet["flops"]["forward_per_token"]
    two = sheet["kind"] == "encoder-decoder"
    sides = [
        f"{_units(number, 'FLOP')} a {f'{side} ' if two else ''}token" for side, number in forward.items() if number
    ]
    lines = [
        "",
        f"forward   {', '.join(sides)}, in rows of {sheet['row_tokens']:,}",
        f"training  {_units(flops['training_per_token'], 'FLOP')} a {'pair of tokens' if two else 'token'}, on "
        f"{sheet['tokens']:,} {'pairs' if two else 'tokens'} ({sheet['tokens_are']})",
        f"          {_exponent(flops['training'])} FLOP in all; 6 N D is {_exponent(flops['six_n_d'])}",
    ]
    kv = sheet["kv_bytes_per_token"]["bfloat16"]
    if kv:
        sources = " with cross-attention's" if two else ""
        row = _units(kv * sheet["row_tokens"])
        lines.append(f"cache     {_units(kv)} a token in bfloat16{sources}, {row} a row")
    return lines


def _training_table(sheet: dict[str, Any]) -> Table:
    rows = sheet["training_memory"]
    title = f"memory to train: each of {rows[0]['devices']} devices, a row of {sheet['row_tokens']:,} tokens on it"
    table = _table(title, "dtype", "sharding", "weights", "gradients", "optimizer", "activations", "all")
    table.columns[1].justify = "left"
    for row in rows:
        parts = row["parts"]
        shown = [parts["weights"] + parts["copies"], parts["gradients"], parts["optimizer"]]
        shown += [parts["activations"] + parts["logits"], row["bytes"]]
        way = "+ recompute" if row["recompute"] else row["sharding"]
        table.add_row(row["dtype"], way, *(_units(number) for number in shown))
    return table


def _serving_table(sheet: dict[str, Any]) -> Table:
    rows = sheet["serving_memory"]
    numbers = sorted({row["rows"] for row in rows}) if sheet["kv_bytes_per_token"]["bfloat16"] else []
    titles = [f"with {number} row{'s' if number > 1 else ''} of {sheet['row_tokens']:,}" for number in numbers]
    table = _table("memory to serve", "weights as", "weights", *titles)
    for form in dict.fromkeys(row["weights_as"] for row in rows):
        mine = [row for row in rows if row["weights_as"] == form]
        wholes = [row["bytes"] for row in mine[: len(numbers)]]
        table.add_row(form, *(_units(number) for number in (mine[0]["parts"]["weights"], *wholes)))
    return table


def _hardware_table(sheet: dict[str, Any]) -> Table:
    table = _table("hours and money", "on", "MFU", "number", "least", "time", "hours", "$/h", "$", "decode/s")
    for row in sheet["hardware"]:
        least, decode = row["least_devices"], row["decode_tokens_per_second"]
        table.add_row(
            row["device"],
            f"{row['mfu']:.2f}",
            str(row["devices"]),
            "none" if least is None else str(least),
            _duration(row["seconds"]),
            format_count(row["device_hours"]) if row["device_hours"] >= 0.01 else "<0.01",
            "" if row["price_an_hour"] is None else f"{row['price_an_hour']:.2f}",
            "" if row["price"] is None else format_count(row["price"]) if row["price"] >= 0.01 else "<0.01",
            "" if decode is None else format_count(decode),
        )
    return table


def _remarks(sheet: dict[str, Any]) -> list[str]:
    """What the columns mean, and what does not hold."""
    lines = ["", "least: on so many it fits (fsdp, bfloat16, recompute). hours: of all together."]
    if any(row["decode_tokens_per_second"] for row in sheet["hardware"]):
        lines.append("decode/s: tokens of one stream at most, bfloat16, on as few as hold the weights.")
    lines.append("MFU and $/h are assumptions: see docs/models.md.")
    short = [row["device"] for row in sheet["hardware"] if row["devices"] < (row["least_devices"] or float("inf"))]
    if short:
        lines.append(f"Too few to hold the model while it trains: {', '.join(short)}.")
    if sheet["model"]["width"] < NARROW:
        lines.append(f"Under {NARROW:,} wide it does not fill a large card: MFU will be lower there.")
    return lines


def _units(number: float, unit: str = "B") -> str:
    """148 GFLOP, 1.05 MB."""
    text = format_count(number)
    return f"{text[:-1]} {text[-1]}{unit}" if text[-1].isalpha() else f"{text} {unit}"


def _duration(seconds: float) -> str:
    """As `format_seconds`, and in years from two of them on."""
    years = seconds / (365.25 * 86400)
    return format_seconds(seconds) if years < 2 else f"{format_count(years)} years"


def _exponent(number: float) -> str:
    """3.14e23."""
    return f"{number:.2e}".replace("e+", "e")
