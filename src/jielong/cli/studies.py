"""The verbs `search` and `scaling`: many runs of one recipe, and what they say together."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jielong.config import write_atomic
from jielong.errors import UsageError

if TYPE_CHECKING:
    from jielong.plan.scaling import Point, ScalingLaw

SEARCH_EXAMPLES = (
    "Examples:  jielong search recipes/studies/search-rates.toml  ·  "
    "jielong search recipes/studies/search-rates.toml --trials 30"
)
SCALING_EXAMPLES = (
    "Examples:  jielong scaling recipes/studies/scaling-ladder.toml  ·  jielong scaling runs/a runs/b runs/c --figure "
    "heldout_bits_per_byte  ·  jielong scaling recipes/studies/scaling-ladder.toml --flops 1e18"
)
OutOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of all runs; runs/NAME when left out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout.")]


def search(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study file: a search table and a space.")],
    out: OutOption = None,
    trials: Annotated[int | None, typer.Option(min=1, help="So many instead of the file's num_trials.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hyper-parameter search: run a recipe again and again with settings that look promising.

    A study file names the recipe, the figure that is to become small or large, and an interval or choices for each
    setting. Stopped at any moment, the same command goes on; with more --trials it goes further. docs/search.md.
    """
    from jielong.recipe import parse_recipe
    from jielong.search.search import run_search
    from jielong.search.study import load_study, recipe_path

    say = Console(stderr=True, highlight=False)
    loaded = load_study(study, "search")
    assert loaded.search is not None
    if trials is not None:
        loaded = loaded.model_copy(update={"search": loaded.search.model_copy(update={"num_trials": trials})})
    recipe = recipe_path(loaded, study)
    stages = [stage.name for stage in parse_recipe(recipe, list(loaded.common.overrides)).stages]
    folder = out or Path("runs") / study.stem
    try:
        found = run_search(loaded, recipe, stages, folder, lambda text: say.print(text, markup=False, soft_wrap=True))
    except KeyboardInterrupt:
        say.print("stopped; the same command goes on from here", markup=False)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    _print_search(found, study, folder)


