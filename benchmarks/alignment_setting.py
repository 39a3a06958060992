"""What the sub-runs of alignment.py share: the models and prompts of a finished run, and who judges a policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from jielong.align.comparisons import Comparison, comparison_batches, encode_comparisons, pad_rows, split_by_prompt
from jielong.align.diversity import diversity_figures
from jielong.align.reward import RewardModel, bradley_terry, scalar_from_policy
from jielong.align.rollout import lay_out
from jielong.data.pack import Rows
from jielong.data.world import SKILLS, World
from jielong.evaluate.gold import Gold, judge
from jielong.evaluate.likelihood import bits_per_byte, heldout_logprobs, heldout_nats, scored_bytes
from jielong.evaluate.skills import exact_match
from jielong.folder import load
from jielong.generate.engine import Completion, Engine
from jielong.model.transformer import Transformer
from jielong.recipe import Recipe, parse_recipe
from jielong.runtime import Runtime, derive_seed
from jielong.stages.context import read_jsonl
from jielong.stages.corpus import askable
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render
from jielong.train.loop import FitConfig, fit
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.schedule import multiplier

Prompt = dict[str, Any]
NUM_REFERENCE_REPLIES = 512  # as in the reward stage: on them a reward model has mean 0 and deviation 1


@dataclass(frozen=True)
class Setting:
    """A finished run with the stages sft, reward and ppo, of which only files are read."""

    folder: Path
    recipe: Recipe
    runtime: Runtime

    @classmethod
    def of(cls, folder: Path, runtime: Runtime) -> Setting:
        return cls(folder, parse_recipe(folder / "recipe.toml"), runtime)

    def stage(self, kind: str) -> Path:
        """Folder of the last stage of a kind."""
        stages = enumerate(self.recipe.stages, 1)
        return self.folder / [f"{number:02d}-{stage.name}" for number, stage in stages if stage.kind == kind][-1]

    def settings(self, kind: str) -> Any:
        """The recipe's settings of the last stage of a kind."""
        return [stage.settings for stage in self.recipe.stages if stage.kind == kind][-1]

    def policy(self) -> Transformer:
        """The SFT model, fresh from its folder."""
        return load(self.stage("sft") / "model")[0].to(self.runtime.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load(self.stage("sft") / "model")[1]

    @cached_property
    def reward(self) -> RewardModel:
        return RewardModel.load(self.stage("reward") / "model")

    @cached_property
    def world(self) -> World:
        return World(self.recipe.world_seed)

    @cached_property
    def comparisons(self) -> tuple[list[Comparison], list[Comparison]]:
        """(training, held-out) comparisons of the reward stage, in that stage's own split."""
        records = read_jsonl(self.stage("reward") / "comparisons.jsonl")
        found = [Comparison.from_record(record) for record in records]
        seed = derive_seed(self.recipe.run.seed, self.stage("reward").name[3:])
        return split_by_prompt(found, self.settings("reward").heldout_fraction, seed)

    def ids(self, prompt: Prompt) -> list[int]:
        """The prompt's ids, ending where the reply begins."""
        return render(prompt["messages"], self.tokenizer, reply=True)[0]

    def sample(self, model: Transformer, prompts: list[Prompt], seed: int) -> list[Completion]:
        """One reply to each prompt, at the settings of the ppo stage."""
        settings = self.settings("ppo")
        return Engine(model, self.tokenizer, self.runtime).generate(
            [self.ids(prompt) for prompt in prompts],
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=seed,
        )

    def scores(self, replies: list[Completion], batch_rows: int = 64) -> list[float]:
        """What the run's reward model says of each reply."""
        rows = [[*reply.prompt, *reply.tokens] for reply in replies]
        batches = batched(rows, self.tokenizer.pad_id, batch_rows)
        return [score for tokens, ends in batches for score in self.reward.score(tokens, None, ends).tolist()]

    def kl(self, after: Transformer, before: Transformer, replies: list[Completion]) -> float:
        """KL(after || before), nats a reply, by the replies that `after` gave."""
        tokens, mask, segments, _ = lay_out(replies, self.tokenizer.pad_id)
        rows, temperature = Rows(tokens.int(), mask, segments.int()), self.settings("ppo").temperature
        told = [heldout_logprobs(model, rows, self.runtime, temperature=temperature) for model in (after, before)]
        return float((told[0] - told[1]).double().sum()) / len(replies)

    def train_reward(self, training: list[Comparison]) -> tuple[RewardModel, float]:
        """A reward model as the reward stage makes one, from other comparisons. Returns it and its accuracy on them."""
        settings, policy = self.settings("reward"), self.policy()
        items = encode_comparisons(training, self.tokenizer, policy.config.max_length).items
        batches, per_epoch = comparison_batches(items, settings.batch_rows, self.tokenizer.pad_id, self.recipe.run.seed)
        model = scalar_from_policy(policy, self.runtime.generator("head"))
        optimizer = build_optimizer(model, OptimizerConfig(settings.learning_rate, weight_decay=settings.weight_decay))
        num_steps, accuracy = settings.steps(per_epoch), 0.0
        for stats in fit(
            model, optimizer, batches, bradley_terry, cosine(num_steps), self.runtime, FitConfig(num_steps)
        ):
            accuracy += stats.metrics["accuracy"] / num_steps
        reward = RewardModel(model.eval().requires_grad_(False))
        said = [(c.messages, text) for part in self.comparisons for c in part for text in c.replies]
        rows = [
            render([*messages, {"role": "assistant", "content": text}], self.tokenizer)[0]
            for messages, text in said[:NUM_REFERENCE_REPLIES]
        ]
        reward.normalise(batched(rows, self.tokenizer.pad_id))
        return reward, accuracy


def batched(rows: list[list[int]], pad_id: int, batch_rows: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens, ends) of rows, a batch at a time."""
    for first in range(0, len(rows), batch_rows):
        tokens, _, ends = pad_rows(rows[first : first + batch_rows], pad_id)
        yield tokens, ends


def cosine(num_steps: int) -> Any:
    """Step -> multiplier of the rate: a short warm-up, then a cosine to a tenth."""
    warmup = min(10, num_steps // 10)
    return lambda step: multiplier(step, kind="cosine", warmup_steps=warmup, num_steps=num_steps, final_fraction=0.1)


class Judge:
    """Held-out prompts, what the SFT model answers to them, and the hidden preference, which no sub-run trains on."""

    def __init__(self, setting: Setting, num_prompts: int, num_seeds: int) -> None:
        self.setting, self.num_seeds, self.gold = setting, num_seeds, Gold()
        self.prompts = setting.world.story_prompts(num_prompts, "heldout")
        self.sft = setting.policy()
        self.before = [reply for seed in range(num_seeds) for reply in setting.sample(self.sft, self.prompts, 1 + seed)]
        self.start = {**self._rewards(self.before), "kl_nats": 0.0, "gold_win_rate": 0.5}

    def scores(self, prompts: list[Prompt], replies: list[Completion]) -> list[float]:
        """The hidden preference's of each reply."""
        return [self.gold.score(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]

    def point(self, policy: Transformer, num_seeds: int = 1) -> dict[str, Any]:
        """Where a policy is: rewards, distance, win rate against the SFT model's replies, and what hacking shows in."""
        asked, num = self.prompts * num_seeds, len(self.prompts) * num_seeds
        replies = [r for seed in range(num_seeds) for r in self.setting.sample(policy, self.prompts, 101 + seed)]
        texts, before = ([reply.text for reply in found] for found in (replies, self.before[:num]))
        verdict = judge(asked, texts, before, self.gold)
        return {
            **self._rewards(replies),
            "kl_nats": self.setting.kl(policy, self.sft, replies),
            "gold_win_rate": verdict.win_rate,
            "gold_win_rate_ci95": list(verdict.win_rate_ci95),
            "gold_win_rate_length_controlled": verdict.win_rate_length_controlled,
            "replies": num,
        }

    def _rewards(self, replies: list[Completion]) -> dict[str, float]:
        asked = self.prompts * (len(replies) // len(self.prompts))
        proxy, gold = self.setting.scores(replies), self.scores(asked, replies)
        return {
            "proxy": sum(proxy) / len(proxy),
            "gold": sum(gold) / len(gold),
            "reply_tokens": sum(len(reply.tokens) for reply in replies) / len(replies),
            "ended_rate": sum(reply.finish_reason == "stop" for reply in replies) / len(replies),
            **diversity_figures(replies),
        }

    def tax(self, policy: Transformer, num_questions: int = 25) -> dict[str, float]:
        """What was lost elsewhere: held-out bits per byte of pre-training, and right answers to what is no story."""
        setting = self.setting
        rows = Rows.load(setting.stage("pretrain") / "heldout.safetensors")
        nats, _ = heldout_nats(policy, rows, setting.runtime)
        skills = [skill for skill in SKILLS if skill != "story"]
        questions = [q for skill in skills for q in setting.world.questions(skill, num_questions, "heldout")]
        questions = askable(questions, setting.tokenizer, policy.config.max_length)
        engine = Engine(policy, setting.tokenizer, setting.runtime)
        table, _ = exact_match(engine, setting.tokenizer, questions, max_new_tokens=64)
        return {
            "heldout_bits_per_byte": bits_per_byte(nats, scored_bytes(rows, setting.tokenizer)),
            "other_skills_right": sum(row["rate"] for row in table.values()) / len(table),
        }
