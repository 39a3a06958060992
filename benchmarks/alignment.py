"""What alignment buys and what it costs, measured on a finished quickstart run: the figures of docs/alignment.md.

    python benchmarks/alignment.py runs/quickstart --out runs/alignment

Sub-runs, each a folder below --out whose result.json is written last, so that the same command goes on where it was:
PPO for four prices of the KL; best of n; DPO, best-of-n fine-tuning and SFT on chosen beside PPO; a reward model of few
comparisons without a price; null controls; PPO-ptx. Then tables, alignment.json, alignment.svg. The run is only read.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from alignment_figure import draw
from alignment_fit import Fit, Point, at, fit_gao, held, windows
from alignment_runs import (
    RandomReward,
    Result,
    ppo_config,
    run_best_of_n,
    run_chosen,
    run_curve,
    run_dpo,
    run_ppo,
    shuffled,
    text_beside,
)
from alignment_setting import Judge, Setting
from table import machine, markdown_table

from jielong.align.agreement import measure_agreement
from jielong.align.comparisons import encode_comparisons
from jielong.config import write_atomic
from jielong.runtime import detect, environment

BETAS = (0.0, 0.02, 0.05, 0.2)
METHODS = {"ppo": "beta-0.05", "dpo": "dpo", "best of n": "best-of-n-tuning", "sft on chosen": "chosen"}
NULLS = {"shuffled labels": "null-shuffled", "random reward": "null-random", "beta = 100": "null-huge-beta"}
TAXES = {"no text beside": "beta-0.05", "conversations beside": "ptx-sft", "corpus beside": "ptx-pretrain"}
WINDOW = 3  # iterations whose means make one point of a curve


class Bench:
    """The setting and the judge, made when the first sub-run needs them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @cached_property
    def setting(self) -> Setting:
        return Setting.of(self.options.run, detect("cpu", threads=self.options.threads))

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.setting, self.options.judged_prompts, self.options.judged_seeds)

    def ppo(self, beta: float, ptx: str | None = None, tax: bool = False) -> Result:
        settings = self.setting.settings("ppo")
        changes: dict[str, Any] = {"kl_coefficient": beta}
        if ptx is not None:
            changes["ptx_coefficient"] = settings.ptx_coefficient or 0.1
        config = ppo_config(self.setting, self.options.iterations, **changes)
        text = None if ptx is None else text_beside(self.setting, config, ptx)
        return run_ppo(self.setting, self.judge, config, text=text, tax=tax)

    def null(self, reward: Any, beta: float) -> Result:
        """A control: no missing-end rule, which is a preference of its own, and no text beside."""
        config = ppo_config(self.setting, self.options.null_iterations, kl_coefficient=beta, missing_eos_score=None)
        return run_ppo(self.setting, self.judge, config, reward)

    def reward_of(self, comparisons: list[Any]) -> tuple[Any, Result]:
        """A reward model of these comparisons, and what it is worth on the held-out ones as they were labelled."""
        started = time.process_time()
        reward, accuracy = self.setting.train_reward(comparisons)
        seconds = time.process_time() - started
        held = encode_comparisons(self.setting.comparisons[1], self.setting.tokenizer, reward.model.config.max_length)
        found = measure_agreement(reward.model, held.items, self.setting.tokenizer.pad_id)
        told = {"training_accuracy": accuracy, "heldout_accuracy": found.accuracy, "heldout_ci95": list(found.ci95)}
        return reward, {**told, "seconds": seconds, "comparisons": len(comparisons)}

    def null_shuffled(self) -> Result:
        reward, told = self.reward_of(shuffled(self.setting.comparisons[0], self.setting.recipe.run.seed))
        return {**self.null(reward, 0.05), "reward": told}

    def few_labels(self) -> Result:
        reward, told = self.reward_of(self.setting.comparisons[0][: self.options.few_prompts])
        config = ppo_config(self.setting, self.options.long_iterations, kl_coefficient=0.0)
        return {**run_ppo(self.setting, self.judge, config, reward, watch_every=10), "reward": told}

    def start(self) -> Result:
        return {**self.judge.start, "tax": self.judge.tax(self.judge.sft)}

    @property
    def runs(self) -> dict[str, Callable[[], Result]]:
        options = self.options
        episodes = options.iterations * self.setting.settings("ppo").rollout_rows

        def ppo(beta: float, ptx: str | None = None) -> Callable[[], Result]:
            return lambda: self.ppo(beta, ptx, tax=True)

        # What others are compared with comes first; what a run that is cut short can do without, last.
        return {
            "start": self.start,
            "beta-0.05": ppo(0.05),
            "beta-0": ppo(0.0),
            "beta-0.2": ppo(0.2),
            "curve": lambda: run_curve(self.setting, self.judge, options.curve_prompts, 64),
            "null-shuffled": self.null_shuffled,
            "dpo": lambda: run_dpo(self.setting, self.judge, 0.1, 2e-4, 2.0),
            "chosen": lambda: run_chosen(self.setting, self.judge, 3e-4, 3),
            "best-of-n-tuning": lambda: run_best_of_n(self.setting, self.judge, episodes, 8, 3e-4, 6),
            "null-random": lambda: self.null(RandomReward(self.setting.recipe.run.seed), 0.05),
            "null-huge-beta": lambda: self.null(None, 100.0),
            "ptx-sft": ppo(0.05, "sft"),
            "beta-0.02": ppo(0.02),
            "few-labels": self.few_labels,
            "ptx-pretrain": ppo(0.05, "pretrain"),
        }


