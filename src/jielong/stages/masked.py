"""The stage `mlm`: an encoder learns to guess hidden tokens, and whether one text follows another, as BERT did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from jielong.data.cooccurrence import token_vectors
from jielong.data.loader import RowOrder
from jielong.data.masking import MaskedBatch, Masking, masked_batch
from jielong.data.sentence_pairs import Pairing, SentenceRows, encode_sentences, make_rows
from jielong.errors import DataError
from jielong.evaluate.masked import frequency_baseline, measure_masked
from jielong.folder import save
from jielong.model.config import ModelConfig
from jielong.model.neighbours import plant_neighbours
from jielong.model.transformer import Transformer
from jielong.plan.count import count_parameters
from jielong.runtime import derive_seed
from jielong.stages.context import Context, each_jsonl
from jielong.stages.training import micro_batches, train
from jielong.tokenizer import Tokenizer
from jielong.train.masked import hidden_token

HELDOUT_BATCH_ROWS = 32
MAX_HELDOUT_ROWS = 2000  # measured often; beyond these a figure hardly moves


def run_mlm(context: Context) -> dict[str, Any]:
    """Pre-train an encoder, and compare with guessing by frequency over the same hidden tokens."""
    settings = context.settings
    tokenizer = Tokenizer.load(context.folder_of("tokenizer") / "model").with_controls(Tokenizer.ENCODER)
    with context.leader_first():
        rows = sentence_rows(context, tokenizer, "documents")
        heldout = sentence_rows(context, tokenizer, "heldout")
    if len(rows) < settings.batch_rows:
        raise DataError(
            f"[{context.name}] the text makes {len(rows)} rows of {settings.context_tokens} tokens, but batch_rows is "
            f"{settings.batch_rows}; lower one of them, or give more text"
        )
    masking = Masking.of(tokenizer, settings.mask_fraction, settings.whole_words)
    model = _new_encoder(context, tokenizer, rows, masking.is_text)
    num_rows, num_micro = micro_batches(context)
    order = RowOrder(len(rows), num_rows * num_micro, context.seed)

    def batches(step: int) -> list[MaskedBatch]:
        # Drawn for the whole step: the same tokens are hidden however it is cut.
        generator = torch.Generator().manual_seed(derive_seed(context.seed, "masks", step))
        return masked_batch(rows, order.indices(step), masking, generator).split(num_rows)

    def evaluate(_step: int) -> dict[str, Any]:
        hidden = heldout_batches(context, heldout, masking)
        scores = measure_masked(model, hidden, context.runtime, settings.next_sentence)
        found = {"heldout_masked_nats": scores.loss_nats, "heldout_masked_accuracy": scores.accuracy}
        if scores.next_sentence_accuracy is not None:
            found["heldout_next_sentence_accuracy"] = scores.next_sentence_accuracy
        return found

    num_steps = settings.steps(order.num_steps_per_epoch)
    totals = train(context, model, hidden_token(settings.next_sentence), batches, num_steps, evaluate)
    save(model, tokenizer, context.folder / "model", context.provenance(totals.steps))
    frequency = frequency_baseline(rows, masking.is_text, heldout_batches(context, heldout, masking))
    return {
        **evaluate(totals.steps),
        "frequency_nats": frequency[0],
        "frequency_accuracy": frequency[1],
        **({"random_pair_fraction": float(heldout.random.float().mean())} if settings.next_sentence else {}),
        "rows": len(rows),
        "heldout_rows": min(len(heldout), MAX_HELDOUT_ROWS),
        "text_tokens_lost": rows.num_lost,
        "tokens_per_second": totals.tokens_per_second,
        "tokens_seen": totals.tokens,
        "parameters": sum(count_parameters(model.config).values()),
        "steps": totals.steps,
    }


def _new_encoder(context: Context, tokenizer: Tokenizer, rows: SentenceRows, is_text: torch.Tensor) -> Transformer:
    """The model before its first step: drawn, with what `vectors` and `start` put into it."""
    settings = context.settings
    sizes = settings.model.sizes()
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, max_length=settings.context_tokens, **sizes))
    generator = context.runtime.generator(context.name, "weights")
    model.init_weights(generator)
    if settings.vectors == "counted":
        context.progress.say(f"{context.name}: counting which tokens stand together")
        with torch.no_grad():
            model.embed.weight.copy_(token_vectors(rows, is_text, model.config.width, generator))
    if settings.start == "neighbours":
        plant_neighbours(model, generator)
    return model


def sentence_rows(context: Context, tokenizer: Tokenizer, documents: str) -> SentenceRows:
    """Rows of the corpus's documents or of those held out, made once and kept beside the stage's other files."""
    path = context.folder / f"{documents}.safetensors"
    if path.exists():
        return SentenceRows.load(path)
    settings = context.settings
    context.progress.say(f"{context.name}: encoding {documents}")
    source: Path = context.folder_of("curate") / f"{documents}.jsonl"
    cls_id, sep_id = tokenizer.special_ids[Tokenizer.ENCODER[0]], tokenizer.special_ids[Tokenizer.ENCODER[1]]
    pairing = Pairing(cls_id, sep_id, settings.context_tokens, settings.next_sentence, settings.short_fraction)
    texts = (record["text"] for record in each_jsonl(source))
    sentences = encode_sentences(texts, tokenizer.encode, max(1, pairing.room // 2))
    try:
        rows = make_rows(sentences, pairing, derive_seed(context.seed, "pairs", documents))
    except DataError as error:
        raise DataError(f"[{context.name}] {source.name}: {error}") from None
    if not len(rows):
        raise DataError(f"[{context.name}] {source} makes no row; give longer text or raise heldout_fraction")
    rows.save(path)
    return rows


def heldout_batches(context: Context, rows: SentenceRows, masking: Masking) -> Iterator[MaskedBatch]:
    """The held-out rows, or as many of them from all over, with the same tokens hidden each time."""
    generator = torch.Generator().manual_seed(derive_seed(context.seed, "heldout masks"))
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), MAX_HELDOUT_ROWS)).round().long()
    for indices in chosen.split(HELDOUT_BATCH_ROWS):
        yield masked_batch(rows, indices, masking, generator)
