"""The votes of a stage: taken from their files when it begins, kept in its folder, told in its figures.

A file of votes grows while people vote. So a stage learns from the votes as they were when it began; what comes later
is for the next round, and makes nothing that is finished out of date.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jielong.align.comparisons import Comparison
from jielong.data.download import file_sha256
from jielong.data.tally import as_comparisons, count_once, user_agreement
from jielong.data.votes import Reading, Vote, read_votes
from jielong.errors import DataError
from jielong.recipe import Recipe, Stage
from jielong.recipe.recipe import stage_votes
from jielong.recipe.settings import VotesSettings
from jielong.stages.context import CHECKPOINTS, Context, read_json, write_json, write_jsonl
from jielong.stages.identity import Inputs
from jielong.train.checkpoint import latest_checkpoint

VOTES, COUNTS = "votes.jsonl", "votes.json"
NUM_SAID = 5  # bad lines that are said aloud; votes.json names them all


def check_votes(recipe: Recipe, names: list[str], folders: dict[str, Path]) -> None:
    """Read the votes of stages that are still to begin: what is wrong with them is told before hours of training."""
    for stage in recipe.stages:
        settings = stage_votes(stage)
        if stage.name not in names or settings is None or (folders[stage.name] / COUNTS).exists():
            continue
        try:
            _read(settings)
        except DataError as error:
            before = names[: names.index(stage.name)]
            until = f"\n--until {before[-1]} runs the stages before [{stage.name}]" if before else ""
            raise DataError(f"[{stage.name}] votes: {error}{until}") from None


def keep_votes(stage: Stage, folder: Path, say: Callable[[str], None]) -> Inputs:
    """Put the stage's votes, each counted once, into its folder, and return them as an input; {} without any.

    A stage that has a checkpoint has learned from the votes that are there, and goes on with them.
    Raises DataError for files that `read_votes` refuses.
    """
    settings = stage_votes(stage)
    if settings is None:
        return {}
    path = folder / VOTES
    if not (path.exists() and (folder / COUNTS).exists() and latest_checkpoint(folder / CHECKPOINTS)):
        readings = _read(settings)
        bad = [line for reading in readings for line in reading.bad]
        for line in bad[:NUM_SAID]:
            say(f"{stage.name}: left out {line}")
        for file, reading in zip(settings.files, readings, strict=True):
            if reading.half_line:
                say(f"{stage.name}: the last line of {file} was cut short; it is left out")
        counted = count_once([vote for reading in readings for vote in reading.votes], settings.per_user)
        write_jsonl(path, (vote.to_record() for vote in counted.votes))
        taught = as_comparisons(counted.votes)
        counts = {
            "lines": sum(reading.num_lines for reading in readings),
            "bad_lines": len(bad),
            "half_lines": sum(reading.half_line for reading in readings),
            "duplicates": counted.num_duplicates,
            "capped": counted.num_capped,
            "counted": len(counted.votes),
            "users": len({vote.user for vote in counted.votes}),
            "identical": taught.num_identical,
            "ties": taught.num_ties,
            "both_bad": taught.num_both_bad,
            "edited": taught.num_edited,
        }
        write_json(folder / COUNTS, {"counts": counts, "bad": bad})
    return {"votes": [{"path": VOTES, "bytes": path.stat().st_size, "sha256": file_sha256(path)}]}


def _read(settings: VotesSettings) -> list[Reading]:
    return [read_votes(file, settings.max_bad_fraction) for file in settings.files]


def kept_votes(context: Context) -> list[Vote]:
    """The votes in the stage's folder."""
    return read_votes(context.home / VOTES, max_bad_fraction=0.0).votes


def voted_comparisons(context: Context) -> tuple[list[Comparison], dict[str, Any]]:
    """(what the stage's votes say, their figures); ([], {}) for a stage without votes.

    Raises DataError when no vote says which of two different answers is better.
    """
    if context.settings.votes is None:
        return [], {}
    votes = kept_votes(context)
    records = as_comparisons(votes).records
    comparisons = [
        Comparison.from_record(record, f"{context.home / VOTES}: comparison {number}")
        for number, record in enumerate(records, start=1)
    ]
    if not any(comparison.pairs for comparison in comparisons):
        raise DataError(
            f"[{context.name}] votes: none of {len(votes)} votes says which of two different answers is better"
        )
    agreement = user_agreement(votes)
    figures: dict[str, Any] = {"votes": read_json(context.home / COUNTS)["counts"]}
    if agreement.rate is not None:
        figures["user_agreement"] = agreement.rate
        figures["user_agreement_ci95"] = list(agreement.ci95)
    figures["user_agreement_comparisons"] = agreement.num_comparisons
    return comparisons, figures
