"""From what each item gave to a figure with its standard error and interval, and the estimate of pass@k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jielong.intervals import Z_95, wilson_ci95


@dataclass(frozen=True)
class Figure:
    """A mean over items. stderr: of the mean; nan of a single item. ci95: Wilson's where all values are 0 or 1."""

    value: float
    stderr: float
    ci95: tuple[float, float]
    num: int

    def as_record(self) -> dict[str, object]:
        """For JSON, which has no nan."""
        stderr = None if math.isnan(self.stderr) else self.stderr
        return {"value": self.value, "stderr": stderr, "ci95": list(self.ci95), "num": self.num}


def mean_figure(values: Sequence[float]) -> Figure:
    """Mean of at least one value, its standard error from the sample's standard deviation, and a 95 % interval."""
    num = len(values)
    mean = math.fsum(values) / num
    spread = math.fsum((value - mean) ** 2 for value in values)
    stderr = math.sqrt(spread / (num - 1) / num) if num > 1 else math.nan
    if all(value in (0, 1) for value in values):
        return Figure(mean, stderr, wilson_ci95(sum(values), num), num)
    reach = 0.0 if num == 1 else Z_95 * stderr
    return Figure(mean, stderr, (mean - reach, mean + reach), num)


def perplexity_figure(nats: Sequence[float]) -> Figure:
    """exp of the mean of `nats`, each the negative log-probability of one item; the error by the delta method."""
    mean = mean_figure(nats)
    value = _exp(mean.value)
    return Figure(value, value * mean.stderr, (_exp(mean.ci95[0]), _exp(mean.ci95[1])), mean.num)


def _exp(nats: float) -> float:
    """exp, at most the largest number there is: an untrained model's perplexity of a long word has no other."""
    return math.exp(min(nats, 709.0))


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that at least one of k samples is right, estimated without bias from num_samples >= k of them.

    1 - C(n - c, k) / C(n, k), as a product so that no factorial overflows.
    Source: Chen et al. 2021, arXiv:2107.03374, section 2.1 and figure 3.
    """
    assert 0 <= num_right <= num_samples and 1 <= k <= num_samples, (num_samples, num_right, k)
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_right + 1, num_samples + 1))


def vote(answers: Sequence[str | None]) -> str | None:
    """The answer that most samples gave, the first given among equals; None where none could be read.

    Source: Wang et al. 2022, arXiv:2203.11171, section 2 (the unweighted vote).
    """
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda answer: counts[answer]) if counts else None
