"""The quickstart's figures and answers in README.md and README.zh.md, written from the runs of seeds.py.

    python benchmarks/readme.py runs/seeds --seeds 1 2 3 [--note-en TEXT --note-zh TEXT]

Replaces what stands between the marks "figures:quickstart" and "samples:quickstart" in both pages; text under the table
comes from the notes. The samples are those of the first seed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from seeds import read_run
from table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
SKILLS = (
    "facts_unseen", "facts_seen", "arithmetic", "translation", "identity", "refusal", "chain", "terminal", "echo",
    "story",
)  # fmt: skip
LABELS = {
    "en": {
        "figure": "figure", "seed": "seed", "bits": "held-out bits per byte (3-gram, 5-gram)",
        "ends": "replies that end their turn, sft", "reward": "reward model, held-out accuracy (length, noise ceiling)",
        "win": "gold win rate of ppo over sft (95 %)", "controlled": "the same, length-controlled",
        "kl": "distance from sft, nats a reply", "gold": "gold score before → after",
        "tax": "held-out bits per byte before → after PPO", "time": "time", "memory": "peak memory",
    },
    "zh": {
        "figure": "数字", "seed": "种子", "bits": "留出文本每字节比特数（3-gram，5-gram）",
        "ends": "回答自行结束的比例，sft", "reward": "奖励模型留出准确率（只看长度，噪声上限）",
        "win": "ppo 对 sft 的黄金胜率（95 %）", "controlled": "同上，控制长度",
        "kl": "与 sft 的距离，nat/回答", "gold": "黄金得分 前 → 后", "tax": "PPO 前 → 后的每字节比特数", "time": "时间",
        "memory": "内存峰值",
    },
}  # fmt: skip


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def column(report: dict[str, Any]) -> dict[str, str]:
    """What one run says, by the keys of LABELS and by skill."""
    figures = {stage["kind"]: stage["figures"] for stage in report["stages"].values()}
    pretrain, reward, ppo = figures["pretrain"], figures["reward"], figures["ppo"]
    table = figures["evaluate"]["exact_match"]
    seconds = round(report["process"]["seconds"])
    low, high = ppo["gold_win_rate_ci95"]
    cells = {
        "bits": f"{pretrain['heldout_bits_per_byte']:.3f} ({pretrain['trigram_bits_per_byte']:.3f}, "
        f"{pretrain['fivegram_bits_per_byte']:.3f})",
        "ends": f"{percent(figures['sft']['end_of_turn_rate'])} %",
        "reward": f"{percent(reward['heldout_accuracy'])} % ({percent(reward['length_baseline_accuracy'])} %, "
        f"{percent(reward['noise_ceiling_accuracy'])} %)",
        "win": f"{percent(ppo['gold_win_rate'])} % ({percent(low)} – {percent(high)})",
        "controlled": f"{percent(ppo['gold_win_rate_length_controlled'])} %",
        "kl": f"{ppo['kl_nats_per_reply']:.1f}",
        "gold": f"{ppo['gold_reward_before']:.2f} → {ppo['gold_reward_after']:.2f}",
        "tax": f"{ppo['heldout_bits_per_byte_before']:.3f} → {ppo['heldout_bits_per_byte_after']:.3f}",
        "time": f"{seconds // 60}:{seconds % 60:02d}",
        "memory": f"{report['process']['peak_memory_bytes'] / 1e9:.1f} GB",
    }
    for skill in SKILLS:
        rates = [round(100 * table[model][skill]) for model in ("base", "sft", "ppo")]
        cells[skill] = " / ".join(map(str, rates)) + " %"
    return cells


def figures_block(reports: list[dict[str, Any]], seeds: list[int], language: str, note: str) -> str:
    labels, columns = LABELS[language], [column(report) for report in reports]
    keys = ("bits", "ends", *SKILLS, "reward", "win", "controlled", "kl", "gold", "tax", "time", "memory")
    rows = [[labels.get(key, f"{key}: base / sft / ppo"), *(cells[key] for cells in columns)] for key in keys]
    header = [labels["figure"], *(f"{labels['seed']} {seed}" for seed in seeds)]
    return "\n\n".join([markdown_table(header, rows), note])


def samples_block(folder: Path) -> str:
    """The first question of each skill, as the evaluate stage put it to all models."""
    shown = json.loads(next(folder.glob("*-evaluate/samples.json")).read_text(encoding="utf-8"))
    models = ("base", "sft", "ppo")
    first = {sample["skill"]: sample for sample in reversed(shown)}
    asked = [first[skill] for skill in SKILLS if skill != "terminal"]  # which means nothing without its list of files
    rows = [[_cell(sample["prompt"]), *(_cell(sample[model]) for model in models)] for sample in asked]
    return markdown_table(["prompt", *models], rows)


def _cell(text: str, most: int = 120) -> str:
    flat = text.strip().replace("\n", " ⏎ ").replace("|", "\\|")
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def replace_block(page: Path, mark: str, content: str) -> None:
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {mark} -->\n\n).*?(\n\n<!-- end {mark} -->)", flags=re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"{page}: there is no block {mark}")
    page.write_text(pattern.sub(lambda found: found[1] + content + found[2], text), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="--out of seeds.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--note-en", default="")
    parser.add_argument("--note-zh", default="")
    options = parser.parse_args()
    reports = [read_run(options.runs, seed) for seed in options.seeds]
    for name, language, note in (("README.md", "en", options.note_en), ("README.zh.md", "zh", options.note_zh)):
        replace_block(ROOT / name, "figures:quickstart", figures_block(reports, options.seeds, language, note))
        replace_block(ROOT / name, "samples:quickstart", samples_block(options.runs / f"seed-{options.seeds[0]}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
