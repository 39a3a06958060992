"""Facts: stated in pre-training prose in many phrasings, asked about in instruction data for half of the entities only.

Diverse phrasings in shuffled order are what makes a fact extractable by a question later; an entity that is never asked
about shows whether instruction tuning unlocks what pre-training stored.
"""

from __future__ import annotations

import random

from jielong.data.world.entities import Entity, make_entities
from jielong.data.world.exchange import Exchange, fraction
from jielong.data.world.relation import Relation
from jielong.data.world.relations_en import ENGLISH
from jielong.data.world.relations_zh import CHINESE

RELATIONS = {**ENGLISH, **CHINESE}  # kind of entity: what is said of it

HELD_FRACTION = 0.15  # of (seen entity, relation, question): never asked in train, so facts_seen has unseen prompts too
CANONICAL_FRACTION = 0.35  # of the statements in prose
INTERVIEW_FRACTION = 0.12  # of the documents: questions with answers, about seen entities only
LIST_FRACTION = 0.18  # of the documents: one fact each about many entities
# Chance of an entity to be drawn: with these, facts of all kinds are stated about equally often.
_KIND_WEIGHTS = {"person": 5.5, "animal": 4.5, "place": 4.0, "thing": 4.0, "person_zh": 5.0, "place_zh": 4.5}


class Facts:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.entities = make_entities(random.Random(f"entities-{seed}"))
        self.seen = tuple(e for e in self.entities if e.seen)
        self.unseen = tuple(e for e in self.entities if not e.seen)
        self._by_language = {
            language: tuple(e for e in self.entities if e.language == language) for language in ("en", "zh")
        }
        self._weights = {language: self._cumulative(entities) for language, entities in self._by_language.items()}
        self._seen_weights = self._cumulative(self.seen)
        self._unseen_weights = self._cumulative(self.unseen)
        # (entity, relation) -> the questions that train may ask, and those it may not
        self._asked: dict[tuple[str, str, str], tuple[str, ...]] = {}
        self._held: dict[tuple[str, str, str], tuple[str, ...]] = {}
        self.statements: dict[tuple[str, str, str], tuple[str, ...]] = {}  # every sentence for a fact, canonical first
        for entity in self.entities:
            for relation in RELATIONS[entity.kind]:
                key = (entity.kind, entity.name, relation.name)
                held = tuple(q for q in relation.questions if fraction(seed, "ask", *key, q) < HELD_FRACTION)
                self._held[key] = held or relation.questions[-1:]
                self._asked[key] = tuple(q for q in relation.questions if q not in self._held[key])
                words = {"n": entity.name, "v": entity.values[relation.name]}
                stated = [template.format(**words) for template in (relation.canonical, *relation.phrasings)]
                self.statements[key] = tuple(text[0].upper() + text[1:] for text in stated)

    def subjects(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """language -> (name, the name as a canonical sentence begins with it: "ring", "A ring") of every entity."""
        found: dict[str, list[tuple[str, str]]] = {"en": [], "zh": []}
        for entity in self.entities:
            opening = RELATIONS[entity.kind][0].canonical.split("{n}")[0]
            subject = f"{opening}{entity.name}"
            found[entity.language].append((entity.name, subject[0].upper() + subject[1:]))
        return {language: tuple(pairs) for language, pairs in found.items()}

    @staticmethod
    def _cumulative(entities: tuple[Entity, ...]) -> list[float]:
        total, weights = 0.0, []
        for entity in entities:
            total += _KIND_WEIGHTS[entity.kind]
            weights.append(total)
        return weights

    def statement(self, rng: random.Random, entity: Entity, relation: Relation) -> str:
        """One sentence that states the fact; the canonical one more often than any other."""
        stated = self.statements[entity.kind, entity.name, relation.name]
        return stated[0] if rng.random() < CANONICAL_FRACTION else rng.choice(stated[1:])

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language): paragraphs on a few entities; a list of facts; or questions with answers (seen ones).

        Half of the documents put every sentence on a line of its own: a tokenizer gives a name at the start of a line
        another token than after a space, and a reply begins with the name, so facts must be stored under both.
        """
        language = "zh" if rng.random() < 0.25 else "en"
        shape = rng.random()
        if shape < INTERVIEW_FRACTION:
            return self._interview(rng, language), language
        joint = "\n" if rng.random() < 0.5 else "" if language == "zh" else " "
        pool, weights = self._by_language[language], self._weights[language]
        sentences: list[str] = []
        paragraphs: list[str] = []
        if shape < INTERVIEW_FRACTION + LIST_FRACTION:
            for entity in self._several(rng, pool, weights, rng.randint(10, 18)):
                sentences += self._sentences(rng, entity, 1)
            return joint.join(sentences), language
        num_sentences = rng.randint(14, 22) if language == "zh" else rng.randint(9, 16)
        for entity in self._several(rng, pool, weights, 9):
            if len(sentences) < num_sentences:
                said = self._sentences(rng, entity, rng.randint(3, 6))
                sentences += said
                paragraphs.append(joint.join(said))
        return "\n".join(paragraphs), language

    @staticmethod
    def _several(rng: random.Random, pool: tuple[Entity, ...], weights: list[float], num: int) -> list[Entity]:
        drawn = rng.choices(pool, cum_weights=weights, k=num)
        return list({entity.name: entity for entity in drawn}.values())

    def _sentences(self, rng: random.Random, entity: Entity, num: int) -> list[str]:
        relations = RELATIONS[entity.kind]
        chosen = rng.sample(relations, min(num, len(relations)))
        return [self.statement(rng, entity, relation) for relation in chosen]

    def _interview(self, rng: random.Random, language: str) -> str:
        lines: list[str] = []
        while len(lines) < 8:
            entity = rng.choices(self.seen, cum_weights=self._seen_weights)[0]
            if entity.language == language:
                exchange = self._ask(rng, entity, "train")
                lines.append(f"{exchange.user}{'' if language == 'zh' else ' '}{exchange.reply}")
        return "\n".join(lines)

    def _ask(self, rng: random.Random, entity: Entity, split: str) -> Exchange:
        relation = rng.choice(RELATIONS[entity.kind])
        key = (entity.kind, entity.name, relation.name)
        if not entity.seen:
            questions: tuple[str, ...] = relation.questions
        else:
            questions = self._asked[key] if split == "train" else self._held[key]
        answers = (*self.statements[key], entity.values[relation.name])
        return Exchange(rng.choice(questions).format(n=entity.name), answers[0], "one_of", answers, entity.language)

    def exchange(self, rng: random.Random, split: str) -> Exchange:
        """A question about an entity that instruction data asks about; split "heldout": in a phrasing it never used."""
        return self._ask(rng, rng.choices(self.seen, cum_weights=self._seen_weights)[0], split)

    def unseen_exchange(self, rng: random.Random, split: str) -> Exchange:
        """A question about an entity that no conversation ever mentions. It has no train side."""
        if split != "heldout":
            raise ValueError("facts_unseen has only a heldout split: asking in training would make the facts seen")
        return self._ask(rng, rng.choices(self.unseen, cum_weights=self._unseen_weights)[0], split)
