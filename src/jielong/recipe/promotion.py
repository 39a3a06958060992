"""Can a [promote] stage judge anything? Checked before the first stage runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jielong.errors import RecipeError, nearest

if TYPE_CHECKING:
    from jielong.recipe.recipe import Stage

ALIGNED = ("ppo", "grpo", "dpo", "best_of_n")  # the kinds that make a new policy of the present one
BEGINNINGS = ("sft", "promote")  # the kinds that say which policy is the present one


def check_promotion(stage: Stage, before: tuple[Stage, ...], here: str) -> None:
    """Raises RecipeError where there is no new policy, no judge, or only a judge that the policy learned to please."""
    new = newest_policy(before)
    if new is None:
        raise RecipeError(
            f"{here}: there is no new policy to judge; a stage of kind {', '.join(ALIGNED)} must stand between the "
            "newest sft or promote stage and it"
        )
    if stage.settings.judge not in ("reward", "heldout"):
        return
    names = [other.name for other in before if other.kind == "reward"]
    judge = stage.settings.reward or (names[-1] if names else None)
    if judge not in names:
        guess = nearest(judge, names) if judge else None
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise RecipeError(
            f'{here}: judge = "{stage.settings.judge}" needs a stage of kind reward before it'
            + (f", which reward = '{judge}' is not{hint}" if judge else "")
            + f" (there: {', '.join(names) or 'none'})"
        )
    if stage.settings.judge == "reward" and judge in taught_by(new, before):
        raise RecipeError(
            f"{here}: [{judge}] cannot judge [{new.name}], which was trained to please it and always will; name "
            'another reward stage that learned from other votes, or choose judge = "heldout" or "votes"'
        )


def newest_policy(before: tuple[Stage, ...]) -> Stage | None:
    """The last stage that makes a new policy since the present one was settled."""
    for other in reversed(before):
        if other.kind in BEGINNINGS:
            return None
        if other.kind in ALIGNED:
            return other
    return None


def taught_by(policy: Stage, before: tuple[Stage, ...]) -> tuple[str, ...]:
    """The reward stages that a policy learned from."""
    names = [other.name for other in before[: before.index(policy)] if other.kind == "reward"]
    if policy.kind == "dpo":
        return () if policy.settings.comparisons is None else (policy.settings.comparisons,)
    return {"model": tuple(names[-1:]), "mean": tuple(names), "min": tuple(names)}.get(policy.settings.reward, ())
