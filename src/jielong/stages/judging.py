"""A policy and the model that it came from, side by side on held-out prompts: how every kind of alignment ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jielong.align.comparisons import pad_rows
from jielong.align.diversity import diversity_figures
from jielong.align.judges import Scorer
from jielong.align.rollout import lay_out
from jielong.data.pack import Rows
from jielong.errors import DataError
from jielong.evaluate.gold import Gold, judge
from jielong.evaluate.likelihood import bits_per_byte, heldout_logprobs, heldout_nats, scored_bytes
from jielong.evaluate.skills import check
from jielong.generate.engine import Completion, Engine
from jielong.intervals import wilson_ci95
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.stages.context import Context, write_json
from jielong.stages.instruction import conversations
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render

Prompt = dict[str, Any]


def heldout_prompts(context: Context) -> list[Prompt]:
    """Prompts that no stage of the run learns from: the world's story requests, else those held out by sft."""
    settings = context.settings
    if context.has_world:
        return context.world.story_prompts(settings.judged_prompts, "heldout")
    _, heldout = conversations(context.sibling("sft"), [])
    return [{"messages": record["messages"][:-1]} for record in heldout][: settings.judged_prompts]


def answerable(context: Context, prompts: list[Prompt], tokenizer: Tokenizer, context_tokens: int) -> list[Prompt]:
    """The prompts that leave room for a reply of max_new_tokens. Raises DataError when none does.

    Asked before a model is trained: without them nothing could be said of it.
    """
    limit = context_tokens - context.settings.max_new_tokens
    fitting = [prompt for prompt in prompts if len(render(prompt["messages"], tokenizer, reply=True)[0]) <= limit]
    if not fitting:
        raise DataError(
            f"[{context.name}] nothing to judge on: none of {len(prompts)} held-out prompts leaves room for a reply of "
            f"{context.settings.max_new_tokens} tokens in a context of {context_tokens}; lower max_new_tokens, or hold "
            "out shorter prompts"
        )
    return fitting


def sampled_replies(
    context: Context, model: Transformer, tokenizer: Tokenizer, prompts: list[Prompt], seed: int
) -> list[Completion]:
    """One sampled reply to each prompt, at the temperature of training."""
    settings = context.settings
    ids = [render(prompt["messages"], tokenizer, reply=True)[0] for prompt in prompts]
    return Engine(model, tokenizer, context.runtime).generate(
        ids,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=derive_seed(context.seed, "judged", seed),
    )


def compare(
    context: Context,
    before: Transformer,
    after: Transformer,
    reward: Scorer | None,
    tokenizer: Tokenizer,
    prompts: list[Prompt],
) -> dict[str, Any]:
    """Win rate, rewards and distance on held-out prompts, each answered judged_seeds times by both models.

    prompts: all `answerable`; those with "words" are judged by the hidden preference, those with "answers" by their own
    rule. reward: for the proxy's figures, None where there is none. Side effects: samples.json, and with a reward
    best_liked.json.
    """
    settings, label = context.settings, context.kind
    asked = prompts * settings.judged_seeds
    replies: dict[str, list[Completion]] = {"sft": [], label: []}
    for who, model in (("sft", before), (label, after)):
        for seed in range(settings.judged_seeds):
            replies[who] += sampled_replies(context, model, tokenizer, prompts, 1 + seed)
    figures: dict[str, Any] = {
        "kl_nats_per_reply": _kl(context, before, after, tokenizer, replies[label]),
        "judged_replies": len(asked),
    }
    scores: dict[str, list[float]] = {}
    if reward is not None:
        scores = {who: proxy_scores(reward, tokenizer, found) for who, found in replies.items()}
        figures["proxy_reward_before"] = sum(scores["sft"]) / len(asked)
        figures["proxy_reward_after"] = sum(scores[label]) / len(asked)
    for who, name in (("sft", "before"), (label, "after")):
        found = replies[who]
        figures[f"reply_tokens_{name}"] = sum(len(reply.tokens) for reply in found) / len(found)
        figures[f"end_of_turn_rate_{name}"] = sum(reply.finish_reason == "stop" for reply in found) / len(found)
        figures[f"distinct_replies_{name}"] = len({reply.text for reply in found}) / len(found)
        figures |= {f"{key}_{name}": value for key, value in diversity_figures(found).items()}
    texts = {who: [reply.text for reply in found] for who, found in replies.items()}
    write_json(context.folder / "samples.json", _samples(prompts, texts, scores))
    if scores:
        write_json(context.folder / "best_liked.json", _best_liked(context, asked, texts[label], scores[label]))
    if prompts and "answers" in prompts[0]:
        return figures | _verified(asked, texts["sft"], texts[label])
    return figures | (_gold(asked, texts["sft"], texts[label]) if context.has_world else {})


