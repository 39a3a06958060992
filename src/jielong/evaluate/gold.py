"""The hidden preference of the demo: what makes a story reply good. It judges; training must never see it.

Training sees only rankings by a simulated labeller who agrees with it about three times in four, as people do with each
other. Nothing in align/ or train/ may import this module (a test reads their imports).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jielong.data.world.story import ENDINGS, OPENERS

_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]*")
_WORD = re.compile(r"[a-z']+")
_CHARACTER = re.compile(r"[\u4e00-\u9fff]")
_CLAUSE_MARKS = " .,!?。，！？\n"


@dataclass(frozen=True)
class GoldWeights:
    """How much each virtue counts. Each virtue is in [0, 1], so a perfect reply scores the sum (of words: both)."""

    words: float = 1.0  # for each asked word that is present
    length: float = 1.0
    novelty: float = 1.0  # nothing said twice
    ending: float = 0.8
    opener: float = 0.8


# Length without penalty: English in words, Chinese in characters; and the distance outside at which 1/e is left.
_BANDS = {"en": (26.0, 44.0), "zh": (34.0, 56.0)}
_FALLS = {"en": 10.0, "zh": 14.0}
_GRAMS = {"en": 4, "zh": 6}


class Gold:
    def __init__(self, weights: GoldWeights | None = None) -> None:
        self.weights = weights or GoldWeights()

    def score(self, record: dict, reply: str) -> float:
        """The hidden quality of a reply to record {"words": [a, b], "language": "en" | "zh"}; higher is better."""
        virtues = self.virtues(record, reply)
        weights = self.weights
        return (
            weights.words * virtues["words"] * len(record["words"])
            + weights.length * virtues["length"]
            + weights.novelty * virtues["novelty"]
            + weights.ending * virtues["ending"]
            + weights.opener * virtues["opener"]
        )

    def virtues(self, record: dict, reply: str) -> dict[str, float]:
        """Each virtue by itself, in [0, 1]: words, length, novelty, ending, opener."""
        language, text = record["language"], reply.strip()
        pieces = tokens(text, language)
        present = [has_word(text, word, language) for word in record["words"]]
        return {
            "words": sum(present) / len(present),
            "length": self._length(len(pieces), language),
            "novelty": novelty(text, language) if pieces else 0.0,
            "ending": float(text.endswith(ENDINGS[language])),
            "opener": float(text.startswith(OPENERS[language])),
        }

    @staticmethod
    def _length(num: int, language: str) -> float:
        low, high = _BANDS[language]
        outside = max(low - num, num - high, 0.0) / _FALLS[language]
        return math.exp(-outside * outside)


def tokens(text: str, language: str) -> list[str]:
    """The units a reply's length is counted in: lower-case words (en) or Chinese characters (zh)."""
    return _CHARACTER.findall(text) if language == "zh" else _WORD.findall(text.lower())


def has_word(text: str, word: str, language: str) -> bool:
    """Whether word stands in text; as a whole word in English."""
    return word in text if language == "zh" else word.lower() in tokens(text, language)


def novelty(text: str, language: str) -> float:
    """1 when no sentence and no n-gram comes twice; each repeated sentence halves it, repeated n-grams lower it."""
    sentences = [s.strip(_CLAUSE_MARKS).lower() for s in _SENTENCE.findall(text)]
    sentences = [s for s in sentences if s]
    num_repeated = len(sentences) - len(set(sentences))
    pieces, size = tokens(text, language), _GRAMS[language]
    grams = [tuple(pieces[i : i + size]) for i in range(len(pieces) - size + 1)]
    distinct = len(set(grams)) / len(grams) if grams else 1.0
    return distinct * 0.5**num_repeated


# The simulated labeller


def agreement(records: Sequence[dict], replies: Sequence[Sequence[str]], gold: Gold, temperature: float) -> float:
    """Expected share of pairwise labels that agree with gold, over all pairs of one prompt that gold does not tie.

    It is also the ceiling of a reward model's accuracy on such labels.
    """
    return _agreement(_gaps(records, replies, gold), temperature)


def calibrate_labeller(
    records: Sequence[dict], replies: Sequence[Sequence[str]], gold: Gold, target: float = 0.75
) -> float:
    """The labeller's temperature at which its pairwise labels agree with gold in a share `target` of the cases.

    replies: the K replies to each record. Found by bisection, because agreement falls as the temperature rises.
    Raises ValueError when gold ties every pair, or for a target that is no share between 0.5 and 1.
    """
    if not 0.5 < target < 1.0:
        raise ValueError(f"target agreement is {target}; it must lie between 0.5 and 1")
    gaps = _gaps(records, replies, gold)
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _agreement(gaps, middle) > target else (low, middle)
    return math.sqrt(low * high)


