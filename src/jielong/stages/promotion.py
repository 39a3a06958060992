"""The stage `promote`: a new policy takes the old one's place only where a judge finds it better.

The judges, none of which the new policy was trained to please:
    votes     people who compared answers of the two models
    heldout   people's choices that were held out of a reward stage: does the new policy lean, from the old one, towards
              the answers that they chose?
    reward    a reward model that learned from other votes, on the prompts that were held out of it
    gold      the world's hidden preference, on prompts that no stage learns from
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jielong.align.agreement import rate_ci95
from jielong.align.dpo import with_reference
from jielong.data.tally import duels
from jielong.errors import DataError
from jielong.evaluate.gold import Gold, bootstrap_ci95, win_rates
from jielong.folder import model_hash
from jielong.generate.engine import Completion
from jielong.model.transformer import Transformer
from jielong.recipe.promotion import ALIGNED
from jielong.stages.alignment import load_reward
from jielong.stages.comparisons import encode_heldout, gather_comparisons
from jielong.stages.context import PROMOTED, Context, read_json, write_json
from jielong.stages.judging import Prompt, answerable, heldout_prompts, proxy_scores, sampled_replies
from jielong.stages.preferences import implicit_accuracy
from jielong.stages.votes import kept_votes
from jielong.tokenizer import Tokenizer

UNFINISHED = -1e9  # the score of a reply that does not end its turn: it loses to any that does


@dataclass(frozen=True)
class Judged:
    """How often the new model won (ties count half), the 95 % interval of that, of how many, and more figures.

    trusted: whether the judge has shown that it is one; else no word of its promotes a model.
    """

    win_rate: float
    ci95: tuple[float, float]
    num: int
    figures: dict[str, Any]
    trusted: bool = True


def run_promote(context: Context) -> dict[str, Any]:
    """Let the judge compare; write promoted.json, which says whose model is the present one from here on.

    The new model is promoted where the lower end of its win rate's interval is above `threshold`. Else the old one
    stays. Raises DataError where there is nothing to judge with.
    """
    settings = context.settings
    old, new = context.start_model(), context.last_model(*ALIGNED)
    judged = JUDGES[settings.judge](context, old, new)
    promoted = judged.trusted and judged.ci95[0] > settings.threshold
    names = {"old": old.parent.name[3:], "new": new.parent.name[3:]}
    context.progress.say(
        f"{context.name}: {names['new']} {'is promoted' if promoted else 'is not promoted'} over {names['old']}: it "
        f"won {100 * judged.win_rate:.1f} % of {judged.num} ({100 * judged.ci95[0]:.1f} – {100 * judged.ci95[1]:.1f} %)"
    )
    chosen = Path(os.path.relpath(new if promoted else old, context.folder)).as_posix()
    figures = {
        "promoted": promoted,
        **names,
        "judge": settings.judge,
        "win_rate": judged.win_rate,
        "win_rate_ci95": list(judged.ci95),
        "threshold": settings.threshold,
        "judged": judged.num,
        **judged.figures,
    }
    write_json(context.folder / PROMOTED, {"model": chosen, **figures})
    return figures


def _by_votes(context: Context, old: Path, new: Path) -> Judged:
    """People's votes between the two, whoever else they voted on."""
    hashes = {model_hash(old): 0, model_hash(new): 1}
    votes = kept_votes(context)
    points = {"wins": 1.0, "losses": 0.0, "ties": 0.5, "both_bad": 0.5}  # of the first of a pair
    hits: list[float] = []
    prompts: list[int] = []
    numbers: dict[str, int] = {}
    for vote in votes:
        who = [hashes.get(answer.model_hash) for answer in vote.answers]
        for one, other, outcome in duels(vote):
            if {who[one], who[other]} == {0, 1}:
                hits.append(points[outcome] if who[one] == 1 else 1 - points[outcome])
                prompts.append(numbers.setdefault(str(vote.prompt), len(numbers)))
    if not hits:
        there = sorted({f"{answer.model} ({answer.model_hash})" for vote in votes for answer in vote.answers})
        raise DataError(
            f"[{context.name}] none of {len(votes)} votes compares the old model {old} ({model_hash(old)}) with the "
            f"new {new} ({model_hash(new)}); the votes are on {', '.join(there[:6])}. Let people compare the two, then "
            "give the same command again"
        )
    rate = torch.tensor(hits, dtype=torch.float64)
    return Judged(float(rate.mean()), rate_ci95(rate, torch.tensor(prompts)), len(hits), {})


