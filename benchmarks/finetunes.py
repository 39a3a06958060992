"""The same model fine-tuned in several ways under several seeds, and what the ways differ by: shared by two scripts.

A way is one [finetune] stage of a recipe that is written here; a seed is one run of all of them, in OUT/seed-N, where
finished stages are skipped. All ways and seeds are examined on the same held-out examples.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from over_seeds import T_QUANTILES

import jielong
from jielong.config import to_toml

Scores = dict[str, list[float]]  # way -> the score of each seed, in the order of the seeds

# What all ways have in common: the recipes' settings.
COMMON: dict[str, Any] = {
    "kind": "finetune",
    "batch_rows": 32,
    "learning_rate": 5e-4,
    "schedule": "linear",
    "final_fraction": 0.0,
    "weight_decay": 0.01,
    "beta2": 0.999,
    "dropout": 0.1,
    "evaluate_every": 100_000,
    "checkpoint_every": 100_000,
}


def run_ways(options: argparse.Namespace, sources: Mapping[str, str], ways: Mapping[str, dict[str, Any]]) -> Scores:
    """Fine-tune options.model in every way under every seed of options.seeds.

    sources: name -> path under options.data_root. ways: name -> the stage's settings beside COMMON.
    """
    tables: dict[str, Any] = {"data": {"root": str(options.data_root), "sources": {}}}
    tables["data"]["sources"] = {name: {"path": path} for name, path in sources.items()}
    tables |= {name: {**COMMON, "model": str(options.model), **settings} for name, settings in ways.items()}
    scores: Scores = {name: [] for name in ways}
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        run = {"name": "finetunes", "seed": seed, "device": options.device, "threads": options.threads}
        recipe = options.out / f"seed-{seed}.toml"
        recipe.write_text(to_toml({"run": run, **tables}), encoding="utf-8")
        report = jielong.run(recipe, out=options.out / f"seed-{seed}", quiet=not options.verbose)
        for name, found in scores.items():
            found.append(report["stages"][name]["figures"]["score"])
        print(f"seed {seed}: {report['totals']['seconds']:.0f} s", flush=True)
    return scores


def figures(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """All figures of a way under the first seed, for what does not depend on the seed."""
    report = json.loads((options.out / f"seed-{options.seeds[0]}" / "report.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = report["stages"][name]["figures"]
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of its 95 % interval by Student's t over the seeds; infinite for one seed)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    quantile = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1]
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def gain(scores: Scores, better: str, worse: str) -> tuple[float, float]:
    """The same of the differences, seed by seed."""
    return interval([one - other for one, other in zip(scores[better], scores[worse], strict=True)])


def shown(mean: float, half: float, sign: bool = False) -> str:
    """In points: 71.3 ± 1.2."""
    spread = "" if math.isinf(half) else f" ± {100 * half:.1f}"
    return f"{100 * mean:{'+' if sign else ''}.1f}{spread}"


def task_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """The options that both scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder to start from")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="show the runs' own display")
    return parser


def absolute(options: argparse.Namespace) -> argparse.Namespace:
    """Paths as they are meant from here: the runs are made elsewhere."""
    for name in ("model", "data_root", "out"):
        options.__dict__[name] = options.__dict__[name].resolve()
    return options
