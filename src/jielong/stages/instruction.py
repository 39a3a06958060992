"""The stage `sft`: the base model learns to answer, in turns, and to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jielong.data.examples import read_conversations
from jielong.data.loader import RowLoader
from jielong.data.pack import Rows, pack_examples
from jielong.errors import DataError
from jielong.evaluate.likelihood import heldout_nats
from jielong.evaluate.skills import exact_match
from jielong.folder import save
from jielong.generate.engine import Engine
from jielong.model.transformer import Transformer
from jielong.stages.context import Context, write_json
from jielong.stages.corpus import askable, evaluation_questions
from jielong.stages.evaluation import check_prompts
from jielong.stages.speaking import speaking
from jielong.stages.training import adapt, micro_batches, settle, train
from jielong.stages.votes import kept_votes
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render
from jielong.train.objectives import next_token

Conversation = dict[str, Any]
NUM_QUESTIONS = 60  # per skill, for the figures of this stage; [evaluate] asks more


def run_sft(context: Context) -> dict[str, Any]:
    """Fine-tune on conversations; loss on exactly the assistant's tokens and the end of each turn."""
    settings = context.settings
    parent = Path(settings.model) if settings.model is not None else context.last_model("pretrain")
    model, tokenizer = context.load_model(parent)
    check_prompts(context.recipe.evaluation_prompts, tokenizer, model.config.max_length)
    left_out: list[str] = []
    train_set, heldout_set = conversations(context, left_out)
    rows = conversation_rows(train_set, tokenizer, model.config.max_length, settings.packed)
    heldout = conversation_rows(heldout_set, tokenizer, model.config.max_length, packed=True)
    num_rows, num_micro = micro_batches(context)
    loader = RowLoader(rows, num_rows, context.seed, num_micro)
    base_table = skill_table(context, model, tokenizer, NUM_QUESTIONS)

    def evaluate(_step: int) -> dict[str, float]:
        nats, num_tokens = heldout_nats(model, heldout, context.runtime)
        return {"heldout_loss_nats": nats / num_tokens}

    speak = speaking(context, model, tokenizer, _openings(heldout_set, tokenizer))

    def watch(step: int) -> dict[str, float]:
        speak(step)
        return evaluate(step)

    before = watch(0)["heldout_loss_nats"]
    adapter, num_steps = adapt(context, model), settings.steps(loader.num_steps_per_epoch)
    totals = train(context, model, next_token, loader.batches, num_steps, watch, adapter)
    adapted = settle(context, model, adapter, parent)
    save(model, tokenizer, context.folder / "model", context.provenance(totals.steps, parent))
    table = skill_table(context, model, tokenizer, NUM_QUESTIONS)
    ended, replies = end_of_turn_rate(context, model, tokenizer, heldout_set)
    write_json(context.folder / "samples.json", replies[:12])
    return {
        "heldout_loss_nats_before": before,
        **evaluate(totals.steps),
        "end_of_turn_rate": ended,
        "exact_match": {skill: row["rate"] for skill, row in table.items()},
        "exact_match_base": {skill: row["rate"] for skill, row in base_table.items()},
        "conversations": len(train_set),
        "left_out": len(left_out),
        **({} if context.settings.votes is None else {"edited_answers": len(edited_answers(context))}),
        "dropped_too_long": rows.num_dropped,
        "scored_tokens": int(rows.mask.sum()),
        "tokens_per_second": totals.tokens_per_second,
        "steps": totals.steps,
        **adapted,
    }


def _openings(records: list[Conversation], tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """The first of the held-out conversations that an answer can follow: the last question, and the ids of all."""
    asked = [record["messages"][:-1] for record in records if record["messages"][-1]["role"] == "assistant"]
    return [(turns[-1]["content"], render(turns, tokenizer, reply=True)[0]) for turns in asked[:50] if turns]


def conversations(context: Context, left_out: list[str]) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out conversations of all sources. left_out gets a line for each row that teaches nothing."""
    settings = context.settings
    train_set: list[Conversation] = []
    heldout: list[Conversation] = []
    for name in settings.sources:
        if name == "world":
            train_set += context.world.conversations(settings.num_conversations, "train")
            heldout += context.world.conversations(max(100, settings.num_conversations // 20), "heldout")
        else:
            found = list(read_conversations(context.source(name), context.root, left_out))
            cut = max(1, round(len(found) * settings.heldout_fraction))
            heldout += found[:cut]
            train_set += found[cut:]
    train_set += edited_answers(context)
    if not train_set:
        raise DataError(f"[{context.name}] sources {settings.sources} hold no conversation")
    return train_set, heldout


def edited_answers(context: Context) -> list[Conversation]:
    """What people wrote in the place of the answers that they were shown, as conversations; [] without votes."""
    if context.settings.votes is None:
        return []
    return [
        {"messages": [*vote.prompt, {"role": "assistant", "content": vote.edited}]}
        for vote in kept_votes(context)
        if vote.edited is not None
    ]


def conversation_rows(records: list[Conversation], tokenizer: Tokenizer, row_tokens: int, packed: bool) -> Rows:
    """Rows of conversations, scored at what the assistant says."""
    return pack_examples((render(record["messages"], tokenizer) for record in records), row_tokens, packed=packed)


def skill_table(context: Context, model: Transformer, tokenizer: Tokenizer, num: int) -> dict[str, dict[str, Any]]:
    """Exact match by skill on unseen prompts; empty when the recipe does not use the world."""
    if not context.has_world:
        return {}
    questions = [question for batch in evaluation_questions(context, num).values() for question in batch]
    questions = askable(questions, tokenizer, model.config.max_length)
    table, _ = exact_match(Engine(model, tokenizer, context.runtime), tokenizer, questions, max_new_tokens=64)
    return table


def end_of_turn_rate(
    context: Context, model: Transformer, tokenizer: Tokenizer, records: list[Conversation], num: int = 200
) -> tuple[float, list[dict[str, str]]]:
    """Share of greedy replies to held-out prompts that end by themselves, and the replies."""
    prompts = [record["messages"][:-1] for record in records if record["messages"][-1]["role"] == "assistant"]
    limit = model.config.max_length
    kept: list[tuple[str, list[int]]] = []
    for messages in prompts:
        ids = render(messages, tokenizer, reply=True)[0]
        if len(ids) < limit // 2:
            kept.append((messages[-1]["content"], ids))
        if len(kept) == num:
            break
    if not kept:
        return 0.0, []
    engine = Engine(model, tokenizer, context.runtime)
    completions = engine.generate([ids for _, ids in kept], max_new_tokens=limit // 2, temperature=0.0)
    ended = sum(completion.finish_reason == "stop" for completion in completions) / len(completions)
    samples = [{"prompt": text, "sft": c.text} for (text, _), c in zip(kept, completions, strict=True)]
    return ended, samples
