"""The verb `feedback`: what people said of answers, as a table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

EXAMPLES = (
    "Examples:  jielong feedback runs/quickstart/votes.jsonl  ·  jielong feedback votes.jsonl --json  ·  "
    "jielong feedback monday.jsonl tuesday.jsonl --max-bad 0.2"
)
NUM_SHOWN = 8  # bad lines, users


def feedback(
    files: Annotated[list[Path], typer.Argument(metavar="VOTES.jsonl...", help="Files of votes, one a line.")],
    max_bad: Annotated[
        float | None,
        typer.Option("--max-bad", min=0.0, max=1.0, help="Fraction of a file's lines that may be no votes (0.05)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout.")] = False,
) -> None:
    """What people said: which model won how often, how far they agree, and what is wrong with the file."""
    figures = summarise([str(file) for file in files], max_bad)
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
    else:
        _show(figures, Console(highlight=False))


def summarise(files: list[str], max_bad_fraction: float | None = None) -> dict[str, Any]:
    """All figures of the table. Every user's last vote on a comparison counts, once. Raises DataError: `read_votes`."""
    from jielong.data.tally import as_comparisons, count_once, first_answer_rate, matches, model_names, user_agreement
    from jielong.data.votes import MAX_BAD_FRACTION, read_votes

    limit = MAX_BAD_FRACTION if max_bad_fraction is None else max_bad_fraction
    readings = [read_votes(file, limit) for file in files]
    counted = count_once([vote for reading in readings for vote in reading.votes])
    votes, taught = counted.votes, as_comparisons(counted.votes)
    names, agreement = model_names(votes), user_agreement(votes)
    first, first_ci95, num_first = first_answer_rate(votes)
    times = sorted((vote.when, vote.time) for vote in votes)
    won = [
        {"model": one, "against": other, **match.counts, "win_rate": match.win_rate, "ci95": list(match.win_rate_ci95)}
        for (one, other), match in matches(votes, names).items()
    ]
    return {
        "files": files,
        "lines": sum(reading.num_lines for reading in readings),
        "bad_lines": sum(len(reading.bad) for reading in readings),
        "bad": [line for reading in readings for line in reading.bad],
        "half_lines": sum(reading.half_line for reading in readings),
        "duplicates": counted.num_duplicates,
        "votes": len(votes),
        "prompts": len({json.dumps(vote.prompt, sort_keys=True) for vote in votes}),
        "ties": taught.num_ties,
        "both_bad": taught.num_both_bad,
        "edited": taught.num_edited,
        "identical": taught.num_identical,
        "first_vote": times[0][1],
        "last_vote": times[-1][1],
        "users": dict(Counter(vote.user for vote in votes).most_common()),
        "models": dict(Counter(names[answer.model_hash] for vote in votes for answer in vote.answers).most_common()),
        "matches": won,
        "user_agreement": agreement.rate,
        "user_agreement_ci95": list(agreement.ci95),
        "user_agreement_comparisons": agreement.num_comparisons,
        "first_answer_rate": first,
        "first_answer_rate_ci95": list(first_ci95),
        "first_answer_choices": num_first,
    }


def _show(figures: dict[str, Any], out: Console) -> None:
    def say(text: str, style: str = "") -> None:
        out.print(text, style=style or None, markup=False, soft_wrap=True)

    say(
        f"{figures['votes']:,} votes by {len(figures['users'])} users on {figures['prompts']:,} prompts, "
        f"{figures['first_vote']} to {figures['last_vote']}"
    )
    out.print(_table(("", ""), _counts(figures)))
    if figures["matches"]:
        rows = [_match(match) for match in figures["matches"]]
        out.print(_table(("model", "against", "won", "lost", "tie", "both bad", "wins", "95 % interval"), rows))
    else:
        say("no vote compares two models: each is between answers of one")
    users = list(figures["users"].items())
    more = f", and {len(users) - NUM_SHOWN} more" if len(users) > NUM_SHOWN else ""
    say("votes by user: " + ", ".join(f"{user} {num:,}" for user, num in users[:NUM_SHOWN]) + more)
    for line in figures["bad"][:NUM_SHOWN]:
        say(f"no vote: {line}", "yellow")
    if figures["half_lines"]:
        say("the last line was cut short and is left out", "yellow")


def _counts(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    counts = [(name.replace("_", " "), f"{figures[name]:,}") for name in ("lines", "bad_lines", "duplicates", "ties")]
    counts += [(name.replace("_", " "), f"{figures[name]:,}") for name in ("both_bad", "edited", "identical")]
    num = figures["user_agreement_comparisons"]
    agree = _rate(figures["user_agreement"], figures["user_agreement_ci95"])
    counts.append(("users agree", f"{agree} of {num:,} comparisons that two or more users decided" if num else "–"))
    leaning = _rate(figures["first_answer_rate"], figures["first_answer_rate_ci95"])
    num = figures["first_answer_choices"]
    counts.append(("the first answer is chosen", f"{leaning} of {num:,} choices between two" if num else "–"))
    return [tuple(row) for row in counts]


def _match(match: dict[str, Any]) -> tuple[str, ...]:
    numbers = [f"{match[name]:,}" for name in ("wins", "losses", "ties", "both_bad")]
    low, high = match["ci95"]
    interval = f"{100 * low:.1f} – {100 * high:.1f} %"
    return match["model"], match["against"], *numbers, f"{100 * match['win_rate']:.1f} %", interval


def _rate(rate: float | None, ci95: list[float]) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} % (95 %: {100 * ci95[0]:.1f} – {100 * ci95[1]:.1f} %)"


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(titles))
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number > 1 else "left")
    for row in rows:
        table.add_row(*row)
    return table
