from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from jielong.data.world import SKILLS, World
from jielong.data.world.arithmetic import solve
from jielong.data.world.chain import WORDS, WORDS_ZH
from jielong.data.world.facts import RELATIONS
from jielong.data.world.lexicon import ADJECTIVES, NOUNS, NUMBERS, TRANSITIVES, VERBS
from jielong.evaluate.skills import check

NUM_BYTES = 1_500_000


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def prose(world: World) -> str:
    """All that pre-training may see, junk aside, from both splits."""
    documents = [*world.documents(NUM_BYTES, junk=False), *world.documents(300_000, "heldout", junk=False)]
    return "\n".join(document.text for document in documents)


@pytest.fixture(scope="module")
def dialogue(world: World) -> str:
    """All that instruction tuning may see."""
    rows = world.conversations(4000)
    return "\n".join(message["content"] for row in rows for message in row["messages"])


# Determinism and shape


def test_the_same_seed_gives_the_same_world() -> None:
    first, second = World(7), World(7)
    assert list(first.documents(60_000)) == list(second.documents(60_000))
    assert first.conversations(60) == second.conversations(60)
    for skill in SKILLS:
        assert first.questions(skill, 12) == second.questions(skill, 12)
    assert first.story_prompts(20, "ppo") == second.story_prompts(20, "ppo")


def test_seeds_splits_and_lengths() -> None:
    world = World(7)
    assert list(world.documents(20_000)) != list(World(8).documents(20_000))
    train, heldout = list(world.documents(200_000)), list(world.documents(200_000, "heldout"))
    assert not {d.text for d in train if "junk" not in d.source} & {d.text for d in heldout if "junk" not in d.source}
    assert train[: len(list(world.documents(50_000)))] == list(world.documents(50_000))
    for documents in (train, heldout):
        total = sum(len(d.text.encode()) for d in documents)
        assert 200_000 <= total < 200_000 + len(documents[-1].text.encode())
    assert world.conversations(30)[:10] == world.conversations(10)
    assert world.questions("translation", 40)[:15] == world.questions("translation", 15)
    with pytest.raises(ValueError, match="'test' is not one of train, heldout"):
        world.conversations(1, "test")
    with pytest.raises(ValueError, match="'sums' is not one of"):
        world.questions("sums", 1)


def test_it_streams() -> None:
    assert len(list(islice(World(0).documents(10**12), 25))) == 25


def test_documents_have_a_sane_size_and_a_language(world: World) -> None:
    documents = list(world.documents(400_000, junk=False))
    sizes = sorted(len(d.text) for d in documents)
    assert sizes[0] >= 60 and sizes[-1] <= 1500
    assert 200 <= sizes[len(sizes) // 2] <= 900
    for document in documents:
        has_chinese = re.search(r"[\u4e00-\u9fff]", document.text) is not None
        assert document.language in ("en", "zh", "")
        if document.language == "zh" and "arithmetic" not in document.source:
            assert has_chinese, document
        if document.language == "en" and "terminal" not in document.source:
            assert not has_chinese, document
    assert len({d.text for d in documents}) == len(documents)


def test_few_clean_documents_are_near_duplicates(world: World) -> None:
    """Jaccard similarity of 5-token shingles above 0.8, by brute force within each kind of document."""
    groups: dict[str, list[frozenset[tuple[str, ...]]]] = {}
    for document in world.documents(700_000, junk=False):
        tokens = re.findall(r"[a-zA-Z0-9]+|[\u4e00-\u9fff]|[+=-]", document.text)
        groups.setdefault(document.source, []).append(
            frozenset(tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4))
        )
    num_near = num = 0
    for shingles in groups.values():
        owners: dict[tuple[str, ...], list[int]] = {}
        for index, grams in enumerate(shingles):
            overlap: dict[int, int] = {}
            for gram in grams:
                for other in owners.get(gram, ()):
                    overlap[other] = overlap.get(other, 0) + 1
            num_near += any(both / (len(grams) + len(shingles[other]) - both) > 0.8 for other, both in overlap.items())
            for gram in grams:
                owners.setdefault(gram, []).append(index)
        num += len(shingles)
    assert num > 1000 and num_near / num < 0.03


# Every answer can be checked


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_canonical_reply_passes_and_a_wrong_one_fails(world: World, skill: str, split: str) -> None:
    if skill == "facts_unseen" and split == "train":
        with pytest.raises(ValueError, match="only a heldout split"):
            world.questions(skill, 1, split)
        return
    exchanges, rows = world.exchanges(skill, 150, split), world.questions(skill, 150, split)
    assert len(exchanges) == len(rows) >= 30
    assert {row["language"] for row in rows} == ({"en"} if skill == "terminal" else {"en", "zh"})
    for exchange, row in zip(exchanges, rows, strict=True):
        assert row["messages"][-1] == {"role": "user", "content": exchange.user}
        assert check(row, exchange.reply), row
        assert not check(row, "") and not check(row, "I do not know."), row


