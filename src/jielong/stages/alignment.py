"""The stages `ppo` and `grpo`: the SFT model learns to be preferred, and a judge it never met says whether it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jielong.align.judges import FunctionReward, HttpReward, ReplyScorer, RewardEnsemble
from jielong.align.learner import Learner, build_learner, checkpoint_state, restore, take_average
from jielong.align.ppo import optimise
from jielong.align.reward import RewardModel
from jielong.align.rollout import fitting_prompts
from jielong.align.settings import GRPOConfig, PPOConfig
from jielong.align.shared import shared_out
from jielong.data.batch import Batch
from jielong.data.loader import RowLoader
from jielong.errors import ModelError
from jielong.evaluate.skills import check
from jielong.folder import save
from jielong.model.hf import read_provenance
from jielong.model.transformer import Transformer
from jielong.stages.context import Context
from jielong.stages.instruction import conversation_rows, conversations
from jielong.stages.judging import Prompt, alignment_tax, answerable, compare, heldout_prompts, watcher
from jielong.stages.speaking import speaking
from jielong.stages.tokens import corpus_rows, mixed
from jielong.stages.training import checkpoints, newest_checkpoint, settle
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render
from jielong.train.checkpoint import load_checkpoint
from jielong.train.whole import whole_model

NUM_WATCHED = 64  # prompts of the running gold curve: judged now and then, and told to nobody who trains

Reward = RewardModel | RewardEnsemble | ReplyScorer


def run_policy(context: Context) -> dict[str, Any]:
    """Train with PPO or GRPO, then compare with the model at its beginning; the hidden preference judges."""
    settings = context.settings
    _tell_what_is_not_for_it(context)
    parent = context.start_model()
    policy, tokenizer = context.load_model(parent, before_learning(context))
    training, heldout = _prompts(context)
    heldout = answerable(context, heldout, tokenizer, policy.config.max_length)
    ids = [render(prompt["messages"], tokenizer, reply=True)[0] for prompt in training]
    reward = _reward(context, tokenizer, dict(zip(map(tuple, ids), training, strict=True)))
    ids, num_too_long = fitting_prompts(ids, policy.config.max_length, settings.max_new_tokens)
    lora = settings.lora.config() if settings.lora is not None else None
    generator = context.runtime.generator(context.name, "lora")
    learner = build_learner(policy, reward, tokenizer, _optimisation(context), lora, generator)
    with shared_out(learner, _optimisation(context), context.runtime) as learning:
        num_iterations = _train(context, learning, ids, heldout)
    policy.eval()
    start_model, _ = context.load_model(parent)  # not before: while the policy learns no process need hold it
    proxy = None if isinstance(reward, ReplyScorer) else reward
    unaveraged = _unaveraged(context, learner, start_model, proxy, heldout)
    figures: dict[str, Any] = dict(settle(context, policy, learner.adapters.get("policy"), parent))
    save(policy, tokenizer, context.folder / "model", context.provenance(num_iterations, parent))
    figures |= compare(context, start_model, policy, proxy, tokenizer, heldout)
    figures |= alignment_tax(context, start_model, policy, tokenizer)
    episodes = num_iterations * settings.rollout_rows
    return {**figures, **unaveraged, "episodes": episodes, "prompts_too_long": num_too_long}


def _tell_what_is_not_for_it(context: Context) -> None:
    """Steps take turns with decoding here, and both must be of one policy: what [run] asks of training is not done."""
    for name, asked in (("fp8", context.recipe.run.fp8), ("compile", context.recipe.run.compile)):
        if asked:
            context.progress.say(
                f"{context.name}: [run] {name} is on, but {context.kind} trains without it: it decodes between steps"
            )


def _optimisation(context: Context) -> PPOConfig | GRPOConfig:
    """The settings, with forward passes small enough that every process has one of each minibatch."""
    config: PPOConfig | GRPOConfig = context.settings.optimisation()
    parts = context.runtime.world_size
    return replace(config, micro_batch_rows=min(config.micro_rows, -(-config.minibatch_rows // parts)))


def _prompts(context: Context) -> tuple[list[Prompt], list[Prompt]]:
    """(prompts to draw episodes from, held-out prompts to be judged on)."""
    settings = context.settings
    num = settings.num_prompts or settings.num_iterations * settings.rollout_rows
    if settings.reward == "verifiable":
        found = {
            split: [question for skill in settings.skills for question in context.world.questions(skill, count, split)]
            for split, count in (("train", -(-num // len(settings.skills))), ("heldout", settings.judged_prompts))
        }
        return found["train"], found["heldout"]
    if context.has_world:
        return context.world.story_prompts(num, "ppo"), heldout_prompts(context)
    training, _ = conversations(context.sibling("sft"), [])
    return [{"messages": record["messages"][:-1]} for record in training][:num], heldout_prompts(context)


def _reward(context: Context, tokenizer: Tokenizer, records: dict[tuple[int, ...], Prompt]) -> Reward:
    """Who judges, by the setting `reward`."""
    settings = context.settings
    if settings.reward == "http":
        return HttpReward(settings.reward_url, tokenizer, settings.reward_timeout_seconds)
    if settings.reward == "verifiable":
        return FunctionReward(lambda question, text: float(check(question, text)), records)
    return chosen_reward(context, tokenizer, before_learning(context))


def before_learning(context: Context) -> torch.device:
    """Where policy and reward models lie until they learn and judge.

    Those that are shared out wait in the machine's memory, for each layer is moved as it is cut: policy, reference,
    critic and reward models need not fit into one GPU. With adapters nothing is shared out.
    """
    is_shared_out = context.runtime.mesh is not None and context.settings.lora is None
    return torch.device("cpu") if is_shared_out else context.runtime.device


def load_reward(
    context: Context, folder: Path, tokenizer: Tokenizer, device: torch.device | None = None
) -> RewardModel:
    """The reward model of a folder, where the run computes or on another device. Raises ModelError when it reads other
    tokens than the policy writes.
    """
    expected = read_provenance(folder).get("tokenizer_hash")
    if expected is not None and expected != tokenizer.hash:
        raise ModelError(
            f"{folder}: this reward model reads the tokens of another tokenizer (hash {str(expected)[:12]}) than the "
            f"policy writes (hash {tokenizer.hash[:12]}); train it on replies of this policy's family"
        )
    reward = RewardModel.load(folder)
    reward.model.to(device or context.runtime.device)
    return reward


def chosen_reward(
    context: Context, tokenizer: Tokenizer, device: torch.device | None = None
) -> RewardModel | RewardEnsemble:
    """The newest reward model, or with reward = "mean" or "min" all before this stage as one, each by load_reward."""
    if context.settings.reward == "model":
        return load_reward(context, context.last_model("reward"), tokenizer, device)
    models = [load_reward(context, folder / "model", tokenizer, device) for folder in context.folders_of("reward")]
    return RewardEnsemble(models, context.settings.reward)


def _train(context: Context, learner: Learner, ids: list[list[int]], heldout: list[Prompt]) -> int:
    """All iterations that are left, with a checkpoint now and then. Returns how many are done in the end."""
    settings = context.settings
    runtime = replace(context.runtime, seed=context.seed)
    policy, tokenizer, start = learner.actors.policy, learner.actors.tokenizer, 0
    found = newest_checkpoint(context)
    if found is not None:
        _, state = load_checkpoint(found, learner.models, learner.optimizers, runtime)
        start = restore(learner, state)
        context.progress.say(f"{context.name}: going on from iteration {start}")
    metrics = context.metrics
    metrics.truncate(start)
    context.progress.start(context.name, settings.num_iterations)
    text = _text_batches(context, tokenizer, policy.config.max_length) if settings.ptx_coefficient > 0 else None
    watch = watcher(context, tokenizer, heldout[:NUM_WATCHED])
    asked = [prompt["messages"] for prompt in heldout[:NUM_WATCHED]]
    openings = [(turns[-1]["content"], render(turns, tokenizer, reply=True)[0]) for turns in asked]
    speak = speaking(context, policy, tokenizer, openings)
    with checkpoints(context) as writer:
        for stats in optimise(learner, ids, _optimisation(context), runtime, start=start, text=text):
            iteration, last = stats.iteration, stats.stopped or stats.iteration == settings.num_iterations
            shown = dict(stats.figures)
            due = iteration % settings.watch_every == 0 or iteration == 1 or last
            if due:
                speak(iteration)
            if watch is not None and due:
                shown["gold_reward"] = watch(whole_model(policy, runtime))
            metrics.write(iteration, **shown)
            context.progress.update(
                iteration, reward=shown["proxy_reward"], kl=shown["kl_nats_per_reply"], ended=shown["ended_rate"]
            )
            if not last and iteration % settings.checkpoint_every == 0:
                state = checkpoint_state(learner, iteration, runtime)
                writer.save(iteration, learner.models, learner.optimizers, state)
            start = iteration
    return start


def _unaveraged(
    context: Context, learner: Learner, before: Transformer, reward: Any, prompts: list[Prompt]
) -> dict[str, Any]:
    """With ema_decay: judge the policy as it is, then put the average in its place. Returns figures of the first."""
    if learner.average is None:
        return {}
    actors = learner.actors
    figures = compare(context, before, actors.policy, reward, actors.tokenizer, prompts)
    take_average(learner)
    names = ("gold_win_rate", "gold_win_rate_ci95", "proxy_reward_after", "kl_nats_per_reply")
    return {f"{name}_unaveraged": figures[name] for name in names if name in figures}


def _text_batches(context: Context, tokenizer: Tokenizer, max_length: int) -> Callable[[int], Batch]:
    """Step of the policy -> rows for PPO-ptx, of the pre-training corpus or of the conversations of the sft stage."""
    settings = context.settings
    num_rows = settings.ptx_rows or settings.minibatch_rows
    if settings.ptx_source == "pretrain":
        pretrain = context.sibling("pretrain")
        corpus = corpus_rows(pretrain, tokenizer)
        loader = RowLoader(corpus, min(num_rows, len(corpus)), context.seed, mixed=mixed(pretrain, corpus))
    else:
        sft = context.sibling("sft")
        rows = conversation_rows(conversations(sft, [])[0], tokenizer, max_length, sft.settings.packed)
        loader = RowLoader(rows, min(num_rows, len(rows)), context.seed)
    return lambda step: loader.batches(step)[0]
