"""The figure of docs/alignment.md, from what alignment.py measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from alignment_fit import Fit
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#2356c9", "#c2571a", "#18805f", "#8a4fbf", "#6a6f78")
BEST_OF_N = "#1c1d20"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignment",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e3de",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Four panels as SVG: proxy and gold against sqrt(KL), methods against sqrt(KL), methods against seconds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.8), layout="constrained")
        (proxy, gold), (distance, seconds) = figure.subplots(2, 2)
        _against_distance(proxy, summary, "proxy", "proxy: the reward model, deviations above SFT")
        _against_distance(gold, summary, "gold", "gold: the hidden preference, points above SFT")
        _methods(distance, summary, "kl_nats", "gold by distance, held-out prompts")
        _methods(seconds, summary, "seconds", "gold by processor seconds, reward model included")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _against_distance(axes: Axes, summary: Mapping[str, Any], name: str, title: str) -> None:
    """PPO by beta: iterations as dots, Gao's form as a line; best of n by its bound."""
    axes.set_title(title)
    axes.set_xlabel("√KL, KL in nats a reply")
    for colour, (label, curve) in zip(COLOURS, summary["betas"].items(), strict=False):
        d = [math.sqrt(max(row["kl"], 0.0)) for row in curve["rows"]]
        axes.plot(d, [row[name] for row in curve["rows"]], "o", markersize=2.5, alpha=0.55, color=colour)
        _line(axes, Fit(**curve[f"{name}_fit"]), max(d), label, colour)
    curve = summary["best_of_n"]
    d = [math.sqrt(row["kl_bound_nats"]) for row in curve["rows"]]
    axes.plot(d, [row[name] for row in curve["rows"]], "s", markersize=4, color=BEST_OF_N)
    _line(axes, Fit(**curve[f"{name}_fit"]), max(d), "best of n (KL: its bound)", BEST_OF_N)
    axes.legend()


def _line(axes: Axes, fit: Fit, end: float, label: str, colour: str) -> None:
    places = [end * step / 60 for step in range(61)]
    axes.plot(places, [fit.value(place) for place in places], color=colour, linewidth=1.5, label=label)


def _methods(axes: Axes, summary: Mapping[str, Any], along: str, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("√KL, KL in nats a reply" if along == "kl_nats" else "processor seconds")
    for colour, (label, points) in zip(COLOURS, summary["methods"].items(), strict=False):
        x = [math.sqrt(max(p[along], 0.0)) if along == "kl_nats" else p[along] for p in points]
        axes.plot(x, [p["gold"] for p in points], "o-", markersize=3, linewidth=1.2, color=colour, label=label)
    axes.legend()
