"""Arithmetic on the results of alignment.py: Gao's curves by least squares, and values at an equal place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Point = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """R(d) = d (a - b log d) for "rl" and d (a - b d) for "bon", with d = sqrt(KL in nats) and R(0) = 0.

    r2: share of the variance of R that the curve explains. num: points.
    Source: Gao et al. 2022, arXiv:2210.10760, section 3.
    """

    form: str
    a: float
    b: float
    r2: float
    num: int

    def value(self, d: float) -> float:
        """The curve at d >= 0."""
        if d <= 0:
            return 0.0
        return d * (self.a - self.b * (math.log(d) if self.form == "rl" else d))

    @property
    def peak(self) -> float | None:
        """d at which the curve is highest; None where it only rises, so that the data know of no turning point."""
        if self.b <= 0:
            return None
        return math.exp(self.a / self.b - 1) if self.form == "rl" else self.a / (2 * self.b)


def fit_gao(distances: Sequence[float], rewards: Sequence[float], form: str) -> Fit:
    """Least squares over points with d > 0; the form is linear in a and b. Raises ValueError with fewer than 3."""
    d, r = np.asarray(distances, dtype=float), np.asarray(rewards, dtype=float)
    kept = d > 0
    d, r = d[kept], r[kept]
    if len(d) < 3:
        raise ValueError(f"{len(d)} points with d > 0; a curve with two parameters needs 3 or more")
    other = -d * (np.log(d) if form == "rl" else d)
    columns = np.stack([d, other], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns, r, rcond=None)
    left, spread = float(((columns @ [a, b] - r) ** 2).sum()), float(((r - r.mean()) ** 2).sum())
    return Fit(form, float(a), float(b), 1 - left / spread if spread else 0.0, len(d))


def at(points: Sequence[Point], along: str, place: float, name: str) -> float | None:
    """The value of `name` where `along` first reaches `place`, on straight lines between points; None if it never does.

    points: in the order in which they were made, the start among them.
    """
    for before, after in zip(points, points[1:], strict=False):
        low, high = float(before[along]), float(after[along])
        if low <= place <= high:
            share = 0.0 if high == low else (place - low) / (high - low)
            return float(before[name]) + share * (float(after[name]) - float(before[name]))
    return None


def held(points: Sequence[Point], along: str, place: float, name: str) -> float | None:
    """As `at`, but what has ended keeps its last value; None before the first point. For time, which only grows."""
    if place < float(points[0][along]):
        return None
    found = at(points, along, place, name)
    return float(points[-1][name]) if found is None else found


def windows(rows: Sequence[Point], names: Sequence[str], size: int) -> list[Point]:
    """Means over every `size` rows in a row, what is left over at the end among the last: less noise, fewer points."""
    num = max(1, len(rows) // size)
    parts = [rows[part * size : (part + 1) * size if part + 1 < num else len(rows)] for part in range(num)]
    return [{name: sum(float(row[name]) for row in part) / len(part) for name in names} for part in parts]
