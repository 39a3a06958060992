"""The reward model: comparisons of replies, the loss on them, the normalised score, and how far to trust it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.data.batch import PairBatch
from jielong.errors import DataError, ModelError, TrainingError
from jielong.folder import save
from jielong.model.hf import load_model, read_provenance
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.tokenizer.chat import Message, render
from jielong.tokenizer.tokenizer import Tokenizer


def prompt_hash(messages: Sequence[Message]) -> str:
    """Names a prompt: sha256 of its messages, 16 hex digits."""
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Comparison:
    """One prompt, K replies to it, and which of them was found better than which.

    pairs: (better, worse) indices into replies. A pair that is absent was a tie or never judged.
    """

    messages: list[Message]
    replies: list[str]
    pairs: list[tuple[int, int]]
    prompt: str = ""

    @classmethod
    def from_record(cls, record: dict[str, object], where: str = "comparison") -> Comparison:
        """From {"messages", "replies", and "ranking" (best index first) or "pairs"}. Raises DataError, with `where`."""
        messages, replies = record.get("messages"), record.get("replies")
        if not isinstance(messages, list) or not messages or not isinstance(replies, list) or len(replies) < 2:
            raise DataError(f"{where}: needs messages (a list, not empty) and replies (a list of 2 or more texts)")
        ranking, given = record.get("ranking"), record.get("pairs")
        if isinstance(ranking, list):
            judged = [(better, worse) for place, better in enumerate(ranking) for worse in ranking[place + 1 :]]
        elif isinstance(given, list):
            judged = [(pair[0], pair[1]) for pair in given]
        else:
            raise DataError(f"{where}: needs a ranking (best index first) or pairs ([better, worse] indices)")
        for better, worse in judged:
            if better == worse or not (0 <= better < len(replies) and 0 <= worse < len(replies)):
                raise DataError(f"{where}: [{better}, {worse}] must be two different indices below {len(replies)}")
        return cls(messages, replies, judged, str(record.get("prompt_hash") or prompt_hash(messages)))

    def to_record(self) -> dict[str, object]:
        """What from_record reads."""
        pairs = [list(pair) for pair in self.pairs]
        return {"messages": self.messages, "replies": self.replies, "pairs": pairs, "prompt_hash": self.prompt}


@dataclass(frozen=True)
class Candidates:
    """A comparison in tokens. rows: one per reply, prompt and reply with its end token; pairs: (better, worse) rows."""

    rows: list[list[int]]
    reply_tokens: list[int]
    pairs: list[tuple[int, int]]


@dataclass
class Encoded:
    """Comparisons ready for batches, and what was left out on the way."""

    items: list[Candidates] = field(default_factory=list)
    num_pairs: int = 0
    num_identical: int = 0  # pairs of one text against itself: no information, dropped
    num_too_long: int = 0  # comparisons with a reply beyond the context, dropped


def encode_comparisons(comparisons: Iterable[Comparison], tokenizer: Tokenizer, max_length: int) -> Encoded:
    """Tokens of every comparison that has a decided pair and fits max_length; the rest is counted."""
    encoded = Encoded()
    for comparison in comparisons:
        decided = [(a, b) for a, b in comparison.pairs if comparison.replies[a] != comparison.replies[b]]
        encoded.num_identical += len(comparison.pairs) - len(decided)
        prompt = len(render(comparison.messages, tokenizer, reply=True)[0])
        rows = [
            render([*comparison.messages, {"role": "assistant", "content": reply}], tokenizer)[0]
            for reply in comparison.replies
        ]
        if max(len(row) for row in rows) > max_length:
            encoded.num_too_long += 1
        elif decided:
            encoded.items.append(Candidates(rows, [len(row) - prompt for row in rows], decided))
            encoded.num_pairs += len(decided)
    return encoded


def collate(items: Sequence[Candidates], pad_id: int) -> PairBatch:
    """One batch: every reply is a row, run once, however many pairs it is in; each prompt weighs one in all.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (all pairs of a prompt in one batch element, / C(K, 2)).
    """
    tokens, segments, ends = pad_rows([row for item in items for row in item.rows], pad_id)
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    first = 0
    for item in items:
        pairs.extend((first + better, first + worse) for better, worse in item.pairs)
        weights.extend([1 / len(item.pairs)] * len(item.pairs))
        first += len(item.rows)
    return PairBatch(tokens, segments, ends, torch.tensor(pairs).view(-1, 2), torch.tensor(weights), len(items))


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens (R, T) int64 padded at the right, segments (R, T) int32, ends (R,) int64: index of the last token)."""
    lengths = torch.tensor([len(row) for row in rows])
    length = int(lengths.max())
    tokens = torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in rows])
    segments = (torch.arange(length) < lengths[:, None]).int()
    return tokens, segments, lengths - 1