def _gold(asked: list[Prompt], before: list[str], after: list[str]) -> dict[str, Any]:
    """What the hidden preference says of two replies to each prompt."""
    judgement = judge(asked, after, before, Gold(), seed=0)
    return {
        "gold_win_rate": judgement.win_rate,
        "gold_win_rate_ci95": list(judgement.win_rate_ci95),
        "gold_win_rate_length_controlled": judgement.win_rate_length_controlled,
        "gold_reward_before": judgement.gold_b,
        "gold_reward_after": judgement.gold_a,
    }


def _verified(asked: list[Prompt], before: list[str], after: list[str]) -> dict[str, Any]:
    """Share of right answers, by each question's own rule, sampled and not greedy."""
    figures: dict[str, Any] = {}
    for name, texts in (("before", before), ("after", after)):
        num_right = sum(check(question, text) for question, text in zip(asked, texts, strict=True))
        figures[f"verified_rate_{name}"] = num_right / len(asked)
        figures[f"verified_rate_{name}_ci95"] = list(wilson_ci95(num_right, len(asked)))
    return figures


def proxy_scores(reward: Scorer, tokenizer: Tokenizer, replies: list[Completion], batch_rows: int = 64) -> list[float]:
    """What the reward model says of each reply."""
    rows = [[*reply.prompt, *reply.tokens] for reply in replies]
    scores: list[float] = []
    for first in range(0, len(rows), batch_rows):
        tokens, segments, ends = pad_rows(rows[first : first + batch_rows], tokenizer.pad_id)
        scores += reward.score(tokens, segments, ends).tolist()
    return scores


def _kl(
    context: Context, before: Transformer, after: Transformer, tokenizer: Tokenizer, replies: list[Completion]
) -> float:
    """Mean over replies sampled from `after` of log after - log before: KL(after || before), nats a reply.

    Both at the temperature at which the replies were sampled: at another it would not be the KL of what is sampled.
    """
    temperature = context.settings.temperature
    tokens, mask, segments, _ = lay_out(replies, tokenizer.pad_id)
    rows = Rows(tokens.int(), mask, segments.int())
    logprobs = [
        heldout_logprobs(model, rows, context.runtime, temperature=temperature, vocab_size=tokenizer.vocab_size)
        for model in (after, before)
    ]
    return float((logprobs[0] - logprobs[1]).double().sum()) / len(replies)


def alignment_tax(context: Context, before: Transformer, after: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Held-out bits per byte of the pre-training text, before and after."""
    if not context.has("pretrain"):
        return {}
    rows = Rows.load(context.folder_of("pretrain") / "heldout.safetensors")
    num_bytes = scored_bytes(rows, tokenizer)
    return {
        f"heldout_bits_per_byte_{name}": bits_per_byte(heldout_nats(model, rows, context.runtime)[0], num_bytes)
        for name, model in (("before", before), ("after", after))
    }


def _samples(
    prompts: list[Prompt], replies: dict[str, list[str]], scores: dict[str, list[float]], num: int = 8
) -> list[dict[str, Any]]:
    """The first prompts with both replies and their proxy rewards: chosen before the replies are seen."""
    return [
        {
            "prompt": prompt["messages"][-1]["content"],
            **{label: found[index] for label, found in replies.items()},
            **{f"{label}_proxy_reward": round(values[index], 2) for label, values in scores.items()},
        }
        for index, prompt in enumerate(prompts[:num])
    ]


def _best_liked(
    context: Context, asked: list[Prompt], texts: list[str], scores: list[float], num: int = 10
) -> list[dict[str, Any]]:
    """The replies that the reward likes best, beside what the hidden preference says of them where it can judge.

    Where the two part, one sees here what the policy has found: the place to look for reward hacking.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:num]
    gold = Gold() if context.has_world and asked and "words" in asked[0] else None
    return [
        {
            "prompt": asked[index]["messages"][-1]["content"],
            "reply": texts[index],
            "proxy_reward": round(scores[index], 3),
            **({} if gold is None else {"gold_reward": round(gold.score(asked[index], texts[index]), 3)}),
        }
        for index in order
    ]


def watcher(context: Context, tokenizer: Tokenizer, prompts: list[Prompt]) -> Callable[[Transformer], float] | None:
    """Policy -> its mean score by the hidden preference on a few held-out prompts: told to nobody who trains.

    None where the prompts are not ones that it can judge.
    """
    if not context.has_world or not prompts or "words" not in prompts[0]:
        return None
    gold = Gold()

    def watch(policy: Transformer) -> float:
        replies = sampled_replies(context, policy, tokenizer, prompts, 0)
        scores = [gold.score(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
        return sum(scores) / len(scores)

    return watch
