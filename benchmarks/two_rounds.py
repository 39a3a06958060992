"""The loop with people, twice, with a scripted person: chat, votes, reward model, PPO, promotion, and again.

    python benchmarks/two_rounds.py RUN --out FOLDER [--votes 600] [--duels 200] [--agreement 0.75] [--set key=value]

RUN is a finished run of a recipe with the world, as recipes/quickstart.toml; the loop begins with its sft model.
One round:

1. The present policy answers each prompt twice. A scripted person says which answer is better: a line of votes.jsonl.
2. The run in FOLDER gets the next stages: a reward model that learns from the votes so far and nothing else, and PPO.
3. The old policy and the new one answer other prompts, and the person votes again. By these votes the promote stage
   decides which of the two goes on. The next round's reward model learns from them, too.

Only the person knows the hidden preference. His word agrees with it in a share `--agreement` of the pairs of round 1;
later, where answers are closer to each other, the same person agrees less often. At the end, and only then, the
preference itself judges: SFT, round 1 and round 2 against each other on held-out prompts. Finished parts are skipped:
the same command goes on after a stop. Exit 1 when round 2 does not beat round 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from table import machine, markdown_table

from jielong import Engine, World, load, parse_recipe, render, run
from jielong.config import load_toml, to_toml
from jielong.data.votes import Answer, Vote, append_vote
from jielong.evaluate.gold import Gold, agreement, calibrate_labeller, judge
from jielong.folder import model_hash
from jielong.runtime import derive_seed
from jielong.stages.context import promoted_model

NUM_USERS = 3  # the scripted person under so many names
REPEATED_FRACTION = 0.1  # of the prompts that a second one of them votes on as well
FIRST_TIME = datetime(2026, 1, 1, tzinfo=timezone.utc)
KEPT = ("run", "data", "curate", "tokenizer", "pretrain", "sft")  # tables of RUN's recipe that the loop starts from
LEFT_TO_PEOPLE = ("sources", "num_prompts", "replies_per_prompt", "label_agreement")  # settings of [reward] dropped
NUM_SEEDS = 3  # replies to a prompt in the last comparison

Prompt = dict[str, Any]


@dataclass(frozen=True)
class Loop:
    """Where the loop runs, and what all of it needs to know. source: RUN's recipe. settings: as in jielong run."""

    folder: Path
    source: dict[str, Any]
    num_votes: int
    num_duels: int
    num_judged: int
    agreement: float
    num_iterations: int
    settings: tuple[str, ...]

    @property
    def recipe(self) -> Path:
        return self.folder / "two-rounds.toml"

    @property
    def votes(self) -> Path:
        return self.folder / "votes.jsonl"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def max_new_tokens(self) -> int:
        return int(self.source["ppo"]["max_new_tokens"])

    def stage(self, name: str) -> Path:
        """RUN/NN-NAME."""
        return next(path for path in sorted(self.run.glob("[0-9][0-9]-*")) if path.name[3:] == name)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    source = load_toml(options.run / "recipe.toml")
    numbers = (options.votes, options.duels, options.judged, options.agreement, options.iterations)
    loop = Loop(options.out, source, *numbers, tuple(options.set))
    start(loop, options.run)
    world = World(parse_recipe(loop.recipe).world_seed)
    policies = {"sft": loop.stage("sft") / "model"}
    for number in (1, 2):
        present = list(policies.values())[-1]
        prompts = part_of(world.story_prompts(2 * loop.num_votes, "reward"), number)
        collect(loop, f"{number}", prompts, (present, present))
        add_round(loop, number)
        run(loop.recipe, out=loop.run, overrides=list(loop.settings), until=f"ppo-{number}")
        prompts = part_of(world.story_prompts(2 * loop.num_duels, "train"), number)
        collect(loop, f"{number}-duel", prompts, (present, loop.stage(f"ppo-{number}") / "model"))
        report = run(loop.recipe, out=loop.run, overrides=list(loop.settings))
        policies[f"round {number}"] = promoted_model(loop.stage(f"promote-{number}"))
    compared = compare(loop, policies, world.story_prompts(loop.num_judged, "heldout"))
    text = render_tables(loop, report, compared)
    print(text)
    (loop.folder / "table.md").write_text(text, encoding="utf-8")
    (loop.folder / "table.json").write_text(json.dumps(compared, indent=1) + "\n", encoding="utf-8")
    return 0 if compared["round 2 against round 1"]["ci95"][0] > 0.5 else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run of a recipe with the world")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--votes", type=int, default=600, help="prompts voted on, a round (default %(default)s)")
    parser.add_argument("--duels", type=int, default=200, help="prompts that old and new answer, a round (%(default)s)")
    parser.add_argument("--judged", type=int, default=200, help="held-out prompts of the last comparison (%(default)s)")
    parser.add_argument("--agreement", type=float, default=0.75, help="of the person with the hidden preference")
    parser.add_argument("--iterations", type=int, default=30, help="of PPO, a round (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in jielong run")
    return parser


