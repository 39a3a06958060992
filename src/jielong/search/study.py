"""What a study file says: which recipe is run again and again, with what changed, and which figure is looked at."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jielong.config import Settings, load_toml, validate
from jielong.errors import RecipeError, nearest

Scalar = bool | int | float | str


class Span(Settings):
    """One setting's interval: {low, high}, on a logarithmic scale with log = true; or {choices = [...]}."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: Annotated[float | int, Field(gt=0)] | None = None
    choices: Annotated[tuple[Scalar, ...], Field(strict=False, min_length=2)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Span:
        if self.choices is not None:
            if (self.low, self.high, self.step) != (None, None, None) or self.log:
                raise ValueError("choices stands alone: low, high, step and log have no effect beside it")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log = true wants low above 0, and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the setting takes whole numbers: both ends are written so."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Common(Settings):
    """What both kinds of study say. recipe: a path relative to the study file. overrides: as --set takes them."""

    recipe: str = Field(min_length=1)
    stage: str = Field(min_length=1)  # the last one that is run; the figure is this stage's
    overrides: Annotated[tuple[str, ...], Field(strict=False)] = ()


class SearchSettings(Common):
    """[search]: a hyper-parameter search."""

    figure: str = Field(min_length=1)  # a name in the stage's figures; "exact_match.story" for one within a table
    goal: Literal["minimise", "maximise"]
    num_trials: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    curve: str | None = None  # a loss in metrics.jsonl: a trial ends early where it lies above the others' median
    warmup_trials: Annotated[int, Field(ge=1)] = 4  # so many are run to their end before any may end early


class ScalingSettings(Common):
    """[scaling]: a ladder of sizes and lengths, from which a law is fitted."""

    figure: str = "heldout_loss_nats"


class Study(Settings):
    """A study file: one of [search] with [space], or [scaling] with [grid]."""

    search: SearchSettings | None = None
    scaling: ScalingSettings | None = None
    space: dict[str, Span] = {}
    grid: dict[str, Annotated[tuple[Scalar, ...], Field(strict=False, min_length=1)]] = {}

    @model_validator(mode="after")
    def _check(self) -> Study:
        if (self.search is None) == (self.scaling is None):
            raise ValueError("a study is either a [search] with a [space] or a [scaling] with a [grid]")
        if self.search is not None and (not self.space or self.grid):
            raise ValueError("[search] wants a [space] of one setting or more, and no [grid]")
        if self.scaling is not None and (not self.grid or self.space):
            raise ValueError("[scaling] wants a [grid] of one setting or more, and no [space]")
        if self.search is not None and self.search.sampler == "grid":
            free = [name for name, span in self.space.items() if span.choices is None and span.step is None]
            if free:
                raise ValueError(f'sampler = "grid" wants choices or a step for every setting; {free[0]} has neither')
        return self

    @property
    def common(self) -> Common:
        found = self.search or self.scaling
        assert found is not None
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that change from run to run."""
        return tuple(self.space or self.grid)

    def points(self) -> list[dict[str, Scalar]]:
        """Every combination of the grid, in the order written: the last setting changes fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


def load_study(path: str | Path, kind: Literal["search", "scaling"]) -> Study:
    """Reads a study file strictly. Raises RecipeError naming the file, the key and what is legal."""
    mapping = load_toml(path)
    unknown = next((name for name in mapping if name not in Study.model_fields), None)
    if unknown is not None:
        guess = nearest(unknown, Study.model_fields)
        hint = f"; did you mean [{guess}]?" if guess else ""
        raise RecipeError(f"{path}: a study has no table [{unknown}]{hint} (legal: {', '.join(Study.model_fields)})")
    study = validate(Study, mapping, str(path))
    if getattr(study, kind) is None:
        other = "search" if kind == "scaling" else "scaling"
        raise RecipeError(f"{path}: holds a [{other}], not a [{kind}]; run  jielong {other} {path}")
    return study


def recipe_path(study: Study, path: str | Path) -> Path:
    """The recipe of a study file: relative to the file."""
    found = Path(path).parent / study.common.recipe
    if not found.is_file():
        raise RecipeError(f"{path}: recipe = {study.common.recipe!r}: there is no file {found}")
    return found


def override(name: str, value: Scalar) -> str:
    """`name=value` as --set takes it; text that could be read as a number stays text."""
    if isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{name}="{quoted}"'
    return f"{name}={value!r}"


def pick(figures: dict[str, Any], name: str, stage: str) -> float:
    """figures[name], or figures[a][b] for "a.b", as a number. Raises RecipeError naming what there is."""
    found: Any = figures
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            legal = sorted(key for key, value in figures.items() if isinstance(value, int | float | dict))
            raise RecipeError(f"stage {stage} shows no figure {name!r}; it shows: {', '.join(legal)}")
        found = found[part]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise RecipeError(f"figure {name!r} of stage {stage} is {found!r}, no number")
    return float(found)
