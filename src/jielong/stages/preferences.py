"""The stages `dpo` and `best_of_n`: alignment without reinforcement, from comparisons or from chosen replies."""

from __future__ import annotations

from typing import Any

import torch

from jielong.align.agreement import rate_ci95
from jielong.align.best_of_n import as_examples, curve, pick
from jielong.align.comparisons import Candidates, collate, comparison_batches, encode_comparisons
from jielong.align.dpo import dpo, reply_logprobs, with_reference
from jielong.align.rollout import fitting_prompts
from jielong.data.loader import RowLoader
from jielong.data.pack import pack_examples
from jielong.evaluate.gold import Gold
from jielong.folder import save
from jielong.generate.engine import Completion, Engine
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.stages.alignment import chosen_reward, load_reward
from jielong.stages.comparisons import encode_heldout, gather_comparisons
from jielong.stages.context import Context, write_json
from jielong.stages.instruction import conversations
from jielong.stages.judging import Prompt, alignment_tax, answerable, compare, heldout_prompts, proxy_scores
from jielong.stages.training import adapt, micro_batches, settle, train
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render
from jielong.train.objectives import next_token


def run_dpo(context: Context) -> dict[str, Any]:
    """Learn from comparisons alone, then compare with the SFT model on held-out prompts."""
    settings = context.settings
    parent = context.start_model()
    policy, tokenizer = context.load_model(parent)
    judged_on = answerable(context, heldout_prompts(context), tokenizer, policy.config.max_length)
    origin = context if settings.comparisons is None else context.named(settings.comparisons)
    with context.leader_first():
        gathered = gather_comparisons(origin, policy, tokenizer)
    encoded = encode_comparisons(gathered.training, tokenizer, policy.config.max_length)
    held = encode_heldout(gathered.heldout, tokenizer, policy.config.max_length, f"[{context.name}]")
    items, held_items = (
        with_reference(policy, part.items, tokenizer.pad_id, context.runtime) for part in (encoded, held)
    )
    num_rows, num_micro = micro_batches(context)
    batches, steps_per_epoch = comparison_batches(items, num_rows, tokenizer.pad_id, context.seed, num_micro)

    def evaluate(_step: int) -> dict[str, float]:
        accuracy, _ = implicit_accuracy(context, policy, held_items, tokenizer)
        return {"heldout_accuracy": accuracy}

    adapter, num_steps = adapt(context, policy), settings.steps(steps_per_epoch)
    totals = train(context, policy, dpo(settings.objective()), batches, num_steps, evaluate, adapter)
    figures: dict[str, Any] = dict(settle(context, policy, adapter, parent))
    save(policy, tokenizer, context.folder / "model", context.provenance(totals.steps, parent))
    accuracy, interval = implicit_accuracy(context, policy, held_items, tokenizer)
    reward = load_reward(context, context.last_model("reward"), tokenizer) if context.has("reward") else None
    start_model, _ = context.load_model(parent)
    figures |= compare(context, start_model, policy, reward, tokenizer, judged_on)
    figures |= alignment_tax(context, start_model, policy, tokenizer)
    return {
        **figures,
        **gathered.labelling,
        "heldout_accuracy": accuracy,
        "heldout_accuracy_ci95": interval,
        "comparisons": encoded.num_pairs + held.num_pairs,
        "dropped_ties": encoded.num_ties + held.num_ties,
        "dropped_identical": encoded.num_identical + held.num_identical,
        "dropped_undecided": encoded.num_undecided + held.num_undecided,
        "dropped_too_long": encoded.num_too_long + held.num_too_long,
        "left_out": gathered.num_left_out,
        "steps": totals.steps,
    }


@torch.no_grad()
def implicit_accuracy(
    context: Context, policy: Transformer, items: list[Candidates], tokenizer: Tokenizer, batch_prompts: int = 16
) -> tuple[float, list[float]]:
    """How often log(policy / reference) prefers as the labellers do, and its 95 % interval; equals count half."""
    hits, prompts = [], []
    for first in range(0, len(items), batch_prompts):
        batch = collate(items[first : first + batch_prompts], tokenizer.pad_id).to(context.runtime.device)
        assert batch.ref_logprobs is not None
        with context.runtime.autocast():
            rewards = reply_logprobs(policy, batch) - batch.ref_logprobs
        gaps = rewards[batch.pairs[:, 0]] - rewards[batch.pairs[:, 1]]
        hits.append(((gaps > 0).double() + 0.5 * (gaps == 0)).cpu())
    for number, item in enumerate(items):
        prompts.extend([number] * len(item.pairs))
    hit = torch.cat(hits)
    return float(hit.mean()), list(rate_ci95(hit, torch.tensor(prompts)))


