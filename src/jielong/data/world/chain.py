"""接龙, the word chain: answer with a word that begins where the last one ended.

A tokenizer hides the letters of a word, so the prose spells the words out.
"""

from __future__ import annotations

import random

from jielong.data.world.exchange import Exchange, fraction

HELD_FRACTION = 0.25  # of the words: never chained from in train; they may end a chain there, and are spelled

WORDS = (
    "apple arm ant art banana bell bird boat bread cake candle carrot cat chair corn desk dog door drum duck "
    "eagle ear east egg elephant engine fan farm fire fish flag fox garden gate glass goat gold grass hand hat "
    "hen hill horse ice idea ink iron island jam jar jacket kettle key king kite kitchen lake lamp leaf lemon "
    "lion map milk moon mouse mountain nail neck needle nest night nose ocean oil onion orange oven owl paper "
    "pear pen piano pig queen quilt rabbit rain ring river road rope sail salt sea ship snow spoon star table "
    "tent tiger train tree umbrella uncle vase violin voice wall water wheel wind winter wolf yard yarn year "
    "zebra zoo"
).split()
WORDS_ZH = (
    "学生 生日 日光 光明 明天 天空 空气 气球 球门 门口 口水 水果 果树 树木 木头 头发 发明 明月 月光 光线 线头 "
    "生活 活动 动物 物理 理发 发现 现金 金鱼 鱼水 水手 手心 心中 中国 国家 家人 人民 民生 生命 命名 名人 人口 "
    "口气 天气 气味 味道 道路 路口 国王 王子 子女 女人 人生 生气 手工 工人 工作 作家 家门 日出 出门 出口 火车 "
    "车门 车站 木马 马车 马路 白天 大家 大学 学习"
).split()


# Why one word follows another; "" stands for the sentence that replies use.
_REASONS = {
    "en": ("", "", "{w} and {x} share {e}.", "{x} comes after {w}, by {e}.", "{e} leads from {w} to {x}."),
    "zh": ("", "", "{w}接{x}，靠{e}。", "{w}和{x}都有{e}。", "从{w}到{x}，用{e}。"),
}


class Chain:
    """Words that some word of the list can follow; `follow[word]` are all acceptable next words."""

    def __init__(self, seed: int) -> None:
        self.follow: dict[str, dict[str, tuple[str, ...]]] = {}
        self._words: dict[tuple[str, str], tuple[str, ...]] = {}
        for language, words in (("en", WORDS), ("zh", WORDS_ZH)):
            after = {w: tuple(x for x in words if x[0] == w[-1] and x != w) for w in words}
            self.follow[language] = {word: nexts for word, nexts in after.items() if nexts}
            held = tuple(w for w in self.follow[language] if fraction(seed, "chain", w) < HELD_FRACTION)
            self._words[language, "heldout"] = held
            self._words[language, "train"] = tuple(w for w in self.follow[language] if w not in held)

    def words(self, language: str, split: str) -> tuple[str, ...]:
        """The words that this split may ask to be followed."""
        return self._words[language, split]

    @staticmethod
    def reply(word: str, following: str, language: str) -> str:
        end = word[-1]
        if language == "zh":
            return f"{word}的尾字是{end}，我接{following}。"
        return f"{word} ends with {end}, I say {following}."

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language): words spelled, words by their beginning, and chains, in one mixed list."""
        language = "zh" if rng.random() < 0.4 else "en"
        words = WORDS if language == "en" else WORDS_ZH
        lines = [self._spelling(rng, word, language) for word in rng.sample(words, rng.randint(3, 5))]
        starts = rng.sample(sorted({word[0] for word in words}), rng.randint(3, 5))
        lines += [self._starting(rng, words, start, language) for start in starts]
        lines += [self._walk(rng, language) for _ in range(rng.randint(4, 7))]
        rng.shuffle(lines)
        return "\n".join(lines), language

    @staticmethod
    def _spelling(rng: random.Random, word: str, language: str) -> str:
        forms = {
            "en": ("{w}: {s}, starts with {a}, ends with {b}.", "{w} starts with {a}, and {w} ends with {b}."),
            "zh": ("{w}：首字是{a}，尾字是{b}。", "{w}的首字是{a}，{w}的尾字是{b}。"),
        }
        return rng.choice(forms[language]).format(w=word, s="-".join(word), a=word[0], b=word[-1])

    @staticmethod
    def _starting(rng: random.Random, words: list[str], start: str, language: str) -> str:
        found = [word for word in words if word[0] == start]
        rng.shuffle(found)
        if language == "zh":
            return f"{start}字开头：{'、'.join(found)}。"
        return f"Start with {start}: {', '.join(found)}."

    def _walk(self, rng: random.Random, language: str) -> str:
        """A chain, either bare or with the reason for each step; it never goes on from a held-out word."""
        allowed = self._words[language, "train"]
        reasons = rng.random() < 0.35
        chain = [rng.choice(allowed)]
        while len(chain) < 5 and chain[-1] in allowed:
            chain.append(rng.choice(self.follow[language][chain[-1]]))
        if not reasons:
            return " → ".join(chain)
        steps = []
        for word, following in zip(chain, chain[1:], strict=False):
            form = rng.choice(_REASONS[language])
            steps.append(
                form.format(w=word, e=word[-1], x=following) if form else self.reply(word, following, language)
            )
        return ("" if language == "zh" else " ").join(steps)

    def exchange(self, rng: random.Random, split: str) -> Exchange:
        language = "zh" if rng.random() < 0.4 else "en"
        word = rng.choice(self._words[language, split])
        following = self.follow[language][word]
        prompts = {
            "en": ("Word chain: {}", "Let us play word chain. My word is {}.", "Go on from the word {}.", "Chain: {}"),
            "zh": ("接龙：{}", "我们玩接龙吧，我出{}。", "请接龙：{}", "词语接龙：{}"),
        }
        answers = tuple(self.reply(word, x, language) for x in following) + following
        question = rng.choice(prompts[language]).format(word)
        return Exchange(question, self.reply(word, rng.choice(following), language), "one_of", answers, language)
