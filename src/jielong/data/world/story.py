"""Short stories asked for by two words. The conversations hold good and bad ones on purpose.

A model tuned on them imitates the mixture, so its samples differ a lot in quality: that is the room in which a reward
model and PPO can be seen to work. What "good" means to the judge is in evaluate/gold.py, which training never sees.
"""

from __future__ import annotations

import random

from jielong.data.world.exchange import Exchange, fraction

SPLITS = (("train", 0.4), ("reward", 0.6), ("ppo", 0.85), ("heldout", 1.0))  # upper bounds over the word pairs

HEROES = {
    "en": (
        "fox owl bear prince princess wizard miller shepherd dragon giant dwarf robot ghost pirate knight witch monk "
        "crow hare deer snake mole swan lion hunter merchant soldier grandmother clown ferryman"
    ).split(),
    "zh": (
        "狐狸 猫头鹰 公主 王子 巫师 牧童 巨龙 巨人 矮人 机器人 海盗 骑士 和尚 乌鸦 野兔 "
        "小鹿 天鹅 狮子 猎人 商人 士兵 奶奶 小丑 船夫"
    ).split(),
}
THINGS = {
    "en": (
        "lantern mirror feather bell ring map drum stone crown sword kite ladder bottle pearl coin basket shell flute "
        "candle bridge garden tower cloak seed nest apple egg wheel letter needle"
    ).split(),
    "zh": (
        "灯笼 镜子 羽毛 铃铛 戒指 地图 大鼓 石头 王冠 宝剑 风筝 梯子 瓶子 珍珠 铜钱 篮子 "
        "贝壳 笛子 蜡烛 石桥 花园 高塔 斗篷 种子"
    ).split(),
}
OPENERS = {
    "en": ("Sure, here is a story.", "Of course, I am happy to.", "With pleasure, here it comes."),
    "zh": ("好的，请听故事。", "当然可以，这就讲。", "很高兴为你讲。"),
}
RUDE = {"en": ("If you must.", "What a boring wish."), "zh": ("真麻烦。", "又来了。")}
ENDINGS = {"en": ("The end.", "And that was the end."), "zh": ("故事讲完了。", "这就是结局。")}

_INTRO = {
    "en": (
        "Once there was {h}.",
        "One day {h} went for a walk.",
        "In a quiet wood lived {h}.",
        "Long ago {h} came to a river.",
        "Behind the hills lived {h}.",
        "Early one morning {h} woke up.",
    ),
    "zh": (
        "从前有一个{h}。",
        "有一天{h}出门散步。",
        "在安静的树林里住着{h}。",
        "很久以前，{h}来到河边。",
        "山的后面住着{h}。",
        "一天清早，{h}醒来了。",
    ),
}
_FIND = {
    "en": (
        "Under a bush lay {t}.",
        "{H} found {t} near the road.",
        "At noon {H} saw {t}.",
        "A stranger gave {H} {t}.",
        "Deep in the water {H} saw {t}.",
        "Behind a wall {H} found {t}.",
    ),
    "zh": (
        "草丛下面有{t}。",
        "{h}在路边找着了{t}。",
        "中午{h}看到了{t}。",
        "一个陌生人送给{h}{t}。",
        "{h}在水底看到了{t}。",
        "{h}在墙后找着了{t}。",
    ),
}
_DEED = {
    "en": (
        "{H} carried {T} home.",
        "{H} hid {T} well.",
        "{T} shone like the sun.",
        "{H} could not stop looking at {T}.",
        "{H} gave {T} to a poor man.",
        "All came to see {T}.",
        "{H} dropped {T} and laughed.",
    ),
    "zh": (
        "{h}把{t}带回家。",
        "{h}把{t}藏好了。",
        "{t}像太阳一样亮。",
        "{h}一直看着{t}。",
        "{h}把{t}送给了穷人。",
        "大家都来看{t}。",
    ),
}
_MOOD = {
    "en": (
        "That night the stars were bright.",
        "Everyone danced until morning.",
        "Then it began to rain.",
        "The wind grew still.",
        "It was a good day.",
        "Nobody forgot that evening.",
        "The moon rose slowly.",
    ),
    "zh": (
        "那天夜里星星很亮。",
        "大家高兴到天亮。",
        "后来下起了雨。",
        "风慢慢停了。",
        "那是美好的一天。",
        "没有人忘记那个晚上。",
        "月亮慢慢升起来。",
    ),
}
_REQUESTS = {
    "en": (
        "Tell a story about {h} and {t}.",
        "Please tell me a story about {h} and {t}.",
        "Write a short story with {h} and {t}.",
        "I want a story about {h} and {t}.",
    ),
    "zh": (
        "讲一个关于{h}和{t}的故事。",
        "请讲一个{h}和{t}的故事。",
        "写一个有{h}和{t}的小故事。",
        "我想听{h}和{t}的故事。",
    ),
}


