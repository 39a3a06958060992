"""The bilingual lexicon of the translation skill."""

from __future__ import annotations

from typing import NamedTuple


class Noun(NamedTuple):
    en: str
    plural: str
    zh: str
    measure: str  # the Chinese measure word that goes between a number and this noun
    animate: bool


def _nouns(table: str, animate: bool) -> list[Noun]:
    rows = (entry.split() for entry in table.split(","))
    return [Noun(en, plural, zh, measure, animate) for en, plural, zh, measure in rows]


NOUNS: tuple[Noun, ...] = (
    *_nouns(
        "cat cats 猫 只, dog dogs 狗 只, bird birds 鸟 只, horse horses 马 匹, rabbit rabbits 兔子 只, "
        "duck ducks 鸭子 只, monkey monkeys 猴子 只, tiger tigers 老虎 只, mouse mice 老鼠 只, pig pigs 猪 头, "
        "frog frogs 青蛙 只, wolf wolves 狼 只, girl girls 女孩 个, boy boys 男孩 个, teacher teachers 老师 个, "
        "doctor doctors 医生 个, student students 学生 个, child children 孩子 个, friend friends 朋友 个, "
        "king kings 国王 个",
        True,
    ),
    *_nouns(
        "book books 书 本, table tables 桌子 张, chair chairs 椅子 把, car cars 车 辆, house houses 房子 座, "
        "tree trees 树 棵, flower flowers 花 朵, cup cups 杯子 个, hat hats 帽子 顶, ball balls 球 个, "
        "boat boats 船 条, door doors 门 扇, key keys 钥匙 把, lamp lamps 灯 盏, box boxes 箱子 个, pen pens 笔 支, "
        "clock clocks 钟 个, bag bags 包 个, shirt shirts 衬衫 件, umbrella umbrellas 雨伞 把",
        False,
    ),
)

ADJECTIVES: dict[str, str] = {
    "red": "红色的",
    "blue": "蓝色的",
    "green": "绿色的",
    "yellow": "黄色的",
    "white": "白色的",
    "black": "黑色的",
    "big": "大",
    "small": "小",
    "beautiful": "漂亮的",
    "strange": "奇怪的",
    "clean": "干净的",
    "cute": "可爱的",
}

VERBS: dict[str, str] = {
    "sleeps": "睡觉",
    "runs": "跑步",
    "eats": "吃饭",
    "sings": "唱歌",
    "swims": "游泳",
    "dances": "跳舞",
    "reads": "看书",
    "works": "工作",
    "waits": "等待",
    "cries": "哭",
    "laughs": "笑",
    "plays": "玩",
}

TRANSITIVES: dict[str, str] = {"sees": "看见", "likes": "喜欢", "wants": "想要", "finds": "找到", "has": "有"}

NUMBERS: dict[str, str] = {
    "two": "两",
    "three": "三",
    "four": "四",
    "five": "五",
    "six": "六",
    "seven": "七",
    "eight": "八",
    "nine": "九",
    "ten": "十",
}