def _by_heldout(context: Context, old: Path, new: Path) -> Judged:
    """Held-out choices: log new/old of the answer that was chosen against that of the one that was not."""
    (reference, model), tokenizer = _both(context, old, new)
    origin = context.named(_reward_name(context))
    gathered = gather_comparisons(origin, reference, tokenizer)
    here = f"[{context.name}] with what [{origin.name}] held out:"
    encoded = encode_heldout(gathered.heldout, tokenizer, model.config.max_length, here)
    items = with_reference(reference, encoded.items, tokenizer.pad_id, context.runtime)
    rate, interval = implicit_accuracy(context, model, items, tokenizer)
    return Judged(rate, (interval[0], interval[1]), encoded.num_pairs, {"judged_by": origin.name})


def _by_reward(context: Context, old: Path, new: Path) -> Judged:
    """Replies of both to held-out prompts, by a reward model that agrees with held-out choices more than a coin would.

    A judge that may not is heard and not obeyed: the old model stays.
    """
    models, tokenizer = _both(context, old, new)
    origin = context.named(_reward_name(context))
    reward = load_reward(context, origin.folder / "model", tokenizer)
    heldout = gather_comparisons(origin, models[0], tokenizer).heldout
    prompts = {comparison.prompt: {"messages": comparison.messages} for comparison in heldout}
    asked, replies = _answered(context, models, tokenizer, list(prompts.values())[: context.settings.judged_prompts])
    scores = []
    for found in replies:
        ended = np.array([reply.finish_reason == "stop" for reply in found])
        scores.append(np.where(ended, np.array(proxy_scores(reward, tokenizer, found)), UNFINISHED))
    low = read_json(origin.folder / "figures.json")["figures"]["heldout_accuracy_ci95"][0]
    trusted = low > 0.5
    if not trusted:
        context.progress.say(f"{context.name}: [{origin.name}] agrees with held-out choices no better than a coin may")
    figures = {"judged_by": origin.name, "judge_accuracy_at_least": low, "judge_trusted": trusted}
    return _won(win_rates(scores[1], scores[0]), asked, figures, trusted)


def _by_gold(context: Context, old: Path, new: Path) -> Judged:
    models, tokenizer = _both(context, old, new)
    asked, replies = _answered(context, models, tokenizer, heldout_prompts(context))
    gold = Gold()
    scores = [
        np.array([gold.score(prompt, reply.text) for prompt, reply in zip(asked, found, strict=True)])
        for found in replies
    ]
    figures = {"gold_reward_before": float(scores[0].mean()), "gold_reward_after": float(scores[1].mean())}
    return _won(win_rates(scores[1], scores[0]), asked, figures)


JUDGES: dict[str, Callable[[Context, Path, Path], Judged]] = {
    "votes": _by_votes,
    "heldout": _by_heldout,
    "reward": _by_reward,
    "gold": _by_gold,
}


def _reward_name(context: Context) -> str:
    """The reward stage that the recipe names, else the newest."""
    return context.settings.reward or context.folder_of("reward").name[3:]


def _both(context: Context, old: Path, new: Path) -> tuple[tuple[Transformer, Transformer], Tokenizer]:
    """((old, new), their tokenizer)."""
    (before, tokenizer), (after, _) = context.load_model(old), context.load_model(new)
    return (before, after), tokenizer


def _answered(
    context: Context, models: Sequence[Transformer], tokenizer: Tokenizer, prompts: list[Prompt]
) -> tuple[list[Prompt], list[list[Completion]]]:
    """(prompts that leave room for a reply, judged_seeds times over; the replies of each model to them)."""
    fitting = answerable(context, prompts, tokenizer, models[0].config.max_length)
    replies = [
        [
            reply
            for seed in range(1, 1 + context.settings.judged_seeds)
            for reply in sampled_replies(context, model, tokenizer, fitting, seed)
        ]
        for model in models
    ]
    return fitting * context.settings.judged_seeds, replies


def _won(wins: np.ndarray, asked: list[Prompt], figures: dict[str, Any], trusted: bool = True) -> Judged:
    """wins: (M,) of the new model, 1, 0 or 1/2; replies to one prompt are not independent."""
    interval = bootstrap_ci95(wins, [str(prompt["messages"]) for prompt in asked])
    return Judged(float(wins.mean()), interval, len(wins), figures, trusted)
