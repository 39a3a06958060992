"""report.html: one file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from jielong.log import format_count, format_seconds
from jielong.report.curves import Drawn, draw_once
from jielong.report.markup import figures_table, folded, label, mark, number, section, table, text
from jielong.report.panels import panels

MODELS = ("base", "sft", "best_of_n", "dpo", "grpo", "ppo", "reference", "translation")
TITLES = {
    "curate": "Curation",
    "tokenizer": "Tokenizer",
    "pretrain": "Pre-training",
    "translate": "Translation",
    "sft": "Instruction tuning",
    "reward": "Reward model",
    "ppo": "PPO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "best_of_n": "Best of n",
    "promote": "Promotion",
    "mlm": "Hidden tokens",
    "finetune": "Fine-tuning",
    "evaluate": "Evaluation",
}
STYLE = Path(__file__).with_name("style.css")


class Files(Protocol):
    """What a stage left beside its figures."""

    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    best_liked: list[dict[str, Any]]
    ledger: dict[str, Any]


def page(report: dict[str, Any], files: dict[str, Any], recipe_text: str, drawn: Drawn) -> str:
    """The whole page. report: what report.json holds; files: stage name -> Files; recipe_text: the resolved recipe.

    drawn: curves of an earlier page of the same run, which are not drawn anew; gets those that are new.
    """
    body = [
        _head(report),
        section("Stages", _stage_table(report), "stages"),
        section("Skills on unseen questions", _skills(report), "skills"),
        section("Benchmarks", _benchmarks(report), "benchmarks"),
        section("What the models say", _samples(report, files), "samples"),
        *(_stage(name, stage, files[name], drawn) for name, stage in report["stages"].items()),
        section("Plan and actual", _plan(report), "plan"),
        section("Sources and licences", _sources(report), "sources"),
        section("Machine, seed, versions", _environment(report), "environment"),
        section("Recipe", folded("the resolved recipe, all defaults spelled out", f"<pre>{text(recipe_text)}</pre>")),
    ]
    title = f"{report['name']} · jielong"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(report: dict[str, Any]) -> str:
    totals = report["totals"]
    failed, passed, unmeasured = totals["rules_failed"], totals["rules_passed"], totals["rules_not_measured"]
    state = f"{passed} of {passed + failed + unmeasured} pass rules hold"
    if totals["stages_done"] < totals["stages"]:
        state = f"{totals['stages_done']} of {totals['stages']} stages done · {state}"
    facts = [
        ("time", format_seconds(totals["seconds"])),
        ("peak memory", f"{format_count(totals['peak_memory_bytes'])}B"),
        ("seed", text(report["seed"])),
        ("jielong", text(report["version"])),
    ]
    parameters = [s["figures"]["parameters"] for s in report["stages"].values() if s["figures"].get("parameters")]
    if parameters:
        facts.insert(0, ("parameters", format_count(parameters[-1])))
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    css = "fail" if failed else "pass"
    return (
        f'<header><p class="brand">接龙 jielong</p><h1>{text(report["name"])}</h1>'
        f'<p class="state {css}">{text(state)}</p><dl class="cards">{cards}</dl></header>'
    )


def _stage_table(report: dict[str, Any]) -> str:
    planned = report["plan"].get("stages", {})
    rows = []
    for name, stage in report["stages"].items():
        rules = "<br>".join(f"{mark(rule['passed'])} {text(rule['rule'])}" for rule in stage["rules"]) or "–"
        shown = "<br>".join(text(rule["shown"]) for rule in stage["rules"])
        expected = planned.get(name, {}).get("seconds")
        row = [f'<a href="#{text(name)}">{text(name)}</a>', number("seconds", stage["seconds"])]
        rows.append([*row, *([number("seconds", expected)] if planned else []), rules, shown])
    head = ("stage", "time", *(("planned",) if planned else ()), "passes when", "figures")
    return table(head, rows, "stages")


def _samples(report: dict[str, Any], files: dict[str, Any]) -> str:
    """Answers side by side: of the last stage that asked several models, else of the last that left any."""
    candidates = [files[name].samples for name in report["stages"] if files[name].samples]
    if not candidates:
        return ""
    compared = [samples for samples in candidates if len(_models(samples[:1])) > 1]
    samples = (compared or candidates)[-1]
    models = _models(samples)
    columns = "".join(f"<span>{model}</span>" for model in models)
    groups: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(str(sample.get("skill", "")), []).append(sample)
    parts = []
    for skill, members in groups.items():
        heading = f"<h3>{text(skill.replace('_', ' '))}</h3>" if skill else ""
        shown = [_sample(sample, models) for sample in members]
        first = 1 if skill else len(shown)
        parts.append(heading + "".join(shown[:first]) + folded("more", "".join(shown[first:])))
    opening = f'<div class="samples" style="--columns:{len(models)}"><div class="who">{columns}</div>'
    note = '<p class="note">The prompts were chosen before the answers were seen.</p>'
    return f"{note}{opening}{''.join(parts)}</div>"


def _models(samples: list[dict[str, Any]]) -> list[str]:
    """Whose answers are there: the known names in their order, then stages of later rounds."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    beside = ("skill", "prompt")
    others = [name for name in names if name not in (*MODELS, *beside) and not name.endswith("_proxy_reward")]
    return [*(model for model in MODELS if model in names), *others]


