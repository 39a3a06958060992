"""With what right a rate may be stated: the one confidence interval of the package."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054


def wilson_ci95(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate; (0, 1) without trials.

    successes, trials: counts, or an effective number of independent ones.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if trials <= 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, Z_95**2
    centre = rate + z2 / (2 * trials)
    spread = Z_95 * math.sqrt(max(rate * (1 - rate), 0.0) / trials + z2 / (4 * trials**2))
    low = 0.0 if successes <= 0 else (centre - spread) / (1 + z2 / trials)  # exact at both ends, where rounding is not
    return low, 1.0 if successes >= trials else (centre + spread) / (1 + z2 / trials)
