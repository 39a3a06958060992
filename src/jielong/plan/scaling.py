"""Scaling laws: how the loss falls with parameters and tokens, and what that says of a larger budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.errors import UsageError

HUBER_DELTA = 1e-3  # of the difference of logarithms, as in the paper
_MIN_POINTS = 6  # five constants and one to spare
_STARTS = ((0.0, 0.3, 0.6), (0.2, 0.5, 0.8), (0.2, 0.5, 0.8))  # E, alpha and beta to begin with


@dataclass(frozen=True)
class Point:
    """One run. parameters: N. tokens: D, that were read. loss: held out, nats a token."""

    parameters: float
    tokens: float
    loss: float
    name: str = ""


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token.

    irreducible: E, the loss that no size and no data removes. error: root mean square of log(predicted / measured).
    Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.3, equation 10.
    """

    irreducible: float
    size_constant: float
    size_exponent: float
    data_constant: float
    data_exponent: float
    error: float

    def loss(self, parameters: float, tokens: float) -> float:
        by_size = self.size_constant * parameters**-self.size_exponent
        return self.irreducible + by_size + self.data_constant * tokens**-self.data_exponent

    def best_split(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the least loss for so many operations, counted as 6 N D (their equation 4)."""
        alpha, beta = self.size_exponent, self.data_exponent
        ratio = (alpha * self.size_constant / (beta * self.data_constant)) ** (1 / (alpha + beta))
        parameters = ratio * (flops / 6) ** (beta / (alpha + beta))
        return parameters, flops / 6 / parameters


def fit_scaling_law(points: Sequence[Point]) -> ScalingLaw:
    """The law nearest to the points: Huber loss of log L, by L-BFGS from a grid of starts, the best one kept.

    Raises UsageError for fewer than six points, fewer than three sizes or three lengths, or a loss that is no positive
    number: what is left open then cannot be told from what is measured.
    Source: Hoffmann et al. 2022, section 3.3 and D.2. Theirs starts from a finer grid.
    """
    _check(points)
    log_size = _column([math.log(point.parameters) for point in points])
    log_data = _column([math.log(point.tokens) for point in points])
    log_loss = _column([math.log(point.loss) for point in points])
    found: list[tuple[float, Tensor]] = []
    for start in _starts(log_size, log_data, log_loss):
        reached = _descend(start, 40, log_size, log_data, log_loss)
        found.append((float(_objective(reached, log_size, log_data, log_loss)), reached))
    found = sorted((one for one in found if math.isfinite(one[0])), key=lambda one: one[0])[:3]
    ends = [_descend(reached, 1000, log_size, log_data, log_loss) for _, reached in found]
    ends = [end for end in ends if bool(end.isfinite().all())]
    if not ends:
        raise UsageError("no scaling law could be fitted: the search for its constants left the numbers")
    best = min(ends, key=lambda end: float(_objective(end, log_size, log_data, log_loss)))
    e, a, alpha, b, beta = best.tolist()
    error = float((_predicted(best, log_size, log_data) - log_loss).square().mean().sqrt())
    return ScalingLaw(math.exp(e), math.exp(a), alpha, math.exp(b), beta, error)


def _starts(log_size: Tensor, log_data: Tensor, log_loss: Tensor) -> Iterator[Tensor]:
    """(5,) log E, log A, alpha, log B, beta: both terms carry half of what E leaves, at the middle of the points."""
    for share, alpha, beta in itertools.product(*_STARTS):
        e = float(log_loss.min()) + math.log(max(share, 0.01))
        rest = math.log(max(math.exp(float(log_loss.mean())) - math.exp(e), 1e-3) / 2)
        a, b = rest + alpha * float(log_size.mean()), rest + beta * float(log_data.mean())
        yield torch.tensor([e, a, alpha, b, beta], dtype=torch.float64)


def _check(points: Sequence[Point]) -> None:
    wrong = next((p for p in points if not (p.parameters > 0 and p.tokens > 0 and 0 < p.loss < math.inf)), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong.name or 'a run'}: {wrong.parameters:g} parameters, {wrong.tokens:g} tokens, a loss of "
            f"{wrong.loss:g} nats; all must be above 0"
        )
    sizes, lengths = len({point.parameters for point in points}), len({point.tokens for point in points})
    if len(points) < _MIN_POINTS or sizes < 3 or lengths < 3:
        raise UsageError(
            f"{len(points)} runs of {sizes} sizes and {lengths} lengths; the law's five constants want at least "
            f"{_MIN_POINTS} runs, of three sizes and three lengths"
        )


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _predicted(constants: Tensor, log_size: Tensor, log_data: Tensor) -> Tensor:
    """log L of each point: a log-sum-exp of the three terms (their section D.2)."""
    e, a, alpha, b, beta = constants
    return torch.stack([e.expand_as(log_size), a - alpha * log_size, b - beta * log_data]).logsumexp(0)


def _objective(constants: Tensor, log_size: Tensor, log_data: Tensor, log_loss: Tensor) -> Tensor:
    difference = _predicted(constants, log_size, log_data) - log_loss
    return torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), delta=HUBER_DELTA)


def _descend(start: Tensor, num_steps: int, log_size: Tensor, log_data: Tensor, log_loss: Tensor) -> Tensor:
    constants = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [constants], max_iter=num_steps, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        # scaled: the objective is some 1e-6, and the line search stops at absolute changes
        value = _objective(constants, log_size, log_data, log_loss) * 1e6
        value.backward()
        return value

    optimizer.step(closure)
    return constants.detach()