def _sample(sample: dict[str, Any], models: list[str]) -> str:
    answers = "".join(
        f'<blockquote data-model="{model}">{text(sample.get(model, "")) or "<i>(nothing)</i>"}</blockquote>'
        for model in models
    )
    prompt = f'<p class="prompt">{text(sample.get("prompt", ""))}</p>'
    return f'<article>{prompt}<div class="answers">{answers}</div></article>'


def _skills(report: dict[str, Any]) -> str:
    """Exact match by skill, models side by side, from the evaluate stage, else from sft."""
    tables = [stage["figures"].get("exact_match") for stage in report["stages"].values() if stage["kind"] == "evaluate"]
    intervals = [stage["figures"].get("exact_match_ci95") or {} for stage in report["stages"].values()]
    found = tables[-1] if tables else None
    if not found:
        sft = [stage["figures"] for stage in report["stages"].values() if stage["kind"] == "sft"]
        if not sft or not sft[-1].get("exact_match"):
            return ""
        found = {"base": sft[-1].get("exact_match_base") or {}, "sft": sft[-1]["exact_match"]}
    ci95 = intervals[-1] if tables and intervals else {}
    models = [*(model for model in MODELS if found.get(model)), *(name for name in found if name not in MODELS)]
    skills = list(dict.fromkeys(skill for model in models for skill in found[model]))
    rows = []
    for skill in skills:
        bars = [_bar(found[model].get(skill), ci95.get(model, {}).get(skill)) for model in models]
        rows.append([text(skill.replace("_", " ")), *bars])
    return table(("skill", *models), rows, "skills") if rows else ""


def _benchmarks(report: dict[str, Any]) -> str:
    """The headline of each benchmark, models side by side, and what blind choice would give."""
    figures = [stage["figures"] for stage in report["stages"].values() if stage["figures"].get("tasks")]
    if not figures:
        return ""
    last = figures[-1]
    models = [model for model in MODELS if model in last["tasks"]]
    rows = []
    for name, headline in last["tasks_headline"].items():
        chance, found = last["tasks_chance"][name], last["tasks_items_in_training_text"].get(name, 0)
        bars = [_bar(last["tasks"][model][name], last["tasks_ci95"][model][name]) for model in models]
        told = "–" if chance is None else f"{100 * chance:.0f} %"
        rows.append([text(name), text(headline), *bars, told, str(found)])
    return table(("task", "figure", *models, "chance", "in the training text"), rows, "skills")


def _bar(rate: float | None, ci95: list[float] | None) -> str:
    if rate is None:
        return "–"
    interval = f"95 %: {100 * ci95[0]:.0f} – {100 * ci95[1]:.0f} %" if ci95 else ""
    width = f"{100 * rate:.0f}"
    return f'<span class="bar" title="{interval}"><i style="width:{width}%"></i></span><b>{width} %</b>'


def _stage(name: str, stage: dict[str, Any], files: Files, drawn: Drawn) -> str:
    """One stage: its rule, its curves, its tables."""
    kind, figures = stage["kind"], stage["figures"]
    rules = "".join(
        f'<p class="rule">{mark(rule["passed"])} {text(rule["rule"])}: {text(rule["shown"])}</p>'
        for rule in stage["rules"]
    )
    shown_curves = enumerate(panels(kind, files.metrics, figures))
    svgs = "".join(draw_once(panel, f"{name}-{place}", drawn) for place, panel in shown_curves)
    curves = f'<div class="curves">{svgs}</div>' if svgs else ""
    ledger = _ledger(figures, files.ledger) if kind == "curate" else ""
    shown = [(key, figures[key]) for key in HIGHLIGHTS.get(kind, ()) if figures.get(key) is not None]
    highlights = "".join(f"<div><dt>{label(key)}</dt><dd>{number(key, value)}</dd></div>" for key, value in shown)
    cards = f'<dl class="cards small">{highlights}</dl>' if highlights else ""
    title = TITLES.get(kind, kind) + (f" · {name}" if name != kind else "")
    details = ledger + _best_liked(files.best_liked) + folded("all figures", figures_table(figures))
    return section(title, rules + cards + curves + details, name)


