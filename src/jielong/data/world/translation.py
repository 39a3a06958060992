"""Phrases in English and Chinese, built from one lexicon, so that unseen combinations can be held out and checked."""

from __future__ import annotations

import random
from dataclasses import dataclass

from jielong.data.world.exchange import Exchange, fraction
from jielong.data.world.lexicon import ADJECTIVES, NOUNS, NUMBERS, TRANSITIVES, VERBS, Noun

HELD_FRACTION = (
    0.2  # of the word pairs (number or adjective + noun, noun + verb); a phrase is held out when any pair is
)

_TO_CHINESE = (
    "Translate: {}",
    "Translate into Chinese: {}",
    "翻译：{}",
    "翻译:{}",
    "请翻译成中文：{}",
    "How do you say “{}” in Chinese?",
    "“{}”用中文怎么说？",
)
_TO_ENGLISH = (
    "翻译：{}",
    "翻译:{}",
    "Translate: {}",
    "Translate into English: {}",
    "请翻译成英文：{}",
    "“{}”用英语怎么说？",
    "What does “{}” mean in English?",
)
_TITLES = (
    "The words of the day",
    "Words and what they mean to us",
    "The list of words to learn",
    "这是今天的一些词和它们的意思",
    "我们要学的一些词",
)
_LINES = ("{en}: {zh}", "{zh}：{en}", "{en} = {zh}", "{zh} = {en}", "{zh} means {en}", "{en}就是{zh}", "{en} is {zh}")


@dataclass(frozen=True)
class Phrase:
    en: str
    zh: str
    other_zh: str = ""  # a second correct Chinese form


class Translation:
    """Draws phrases whose word pairs are all trained, or of which at least one was never shown."""

    def __init__(self, seed: int) -> None:
        def held(first: tuple[str, ...], second: tuple[str, ...]) -> frozenset[tuple[str, str]]:
            return frozenset((x, y) for x in first for y in second if fraction(seed, "pair", x, y) < HELD_FRACTION)

        nouns = tuple(noun.en for noun in NOUNS)
        actors = tuple(noun.en for noun in NOUNS if noun.animate)
        self.held_adjectives = held(tuple(ADJECTIVES), nouns)
        self.held_numbers = held(tuple(NUMBERS), nouns)
        self.held_verbs = held(actors, tuple(VERBS))
        self.held_objects = held(tuple(TRANSITIVES), nouns)
        self._actors = tuple(noun for noun in NOUNS if noun.animate)
        self._actions = tuple(VERBS)
        self._qualities = tuple(ADJECTIVES)
        self._counts = tuple(NUMBERS)
        self._relations = tuple(TRANSITIVES)

    def phrase(self, rng: random.Random, split: str) -> Phrase:
        """split "train": no pair of the phrase is held out. "heldout": at least one is."""
        while True:
            phrase, held = self._draw(rng)
            if held == (split == "heldout"):
                return phrase

    def _draw(self, rng: random.Random) -> tuple[Phrase, bool]:
        shape = rng.random()
        if shape < 0.2:
            return self._counted(rng.choice(NOUNS), rng.choice(self._counts))
        if shape < 0.5:
            return self._described(rng.choice(NOUNS), rng.choice(self._qualities))
        actor = rng.choice(self._actors)
        if shape < 0.65:
            return self._acting(Phrase(f"the {actor.en}", actor.zh), False, actor, rng.choice(self._actions))
        described, held = self._described(actor, rng.choice(self._qualities))
        if shape < 0.85:
            return self._acting(described, held, actor, rng.choice(self._actions))
        verb, target = rng.choice(self._relations), rng.choice(NOUNS)
        phrase = Phrase(f"the {actor.en} {verb} the {target.en}", f"{actor.zh}{TRANSITIVES[verb]}{target.zh}")
        return phrase, (verb, target.en) in self.held_objects

    def _counted(self, noun: Noun, number: str) -> tuple[Phrase, bool]:
        phrase = Phrase(f"{number} {noun.plural}", f"{NUMBERS[number]}{noun.measure}{noun.zh}")
        return phrase, (number, noun.en) in self.held_numbers

    def _described(self, noun: Noun, adjective: str) -> tuple[Phrase, bool]:
        quality = ADJECTIVES[adjective]
        other = f"{quality}的{noun.zh}" if not quality.endswith("的") else ""
        phrase = Phrase(f"the {adjective} {noun.en}", f"{quality}{noun.zh}", other)
        return phrase, (adjective, noun.en) in self.held_adjectives

    def _acting(self, subject: Phrase, held: bool, actor: Noun, verb: str) -> tuple[Phrase, bool]:
        action = f"在{VERBS[verb]}"
        other = f"{subject.other_zh}{action}" if subject.other_zh else ""
        return Phrase(f"{subject.en} {verb}", subject.zh + action, other), held or (actor.en, verb) in self.held_verbs

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language): bilingual lines (language ""), or sentences in one language; never a held-out pair."""
        shape = rng.random()
        phrases = [self.phrase(rng, "train") for _ in range(rng.randint(8, 18))]
        if shape < 0.12:
            return " ".join(f"{p.en[0].upper()}{p.en[1:]}." for p in phrases), "en"
        if shape < 0.24:
            phrases += [self.phrase(rng, "train") for _ in range(12)]
            return "".join(f"{p.zh}。" for p in phrases), "zh"
        if shape < 0.34:
            return self._word_list(rng), ""
        forms = rng.sample(_LINES, 2)
        return "\n".join(rng.choice(forms).format(en=p.en, zh=p.zh) for p in phrases), ""

    @staticmethod
    def _word_list(rng: random.Random) -> str:
        words = [(noun.en, noun.zh) for noun in NOUNS]
        words += [*ADJECTIVES.items(), *VERBS.items(), *NUMBERS.items(), *TRANSITIVES.items()]
        lines = [rng.choice(_LINES).format(en=en, zh=zh) for en, zh in rng.sample(words, 24)]
        return "\n".join([rng.choice(_TITLES), *lines])

    def exchange(self, rng: random.Random, split: str) -> Exchange:
        phrase = self.phrase(rng, split)
        if rng.random() < 0.5:
            answers = (phrase.zh, phrase.other_zh) if phrase.other_zh else (phrase.zh,)
            return Exchange(rng.choice(_TO_CHINESE).format(phrase.en), phrase.zh, "one_of", answers, "en")
        bare = phrase.en.removeprefix("the ")
        return Exchange(rng.choice(_TO_ENGLISH).format(phrase.zh), phrase.en, "one_of", (phrase.en, bare), "zh")