def run_best_of_n(context: Context) -> dict[str, Any]:
    """Sample n replies to each prompt, learn the one that the reward likes best, compare with the SFT model."""
    settings = context.settings
    parent = context.start_model()
    policy, tokenizer = context.load_model(parent)
    judged_on = answerable(context, heldout_prompts(context), tokenizer, policy.config.max_length)
    reward = chosen_reward(context, tokenizer)
    prompts, completions = _sample(context, policy, tokenizer)
    scores = _scores(context, proxy_scores(reward, tokenizer, completions), completions)
    best = pick(completions, scores, settings.replies_per_prompt)
    points = curve(*_by_prompt(context, prompts, completions, scores))
    write_json(context.folder / "curve.json", points)
    rows = pack_examples(as_examples(best), policy.config.max_length)
    num_rows, num_micro = micro_batches(context, len(rows))
    loader = RowLoader(rows, num_rows, context.seed, num_micro)
    adapter, num_steps = adapt(context, policy), settings.steps(loader.num_steps_per_epoch)
    totals = train(context, policy, next_token, loader.batches, num_steps, None, adapter)
    figures: dict[str, Any] = dict(settle(context, policy, adapter, parent))
    save(policy, tokenizer, context.folder / "model", context.provenance(totals.steps, parent))
    start_model, _ = context.load_model(parent)
    figures |= compare(context, start_model, policy, reward, tokenizer, judged_on)
    figures |= alignment_tax(context, start_model, policy, tokenizer)
    return {
        **figures,
        "n": settings.replies_per_prompt,
        "kl_bound_nats": points[-1]["kl_bound_nats"],
        "best_of_n_proxy": {f"{point['n']:.0f}": point["proxy"] for point in points},
        "best_of_n_gold": {f"{point['n']:.0f}": point["gold"] for point in points if "gold" in point},
        "chosen": len(best),
        "dropped_too_long": rows.num_dropped,
        "steps": totals.steps,
    }


def _sample(context: Context, policy: Transformer, tokenizer: Tokenizer) -> tuple[list[Prompt], list[Completion]]:
    """(prompts, n replies to each side by side), a function of the run's seed."""
    settings = context.settings
    if context.has_world:
        prompts = context.world.story_prompts(settings.num_prompts, "ppo")
    else:
        training, _ = conversations(context.sibling("sft"), [])
        prompts = [{"messages": record["messages"][:-1]} for record in training][: settings.num_prompts]
    ids = [render(prompt["messages"], tokenizer, reply=True)[0] for prompt in prompts]
    fitting, _ = fitting_prompts(ids, policy.config.max_length, settings.max_new_tokens)
    longest = policy.config.max_length - settings.max_new_tokens
    kept = [prompt for prompt, each in zip(prompts, ids, strict=True) if len(each) <= longest]
    n = settings.replies_per_prompt
    context.progress.say(f"{context.name}: sampling {len(fitting) * n} replies")
    completions = Engine(policy, tokenizer, context.runtime).generate(
        [each for each in fitting for _ in range(n)],
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=derive_seed(context.seed, "replies"),
    )
    return kept, completions


def _scores(context: Context, scores: list[float], completions: list[Completion]) -> list[float]:
    """The reward's, or missing_eos_score where a reply does not end its turn."""
    missing = context.settings.missing_eos_score
    if missing is False:
        return scores
    return [
        score if completion.finish_reason == "stop" else missing
        for score, completion in zip(scores, completions, strict=True)
    ]


def _by_prompt(
    context: Context, prompts: list[Prompt], completions: list[Completion], scores: list[float]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(P, n) scores, and the hidden preference's where it can judge: for the curve, not for the choice."""
    n = context.settings.replies_per_prompt
    proxy = torch.tensor(scores).view(-1, n)
    if not context.has_world:
        return proxy, None
    gold = Gold()
    judged = [gold.score(prompts[place // n], completion.text) for place, completion in enumerate(completions)]
    return proxy, torch.tensor(judged).view(-1, n)
