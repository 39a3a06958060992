"""The stage `translate`: two stacks learn to turn the sentences of one language into those of another."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from jielong.data.buckets import PairLoader, pair_batch
from jielong.data.pairs import Pair, PairLedger, read_pairs, without
from jielong.errors import DataError
from jielong.evaluate.translation import bleu_by_length, corpus_scores
from jielong.folder import save, save_recurrent_folder
from jielong.generate.beam import BeamConfig
from jielong.generate.decoders import TranslationModel
from jielong.generate.translator import Translator, source_ids, start_id
from jielong.model.config import ModelConfig
from jielong.model.recurrent import Recurrent, RecurrentConfig
from jielong.model.structure import StructuredTransformer
from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.stages.context import Context, write_json
from jielong.stages.training import train
from jielong.tensors import write_tensors
from jielong.tokenizer import Tokenizer
from jielong.train.compiling import uncompiled
from jielong.train.objectives import translation
from jielong.train.parallel import wait_for_all
from jielong.train.whole import whole_model

NUM_SAMPLES = 24
Encoded = tuple[list[Sequence[int]], list[Sequence[int]]]  # sources and targets, as the model reads them


def run_translate(context: Context) -> dict[str, Any]:
    """Train on the pairs, average the last weights, and measure on validation pairs that no training pair repeats."""
    settings = context.settings
    tokenizer = Tokenizer.load(context.folder_of("tokenizer") / "model")
    training, validation, ledger = read_text(context)
    encoded = encode(tokenizer, training, settings.context_tokens, ledger)
    write_json(context.folder / "pairs.json", ledger.__dict__)
    _tell(context, ledger)
    heldout = encode(tokenizer, validation, settings.context_tokens, None)
    parts = context.runtime.world_size
    loader = PairLoader(*encoded, settings.batch_tokens, context.seed, settings.accumulate, parts)
    model = _beginning(context, tokenizer.vocab_size)
    watch = _Watch(context, model, tokenizer, validation, heldout)
    torch.manual_seed(derive_seed(context.seed, "dropout"))  # a resumed run goes on with the state it left
    num_steps = settings.steps(loader.num_steps_per_epoch)
    objective = translation(settings.label_smoothing)
    totals = train(context, model, objective, loader.batches, num_steps, watch.evaluate)
    watch.average()
    _save(context, model, tokenizer, totals.steps)
    context.progress.say(f"{context.name}: translating {len(validation)} validation sentences")
    figures = watch.measure()
    epochs = totals.steps / loader.num_steps_per_epoch
    return {
        **figures,
        "heldout_loss_nats": watch.loss(model),
        "last_heldout_loss_nats": watch.last["heldout_loss_nats"],
        "pairs": len(encoded[0]),
        "validation_pairs": len(validation),
        **{name: value for name, value in ledger.__dict__.items() if name != "named"},
        "padding_share": loader.padding_share,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": epochs,
        "epoch_seconds": totals.seconds / epochs,
        "tokens_per_second": totals.tokens_per_second,
        "steps": totals.steps,
    }


def read_text(context: Context) -> tuple[list[Pair], list[Pair], PairLedger]:
    """(training pairs, validation pairs, what was left out). Raises DataError when either has none."""
    settings, ledger = context.settings, PairLedger()
    languages = settings.from_language, settings.to_language
    sides = [[context.source(name) for name in names] for names in (settings.sources, settings.validation)]
    validation = list(read_pairs(sides[1], context.root, languages, PairLedger()))
    training = list(without(read_pairs(sides[0], context.root, languages, ledger), validation, ledger))
    for what, pairs in (("sources", training), ("validation", validation)):
        if not pairs:
            raise DataError(
                f"[{context.name}] {what} {list(settings.__dict__[what])} hold no pair "
                f"({ledger.pairs_in} read, {ledger.empty} with an empty side, {ledger.contaminated} in validation)"
            )
    return training, validation, ledger


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair], most: int, ledger: PairLedger | None) -> Encoded:
    """Ids of both sides. A pair of more than `most` tokens on a side is left out and counted in the ledger.

    Without a ledger, as for validation, it is an error instead: a figure must be of all its sentences.
    """
    sources, targets = list[Sequence[int]](), list[Sequence[int]]()  # arrays: 4 bytes an id, a list of int takes 36
    start, end = start_id(tokenizer), tokenizer.eos_id or 0
    for text, translated in pairs:
        source = array("i", source_ids(tokenizer, tokenizer.encode(text)))
        target = array("i", (start, *tokenizer.encode(translated), end))
        longest = max(len(source), len(target))
        if longest <= most:
            sources.append(source)
            targets.append(target)
        elif ledger is not None:
            ledger.too_long += 1
        else:
            raise DataError(
                f"a validation pair has {longest} tokens and context_tokens is {most}; raise it: {text[:60]!r}"
            )
    if not sources:
        raise DataError(f"all {len(pairs)} pairs have more than context_tokens = {most} tokens; raise it")
    return sources, targets


def build(context: Context, vocab_size: int) -> TranslationModel:
    """The model that the settings name, without weights."""
    settings = context.settings
    sizes = settings.model.sizes()
    if settings.architecture == "transformer":
        return Transformer(ModelConfig(vocab_size=vocab_size, max_length=settings.context_tokens, **sizes))
    if settings.architecture == "structured":  # source and target may stand behind each other
        config = ModelConfig(vocab_size=vocab_size, max_length=2 * settings.context_tokens, **sizes)
        return StructuredTransformer(config, settings.structure())
    width = settings.recurrent_width or sizes["width"]
    dropout = sizes.get("dropout", 0.0)
    return Recurrent(RecurrentConfig(vocab_size, settings.context_tokens, width, settings.recurrent_layers, dropout))


def _beginning(context: Context, vocab_size: int) -> TranslationModel:
    """The model before its first step; without memory, for `train` to fill, where no process is to hold all of it."""
    if context.runtime.mesh is not None:
        with torch.device("meta"):
            return build(context, vocab_size)
    model = build(context, vocab_size)
    model.init_weights(context.runtime.generator(context.name, "weights"))
    return model.to(context.runtime.device)


def _save(context: Context, model: TranslationModel, tokenizer: Tokenizer, num_steps: int) -> None:
    """The model folder; of a model of the structure lab, which no engine reads, the weights alone."""
    folder, provenance = context.folder / "model", context.provenance(num_steps)
    if isinstance(model, Recurrent):
        save_recurrent_folder(model, tokenizer, folder, provenance)
    elif isinstance(model, StructuredTransformer):
        weights = {name: value.detach().cpu() for name, value in model.named_parameters()}
        write_tensors(context.folder / "weights.safetensors", weights)
    else:
        save(model, tokenizer, folder, provenance)


class _Watch:
    """What is measured on the validation pairs, and the weights to be averaged, which each evaluation leaves.

    They lie beside the checkpoints and go with them: the leading process writes them, all read them, and a run that
    goes on, with however many processes, finds them. Where no process has all weights, an evaluation reads a copy.
    """

    def __init__(
        self, context: Context, model: TranslationModel, tokenizer: Tokenizer, pairs: list[Pair], heldout: Encoded
    ) -> None:
        self._context, self._model, self._pairs, self._heldout = context, model, pairs, heldout
        self._settings, self._tokenizer = context.settings, tokenizer
        self._snapshots = context.checkpoints / "snapshots"  # they go when checkpoints do, and no sooner
        self._objective = translation(0.0)
        self.last: dict[str, float] = {}  # figures of the newest evaluation

    def evaluate(self, step: int) -> dict[str, float]:
        """Loss on all validation pairs, BLEU of greedy translations of the first; keeps the weights of this step."""
        model = whole_model(self._model, self._context.runtime)
        if self._context.leads:
            path = self._snapshots / f"step-{step:06d}.safetensors"
            write_tensors(path, {name: value.detach().cpu() for name, value in model.named_parameters()})
            for old in snapshots_in(self._snapshots)[: -self._settings.average_last]:
                old.unlink()
        shown = self._pairs[: self._settings.watch_pairs]
        scores = self._scores(self._translate(model, shown, 1), shown)
        self.last = {"heldout_loss_nats": self.loss(model), "watched_bleu": scores["bleu"]}
        return self.last

    @torch.no_grad()
    def loss(self, model: TranslationModel) -> float:
        """Nats a token of the validation targets, end included, without smoothing."""
        model.eval()
        runtime, nats, units = self._context.runtime, 0.0, 0
        order = sorted(range(len(self._heldout[0])), key=lambda index: len(self._heldout[1][index]))
        for first in range(0, len(order), 64):
            chosen = order[first : first + 64]
            batch = pair_batch(*([side[index] for index in chosen] for side in self._heldout)).to(runtime.device)
            with runtime.autocast():
                nats += float(self._objective(model, batch)[0])
            units += batch.num_units
        return nats / units

    def average(self) -> None:
        """The model's weights, all of which every process has by now, become the mean of the last evaluations'."""
        wait_for_all(self._context.runtime)  # the last of them is being written
        with torch.no_grad(), ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in snapshots_in(self._snapshots)]
            for name, parameter in self._model.named_parameters():  # one of it at a time, not all the models
                parameter.copy_(torch.stack([file.get_tensor(name).double() for file in files]).mean(dim=0))

    def measure(self) -> dict[str, Any]:
        """BLEU and chrF of all validation pairs, by beam search and greedily, and by the source's length."""
        settings = self._settings
        beamed, greedy = (self._translate(self._model, self._pairs, beam) for beam in (settings.beam, 1))
        texts, references = ([pair[side] for pair in self._pairs] for side in (0, 1))
        samples = [
            {"prompt": text, "reference": reference, "translation": found}
            for text, reference, found in zip(texts, references, beamed, strict=True)
        ]
        write_json(self._context.folder / "samples.json", samples[:NUM_SAMPLES])
        return {
            **self._scores(beamed, self._pairs),
            "greedy_bleu": self._scores(greedy, self._pairs)["bleu"],
            "bleu_by_source_words": bleu_by_length(texts, beamed, references, settings.to_language),
            "averaged_evaluations": len(snapshots_in(self._snapshots)),
        }

    def _translate(self, model: TranslationModel, pairs: Sequence[Pair], beam: int) -> list[str]:
        config = BeamConfig(beam, self._settings.length_penalty)
        with uncompiled(model):
            found = Translator(model, self._tokenizer).translate([text for text, _ in pairs], config)
        return [best[0].text for best in found]

    def _scores(self, found: Sequence[str], pairs: Sequence[Pair]) -> dict[str, Any]:
        return corpus_scores(found, [reference for _, reference in pairs], self._settings.to_language)


def snapshots_in(folder: Path) -> list[Path]:
    """The weights that evaluations left, by rising step; by name they would not lie so behind step 999,999."""
    return sorted(folder.glob("step-*.safetensors"), key=lambda path: int(path.stem.removeprefix("step-")))


def _tell(context: Context, ledger: PairLedger) -> None:
    """Say what was left out of the training pairs, where anything was."""
    for count, what in (
        (ledger.empty, "with an empty side"),
        (ledger.contaminated, f"that validation has, named in {context.folder / 'pairs.json'}"),
        (ledger.too_long, f"longer than context_tokens = {context.settings.context_tokens}"),
    ):
        if count:
            context.progress.say(f"{context.name}: {count} of {ledger.pairs_in} pairs left out: {what}")
