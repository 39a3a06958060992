"""What a recipe will cost, stage by stage, before anything runs. Estimates, which the report sets beside what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jielong.config import data_root
from jielong.log import format_count, format_seconds
from jielong.model.config import ModelConfig
from jielong.plan.cost import estimate_seconds, expected_mfu, flops_per_token, probe_flops
from jielong.plan.hardware import Device
from jielong.plan.memory import training_memory_bytes
from jielong.plan.sheet import describe_model
from jielong.recipe.recipe import Recipe, Stage, stage_sources
from jielong.runtime import Runtime

# Guesses where only the data could tell; measured on the quickstart.
CURATE_BYTES_PER_SECOND = 1.5e6
TOKENIZER_BYTES_PER_SECOND = 2.5e6
TOKENS_PER_CONVERSATION = 60
DECODE_SLOWNESS = 6.0  # a token sampled in a batch against the same token read in training
NUM_SKILLS = 10
NUM_ENCODER_TOKENS = 3  # [CLS], [SEP], [MASK]


def plan_recipe(
    recipe: Recipe,
    runtime: Runtime,
    flops_per_second: float | None = None,
    device: Device | None = None,
    num_devices: int = 1,
) -> dict[str, Any]:
    """{"stages": {name: {"kind", "tokens", "flops", "memory_bytes", "seconds"}}, "totals", "model", "machine"}.

    flops_per_second: the machine's best matrix rate; None probes this one for two seconds. device, num_devices: plan
    for so many of another machine instead. Unknown amounts (epochs over text not yet downloaded) are None, and the
    totals leave them out.
    """
    if device is not None:
        state = _State(recipe, runtime, device.flops_per_second * num_devices, device.mfu)
    else:
        state = _State(recipe, runtime, flops_per_second or probe_flops(runtime))
    stages = {stage.name: _estimate(stage, state) for stage in recipe.stages}
    known = [stage["seconds"] for stage in stages.values() if stage["seconds"] is not None]
    memory = [stage["memory_bytes"] for stage in stages.values() if stage["memory_bytes"]]
    return {
        "name": recipe.run.name,
        "stages": stages,
        "model": describe_model(state.model) if state.model else {},
        "totals": {
            "seconds": sum(known),
            "complete": len(known) == len(stages),
            "flops": sum(stage["flops"] or 0 for stage in stages.values()),
            "memory_bytes": max(memory, default=0),
        },
        "machine": {
            "flops_per_second": state.rate,
            "probed": flops_per_second is None and device is None,
            "device": str(runtime.device) if device is None else f"{num_devices} x {device.name}",
        },
    }


def model_config(sizes: dict[str, Any], vocab_size: int, context_tokens: int) -> ModelConfig:
    """The decoder of a [STAGE.model] table's sizes."""
    return ModelConfig(vocab_size=vocab_size, max_length=context_tokens, **sizes)


def _training(
    model: ModelConfig, tokens: int, batch_tokens: int, rate: float, accumulate: int, fp8: bool = False
) -> dict[str, Any]:
    """fp8 counts as fewer bytes. Not as fewer seconds: we have not measured any."""
    memory = training_memory_bytes(model, batch_tokens, model.max_length, accumulate=accumulate, fp8=fp8)
    return {
        "tokens": tokens,
        "flops": tokens * flops_per_token(model, model.max_length),
        "memory_bytes": memory,
        "seconds": estimate_seconds(model, tokens, model.max_length, rate),
    }


def _memory(settings: Any, state: _State, model: ModelConfig, batch_tokens: int) -> dict[str, Any]:
    """Of a stage of which nothing else is known."""
    parts = settings.accumulate
    held = training_memory_bytes(model, batch_tokens, model.max_length, accumulate=parts, fp8=state.fp8)
    return {"memory_bytes": held}


