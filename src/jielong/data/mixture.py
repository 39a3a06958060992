"""Sources of text mixed by weight: which source each row of an endless sequence comes from.

A function of the place in the sequence, like everything else about the order of rows, so that resuming needs no saved
position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jielong.errors import UsageError

Ints = NDArray[np.int64]

CYCLE_ROWS = 4096  # after so many rows the sources take turns in the same way again; shares are rounded to parts of it


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises UsageError for a source whose share would be rounded to no row at all."""
    total = sum(weights.values())
    for name, weight in weights.items():
        if not weight / total * CYCLE_ROWS >= 1:  # nor where one is infinite
            raise UsageError(
                f"mixture: {name} = {weight:g} of {total:g} in all is less than one row in {CYCLE_ROWS}; raise it, or "
                "leave the source out of the curation"
            )


class Mixture:
    """Rows dealt to sources in proportion to weights, each source's rows as evenly spaced as they can be.

    weights: positive numbers, one a source; only their proportions matter. Shares are rounded to 1/4096: by the largest
    remainders, so that they add up.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        shares = np.asarray(weights, dtype=np.float64) / sum(weights) * CYCLE_ROWS
        counts = np.floor(shares).astype(np.int64)
        most_cut = np.argsort(counts - shares, kind="stable")[: CYCLE_ROWS - int(counts.sum())]
        counts[most_cut] += 1
        self.counts: Ints = counts
        owners = np.repeat(np.arange(len(counts)), counts)
        ideal = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
        self._owners: Ints = owners[np.argsort(ideal, kind="stable")]
        self._turns: Ints = np.zeros(CYCLE_ROWS, dtype=np.int64)  # earlier rows of the same source in the cycle
        for source, count in enumerate(counts):
            self._turns[self._owners == source] = np.arange(count)

    def totals(self, num: int) -> Ints:
        """(S,) of the first `num` places, how many are each source's."""
        cycles, rest = divmod(num, CYCLE_ROWS)
        return cycles * self.counts + np.bincount(self._owners[:rest], minlength=len(self.counts))

    def at(self, places: Ints) -> tuple[Ints, Ints]:
        """(sources, turns), (n,) int64 each: whose row stands at each place, and the how manieth of that source it is,
        from 0.
        """
        cycles, within = np.divmod(places, CYCLE_ROWS)
        sources = self._owners[within]
        return sources, cycles * self.counts[sources] + self._turns[within]
