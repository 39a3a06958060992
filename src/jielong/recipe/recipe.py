"""A recipe file as an object: its tables, its stages in file order, and the text it is written back as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jielong.config import Settings, apply_override, config_hash, load_toml, plain, to_toml, validate
from jielong.data.sources import Source
from jielong.errors import RecipeError, nearest
from jielong.recipe.classics import FinetuneSettings, MlmSettings
from jielong.recipe.crosscheck import crosscheck, named_sources
from jielong.recipe.preferences import (
    BestOfNSettings,
    DpoSettings,
    GrpoSettings,
    PpoSettings,
    PromoteSettings,
    RewardSettings,
)
from jielong.recipe.settings import (
    CurateSettings,
    DataSettings,
    EvaluateSettings,
    PretrainSettings,
    RunSettings,
    SftSettings,
    TokenizerSettings,
    VotesSettings,
)
from jielong.recipe.translate import TranslateSettings
from jielong.runtime import derive_seed

SHARED_TABLES = ("run", "data")
STAGE_SETTINGS: dict[str, type[Settings]] = {
    "curate": CurateSettings,
    "tokenizer": TokenizerSettings,
    "pretrain": PretrainSettings,
    "translate": TranslateSettings,
    "sft": SftSettings,
    "reward": RewardSettings,
    "ppo": PpoSettings,
    "grpo": GrpoSettings,
    "dpo": DpoSettings,
    "best_of_n": BestOfNSettings,
    "promote": PromoteSettings,
    "mlm": MlmSettings,
    "finetune": FinetuneSettings,
    "evaluate": EvaluateSettings,
}


@dataclass(frozen=True)
class Stage:
    """One table of the recipe that runs: name = the table's name, kind = which stage it is."""

    name: str
    kind: str
    settings: Any  # the kind's class in STAGE_SETTINGS


@dataclass(frozen=True)
class Recipe:
    """A recipe that has passed all checks but those that need its data."""

    path: Path
    run: RunSettings
    data: DataSettings
    stages: tuple[Stage, ...]

    def source(self, name: str) -> Source:
        """The table [data.sources.NAME]."""
        return self.data.sources[name].source(name)

    @property
    def world_seed(self) -> int:
        """Seed of the built-in world: it follows the run's, and whoever asks a model about that world needs it."""
        return derive_seed(self.run.seed, "world") % 2**31

    def kept_out(self, stage: Stage) -> tuple[Stage, ...]:
        """The tasks whose held-out examples a curate stage keeps out of its text; () for other kinds."""
        names = stage.settings.keep_out if stage.kind == "curate" else ()
        return tuple(other for other in self.stages if other.name in names)

    def all_sources(self) -> tuple[str, ...]:
        """Names of the sources that any stage reads, "world" among them, each once."""
        names = [name for stage in self.stages for name in stage_sources(stage)]
        return tuple(dict.fromkeys(names))

    @property
    def evaluation_prompts(self) -> tuple[str, ...]:
        """The recipe's own prompts, which [evaluate] asks where there is no world to ask about."""
        return tuple(text for stage in self.stages if stage.kind == "evaluate" for text in stage.settings.prompts)

    def data_settings(self) -> dict[str, Any]:
        """What of [data] decides the results: all but the folder it happens to lie in."""
        return {name: value for name, value in plain(self.data).items() if name != "root"}

    @property
    def hash(self) -> str:
        """sha256 over everything that decides the results: equal for equal recipes, wherever they lie."""
        stages = [{"name": stage.name, "kind": stage.kind, "settings": stage.settings} for stage in self.stages]
        return config_hash({"run": plain(self.run), "data": self.data_settings(), "stages": plain(stages)})


def stage_sources(stage: Stage) -> tuple[str, ...]:
    """The names in the stage's `sources`, `validation` and `heldout_sources`; () for kinds without."""
    return named_sources(stage)


def stage_votes(stage: Stage) -> VotesSettings | None:
    """The stage's `votes` table, None where it has none."""
    return stage.settings.votes if "votes" in type(stage.settings).model_fields else None


def parse_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides (`table.key=value`, in order), validates and cross-checks a recipe.

    Raises RecipeError naming file, table, key, value and what is legal; all wrong keys of a table at once.
    """
    path = Path(path)
    mapping = load_toml(path)
    where = str(path)
    for override in overrides:
        _check_table_exists(mapping, override, where)
        mapping = apply_override(mapping, override)
    if overrides:
        where += " with " + " ".join(f"--set {override}" for override in overrides)
    for name, table in mapping.items():
        if not isinstance(table, Mapping):
            raise RecipeError(f"{where}: {name} = {table!r} stands outside a table; put it under [run] or a stage")
    run = validate(RunSettings, {"name": path.stem, **mapping.get("run", {})}, f"{where} [run]")
    data = validate(DataSettings, mapping.get("data", {}), f"{where} [data]")
    stages = tuple(_stage(name, table, where) for name, table in mapping.items() if name not in SHARED_TABLES)
    recipe = Recipe(path=path, run=run, data=data, stages=stages)
    crosscheck(recipe, where)
    return recipe


def _check_table_exists(mapping: Mapping[str, Any], override: str, where: str) -> None:
    """An override may not invent a stage: a mistyped stage name must not become a new table."""
    table = override.split(".")[0].strip()
    legal = [*SHARED_TABLES, *mapping]
    if table not in legal:
        guess = nearest(table, legal)
        hint = f"; did you mean [{guess}]?" if guess else ""
        raise RecipeError(f"--set {override}: {where} has no table [{table}]{hint} (tables: {', '.join(mapping)})")


def _stage(name: str, table: Mapping[str, Any], where: str) -> Stage:
    kind = table.get("kind", name)
    if kind not in STAGE_SETTINGS:
        guess = nearest(str(kind), [*STAGE_SETTINGS, *SHARED_TABLES])
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise RecipeError(
            f"{where} [{name}]: kind = {kind!r} is no kind of stage{hint} (legal: {', '.join(STAGE_SETTINGS)}). "
            'A stage may have any name when it says kind = "..."'
        )
    settings_class: type[Settings] = STAGE_SETTINGS[kind]
    settings = {key: value for key, value in table.items() if key != "kind"}
    return Stage(name, kind, validate(settings_class, settings, f"{where} [{name}]"))


def write_toml(recipe: Recipe, stage: str | None = None) -> str:
    """The recipe with every default spelled out, or only what one stage sees; parses back to an equal recipe."""
    tables: dict[str, Any] = {"run": plain(recipe.run)}
    data = plain(recipe.data)
    if stage is None and (data["root"] or data["world"] or data["sources"]):
        tables["data"] = data
    for one in recipe.stages:
        if stage in (None, one.name):
            tables[one.name] = {"kind": one.kind, **plain(one.settings)}
    return to_toml(tables)
