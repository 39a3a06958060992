"""Repetition and look-up: pages on which what comes next has stood before, so that a model learns to copy from context.

Nothing else in the corpus forces that: a paragraph about one person repeats one name. Yet every reply begins by taking
a name, a word or a line out of the question. Words are drawn at random, many are invented, so that only copying helps.
Source: Olsson et al. 2022, arXiv:2209.11895 (induction heads form on repeated random sequences).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from jielong.data.world.exchange import Exchange

_CONSONANTS = "b d f g k l m n p r s t v z".split()
_MIN_CHARACTERS = 100  # of a page; shorter ones are joined
_VOWELS = "a e i o u".split()
_SAY = {
    "en": (("The teacher says: ", "The class says: "), ("First time: ", "Second time: "), ("List: ", "Once more: ")),
    "zh": (("老师说：", "学生说："), ("第一次：", "第二次："), ("名单：", "再念一遍：")),
}
_CALL = {
    "en": (("Here comes {}.", "{} is here."), ("I look for {}.", "{} is found."), ("Do you know {}?", "{} is known.")),
    "zh": (("{}来了吗？", "{}来了。"), ("我在找{}。", "{}在这里。"), ("你认识{}吗？", "{}大家都认识。")),
}
_NAME = {
    "en": ("Say: {}", "Please say: {}", "Call {}.", "Say hello to {}."),
    "zh": ("请说：{}", "说一说：{}", "叫一声{}。"),
}
_REPEAT = {
    "en": ("Repeat: {}", "Repeat after me: {}", "Say this again: {}"),
    "zh": ("重复：{}", "跟我念：{}", "再说一遍：{}"),
}
_FIND = {
    "en": ("look up {}: {}", "{} goes with {}", "under {} stands {}"),
    "zh": ("查{}：{}", "{}后面是{}", "{}对着{}"),
}


class Echo:
    """Pages of four kinds: lines recited again and again or said twice, names called and answered, tables looked up."""

    def __init__(self, words: dict[str, Sequence[str]], subjects: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """words: language -> words of the rest of the world. subjects: (name, how a sentence begins with it).

        All names are called here, also those that no question asks about: a call tells nothing about its name.
        """
        self._words = {language: (*words[language], *(n for n, _ in subjects[language])) for language in words}
        self._subjects = subjects

    def exchange(self, rng: random.Random, split: str) -> Exchange:
        """Train: a name is called, or words are repeated. Held out: words are repeated that were invented just now."""
        language = "zh" if rng.random() < 0.35 else "en"
        if split == "heldout":
            words = [self._invented(rng) for _ in range(rng.randint(1, 3))]
        elif rng.random() < 0.4:
            name, subject = rng.choice(self._subjects[language])
            request = rng.choice(_NAME[language]).format(name)
            return Exchange(
                request, f"{subject}！" if language == "zh" else f"{subject}!", "one_of", (subject,), language
            )
        else:
            words = [self._word(rng, language) for _ in range(rng.randint(1, 4))]
        said = ("、" if language == "zh" else " ").join(words)
        return Exchange(rng.choice(_REPEAT[language]).format(said), said, "exact", (said,), language)

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language)."""
        language = "zh" if rng.random() < 0.35 else "en"
        text = ""
        while len(text) < _MIN_CHARACTERS:
            page = rng.choice((self._recited, self._recited, self._said_twice, self._called, self._looked_up))
            text += ("\n\n" if text else "") + "\n".join(page(rng, language))
        return text, language

    def _word(self, rng: random.Random, language: str) -> str:
        if rng.random() < 0.6 or language == "zh":
            return rng.choice(self._words[language])
        if rng.random() < 0.2:
            return str(rng.randint(10, 999))
        return self._invented(rng)

    @staticmethod
    def _invented(rng: random.Random) -> str:
        return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3)))

    def _recited(self, rng: random.Random, language: str) -> list[str]:
        """One long random line again and again: most of the page can be copied, and only copied."""
        pool = [self._word(rng, language) for _ in range(rng.randint(10, 30))]
        line = ("" if language == "zh" else " ").join(rng.choice(pool) for _ in range(rng.randint(12, 30)))
        return [f"{number}: {line}" for number in range(1, rng.randint(2, 4) + 1)]

    def _said_twice(self, rng: random.Random, language: str) -> list[str]:
        lines = []
        for _ in range(rng.randint(2, 4)):
            words = [self._word(rng, language) for _ in range(rng.randint(3, 9))]
            said = ("、" if language == "zh" else " ").join(words)
            lines += [f"{opening}{said}" for opening in rng.choice(_SAY[language])]
        return lines

    def _called(self, rng: random.Random, language: str) -> list[str]:
        lines = []
        for _ in range(rng.randint(6, 10)):
            word = self._word(rng, language)
            lines += [template.format(word) for template in rng.choice(_CALL[language])]
        return lines

    def _looked_up(self, rng: random.Random, language: str) -> list[str]:
        keys = list(dict.fromkeys(self._word(rng, language) for _ in range(rng.randint(4, 8))))
        table = {key: " ".join(self._word(rng, language) for _ in range(rng.randint(1, 3))) for key in keys}
        find = rng.choice(_FIND[language])
        asked = rng.sample(keys, len(keys))
        return [f"{key}: {value}" for key, value in table.items()] + [find.format(key, table[key]) for key in asked]
