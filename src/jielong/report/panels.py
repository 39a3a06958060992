"""Which curves a stage shows, from its metrics.jsonl and its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jielong.report.curves import Line, Panel, column, smooth

Metrics = Sequence[dict[str, Any]]


def panels(kind: str, metrics: Metrics, figures: dict[str, Any]) -> list[Panel]:
    """The panels of a stage; [] when it left no metrics."""
    if kind == "pretrain":
        found = [
            _likelihood(metrics, figures),
            Panel("tokens per second", _with_mean("mean", metrics, "tokens_per_second")),
        ]
    elif kind == "translate":
        lines = [*_with_mean("training", metrics, "label_nats"), *_line("validation", metrics, "heldout_loss_nats")]
        found = [
            Panel("loss on the targets, nats a token", lines),
            Panel("BLEU of greedy translations", _line("validation", metrics, "watched_bleu")),
        ]
    elif kind == "sft":
        lines = [*_with_mean("training", metrics, "loss_nats"), *_line("held-out", metrics, "heldout_loss_nats")]
        found = [Panel("loss on the replies, nats a token", lines)]
    elif kind == "reward":
        found = [
            Panel("loss, nats a prompt", _with_mean("training", metrics, "loss_nats")),
            _agreement(metrics, figures),
        ]
    elif kind == "dpo":
        found = [
            Panel("loss, nats a prompt", _with_mean("training", metrics, "loss_nats")),
            _agreement(metrics, figures),
        ]
    elif kind == "best_of_n":
        found = [
            Panel("loss on the chosen replies, nats a token", _with_mean("training", metrics, "loss_nats")),
            _best_of_n(figures),
        ]
    elif kind == "mlm":
        found = _hidden_tokens(metrics, figures)
    elif kind == "finetune":
        found = _task(metrics)
    elif kind in ("ppo", "grpo"):
        found = _policy(metrics)
    else:
        found = []
    return [panel for panel in found if panel.lines]


def _hidden_tokens(metrics: Metrics, figures: dict[str, Any]) -> list[Panel]:
    lines = [*_with_mean("training", metrics, "loss_nats"), *_line("held-out", metrics, "heldout_masked_nats")]
    right = [*_line("hidden token", metrics, "heldout_masked_accuracy")]
    right += _line("next sentence", metrics, "heldout_next_sentence_accuracy")
    levels = [("by frequency", figures["frequency_nats"])] if figures.get("frequency_nats") else []
    return [
        Panel("loss, nats a hidden token (training: next sentence added)", lines, levels),
        Panel("held-out accuracy", right, y_limits=(0.0, 1.0)),
    ]


def _task(metrics: Metrics) -> list[Panel]:
    names = ("accuracy", "pearson", "spearman", "f1", "exact_match")
    right = [line for name in names for line in _line(name, metrics, f"heldout_{name}")]
    return [
        Panel("loss, nats an example", _with_mean("training", metrics, "loss_nats")),
        Panel("held-out score", right, y_limits=(0.0, 1.0)),
    ]


def _policy(metrics: Metrics) -> list[Panel]:
    """What ppo and grpo show: reward, distance, the one against the other, and what hacking would show in first."""
    rewards = {"proxy (reward model)": "proxy_reward", "gold (hidden)": "gold_reward"}
    variety = {"distinct 1-grams": "distinct_1", "distinct 2-grams": "distinct_2"}
    variety["repeated 4-grams"] = "repeated_4gram_rate"
    return [
        Panel(
            "reward: what it is trained on, and the judge's",
            [line for label, name in rewards.items() for line in _line(label, metrics, name)],
            x_label="iteration",
        ),
        _single(metrics, "kl_nats_per_reply", "distance from sft, nats a reply", "iteration"),
        Panel(
            "reward against distance",
            [line for label, name in rewards.items() for line in _against_distance(label, metrics, name)],
            x_label="√KL, KL in nats a reply",
            whole=False,
        ),
        _single(metrics, "reply_tokens", "tokens a reply", "iteration"),
        _single(metrics, "ended_rate", "replies that end their turn", "iteration"),
        Panel(
            "variety of the replies",
            [line for label, name in variety.items() for line in _line(label, metrics, name)],
            x_label="iteration",
        ),
    ]


def _against_distance(label: str, metrics: Metrics, name: str) -> list[Line]:
    """A reward over the root of the KL, a point an iteration: one against the other, as Gao et al. 2022 draw it."""
    rows = [row for row in metrics if isinstance(row.get(name), int | float) and "kl_nats_per_reply" in row]
    places = [math.sqrt(max(float(row["kl_nats_per_reply"]), 0.0)) for row in rows]  # single ones may be below 0
    return [Line(label, places, [float(row[name]) for row in rows], dots=True)] if rows else []


def _best_of_n(figures: dict[str, Any]) -> Panel:
    """What choosing among n buys, by the reward that chooses and by the judge."""
    lines = []
    for label, name in (("proxy (reward model)", "best_of_n_proxy"), ("gold (hidden)", "best_of_n_gold")):
        points = sorted((int(n), float(value)) for n, value in (figures.get(name) or {}).items())
        if points:
            lines.append(Line(label, [math.log2(n) for n, _ in points], [value for _, value in points]))
    return Panel("best of n, before learning it", lines, x_label="log₂ n")


def _likelihood(metrics: Metrics, figures: dict[str, Any]) -> Panel:
    """Loss beside the n-grams, in bits per byte when the figures tell how many bytes a token has.

    Where something is added to the loss, the likelihood is a metric of its own.
    """
    name = "label_nats" if column(metrics, "label_nats")[0] else "loss_nats"
    per_token, per_byte = figures.get("heldout_loss_nats"), figures.get("heldout_bits_per_byte")
    if not per_token or not per_byte:
        return Panel("loss, nats a token", _with_mean("training", metrics, name))
    scale = per_byte / per_token  # nats a token -> bits per byte: exact on held-out text, close on the rest
    levels = [
        (label, figures[name])
        for label, name in (("3-gram", "trigram_bits_per_byte"), ("5-gram", "fivegram_bits_per_byte"))
        if figures.get(name) is not None
    ]
    training = [
        Line(line.label, line.steps, [value * scale for value in line.values], line.faint)
        for line in _with_mean("training", metrics, name)
    ]
    lines = [*training, *_line("held-out", metrics, "heldout_bits_per_byte")]
    top = max([level for _, level in levels] + [line.values[-1] for line in lines], default=1.0)
    return Panel("bits per byte", lines, levels, y_limits=(0.0, 1.6 * top) if lines else None)


def _agreement(metrics: Metrics, figures: dict[str, Any]) -> Panel:
    levels = [
        (label, figures[name])
        for label, name in (
            ("by length alone", "length_baseline_accuracy"),
            ("noise ceiling", "noise_ceiling_accuracy"),
        )
        if isinstance(figures.get(name), int | float)
    ]
    return Panel("held-out accuracy", _line("model", metrics, "heldout_accuracy"), levels, y_limits=(0.4, 1.0))


def _single(metrics: Metrics, name: str, title: str, x_label: str = "step") -> Panel:
    return Panel(title, _line(name, metrics, name), x_label=x_label)


def _line(label: str, metrics: Metrics, name: str) -> list[Line]:
    steps, values = column(metrics, name)
    return [Line(label, steps, values)] if steps else []


def _with_mean(label: str, metrics: Metrics, name: str) -> list[Line]:
    """The values faintly, and their running mean."""
    steps, values = column(metrics, name)
    if not steps:
        return []
    window = max(1, len(values) // 40)
    return [Line(label, steps, values, faint=True), Line(label, steps, smooth(values, window))]
