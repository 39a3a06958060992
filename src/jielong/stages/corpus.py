"""The stages `curate` and `tokenizer`: from sources to clean documents, and from those to a vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from jielong.data.curate import curate
from jielong.data.labelled import read_examples, split_heldout, telling_texts
from jielong.data.pairs import read_sentences
from jielong.data.sources import Document, read_documents
from jielong.data.world import SKILLS
from jielong.errors import DataError
from jielong.recipe.settings import MAX_QUESTIONS_PER_SKILL
from jielong.stages.context import Context, each_jsonl, write_json, writing_jsonl
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render

MEASURED = 51  # odd, so that where two languages take turns both are measured


def evaluation_questions(context: Context, num: int) -> dict[str, list[dict[str, Any]]]:
    """The first num held-out questions of each skill: evaluation asks them, curation removes documents with them."""
    return {skill: context.world.questions(skill, num, "heldout") for skill in SKILLS}


def heldout_texts(context: Context) -> list[str]:
    """The texts of all examples that the tasks of keep_out are examined on, as those tasks will divide them."""
    texts: list[str] = []
    here = next(stage for stage in context.recipe.stages if stage.name == context.name)
    for stage in context.recipe.kept_out(here):
        task = stage.settings
        sources = [context.source(name) for name in task.heldout_sources or task.sources]
        examples = [example for source in sources for example in read_examples(source, context.root, task.task)]
        if not task.heldout_sources:
            examples = split_heldout(examples, task.task, task.heldout_fraction, task.split_seed)[1]
        texts += [text for example in examples for text in telling_texts(example, task.task)]
    return texts


def askable(questions: list[dict[str, Any]], tokenizer: Tokenizer, context_tokens: int) -> list[dict[str, Any]]:
    """The questions that leave room for a reply: a small vocabulary spells some in more tokens than the context has."""
    return [q for q in questions if len(render(q["messages"], tokenizer, reply=True)[0]) < context_tokens]


def run_curate(context: Context) -> dict[str, Any]:
    """Write documents.jsonl and heldout.jsonl, and the ledger of what was removed and why."""
    settings = context.settings
    prompts = list(context.recipe.evaluation_prompts)
    if "world" in settings.sources:
        for skill, questions in evaluation_questions(context, MAX_QUESTIONS_PER_SKILL).items():
            # Facts must stand in the text, asked about or not: only tasks whose answer could be copied count.
            if not skill.startswith("facts"):
                prompts += [question["messages"][-1]["content"] for question in questions]
    prompts += heldout_texts(context)
    ledger, kept = curate(_documents(context, "train"), settings.rules(), prompts)
    num_train = num_heldout = 0
    paths = context.folder / "documents.jsonl", context.folder / "heldout.jsonl"
    with writing_jsonl(paths[0]) as write_training, writing_jsonl(paths[1]) as write_heldout:
        for document in kept:
            for part, is_heldout in _split(document, settings, context.recipe.data.sources):
                (write_heldout if is_heldout else write_training)(asdict(part))
                num_train, num_heldout = num_train + (not is_heldout), num_heldout + is_heldout
        for document in _documents(context, "heldout"):
            write_heldout(asdict(document))
            num_heldout += 1
    if num_train == 0 or num_heldout == 0:
        raise DataError(
            f"[{context.name}] kept {num_train} training and {num_heldout} held-out documents of "
            f"{ledger.documents_in}; "
            f"removed: {ledger.removed}. Check the sources, loosen the rules, or raise heldout_fraction."
        )
    write_json(context.folder / "ledger.json", asdict(ledger))
    figures = asdict(ledger)
    figures.pop("examples", None)
    figures["heldout_documents"] = num_heldout
    return figures


def _documents(context: Context, split: str) -> Iterator[Document]:
    """Documents of all sources; only the world has a held-out split of its own."""
    settings = context.settings
    for name in settings.sources:
        if name == "world":
            world = context.recipe.data.world
            assert world is not None  # the recipe's cross-check
            num_bytes = int((world.megabytes if split == "train" else world.heldout_megabytes) * 1e6)
            yield from _counted(
                context, context.world.documents(num_bytes, split, junk=world.junk and split == "train")
            )
        elif split == "train":
            yield from _counted(context, read_documents(context.source(name), context.root))


def _counted(context: Context, documents: Iterable[Document]) -> Iterator[Document]:
    for number, document in enumerate(documents, start=1):
        if number % 500 == 0:
            context.progress.update(number, documents=number)
        yield document


def _split(document: Document, settings: Any, divisible: Container[str]) -> Iterator[tuple[Document, bool]]:
    """Divide one kept document between training and held-out text: whole, by its hash, or by its tail.

    divisible: names of the sources to be divided; the world's documents are not, for it has a held-out split.
    """
    if document.source not in divisible or settings.heldout_fraction == 0:
        yield document, False
    elif settings.heldout == "tail":
        cut = round(len(document.text) * (1 - settings.heldout_fraction))
        for text, is_heldout in ((document.text[:cut], False), (document.text[cut:], True)):
            if text and not text.isspace():  # of a short text one part may be
                yield Document(text, document.language, document.source), is_heldout
    else:
        digest = int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:4], "big")
        yield document, digest / 2**32 < settings.heldout_fraction


def run_tokenizer(context: Context) -> dict[str, Any]:
    """Train a byte-level BPE on text that is kept, or on pairs, and measure it on text that it was not trained on."""
    settings = context.settings
    texts, heldout = _sentences(context) if settings.sources else _kept_text(context)
    budget, sample = int(settings.max_megabytes * 1e6), []
    for text in texts:
        sample.append(text)
        budget -= len(text.encode())
        if budget <= 0:
            break
    tokenizer = Tokenizer.train(sample, settings.vocab_size)
    tokenizer.save(context.folder / "model")
    sizes: dict[str, list[int]] = {}
    exact = True
    for text, language in heldout:
        ids = tokenizer.encode(text)
        exact = exact and tokenizer.decode(ids) == text
        for key in ("all", language or "unknown"):
            counts = sizes.setdefault(key, [0, 0])
            counts[0] += len(text.encode())
            counts[1] += len(ids)
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": {key: num_bytes / max(num_ids, 1) for key, (num_bytes, num_ids) in sorted(sizes.items())},
        "round_trip_exact": exact,
        "training_documents": len(sample),
    }


def _kept_text(context: Context) -> tuple[Iterable[str], Iterable[tuple[str, str]]]:
    """Curated documents, and (text, language) of the held-out ones, read as they are asked for."""
    corpus = context.folder_of("curate")
    texts = (record["text"] for record in each_jsonl(corpus / "documents.jsonl"))
    heldout = ((record["text"], record["language"]) for record in each_jsonl(corpus / "heldout.jsonl"))
    return texts, heldout


def _sentences(context: Context) -> tuple[Iterable[str], Iterable[tuple[str, str]]]:
    """Sentences of parallel text, all languages together; every so manieth measures and is not learned from."""
    found = [pair for name in context.settings.sources for pair in read_sentences(context.source(name), context.root)]
    if len(found) < 2:
        raise DataError(f"[{context.name}] sources {list(context.settings.sources)} hold no sentences to learn from")
    return [text for index, (text, _) in enumerate(found) if index % MEASURED], found[::MEASURED]
