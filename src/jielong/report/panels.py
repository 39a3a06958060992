"""Which curves a stage shows, from its metrics.jsonl and its figures."""

from __future__ import annotations

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
        found = [Panel("loss on the chosen replies, nats a token", _with_mean("training", metrics, "loss_nats"))]
    elif kind == "mlm":
        found = _hidden_tokens(metrics, figures)
    elif kind == "finetune":
        found = _task(metrics)
    elif kind in ("ppo", "grpo"):
        found = [
            Panel(
                "reward: what it is trained on, and the judge's",
                [
                    *_line("proxy (reward model)", metrics, "proxy_reward"),
                    *_line("gold (hidden)", metrics, "gold_reward"),
                ],
                x_label="iteration",
            ),
            _single(metrics, "kl_nats_per_reply", "distance from sft, nats a reply", "iteration"),
            _single(metrics, "reply_tokens", "tokens a reply", "iteration"),
        ]
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


def _likelihood(metrics: Metrics, figures: dict[str, Any]) -> Panel:
    """Loss beside the n-grams, in bits per byte when the figures tell how many bytes a token has."""
    per_token, per_byte = figures.get("heldout_loss_nats"), figures.get("heldout_bits_per_byte")
    if not per_token or not per_byte:
        return Panel("loss, nats a token", _with_mean("training", metrics, "loss_nats"))
    scale = per_byte / per_token  # nats a token -> bits per byte: exact on held-out text, close on the rest
    levels = [
        (label, figures[name])
        for label, name in (("3-gram", "trigram_bits_per_byte"), ("5-gram", "fivegram_bits_per_byte"))
        if figures.get(name) is not None
    ]
    training = [
        Line(line.label, line.steps, [value * scale for value in line.values], line.faint)
        for line in _with_mean("training", metrics, "loss_nats")
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
