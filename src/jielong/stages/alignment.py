"""The stage `ppo`: the SFT model learns to be preferred, and a judge it never met says whether it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jielong.align.comparisons import pad_rows
from jielong.align.learner import Learner, build_learner, checkpoint_state, restore, take_average
from jielong.align.ppo import optimise
from jielong.align.reward import RewardModel
from jielong.align.rollout import fitting_prompts, lay_out
from jielong.data.batch import Batch
from jielong.data.loader import RowLoader
from jielong.data.pack import Rows
from jielong.evaluate.gold import Gold, judge
from jielong.evaluate.likelihood import bits_per_byte, heldout_logprobs, heldout_nats, scored_bytes
from jielong.folder import load, save
from jielong.generate.engine import Completion, Engine
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.stages.context import Context, write_json
from jielong.stages.instruction import conversation_rows, conversations
from jielong.stages.training import settle
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render
from jielong.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

Prompt = dict[str, Any]
NUM_WATCHED = 64  # prompts of the running gold curve: judged now and then, and told to nobody who trains


def run_ppo(context: Context) -> dict[str, Any]:
    """Train with PPO, then compare with the SFT model on held-out prompts; the hidden preference judges."""
    settings = context.settings
    parent = context.last_model("sft")
    policy, tokenizer = load(parent)
    start_model, _ = load(parent)
    reward = RewardModel.load(context.last_model("reward"))
    training, heldout = _prompts(context)
    ids = [render(prompt["messages"], tokenizer, reply=True)[0] for prompt in training]
    ids, num_too_long = fitting_prompts(ids, policy.config.max_length, settings.max_new_tokens)
    lora = settings.lora.config() if settings.lora is not None else None
    generator = context.runtime.generator(context.name, "lora")
    learner = build_learner(policy, reward, tokenizer, settings.optimisation(), lora, generator)
    num_iterations = _train(context, learner, ids, heldout)
    policy.eval()
    unaveraged = _unaveraged(context, learner, start_model, heldout)
    figures: dict[str, Any] = dict(settle(context, policy, learner.adapters.get("policy"), parent))
    save(policy, tokenizer, context.folder / "model", context.provenance(num_iterations, parent))
    figures |= _compare(context, start_model, policy, reward, tokenizer, heldout)
    figures |= _alignment_tax(context, start_model, policy, tokenizer)
    episodes = num_iterations * settings.rollout_rows
    return {**figures, **unaveraged, "episodes": episodes, "prompts_too_long": num_too_long}


def _prompts(context: Context) -> tuple[list[Prompt], list[Prompt]]:
    """(prompts to draw episodes from, held-out prompts to be judged on)."""
    settings = context.settings
    num = settings.num_prompts or settings.num_iterations * settings.rollout_rows
    if context.has_world:
        world = context.world
        return world.story_prompts(num, "ppo"), world.story_prompts(settings.judged_prompts, "heldout")
    training, heldout = conversations(context.sibling("sft"), [])
    prompts = [[{"messages": record["messages"][:-1]} for record in part] for part in (training, heldout)]
    return prompts[0][:num], prompts[1][: settings.judged_prompts]


def _train(context: Context, learner: Learner, ids: list[list[int]], heldout: list[Prompt]) -> int:
    """All iterations that are left, with a checkpoint now and then. Returns how many are done in the end."""
    settings = context.settings
    runtime = replace(context.runtime, seed=context.seed)
    start = 0
    found = latest_checkpoint(context.checkpoints)
    if found is not None:
        _, state = load_checkpoint(found, learner.models, learner.optimizers)
        start = restore(learner, state)
        context.progress.say(f"{context.name}: going on from iteration {start}")
    metrics = context.metrics
    metrics.truncate(start)
    context.progress.start(context.name, settings.num_iterations)
    text = None
    if settings.ptx_coefficient > 0:
        text = _text_batches(context, learner.actors.tokenizer, learner.actors.policy.config.max_length)
    gold = Gold() if context.has_world else None
    for stats in optimise(learner, ids, settings.optimisation(), runtime, start=start, text=text):
        iteration, last = stats.iteration, stats.stopped or stats.iteration == settings.num_iterations
        shown = dict(stats.figures)
        if gold is not None and (iteration % settings.watch_every == 0 or iteration == 1 or last):
            watched = heldout[:NUM_WATCHED]
            replies = _replies(context, learner.actors.policy, learner.actors.tokenizer, watched, 0)
            scores = [gold.score(prompt, reply.text) for prompt, reply in zip(watched, replies, strict=True)]
            shown["gold_reward"] = sum(scores) / len(scores)
        metrics.write(iteration, **shown)
        context.progress.update(
            iteration, reward=shown["proxy_reward"], kl=shown["kl_nats_per_reply"], ended=shown["ended_rate"]
        )
        if not last and iteration % settings.checkpoint_every == 0:
            state = checkpoint_state(learner, iteration)
            save_checkpoint(context.checkpoints, iteration, learner.models, learner.optimizers, state)
        start = iteration
    return start


def _unaveraged(context: Context, learner: Learner, before: Transformer, prompts: list[Prompt]) -> dict[str, Any]:
    """With ema_decay: judge the policy as it is, then put the average in its place. Returns figures of the first."""
    if learner.average is None:
        return {}
    actors = learner.actors
    assert isinstance(actors.reward, RewardModel)
    figures = _compare(context, before, actors.policy, actors.reward, actors.tokenizer, prompts)
    take_average(learner)
    names = ("gold_win_rate", "gold_win_rate_ci95", "proxy_reward_after", "kl_nats_per_reply")
    return {f"{name}_unaveraged": figures[name] for name in names if name in figures}


def _text_batches(context: Context, tokenizer: Tokenizer, max_length: int) -> Callable[[int], Batch]:
    """Step of the policy -> rows for PPO-ptx, of the pre-training corpus or of the conversations of the sft stage."""
    settings = context.settings
    if settings.ptx_source == "pretrain":
        rows = Rows.load(context.folder_of("pretrain") / "rows.safetensors")
    else:
        sft = context.sibling("sft")
        rows = conversation_rows(conversations(sft, [])[0], tokenizer, max_length, sft.settings.packed)
    loader = RowLoader(rows, min(settings.ptx_rows or settings.minibatch_rows, len(rows)), context.seed)
    return lambda step: loader.batches(step)[0]


def _replies(
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


def _compare(
    context: Context,
    before: Transformer,
    after: Transformer,
    reward: RewardModel,
    tokenizer: Tokenizer,
    prompts: list[Prompt],
) -> dict[str, Any]:
    """Win rate, rewards and distance on held-out prompts, each answered judged_seeds times by both models."""
    settings = context.settings
    limit = after.config.max_length - settings.max_new_tokens
    prompts = [p for p in prompts if len(render(p["messages"], tokenizer, reply=True)[0]) <= limit]
    asked = prompts * settings.judged_seeds
    replies: dict[str, list[Completion]] = {"sft": [], "ppo": []}
    for label, model in (("sft", before), ("ppo", after)):
        for seed in range(settings.judged_seeds):
            replies[label] += _replies(context, model, tokenizer, prompts, 1 + seed)
    scores = {label: _scores(reward, tokenizer, found) for label, found in replies.items()}
    write_json(context.folder / "samples.json", _samples(prompts, replies, scores))
    figures: dict[str, Any] = {
        "proxy_reward_before": sum(scores["sft"]) / len(asked),
        "proxy_reward_after": sum(scores["ppo"]) / len(asked),
        "kl_nats_per_reply": _kl(context, before, after, tokenizer, replies["ppo"]),
        "judged_replies": len(asked),
    }
    for label, name in (("sft", "before"), ("ppo", "after")):
        found = replies[label]
        figures[f"reply_tokens_{name}"] = sum(len(reply.tokens) for reply in found) / len(found)
        figures[f"end_of_turn_rate_{name}"] = sum(reply.finish_reason == "stop" for reply in found) / len(found)
        figures[f"distinct_replies_{name}"] = len({reply.text for reply in found}) / len(found)
    if context.has_world:
        texts = {label: [reply.text for reply in found] for label, found in replies.items()}
        judgement = judge(asked, texts["ppo"], texts["sft"], Gold(), seed=0)
        figures |= {
            "gold_win_rate": judgement.win_rate,
            "gold_win_rate_ci95": list(judgement.win_rate_ci95),
            "gold_win_rate_length_controlled": judgement.win_rate_length_controlled,
            "gold_reward_before": judgement.gold_b,
            "gold_reward_after": judgement.gold_a,
        }
    return figures


def _scores(reward: RewardModel, tokenizer: Tokenizer, replies: list[Completion], batch_rows: int = 64) -> list[float]:
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
    logprobs = [heldout_logprobs(model, rows, context.runtime, temperature=temperature) for model in (after, before)]
    return float((logprobs[0] - logprobs[1]).double().sum()) / len(replies)


def _alignment_tax(context: Context, before: Transformer, after: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
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
    prompts: list[Prompt], replies: dict[str, list[Completion]], scores: dict[str, list[float]], num: int = 8
) -> list[dict[str, Any]]:
    """The first prompts with both replies and their proxy rewards: chosen before the replies are seen."""
    return [
        {
            "prompt": prompt["messages"][-1]["content"],
            **{label: found[index].text for label, found in replies.items()},
            **{f"{label}_proxy_reward": round(values[index], 2) for label, values in scores.items()},
        }
        for index, prompt in enumerate(prompts[:num])
    ]
