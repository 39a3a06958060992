"""The picture of the structure lab: what each switch is worth, and what a conversation costs by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"depth": "#4c72b0", "parameters": "#dd8452"}


def draw(
    records: Sequence[Mapping[str, object]], by_turn: Sequence[Mapping[str, float]], order: Sequence[str], path: Path
) -> None:
    """One panel a task with a dot a seed, and one panel of milliseconds by turn."""
    tasks = list(dict.fromkeys(str(record["task"]) for record in records))
    size = (4.6 * (len(tasks) + 1), 3.6)
    figure, grid = plt.subplots(1, len(tasks) + 1, figsize=size, layout="constrained", squeeze=False)
    panels = grid[0]
    for panel, task in zip(panels, tasks, strict=False):
        for offset, budget in ((-0.1, "depth"), (0.1, "parameters")):
            found = [one for one in records if one["task"] == task and one["budget"] == budget]
            places = [order.index(str(one["structure"])) + offset for one in found]
            errors = [100 * (1 - float(str(one["exact"]))) for one in found]
            panel.scatter(places, errors, s=22, color=COLOURS[budget], label=f"same {budget}", alpha=0.8)
        panel.set_xticks(
            range(len(order)), [name.replace(" = ", " =\n") for name in order], rotation=25, ha="right", fontsize=7
        )
        panel.set_ylabel("wrong on unseen, %")
        panel.set_ylim(bottom=0)
        panel.set_title(task, fontsize=10)
        panel.legend(fontsize=7)
    last = panels[-1]
    numbers = [one["turn"] for one in by_turn]
    last.plot(numbers, [one["anew"] for one in by_turn], marker="o", label="both ways: read anew", color="#c44e52")
    last.plot(
        numbers, [one["kept"] for one in by_turn], marker="o", label="causal: keys and values kept", color="#55a868"
    )
    last.set_xlabel("turn")
    last.set_ylabel("ms until the reply begins")
    last.set_ylim(bottom=0)
    last.set_title("a conversation", fontsize=10)
    last.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
