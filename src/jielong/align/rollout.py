"""Rollouts: replies sampled from the policy, scored, and turned into what PPO learns from.

Rows hold one document each and padding stands at the right, so causal attention alone hides it: every forward pass here
and in `ppo` goes without segments, which needs no mask. Entry t of every (B, T) tensor speaks about token t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jielong.align.advantages import explained_variance, gae, token_rewards, whiten
from jielong.align.comparisons import pad_rows
from jielong.align.diversity import diversity_figures
from jielong.align.judges import ReplyScorer, Scorer, judged_rows
from jielong.align.kl import k1, k3
from jielong.align.reward import reward_models
from jielong.align.settings import PolicyConfig, PPOConfig
from jielong.data.batch import Rollout
from jielong.errors import TrainingError, UsageError
from jielong.generate.engine import Completion, Engine
from jielong.model.logprobs import masked_mean, scored_logprobs
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, derive_seed
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.parallel import from_leader, gather_rows, own_share
from jielong.train.whole import released, whole_model, whole_weights

# |engine - trainer| in nats: the largest in float32, the mean in bfloat16 (single tokens may be off by tenths there).
LARGEST_GAP_FLOAT32 = 1e-4
MEAN_GAP_BFLOAT16 = 0.05
KL_ALARM_NATS = -0.1  # a KL is not negative; a mean below this has a cause other than sampling noise


@dataclass(frozen=True)
class Actors:
    """Who takes part: the policy and the critic (PPO alone has one) learn, the reference and the reward do not."""

    policy: Transformer
    critic: Transformer | None
    reference: Transformer
    reward: Scorer | ReplyScorer
    tokenizer: Tokenizer

    @property
    def models(self) -> list[Transformer]:
        """All that have weights: policy, critic, reference, reward models."""
        readers = [model for model in (self.policy, self.critic, self.reference) if model is not None]
        return [*readers, *(judge.model for judge in reward_models(self.reward).values())]


def values_before(model: Transformer, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
    """The critic's value of the state in which each token was chosen: (B, T) float32.

    x[:, t] = scalar[:, t - 1], for the state before token t is the text up to t - 1; x[:, 0] = 0. This is the critic's
    twin of the shift in `model/logprobs.py`: entry t speaks about token t.
    """
    scalar = model(tokens, segments).float()
    return torch.cat([torch.zeros_like(scalar[:, :1]), scalar[:, :-1]], dim=1)


def weights_hash(model: nn.Module, runtime: Runtime | None = None) -> str:
    """sha256 over the names and bytes of all weights: equal for equal models only, however they lie over processes.

    runtime: of a run whose processes may have parts of them, and which then call this together; None of a single one.
    """
    digest = hashlib.sha256()
    for name, tensor in whole_weights(model, runtime):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fitting_prompts(prompts: Sequence[list[int]], max_length: int, max_new_tokens: int) -> tuple[list[list[int]], int]:
    """(prompts that leave room for a whole reply, number of those that do not). Raises UsageError when none does."""
    kept = [prompt for prompt in prompts if len(prompt) + max_new_tokens <= max_length]
    if not kept:
        raise UsageError(
            f"none of {len(prompts)} prompts leaves room for a reply of {max_new_tokens} tokens in a context of "
            f"{max_length}; lower max_new_tokens or shorten the prompts"
        )
    return kept, len(prompts) - len(kept)


def iteration_prompts(num_prompts: int, episodes: int, seed: int, iteration: int) -> list[int]:
    """Indices of the prompts of an iteration: a window of an endless row of permutations, a pure function."""
    indices: list[int] = []
    place = iteration * episodes
    while len(indices) < episodes:
        epoch, start = divmod(place + len(indices), num_prompts)
        generator = torch.Generator().manual_seed(derive_seed(seed, "prompts", epoch))
        indices.extend(torch.randperm(num_prompts, generator=generator)[start:].tolist())
    return indices[:episodes]


def lay_out(completions: Sequence[Completion], pad_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows from ids as they were sampled, never from text.

    Returns tokens (B, T) int64, mask (B, T) bool (the reply with its stop token, nothing after it), segments (B, T)
    int32 and ends (B,) int64, the index of each reply's last token.
    """
    tokens, segments, ends = pad_rows([[*each.prompt, *each.tokens] for each in completions], pad_id)
    starts = torch.tensor([len(each.prompt) for each in completions])
    mask = (torch.arange(tokens.shape[1]) >= starts[:, None]) & (segments > 0)
    return tokens, mask, segments, ends


def trim(rollout: Rollout) -> Rollout:
    """The rollout without the columns that are padding in all rows."""
    length = int((rollout.segments > 0).sum(dim=1).max())
    if length == rollout.tokens.shape[1]:
        return rollout
    kept = {name: value[:, :length] for name, value in rollout.__dict__.items() if name != "num_units"}
    return Rollout(**kept, num_units=rollout.num_units)


def minibatch_rows(num_rows: int, config: PolicyConfig) -> Iterator[list[slice]]:
    """The row ranges of each minibatch, one for every forward pass; rollout and update cut alike."""
    for first in range(0, num_rows, config.minibatch_rows):
        last = min(first + config.minibatch_rows, num_rows)
        cuts = range(first, last, config.micro_rows)
        yield [slice(cut, min(cut + config.micro_rows, last)) for cut in cuts]


