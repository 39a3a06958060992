"""Speed beside TRL: PPO against the last release that had it (1.12), SFT and DPO against 1.16.

    pip install --no-deps --target trl/v112 trl==1.12.0
    pip install --no-deps --target trl/v116 trl==1.16.0
    python benchmarks/trl_speed.py --trl-ppo trl/v112 --trl trl/v116 [--also trl/common]

Setting: 4 layers, 128 wide, vocabulary 2048; PPO of 32 prompts of 32 tokens, 48 new ones, one epoch, one minibatch; SFT
rows of 8 x 128 tokens; DPO of 8 pairs. The same weights and data, AdamW with the same epsilon, the same threads, both
with the allocator as it comes. Theirs without gradient checkpointing, in bfloat16 only where ours is. A measurement is
a process of its own; sides take turns; medians are told, and the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from child import run_child
from table import machine, markdown_table

from jielong.align.reward import RewardModel, scalar_from_policy
from jielong.folder import save
from jielong.model.presets import preset_config
from jielong.model.transformer import Transformer
from jielong.runtime import detect, environment
from jielong.tokenizer import Tokenizer

CHILD = Path(__file__).with_name("trl_child.py")
SOURCE = Path(__file__).resolve().parent.parent / "src"
VOCAB_SIZE, PROMPT_TOKENS, ROW_TOKENS, BATCH_ROWS = 2048, 32, 128, 8
UNITS = {"ppo": "episodes/s", "sft": "tokens/s", "dpo": "pairs/s"}


def prepare(folder: Path, num_steps: int) -> None:
    """Write policy, reward and data.json once: random weights, random words."""
    if (folder / "data.json").exists():
        return
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwy", k=draw.randint(3, 8))) for _ in range(3000)]
    text = [" ".join(draw.choices(words, k=60)) for _ in range(400)]
    tokenizer = Tokenizer.train(text, VOCAB_SIZE)
    policy = Transformer(preset_config("jie-s", tokenizer.vocab_size, 256))
    policy.init_weights(torch.Generator().manual_seed(1))
    save(policy.eval(), tokenizer, folder / "policy")
    RewardModel(scalar_from_policy(policy, torch.Generator().manual_seed(2))).save(tokenizer, folder / "reward")

    def ids(num: int) -> list[int]:
        return [draw.randrange(20, tokenizer.vocab_size) for _ in range(num)]

    def say(num_words: int) -> str:
        return " ".join(draw.choices(words, k=num_words))

    pairs = [
        {"prompt": say(8), "chosen": " " + say(12), "rejected": " " + say(12)} for _ in range(num_steps * BATCH_ROWS)
    ]
    data = {
        "prompts": [ids(PROMPT_TOKENS) for _ in range(512)],
        "rows": [ids(ROW_TOKENS) for _ in range(num_steps * BATCH_ROWS)],
        "pairs": pairs,
    }
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")


def measure(side: str, task: str, dtype: str, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """One child's figures. Raises SystemExit with the end of its output when it fails."""
    theirs = [options.trl_ppo if task == "ppo" else options.trl, *options.also]
    path = os.pathsep.join(str(part) for part in ([SOURCE] if side == "ours" else theirs))
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, str(CHILD), side, task, str(options.out), dtype, str(steps)]
    log = options.out / f"{side}-{task}-{dtype}.log"
    done = run_child(command, log, environment={**threads, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})
    if done.exit_code:
        raise SystemExit(f"{side} {task} failed:\n{done.tail(30)}")
    outcome: dict[str, Any] = json.loads(done.output.strip().splitlines()[-1])
    return outcome


def compare(task: str, dtype: str, options: argparse.Namespace) -> tuple[str, ...]:
    """One row: medians over turns, the ratio turn by turn, and what the two sides say of the same data."""
    steps = options.ppo_steps if task == "ppo" else options.steps
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for turn in range(options.repeats):
        for side in ("ours", "theirs")[:: 1 if turn % 2 == 0 else -1]:
            found[side].append(measure(side, task, dtype, steps, options))
    rates = {side: [each["units"] / each["seconds"] for each in turns] for side, turns in found.items()}
    ratio = statistics.median(mine / other for mine, other in zip(rates["ours"], rates["theirs"], strict=True))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    memory = {side: statistics.median(each["peak_bytes"] for each in turns) / 1e6 for side, turns in found.items()}
    return (
        task, dtype, UNITS[task], f"{medians['ours']:.1f}", f"{medians['theirs']:.1f}", f"{ratio:.2f}",
        f"{memory['ours']:.0f}", f"{memory['theirs']:.0f}", _agreement(task, found["ours"][0], found["theirs"][0]),
    )  # fmt: skip


def _agreement(task: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The correctness column: losses of the first steps on the same data, or what must be 0 in a first rollout."""
    if task == "ppo":
        told = [
            f"{who} KL {side.get('first_kl', float('nan')):.1e}" for who, side in (("ours", ours), ("theirs", theirs))
        ]
        return "first rollout: " + ", ".join(told)
    gaps = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=False)]
    return f"first losses {ours['losses'][0]:.4f}, {theirs['losses'][0]:.4f}; largest gap of 3 steps {max(gaps):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-ppo", type=Path, required=True, help="folder with trl 1.12")
    parser.add_argument("--trl", type=Path, required=True, help="folder with trl 1.16")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="folders with what trl needs and is not here")
    parser.add_argument("--out", type=Path, default=Path("runs/trl-speed"))
    parser.add_argument("--tasks", nargs="+", choices=list(UNITS), default=list(UNITS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ppo-steps", type=int, default=10, help="iterations; 32 episodes each")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(options.out, options.steps)
    loads = [os.getloadavg()[0]]
    rows = [compare(task, dtype, options) for task in options.tasks for dtype in options.dtypes]
    loads.append(os.getloadavg()[0])
    print(machine({**environment(detect("cpu")), "threads": options.threads}))
    print(f"load of the machine before and after: {loads[0]:.1f}, {loads[1]:.1f}")
    head = ("task", "precision", "unit", "ours", "TRL", "ratio", "our peak, MB", "TRL's, MB", "the same?")
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
