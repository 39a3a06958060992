"""The stage `reward`: replies are compared, and a scalar head learns which ones are preferred."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jielong.align.agreement import Agreement, length_baseline, longer_wins, measure_agreement, position_baseline
from jielong.align.comparisons import (
    Comparison,
    Encoded,
    comparison_batches,
    encode_comparisons,
    pad_rows,
    split_by_prompt,
    split_for_good,
)
from jielong.align.reward import RewardModel, bradley_terry, scalar_from_policy
from jielong.align.rollout import fitting_prompts
from jielong.data.examples import read_comparisons
from jielong.errors import DataError
from jielong.evaluate.gold import Gold, agreement, calibrate_labeller, simulated_labels
from jielong.generate.engine import Engine
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.stages.context import Context, read_json, read_jsonl, write_json, write_jsonl
from jielong.stages.training import adapt, micro_batches, settle, train
from jielong.stages.votes import voted_comparisons
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render

NUM_REFERENCE_REPLIES = 512  # of the SFT model, on which scores get mean 0 and deviation 1


def run_reward(context: Context) -> dict[str, Any]:
    """Train on comparisons split by prompt; held-out accuracy beside its trivial baselines and its ceiling."""
    settings = context.settings
    parent = context.start_model()
    policy, tokenizer = context.load_model(parent)
    with context.leader_first():
        gathered = gather_comparisons(context, policy, tokenizer)
    ties = settings.ties == "half"
    encoded = encode_comparisons(gathered.training, tokenizer, policy.config.max_length, ties)
    held = encode_heldout(gathered.heldout, tokenizer, policy.config.max_length, f"[{context.name}]")
    num_rows, num_micro = micro_batches(context)
    batches, steps_per_epoch = comparison_batches(encoded.items, num_rows, tokenizer.pad_id, context.seed, num_micro)
    model = scalar_from_policy(policy, context.runtime.generator(context.name, "head"))

    def evaluate(_step: int) -> dict[str, float]:
        agreement = measure_agreement(model, held.items, tokenizer.pad_id)
        return {"heldout_accuracy": agreement.accuracy, "heldout_loss_nats": agreement.loss_nats}

    adapter = adapt(context, model)
    totals = train(context, model, bradley_terry, batches, settings.steps(steps_per_epoch), evaluate, adapter)
    adapted = settle(context, model, adapter, parent)
    reward = RewardModel(model.eval())
    rows = reference_rows(context, policy, tokenizer, gathered.sampled, gathered.training)
    reward.normalise(_reply_batches(rows, tokenizer.pad_id))
    reward.save(tokenizer, context.folder / "model", context.provenance(totals.steps, parent))
    agreement = measure_agreement(model, held.items, tokenizer.pad_id)
    counts = {"reference_replies": len(rows), "left_out": gathered.num_left_out}
    people = _by_people(model, gathered, tokenizer, policy.config.max_length)
    return {**_figures(agreement, encoded, held), **gathered.labelling, **people, **counts, **adapted}


@dataclass(frozen=True)
class Gathered:
    """Comparisons of a stage, split by prompt. sampled: those of the SFT model's own replies, in the order made.

    heldout_votes: of heldout, those that people made. labelling: figures of the simulated labeller, and of the votes.
    num_left_out: rows of the sources that teach nothing.
    """

    training: list[Comparison]
    heldout: list[Comparison]
    heldout_votes: list[Comparison]
    sampled: list[Comparison]
    labelling: dict[str, Any]
    num_left_out: int


def gather_comparisons(context: Context, policy: Transformer, tokenizer: Tokenizer) -> Gathered:
    """All comparisons that a stage of kind reward or dpo names; those of the world are made once and kept."""
    settings = context.settings
    labelling: dict[str, Any] = {}
    left_out: list[str] = []
    sampled: list[Comparison] = []
    if "world" in settings.sources:
        sampled, labelling = _sampled_comparisons(context, policy, tokenizer)
    given = [
        Comparison.from_record(record, f"{name}: comparison {number}")
        for name in settings.sources
        if name != "world"
        for number, record in enumerate(read_comparisons(context.source(name), context.root, left_out), start=1)
    ]
    voted, figures = voted_comparisons(context)
    if voted:  # a prompt that was held out in one round stays so in the next, however many votes there are by then
        salt = derive_seed(context.recipe.run.seed, "votes")
        training, heldout = split_for_good([*sampled, *given, *voted], settings.heldout_fraction, salt)
    else:
        training, heldout = split_by_prompt([*sampled, *given], settings.heldout_fraction, context.seed)
    made_by_people = set(map(id, voted))
    heldout_votes = [comparison for comparison in heldout if id(comparison) in made_by_people]
    return Gathered(training, heldout, heldout_votes, sampled, labelling | figures, len(left_out))


def encode_heldout(heldout: list[Comparison], tokenizer: Tokenizer, context_tokens: int, here: str) -> Encoded:
    """Tokens of the held-out comparisons.

    Raises DataError, beginning with `here`, when none of them says anything: asked before a model is trained, for
    nothing could be measured.
    """
    encoded = encode_comparisons(heldout, tokenizer, context_tokens)
    if not encoded.items:
        raise DataError(
            f"{here} nothing to judge with: of {len(heldout)} held-out comparisons none is decided and fits a context "
            f"of {context_tokens} tokens ({encoded.num_undecided} undecided, {encoded.num_too_long} too long); hold "
            "out more, or give more comparisons"
        )
    return encoded


def _by_people(model: Transformer, gathered: Gathered, tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """How far the reward model agrees with the votes that were held out; {} where none of them is decided."""
    items = encode_comparisons(gathered.heldout_votes, tokenizer, max_length).items
    if not items:
        return {}
    agreement = measure_agreement(model, items, tokenizer.pad_id)
    return {
        "heldout_votes": agreement.num_pairs,
        "heldout_votes_accuracy": agreement.accuracy,
        "heldout_votes_accuracy_ci95": list(agreement.ci95),
    }


def _figures(agreement: Agreement, encoded: Encoded, held: Encoded) -> dict[str, Any]:
    return {
        "heldout_accuracy": agreement.accuracy,
        "heldout_accuracy_ci95": list(agreement.ci95),
        "heldout_loss_nats": agreement.loss_nats,
        "length_baseline_accuracy": length_baseline(encoded.items, held.items),
        "longer_wins_accuracy": longer_wins(held.items),
        "shorter_wins_accuracy": 1 - longer_wins(held.items),
        "position_baseline_accuracy": position_baseline(held.items),
        "calibration_error": agreement.calibration_error,
        "comparisons": encoded.num_pairs + held.num_pairs,
        "heldout_comparisons": held.num_pairs,
        "ties": encoded.num_ties + held.num_ties,
        "dropped_identical": encoded.num_identical + held.num_identical,
        "dropped_undecided": encoded.num_undecided + held.num_undecided,
        "dropped_too_long": encoded.num_too_long + held.num_too_long,
    }


def reference_rows(
    context: Context, policy: Transformer, tokenizer: Tokenizer, sampled: list[Comparison], training: list[Comparison]
) -> list[list[int]]:
    """Ids of prompts with replies of the SFT model, which are to score 0 on average: the unit of all that follows.

    sampled: comparisons of the SFT model's own replies, whose first ones are taken. Where there are none, the replies
    in the files are anyone's, and the SFT model answers the training prompts here.
    """
    if sampled:
        said = [(c.messages, reply) for c in sampled[:NUM_REFERENCE_REPLIES] for reply in c.replies]
        rows = [render([*prompt, {"role": "assistant", "content": reply}], tokenizer)[0] for prompt, reply in said]
        return [row for row in rows if len(row) <= policy.config.max_length][:NUM_REFERENCE_REPLIES]
    settings = context.settings
    prompts = {comparison.prompt: comparison.messages for comparison in training}
    ids = [render(messages, tokenizer, reply=True)[0] for messages in prompts.values()]
    ids, _ = fitting_prompts(ids, policy.config.max_length, settings.max_new_tokens)
    context.progress.say(f"{context.name}: sampling {NUM_REFERENCE_REPLIES} replies to normalise the scores on")
    completions = Engine(policy, tokenizer, context.runtime).generate(
        [ids[number % len(ids)] for number in range(NUM_REFERENCE_REPLIES)],
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=derive_seed(context.seed, "reference"),
    )
    return [[*completion.prompt, *completion.tokens] for completion in completions]


def _reply_batches(rows: list[list[int]], pad_id: int, batch_rows: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(rows), batch_rows):
        tokens, _, ends = pad_rows(rows[first : first + batch_rows], pad_id)
        yield tokens, ends


def _sampled_comparisons(
    context: Context, policy: Transformer, tokenizer: Tokenizer
) -> tuple[list[Comparison], dict[str, float]]:
    """K replies of the SFT model to each prompt, ranked by the simulated labeller; kept in comparisons.jsonl.

    The labeller alone sees the hidden preference; what it writes down, and all that training reads, are rankings.
    """
    path: Path = context.folder / "comparisons.jsonl"
    figures = context.folder / "labelling.json"
    if not (path.exists() and figures.exists()):
        _make_comparisons(context, policy, tokenizer, path, figures)
    records = read_jsonl(path)
    return [Comparison.from_record(record, f"{path}:{n}") for n, record in enumerate(records, start=1)], read_json(
        figures
    )


def _make_comparisons(context: Context, policy: Transformer, tokenizer: Tokenizer, path: Path, figures: Path) -> None:
    """Sample, rank, write. Seeds come from the run's, so that a stage that was killed here makes the same anew."""
    settings = context.settings
    prompts = context.world.story_prompts(settings.num_prompts, "reward")
    num_replies = settings.replies_per_prompt
    ids = [render(prompt["messages"], tokenizer, reply=True)[0] for prompt in prompts for _ in range(num_replies)]
    context.progress.say(f"{context.name}: sampling {len(ids)} replies")
    completions = Engine(policy, tokenizer, context.runtime).generate(
        ids,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=derive_seed(context.seed, "replies"),
    )
    texts = [completion.text for completion in completions]
    replies = [texts[first : first + num_replies] for first in range(0, len(texts), num_replies)]
    gold = Gold()
    temperature = calibrate_labeller(prompts, replies, gold, settings.label_agreement)
    generator = np.random.default_rng(derive_seed(context.seed, "labels"))
    rankings = simulated_labels(prompts, replies, gold, temperature, generator)
    write_jsonl(
        path,
        (
            {"messages": prompt["messages"], "replies": candidates, "ranking": ranking}
            for prompt, candidates, ranking in zip(prompts, replies, rankings, strict=True)
        ),
    )
    ended = sum(completion.finish_reason == "stop" for completion in completions) / len(completions)
    ceiling = agreement(prompts, replies, gold, temperature)
    write_json(figures, {"noise_ceiling_accuracy": ceiling, "prompts": len(prompts), "sampled_end_of_turn_rate": ended})