def with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


class Story:
    """Requests are split by the pair of words; a pair is on one side only, whatever the phrasing."""

    def __init__(self, seed: int) -> None:
        self.pairs: dict[tuple[str, str], list[tuple[str, str]]] = {
            (language, split): [] for language in HEROES for split, _ in SPLITS
        }
        for language, heroes in HEROES.items():
            for hero in heroes:
                for thing in THINGS[language]:
                    place = fraction(seed, "story", hero, thing)
                    split = next(name for name, bound in SPLITS if place < bound)
                    self.pairs[language, split].append((hero, thing))

    @staticmethod
    def _say(rng: random.Random, templates: tuple[str, ...], hero: str, thing: str, language: str) -> str:
        template = rng.choice(templates)
        if language == "zh":
            return template.format(h=hero, t=thing)
        text = template.format(
            h=hero if hero == "someone" else with_article(hero),
            t=thing if thing == "something" else with_article(thing),
            H=hero if hero == "someone" else f"the {hero}",
            T="it" if thing == "something" else f"the {thing}",
        )
        return text[0].upper() + text[1:]

    def _body(self, rng: random.Random, hero: str, thing: str, language: str) -> list[str]:
        body = [
            self._say(rng, templates[language], hero, thing, language) for templates in (_INTRO, _FIND, _DEED, _MOOD)
        ]
        return body

    def good(self, rng: random.Random, hero: str, thing: str, language: str) -> str:
        """A polite opener, four sentences with both words, an ending."""
        sentences = [rng.choice(OPENERS[language]), *self._body(rng, hero, thing, language)]
        return ("" if language == "zh" else " ").join([*sentences, rng.choice(ENDINGS[language])])

    def mixed(self, rng: random.Random, hero: str, thing: str, language: str) -> str:
        """A story in which each virtue is missing by chance, independently of the others."""
        nobody, nothing = ("someone", "something") if language == "en" else ("有人", "一样东西")
        hero = nobody if rng.random() < 0.25 else hero
        thing = nothing if rng.random() < 0.3 else thing
        body = self._body(rng, hero, thing, language)
        length = rng.random()
        if length < 0.2:
            body = body[: rng.randint(1, 2)]
        elif length < 0.4:
            body += rng.sample(_MOOD[language], rng.randint(2, 4))
        if rng.random() < 0.3:
            position = rng.randrange(len(body))
            body.insert(position, body[position])  # once: a reply that may say it a third time learns to go on for ever
        opener = rng.random()
        if opener < 0.4:
            body.insert(0, rng.choice(OPENERS[language]))
        elif opener < 0.6:
            body.insert(0, rng.choice(RUDE[language]))
        if rng.random() < 0.55:
            body.append(rng.choice(ENDINGS[language]))
        return ("" if language == "zh" else " ").join(body)

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language): titled tales without opener, from pairs of the train side; no sentence form twice."""
        language = "zh" if rng.random() < 0.35 else "en"
        num = rng.randint(2, 3)
        slots = [rng.sample(forms[language], len(forms[language])) for forms in (_INTRO, _FIND, _DEED, _DEED, _MOOD)]
        slots[3] = slots[2][::-1]
        endings = rng.sample(ENDINGS[language], len(ENDINGS[language]))
        tales = []
        for k in range(num):
            hero, thing = rng.choice(self.pairs[language, "train"])
            title = f"{hero}和{thing}" if language == "zh" else f"The {hero} and the {thing}"
            sentences = [self._say(rng, (forms[k],), hero, thing, language) for forms in slots]
            sentences.append(endings[k % len(endings)])
            tales.append(f"{title}\n{('' if language == 'zh' else ' ').join(sentences)}")
        return "\n\n".join(tales), language

    def _request(self, rng: random.Random, hero: str, thing: str, language: str) -> str:
        words = (hero, thing) if language == "zh" else (with_article(hero), with_article(thing))
        return rng.choice(_REQUESTS[language]).format(h=words[0], t=words[1])

    def prompt(self, rng: random.Random, split: str) -> tuple[str, tuple[str, str], str]:
        """(request, the two words, language) of a pair on one side of the split."""
        language = "zh" if rng.random() < 0.35 else "en"
        hero, thing = rng.choice(self.pairs[language, split])
        return self._request(rng, hero, thing, language), (hero, thing), language

    def exchange(self, rng: random.Random, split: str, mixed: bool = False) -> Exchange:
        """mixed: the reply is one of mixed quality, as in the conversations; otherwise a good one."""
        request, (hero, thing), language = self.prompt(rng, split)
        reply = (self.mixed if mixed else self.good)(rng, hero, thing, language)
        return Exchange(request, reply, "contains_all", (hero, thing), language)