def run_all(bench: Bench, out: Path, only: list[str]) -> dict[str, Result]:
    """Results by name; what is finished is read, what is not is run, what is not asked for is left out."""
    results: dict[str, Result] = {}
    for name, make in bench.runs.items():
        file = out / name / "result.json"
        if not file.exists() and (not only or name in only):
            print(f"{name}:", flush=True)
            started = time.process_time()
            result = make()
            result["total_seconds"] = time.process_time() - started
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(result, indent=1) + "\n")
        if file.exists():
            results[name] = json.loads(file.read_text(encoding="utf-8"))
    return results


def summarise(results: dict[str, Result]) -> dict[str, Any]:
    """Curves with their fits, and the points of the methods, rewards as differences from the SFT model."""
    start = results["start"]
    summary: dict[str, Any] = {"start": start, "betas": {}}
    named = {f"PPO, β = {beta:g}": f"beta-{beta:g}" for beta in BETAS}
    named |= {"PPO, β = 0, few labels": "few-labels"}
    for label, name in named.items():
        if name in results:
            rows = windows(results[name]["rollouts"], ("kl_nats_per_reply", "proxy", "gold"), WINDOW)
            shown = [
                {"kl": r["kl_nats_per_reply"], "proxy": r["proxy"] - start["proxy"], "gold": r["gold"] - start["gold"]}
                for r in rows
            ]
            summary["betas"][label] = _fitted(shown, [math.sqrt(max(row["kl"], 0.0)) for row in shown], "rl")
    if "curve" in results:
        points = results["curve"]["curve"]
        first = points[0]
        rows = [{**p, "proxy": p["proxy"] - first["proxy"], "gold": p["gold"] - first["gold"]} for p in points]
        summary["best_of_n"] = _fitted(rows, [math.sqrt(row["kl_bound_nats"]) for row in rows], "bon")
    summary["methods"] = {
        label: _with_start(results[name], start, _before(label, results))
        for label, name in METHODS.items() if name in results
    }  # fmt: skip
    return summary


def _fitted(rows: list[Point], distances: list[float], form: str) -> dict[str, Any]:
    fits = {f"{name}_fit": asdict(fit_gao(distances, [r[name] for r in rows], form)) for name in ("proxy", "gold")}
    return {"rows": rows, **fits}


def _before(label: str, results: dict[str, Result]) -> float:
    """Seconds of training the reward model, for the methods that have one; as long as the shuffled one's took."""
    if label not in ("ppo", "best of n") or "null-shuffled" not in results:
        return 0.0
    return float(results["null-shuffled"]["reward"]["seconds"])


def _with_start(result: Result, start: Result, seconds: float) -> list[Point]:
    """The points of a method from where all begin, gold as the difference, seconds with all that came before."""
    before = seconds + float(result.get("before", 0.0))
    points = [{"seconds": before, "kl_nats": 0.0, "distance": 0.0, "gold": 0.0, "proxy": 0.0, "gold_win_rate": 0.5}]
    for p in result["points"]:
        moved = {"seconds": p["seconds"] + before, "distance": math.sqrt(max(p["kl_nats"], 0.0))}
        points.append({**p, **moved, **{name: p[name] - start[name] for name in ("gold", "proxy")}})
    return points


def report(results: dict[str, Result], summary: dict[str, Any]) -> str:
    """All tables."""
    parts = [_curves(summary), _best_of_n(results), _policies(results), _equal(summary)]
    parts += [_nulls(results), _taxes(results)]
    return "\n\n".join(part for part in parts if part)


def _curves(summary: dict[str, Any]) -> str:
    rows = []
    curves = {**summary["betas"], **({"best of n": summary["best_of_n"]} if "best_of_n" in summary else {})}
    for label, curve in curves.items():
        last = curve["rows"][-1]
        for name in ("proxy", "gold"):
            fit = Fit(**curve[f"{name}_fit"])
            peak = "–" if fit.peak is None else f"{fit.peak:.2f}"
            kl = last.get("kl", last.get("kl_bound_nats"))
            fitted = (f"{fit.a:.3f}", f"{fit.b:.3f}", f"{fit.r2:.3f}", peak)
            rows.append((label, name, *fitted, f"{math.sqrt(kl):.2f}", f"{last[name]:+.3f}"))
    head = ("curve", "reward", "a", "b", "R²", "peak at √KL", "√KL reached", "gain there")
    return "Gao's forms\n\n" + markdown_table(head, rows)