def start(loop: Loop, finished: Path) -> None:
    """Put the recipe's tables up to [sft], and the stages that they made, into the loop's folder."""
    if loop.recipe.exists():
        return
    loop.folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(KEPT[2:], start=1):
        shutil.copytree(finished / f"{number:02d}-{name}", loop.run / f"{number:02d}-{name}", dirs_exist_ok=True)
    tables = {name: table for name, table in loop.source.items() if name in KEPT}
    loop.recipe.write_text(to_toml(tables), encoding="utf-8")


def add_round(loop: Loop, number: int) -> None:
    """Append the round's stages to the recipe: what a user does when there are new votes."""
    text = loop.recipe.read_text(encoding="utf-8")
    if f"[reward-{number}]" in text:
        return
    reward = {key: value for key, value in loop.source["reward"].items() if key not in LEFT_TO_PEOPLE}
    votes = {"files": [str(loop.votes)]}
    amounts = {"num_iterations": loop.num_iterations, "judged_prompts": loop.num_judged}
    tables = {
        f"reward-{number}": {**reward, "kind": "reward", "votes": votes},
        f"ppo-{number}": {**loop.source["ppo"], "kind": "ppo", **amounts},
        f"promote-{number}": {"kind": "promote", "judge": "votes", "votes": votes},
    }
    loop.recipe.write_text(text + "\n" + to_toml(tables), encoding="utf-8")


def part_of(prompts: list[Prompt], number: int) -> list[Prompt]:
    """The prompts of one round, none of which is asked in the other."""
    half = len(prompts) // 2
    return prompts[:half] if number == 1 else prompts[half : 2 * half]


def collect(loop: Loop, name: str, prompts: list[Prompt], policies: tuple[Path, Path]) -> None:
    """An answer of each of the two policies to each prompt, in either order, and the person's votes on them.

    name: begins the votes' ids. What a stopped collection had written is taken back before it is made again.
    """
    done = loop.folder / f"collected-{name}.json"
    if done.exists():
        return
    seed = derive_seed(loop.source["run"]["seed"], "two rounds", name)
    generator = np.random.default_rng(seed)
    hashes = [model_hash(policy) for policy in policies]
    said = [
        sampled(policy, prompts, loop.max_new_tokens, derive_seed(seed, side)) for side, policy in enumerate(policies)
    ]
    orders = [generator.permutation(2) for _ in prompts]
    pairs = [[said[side][place] for side in order] for place, order in enumerate(orders)]
    gold, person = Gold(), loop.folder / "person.json"
    if not person.exists():  # calibrated once: a person does not become sharper when answers become better
        person.write_text(json.dumps(calibrate_labeller(prompts, pairs, gold, loop.agreement)), encoding="utf-8")
    temperature = json.loads(person.read_text(encoding="utf-8"))
    if loop.votes.exists():
        lines = loop.votes.read_bytes().splitlines(keepends=True)
        loop.votes.write_bytes(b"".join(line for line in lines if not json.loads(line)["id"].startswith(f"{name}:")))
    for place, (prompt, texts, order) in enumerate(zip(prompts, pairs, orders, strict=True)):
        when = (FIRST_TIME + timedelta(seconds=place)).isoformat()
        answers = tuple(
            Answer(text, policies[side].parent.name, hashes[side], {"temperature": 1.0})
            for text, side in zip(texts, order, strict=True)
        )
        chance = 1 / (1 + np.exp((gold.score(prompt, texts[1]) - gold.score(prompt, texts[0])) / temperature))
        num_users = 2 if generator.random() < REPEATED_FRACTION else 1
        for user in generator.permutation(NUM_USERS)[:num_users]:
            choice = "a" if generator.random() < chance else "b"
            vote = Vote(f"{name}:{place}:{user}", when, f"user-{user}", prompt["messages"], answers, choice)
            append_vote(loop.votes, vote)
    found = {"agreement_with_gold": agreement(prompts, pairs, gold, temperature), "prompts": len(prompts)}
    done.write_text(json.dumps(found), encoding="utf-8")


