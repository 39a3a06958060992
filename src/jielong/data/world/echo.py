"""Repetition and look-up: pages on which what comes next has stood before, so that a model learns to copy from context.

Nothing else in the corpus forces that: a paragraph about one person repeats one name. Yet every reply begins by taking
a name, a word or a line out of the question. Words are drawn at random, many are invented, so that only copying helps.
Source: Olsson et al. 2022, arXiv:2209.11895 (induction heads form on repeated random sequences).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_CONSONANTS = "b d f g k l m n p r s t v z".split()
_VOWELS = "a e i o u".split()
_SAY = {
    "en": (("The teacher says: ", "The class says: "), ("First time: ", "Second time: "), ("List: ", "Once more: ")),
    "zh": (("老师说：", "学生说："), ("第一次：", "第二次："), ("名单：", "再念一遍：")),
}
_CALL = {
    "en": (("Here comes {}.", "{} is here."), ("I look for {}.", "{} is found."), ("Do you know {}?", "{} is known.")),
    "zh": (("{}来了吗？", "{}来了。"), ("我在找{}。", "{}在这里。"), ("你认识{}吗？", "{}大家都认识。")),
}
_FIND = {
    "en": ("look up {}: {}", "{} goes with {}", "under {} stands {}"),
    "zh": ("查{}：{}", "{}后面是{}", "{}对着{}"),
}


class Echo:
    """Pages of three kinds: lines said twice, names called and answered, tables that are looked up."""

    def __init__(self, words: dict[str, Sequence[str]]) -> None:
        """words: language -> names and words of the rest of the world, so that their tokens too are copied."""
        self._words = words

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language)."""
        language = "zh" if rng.random() < 0.35 else "en"
        page = rng.choice((self._said_twice, self._called, self._looked_up))
        return "\n".join(page(rng, language)), language

    def _word(self, rng: random.Random, language: str) -> str:
        if rng.random() < 0.6 or language == "zh":
            return rng.choice(self._words[language])
        if rng.random() < 0.2:
            return str(rng.randint(10, 999))
        return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3)))

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
        asked = [rng.choice(keys) for _ in range(rng.randint(4, 8))]
        return [f"{key}: {value}" for key, value in table.items()] + [find.format(key, table[key]) for key in asked]
