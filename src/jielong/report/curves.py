"""Curves as SVG that stands inside the page: its text is text, its colours are the page's, it loads nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colours stand for the page's own variables and are replaced by them, so that one SVG serves light and dark.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606")
VARIABLES = {INK: "--fg", MUTED: "--mute", GRID: "--line", SERIES[0]: "--c1", SERIES[1]: "--c2", SERIES[2]: "--c3"}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "path.simplify": True,
}
MAX_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One curve. faint: drawn behind the others, as raw values behind their mean. dots: points without a line."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot. levels: horizontal lines (label, value), the baselines. whole: the x axis counts something."""

    title: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    x_label: str = "step"
    y_limits: tuple[float, float] | None = field(default=None)
    whole: bool = True


Drawn = dict[str, tuple[Panel, str]]  # name of a curve -> what it shows, and its SVG


def column(metrics: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines in which the metric stands and is a number."""
    pairs = [(row["step"], row[name]) for row in metrics if isinstance(row.get(name), int | float)]
    return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values, fewer at the beginning."""
    total, result = 0.0, []
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        result.append(total / min(index + 1, window))
    return result


def draw(panel: Panel, name: str) -> str:
    """A panel as one <svg>, without references to anything outside. name: unique in the page."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.5, 2.7), layout="constrained")
        _draw_panel(figure.subplots(), panel)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embed(target.getvalue(), name)


def draw_once(panel: Panel, name: str, drawn: Drawn) -> str:
    """`draw`, or what it gave when the panel of this name showed the same. drawn: what there is; gets what is new."""
    known = drawn.get(name)
    if known is None or known[0] != panel:
        known = drawn[name] = (panel, draw(panel, name))
    return known[1]


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=panel.whole))
    strong = 0
    for line in panel.lines:
        stride = max(1, len(line.steps) // MAX_POINTS)
        color = SERIES[strong % len(SERIES)]
        style: Any = {"linewidth": 0.8, "alpha": 0.35} if line.faint else {"linewidth": 1.6, "label": line.label}
        marker = "o" if line.dots or (len(line.steps) < 12 and not line.faint) else None
        style |= {"linestyle": "none"} if line.dots else {}
        axes.plot(line.steps[::stride], line.values[::stride], color=color, marker=marker, markersize=3, **style)
        strong += not line.faint
    for (label, level), dashes in zip(panel.levels, ((4, 2), (1.5, 1.5), (6, 2, 1, 2)), strict=False):
        axes.axhline(level, color=MUTED, linewidth=1, dashes=dashes, label=label)
    if panel.y_limits is not None:
        axes.set_ylim(*panel.y_limits)
    if len(panel.lines) + len(panel.levels) > 1:
        axes.legend(fontsize=8, labelcolor=INK)


def _embed(svg: str, name: str) -> str:
    """Cuts prolog, metadata, namespaces and unused ids; makes ids unique, colours and font the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r"#([A-Za-z][\w-]*)", svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', lambda found: f"{found[1]}{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would reach out of the SVG
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 role="img"', svg, count=1)
    return re.sub(r">\s+<", "><", svg)


@dataclass(frozen=True)
class Scatter:
    """Measured points and the curve that is said to run through them, both (x, y)."""

    label: str
    points: Sequence[tuple[float, float]]
    curve: Sequence[tuple[float, float]]


def draw_scatter(title: str, x_label: str, series: Sequence[Scatter]) -> str:
    """A whole SVG file with its own colours, both axes logarithmic."""
    plain = {**STYLE, "axes.edgecolor": "#999", "axes.labelcolor": "#555", "grid.color": "#ddd", "text.color": "#222"}
    plain |= {"axes.titlecolor": "#222", "xtick.color": "#555", "ytick.color": "#555", "svg.hashsalt": title}
    with matplotlib.rc_context(plain):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, one in enumerate(series):
            color = f"C{number}"
            axes.plot(*zip(*one.curve, strict=True), color=color, linewidth=1.2, label=one.label)
            axes.plot(*zip(*one.points, strict=True), color=color, marker="o", markersize=4, linestyle="none")
        axes.legend(fontsize=8)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()