@dataclass(frozen=True)
class Sampled:
    """Replies with all that the models say of them, before it is settled what they were worth. (B, T) but where said.

    score: (B,) float32, the reward's own. final: (B,) with missing_eos_score where the reply does not end its turn.
    groups: (B,) int64, which of the asked prompts each reply is to: its place in them divided by the group's size.
    """

    completions: list[Completion]
    tokens: Tensor
    mask: Tensor
    segments: Tensor
    ends: Tensor  # (B,)
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    score: Tensor
    final: Tensor
    groups: Tensor
    figures: dict[str, float]


@dataclass
class _Read:
    """What the models say about the rows, each on the CPU or the device of the models."""

    logprobs: Tensor
    entropy: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor  # (B,)


@torch.no_grad()
def _read(actors: Actors, tokens: Tensor, mask: Tensor, ends: Tensor, config: PolicyConfig) -> _Read:
    """One pass of each model over the rows, in the very micro-batches in which the first update will see them.

    Log-probabilities are a pass of the training code, not the engine's: ratios then start at exactly 1.
    """
    empty, words = torch.zeros(tokens.shape, device=tokens.device), actors.tokenizer.vocab_size
    found = _Read(empty, empty.clone(), empty.clone(), empty.clone(), torch.zeros(len(tokens), device=tokens.device))
    for rows in (rows for minibatch in minibatch_rows(len(tokens), config) for rows in minibatch):
        length = int(ends[rows].max()) + 1
        shown, scored = tokens[rows, :length], mask[rows, :length]
        logprobs, entropy = scored_logprobs(actors.policy, shown, None, scored, config.temperature, vocab_size=words)
        assert entropy is not None
        found.logprobs[rows, :length], found.entropy[rows, :length] = logprobs, entropy
        # The same call as the policy's, entropy included: equal weights must give equal bits.
        reference, _ = scored_logprobs(actors.reference, shown, None, scored, config.temperature, vocab_size=words)
        found.ref_logprobs[rows, :length] = reference
        if actors.critic is not None:
            values = values_before(actors.critic, shown)
            found.values[rows, :length] = torch.where(scored, values, 0.0)
        if not isinstance(actors.reward, ReplyScorer):
            found.scores[rows] = actors.reward.score(shown, None, ends[rows]).float()
    return found