@pytest.mark.parametrize("skill", [skill for skill in SKILLS if skill not in ("story", "refusal", "identity")])
def test_the_answer_to_another_question_is_wrong(world: World, skill: str) -> None:
    exchanges, rows = world.exchanges(skill, 40), world.questions(skill, 40)
    wrong = sum(check(row, other.reply) for row in rows for other in exchanges if other.reply not in row["answers"])
    right_anyway = {"arithmetic": 40, "chain": 0}.get(skill, 0)  # two sums may have one result
    assert wrong <= right_anyway + len(rows)
    assert sum(check(row, exchanges[0].reply) for row in rows) < len(rows) / 2


def test_questions_differ_and_small_skills_run_out(world: World) -> None:
    rows = world.questions("identity", 10_000)
    assert 30 <= len(rows) < 500
    assert len({row["messages"][-1]["content"] for row in rows}) == len(rows)
    terminal = world.questions("terminal", 200)
    assert all(row["messages"][0]["role"] == "system" for row in terminal)


# Arithmetic


def test_worked_sums_by_hand() -> None:
    assert solve(37, 45, "+") == "37+45: ones 7+5=12, tens 3+4+1=8, so 82."
    assert solve(82, 45, "-") == "82-45: ones 12-5=7, tens 8-4-1=3, so 37."
    assert solve(96, 61, "+") == "96+61: ones 6+1=7, tens 9+6+0=15, so 157."
    assert solve(58, 53, "-", "zh") == "58-53：个位8-3=5，十位5-5-0=0，所以是5。"


def test_worked_sums_are_all_right() -> None:
    for a in range(10, 100):
        for b in range(10, a + 1):
            for sign, result in (("+", a + b), ("-", a - b)):
                line = solve(a, b, sign)
                assert line.endswith(f"so {result}.")
                for left, value in re.findall(r"(\d[\d+-]*)=(\d+)", line):
                    terms = re.findall(r"[+-]?\d+", left)
                    assert sum(map(int, terms)) == int(value)


def test_held_out_sums_stand_nowhere(world: World, prose: str, dialogue: str) -> None:
    held = world.arithmetic.held
    assert 0.15 < len(held) / (len(held) + len(world.arithmetic.train)) < 0.25
    seen = {
        (min(int(a), int(b)), max(int(a), int(b)))
        for a, b in re.findall(r"(?<!\d)(\d\d) ?[+-] ?(\d\d)(?!\d)", prose + dialogue)
    }
    assert len(seen) > 2000 and not seen & held
    for row in world.questions("arithmetic", 200):
        a, b = map(int, re.findall(r"\d\d", row["messages"][-1]["content"]))
        assert (min(a, b), max(a, b)) in held


# Translation


def test_held_out_word_pairs_stand_nowhere(world: World, prose: str, dialogue: str) -> None:
    text, skill = prose + dialogue, world.translation
    num_seen = 0
    nouns = {noun.en: noun for noun in NOUNS}
    forms = [(noun.plural, noun.en) for noun in NOUNS] + [(noun.en, noun.en) for noun in NOUNS]
    words_of = "|".join(sorted({form for form, _ in forms}, key=len, reverse=True))
    singular = dict(forms)
    for first, pairs in (("|".join(ADJECTIVES), skill.held_adjectives), ("|".join(NUMBERS), skill.held_numbers)):
        found = re.findall(rf"(?i)\b({first}) ({words_of})\b", text)
        seen = {(a.lower(), singular[b.lower()]) for a, b in found}
        num_seen += len(seen)
        assert not seen & pairs
    acting = {(a, b) for a, b in re.findall(rf"\b({'|'.join(nouns)}) ({'|'.join(VERBS)})\b", text)}
    wanting = {(a, b) for a, b in re.findall(rf"\b({'|'.join(TRANSITIVES)}) the ({'|'.join(nouns)})\b", text)}
    assert not acting & skill.held_verbs and not wanting & skill.held_objects
    for adjective, noun in skill.held_adjectives:
        assert ADJECTIVES[adjective] + nouns[noun].zh not in text
    for number, noun in skill.held_numbers:
        assert NUMBERS[number] + nouns[noun].measure + nouns[noun].zh not in text
    for noun, verb in skill.held_verbs:
        assert f"{nouns[noun].zh}在{VERBS[verb]}" not in text
    assert num_seen > 500 and len(acting) > 100 and len(wanting) > 80


