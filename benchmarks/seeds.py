"""A recipe under several seeds: does every stage prove itself each time, and by how much do the figures vary?

    python benchmarks/seeds.py recipes/quickstart.toml --seeds 1 2 3 --out runs/seeds [--jobs 1] [--set key=value]
    python benchmarks/seeds.py recipes/quickstart.toml --seeds 1 2 3 --out runs/seeds --table-only

Seed N runs in OUT/seed-N (finished stages are skipped, a stopped run goes on), its output goes to OUT/seed-N.log. The
table over seeds is printed and written to OUT/table.md and OUT/table.json. Exit 1 if a run or a pass rule failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from child import JIELONG, run_child
from over_seeds import Row, build_rows, pooled_win_rate, shown
from table import machine, markdown_table


def run_seed(options: argparse.Namespace, seed: int) -> bool:
    """Run the recipe with one seed to its end. True when that went well."""
    folder, log = options.out / f"seed-{seed}", options.out / f"seed-{seed}.log"
    finished = is_complete(read_json(folder / "report.json"))
    settings = [f"run.seed={seed}", *options.settings]
    arguments = [part for setting in settings for part in ("--set", setting)]
    print(f"seed {seed}: {'checking' if finished else 'running'}, its output is in {log}", flush=True)
    child = run_child([*JIELONG, "run", str(options.recipe), "--out", str(folder), *arguments], log)
    if not finished:  # a session that only found everything done is no measurement
        path = options.out / f"seed-{seed}.sessions.json"
        session = {"seconds": child.seconds, "peak_memory_bytes": child.peak_memory_bytes}
        write_json(path, [*read_json(path, []), session])
    print(f"seed {seed}: {child.seconds:.0f} s, {child.peak_memory_bytes / 1e9:.2f} GB, exit {child.exit_code}")
    if child.exit_code != 0:
        print(child.tail())
    return child.exit_code == 0


def read_run(out: Path, seed: int) -> dict[str, Any]:
    """report.json of a seed, with what was measured from outside under "process"; {} when there is no report."""
    report: dict[str, Any] = read_json(out / f"seed-{seed}" / "report.json")
    sessions = read_json(out / f"seed-{seed}.sessions.json", [])
    if report and sessions:
        report["process"] = {
            "seconds": sum(session["seconds"] for session in sessions),
            "peak_memory_bytes": max(session["peak_memory_bytes"] for session in sessions),
        }
    return report


def is_complete(report: dict[str, Any]) -> bool:
    return bool(report) and report["totals"]["stages_done"] == report["totals"]["stages"]


def render(rows: list[Row], seeds: list[int], pooled: dict[str, Any], reports: list[dict[str, Any]]) -> str:
    """The Markdown of all results."""
    header = ["stage", "figure", *(f"seed {seed}" for seed in seeds), "mean", "range", "rule", "holds"]
    lines = []
    for row in rows:
        spread = f"{shown(row.name, row.low)} – {shown(row.name, row.high)}" if row.low is not None else "–"
        values = [shown(row.name, value) for value in row.values]
        lines.append([row.stage, row.name, *values, shown(row.name, row.mean), spread, row.rule, verdict(row, seeds)])
    states = [row.holds for row in rows if row.rule] + [pooled["holds"]]
    counted = (
        f"{states.count(True)} rules hold, {states.count(False)} fail, {states.count(None)} are not measured "
        f"over {len(seeds)} seeds."
    )
    environment: dict[str, Any] = next((report["environment"] for report in reports if report), {})
    return "\n\n".join([markdown_table(header, lines), pooled["text"], counted, machine(environment)]) + "\n"


def verdict(row: Row, seeds: list[int]) -> str:
    if not row.rule:
        return ""
    failing = [str(seed) for seed, passed in zip(seeds, row.passed, strict=True) if passed is False]
    return {True: "yes", False: f"**no**: seed {', '.join(failing)}", None: "not measured"}[row.holds]


def read_json(path: Path, default: Any = None) -> Any:
    if not path.exists():
        return {} if default is None else default
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tabulate(options: argparse.Namespace) -> bool:
    """Print and write the table. True when every run is complete and no rule fails."""
    reports = [read_run(options.out, seed) for seed in options.seeds]
    unfinished = [seed for seed, report in zip(options.seeds, reports, strict=True) if not is_complete(report)]
    rows, pooled = build_rows(reports, options.targets), pooled_win_rate(reports)
    holds = not unfinished and pooled["holds"] is not False and all(row.holds is not False for row in rows)
    text = render(rows, options.seeds, pooled, reports)
    print("\n" + text)
    if unfinished:
        print(f"not finished: seed {', '.join(map(str, unfinished))}; the same command without --table-only goes on")
    (options.out / "table.md").write_text(text, encoding="utf-8")
    content = {
        "recipe": str(options.recipe),
        "settings": options.settings,
        "seeds": options.seeds,
        "holds": holds,
        "unfinished": unfinished,
        "pooled": pooled,
        "rows": [row.record() for row in rows],
    }
    write_json(options.out / "table.json", content)
    return holds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="folder of the runs (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; times count only with 1")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="as in jielong run"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing, read the runs that are there")
    parser.add_argument("--no-targets", dest="targets", action="store_false", help="without the demo's limits")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    went_well = True
    if not options.table_only:
        with ThreadPoolExecutor(max_workers=options.jobs) as pool:
            went_well = all(list(pool.map(lambda seed: run_seed(options, seed), options.seeds)))
    return 0 if tabulate(options) and went_well else 1


if __name__ == "__main__":
    sys.exit(main())
