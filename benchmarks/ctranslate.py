"""CTranslate2 on a translator of ours, which it reads nearly as a Marian model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jielong.generate.beam import BeamConfig, Hypothesis


def their_translator(folder: Path, target: Path, start: int, end: int, kind: str, threads: int) -> Any:
    """A `ctranslate2.Translator` of a folder. kind: float32, int8, ... target: where it may write its own form.

    Its own loader takes Marian's last token for padding and begins a target with zeros; ours has neither.
    Raises ImportError where it is not installed.
    """
    import ctranslate2
    from ctranslate2.converters import transformers as theirs
    from transformers import AutoConfig

    words = [word(number) for number in range(AutoConfig.from_pretrained(folder).vocab_size)]

    class Loader(theirs.MarianMTLoader):
        def get_model_spec(self, model: Any) -> Any:
            model.config.normalize_before = model.config.normalize_embedding = False
            return theirs.BartLoader.get_model_spec(self, model)

        def set_decoder(self, spec: Any, decoder: Any) -> None:
            theirs.BartLoader.set_decoder(self, spec, decoder)

        def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
            config.bos_token = config.decoder_start_token = word(start)
            config.eos_token = config.unk_token = word(end)

        def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
            return list(words)

    theirs._MODEL_LOADERS["MarianConfig"] = Loader()
    theirs.TransformersConverter(str(folder)).convert(str(target), force=True)
    return ctranslate2.Translator(str(target), compute_type=kind, intra_threads=threads)


def word(number: int) -> str:
    """What an id is called there."""
    return f"t{number}"


def ctranslate_search(
    translator: Any, end: int, batches: Sequence[Sequence[Sequence[int]]], config: BeamConfig, most: int
) -> list[list[Hypothesis]]:
    """The hypotheses of every source of every batch, best first. Only penalty = "length" is theirs too."""
    found = []
    for sources in batches:
        made = translator.translate_batch(
            [[word(number) for number in source] for source in sources], beam_size=config.beam,
            num_hypotheses=config.num_best, length_penalty=config.length_penalty, max_decoding_length=most,
            return_scores=True, max_batch_size=len(sources),
        )  # fmt: skip
        for result in made:
            pairs = zip(result.hypotheses, result.scores, strict=True)
            found.append([Hypothesis([*map(_number, words), end], score, 0.0) for words, score in pairs])
    return found


def _number(word: str) -> int:
    return int(word.removeprefix("t"))