def final_scores(scores: Tensor, ended: Tensor, missing_eos_score: float | None) -> Tensor:
    """(B,) scores, those of replies that did not end their turn REPLACED by missing_eos_score (None: left alone).

    ended: (B,) bool, by the reply's own last token; a stop token in the prompt does not count.
    Raises TrainingError when a score, replaced or not, is not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise TrainingError("a reward is not finite; look at the reward model")
    return scores if missing_eos_score is None else torch.where(ended, scores, missing_eos_score)


def engine_gap(completions: Sequence[Completion], logprobs: Tensor, mask: Tensor) -> tuple[float, float]:
    """(largest, mean) |engine's - trainer's| log-probability of the sampled tokens, nats."""
    sampled = torch.tensor([value for each in completions for value in each.logprobs], device=logprobs.device)
    gap = (sampled - logprobs[mask]).abs()
    return float(gap.max()), float(gap.mean())


def check_gap(largest: float, mean: float, dtype: torch.dtype) -> None:
    """Raises TrainingError when what the engine sampled from is not what the trainer computes."""
    float32 = dtype == torch.float32
    gap, limit = (largest, LARGEST_GAP_FLOAT32) if float32 else (mean, MEAN_GAP_BFLOAT16)
    if not gap <= limit:
        kind = "at most" if float32 else "mean"
        raise TrainingError(
            f"the engine's and the trainer's log-probabilities differ by {gap:.2g} nats ({kind}); legal is {limit:g} "
            f"in {dtype}. Replies come from another distribution than the one that is trained"
        )


def _generate(
    actors: Actors, prompts: Sequence[list[int]], config: PolicyConfig, seed: int, runtime: Runtime
) -> list[Completion]:
    """One reply to each prompt. With several processes each writes its share, and all get all of them.

    A row's seed is its own whoever writes it, so that the replies do not depend on the number of processes.
    """
    rows = own_share(range(len(prompts)), runtime)
    own = Engine(whole_model(actors.policy, runtime), actors.tokenizer, runtime).generate(
        [prompts[row] for row in rows],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=[derive_seed(seed, row) for row in rows],
        batch_rows=len(rows),
    )
    if runtime.world_size == 1:
        return own
    tokens = gather_rows([each.tokens for each in own], len(prompts), runtime)
    logprobs = gather_rows([each.logprobs for each in own], len(prompts), runtime)
    stops = actors.tokenizer.stop_ids
    replies = [[int(token) for token in row] for row in tokens]
    return [
        Completion(
            list(prompt), reply, actors.tokenizer.decode(reply), chances, "stop" if reply[-1] in stops else "length"
        )
        for prompt, reply, chances in zip(prompts, replies, logprobs, strict=True)
    ]


def sample(
    actors: Actors, prompts: Sequence[list[int]], config: PolicyConfig, seed: int, runtime: Runtime, group_size: int = 1
) -> Sampled:
    """One reply to each prompt, read by all models and scored.

    prompts: ids that end where the reply begins, those of one group side by side. seed: of the sampling; the result
    is a function of it, the prompts and the weights. Replies that the reward could not judge are left out and counted.
    Raises TrainingError when those are too many, when a score is not finite, or when the engine's log-probabilities are
    not the trainer's.
    """
    completions = _generate(actors, prompts, config, seed, runtime)
    groups, skipped, judged = list(range(len(prompts))), 0.0, None
    if isinstance(actors.reward, ReplyScorer):
        said = actors.reward.score_replies(completions) if runtime.process == 0 else None
        given = from_leader(said, len(completions), runtime)
        groups = judged_rows(given, config.max_skipped_fraction)
        skipped = 1 - len(groups) / len(completions)
        completions, judged = [completions[row] for row in groups], torch.tensor([given[row] for row in groups])
    tokens, mask, segments, ends = (part.to(runtime.device) for part in lay_out(completions, actors.tokenizer.pad_id))
    with runtime.autocast(), released(actors.models, runtime):
        read = _read(actors, tokens, mask, ends, config)
    score = read.scores if judged is None else judged.float().to(runtime.device)
    largest, mean = engine_gap(completions, read.logprobs, mask)
    check_gap(largest, mean, runtime.dtype)
    end_id = actors.tokenizer.end_id
    ended = torch.tensor([each.tokens[-1] == end_id for each in completions], device=runtime.device)
    final = final_scores(score, ended, config.missing_eos_score)
    figures = {
        "proxy_reward": float(score.mean()),
        "proxy_reward_final": float(final.mean()),
        "ended_rate": float(ended.float().mean()),
        **diversity_figures(completions),
        "entropy_nats": float(masked_mean(read.entropy, mask)),
        "engine_gap_largest_nats": largest,
        "engine_gap_mean_nats": mean,
        **({"skipped_rate": skipped} if judged is not None else {}),
    }
    group = torch.tensor(groups, device=runtime.device) // group_size
    return Sampled(
        completions, tokens, mask, segments, ends, read.logprobs, read.ref_logprobs, read.values, score, final, group,
        figures,
    )  # fmt: skip


def collect(
    actors: Actors, prompts: Sequence[list[int]], config: PPOConfig, kl_coefficient: float, seed: int, runtime: Runtime
) -> tuple[Rollout, dict[str, float], list[Completion]]:
    """The rollout of PPO from one reply to each prompt; see `sample`.

    kl_coefficient: beta, reward a nat. Advantages are whitened over the whole rollout, returns are not.
    Returns (rollout on the runtime's device, figures, completions).
    """
    found = sample(actors, prompts, config, seed, runtime)
    kl, mask = k1(found.logprobs, found.ref_logprobs), found.mask
    rewards = token_rewards(found.final, found.ends, kl, mask, kl_coefficient)
    advantages, returns = gae(rewards, found.values, mask, discount=config.discount, smoothing=config.smoothing)
    rollout = as_rollout(found, rewards, whiten(advantages, mask), returns)
    figures = {**found.figures, **rollout_figures(rollout), **critic_figures(rollout)}
    return rollout, figures, found.completions


def as_rollout(found: Sampled, rewards: Tensor, advantages: Tensor, returns: Tensor) -> Rollout:
    """What is learned from: the replies and what each of their tokens was worth. All (B, T)."""
    return Rollout(
        tokens=found.tokens,
        mask=found.mask,
        segments=found.segments,
        logprobs=found.logprobs,
        ref_logprobs=found.ref_logprobs,
        values=found.values,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
        num_units=int(found.mask.sum()),
    )


def rollout_figures(rollout: Rollout) -> dict[str, float]:
    """Figures over scored tokens only: the same with any amount of padding."""
    mask, episodes = rollout.mask, len(rollout.tokens)
    kl = k1(rollout.logprobs, rollout.ref_logprobs)
    per_reply = float((kl * mask).sum()) / episodes
    low_variance = k3(rollout.logprobs, rollout.ref_logprobs)
    return {
        "kl_nats_per_reply": per_reply,
        "kl_nats_per_token": float(masked_mean(kl, mask)),
        "kl_k3_nats_per_reply": float((low_variance * mask).sum()) / episodes,
        "kl_alarm": float(per_reply < KL_ALARM_NATS),
        "reward_per_reply": float((rollout.rewards * mask).sum()) / episodes,
        "reply_tokens": float(mask.sum()) / episodes,
    }


def critic_figures(rollout: Rollout) -> dict[str, float]:
    """How well the critic knew what would come, over scored tokens only."""
    mask = rollout.mask
    return {
        "value_mean": float(masked_mean(rollout.values, mask)),
        "return_mean": float(masked_mean(rollout.returns, mask)),
        "explained_variance": explained_variance(rollout.values, rollout.returns, mask),
    }