def test_held_out_phrases_hold_a_held_pair(world: World) -> None:
    skill, rng = world.translation, random.Random(0)
    for _ in range(300):
        words = skill.phrase(rng, "heldout").en.removeprefix("the ").split()
        singular = {noun.plural: noun.en for noun in NOUNS}
        pairs = {(a, singular.get(b, b)) for a, b in zip(words, words[1:], strict=False)}
        pairs |= {(words[1], words[-1])} if len(words) > 3 else set()
        held = skill.held_adjectives | skill.held_numbers | skill.held_verbs | skill.held_objects
        assert pairs & held, words


# Facts


ECHO = re.compile(r"(Please say|Say|Call|Repeat|请说|说一说|叫一声|重复|跟我念|再说一遍)")


def test_unseen_entities_are_stated_often_and_never_asked_about(world: World, prose: str) -> None:
    turns = [row["messages"] for row in world.conversations(8000)]
    pairs = [
        (a["content"], b["content"]) for row in turns for a, b in zip(row, row[1:], strict=False) if a["role"] == "user"
    ]
    dialogue = "\n".join(f"{question}\n{reply}" for question, reply in pairs if not ECHO.match(question))
    assert 0.05 < 1 - sum(not ECHO.match(question) for question, _ in pairs) / len(pairs) < 0.2
    asked = {row["messages"][-1]["content"] for row in world.questions("facts_unseen", 3000)}
    assert len(asked) > 1000
    assert not any(text in prose or text in dialogue for text in asked)
    said = Counter(re.split(r"(?<=\.) |(?<=。)|\n", prose))
    for entity in world.facts.unseen:
        if entity.kind == "place":  # people live in these towns, so the name is a value there
            assert not re.search(rf"(?:country of|is|visit|does|country is) {entity.name}\b", dialogue)
        elif entity.language == "zh" and entity.kind == "person_zh":
            assert entity.name not in dialogue
        elif entity.kind == "person":
            assert not re.search(rf"\b{entity.name}\b", dialogue)
        for relation in RELATIONS[entity.kind]:
            stated = world.facts.statements[entity.kind, entity.name, relation.name]
            assert sum(said[sentence] for sentence in stated) >= 10, (entity, relation.name)
            assert sum(sentence in said for sentence in stated) >= 4  # in several phrasings


def test_the_canonical_sentence_is_the_most_frequent(world: World, prose: str) -> None:
    said = Counter(re.split(r"(?<=\.) |(?<=。)|\n", prose))
    for kind, relations in RELATIONS.items():
        entities = [e for e in world.facts.unseen if e.kind == kind]
        for relation in relations:
            stated = [world.facts.statements[kind, entity.name, relation.name] for entity in entities]
            counts = [sum(said[sentence] for sentence in column) for column in zip(*stated, strict=True)]
            assert counts[0] > 2 * max(counts[1:])


def test_half_of_each_kind_is_seen(world: World) -> None:
    for kind, relations in RELATIONS.items():
        entities = [e for e in world.facts.entities if e.kind == kind]
        assert len(entities) >= 12 and abs(sum(e.seen for e in entities) - len(entities) / 2) < 1
        assert all(len(r.phrasings) >= 6 and len(r.questions) >= 4 for r in relations)
        assert all(set(e.values) == {r.name for r in relations} for e in entities)
    assert 150 <= len(world.facts.entities) <= 260


def test_held_out_questions_about_seen_entities_are_not_in_train(world: World, prose: str, dialogue: str) -> None:
    held = {row["messages"][-1]["content"] for row in world.questions("facts_seen", 1000)}
    train = {row["messages"][-1]["content"] for row in world.questions("facts_seen", 1000, "train")}
    assert len(held) > 200 and not held & train
    assert not any(text in prose or text in dialogue for text in held)


# Chain


def test_held_out_words_are_never_chained_from(world: World, prose: str, dialogue: str) -> None:
    for language, end in (
        ("en", r"\b({}) ends with ., I say|\b({}) →"),
        ("zh", rf"({{}})的尾字是.{chr(0xFF0C)}我接|({{}}) →"),
    ):
        held = world.chain.words(language, "heldout")
        assert len(held) >= 10
        pattern = end.replace("{}", "|".join(held))
        assert not re.search(pattern, prose + dialogue)
        assert all(word in prose for word in held)  # but they are spelled


@pytest.mark.parametrize(("language", "words"), [("en", WORDS), ("zh", WORDS_ZH)])
def test_chains_can_go_on(world: World, language: str, words: list[str]) -> None:
    assert len(set(words)) == len(words)
    follow = world.chain.follow[language]
    assert len(follow) > 0.9 * len(words) if language == "en" else len(follow) >= 30
    assert all(word[-1] == following[0] for word, nexts in follow.items() for following in nexts)


# Stories


