"""The figures of several runs side by side, with their pass rules: pure functions of the runs' report.json."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Report = dict[str, Any]  # report.json; "process" holds what was measured from outside, if it was

# kind of stage -> which of its figures are shown; of a nested one (bytes per token by language) every entry
FIGURES: dict[str, tuple[str, ...]] = {
    "curate": ("documents_in", "documents_kept"),
    "tokenizer": ("round_trip_exact", "bytes_per_token"),
    "pretrain": (
        "heldout_bits_per_byte", "trigram_bits_per_byte", "fivegram_bits_per_byte", "heldout_loss_nats", "parameters",
        "tokens_seen", "tokens_per_second", "mfu",
    ),
    "sft": ("end_of_turn_rate", "heldout_loss_nats"),
    "reward": (
        "heldout_accuracy", "heldout_accuracy_ci95", "length_baseline_accuracy", "noise_ceiling_accuracy",
        "calibration_error", "comparisons",
    ),
    "ppo": (
        "gold_win_rate", "gold_win_rate_ci95", "gold_win_rate_length_controlled", "kl_nats_per_reply",
        "proxy_reward_before", "proxy_reward_after", "gold_reward_before", "gold_reward_after",
        "heldout_bits_per_byte_before", "heldout_bits_per_byte_after", "alignment_tax_bits_per_byte",
        "reply_tokens_before", "reply_tokens_after",
    ),
    "evaluate": ("exact_match",),
}  # fmt: skip
# kind of stage -> the figure beside which the stage's own pass rule (the report's) stands
JUDGED = {
    "curate": "documents_kept",
    "tokenizer": "round_trip_exact",
    "pretrain": "heldout_bits_per_byte",
    "sft": "end_of_turn_rate",
    "reward": "heldout_accuracy",
    "ppo": "gold_win_rate_ci95",
}
# figure -> (lowest, highest value) that the demo promises beyond the stages' rules
TARGETS: dict[str, tuple[float, float]] = {
    "exact_match.base.facts_unseen": (0.0, 0.20),
    "exact_match.sft.facts_unseen": (0.70, 1.0),
    "exact_match.sft.arithmetic": (0.80, 1.0),
    "exact_match.sft.translation": (0.80, 1.0),
    "gold_win_rate": (0.65, 1.0),
    "seconds.all": (0.0, 900.0),
    "seconds.process": (0.0, 900.0),
    "peak_memory_bytes": (0.0, 4e9),
}
FRACTION = re.compile(r"(^|_)(rate|accuracy|match|mfu)(_|\.|$)")
MIN_POOLED_SEEDS = 3
# 97.5 % points of Student's t by degrees of freedom
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Row:
    """One figure over the seeds. values: one a seed, None where a run lacks it. rule: "" when nothing is asked of it.

    passed: whether the rule holds, a seed each. mean, low, high: over the seeds; None for what is not a number.
    """

    stage: str
    name: str
    values: list[Any]
    rule: str
    passed: list[bool | None]

    @property
    def holds(self) -> bool | None:
        """False if the rule fails for a seed; None without a rule, or if it is not measured for a seed."""
        if not self.rule or (None in self.passed and False not in self.passed):
            return None
        return False not in self.passed

    @property
    def numbers(self) -> list[float]:
        return [value for value in self.values if isinstance(value, int | float) and not isinstance(value, bool)]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.numbers) if self.numbers else None

    @property
    def low(self) -> float | None:
        return min(self.numbers, default=None)

    @property
    def high(self) -> float | None:
        return max(self.numbers, default=None)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "mean": self.mean, "low": self.low, "high": self.high, "holds": self.holds}


def build_rows(reports: Sequence[Report], targets: bool = True) -> list[Row]:
    """A row for every figure that any of the runs has, stage by stage. targets: judge by TARGETS too."""
    tables = [_figures(report) for report in reports]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    if targets:  # a rule whose figure is nowhere is shown as not measured, never left out
        keys += [("", name) for name in TARGETS if name not in {known for _, known in keys}]
    rows = []
    for stage, name in keys:
        values = [table.get((stage, name)) for table in tables]
        kinds = {report["stages"][stage]["kind"] for report in reports if stage in report.get("stages", {})}
        if any(JUDGED.get(kind) == name for kind in kinds):
            rule, passed = _own_rule(reports, stage)
        elif targets and name in TARGETS:
            rule, passed = _target(name, values)
        else:
            rule, passed = "", [None] * len(values)
        rows.append(Row(stage, name, values, rule, passed))
    return rows


def _figures(report: Report) -> dict[tuple[str, str], Any]:
    """(stage, figure) -> value of one run."""
    found: dict[tuple[str, str], Any] = {}
    for stage, content in report.get("stages", {}).items():
        figures = dict(content["figures"])
        before, after = figures.get("heldout_bits_per_byte_before"), figures.get("heldout_bits_per_byte_after")
        if before is not None and after is not None:
            figures["alignment_tax_bits_per_byte"] = after - before
        for name in FIGURES.get(content["kind"], ()):
            found.update({(stage, path): value for path, value in _flat(name, figures.get(name))})
        if content["kind"] in JUDGED:
            found.setdefault((stage, JUDGED[content["kind"]]))  # its rule is shown even if the figure is missing
    for stage, content in report.get("stages", {}).items():
        found["run", f"seconds.{stage}"] = content["seconds"]
    if report:
        found["run", "seconds.all"] = report["totals"]["seconds"]
        process = report.get("process", {})
        if process:
            found["run", "seconds.process"] = process["seconds"]
        found["run", "peak_memory_bytes"] = process.get("peak_memory_bytes", report["totals"]["peak_memory_bytes"])
    return found


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """A nested figure as dotted names."""
    if not isinstance(value, dict):
        return [] if value is None else [(name, value)]
    return [pair for key, inner in value.items() for pair in _flat(f"{name}.{key}", inner)]


def _own_rule(reports: Sequence[Report], stage: str) -> tuple[str, list[bool | None]]:
    """The pass rule that the reports state for a stage, and what they say of it."""
    rules = [report.get("stages", {}).get(stage, {}).get("rules", []) for report in reports]
    words = next((found[0]["rule"] for found in rules if found), "")
    return words, [all(rule["passed"] for rule in found) if _is_known(found) else None for found in rules]


def _is_known(rules: list[dict[str, Any]]) -> bool:
    """A rule that fails is known even beside one that was not measured."""
    return bool(rules) and (
        any(rule["passed"] is False for rule in rules) or all(rule["passed"] is not None for rule in rules)
    )


def _target(name: str, values: list[Any]) -> tuple[str, list[bool | None]]:
    low, high = TARGETS[name]
    rule = f"≥ {shown(name, low)}" if low > 0 else f"≤ {shown(name, high)}"
    return rule, [None if value is None else low <= value <= high for value in values]


def pooled_win_rate(reports: Sequence[Report]) -> dict[str, Any]:
    """Mean win rate against sft over the seeds, with a 95 % interval over seeds (Student's t on the seeds' rates).

    The interval holds what differs between whole runs, which the interval within one run does not see. "holds": above
    50 %, and None with fewer than MIN_POOLED_SEEDS seeds.
    """
    stages = [stage for report in reports for stage in report.get("stages", {}).values() if stage["kind"] == "ppo"]
    rates = [stage["figures"]["gold_win_rate"] for stage in stages if stage["figures"].get("gold_win_rate") is not None]
    if len(rates) < 2:
        text = f"Pooled gold win rate: not measured ({len(rates)} seeds with one)."
        return {"num_seeds": len(rates), "win_rate": None, "ci95": None, "holds": None, "text": text}
    mean, half = statistics.fmean(rates), _t_quantile(len(rates) - 1) * statistics.stdev(rates) / math.sqrt(len(rates))
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    holds = low > 0.5 if len(rates) >= MIN_POOLED_SEEDS else None
    said = {True: "holds", False: "**fails**", None: f"not measured: needs {MIN_POOLED_SEEDS} seeds"}[holds]
    text = (
        f"Pooled gold win rate of ppo over sft: {100 * mean:.1f} % (95 % over {len(rates)} seeds: {100 * low:.1f} – "
        f"{100 * high:.1f} %); rule: above 50 %: {said}."
    )
    return {"num_seeds": len(rates), "win_rate": mean, "ci95": [low, high], "holds": holds, "text": text}


def _t_quantile(freedom: int) -> float:
    """97.5 % point of Student's t; beyond the table the last entry, which is a little too wide."""
    return T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1]


def shown(name: str, value: Any) -> str:
    """A figure as people read it; its unit comes from its name."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " – ".join(shown(name, part) for part in value)
    if FRACTION.search(name):
        return f"{100 * value:.1f} %"
    if name.endswith("_bytes"):
        return f"{value / 1e9:.2f} GB"
    if name.startswith("seconds"):
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3f}"