@dataclass
class _State:
    """What later stages need of earlier ones."""

    recipe: Recipe
    runtime: Runtime
    rate: float  # FLOP/s of matrix products on this machine
    mfu: float | None = None  # of it while training; None: as expected on this machine
    corpus_bytes: float | None = None
    vocab_size: int = 263
    model: ModelConfig | None = None

    @property
    def fp8(self) -> bool:
        """Of most stages; ppo and grpo, which decode between their steps, and dpo, have no 8 bits."""
        return self.recipe.run.fp8

    @property
    def training_rate(self) -> float:
        assert self.model is not None
        return self.rate * (self.mfu or expected_mfu(self.model, self.runtime))


def _estimate(stage: Stage, state: _State) -> dict[str, Any]:
    nothing = {"tokens": None, "flops": None, "memory_bytes": None, "seconds": None}
    return {"kind": stage.kind, **nothing, **ESTIMATES[stage.kind](stage.settings, state)}


def _curate(settings: Any, state: _State) -> dict[str, Any]:
    sizes = [_source_bytes(name, state.recipe) for name in settings.sources]
    if any(size is None for size in sizes):
        return {}
    state.corpus_bytes = sum(size for size in sizes if size is not None)
    return {"seconds": state.corpus_bytes / CURATE_BYTES_PER_SECOND}


def _source_bytes(name: str, recipe: Recipe) -> float | None:
    """Bytes of text in a source, None when it is not on this machine yet or packed."""
    if name == "world":
        return recipe.data.world.megabytes * 1e6 if recipe.data.world else None
    path = Path(data_root(recipe.data.root)) / recipe.data.sources[name].path
    return float(path.stat().st_size) if path.is_file() and path.suffix not in (".gz", ".zst", ".parquet") else None


def _tokenizer(settings: Any, state: _State) -> dict[str, Any]:
    state.vocab_size = settings.vocab_size
    if state.corpus_bytes is None:
        return {}
    num_bytes = min(state.corpus_bytes, settings.max_megabytes * 1e6)
    return {"seconds": num_bytes / TOKENIZER_BYTES_PER_SECOND}


def _pretrain(settings: Any, state: _State) -> dict[str, Any]:
    state.model = model_config(settings.model.sizes(), state.vocab_size, settings.context_tokens)
    return _over_corpus(settings, state, state.model, state.training_rate)


def _over_corpus(settings: Any, state: _State, model: ModelConfig, rate: float) -> dict[str, Any]:
    """Rows of the curated text, for num_steps or epochs. rate: FLOP/s. Of a corpus of unknown size, memory alone."""
    batch_tokens = settings.batch_rows * settings.context_tokens
    tokens: float | None
    if settings.num_steps is not None:
        tokens = settings.num_steps * settings.accumulate * batch_tokens
    else:
        corpus_tokens = state.corpus_bytes / bytes_per_token(state.vocab_size) if state.corpus_bytes else None
        tokens = settings.epochs * corpus_tokens if corpus_tokens else None
    if tokens is None:
        return _memory(settings, state, model, batch_tokens)
    return _training(model, round(tokens), batch_tokens, rate, settings.accumulate, state.fp8)


def _translate(settings: Any, state: _State) -> dict[str, Any]:
    """A token of the target beside one of the source; rows are as long as batch_tokens lets them be, at most."""
    state.model = model_config(settings.model.sizes(), state.vocab_size, settings.context_tokens)
    if settings.num_steps is None:
        return _memory(settings, state, state.model, settings.batch_tokens)
    tokens = settings.num_steps * settings.accumulate * settings.batch_tokens
    rate = state.training_rate
    return _training(state.model, tokens, settings.batch_tokens, rate, settings.accumulate, state.fp8)


def _sft(settings: Any, state: _State) -> dict[str, Any]:
    if state.model is None:
        return {}  # it starts from a folder
    batch_tokens = settings.batch_rows * state.model.max_length
    if settings.num_steps is not None:
        tokens = settings.num_steps * settings.accumulate * batch_tokens
    elif settings.num_conversations is not None:
        tokens = settings.epochs * settings.num_conversations * TOKENS_PER_CONVERSATION
    else:
        return _memory(settings, state, state.model, batch_tokens)
    return _training(state.model, round(tokens), batch_tokens, state.training_rate, settings.accumulate, state.fp8)


