"""Do the stages of a recipe fit each other? Checked before the first one runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jielong.config import Settings
from jielong.data.pairs import couples
from jielong.data.world.world import SKILLS
from jielong.errors import RecipeError, UsageError, did_you_mean
from jielong.model.config import ModelConfig
from jielong.recipe.promotion import check_promotion
from jielong.train.parallel import check_divisible

if TYPE_CHECKING:
    from jielong.recipe.recipe import Recipe, Stage

# kind -> the kinds that must stand somewhere before it
NEEDS = {
    "curate": (),
    "tokenizer": ("curate",),
    "pretrain": ("curate", "tokenizer"),
    "translate": ("tokenizer",),
    "sft": ("pretrain",),
    "reward": ("sft",),
    "ppo": ("sft", "reward"),
    "grpo": ("sft", "reward"),
    "dpo": ("sft",),
    "best_of_n": ("sft", "reward"),
    "promote": ("sft",),
    "mlm": ("curate", "tokenizer"),
    "finetune": ("pretrain",),  # or mlm, or sft
    "evaluate": ("pretrain",),
}
POLICIES = ("ppo", "grpo")
STARTERS = ("sft", "finetune")  # may start from a model folder that the recipe names
STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def crosscheck(recipe: Recipe, where: str) -> None:
    """Raises RecipeError for stages that do not fit: order, missing inputs, sources, settings without effect."""
    if not recipe.stages:
        raise RecipeError(f"{where}: has no stage; add one, for example [curate] (kinds: {', '.join(NEEDS)})")
    if not RUN_NAME.fullmatch(recipe.run.name):
        raise RecipeError(
            f"{where} [run]: name = {recipe.run.name!r} must be usable as a folder (letters, digits . _ -)"
        )
    for index, stage in enumerate(recipe.stages):
        here = f"{where} [{stage.name}]"
        if not STAGE_NAME.fullmatch(stage.name):
            raise RecipeError(f"{here}: a stage's name must be letters, digits, _ or - (it names a folder)")
        _check_order(stage, recipe.stages[:index], recipe.stages[index + 1 :], here)
        if stage.kind == "promote":
            check_promotion(stage, recipe.stages[:index], here)
        if stage.kind == "curate":
            _check_kept_out(recipe, stage, here)
    _check_sources(recipe, where)
    _check_world(recipe, where)
    _check_lengths(recipe, where)
    _check_layout(recipe, where)


def _check_order(stage: Stage, before: tuple[Stage, ...], after: tuple[Stage, ...], here: str) -> None:
    earlier = {other.kind for other in before}
    needs = NEEDS[stage.kind]
    if stage.kind == "tokenizer" and stage.settings.sources:
        needs = ()
    if stage.kind in STARTERS and stage.settings.model is not None:
        if stage.kind == "sft" and "pretrain" in earlier:
            raise RecipeError(
                f"{here}: model = {stage.settings.model!r} would leave the pretrained model before it without effect; "
                "delete model or the pretrain stage"
            )
        needs = ()
    if stage.kind == "finetune" and earlier & {"mlm", "sft"}:
        needs = ()
    if stage.kind in POLICIES and stage.settings.reward in ("verifiable", "http"):
        needs = ("sft",)
    if stage.kind in (*POLICIES, "best_of_n") and stage.settings.reward in ("mean", "min"):
        num_models = sum(other.kind == "reward" for other in before)
        if num_models < 2:
            raise RecipeError(
                f'{here}: reward = "{stage.settings.reward}" wants 2 or more stages of kind reward before it, there '
                f'{"is" if num_models == 1 else "are"} {num_models}; add [reward-2] with kind = "reward"'
            )
    if stage.kind == "dpo" and stage.settings.comparisons is not None:
        names = [other.name for other in before if other.kind == "reward"]
        if stage.settings.comparisons not in names:
            hint = did_you_mean(stage.settings.comparisons, names)
            raise RecipeError(
                f"{here}: comparisons = '{stage.settings.comparisons}' is no stage of kind reward before it{hint} "
                f"(there: {', '.join(names) or 'none'})"
            )
    if stage.kind in POLICIES and stage.settings.ptx_coefficient > 0 and stage.settings.ptx_source not in earlier:
        source = stage.settings.ptx_source
        raise RecipeError(
            f"{here}: ptx_coefficient = {stage.settings.ptx_coefficient} with ptx_source = '{source}' wants the rows "
            f"of such a stage, and there is none before it; delete it, add [{source}], or choose another ptx_source"
        )
    if stage.kind == "evaluate" and "sft" in earlier:
        needs = ()
    for kind in needs:
        if kind in earlier:
            continue
        later = next((other.name for other in after if other.kind == kind), None)
        where_it_is = f"[{later}] stands after it; move it up" if later else f"there is none; add [{kind}]"
        instead = " or set model to a model folder" if stage.kind in STARTERS else ""
        raise RecipeError(f"{here}: kind {stage.kind} needs a stage of kind {kind} before it; {where_it_is}{instead}")


def _check_sources(recipe: Recipe, where: str) -> None:
    """Every named source exists, every source is named by a stage."""
    declared = list(recipe.data.sources)
    if "world" in declared:
        raise RecipeError(f"{where} [data.sources.world]: world means the built-in corpus; choose another name")
    legal = ["world", *declared]
    for stage in recipe.stages:
        for name in named_sources(stage):
            if name not in legal:
                hint = did_you_mean(name, legal)
                raise RecipeError(
                    f"{where} [{stage.name}]: sources names '{name}', which is neither \"world\" nor a table "
                    f"[data.sources.{name}]{hint} (legal: {', '.join(legal)})"
                )
        optional = stage.kind == "tokenizer" or (stage.kind == "dpo" and stage.settings.comparisons is not None)
        optional = optional or (stage.kind in ("reward", "dpo") and stage.settings.votes is not None)
        if "sources" in type(stage.settings).model_fields and not stage.settings.sources and not optional:
            raise RecipeError(f"{where} [{stage.name}]: sources is empty; name one or more of {', '.join(legal)}")
        if stage.kind in ("translate", "tokenizer"):
            _check_pairs(recipe, stage, f"{where} [{stage.name}]")
        if stage.kind == "pretrain" and stage.settings.mixture is not None:
            _check_mixture(recipe, stage, f"{where} [{stage.name}]")
    used = {name for stage in recipe.stages for name in named_sources(stage)}
    for name in declared:
        if name not in used:
            raise RecipeError(f"{where} [data.sources.{name}]: no stage names it in its sources, so it has no effect")


def _check_kept_out(recipe: Recipe, stage: Stage, here: str) -> None:
    """keep_out names tasks, and all of whose sources any is read: what examines may stand in what teaches, too."""
    tasks = {other.name: other for other in recipe.stages if other.kind == "finetune"}
    for name in stage.settings.keep_out:
        if name not in tasks:
            hint = did_you_mean(name, tasks)
            raise RecipeError(
                f"{here}: keep_out names '{name}', which is no stage of kind finetune{hint} (there: "
                f"{', '.join(tasks) or 'none'})"
            )
    for name, task in tasks.items():
        shared = sorted(set(stage.settings.sources) & set(named_sources(task)) - {"world"})
        if shared and name not in stage.settings.keep_out:
            raise RecipeError(
                f"{here}: sources names '{shared[0]}', a source of [{name}] too: what that is examined on might be "
                f'learned as text first; set keep_out = ["{name}"], or take the source out'
            )


def _check_mixture(recipe: Recipe, stage: Stage, here: str) -> None:
    """Every source of the corpus has its weight, and nothing else has."""
    before = recipe.stages[: recipe.stages.index(stage)]
    sources = [other for other in before if other.kind == "curate"][-1].settings.sources
    for name in stage.settings.mixture:
        if name not in sources:
            hint = did_you_mean(name, sources)
            raise RecipeError(
                f"{here}: mixture names '{name}', which the curate stage before it does not read{hint} (legal: "
                f"{', '.join(sources)})"
            )
    for name in sources:
        if name not in stage.settings.mixture:
            raise RecipeError(
                f"{here}: mixture has no weight for '{name}', which the curate stage before it reads; give it one, or "
                "take the source out of the curation"
            )


def _check_pairs(recipe: Recipe, stage: Stage, here: str) -> None:
    """Parallel text: the language pair is there on both occasions, and what measures is not learned from."""
    settings = stage.settings
    if "world" in named_sources(stage):
        raise RecipeError(f'{here}: sources names "world", which holds no sentence pairs; name files of parallel text')
    if stage.kind == "tokenizer":
        return
    for key in ("sources", "validation"):
        names = settings.__dict__[key]
        if not names:
            raise RecipeError(f"{here}: {key} is empty; name the sources that hold its pairs")
        try:
            couples([recipe.source(name) for name in names], (settings.from_language, settings.to_language))
        except UsageError as error:
            raise RecipeError(f"{here}: {key}: {error}") from None
    both = sorted(set(settings.sources) & set(settings.validation))
    if both:
        raise RecipeError(f"{here}: validation names {', '.join(both)}, which sources has too; hold other pairs out")


def named_sources(stage: Stage) -> tuple[str, ...]:
    """The names in the stage's `sources`, `validation` and `heldout_sources`."""
    keys = [key for key in ("sources", "validation", "heldout_sources") if key in type(stage.settings).model_fields]
    return tuple(name for key in keys for name in stage.settings.__dict__[key])