def _gaps(records: Sequence[dict], replies: Sequence[Sequence[str]], gold: Gold) -> np.ndarray:
    """(P,) the absolute gold differences of all pairs of replies to one prompt, ties left out."""
    gaps = []
    for record, candidates in zip(records, replies, strict=True):
        scores = [gold.score(record, reply) for reply in candidates]
        gaps += [abs(a - b) for i, a in enumerate(scores) for b in scores[i + 1 :] if a != b]
    if not gaps:
        raise ValueError("gold ties every pair of these replies: sample more, or more varied, replies")
    return np.array(gaps)


def _agreement(gaps: np.ndarray, temperature: float) -> float:
    return float(np.mean(_sigmoid(gaps / temperature)))


def simulated_labels(
    records: Sequence[dict],
    replies: Sequence[Sequence[str]],
    gold: Gold,
    temperature: float,
    generator: np.random.Generator,
) -> list[list[int]]:
    """For each record a ranking of its replies, best index first, as a noisy human would give it.

    Plackett-Luce: sorting score / temperature plus Gumbel noise, so that each pair is ordered with the Bradley-Terry
    probability sigma((score_a - score_b) / temperature).
    Source: Plackett 1975; Yellott 1977 for the Gumbel form.
    """
    rankings = []
    for record, candidates in zip(records, replies, strict=True):
        scores = np.array([gold.score(record, reply) for reply in candidates])
        noisy = scores / temperature + generator.gumbel(size=len(scores))
        rankings.append([int(i) for i in np.argsort(-noisy, kind="stable")])
    return rankings


# Judging one model against another


@dataclass(frozen=True)
class Judgement:
    """Model a against model b on the same prompts."""

    win_rate: float  # of a; ties count one half
    win_rate_ci95: tuple[float, float]
    win_rate_length_controlled: float
    gold_a: float  # mean gold scores
    gold_b: float
    num: int


def judge(
    records: Sequence[dict], replies_a: Sequence[str], replies_b: Sequence[str], gold: Gold, seed: int = 0
) -> Judgement:
    """Compares two replies to each record by gold; see win_rates, bootstrap_ci95 and length_controlled_win_rate."""
    a = np.array([gold.score(record, reply) for record, reply in zip(records, replies_a, strict=True)])
    b = np.array([gold.score(record, reply) for record, reply in zip(records, replies_b, strict=True)])
    wins = win_rates(a, b)
    longer = [
        len(tokens(x, record["language"])) - len(tokens(y, record["language"]))
        for record, x, y in zip(records, replies_a, replies_b, strict=True)
    ]
    prompts = [record["messages"][-1]["content"] for record in records]
    return Judgement(
        win_rate=float(wins.mean()),
        win_rate_ci95=bootstrap_ci95(wins, prompts, seed=seed),
        win_rate_length_controlled=length_controlled_win_rate(wins, np.array(longer, dtype=float)),
        gold_a=float(a.mean()),
        gold_b=float(b.mean()),
        num=len(wins),
    )


def win_rates(scores_a: np.ndarray, scores_b: np.ndarray) -> np.ndarray:
    """(M,) float: 1 where a scores higher, 0 where lower, 0.5 where they tie."""
    return (np.sign(np.asarray(scores_a) - np.asarray(scores_b)) + 1) / 2


def bootstrap_ci95(
    values: np.ndarray, prompts: Sequence[str] | None = None, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean, resampling prompts: replies to one prompt are not independent."""
    values = np.asarray(values, dtype=float)
    names = list(prompts) if prompts is not None else list(range(len(values)))
    _, group = np.unique(np.array(names), return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        drawn = generator.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def length_controlled_win_rate(wins: np.ndarray, longer: np.ndarray, ridge: float = 1e-3) -> float:
    """The win rate that a logistic model of the win on the length difference predicts at no difference.

    wins: (M,) in [0, 1]. longer: (M,) length of a minus length of b. Newton's method with a small ridge on the slope,
    so that perfectly separable data have an answer.
    Source: the idea of Dubois et al. 2024, arXiv:2404.04475, with the length term only.
    """
    wins, longer = np.asarray(wins, dtype=float), np.asarray(longer, dtype=float)
    scale = longer.std() or 1.0
    features = np.stack([np.ones_like(longer), longer / scale], axis=1)
    penalty = ridge * len(wins) * np.array([1e-3, 1.0])
    weights = np.zeros(2)
    for _ in range(100):
        chance = _sigmoid(features @ weights)
        gradient = features.T @ (wins - chance) - penalty * weights
        curvature = (features * (chance * (1 - chance))[:, None]).T @ features + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-10:
            break
    return float(_sigmoid(weights[:1])[0])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(values, -60.0, 60.0)))