def sampled(policy: Path, prompts: list[Prompt], max_new_tokens: int, seed: int) -> list[str]:
    """One reply to each prompt, at temperature 1."""
    model, tokenizer = load(policy)
    ids = [render(prompt["messages"], tokenizer, reply=True)[0] for prompt in prompts]
    made = Engine(model, tokenizer).generate(ids, max_new_tokens=max_new_tokens, temperature=1.0, seed=seed)
    return [completion.text for completion in made]


def compare(loop: Loop, policies: dict[str, Path], prompts: list[Prompt]) -> dict[str, Any]:
    """The hidden preference's word on each two policies' replies to held-out prompts."""
    asked, run_seed = prompts * NUM_SEEDS, loop.source["run"]["seed"]
    texts: dict[str, list[str]] = {}
    for name, policy in policies.items():
        seeds = [derive_seed(run_seed, "last word", name, seed) for seed in range(NUM_SEEDS)]
        texts[name] = [text for seed in seeds for text in sampled(policy, prompts, loop.max_new_tokens, seed)]
    found: dict[str, Any] = {}
    for after, before in (("round 1", "sft"), ("round 2", "round 1"), ("round 2", "sft")):
        word = judge(asked, texts[after], texts[before], Gold(), seed=0)
        found[f"{after} against {before}"] = {
            "win_rate": word.win_rate,
            "ci95": list(word.win_rate_ci95),
            "win_rate_length_controlled": word.win_rate_length_controlled,
            "gold_before": word.gold_b,
            "gold_after": word.gold_a,
            "judged": word.num,
        }
    return found


def render_tables(loop: Loop, report: dict[str, Any], compared: dict[str, Any]) -> str:
    """The rounds, and the last word, as Markdown."""
    rows = {title: [title] for title in ROUND_TITLES}
    for number in (1, 2):
        for title, value in zip(ROUND_TITLES, _round(loop, report["stages"], number), strict=True):
            rows[title].append(value)
    lines = [
        [name, percent(row["win_rate"], row["ci95"]), f"{100 * row['win_rate_length_controlled']:.1f} %",
         f"{row['gold_before']:.2f} → {row['gold_after']:.2f}", str(row["judged"])]
        for name, row in compared.items()
    ]  # fmt: skip
    first = markdown_table(["", "round 1", "round 2"], list(rows.values()))
    second = markdown_table(["policy", "gold win rate", "length-controlled", "gold score", "replies"], lines)
    return "\n\n".join([first, second, machine(report["environment"])]) + "\n"


ROUND_TITLES = (
    "votes that the reward model learns from",
    "person agrees with the hidden preference",
    "users agree with each other",
    "reward model agrees with held-out votes",
    "score by the reward model, before → after PPO",
    "score by the hidden preference, the same",
    "KL, nats a reply",
    "votes won by the new policy",
    "promoted",
    "seconds of the round's stages",
)


def _round(loop: Loop, stages: dict[str, Any], number: int) -> list[str]:
    """A column of the first table."""
    names = [f"{kind}-{number}" for kind in ("reward", "ppo", "promote")]
    reward, ppo, promote = (stages[name]["figures"] for name in names)
    person = json.loads((loop.folder / f"collected-{number}.json").read_text(encoding="utf-8"))
    return [
        str(reward["votes"]["counted"]),
        f"{100 * person['agreement_with_gold']:.1f} %",
        percent(reward.get("user_agreement"), reward.get("user_agreement_ci95")),
        percent(reward.get("heldout_votes_accuracy"), reward.get("heldout_votes_accuracy_ci95")),
        f"{ppo['proxy_reward_before']:.2f} → {ppo['proxy_reward_after']:.2f}",
        f"{ppo['gold_reward_before']:.2f} → {ppo['gold_reward_after']:.2f}",
        f"{ppo['kl_nats_per_reply']:.1f}",
        f"{percent(promote['win_rate'], promote['win_rate_ci95'])} of {promote['judged']}",
        "yes" if promote["promoted"] else "no",
        f"{sum(stages[name]['seconds'] for name in names):.0f}",
    ]


def percent(rate: float | None, ci95: Sequence[float] | None) -> str:
    if rate is None or ci95 is None:
        return "–"
    return f"{100 * rate:.1f} % ({100 * ci95[0]:.1f} – {100 * ci95[1]:.1f})"


if __name__ == "__main__":
    sys.exit(main())
