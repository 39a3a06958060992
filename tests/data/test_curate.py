"""The whole curation: every kind of rubbish is found, nothing else is, and the books balance."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from jielong.data.curate import CurateConfig, Ledger, curate
from jielong.data.sources import Document, Source, read_documents
from jielong.data.world import World
from jielong.data.world.junk import KINDS
from jielong.errors import RecipeError

SHARED = Path(__file__).parents[3] / "shared" / "data"
# The world is written from templates, so its phrases come again and again: Gopher's limits for web prose do not fit it.
WORLD_RULES = CurateConfig(
    min_stop_words=0, max_top_grams=(0.8, 0.8, 0.8), max_duplicate_grams=(0.8,) * 6, max_duplicate_lines=0.5,
    max_duplicate_line_characters=0.5,
)  # fmt: skip
STORY = (
    "The old lighthouse keeper of {} kept a diary for {} years. "
    "Every night he wrote about {} and the sea, and went to bed."
)
PLACES = ("Bremen", "Cadiz", "Dover", "Essex", "Faro", "Ghent", "Hull", "Izmir", "Jena", "Kiel")


def run(
    texts: list[str], settings: CurateConfig | None = None, prompts: tuple[str, ...] = ()
) -> tuple[Ledger, list[str]]:
    ledger, kept = curate((Document(text) for text in texts), settings or CurateConfig(), prompts)
    texts = [document.text for document in kept]
    assert ledger.documents_in == ledger.documents_kept + sum(ledger.removed.values())
    assert ledger.documents_kept == len(texts)
    return ledger, texts


def test_one_document_for_each_rule() -> None:
    fine = STORY.format("Bremen", "forty", "storms")
    prompt = "Which animal lives in the attic of the town hall?"
    texts = [
        fine,
        "Short.",
        f"  {fine.upper()}\n",
        fine + " Good.",
        "Der alte Mann schreibt jeden Tag einen Brief an seine Freunde, weil er nicht schlafen kann.",
        "}{#@~|" * 20,
        "5612 7781 9912 4410 7723 4471 9182 6651 2231 8821",
        "Home | Shop | Contact\nAccept all cookies\nAll rights reserved\nThe end of it",
        "Order the best of the day! " * 20,
        f"A riddle for the evening, my friends. {prompt} Nobody at the table knew.",
        "Write to ann.lee@example.org or call +1 202 555 0143; our server 192.0.2.7 is down again.",
    ]
    ledger, kept = run(texts, prompts=(prompt, "Hi"))
    assert kept == [fine, "Write to <EMAIL> or call <PHONE>; our server <IP> is down again."]
    assert ledger.removed == {
        "too_short": 1, "exact_duplicate": 1, "near_duplicate": 1, "language": 1, "symbols": 1, "not_alphabetic": 1,
        "boilerplate": 1, "repeated_phrases": 1, "contamination": 1,
    }  # fmt: skip
    assert ledger.masked == {"email": 1, "phone": 1, "ip": 1}
    assert (ledger.prompts_searched, ledger.prompts_skipped) == (1, 1)
    assert ledger.kept_by_language == {"en": 2}
    assert ledger.examples["too_short"] == ["Short."]


def test_examples_are_few_short_and_masked() -> None:
    texts = ["{}#|" * 40 + f" mail me at someone{i}@example.com" for i in range(9)]
    ledger, _ = run([text[-150:] for text in texts])
    assert ledger.removed == {"symbols": 9}
    assert len(ledger.examples["symbols"]) == 3
    assert all(len(example) <= 120 and "example.com" not in example for example in ledger.examples["symbols"])


def test_each_switch_has_an_effect() -> None:
    fine = STORY.format("Hull", "ten", "whales")
    texts = [
        fine,
        fine,
        fine + " Good.",
        f"{fine} Call +44 20 7946 0958!",
        "Cookie policy\n" + fine + " My word.\n  x  y",
    ]
    prompts = (fine,)
    plain = CurateConfig(
        exact_duplicates=False, near_duplicates=False, mask_pii=False, strip_furniture=False, squeeze_spaces=False,
        contamination_min_tokens=100,
    )  # fmt: skip
    assert run(texts, plain, prompts)[1] == texts
    assert run(texts, prompts=prompts)[1] == []
    assert run(texts, CurateConfig(languages=("zh",)))[0].removed == {"language": 5}


def test_documents_come_as_a_stream_and_the_same_however_batched() -> None:
    texts = [
        STORY.format(place, number, thing)
        for place in PLACES
        for number in ("two", "six", "ninety")
        for thing in PLACES
    ]
    whole = run(texts)
    drawn = 0

    def stream() -> object:
        nonlocal drawn
        for text in texts * 10:
            drawn += 1
            yield Document(text)

    ledger, kept = curate(stream(), CurateConfig())  # type: ignore[arg-type]
    next(kept)
    assert drawn == 512  # one batch, not all 3000
    assert [document.text for document in kept] == whole[1][1:]
    assert ledger.removed["exact_duplicate"] >= 2700


def test_world_junk_is_found_and_nothing_else() -> None:
    world = World(3)
    documents = list(world.documents(600_000))
    prompts = [
        question["messages"][-1]["content"]
        for skill in ("arithmetic", "translation", "chain", "story", "terminal")
        for question in world.questions(skill, 200, "heldout")
    ]
    ledger, kept = curate(documents, WORLD_RULES, prompts)
    survivors = Counter(document.source for document in kept)
    made = Counter(document.source for document in documents)
    clean = [source for source in made if "junk" not in source and source != "world/echo"]
    num_clean, num_lost = sum(made[s] for s in clean), sum(made[s] - survivors[s] for s in clean)
    assert num_lost <= 0.01 * num_clean, ledger.examples
    assert survivors["world/echo"] >= 0.92 * made["world/echo"]  # repetition is what these pages are for
    assert all(made[f"world/junk/{kind}"] for kind in KINDS)
    for kind in ("duplicate", "boilerplate", "symbols", "repetition", "language"):
        assert survivors[f"world/junk/{kind}"] == 0, kind
    assert survivors["world/junk/private"] >= 0.9 * made["world/junk/private"] > 0
    assert min(ledger.masked[kind] for kind in ("email", "phone", "ip")) > 0
    assert ledger.documents_in == len(documents) == ledger.documents_kept + sum(ledger.removed.values())
    again, once_more = curate(world.documents(600_000), WORLD_RULES, prompts)
    assert sum(1 for _ in once_more) == ledger.documents_kept
    assert {**asdict(again), "seconds": 0, "documents_per_second": 0} == {
        **asdict(ledger), "seconds": 0, "documents_per_second": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"languages": ("en", "zhh")}, "did you mean 'zh'"),
        ({"min_characters": 10, "max_characters": 5}, "above max_characters"),
        ({"minhash_bands": 0}, "minhash_bands = 0"),
        ({"minhash_threshold": 1.5}, "minhash_threshold"),
    ],
)
def test_wrong_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        CurateConfig(**settings)  # type: ignore[arg-type]


def test_speed_does_not_hang_on_odd_documents() -> None:
    """Empty ones, one giant line, one character a million times: all are judged, none takes long."""
    rng = random.Random(0)
    odd = [
        "",
        " ",
        "\n" * 1000,
        "a" * 200_000,
        "ab " * 50_000,
        "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(5000)),
    ]
    odd += ["1" * 5000, "@" * 20_000, ":" * 20_000, "1." * 10_000, "- " * 20_000, "\ud800" * 50, "=" * 20_000 + "1 "]
    ledger, kept = run(odd)
    assert kept == []
    assert ledger.seconds < 20


def real(path: str, **options: object) -> list[Document]:
    if not (SHARED / path).exists():
        pytest.skip(f"the shared data set {path} is not here")
    return list(read_documents(Source("real", path, **options), SHARED))  # type: ignore[arg-type]


def test_real_web_pages() -> None:
    """C4 was filtered before: most must pass, its telephone numbers and addresses must not."""
    ledger, kept = curate(real("wiki_c4_demo/c4_demo.jsonl.gz"), CurateConfig())
    texts = [document.text for document in kept]
    assert 0.9 * 300 <= len(texts) < 300
    assert ledger.kept_by_language == {"en": len(texts)}
    assert ledger.masked["email"] >= 5 and not any("@gmail.com" in text for text in texts)


def test_real_encyclopaedia_and_novels() -> None:
    articles = real("wiki_c4_demo/wiki_demo.txt.gz", split="line")
    ledger, kept = curate(articles, CurateConfig())
    assert len(list(kept)) == 30 == ledger.documents_in and not ledger.removed
    novels = real("english_novels/novels.train.jsonl.gz", limit_documents=2)
    ledger, kept = curate(novels, CurateConfig())
    assert len(list(kept)) == 2
    assert ledger.masked == {}
    assert ledger.characters_kept > 0.95 * ledger.characters_in  # line ends become one character
