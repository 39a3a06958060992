"""When has a stage proved itself? The pass rules, in one place."""

from __future__ import annotations

from typing import Any

Verdict = tuple[str, bool | None, str]  # rule, passed (None: not measured), the figures it rests on

MIN_END_OF_TURN_RATE = 0.95
SIGMAS = 2.0
SIGMAS_OF_CI95 = 1.96


def verdicts(kind: str, figures: dict[str, Any]) -> list[Verdict]:
    """The pass rules of a kind of stage, judged by its figures. [] for kinds without a rule.

    A rule whose figures are absent (a recipe without a gold judge, say) is reported as not measured, never as passed.
    """
    if kind not in _RULES:
        return []
    rule, names, judge = _RULES[kind]
    missing = [name for name in names if figures.get(name) is None]
    if missing:
        return [(rule, None, f"not measured ({', '.join(missing)})")]
    passed, shown = judge(figures)
    return [(rule, passed, shown)]


def _ledger(figures: dict[str, Any]) -> tuple[bool, str]:
    kept, removed = figures["documents_kept"], sum(figures["removed"].values())
    return figures["documents_in"] == kept + removed, f"{figures['documents_in']} = {kept} kept + {removed} removed"


def _round_trip(figures: dict[str, Any]) -> tuple[bool, str]:
    exact = figures["round_trip_exact"] is True
    return exact, "text → ids → text on held-out documents" + ("" if exact else " differs")


def _below_fivegram(figures: dict[str, Any]) -> tuple[bool, str]:
    model, baseline = figures["heldout_bits_per_byte"], figures["fivegram_bits_per_byte"]
    return model < baseline, f"{model:.3f} against {baseline:.3f} bits per byte"


def _turns_end(figures: dict[str, Any]) -> tuple[bool, str]:
    rate = figures["end_of_turn_rate"]
    return rate > MIN_END_OF_TURN_RATE, f"{100 * rate:.1f} % of replies"


def _beats_length(figures: dict[str, Any]) -> tuple[bool, str]:
    accuracy, length = figures["heldout_accuracy"], figures["length_baseline_accuracy"]
    low, high = figures["heldout_accuracy_ci95"]
    sigma = (high - low) / (2 * SIGMAS_OF_CI95)
    passed = accuracy - length > SIGMAS * sigma
    gap = (accuracy - length) / sigma if sigma > 0 else float("inf") if accuracy > length else 0.0
    return passed, f"{100 * accuracy:.1f} % against {100 * length:.1f} % by length alone: {gap:.1f} σ"


def _wins(figures: dict[str, Any]) -> tuple[bool, str]:
    low, high = figures["gold_win_rate_ci95"]
    rate = figures["gold_win_rate"]
    return low > 0.5, f"{100 * rate:.1f} % of replies preferred to sft's (95 %: {100 * low:.1f} – {100 * high:.1f} %)"


def _promoted(figures: dict[str, Any]) -> tuple[bool, str]:
    low, high = figures["win_rate_ci95"]
    shown = f"{figures['new']} won {100 * figures['win_rate']:.1f} % of {figures['judged']} against {figures['old']}"
    return figures["promoted"] is True, f"{shown} (95 %: {100 * low:.1f} – {100 * high:.1f} %)"


# kind -> the rule in words, the figures it needs, its judge
_RULES = {
    "curate": ("the ledger adds up", ("documents_in", "documents_kept", "removed"), _ledger),
    "tokenizer": ("the round trip is exact", ("round_trip_exact",), _round_trip),
    "pretrain": ("predicts better than a 5-gram", ("heldout_bits_per_byte", "fivegram_bits_per_byte"), _below_fivegram),
    "sft": (f"more than {100 * MIN_END_OF_TURN_RATE:.0f} % of turns end", ("end_of_turn_rate",), _turns_end),
    "reward": (
        f"beats the longer reply by {SIGMAS:.0f} σ",
        ("heldout_accuracy", "heldout_accuracy_ci95", "length_baseline_accuracy"),
        _beats_length,
    ),
    **dict.fromkeys(
        ("ppo", "grpo", "dpo", "best_of_n"),
        ("the hidden judge prefers it to sft", ("gold_win_rate", "gold_win_rate_ci95"), _wins),
    ),
    "promote": ("the new model is promoted", ("promoted", "win_rate", "win_rate_ci95"), _promoted),
}