def _best_of_n(results: dict[str, Result]) -> str:
    if "curve" not in results:
        return ""
    head = ("n", "KL bound, nats", "proxy", "gold", "gold, chosen by gold", "wins by gold", "n/(n+1)")
    rows = [
        (f"{p['n']:.0f}", f"{p['kl_bound_nats']:.3f}", f"{p['proxy']:.3f}", f"{p['gold']:.3f}", f"{best['gold']:.3f}",
         f"{p['gold_beats_another']:.3f}" if "gold_beats_another" in p else "–", f"{p['n'] / (p['n'] + 1):.3f}")
        for p, best in zip(results["curve"]["curve"], results["curve"]["by_gold"], strict=True)
    ]  # fmt: skip
    return "Best of n, without learning\n\n" + markdown_table(head, rows)


POLICY_HEAD = ("policy", "gold win rate, 95 %", "gold", "proxy", "KL, nats", "tokens", "ends", "distinct-2", "repeats")


def _policy_row(label: str, p: Point) -> tuple[str, ...]:
    low, high = (f"{100 * end:.1f}" for end in p.get("gold_win_rate_ci95", (math.nan, math.nan)))
    win = f"{100 * p['gold_win_rate']:.1f} ({low} – {high})" if "gold_win_rate_ci95" in p else "50"
    shown = (("gold", 3), ("proxy", 3), ("kl_nats", 2), ("reply_tokens", 1))
    numbers = [f"{p[name]:.{digits}f}" for name, digits in shown]
    rates = [f"{100 * p[name]:.1f} %" for name in ("ended_rate", "distinct_2", "repeated_4gram_rate")]
    return (label, win, *numbers, *rates)


def _policies(results: dict[str, Result]) -> str:
    """Where each learned policy came to rest."""
    names = [name for name, result in results.items() if result.get("points") and not name.startswith("null")]
    rows = [_policy_row("sft", results["start"]), *(_policy_row(name, results[name]["points"][-1]) for name in names)]
    return "The policies at their end, held-out prompts\n\n" + markdown_table(POLICY_HEAD, rows)


def _equal(summary: dict[str, Any]) -> str:
    """Gold at equal distance and at equal time; a dash where a method never came there, or had not begun."""
    methods = summary["methods"]
    distances, times = (0.5, 1.0, 2.0, 3.0, 5.0), (20.0, 70.0, 90.0, 110.0, 130.0, 150.0)
    rows = []
    for label, points in methods.items():
        # On straight lines over the root of the KL, along which rewards are nearly straight.
        values = [at(points, "distance", math.sqrt(kl), "gold") for kl in distances]
        values += [held(points, "seconds", seconds, "gold") for seconds in times]
        rows.append((label, *("–" if value is None else f"{value:+.2f}" for value in values)))
    head = ("gold above SFT", *(f"KL {kl:g}" for kl in distances), *(f"{seconds:.0f} s" for seconds in times))
    return "At equal distance and at equal time\n\n" + markdown_table(head, rows) if rows else ""


def _nulls(results: dict[str, Result]) -> str:
    rows = []
    for label, name in NULLS.items():
        if name in results:
            reward = results[name].get("reward")
            accuracy = f"{100 * reward['heldout_accuracy']:.1f} %" if reward else "–"
            rows.append((*_policy_row(label, results[name]["points"][-1]), accuracy))
    return "Null controls\n\n" + markdown_table((*POLICY_HEAD, "reward model, held out"), rows) if rows else ""


def _taxes(results: dict[str, Result]) -> str:
    rows = []
    for label, name in {"sft": "start", **TAXES}.items():
        if name in results:
            tax, point = results[name]["tax"], (results[name].get("points") or [results[name]])[-1]
            right = f"{100 * tax['other_skills_right']:.1f} %"
            gold, kl = f"{point['gold']:.3f}", f"{point['kl_nats']:.2f}"
            rows.append((label, f"{tax['heldout_bits_per_byte']:.4f}", right, gold, kl))
    head = ("β = 0.05", "held-out bits per byte", "other skills right", "gold", "KL, nats")
    return "Alignment tax\n\n" + markdown_table(head, rows) if rows else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run with sft, reward and ppo; only read")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment"))
    parser.add_argument("--only", nargs="*", default=[], help="names of sub-runs; all when left out")
    parser.add_argument("--threads", type=int, default=1)
    for name, default in (
        ("iterations", 30), ("null-iterations", 15), ("long-iterations", 60), ("few-prompts", 60),
        ("judged-prompts", 200), ("judged-seeds", 3), ("curve-prompts", 96),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    bench = Bench(options)
    results = run_all(bench, options.out, options.only)
    print(machine(environment(bench.setting.runtime)) + "\n")
    summary = summarise(results)
    tables = report(results, summary)
    print(tables)
    summary["results"] = {
        name: {key: value for key, value in result.items() if key != "rollouts"} for name, result in results.items()
    }
    write_atomic(options.out / "alignment.json", json.dumps(summary, indent=1) + "\n")
    write_atomic(options.out / "alignment.md", tables + "\n")
    if "best_of_n" in summary:
        draw(summary, options.out / "alignment.svg")


if __name__ == "__main__":
    main()