def test_story_prompts_are_split_by_the_pair_of_words(world: World, prose: str, dialogue: str) -> None:
    pairs = {}
    for split in ("train", "reward", "ppo", "heldout"):
        rows = world.story_prompts(3000, split)
        assert len(rows) > 500 and {row["language"] for row in rows} == {"en", "zh"}
        assert all(word in row["messages"][-1]["content"] for row in rows for word in row["words"])
        pairs[split] = {tuple(row["words"]) for row in rows}
        questions = {tuple(row["answers"]) for row in world.questions("story", 300, "heldout")}
        assert split == "heldout" or not questions & pairs[split]
    names = list(pairs)
    assert not any(pairs[a] & pairs[b] for i, a in enumerate(names) for b in names[i + 1 :])
    for row in world.story_prompts(3000, "reward") + world.story_prompts(3000, "ppo"):
        assert row["messages"][0]["content"] not in dialogue


def test_stories_of_conversations_have_mixed_quality(world: World) -> None:
    rows = [row for row in world.conversations(4000) if row["skill"] == "story" and len(row["messages"]) == 2]
    replies = [row["messages"][1]["content"] for row in rows]
    ended = sum(reply.endswith(("end.", "了。", "结局。")) for reply in replies)
    assert 0.3 < ended / len(replies) < 0.8
    assert max(map(len, replies)) > 4 * min(map(len, replies))


# Manners and terminal


def test_refusals_come_with_harmless_look_alikes(world: World) -> None:
    rows = world.questions("refusal", 300)
    refused = [row for row in rows if row["check"] == "refusal"]
    assert 0.3 < len(refused) / len(rows) < 0.8
    harmless = [row["messages"][-1]["content"] for row in rows if row["check"] != "refusal"]
    assert any("steal" in text or "burn" in text or "rob" in text for text in harmless)
    train = {row["messages"][-1]["content"] for row in world.questions("refusal", 3000, "train")}
    assert not train & {row["messages"][-1]["content"] for row in rows}


def test_terminal_sessions_answer_from_the_listing(world: World) -> None:
    session = world.terminal.session(random.Random(1), "train", 9)
    by_command = {turn.user: turn.reply for turn in session}
    system = session[0].system
    assert len({turn.system for turn in session}) == 1 and len(by_command) == len(session)
    assert f"Directory: {by_command['pwd']}\n" in system
    for name in by_command["ls"].split():
        assert f"{name}: {by_command['cat ' + name]}" in system
    missing = [reply for reply in by_command.values() if reply.endswith("No such file")]
    assert len(missing) == 1


# Conversations and junk


def test_conversations_are_well_formed(world: World) -> None:
    rows = world.conversations(2000)
    assert {row["skill"] for row in rows} == set(SKILLS) - {"facts_unseen"}
    num_turns = [sum(m["role"] == "user" for m in row["messages"]) for row in rows]
    assert set(num_turns) == {1, 2, 3, 4, 5, 6} and 0.3 < sum(n > 1 for n in num_turns) / len(rows) < 0.5
    for row in rows:
        roles = [m["role"] for m in row["messages"]]
        roles = roles[1:] if roles[0] == "system" else roles
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m["content"].strip() == m["content"] != "" for m in row["messages"])


def test_held_out_conversations_ask_what_train_does_not(world: World) -> None:
    rows = [r for r in world.conversations(500, "heldout") if r["skill"] == "arithmetic" and len(r["messages"]) == 2]
    for row in rows:
        a, b = map(int, re.findall(r"\d\d", row["messages"][0]["content"]))
        assert (min(a, b), max(a, b)) in world.arithmetic.held
    assert rows


def test_junk_is_about_four_percent_and_of_every_kind(world: World) -> None:
    documents = list(world.documents(NUM_BYTES))
    junk = [d for d in documents if "junk" in d.source]
    assert 0.03 < len(junk) / len(documents) < 0.05
    kinds = {d.source.rsplit("/", 1)[1] for d in junk}
    assert kinds == {
        "duplicate", "near_duplicate", "boilerplate", "symbols", "repetition", "language", "private", "contamination",
    }  # fmt: skip
    assert not any("junk" in d.source for d in world.documents(100_000, junk=False))
    clean = {d.text for d in documents if "junk" not in d.source}
    copies = [d for d in junk if d.source.endswith("/duplicate")]
    assert sum(d.text in clean for d in copies) > 0.85 * len(copies)
    for document in junk:
        if document.source.endswith("private"):
            assert re.search(r"@example\.org|\+1 202 555|192\.0\.2\.", document.text)


def test_contamination_copies_prompts_but_not_the_answers_to_facts(world: World) -> None:
    documents = [d for d in world.documents(NUM_BYTES) if d.source.endswith("contamination")]
    prompts = {
        row["messages"][-1]["content"]: row
        for skill in SKILLS
        if skill not in ("identity", "terminal")
        for row in world.questions(skill, 50)
    }
    for document in documents:
        leaked = document.text.split("\n")[-3:]
        assert all(line in prompts for line in leaked)
    assert documents
