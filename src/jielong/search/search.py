"""Hyper-parameter search: trials proposed by Optuna, each a run of the recipe, all kept in a journal.

The journal is a file of lines, so that a search killed at any moment goes on with what it knows; a trial that was
running is finished first, with the settings it had. Each trial's proposals depend on the search's seed, the trial's
number and the results so far, so that an interrupted search proposes what an uninterrupted one would.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from jielong.config import write_atomic
from jielong.errors import RecipeError, TrainingError, UsageError
from jielong.runtime import derive_seed
from jielong.search.study import SearchSettings, Span, Study, override, pick
from jielong.search.trial import Trial, run_trial, shared_until

Say = Callable[[str], None]
_MIN_TRIALS = 4  # fewer finished ones say nothing about which setting matters


def run_search(study: Study, recipe: Path, stages: list[str], out: Path, say: Say) -> dict[str, Any]:
    """Run the trials that are still missing and return what `summary` says; also written to OUT/search.json.

    study: with [search]. recipe: the file. stages: names of its stages in order. out: folder of all trials.
    Raises RecipeError when the recipe does not take the settings, UsageError when OUT holds another search.
    """
    settings = study.search
    assert settings is not None
    _check(settings, study, stages)
    out.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(out, study, recipe)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(out / "journal.jsonl")))
    direction: Literal["minimize", "maximize"] = "minimize" if settings.goal == "minimise" else "maximize"
    found = optuna.create_study(study_name="search", storage=storage, direction=direction, load_if_exists=True)
    shared = _make_shared(study, recipe, stages, out, say)
    while True:
        waiting = [trial for trial in found.trials if trial.state == TrialState.RUNNING]
        number = waiting[0].number if waiting else len(found.trials)
        if number >= settings.num_trials:
            break
        found.sampler = _sampler(settings, study, number)
        spaces = {name: _distribution(span) for name, span in study.space.items()}
        trial = optuna.Trial(found, waiting[0]._trial_id) if waiting else found.ask(spaces)
        _run_one(found, trial, study, recipe, out / f"trial-{number:03d}", shared, say)
        write_atomic(out / "search.json", json.dumps(summary(found, study), indent=1, ensure_ascii=False))
    return summary(found, study)


def _run_one(
    found: optuna.Study, trial: optuna.Trial, study: Study, recipe: Path, folder: Path, shared: Path | None, say: Say
) -> None:
    """One trial to its end, told to the study."""
    settings = study.search
    assert settings is not None
    changed = [override(name, trial.params[name]) for name in study.names]
    run = Trial(recipe, folder, [*settings.overrides, *changed], settings.stage)
    say(f"trial {trial.number}: {' '.join(changed)}")

    def may_go_on(step: int, value: float) -> bool:
        trial.report(value, step)
        return not _lies_above_median(found, trial.number, step, value, settings)

    try:
        finished = run_trial(run, shared, settings.curve, may_go_on if settings.curve else None)
    except TrainingError as error:
        found.tell(trial, state=TrialState.FAIL)
        say(f"trial {trial.number}: failed\n{error}")
        return
    if not finished:
        found.tell(trial, state=TrialState.PRUNED)
        say(f"trial {trial.number}: ended early, {settings.curve} lies above the median of the others")
        return
    value = pick(run.figures(), settings.figure, settings.stage)
    found.tell(trial, value)
    say(f"trial {trial.number}: {settings.figure} {value:.5g}, best so far {found.best_value:.5g}")


def _lies_above_median(found: optuna.Study, number: int, step: int, value: float, settings: SearchSettings) -> bool:
    """Whether the curve, a loss, lies above the median of the finished trials' at the same step."""
    others = [
        trial.intermediate_values[step]
        for trial in found.trials
        if trial.state == TrialState.COMPLETE and trial.number != number and step in trial.intermediate_values
    ]
    if len(others) < settings.warmup_trials:
        return False
    return value > sorted(others)[len(others) // 2]


def _check(settings: SearchSettings, study: Study, stages: list[str]) -> None:
    if settings.stage not in stages:
        raise RecipeError(f"[search] stage = {settings.stage!r}: the recipe's stages are {', '.join(stages)}")
    after = [name for name in study.names if name.split(".")[0] in stages[stages.index(settings.stage) + 1 :]]
    if after:
        raise RecipeError(f"[space] {after[0]} is of a stage after {settings.stage}: it would have no effect")


def _refuse_foreign(out: Path, study: Study, recipe: Path) -> None:
    """A folder holds one search: the same space, figure and recipe. More trials may be asked for later."""
    asked = study.model_dump(mode="json")
    asked["search"].pop("num_trials")
    text = json.dumps({"study": asked, "recipe": recipe.read_text(encoding="utf-8")}, indent=1, ensure_ascii=False)
    path = out / "study.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UsageError(f"{out} holds another search (see {path}); choose another folder with --out, or remove it")
    write_atomic(path, text)


def _make_shared(study: Study, recipe: Path, stages: list[str], out: Path, say: Say) -> Path | None:
    """The run with the stages that all trials have in common; None when there are none."""
    until = shared_until(stages, [*study.names])
    if until is None:
        return None
    say(f"the stages up to {until} are the same for all trials")
    run_trial(Trial(recipe, out / "shared", study.common.overrides, until))
    return out / "shared"


def _distribution(span: Span) -> BaseDistribution:
    if span.choices is not None:
        return CategoricalDistribution(span.choices)
    assert span.low is not None and span.high is not None
    if span.is_whole:
        return IntDistribution(int(span.low), int(span.high), log=span.log, step=int(span.step or 1))
    return FloatDistribution(float(span.low), float(span.high), log=span.log, step=span.step)


def _sampler(settings: SearchSettings, study: Study, number: int) -> optuna.samplers.BaseSampler:
    """A sampler made anew for each trial, so that a search gone on with draws as one that was never stopped."""
    seed = derive_seed(settings.seed, "search", number) % 2**31
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if settings.sampler == "grid":
        grid = {name: _grid_values(span) for name, span in study.space.items()}
        return optuna.samplers.GridSampler(grid, seed=settings.seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=max(4, 2 * len(study.space)))


def _grid_values(span: Span) -> list[Any]:
    if span.choices is not None:
        return list(span.choices)
    assert span.low is not None and span.high is not None and span.step is not None
    num = int((span.high - span.low) / span.step + 1e-9) + 1
    return [span.low + index * span.step for index in range(num)]


def summary(found: optuna.Study, study: Study) -> dict[str, Any]:
    """{"figure", "goal", "trials": [...], "best", "importances"}: what search.json holds.

    importances: share of the figure's variance among the good trials that each setting explains (PED-ANOVA, Watanabe
    et al. 2023, arXiv:2304.10255); {} with fewer than four finished trials or one setting.
    """
    settings = study.search
    assert settings is not None
    trials = [_told(trial) for trial in found.trials]
    done = [trial for trial in found.trials if trial.state == TrialState.COMPLETE]
    best = _told(found.best_trial) if done else None
    importances: dict[str, float] = {}
    if len(done) >= _MIN_TRIALS and len(study.space) > 1:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        importances = dict(optuna.importance.get_param_importances(found, evaluator=evaluator))
    return {
        "figure": f"{settings.stage}.{settings.figure}",
        "goal": settings.goal,
        "trials": trials,
        "best": best,
        "importances": importances,
    }


def _told(trial: FrozenTrial) -> dict[str, Any]:
    seconds = trial.duration.total_seconds() if trial.duration is not None else None
    state = {"COMPLETE": "finished", "PRUNED": "ended early", "FAIL": "failed"}.get(trial.state.name, "running")
    return {"number": trial.number, "state": state, "value": trial.value, "settings": trial.params, "seconds": seconds}