def _check_world(recipe: Recipe, where: str) -> None:
    """The world's amounts are set where they are needed, and only there."""
    curates_world = any(stage.kind == "curate" and "world" in named_sources(stage) for stage in recipe.stages)
    if curates_world and recipe.data.world is None:
        raise RecipeError(f'{where}: a curate stage reads "world"; say how much of it: [data.world] megabytes = 20')
    if recipe.data.world is not None and not curates_world:
        raise RecipeError(f'{where} [data.world]: no curate stage has "world" in its sources, so it has no effect')
    asks_world = any("world" in named_sources(stage) for stage in recipe.stages)
    for stage in recipe.stages:
        here, settings = f"{where} [{stage.name}]", stage.settings
        if stage.kind == "sft":
            _both_or_neither(here, "num_conversations", settings.num_conversations, "world" in settings.sources)
            if set(settings.sources) == {"world"}:
                _refuse_changed(here, settings, "heldout_fraction", "the world has held-out conversations of its own")
        if stage.kind in ("reward", "dpo"):
            for key in ("num_prompts", "replies_per_prompt"):
                _both_or_neither(here, key, settings.__dict__[key], "world" in settings.sources)
            if "world" not in settings.sources:
                _refuse_changed(here, settings, "label_agreement", "only the world's replies are labelled here")
        if stage.kind == "curate" and set(settings.sources) == {"world"}:
            for key in ("heldout_fraction", "heldout"):
                _refuse_changed(here, settings, key, "the world has held-out text of its own")
        if stage.kind in POLICIES and not asks_world:
            _refuse_changed(here, settings, "watch_every", "only the world has a judge for the gold curve")
        if stage.kind in POLICIES and settings.reward == "verifiable":
            _refuse_changed(here, settings, "watch_every", "the gold curve is of stories, not of verified answers")
            _check_skills(here, settings.skills, asks_world)
        if stage.kind == "promote" and settings.judge == "gold" and not asks_world:
            raise RecipeError(f'{here}: judge = "gold" knows the world\'s stories alone; choose "votes" or "heldout"')
        if stage.kind == "finetune" and "world" in named_sources(stage):
            raise RecipeError(f"{here}: the world has no labelled examples; name a table [data.sources.NAME] instead")
        if stage.kind == "evaluate" and asks_world and settings.prompts:
            raise RecipeError(f"{here}: prompts has no effect where the world asks its own questions; delete it")
        if stage.kind == "evaluate" and not asks_world and settings.skills:
            raise RecipeError(f'{here}: skills has no effect without "world" in some sources; set prompts instead')