def _print_search(found: dict[str, Any], study: Path, folder: Path) -> None:
    console = Console(highlight=False)
    sign = 1 if found["goal"] == "minimise" else -1
    finished = [trial for trial in found["trials"] if trial["value"] is not None and trial["state"] == "finished"]
    names = list(found["trials"][0]["settings"]) if found["trials"] else []
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("trial", found["figure"], *names):
        table.add_column(title, justify="right", no_wrap=True)
    for trial in sorted(finished, key=lambda trial: sign * trial["value"])[:10]:
        settings = [_shown(trial["settings"][name]) for name in names]
        table.add_row(str(trial["number"]), f"{trial['value']:.5g}", *settings)
    console.print(table)
    others = [trial for trial in found["trials"] if trial["state"] != "finished"]
    if others:
        states = {state: sum(trial["state"] == state for trial in others) for state in ("ended early", "failed")}
        console.print(f"{', '.join(f'{number} {state}' for state, number in states.items() if number)}", markup=False)
    if found["importances"]:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found["importances"].items())
        console.print(f"what matters among the better half: {shares}", markup=False, soft_wrap=True)
    if found["best"] is None:
        raise UsageError(f"no trial of {study} finished; their output is in {folder}/trial-*.log")
    from jielong.search.study import override

    sets = " ".join(f"--set '{override(name, value)}'" for name, value in found["best"]["settings"].items())
    console.print(f"best:  jielong run RECIPE.toml {sets}", markup=False, soft_wrap=True)
    console.print(f"all of it: {folder / 'search.json'}", markup=False, soft_wrap=True)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def scaling(
    sources: Annotated[list[str], typer.Argument(metavar="RUN…|STUDY.toml", help="Run folders, or a ladder to run.")],
    out: OutOption = None,
    figure: Annotated[str, typer.Option(help="The loss among pre-training's figures.")] = "heldout_loss_nats",
    flops: Annotated[list[float] | None, typer.Option(help="What would this budget buy? Repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a scaling law, L = E + A / N^alpha + B / D^beta, and draw it.

    From finished runs, or from a study file that says a ladder, whose runs are made first (a stopped ladder goes on).
    Sizes N are all parameters, D the tokens read. It says how the loss falls, how well the law fits, and which size and
    length are best for a budget of operations. docs/search.md.
    """
    from jielong.plan.scaling import Point, fit_scaling_law
    from jielong.search.ladder import MAX_EPOCHS, read_point

    folders, folder, name = _ladder(sources, out, figure)
    rows = [read_point(run, name) for run in folders]
    again = [row["name"] for row in rows if row["epochs"] > MAX_EPOCHS]
    say = Console(stderr=True, highlight=False)
    if again:
        say.print(
            f"{len(again)} of {len(rows)} runs read their text more than {MAX_EPOCHS:g} times, where reading again is "
            f"worth less than new text: {', '.join(again)}",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
    points = [Point(row["parameters"], row["tokens"], row["loss"], row["name"]) for row in rows]
    law = fit_scaling_law(points)
    budgets = [] if flops is None else flops
    largest = max(6 * point.parameters * point.tokens for point in points)
    splits = [_split(law, budget) for budget in budgets or [10.0**k * largest for k in (0, 1, 2, 3)]]
    found = {"figure": name, "law": asdict(law), "runs": rows, "budgets": splits}
    if folder is not None:
        write_atomic(folder / "scaling.json", json.dumps(found, indent=1, ensure_ascii=False))
        _draw(law, points, folder / "scaling.svg")
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        _print_law(law, rows, splits, folder)


def _ladder(sources: list[str], out: Path | None, figure: str) -> tuple[list[Path], Path | None, str]:
    """(run folders, folder for the results or None, the figure's name)."""
    if not any(source.endswith(".toml") for source in sources):
        return [Path(source) for source in sources], out, figure
    if len(sources) > 1:
        raise UsageError("a study file stands alone: it says itself which runs belong to it")
    from jielong.recipe import parse_recipe
    from jielong.search.ladder import run_ladder
    from jielong.search.study import load_study, recipe_path

    path = Path(sources[0])
    study = load_study(path, "scaling")
    assert study.scaling is not None
    recipe = recipe_path(study, path)
    stages = [stage.name for stage in parse_recipe(recipe, list(study.common.overrides)).stages]
    folder = out or Path("runs") / path.stem
    say = Console(stderr=True, highlight=False)
    try:
        folders = run_ladder(study, recipe, stages, folder, lambda text: say.print(text, markup=False, soft_wrap=True))
    except KeyboardInterrupt:
        say.print("stopped; the same command goes on from here", markup=False)
        raise typer.Exit(1) from None
    return folders, folder, study.scaling.figure


def _split(law: ScalingLaw, flops: float) -> dict[str, float]:
    parameters, tokens = law.best_split(flops)
    return {"flops": flops, "parameters": parameters, "tokens": tokens, "loss": law.loss(parameters, tokens)}


def _print_law(
    law: ScalingLaw, rows: list[dict[str, Any]], splits: list[dict[str, float]], folder: Path | None
) -> None:
    from jielong.log import format_count

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("run", "parameters", "tokens", "epochs", "loss", "law says"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        said = law.loss(row["parameters"], row["tokens"])
        counts = [format_count(row[key]) for key in ("parameters", "tokens")]
        table.add_row(row["name"], *counts, f"{row['epochs']:.1f}", f"{row['loss']:.4f}", f"{said:.4f}")
    console.print(table)
    console.print(
        f"L = {law.irreducible:.3g} + {law.size_constant:.3g} / N^{law.size_exponent:.3f} + "
        f"{law.data_constant:.3g} / D^{law.data_exponent:.3f}   (error {100 * law.error:.2f} %)",
        markup=False,
    )
    budgets = Table(box=None, padding=(0, 2, 0, 0), title="\nbest use of a budget", title_justify="left")
    for title in ("FLOP", "parameters", "tokens", "tokens a parameter", "loss"):
        budgets.add_column(title, justify="right", no_wrap=True)
    for split in splits:
        counts = [format_count(split[key]) for key in ("parameters", "tokens")]
        ratio = split["tokens"] / split["parameters"]
        budgets.add_row(f"{split['flops']:.1e}", *counts, f"{ratio:.1f}", f"{split['loss']:.3f}")
    console.print(budgets)
    console.print("A budget far beyond the runs is an extrapolation; the law is a fit, not a promise.", markup=False)
    if folder is not None:
        console.print(f"picture: {folder / 'scaling.svg'}", markup=False, soft_wrap=True)


def _draw(law: ScalingLaw, points: list[Point], path: Path) -> None:
    """Loss against tokens, a line for each size: what was measured, and the law."""
    from jielong.log import format_count
    from jielong.report.curves import Scatter, draw_scatter

    series = []
    low, high = min(p.tokens for p in points), max(p.tokens for p in points)
    steps = [low * (high / low) ** (k / 40) for k in range(41)]
    for size in sorted({point.parameters for point in points}):
        own = sorted((p.tokens, p.loss) for p in points if p.parameters == size)
        curve = [law.loss(size, tokens) for tokens in steps]
        series.append(Scatter(f"{format_count(size)} parameters", own, list(zip(steps, curve, strict=True))))
    write_atomic(path, draw_scatter("Held-out loss: measured (dots) and the law (lines)", "tokens read", series))
