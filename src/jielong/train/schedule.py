"""Learning-rate schedules, as a multiplier of the peak."""

from __future__ import annotations

import math

from jielong.errors import UsageError, nearest

KINDS = ("cosine", "wsd", "linear", "constant", "noam")


def multiplier(
    step: int,
    *,
    kind: str,
    warmup_steps: int,
    num_steps: int,
    final_fraction: float = 0.1,
    decay_fraction: float = 0.2,
) -> float:
    """Fraction of the peak learning rate at `step`, counted from 0.

    Warm-up is linear and never gives 0: step s of it gets (s + 1) / (warmup_steps + 1), step `warmup_steps` gets 1.
    Afterwards, with x the part done of the rest, (step - warmup_steps) / (num_steps - warmup_steps):
      cosine    final + (1 - final) (1 + cos(pi x)) / 2
      linear    1 - (1 - final) x
      wsd       1 until the last `decay_fraction` of all steps, then a straight line to `final_fraction`
      constant  1; `final_fraction` and `decay_fraction` are not used
      noam      sqrt((warmup_steps + 1) / (step + 1)), likewise
    `final_fraction` is what step `num_steps` would get, one past the last, so that a decay to 0 wastes no step; later
    steps stay there.

    Raises UsageError for a setting outside its range.
    Source: noam: Vaswani et al. 2017, arXiv:1706.03762, eq. 3, where steps count from 1, what is here
    warmup_steps + 1 is the warm-up, and the peak is 1 / sqrt(D warm-up); cosine: Loshchilov and Hutter 2017,
    arXiv:1608.03983, eq. 5, without restarts;
    warmup-stable-decay: Hu et al. 2024, arXiv:2404.06395, section 4, with a linear decay.
    """
    _check(step, kind, warmup_steps, num_steps, final_fraction, decay_fraction)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if kind == "constant":
        return 1.0
    if kind == "noam":
        return math.sqrt((warmup_steps + 1) / (step + 1))
    begin = warmup_steps
    if kind == "wsd":
        begin = max(warmup_steps, num_steps - round(decay_fraction * num_steps))
        if step < begin:
            return 1.0
    done = min(1.0, (step - begin) / (num_steps - begin)) if begin < num_steps else 1.0
    falling = (1 + math.cos(math.pi * done)) / 2 if kind == "cosine" else 1 - done
    return final_fraction + (1 - final_fraction) * falling


def _check(
    step: int, kind: str, warmup_steps: int, num_steps: int, final_fraction: float, decay_fraction: float
) -> None:
    if kind not in KINDS:
        meant = nearest(kind, KINDS)
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise UsageError(f"schedule: kind {kind!r} is unknown, legal are {', '.join(KINDS)}{hint}")
    if num_steps < 1 or not 0 <= warmup_steps <= num_steps:
        raise UsageError(
            f"schedule: warmup_steps = {warmup_steps} must lie between 0 and num_steps = {num_steps}, and that above 0"
        )
    if not (0 <= final_fraction <= 1 and 0 <= decay_fraction <= 1):
        raise UsageError(
            f"schedule: final_fraction = {final_fraction} and decay_fraction = {decay_fraction} must lie in [0, 1]"
        )
    if step < 0:
        raise UsageError(f"schedule: step = {step} is negative; steps count from 0")