def pair_batch(comparisons: Sequence[Comparison], tokenizer: Tokenizer, max_length: int = 1 << 30) -> PairBatch:
    """The batch of these comparisons. Raises DataError when none has a decided pair within max_length tokens."""
    items = encode_comparisons(comparisons, tokenizer, max_length).items
    if not items:
        raise DataError(f"none of {len(comparisons)} comparisons has a decided pair of {max_length} tokens or fewer")
    return collate(items, tokenizer.pad_id)


def comparison_batches(
    items: Sequence[Candidates], batch_prompts: int, pad_id: int, seed: int, accumulate: int = 1
) -> tuple[Callable[[int], list[PairBatch]], int]:
    """(micro-batches of a step, a pure function of it; steps an epoch).

    A step takes `accumulate` micro-batches of batch_prompts prompts. An epoch is a permutation; its ragged end is left
    out. Raises DataError when there are fewer prompts than one step takes.
    """
    step_prompts = batch_prompts * accumulate
    num_steps = len(items) // step_prompts
    if num_steps == 0:
        raise DataError(
            f"{len(items)} comparisons are fewer than one batch of {step_prompts} prompts; lower the batch or add more"
        )

    def batches(step: int) -> list[PairBatch]:
        epoch, place = divmod(step, num_steps)
        generator = torch.Generator().manual_seed(derive_seed(seed, "comparisons", epoch))
        order = torch.randperm(len(items), generator=generator).tolist()
        firsts = range(place * step_prompts, (place + 1) * step_prompts, batch_prompts)
        return [collate([items[i] for i in order[first : first + batch_prompts]], pad_id) for first in firsts]

    return batches, num_steps


def split_by_prompt(
    comparisons: Sequence[Comparison], held_fraction: float, seed: int
) -> tuple[list[Comparison], list[Comparison]]:
    """(training, held-out): every comparison of a prompt goes to the same side. At least one prompt on each.

    Raises DataError when there are fewer than two prompts.
    """
    prompts = sorted({comparison.prompt for comparison in comparisons})
    if len(prompts) < 2:
        raise DataError(f"{len(prompts)} prompt(s) cannot be split into training and held-out; compare more prompts")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(derive_seed(seed, "split")))
    num_held = min(max(round(held_fraction * len(prompts)), 1), len(prompts) - 1)
    held = {prompts[index] for index in order[:num_held].tolist()}
    training = [comparison for comparison in comparisons if comparison.prompt not in held]
    return training, [comparison for comparison in comparisons if comparison.prompt in held]


def read_scores(model: Transformer, tokens: Tensor, ends: Tensor) -> Tensor:
    """(R,) float32: the scalar head at each row's last real token, found by index and never by searching for padding.

    Rows hold one document each and padding is at the right, so causal attention alone hides it: no segments are needed.
    """
    return model(tokens)[torch.arange(len(ends), device=ends.device), ends].float()