def _reward(settings: Any, state: _State, fp8: bool = True) -> dict[str, Any]:
    if state.model is None or settings.num_prompts is None:
        return {}
    replies = settings.num_prompts * settings.replies_per_prompt
    per_reply = settings.max_new_tokens + TOKENS_PER_CONVERSATION // 2
    epochs = settings.epochs or settings.num_steps * settings.batch_rows * settings.accumulate / settings.num_prompts
    batch_tokens = settings.batch_rows * settings.replies_per_prompt * per_reply
    tokens = round(replies * per_reply * epochs)
    training = _training(state.model, tokens, batch_tokens, state.training_rate, settings.accumulate, fp8 and state.fp8)
    return _with_sampling(training, replies * settings.max_new_tokens, state)


def _policy(settings: Any, state: _State) -> dict[str, Any]:
    """ppo and grpo, which has no critic."""
    if state.model is None:
        return {}
    episodes = settings.num_iterations * settings.rollout_rows
    row = settings.max_new_tokens + TOKENS_PER_CONVERSATION // 2
    num_learning = 2 if "critic_learning_rate" in type(settings).model_fields else 1
    # they train inner_epochs times; old and reference log-probs, values, score are forward only: a third
    passes = num_learning * settings.inner_epochs + (2 + num_learning) / 3
    rows = min(settings.micro_batch_rows, settings.minibatch_rows)  # of a forward pass
    parts = -(-settings.minibatch_rows // rows)
    training = _training(state.model, round(episodes * row * passes), rows * row, state.training_rate, parts)
    training["memory_bytes"] *= num_learning
    return _with_sampling(training, (episodes + _judged_replies(settings)) * settings.max_new_tokens, state)


def _judged_replies(settings: Any) -> int:
    return 2 * settings.judged_prompts * settings.judged_seeds


def _dpo(settings: Any, state: _State) -> dict[str, Any]:
    """As reward where it samples itself; of another stage's comparisons only the judging is known."""
    found = _reward(settings, state, fp8=False)
    if state.model is None or not found:
        return {}
    return _with_sampling(found, _judged_replies(settings) * settings.max_new_tokens, state)


def _best_of_n(settings: Any, state: _State) -> dict[str, Any]:
    if state.model is None:
        return {}
    replies = settings.num_prompts * settings.replies_per_prompt + _judged_replies(settings)
    batch_tokens = settings.batch_rows * state.model.max_length
    if settings.num_steps is not None:
        tokens = settings.num_steps * settings.accumulate * batch_tokens
    else:
        tokens = settings.epochs * settings.num_prompts * (settings.max_new_tokens + TOKENS_PER_CONVERSATION // 2)
    rate = state.training_rate
    training = _training(state.model, round(tokens), batch_tokens, rate, settings.accumulate, state.fp8)
    return _with_sampling(training, replies * settings.max_new_tokens, state)


def _promote(settings: Any, state: _State) -> dict[str, Any]:
    """Where a judge wants replies of both models: those. Votes and held-out choices are there already, and few."""
    if not settings.samples:
        return {"seconds": 0.0}
    if state.model is None:
        return {}
    tokens = _judged_replies(settings) * settings.max_new_tokens
    return _with_sampling({"tokens": tokens, "flops": 0, "memory_bytes": None, "seconds": 0.0}, tokens, state)


def _mlm(settings: Any, state: _State) -> dict[str, Any]:
    model = model_config(settings.model.sizes(), state.vocab_size + NUM_ENCODER_TOKENS, settings.context_tokens)
    state.model = state.model or model
    return _over_corpus(settings, state, model, state.rate * (state.mfu or expected_mfu(model, state.runtime)))


def _finetune(settings: Any, state: _State) -> dict[str, Any]:
    """Known only where the number of examples is; each is taken to have half a row."""
    if state.model is None or (settings.num_steps is None and settings.limit_examples is None):
        return {}
    row_tokens = min(settings.row_tokens or state.model.max_length, state.model.max_length)
    if settings.num_steps is not None:
        rows = settings.num_steps * settings.batch_rows * settings.accumulate
    else:
        rows = settings.epochs * settings.limit_examples
    tokens, batch_tokens = round(rows * row_tokens / 2), settings.batch_rows * row_tokens
    return _training(state.model, tokens, batch_tokens, state.training_rate, settings.accumulate, state.fp8)


def _with_sampling(training: dict[str, Any], sampled_tokens: int, state: _State) -> dict[str, Any]:
    assert state.model is not None
    flops = sampled_tokens * flops_per_token(state.model, state.model.max_length) / 3
    seconds = flops / state.training_rate * DECODE_SLOWNESS
    return {**training, "flops": training["flops"] + round(flops), "seconds": training["seconds"] + seconds}


def _evaluate(settings: Any, state: _State) -> dict[str, Any]:
    if state.model is None:
        return {}
    kinds = [stage.kind for stage in state.recipe.stages]
    num_models = sum(kind in ("pretrain", "sft", "ppo", "grpo", "dpo", "best_of_n") for kind in kinds)
    asks = any("world" in stage_sources(stage) for stage in state.recipe.stages)
    num_skills = len(settings.skills) or NUM_SKILLS
    num_questions = settings.questions_per_skill * num_skills if asks else len(settings.prompts)
    tokens = num_models * num_questions * settings.max_new_tokens
    nothing = {"tokens": tokens, "flops": 0, "memory_bytes": None, "seconds": 0.0}
    return _with_sampling(nothing, tokens, state)


ESTIMATES: dict[str, Callable[[Any, _State], dict[str, Any]]] = {
    "curate": _curate,
    "tokenizer": _tokenizer,
    "pretrain": _pretrain,
    "translate": _translate,
    "sft": _sft,
    "reward": _reward,
    "ppo": _policy,
    "grpo": _policy,
    "dpo": _dpo,
    "best_of_n": _best_of_n,
    "promote": _promote,
    "mlm": _mlm,
    "finetune": _finetune,
    "evaluate": _evaluate,
}


def bytes_per_token(vocab_size: int) -> float:
    """A guess for prose: 1 without merges, about half a byte more for each doubling of the vocabulary, 4.5 at most."""
    return min(4.5, 1.0 + 0.55 * max(0.0, math.log2(vocab_size / 263)))


def format_plan(plan: dict[str, Any]) -> Group:
    """The plan as a table for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("stage", "tokens", "FLOPs", "memory", "time"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for name, stage in plan["stages"].items():
        memory = stage["memory_bytes"]
        cells = [
            "" if stage["tokens"] is None else format_count(stage["tokens"]),
            "" if not stage["flops"] else format_count(stage["flops"]),
            "" if memory is None else f"{format_count(memory)}B",
            "not known yet" if stage["seconds"] is None else format_seconds(stage["seconds"]),
        ]
        table.add_row(name, *cells)
    lines = [f"{plan['name']}: " + _model_line(plan["model"]) if plan["model"] else plan["name"]]
    totals, machine = plan["totals"], plan["machine"]
    how = "probed just now" if machine["probed"] else "as given"
    more = "" if totals["complete"] else ", and what is not known yet"
    after = [
        f"in all about {format_seconds(totals['seconds'])}{more}, {format_count(totals['flops'])} FLOPs",
        f"at {format_count(machine['flops_per_second'])} FLOP/s ({machine['device']}, {how}) and a usual share of it",
    ]
    if "price" in plan:
        after.append(f"price: {plan['price']:.2f}")
    return Group(Text(lines[0]), Text(""), table, Text(""), *(Text(line) for line in after))


def _model_line(model: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {format_count(number)}" for name, number in model["parts"].items() if number)
    return (
        f"{format_count(model['parameters'])} parameters ({parts}), {model['layers']} layers, {model['width']} wide, "
        f"vocabulary {model['vocab_size']}, context {model['context_tokens']}"
    )
