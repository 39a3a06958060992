"""The sub-runs of alignment.py: PPO in its variants, DPO, learning from chosen replies, and best of n without learning.

Each leaves {"points": [...], ...} and nothing else; a point says how many seconds of work a policy took and where it is
(alignment_setting.Judge.point). Seconds are of the processor (all threads), so that a busy machine changes nothing, and
those of judging are not counted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from alignment_setting import Judge, Prompt, Setting, cosine

from jielong.align.best_of_n import as_examples, curve, pick
from jielong.align.comparisons import Comparison, comparison_batches, encode_comparisons
from jielong.align.dpo import DPOConfig, dpo, with_reference
from jielong.align.judges import NOT_JUDGED
from jielong.align.learner import build_learner
from jielong.align.ppo import optimise
from jielong.align.settings import PPOConfig
from jielong.data.batch import Batch
from jielong.data.loader import RowLoader, RowSource
from jielong.data.pack import pack_examples
from jielong.data.shards import open_streams
from jielong.data.stream import StreamRows
from jielong.generate.engine import Completion
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.tokenizer.chat import render
from jielong.train.loop import FitConfig, fit
from jielong.train.objectives import Objective, next_token
from jielong.train.optim import OptimizerConfig, build_optimizer

Result = dict[str, Any]
ItemT = TypeVar("ItemT")
ROLLOUT_KEYS = ("kl_nats_per_reply", "kl_k3_nats_per_reply", "reply_tokens", "ended_rate", "distinct_2",
                "repeated_4gram_rate", "entropy_nats", "engine_gap_mean_nats", "clip_fraction")  # fmt: skip


@dataclass(frozen=True)
class RandomReward:
    """A reward that knows nothing: a standard normal number that depends on the reply's ids alone."""

    seed: int

    def score_replies(self, completions: Sequence[Completion]) -> list[float]:
        scores = []
        for completion in completions:
            ids = ",".join(map(str, (*completion.prompt, -1, *completion.tokens)))
            digest = hashlib.sha256(f"{self.seed}:{ids}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            scores.append(float(torch.randn((), generator=generator)) if completion.tokens else NOT_JUDGED)
        return scores


def timed(items: Iterator[ItemT]) -> Iterator[tuple[ItemT, float]]:
    """Each item with the processor's seconds that all so far have taken to make, the caller's own work left out."""
    spent = 0.0
    while True:
        started = time.process_time()
        try:
            item = next(items)
        except StopIteration:
            return
        spent += time.process_time() - started
        yield item, spent


def ppo_config(setting: Setting, num_iterations: int, **changes: Any) -> PPOConfig:
    """The recipe's own settings with fewer iterations and without text beside; `changes` are laid over them."""
    config = setting.settings("ppo").optimisation()
    return replace(config, **{"num_iterations": num_iterations, "ptx_coefficient": 0.0, **changes})


def run_ppo(
    setting: Setting, judge: Judge, config: PPOConfig, reward: Any = None, text: Callable[[int], Batch] | None = None,
    watch_every: int = 5, tax: bool = False,
) -> Result:  # fmt: skip
    """PPO. `rollouts`: every iteration's own replies to training prompts, judged too; `points`: held-out prompts."""
    policy = setting.policy()
    generator = setting.runtime.generator("alignment", "head")
    learner = build_learner(policy, reward or setting.reward, setting.tokenizer, config, generator=generator)
    prompts = setting.world.story_prompts(config.num_iterations * config.rollout_rows, "ppo")
    known = {tuple(setting.ids(prompt)): prompt for prompt in prompts}
    rollouts: list[Result] = []
    points: list[Result] = []
    asked = [list(ids) for ids in known]
    for stats, spent in timed(optimise(learner, asked, config, setting.runtime, text=text)):
        gold = judge.scores([known[tuple(each.prompt)] for each in stats.completions], stats.completions)
        row = {name: stats.figures[name] for name in ROLLOUT_KEYS if name in stats.figures}
        row |= {"proxy": stats.figures["proxy_reward"], "gold": sum(gold) / len(gold), "seconds": spent}
        rollouts.append({"iteration": stats.iteration, **row})
        last = stats.stopped or stats.iteration == config.num_iterations
        if last or stats.iteration % watch_every == 0:
            point = judge.point(policy, judge.num_seeds if last else 1)
            points.append({"step": stats.iteration, "seconds": spent, **point})
        shown = "  ".join(f"{name} {row[name]:.3f}" for name in ("proxy", "gold", "kl_nats_per_reply"))
        print(f"  {stats.iteration}: {shown}", flush=True)
    return {"rollouts": rollouts, "points": points, "tax": judge.tax(policy) if tax else None}


def text_beside(setting: Setting, config: PPOConfig, source: str) -> Callable[[int], Batch]:
    """Rows for PPO-ptx, as the ppo stage takes them: of the pre-training corpus, or conversations of the sft stage."""
    if source == "pretrain":
        tokenizer = setting.tokenizer
        streams = open_streams(setting.stage("pretrain") / "tokens", tokenizer.hash, tokenizer.vocab_size)
        context_tokens = setting.settings("pretrain").context_tokens
        rows: RowSource = StreamRows(list(streams.values()), context_tokens, tokenizer.vocab_size)
    else:
        sft = setting.settings("sft")
        records = setting.world.conversations(sft.num_conversations, "train")
        told = (render(record["messages"], setting.tokenizer) for record in records)
        rows = pack_examples(told, setting.settings("pretrain").context_tokens, packed=sft.packed)
    ptx_rows = setting.settings("ppo").ptx_rows or config.minibatch_rows
    loader = RowLoader(rows, ptx_rows, setting.recipe.run.seed)
    return lambda step: loader.batches(step)[0]


def _learn(
    setting: Setting, judge: Judge, policy: Transformer, objective: Objective[Any, Any],
    batches: Callable[[int], Sequence[Any]], rate: float, marks: Sequence[int],
) -> list[Result]:  # fmt: skip
    """Train for marks[-1] steps; a point at each mark. Seconds from the first step on."""
    num_steps = marks[-1]
    optimizer = build_optimizer(policy, OptimizerConfig(rate, weight_decay=0.0))
    points: list[Result] = []
    config = FitConfig(num_steps)
    for stats, spent in timed(fit(policy, optimizer, batches, objective, cosine(num_steps), setting.runtime, config)):
        if stats.step in marks:
            policy.eval()
            point = judge.point(policy, judge.num_seeds if stats.step == num_steps else 1)
            points.append({"step": stats.step, "seconds": spent, **point})
            print(f"  {stats.step}: gold {point['gold']:.3f}  kl {point['kl_nats']:.3f}  {spent:.0f} s", flush=True)
    return points


def even_marks(num_steps: int, num: int = 6) -> list[int]:
    """Steps at which to judge, the last among them, about evenly spread."""
    return sorted({max(1, round(num_steps * part / num)) for part in range(1, num + 1)})


def run_dpo(setting: Setting, judge: Judge, beta: float, rate: float, epochs: float) -> Result:
    """DPO on the comparisons that the reward model learned from."""
    policy, started = setting.policy(), time.process_time()
    encoded = encode_comparisons(setting.comparisons[0], setting.tokenizer, policy.config.max_length)
    items = with_reference(policy, encoded.items, setting.tokenizer.pad_id, setting.runtime)
    before = time.process_time() - started
    rows = setting.settings("reward").batch_rows
    batches, per_epoch = comparison_batches(items, rows, setting.tokenizer.pad_id, setting.recipe.run.seed)
    marks = even_marks(max(1, round(epochs * per_epoch)))
    return {"points": _learn(setting, judge, policy, dpo(DPOConfig(beta)), batches, rate, marks), "before": before}


def _learn_replies(
    setting: Setting, judge: Judge, examples: list[tuple[list[int], list[bool]]], rate: float, epochs: int
) -> list[Result]:
    """Supervised learning of replies, in packed rows as in the sft stage."""
    policy, settings = setting.policy(), setting.settings("sft")
    rows = pack_examples(examples, policy.config.max_length, packed=settings.packed)
    loader = RowLoader(rows, min(settings.batch_rows, len(rows)), setting.recipe.run.seed)
    marks = even_marks(epochs * loader.num_steps_per_epoch)
    return _learn(setting, judge, policy, next_token, loader.batches, rate, marks)


def run_chosen(setting: Setting, judge: Judge, rate: float, epochs: int) -> Result:
    """SFT on chosen: of each comparison the reply that the labeller put first."""
    examples = []
    for comparison in setting.comparisons[0]:
        worse = {pair[1] for pair in comparison.pairs}
        best = next(index for index in range(len(comparison.replies)) if index not in worse)
        reply = {"role": "assistant", "content": comparison.replies[best]}
        examples.append(render([*comparison.messages, reply], setting.tokenizer))
        # Only the reply is learned: the same tokens that best of n learns.
        prompt = len(setting.ids({"messages": comparison.messages}))
        ids, mask = examples[-1]
        examples[-1] = (ids, [False] * prompt + mask[prompt:])
    return {"points": _learn_replies(setting, judge, examples, rate, epochs), "before": 0.0}


def run_best_of_n(setting: Setting, judge: Judge, num_episodes: int, n: int, rate: float, epochs: int) -> Result:
    """Best-of-n fine-tuning: of n replies to a prompt the policy learns the one that the reward likes best."""
    started = time.process_time()
    prompts = setting.world.story_prompts(num_episodes // n, "ppo")
    asked = [prompt for prompt in prompts for _ in range(n)]
    replies = setting.sample(setting.policy(), asked, derive_seed(setting.recipe.run.seed, "alignment", "best_of_n"))
    best = pick(replies, final(setting, replies), n)
    before = time.process_time() - started
    return {"points": _learn_replies(setting, judge, as_examples(best), rate, epochs), "before": before, "n": n}


def final(setting: Setting, replies: list[Completion]) -> list[float]:
    """The reward's scores, those of replies that do not end their turn replaced, as PPO replaces them."""
    missing = setting.settings("ppo").missing_eos_score
    scores = setting.scores(replies)
    if missing is False:
        return scores
    return [s if reply.finish_reason == "stop" else missing for s, reply in zip(scores, replies, strict=True)]


def run_curve(setting: Setting, judge: Judge, num_prompts: int, n: int) -> Result:
    """Best of n = 1, 2, 4, ... without learning: n replies of the SFT model to held-out prompts."""
    prompts: list[Prompt] = judge.prompts[:num_prompts]
    asked = [prompt for prompt in prompts for _ in range(n)]
    replies = setting.sample(judge.sft, asked, derive_seed(setting.recipe.run.seed, "alignment", "curve"))
    proxy = torch.tensor(final(setting, replies)).view(-1, n)
    gold = torch.tensor(judge.scores(asked, replies)).view(-1, n)
    return {"curve": curve(proxy, gold), "by_gold": curve(gold, gold), "prompts": len(prompts)}


def shuffled(comparisons: list[Comparison], seed: int) -> list[Comparison]:
    """The same replies with labels drawn by lot: each pair keeps its order or is turned round."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "shuffled labels"))
    turned = []
    for comparison in comparisons:
        flips = torch.randint(2, (len(comparison.pairs),), generator=generator).tolist()
        pairs = [(b, w) if not flip else (w, b) for (b, w), flip in zip(comparison.pairs, flips, strict=True)]
        turned.append(replace(comparison, pairs=pairs))
    return turned