def pair_loss(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(better - worse), nats, of each pair: Bradley-Terry. A constant added to all changes nothing."""
    return F.softplus(worse - better)


def bradley_terry(model: Transformer, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Objective: (sum over prompts of the mean pair loss, nats; sums over prompts of accuracy and score margin).

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1.
    """
    scores = read_scores(model, batch.tokens, batch.ends)
    better, worse = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
    margin = (better - worse).detach()
    metrics = {"accuracy": (batch.weights * (margin > 0)).sum(), "margin": (batch.weights * margin).sum()}
    return (batch.weights * pair_loss(better, worse)).sum(), metrics


def scalar_from_policy(policy: Transformer, generator: torch.Generator) -> Transformer:
    """A model with a fresh scalar head, N(0, 1/sqrt(D+1)), on a copy of the policy's trunk."""
    model = Transformer(replace(policy.config, head="scalar"))
    model.init_weights(generator)
    trunk = {name: weight for name, weight in policy.state_dict().items() if name in model.state_dict()}
    missing = model.load_state_dict(trunk, strict=False).missing_keys
    assert missing == ["score.weight"], missing
    return model.to(next(policy.parameters()).device)


@dataclass
class RewardModel:
    """A scorer of replies: gain * model(reply) + bias, with mean 0 and variance 1 over the replies of `normalise`."""

    model: Transformer
    gain: float = 1.0
    bias: float = 0.0

    @torch.no_grad()
    def score(self, tokens: Tensor, segments: Tensor | None, ends: Tensor) -> Tensor:
        """(R,) float32, normalised. tokens (R, T) int64, padded at the right; ends (R,) int64, last real tokens.

        segments is not read: a row is one document. Raises TrainingError when a score is not finite.
        """
        scores = self.gain * read_scores(self.model, tokens, ends) + self.bias
        if not bool(torch.isfinite(scores).all()):
            rows = (~torch.isfinite(scores)).nonzero().flatten().tolist()
            raise TrainingError(
                f"the reward model gives scores that are not finite, for rows {rows[:8]} of {len(ends)}"
            )
        return scores

    def normalise(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Set gain and bias so that these replies score mean 0 and deviation 1; returns the raw (mean, deviation).

        batches: (tokens (R, T), ends (R,)) of replies of the SFT model, the score's zero for all that follows.
        Raises TrainingError when all replies score the same: such a model says nothing.
        """
        self.gain, self.bias = 1.0, 0.0
        scores = torch.cat([self.score(tokens, None, ends) for tokens, ends in batches]).double()
        mean, deviation = float(scores.mean()), float(scores.std(correction=0))
        if len(scores) < 2 or deviation < 1e-6:
            raise TrainingError(
                f"the reward model scores {len(scores)} SFT replies with standard deviation {deviation:.2g}; "
                "it has learned nothing, or the replies are all the same"
            )
        self.gain, self.bias = 1 / deviation, -mean / deviation
        return mean, deviation

    def critic(self) -> Transformer:
        """A critic to start PPO from: a trainable copy, its head scaled by gain (the bias is soon learned)."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            model.score.weight.mul_(self.gain)
        return model.requires_grad_(True)

    def save(self, tokenizer: Tokenizer, folder: Path, provenance: Mapping[str, object] | None = None) -> None:
        """Write a model folder with its tokenizer; gain and bias stand in its jielong.json."""
        normalisation = {"gain": self.gain, "bias": self.bias}
        save(self.model, tokenizer, folder, {**(provenance or {}), "reward": normalisation})

    @classmethod
    def load(cls, folder: Path) -> RewardModel:
        """Read it back, frozen. Raises ModelError when the folder has no scalar head or no normalisation."""
        model = load_model(folder)
        stored = read_provenance(folder).get("reward")
        if model.config.head != "scalar" or not isinstance(stored, dict):
            raise ModelError(f"{folder} is not a reward model: it needs a scalar head, and reward gain and bias")
        gain, bias = float(stored["gain"]), float(stored["bias"])
        if not (math.isfinite(gain) and math.isfinite(bias)):
            raise ModelError(f"{folder}/jielong.json: reward gain is {gain} and bias is {bias}; both must be finite")
        return cls(model.eval().requires_grad_(False), gain, bias)