_POLICY = (
    "gold_win_rate",
    "gold_win_rate_length_controlled",
    "kl_nats_per_reply",
    "heldout_bits_per_byte_before",
    "heldout_bits_per_byte_after",
)
HIGHLIGHTS = {
    "curate": ("documents_in", "documents_kept", "documents_per_second"),
    "tokenizer": ("vocab_size", "round_trip_exact"),
    "pretrain": (
        "heldout_bits_per_byte",
        "fivegram_bits_per_byte",
        "trigram_bits_per_byte",
        "tokens_per_second",
        "mfu",
        "tokens_seen",
    ),
    "translate": ("bleu", "greedy_bleu", "chrf", "heldout_loss_nats", "epoch_seconds", "padding_share"),
    "sft": ("heldout_loss_nats", "end_of_turn_rate", "conversations"),
    "reward": ("heldout_accuracy", "length_baseline_accuracy", "noise_ceiling_accuracy", "comparisons"),
    "ppo": _POLICY,
    "grpo": _POLICY,
    "dpo": ("heldout_accuracy", *_POLICY),
    "best_of_n": ("n", *_POLICY),
    "promote": ("promoted", "win_rate", "judged"),
    "mlm": (
        "heldout_masked_nats",
        "frequency_nats",
        "heldout_masked_accuracy",
        "heldout_next_sentence_accuracy",
        "tokens_seen",
    ),
    "finetune": ("score", "trivial_score", "words_score", "examples", "heldout_examples"),
    "evaluate": (),
}


def _best_liked(samples: list[dict[str, Any]]) -> str:
    """What the reward likes best, beside what the judge says of it: where the two part, the reward is being hacked."""
    names = [name for name in ("proxy_reward", "gold_reward") if samples and name in samples[0]]
    rows = [
        (text(sample["prompt"]), text(sample["reply"]), *(number(name, sample.get(name)) for name in names))
        for sample in samples
    ]
    head = ("prompt", "reply", *(name.partition("_")[0] for name in names))
    return folded(f"the {len(rows)} replies that the reward likes best", table(head, rows)) if rows else ""


def _ledger(figures: dict[str, Any], ledger: dict[str, Any]) -> str:
    """What was removed by which rule, with examples."""
    removed = ledger.get("removed", figures.get("removed", {}))
    total = max(figures.get("documents_in", 0), 1)
    examples = ledger.get("examples", {})
    rows = [
        (text(rule), f"{count:,}", f"{100 * count / total:.1f} %", _examples(examples.get(rule, [])))
        for rule, count in sorted(removed.items(), key=lambda item: -item[1])
    ]
    masked = ", ".join(f"{count:,} {kind}" for kind, count in figures.get("masked", {}).items())
    note = f'<p class="note">Masked personal data: {text(masked)}.</p>' if masked else ""
    return (table(("removed by", "documents", "share", "for example"), rows, "ledger") if rows else "") + note


def _examples(examples: list[str]) -> str:
    return "<br>".join(f"<q>{text(example)}</q>" for example in examples[:3])


def _plan(report: dict[str, Any]) -> str:
    plan = report["plan"]
    if not plan:
        return ""
    rows = []
    for name, stage in report["stages"].items():
        expected = plan.get("stages", {}).get(name, {})
        seconds = expected.get("seconds")
        ratio = f"{stage['seconds'] / seconds:.2f}" if seconds else "–"
        rows.append((text(name), number("seconds", seconds), number("seconds", stage["seconds"]), ratio))
    totals, actual = plan.get("totals", {}), report["totals"]
    rows.append(("<b>all</b>", number("seconds", totals.get("seconds")), number("seconds", actual["seconds"]), ""))
    peak, expected_bytes = actual["peak_memory_bytes"], totals.get("memory_bytes")
    flops, planned = number("flops", totals.get("flops")), number("memory_bytes", expected_bytes)
    note = (
        f'<p class="note">Operations planned: {flops} FLOPs. Memory of training planned: {planned}; '
        f"the process had {number('memory_bytes', peak)} at its peak, data and libraries included.</p>"
    )
    return table(("stage", "planned", "actual", "actual / planned"), rows) + note


def _sources(report: dict[str, Any]) -> str:
    rows = [
        (text(s["name"]), text(s["path"]), text(s["url"] or "–"), text(s["licence"] or "not stated"))
        for s in report["sources"]
    ]
    return table(("source", "path", "home", "licence"), rows) if rows else ""


def _environment(report: dict[str, Any]) -> str:
    rows = [(label(name), number(name, value)) for name, value in report["environment"].items()]
    return table(("", ""), [("seed of the run", text(report["seed"])), *rows]) if rows else ""