def _check_skills(here: str, skills: tuple[str, ...], asks_world: bool) -> None:
    """Only the world's questions can be verified, and only by their names."""
    if not asks_world:
        raise RecipeError(f'{here}: reward = "verifiable" asks the world, which no stage reads; choose another reward')
    for skill in skills:
        if skill not in SKILLS:
            hint = did_you_mean(skill, SKILLS)
            raise RecipeError(f"{here}: skills names '{skill}'{hint} (legal: {', '.join(SKILLS)})")


def _both_or_neither(here: str, key: str, value: object, has_world: bool) -> None:
    if has_world and value is None:
        raise RecipeError(f'{here}: {key} is required when sources has "world"')
    if not has_world and value is not None:
        raise RecipeError(f'{here}: {key} = {value} has no effect without "world" in sources; delete it')


def _refuse_changed(here: str, settings: Settings, key: str, why: str) -> None:
    """Refuse a value other than the default, for the resolved recipe spells all defaults out."""
    value = settings.__dict__[key]
    if value != type(settings).model_fields[key].default:
        raise RecipeError(f"{here}: {key} = {value} has no effect: {why}; delete it")


def _check_lengths(recipe: Recipe, where: str) -> None:
    """A reply must leave room for its prompt in the context that was pre-trained."""
    context_tokens: int | None = None
    for stage in recipe.stages:
        if stage.kind == "pretrain":
            context_tokens = stage.settings.context_tokens
        elif stage.kind == "sft" and stage.settings.model is not None:
            context_tokens = None
        elif stage.kind == "promote" and not stage.settings.samples:
            continue
        elif context_tokens is not None and "max_new_tokens" in type(stage.settings).model_fields:
            longest = stage.settings.max_new_tokens
            if longest >= context_tokens:
                raise RecipeError(
                    f"{where} [{stage.name}]: max_new_tokens = {longest} leaves no room for a prompt in "
                    f"context_tokens = {context_tokens} of the pretrain stage; lower it or raise that"
                )


def _check_layout(recipe: Recipe, where: str) -> None:
    """What [run] says of several processes fits every stage that learns, however many there will be."""
    run = recipe.run
    if run.sharding == "none" and run.tensor_parallel == 1:
        return
    how = f"tensor_parallel = {run.tensor_parallel}" if run.tensor_parallel > 1 else f'sharding = "{run.sharding}"'
    for stage in recipe.stages:
        here, settings = f"{where} [{stage.name}]", stage.settings.__dict__
        if stage.kind == "translate" and stage.settings.architecture != "transformer":
            raise RecipeError(
                f"{here}: [run] {how} shares out the layers of a Transformer, and architecture = "
                f"'{stage.settings.architecture}' is none; leave that out, or set architecture = 'transformer'"
            )
        if run.tensor_parallel > 1 and settings.get("lora") is not None and stage.kind not in POLICIES:
            raise RecipeError(f"{here}: layers with an adapter are not cut into parts; delete lora, or [run] {how}")
        if stage.kind in ("pretrain", "mlm", "translate"):
            config = ModelConfig(vocab_size=1, max_length=1, **stage.settings.model.sizes())
            try:
                check_divisible(config, run.tensor_parallel)
            except UsageError as error:
                raise RecipeError(f"{here}: {error}") from None
